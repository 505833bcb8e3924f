//! Bookinfo in the mesh with a waypoint before every service of it, and what its pages show.
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::bookinfo::{Load, parse};
use mesh_tests::harness::waypoint::USE_WAYPOINT;
use mesh_tests::harness::{
    Bookinfo, Finished, Lab, LabConfig, PodSpec, Process, ServiceSpec, Stars, Waypoint, eventually,
};
use std::time::Duration;

pub const SOON: Duration = Duration::from_secs(10);
/// How long a change may take until it is in force.
pub const CHANGE: Duration = Duration::from_secs(5);
/// The user that the rows are about.
pub const JASON: &str = "jason";

/// What stands.
pub struct Stage {
    pub lab: Lab,
    pub bookinfo: Bookinfo,
    pub waypoint: Waypoint,
}

/// Bookinfo with a Service for each version of reviews, everything enrolled, and the namespace bound to a waypoint that is ready.
pub fn bookinfo(class: &str) -> Result<Stage> {
    let lab = Lab::with_mesh(LabConfig::default())?;
    let bookinfo = Bookinfo::deploy(&lab, "default")?;
    for version in ["v1", "v2", "v3"] {
        let service =
            ServiceSpec::new(&format!("reviews-{version}")).selector(&[("app", "reviews"), ("version", version)]);
        lab.add_service(service.port("http", 9080, 9080))?;
    }
    lab.enrol_namespace("default")?;
    lab.wait_hbone(&bookinfo.everyone())?;
    lab.add_gateway("default", "waypoint", class, &Default::default())?;
    let waypoint = lab.start_waypoint("default", "waypoint", 2)?;
    lab.enrol_namespace_with("default", &[(USE_WAYPOINT, "waypoint")])?;
    let stage = Stage { lab, bookinfo, waypoint };
    eventually("requests through the waypoint", SOON, || {
        stage.page(None)?;
        let counted = stage.waypoint.metrics()?.sum("istio_requests_total", &[]);
        ensure!(counted >= 3.0, "it counted {counted}");
        Ok(())
    })?;
    Ok(stage)
}

impl Stage {
    /// One load of the page.
    pub fn page(&self, user: Option<&str>) -> Result<Load> {
        self.loads(user, 1)?.pop().context("no load")
    }

    /// Loads of the page one after the other, as a user who is logged in.
    pub fn loads(&self, user: Option<&str>, count: u32) -> Result<Vec<Load>> {
        let loads = parse(&self.start_loads(user, count, Duration::ZERO)?.wait(Duration::from_secs(120))?.stdout);
        ensure!(loads.len() == count as usize, "{} of {count} loads were made", loads.len());
        Ok(loads)
    }

    /// Loads in the background.
    pub fn start_loads(&self, user: Option<&str>, count: u32, interval: Duration) -> Result<Process> {
        self.bookinfo.start_load_as(&self.bookinfo.client, user, count, interval)
    }

    /// Pages that show these stars, within the time that a change may take; several, for without a route one of three does.
    pub fn becomes(&self, user: Option<&str>, stars: Stars) -> Result<Load> {
        eventually(&format!("{stars:?} stars for {user:?}"), CHANGE, || {
            let loads = self.loads(user, 6)?;
            let other = loads.iter().find(|load| load.status != 200 || load.stars != stars);
            ensure!(other.is_none(), "{other:?}");
            loads.into_iter().last().context("no load")
        })
    }

    /// All of some loads show these stars.
    pub fn all(&self, user: Option<&str>, count: u32, stars: Stars) -> Result<()> {
        let loads = self.loads(user, count)?;
        let other = loads.iter().find(|load| load.status != 200 || load.stars != stars);
        ensure!(other.is_none(), "{user:?} of {count} loads: {other:?}");
        Ok(())
    }
}

/// Two versions of a server that tells of each request, each with a Service.
pub fn httpbin(stage: &Stage) -> Result<Vec<Process>> {
    let mut servers = Vec::new();
    stage.lab.add_service(ServiceSpec::new("httpbin").port("http", 9080, 9080))?;
    for (version, delay) in [("v1", "0"), ("v2", "3000")] {
        let name = format!("httpbin-{version}");
        let selector = [("app", "httpbin"), ("version", version)];
        stage.lab.add_service(ServiceSpec::new(&name).selector(&selector).port("http", 9080, 9080))?;
        let pod = PodSpec::new(&name).label("app", "httpbin").label("version", version).service_account("httpbin");
        let pod = stage.lab.add_pod(pod.node(if version == "v1" { 1 } else { 2 }))?;
        servers.push(pod.serve(["http", "--port", "9080", "--name", &name, "--delay-ms", delay])?);
        stage.lab.enrol(&pod)?;
        stage.lab.wait_hbone(&[&pod])?;
    }
    Ok(servers)
}

/// How many loads show these stars, in percent.
pub fn percent(loads: &[Load], stars: Stars) -> f64 {
    loads.iter().filter(|load| load.stars == stars).count() as f64 * 100.0 / loads.len() as f64
}

/// The first load that a user would complain of.
pub fn failed(loads: &[Load]) -> Option<&Load> {
    loads.iter().find(|load| load.status != 200 || load.stars == Stars::Broken)
}

/// An answer with this status and this text in it.
pub fn is(result: &Finished, status: u16, text: &str) -> Result<()> {
    let is_status = match status {
        200 => result.code == 0,
        status => result.stderr.contains(&format!("HTTP {status}")),
    };
    ensure!(is_status && result.stdout.contains(text), "not {status} with {text:?}: {result:?}");
    Ok(())
}
