//! Bookinfo in the mesh, as a user would check it: rows B1, B29, B30, B34 and B35 of the acceptance table.

#![expect(non_snake_case, reason = "tests carry the ids of their rows")]

use anyhow::{Context, Result, ensure};
use mesh_tests::demo::no_residue;
use mesh_tests::harness::bookinfo::{Load, parse};
use mesh_tests::harness::policy::Authorization;
use mesh_tests::harness::{Bookinfo, Capture, Lab, LabConfig, Need, Stars, eventually, in_lab, until};
use nix::sys::signal::Signal;
use std::net::SocketAddr;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);
const OPENED: &str = "istio_tcp_connections_opened_total";
const CLOSED: &str = "istio_tcp_connections_closed_total";

/// Bookinfo with every pod enrolled and known everywhere.
fn enrolled() -> Result<(Lab, Bookinfo)> {
    let lab = Lab::with_mesh(LabConfig::default())?;
    let bookinfo = Bookinfo::deploy(&lab, "default")?;
    lab.enrol_namespace("default")?;
    lab.wait_hbone(&bookinfo.everyone())?;
    Ok((lab, bookinfo))
}

fn id(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}

/// A counter summed over all agents.
fn total(lab: &Lab, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    lab.nodes.iter().map(|n| Ok(n.agent()?.metrics()?.sum(name, labels))).sum()
}

/// The value of a field of an access log line, without its quotes.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let key = format!("{name}=");
    let at = line.match_indices(&key).find(|(at, _)| line[..*at].ends_with([' ', '\t']))?.0;
    let rest = &line[at + key.len()..];
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => rest.split_whitespace().next(),
    }
}

fn failed(loads: &[Load]) -> Vec<&Load> {
    loads.iter().filter(|l| l.status != 200 || l.stars == Stars::Broken).collect()
}

#[test]
fn features_B1_bookinfo_over_mutual_tls() -> Result<()> {
    in_lab(Need::Mesh, || {
        let (lab, bookinfo) = enrolled()?;
        let capture = Capture::start(&lab.fabric, &[&bookinfo.canary, "Simple Bookstore App"])?;

        let page = bookinfo.pod("ratings-v1")?.get("http://productpage:9080/productpage")?.success()?;
        ensure!(page.stdout.contains("<title>Simple Bookstore App</title>"), "{page:?}");

        // The standard deviation of a third of 1200 loads is 1.4 points: seven points are five of them.
        let loads = bookinfo.load(&bookinfo.client, 1200)?;
        ensure!(
            loads.len() == 1200 && failed(&loads).is_empty(),
            "{} loads, {:?}",
            loads.len(),
            failed(&loads).first()
        );
        for stars in [Stars::None, Stars::Black, Stars::Red] {
            let percent = loads.iter().filter(|l| l.stars == stars).count() as f64 / 12.0;
            ensure!((percent - 33.3).abs() <= 7.0, "{stars:?} got {percent:.1} %");
        }

        for (from, to) in [
            ("sleep", "bookinfo-productpage"),
            ("bookinfo-productpage", "bookinfo-details"),
            ("bookinfo-productpage", "bookinfo-reviews"),
            ("bookinfo-reviews", "bookinfo-ratings"),
        ] {
            let (from, to) = (id(from), id(to));
            for reporter in ["source", "destination"] {
                let edge = [
                    ("reporter", reporter),
                    ("source_principal", from.as_str()),
                    ("destination_principal", to.as_str()),
                ];
                let all = total(&lab, OPENED, &edge)?;
                let mutual = [&edge[..], &[("connection_security_policy", "mutual_tls")]].concat();
                ensure!(
                    all > 0.0 && all == total(&lab, OPENED, &mutual)?,
                    "{reporter}: {from} -> {to}: {all} connections"
                );
            }
        }
        let seen = capture.seen();
        ensure!(seen.sightings.is_empty() && seen.lost == 0, "{:?} lost {}", seen.sightings.first(), seen.lost);
        ensure!(seen.hbone_packets > 0, "nothing crossed on 15008");
        ensure!(bookinfo.processes.iter().all(|p| p.running()), "an app ended");
        Ok(())
    })
}

#[test]
fn features_B29_tcp_metrics_count_each_connection_once() -> Result<()> {
    in_lab(Need::Mesh, || {
        let (lab, bookinfo) = enrolled()?;
        let loads = bookinfo.load(&bookinfo.client, 100)?;
        ensure!(failed(&loads).is_empty(), "{:?}", failed(&loads).first());

        // Each load is one connection per hop; only the versions with stars ask ratings.
        let stars = loads.iter().filter(|l| l.stars != Stars::None).count() as f64;
        for (from, to, service, wanted) in [
            ("sleep", "bookinfo-productpage", "productpage", 100.0),
            ("bookinfo-productpage", "bookinfo-details", "details", 100.0),
            ("bookinfo-productpage", "bookinfo-reviews", "reviews", 100.0),
            ("bookinfo-reviews", "bookinfo-ratings", "ratings", stars),
        ] {
            let (from, to) = (id(from), id(to));
            for reporter in ["source", "destination"] {
                let edge = [
                    ("reporter", reporter),
                    ("source_principal", from.as_str()),
                    ("destination_principal", to.as_str()),
                    ("destination_service_name", service),
                    ("connection_security_policy", "mutual_tls"),
                ];
                eventually(&format!("{wanted} connections {from} -> {to} at {reporter}"), SOON, || {
                    let (opened, closed) = (total(&lab, OPENED, &edge)?, total(&lab, CLOSED, &edge)?);
                    ensure!((opened, closed) == (wanted, wanted), "opened {opened}, closed {closed}");
                    Ok(())
                })?;
                let bytes = |name| total(&lab, name, &edge);
                let (sent, received) = (bytes("istio_tcp_sent_bytes_total")?, bytes("istio_tcp_received_bytes_total")?);
                ensure!(sent > received && received > 0.0, "answers are longer: sent {sent}, received {received}");
            }
        }

        // A plaintext caller must not be called mutual TLS.
        lab.namespace("legacy", &[])?;
        let legacy = lab.add_pod(mesh_tests::harness::PodSpec::new("legacy").namespace("legacy").node(2))?;
        legacy.get("http://productpage.default:9080/health")?.success()?;
        let mutual = [("source_workload", "legacy"), ("connection_security_policy", "mutual_tls")];
        ensure!(total(&lab, OPENED, &mutual)? == 0.0);
        let plain = [
            ("reporter", "destination"),
            ("destination_workload", "productpage-v1"),
            ("connection_security_policy", "unknown"),
        ];
        eventually("the plaintext connection", SOON, || {
            ensure!(total(&lab, OPENED, &plain)? == 1.0, "{}", total(&lab, OPENED, &plain)?);
            Ok(())
        })
    })
}

#[test]
fn features_B30_one_access_log_line_per_connection() -> Result<()> {
    in_lab(Need::Mesh, || {
        let (lab, bookinfo) = enrolled()?;
        let loads = bookinfo.load(&bookinfo.client, 20)?;
        ensure!(failed(&loads).is_empty(), "{:?}", failed(&loads).first());
        for direction in ["outbound", "inbound"] {
            let direction = format!("direction=\"{direction}\"");
            let words = ["src.workload=\"client\"", "dst.workload=\"productpage-v1\"", &direction];
            let line = eventually(&format!("20 lines of {direction}"), SOON, || {
                let lines: Vec<String> =
                    lab.nodes.iter().filter_map(|n| n.agent().ok()).flat_map(|a| a.access_log(&words)).collect();
                ensure!(lines.len() == 20, "{} lines", lines.len());
                lines.into_iter().next().context("no line")
            })?;
            for (name, value) in [
                ("src.namespace", "default"),
                ("src.identity", &id("sleep")),
                ("dst.namespace", "default"),
                ("dst.identity", &id("bookinfo-productpage")),
            ] {
                ensure!(field(&line, name) == Some(value), "{name} is not {value} in {line}");
            }
            for name in ["src.addr", "dst.addr", "dst.hbone_addr"] {
                let address = field(&line, name).and_then(|a| a.parse::<SocketAddr>().ok());
                ensure!(address.is_some(), "{name} is no address in {line}");
            }
            for name in ["bytes_sent", "bytes_recv"] {
                let bytes = field(&line, name).and_then(|n| n.parse::<u64>().ok());
                ensure!(bytes.is_some_and(|n| n > 0), "{name} is no number in {line}");
            }
            ensure!(field(&line, "duration").is_some_and(|d| d.ends_with("ms")), "{line}");
            ensure!(field(&line, "error").is_none(), "{line}");
        }

        // A refusal is a line with its reason, at both ends.
        lab.apply("policy", &Authorization::deny("no-sleep", "productpage").from("default", "sleep").yaml())?;
        // The client's agent knows the answer of the other one, the server's agent the policy. A request that was under
        // way as the policy came is cut, and has no such answer: one that comes later is refused.
        for (direction, reason) in [("outbound", "401"), ("inbound", "default/no-sleep")] {
            let words = ["src.workload=\"client\"", &format!("direction=\"{direction}\""), "error="];
            eventually(&format!("the reason in a line of {direction}"), SOON, || {
                ensure!(bookinfo.client.get("http://productpage:9080/health")?.code == 56, "not refused yet");
                let lines = lab.nodes.iter().filter_map(|n| n.agent().ok()).flat_map(|a| a.access_log(&words));
                let reasons: Vec<String> = lines.filter_map(|l| field(&l, "error").map(String::from)).collect();
                ensure!(reasons.iter().any(|r| r.contains(reason)), "{reasons:?}");
                Ok(())
            })?;
        }
        Ok(())
    })
}

#[test]
fn features_B34_agent_restarts_under_load() -> Result<()> {
    in_lab(Need::Mesh, || {
        let (lab, bookinfo) = enrolled()?;
        let capture = Capture::start(&lab.fabric, &[&bookinfo.canary])?;
        let load = bookinfo.start_load(&bookinfo.client, 200, Duration::from_millis(40))?;
        until("the first loads", SOON, || load.stdout().lines().count() > 10)?;
        for node in [1, 2] {
            let agent = lab.node(node).agent()?;
            let old = agent.worker()?;
            agent.signal_worker(Signal::SIGKILL)?;
            until("a new worker", SOON, || agent.worker().is_ok_and(|pid| pid != old))?;
            agent.wait_ready(SOON)?;
        }
        let loads = parse(&load.wait(Duration::from_secs(60))?.stdout);
        // What a killed agent carried is cut: at most the load in flight, once per kill. New connections are never refused.
        ensure!(loads.len() == 200 && failed(&loads).len() <= 2, "{:?}", failed(&loads));
        ensure!(loads.iter().all(|l| l.exit != 7), "a connection was refused: {:?}", failed(&loads));
        ensure!(
            capture.seen().sightings.is_empty(),
            "plaintext while an agent was away: {:?}",
            capture.seen().sightings
        );
        Ok(())
    })
}

#[test]
fn features_B35_namespace_leaves_while_loads_run() -> Result<()> {
    in_lab(Need::Mesh, || {
        let (lab, bookinfo) = enrolled()?;
        let pids: Vec<i32> = bookinfo.processes.iter().map(|p| p.pid()).collect();
        ensure!(no_residue(&bookinfo.client).is_err(), "what is looked for later is not there now");
        ensure!(total(&lab, "mesh_bpf_map_entries", &[("map", "PODS")])? > 0.0);
        let load = bookinfo.start_load(&bookinfo.client, 100, Duration::from_millis(30))?;
        until("the first loads", SOON, || load.stdout().lines().count() > 10)?;

        lab.unenrol_namespace("default")?;

        let loads = parse(&load.wait(Duration::from_secs(60))?.stdout);
        ensure!(loads.len() == 100 && failed(&loads).is_empty(), "{:?}", failed(&loads));
        let capture = Capture::start(&lab.fabric, &["Simple Bookstore App", &bookinfo.canary])?;
        ensure!(failed(&bookinfo.load(&bookinfo.client, 20)?).is_empty());
        until("plaintext", SOON, || !capture.seen().sightings.is_empty())?;
        for pod in bookinfo.everyone() {
            no_residue(pod)?;
        }
        ensure!(total(&lab, "mesh_bpf_map_entries", &[("map", "PODS")])? == 0.0, "the kernel still has pods");
        ensure!(pids == bookinfo.processes.iter().map(|p| p.pid()).collect::<Vec<_>>());
        ensure!(bookinfo.processes.iter().all(|p| p.running()));
        Ok(())
    })
}
