//! Telemetry as a scraper and a log reader see it.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use mesh_core::change::Change;
use mesh_core::{ArcStr, Identity, Locality, Service, Store, TrustDomain, Workload};
use mesh_runtime::logging::LogFormat;
use mesh_runtime::metrics::Registry;
use mesh_runtime::paths::Progress;
use parking_lot::Mutex;

use super::{
    AccessLog, ConnectionLabels, Outcome, Peer, Refusal, Reporter, ResponseFlags, Security, Telemetry, TelemetryConfig,
};

const LIMIT: Duration = Duration::from_secs(30);

/// A sink that tests can read.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Bench {
    telemetry: Telemetry,
    registry: Registry,
    sink: Sink,
}

impl Bench {
    fn new(format: LogFormat, series: usize) -> Self {
        let (mut registry, sink) = (Registry::default(), Sink::default());
        let log = AccessLog::to_writer(format, Box::new(sink.clone())).unwrap();
        let config = TelemetryConfig { series, ..TelemetryConfig::default() };
        let telemetry = Telemetry::with_log(&mut registry, &config, log);
        Self { telemetry, registry, sink }
    }

    fn text() -> Self {
        Self::new(LogFormat::Text, 4096)
    }

    fn scrape(&self) -> String {
        mesh_runtime::metrics::encode(&self.registry)
    }

    /// Values of a family's samples.
    fn values(&self, family: &str) -> Vec<u64> {
        let start = format!("{family}{{");
        let scrape = self.scrape();
        let lines = scrape.lines().filter(|line| line.starts_with(&start));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
    }

    fn lines(&self) -> Vec<String> {
        assert!(self.telemetry.access_log().flush(LIMIT));
        String::from_utf8(self.sink.0.lock().clone()).unwrap().lines().map(str::to_owned).collect()
    }

    /// Lines about ended connections.
    fn ended(&self) -> Vec<String> {
        self.lines().into_iter().filter(|line| line.contains("connection complete")).collect()
    }
}

fn workload(namespace: &str, owner: &str, pod: &str) -> Workload {
    Workload {
        workload_name: owner.into(),
        canonical_name: owner.trim_end_matches(|c: char| c == '-' || c.is_ascii_digit()).into(),
        canonical_revision: "v1".into(),
        cluster_id: "Kubernetes".into(),
        service_account: ArcStr::from(format!("{owner}-sa")),
        locality: Locality { region: "r1".into(), zone: "z1".into(), subzone: ArcStr::new() },
        ..Workload::new(format!("Kubernetes//Pod/{namespace}/{pod}"), namespace, pod)
    }
}

fn service() -> Service {
    Service::new("bookinfo", "ratings", "ratings.bookinfo.svc.cluster.local")
}

fn labels(reporter: Reporter) -> ConnectionLabels {
    let identity = |account: &str| Some(Identity::new(TrustDomain::default(), "bookinfo", account).unwrap());
    ConnectionLabels {
        source: Peer::from(Arc::new(workload("bookinfo", "reviews", "reviews-abc"))),
        source_identity: identity("reviews-sa"),
        destination: Peer::from(Arc::new(workload("bookinfo", "ratings", "ratings-def"))),
        destination_identity: identity("ratings-sa"),
        service: Some(Arc::new(service())),
        security: Security::MutualTls,
        hbone_target: Some("198.18.0.2:9080".parse().unwrap()),
        ..ConnectionLabels::unknown(reporter, "198.18.0.1:40000".parse().unwrap(), "198.18.0.2:15008".parse().unwrap())
    }
}

/// All labels in the node proxy's order.
const LABELS: &str = "reporter=\"source\",source_workload=\"reviews\",source_canonical_service=\"reviews\",\
    source_canonical_revision=\"v1\",source_workload_namespace=\"bookinfo\",\
    source_principal=\"spiffe://cluster.local/ns/bookinfo/sa/reviews-sa\",source_app=\"reviews\",source_version=\"v1\",\
    source_cluster=\"Kubernetes\",destination_service=\"ratings.bookinfo.svc.cluster.local\",\
    destination_service_namespace=\"bookinfo\",destination_service_name=\"ratings\",destination_workload=\"ratings\",\
    destination_canonical_service=\"ratings\",destination_canonical_revision=\"v1\",\
    destination_workload_namespace=\"bookinfo\",destination_principal=\"spiffe://cluster.local/ns/bookinfo/sa/ratings-sa\",\
    destination_app=\"ratings\",destination_version=\"v1\",destination_cluster=\"Kubernetes\",request_protocol=\"tcp\",\
    response_flags=\"-\",connection_security_policy=\"mutual_tls\",source_region=\"r1\",source_zone=\"z1\",\
    destination_region=\"r1\",destination_zone=\"z1\"";

#[test]
fn features_b29_every_label_of_a_connection_is_there_in_order() {
    let bench = Bench::text();
    assert!(!bench.scrape().contains("istio_tcp_connections"), "a family without samples is not printed");
    let guard = bench.telemetry.open(labels(Reporter::Source));
    guard.counters().sent.store(74, Relaxed);
    guard.counters().received.store(1202, Relaxed);
    guard.close(Outcome::Complete);
    let scrape = bench.scrape();
    for (family, value) in [
        ("istio_tcp_connections_opened", 1),
        ("istio_tcp_connections_closed", 1),
        ("istio_tcp_sent_bytes", 1202),
        ("istio_tcp_received_bytes", 74),
    ] {
        let line = format!("{family}_total{{{LABELS}}} {value}");
        assert!(scrape.lines().any(|l| l == line), "{line}\nin\n{scrape}");
    }
    assert!(!scrape.contains("istio_tcp_connections_failed"));
    assert!(scrape.ends_with("# EOF\n"));
    let mut families: Vec<_> = scrape.lines().filter(|line| line.starts_with("# TYPE ")).collect();
    let all = families.len();
    families.sort_unstable();
    families.dedup();
    assert_eq!(families.len(), all, "each family once");
}

/// "Sent" is what the server sent, for both reporters; the log counts as the application of the node does.
#[test]
fn sent_and_received_mean_the_same_for_both_reporters() {
    for reporter in [Reporter::Source, Reporter::Destination] {
        let bench = Bench::text();
        let guard = bench.telemetry.open(labels(reporter));
        // 10 bytes of request, 7000 of response.
        let (sent, received) = if reporter == Reporter::Source { (10, 7000) } else { (7000, 10) };
        guard.counters().sent.store(sent, Relaxed);
        guard.counters().received.store(received, Relaxed);
        guard.close(Outcome::Complete);
        assert_eq!(bench.values("istio_tcp_sent_bytes_total"), [7000], "{reporter:?}");
        assert_eq!(bench.values("istio_tcp_received_bytes_total"), [10], "{reporter:?}");
        let line = &bench.ended()[0];
        assert!(line.contains(&format!("bytes_sent={sent} bytes_recv={received} ")), "{line}");
    }
}

#[test]
fn bytes_advance_while_the_connection_is_open_and_never_go_back() {
    let bench = Bench::text();
    let (first, second) =
        (bench.telemetry.open(labels(Reporter::Source)), bench.telemetry.open(labels(Reporter::Source)));
    first.counters().sent.store(100, Relaxed);
    assert_eq!(bench.values("istio_tcp_received_bytes_total"), [100]);
    second.counters().sent.store(20, Relaxed);
    assert_eq!(bench.values("istio_tcp_received_bytes_total"), [120]);
    first.close(Outcome::Complete);
    assert_eq!(bench.values("istio_tcp_received_bytes_total"), [120]);
    // The slot of the first is used again.
    let third = bench.telemetry.open(labels(Reporter::Source));
    third.counters().sent.store(3, Relaxed);
    assert_eq!(bench.values("istio_tcp_received_bytes_total"), [123]);
    second.close(Outcome::Complete);
    third.close(Outcome::Complete);
    assert_eq!(bench.values("istio_tcp_received_bytes_total"), [123]);
    assert_eq!(bench.values("istio_tcp_connections_opened_total"), [3]);
    assert_eq!(bench.values("istio_tcp_connections_closed_total"), [3]);
}

#[test]
fn a_guard_ends_once_also_when_it_is_dropped() {
    let bench = Bench::text();
    bench.telemetry.open(labels(Reporter::Source)).close(Outcome::Complete);
    drop(bench.telemetry.open(labels(Reporter::Source)));
    let clone = bench.telemetry.clone();
    let panicked = std::thread::spawn(move || {
        let _guard = clone.open(labels(Reporter::Source));
        panic!("a task that fails");
    });
    assert!(panicked.join().is_err());
    assert_eq!(bench.values("istio_tcp_connections_closed_total"), [3]);
    let lines = bench.ended();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines[0].contains("\tinfo\t") && !lines[0].contains("error="), "{}", lines[0]);
    assert!(lines[1].contains("\terror\t") && lines[1].contains("error=\"connection task ended"), "{}", lines[1]);
}

#[test]
fn failures_are_counted_by_flag_and_logged_as_errors() {
    let bench = Bench::text();
    for flags in [ResponseFlags::Connect, ResponseFlags::Deny, ResponseFlags::Deny] {
        bench.telemetry.open(labels(Reporter::Source)).close(Outcome::failed(flags, "why"));
    }
    bench.telemetry.open(labels(Reporter::Source)).close(Outcome::interrupted("policy changed"));
    let scrape = bench.scrape();
    for (flag, count) in [("CONNECT", 1), ("DENY", 2)] {
        let labels = LABELS.replace("response_flags=\"-\"", &format!("response_flags=\"{flag}\""));
        let line = format!("istio_tcp_connections_failed_total{{{labels}}} {count}");
        assert!(scrape.lines().any(|l| l == line), "{line}\nin\n{scrape}");
    }
    assert_eq!(bench.values("istio_tcp_connections_failed_total").len(), 2, "a cut connection did not fail");
    assert_eq!(bench.values("istio_tcp_connections_closed_total"), [4]);
    assert!(bench.ended().iter().all(|line| line.contains("\terror\taccess\t")));
}

#[test]
fn features_b30_the_text_line_has_the_fields_in_order() {
    let bench = Bench::text();
    bench.telemetry.open(labels(Reporter::Source)).close(Outcome::failed(ResponseFlags::Deny, "policy \"x\"\ndenied"));
    let line = &bench.ended()[0];
    let (time, rest) = line.split_once('\t').unwrap();
    assert_eq!((time.len(), &time[10..11], &time[26..]), ("2026-11-20T10:35:31.040477Z".len(), "T", "Z"), "{time}");
    let duration = rest.split("duration=\"").nth(1).unwrap().split("ms\"").next().unwrap();
    assert!(duration.parse::<u64>().is_ok(), "{line}");
    let expected = format!(
        "error\taccess\tconnection complete\tsrc.addr=198.18.0.1:40000 src.workload=\"reviews-abc\" \
         src.namespace=\"bookinfo\" src.identity=\"spiffe://cluster.local/ns/bookinfo/sa/reviews-sa\" src.cluster=\"Kubernetes\" \
         dst.addr=198.18.0.2:15008 dst.hbone_addr=198.18.0.2:9080 dst.service=\"ratings.bookinfo.svc.cluster.local\" \
         dst.workload=\"ratings-def\" dst.namespace=\"bookinfo\" \
         dst.identity=\"spiffe://cluster.local/ns/bookinfo/sa/ratings-sa\" dst.cluster=\"Kubernetes\" direction=\"outbound\" \
         bytes_sent=0 bytes_recv=0 duration=\"{duration}ms\" error=\"policy \\\"x\\\"\\ndenied\""
    );
    assert_eq!(rest, expected);
}

#[test]
fn features_b30_the_json_line_is_json_with_the_same_fields() {
    let bench = Bench::new(LogFormat::Json, 16);
    let mut odd = labels(Reporter::Destination);
    odd.source = Peer::from(Arc::new(workload("bookinfo", "rev\u{1}iews", "po\td\"\\")));
    bench.telemetry.open(odd).close(Outcome::Complete);
    let line: serde_json::Value = serde_json::from_str(&bench.ended()[0]).unwrap();
    assert_eq!(line["message"], "connection complete");
    assert_eq!((&line["level"], &line["scope"]), (&"info".into(), &"access".into()));
    assert_eq!(line["src.workload"], "po\td\"\\");
    assert_eq!(line["dst.addr"], "198.18.0.2:15008");
    assert_eq!(line["bytes_sent"], 0);
    assert_eq!(line["direction"], "inbound");
    assert!(line.get("error").is_none());
}

#[test]
fn ends_that_are_not_known_say_so() {
    let bench = Bench::text();
    let from = "203.0.113.9:1".parse().unwrap();
    let to = "[fd00:198::2]:9080".parse().unwrap();
    bench.telemetry.open(ConnectionLabels::unknown(Reporter::Destination, from, to)).close(Outcome::Complete);
    let scrape = bench.scrape();
    let line = scrape.lines().find(|line| line.starts_with("istio_tcp_connections_opened_total")).unwrap();
    assert_eq!(line.matches("=\"unknown\"").count(), 24, "all but reporter, protocol and flags: {line}");
    assert!(!line.contains("=\"\""));
    let line = &bench.ended()[0];
    assert!(line.contains("src.addr=203.0.113.9:1 dst.addr=[fd00:198::2]:9080 direction=\"inbound\""), "{line}");
}

#[test]
fn hardening_b126_label_sets_past_the_cap_share_one_series() {
    let bench = Bench::new(LogFormat::Text, 8);
    for i in 0..1000 {
        let mut labels = labels(Reporter::Source);
        labels.destination = Peer::from(Arc::new(workload("bookinfo", &format!("w{i}x"), "p")));
        bench.telemetry.open(labels).close(Outcome::Complete);
    }
    assert_eq!(bench.telemetry.series_held(), 9);
    let scrape = bench.scrape();
    let overflow =
        |line: &&str| line.starts_with("istio_tcp_connections_opened_total") && line.contains("=\"overflow\"");
    assert!(scrape.lines().find(overflow).is_some_and(|line| line.ends_with(" 992")), "{scrape}");
    assert!(scrape.contains("mesh_telemetry_series_events_total{event=\"overflow\"} 992"));
    assert_eq!(bench.values("istio_tcp_connections_opened_total").iter().sum::<u64>(), 1000, "totals stay true");
}

#[test]
fn series_of_gone_workloads_expire_after_the_grace_time() {
    let bench = Bench::text();
    let grace = TelemetryConfig::default().grace;
    let mut store = Store::new();
    let (reviews, ratings) =
        (workload("bookinfo", "reviews", "reviews-abc"), workload("bookinfo", "ratings", "ratings-def"));
    let uid = ratings.uid.clone();
    let changes = vec![Change::Workload(reviews), Change::Workload(ratings), Change::Service(service())];
    let full = store.apply(changes).snapshot;
    let gone = store.apply(vec![Change::RemoveAddress(uid)]).snapshot;

    let open = bench.telemetry.open(labels(Reporter::Source));
    let later = |times: u32| Instant::now() + grace * times;
    assert_eq!(bench.telemetry.expire(&gone, later(2)), 0, "a connection is open");
    open.counters().sent.store(5, Relaxed);
    open.close(Outcome::Complete);
    assert_eq!(bench.telemetry.expire(&gone, Instant::now()), 0, "the last values are still to be scraped");
    assert_eq!(bench.telemetry.expire(&full, later(2)), 0, "quiet, but still there");
    assert_eq!(bench.values("istio_tcp_received_bytes_total"), [5]);
    assert_eq!(bench.telemetry.expire(&gone, later(2)), 1);
    assert_eq!(bench.telemetry.series_held(), 0);
    bench.telemetry.open(labels(Reporter::Source)).close(Outcome::Complete);
    assert_eq!(bench.values("istio_tcp_connections_opened_total"), [1], "back, it starts anew");
}

#[test]
fn replicas_and_new_configuration_share_the_series_of_their_labels() {
    let bench = Bench::text();
    for pod in ["a", "b", "c"] {
        let mut labels = labels(Reporter::Source);
        labels.destination = Peer::from(Arc::new(workload("bookinfo", "ratings", pod)));
        bench.telemetry.open(labels).close(Outcome::Complete);
    }
    assert_eq!(bench.values("istio_tcp_connections_opened_total"), [3]);
}

#[test]
fn features_tm_13_the_network_of_a_pair_is_told_under_its_labels_and_goes_with_its_workloads() {
    let bench = Bench::text();
    let mut store = Store::new();
    let (reviews, ratings) =
        (workload("bookinfo", "reviews", "reviews-abc"), workload("bookinfo", "ratings", "ratings-def"));
    let uid = ratings.uid.clone();
    let full = store.apply(vec![Change::Workload(reviews), Change::Workload(ratings)]).snapshot;
    let gone = store.apply(vec![Change::RemoveAddress(uid)]).snapshot;
    let guard = bench.telemetry.open(labels(Reporter::Destination));
    assert!(!bench.scrape().contains("undermesh_tcp"), "nobody has looked");
    guard.path().add(&Progress {
        sent: 7,
        retransmitted: 2,
        duplicates: 1,
        round_trip: Some(Duration::from_millis(2)),
    });
    guard.close(Outcome::Complete);
    let labels = "reporter=\"destination\",source_workload=\"reviews\",source_workload_namespace=\"bookinfo\",\
        source_principal=\"spiffe://cluster.local/ns/bookinfo/sa/reviews-sa\",source_cluster=\"Kubernetes\",\
        destination_workload=\"ratings\",destination_workload_namespace=\"bookinfo\",\
        destination_principal=\"spiffe://cluster.local/ns/bookinfo/sa/ratings-sa\",destination_cluster=\"Kubernetes\",\
        connection_security_policy=\"mutual_tls\"";
    let scrape = bench.scrape();
    for (family, value) in [
        ("undermesh_tcp_segments_total", "7"),
        ("undermesh_tcp_retransmitted_segments_total", "2"),
        ("undermesh_tcp_duplicate_segments_total", "1"),
        ("undermesh_tcp_rtt_seconds_count", "1"),
        ("undermesh_tcp_rtt_seconds_sum", "0.002"),
    ] {
        let line = format!("{family}{{{labels}}} {value}");
        assert!(scrape.lines().any(|l| l == line), "{line}\nin\n{scrape}");
    }
    let later = Instant::now() + TelemetryConfig::default().grace * 2;
    bench.telemetry.expire(&full, later);
    assert!(bench.scrape().contains("undermesh_tcp"), "quiet, but still there");
    bench.telemetry.expire(&gone, later);
    assert!(!bench.scrape().contains("undermesh_tcp"), "{}", bench.scrape());
}

#[test]
fn sockets_are_a_gauge() {
    let bench = Bench::text();
    let sockets = [bench.telemetry.socket(Reporter::Source), bench.telemetry.socket(Reporter::Source)];
    assert!(bench.scrape().contains("istio_tcp_sockets_open{reporter=\"source\"} 2"));
    drop(sockets);
    assert!(bench.scrape().contains("istio_tcp_sockets_open{reporter=\"source\"} 0"));
}

#[test]
fn hardening_f50_a_flood_of_denials_is_a_few_lines_and_exact_counts() {
    let bench = Bench::text();
    for _ in 0..10_000 {
        bench
            .telemetry
            .open(labels(Reporter::Destination))
            .close(Outcome::failed(ResponseFlags::Deny, "denied by ns/p"));
        let (from, to) = ("198.18.0.1:1".parse().unwrap(), "198.18.0.2:2".parse().unwrap());
        let (reporter, flags) = (Reporter::Destination, ResponseFlags::Deny);
        let refusal = Refusal { reporter, from, to, error: "strict", flags, protocol: "tcp" };
        bench.telemetry.refused(&refusal, || unreachable!("nobody taps"));
    }
    let lines = bench.lines();
    assert!(lines.iter().filter(|line| line.contains("\twarn\taccess\tconnection failed\tsrc.addr=")).count() >= 10);
    let failures = lines.iter().filter(|line| !line.contains("\tdebug\t")).count();
    // Twenty saved up and ten a second for each of the two kinds, on a machine that may be slow.
    assert!((40..1000).contains(&failures), "{failures} lines");
    assert_eq!(bench.values("istio_tcp_connections_failed_total"), [10_000]);
}

#[test]
fn features_tm_16_what_the_kernel_refuses_is_told_to_who_taps_one_of_its_ends() {
    use mesh_common::{Event, Reason};
    let (bench, mut store) = (Bench::text(), Store::new());
    let at = |address: &str, mut workload: Workload| {
        workload.addresses = vec![address.parse().unwrap()];
        Change::Workload(workload)
    };
    let snapshot = store
        .apply(vec![
            at("198.18.0.1", workload("front", "web", "web-1")),
            at("198.18.0.2", workload("bookinfo", "ratings", "ratings-def")),
        ])
        .snapshot;
    let event = |reason, protocol| Event {
        time: 0,
        cookie: 0,
        reason,
        protocol,
        source: "198.18.0.1".parse::<std::net::IpAddr>().unwrap().into(),
        destination: "198.18.0.2".parse::<std::net::IpAddr>().unwrap().into(),
        source_port: 1,
        destination_port: 9080,
    };
    let parties = |from, to| super::Parties::of(&snapshot, "", from, to);
    // Nobody taps: nothing is looked up.
    bench.telemetry.kernel_event(&event(Reason::StrictPlaintext, 6), |_, _| unreachable!("nobody taps"));
    for (query, reason, protocol, is_told) in [
        ("to=pod:bookinfo/ratings-def", Reason::StrictPlaintext, 6, true),
        ("to=workload:bookinfo/ratings&from=namespace:front", Reason::StrictPlaintext, 6, true),
        ("to=namespace:bookinfo&flag=DENY", Reason::StrictPlaintext, 6, true),
        ("to=namespace:bookinfo&flag=DENY", Reason::UdpRefused, 17, true),
        ("to=namespace:bookinfo&flag=CONNECT", Reason::PodClosed, 6, true),
        ("to=namespace:bookinfo&flag=DENY", Reason::PodClosed, 6, false),
        ("flag=-", Reason::StrictPlaintext, 6, false),
        ("flag=-", Reason::PodClosed, 6, false),
        ("to=namespace:front", Reason::StrictPlaintext, 6, false),
    ] {
        let selector = mesh_core::tap::Selector::parse(query).unwrap();
        let limits = mesh_runtime::tap::Limits { rate: 10, time: LIMIT };
        let open = bench.telemetry.taps().open(selector, limits).unwrap();
        bench.telemetry.kernel_event(&event(reason, protocol), parties);
        let told = open.counted().matched == 1;
        assert_eq!(told, is_told, "{query} {reason:?}");
    }
}

/// A sink that blocks until told to go on.
struct Blocked(Receiver<()>);

impl Write for Blocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_stands_still_costs_lines_not_time() {
    let mut registry = Registry::default();
    let (go, gate): (Sender<()>, Receiver<()>) = channel();
    let log = AccessLog::to_writer(LogFormat::Text, Box::new(Blocked(gate))).unwrap();
    let telemetry = Telemetry::with_log(&mut registry, &TelemetryConfig::default(), log);
    let started = Instant::now();
    for _ in 0..6000 {
        telemetry.open(labels(Reporter::Source)).close(Outcome::Complete);
    }
    assert!(started.elapsed() < LIMIT);
    assert!(telemetry.access_log().dropped() > 1000);
    assert!(mesh_runtime::metrics::encode(&registry).contains("mesh_access_log_dropped_total{reason=\"queue_full\"}"));
    drop(go);
    assert!(telemetry.access_log().flush(LIMIT), "and it goes on when the reader does");
}

#[test]
fn health_is_polled_when_scraped() {
    let bench = Bench::text();
    assert!(!bench.scrape().contains("mesh_bpf_map_entries"), "what is not there is not printed");
    let health = bench.telemetry.health();
    health
        .watch_kernel_counters(|| vec![(mesh_common::Reason::StrictPlaintext, 3), (mesh_common::Reason::EventLost, 2)]);
    health.watch_maps(|| vec![("PODS", 6, 4096)]);
    health.watch_tunnels(|| 4);
    health.watch_certificates(|| {
        vec![super::CertificateExpiry { identity: "spiffe://cluster.local/ns/a/sa/b".into(), not_after: 1_800_000_000 }]
    });
    health.watch_revocations(|| super::RevocationHealth {
        lists: 2,
        refused_servers: 3,
        refused_clients: 4,
        failures: 5,
    });
    bench.telemetry.workload_manager().started();
    let scrape = bench.scrape();
    for line in [
        "istio_crl_policy_rejections_total{reporter=\"source\"} 3",
        "istio_crl_policy_rejections_total{reporter=\"destination\"} 4",
        "istio_crl_untracked_connections_total{reporter=\"source\"} 0",
        "mesh_crl_lists 2",
        "mesh_crl_read_failures_total 5",
        "mesh_kernel_decisions_total{reason=\"strict_plaintext\"} 3",
        "mesh_bpf_ringbuf_dropped_total 2",
        "mesh_bpf_map_entries{map=\"PODS\"} 6",
        "mesh_bpf_map_max_entries{map=\"PODS\"} 4096",
        "mesh_tunnels_open 4",
        "mesh_workload_cert_expiry_timestamp_seconds{identity=\"spiffe://cluster.local/ns/a/sa/b\"} 1800000000",
        "workload_manager_active_proxy_count 1",
        "workload_manager_pending_proxy_count 0",
        "workload_manager_proxies_started_total 1",
        "workload_manager_proxies_stopped_total 0",
        concat!("istio_build{component=\"ztunnel\",tag=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(scrape.lines().any(|l| l == line), "{line}\nin\n{scrape}");
    }
}

#[test]
fn hardening_b108_values_with_quotes_and_line_ends_stay_one_sample() {
    let bench = Bench::text();
    let mut labels = labels(Reporter::Source);
    labels.destination = Peer::from(Arc::new(workload("b\"o\\ok", "x\n# EOF\nfake 1", "p")));
    bench.telemetry.open(labels).close(Outcome::Complete);
    let scrape = bench.scrape();
    assert_eq!(scrape.matches("# EOF\n").count(), 1);
    assert!(!scrape.lines().any(|line| line.starts_with("fake")));
    assert!(scrape.contains(r#"destination_workload_namespace="b\"o\\ok""#), "{scrape}");
}

/// Counting must not be what limits new connections. Not a benchmark: only a gross mistake fails it.
#[test]
fn opening_and_closing_is_cheap() {
    let bench = Bench::text();
    let shared = labels(Reporter::Source);
    let rounds = 20_000;
    let started = Instant::now();
    for _ in 0..rounds {
        bench.telemetry.open(shared.clone()).close(Outcome::Complete);
    }
    let each = started.elapsed() / rounds;
    assert!(each < Duration::from_micros(500), "{each:?} per connection");
}
