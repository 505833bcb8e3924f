//! How a cross-process test starts: what it needs of the machine, how long its long form is, and whose logs are shown when it fails.
//!
//! A test that cannot run says so, loudly; `cargo xtask test` counts those apart.
use super::process::binary_path;
use anyhow::Result;
use std::cell::RefCell;
use std::time::Duration;

/// What a test needs besides root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Namespaces and cgroups only.
    Lab,
    /// The product's binaries and eBPF as well.
    Mesh,
    /// And a kernel that can make a network slow and lossy.
    Congestion,
}

thread_local! {
    /// The logs of the labs that ended on this thread while a test ran.
    static LOGS: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs a test where the machine has what it needs, else prints `SKIPPED: <test>: <reason>`. Of a test that fails the ends of all logs of
/// its labs are shown.
pub fn in_lab(need: Need, test: impl FnOnce() -> Result<()>) -> Result<()> {
    if let Some(reason) = missing(need) {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("a test");
        // Straight to the descriptor: the test runner hides what a passing test prints.
        let _ = nix::unistd::write(std::io::stderr(), format!("SKIPPED: {name}: {reason}\n").as_bytes());
        return Ok(());
    }
    LOGS.set(Some(String::new()));
    let result = test();
    let logs = LOGS.take().unwrap_or_default();
    if result.is_err() {
        println!("{logs}");
    }
    result
}

/// Takes the logs of a lab that ends, if a test on this thread may want them.
pub(super) fn keep_logs(logs: impl FnOnce() -> String) {
    LOGS.with_borrow_mut(|kept| {
        if let Some(text) = kept {
            text.push_str(&logs());
        }
    });
}

fn missing(need: Need) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root (network namespaces, cgroups, eBPF)".into());
    }
    if let Err(e) = super::cgroup::root() {
        return Some(format!("{e:#}"));
    }
    let probe = || {
        let netns = super::netns::Netns::create("probe")?;
        if need == Need::Congestion { netns.run(|| super::netlink::congest("lo", 1 << 20, 1 << 15)) } else { Ok(()) }
    };
    if let Err(e) = probe() {
        return Some(format!("{e:#}"));
    }
    let binaries: &[&str] = match need {
        Need::Lab => &["lab", "bookinfo"],
        Need::Mesh | Need::Congestion => &["lab", "bookinfo", "mesh-agent", "mesh-control", "mesh-waypoint"],
    };
    binaries.iter().find_map(|name| binary_path(name).err().map(|e| format!("{e:#}")))
}

/// The share of the long forms that is asked for: 1 with `cargo xtask test --soak`, less with `--soak=SHARE`, none without.
pub fn soak() -> Option<f64> {
    std::env::var("UNDERMESH_SOAK").ok()?.parse().ok()
}

/// How often something is repeated: `short` usually, its share of `full` in a soak.
pub fn rounds(short: u32, full: u32) -> u32 {
    soak().map_or(short, |share| ((f64::from(full) * share) as u32).max(short))
}

/// How long something goes on: `short` usually, its share of `full` in a soak.
pub fn span(short: Duration, full: Duration) -> Duration {
    soak().map_or(short, |share| full.mul_f64(share).max(short))
}
