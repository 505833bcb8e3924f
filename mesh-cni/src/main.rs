//! `mesh-cni`: a CNI plugin (specification 1.1 and back to 0.3.0) behind the one that makes a pod's network. It holds a new pod that is to be in the
//! mesh until the agent of the node has captured it and has its certificate, and changes nothing itself. Started by the container runtime.
//!
//! ```text
//!  environment, stdin ── call, config ──> run ── agent (socket) ──> answer ┐
//!                                          ^                               v
//!                                          └── file of the scope ──> decide (pure) ── result or error on stdout
//! ```
//! It is a small static program that needs nothing of the node but the two paths in its configuration.

#![cfg_attr(test, allow(non_snake_case, reason = "tests carry the ids of the rows they prove"))]

mod agent;
mod call;
mod config;
mod decide;
mod refusal;
mod run;

use std::io::{Read, Write};
use std::process::ExitCode;

use refusal::{Code, Refusal};

/// Configurations are some kilobytes; with the result of other plugins still far below this.
const LONGEST: u64 = 4 << 20;

fn main() -> ExitCode {
    let mut given = Vec::new();
    let read = match std::io::stdin().lock().take(LONGEST + 1).read_to_end(&mut given) {
        Err(error) => Err(Refusal::new(Code::Io, format!("cannot read the configuration: {error}"))),
        Ok(length) if length as u64 > LONGEST => {
            Err(Refusal::new(Code::Decode, format!("the configuration is longer than {LONGEST} bytes")))
        }
        Ok(_) => Ok(()),
    };
    let version = config::version_of(&given);
    let (text, status) = match read.and_then(|()| run::run(&|name| std::env::var_os(name), &given)) {
        Ok(output) => (output, ExitCode::SUCCESS),
        Err(refusal) => (Some(refusal.json(&version)), ExitCode::FAILURE),
    };
    match text.map_or(Ok(()), |text| writeln!(std::io::stdout(), "{text}")) {
        Ok(()) => status,
        // A runtime that is gone has not heard that the pod may go on.
        Err(_) => ExitCode::FAILURE,
    }
}
