//! ListenerSets beside their Gateways, and what both are told.

use super::super::listener_sets::Joined;
use super::*;
use crate::cluster::decode::decode;
use crate::index::l7::listeners::told::SetTold;
use crate::resource::routing::Routing;
use crate::resource::{Kind, Object};

/// Status and reason of the conditions of an object, or of a listener of it.
fn short(told: &Json) -> String {
    let one = |c: &Json| format!("{}={}:{}", c["type"], c["status"], c["reason"]).replace('"', "");
    told["conditions"].as_array().unwrap().iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn features_GA_9_a_set_of_listeners_is_told_what_its_gateway_makes_of_it() {
    let set = |over: &Json| {
        let mut set = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "ListenerSet",
            "metadata": { "name": "more", "namespace": "far", "generation": 4 },
            "spec": { "parentRef": { "name": "edge", "namespace": "shop" }, "listeners": [
                { "name": "a", "port": 80, "protocol": "HTTP", "hostname": "c.example" },
                { "name": "b", "port": 80, "protocol": "TCP" },
            ] },
        });
        super::super::overlay::lay(&mut set, over);
        set
    };
    let spec = |object: &Json| {
        let item = decode(Kind::ListenerSet, "gateway.networking.k8s.io/v1", object.clone()).unwrap();
        let Ok(Object::Routing(Routing::ListenerSet(read))) = item.outcome else { panic!("{object}") };
        read.spec.clone()
    };
    let why = |reason: &'static str| Some((reason, "why".to_owned()));
    let good = |name: &str| ListenerTold { name: name.into(), kinds: vec!["HTTPRoute"], ..ListenerTold::default() };
    let bad = |name: &str| ListenerTold { conflict: why("ProtocolConflict"), ..good(name) };
    let lost = |name: &str| ListenerTold { unresolved: why("RefNotPermitted"), ..good(name) };
    const GOOD: &str =
        "Accepted=True:Accepted Conflicted=False:NoConflicts Programmed=True:Programmed ResolvedRefs=True:ResolvedRefs";
    const CONFLICT: &str = "Accepted=False:ProtocolConflict Conflicted=True:ProtocolConflict Programmed=False:ProtocolConflict ResolvedRefs=True:ResolvedRefs";
    const LOST: &str = "Accepted=True:Accepted Conflicted=False:NoConflicts Programmed=False:Invalid ResolvedRefs=False:RefNotPermitted";
    const NOT: &str = "Accepted=False:ListenersNotValid Programmed=False:ListenersNotValid";
    for (refused, listeners, expected, of_listeners, attached) in [
        (None, vec![good("a"), good("b")], "Accepted=True:Accepted Programmed=True:Programmed", vec![GOOD, GOOD], 1),
        (
            None,
            vec![good("a"), bad("b")],
            "Accepted=True:ListenersNotValid Programmed=True:Programmed",
            vec![GOOD, CONFLICT],
            1,
        ),
        (None, vec![bad("a"), lost("b")], NOT, vec![CONFLICT, LOST], 0),
        (why("NotAllowed"), vec![], "Accepted=False:NotAllowed Programmed=False:NotAllowed", vec![], 0),
    ] {
        let of_set = SetTold { gateway: name("shop", "edge"), refused, listeners };
        let joined = Joined { spec: spec(&set(&json!({}))), told: of_set };
        let with = |own: &NamespacedName, spec: &Gateway| {
            let sets = [(name("far", "more"), joined.clone())].into();
            listened(own, spec).map(|all| Listened { sets, ..all })
        };
        let mut known = known(&[edge(&json!({}))]);
        put(&mut known, What::ListenerSet, set(&json!({})));
        let all = |known: &Known| round(known, &defaults(), &Settings::default(), |_| true, with, now());
        let first = all(&known);
        perform(&mut known, &first);
        let of = |known: &Known| known.objects[&What::ListenerSet][&name("far", "more")]["status"].clone();
        if attached == 1 {
            // Nobody listens yet.
            assert!(short(&of(&known)).ends_with("Programmed=False:ParentNotProgrammed"), "{}", of(&known));
        }
        for (what, name) in [(What::Deployment, "edge-undermesh"), (What::Service, "edge-undermesh")] {
            let status = json!({ "readyReplicas": 1, "loadBalancer": { "ingress": [{ "ip": "198.18.0.9" }] } });
            object(&mut known, what, name)["status"] = status;
        }
        let second = all(&known);
        perform(&mut known, &second);
        let status = of(&known);
        assert_eq!(short(&status), expected);
        let found: Vec<String> = status["listeners"].as_array().unwrap().iter().map(short).collect();
        assert_eq!(found, of_listeners);
        assert_eq!(status["conditions"][0]["observedGeneration"], 4);
        let gateway = known.objects[&What::Gateway][&name("shop", "edge")]["status"].clone();
        assert_eq!(gateway["attachedListenerSets"], attached, "{expected}");
        assert_eq!(short(&gateway), "Accepted=True:Accepted Programmed=True:Programmed");
        assert_eq!(all(&known), [], "nothing new");
        // None of its own listeners can be served: then it depends on those of the set.
        let alone = |own: &NamespacedName, spec: &Gateway| {
            with(own, spec).map(|all| Listened { told: vec![bad("own")], ..all })
        };
        let found = round(&known, &defaults(), &Settings::default(), |_| true, alone, now());
        let gateway = match attached {
            0 => "Accepted=False:ListenersNotValid Programmed=False:Invalid",
            _ => "Accepted=True:ListenersNotValid Programmed=True:Programmed",
        };
        assert_eq!(short(told(&found)[0]), gateway, "{expected}");

        // In another form it has not been joined yet; of one that cannot be read it is known why.
        put(
            &mut known,
            What::ListenerSet,
            set(&json!({ "spec": { "listeners": [{ "name": "x", "port": 1, "protocol": "TCP" }] } })),
        );
        assert_eq!(all(&known), []);
        let mut broken = set(&json!({}));
        broken["spec"]["listeners"] = json!([]);
        put(&mut known, What::ListenerSet, broken);
        let found = all(&known);
        assert_eq!(short(told(&found)[0]), "Accepted=False:Invalid Programmed=False:Invalid");
        // Another controller's, or of nobody: nothing is said. Neither is it of namespaces that are not of the mesh.
        put(&mut known, What::ListenerSet, set(&json!({ "spec": { "parentRef": { "name": "other" } } })));
        assert_eq!(all(&known), []);
        put(&mut known, What::ListenerSet, set(&json!({ "metadata": { "namespace": "outside" } })));
        known.objects.get_mut(&What::ListenerSet).unwrap().remove(&name("far", "more"));
        assert_eq!(round(&known, &defaults(), &Settings::default(), |of| of != "outside", with, now()), []);
        // An older definition of Gateways has no field for their number.
        known.objects.remove(&What::ListenerSet);
        known.objects.get_mut(&What::Gateway).unwrap().get_mut(&name("shop", "edge")).unwrap()["status"] = json!({});
        assert_eq!(told(&all(&known))[0].get("attachedListenerSets"), None);
    }
    // What cannot be served takes nothing along that could be.
    let mut known = known(&[edge(&json!({ "spec": { "addresses": [{ "type": "a.b/c", "value": "x" }] } }))]);
    put(&mut known, What::ListenerSet, set(&json!({})));
    let found = steps(&known);
    assert_eq!(short(told(&found)[0]), "Accepted=False:ParentNotAccepted Programmed=False:ParentNotProgrammed");
}
