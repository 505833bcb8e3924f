//! The plugin as it is shipped: built static, and run where there is no other file than those that it is told of. Nodes have any libc, or none.
#![allow(clippy::unwrap_used, reason = "test code: a panic is the report")]

mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{FakeAgent, Node, is_root, passed, run};
use mesh_proto::convert::CniAnswer;

/// Builds it as images have it; none with the reason where that cannot be.
fn static_plugin() -> Result<PathBuf, String> {
    let version = Command::new("rustc").arg("-vV").output().map_err(|error| format!("no rustc: {error}"))?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc does not say its host")?;
    let own = Path::new(env!("CARGO_BIN_EXE_mesh-cni"));
    let target = own.parent().and_then(Path::parent).ok_or("no target folder")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--package", "mesh-cni", "--target", host, "--target-dir"]).arg(target);
    build.current_dir(env!("CARGO_MANIFEST_DIR")).env("RUSTFLAGS", "-C target-feature=+crt-static");
    let output = build.output().map_err(|error| format!("no cargo: {error}"))?;
    match output.status.success() {
        true => Ok(target.join(host).join("debug/mesh-cni")),
        false => panic!("{}", String::from_utf8_lossy(&output.stderr)),
    }
}

#[test]
fn the_shipped_plugin_needs_nothing_of_the_node() {
    if !is_root("the plugin in an empty root") {
        return;
    }
    let plugin = match static_plugin() {
        Ok(plugin) => plugin,
        Err(why) => {
            println!("SKIPPED: the plugin in an empty root: {why}");
            return;
        }
    };
    let node = Node::new();
    fs::copy(&plugin, node.path("plugin")).unwrap();
    let names = || fs::read_dir(node.root.path()).unwrap().count();
    assert_eq!(names(), 2, "the plugin and the network namespace");
    let root = Path::new("/");
    let call = |command: &str| {
        let mut call = Command::new("chroot");
        node.environment(&mut call, command, "shop", root);
        // The program is found by us, and started with an environment of the runtime's making.
        call.env("PATH", std::env::var_os("PATH").unwrap_or_default()).arg(node.root.path()).arg("/plugin");
        call
    };
    let config = node.config(root);
    let away = run(call("ADD"), config.to_string().as_bytes());
    assert_eq!(harness::refusal(&away).0, 11);
    let _agent = FakeAgent::listen(&node.path("cni.sock"), vec![Some(CniAnswer::Ready)]);
    passed(&(config.clone(), run(call("ADD"), config.to_string().as_bytes())));
}
