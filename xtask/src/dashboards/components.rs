//! Dashboards of our own processes: waypoints and gateways, the agents of nodes, the control plane. `app` and `pod` are what the chart's monitors and Prometheus'
//! own configuration for Kubernetes call the component and its pod.
use super::model::{Dashboard, Panel};

/// A rate of a counter, by labels.
fn rate(metric: &str, labels: &str, by: &str) -> String {
    format!("sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))")
}

/// The sum of a gauge, by labels.
fn sum(metric: &str, labels: &str, by: &str) -> String {
    format!("sum by ({by}) ({metric}{{{labels}}})")
}

/// What any process uses, where `labels` hold.
fn resources(labels: &str) -> Vec<Panel> {
    vec![
        Panel::lines("CPU", "cores").with(rate("process_cpu_seconds_total", labels, "pod"), "{{pod}}"),
        Panel::lines("Memory", "bytes").with(sum("process_resident_memory_bytes", labels, "pod"), "{{pod}}"),
        Panel::lines("Open files, of the limit", "percentunit")
            .with(format!("max by (pod) (process_open_fds{{{labels}}} / process_max_fds{{{labels}}})"), "{{pod}}"),
        Panel::lines("xDS: connected, and what was refused", "short")
            .with(format!("min by (pod) (undermesh_xds_connected{{{labels}}})"), "connected {{pod}}")
            .with(rate("undermesh_xds_rejected_total", labels, "pod"), "refused/s {{pod}}")
            .about("A refused message leaves what was known in force; the proxy's log says why."),
    ]
}

/// Waypoints and gateways.
pub fn proxies() -> Dashboard {
    let pods = r#"pod=~"$pod""#;
    let requests = vec![
        Panel::lines("Requests", "reqps").with(rate("istio_requests_total", pods, "pod"), "{{pod}}"),
        Panel::lines("Not answered by an endpoint", "reqps").with(
            rate("istio_requests_total", r#"pod=~"$pod",response_flags!="-""#, "response_flags"),
            "{{response_flags}}",
        ),
        Panel::lines("What policies have said", "reqps")
            .with(rate("undermesh_request_policies_total", pods, "policy, outcome"), "{{policy}} {{outcome}}")
            .about(
                "Denied, would have been denied in a dry run, could not be asked about; and what rate limits refused.",
            ),
        Panel::lines("Endpoints left out", "short")
            .with(
                sum("undermesh_outlier_ejected", pods, "destination_service, subset"),
                "{{destination_service}} {{subset}}",
            )
            .about("By outlier detection, now."),
    ];
    let lost = vec![
        Panel::lines("Refused for limits of pools", "reqps").with(
            rate("undermesh_upstream_overflow_total", pods, "destination_service, subset"),
            "{{destination_service}} {{subset}}",
        ),
        Panel::lines("Refused before a request, by reason", "cps")
            .with(rate("undermesh_waypoint_refused_total", pods, "reason"), "{{reason}}")
            .about("Connections, handshakes, and what is no HTTP beyond doubt. The log has a line of some, with the client."),
        Panel::lines("Telemetry that is lost", "short")
            .with(rate("undermesh_access_log_dropped_total", pods, "pod"), "lines/s {{pod}}")
            .with(rate("undermesh_spans_dropped_total", pods, "pod"), "spans/s {{pod}}"),
    ];
    Dashboard {
        name: "undermesh-proxies",
        title: "Undermesh / Waypoints and gateways",
        description: "What the proxies of requests do, and what they use.",
        choices: vec![("pod", "Pod", "label_values(undermesh_requests_overflowed_total, pod)")],
        rows: vec![("Requests", requests), ("Limits", lost), ("Process", resources(pods))],
    }
}

/// The agents of nodes.
pub fn agents() -> Dashboard {
    let pods = r#"pod=~"$pod""#;
    let traffic = vec![
        Panel::lines("Connections opened", "cps")
            .with(rate("istio_tcp_connections_opened_total", pods, "pod"), "{{pod}}"),
        Panel::lines("Refused, by reason", "cps")
            .with(rate("undermesh_proxy_refused_total", pods, "reason"), "{{reason}}"),
        Panel::lines("Tunnels open, pods served", "short")
            .with(sum("mesh_tunnels_open", pods, "pod"), "tunnels {{pod}}")
            .with(sum("workload_manager_active_proxy_count", pods, "pod"), "pods {{pod}}"),
        Panel::lines("DNS", "reqps")
            .with(rate("istio_dns_requests_total", pods, "pod"), "asked {{pod}}")
            .with(rate("istio_dns_upstream_failures_total", pods, "pod"), "upstream failed {{pod}}"),
    ];
    let network = vec![
        Panel::lines("Segments sent to other nodes and to pods", "pps")
            .with(rate("undermesh_tcp_segments_total", pods, "pod"), "{{pod}}"),
        Panel::lines("Of these, sent again", "pps")
            .with(rate("undermesh_tcp_retransmitted_segments_total", pods, "pod"), "{{pod}}")
            .with(rate("undermesh_tcp_duplicate_segments_total", pods, "pod"), "in vain {{pod}}")
            .about("In vain: the other end has told to have had them already."),
    ];
    let kernel = vec![
        Panel::lines("Decisions of the kernel programs", "ops")
            .with(rate("mesh_kernel_decisions_total", pods, "reason"), "{{reason}}"),
        Panel::lines("Use of kernel maps", "percentunit").with(
            format!("max by (map) (mesh_bpf_map_entries{{{pods}}} / mesh_bpf_map_max_entries{{{pods}}})"),
            "{{map}}",
        ),
        Panel::lines("Events that the kernel had no room for", "ops")
            .with(rate("mesh_bpf_ringbuf_dropped_total", pods, "pod"), "{{pod}}"),
        Panel::lines("Put right in the kernel", "ops").with(rate("mesh_bpf_repairs_total", pods, "pod"), "{{pod}}"),
    ];
    let identity = vec![
        Panel::lines("Shortest validity of a certificate", "s")
            .with(format!("min by (pod) (mesh_workload_cert_expiry_timestamp_seconds{{{pods}}} - time())"), "{{pod}}"),
        Panel::lines("Requests for certificates", "reqps")
            .with(rate("undermesh_certificate_requests_total", pods, "outcome"), "{{outcome}}"),
    ];
    Dashboard {
        name: "undermesh-agents",
        title: "Undermesh / Node agents",
        description: "What the agents and the kernel programs of nodes do, and what they use.",
        choices: vec![("pod", "Agent", "label_values(mesh_tunnels_open, pod)")],
        rows: vec![
            ("Traffic", traffic),
            ("Network", network),
            ("Kernel", kernel),
            ("Identity", identity),
            ("Process", resources(pods)),
        ],
    }
}

/// A quantile of the time that a change takes to its clients.
fn convergence(quantile: &str) -> String {
    format!(
        "histogram_quantile({quantile}, sum by (le) (rate(pilot_proxy_convergence_time_bucket{{}}[$__rate_interval])))"
    )
}

/// The control plane.
pub fn control() -> Dashboard {
    let xds = vec![
        Panel::lines("Streams", "short").with(sum("pilot_xds", "", "pod"), "{{pod}}"),
        Panel::lines("Pushes", "ops").with(rate("pilot_xds_pushes", "", "type"), "{{type}}"),
        Panel::lines("Refused by proxies", "ops").with(rate("pilot_total_xds_rejects", "", "type"), "{{type}}"),
        Panel::lines("From a change to the last proxy that is told", "s")
            .with(convergence("0.5"), "p50")
            .with(convergence("0.99"), "p99"),
        Panel::lines("Known", "short")
            .with("max(pilot_services{})", "services")
            .with("max(mesh_control_workloads{})", "workloads")
            .with("max(mesh_control_policies{})", "policies"),
    ];
    let objects = vec![
        Panel::lines("Things wrong with the configuration", "short")
            .with("max(mesh_control_diagnoses{})", "diagnoses")
            .about("`meshctl status` and /debug/diagnoses of the control plane name them."),
        Panel::lines("Objects at the webhook", "ops")
            .with("sum(rate(galley_validation_passed{}[$__rate_interval]))", "let in")
            .with("sum(rate(galley_validation_failed{}[$__rate_interval]))", "refused"),
    ];
    let authority = vec![
        Panel::lines("Certificates", "ops")
            .with("sum(rate(citadel_server_success_cert_issuance_count{}[$__rate_interval]))", "made")
            .with("sum(rate(citadel_server_csr_sign_err_count{}[$__rate_interval]))", "refused")
            .with(
                "sum(rate(citadel_server_authentication_failure_count{}[$__rate_interval]))",
                "asked by nobody known",
            ),
        Panel::lines("Validity of the authority", "s")
            .with("min(citadel_server_root_cert_expiry_timestamp{} - time())", "root")
            .with("min(citadel_server_cert_chain_expiry_timestamp{} - time())", "signing certificate"),
    ];
    let control = r#"pod=~"mesh-control.*""#;
    let process = vec![
        Panel::lines("CPU", "cores").with(rate("process_cpu_seconds_total", control, "pod"), "{{pod}}"),
        Panel::lines("Memory", "bytes").with(sum("process_resident_memory_bytes", control, "pod"), "{{pod}}"),
    ];
    Dashboard {
        name: "undermesh-control",
        title: "Undermesh / Control plane",
        description: "What the control plane sends, finds and signs, and what it uses.",
        choices: vec![],
        rows: vec![("xDS", xds), ("Objects", objects), ("Authority", authority), ("Process", process)],
    }
}
