//! What Telemetry objects switch on and off while requests run: rows B30 and B31, and labels of one's own in the metrics of row B29; and, without any, what is told
//! of the network (TM-13).
use crate::stage::{CHANGE, SOON, Stage, bookinfo, httpbin};
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{Need, PodSpec, Process, ServiceSpec, eventually, in_lab};
use serde_json::Value;
use std::collections::HashSet;

/// Who takes lines and spans. None of them is a default.
const SETTINGS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: undermesh, namespace: undermesh-system}
data:
  mesh: |
    extensionProviders:
    - name: spans
      opentelemetry: {service: collector.observe.svc.cluster.local, port: 4318, http: {path: /v1/traces}}
    - name: lines
      envoyFileAccessLog: {path: /dev/stdout, logFormat: {text: "LINE %RESPONSE_CODE% %REQ(:PATH)% %DOWNSTREAM_PEER_URI_SAN%\n"}}
"#;

fn telemetry(spec: &str) -> String {
    format!(
        "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: own, namespace: default}}\nspec: {spec}\n"
    )
}

#[test]
fn features_B29_B30_B31_telemetry_objects_say_what_waypoints_tell() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = bookinfo("istio-waypoint")?;
        let _servers = httpbin(&stage)?;
        stage.lab.namespace("observe", &[])?;
        let pod =
            stage.lab.add_pod(PodSpec::new("collector").namespace("observe").label("app", "collector").node(1))?;
        stage.lab.add_service(ServiceSpec::new("collector").namespace("observe").port("http", 4318, 4318))?;
        let collector = pod.serve(["collector", "--port", "4318"])?;
        stage.lab.apply("settings", SETTINGS)?;
        lines(&stage)?;
        network(&stage)?;
        labels(&stage)?;
        spans(&stage, &collector)
    })
}

/// Asks for something of the first httpbin.
fn ask(stage: &Stage, path: &str) -> Result<()> {
    stage.bookinfo.client.get(&format!("http://httpbin-v1:9080{path}")).map(drop)
}

/// TM-13: each tunnel is told of by both of its ends, under the same names; that a waypoint asks for a client makes no tunnel of the client's.
fn network(stage: &Stage) -> Result<()> {
    // Bound to the waypoint before anybody asked for it.
    let bins = stage.lab.pods("default");
    let bin = bins.iter().find(|pod| pod.name == "httpbin-v1").context("no httpbin-v1")?;
    let (client, waypoint) = (&stage.bookinfo.client, &stage.waypoint.pod);
    let (client_id, bin_id, waypoint_id) = (client.identity(), bin.identity(), waypoint.identity());
    eventually("the network of both ways", 2 * SOON, || {
        ask(stage, "/x")?;
        let (near, far) = (client.node.agent()?.metrics()?, bin.node.agent()?.metrics()?);
        let middle = stage.waypoint.metrics()?;
        let to_waypoint = [
            ("source_workload", client.name.as_str()),
            ("source_principal", &client_id),
            ("destination_workload", &waypoint.name),
            ("destination_principal", &waypoint_id),
        ];
        let to_bin = [
            ("source_workload", waypoint.name.as_str()),
            ("source_principal", &waypoint_id),
            ("destination_workload", "httpbin-v1"),
            ("destination_principal", &bin_id),
        ];
        for (who, metrics, reporter, ends) in [
            ("the client's agent", &near, "source", &to_waypoint),
            ("the waypoint, to clients", &middle, "waypoint", &to_waypoint),
            ("the waypoint, to endpoints", &middle, "waypoint", &to_bin),
            ("the endpoint's agent", &far, "destination", &to_bin),
        ] {
            let labels = [&[("reporter", reporter), ("connection_security_policy", "mutual_tls")], &ends[..]].concat();
            for name in ["undermesh_tcp_segments_total", "undermesh_tcp_rtt_seconds_count"] {
                ensure!(metrics.sum(name, &labels) > 0.0, "{who}: no {name} of {ends:?}");
            }
        }
        let asked_for = [("source_principal", client_id.as_str()), ("destination_workload", "httpbin-v1")];
        ensure!(far.sum("istio_tcp_connections_opened_total", &asked_for) > 0.0, "who asks is known");
        ensure!(far.select("undermesh_tcp_segments_total", &asked_for).next().is_none(), "it has no tunnel there");
        Ok(())
    })
}

/// B30: only what the filter means is written, in the format of the provider.
fn lines(stage: &Stage) -> Result<()> {
    stage.lab.apply(
        "telemetry",
        &telemetry("{accessLogging: [{providers: [{name: lines}], filter: {expression: 'response.code >= 400'}}]}"),
    )?;
    eventually("a line of a failure", CHANGE, || {
        ask(stage, "/status/404")?;
        ensure!(!stage.waypoint.lines(&["LINE 404 /status/404 spiffe://cluster.local/ns/default/sa/"]).is_empty());
        Ok(())
    })?;
    for _ in 0..3 {
        ask(stage, "/status/201")?;
    }
    ask(stage, "/status/418")?;
    // Lines are written in the order of requests of a lane, and buffers within a second.
    eventually("a line of the last failure", SOON, || {
        ensure!(stage.waypoint.lines(&["LINE 418"]).len() == 1);
        Ok(())
    })?;
    let others = stage.waypoint.lines(&["/status/201"]);
    ensure!(others.is_empty(), "what the filter does not mean is written: {others:?}");
    // Without the object nobody says anything of logs, and the command line counts.
    stage.lab.delete("telemetry")?;
    eventually("a line as the command line has it", CHANGE, || {
        ask(stage, "/status/202")?;
        ensure!(!stage.waypoint.lines(&["/status/202"]).is_empty());
        Ok(())
    })
}

/// B29: labels are added and left out of one metric; another has Istio's.
fn labels(stage: &Stage) -> Result<()> {
    stage.lab.apply(
        "telemetry",
        &telemetry(
            "{metrics: [{overrides: [{match: {metric: REQUEST_COUNT}, tagOverrides: {request_path: {value: request.url_path}, destination_app: {operation: REMOVE}}}, {match: {metric: REQUEST_SIZE}, disabled: true}]}]}",
        ),
    )?;
    eventually("a label of one's own", CHANGE, || {
        ask(stage, "/status/203")?;
        let counted = stage.waypoint.metrics()?.sum("istio_requests_total", &[("request_path", "/status/203")]);
        ensure!(counted >= 1.0);
        Ok(())
    })?;
    for _ in 0..4 {
        ask(stage, "/status/299")?;
    }
    let metrics = stage.waypoint.metrics()?;
    let labelled = [("request_path", "/status/299")];
    ensure!(metrics.sum("istio_requests_total", &labelled) == 4.0, "requests are counted under their path");
    let counted = metrics.select("istio_requests_total", &labelled).next().context("a sample")?;
    ensure!(!counted.labels.contains_key("destination_app"), "a label is left out: {counted:?}");
    let code = [("response_code", "299")];
    let took = metrics.select("istio_request_duration_milliseconds_count", &code).next().context("a sample")?;
    let is_plain = !took.labels.contains_key("request_path") && took.labels.contains_key("destination_app");
    ensure!(is_plain && took.value == 4.0, "another metric has Istio's labels: {took:?}");
    ensure!(metrics.select("istio_request_bytes_count", &code).next().is_none(), "a metric is not made");
    stage.lab.delete("telemetry")
}

/// B31: one load of the page is one trace.
fn spans(stage: &Stage, collector: &Process) -> Result<()> {
    stage.lab.apply(
        "telemetry",
        &telemetry(
            "{tracing: [{providers: [{name: spans}], randomSamplingPercentage: 100, customTags: {shop: {literal: {value: books}}, load: {header: {name: x-load}}}}]}",
        ),
    )?;
    let spans = || -> Vec<Value> { collector.stdout().lines().filter_map(|l| serde_json::from_str(l).ok()).collect() };
    eventually("spans", CHANGE, || {
        stage.page(None)?;
        ensure!(!spans().is_empty());
        Ok(())
    })?;
    let page = "http://productpage:9080/productpage";
    stage.bookinfo.client.lab(["get", page, "-H", "x-load: the one"])?.success()?;
    eventually("the trace of a load", SOON, || {
        let all = spans();
        let root = all.iter().find(|span| span["tags"]["load"] == "the one" && span["kind"] == 2);
        let root = root.context("no span of the load")?;
        let trace: Vec<&Value> = all.iter().filter(|span| span["trace"] == root["trace"]).collect();
        let ids: HashSet<&str> = trace.iter().filter_map(|span| span["id"].as_str()).collect();
        // productpage, details, reviews and ratings: each is a span of the waypoint and one of its attempt.
        ensure!(ids.len() >= 6, "{} spans", ids.len());
        let is_child = |span: &Value| span["parent"].as_str().is_some_and(|parent| ids.contains(parent));
        let others: Vec<_> = trace.iter().filter(|span| !is_child(span)).collect();
        ensure!(others.len() == 1 && others[0]["id"] == root["id"] && root["parent"] == "", "roots: {others:?}");
        let calls = trace.iter().filter(|span| span["kind"] == 2 && span["tags"]["shop"] == "books").count();
        ensure!(calls >= 3, "{calls} calls have the tag: {trace:?}");
        Ok(())
    })?;
    stage.lab.delete("telemetry")
}
