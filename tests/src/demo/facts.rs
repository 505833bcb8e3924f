//! How the demo's facts are checked. Each function returns the lines to show, or why the fact is false.
use crate::harness::bookinfo::{Load, Stars};
use crate::harness::capture::Flow;
use crate::harness::metrics::Metrics;
use crate::harness::{Bookinfo, Capture, Lab, Pod, eventually};
use anyhow::{Result, bail, ensure};
use std::time::Duration;

/// One line per reviews version with its share; each must be a third, give or take `slack` percent points.
pub fn spread(loads: &[Load], slack: f64) -> Result<Vec<String>> {
    if let Some(bad) = loads.iter().find(|l| l.status != 200 || l.stars == Stars::Broken) {
        bail!("a load failed: exit {} status {} {:.300}", bad.exit, bad.status, bad.text);
    }
    let mut lines = Vec::new();
    for (name, stars) in
        [("v1 no stars   ", Stars::None), ("v2 black stars", Stars::Black), ("v3 red stars  ", Stars::Red)]
    {
        let count = loads.iter().filter(|l| l.stars == stars).count();
        let percent = count as f64 * 100.0 / loads.len() as f64;
        lines.push(format!("reviews {name} {:<20} {percent:4.1} %", "█".repeat((percent / 2.5) as usize)));
        ensure!((percent - 100.0 / 3.0).abs() <= slack, "{name} got {percent:.1} % of {} loads", loads.len());
    }
    let mut times: Vec<f64> = loads.iter().map(|l| l.milliseconds).collect();
    times.sort_by(f64::total_cmp);
    lines.push(format!(
        "{} loads, one after the other: median {:.1} ms, worst {:.1} ms",
        loads.len(),
        times[times.len() / 2],
        times[times.len() - 1]
    ));
    Ok(lines)
}

/// Connections between two service accounts as the agents of the servers count them: all, and those by mutual TLS.
fn hop(scrapes: &[Metrics], from: &str, to: &str) -> (f64, f64) {
    let hop = [("reporter", "destination"), ("source_principal", from), ("destination_principal", to)];
    let mutual = [&hop[..], &[("connection_security_policy", "mutual_tls")]].concat();
    let sum = |labels| scrapes.iter().map(|m| m.sum("istio_tcp_connections_opened_total", labels)).sum();
    (sum(&hop), sum(&mutual))
}

/// The four kinds of hop of Bookinfo, each between the right identities and each by mutual TLS.
pub fn identities(scrapes: &[Metrics]) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for (from, to) in [
        ("sleep", "bookinfo-productpage"),
        ("bookinfo-productpage", "bookinfo-details"),
        ("bookinfo-productpage", "bookinfo-reviews"),
        ("bookinfo-reviews", "bookinfo-ratings"),
    ] {
        let id = |account: &str| format!("spiffe://cluster.local/ns/default/sa/{account}");
        let (all, mutual) = hop(scrapes, &id(from), &id(to));
        ensure!(all > 0.0, "no agent counted a connection from {} to {}", id(from), id(to));
        ensure!(all == mutual, "{} of {all} connections from {from} to {to} were not mutual TLS", all - mutual);
        lines.push(id(from));
        lines.push(format!("  -> {:<57} {mutual:>5} connections", id(to)));
    }
    Ok(lines)
}

/// There was at least one connection between two workloads, and each was mutual TLS.
pub fn only_mutual(scrapes: &[Metrics], from: &str, to: &str) -> Result<()> {
    let pair = [("reporter", "destination"), ("source_workload", from), ("destination_workload", to)];
    let mutual = [&pair[..], &[("connection_security_policy", "mutual_tls")]].concat();
    let sum = |labels| scrapes.iter().map(|m| m.sum("istio_tcp_connections_opened_total", labels)).sum::<f64>();
    let (all, mutual) = (sum(&pair), sum(&mutual));
    ensure!(all > 0.0 && all == mutual, "{mutual} of {all} connections from {from} to {to} were mutual TLS");
    Ok(())
}

/// Who talks to whom, and something of what is said.
pub fn wire(flow: &Flow, bytes: &str) -> String {
    let end = |(ip, port): (std::net::IpAddr, u16)| std::net::SocketAddr::new(ip, port);
    format!("{} -> {}  {bytes}", end(flow.source), end(flow.destination))
}

/// Bytes as text, the unprintable ones as dots.
pub fn printable(bytes: &[u8]) -> String {
    let show = |b: &u8| if b.is_ascii_graphic() || *b == b' ' { char::from(*b) } else { '.' };
    bytes.iter().take(48).map(show).collect()
}

/// No canary crossed the fabric in clear, HBONE did, and the capture lost nothing.
pub fn sealed(capture: &Capture) -> Result<Vec<String>> {
    let seen = capture.seen();
    if let Some(sighting) = seen.sightings.first() {
        bail!("`{}` in clear on {:?} and {} more", sighting.token, sighting.flow, seen.sightings.len() - 1);
    }
    ensure!(seen.lost == 0, "the capture lost {} frames and proves nothing", seen.lost);
    ensure!(seen.hbone_packets > 0, "nothing crossed on port 15008");
    let mut lines = vec![format!(
        "{} packets read, {} of them ({} KiB) to or from port 15008; none of the words was in any of them",
        seen.packets,
        seen.hbone_packets,
        seen.hbone_bytes / 1024
    )];
    if let Some((flow, start)) = &seen.hbone_sample {
        let bytes: Vec<String> = start.iter().take(14).map(|b| format!("{b:02x}")).collect();
        lines.push(wire(flow, &format!("{} ...", bytes.join(" "))));
    }
    Ok(lines)
}

/// A load from `pod` ends as wanted, within a few seconds of a change.
pub fn becomes(what: &str, limit: Duration, pod: &Pod, url: &str, codes: &[i32]) -> Result<String> {
    eventually(what, limit, || {
        let result = pod.get(url)?;
        ensure!(codes.contains(&result.code), "exit code {}: {}", result.code, result.stderr.trim());
        Ok(format!("{} -> {url}: {}", pod.name, result.stderr.trim()))
    })
}

/// Nothing of the mesh is left in a pod: no listener on the mesh's ports, no route of its slots.
pub fn no_residue(pod: &Pod) -> Result<()> {
    const PORTS: [u16; 4] = [15001, 15006, 15008, 15053];
    pod.netns.run(|| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        for file in ["tcp", "tcp6", "udp", "udp6"] {
            for line in read(file)?.lines().skip(1) {
                let local = line.split_whitespace().nth(1).unwrap_or("");
                let port = local.rsplit(':').next().and_then(|p| u16::from_str_radix(p, 16).ok()).unwrap_or(0);
                let listening = line.split_whitespace().nth(3) == Some("0A") || file.starts_with("udp");
                ensure!(!(listening && PORTS.contains(&port)), "port {port} is still open in {}", pod.name);
            }
        }
        let routes = [read("fib_trie")?.contains("127.128.0.0"), read("ipv6_route")?.contains("fd756e64657")];
        ensure!(routes == [false; 2], "{} still has routes of the mesh: {routes:?}", pod.name);
        Ok(())
    })
}

/// Scrapes of every agent.
pub fn scrape(lab: &Lab) -> Result<Vec<Metrics>> {
    lab.nodes.iter().map(|n| n.agent()?.metrics()).collect()
}

/// The pods of the application as a table.
pub fn pods(bookinfo: &Bookinfo) -> Vec<String> {
    let line = |pod: &Pod| {
        let account = &pod.service_account;
        format!("{:<15} {:<6} {:<12} {:<15} account {account}", pod.name, pod.node.name, pod.address.v4, pod.address.v6)
    };
    bookinfo.pods.iter().chain([&bookinfo.client]).map(|p| line(p)).collect()
}
