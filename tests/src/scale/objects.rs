//! The cluster that is simulated: its nodes, namespaces, services and pods, as an API server has them, and what agents must have of them.
use super::api::Api;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Services in one namespace.
const SERVICES_EACH: u32 = 25;

/// How large.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Nodes, each with an agent.
    pub agents: u32,
    /// Services.
    pub services: u32,
    /// Pods.
    pub pods: u32,
}

/// All that there is.
pub struct World {
    /// How large it is.
    pub size: Size,
    /// Pods by uid of their workload, each with its number and its revision.
    pub pods: BTreeMap<String, (u32, u32)>,
    /// Their uids, in no order.
    pub uids: Vec<String>,
    next: u32,
}

/// The name of a node.
pub fn node(n: u32) -> String {
    format!("ip-10-0-{}-{}.eu-central-1.compute.internal", n / 250, n % 250)
}

impl World {
    /// Fills an API server.
    pub fn fill(size: Size, api: &Api) -> World {
        let mut world = World { size, pods: BTreeMap::new(), uids: Vec::new(), next: 0 };
        let names = ["undermesh-system".to_owned(), "default".to_owned()].into_iter();
        for name in names.chain((0..world.namespaces()).map(|n| format!("ns-{n}"))) {
            let labels = json!({ "kubernetes.io/metadata.name": name, "istio.io/dataplane-mode": "ambient" });
            api.put("namespaces", json!({ "metadata": { "name": name, "labels": labels } }));
        }
        for kind in ["authorizationpolicies", "peerauthentications"] {
            let name = format!("{kind}.security.istio.io");
            let versions = json!([{ "name": "v1", "served": true }]);
            api.put(
                "customresourcedefinitions",
                json!({ "metadata": { "name": name }, "spec": { "versions": versions } }),
            );
        }
        let strict = json!({ "metadata": { "name": "default", "namespace": "undermesh-system", "generation": 1 },
            "spec": { "mtls": { "mode": "STRICT" } } });
        api.put("peerauthentications", strict);
        for n in 0..world.namespaces() {
            let namespace = format!("ns-{n}");
            let rules = json!([{ "from": [{ "source": { "namespaces": [namespace, "ingress"] } }] }]);
            let metadata = json!({ "name": "allow", "namespace": namespace, "generation": 1 });
            api.put(
                "authorizationpolicies",
                json!({ "metadata": metadata, "spec": { "action": "ALLOW", "rules": rules } }),
            );
        }
        for n in 0..size.agents {
            let labels = json!({ "topology.kubernetes.io/region": "eu-central-1",
                "topology.kubernetes.io/zone": format!("eu-central-1{}", ["a", "b", "c"][n as usize % 3]) });
            api.put("nodes", json!({ "metadata": { "name": node(n), "labels": labels } }));
        }
        let slice = json!({ "metadata": { "name": "kubernetes", "namespace": "default",
                "labels": { "kubernetes.io/service-name": "kubernetes" } }, "addressType": "IPv4",
            "ports": [{ "name": "https", "port": 6443 }],
            "endpoints": [{ "addresses": ["198.18.255.1"], "conditions": { "ready": true } }] });
        api.put("endpointslices", slice);
        for n in 0..size.services {
            let address = Ipv4Addr::from(0xac14_0000 + n).to_string();
            let ports = json!([{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" },
                { "name": "https", "port": 443, "targetPort": "https", "protocol": "TCP" }]);
            let spec = json!({ "clusterIP": address, "clusterIPs": [address], "selector": { "app": service(n) },
                "ports": ports, "type": "ClusterIP", "ipFamilies": ["IPv4"] });
            let metadata = json!({ "name": service(n), "namespace": world.namespace(n), "creationTimestamp": CREATED });
            api.put("services", json!({ "metadata": metadata, "spec": spec }));
        }
        for _ in 0..size.pods {
            world.add(api);
        }
        world
    }

    fn namespaces(&self) -> u32 {
        self.size.services.div_ceil(SERVICES_EACH)
    }

    fn namespace(&self, service: u32) -> String {
        format!("ns-{}", service % self.namespaces())
    }

    /// Where a pod is, and what it is called.
    fn place(&self, pod: u32) -> (String, String) {
        let number = pod % self.size.services;
        (self.namespace(number), format!("{}-7d4b9c6f5-{pod:06}", service(number)))
    }

    fn uid(&self, pod: u32) -> String {
        let (namespace, name) = self.place(pod);
        format!("Kubernetes//Pod/{namespace}/{name}")
    }

    /// A new pod; the uid of its workload.
    pub fn add(&mut self, api: &Api) -> String {
        let pod = self.next;
        self.next += 1;
        let uid = self.uid(pod);
        self.pods.insert(uid.clone(), (pod, 0));
        self.uids.push(uid.clone());
        api.put("pods", self.pod(pod, 0));
        uid
    }

    /// What the next pod will be.
    pub fn coming(&self) -> String {
        self.uid(self.next)
    }

    /// Gives a pod another revision.
    pub fn change(&mut self, uid: &str, api: &Api) {
        let Some((pod, revision)) = self.pods.get_mut(uid) else { return };
        *revision += 1;
        let (pod, revision) = (*pod, *revision);
        api.put("pods", self.pod(pod, revision));
    }

    /// Takes a pod away.
    pub fn delete(&mut self, uid: &str, api: &Api) {
        let Some((pod, _)) = self.pods.remove(uid) else { return };
        self.uids.retain(|known| known != uid);
        let (namespace, name) = self.place(pod);
        api.delete("pods", &namespace, &name);
    }

    /// How many addresses agents must have: workloads and services.
    pub fn addresses(&self) -> usize {
        self.pods.len() + self.size.services as usize
    }

    /// About what an API server says of a pod of a Deployment with one container.
    fn pod(&self, pod: u32, revision: u32) -> Json {
        let (namespace, name) = self.place(pod);
        let app = service(pod % self.size.services);
        let address = Ipv4Addr::from(0x0a00_0000 + pod).to_string();
        let labels = json!({ "app": app, "version": revision_of(revision), "pod-template-hash": "7d4b9c6f5",
            "app.kubernetes.io/part-of": "simulation" });
        let owner = json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-7d4b9c6f5"),
            "uid": "5b1c7c0e-5f0e-4c43-9d4e-1d7c7a0e3a11", "controller": true, "blockOwnerDeletion": true }]);
        let managed = json!([{ "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
            "fieldsType": "FieldsV1", "fieldsV1": { "f:metadata": { "f:labels": { "f:app": {}, "f:version": {} } },
            "f:spec": { "f:containers": { "k:{\"name\":\"app\"}": { "f:image": {}, "f:ports": {}, "f:resources": {} } } } } }]);
        let container = json!({ "name": "app", "image": format!("registry.example/{app}:1.2.3"),
            "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" },
                { "name": "https", "containerPort": 8443, "protocol": "TCP" }],
            "resources": { "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "memory": "256Mi" } },
            "volumeMounts": [{ "name": "kube-api-access", "readOnly": true,
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount" }] });
        let conditions = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
            .map(|kind| json!({ "type": kind, "status": "True", "lastTransitionTime": CREATED }));
        json!({
            "metadata": { "name": name, "namespace": namespace, "labels": labels, "ownerReferences": owner,
                "creationTimestamp": CREATED, "managedFields": managed,
                "annotations": { "ambient.istio.io/redirection": "enabled" } },
            "spec": { "nodeName": node(pod % self.size.agents), "serviceAccountName": app, "containers": [container],
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler" },
            "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }], "conditions": conditions,
                "containerStatuses": [{ "name": "app", "ready": true, "restartCount": 0, "image": "registry.example/app:1.2.3",
                    "imageID": "registry.example/app@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
                    "state": { "running": { "startedAt": CREATED } } }] }
        })
    }
}

const CREATED: &str = "2026-01-01T00:00:00Z";

fn service(n: u32) -> String {
    format!("svc-{n}")
}

/// What a pod's workload has as its canonical revision.
pub fn revision_of(revision: u32) -> String {
    format!("v{revision}")
}
