//! One call from its beginning to its end. Called by `main`.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use mesh_proto::convert::{CniAnswer, CniCommand, CniRequest};
use mesh_proto::scope::{MAX_SCOPE_BYTES, Member, Scope};

use crate::agent;
use crate::call::{Call, Command, Pod};
use crate::config::{self, Config};
use crate::decide::{self, Next};
use crate::refusal::{Code, Refusal};

/// How often an agent that is away is looked for.
const AGAIN: Duration = Duration::from_millis(100);
/// How long the agent may take about a pod that is, by its own file, none of the mesh: one that hangs must not hold up those.
const FOREIGN: Duration = Duration::from_secs(5);
/// How long the end of a pod waits for the agent.
const FAREWELL: Duration = Duration::from_secs(2);

/// Runs a call; returns what is to be printed.
pub fn run(environment: &dyn Fn(&str) -> Option<OsString>, given: &[u8]) -> Result<Option<String>, Refusal> {
    let call = Call::read(environment)?;
    if call.command == Command::Version {
        return Ok(Some(config::versions(given)));
    }
    let config = Config::read(given)?;
    match call.command {
        Command::Add => add(&call, &config).map(Some),
        Command::Check => check(&call, &config).map(|()| None),
        Command::Del => {
            del(&call, &config);
            Ok(None)
        }
        // The agent knows by itself which pods are left. And pods out of the mesh can always be added: that the agent is away must not make the
        // node unready for them, or the agent could not come back.
        Command::Gc | Command::Status | Command::Version => Ok(None),
    }
}

/// Holds a pod until it may go on; its result is that of the plugins before.
fn add(call: &Call, config: &Config) -> Result<String, Refusal> {
    let result = config.result()?;
    let passed = || Ok(result.to_string());
    // What is no pod, and the mesh's own namespace and the cluster's, without which neither agent nor control plane could come up.
    let Some(pod) = call.pod.as_ref().filter(|pod| !config.exempt.contains(&pod.namespace)) else { return passed() };
    let deadline = Instant::now() + config.wait();
    let mut request = request(CniCommand::Add, call, pod);
    request.ips = config::addresses(result)?;
    request.dns = config.dns();
    let netns = open_netns(call)?;
    if request.uid.is_empty() {
        return match member(config, pod) {
            Member::Out => passed(),
            _ => Err(Refusal::new(
                Code::Environment,
                "the container runtime does not tell the pod's UID (K8S_POD_UID): update it, or take the pod out of the mesh",
            )),
        };
    }
    loop {
        let member = member(config, pod);
        let left = deadline.saturating_duration_since(Instant::now());
        request.patience = if member == Member::Out { left.min(FOREIGN) } else { left };
        match decide::add(agent::ask(&config.socket, &request, netns.as_ref()), &member) {
            Next::Pass => return passed(),
            Next::Refuse(why) => return Err(Refusal::new(Code::Refused, why)),
            Next::Wait(why) if deadline.saturating_duration_since(Instant::now()) <= AGAIN => {
                return Err(Refusal::new(Code::TryAgain, format!("held back: {why}")));
            }
            Next::Wait(_) => std::thread::sleep(AGAIN),
        }
    }
}

fn check(call: &Call, config: &Config) -> Result<(), Refusal> {
    let result = config.result()?;
    let Some(pod) = call.pod.as_ref().filter(|pod| pod.uid.is_some() && !config.exempt.contains(&pod.namespace)) else {
        return Ok(());
    };
    let mut request = request(CniCommand::Check, call, pod);
    request.ips = config::addresses(result)?;
    let netns = open_netns(call)?;
    match decide::check(agent::ask(&config.socket, &request, netns.as_ref())) {
        Next::Pass => Ok(()),
        Next::Wait(why) => Err(Refusal::new(Code::TryAgain, why)),
        Next::Refuse(why) => Err(Refusal::new(Code::Refused, why)),
    }
}

/// Tells the agent, if it is there: nothing that is missing may keep a pod from ending.
fn del(call: &Call, config: &Config) {
    let Some(pod) = call.pod.as_ref().filter(|pod| pod.uid.is_some()) else { return };
    let Some(netns) = call.netns.as_ref().and_then(|path| File::open(path).ok()) else { return };
    let _: Result<CniAnswer, String> = agent::ask(&config.socket, &request(CniCommand::Del, call, pod), Some(&netns));
}

fn request(command: CniCommand, call: &Call, pod: &Pod) -> CniRequest {
    CniRequest {
        command,
        container: call.container.as_str().into(),
        namespace: pod.namespace.as_str().into(),
        name: pod.name.as_str().into(),
        uid: pod.uid.as_deref().unwrap_or_default().into(),
        ips: Vec::new(),
        dns: None,
        patience: FAREWELL,
    }
}

fn open_netns(call: &Call) -> Result<Option<File>, Refusal> {
    let Some(path) = &call.netns else { return Ok(None) };
    let failed =
        |error| Refusal::new(Code::Io, format!("cannot open the network namespace {}: {error}", path.display()));
    File::open(path).map(Some).map_err(failed)
}

/// What the agent left behind says about a pod. Read anew each time: the agent may have come back and gone again.
fn member(config: &Config, pod: &Pod) -> Member {
    match read(&config.scope) {
        Ok(scope) => scope.member(&pod.namespace, pod.uid.as_deref()),
        Err(why) => Member::Unknown(format!("{}: {why}", config.scope.display())),
    }
}

fn read(path: &Path) -> Result<Scope, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_SCOPE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    match bytes.len() as u64 > MAX_SCOPE_BYTES {
        true => Err(format!("longer than {MAX_SCOPE_BYTES} bytes")),
        false => Scope::read(&bytes),
    }
}
