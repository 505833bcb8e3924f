//! Autoscalers and budgets: there only if a ConfigMap names them, and nobody's number of pods is fought over.

use super::super::plan::Parameters;
use super::*;

/// A waypoint whose ConfigMap says this.
fn with(data: &Json) -> Known {
    let reference = json!({ "group": "", "kind": "ConfigMap", "name": "p" });
    let mut known = known(&[waypoint(
        "wp",
        &json!({ "spec": { "infrastructure": { "parametersRef": reference, "labels": { "team": "a" } } } }),
    )]);
    say(&mut known, data);
    known
}

fn say(known: &mut Known, data: &Json) {
    known.parameters.insert(name("shop", "p"), Parameters::Found(Box::new(json!({ "data": data }))));
}

/// Does all there is to do, and says what was made and taken away.
fn done(known: &mut Known) -> Vec<String> {
    let found = steps(known);
    perform(known, &found);
    let line = |step: &Step| match step {
        Step::Apply((what, name), ..) => Some(format!("+ {} {}", what.kind(), name.name)),
        Step::Delete((what, name), _) => Some(format!("- {} {}", what.kind(), name.name)),
        _ => None,
    };
    found.iter().filter_map(line).collect()
}

#[test]
fn features_GA_2_autoscaler_and_budget_are_there_only_while_they_are_named() {
    const USUAL: [&str; 3] = ["+ ServiceAccount wp", "+ Deployment wp", "+ Service wp"];
    let (scaler, budget) = ("+ HorizontalPodAutoscaler wp", "+ PodDisruptionBudget wp");
    for (what, data, more) in [
        ("neither", json!({}), &[][..]),
        ("one", json!({ "horizontalPodAutoscaler": "spec: {maxReplicas: 5}" }), &[scaler]),
        ("one that says nothing of itself", json!({ "podDisruptionBudget": "" }), &[budget]),
        (
            "both, as Istio's manual has them",
            json!({ "horizontalPodAutoscaler": "spec:\n  minReplicas: 2\n  maxReplicas: 2\n", "podDisruptionBudget": "spec:\n  minAvailable: 1\n" }),
            &[scaler, budget],
        ),
    ] {
        let mut known = with(&data);
        assert_eq!(done(&mut known), [&USUAL, more].concat(), "{what}");
        assert_eq!(done(&mut known), Vec::<String>::new(), "{what}: it stands");
        say(&mut known, &json!({}));
        let gone: Vec<String> = more.iter().map(|line| line.replace('+', "-")).collect();
        assert_eq!(done(&mut known), gone, "{what}: the keys go");
        assert_eq!(done(&mut known), Vec::<String>::new(), "{what}");
    }
}

#[test]
fn features_GA_2_whose_pods_an_autoscaler_and_a_budget_are_about_is_ours_to_say() {
    let known = with(&json!({
        "horizontalPodAutoscaler": "apiVersion: autoscaling/v1\nkind: Pod\nmetadata: {labels: {gateway.istio.io/managed: me, b: c}}\nspec: {minReplicas: 2, metrics: [{type: Resource}]}",
        "podDisruptionBudget": "metadata: {annotations: {d: e}}\nspec: {maxUnavailable: 50%}",
        "serviceAccount": "metadata: {annotations: {cloud.example/role: edge}, labels: {gateway.istio.io/managed: me}}",
    }));
    let found = steps(&known);
    let [account, .., scaler, budget] = applied(&found)[..] else { panic!("{found:?}") };
    for object in [account, scaler, budget] {
        let metadata = &object["metadata"];
        assert_eq!(metadata["labels"]["gateway.istio.io/managed"], "undermesh.io-gateway-controller");
        assert_eq!(
            (&metadata["labels"]["team"], &metadata["ownerReferences"][0]["uid"]),
            (&json!("a"), &json!("uid-wp"))
        );
    }
    assert_eq!((&account["kind"], &account["automountServiceAccountToken"]), (&json!("ServiceAccount"), &json!(false)));
    assert_eq!(account["metadata"]["annotations"]["cloud.example/role"], "edge");
    assert_eq!((&scaler["apiVersion"], &scaler["kind"]), (&json!("autoscaling/v2"), &json!("HorizontalPodAutoscaler")));
    let target = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "wp" });
    let spec =
        json!({ "scaleTargetRef": target, "maxReplicas": 1, "minReplicas": 2, "metrics": [{ "type": "Resource" }] });
    assert_eq!((&scaler["spec"], &scaler["metadata"]["labels"]["b"]), (&spec, &json!("c")));
    let pods = json!({ "matchLabels": { "gateway.networking.k8s.io/gateway-name": "wp" } });
    assert_eq!(budget["spec"], json!({ "selector": pods, "maxUnavailable": "50%" }));
    assert_eq!((&budget["apiVersion"], &budget["metadata"]["annotations"]["d"]), (&json!("policy/v1"), &json!("e")));
}

#[test]
fn features_GA_2_a_budget_has_one_number_the_more_specific_one() {
    let (least, most) = (json!({ "minAvailable": 1 }), json!({ "maxUnavailable": "50%" }));
    for (of_class, own, expected) in [
        ("{minAvailable: 1}", "{maxUnavailable: 50%}", &most),
        ("{maxUnavailable: 50%}", "{minAvailable: 1}", &least),
        ("{minAvailable: 2}", "{minAvailable: 1}", &least),
        ("{minAvailable: 1}", "{}", &least),
        ("{maxUnavailable: 50%}", "{minAvailable: null}", &most),
        ("{}", "{maxUnavailable: 50%}", &most),
    ] {
        let mut known = with(&json!({ "podDisruptionBudget": format!("spec: {own}") }));
        let labels = json!({ "gateway.istio.io/defaults-for-class": "undermesh-waypoint" });
        let data = json!({ "podDisruptionBudget": format!("spec: {of_class}") });
        known.of_classes = Some(Ok(vec![json!({ "metadata": { "name": "w", "labels": labels }, "data": data })]));
        let found = steps(&known);
        let mut spec = applied(&found)[3]["spec"].clone();
        spec.as_object_mut().unwrap().remove("selector");
        assert_eq!(spec, *expected, "{of_class} {own}");
    }
}

#[test]
fn features_GA_2_an_autoscaler_s_number_of_pods_stays() {
    let fields = |manager: &str| json!({ "manager": manager, "fieldsV1": { "f:spec": { "f:replicas": {} } } });
    let (ours, theirs) = (fields("mesh-control-gateways"), fields("kube-controller-manager"));
    for (what, is_scaled, said, managers, stands, expected) in [
        ("nobody says a number", true, None, json!([]), 1, Json::Null),
        ("what it begins with", true, Some(3), json!([]), 1, json!(3)),
        (
            "until it is scaled what stands is said: taken back, it would be one",
            true,
            Some(3),
            json!([ours]),
            4,
            json!(4),
        ),
        ("what an autoscaler has written it keeps", true, Some(3), json!([theirs]), 7, Json::Null),
        ("also beside ours", true, Some(3), json!([ours, theirs]), 7, Json::Null),
        ("without one the ConfigMap counts", false, Some(3), json!([theirs]), 7, json!(3)),
        ("and without a word whoever wrote it", false, None, json!([theirs]), 7, Json::Null),
    ] {
        let deployment = said.map(|n| format!("spec: {{replicas: {n}}}")).unwrap_or_default();
        let mut data = json!({ "deployment": deployment });
        if is_scaled {
            data["horizontalPodAutoscaler"] = json!("spec: {maxReplicas: 9}");
        }
        let mut known = with(&data);
        done(&mut known);
        let live = object(&mut known, What::Deployment, "wp");
        live["spec"]["replicas"] = json!(stands);
        live["metadata"]["managedFields"] = managers;
        let found = steps(&known);
        assert_eq!(applied(&found)[0]["spec"]["replicas"], expected, "{what}");
    }
}

#[test]
fn features_GA_2_what_is_for_a_class_comes_before_what_a_gateway_names() {
    let of_class = |class: &str, name: &str, data: Json| {
        let labels = json!({ "gateway.istio.io/defaults-for-class": class });
        json!({ "metadata": { "name": name, "labels": labels }, "data": data })
    };
    let both = json!({ "horizontalPodAutoscaler": "spec: {minReplicas: 2, maxReplicas: 5}", "deployment": "spec: {minReadySeconds: 3}" });
    let mut known = with(&json!({ "horizontalPodAutoscaler": "spec: {maxReplicas: 9}" }));
    known.of_classes = None;
    assert_eq!(steps(&known), [Step::ReadOfClasses], "nothing is made before they have been looked at");
    known.of_classes = Some(Ok(vec![
        of_class("undermesh-waypoint", "w", both.clone()),
        of_class("undermesh", "e", json!({ "podDisruptionBudget": "" })),
    ]));
    let found = steps(&known);
    let [_, deployment, _, scaler] = applied(&found)[..] else { panic!("{found:?}") };
    assert_eq!(deployment["spec"]["minReadySeconds"], 3);
    assert_eq!((&scaler["spec"]["minReplicas"], &scaler["spec"]["maxReplicas"]), (&json!(2), &json!(9)));
    // Of a Gateway that names none, too; and what is for another class is not for it.
    put(&mut known, What::Gateway, waypoint("other", &json!({})));
    let found = steps(&known);
    let of_other: Vec<&Json> =
        applied(&found).into_iter().filter(|object| object["metadata"]["name"] == "other").collect();
    assert_eq!((of_other.len(), &of_other[3]["spec"]["maxReplicas"]), (4, &json!(5)));
    perform(&mut known, &found);
    for (all, part) in [
        (
            // What it says may not be taken away while nobody may look.
            Err(super::super::plan::of_classes_forbidden("undermesh-system")),
            "the control plane may not read ConfigMaps of undermesh-system",
        ),
        (
            Ok(vec![of_class("undermesh-waypoint", "w", json!({ "deploy": "" }))]),
            "ConfigMap w of the class undermesh-waypoint: data.deploy: there is no such part",
        ),
        (
            Ok(vec![of_class("undermesh-waypoint", "w", both.clone()), of_class("undermesh-waypoint", "x", both)]),
            "ConfigMaps w and x are for the class undermesh-waypoint: delete one",
        ),
    ] {
        known.of_classes = Some(all);
        let found = steps(&known);
        let is_deleted = found.iter().any(|step| matches!(step, Step::Delete(..)));
        assert!(applied(&found).is_empty() && !is_deleted, "what was made stays as it is");
        let accepted = condition(told(&found)[0], "Accepted");
        assert!(accepted.1 == "InvalidParameters" && accepted.2.contains(part), "{accepted:?}");
    }
}
