//! Which Gateways, classes, objects and fields are ours, and that the others stay as they are.

use super::*;
use crate::resource::routing::reference::CONTROLLER;

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
    let class = json!({ "metadata": { "name": "nginx" }, "spec": { "controllerName": "a.b/c" } });
    put(&mut known, What::Class, class);
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
fn what_was_made_stays_while_nobody_has_the_class() {
    let own = waypoint("wp", &json!({ "spec": { "gatewayClassName": "mine" } }));
    let class = |controller: &str| json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": { "name": "mine" }, "spec": { "controllerName": controller } });
    let mut known = known(&[own]);
    put(&mut known, What::Class, class(CONTROLLER));
    for _ in 0..2 {
        let found = steps(&known);
        perform(&mut known, &found);
    }
    assert_eq!(steps(&known), []);
    // As `kubectl replace --force` does it.
    known.objects.get_mut(&What::Class).unwrap().remove(&name("", "mine"));
    assert_eq!(steps(&known), []);
    put(&mut known, What::Class, class("a.b/c"));
    let deleted = steps(&known).into_iter().filter(|step| matches!(step, Step::Delete(..)));
    assert_eq!(deleted.count(), 3, "somebody else has it");
}

#[test]
fn of_two_gateways_with_one_name_for_what_serves_them_one_is_served() {
    let named = |own: &str, made: &str, uid: &str| {
        let annotations = json!({ "gateway.istio.io/name-override": "front" });
        let metadata = json!({ "annotations": annotations, "creationTimestamp": made, "uid": uid });
        waypoint(own, &json!({ "metadata": metadata }))
    };
    let (first, second) = ("2026-11-20T10:00:00Z", "2026-11-21T10:00:00Z");
    let owner = |known: &Known, what: What| {
        let object = &known.objects[&what][&name("shop", "front")];
        object["metadata"]["ownerReferences"][0]["name"].as_str().unwrap().to_owned()
    };
    let accepted = |known: &Known, own: &str| {
        let status = &known.objects[&What::Gateway][&name("shop", own)]["status"];
        let (holds, reason, message) = condition(status, "Accepted");
        (holds.to_owned(), reason.to_owned(), message.to_owned())
    };
    // The older one, whatever it is called.
    let mut known = known(&[named("a", second, "1"), named("z", first, "2")]);
    for _ in 0..3 {
        let found = steps(&known);
        perform(&mut known, &found);
    }
    assert_eq!(steps(&known), [], "they do not fight");
    assert_eq!((owner(&known, What::Deployment), owner(&known, What::Service)), ("z".into(), "z".into()));
    assert_eq!(accepted(&known, "z").0, "True");
    let (holds, reason, message) = accepted(&known, "a");
    assert_eq!((&*holds, &*reason), ("False", "Invalid"));
    assert!(message.contains("front are what serves Gateway shop/z") && message.contains("name-override"), "{message}");
    // Who has it keeps it: an older one that comes to be called so does not take it.
    put(&mut known, What::Gateway, named("b", "2026-11-01T10:00:00Z", "3"));
    for _ in 0..3 {
        let found = steps(&known);
        perform(&mut known, &found);
    }
    assert_eq!((owner(&known, What::Deployment), accepted(&known, "b").0), ("z".into(), "False".into()));
    // When it is called otherwise its Deployment goes, whose pods nobody else can take over, and the next one's is made.
    let elsewhere = json!({ "gateway.istio.io/name-override": "back" });
    let metadata = json!({ "annotations": elsewhere, "creationTimestamp": first, "uid": "2" });
    put(&mut known, What::Gateway, waypoint("z", &json!({ "metadata": metadata })));
    let found = steps(&known);
    let goes = |step: &Step| matches!(step, Step::Delete((What::Deployment, key), _) if key.name == "front");
    assert!(found.iter().any(goes), "{found:?}");
    for _ in 0..4 {
        let found = steps(&known);
        perform(&mut known, &found);
    }
    assert_eq!(owner(&known, What::Deployment), "b");
    let of_service = &known.objects[&What::Service][&name("shop", "front")]["spec"]["selector"];
    let of_pods = &known.objects[&What::Deployment][&name("shop", "front")]["spec"]["selector"]["matchLabels"];
    let label = "gateway.networking.k8s.io/gateway-name";
    assert_eq!((&of_service[label], &of_pods[label]), (&json!("b"), &json!("b")));
    // When one goes, and takes along what it had, the next one is served.
    known.objects.get_mut(&What::Gateway).unwrap().remove(&name("shop", "b"));
    put(&mut known, What::Gateway, named("b", "2026-11-01T10:00:00Z", "4"));
    known.objects.get_mut(&What::Gateway).unwrap().remove(&name("shop", "z"));
    What::MADE.iter().for_each(|what| known.objects.get_mut(what).unwrap().clear());
    for _ in 0..3 {
        let found = steps(&known);
        perform(&mut known, &found);
    }
    assert_eq!(
        (owner(&known, What::Deployment), accepted(&known, "b").0, accepted(&known, "a").0),
        ("b".into(), "True".into(), "False".into())
    );
}

#[test]
fn two_gateways_with_one_service_account_share_it() {
    let with = |own: &str| {
        waypoint(own, &json!({ "metadata": { "annotations": { "gateway.istio.io/service-account": "gate" } } }))
    };
    let mut known = known(&[with("a"), with("b")]);
    for _ in 0..3 {
        let found = steps(&known);
        perform(&mut known, &found);
    }
    assert_eq!(steps(&known), []);
}
