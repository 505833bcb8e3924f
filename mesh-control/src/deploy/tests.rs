//! Gateways and what is known of a cluster, as an API server shows them, and what is made of that.

mod listener_sets;

use jiff::Timestamp;
use mesh_core::NamespacedName;
use mesh_core::listener::{Open, Transport};
use serde_json::{Value as Json, json};

use super::live::essence;
use super::plan::{Parameters, Plan, plan};
use super::round::{Applied, Known, Listened, Step, What, round};
use super::{Defaults, classes};
use crate::index::Settings;
use crate::index::l7::listeners::frontend::GatewayTold;
use crate::index::l7::listeners::told::ListenerTold;
use crate::resource::mesh_config::IstioNames;
use crate::resource::routing::Gateway;
use crate::resource::routing::gateway::Listener;
use crate::resource::routing::reference::CONTROLLER;

fn defaults() -> Defaults {
    Defaults {
        image: "registry.example/mesh-waypoint:1".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        pull_secrets: Vec::new(),
        control: "mesh-control.undermesh-system.svc:15012".to_owned(),
        network: String::new(),
        log_level: "info".to_owned(),
        log_format: "text".to_owned(),
    }
}

fn now() -> Timestamp {
    "2026-11-22T10:00:00Z".parse().unwrap()
}

/// A waypoint in `shop`, with other fields over it.
fn waypoint(name: &str, over: &Json) -> Json {
    let mut gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": { "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "generation": 3 },
        "spec": {
            "gatewayClassName": "undermesh-waypoint",
            "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
        },
    });
    super::overlay::lay(&mut gateway, over);
    gateway
}

fn edge(over: &Json) -> Json {
    let listeners = json!([
        { "name": "web", "port": 80, "protocol": "HTTP", "hostname": "a.example" },
        { "name": "other", "port": 80, "protocol": "HTTP", "hostname": "b.example" },
        { "name": "raw", "port": 9000, "protocol": "TCP" },
    ]);
    let mut gateway = waypoint("edge", &json!({ "spec": { "gatewayClassName": "undermesh" } }));
    gateway["spec"]["listeners"] = listeners;
    super::overlay::lay(&mut gateway, over);
    gateway
}

fn name(namespace: &str, name: &str) -> NamespacedName {
    NamespacedName::new(namespace, name)
}

fn name_of(object: &Json) -> NamespacedName {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    NamespacedName::new(text("namespace"), text("name"))
}

/// A cluster in which our classes are made and told.
fn known(gateways: &[Json]) -> Known {
    let mut known = Known::default();
    for what in What::ALL {
        known.objects.insert(what, Default::default());
    }
    for gateway in gateways {
        put(&mut known, What::Gateway, gateway.clone());
    }
    for mut class in classes::wanted(IstioNames::Auto) {
        class["status"] = classes::status(&class, now()).unwrap();
        put(&mut known, What::Class, class);
    }
    let mut mesh = classes::mesh();
    mesh["status"] = classes::status(&mesh, now()).unwrap();
    put(&mut known, What::Mesh, mesh);
    known
}

fn put(known: &mut Known, what: What, object: Json) {
    known.objects.entry(what).or_default().insert(name_of(&object), object);
}

/// As if all listeners could be served.
#[allow(clippy::unnecessary_wraps, reason = "as the joining has it")]
fn listened(_: &NamespacedName, spec: &Gateway) -> Option<Listened> {
    let told = |listener: &Listener| ListenerTold {
        name: listener.name.as_str().into(),
        kinds: if listener.protocol == "HBONE" { Vec::new() } else { vec!["HTTPRoute"] },
        ..ListenerTold::default()
    };
    let more = [(Transport::Tcp, 8443), (Transport::Udp, 9000)].map(|(transport, port)| Open { transport, port });
    let ports = spec.edges().take(1).flat_map(|_| more).collect();
    Some(Listened { told: spec.listeners.iter().map(told).collect(), ports, ..Listened::default() })
}

fn steps(known: &Known) -> Vec<Step> {
    round(known, &defaults(), &Settings::default(), |namespace| namespace != "outside", listened, now())
}

fn applied(steps: &[Step]) -> Vec<&Json> {
    let mut objects = Vec::new();
    for step in steps {
        if let Step::Apply(_, object, _) = step {
            objects.push(object);
        }
    }
    objects
}

fn told(steps: &[Step]) -> Vec<&Json> {
    let mut all = Vec::new();
    for step in steps {
        if let Step::Tell(_, body) = step {
            all.push(&body["status"]);
        }
    }
    all
}

/// Status, reason and message of a condition.
fn condition<'a>(status: &'a Json, kind: &str) -> (&'a str, &'a str, &'a str) {
    let all = status["conditions"].as_array().unwrap();
    let one = all.iter().find(|one| one["type"] == kind).unwrap();
    let text = |field: &str| one[field].as_str().unwrap();
    (text("status"), text("reason"), text("message"))
}

/// Does what steps say, as an API server would.
fn perform(known: &mut Known, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Apply(key, object, hash) => {
                // What others have written into it stays.
                let mut live = known.objects[&key.0].get(&key.1).cloned().unwrap_or_default();
                super::overlay::lay(&mut live, object);
                let mut object = live;
                object["metadata"]["uid"] = json!(format!("uid-of-{}", key.1.name));
                known.applied.insert(key.clone(), Applied { desired: *hash, live: essence(&object) });
                put(known, key.0, object);
            }
            Step::Delete(key, _) => drop(known.objects.get_mut(&key.0).unwrap().remove(&key.1)),
            Step::Tell(key, body) => {
                let object = known.objects.get_mut(&key.0).unwrap().get_mut(&key.1).unwrap();
                object["status"] = body["status"].clone();
            }
            Step::Read(_) => {}
        }
    }
}

fn object<'a>(known: &'a mut Known, what: What, own: &str) -> &'a mut Json {
    known.objects.get_mut(&what).unwrap().get_mut(&name("shop", own)).unwrap()
}

#[test]
fn a_waypoint_gets_what_serves_it_with_no_right_that_it_does_not_need() {
    let found = steps(&known(&[waypoint("wp", &json!({}))]));
    let objects = applied(&found);
    let kinds: Vec<&str> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ServiceAccount", "Deployment", "Service"]);
    for object in &objects {
        assert_eq!(name_of(object), name("shop", "wp"));
        let owner =
            json!([{ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": "wp", "uid": "uid-wp" }]);
        assert_eq!(object["metadata"]["ownerReferences"], owner);
        let labels = json!({
            "gateway.networking.k8s.io/gateway-name": "wp",
            "gateway.networking.k8s.io/gateway-class-name": "undermesh-waypoint",
            "gateway.istio.io/managed": "undermesh.io-gateway-controller",
        });
        assert_eq!(object["metadata"]["labels"], labels);
    }
    let (deployment, service) = (objects[1], objects[2]);
    assert_eq!(deployment["spec"]["replicas"], Json::Null);
    let selector = json!({ "gateway.networking.k8s.io/gateway-name": "wp" });
    assert_eq!(deployment["spec"]["selector"]["matchLabels"], selector);
    let template = &deployment["spec"]["template"];
    assert_eq!(template["metadata"]["labels"]["istio.io/dataplane-mode"], "none");
    assert_eq!(template["metadata"]["annotations"]["prometheus.io/port"], "15020");
    let pod = &template["spec"];
    assert_eq!((&pod["serviceAccountName"], &pod["automountServiceAccountToken"]), (&json!("wp"), &json!(false)));
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["sysctls"], Json::Null);
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    assert_eq!(
        (&security["readOnlyRootFilesystem"], &security["capabilities"]),
        (&json!(true), &json!({ "drop": ["ALL"] }))
    );
    assert_eq!(container["readinessProbe"]["httpGet"], json!({ "path": "/healthz/ready", "port": 15021 }));
    let token = &pod["volumes"][1]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(
        (&token["audience"], &pod["volumes"][0]["configMap"]["name"]),
        (&json!("istio-ca"), &json!("undermesh-root-cert"))
    );
    let arguments = container["args"].to_string();
    for argument in
        ["--gateway=wp", "--service-account=wp", "--control=mesh-control.undermesh-system.svc:15012", "--drain=20s"]
    {
        assert!(arguments.contains(argument), "{argument}: {arguments}");
    }
    assert!(!arguments.contains("--service="), "{arguments}");
    // It ends only after everybody knows, and after its requests.
    let leaving = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap();
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > leaving + 20);
    assert_eq!((&service["spec"]["type"], &service["spec"]["selector"]), (&json!("ClusterIP"), &selector));
    let ports: Vec<_> =
        service["spec"]["ports"].as_array().unwrap().iter().map(|p| (&p["port"], &p["appProtocol"])).collect();
    assert_eq!(ports, [(&json!(15021), &Json::Null), (&json!(15008), &json!("hbone"))]);
}

#[test]
fn what_a_gateway_says_of_its_objects_is_heeded() {
    let long = "a".repeat(253);
    let service = |steps: &[Step]| applied(steps).into_iter().find(|o| o["kind"] == "Service").unwrap().clone();
    let of = |gateway: Json| steps(&known(&[gateway]));

    let found = of(edge(&json!({})));
    let edge_service = service(&found);
    assert_eq!(
        (name_of(&edge_service), &edge_service["spec"]["type"]),
        (name("shop", "edge-undermesh"), &json!("LoadBalancer"))
    );
    let ports: Vec<String> = edge_service["spec"]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| format!("{} {}", p["name"], p["port"]))
        .collect();
    assert_eq!(
        ports,
        ["\"status-port\" 15021", "\"http-80\" 80", "\"tcp-9000\" 9000", "\"tcp-8443\" 8443", "\"udp-9000\" 9000"]
    );
    let pod = &applied(&found)[1]["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["sysctls"][0]["name"], "net.ipv4.ip_unprivileged_port_start");
    assert!(pod["containers"][0]["args"].to_string().contains("--service=edge-undermesh"));

    for (annotations, kind, own) in [
        (json!({ "networking.istio.io/service-type": "NodePort" }), "NodePort", "edge-undermesh"),
        (json!({ "gateway.istio.io/name-override": "front" }), "LoadBalancer", "front"),
    ] {
        let found = of(edge(&json!({ "metadata": { "annotations": annotations } })));
        assert_eq!((name_of(&service(&found)), &service(&found)["spec"]["type"]), (name("shop", own), &json!(kind)));
    }
    let found =
        of(waypoint("wp", &json!({ "metadata": { "annotations": { "gateway.istio.io/service-account": "gate" } } })));
    assert_eq!((name_of(applied(&found)[0]), name_of(applied(&found)[1])), (name("shop", "gate"), name("shop", "wp")));

    let infrastructure = json!({
        "labels": { "team": "a", "gateway.istio.io/managed": "me" },
        "annotations": { "b": "c", "networking.istio.io/service-type": "LoadBalancer" },
    });
    let found = of(waypoint("wp", &json!({ "spec": { "infrastructure": infrastructure } })));
    let objects = applied(&found);
    for metadata in [&objects[0]["metadata"], &objects[1]["spec"]["template"]["metadata"], &objects[2]["metadata"]] {
        assert_eq!((&metadata["labels"]["team"], &metadata["annotations"]["b"]), (&json!("a"), &json!("c")));
        assert_eq!(metadata["labels"]["gateway.istio.io/managed"], "undermesh.io-gateway-controller");
    }
    assert_eq!(service(&found)["spec"]["type"], "LoadBalancer");

    let found = of(waypoint(&long, &json!({})));
    let (deployed, label) = (name_of(applied(&found)[1]).name, &applied(&found)[1]["spec"]["selector"]["matchLabels"]);
    assert!(deployed.len() == 63 && label["gateway.networking.k8s.io/gateway-name"].as_str().unwrap().len() == 63);
    let arguments = applied(&found)[1]["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    assert!(arguments.contains(&format!("--gateway={long}")) && arguments.contains(&format!("--service={deployed}")));

    let found = of(edge(&json!({ "spec": { "addresses": [{ "value": "198.18.0.9" }] } })));
    assert_eq!(service(&found)["spec"]["loadBalancerIP"], "198.18.0.9");
    let found = of(edge(&json!({ "spec": { "addresses": [{ "type": "Hostname", "value": "mine" }] } })));
    assert!(applied(&found).is_empty(), "somebody else has made it: {found:?}");
    assert_eq!(told(&found)[0]["addresses"], json!([{ "type": "Hostname", "value": "mine.shop.svc.cluster.local" }]));
}

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
fn whose_a_gateway_is_its_class_decides() {
    let class = |controller: &str| json!({ "apiVersion": "gateway.networking.k8s.io/v1", "metadata": { "name": "istio-waypoint" }, "spec": { "controllerName": controller } });
    let theirs = waypoint("wp", &json!({ "spec": { "gatewayClassName": "istio-waypoint" } }));
    let settings = |names, runs| Settings { istio_names: names, istio_runs: runs, ..Settings::default() };
    for (what, object, settings, is_ours) in [
        ("nobody claims it", None, settings(IstioNames::Auto, false), true),
        ("an Istio runs", None, settings(IstioNames::Auto, true), false),
        ("the name is given to us", None, settings(IstioNames::Own, true), true),
        ("and taken from us", None, settings(IstioNames::Off, false), false),
        (
            "another controller has the class",
            Some("istio.io/gateway-controller"),
            settings(IstioNames::Own, false),
            false,
        ),
        ("we have it", Some(CONTROLLER), settings(IstioNames::Off, true), true),
    ] {
        let mut known = known(std::slice::from_ref(&theirs));
        if let Some(controller) = object {
            put(&mut known, What::Class, class(controller));
        }
        let steps = round(&known, &defaults(), &settings, |_| true, listened, now());
        let of_gateway = |step: &&Step| !matches!(step.key(), Some((What::Class, _)));
        assert_eq!(steps.iter().any(|step| of_gateway(&step)), is_ours, "{what}: {steps:?}");
    }
    let mut outside = waypoint("wp", &json!({}));
    outside["metadata"]["namespace"] = json!("outside");
    assert_eq!(steps(&known(&[outside])), []);
}

#[test]
fn features_GA_13_the_mesh_is_an_object_where_there_is_the_kind() {
    let own = name("", "undermesh");
    let mut known = known(&[]);
    let mesh = known.objects[&What::Mesh][&own].clone();
    let features = |object: &Json| object["status"]["supportedFeatures"].clone();
    assert_eq!(features(&mesh), features(&known.objects[&What::Class][&name("", "undermesh-waypoint")]));
    known.objects.get_mut(&What::Mesh).unwrap().remove(&own);
    assert!(matches!(&steps(&known)[..], [Step::Apply((What::Mesh, made), ..)] if *made == own));
    put(&mut known, What::Mesh, classes::mesh());
    let found = steps(&known);
    assert_eq!(
        (told(&found)[0]["supportedFeatures"].clone(), condition(told(&found)[0], "Accepted").0),
        (features(&mesh), "True")
    );
    // Another's stays, and a cluster may not have the kind.
    let mut theirs = mesh;
    theirs["spec"]["controllerName"] = json!("a.b/c");
    put(&mut known, What::Mesh, theirs);
    assert_eq!(steps(&known), []);
    known.objects.remove(&What::Mesh);
    assert_eq!(steps(&known), []);
}

#[test]
fn classes_are_made_once_and_told_what_they_can() {
    let names =
        |names| -> Vec<String> { classes::wanted(names).iter().map(|class| name_of(class).name.to_string()).collect() };
    assert_eq!(names(IstioNames::Auto), ["undermesh", "undermesh-waypoint"]);
    assert_eq!(names(IstioNames::Own), ["undermesh", "undermesh-waypoint", "istio", "istio-waypoint"]);
    let mut known = known(&[]);
    assert_eq!(steps(&known), []);
    for (class, has, has_not) in [("undermesh-waypoint", "Mesh", "Gateway"), ("undermesh", "Gateway", "Mesh")] {
        let class = &known.objects[&What::Class][&name("", class)];
        let features = class["status"]["supportedFeatures"].as_array().unwrap();
        let features: Vec<&str> = features.iter().map(|f| f["name"].as_str().unwrap()).collect();
        // The definition of classes lets no more stand there.
        assert!(features.is_sorted() && features.len() <= 64, "{features:?}");
        assert!(features.contains(&has) && !features.contains(&has_not), "{features:?}");
    }
    let own = name("", "undermesh-waypoint");
    let mut class = known.objects[&What::Class][&own].clone();
    // It is told again when it is another form of it.
    class["metadata"]["generation"] = json!(2);
    put(&mut known, What::Class, class.clone());
    let found = steps(&known);
    assert_eq!(told(&found)[0]["conditions"][0]["observedGeneration"], 2);
    class["spec"]["parametersRef"] = json!({ "group": "", "kind": "ConfigMap", "name": "x" });
    put(&mut known, What::Class, class);
    let found = steps(&known);
    assert_eq!(condition(told(&found)[0], "Accepted").1, "InvalidParameters");
    known.objects.get_mut(&What::Class).unwrap().remove(&own);
    assert!(matches!(&steps(&known)[..], [Step::Apply((What::Class, made), ..)] if *made == own));
    // Another controller's of this name stays.
    put(
        &mut known,
        What::Class,
        json!({ "metadata": { "name": "undermesh-waypoint" }, "spec": { "controllerName": "a.b/c" } }),
    );
    assert_eq!(steps(&known), []);
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
        let seen = super::standing::Seen { deployment: Some(&deployment), service: Some(&service), failure: None };
        let told = super::standing::told(&plan, seen, "shop", &Settings::default());
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
fn what_somebody_else_scales_stays_scaled_and_what_is_undone_is_done_again() {
    let mut known = known(&[waypoint("wp", &json!({}))]);
    let first = steps(&known);
    perform(&mut known, &first);
    let second = steps(&known);
    perform(&mut known, &second);
    assert!(applied(&steps(&known)).is_empty());

    let fields = json!({ "f:spec": { "f:replicas": {}, "f:template": { "f:spec": { "f:containers": {
        "k:{\"name\":\"istio-proxy\"}": { "f:resources": { "f:requests": { "f:cpu": {} } } },
    } } } } });
    let deployment = object(&mut known, What::Deployment, "wp");
    deployment["spec"]["replicas"] = json!(3);
    deployment["metadata"]["managedFields"] = json!([{ "manager": "kubectl-edit", "fieldsV1": fields }]);
    let found = steps(&known);
    let desired = applied(&found)[0];
    assert_eq!(desired["spec"]["replicas"], Json::Null);
    assert_eq!(
        desired["spec"]["template"]["spec"]["containers"][0]["resources"],
        json!({ "requests": { "memory": "64Mi" } })
    );

    object(&mut known, What::Service, "wp")["spec"]["selector"] = json!({ "a": "b" });
    let kinds: Vec<Json> = applied(&steps(&known)).iter().map(|object| object["kind"].clone()).collect();
    assert_eq!(kinds, ["Deployment", "Service"]);
    known.objects.get_mut(&What::Account).unwrap().clear();
    assert_eq!(applied(&steps(&known)).len(), 3);
}

#[test]
fn nothing_but_what_is_ours_is_ever_deleted() {
    let mut known = known(&[waypoint("wp", &json!({}))]);
    let first = steps(&known);
    perform(&mut known, &first);
    let deleted = |known: &Known| -> Vec<String> {
        let key = |step| {
            if let Step::Delete((what, name), uid) = step {
                Some(format!("{} {name} {uid}", what.kind()))
            } else {
                None
            }
        };
        steps(known).into_iter().filter_map(key).collect()
    };
    assert_eq!(deleted(&known), Vec::<String>::new());
    // One that is called so and has no label, one that was labelled by hand, one whose Gateway is another controller's now.
    let label = json!({ "gateway.istio.io/managed": "undermesh.io-gateway-controller" });
    put(&mut known, What::Service, json!({ "metadata": { "name": "a", "namespace": "shop", "uid": "1" } }));
    put(
        &mut known,
        What::Service,
        json!({ "metadata": { "name": "b", "namespace": "shop", "uid": "2", "labels": label } }),
    );
    let owner = json!([{ "kind": "Gateway", "name": "gone", "uid": "uid-gone" }]);
    let left = json!({ "metadata": { "name": "c", "namespace": "shop", "uid": "3", "labels": label, "ownerReferences": owner } });
    put(&mut known, What::Service, left);
    assert_eq!(deleted(&known), ["Service shop/c 3"]);
    known.objects.get_mut(&What::Service).unwrap().remove(&name("shop", "c"));

    // Under another name it leaves what it had.
    put(
        &mut known,
        What::Gateway,
        waypoint("wp", &json!({ "metadata": { "annotations": { "gateway.istio.io/name-override": "new" } } })),
    );
    assert_eq!(deleted(&known).len(), 3);
    put(&mut known, What::Gateway, waypoint("wp", &json!({ "spec": { "gatewayClassName": "nginx" } })));
    assert_eq!(deleted(&known).len(), 3);
    // What ends takes it along by itself.
    put(
        &mut known,
        What::Gateway,
        waypoint("wp", &json!({ "metadata": { "deletionTimestamp": "2026-11-22T10:00:00Z" } })),
    );
    assert_eq!(steps(&known), []);
}

#[test]
fn what_users_lay_over_is_bounded_to_where_and_how_well_pods_run() {
    let gateway = waypoint(
        "wp",
        &json!({ "spec": { "infrastructure": { "parametersRef": { "group": "", "kind": "ConfigMap", "name": "p" } } } }),
    );
    let own = name("shop", "p");
    let mut known = known(&[gateway]);
    assert_eq!(steps(&known), [Step::Read(own.clone())], "nothing is made before it has been looked at");

    let found = |data: Json| Parameters::Found(Box::new(json!({ "data": data })));
    let deployment = "spec:\n  replicas: 3\n  template:\n    metadata: {labels: {a: b, istio.io/dataplane-mode: ambient}}\n    spec:\n      nodeSelector: {edge: \"true\"}\n      containers: [{name: istio-proxy, resources: {limits: {cpu: \"2\"}}}]\n";
    let service = "spec: {externalTrafficPolicy: Local, ports: [{port: 15008, nodePort: 30008}]}\nmetadata: {labels: {gateway.istio.io/managed: me}}\n";
    known.parameters.insert(own.clone(), found(json!({ "deployment": deployment, "service": service })));
    let made = steps(&known);
    let (deployment, service) = (applied(&made)[1], applied(&made)[2]);
    assert_eq!(
        (&deployment["spec"]["replicas"], &deployment["spec"]["template"]["spec"]["nodeSelector"]),
        (&json!(3), &json!({ "edge": "true" }))
    );
    assert_eq!(deployment["spec"]["template"]["metadata"]["labels"]["istio.io/dataplane-mode"], "none");
    assert_eq!(deployment["spec"]["template"]["metadata"]["labels"]["a"], "b");
    let container = &deployment["spec"]["template"]["spec"]["containers"];
    assert_eq!(container.as_array().unwrap().len(), 1);
    assert_eq!(
        (&container[0]["resources"]["limits"]["cpu"], &container[0]["resources"]["requests"]["cpu"]),
        (&json!("2"), &json!("100m"))
    );
    assert_eq!(
        (&service["spec"]["ports"][1]["nodePort"], &service["spec"]["ports"][1]["targetPort"]),
        (&json!(30008), &json!(15008))
    );
    assert_eq!(service["metadata"]["labels"]["gateway.istio.io/managed"], "undermesh.io-gateway-controller");

    let pod = |text: &str| found(json!({ "deployment": format!("spec: {{template: {{spec: {{{text}}}}}}}") }));
    for (what, parameters, part) in [
        ("missing", Parameters::Missing, "there is none"),
        ("forbidden", Parameters::Forbidden, "RoleBinding in shop"),
        ("the node's network", pod("hostNetwork: true"), "spec.template.spec.hostNetwork: cannot be set here"),
        ("another's identity", pod("serviceAccountName: admin"), "spec.template.spec.serviceAccountName"),
        ("files of the node", pod("volumes: [{name: a, hostPath: {path: /}}]"), "spec.template.spec.volumes"),
        ("another program", pod("containers: [{name: istio-proxy, image: a}]"), "containers[].image"),
        ("a second program", pod("containers: [{name: other, image: a}]"), "istio-proxy"),
        (
            "more rights",
            pod("containers: [{name: istio-proxy, securityContext: {privileged: true}}]"),
            "securityContext",
        ),
        ("a secret", pod("containers: [{name: istio-proxy, env: [{name: a}]}]"), "env"),
        ("all of the pod at once", pod("containers: null, $patch: replace"), "$patch"),
        ("no program at all", pod("containers: null"), "containers: cannot be set"),
        ("a directive deeper down", pod("affinity: {$patch: delete}"), "directives"),
        ("another selector", found(json!({ "service": "spec: {selector: {a: b}}" })), "spec.selector"),
        ("another name", found(json!({ "service": "metadata: {name: b}" })), "metadata.name"),
        ("not YAML", found(json!({ "service": "{" })), "not valid YAML"),
        ("no object", found(json!({ "service": "[1]" })), "a part of an object"),
        ("too long", found(json!({ "service": "a".repeat(70_000) })), "longer than"),
        ("what is not built", found(json!({ "horizontalPodAutoscaler": "spec: {}" })), "not built"),
        ("an unknown part", found(json!({ "deploy": "spec: {}" })), "there is no such part"),
    ] {
        known.parameters.insert(own.clone(), parameters);
        let made = steps(&known);
        assert!(applied(&made).is_empty(), "{what}");
        let accepted = condition(told(&made)[0], "Accepted");
        assert_eq!((accepted.0, accepted.1), ("False", "InvalidParameters"), "{what}");
        assert!(accepted.2.contains(part), "{what}: {}", accepted.2);
    }
}
