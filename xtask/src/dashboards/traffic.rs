//! Dashboards of traffic, by the metrics that Istio has taught: the mesh, one service, one workload. Requests are counted by waypoints (`reporter="waypoint"`)
//! and gateways (`source`), connections by the agents of both ends (`source` and `destination`), and so is what the network does to them.
use super::model::{Dashboard, Panel};

/// Requests, each once where it is counted for the one that is asked.
const REQUESTS: &str = r#"reporter=~"source|waypoint""#;
/// Where the namespaces come from that a reader chooses from.
const NAMESPACES: &str = r#"label_values({__name__=~"istio_requests_total|istio_tcp_connections_opened_total"}, destination_workload_namespace)"#;
const MILLISECONDS: &str = "istio_request_duration_milliseconds_bucket";

/// The whole mesh at a glance.
pub fn mesh() -> Dashboard {
    let requests = |more: &str| format!("sum(rate(istio_requests_total{{{REQUESTS}{more}}}[$__rate_interval]))");
    let opened = |more: &str| {
        format!("sum(rate(istio_tcp_connections_opened_total{{reporter=\"destination\"{more}}}[$__rate_interval]))")
    };
    let by_service = |value: &str| format!("sum by (destination_service) ({value})");
    let rate = |more: &str| by_service(&format!("rate(istio_requests_total{{{REQUESTS}{more}}}[$__rate_interval])"));
    let numbers = vec![
        Panel::number("Requests", "reqps", requests("")),
        Panel::number(
            "Answers without 5xx",
            "percentunit",
            share(&requests(r#",response_code!~"5..""#), &requests("")),
        )
        .about("Of requests at waypoints and gateways. A client that has left before the answer is no failure."),
        Panel::number("Answers of 4xx", "reqps", requests(r#",response_code=~"4..""#)),
        Panel::number("Answers of 5xx", "reqps", requests(r#",response_code=~"5..""#)),
        Panel::number("Connections opened", "cps", opened("")),
        Panel::number(
            "Connections by mutual TLS",
            "percentunit",
            share(&opened(r#",connection_security_policy="mutual_tls""#), &opened("")),
        )
        .about("Of the connections that agents have taken for pods, those whose client has proved who it is."),
        Panel::number(
            "Bytes",
            "Bps",
            format!("{} + {}", bytes("sent", r#"reporter="source""#), bytes("received", r#"reporter="source""#)),
        ),
        Panel::number(
            "Connections refused or failed",
            "cps",
            "sum(rate(istio_tcp_connections_failed_total{}[$__rate_interval]))",
        ),
    ];
    let services = Panel::table("Requests by service", "destination_service")
        .with(rate(""), "Requests/s")
        .with(quantile("0.5", REQUESTS, "destination_service"), "p50, ms")
        .with(quantile("0.9", REQUESTS, "destination_service"), "p90, ms")
        .with(quantile("0.99", REQUESTS, "destination_service"), "p99, ms")
        .with(format!("{} / {}", rate(r#",response_code!~"5..""#), rate("")), "Without 5xx");
    let connections = Panel::table("Connections by service", "destination_service")
        .with(
            by_service(r#"rate(istio_tcp_connections_opened_total{reporter="source"}[$__rate_interval])"#),
            "Opened/s",
        )
        .with(
            by_service(r#"rate(istio_tcp_received_bytes_total{reporter="source"}[$__rate_interval])"#),
            "Bytes/s from the client",
        )
        .with(
            by_service(r#"rate(istio_tcp_sent_bytes_total{reporter="source"}[$__rate_interval])"#),
            "Bytes/s to the client",
        );
    Dashboard {
        name: "undermesh-mesh",
        title: "Undermesh / Mesh",
        description: "All requests and connections of the mesh.",
        choices: vec![],
        rows: vec![
            ("Now", numbers),
            ("Services", vec![services, connections]),
            (
                "Network",
                of_network(
                    "",
                    "source_workload, destination_workload",
                    "{{source_workload}} to {{destination_workload}}",
                ),
            ),
        ],
    }
}

/// What is asked of one service.
pub fn service() -> Dashboard {
    let requests = format!(r#"{REQUESTS},destination_service=~"$service""#);
    let connections = r#"reporter="source",destination_service=~"$service""#;
    Dashboard {
        name: "undermesh-service",
        title: "Undermesh / Service",
        description: "Requests and connections to one service.",
        choices: vec![(
            "service",
            "Service",
            r#"label_values({__name__=~"istio_requests_total|istio_tcp_connections_opened_total"}, destination_service)"#,
        )],
        rows: vec![
            ("Requests", of_requests(&requests, "source_workload", "{{source_workload}}")),
            ("Connections", of_connections(connections, "source_workload", "{{source_workload}}")),
        ],
    }
}

/// What one workload is asked and asks.
pub fn workload() -> Dashboard {
    let one = |side: &str| format!(r#"{side}_workload_namespace=~"$namespace",{side}_workload=~"$workload""#);
    let (to, from) = (one("destination"), one("source"));
    let choices = "label_values({__name__=~\"istio_requests_total|istio_tcp_connections_opened_total\",destination_workload_namespace=~\"$namespace\"}, destination_workload)";
    Dashboard {
        name: "undermesh-workload",
        title: "Undermesh / Workload",
        description: "Requests and connections to one workload, and from it.",
        choices: vec![("namespace", "Namespace", NAMESPACES), ("workload", "Workload", choices)],
        rows: vec![
            ("Requests to it", of_requests(&format!("{REQUESTS},{to}"), "source_workload", "{{source_workload}}")),
            (
                "Requests from it",
                of_requests(&format!("{REQUESTS},{from}"), "destination_service", "{{destination_service}}"),
            ),
            (
                "Connections to it",
                of_connections(&format!(r#"reporter="destination",{to}"#), "source_workload", "{{source_workload}}"),
            ),
            (
                "Connections from it",
                of_connections(
                    &format!(r#"reporter="source",{from}"#),
                    "destination_service",
                    "{{destination_service}}",
                ),
            ),
            (
                "Network of connections to it",
                of_network(&to, "source_workload, reporter", "{{source_workload}}, sent by the {{reporter}}"),
            ),
            (
                "Network of connections from it",
                of_network(
                    &from,
                    "destination_workload, reporter",
                    "{{destination_workload}}, sent by the {{reporter}}",
                ),
            ),
        ],
    }
}

/// Panels of the requests with these labels; `by` tells the other side apart.
fn of_requests(labels: &str, by: &str, legend: &'static str) -> Vec<Panel> {
    let rate = |by: &str| format!("sum by ({by}) (rate(istio_requests_total{{{labels}}}[$__rate_interval]))");
    let size = |metric: &str| {
        format!(
            "sum(rate({metric}_sum{{{labels}}}[$__rate_interval])) / sum(rate({metric}_count{{{labels}}}[$__rate_interval]))"
        )
    };
    vec![
        Panel::lines("By code of the answer", "reqps")
            .with(rate("response_code, response_flags"), "{{response_code}} {{response_flags}}")
            .about("The flags are Envoy's: UH no healthy endpoint, UF could not connect, UC the endpoint has cut, UT too late, NR no route, RL limited, DC the client has left."),
        Panel::lines("By the other side", "reqps").with(rate(by), legend),
        Panel::lines("Duration", "ms")
            .with(quantile("0.5", labels, ""), "p50")
            .with(quantile("0.9", labels, ""), "p90")
            .with(quantile("0.99", labels, ""), "p99"),
        Panel::lines("Mean size", "bytes")
            .with(size("istio_request_bytes"), "request")
            .with(size("istio_response_bytes"), "answer"),
    ]
}

/// Panels of the connections with these labels.
fn of_connections(labels: &str, by: &str, legend: &'static str) -> Vec<Panel> {
    let rate = |metric: &str, by: &str| format!("sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))");
    vec![
        Panel::lines("Opened, by the other side", "cps").with(rate("istio_tcp_connections_opened_total", by), legend),
        Panel::lines("Opened, by how they are secured", "cps").with(
            rate("istio_tcp_connections_opened_total", "connection_security_policy, response_flags"),
            "{{connection_security_policy}} {{response_flags}}",
        ),
        Panel::lines("To the client", "Bps").with(rate("istio_tcp_sent_bytes_total", by), legend),
        Panel::lines("From the client", "Bps").with(rate("istio_tcp_received_bytes_total", by), legend),
    ]
}

/// Panels of how the network carries connections with these labels, as the kernels of both ends tell; `by` tells pairs apart, the ten worst of which are shown.
fn of_network(labels: &str, by: &str, legend: &'static str) -> Vec<Panel> {
    let rate = |metric: &str| format!("sum by ({by}) (rate(undermesh_tcp_{metric}{{{labels}}}[$__rate_interval]))");
    let worst = |value: String| format!("topk(10, {value})");
    let round_trip = |quantile: &str, by: &str| {
        format!(
            "histogram_quantile({quantile}, sum by ({by}) (rate(undermesh_tcp_rtt_seconds_bucket{{{labels}}}[$__rate_interval])))"
        )
    };
    let (segments, again, twice) =
        (rate("segments_total"), rate("retransmitted_segments_total"), rate("duplicate_segments_total"));
    vec![
        Panel::lines("Round trip", "s")
            .with(round_trip("0.5", "le"), "p50")
            .with(round_trip("0.9", "le"), "p90")
            .with(round_trip("0.99", "le"), "p99")
            .about("TCP's smoothed round trips, of tunnels and of plain connections, each looked at every ten seconds and at its end."),
        Panel::lines("Slowest, 90th percentile", "s").with(worst(round_trip("0.9", &format!("{by}, le"))), legend),
        Panel::lines("Lost, of the segments sent", "percentunit")
            .with(worst(format!("clamp_min(({again} - {twice}) / {segments}, 0)")), legend)
            .about("Sent again, less those that the other end has told to have had already. Each end counts what it sends."),
        Panel::lines("Sent again", "pps").with(worst(again.clone()), legend),
    ]
}

/// A quantile of the durations of requests, in milliseconds; of each value of the label `by`, if that is one.
fn quantile(quantile: &str, labels: &str, by: &str) -> String {
    let by = if by.is_empty() { "le".to_owned() } else { format!("{by}, le") };
    format!("histogram_quantile({quantile}, sum by ({by}) (rate({MILLISECONDS}{{{labels}}}[$__rate_interval])))")
}

fn bytes(direction: &str, labels: &str) -> String {
    format!("sum(rate(istio_tcp_{direction}_bytes_total{{{labels}}}[$__rate_interval]))")
}

fn share(part: &str, whole: &str) -> String {
    format!("{part} / {whole}")
}
