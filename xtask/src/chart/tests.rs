//! The chart: what it makes of values, what it refuses, and what may never be in it. Those that need Helm's engine say SKIPPED without it.
use super::*;
use std::io::Write;

/// Not by a macro: what these print is hidden when a test passes.
fn engine(test: &str) -> Option<Engine> {
    Engine::find()
        .map_err(|error| {
            writeln!(std::io::stderr(), "SKIPPED: {test}: {error:#}").expect("said");
        })
        .ok()
}

fn objects(engine: &Engine, values: Value) -> Result<Vec<Value>> {
    let files = engine.render(&folder()?, NAMESPACE, &values, Moment::Installation)?;
    engine.parse(&join(files.into_iter().map(|(_, text)| text)))
}

fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn arguments(workload: &Value) -> Vec<String> {
    let arguments = workload["spec"]["template"]["spec"]["containers"][0]["args"].as_array().expect("arguments");
    arguments.iter().map(|argument| argument.as_str().expect("a text").to_owned()).collect()
}

/// Every value that a template looks at, away from what it is by itself.
fn everything_else() -> Value {
    json!({
        "namespace": { "create": true },
        "image": { "hub": "registry.example/mesh", "tag": "9.9.9", "pullPolicy": "Always", "pullSecrets": [{ "name": "registry" }] },
        "network": "west",
        "meshRanges": ["10.244.0.0/16", "fd00::/48"],
        "listenAddress": "[::]",
        "commonLabels": { "team": "mesh" },
        "meshConfig": { "accessLogFile": "/dev/stdout" },
        "control": {
            "replicas": 3, "san": ["mesh.example"], "extraArgs": ["--istio-names=off"], "tolerations": [{ "operator": "Exists" }],
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{ "matchFields":
                [{ "key": "metadata.name", "operator": "In", "values": ["n1"] }] }] } } },
            "podLabels": { "a": "b" }, "podAnnotations": { "c": "d" }, "serviceAnnotations": { "e": "f" },
        },
        "agent": {
            "cgroups": { "pods": "/sys/fs/cgroup/a", "own": "/sys/fs/cgroup/b" }, "cniBinDir": "/c", "cniConfDir": "/d", "netnsDir": "/e",
            "udp": "deny", "sidecars": true, "workers": 2, "extraArgs": ["--crl=/f"], "extraCapabilities": ["SYS_RESOURCE"], "seLinuxOptions": { "type": "spc_t" },
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{ "matchFields":
                [{ "key": "metadata.name", "operator": "In", "values": ["n1"] }] }] } } },
            "podLabels": { "a": "b" }, "podAnnotations": { "c": "d" },
        },
        "admission": { "probeHosts": { "exceptNamespaces": [] } },
        "resourceQuota": { "enabled": true },
        "networkPolicy": { "metricsFrom": [{ "namespaceSelector": {} }] },
        "metrics": { "serviceMonitor": { "enabled": true, "labels": { "g": "h" } }, "podMonitor": { "enabled": true, "labels": { "g": "h" } } },
    })
}

#[test]
fn the_rendered_manifests_are_what_the_chart_makes() {
    let Some(engine) = engine("rendered manifests") else { return };
    for (path, text) in manifests(&engine).expect("rendered") {
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == text, "{} is stale: run `cargo xtask chart`", path.display());
    }
}

#[test]
fn every_platform_and_every_value_gives_objects_that_kubernetes_takes() {
    let Some(engine) = engine("the chart's objects") else { return };
    let platforms = ["", "gke", "openshift", "k3s", "k3d", "microk8s", "minikube"];
    let mut sets: Vec<Value> = platforms.map(|platform| json!({ "platform": platform })).into();
    sets.push(everything_else());
    sets.push(in_an_istio());
    sets.push(json!({ "profile": "demo" }));
    let chart = folder().expect("a folder");
    let mut all = Vec::new();
    for values in sets {
        assert_eq!(engine.lint(&chart, &values).expect("linted"), Vec::<String>::new(), "{values}");
        for object in objects(&engine, values.clone()).expect("rendered") {
            let cluster_wide = ["Namespace", "ClusterRole", "ClusterRoleBinding"];
            let kind = object["kind"].as_str().unwrap_or("");
            let namespaced = !cluster_wide.contains(&kind) && !kind.starts_with("Validating");
            assert_eq!(object["metadata"]["namespace"] == NAMESPACE, namespaced, "{}", object["metadata"]);
            assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/part-of"], "undermesh");
            // The schemas of these are the Prometheus operator's, and the Gateway API's.
            let is_of_others = ["monitoring.coreos.com/v1", "gateway.networking.k8s.io/v1"]
                .contains(&object["apiVersion"].as_str().unwrap_or(""));
            if !is_of_others && !all.contains(&object) {
                all.push(object);
            }
        }
    }
    assert_valid(&engine, &all);
}

/// Asked once for all: the engine takes a second to start.
fn assert_valid(engine: &Engine, objects: &[Value]) {
    for version in VERSIONS {
        assert_eq!(engine.validate(version, objects).expect("checked"), Vec::<String>::new(), "{version}");
    }
}

#[test]
fn values_arrive_where_they_belong() {
    let Some(engine) = engine("the chart's values") else { return };
    let objects = objects(&engine, everything_else()).expect("rendered");
    let (control, agent) =
        (object(&objects, "Deployment", "mesh-control"), object(&objects, "DaemonSet", "mesh-agent"));
    for (workload, wanted) in [
        (
            control,
            &[
                "--listen=[::]:15012",
                "--metrics=[::]:15014",
                "--san=mesh.example",
                "--istio-names=off",
                "--webhook=[::]:15017",
                "--gateway-image=registry.example/mesh/mesh-waypoint:9.9.9",
                "--gateway-pull-policy=Always",
                "--gateway-pull-secret=registry",
                "--gateway-network=west",
            ][..],
        ),
        (
            agent,
            &[
                "--mesh-ranges=10.244.0.0/16,fd00::/48",
                "--network=west",
                "--workers=2",
                "--udp=deny",
                "--sidecars=on",
                "--pods-cgroup=/sys/fs/cgroup/a",
                "--agent-cgroup=/sys/fs/cgroup/b",
                "--crl=/f",
            ],
        ),
    ] {
        let arguments = arguments(workload);
        for argument in wanted {
            assert!(arguments.iter().any(|given| given == argument), "{argument} is not in {arguments:?}");
        }
        let template = &workload["spec"]["template"];
        assert_eq!(
            (&template["metadata"]["labels"]["a"], &template["metadata"]["annotations"]["c"]),
            (&json!("b"), &json!("d"))
        );
        assert_eq!(template["metadata"]["labels"]["team"], "mesh");
        assert_eq!(template["spec"]["imagePullSecrets"], json!([{ "name": "registry" }]));
        let image = template["spec"]["containers"][0]["image"].as_str().expect("an image");
        assert!(image.starts_with("registry.example/mesh/mesh-") && image.ends_with(":9.9.9"), "{image}");
    }
    let folders: Vec<_> = agent["spec"]["template"]["spec"]["volumes"].as_array().expect("volumes").iter().collect();
    for folder in ["/c", "/d", "/e"] {
        assert!(folders.iter().any(|volume| volume["hostPath"]["path"] == folder), "{folder}");
    }
    assert_eq!(object(&objects, "ConfigMap", "undermesh")["data"]["mesh"], "accessLogFile: /dev/stdout\n");
    // By which pods are selected must never change: it cannot be updated.
    for workload in [control, agent] {
        let labels: Vec<_> = workload["spec"]["selector"]["matchLabels"].as_object().expect("labels").keys().collect();
        assert_eq!(labels, ["app.kubernetes.io/instance", "app.kubernetes.io/name"]);
    }
}

/// Agents in ztunnel's place.
fn in_an_istio() -> Value {
    let control = json!({ "address": "istiod.istio-system.svc:15012", "rootConfigMap": "istio-ca-root-cert", "audience": "istio-ca" });
    json!({ "control": { "enabled": false }, "agent": { "controlPlane": control, "istioCni": { "enabled": true } } })
}

#[test]
fn agents_alone_ask_who_they_are_told_and_nothing_of_a_control_plane_is_made() {
    let Some(engine) = engine("agents alone") else { return };
    let objects = objects(&engine, in_an_istio()).expect("rendered");
    assert!(!json!(objects).to_string().contains("mesh-control"), "{objects:#?}");
    let agent = object(&objects, "DaemonSet", "mesh-agent");
    assert_eq!(agent["metadata"]["annotations"]["undermesh.io/control-plane"], "istiod.istio-system.svc:15012");
    let spec = &agent["spec"]["template"]["spec"];
    for container in spec["containers"].as_array().expect("containers") {
        let arguments = container["args"].as_array().expect("arguments");
        for wanted in ["--control=istiod.istio-system.svc:15012", "--zds=/var/run/ztunnel/ztunnel.sock", "--cni=remove"]
        {
            assert!(arguments.contains(&json!(wanted)), "{wanted}: {arguments:?}");
        }
        for not in ["--kube=cluster", "--cni=on"] {
            assert!(!arguments.contains(&json!(not)), "{not}: {arguments:?}");
        }
        let mounts = container["volumeMounts"].as_array().expect("mounts");
        assert!(mounts.contains(&json!({ "name": "istio-cni", "mountPath": "/var/run/ztunnel" })), "{mounts:?}");
    }
    let volume = |name: &str| {
        let volumes = spec["volumes"].as_array().expect("volumes");
        volumes.iter().find(|volume| volume["name"] == name).cloned().unwrap_or_default()
    };
    assert_eq!(volume("root-cert")["configMap"]["name"], "istio-ca-root-cert");
    assert_eq!(volume("token")["projected"]["sources"][0]["serviceAccountToken"]["audience"], "istio-ca");
}

#[test]
#[allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]
fn features_PL5_pods_that_have_others_called_are_refused_but_in_excepted_namespaces() {
    let Some(engine) = engine("probes of others") else { return };
    let name = "probe-hosts.undermesh.io";
    let selector = |values: Value| {
        let objects = objects(&engine, values).expect("rendered");
        let binding = object(&objects, "ValidatingAdmissionPolicyBinding", name);
        assert_eq!(binding["spec"], json!({ "policyName": name, "validationActions": ["Deny"] }));
        object(&objects, "ValidatingAdmissionPolicy", name)["spec"]["matchConstraints"]["namespaceSelector"].clone()
    };
    let except = |names: &[&str]| json!({ "matchExpressions": [{ "key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": names }] });
    assert_eq!(selector(json!({})), except(&["kube-system"]));
    let values = |names: &[&str]| json!({ "admission": { "probeHosts": { "exceptNamespaces": names } } });
    assert_eq!(selector(values(&["a", "b"])), except(&["a", "b"]));
    assert_eq!(selector(values(&[])), Value::Null);
    let off = objects(&engine, json!({ "admission": { "probeHosts": { "enabled": false } } })).expect("rendered");
    assert!(off.iter().all(|object| object["metadata"]["name"] != name));
}

/// What mesh-control changes later is said once, and never again.
#[test]
fn the_webhook_holds_nobody_up_before_it_answers_and_is_left_alone_afterwards() {
    let Some(engine) = engine("the webhook") else { return };
    let policies = |moment| -> Vec<Value> {
        let files = engine.render(&folder().expect("a folder"), NAMESPACE, &json!({}), moment).expect("rendered");
        let objects = engine.parse(&join(files.into_iter().map(|(_, text)| text))).expect("parsed");
        let webhooks = &object(&objects, "ValidatingWebhookConfiguration", "undermesh-validation")["webhooks"];
        webhooks.as_array().expect("webhooks").iter().map(|webhook| webhook["failurePolicy"].clone()).collect()
    };
    assert_eq!(policies(Moment::Installation), ["Ignore"; 3]);
    assert_eq!(policies(Moment::Upgrade), [Value::Null, Value::Null, Value::Null]);
}

#[test]
fn what_is_no_value_is_refused_by_name() {
    let Some(engine) = engine("the chart's schema") else { return };
    let rows = [
        (json!({ "agents": {} }), "agents"),
        (json!({ "agent": { "cniBinDirectory": "/a" } }), "cniBinDirectory"),
        (json!({ "platform": "windows" }), "platform"),
        (json!({ "profile": "empty" }), "profile"),
        (json!({ "profile": "demo", "gateways": { "enabled": false } }), "gateways.enabled"),
        (json!({ "gateways": { "ingress": { "serviceType": "ExternalName" } } }), "serviceType"),
        (json!({ "control": { "replicas": 0 } }), "replicas"),
        (json!({ "control": { "enabled": false } }), "agent.controlPlane.address"),
        (json!({ "agent": { "controlPlane": { "address": "istiod" } } }), "address"),
        (json!({ "control": { "secretTtl": "24" } }), "secretTtl"),
        (json!({ "agent": { "udp": "maybe" } }), "udp"),
        (json!({ "admission": { "probeHosts": false } }), "probeHosts"),
        (json!({ "agent": { "cgroups": { "pods": "kubepods" } } }), "pods"),
        (json!({ "meshRanges": "10.0.0.0/8" }), "meshRanges"),
        (json!({ "log": { "format": "xml" } }), "format"),
        (json!({ "image": { "pullPolicy": "Sometimes" } }), "pullPolicy"),
    ];
    for (values, name) in rows {
        let error = objects(&engine, values.clone()).expect_err(&values.to_string()).to_string();
        assert!(error.contains(name), "{values}: {error}");
    }
}

#[test]
#[allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]
fn features_EN14_the_agent_has_the_rights_it_needs_and_the_control_plane_none() {
    let Some(engine) = engine("rights") else { return };
    let objects = objects(&engine, json!({})).expect("rendered");
    let pod = |kind: &str, name: &str| object(&objects, kind, name)["spec"]["template"]["spec"].clone();
    let (control, agent) = (pod("Deployment", "mesh-control"), pod("DaemonSet", "mesh-agent"));
    for (pod, names) in [(&control, &["mesh-control"][..]), (&agent, &["mesh-agent", "standby"])] {
        let all = pod["containers"].as_array().expect("containers");
        assert_eq!(all.iter().map(|one| one["name"].as_str().expect("a name")).collect::<Vec<_>>(), names);
        let container = &pod["containers"][0];
        let context = &container["securityContext"];
        assert_eq!(
            (&context["readOnlyRootFilesystem"], &context["capabilities"]["drop"]),
            (&json!(true), &json!(["ALL"]))
        );
        assert!(
            container["resources"]["requests"]["cpu"].is_string()
                && container["resources"]["requests"]["memory"].is_string()
        );
        assert!(container["readinessProbe"].is_object() && pod["priorityClassName"].is_string());
        assert!(pod["hostPID"].is_null() && pod["hostIPC"].is_null());
    }
    // Whoever waits to do the agent's work can do it, and two agents may be on a node.
    let [first, standby] = [0, 1].map(|index| &agent["containers"][index]);
    for field in ["image", "args", "env", "securityContext", "volumeMounts"] {
        assert!(!first[field].is_null() && first[field] == standby[field], "{field}");
    }
    assert!(first["ports"].is_null() && standby["ports"].is_null() && standby["readinessProbe"].is_null());
    // The standard `restricted`.
    let context = &control["containers"][0]["securityContext"];
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!((&context["runAsNonRoot"], &context["capabilities"]["add"]), (&json!(true), &Value::Null));
    assert_eq!(control["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert!(control["hostNetwork"].is_null() && control["volumes"].is_null());

    let context = &agent["containers"][0]["securityContext"];
    assert_eq!((&context["privileged"], &context["seccompProfile"]["type"]), (&json!(false), &json!("RuntimeDefault")));
    assert_eq!(context["capabilities"]["add"], json!(["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"]));
    let mounts = agent["containers"][0]["volumeMounts"].as_array().expect("mounts");
    let writable = mounts.iter().filter(|mount| mount["readOnly"] != true);
    let writable: Vec<&str> = writable.map(|mount| mount["mountPath"].as_str().expect("a path")).collect();
    let expected = [
        "/sys/fs/bpf",
        "/sys/fs/cgroup",
        "/opt/cni/bin",
        "/etc/cni/net.d",
        "/var/lib/cni/results",
        "/run/undermesh",
        "/var/lib/undermesh",
    ];
    assert_eq!(writable, expected);

    for object in
        objects.iter().filter(|object| ["ClusterRole", "Role"].contains(&object["kind"].as_str().unwrap_or("")))
    {
        for rule in object["rules"].as_array().expect("rules") {
            assert!(!rule.to_string().contains("\"*\""), "{rule}");
            let secrets = rule["resources"].as_array().is_some_and(|names| names.contains(&json!("secrets")));
            let is_of_gateways = object["metadata"]["name"] == "undermesh-gateway-secrets";
            assert!(
                !secrets || is_of_gateways || object["kind"] == "Role",
                "Secrets of the root namespace only: {rule}"
            );
            // Some ConfigMaps say who is an administrator. Only who binds a role of ours by himself lets them be read, or who lets Secrets be read, which say more.
            let maps = rule["resources"].as_array().is_some_and(|names| names.contains(&json!("configmaps")));
            let is_unbound = object["metadata"]["name"] == "undermesh-gateway-parameters";
            // In its own namespace there is nothing else's.
            let is_own = object["kind"] == "Role" && object["metadata"]["name"] == "mesh-control";
            assert!(
                !maps || is_unbound || is_of_gateways || is_own || rule["resourceNames"].is_array(),
                "ConfigMaps by name only: {rule}"
            );
        }
    }
}

#[test]
fn the_control_plane_may_make_pods_for_gateways_only_where_it_is_to() {
    let Some(engine) = engine("the rights for gateways") else { return };
    let writes = |values: Value| {
        let all = objects(&engine, values).expect("rendered");
        let bound = |one: &&Value| {
            one["kind"] == "ClusterRoleBinding" && one["roleRef"]["name"] == "undermesh-gateway-parameters"
        };
        assert!(!all.iter().any(|one| bound(&one)), "who has such gateways binds it");
        let rules = object(&all, "ClusterRole", "undermesh-control")["rules"].as_array().expect("rules").clone();
        let is_write = |rule: &Value| rule["verbs"].as_array().is_some_and(|verbs| verbs.contains(&json!("delete")));
        let written: Vec<Value> =
            rules.iter().filter(|rule| is_write(rule)).map(|rule| rule["resources"].clone()).collect();
        let image =
            arguments(object(&all, "Deployment", "mesh-control")).iter().any(|a| a.starts_with("--gateway-image="));
        (written, image)
    };
    let written = [
        json!(["deployments"]),
        json!(["services", "serviceaccounts"]),
        json!(["horizontalpodautoscalers"]),
        json!(["poddisruptionbudgets"]),
    ];
    assert_eq!(writes(json!({})), (written.to_vec(), true));
    assert_eq!(writes(json!({ "gateways": { "enabled": false } })), (Vec::new(), false));
}

#[test]
fn certificates_of_gateways_are_read_everywhere_only_where_that_is_wanted() {
    let Some(engine) = engine("the rights for certificates") else { return };
    for (values, is_bound) in [(json!({}), true), (json!({ "gateways": { "secretsEverywhere": false } }), false)] {
        let all = objects(&engine, values).expect("rendered");
        let rules = &object(&all, "ClusterRole", "undermesh-gateway-secrets")["rules"];
        assert_eq!(
            *rules,
            json!([{ "apiGroups": [""], "resources": ["secrets", "configmaps"], "verbs": ["list", "watch"] }])
        );
        let bound =
            |one: &Value| one["kind"] == "ClusterRoleBinding" && one["roleRef"]["name"] == "undermesh-gateway-secrets";
        assert_eq!(all.iter().any(bound), is_bound);
    }
}

#[test]
fn an_agent_may_mark_the_pods_of_its_node_and_no_more() {
    let Some(engine) = engine("the agents' admission policy") else { return };
    let name = "pod-status.undermesh.io";
    let all = objects(&engine, json!({})).expect("rendered");
    let binding = object(&all, "ValidatingAdmissionPolicyBinding", name);
    assert_eq!(binding["spec"], json!({ "policyName": name, "validationActions": ["Deny"] }));
    let policy = &object(&all, "ValidatingAdmissionPolicy", name)["spec"];
    let account = format!("request.userInfo.username == \"system:serviceaccount:{NAMESPACE}:mesh-agent\"");
    assert_eq!(policy["matchConditions"], json!([{ "name": "agent", "expression": account }]));
    // What the agents' role allows, nothing else is asked about.
    let role = &object(&all, "ClusterRole", "undermesh-agent")["rules"];
    let writes = role.as_array().expect("rules").iter().filter(|rule| rule["verbs"] != json!(["get", "list", "watch"]));
    let writes: Vec<&Value> = writes.map(|rule| &rule["resources"]).collect();
    assert_eq!(writes, [&policy["matchConstraints"]["resourceRules"][0]["resources"]]);
    assert_eq!(policy["validations"].as_array().map(Vec::len), Some(2));
    let off = objects(&engine, json!({ "admission": { "podStatus": { "enabled": false } } })).expect("rendered");
    assert!(off.iter().all(|object| object["metadata"]["name"] != name));
}

#[test]
fn definitions_serve_the_versions_that_istio_serves_and_say_what_they_drop() {
    let Some(engine) = engine("definitions") else { return };
    let (mut found, mut definitions) = (Vec::new(), Vec::new());
    for (file, text) in crds(&folder().expect("a folder")).expect("read") {
        let parsed = engine.parse(&text).expect("parsed");
        let [definition] = &parsed[..] else { panic!("{file}: one definition a file") };
        let (name, spec) = (definition["metadata"]["name"].as_str().expect("a name"), &definition["spec"]);
        let (plural, group) = name.split_once('.').expect("a group");
        assert_eq!(file, format!("{group}_{plural}.yaml"));
        assert_eq!(definition["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
        assert_eq!(definition["metadata"]["labels"]["undermesh.io/owned"], "true");
        let versions = spec["versions"].as_array().expect("versions");
        for version in versions {
            assert_eq!(version["schema"], versions[0]["schema"], "{name}");
            assert_eq!(version["subresources"], json!({ "status": {} }), "{name}");
            assert_eq!(
                (&version["served"], version["storage"] == true),
                (&json!(true), version["name"] == "v1" || versions.len() == 1),
                "{name}"
            );
        }
        let schema = &versions[0]["schema"]["openAPIV3Schema"];
        if group == "security.istio.io" {
            keeps_unknown(name, schema);
        }
        let versions: Vec<&str> = versions.iter().filter_map(|version| version["name"].as_str()).collect();
        definitions.push(definition.clone());
        let short = spec["names"]["shortNames"][0].as_str().unwrap_or("-");
        found.push(format!(
            "{group} {} {short} {}",
            spec["names"]["kind"].as_str().expect("a kind"),
            versions.join(",")
        ));
    }
    let expected = [
        "networking.istio.io DestinationRule dr v1,v1beta1,v1alpha3",
        "networking.istio.io Gateway gw v1,v1beta1,v1alpha3",
        "networking.istio.io ServiceEntry se v1,v1beta1,v1alpha3",
        "networking.istio.io Sidecar - v1,v1beta1,v1alpha3",
        "networking.istio.io VirtualService vs v1,v1beta1,v1alpha3",
        "networking.istio.io WorkloadEntry we v1,v1beta1,v1alpha3",
        "networking.istio.io WorkloadGroup wg v1,v1beta1,v1alpha3",
        "security.istio.io AuthorizationPolicy ap v1,v1beta1",
        "security.istio.io PeerAuthentication pa v1,v1beta1",
        "security.istio.io RequestAuthentication ra v1,v1beta1",
        "telemetry.istio.io Telemetry telemetry v1,v1alpha1",
        "undermesh.io RateLimit rl v1alpha1",
    ];
    assert_eq!(found, expected);
    assert_valid(&engine, &definitions);
}

/// A field that the API server drops could make a policy allow more than was written.
fn keeps_unknown(place: &str, schema: &Value) {
    if let Some(properties) = schema["properties"].as_object() {
        // The definition of status says so once.
        assert_eq!(schema["x-kubernetes-preserve-unknown-fields"], true, "{place}");
        for (name, inner) in properties.iter().filter(|(name, _)| *name != "status") {
            keeps_unknown(&format!("{place}.{name}"), inner);
        }
    }
    for part in ["items", "additionalProperties"] {
        if schema[part].is_object() {
            keeps_unknown(&format!("{place}[]"), &schema[part]);
        }
    }
}

/// `meshctl` renders the chart itself, and knows no more of the language than this.
#[test]
fn templates_use_no_more_of_the_language_than_meshctl_knows() {
    const WORDS: [&str; 22] = [
        "if", "else", "end", "with", "range", "define", "include", "default", "quote", "toYaml", "nindent", "indent",
        "eq", "ne", "and", "or", "not", "printf", "dict", "list", "required", "template",
    ];
    let folder = folder().expect("a folder").join("templates");
    let mut actions = 0;
    for entry in fs::read_dir(&folder).expect("templates").flatten() {
        let text = fs::read_to_string(entry.path()).expect("a template");
        for action in text.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
            actions += 1;
            let action = action.trim_matches(['-', ' ']);
            if action.starts_with("/*") {
                continue;
            }
            for word in words(action) {
                assert!(WORDS.contains(&word), "{}: `{word}` in `{action}`", entry.path().display());
            }
        }
    }
    assert!(actions > 100, "{actions}");
}

/// The bare words of an action: no fields, no variables, nothing in quotes.
fn words(action: &str) -> Vec<&str> {
    let outside = action.split('"').step_by(2);
    let words = outside.flat_map(|part| part.split([' ', '(', ')', '|', ',', '=', ':', '\n']));
    words.filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic())).collect()
}

#[test]
fn the_words_of_an_action() {
    assert_eq!(words(r#"if and (eq .Values.a "b c") $x"#), ["if", "and", "eq"]);
    assert_eq!(words("range $i, $r := .Values.list"), ["range"]);
}
