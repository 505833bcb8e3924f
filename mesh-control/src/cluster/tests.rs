//! What is kept of an object, and what a series of events leaves in force.

use std::time::Duration;

use mesh_core::ArcStr;
use serde_json::{Value as Json, json};

use super::bundle::{RootCopy, Roots, wrong};
use super::decode::{Item, decode, strip};
use super::inventory::Inventory;
use super::watch::Event;
use crate::resource::mesh_config::IstioNames;
use crate::resource::{Kind, Object, Secured};

fn item(kind: Kind, object: Json) -> Item {
    decode(kind, kind.api_versions()[0], object).unwrap()
}

fn pod(name: &str, address: &str) -> Item {
    let object = json!({ "metadata": { "name": name, "namespace": "shop", "uid": name },
        "spec": { "containers": [] }, "status": { "phase": "Running", "podIP": address } });
    item(Kind::Pod, object)
}

fn policy(uid: &str, spec: Json) -> Item {
    item(
        Kind::AuthorizationPolicy,
        json!({ "metadata": { "name": "p", "namespace": "shop", "uid": uid }, "spec": spec }),
    )
}

#[test]
fn what_nobody_reads_is_taken_away() {
    let object = json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": { "name": "n", "managedFields": [{ "manager": "m" }],
            "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}", "kept": "yes" } },
        "status": { "images": [{}], "containerStatuses": [{}], "initContainerStatuses": [{}], "phase": "Running" },
    });
    let Json::Object(mut map) = object else { unreachable!() };
    strip(&mut map);
    let left =
        json!({ "metadata": { "name": "n", "annotations": { "kept": "yes" } }, "status": { "phase": "Running" } });
    assert_eq!(Json::Object(map), left);
    strip(&mut serde_json::Map::new());
}

#[test]
fn objects_are_what_they_were_asked_for_as() {
    // Metadata alone says that it is metadata; items of lists say nothing.
    let metadata = json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": { "name": "n1", "uid": "u", "labels": { "topology.kubernetes.io/zone": "z" } } });
    let node = item(Kind::Node, metadata);
    assert_eq!((node.key.to_string(), node.uid.as_str()), ("Node n1".to_owned(), "u"));
    let Ok(Object::Node(node)) = node.outcome else { panic!("no node") };
    assert_eq!((node.locality.zone.as_str(), node.uid.as_deref()), ("z", Some("u")));

    for (name, object, good, diagnoses) in [
        ("good", json!({ "action": "DENY", "rules": [{}] }), true, 0),
        ("an unknown field", json!({ "rulez": [] }), false, 1),
        ("a wrong type", json!({ "rules": "all" }), false, 1),
        ("nothing, which allows nothing", json!({}), true, 0),
    ] {
        let policy = policy("u", object);
        assert_eq!((policy.outcome.is_ok(), policy.diagnoses.len()), (good, diagnoses), "{name}");
        assert!(
            policy.diagnoses.iter().all(|d| d.object == "AuthorizationPolicy shop/p" && d.place.is_none()),
            "{name}"
        );
    }
    assert!(decode(Kind::Pod, "v1", json!({ "metadata": { "name": "../x", "namespace": "a" } })).is_none());
    for odd in [json!(null), json!([]), json!("x"), json!({ "metadata": 7 })] {
        assert!(decode(Kind::Pod, "v1", odd).is_none());
    }
}

/// What is in force of the policy `p`.
fn form(inventory: &mut Inventory) -> &'static str {
    let update = inventory.update();
    match update.objects.authorization_policies.values().next() {
        Some(Secured::Readable(_)) => "good",
        Some(Secured::Unreadable(_)) => "closed",
        None => "none",
    }
}

#[test]
fn a_series_of_events_leaves_in_force() {
    use Event::{Absent, Applied, Deleted, Failing, Listed};
    let good = |uid| policy(uid, json!({ "action": "DENY", "rules": [{}] }));
    let bad = |uid| policy(uid, json!({ "rulez": [] }));
    let cases: Vec<(&str, Vec<Event<Item>>, &str)> = vec![
        ("listed", vec![Listed(vec![good("1")])], "good"),
        ("never good", vec![Listed(vec![bad("1")])], "closed"),
        ("broken later", vec![Listed(vec![good("1")]), Applied(bad("1"))], "good"),
        ("broken in a list", vec![Listed(vec![good("1")]), Listed(vec![bad("1")])], "good"),
        ("another one, told of", vec![Listed(vec![good("1")]), Deleted(good("1")), Applied(bad("2"))], "closed"),
        ("another one, not told of", vec![Listed(vec![good("1")]), Listed(vec![bad("2")])], "closed"),
        ("another one, in one event", vec![Listed(vec![good("1")]), Applied(bad("2"))], "closed"),
        ("deleted", vec![Listed(vec![good("1")]), Deleted(good("1"))], "none"),
        ("deleted unheard of", vec![Listed(vec![good("1")]), Listed(vec![])], "none"),
        ("not to be heard", vec![Listed(vec![good("1")]), Failing("503".into())], "good"),
        ("the kind is gone", vec![Listed(vec![good("1")]), Absent], "none"),
        ("the kind is back", vec![Listed(vec![good("1")]), Absent, Listed(vec![bad("1")])], "closed"),
    ];
    for (name, events, expected) in cases {
        let mut inventory = Inventory::default();
        let mut last = "none";
        for event in events {
            inventory.take(Kind::AuthorizationPolicy, event);
            last = form(&mut inventory);
        }
        assert_eq!(last, expected, "{name}");
    }
}

#[test]
fn only_what_matters_is_a_change() {
    let mut inventory = Inventory::default();
    let mut take = |event| inventory.take(Kind::Pod, event);
    assert!(take(Event::Listed(vec![])));
    assert!(!take(Event::Listed(vec![])));
    assert!(take(Event::Applied(pod("a", "198.18.0.1"))));
    assert!(!take(Event::Applied(pod("a", "198.18.0.1"))));
    assert!(take(Event::Applied(pod("a", "198.18.0.2"))));
    assert!(!take(Event::Listed(vec![pod("a", "198.18.0.2")])));
    assert!(take(Event::Failing("x".into())));
    assert!(!take(Event::Failing("x".into())));
    assert!(take(Event::Heard));
    assert!(!take(Event::Heard));
    assert!(take(Event::Deleted(pod("a", "198.18.0.2"))));
    assert!(!take(Event::Deleted(pod("a", "198.18.0.2"))));
}

#[test]
fn it_waits_for_what_has_not_been_heard_of_and_says_why() {
    let mut inventory = Inventory::default();
    let kinds = [Kind::Pod, Kind::Service];
    inventory.take(Kind::Pod, Event::Failing("403: forbidden".into()));
    assert_eq!(inventory.waiting(&kinds), ["Pod (403: forbidden)", "Service"]);
    inventory.take(Kind::Pod, Event::Listed(vec![]));
    assert_eq!(inventory.waiting(&kinds), ["Service"]);
    inventory.take(Kind::Service, Event::Absent);
    assert_eq!(inventory.waiting(&kinds), [""; 0]);
    assert_eq!(inventory.update().diagnoses, []);
    // What it does not wait for is not taken for heard of.
    inventory.take(Kind::Gateway, Event::Failing("403: forbidden".into()));
    assert_eq!(inventory.waiting(&[Kind::Gateway]), [""; 0]);
    let mut is_unheard = |kind| inventory.update().objects.unheard.contains(&kind);
    assert_eq!([Kind::Gateway, Kind::Pod, Kind::Service].map(&mut is_unheard), [true, false, false]);
    inventory.take(Kind::Gateway, Event::Listed(vec![]));
    inventory.take(Kind::Gateway, Event::Failing("403: forbidden".into()));
    assert!(!inventory.update().objects.unheard.contains(&Kind::Gateway), "it was");
}

#[test]
fn copies_of_the_root_are_written_where_they_are_wrong() {
    let root = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap().pem()
    };
    let (now, before, unknown) = (root("now"), root("before"), root("unknown"));
    let copy = |namespace: &str, label: Option<&str>, writer: &str, text: &str| {
        let labels = label.map_or(json!(null), |label| json!({ "app.kubernetes.io/managed-by": label }));
        let fields = json!([
            { "manager": "kube-controller-manager", "fieldsV1": { "f:metadata": { "f:annotations": {} } } },
            { "manager": writer, "fieldsV1": { "f:data": { ".": {}, "f:root-cert.pem": {} } } },
        ]);
        let object = json!({ "metadata": { "namespace": namespace, "labels": labels, "managedFields": fields },
            "data": { "root-cert.pem": text } });
        (ArcStr::from(namespace), RootCopy::read(&object).unwrap())
    };
    let namespaces = ["a", "b", "c"].map(Into::into).into();
    let (us, them) = ("mesh-control", "pilot-discovery");
    let ours = |namespace: &str, text: &str| copy(namespace, Some(us), us, text);
    let (own, istio) = ("undermesh-root-cert", "istio-ca-root-cert");
    let (long, short) = (Duration::from_secs(3600), Duration::ZERO);
    for (what, name, copies, settle, expected) in [
        ("none yet", own, vec![], long, vec!["a", "b", "c"]),
        ("one of a namespace that is gone", own, vec![ours("a", &now), ours("gone", "x")], long, vec!["b", "c"]),
        ("one that is no root", own, vec![ours("a", &now), ours("b", "broken")], long, vec!["b", "c"]),
        ("without our label", own, vec![copy("a", None, us, &now)], long, vec!["a", "b", "c"]),
        ("written by others, and right", own, vec![copy("a", Some(us), them, &now)], long, vec!["b", "c"]),
        ("of the root before", own, vec![ours("a", &now), ours("b", &before)], long, vec!["b", "c"]),
        ("of the root after", own, vec![ours("a", &unknown)], long, vec!["b", "c"]),
        ("of no root at all, as is known by now", own, vec![ours("a", &unknown)], short, vec!["a", "b", "c"]),
        ("changed by somebody", own, vec![copy("a", Some(us), "somebody", &unknown)], long, vec!["a", "b", "c"]),
        ("Istio's, changed by somebody", istio, vec![copy("a", Some(us), "somebody", "x")], long, vec!["a", "b", "c"]),
        ("Istio's name", istio, vec![ours("a", &now), ours("b", &before)], long, vec!["b", "c"]),
        ("Istio was there first", istio, vec![ours("a", &now), copy("b", None, them, &unknown)], long, vec![]),
        ("Istio came later", istio, vec![ours("a", &now), copy("b", Some(us), them, &unknown)], short, vec![]),
        ("Istio has the same root", istio, vec![copy("a", Some(us), them, &now)], short, vec!["b", "c"]),
    ] {
        let istio = IstioNames::Auto;
        let copies = copies.into_iter().collect();
        let roots = Roots { bundle: now.clone(), last: Some(before.clone()), settle, istio };
        assert_eq!(wrong(name, &copies, &namespaces, &roots), expected, "{what}");
    }
    // What the mesh settings say counts.
    let copies = [ours("a", &now), copy("b", None, them, &unknown)].into_iter().collect();
    for (names, ours, istio_s) in [
        (IstioNames::Auto, vec!["b", "c"], vec![]),
        (IstioNames::Own, vec!["b", "c"], vec!["b", "c"]),
        (IstioNames::Off, vec!["b", "c"], vec![]),
    ] {
        let roots = Roots { bundle: now.clone(), last: None, settle: short, istio: names };
        assert_eq!(wrong(own, &copies, &namespaces, &roots), ours, "{names:?}");
        assert_eq!(wrong(istio, &copies, &namespaces, &roots), istio_s, "{names:?}");
    }
}
