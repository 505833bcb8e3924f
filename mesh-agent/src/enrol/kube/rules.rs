//! What a pod's annotations and probes say that the mesh is to leave alone. Pure; called by [`super::facts`].
//!
//! Istio's names, and where its sidecar would have taken them from. What cannot be read never takes more out of the mesh than what can: an item of a
//! list of exceptions is passed over, a list of what alone is captured is passed over as a whole. Each of these is told.
//!
//! So is a probe or hook with a `host` that is not the pod's own. The kubelet calls it from the node, and where that leads to a port that another pod of the
//! node declares for a probe, the kernel cannot tell whose call it is: it passes the other pod's policies, and whoever may make a pod can have it
//! made. Only admission can refuse the field.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mesh_core::CaptureRules;

/// What comes from the network is left alone: for gateways of others.
const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
/// `false`: names are resolved without the mesh.
const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
/// Start of the names that a sidecar understands.
const SIDECAR: &str = "traffic.sidecar.istio.io/";
/// Of them, those that mean nothing here.
const NOT_HONOURED: [&str; 2] = ["excludeInterfaces", "kubevirtInterfaces"];
/// Interfaces of virtual machines or nested containers, whose packets would be taken for the pod's own. Hooks take sockets and not packets: what a guest
/// sends is forwarded, and no socket of the pod has it.
const REROUTE: &str = "istio.io/reroute-virtual-interfaces";
/// Of those that a pod has the kubelet call, how many are told, and how much of each name: the API server limits neither.
const MOST_HOSTS: usize = 8;
const LONGEST_HOST: usize = 253;

/// What a pod says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Said {
    /// The rules.
    pub rules: CaptureRules,
    /// Names are not to be resolved through the mesh.
    pub own_dns: bool,
    /// Whom its probes and hooks have the kubelet call besides itself and the node's loopback; of many, some.
    pub elsewhere: Vec<String>,
    /// What of it is not in force, or is not as it should be, for people.
    pub complaints: Vec<String>,
}

/// Reads a pod.
pub fn read(pod: &Pod) -> Said {
    let empty = BTreeMap::new();
    let mut reader =
        Reader { annotations: pod.metadata.annotations.as_ref().unwrap_or(&empty), complaints: Vec::new() };
    let Calls { own, elsewhere } = calls(pod);
    let rules = CaptureRules {
        probe_ports: reader.probe_ports(own),
        inbound_open: reader.truth(BYPASS_INBOUND) == Some(true),
        inbound_only: reader.only("includeInboundPorts", port),
        inbound_except: reader.items("excludeInboundPorts", port),
        outbound_only: reader.only("includeOutboundIPRanges", range),
        outbound_except: reader.items("excludeOutboundIPRanges", range),
        outbound_also: reader.items("includeOutboundPorts", port),
        outbound_except_ports: reader.items("excludeOutboundPorts", port),
    };
    let own_dns = reader.truth(DNS_CAPTURE) == Some(false);
    for name in NOT_HONOURED.map(|name| format!("{SIDECAR}{name}")) {
        if reader.annotations.contains_key(&name) {
            reader.complaints.push(format!(
                "annotation {name} has no effect: connections are captured, whatever interface they leave by"
            ));
        }
    }
    if reader.annotations.contains_key(REROUTE) {
        reader.complaints.push(format!(
            "annotation {REROUTE} has no effect: what guests of the pod send by interfaces of theirs is not in the mesh, and where STRICT holds it is refused"
        ));
    }
    let elsewhere: Vec<String> = elsewhere.into_iter().take(MOST_HOSTS).collect();
    if !elsewhere.is_empty() {
        let hosts = elsewhere.join(", ");
        let complaint = format!(
            "probes or hooks have the kubelet call {hosts}: a port that a pod there declares for a probe answers past its policies"
        );
        reader.complaints.push(complaint);
    }
    Said { rules, own_dns, elsewhere, complaints: reader.complaints }
}

struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    complaints: Vec<String>,
}

impl<'a> Reader<'a> {
    fn value(&self, name: &str) -> Option<&'a str> {
        self.annotations.get(name).map(|value| value.trim())
    }

    /// As Go reads it.
    fn truth(&mut self, name: &str) -> Option<bool> {
        match self.value(name)? {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            other => {
                let complaint = format!("annotation {name} is {other:?}, which is neither true nor false");
                self.complaints.push(complaint);
                None
            }
        }
    }

    /// A list of what alone is captured; none: everything is, as `*` says too. Nothing is only if nothing at all is written.
    fn only<T: Ord>(&mut self, name: &str, read: fn(&str) -> Option<T>) -> Option<Vec<T>> {
        let name = format!("{SIDECAR}{name}");
        let value = self.value(&name).filter(|value| *value != "*")?;
        let (items, bad) = list(value, read);
        let says_nothing = items.is_empty() && self.annotations.get(&name).is_some_and(|value| !value.is_empty());
        if bad.is_empty() && !says_nothing && items.len() <= CaptureRules::MOST {
            return Some(items);
        }
        self.complain(&name, &items, &bad, "so everything is captured");
        None
    }

    /// A list of exceptions, or of additions.
    fn items<T: Ord>(&mut self, name: &str, read: fn(&str) -> Option<T>) -> Vec<T> {
        let name = format!("{SIDECAR}{name}");
        let Some(value) = self.value(&name) else { return Vec::new() };
        let (items, bad) = list(value, read);
        let fits = items.len() <= CaptureRules::MOST;
        if !bad.is_empty() || !fits {
            self.complain(&name, &items, &bad, if fits { "which is passed over" } else { "so it has no effect" });
        }
        if fits { items } else { Vec::new() }
    }

    /// As many of the ports that the kubelet calls as there is room for.
    fn probe_ports(&mut self, ports: BTreeSet<u16>) -> Vec<u16> {
        let mut ports: Vec<u16> = ports.into_iter().collect();
        if let Some(dropped) = ports.get(CaptureRules::MOST..).filter(|dropped| !dropped.is_empty()) {
            let complaint = format!(
                "probes and hooks of the pod call {} of its ports: only those up to {} pass, the {} above meet the mesh's rules",
                ports.len(),
                ports[CaptureRules::MOST - 1],
                dropped.len(),
            );
            self.complaints.push(complaint);
        }
        ports.truncate(CaptureRules::MOST);
        ports
    }

    fn complain<T>(&mut self, name: &str, items: &[T], bad: &[&str], consequence: &str) {
        let what = match bad.first() {
            Some(item) => format!("cannot be read at {item:?}"),
            None if items.is_empty() => "has no item and is not empty".to_owned(),
            None => format!("has more than {} items", CaptureRules::MOST),
        };
        self.complaints.push(format!("annotation {name} {what}, {consequence}"));
    }
}

/// The items that can be read, and those that cannot.
fn list<T: Ord>(value: &str, read: fn(&str) -> Option<T>) -> (Vec<T>, Vec<&str>) {
    let (mut items, mut bad) = (BTreeSet::new(), Vec::new());
    for text in value.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        match read(text) {
            Some(item) => drop(items.insert(item)),
            None => bad.push(text),
        }
    }
    (items.into_iter().collect(), bad)
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

/// A lone address is a range of one.
fn range(text: &str) -> Option<IpNet> {
    IpNet::from_str(text).ok().map(|range| range.trunc()).or_else(|| IpAddr::from_str(text).ok().map(IpNet::from))
}

/// Where a pod has the kubelet call: for probes, and when a container starts or is to stop.
#[derive(Default)]
struct Calls {
    /// Ports of the pod itself.
    own: BTreeSet<u16>,
    /// Others, in quotes. The node's loopback is nobody's pod.
    elsewhere: BTreeSet<String>,
}

fn calls(pod: &Pod) -> Calls {
    let mut calls = Calls::default();
    let containers =
        pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    for container in containers {
        let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
        let hooks = container.lifecycle.iter().flat_map(|life| [&life.post_start, &life.pre_stop]).flatten();
        for (host, port) in probes.into_iter().flatten().filter_map(probed).chain(hooks.filter_map(hooked)) {
            match host.filter(|host| !host.is_empty() && !is_own(pod, host)) {
                None => calls.own.extend(number(container, &port)),
                Some(host) if is_loopback(host) => {}
                Some(host) => drop(calls.elsewhere.insert(format!("{:?}", shortened(host)))),
            }
        }
    }
    calls
}

fn probed(probe: &Probe) -> Option<(Option<&str>, IntOrString)> {
    let http = probe.http_get.as_ref().map(|get| (get.host.as_deref(), get.port.clone()));
    let tcp = || probe.tcp_socket.as_ref().map(|tcp| (tcp.host.as_deref(), tcp.port.clone()));
    let grpc = || probe.grpc.as_ref().map(|grpc| (None, IntOrString::Int(grpc.port)));
    http.or_else(tcp).or_else(grpc)
}

fn hooked(hook: &LifecycleHandler) -> Option<(Option<&str>, IntOrString)> {
    let http = hook.http_get.as_ref().map(|get| (get.host.as_deref(), get.port.clone()));
    http.or_else(|| hook.tcp_socket.as_ref().map(|tcp| (tcp.host.as_deref(), tcp.port.clone())))
}

fn is_own(pod: &Pod, host: &str) -> bool {
    pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten()).any(|ip| ip.ip == host)
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback())
}

fn shortened(host: &str) -> &str {
    host.char_indices().nth(LONGEST_HOST).map_or(host, |(end, _)| &host[..end])
}

/// A port may be named, by a port of the same container.
fn number(container: &Container, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())?
        }
    };
    u16::try_from(number).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said(annotations: &[(&str, &str)]) -> Said {
        let annotations: BTreeMap<&str, &str> = annotations.iter().copied().collect();
        let pod: Pod = serde_json::from_value(json!({ "metadata": { "annotations": annotations } })).unwrap();
        read(&pod)
    }

    fn nets(text: &[&str]) -> Vec<IpNet> {
        text.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn features_en11_the_annotations_of_sidecars() {
        let all = said(&[
            ("traffic.sidecar.istio.io/includeInboundPorts", "80, 443"),
            ("traffic.sidecar.istio.io/excludeInboundPorts", "9090,9090,15020"),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", "198.18.0.0/16,fd00:198::1"),
            ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "198.18.3.7/24"),
            ("traffic.sidecar.istio.io/includeOutboundPorts", "5432"),
            ("traffic.sidecar.istio.io/excludeOutboundPorts", "3306,"),
        ]);
        let expected = CaptureRules {
            inbound_only: Some(vec![80, 443]),
            inbound_except: vec![9090, 15_020],
            outbound_only: Some(nets(&["198.18.0.0/16", "fd00:198::1/128"])),
            outbound_except: nets(&["198.18.3.0/24"]),
            outbound_also: vec![5432],
            outbound_except_ports: vec![3306],
            ..CaptureRules::default()
        };
        assert_eq!(all, Said { rules: expected, ..Said::default() });
        // A star is what holds anyway; nothing at all is nothing captured.
        let star = said(&[
            ("traffic.sidecar.istio.io/includeInboundPorts", "*"),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", " * "),
        ]);
        assert_eq!(star, Said::default());
        let none = said(&[
            ("traffic.sidecar.istio.io/includeInboundPorts", ""),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", ""),
        ]);
        assert_eq!((none.rules.inbound_only, none.rules.outbound_only), (Some(vec![]), Some(vec![])));
    }

    #[test]
    fn features_en9_pl1_the_annotations_of_ambient() {
        for (value, expected) in [("true", true), ("1", true), ("True", true), ("false", false), ("0", false)] {
            let read = said(&[(BYPASS_INBOUND, value), (DNS_CAPTURE, value)]);
            let rules = CaptureRules { inbound_open: expected, ..CaptureRules::default() };
            assert_eq!(read, Said { rules, own_dns: !expected, ..Said::default() }, "{value}");
        }
        for value in ["", "yes", "TrUe"] {
            let read = said(&[(BYPASS_INBOUND, value), (DNS_CAPTURE, value)]);
            assert_eq!((read.rules, read.own_dns), (CaptureRules::default(), false), "{value}");
            assert_eq!(read.complaints.len(), 2, "{value}");
        }
    }

    #[test]
    fn what_cannot_be_read_takes_nothing_out_of_the_mesh() {
        let many = (1..=CaptureRules::MOST + 1).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        let none = CaptureRules::default;
        let except = |list: &[u16]| CaptureRules { outbound_except_ports: list.to_vec(), ..none() };
        let rows = [
            ("includeInboundPorts", "80,x", none(), "everything is captured"),
            ("includeInboundPorts", "80,*", none(), "everything is captured"),
            ("includeOutboundIPRanges", "198.18.0.0/33", none(), "everything is captured"),
            ("includeInboundPorts", &many, none(), "everything is captured"),
            ("includeInboundPorts", ",", none(), "has no item and is not empty, so everything is captured"),
            ("includeOutboundIPRanges", " , ,", none(), "has no item and is not empty, so everything is captured"),
            ("includeInboundPorts", " ", none(), "has no item and is not empty, so everything is captured"),
            ("excludeOutboundPorts", "0,65536,-1,3306", except(&[3306]), "\"0\", which is passed over"),
            ("excludeOutboundPorts", &many, none(), "has no effect"),
            ("excludeOutboundIPRanges", "example.org", none(), "passed over"),
            ("excludeInterfaces", "eth1", none(), "has no effect"),
        ];
        for (name, value, rules, complaint) in rows {
            let read = said(&[(&format!("{SIDECAR}{name}"), value)]);
            assert_eq!(read.rules, rules, "{name}: {value}");
            assert!(matches!(&read.complaints[..], [one] if one.contains(complaint)), "{name}: {:?}", read.complaints);
        }
    }

    #[test]
    fn features_en10_en11_interfaces_are_told_to_have_no_effect() {
        for (name, complaint) in [
            ("traffic.sidecar.istio.io/excludeInterfaces", "whatever interface they leave by"),
            ("traffic.sidecar.istio.io/kubevirtInterfaces", "whatever interface they leave by"),
            (
                "istio.io/reroute-virtual-interfaces",
                "what guests of the pod send by interfaces of theirs is not in the mesh",
            ),
        ] {
            let read = said(&[(name, "eth1")]);
            assert_eq!(read.rules, CaptureRules::default(), "{name}: it takes nothing out of the mesh");
            assert!(matches!(&read.complaints[..], [one] if one.contains(complaint)), "{name}: {:?}", read.complaints);
        }
    }

    #[test]
    fn features_pl5_what_the_kubelet_asks() {
        let ports = |containers: Value, init: Value| {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {}, "spec": { "containers": containers, "initContainers": init },
                "status": { "podIPs": [{ "ip": "198.18.0.2" }] },
            }))
            .unwrap();
            read(&pod).rules.probe_ports
        };
        let get = |port: Value| json!({ "httpGet": { "port": port } });
        let named = json!([
            { "name": "a", "ports": [{ "name": "http", "containerPort": 8080 }, { "containerPort": 7777 }],
              "livenessProbe": get(json!("http")), "readinessProbe": { "tcpSocket": { "port": 9000 } },
              "startupProbe": { "grpc": { "port": 9001 } } },
            { "name": "b", "readinessProbe": get(json!("http")), "livenessProbe": { "exec": { "command": ["true"] } } },
        ]);
        // The other container has no port of that name.
        assert_eq!(ports(named, json!([])), [8080, 9000, 9001]);
        let sidecar = json!([{ "name": "s", "restartPolicy": "Always", "startupProbe": get(json!(9002)) }]);
        assert_eq!(ports(json!([]), sidecar), [9002]);
        let hooks = json!([{ "name": "a", "lifecycle": {
            "postStart": { "httpGet": { "port": 81 } }, "preStop": { "tcpSocket": { "port": "82" } } } }]);
        assert_eq!(ports(hooks, json!([])), [81, 82]);
        // Somebody else is asked, or nobody can be.
        let strange = json!([
            { "name": "a", "livenessProbe": { "httpGet": { "port": 80, "host": "198.18.9.9" } },
              "readinessProbe": { "tcpSocket": { "port": 81, "host": "198.18.0.2" } }, "startupProbe": get(json!(0)) },
            { "name": "b", "livenessProbe": get(json!(70_000)), "readinessProbe": { "grpc": { "port": -1 } } },
        ]);
        assert_eq!(ports(strange, json!([])), [81]);
    }

    #[test]
    fn features_pl5_more_probes_than_there_is_room_for_are_told() {
        let of = |count: usize| {
            let get =
                |port: usize| json!({ "name": port.to_string(), "livenessProbe": { "httpGet": { "port": port } } });
            let containers: Vec<Value> = (1..=count).map(get).collect();
            let pod = json!({ "metadata": {}, "spec": { "containers": containers } });
            read(&serde_json::from_value(pod).unwrap())
        };
        let (fits, more) = (of(CaptureRules::MOST), of(CaptureRules::MOST + 6));
        assert_eq!((fits.rules.probe_ports.len(), fits.complaints.len()), (CaptureRules::MOST, 0));
        assert_eq!(more.rules, fits.rules);
        assert!(matches!(&more.complaints[..], [one] if one.contains("call 70 of its ports")), "{:?}", more.complaints);
        assert!(more.complaints[0].contains("up to 64 pass, the 6 above meet"), "{:?}", more.complaints);
    }

    #[test]
    fn features_pl5_probes_and_hooks_that_call_others_are_told() {
        let with = |container: Value| {
            let pod = json!({
                "metadata": {}, "spec": { "containers": [], "initContainers": [container] },
                "status": { "podIPs": [{ "ip": "198.18.0.2" }, { "ip": "fd00:198::2" }] },
            });
            read(&serde_json::from_value(pod).unwrap())
        };
        let http = |host: &str| json!({ "httpGet": { "port": 80, "host": host } });
        let tcp = |host: &str| json!({ "tcpSocket": { "port": 80, "host": host } });
        for own in ["", "198.18.0.2", "fd00:198::2", "localhost", "127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            let all = json!({ "name": "a", "livenessProbe": http(own), "lifecycle": { "preStop": tcp(own) } });
            assert_eq!((with(all.clone()).elsewhere, with(all).complaints), (vec![], vec![]), "{own}");
        }
        for other in ["198.18.9.9", "fd00:198::9", "web.shop.svc", "localhost.evil", "0.0.0.0"] {
            for way in ["livenessProbe", "readinessProbe", "startupProbe", "postStart", "preStop"] {
                for call in [http(other), tcp(other)] {
                    let said = with(match way {
                        "postStart" | "preStop" => json!({ "name": "a", "lifecycle": { way: call } }),
                        _ => json!({ "name": "a", way: call }),
                    });
                    assert_eq!(
                        (&said.elsewhere, said.rules.probe_ports.len()),
                        (&vec![format!("{other:?}")], 0),
                        "{way}"
                    );
                    let complains = matches!(&said.complaints[..], [one] if one.contains(other));
                    assert!(complains, "{way}: {:?}", said.complaints);
                }
            }
        }
        // What is said of them has an end, and is one line.
        let long = with(json!({ "name": "a", "livenessProbe": http(&format!("a\n{}", "x".repeat(100_000))) }));
        assert!(long.complaints.concat().len() < 500 && !long.complaints.concat().contains('\n'));
        let probe = |n: usize| json!({ "name": "a", "livenessProbe": http(&format!("198.18.9.{n}")) });
        let containers: Vec<Value> = (0..100).map(probe).collect();
        let many = json!({ "metadata": {}, "spec": { "containers": containers } });
        assert_eq!(read(&serde_json::from_value(many).unwrap()).elsewhere.len(), MOST_HOSTS);
    }
}
