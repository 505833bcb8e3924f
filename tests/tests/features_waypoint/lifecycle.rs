//! A waypoint comes, ends, is killed, is gone and comes back; services are bound to it and let go. And what it counts: a part of row B29.
use crate::stage::{CHANGE, SOON, Stage, bookinfo, failed};
use anyhow::{Result, ensure};
use mesh_tests::harness::bookinfo::{Load, parse};
use mesh_tests::harness::waypoint::USE_WAYPOINT;
use mesh_tests::harness::{Need, Process, Stars, Waypoint, eventually, in_lab, until};
use std::time::Duration;

/// Loads that go on until they are ended.
struct Loads(Process);

impl Loads {
    fn start(stage: &Stage) -> Result<Loads> {
        let loads = Loads(stage.start_loads(None, 10_000, Duration::from_millis(5))?);
        loads.more(10)?;
        Ok(loads)
    }

    /// Waits for so many more of them.
    fn more(&self, count: usize) -> Result<()> {
        let done = || self.0.stdout().lines().count();
        let before = done();
        until("more loads", Duration::from_secs(60), || done() >= before + count)
    }

    fn end(self) -> Vec<Load> {
        self.0.kill();
        parse(&self.0.stdout())
    }
}

/// Requests to services of the namespace that waypoints have counted.
fn counted(waypoints: &[&Waypoint], labels: &[(&str, &str)]) -> Result<f64> {
    let labels = [&[("reporter", "waypoint")], labels].concat();
    waypoints.iter().map(|waypoint| Ok(waypoint.metrics()?.sum("istio_requests_total", &labels))).sum()
}

#[test]
fn features_waypoint_is_never_gone_around_and_ends_without_a_failed_request() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = bookinfo("undermesh-waypoint")?;
        what_is_sent_is_counted(&stage)?;
        a_service_is_let_go_and_bound_again(&stage)?;
        a_canary_has_its_share(&stage)?;
        replicas_end_and_die(stage)
    })
}

/// B29: each request of 30 loads once, with who asked and who was asked, by mutual TLS.
fn what_is_sent_is_counted(stage: &Stage) -> Result<()> {
    let services = ["productpage", "details", "reviews", "ratings"];
    let all = || -> Result<Vec<f64>> {
        services.iter().map(|name| counted(&[&stage.waypoint], &[("destination_service_name", name)])).collect()
    };
    let before = all()?;
    let loads = stage.loads(None, 30)?;
    ensure!(failed(&loads).is_none(), "{:?}", failed(&loads));
    let stars = loads.iter().filter(|load| load.stars != Stars::None).count() as f64;
    eventually("the numbers", SOON, || {
        let sent: Vec<f64> = all()?.iter().zip(&before).map(|(after, before)| after - before).collect();
        ensure!(sent == [30.0, 30.0, 30.0, stars], "{sent:?}, and {stars} pages have stars");
        Ok(())
    })?;
    for (from, to) in [("sleep", "productpage"), ("bookinfo-productpage", "reviews"), ("bookinfo-reviews", "ratings")] {
        let from = format!("spiffe://cluster.local/ns/default/sa/{from}");
        let edge = [("source_principal", &*from), ("destination_service_name", to), ("response_code", "200")];
        let service = [("destination_service_name", to)];
        let (of_edge, of_service) = (counted(&[&stage.waypoint], &edge)?, counted(&[&stage.waypoint], &service)?);
        ensure!(of_edge > 0.0 && of_edge == of_service, "{from} -> {to}: {of_edge} of {of_service}");
        let mutual = [&edge[..], &[("connection_security_policy", "mutual_tls")]].concat();
        ensure!(counted(&[&stage.waypoint], &mutual)? == of_edge, "{from} -> {to} is not all mutual TLS");
    }
    Ok(())
}

/// A label on the Service says that it has no waypoint; then it is taken away. No load notices.
fn a_service_is_let_go_and_bound_again(stage: &Stage) -> Result<()> {
    let details = || counted(&[&stage.waypoint], &[("destination_service_name", "details")]);
    let loads = Loads::start(stage)?;
    stage.lab.label_service("default", "details", USE_WAYPOINT, Some("none"))?;
    until("requests that go directly", CHANGE, || {
        details().is_ok_and(|before| stage.page(None).is_ok() && details().is_ok_and(|after| after == before))
    })?;
    loads.more(5)?;
    stage.lab.label_service("default", "details", USE_WAYPOINT, None)?;
    let before = details()?;
    eventually("requests through the waypoint", CHANGE, || {
        let after = details()?;
        ensure!(after > before, "{before} and then {after} requests");
        Ok(())
    })?;
    loads.more(5)?;
    let loads = loads.end();
    ensure!(failed(&loads).is_none(), "of {} loads: {:?}", loads.len(), failed(&loads));
    Ok(())
}

/// CL-3: a second waypoint with half of what comes for a service, then with all, and then dead: the first has it back. No load notices but what is cut.
fn a_canary_has_its_share(stage: &Stage) -> Result<()> {
    const CANARY: &str = "istio.io/use-waypoint-canary";
    let weigh = |weight: &str| stage.lab.annotate_service("default", "details", &format!("{CANARY}-weight"), weight);
    stage.lab.add_gateway("default", "canary", "undermesh-waypoint", &Default::default())?;
    let canary = stage.lab.start_waypoint("default", "canary", 1)?;
    let details = |waypoint: &Waypoint| counted(&[waypoint], &[("destination_service_name", "details")]);
    let loads = Loads::start(stage)?;
    weigh("50")?;
    stage.lab.label_service("default", "details", CANARY, Some("canary"))?;
    until("requests through the canary", CHANGE, || details(&canary).is_ok_and(|requests| requests > 0.0))?;
    let before = [details(&stage.waypoint)?, details(&canary)?];
    loads.more(60)?;
    let shares = [details(&stage.waypoint)? - before[0], details(&canary)? - before[1]];
    // Half of 60 has a standard deviation of four.
    ensure!(shares.iter().all(|share| *share > 9.0), "{shares:?}");
    weigh("100")?;
    // So many that not one goes to the first waypoint by chance while it still has half.
    until("all of it through the canary", 6 * CHANGE, || {
        details(&stage.waypoint)
            .is_ok_and(|before| loads.more(40).is_ok() && details(&stage.waypoint).is_ok_and(|after| after == before))
    })?;
    let killed = stage.lab.kill_waypoint(canary);
    loads.more(20)?;
    let loads = loads.end();
    let bad = loads.iter().filter(|load| load.status != 200 || load.stars == Stars::Broken).count();
    ensure!(bad <= 2, "{bad} of {} loads: {:?}", loads.len(), failed(&loads));
    stage.lab.label_service("default", "details", CANARY, None)?;
    stage.lab.delete_gateway("default", "canary")?;
    stage.lab.remove_pod(&killed)
}

/// Of two one ends, then of two one is killed, then there is none, then one again.
fn replicas_end_and_die(mut stage: Stage) -> Result<()> {
    let second = stage.lab.start_waypoint("default", "waypoint", 1)?;
    let loads = Loads::start(&stage)?;
    until("requests through both", SOON, || counted(&[&second], &[]).is_ok_and(|requests| requests > 0.0))?;
    let first = std::mem::replace(&mut stage.waypoint, second);
    let ended = stage.lab.stop_waypoint(first)?;
    ensure!(ended.code == 0, "{ended:?}");
    loads.more(10)?;
    let loads = loads.end();
    ensure!(failed(&loads).is_none(), "of {} loads while one ended: {:?}", loads.len(), failed(&loads));

    let third = stage.lab.start_waypoint("default", "waypoint", 2)?;
    let loads = Loads::start(&stage)?;
    until("requests through both", SOON, || counted(&[&third], &[]).is_ok_and(|requests| requests > 0.0))?;
    let killed = stage.lab.kill_waypoint(third);
    loads.more(20)?;
    let loads = loads.end();
    let bad = loads.iter().filter(|load| load.status != 200 || load.stars == Stars::Broken).count();
    // What it carried is cut; what comes after is not.
    ensure!(bad <= 2, "{bad} of {} loads: {:?}", loads.len(), failed(&loads));
    stage.lab.remove_pod(&killed)?;

    let last = stage.lab.kill_waypoint(stage.waypoint);
    for ready in [true, false] {
        stage.lab.set_ready(&last, ready)?;
        for _ in 0..3 {
            let refused = stage.bookinfo.client.get("http://productpage:9080/productpage")?;
            ensure!([7, 56].contains(&refused.code), "around the waypoint that is gone: {refused:?}");
        }
    }
    stage.waypoint = stage.lab.restart_waypoint(last, "waypoint")?;
    eventually("pages again", SOON, || {
        let load = stage.page(None)?;
        ensure!(load.status == 200 && load.stars != Stars::Broken, "{load:?}");
        Ok(())
    })?;

    // The Gateway is deleted, and what names it is closed until it is let go.
    stage.lab.delete_gateway("default", "waypoint")?;
    eventually("a refusal", CHANGE, || {
        let refused = stage.bookinfo.client.get("http://productpage:9080/productpage")?;
        ensure!([7, 56].contains(&refused.code), "{refused:?}");
        Ok(())
    })?;
    stage.lab.enrol_namespace_with("default", &[])?;
    eventually("pages without a waypoint", CHANGE, || {
        stage.bookinfo.client.get("http://productpage:9080/productpage")?.success()
    })
    .map(drop)
}
