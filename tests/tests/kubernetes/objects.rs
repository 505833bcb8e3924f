//! Objects that the tests give the API server, and a steady load as a pod, which goes on whatever becomes of the API server.
use super::mesh::Namespace;
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::kubernetes::Kubernetes;
use serde_json::{Value, json};

/// The lab's programs, busybox, and nothing else.
pub const IMAGE: &str = "docker.io/undermesh/lab:test";
/// Of the load server.
pub const PORT: u16 = 8080;

pub fn namespace(name: &str, labels: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

/// The labels of a namespace in the mesh.
pub fn ambient() -> Value {
    json!({ "istio.io/dataplane-mode": "ambient" })
}

/// A pod that does something on a node.
pub fn pod(namespace: &str, name: &str, node: u8, command: &[&str]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": { "app": name } },
        "spec": {
            "nodeName": format!("n{node}"), "terminationGracePeriodSeconds": 1,
            "containers": [container("app", command)],
        },
    })
}

pub fn container(name: &str, command: &[&str]) -> Value {
    json!({ "name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": command })
}

/// One that waits to be told what to do.
pub fn idle(namespace: &str, name: &str, node: u8) -> Value {
    pod(namespace, name, node, &["sleep", "1000000"])
}

/// Servers for loads behind a service. They do not heed SIGTERM, as servers that end in order do not for a while.
pub fn load_servers(namespace: &str, name: &str, replicas: u32) -> [Value; 2] {
    let port = PORT.to_string();
    let mut container = container("app", &["/lab", "load", "serve", "--port", &port]);
    container["readinessProbe"] = json!({ "tcpSocket": { "port": PORT }, "periodSeconds": 1 });
    let labels = json!({ "app": name });
    let spread = json!([{ "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": { "matchLabels": labels } }]);
    [
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name, "namespace": namespace },
            "spec": {
                "replicas": replicas, "selector": { "matchLabels": labels },
                "strategy": { "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": {
                        "terminationGracePeriodSeconds": 5, "topologySpreadConstraints": spread,
                        "containers": [container],
                    },
                },
            },
        }),
        service(namespace, name, PORT),
    ]
}

pub fn service(namespace: &str, name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": namespace },
        "spec": { "selector": { "app": name }, "ports": [{ "port": port }] },
    })
}

pub fn policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": name, "namespace": namespace }, "spec": spec,
    })
}

pub fn peers(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": { "name": name, "namespace": namespace }, "spec": spec,
    })
}

/// A load that runs.
pub struct Load<'a> {
    namespace: &'a Namespace<'a>,
    cluster: &'a Kubernetes,
    pod: String,
}

impl<'a> Load<'a> {
    /// Starts new connections at a rate, beside long-lived ones, to a service of the namespace. Returns when all long ones carry something.
    pub fn start(
        cluster: &'a Kubernetes,
        namespace: &'a Namespace<'a>,
        (pod, node): (&str, u8),
        service: &str,
        (rate, long): (u32, u32),
    ) -> Result<Load<'a>> {
        let address = cluster.object(&format!("service -n {} {service}", namespace.name))?;
        let address = address["spec"]["clusterIP"].as_str().context("no address of the service")?.to_owned();
        // Its input never ends by itself; a line on it ends the load.
        let script = format!(
            "mkfifo /tmp/in; exec /lab load steady {address}:{PORT} --seconds 100000 --rate {rate} --long {long} --limit 10 0<>/tmp/in"
        );
        let mut object = self::pod(namespace.name, pod, node, &["sh", "-c", &script]);
        object["spec"]["restartPolicy"] = json!("Never");
        object["spec"]["volumes"] = json!([{ "name": "tmp", "emptyDir": {} }]);
        object["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "tmp", "mountPath": "/tmp" }]);
        cluster.apply(&object.to_string())?;
        let load = Load { namespace, cluster, pod: pod.to_owned() };
        cluster.eventually("a load that has started", || {
            ensure!(load.log()?.contains("started"), "not yet");
            Ok(())
        })?;
        Ok(load)
    }

    fn log(&self) -> Result<String> {
        self.cluster.kubectl(&format!("logs -n {} {}", self.namespace.name, self.pod))
    }

    /// Ends it: what it has seen.
    pub fn end(self) -> Result<Value> {
        self.cluster.eventually("the end of the load", || {
            if let Some(found) = self.log()?.lines().find(|line| line.starts_with('{')) {
                return serde_json::from_str(found).context("what the load has seen");
            }
            self.namespace.exec(&self.pod, &["sh", "-c", "echo > /tmp/in"])?;
            anyhow::bail!("it still runs")
        })
    }

    /// Ends it; nothing may have failed.
    pub fn end_spotless(self) -> Result<()> {
        let pod = self.pod.clone();
        let seen = self.end()?;
        println!("{pod}: {seen}");
        let failed: u64 = FAILURES.iter().map(|kind| seen[*kind].as_u64().unwrap_or(1)).sum();
        ensure!(failed == 0 && seen["ok"].as_u64() > Some(0), "connections failed: {seen}");
        Ok(())
    }
}

const FAILURES: [&str; 5] = ["refused", "reset", "timeout", "other", "cut"];
