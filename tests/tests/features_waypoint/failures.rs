//! What is made to fail, and what is saved: rows B5a, B5b, B6, B8, B9 and B12.
use crate::stage::{CHANGE, JASON, SOON, Stage, bookinfo, failed, httpbin};
use anyhow::{Result, ensure};
use mesh_tests::harness::bookinfo::{Load, parse};
use mesh_tests::harness::routing::{http_route, virtual_service};
use mesh_tests::harness::{Need, PodSpec, Process, Stars, eventually, in_lab, until};
use std::time::Duration;

const NO_REVIEWS: &str = "Error fetching product reviews!";
const NO_RATINGS: &str = "Ratings service is currently unavailable";
const NO_DETAILS: &str = "Error fetching product details!";
const URL: &str = "http://httpbin:9080/x";

/// Ratings with a fault for what `matches` says.
fn ratings_with(fault: &str, matches: &str) -> String {
    virtual_service(
        "ratings",
        &[
            &format!("{{{matches}fault: {{{fault}}}, route: [{{destination: {{host: ratings}}}}]}}"),
            "{route: [{destination: {host: ratings}}]}",
        ],
    )
}

fn delay(time: &str) -> String {
    format!("delay: {{percentage: {{value: 100}}, fixedDelay: {time}}}")
}

fn abort(status: u16) -> String {
    format!("abort: {{percentage: {{value: 100}}, httpStatus: {status}}}")
}

const FOR_JASON: &str = "match: [{headers: {end-user: {exact: jason}}}], ";

fn all_to(version: &str) -> String {
    virtual_service("reviews", &[&format!("{{route: [{{destination: {{host: reviews-{version}}}}}]}}")])
}

fn shows(load: &Load, what: &str) -> Result<()> {
    ensure!(load.status == 200 && load.text.contains(what), "no `{what}`: {load:?}");
    Ok(())
}

/// The time that a load took, in seconds. On a machine with other work it is longer than it should be, never shorter.
fn took(load: &Load, least: f64, most: f64) -> Result<()> {
    let seconds = load.milliseconds / 1000.0;
    ensure!(seconds >= least && seconds < most, "it took {seconds} s, not {least} to {most}");
    Ok(())
}

#[test]
fn features_B5_B6_B8_faults_and_timeouts() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = bookinfo("undermesh-waypoint")?;
        delays(&stage)?;
        aborts(&stage)?;
        timeouts(&stage)
    })
}

/// B5a, B5b: a delay of the mesh is never cut by the mesh, so it shows what the applications do.
fn delays(stage: &Stage) -> Result<()> {
    stage.lab.apply("reviews", &all_to("v2"))?;
    stage.becomes(None, Stars::Black)?;
    stage.lab.apply("ratings", &ratings_with(&delay("7s"), FOR_JASON))?;
    let slow = eventually("the delay", Duration::from_secs(20), || {
        let load = stage.page(Some(JASON))?;
        took(&load, 5.9, 60.0)?;
        Ok(load)
    })?;
    // Two tries of three seconds each, which productpage has and ratings' seven do not fit in.
    shows(&slow, NO_REVIEWS)?;
    took(&slow, 5.9, 6.9)?;
    stage.all(None, 3, Stars::Black)?;
    took(&stage.page(None)?, 0.0, 3.0)?;

    stage.lab.apply("reviews", &all_to("v3"))?;
    stage.becomes(None, Stars::Red)?;
    stage.lab.apply("ratings", &ratings_with(&delay("2s"), FOR_JASON))?;
    // Reviews v3 waits for two and a half seconds.
    eventually("red stars after two seconds", Duration::from_secs(30), || {
        let load = stage.page(Some(JASON))?;
        ensure!(load.stars == Stars::Red, "{load:?}");
        took(&load, 2.0, 5.9)
    })?;
    stage.lab.delete("ratings")
}

/// B6
fn aborts(stage: &Stage) -> Result<()> {
    stage.lab.apply("ratings", &ratings_with(&abort(500), FOR_JASON))?;
    eventually("the abort", CHANGE, || shows(&stage.page(Some(JASON))?, NO_RATINGS))?;
    took(&stage.page(Some(JASON))?, 0.0, 2.0)?;
    stage.all(None, 5, Stars::Red)?;
    stage.lab.delete("ratings")?;
    stage.becomes(Some(JASON), Stars::Red)?;

    let details =
        ["{fault: {abort: {percentage: {value: 100}, httpStatus: 555}}, route: [{destination: {host: details}}]}"];
    stage.lab.apply("details", &virtual_service("details", &details))?;
    eventually("the abort", CHANGE, || shows(&stage.page(None)?, NO_DETAILS))?;
    let labels = [("response_code", "555"), ("response_flags", "FI"), ("destination_service_name", "details")];
    let before = stage.waypoint.metrics()?.sum("istio_requests_total", &labels);
    shows(&stage.page(None)?, NO_DETAILS)?;
    let after = stage.waypoint.metrics()?.sum("istio_requests_total", &labels);
    ensure!(after == before + 1.0, "{before} and then {after} requests");
    stage.lab.delete("details")?;
    stage.becomes(None, Stars::Red).map(drop)
}

/// B8
fn timeouts(stage: &Stage) -> Result<()> {
    let client = &stage.bookinfo.client;
    stage.lab.apply("reviews", &all_to("v2"))?;
    stage.becomes(None, Stars::Black)?;
    stage.lab.apply("ratings", &ratings_with(&delay("2s"), ""))?;
    let load = eventually("the delay", Duration::from_secs(20), || {
        let load = stage.page(None)?;
        took(&load, 2.0, 60.0)?;
        Ok(load)
    })?;
    ensure!(load.stars == Stars::Black, "nothing has a timeout: {load:?}");
    for text in [
        virtual_service("reviews", &["{timeout: 0.5s, route: [{destination: {host: reviews-v2}}]}"]),
        http_route("reviews", &["{timeouts: {request: 500ms}, backendRefs: [{name: reviews-v2, port: 9080}]}"]),
    ] {
        stage.lab.apply("reviews", &text)?;
        let load = eventually("the timeout", Duration::from_secs(20), || {
            let load = stage.page(None)?;
            shows(&load, NO_REVIEWS)?;
            Ok(load)
        })?;
        took(&load, 1.0, 1.9)?;
        let labels = [("response_code", "504"), ("response_flags", "UT"), ("destination_service_name", "reviews")];
        let before = stage.waypoint.metrics()?.sum("istio_requests_total", &labels);
        let direct = client.get("http://reviews:9080/reviews/0")?;
        ensure!(direct.stderr.contains("HTTP 504") && direct.stdout == "upstream request timeout", "{direct:?}");
        let after = stage.waypoint.metrics()?.sum("istio_requests_total", &labels);
        ensure!(after == before + 1.0, "{before} and then {after} requests");
        // The client's own limit goes before the rule's, shorter or longer.
        let own = |limit: &str| client.lab(["get", "http://reviews:9080/reviews/0", "-H", limit]);
        own("x-envoy-upstream-rq-timeout-ms: 10000")?.success()?;
        stage.lab.apply("reviews", &all_to("v2"))?;
        eventually("the end of the timeout", CHANGE, || client.get("http://reviews:9080/reviews/0")?.success())?;
        let cut = own("x-envoy-upstream-rq-timeout-ms: 100")?;
        ensure!(cut.stderr.contains("HTTP 504"), "{cut:?}");
    }
    stage.lab.delete("ratings")?;
    stage.lab.delete("reviews")
}

fn requests(server: &Process, path: &str) -> usize {
    server.stdout().lines().filter(|line| line.starts_with("request ") && line.contains(path)).count()
}

#[test]
fn features_B9_B12_retries_and_copies() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = bookinfo("istio-waypoint")?;
        let servers = httpbin(&stage)?;
        copies(&stage, &servers)?;
        what_an_application_says_is_not_tried_again(&stage, &servers[0])?;
        a_dead_endpoint_is_not_seen(&stage)
    })
}

/// B12: each request comes once to both; that the second is slow, or fails, nobody sees.
fn copies(stage: &Stage, servers: &[Process]) -> Result<()> {
    let client = &stage.bookinfo.client;
    let istio =
        "{route: [{destination: {host: httpbin-v1}}], mirror: {host: httpbin-v2}, mirrorPercentage: {value: 100}}";
    let gateway = "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: httpbin-v2, port: 9080}}}], backendRefs: [{name: httpbin-v1, port: 9080}]}";
    for (round, text) in [virtual_service("httpbin", &[istio]), http_route("httpbin", &[gateway])].iter().enumerate() {
        stage.lab.apply("httpbin", text)?;
        let probe = format!("/probe-{round}");
        eventually("a copy", CHANGE, || {
            client.get(&format!("http://httpbin:9080{probe}"))?.success()?;
            ensure!(requests(&servers[1], &probe) > 0, "no copy yet");
            Ok(())
        })?;
        let path = format!("/status/200?round={round}");
        let result = client.lab(["get", &format!("http://httpbin:9080{path}"), "--count", "5"])?;
        let loads = parse(&result.stdout);
        ensure!(loads.len() == 5 && loads.iter().all(|load| load.status == 200), "{loads:?}");
        loads.iter().try_for_each(|load| took(load, 0.0, 2.5))?;
        until("each request once at both", SOON, || {
            servers.iter().all(|server| requests(server, "/status/200") == 5 * (round + 1))
        })?;
        let copy = servers[1].wait_for("request GET /status/200", SOON)?;
        ensure!(copy.ends_with("host=httpbin-shadow:9080"), "{copy}");
        ensure!(!servers[0].stdout().contains("shadow"), "{}", servers[0].stdout());
        stage.lab.delete("httpbin")?;
    }
    Ok(())
}

/// B9: Istio's default tries again what has not reached an application, and nothing that one has said.
fn what_an_application_says_is_not_tried_again(stage: &Stage, server: &Process) -> Result<()> {
    let text = virtual_service("httpbin", &["{route: [{destination: {host: httpbin-v1}}]}"]);
    stage.lab.apply("httpbin", &text)?;
    for status in ["500", "503"] {
        let path = format!("/status/{status}");
        let result = stage.bookinfo.client.get(&format!("http://httpbin:9080{path}"))?;
        ensure!(result.stderr.contains(&format!("HTTP {status}")), "{result:?}");
        ensure!(requests(server, &path) == 1, "{}", server.stdout());
    }
    stage.bookinfo.client.get(URL)?.success()?;
    stage.lab.delete("httpbin")
}

/// B9: one of two pods of ratings is killed under load, and no page lacks its stars but for the one request that the pod may have
/// held when it died: what was sent is never sent again.
fn a_dead_endpoint_is_not_seen(stage: &Stage) -> Result<()> {
    let spec = PodSpec::new("ratings-v1-b").label("app", "ratings").label("version", "v1").node(2);
    let second = stage.lab.add_pod(spec.service_account("bookinfo-ratings").port("http", 9080))?;
    let process = second.start("ratings", "bookinfo", ["ratings", "--pod", &second.name])?;
    process.wait_for("ready", SOON)?;
    stage.lab.enrol(&second)?;
    stage.lab.wait_hbone(&[&second])?;
    stage.lab.apply("reviews", &all_to("v2"))?;
    stage.becomes(None, Stars::Black)?;
    let running = stage.start_loads(None, 1000, Duration::ZERO)?;
    until("the first loads", SOON, || running.stdout().lines().count() > 10)?;
    let held = [("destination_service_name", "ratings"), ("response_flags", "UC")];
    let before_kill = stage.waypoint.metrics()?.sum("istio_requests_total", &held);
    process.kill();
    let before = running.stdout().lines().count();
    until("loads without it", Duration::from_secs(60), || running.stdout().lines().count() >= before + 60)?;
    running.kill();
    let loads = parse(&running.stdout());
    let lost = stage.waypoint.metrics()?.sum("istio_requests_total", &held) - before_kill;
    let broken = loads.iter().filter(|load| load.status != 200 || load.stars != Stars::Black).count();
    ensure!(lost <= 1.0 && broken as f64 <= lost, "of {} loads, {lost} were held: {:?}", loads.len(), failed(&loads));
    stage.lab.remove_pod(&second)
}
