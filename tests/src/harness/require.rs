//! What a cross-process test needs of the machine. A test that cannot run says so, loudly, and the count is in `cargo xtask test`.
use super::process::binary_path;

/// What a test needs besides root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Namespaces and cgroups only.
    Lab,
    /// The product's binaries and eBPF as well.
    Mesh,
}

/// True if the test can run; else prints `SKIPPED: <test>: <reason>`.
pub fn can_run(test: &str, need: Need) -> bool {
    match missing(need) {
        None => true,
        Some(reason) => {
            // Straight to the descriptor: the test runner hides what a passing test prints.
            let _ = nix::unistd::write(std::io::stderr(), format!("SKIPPED: {test}: {reason}\n").as_bytes());
            false
        }
    }
}

fn missing(need: Need) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root (network namespaces, cgroups, eBPF)".into());
    }
    if let Err(e) = super::cgroup::root() {
        return Some(format!("{e:#}"));
    }
    if let Err(e) = super::netns::Netns::create("probe") {
        return Some(format!("{e:#}"));
    }
    let binaries: &[&str] = match need {
        Need::Lab => &["lab", "bookinfo"],
        Need::Mesh => &["lab", "bookinfo", "mesh-agent", "mesh-control"],
    };
    binaries.iter().find_map(|name| binary_path(name).err().map(|e| format!("{e:#}")))
}

/// Whether long faults run in full (`cargo xtask test --soak`).
pub fn soak() -> bool {
    std::env::var_os("UNDERMESH_SOAK").is_some()
}
