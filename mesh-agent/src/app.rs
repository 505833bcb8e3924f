//! Puts the agent together: reads the configuration, becomes keeper or worker, starts the parts in order and stops them in order.
//!
//! ```text
//!  worker:  log ─ kernel ─ state, control stream, certificates ─ proxy ─ adoption ─ enrolment ─ ready
//!           └────────── operator's servers (metrics, readiness, admin) from the start ──────────┘
//! ```
//! Two runtimes: one thread for control (stream, certificates, enrolment, operator), several for the data plane. Neither can starve the other.

mod cleanup;
mod crl;
mod handover;
mod house;
mod plugin;
mod privilege;
mod uninstall;
mod worker;

use std::io::Write;

use mesh_runtime::logging;
use mesh_runtime::tap::client;

use crate::admin;
use crate::bpf::KernelError;
use crate::config::{ChargeFlags, Cli, CniFlags, Config, EXIT_CONFIG, Role};
use crate::enrol::node::chain;
use crate::keeper::{lock, process, standby};

/// Exit status when another agent holds the instance, or an address is taken (EX_UNAVAILABLE).
pub const EXIT_UNAVAILABLE: i32 = 69;
/// Exit status when the kernel cannot do what the programs need (EX_SOFTWARE).
pub const EXIT_KERNEL: i32 = 70;
/// Exit status when a system call failed (EX_OSERR): another try may do better.
pub const EXIT_SYSTEM: i32 = 71;

/// Why the agent cannot run: one line and an exit status.
#[derive(Debug)]
pub struct Refusal {
    status: i32,
    line: String,
}

impl Refusal {
    fn new(status: i32, what: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        Refusal { status, line: format!("{what}: {}", chain(error)) }
    }

    fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Refusal {
        move |error| Refusal::new(EXIT_SYSTEM, what, &error)
    }
}

impl From<lock::LockError> for Refusal {
    fn from(error: lock::LockError) -> Self {
        let status = match &error {
            lock::LockError::Taken { .. } => EXIT_UNAVAILABLE,
            lock::LockError::Foreign { .. } | lock::LockError::NotCgroup2(_) => EXIT_CONFIG,
            lock::LockError::Io { .. } => EXIT_SYSTEM,
        };
        Refusal { status, line: chain(&error) }
    }
}

impl From<KernelError> for Refusal {
    fn from(error: KernelError) -> Self {
        let status = match &error {
            KernelError::Locked { .. } => EXIT_UNAVAILABLE,
            KernelError::Config(_) => EXIT_CONFIG,
            KernelError::SelfTest(_) | KernelError::Missing(_) | KernelError::Forbidden(_) => EXIT_KERNEL,
            KernelError::Io { .. } | KernelError::Bpf { .. } | KernelError::Pod { .. } => EXIT_SYSTEM,
        };
        Refusal { status, line: format!("kernel: {}", chain(&error)) }
    }
}

/// Runs the role that the command line asks for; returns the exit status.
pub fn main(cli: &Cli) -> i32 {
    match &cli.role {
        Some(Role::CniUninstall(flags)) => return uninstall(flags),
        Some(Role::Cleanup(flags)) => return cleanup::main(flags),
        Some(Role::InCharge(flags)) => return in_charge(flags),
        Some(Role::Tap(flags)) => return client::main(&flags.run_dir.join(admin::SOCKET), &flags.selector),
        None | Some(Role::Worker(_)) => {}
    }
    let config = match cli.config() {
        Ok(config) => config,
        Err(problems) => {
            for line in &problems.lines {
                complain(line);
            }
            return problems.status;
        }
    };
    let role = match cli.role {
        None | Some(Role::CniUninstall(_) | Role::Cleanup(_) | Role::InCharge(_) | Role::Tap(_)) => keeper,
        Some(Role::Worker(_)) => worker::run,
    };
    let lacking = privilege::missing().map(|line| Refusal { status: privilege::EXIT_PERMISSION, line });
    lacking.map_or_else(|| role(config), Err).unwrap_or_else(|refusal| {
        complain(&refusal.line);
        refusal.status
    })
}

fn uninstall(flags: &CniFlags) -> i32 {
    match uninstall::uninstall(flags) {
        Ok(done) => {
            let _ = writeln!(std::io::stdout(), "{done}");
            0
        }
        Err(line) => {
            complain(&line);
            EXIT_SYSTEM
        }
    }
}

/// One line on standard error, if anybody reads it: the status counts, whoever listens.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "mesh-agent: {line}");
}

fn keeper(config: Config) -> Result<i32, Refusal> {
    log(&config)?;
    // The worker ends by itself at the end of its drain; the rest is for what it does before and after.
    let grace = |drain| drain + std::time::Duration::from_secs(5);
    let command = process::WorkerCommand::same_program(grace(config.drain));
    let Some(pod) = config.standby else {
        let lock = lock::acquire(&config.run_dir)?;
        lock::join_cgroup(&config.agent_cgroup)?;
        raise_fd_limit();
        return process::run(&command, lock).map_err(Refusal::system("keeper"));
    };
    lock::join_cgroup(&config.agent_cgroup)?;
    raise_fd_limit();
    let line = process::Line { run_dir: config.run_dir, pod, grace: grace(config.handover) };
    process::run_in_line(&command, &line).map_err(Refusal::system("keeper"))
}

/// Whether the agent that leads on this node is of the pod that asks.
fn in_charge(flags: &ChargeFlags) -> i32 {
    match standby::who_leads(&flags.run_dir) {
        Ok(pod) if pod == flags.standby => 0,
        Ok(pod) => {
            complain(&format!("the pod {pod} leads on this node"));
            EXIT_UNAVAILABLE
        }
        Err(error) => {
            complain(&format!("nobody says who leads: {error}"));
            EXIT_UNAVAILABLE
        }
    }
}

fn log(config: &Config) -> Result<logging::LogControl, Refusal> {
    logging::init(config.log_format, config.log_level.clone()).map_err(|error| Refusal::new(EXIT_SYSTEM, "log", &error))
}

fn raise_fd_limit() {
    match mesh_runtime::fds::raise_limit() {
        Ok(limit) if limit < 16 * mesh_runtime::fds::RESERVE => {
            tracing::warn!(limit, "few file descriptors: each connection needs two, each pod about twenty");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of file descriptors"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The statuses that tell whoever starts the agent whether another try can do better.
    #[test]
    fn hardening_f28_what_the_kernel_lacks_ends_the_agent_with_its_name() {
        let missing = Refusal::from(KernelError::Missing("sk_lookup programs (Linux 5.9)".to_owned()));
        let line = "kernel: the kernel lacks sk_lookup programs (Linux 5.9)";
        assert_eq!((missing.status, missing.line.as_str()), (EXIT_KERNEL, line));
        assert_eq!(Refusal::from(KernelError::SelfTest("x".to_owned())).status, EXIT_KERNEL);
        assert_eq!(Refusal::from(KernelError::Forbidden("x".to_owned())).status, EXIT_KERNEL);
        assert_eq!(Refusal::from(KernelError::Config("x".to_owned())).status, EXIT_CONFIG);
    }
}
