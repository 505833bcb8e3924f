//! What is made of a Gateway, and what users may lay over it.

use super::super::plan::Parameters;
use super::*;

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
    // Of a waypoint it goes without saying that it takes tunnels; a gateway says so, unless its users say otherwise.
    assert_eq!(template["metadata"]["labels"]["networking.istio.io/tunnel"], Json::Null);
    for (more, said) in [
        (json!({}), "http"),
        (json!({ "spec": { "infrastructure": { "labels": { "networking.istio.io/tunnel": "none" } } } }), "none"),
    ] {
        let found = steps(&known(&[edge(&more)]));
        let template = &applied(&found)[1]["spec"]["template"];
        assert_eq!(template["metadata"]["labels"]["networking.istio.io/tunnel"], said);
    }
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
    let admin = container["env"].as_array().unwrap().iter().find(|env| env["name"] == "UNDERMESH_ADMIN").unwrap();
    assert_eq!(admin["value"], "@undermesh/$(UNDERMESH_POD)");
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

    // As the gateway of the profile demo: what its Service's ports lead to needs no port of its own number.
    let ports = json!({ "undermesh.io/service-ports": "http2=80:8080,https=443:8443" });
    let led = service(&of(edge(&json!({ "metadata": { "annotations": ports } }))));
    let ports: Vec<String> = led["spec"]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| format!("{} {}:{} {}", p["name"], p["port"], p["targetPort"], p["protocol"]).replace('"', ""))
        .collect();
    let expected = [
        "status-port 15021:15021 TCP",
        "http2 80:8080 TCP",
        "https 443:8443 TCP",
        "tcp-9000 9000:9000 TCP",
        "udp-9000 9000:9000 UDP",
    ];
    assert_eq!(ports, expected);

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
        (
            "another one's pods to scale",
            found(json!({ "horizontalPodAutoscaler": "spec: {scaleTargetRef: {name: other}}" })),
            "spec.scaleTargetRef: cannot be set here",
        ),
        (
            "another one's pods to keep",
            found(json!({ "podDisruptionBudget": "spec: {selector: {}}" })),
            "spec.selector: cannot be set here",
        ),
        (
            "a token for everybody",
            found(json!({ "serviceAccount": "automountServiceAccountToken: true" })),
            "automount",
        ),
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

#[test]
fn what_a_gateway_is_labelled_and_annotated_with_stands_on_what_serves_it_unless_it_says_other_things() {
    const INTERNAL: &str = "service.beta.kubernetes.io/azure-load-balancer-internal";
    let marks = json!({
        "labels": {
            "istio": "ingressgateway", "gateway.networking.k8s.io/gateway-name": "other", "gateway.istio.io/managed": "me",
            "istio.io/use-waypoint": "wp", "istio.io/use-waypoint-canary-namespace": "x", "istio.io/dataplane-mode": "ambient",
            "undermesh.io/waypoint-bypass": "refuse", "sidecar.istio.io/inject": "true", "app.kubernetes.io/managed-by": "Helm",
        },
        "annotations": {
            INTERNAL: "true", "kubectl.kubernetes.io/last-applied-configuration": "{}", "meta.helm.sh/release-name": "r",
            "ambient.istio.io/redirection": "enabled", "gateway.istio.io/service-account": "gate",
        },
    });
    let own = json!({
        "gateway.networking.k8s.io/gateway-name": "edge",
        "gateway.networking.k8s.io/gateway-class-name": "undermesh",
        "gateway.istio.io/managed": "undermesh.io-gateway-controller",
    });
    let with = |more: Json| {
        let mut labels = own.clone();
        super::super::overlay::lay(&mut labels, &more);
        labels
    };
    let theirs = with(json!({ "istio": "ingressgateway" }));
    let internal = json!({ INTERNAL: "true" });
    for (what, infrastructure, labels, annotations) in [
        ("it says nothing else", json!(null), theirs.clone(), internal.clone()),
        ("of parameters alone", json!({ "parametersRef": null }), theirs.clone(), internal.clone()),
        ("of labels", json!({ "labels": { "a": "b" } }), with(json!({ "a": "b" })), internal),
        ("of annotations", json!({ "annotations": { "a": "b" } }), theirs, json!({ "a": "b" })),
        ("nothing, of both", json!({ "labels": {}, "annotations": {} }), own.clone(), json!({})),
    ] {
        let spec = json!({ "infrastructure": infrastructure });
        let found = steps(&known(&[edge(&json!({ "metadata": marks, "spec": spec }))]));
        let objects = applied(&found);
        assert_eq!(objects.len(), 3, "{what}");
        for object in &objects {
            let metadata = &object["metadata"];
            assert_eq!((&metadata["labels"], &metadata["annotations"]), (&labels, &annotations), "{what}");
        }
        let pods = &objects[1]["spec"]["template"]["metadata"];
        for (key, value) in labels.as_object().unwrap() {
            assert_eq!(pods["labels"][key], *value, "{what}");
        }
        let (mode, sidecar) = (&pods["labels"]["istio.io/dataplane-mode"], &pods["labels"]["sidecar.istio.io/inject"]);
        assert_eq!((mode, sidecar), (&json!("none"), &json!("false")), "{what}");
        assert_eq!(pods["labels"]["istio.io/use-waypoint"], Json::Null, "{what}");
        assert_eq!(
            objects[2]["spec"]["selector"],
            json!({ "gateway.networking.k8s.io/gateway-name": "edge" }),
            "{what}"
        );
    }
}
