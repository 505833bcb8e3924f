//! The process as a user meets it, without a cluster: exit codes, what goes to which stream, and what errors name.

use std::process::{Command, Output, Stdio};

fn meshctl(line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.args(line.split_whitespace()).stdin(Stdio::null());
    for variable in ["KUBECONFIG", "KUBERNETES_SERVICE_HOST"] {
        command.env_remove(variable);
    }
    command.env("HOME", "/nonexistent").output().expect("meshctl starts")
}

#[test]
fn hardening_b196_every_end_has_its_code_and_one_cause() {
    let folder = tempfile::tempdir().expect("a folder");
    let closed = folder.path().join("closed");
    let text = "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], \
        users: [{name: u, user: {token: x}}], clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]}";
    std::fs::write(&closed, text).expect("written");
    let closed = format!("--kubeconfig {}", closed.display());
    let table = [
        ("instal".to_owned(), 64, "similar"),
        ("install --dry-run --set a".to_owned(), 64, "write name=value"),
        ("install --dry-run --set agent.imge=1".to_owned(), 65, "agent.imge: there is no such value"),
        ("install --dry-run -f /gone".to_owned(), 65, "/gone: No such file"),
        ("status".to_owned(), 69, "no cluster is configured"),
        ("--kubeconfig /gone check".to_owned(), 69, "kubeconfig /gone"),
        (format!("{closed} check"), 69, "Connection refused"),
        (format!("{closed} uninstall --yes"), 69, "Connection refused"),
        // The own version is an answer, too.
        (format!("{closed} version"), 0, "the cluster cannot be asked"),
    ];
    for (line, code, why) in table {
        let output = meshctl(&line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {said}");
        assert!(said.contains(why), "{line}: {said}");
        assert_eq!(output.stdout.is_empty(), code != 0, "{line}");
    }
}

#[test]
fn what_would_be_applied_is_printed_without_a_cluster() {
    let output = meshctl("install --dry-run -o json -n mesh");
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    let kinds: Vec<&str> = list["items"].as_array().expect("items").iter().filter_map(|o| o["kind"].as_str()).collect();
    assert!(kinds.contains(&"DaemonSet") && kinds.contains(&"CustomResourceDefinition"), "{kinds:?}");
    let text = String::from_utf8(meshctl("install --dry-run -n mesh").stdout).expect("text");
    assert_eq!(text.matches("---\n").count(), kinds.len());
}
