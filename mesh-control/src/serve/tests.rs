//! Sessions by script: requests and worlds in, responses out, no sockets.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_core::policy::{Action as PolicyAction, Policy, Scope};
use mesh_core::workload::PortMapping;
use mesh_core::{NamespacedName, Service, Workload};
use mesh_proto::discovery as wire;

use super::session::{Action, MAX_VERSIONS, Session};
use crate::index::View;
use crate::world::{Audience, Kind, World, version_text};

/// A view with these workloads (name, address), each a member of the services, and these policies.
pub(super) fn view(workloads: &[(&str, &str)], services: &[(&str, &str)], policies: &[&str]) -> View {
    let mut view = View::default();
    for (name, address) in services {
        let mut service = Service::new("shop", *name, format!("{name}.shop.svc.cluster.local"));
        service.addresses = vec![mesh_core::service::ServiceAddress {
            network: "".into(),
            cidr: format!("{address}/32").parse().unwrap(),
        }];
        view.services.insert(service.key(), Arc::new(service));
    }
    for (name, address) in workloads {
        let mut workload = Workload::new(*name, "shop", *name);
        workload.addresses = vec![address.parse().unwrap()];
        let ports = vec![PortMapping { service_port: 80, target_port: 80 }];
        workload.services = Arc::new(view.services.keys().map(|k| (k.clone(), ports.clone())).collect());
        workload.authorization_policies = policies.iter().map(|p| NamespacedName::new("shop", *p)).collect();
        view.workloads.insert(workload.uid.clone(), Arc::new(workload));
    }
    for name in policies {
        let name = NamespacedName::new("shop", *name);
        let policy = Policy {
            name: name.clone(),
            scope: Scope::WorkloadSelector,
            action: PolicyAction::Deny,
            rules: vec![],
            dry_run: false,
        };
        view.policies.insert(name, Arc::new(policy));
    }
    view
}

pub(super) struct Script {
    pub(super) session: Session,
    world: Arc<World>,
    nonce: HashMap<String, String>,
}

impl Script {
    fn new(first: &View) -> Self {
        Self::of(first, Audience::Agent)
    }

    pub(super) fn of(first: &View, audience: Audience) -> Self {
        let world = Arc::new(World::default().next(&Arc::new(first.clone())));
        Self { session: Session::new(world.clone(), audience), world, nonce: HashMap::new() }
    }

    fn request(kind: Kind) -> wire::DeltaDiscoveryRequest {
        wire::DeltaDiscoveryRequest { type_url: kind.url().into(), ..Default::default() }
    }

    /// What goes out, as `kind +added -removed`.
    fn told(&mut self, actions: Vec<Action>) -> Vec<String> {
        let mut lines = Vec::new();
        for action in actions {
            match action {
                Action::Send(r) => {
                    let mut r = r.message();
                    r.resources.sort_by(|a, b| a.name.cmp(&b.name));
                    r.removed_resources.sort();
                    self.nonce.insert(r.type_url.clone(), r.nonce.clone());
                    let kind = r.type_url.rsplit('.').next().unwrap_or_default().to_lowercase();
                    let mut line = kind;
                    r.resources.iter().for_each(|x| line.push_str(&format!(" +{}", x.name)));
                    r.removed_resources.iter().for_each(|x| line.push_str(&format!(" -{x}")));
                    lines.push(line);
                }
                Action::Nack { kind, message } => lines.push(format!("nack {} {message}", kind.short())),
                Action::Close(why) => lines.push(format!("close {why}")),
            }
        }
        lines
    }

    pub(super) fn ask(&mut self, change: impl FnOnce(&mut wire::DeltaDiscoveryRequest), kind: Kind) -> Vec<String> {
        let mut request = Self::request(kind);
        change(&mut request);
        let mut actions = self.session.request(request.into());
        actions.extend(self.session.send());
        self.told(actions)
    }

    pub(super) fn open(&mut self, kind: Kind) -> Vec<String> {
        self.ask(|_| {}, kind)
    }

    pub(super) fn ack(&mut self, kind: Kind) -> Vec<String> {
        let nonce = self.nonce.get(kind.url()).cloned().unwrap_or_default();
        self.ask(|r| r.response_nonce = nonce, kind)
    }

    pub(super) fn update(&mut self, view: &View) -> Vec<String> {
        self.world = Arc::new(self.world.next(&Arc::new(view.clone())));
        self.session.world(self.world.clone());
        let actions = self.session.send();
        self.told(actions)
    }

    /// Both kinds asked for and acknowledged.
    fn settled(first: &View) -> Self {
        let mut script = Self::new(first);
        for kind in [Kind::Address, Kind::Authorization] {
            script.open(kind);
        }
        // Policies come first: the answer to the first kind may have waited for nothing, the second is answered now.
        for _ in 0..2 {
            script.ack(Kind::Address);
            script.ack(Kind::Authorization);
        }
        assert!(script.session.progress().values().all(|p| p.synced), "{:?}", script.session.progress());
        script
    }
}

#[test]
fn both_kinds_are_answered_even_when_there_is_nothing() {
    let mut script = Script::new(&View::default());
    assert_eq!(script.open(Kind::Address), ["address"]);
    assert_eq!(script.open(Kind::Authorization), ["authorization"]);
    assert_eq!(script.ack(Kind::Address), [""; 0]);
    assert_eq!(script.ack(Kind::Authorization), [""; 0]);
}

#[test]
fn everything_then_changes_only() {
    let mut script = Script::new(&view(&[("a", "198.18.0.1"), ("b", "198.18.0.2")], &[("web", "198.18.9.1")], &[]));
    assert_eq!(script.open(Kind::Address), ["address +a +b +shop/web.shop.svc.cluster.local"]);
    assert_eq!(script.ack(Kind::Address), [""; 0]);
    let next = view(&[("a", "198.18.0.3"), ("c", "198.18.0.2")], &[("web", "198.18.9.1")], &[]);
    assert_eq!(script.update(&next), ["address +a +c -b"]);
    assert_eq!(script.ack(Kind::Address), [""; 0]);
    assert_eq!(script.update(&next), [""; 0], "the same again is nothing new");
}

#[test]
fn hardening_B104_what_changes_while_a_response_is_under_way_is_merged() {
    let mut script = Script::new(&view(&[("a", "198.18.0.1")], &[], &[]));
    script.open(Kind::Address);
    for last in 2..100 {
        assert_eq!(script.update(&view(&[("a", &format!("198.18.0.{last}")), ("b", "198.18.1.1")], &[], &[])), [""; 0]);
    }
    script.update(&view(&[("c", "198.18.0.1")], &[], &[]));
    assert_eq!(script.ack(Kind::Address), ["address +c -a"], "b came and went unseen");
}

#[test]
fn a_stream_resumes_where_the_last_one_ended() {
    let first = view(&[("a", "198.18.0.1"), ("b", "198.18.0.2")], &[], &["p"]);
    let world = Arc::new(World::default().next(&Arc::new(first.clone())));
    let versions = |kind| -> HashMap<String, String> {
        world.table(kind, &Audience::Agent).iter().map(|e| (e.name.to_string(), version_text(e.version))).collect()
    };
    // Nothing changed: an empty answer.
    let mut script = Script::new(&first);
    assert_eq!(script.ask(|r| r.initial_resource_versions = versions(Kind::Address), Kind::Address), ["address"]);
    assert_eq!(
        script.ask(|r| r.initial_resource_versions = versions(Kind::Authorization), Kind::Authorization),
        ["authorization"]
    );
    // Changed, gone, new, and garbage in place of a version.
    let mut script = Script::new(&view(&[("a", "198.18.0.9"), ("c", "198.18.0.3")], &[], &["p"]));
    assert_eq!(
        script.ask(|r| r.initial_resource_versions = versions(Kind::Address), Kind::Address),
        ["address +a +c -b"]
    );
    let garbage = HashMap::from([("shop/p".to_owned(), "?".to_owned()), ("shop/gone".to_owned(), String::new())]);
    assert_eq!(
        script.ask(|r| r.initial_resource_versions = garbage, Kind::Authorization),
        ["authorization +shop/p -shop/gone"]
    );
}

#[test]
fn policies_come_before_and_go_after_the_workloads_that_list_them() {
    let mut script = Script::settled(&view(&[("a", "198.18.0.1")], &[], &["p"]));
    let next = view(&[("a", "198.18.0.1")], &[], &["q"]);
    assert_eq!(script.update(&next), ["authorization +shop/q", "address +a"]);
    assert_eq!(script.ack(Kind::Address), [""; 0]);
    assert_eq!(script.ack(Kind::Authorization), ["authorization -shop/p"]);
    assert_eq!(script.ack(Kind::Authorization), [""; 0]);
    assert!(script.session.progress().values().all(|p| p.synced));
}

#[test]
fn a_workload_waits_for_its_policy_while_an_earlier_answer_is_under_way() {
    let mut script = Script::settled(&view(&[("a", "198.18.0.1")], &[], &["p"]));
    assert_eq!(script.update(&view(&[("a", "198.18.0.1")], &[], &["p", "q"])), ["authorization +shop/q", "address +a"]);
    script.ack(Kind::Address);
    // The policies of the last world are not acknowledged yet: neither the new one nor what lists it goes out.
    assert_eq!(script.update(&view(&[("a", "198.18.0.1")], &[], &["p", "q", "r"])), [""; 0]);
    assert_eq!(script.ack(Kind::Authorization), ["authorization +shop/r", "address +a"]);
}

#[test]
fn hardening_B95_stale_nonces_mean_nothing() {
    let mut script = Script::new(&view(&[("a", "198.18.0.1")], &[], &[]));
    script.open(Kind::Address);
    script.update(&view(&[("b", "198.18.0.2")], &[], &[]));
    assert_eq!(script.ask(|r| r.response_nonce = "0".into(), Kind::Address), [""; 0]);
    assert_eq!(script.ask(|r| r.response_nonce = "nonsense".into(), Kind::Address), [""; 0]);
    let late = |r: &mut wire::DeltaDiscoveryRequest| {
        r.response_nonce = "77".into();
        r.error_detail = Some(wire::Status { code: 0, message: "late".into(), details: vec![] });
    };
    assert_eq!(script.ask(late, Kind::Address), [""; 0], "a stale refusal refuses nothing");
    assert_eq!(script.ack(Kind::Address), ["address +b -a"]);
}

#[test]
fn hardening_F12_a_refusal_is_told_and_not_repeated() {
    let mut script = Script::new(&view(&[("a", "198.18.0.1")], &[], &[]));
    script.open(Kind::Address);
    let nonce = script.nonce[Kind::Address.url()].clone();
    let refuse = |r: &mut wire::DeltaDiscoveryRequest| {
        r.response_nonce = nonce;
        r.error_detail = Some(wire::Status { code: 0, message: "a: bad".into(), details: vec![] });
    };
    assert_eq!(script.ask(refuse, Kind::Address), ["nack address a: bad"]);
    assert_eq!(script.session.progress()["address"].nacks, 1);
    assert_eq!(script.update(&view(&[("a", "198.18.0.2")], &[], &[])), ["address +a"], "sent again when it changes");
}

#[test]
fn on_demand_by_name_address_and_service() {
    let first = view(&[("a", "198.18.0.1"), ("b", "198.18.0.2")], &[("web", "198.18.9.1")], &[]);
    let subscribe = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        move |r: &mut wire::DeltaDiscoveryRequest| r.resource_names_subscribe = names
    };
    let service = "shop/web.shop.svc.cluster.local";
    for (asked, answer) in [
        ("a", "address +a".to_owned()),
        ("/198.18.0.2", "address +b".to_owned()),
        (service, format!("address +a +b +{service}")),
        ("/198.18.9.1", format!("address +a +b +{service}")),
        ("/198.18.0.99", "address -/198.18.0.99".to_owned()),
        ("other/198.18.0.1", "address -other/198.18.0.1".to_owned()),
    ] {
        let mut script = Script::new(&first);
        assert_eq!(script.ask(subscribe(&[asked]), Kind::Address), [answer], "{asked}");
    }

    // It follows what was asked for, and nothing else; what comes later under an address is sent then.
    let mut script = Script::new(&first);
    script.ask(subscribe(&["a", "/198.18.0.3"]), Kind::Address);
    script.ack(Kind::Address);
    let next = view(&[("a", "198.18.0.7"), ("b", "198.18.0.8"), ("c", "198.18.0.3")], &[("web", "198.18.9.1")], &[]);
    assert_eq!(script.update(&next), ["address +a +c"]);
    script.ack(Kind::Address);
    assert_eq!(script.ask(|r| r.resource_names_unsubscribe = vec!["a".into()], Kind::Address), [""; 0]);
    assert_eq!(script.update(&view(&[("c", "198.18.0.3")], &[("web", "198.18.9.1")], &[])), [""; 0]);
    assert_eq!(script.update(&View::default()), ["address -c"]);
}

#[test]
fn who_asks_gets_an_answer_even_if_it_has_the_resource() {
    let mut script = Script::new(&view(&[("a", "198.18.0.1")], &[], &[]));
    script.open(Kind::Address);
    script.ack(Kind::Address);
    let again = |r: &mut wire::DeltaDiscoveryRequest| r.resource_names_subscribe = vec!["/198.18.0.1".into()];
    assert_eq!(script.ask(again, Kind::Address), ["address +a"]);
}

#[test]
fn hardening_B91_other_types_get_one_empty_answer() {
    let mut script = Script::new(&View::default());
    let mut ask = |url: &str, nonce: &str| {
        let request =
            wire::DeltaDiscoveryRequest { type_url: url.into(), response_nonce: nonce.into(), ..Default::default() };
        let actions = script.session.request(request.into());
        script.told(actions)
    };
    assert_eq!(ask("type.googleapis.com/istio.extensions.Telemetry", ""), ["telemetry"]);
    assert_eq!(ask("type.googleapis.com/istio.extensions.Telemetry", "1"), [""; 0]);
    for n in 0..15 {
        assert_eq!(ask(&format!("x{n}"), ""), [format!("x{n}")]);
    }
    assert_eq!(ask("one more", ""), ["close too many types that are not served"]);
}

#[test]
fn hardening_B94_names_are_bounded() {
    let mut script = Script::new(&View::default());
    let long = |r: &mut wire::DeltaDiscoveryRequest| r.resource_names_subscribe = vec!["x".repeat(2000)];
    assert_eq!(script.ask(long, Kind::Address), ["close too many or too long resource names"]);
    let many =
        |r: &mut wire::DeltaDiscoveryRequest| r.resource_names_subscribe = (0..10_001).map(|n| n.to_string()).collect();
    assert_eq!(script.ask(many, Kind::Address), ["close too many or too long resource names"]);
    let held = |count: usize| {
        let mut script = Script::new(&View::default());
        let versions = (0..count).map(|n| (n.to_string(), String::new())).collect();
        script.ask(|r| r.initial_resource_versions = versions, Kind::Address)
    };
    assert_eq!(held(2), ["address -0 -1"]);
    assert_eq!(held(MAX_VERSIONS + 1), ["close too many resource versions"]);
}

#[test]
fn hardening_B94_everything_is_looked_at_only_so_often() {
    let mut script = Script::settled(&view(&[("a", "198.18.0.1")], &[], &[]));
    let all = |r: &mut wire::DeltaDiscoveryRequest| r.resource_names_subscribe = vec!["*".into()];
    let none = |r: &mut wire::DeltaDiscoveryRequest| r.resource_names_unsubscribe = vec!["*".into()];
    // Who has everything has it, however often it is asked for.
    for _ in 0..100 {
        assert_eq!(script.ask(all, Kind::Address), ["address"]);
        script.ack(Kind::Address);
    }
    for _ in 0..16 {
        script.ask(none, Kind::Address);
        assert_eq!(script.ask(all, Kind::Address), ["address +a"]);
        script.ack(Kind::Address);
    }
    script.ask(none, Kind::Address);
    assert_eq!(script.ask(all, Kind::Address)[0], "close too many resource names");
}

#[test]
fn what_does_not_fit_in_one_response_comes_in_the_next() {
    let mut big = View::default();
    for n in 0..6 {
        let mut workload = Workload::new(format!("w{n}"), "shop", "w");
        workload.hostname = "x".repeat(10 << 20).into();
        big.workloads.insert(workload.uid.clone(), Arc::new(workload));
    }
    let mut script = Script::settled(&view(&[("a", "198.18.0.1")], &[], &[]));
    script.session.world(Arc::new(script.world.next(&Arc::new(big.clone()))));
    // Whoever is to wait before it is built knows how large it will be.
    assert!((40 << 20..48 << 20).contains(&script.session.unsent()), "{}", script.session.unsent());
    let first = script.update(&big).concat();
    assert!(first.matches('+').count() == 4 && !first.contains('-'), "{first}");
    assert!(script.session.is_waiting() && script.session.unsent() == 0);
    let then = script.ack(Kind::Address).concat();
    assert!(then.matches('+').count() == 2 && then.ends_with(" -a"), "what is gone goes last: {then}");
    assert!((0..6).all(|n| first.contains(&format!("w{n}")) != then.contains(&format!("w{n}"))), "{first} {then}");
    assert_eq!(script.ack(Kind::Address), [""; 0]);
    assert!(!script.session.is_waiting() && script.session.unsent() == 0);
}

#[test]
fn a_client_that_slept_through_many_worlds_is_compared_as_a_whole() {
    let mut script = Script::new(&view(&[("a", "198.18.0.1"), ("b", "198.18.0.2")], &[], &[]));
    script.open(Kind::Address);
    for n in 0..200 {
        script.update(&view(&[("a", "198.18.0.1"), ("c", &format!("198.18.1.{}", n % 250))], &[], &[]));
    }
    assert_eq!(script.ack(Kind::Address), ["address +c -b"]);
}

#[test]
fn versions_are_hashes_of_the_bytes() {
    let some = Arc::new(view(&[("a", "198.18.0.1")], &[], &[]));
    let world = World::default().next(&some);
    let same = World::default().next(&Arc::default()).next(&some);
    let version = |world: &World| world.table(Kind::Address, &Audience::Agent).get("a").unwrap().version;
    assert_eq!(version(&world), version(&same));
    let message = mesh_proto::convert::encode_workload(&some.workloads["a"]);
    assert_eq!(version(&world), xxhash_rust::xxh64::xxh64(&message, 0));
    let sent = world.table(Kind::Address, &Audience::Agent).part("a").unwrap();
    let sent: wire::DeltaDiscoveryResponse = prost::Message::decode(sent).unwrap();
    assert_eq!(sent.resources[0].version, version_text(version(&world)));
    assert_eq!(sent.resources[0].aliases, ["/198.18.0.1"]);
    assert_eq!(version_text(1).len(), 16);
}
