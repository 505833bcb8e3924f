//! The process as a user meets it: command line, exit codes, log, signals.
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn control(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mesh-control")).args(args).env_clear().output().unwrap()
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
    let mut child = Command::new(env!("CARGO_BIN_EXE_mesh-control"))
        .args(&args)
        .args(["--log-level", "trace", "--log-format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut log = String::new();
    // The test as a whole has a deadline; the process either becomes ready or ends its output.
    let ready = lines.by_ref().map_while(Result::ok).find(|line| {
        log.push_str(line);
        line.contains("\"message\":\"ready\"")
    });
    assert!(ready.is_some(), "never ready:\n{log}");
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    lines.map_while(Result::ok).for_each(|line| log.push_str(&line));
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
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
    let mut child = Command::new(env!("CARGO_BIN_EXE_mesh-control"))
        .args(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: Vec<String> = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .inspect(|line| {
            if line.contains("cannot begin") && !missing.exists() {
                fs::write(&missing, "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n").unwrap();
            }
            if line.contains("ready") {
                kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
            }
        })
        .collect();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{lines:?}");
    let at = |text: &str| lines.iter().position(|line| line.contains(text));
    let (waiting, ready) = (at("cannot begin before everything can be read\tunread=policy.yaml"), at("ready"));
    assert!(waiting.is_some() && waiting < ready, "{lines:?}");
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
