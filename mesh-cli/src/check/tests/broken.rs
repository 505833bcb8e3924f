//! The table of broken set-ups. Each row damages the cluster in which nothing is wrong.

use serde_json::json;

use super::super::facts::{Denial, Diagnosis, Snapshot, Words};
use super::{ROOT, agent, agent_ends, broken, cilium, definition, event, list, one, pod, waits, webhook};

type Break = fn(&mut Snapshot);
/// What is broken; the checks that find it; where; a word of the reason; a word of the remedy.
pub type Row = (&'static str, Break, &'static [&'static str], &'static str, &'static str, &'static str);

pub const BROKEN: &[Row] = &[
    (
        "Kubernetes is old",
        |s| s.kubernetes = "v1.26.3".into(),
        &["kubernetes-version"],
        "API server",
        "1.30 is needed",
        "update the cluster",
    ),
    (
        "a kernel is old",
        |s| s.nodes[1].status.node_info.kernel_version = "4.19.0-25-amd64".into(),
        &["kernel-version"],
        "node n2",
        "5.15",
        "update the node's image",
    ),
    (
        "cgroup v1",
        |s| {
            s.cgroups.extend([("n1".to_owned(), 1), ("n2".to_owned(), 1)]);
            agent_ends(s, 78, "mesh-agent: --pods-cgroup: \"/sys/fs/cgroup/kubepods.slice\" is not a cgroup v2 folder");
        },
        &["cgroup-version", "agent-ready"],
        "node n2",
        "cgroup v1",
        "unified_cgroup_hierarchy",
    ),
    (
        "a node of another architecture",
        |s| s.nodes[1].status.node_info.architecture = "s390x".into(),
        &["node-platform"],
        "node n2",
        "s390x",
        "nodeSelector",
    ),
    (
        "a node is down",
        |s| s.nodes[1].status.conditions[0].status = "Unknown".into(),
        &["node-ready"],
        "node n2",
        "not ready",
        "kubectl describe node n2",
    ),
    ("our clock is wrong", |s| s.now += 90, &["clocks"], "this machine", "90 s ahead of", "NTP"),
    (
        "a node's clock is behind",
        |s| s.node_leases[1].spec.renew_time = Some("2026-11-21T15:50:00.000000Z".into()),
        &["clocks"],
        "node n2",
        "600 s behind",
        "NTP",
    ),
    (
        "a node's clock is ahead",
        |s| s.node_leases[0].spec.renew_time = Some("2026-11-21T16:01:00.000000Z".into()),
        &["clocks"],
        "node n1",
        "60 s ahead",
        "NTP",
    ),
    (
        "Istio ambient runs",
        |s| s.daemon_sets.push(one(json!({"metadata": {"namespace": "istio-system", "name": "ztunnel"}}))),
        &["other-meshes"],
        "DaemonSet istio-system/ztunnel",
        "capture the same connections",
        "migrate",
    ),
    (
        "an istiod runs",
        |s| {
            s.deployments.push(one(
                json!({"metadata": {"namespace": "istio-system", "name": "istiod", "labels": {"app": "istiod"}}}),
            ))
        },
        &["other-meshes"],
        "Deployment istio-system/istiod",
        "policies in istio-system",
        "own namespace",
    ),
    (
        "Cilium translates in connect()",
        |s| s.daemon_sets.push(one(json!({"metadata": {"namespace": "kube-system", "name": "cilium"}}))),
        &["other-hooks"],
        "DaemonSet kube-system/cilium",
        "before the mesh sees them",
        "socketLB.hostNamespaceOnly",
    ),
    (
        "Cilium wants no other CNI configuration",
        |s| {
            s.cilium = list([cilium("true")]);
            s.daemon_sets[0].spec.template.spec.containers[0].args = vec!["--cni=on".into()];
        },
        &["cni-exclusive"],
        "ConfigMap kube-system/cilium-config",
        "renames the CNI configurations",
        "cni.exclusive=false",
    ),
    (
        "a definition of an unknown version",
        |s| s.definitions = list([definition("security.istio.io", "authorizationpolicies", "v2")]),
        &["definitions"],
        "CustomResourceDefinition authorizationpolicies.security.istio.io",
        "it serves v2",
        "install the definitions",
    ),
    (
        "an old Gateway API",
        |s| {
            s.definitions = list([definition("gateway.networking.k8s.io", "httproutes", "v1beta1")]);
            let annotations = &mut s.definitions[0].metadata.annotations;
            annotations.insert("gateway.networking.k8s.io/bundle-version".into(), "v0.8.1".into());
        },
        &["definitions"],
        "CustomResourceDefinition httproutes.gateway.networking.k8s.io",
        "Gateway API v0.8.1",
        "later release",
    ),
    (
        "Pod Security forbids agents",
        |s| {
            drop(s.namespaces[0].metadata.labels.insert("pod-security.kubernetes.io/enforce".into(), "baseline".into()))
        },
        &["pod-security"],
        "namespace undermesh-system",
        "forbids the agents",
        "enforce=privileged --overwrite",
    ),
    (
        "no right to install",
        |s| s.denied.push(Denial { who: "you".into(), what: "create daemonsets.apps".into() }),
        &["rights"],
        "you",
        "may not create daemonsets.apps",
        "administrator",
    ),
    (
        "a role was taken away",
        |s| s.denied.push(Denial { who: "mesh-agent".into(), what: "watch pods".into() }),
        &["rights"],
        "service account mesh-agent",
        "may not watch pods",
        "meshctl install",
    ),
    (
        "something cannot be read",
        |s| s.unread.push(("events".into(), "the API server answers 403: forbidden".into())),
        &["readable"],
        "events",
        "403",
        "not made",
    ),
    (
        "the namespace ends",
        |s| s.namespaces[0].metadata.deletion_timestamp = Some("2026-11-21T15:59:00Z".into()),
        &["pod-security"],
        "namespace undermesh-system",
        "is being deleted",
        "wait until",
    ),
    (
        "a second mesh",
        |s| {
            let mut other = s.daemon_sets[0].clone();
            other.metadata.namespace = "mesh2".into();
            other.metadata.labels.insert("app.kubernetes.io/part-of".into(), "undermesh".into());
            s.daemon_sets.push(other);
        },
        &["other-meshes"],
        "DaemonSet mesh2/mesh-agent",
        "Undermesh is installed in this namespace",
        "-n mesh2",
    ),
    (
        "a label with a wrong value",
        |s| drop(s.namespaces[2].metadata.labels.insert("istio.io/dataplane-mode".into(), "enabled".into())),
        &["labels"],
        "namespace shop",
        "means nothing",
        "kubectl label namespace shop istio.io/dataplane-mode=ambient --overwrite",
    ),
    (
        "a label with a wrong key",
        |s| drop(s.namespaces[1].metadata.labels.insert("istio.io/dataplane_mode".into(), "ambient".into())),
        &["labels"],
        "namespace kube-system",
        "dataplane_mode means nothing",
        "istio.io/dataplane-mode=ambient istio.io/dataplane_mode-",
    ),
    (
        "a system namespace is labelled",
        |s| drop(s.namespaces[1].metadata.labels.insert("istio.io/dataplane-mode".into(), "ambient".into())),
        &["labels"],
        "namespace kube-system",
        "never in the mesh",
        "istio.io/dataplane-mode-",
    ),
    (
        "sidecars and mesh at once",
        |s| drop(s.namespaces[2].metadata.labels.insert("istio-injection".into(), "enabled".into())),
        &["labels"],
        "namespace shop",
        "sidecars",
        "istio-injection-",
    ),
    (
        "there is no control plane",
        |s| {
            s.deployments.clear();
            s.diagnoses = None;
        },
        &["control-ready"],
        "namespace undermesh-system",
        "no Deployment mesh-control",
        "meshctl install",
    ),
    (
        "an image cannot be pulled",
        |s| {
            s.deployments[0].status.available_replicas = 1;
            s.pods[0] = one(broken(
                pod("undermesh-system", "mesh-control-a", "mesh-control", "n1"),
                "Pending",
                waits("ImagePullBackOff"),
            ));
        },
        &["control-ready"],
        "pod undermesh-system/mesh-control-a",
        "ImagePullBackOff",
        "image.hub",
    ),
    (
        "the control plane finds no node",
        |s| {
            s.deployments[0].status.available_replicas = 1;
            s.pods[0].spec.node_name.clear();
            s.pods[0].status = one(
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}]}),
            );
        },
        &["control-ready"],
        "pod undermesh-system/mesh-control-a",
        "no node takes it: 0/2",
        "make room",
    ),
    (
        "the service leads nowhere",
        |s| s.endpoints.clear(),
        &["control-endpoints"],
        "Service undermesh-system/mesh-control",
        "its selector does not fit",
        "restores the Service",
    ),
    (
        "one replica",
        |s| s.deployments[0].spec.replicas = Some(1),
        &["control-replicas"],
        "Deployment mesh-control",
        "while it restarts",
        "control.replicas=2",
    ),
    (
        "the root is missing",
        |s| drop(s.roots.remove(0)),
        &["root"],
        "ConfigMap undermesh-system/undermesh-root-cert",
        "agents cannot start",
        "the control plane writes it",
    ),
    (
        "the root is not a certificate",
        |s| {
            drop(s.roots[0].data.insert(
                "root-cert.pem".into(),
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
            ))
        },
        &["root"],
        "ConfigMap undermesh-system/undermesh-root-cert",
        "no certificate",
        "delete configmap",
    ),
    (
        "the root has ended",
        |s| {
            s.now += 200 * 365 * 24 * 3600;
            s.server_time = None;
            s.webhooks.clear();
        },
        &["root"],
        "ConfigMap undermesh-system/undermesh-root-cert",
        "days ago",
        "new root",
    ),
    (
        "a copy of the root is another",
        |s| drop(s.roots[1].data.insert("root-cert.pem".into(), "other".into())),
        &["root"],
        "ConfigMap shop/undermesh-root-cert",
        "differs",
        "kubectl -n shop delete configmap",
    ),
    (
        "the webhook has no CA",
        |s| s.webhooks = list([webhook("", "Ignore")]),
        &["webhook"],
        "ValidatingWebhookConfiguration undermesh",
        "edits pass unchecked",
        "control plane",
    ),
    (
        "the webhook's CA is none",
        |s| s.webhooks = list([webhook("hello", "Fail")]),
        &["webhook"],
        "ValidatingWebhookConfiguration undermesh",
        "every edit of a policy is refused",
        "kubectl delete",
    ),
    (
        "the webhook's CA is another's",
        |s| s.webhook_answer = Some("failed calling webhook: x509: certificate signed by unknown authority".into()),
        &["webhook"],
        "ValidatingWebhookConfiguration undermesh",
        "the CA bundle is wrong",
        "kubectl delete",
    ),
    (
        "nobody answers a webhook that refuses",
        |s| {
            for at in 0..2 {
                s.pods[at].status.conditions.clear();
            }
            s.deployments[0].status.available_replicas = 0;
        },
        &["control-ready", "webhook"],
        "ValidatingWebhookConfiguration undermesh",
        "cannot be edited",
        "meshctl webhook pause",
    ),
    (
        "the webhook was paused and forgotten",
        |s| {
            s.webhooks = list([webhook(ROOT, "Ignore")]);
            s.webhooks[0].metadata.annotations.insert("undermesh.io/paused".into(), "true".into());
        },
        &["webhook"],
        "ValidatingWebhookConfiguration undermesh",
        "it is paused",
        "meshctl webhook resume",
    ),
    (
        "agents of another version",
        |s| {
            for name in ["undermesh/mesh-agent:0.3.0"; 2] {
                s.daemon_sets[0].spec.template.spec.containers[0].image = name.into();
                s.pods[2].spec.containers[0].image = name.into();
                s.pods[3].spec.containers[0].image = name.into();
            }
        },
        &["versions"],
        "versions",
        "the agents are 0.3.0",
        "--reuse-values",
    ),
    (
        "this program is of another version",
        |s| s.version = "0.2.0".into(),
        &["versions"],
        "meshctl",
        "this program is 0.2.0",
        "meshctl of the version",
    ),
    (
        "a taint keeps an agent away",
        |s| {
            s.pods.remove(3);
            s.nodes[1].spec.taints = list([json!({"key": "gpu", "value": "yes", "effect": "NoSchedule"})]);
            s.daemon_sets[0].spec.template.spec.tolerations.clear();
        },
        &["agent-nodes"],
        "node n2",
        "the taint gpu=yes:NoSchedule",
        "agent.tolerations",
    ),
    (
        "a selector keeps an agent away",
        |s| {
            s.pods.remove(3);
            drop(s.daemon_sets[0].spec.template.spec.node_selector.insert("mesh".into(), "yes".into()));
        },
        &["agent-nodes"],
        "node n2",
        "wants mesh=yes",
        "kubectl label node n2 mesh=yes",
    ),
    (
        "bpffs is missing",
        |s| agent_ends(s, 71, "mesh-agent: kernel: mount bpf on /sys/fs/bpf: Operation not permitted"),
        &["agent-ready"],
        "node n2",
        "no bpffs",
        "mount -t bpf",
    ),
    (
        "the kernel lacks a feature",
        |s| agent_ends(s, 70, "mesh-agent: kernel: the kernel lacks sk_lookup"),
        &["agent-ready"],
        "node n2",
        "lacks sk_lookup",
        "update the node's kernel",
    ),
    (
        "the pods' cgroup is elsewhere",
        |s| agent_ends(s, 78, "mesh-agent: --pods-cgroup: \"/sys/fs/cgroup/kubepods.slice\" is not a cgroup v2 folder"),
        &["agent-ready"],
        "node n2",
        "cgroup",
        "agent.cgroups.pods",
    ),
    (
        "a capability is missing",
        |s| agent_ends(s, 77, "mesh-agent: the agent needs CAP_SYS_ADMIN"),
        &["agent-ready"],
        "node n2",
        "lacks rights",
        "capabilities",
    ),
    (
        "a port is taken",
        |s| agent_ends(s, 69, "mesh-agent: cannot listen on 0.0.0.0:15020: Address already in use"),
        &["agent-ready"],
        "node n2",
        "a port of the node is taken",
        "free 15020 and 15021",
    ),
    (
        "the agent's image cannot be pulled",
        |s| s.pods[3] = one(broken(agent("mesh-agent-2", "n2"), "Pending", waits("ErrImagePull"))),
        &["agent-ready"],
        "node n2",
        "ImagePullBackOff",
        "see that undermesh/mesh-agent:0.1.0 exists",
    ),
    (
        "the agent waits for the root",
        |s| {
            s.pods[3] = one(broken(agent("mesh-agent-2", "n2"), "Pending", waits("ContainerCreating")));
            s.events.push(event("FailedMount", "mesh-agent-2", "configmap \"undermesh-root-cert\" not found"));
        },
        &["agent-ready"],
        "node n2",
        "cannot be mounted",
        "root certificate above",
    ),
    (
        "the agent does not reach the control plane",
        |s| {
            s.pods[3].status.conditions.clear();
            drop(s.agents.insert(
                "mesh-agent-2".into(),
                Words { readiness: Some("not ready, pending: configuration\n".into()), log: String::new() },
            ));
        },
        &["agent-ready"],
        "node n2",
        "no configuration yet",
        "15012",
    ),
    (
        "a labelled pod on the host's network",
        |s| s.pods[4].spec.host_network = true,
        &["host-network"],
        "pod shop/web",
        "hostNetwork",
        "istio.io/dataplane-mode=none",
    ),
    (
        "a labelled pod with a sidecar",
        |s| drop(s.pods[4].metadata.annotations.insert("sidecar.istio.io/status".into(), "{}".into())),
        &["sidecars"],
        "pod shop/web",
        "sidecar was injected",
        "restart the workload",
    ),
    (
        "a pod was not enrolled",
        |s| s.pods[4].metadata.annotations.clear(),
        &["enrolled"],
        "pod shop/web",
        "although the agent of node n1 is ready",
        "logs mesh-agent-1 | grep web",
    ),
    (
        "a pod waits in the CNI plugin",
        |s| {
            s.pods[4].status = one(json!({"phase": "Pending"}));
            s.events.push(event(
                "FailedCreatePodSandBox",
                "web",
                "plugin type=\"undermesh-cni\" failed (add): the agent is not there",
            ));
        },
        &["held"],
        "pod shop/web",
        "the agent is not there",
        "asked again",
    ),
    (
        "the folder of CNI plugins was emptied",
        |s| {
            s.pods[4].status = one(json!({"phase": "Pending"}));
            s.events.push(event(
                "FailedCreatePodSandBox",
                "web",
                "plugin type=\"undermesh-cni\" failed (add): failed to find plugin \"undermesh-cni\" in path [/opt/cni/bin]",
            ));
        },
        &["held"],
        "pod shop/web",
        "failed to find plugin",
        "puts the mesh's back within seconds",
    ),
    (
        "a probe fails",
        |s| {
            s.pods[4].status.conditions.clear();
            s.events.push(event(
                "Unhealthy",
                "web",
                "Readiness probe failed: dial tcp 10.244.1.9:80: connect: connection refused",
            ));
        },
        &["probes"],
        "pod shop/web",
        "connection refused",
        "kubectl exec",
    ),
    (
        "a NetworkPolicy shuts tunnels out",
        |s| {
            let spec = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 80, "protocol": "TCP"}]}]});
            s.network_policies = list([json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": spec})]);
        },
        &["network-policies"],
        "NetworkPolicy shop/web",
        "port 15008 of 1 pods",
        "port: 15008",
    ),
    (
        "a policy that cannot be honoured",
        |s| {
            s.diagnoses = Some(vec![Diagnosis {
                severity: "error".into(),
                object: "AuthorizationPolicy shop/deny".into(),
                field: "spec.rules[0].to[0].operation.paths".into(),
                message: "paths need a waypoint".into(),
                help: Some("bind it to a waypoint".into()),
            }]);
        },
        &["policies"],
        "AuthorizationPolicy shop/deny",
        "paths need a waypoint",
        "bind it",
    ),
    (
        "routes that nothing acts on",
        |s| {
            let of = |name: &str| Diagnosis {
                severity: "warning".into(),
                object: format!("VirtualService shop/{name}"),
                message: "known, not in force: there is no waypoint that acts on it".into(),
                help: Some("use services".into()),
                ..Diagnosis::default()
            };
            s.diagnoses = Some(["a", "b", "c"].map(of).into());
        },
        &["policies"],
        "VirtualService shop/a",
        "no waypoint that acts on it (and of 2 others of the kind)",
        "use services",
    ),
    (
        "the control plane cannot be asked",
        |s| s.diagnoses = None,
        &["policies"],
        "mesh-control",
        "15014",
        "reach its pods",
    ),
];
