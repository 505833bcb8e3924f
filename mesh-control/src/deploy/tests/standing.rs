//! What a Gateway and its listeners are told.

use super::super::plan::{Plan, plan};
use super::super::standing;
use super::*;
use crate::index::l7::listeners::frontend::GatewayTold;

#[test]
fn what_cannot_be_served_is_told_and_leaves_what_there_is() {
    let hbone = json!([{ "name": "web", "port": 80, "protocol": "HTTP" }]);
    let mut deaf = waypoint("wp", &json!({}));
    deaf["spec"]["listeners"] = hbone;
    let with = |spec: Json| waypoint("wp", &json!({ "spec": spec }));
    for (what, gateway, reason, part) in [
        ("no tunnels", deaf, "Invalid", "protocol: HBONE"),
        ("not readable", with(json!({ "listeners": "x" })), "Invalid", "spec.listeners"),
        (
            "an address of a strange type",
            with(json!({ "addresses": [{ "type": "a.b/c", "value": "x" }] })),
            "UnsupportedAddress",
            "IPAddress or Hostname",
        ),
        (
            "an address beside the host of somebody else's Service",
            with(json!({ "addresses": [{ "value": "198.18.0.1" }, { "type": "Hostname", "value": "mine" }] })),
            "UnsupportedAddress",
            "keep one of them",
        ),
        (
            "a type of Services that there is not",
            waypoint("wp", &json!({ "metadata": { "annotations": { "networking.istio.io/service-type": "Cloud" } } })),
            "InvalidParameters",
            "\"Cloud\" is none of",
        ),
        (
            "parameters of a strange kind",
            with(json!({ "infrastructure": { "parametersRef": { "group": "a.b", "kind": "C", "name": "d" } } })),
            "InvalidParameters",
            "name a ConfigMap",
        ),
    ] {
        // Something of an earlier form is there.
        let mut known = known(&[waypoint("wp", &json!({}))]);
        let first = steps(&known);
        perform(&mut known, &first);
        put(&mut known, What::Gateway, gateway);
        let found = steps(&known);
        assert!(found.iter().all(|step| matches!(step, Step::Tell(..))), "{what}: {found:?}");
        let status = told(&found)[0];
        let accepted = condition(status, "Accepted");
        assert_eq!((accepted.0, accepted.1), ("False", reason), "{what}");
        assert!(accepted.2.contains(part), "{what}: {}", accepted.2);
        assert_eq!(condition(status, "Programmed").0, "False", "{what}");
    }
}

#[test]
fn a_gateway_is_programmed_when_it_has_an_address_and_a_pod_that_is_ready() {
    let mut known = known(&[waypoint("wp", &json!({}))]);
    let first = steps(&known);
    assert_eq!(condition(told(&first)[0], "Accepted").0, "True");
    let programmed = condition(told(&first)[0], "Programmed");
    assert_eq!((programmed.0, programmed.1), ("False", "Pending"));
    perform(&mut known, &first);

    let second = steps(&known);
    assert_eq!(condition(told(&second)[0], "Programmed").1, "AddressNotAssigned");
    object(&mut known, What::Service, "wp")["spec"]["clusterIPs"] = json!(["10.96.0.9", "fd00::9"]);
    object(&mut known, What::Deployment, "wp")["status"] = json!({ "conditions": [
        { "type": "ReplicaFailure", "status": "True", "message": "exceeded quota" },
    ] });
    let third = steps(&known);
    let programmed = condition(told(&third)[0], "Programmed");
    assert!(
        programmed.1 == "Pending" && programmed.2.contains("no pod of 1") && programmed.2.contains("exceeded quota"),
        "{programmed:?}"
    );
    object(&mut known, What::Deployment, "wp")["status"] = json!({ "readyReplicas": 1 });
    let fourth = steps(&known);
    let status = told(&fourth)[0];
    assert_eq!(condition(status, "Programmed").0, "True");
    assert_eq!(
        status["addresses"],
        json!([{ "type": "IPAddress", "value": "10.96.0.9" }, { "type": "IPAddress", "value": "fd00::9" }])
    );
    assert_eq!(status["conditions"][0]["observedGeneration"], 3);
    assert_eq!(
        (&status["listeners"][0]["name"], &status["listeners"][0]["attachedRoutes"]),
        (&json!("mesh"), &json!(0))
    );
    perform(&mut known, &fourth);
    assert_eq!(steps(&known), []);
}

#[test]
fn features_GA_a_gateway_is_programmed_with_the_addresses_that_it_asks_for_or_told_which_it_has_not() {
    let deployment = json!({ "status": { "readyReplicas": 1 } });
    for (asked, given, reason, part) in [
        (&["198.18.0.9"][..], &["198.18.0.9"][..], "Programmed", "1 of 1"),
        (&["198.18.0.9"], &["198.18.0.8"], "AddressNotUsable", "has not given 198.18.0.9 to"),
        (&["198.18.0.9"], &[], "AddressNotUsable", "198.18.0.9"),
        (&["203.0.113.7", "198.18.0.9"], &[], "AddressNotUsable", "203.0.113.7, 198.18.0.9 to the Service"),
        (&["203.0.113.7", "198.18.0.9"], &["203.0.113.7"], "AddressNotUsable", "given 198.18.0.9 to"),
        (&["fd00:198::9", "198.18.0.9"], &["198.18.0.9", "fd00:198::9"], "Programmed", "1 of 1"),
    ] {
        let addresses: Vec<Json> = asked.iter().map(|address| json!({ "value": address })).collect();
        let plan = plan(&edge(&json!({ "spec": { "addresses": addresses } })));
        let Plan::Deploy(_, service) = &plan else { panic!("{asked:?}: {plan:?}") };
        assert_eq!(service.addresses, asked);
        let ingress: Vec<Json> = given.iter().map(|ip| json!({ "ip": ip })).collect();
        let service =
            json!({ "spec": { "type": "LoadBalancer" }, "status": { "loadBalancer": { "ingress": ingress } } });
        let seen = standing::Seen {
            host: None,
            deployment: Some(&deployment),
            service: Some(&service),
            failure: None,
            unscaled: Some("PodDisruptionBudget edge: no"),
        };
        let told = standing::told(&plan, seen, "shop", &Settings::default());
        assert_eq!((told.conditions[0].holds, told.conditions[0].reason), (true, "Accepted"), "{asked:?} {given:?}");
        let programmed = &told.conditions[1];
        assert_eq!((programmed.holds, programmed.reason), (reason == "Programmed", reason), "{asked:?} {given:?}");
        assert!(programmed.message.contains(part), "{}", programmed.message);
    }
}

#[test]
fn features_GA_a_gateway_is_told_what_it_shows_and_whom_it_lets_in_while_there_is_something_to_say() {
    let mut known = known(&[edge(&json!({}))]);
    let own = std::cell::RefCell::new(GatewayTold::default());
    let with_own = |name: &NamespacedName, spec: &Gateway| {
        Some(Listened { gateway: own.borrow().clone(), ..listened(name, spec)? })
    };
    let mut ask = || {
        // What is made, then what that is told.
        for _ in 0..2 {
            let steps = round(&known, &defaults(), &Settings::default(), |_| true, with_own, now());
            perform(&mut known, &steps);
        }
        let again = round(&known, &defaults(), &Settings::default(), |_| true, with_own, now());
        assert!(!again.iter().any(|step| matches!(step, Step::Tell((What::Gateway, _), _))), "it stands there");
        let status = &known.objects[&What::Gateway][&name("shop", "edge")]["status"];
        let all = status["conditions"].as_array().unwrap();
        let others = all.iter().filter(|c| c["type"] != "Accepted" && c["type"] != "Programmed");
        let short = |c: &Json| format!("{}={}:{}", c["type"], c["status"], c["reason"]).replace('"', "");
        others.map(short).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ask(), "");
    own.borrow_mut().shown = Some(Ok(()));
    assert_eq!(ask(), "ResolvedRefs=True:ResolvedRefs");
    own.borrow_mut().shown = Some(Err(("InvalidClientCertificateRef", "there is no Secret".to_owned())));
    own.borrow_mut().insecure = true;
    let insecure = "InsecureFrontendValidationMode=True:ConfigurationChanged";
    assert_eq!(ask(), format!("ResolvedRefs=False:InvalidClientCertificateRef {insecure}"));
    own.borrow_mut().shown = None;
    assert_eq!(ask(), insecure);
    *own.borrow_mut() = GatewayTold::default();
    assert_eq!(ask(), "", "and no more");
}

#[test]
fn features_GA_listeners_are_told_and_a_gateway_of_which_none_is_served_is_not_accepted() {
    let mut known = known(&[edge(&json!({}))]);
    let bad = std::cell::RefCell::new(Vec::<(&str, ListenerTold)>::new());
    let with_bad = |name: &NamespacedName, spec: &Gateway| {
        let mut all = listened(name, spec)?;
        for (name, told) in bad.borrow().iter() {
            all.told.iter_mut().filter(|one| *one.name == **name).for_each(|one| {
                *one = ListenerTold { name: one.name.clone(), kinds: one.kinds.clone(), ..told.clone() };
            });
        }
        Some(all)
    };
    let mut ask = || {
        let steps = round(&known, &defaults(), &Settings::default(), |_| true, with_bad, now());
        perform(&mut known, &steps);
        for (what, name) in [(What::Deployment, "edge-undermesh"), (What::Service, "edge-undermesh")] {
            let object = object(&mut known, what, name);
            object["status"] = json!({ "readyReplicas": 1, "loadBalancer": { "ingress": [{ "ip": "198.18.0.9" }] } });
        }
        let steps = round(&known, &defaults(), &Settings::default(), |_| true, with_bad, now());
        perform(&mut known, &steps);
        let status = &known.objects[&What::Gateway][&name("shop", "edge")]["status"];
        let short = |all: &Json| {
            let one = |c: &Json| format!("{}={}:{}", c["type"], c["status"], c["reason"]).replace('"', "");
            all.as_array().unwrap().iter().map(one).collect::<Vec<_>>().join(" ")
        };
        let listeners = status["listeners"].as_array().unwrap();
        let listeners: Vec<String> = listeners.iter().map(|one| short(&one["conditions"])).collect();
        (short(&status["conditions"]), listeners)
    };
    const GOOD: &str =
        "Accepted=True:Accepted Conflicted=False:NoConflicts Programmed=True:Programmed ResolvedRefs=True:ResolvedRefs";
    assert_eq!(ask(), ("Accepted=True:Accepted Programmed=True:Programmed".to_owned(), vec![GOOD.to_owned(); 3]));
    let why = |reason: &'static str| Some((reason, "no Secret".to_owned()));
    bad.borrow_mut()
        .push(("web", ListenerTold { unresolved: why("InvalidCertificateRef"), ..ListenerTold::default() }));
    bad.borrow_mut().push(("other", ListenerTold { conflict: why("HostnameConflict"), ..ListenerTold::default() }));
    let (gateway, listeners) = ask();
    assert_eq!(gateway, "Accepted=True:ListenersNotValid Programmed=True:Programmed");
    assert_eq!(
        listeners[0],
        "Accepted=True:Accepted Conflicted=False:NoConflicts Programmed=False:Invalid ResolvedRefs=False:InvalidCertificateRef"
    );
    assert_eq!(
        listeners[1],
        "Accepted=False:HostnameConflict Conflicted=True:HostnameConflict Programmed=False:HostnameConflict ResolvedRefs=True:ResolvedRefs"
    );
    assert_eq!(listeners[2], GOOD);
    bad.borrow_mut().push(("raw", ListenerTold { refused: why("UnsupportedProtocol"), ..ListenerTold::default() }));
    assert_eq!(ask().0, "Accepted=False:ListenersNotValid Programmed=False:Invalid");
}

#[test]
fn a_gateway_that_is_not_joined_yet_is_told_nothing() {
    let known = known(&[edge(&json!({}))]);
    let steps = round(&known, &defaults(), &Settings::default(), |_| true, |_, _| None, now());
    assert!(!applied(&steps).is_empty() && told(&steps).is_empty());
}

#[test]
fn a_gateway_that_somebody_else_serves_is_programmed_when_there_is_such_a_host_and_keeps_what_it_had_until_then() {
    let served = edge(&json!({ "spec": { "addresses": [] } }));
    let manual = |host: &str| edge(&json!({ "spec": { "addresses": [{ "type": "Hostname", "value": host }] } }));
    let round_of = |known: &Known, hosts: &[&str]| {
        let listened = |name: &_, spec: &Gateway| {
            let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
            listened(name, spec).map(|all| Listened { hosts, ..all })
        };
        round(known, &defaults(), &Settings::default(), |_| true, listened, now())
    };
    let deleted = |found: &[Step]| found.iter().filter(|step| matches!(step, Step::Delete(..))).count();
    let mut known = known(&[served]);
    let first = steps(&known);
    perform(&mut known, &first);
    let own = "edge-undermesh.shop.svc.cluster.local";
    for (what, host, hosts, holds, part, gone) in [
        ("nobody is called so", "mine", &[own][..], "False", "no Service mine.shop.svc.cluster.local", 0),
        ("what is made for it", "edge-undermesh", &[own], "False", "edge-undermesh is made for this Gateway", 0),
        ("it is there", "mine", &["mine.shop.svc.cluster.local", own], "True", "somebody else's", 3),
        ("elsewhere", "mine.infra.svc.cluster.local", &["mine.infra.svc.cluster.local"], "True", "somebody else's", 3),
    ] {
        put(&mut known, What::Gateway, manual(host));
        let found = round_of(&known, hosts);
        let (programmed, reason, message) = condition(told(&found)[0], "Programmed");
        assert_eq!((programmed, deleted(&found)), (holds, gone), "{what}: {message}");
        assert_eq!(reason, if holds == "True" { "Programmed" } else { "AddressNotUsable" }, "{what}");
        assert!(message.contains(part), "{what}: {message}");
    }
}
