//! A proxy between the API server and everybody who comes over the network, which ends watches with 410, refuses with 429, cuts and delays.
//! The control plane's own parts and `cluster kubectl` go past it. Called by the verb `fault`.
use super::Cluster;
use super::plan::Host;
use super::process::{self, Process};
use anyhow::{Context, Result, ensure};
use std::process::Command;
use std::time::Duration;

const NAME: &str = "fault";
const PORT: u16 = 6444;

/// What is done to clients of the API server. Without any option they are left alone again.
#[derive(clap::Args, Default)]
pub struct Faults {
    /// End each watch after so many seconds, with 410 where the client reads JSON.
    #[arg(long, value_name = "SECONDS")]
    gone: Option<f64>,
    /// Answer this share of the requests with 429.
    #[arg(long, value_name = "SHARE")]
    busy: Option<f64>,
    /// Reset each connection after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    cut: Option<f64>,
    /// Hold each request for so many seconds.
    #[arg(long, value_name = "SECONDS")]
    delay: Option<f64>,
    /// Only for clients whose User-Agent begins with this; connections are cut for all.
    #[arg(long, value_name = "PREFIX")]
    agent: Option<String>,
}

/// Puts these faults in place of those that were there.
pub fn set(cluster: &Cluster, faults: &Faults) -> Result<()> {
    let netns = cluster.plan.netns(Host::Control);
    // The proxy first: its connections end while they are still translated.
    process::end(&find(cluster))?;
    // What it still had to send, its end above all, goes out first: a client that hears nothing of that would wait for minutes. One that is gone
    // itself is not waited for.
    let _ = process::until(Duration::from_secs(5), || !ends(&netns));
    let nft = |rules: &str| process::output(process::within(&netns, "nft").arg(rules)).map(drop);
    nft("add table inet fault; delete table inet fault")?;
    let numbers = [("gone", faults.gone), ("busy", faults.busy), ("cut", faults.cut), ("delay", faults.delay)];
    if numbers.iter().all(|(_, number)| number.is_none()) {
        return Ok(());
    }
    let mut command = process::within(&netns, cluster.programs.join(NAME));
    command.arg("-pki").arg(cluster.pki()).args(["-listen", &format!(":{PORT}")]);
    for (name, number) in numbers {
        if let Some(number) = number {
            ensure!(number >= 0.0, "--{name} is negative");
            command.arg(format!("-{name}={number}"));
        }
    }
    if let Some(agent) = &faults.agent {
        command.arg(format!("-agent={agent}"));
    }
    process::background(&command, &cluster.log(NAME))?;
    process::until(Duration::from_secs(20), || listens(&netns))
        .with_context(|| format!("the proxy does not listen, see {}", cluster.log(NAME).display()))?;
    nft(&rules())
}

/// Whether faults are set.
pub fn find(cluster: &Cluster) -> Vec<Process> {
    let mut found = process::inside(&cluster.plan.netns(Host::Control));
    found.retain(|process| process.arguments.first().is_some_and(|word| word.ends_with("/fault")));
    found
}

/// New connections go to the proxy. A packet that still has the old port when it comes in is of an older one, which is reset, so that its
/// client connects anew.
fn rules() -> String {
    format!(
        "table inet fault {{
            chain to_the_proxy {{
                type nat hook prerouting priority dstnat;
                iifname eth0 tcp dport 6443 redirect to :{PORT}
            }}
            chain older {{
                type filter hook input priority filter;
                iifname eth0 tcp dport 6443 reject with tcp reset
            }}
        }}"
    )
}

fn listens(netns: &str) -> bool {
    sockets(netns).contains(&format!(":{PORT:04X} "))
}

/// Whether connections of the proxy wait for their last bytes to be taken: FIN_WAIT1, LAST_ACK, CLOSING.
fn ends(netns: &str) -> bool {
    let own = format!(":{PORT:04X}");
    sockets(netns).lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, state) = (words.next().unwrap_or_default(), words.nth(1).unwrap_or_default());
        local.ends_with(&own) && ["04", "09", "0B"].contains(&state)
    })
}

/// All TCP sockets there, as the kernel writes them.
fn sockets(netns: &str) -> String {
    let mut cat = Command::new("ip");
    cat.args(["netns", "exec", netns, "cat", "/proc/net/tcp6", "/proc/net/tcp"]);
    process::output(&mut cat).unwrap_or_default()
}
