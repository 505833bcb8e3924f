//! Where connections go without a waypoint: TCPRoute, TLSRoute and the `tcp` and `tls` rules of VirtualServices, acted on by the client's agent, on real
//! processes and with real edits of manifests; and what agents tell of how the network carries them.

#![expect(non_snake_case, reason = "tests carry the ids of their rows")]

use anyhow::{Result, ensure};
use mesh_tests::harness::metrics::Metrics;
use mesh_tests::harness::routing::{connection_route, connections_of};
use mesh_tests::harness::waypoint::USE_WAYPOINT;
use mesh_tests::harness::{Lab, LabConfig, Need, Pod, PodSpec, Process, ServiceSpec, eventually, in_lab, until};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);
/// curl's code for a connection that was reset: what a refusing route does.
const RESET: i32 = 56;

/// What is there: a client and two versions of a server, one of which is on the client's node.
struct Stage {
    lab: Lab,
    client: Arc<Pod>,
    _pods: Vec<Arc<Pod>>,
    servers: Vec<Process>,
}

/// Servers that say `one` and `two`: on port 9000 to each line, on port 9443 as soon as anybody connects. `echo` has both, `echo-v1` and `echo-v2` one each.
fn stage() -> Result<Stage> {
    let lab = Lab::with_mesh(LabConfig::default())?;
    let client = lab.add_pod(PodSpec::new("client"))?;
    let mut pods = vec![client.clone()];
    let mut servers = Vec::new();
    for (node, version, says) in [(1, "v1", "one"), (2, "v2", "two")] {
        let name = format!("echo-{version}");
        let spec = PodSpec::new(&name).label("app", "echo").label("version", version).node(node);
        let pod = lab.add_pod(spec)?;
        servers.push(pod.serve(["tcp-echo", "--port", "9000", "--prefix", says])?);
        servers.push(pod.serve(["banner", "--port", "9443", "--text", says])?);
        pods.push(pod);
        let service = ServiceSpec::new(&name).selector(&[("app", "echo"), ("version", version)]);
        lab.add_service(service.port("tcp", 9000, 9000).port("tls", 9443, 9443))?;
    }
    lab.add_service(ServiceSpec::new("echo").port("tcp", 9000, 9000).port("tls", 9443, 9443))?;
    lab.enrol_namespace("default")?;
    lab.wait_hbone(&pods.iter().map(|pod| &**pod).collect::<Vec<_>>())?;
    Ok(Stage { lab, client, _pods: pods, servers })
}

impl Stage {
    /// Who answers a connection to `echo`, or curl's code.
    fn ask(&self) -> Result<String> {
        self.ask_from(&self.client)
    }

    fn ask_from(&self, client: &Pod) -> Result<String> {
        let answer = client.lab(["send", "echo", "9000", "x"])?;
        Ok(if answer.code == 0 { answer.stdout.trim_end_matches(" x\n").to_owned() } else { answer.code.to_string() })
    }

    /// A connection that says nothing and stays, once it is there.
    fn hold(&self) -> Result<Process> {
        let held = self.client.start("hold", "lab", ["probe", "echo", "9000", "--hold-ms", "60000"])?;
        until("the connection that stays is there", SOON, || self.open(0) + self.open(2) == 1)?;
        Ok(held)
    }

    /// Connections that are open at one of the servers.
    fn open(&self, server: usize) -> usize {
        let log = self.servers[server].stdout();
        let count = |what: &str| log.lines().filter(|line| line.starts_with(what)).count();
        count("connection port=9000").saturating_sub(count("end port=9000"))
    }

    /// Who answers so many connections.
    fn count(&self, connections: u32) -> Result<BTreeMap<String, u32>> {
        let mut counts = BTreeMap::new();
        for _ in 0..connections {
            *counts.entry(self.ask()?).or_default() += 1;
        }
        Ok(counts)
    }

    /// Waits until eight connections one after the other are all answered so.
    fn becomes(&self, who: &str) -> Result<()> {
        eventually(&format!("all are answered by {who}"), SOON, || {
            let counts = self.count(8)?;
            ensure!(counts == BTreeMap::from([(who.to_owned(), 8)]), "{counts:?}");
            Ok(())
        })
    }

    /// Waits until about `percent` of connections are answered by `two`, and all others by `one`.
    fn shares(&self, percent: u32) -> Result<()> {
        eventually(&format!("{percent} of a hundred are answered by two"), SOON, || {
            let counts = self.count(60)?;
            let (one, two) = (counts.get("one").copied().unwrap_or(0), counts.get("two").copied().unwrap_or(0));
            // Three and a half standard deviations of 20 %.
            let expected = 60 * percent / 100;
            ensure!(one + two == 60 && two.abs_diff(expected) <= 11 && two > 0, "{counts:?}");
            Ok(())
        })
    }

    /// Who answers TLS for a name; curl's code if nobody does.
    fn name(&self, name: &str) -> Result<String> {
        let answer = self.client.lab(["hello", "echo", "9443", name])?;
        Ok(if answer.code == 0 { answer.stdout.trim_end().to_owned() } else { answer.code.to_string() })
    }

    /// Waits until names lead there, four times each.
    fn names(&self, wanted: &[(&str, &str)]) -> Result<()> {
        eventually(&format!("{wanted:?}"), SOON, || {
            for (name, who) in wanted.iter().chain(wanted).chain(wanted).chain(wanted) {
                let answer = self.name(name)?;
                ensure!(answer == *who, "{name} is answered by {answer}");
            }
            Ok(())
        })
    }
}

#[test]
fn features_B7_tcp_is_shifted_by_weight_and_a_connection_stays_where_it_is() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = stage()?;
        stage.shares(50)?;
        let to = |one: u32, two: u32| {
            let place = |host: &str, weight| format!("{{destination: {{host: {host}}}, weight: {weight}}}");
            format!("{{match: [{{port: 9000}}], route: [{}, {}]}}", place("echo-v1", one), place("echo-v2", two))
        };
        stage.lab.apply("route", &connections_of(&["echo"], "tcp", &[&to(100, 0)]))?;
        stage.becomes("one")?;
        let held = stage.hold()?;
        stage.lab.apply("route", &connections_of(&["echo"], "tcp", &[&to(80, 20)]))?;
        stage.shares(20)?;
        stage.lab.apply("route", &connections_of(&["echo"], "tcp", &[&to(0, 100)]))?;
        stage.becomes("two")?;
        ensure!(held.running() && stage.open(0) == 1, "a change of routes must not cut what is open: {}", held.log());
        held.kill();
        // What leads nowhere is refused, not sent somewhere else.
        let nowhere = "{match: [{port: 9000}], route: [{destination: {host: nothing}}]}";
        stage.lab.apply("route", &connections_of(&["echo"], "tcp", &[nowhere]))?;
        stage.becomes(&RESET.to_string())?;
        stage.lab.delete("route")?;
        stage.shares(50)
    })
}

#[test]
fn features_B7_tcp_is_shifted_by_a_tcp_route() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = stage()?;
        let to = |one: u32, two: u32| {
            let place = |name: &str, weight| format!("{{name: {name}, port: 9000, weight: {weight}}}");
            format!("{{backendRefs: [{}, {}]}}", place("echo-v1", one), place("echo-v2", two))
        };
        stage.lab.apply("route", &connection_route("echo", &[], &[&to(1, 0)]))?;
        stage.becomes("one")?;
        stage.lab.apply("route", &connection_route("echo", &[], &[&to(8, 2)]))?;
        stage.shares(20)?;
        stage.lab.apply("route", &connection_route("echo", &[], &[&to(0, 1)]))?;
        stage.becomes("two")?;
        stage.lab.apply("route", &connection_route("echo", &[], &[&to(0, 0)]))?;
        stage.becomes(&RESET.to_string())?;
        stage.lab.delete("route")?;
        stage.shares(50)
    })
}

/// By the labels of the client, in its agent and, where the service has one, in its waypoint; labels that a pod gets and loses count as they come.
#[test]
fn features_VS_21_tcp_goes_by_the_labels_of_the_client() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = stage()?;
        let web = stage.lab.add_pod(PodSpec::new("web").label("app", "web").label("tier", "front").node(2))?;
        stage.lab.enrol(&web)?;
        stage.lab.wait_hbone(&[&web])?;
        let to = |condition: &str, host: &str| {
            format!("{{match: [{{port: 9000{condition}}}], route: [{{destination: {{host: {host}}}}}]}}")
        };
        let labels = ", sourceLabels: {app: web, tier: front}, sourceNamespace: default";
        let rules = [to(labels, "echo-v2"), to("", "echo-v1")];
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        let goes_by_labels = |way: &str| {
            eventually(&format!("connections go by labels {way}"), SOON, || {
                for _ in 0..6 {
                    let answers = [stage.ask_from(&web)?, stage.ask()?];
                    ensure!(answers == ["two", "one"], "{answers:?}");
                }
                Ok(())
            })
        };
        stage.lab.apply("route", &connections_of(&["echo"], "tcp", &rules))?;
        goes_by_labels("at agents")?;
        // Nobody has the other label: the rule means nobody.
        let nobody = [to(", sourceLabels: {app: web, tier: back}", "nothing"), to("", "echo-v1")];
        let nobody: Vec<&str> = nobody.iter().map(String::as_str).collect();
        stage.lab.apply("route", &connections_of(&["echo"], "tcp", &nobody))?;
        eventually("the rule means nobody", SOON, || {
            let answer = stage.ask_from(&web)?;
            ensure!(answer == "one", "{answer}");
            Ok(())
        })?;
        stage.lab.apply("route", &connections_of(&["echo"], "tcp", &rules))?;
        stage.lab.add_gateway("default", "waypoint", "undermesh-waypoint", &Default::default())?;
        let waypoint = stage.lab.start_waypoint("default", "waypoint", 2)?;
        stage.lab.label_service("default", "echo", USE_WAYPOINT, Some("waypoint"))?;
        eventually("the waypoint carries connections", SOON, || {
            stage.ask()?;
            ensure!(waypoint.metrics()?.sum("istio_tcp_connections_opened_total", &[]) > 0.0, "none yet");
            Ok(())
        })?;
        goes_by_labels("at a waypoint")
    })
}

#[test]
fn features_VS_20_tls_goes_by_its_name_and_stays_as_it_is() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = stage()?;
        let rule = |name: &str, to: &str| {
            format!("{{match: [{{port: 9443, sniHosts: ['{name}']}}], route: [{{destination: {{host: {to}}}}}]}}")
        };
        let hosts = ["echo", "a.example", "'*.b.example'"];
        let rules = [rule("a.example", "echo-v1"), rule("*.b.example", "echo-v2")];
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        stage.lab.apply("route", &connections_of(&hosts, "tls", &rules))?;
        stage.names(&[("a.example", "one"), ("x.b.example", "two")])?;
        // In Istio's way a name that no rule has goes where it would without any; so does who lets the server begin.
        let banner = stage.client.lab(["listen", "echo", "9443", "--timeout", "12"])?;
        ensure!(["one", "two"].contains(&banner.stdout.split(' ').next().unwrap_or_default()), "{banner:?}");
        let swapped = [rule("a.example", "echo-v2"), rule("*.b.example", "echo-v1")];
        let swapped: Vec<&str> = swapped.iter().map(String::as_str).collect();
        stage.lab.apply("route", &connections_of(&hosts, "tls", &swapped))?;
        stage.names(&[("a.example", "two"), ("x.b.example", "one")])
    })
}

#[test]
fn features_GA_5_tls_goes_by_the_names_of_tls_routes() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = stage()?;
        let to = |name: &str| format!("{{backendRefs: [{{name: {name}, port: 9443}}]}}");
        let second =
            connection_route("echo", &["'*.example'"], &[&to("echo-v2")]).replace("name: echo\n", "name: wide\n");
        stage.lab.apply("route", &connection_route("echo", &["a.example"], &[&to("echo-v1")]))?;
        stage.names(&[("a.example", "one"), ("x.example", &RESET.to_string())])?;
        stage.lab.apply("wide", &second)?;
        stage.names(&[("a.example", "one"), ("x.example", "two"), ("other.test", &RESET.to_string())])?;
        stage.lab.delete("route")?;
        stage.names(&[("a.example", "two")])
    })
}

/// A DestinationRule for `echo` with a subset for each version.
fn destination_rule(policy: &str) -> String {
    let subsets = "[{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]";
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: echo, namespace: default}}\nspec: {{host: echo, subsets: {subsets}, trafficPolicy: {policy}}}\n"
    )
}

#[test]
fn features_B7_tcp_is_shifted_between_subsets() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = stage()?;
        let to = |one: u32, two: u32| {
            let place =
                |subset: &str, weight| format!("{{destination: {{host: echo, subset: {subset}}}, weight: {weight}}}");
            format!("{{match: [{{port: 9000}}], route: [{}, {}]}}", place("v1", one), place("v2", two))
        };
        stage.lab.apply("route", &connections_of(&["echo"], "tcp", &[&to(100, 0)]))?;
        // Nobody guesses who is of a subset that nobody has described.
        stage.becomes(&RESET.to_string())?;
        stage.lab.apply("rule", &destination_rule("{}"))?;
        stage.becomes("one")?;
        stage.lab.apply("route", &connections_of(&["echo"], "tcp", &[&to(80, 20)]))?;
        stage.shares(20)?;
        // A pod that comes is of its subset, one that goes is not any more.
        let third = stage.lab.add_pod(PodSpec::new("echo-third").label("app", "echo").label("version", "v1"))?;
        let _server = third.serve(["tcp-echo", "--port", "9000", "--prefix", "three"])?;
        stage.lab.enrol(&third)?;
        stage.lab.wait_hbone(&[&third])?;
        stage.lab.apply("route", &connections_of(&["echo"], "tcp", &[&to(1, 0)]))?;
        eventually("the new pod takes its part", SOON, || {
            let counts = stage.count(12)?;
            let is_of_v1 = |who: &String| ["one", "three"].contains(&who.as_str());
            ensure!(counts.len() == 2 && counts.keys().all(is_of_v1), "{counts:?}");
            Ok(())
        })?;
        stage.lab.remove_pod(&third)?;
        stage.becomes("one")
    })
}

#[test]
fn features_DR_9_connections_are_limited_without_a_waypoint() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = stage()?;
        stage.shares(50)?;
        stage.lab.apply("rule", &destination_rule("{loadBalancer: {consistentHash: {useSourceIp: true}}}"))?;
        eventually("the same client goes to the same endpoint", SOON, || {
            let counts = stage.count(8)?;
            ensure!(counts.len() == 1 && !counts.contains_key("56"), "{counts:?}");
            Ok(())
        })?;
        stage
            .lab
            .apply("rule", &destination_rule("{connectionPool: {tcp: {maxConnections: 1, connectTimeout: 2s}}}"))?;
        let held = stage.hold()?;
        stage.becomes(&RESET.to_string())?;
        ensure!(held.running(), "{}", held.log());
        held.kill();
        eventually("there is room again", SOON, || {
            let counts = stage.count(4)?;
            ensure!(!counts.contains_key("56"), "{counts:?}");
            Ok(())
        })?;
        stage.lab.delete("rule")?;
        stage.shares(50)
    })
}

#[test]
fn features_EX_5_agents_heed_the_mesh_for_services_without_a_rule() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = stage()?;
        let settings = |mesh: &str| {
            let head = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: undermesh, namespace: undermesh-system}\n";
            stage.lab.apply("settings", &format!("{head}data:\n  mesh: |\n    {mesh}\n"))
        };
        stage.shares(50)?;
        // No endpoint is there: who heeds it reaches none.
        settings("localityLbSetting: {distribute: [{from: \"*\", to: {nowhere: 100}}]}")?;
        stage.becomes(&RESET.to_string())?;
        settings("connectTimeout: 3s")?;
        stage.shares(50)
    })
}

/// One pod hangs on a line that is slow and drops what does not fit; its neighbour and a stranger do not.
#[test]
fn features_TM_13_what_the_network_loses_is_told_of_the_pair_that_it_is_lost_to() -> Result<()> {
    in_lab(Need::Congestion, || {
        let lab = Lab::with_mesh(LabConfig::default())?;
        let pod = |name: &str, node| lab.add_pod(PodSpec::new(name).service_account(name).node(node));
        let (slow, quick, server) = (pod("slow", 1)?, pod("quick", 1)?, pod("server", 2)?);
        let _app = server.serve(["canned", "--port", "8080", "--bytes", "100000"])?;
        lab.enrol_namespace("default")?;
        lab.wait_hbone(&[&slow, &quick, &server])?;
        lab.namespace("strange", &[])?;
        let stranger = lab.add_pod(PodSpec::new("stranger").namespace("strange").node(1))?;
        slow.congest(200_000, 30_000)?;
        let url = format!("http://{}:8080/", server.address.v4);
        // Tunnels are looked at while they are open: after five seconds, and then at each PING.
        eventually("the agents tell of losses", Duration::from_secs(60), || {
            for pod in [&slow, &quick, &stranger] {
                let loaded = pod.get(&url)?;
                ensure!(loaded.code == 0, "{}: {loaded:?}", pod.name);
            }
            let of = |node: u8, labels: &[(&str, &str)]| Health::of(&lab.node(node).agent()?.metrics()?, labels);
            let (slow_id, quick_id, server_id) = (slow.identity(), quick.identity(), server.identity());
            let tunnel = |reporter, source, principal| {
                [
                    ("reporter", reporter),
                    ("source_workload", source),
                    ("source_workload_namespace", "default"),
                    ("source_principal", principal),
                    ("destination_workload", "server"),
                    ("destination_workload_namespace", "default"),
                    ("destination_principal", &server_id),
                    ("connection_security_policy", "mutual_tls"),
                ]
            };
            // The answers are what is long, and the server's agent sends them.
            let lossy = of(2, &tunnel("destination", "slow", &slow_id))?;
            ensure!(lossy.lost >= 20.0 && lossy.segments > 2.0 * lossy.lost, "{lossy:?}");
            ensure!((0.03..1.0).contains(&lossy.round_trip), "a queue of 150 ms: {lossy:?}");
            let strange = [
                ("reporter", "destination"),
                ("source_workload", "stranger"),
                ("source_workload_namespace", "strange"),
                ("source_principal", "unknown"),
                ("destination_workload", "server"),
                ("connection_security_policy", "unknown"),
            ];
            for (what, node, labels) in [
                ("its neighbour", 2, &tunnel("destination", "quick", &quick_id)[..]),
                ("a stranger, in plaintext", 2, &strange[..]),
                ("what it sends itself, the other way", 1, &tunnel("source", "slow", &slow_id)[..]),
            ] {
                let sound = of(node, labels)?;
                ensure!(sound.segments > 0.0 && sound.lost * 10.0 <= lossy.lost, "{what}: {sound:?}, {lossy:?}");
                // Acknowledgements of what it sends wait in the queue, too.
                let is_near = what.contains("other way") || sound.round_trip * 2.0 < lossy.round_trip;
                ensure!(sound.round_trip > 0.0 && is_near, "{what}: {sound:?}, {lossy:?}");
            }
            let all = of(2, &[])?;
            ensure!((all.lost - lossy.lost) * 10.0 <= lossy.lost, "others lose, too: {all:?}, {lossy:?}");
            ensure!(of(2, &[("source_principal", &server_id)])? == Health::default(), "it calls nobody");
            Ok(())
        })
    })
}

/// What an agent tells of the network between some ends.
#[derive(Debug, Default, PartialEq)]
struct Health {
    segments: f64,
    /// Sent again, and not because somebody had thought so.
    lost: f64,
    /// The mean, in seconds.
    round_trip: f64,
}

impl Health {
    fn of(metrics: &Metrics, labels: &[(&str, &str)]) -> Result<Health> {
        let sum = |name: &str| metrics.sum(&format!("undermesh_tcp_{name}"), labels);
        let (sent_again, duplicates) = (sum("retransmitted_segments_total"), sum("duplicate_segments_total"));
        let (measured, buckets) =
            (sum("rtt_seconds_count"), metrics.select("undermesh_tcp_rtt_seconds_bucket", labels));
        let in_buckets: f64 = buckets.filter(|one| one.labels["le"] == "+Inf").map(|one| one.value).sum();
        ensure!(measured == in_buckets, "{measured} in all, {in_buckets} in buckets");
        Ok(Health {
            segments: sum("segments_total"),
            lost: (sent_again - duplicates).max(0.0),
            round_trip: sum("rtt_seconds_sum") / measured.max(1.0),
        })
    }
}
