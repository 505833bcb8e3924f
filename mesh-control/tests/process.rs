//! The process as a user meets it: command line, exit codes, log, signals.
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn control(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mesh-control")).args(args).env_clear().output().unwrap()
}

/// Nothing here takes longer, on any machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A process whose lines are read with a deadline, and which does not outlive its test.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(args: &[String]) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout: ChildStdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Running { child, lines }
    }

    /// Lines up to the one that says `text`, or to the last one.
    fn until(&self, text: &str) -> Vec<String> {
        let (mut lines, end) = (Vec::new(), Instant::now() + DEADLINE);
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => lines.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => return lines,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("no {text:?} within {DEADLINE:?}: {lines:?}"),
            }
            if lines.last().is_some_and(|line| line.contains(text)) {
                return lines;
            }
        }
    }

    /// Tells it to end; its last lines, what it wrote to standard error, and its code.
    fn stop(mut self) -> (Vec<String>, String, Option<i32>) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        let lines = self.until("there is no such line");
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (lines, errors, self.child.wait().unwrap().code())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Arguments that would start, on free ports.
fn good(folder: &Path) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    fs::create_dir_all(folder.join("manifests")).unwrap();
    let (manifests, state) = (path("manifests"), path("state"));
    ["--manifests", &manifests, "--state-dir", &state, "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
        .map(str::to_owned)
        .to_vec()
}

#[test]
fn hardening_B192_what_cannot_be_understood_is_a_usage_error() {
    let folder = tempfile::tempdir().unwrap();
    let good = good(folder.path());
    let cases: &[&[&str]] = &[
        &["--unknown"],
        &["--secret-ttl"],
        &["--secret-ttl", "-1s"],
        &["--secret-ttl", "1e9h"],
        &["--secret-ttl", "5"],
        &["--secret-ttl", "NaN"],
        &["--secret-ttl", "0s"],
        &["--secret-ttl", "91d"],
        &["--secret-ttl", "99999999999999999999h"],
        &["--secret-ttl", "24h", "--secret-ttl", "24h"],
        &["--log-format", "xml"],
        &["--threads", "0"],
        &["--threads", "100000"],
        &["extra"],
    ];
    for case in cases {
        let args: Vec<&str> = good.iter().map(String::as_str).chain(case.iter().copied()).collect();
        let output = control(&args);
        assert_eq!(output.status.code(), Some(64), "{case:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{case:?}");
    }
    for listen in ["abc", "127.0.0.1:abc", "127.0.0.1:-1", "127.0.0.1:65536", "127.0.0.1", ""] {
        assert_eq!(
            control(&["--manifests", "/tmp", "--state-dir", "/x", "--listen", listen]).status.code(),
            Some(64),
            "{listen}"
        );
    }
    assert_eq!(control(&[]).status.code(), Some(64));
    assert_eq!(control(&["--help"]).status.code(), Some(0));
    assert_eq!(control(&["--version"]).status.code(), Some(0));
}

#[test]
fn hardening_B193_what_cannot_be_used_is_named_all_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let good = good(folder.path());
    let with = |more: &[&str]| {
        let args: Vec<&str> = good.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let output = control(&args);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = with(&[
        "--trust-domain",
        "Bad Domain",
        "--cluster-id",
        "a\nb",
        "--root-namespace",
        "",
        "--log-level",
        "loud",
        "--san",
        "*",
    ]);
    assert_eq!(code, Some(78));
    for flag in ["--trust-domain", "--cluster-id", "--root-namespace", "--log-level", "--san"] {
        assert!(text.contains(flag), "{flag} in {text}");
    }
    let output = control(&["--manifests", "/nonexistent", "--state-dir", "/nonexistent-state"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--manifests /nonexistent"));
    assert!(!Path::new("/nonexistent-state").exists());
    let inside = folder.path().join("manifests/state").display().to_string();
    let manifests = folder.path().join("manifests").display().to_string();
    assert_eq!(control(&["--manifests", &manifests, "--state-dir", &inside]).status.code(), Some(78));
}

#[test]
fn hardening_B119_a_bad_root_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let args = good(folder.path());
    let state = folder.path().join("state");
    mesh_control::state::folder(&state).unwrap();
    mesh_control::state::write(&state.join("ca-key.pem"), "", 0o600).unwrap();
    let output = control(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("root-cert.pem is not: restore it"), "{text}");
}

#[test]
fn a_process_serves_until_it_is_told_to_end_and_logs_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let args = good(folder.path());
    fs::write(
        folder.path().join("manifests/a.yaml"),
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n---\nkind: [\n",
    )
    .unwrap();
    let more = ["--log-level", "trace", "--log-format", "json"].map(str::to_owned);
    let running = Running::start(&[args, more.to_vec()].concat());
    let mut log = running.until("\"message\":\"ready\"").concat();
    assert!(log.contains("\"message\":\"ready\""), "never ready:\n{log}");
    let (lines, errors, code) = running.stop();
    log.extend(lines);
    assert_eq!(code, Some(0));
    assert!(errors.contains("error: not valid YAML") && errors.contains("--> a.yaml:5"), "{errors}");
    let token = fs::read_to_string(folder.path().join("state/tokens/n1")).unwrap();
    for secret in [token.as_str(), "PRIVATE KEY"] {
        assert!(!log.contains(secret) && !errors.contains(secret));
    }
}

#[test]
fn hardening_F12_nothing_is_served_before_every_manifest_has_been_read() {
    let folder = tempfile::tempdir().unwrap();
    let args = good(folder.path());
    let (missing, link) = (folder.path().join("policy.yaml"), folder.path().join("manifests/policy.yaml"));
    std::os::unix::fs::symlink(&missing, &link).unwrap();
    let running = Running::start(&args);
    let waiting = running.until("cannot begin before everything can be read\tunread=policy.yaml");
    assert!(!waiting.is_empty() && waiting.iter().all(|line| !line.contains("ready")), "{waiting:?}");
    fs::write(&missing, "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n").unwrap();
    let lines = running.until("ready");
    assert!(lines.last().is_some_and(|line| line.contains("ready")), "{lines:?}");
    assert_eq!(running.stop().2, Some(0));
    assert!(folder.path().join("state/tokens/n1").exists());
}

#[test]
fn hardening_B195_a_status_does_not_depend_on_who_reads() {
    let status = |args: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
        command.args(args).env_clear().stdin(Stdio::null());
        command.stdout(writer.try_clone().unwrap()).stderr(writer).status().unwrap().code()
    };
    assert_eq!(status(&["--help"]), Some(0));
    assert_eq!(status(&["--unknown"]), Some(64));
    let missing = ["--manifests", "/nowhere", "--state-dir", "/nowhere/state", "--listen", "127.0.0.1:0"];
    assert_eq!(status(&missing), Some(78));
}
