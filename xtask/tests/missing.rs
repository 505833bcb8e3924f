//! Every verb on a machine that lacks what it starts: one line, which names all of it.

use std::path::Path;
use std::process::Command;

#[test]
fn hardening_b199_a_verb_says_in_one_line_what_is_missing() {
    let compiler = "cargo (rustup), rustc (rustup)";
    let cluster = [
        "go (Go 1.24 or later)",
        "containerd (package containerd)",
        "runc (package runc)",
        "cni-plugins (package containernetworking-plugins)",
        "nft (package nftables)",
        "conntrack (package conntrack)",
        "busybox (package busybox-static)",
        "openssl (package openssl)",
        "ip (package iproute2)",
        "nsenter (package util-linux)",
    ];
    // These are looked for in the folders where they are installed too.
    let plugins = ["/usr/lib/cni", "/opt/cni/bin"].iter().any(|folder| Path::new(folder).join("host-local").is_file());
    let cluster: Vec<&str> = cluster.into_iter().filter(|line| !(plugins && line.starts_with("cni-plugins"))).collect();
    let rows: [(&[&str], String); 9] = [
        (&["cluster", "up"], cluster.join(", ")),
        (&["cluster", "build"], cluster.join(", ")),
        (&["setup"], compiler.into()),
        (&["ebpf"], compiler.into()),
        (&["ebpf", "--check"], compiler.into()),
        (&["test"], format!("{compiler}, cc (package gcc), ip (package iproute2)")),
        (&["demo"], format!("{compiler}, cc (package gcc)")),
        (&["bench"], format!("{compiler}, cc (package gcc)")),
        (&["tidy"], "git (package git)".into()),
    ];
    for (verb, missing) in rows {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        let output = command.args(verb).env_clear().env("PATH", "/nonexistent").output().expect("xtask starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((said.as_ref(), output.status.code()), (format!("error: missing: {missing}\n").as_str(), Some(1)));
    }
}
