//! Running cargo and built binaries from a verb.
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace folder.
pub fn root() -> Result<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(own.parent().context("xtask has no parent folder")?.to_path_buf())
}

/// Where what takes long to make is kept: `~/.cache/undermesh`.
pub fn cache() -> Result<PathBuf> {
    let given = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = given("XDG_CACHE_HOME").or_else(|| given("HOME").map(|home| home.join(".cache")));
    Ok(cache.context("neither XDG_CACHE_HOME nor HOME is set")?.join("undermesh"))
}

/// What brings the programs that verbs start.
const BRINGS: [(&str, &str); 20] = [
    ("cargo", "rustup"),
    ("rustc", "rustup"),
    ("rustup", "https://rustup.rs"),
    ("cc", "package gcc"),
    ("ip", "package iproute2"),
    ("git", "package git"),
    ("go", "Go 1.24 or later"),
    ("containerd", "package containerd"),
    ("runc", "package runc"),
    (CNI_PLUGINS, "package containernetworking-plugins"),
    ("nft", "package nftables"),
    ("conntrack", "package conntrack"),
    ("busybox", "package busybox-static"),
    ("openssl", "package openssl"),
    ("nsenter", "package util-linux"),
    ("python3", "packages python3 and python3-pip"),
    ("ldd", "package libc-bin"),
    ("sha256sum", "package coreutils"),
    ("wrk", "package wrk"),
    ("h2load", "package nghttp2-client"),
];

/// Not one program but a folder of them.
pub const CNI_PLUGINS: &str = "cni-plugins";

/// Debian's packages of those programs that are not there.
pub fn packages(programs: &[&str]) -> Vec<&'static str> {
    let missing = missing(programs, &std::env::var_os("PATH").unwrap_or_default());
    let brings = BRINGS.iter().filter(|(name, _)| missing.contains(name));
    brings.filter_map(|(_, brings)| brings.strip_prefix("package ")).collect()
}

/// Fails with one line that names every program that is not there, before anything is done.
pub fn need(programs: &[&str]) -> Result<()> {
    // Cargo says in the environment where it is.
    let given = |program: &&&str| std::env::var_os(program.to_uppercase()).is_none();
    let programs: Vec<&str> = programs.iter().filter(given).copied().collect();
    let missing = missing(&programs, &std::env::var_os("PATH").unwrap_or_default());
    if missing.is_empty() {
        return Ok(());
    }
    let brings = |name: &str| BRINGS.iter().find(|(known, _)| *known == name).map_or("?", |(_, brings)| brings);
    let named: Vec<String> = missing.iter().map(|name| format!("{name} ({})", brings(name))).collect();
    bail!("missing: {}", named.join(", "))
}

/// Where a program is, on the `PATH`.
pub fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Where the CNI plugins are: where Debian puts them, where their authors do, or on the `PATH`.
pub fn cni_plugins(path: &OsStr) -> Option<PathBuf> {
    let usual = ["/usr/lib/cni", "/opt/cni/bin"].map(PathBuf::from);
    usual.into_iter().chain(std::env::split_paths(path)).find(|folder| folder.join("host-local").is_file())
}

fn missing<'a>(programs: &[&'a str], path: &OsStr) -> Vec<&'a str> {
    let is_there = |program: &str| match program {
        CNI_PLUGINS => cni_plugins(path).is_some(),
        _ => std::env::split_paths(path).any(|folder| folder.join(program).is_file()),
    };
    programs.iter().copied().filter(|program| !is_there(program)).collect()
}

/// The cargo that started us, in the workspace folder.
pub fn cargo() -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()?);
    Ok(command)
}

/// Runs a command and fails if it fails.
pub fn check(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}").replace('"', "");
    let status = command.status().with_context(|| format!("start {shown}"))?;
    if !status.success() {
        bail!("failed: {shown}");
    }
    Ok(())
}

/// Where binaries of a profile are: beside this one.
pub fn binary_dir(profile: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find own binary")?;
    let target = own.parent().and_then(Path::parent).context("own binary is not in a target folder")?;
    Ok(target.join(profile))
}

/// Fails with a hint unless this process is root: namespaces, cgroups and eBPF need it.
pub fn need_root(verb: &str) -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("read own status")?;
    let uid = status.lines().find_map(|l| l.strip_prefix("Uid:")).unwrap_or("");
    if uid.split_whitespace().nth(1) != Some("0") {
        bail!(
            "`cargo xtask {verb}` makes network namespaces and loads eBPF: run it as root, e.g. `sudo -E env PATH=\"$PATH\" cargo xtask {verb}`"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn programs_are_looked_for_in_every_folder_of_the_path() {
        let own = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        let path = format!("/nonexistent:{own}");
        assert_eq!(super::missing(&["run.rs", "no-such", "tidy"], path.as_ref()), ["no-such", "tidy"]);
        assert_eq!(super::missing(&["run.rs"], "".as_ref()), ["run.rs"]);
    }
}
