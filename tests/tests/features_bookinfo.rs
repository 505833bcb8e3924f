//! Bookinfo in the mesh, as a user would check it: rows B1, B29, B30, B34 and B35 of the acceptance table.

#![expect(non_snake_case, reason = "tests carry the ids of their rows")]

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::bookinfo::{Load, parse};
use mesh_tests::harness::{Bookinfo, Capture, Lab, LabConfig, Need, Stars, can_run, eventually, until};
use nix::sys::signal::Signal;
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

fn failed(loads: &[Load]) -> Vec<&Load> {
    loads.iter().filter(|l| l.status != 200 || l.stars == Stars::Broken).collect()
}

#[test]
fn features_B1_bookinfo_over_mutual_tls() -> Result<()> {
    if !can_run("features_B1", Need::Mesh) {
        return Ok(());
    }
    let (lab, bookinfo) = enrolled()?;
    let capture = Capture::start(&lab.fabric, &[&bookinfo.canary, "Simple Bookstore App"])?;

    let page = bookinfo.pod("ratings-v1")?.get("http://productpage:9080/productpage")?.success()?;
    ensure!(page.stdout.contains("<title>Simple Bookstore App</title>"), "{page:?}");

    // The standard deviation of a third of 1200 loads is 1.4 points: seven points are five of them.
    let loads = bookinfo.load(&bookinfo.client, 1200)?;
    ensure!(loads.len() == 1200 && failed(&loads).is_empty(), "{} loads, {:?}", loads.len(), failed(&loads).first());
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
            let edge =
                [("reporter", reporter), ("source_principal", from.as_str()), ("destination_principal", to.as_str())];
            let all = total(&lab, OPENED, &edge)?;
            let mutual = [&edge[..], &[("connection_security_policy", "mutual_tls")]].concat();
            ensure!(all > 0.0 && all == total(&lab, OPENED, &mutual)?, "{reporter}: {from} -> {to}: {all} connections");
        }
    }
    let seen = capture.seen();
    ensure!(seen.sightings.is_empty() && seen.lost == 0, "{:?} lost {}", seen.sightings.first(), seen.lost);
    ensure!(seen.hbone_packets > 0, "nothing crossed on 15008");
    ensure!(bookinfo.processes.iter().all(|p| p.running()), "an app ended");
    Ok(())
}

#[test]
fn features_B29_tcp_metrics_count_each_connection_once() -> Result<()> {
    if !can_run("features_B29", Need::Mesh) {
        return Ok(());
    }
    let (lab, bookinfo) = enrolled()?;
    let loads = bookinfo.load(&bookinfo.client, 100)?;
    ensure!(failed(&loads).is_empty(), "{:?}", failed(&loads).first());

    for (from, to) in [("client", "productpage-v1"), ("productpage-v1", "details-v1")] {
        for reporter in ["source", "destination"] {
            let edge = [("reporter", reporter), ("source_workload", from), ("destination_workload", to)];
            eventually(&format!("100 connections {from} -> {to} at {reporter}"), SOON, || {
                let (opened, closed) = (total(&lab, OPENED, &edge)?, total(&lab, CLOSED, &edge)?);
                ensure!((opened, closed) == (100.0, 100.0), "opened {opened}, closed {closed}");
                Ok(())
            })?;
            let bytes = |name| total(&lab, name, &edge);
            ensure!(
                bytes("istio_tcp_sent_bytes_total")? > bytes("istio_tcp_received_bytes_total")?,
                "answers are longer"
            );
        }
    }
    let reviews = [("reporter", "destination"), ("destination_service_name", "reviews")];
    ensure!(total(&lab, OPENED, &reviews)? == 100.0, "reviews got {}", total(&lab, OPENED, &reviews)?);

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
}

#[test]
fn features_B30_one_access_log_line_per_connection() -> Result<()> {
    if !can_run("features_B30", Need::Mesh) {
        return Ok(());
    }
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
        for field in [
            "src.addr=",
            "src.namespace=\"default\"",
            &format!("src.identity=\"{}\"", id("sleep")),
            "dst.addr=",
            "dst.hbone_addr=",
            &format!("dst.identity=\"{}\"", id("bookinfo-productpage")),
            "bytes_sent=",
            "bytes_recv=",
            "duration=\"",
        ] {
            ensure!(line.contains(field), "no {field} in {line}");
        }
        ensure!(!line.contains("error="), "{line}");
    }
    Ok(())
}

#[test]
fn features_B34_agent_restarts_under_load() -> Result<()> {
    if !can_run("features_B34", Need::Mesh) {
        return Ok(());
    }
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
    ensure!(capture.seen().sightings.is_empty(), "plaintext while an agent was away: {:?}", capture.seen().sightings);
    Ok(())
}

#[test]
fn features_B35_namespace_leaves_while_loads_run() -> Result<()> {
    if !can_run("features_B35", Need::Mesh) {
        return Ok(());
    }
    let (lab, bookinfo) = enrolled()?;
    let pids: Vec<i32> = bookinfo.processes.iter().map(|p| p.pid()).collect();
    let load = bookinfo.start_load(&bookinfo.client, 100, Duration::from_millis(30))?;
    until("the first loads", SOON, || load.stdout().lines().count() > 10)?;

    lab.unenrol_namespace("default")?;

    let loads = parse(&load.wait(Duration::from_secs(60))?.stdout);
    ensure!(loads.len() == 100 && failed(&loads).is_empty(), "{:?}", failed(&loads));
    let capture = Capture::start(&lab.fabric, &["Simple Bookstore App", &bookinfo.canary])?;
    ensure!(failed(&bookinfo.load(&bookinfo.client, 20)?).is_empty());
    until("plaintext", SOON, || !capture.seen().sightings.is_empty())?;
    for pod in bookinfo.everyone() {
        mesh_tests::demo::no_residue(pod)?;
    }
    ensure!(pids == bookinfo.processes.iter().map(|p| p.pid()).collect::<Vec<_>>());
    ensure!(bookinfo.processes.iter().all(|p| p.running()));
    Ok(())
}
