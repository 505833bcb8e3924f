//! From plaintext to STRICT without a failed probe (B27), one port that stays open (B28), and a mesh in which nobody may call anybody.
use super::mesh::{Mesh, Namespace, SYSTEM, in_mesh};
use super::objects::{ambient, container, peers, policy, service};
use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

const REQUEST: &str = "GET /headers HTTP/1.1";

/// httpbin with two ports and every kind of probe, and a client.
fn pods(namespace: &str, node: u8) -> [Value; 3] {
    let serve = "/lab http --port 8001 & exec /lab http --port 8000";
    let mut server = container("app", &["sh", "-c", serve]);
    server["ports"] = json!([{ "name": "http", "containerPort": 8000 }, { "name": "other", "containerPort": 8001 }]);
    let every = |probe: Value| {
        let mut probe = probe;
        probe["periodSeconds"] = json!(1);
        probe["timeoutSeconds"] = json!(5);
        probe
    };
    server["readinessProbe"] = every(json!({ "httpGet": { "port": "http", "path": "/" } }));
    server["livenessProbe"] = every(json!({ "tcpSocket": { "port": 8001 } }));
    server["startupProbe"] = every(json!({ "httpGet": { "port": "http", "path": "/" }, "failureThreshold": 60 }));
    let pod = |name: &str, container: Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": namespace, "labels": { "app": name } },
            "spec": { "nodeName": format!("n{node}"), "terminationGracePeriodSeconds": 1, "containers": [container] },
        })
    };
    // The real one: its exit codes are what people see.
    let curl = json!({
        "name": "curl", "image": "docker.io/curlimages/curl:latest", "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "1000000"],
    });
    let mut service = service(namespace, "httpbin", 8000);
    service["spec"]["ports"] = json!([{ "name": "http", "port": 8000 }, { "name": "other", "port": 8001 }]);
    [pod("httpbin", server), pod("curl", curl), service]
}

struct Scene<'a> {
    mesh: &'a Mesh,
    /// foo and bar in the mesh, legacy not.
    namespaces: [Namespace<'a>; 3],
    life: Vec<String>,
    unhealthy: usize,
}

impl Scene<'_> {
    fn life(&self) -> Result<Vec<String>> {
        let lives: Result<Vec<_>> = self.namespaces.iter().map(Namespace::life).collect();
        Ok(lives?.concat())
    }

    /// Probes that the kubelets say have failed.
    fn unhealthy(&self) -> Result<usize> {
        let events = self.mesh.object("events -A --field-selector=reason=Unhealthy")?;
        let events = events["items"].as_array().into_iter().flatten();
        Ok(events
            .filter(|e| e["involvedObject"]["name"] == "httpbin")
            .map(|e| e["count"].as_u64().unwrap_or(1))
            .sum::<u64>() as usize)
    }

    /// curl's exit code, from the client of a namespace.
    fn curl(&self, from: &str, to: &str, port: u16) -> Result<i32> {
        let url = format!("http://httpbin.{to}:{port}/headers");
        let words = ["kubectl", "exec", "-n", from, "curl", "--", "curl", "-sS", "-m", "5", "-o", "/dev/null", &url];
        let output = self.mesh.verb(&words).output()?;
        match output.status.code() {
            Some(code) => Ok(code),
            None => bail!("kubectl exec: {}", output.status),
        }
    }

    /// Waits until each pair is as it should be, and then for probes of both nodes: none may have failed.
    fn step(&self, what: &str, wanted: &[(&str, &str, u16, bool)]) -> Result<()> {
        self.mesh.eventually(what, || {
            for (from, to, port, open) in wanted {
                let code = self.curl(from, to, *port)?;
                // Reset, or refused by the kernel before there is a connection.
                let is_right = if *open { code == 0 } else { [56, 7].contains(&code) };
                ensure!(is_right, "{from} -> {to}:{port}: exit {code}");
            }
            Ok(())
        })?;
        let passed = |node: u8| -> Result<f64> {
            Ok(self.mesh.metrics(node)?.sum("mesh_kernel_decisions_total", &[("reason", "probe_passed")]))
        };
        let before = [passed(1)?, passed(2)?];
        self.mesh.eventually("six probes more on each node", || {
            let now = [passed(1)?, passed(2)?];
            ensure!(now[0] >= before[0] + 6.0 && now[1] >= before[1] + 6.0, "{before:?} {now:?}");
            Ok(())
        })?;
        let (life, unhealthy) = (self.life()?, self.unhealthy()?);
        ensure!(life == self.life, "{what}: before {:#?}, now {life:#?}", self.life);
        ensure!(unhealthy == self.unhealthy, "{what}: {} probes have failed", unhealthy - self.unhealthy);
        Ok(())
    }
}

const ENROLLED: [(&str, &str, u16, bool); 4] =
    [("foo", "foo", 8000, true), ("foo", "bar", 8000, true), ("bar", "foo", 8000, true), ("bar", "bar", 8000, true)];

#[test]
fn features_B27_B28_PL5_migration_to_strict_and_to_default_deny_fails_no_probe() -> Result<()> {
    in_mesh(|mesh| {
        let namespaces = [
            mesh.namespace("foo", ambient())?,
            mesh.namespace("bar", ambient())?,
            mesh.namespace("legacy", json!({}))?,
        ];
        let objects = [pods("foo", 1), pods("bar", 2), pods("legacy", 1)].concat();
        mesh.apply_all(&objects)?;
        for namespace in &namespaces {
            namespace.becomes_ready(2)?;
        }
        for namespace in &namespaces[..2] {
            namespace.in_mesh_are(&["curl", "httpbin"])?;
        }
        let mut scene = Scene { mesh, namespaces, life: Vec::new(), unhealthy: 0 };
        (scene.life, scene.unhealthy) = (scene.life()?, scene.unhealthy()?);

        let legacy = |foo, bar| [("legacy", "foo", 8000, foo), ("legacy", "bar", 8000, bar)];
        scene.step("PERMISSIVE", &[&ENROLLED[..], &legacy(true, true)].concat())?;
        let capture = mesh.capture(&[REQUEST])?;
        scene.step("enrolled pairs", &ENROLLED)?;
        let seen = capture.seen();
        ensure!(seen.sightings.is_empty() && seen.lost == 0, "in clear: {:?}", seen.sightings.first());
        ensure!(seen.hbone_packets > 0, "nothing crossed on port 15008");
        drop(capture);

        mesh.apply_all(&[peers("foo", "default", json!({ "mtls": { "mode": "STRICT" } }))])?;
        scene.step("STRICT in foo", &[&ENROLLED[..], &legacy(false, true)].concat())?;
        for mode in ["DISABLE", "PERMISSIVE"] {
            let spec = json!({
                "selector": { "matchLabels": { "app": "httpbin" } }, "mtls": { "mode": "STRICT" },
                "portLevelMtls": { "8001": { "mode": mode } },
            });
            mesh.apply_all(&[peers("foo", "port", spec)])?;
            let ports = [("legacy", "foo", 8001, true), ("legacy", "foo", 8000, false), ("bar", "foo", 8001, true)];
            scene.step(&format!("one port {mode}"), &ports)?;
        }
        mesh.kubectl("delete peerauthentication -n foo port")?;
        mesh.apply_all(&[peers(SYSTEM, "default", json!({ "mtls": { "mode": "STRICT" } }))])?;
        let open = [("legacy", "foo", 8001, false)];
        scene.step("STRICT in the mesh", &[&ENROLLED[..], &legacy(false, false), &open].concat())?;
        // An empty one allows nothing.
        mesh.apply_all(&[policy(SYSTEM, "nobody", json!({}))])?;
        let closed = ENROLLED.map(|(from, to, port, _)| (from, to, port, false));
        scene.step("default deny", &[&closed[..], &legacy(false, false)].concat())?;
        mesh.kubectl(&format!("delete authorizationpolicy -n {SYSTEM} nobody"))?;
        mesh.kubectl(&format!("delete peerauthentication -n {SYSTEM} default"))?;
        scene.step("STRICT in foo again", &[&ENROLLED[..], &legacy(false, true)].concat())
    })
}
