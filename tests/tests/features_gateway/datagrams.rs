//! Datagrams from outside: UDPRoutes before two servers of the mesh that say who they are.
use crate::stage::CHANGE;
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{Lab, LabConfig, Need, Pod, PodSpec, Waypoint, eventually, in_lab};
use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

const PORT: u16 = 5300;
/// How long an answer is waited for.
const SOON: Duration = Duration::from_millis(300);
/// How long many questions may take.
const LONG: Duration = Duration::from_secs(60);
const EDGE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: default}\nspec:\n  gatewayClassName: undermesh\n  listeners:\n  - {name: echo, port: 5300, protocol: UDP}\n  - {name: other, port: 5300, protocol: TCP}\n";

/// A server in a pod that answers each datagram with its name, until it is dropped.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(pod: &Pod, name: &'static str, port: u16) -> Result<Server> {
        let socket = pod.netns.run(|| UdpSocket::bind(("0.0.0.0", port)).context("bind"))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 100];
            while !stopped.load(Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&[name.as_bytes(), b" ", &buffer[..length]].concat(), from);
                }
            }
        });
        Ok(Server { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn service(name: &str, target: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  clusterIP: None\n  selector: {{app: {name}}}\n  ports: [{{name: echo, port: 53, targetPort: {target}, protocol: UDP}}]\n"
    )
}

fn route(parent: &str, backends: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: UDPRoute\nmetadata: {{name: echo, namespace: default}}\nspec:\n  parentRefs: [{{name: edge{parent}}}]\n  rules: [{{backendRefs: [{backends}]}}]\n"
    )
}

struct Stage {
    lab: Lab,
    gateway: Waypoint,
}

impl Stage {
    /// A client of its own port.
    fn client(&self) -> Result<UdpSocket> {
        let to = SocketAddr::new(self.gateway.pod.ips()[0], PORT);
        self.lab.outside.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(SOON))?;
            Ok(socket)
        })
    }

    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(self.gateway.metrics()?.sum(name, labels))
    }

    /// Sends until it is counted as dropped for that reason.
    fn dropped(&self, reason: &str) -> Result<()> {
        let client = self.client()?;
        let labels = [("port", "5300"), ("reason", reason)];
        let before = self.sum("undermesh_udp_dropped_total", &labels)?;
        eventually(reason, CHANGE, || {
            // A port that is closed by now says so to the sender.
            let _ = client.send(b"x");
            let now = self.sum("undermesh_udp_dropped_total", &labels)?;
            ensure!(now > before, "{now}");
            Ok(())
        })
    }
}

/// Who answers; what comes in between is for another question.
fn ask(client: &UdpSocket, what: &str) -> Result<String> {
    client.send(what.as_bytes()).context("send")?;
    let mut buffer = [0; 100];
    loop {
        let length = client.recv(&mut buffer).context("no answer")?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if let Some(name) = text.strip_suffix(&format!(" {what}")) {
            return Ok(name.to_owned());
        }
    }
}

#[test]
fn features_GA_UDPRoute_ingress_of_datagrams() -> Result<()> {
    in_lab(Need::Mesh, || {
        let lab = Lab::with_mesh(LabConfig::default())?;
        let pod =
            |name: &str, node| lab.add_pod(PodSpec::new(name).label("app", name).service_account(name).node(node));
        let (one, two, none) = (pod("one", 1)?, pod("two", 2)?, pod("none", 2)?);
        lab.enrol_namespace("default")?;
        lab.wait_hbone(&[&one, &two, &none])?;
        let (_one, _two) = (Server::start(&one, "one", 5353)?, Server::start(&two, "two", 5354)?);
        for (name, target) in [("one", "5353"), ("two", "5354"), ("none", "5355"), ("empty", "5353")] {
            lab.apply(name, &service(name, target))?;
        }
        lab.apply("edge", EDGE)?;
        let gateway = lab.start_gateway("default", "edge", 1, &[])?;
        let stage = Stage { lab, gateway };
        a_session_follows_edits(&stage)?;
        weights(&stage)?;
        what_leads_nowhere(&stage)
    })
}

fn a_session_follows_edits(stage: &Stage) -> Result<()> {
    stage.dropped("no_route")?;
    stage.lab.apply("echo", &route(", sectionName: echo", "{name: one, port: 53}"))?;
    let client = stage.client()?;
    eventually("the route", CHANGE, || {
        ensure!(ask(&client, "a")? == "one");
        Ok(())
    })?;
    stage.lab.apply("echo", &route("", "{name: two, port: 53}"))?;
    eventually("the edit", CHANGE, || {
        ensure!(ask(&client, "b")? == "two");
        Ok(())
    })?;
    let labels = [("destination_service_name", "two"), ("request_protocol", "udp")];
    ensure!(stage.sum("undermesh_udp_sessions_opened_total", &labels)? == 1.0);
    ensure!(stage.sum("undermesh_udp_received_bytes_total", &labels)? >= 1.0);
    eventually("a line of the log", CHANGE, || {
        let lines = stage.gateway.lines(&["|udp|one.default.svc"]);
        ensure!(lines.len() == 1, "{lines:?}");
        Ok(())
    })
}

fn weights(stage: &Stage) -> Result<()> {
    stage.lab.apply(
        "echo",
        &route("", "{name: one, port: 53, weight: 3}, {name: two, port: 53}, {name: none, port: 53, weight: 0}"),
    )?;
    eventually("both", LONG, || {
        let mut answered: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..100 {
            let client = stage.client()?;
            *answered.entry(eventually("an answer", CHANGE, || ask(&client, "w"))?).or_default() += 1;
        }
        let (one, two) = (answered.get("one"), answered.get("two"));
        ensure!(one.is_some_and(|one| (55..=92).contains(one)) && two.is_some(), "{answered:?}");
        ensure!(answered.len() == 2, "{answered:?}");
        Ok(())
    })
}

fn what_leads_nowhere(stage: &Stage) -> Result<()> {
    for (backends, reason) in [
        // Without endpoints; with one that is not there; not a Service; not there at all.
        ("{name: empty, port: 53}", "no_endpoint"),
        ("{name: none, port: 53}", "unreachable"),
        ("{group: example.com, kind: Thing, name: one, port: 53}", "no_route"),
        ("{name: gone, port: 53}", "no_route"),
    ] {
        stage.lab.apply("echo", &route("", backends))?;
        stage.dropped(reason).with_context(|| backends.to_owned())?;
        ensure!(ask(&stage.client()?, "x").is_err(), "{backends}");
        // What comes next has to be dropped for its own reason.
        stage.lab.apply("echo", &route("", "{name: one, port: 53}"))?;
        eventually("good again", CHANGE, || {
            ensure!(ask(&stage.client()?, "c")? == "one");
            Ok(())
        })?;
    }
    // A listener of connections takes no datagrams.
    stage.lab.apply("echo", &route(", sectionName: other", "{name: one, port: 53}"))?;
    stage.dropped("no_route")?;
    for part in [
        "requests cannot go to a Thing.example.com",
        "there is no Service default/gone",
        "that is meant takes a UDPRoute",
    ] {
        eventually(part, CHANGE, || {
            ensure!(stage.lab.control.log().contains(part), "it is not told");
            Ok(())
        })?;
    }
    Ok(())
}
