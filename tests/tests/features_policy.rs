//! Who may talk to whom: rows B17, B18 (what of it has no gateway), B22, B23, B27, B28 of the acceptance table, and what happens to open connections.

#![expect(non_snake_case, reason = "tests carry the ids of their rows")]

use anyhow::{Result, ensure};
use mesh_tests::harness::policy::{Authorization, peer_authentication};
use mesh_tests::harness::{
    Capture, Lab, LabConfig, Need, Pod, PodSpec, Process, ServiceSpec, eventually, in_lab, plan,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);
/// curl's code for a connection that was reset: what a policy does.
const RESET: i32 = 56;
/// The codes for a plaintext connection under STRICT: the kernel refuses it, the agent resets it.
const REFUSED: [i32; 2] = [7, RESET];

/// A client with account `client` on node 1 and an echo server with account `echo` on node 2, enrolled.
fn echo_lab() -> Result<(Lab, Arc<Pod>, Arc<Pod>, Process)> {
    let lab = Lab::with_mesh(LabConfig::default())?;
    let ports = ServiceSpec::new("tcp-echo").port("a", 9000, 9000).port("b", 9001, 9001).port("c", 9002, 9002);
    lab.add_service(ports)?;
    let client = lab.add_pod(PodSpec::new("client").service_account("client"))?;
    let echo = lab.add_pod(PodSpec::new("tcp-echo").service_account("echo").node(2))?;
    let server = echo.serve(["tcp-echo"])?;
    lab.enrol_namespace("default")?;
    lab.wait_hbone(&[&client, &echo])?;
    Ok((lab, client, echo, server))
}

/// Waits until each port answers (`true`) or resets (`false`).
fn ports_become(client: &Pod, wanted: &[(u16, bool)]) -> Result<()> {
    eventually(&format!("{wanted:?}"), SOON, || {
        for (port, open) in wanted {
            let result = client.lab(["send", "tcp-echo", &port.to_string(), &format!("port {port}")])?;
            match open {
                true => ensure!(result.stdout == format!("hello port {port}\n"), "port {port}: {result:?}"),
                false => ensure!(result.code == RESET, "port {port}: {result:?}"),
            }
        }
        Ok(())
    })
}

#[test]
fn features_B17_the_outside_is_reachable_without_configuration() -> Result<()> {
    in_lab(Need::Mesh, || {
        let lab = Lab::with_mesh(LabConfig::default())?;
        let client = lab.add_pod(PodSpec::new("client"))?;
        lab.enrol_namespace("default")?;
        lab.outside_name("www.outside.example", &plan::outside().both())?;
        let _server = lab.serve_outside(&["http", "--port", "443", "--name", "outside"])?;
        for url in ["http://www.outside.example:443/", "http://198.18.250.10:443/", "http://[fd00:198:fa::a]:443/"] {
            let body = client.get(url)?.success()?.stdout;
            let own = client.ips().iter().any(|ip| body.contains(&ip.to_string()));
            ensure!(own, "the outside must see the pod's own address: {url}: {body}");
        }
        // A port where nobody listens is refused, not accepted and then dropped.
        let start = Instant::now();
        let code = client.get("http://198.18.250.10:444/")?.code;
        ensure!(REFUSED.contains(&code) && start.elapsed() < Duration::from_secs(3), "code {code}");
        Ok(())
    })
}

/// The mesh settings with a mode for what nobody is known to have.
fn outside_is(mode: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: undermesh, namespace: undermesh-system}}\ndata: {{mesh: \"outboundTrafficPolicy: {{mode: {mode}}}\"}}\n"
    )
}

fn sidecar(namespace: &str, mode: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: default, namespace: {namespace}}}\nspec: {{outboundTrafficPolicy: {{mode: {mode}}}}}\n"
    )
}

fn entry(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: outside, namespace: default}}\nspec: {{hosts: [www.outside.example], location: MESH_EXTERNAL, ports: [{{number: 443, name: http, protocol: HTTP}}], {spec}}}\n"
    )
}

/// Waits until the pod's connects to the outside succeed, or fail at once with ECONNREFUSED: the code alone would also say that the agent has reset them.
fn outside_becomes(client: &Pod, wanted: &[(&str, bool)]) -> Result<()> {
    eventually(&format!("{wanted:?}"), SOON, || {
        for (host, open) in wanted {
            let probe = client.lab(["probe", host, "443", "--timeout", "2"])?;
            ensure!((probe.code == 0) == *open && (*open || probe.code == 7), "{host}: {probe:?}");
            let in_brackets = if host.contains(':') { format!("[{host}]") } else { (*host).to_owned() };
            let get = client.get(&format!("http://{in_brackets}:443/"))?;
            ensure!((get.code == 0) == *open, "{host}: {get:?}");
        }
        Ok(())
    })
}

#[test]
fn features_B18_SB_3_only_what_the_registry_knows_may_be_reached() -> Result<()> {
    in_lab(Need::Mesh, || {
        let (lab, client, echo, _server) = echo_lab()?;
        lab.namespace("free", &[])?;
        let free = lab.add_pod(PodSpec::new("free").namespace("free"))?;
        lab.enrol_namespace("free")?;
        lab.wait_hbone(&[&free])?;
        let outside = plan::outside();
        let (v4, v6) = (outside.v4.to_string(), outside.v6.to_string());
        let name = "www.outside.example";
        lab.outside_name(name, &outside.both())?;
        let _served = lab.serve_outside(&["http", "--port", "443", "--name", "outside"])?;
        let _echoes = lab.serve_outside(&["tcp-echo", "--port", "9009"])?;
        let agent = lab.node(1).agent()?;
        let refused = || {
            Ok::<_, anyhow::Error>(
                agent.metrics()?.sum("mesh_kernel_decisions_total", &[("reason", "not_in_registry")]),
            )
        };
        let known = || {
            ports_become(&client, &[(9000, true)])?;
            let to_pod = client.lab(["probe", &echo.ips()[0].to_string(), "9001"])?;
            ensure!(to_pod.code == 0, "a pod by its address: {to_pod:?}");
            Ok(())
        };
        let hold = |pod: &Pod| pod.start("hold", "lab", ["hold", v4.as_str(), "9009"]);
        let (held, held_free) = (hold(&client)?, hold(&free)?);
        outside_becomes(&client, &[(&v4, true), (&v6, true), (name, true)])?;
        ensure!(refused()? == 0.0);

        // Everybody's, and it is in force for who is there already.
        lab.apply("settings", &outside_is("REGISTRY_ONLY"))?;
        outside_becomes(&client, &[(&v4, false), (&v6, false), (name, false)])?;
        outside_becomes(&free, &[(&v4, false)])?;
        held.wait_for("cut", SOON)?;
        ensure!(refused()? >= 3.0);
        known()?;
        eventually("a line about it", SOON, || {
            ensure!(agent.log().contains("not_in_registry"));
            Ok(())
        })?;

        // A namespace of which something else is said.
        lab.apply("sidecar", &sidecar("free", "ALLOW_ANY"))?;
        outside_becomes(&free, &[(&v4, true), (&v6, true)])?;
        outside_becomes(&client, &[(&v4, false)])?;

        // Who is said to be known may be reached by name and by address, and nobody else.
        lab.apply("entry", &entry(&format!("resolution: STATIC, endpoints: [{{address: {v4}}}]")))?;
        outside_becomes(&client, &[(name, true), (&v4, true), (&v6, false)])?;
        let lookalike = client.lab(["probe", "198.18.250.11", "443", "--timeout", "2"])?;
        ensure!(lookalike.code == 7, "{lookalike:?}");
        lab.apply("entry", &entry("resolution: NONE, addresses: [198.18.250.0/28, \"fd00:198:fa::/64\"]"))?;
        outside_becomes(&client, &[(&v4, true), (&v6, true)])?;
        let beside = client.lab(["probe", "198.18.250.16", "443", "--timeout", "2"])?;
        ensure!(beside.code == 7, "{beside:?}");
        lab.delete("entry")?;
        outside_becomes(&client, &[(&v4, false), (&v6, false)])?;
        known()?;

        // Without an agent nothing of it is open either.
        let kept = agent.worker()?;
        agent.signal_worker(nix::sys::signal::Signal::SIGKILL)?;
        let probe = client.lab(["probe", &v4, "443", "--timeout", "2"])?;
        ensure!(probe.code == 7, "{probe:?}");
        eventually("another worker", SOON, || {
            ensure!(agent.worker()? != kept);
            known()
        })?;
        outside_becomes(&client, &[(&v4, false)])?;

        // As it was.
        lab.delete("sidecar")?;
        outside_becomes(&free, &[(&v4, false)])?;
        lab.apply("settings", &outside_is("ALLOW_ANY"))?;
        outside_becomes(&client, &[(&v4, true), (&v6, true), (name, true)])?;
        outside_becomes(&free, &[(&v4, true)])?;
        drop(held_free);

        // Who is not known yet may be one that a Sidecar selects, also while that is nobody.
        let selects = "{workloadSelector: {labels: {app: chosen}}, ";
        lab.apply("sidecar", &sidecar("free", "REGISTRY_ONLY").replace("spec: {", &format!("spec: {selects}")))?;
        let late = lab.add_pod(PodSpec::new("late").namespace("free"))?;
        lab.forget(&late)?;
        eventually("the agent to forget the pod", SOON, || {
            ensure!(!agent.admin("/config_dump")?.body.contains(&late.ips()[0].to_string()));
            Ok(())
        })?;
        late.node.kubelet().add(late.enrolment())?;
        outside_becomes(&late, &[(&v4, false), (&v6, false)])?;
        outside_becomes(&free, &[(&v4, true)])?;
        lab.announce(&late)?;
        outside_becomes(&late, &[(&v4, true), (&v6, true)])?;
        Ok(())
    })
}

#[test]
fn features_B22_authorization_of_tcp_ports() -> Result<()> {
    in_lab(Need::Mesh, || {
        let (lab, client, _echo, _server) = echo_lab()?;
        ports_become(&client, &[(9000, true), (9001, true), (9002, true)])?;

        lab.apply("policy", &Authorization::allow("tcp", "tcp-echo").ports(&[9000, 9001]).yaml())?;
        ports_become(&client, &[(9002, false), (9000, true), (9001, true)])?;

        // An ALLOW that speaks of HTTP can never match at L4: nothing is allowed.
        lab.apply("policy", &Authorization::allow("tcp", "tcp-echo").ports(&[9000]).methods(&["GET"]).yaml())?;
        ports_become(&client, &[(9000, false), (9001, false)])?;

        // A DENY keeps its L4 part.
        lab.apply("policy", &Authorization::deny("tcp", "tcp-echo").ports(&[9000]).methods(&["GET"]).yaml())?;
        ports_become(&client, &[(9001, true), (9000, false), (9002, true)])?;

        lab.delete("policy")?;
        ports_become(&client, &[(9000, true), (9001, true), (9002, true)])
    })
}

#[test]
fn features_B23_authorization_by_identity() -> Result<()> {
    in_lab(Need::Mesh, || {
        let (lab, client, _echo, server) = echo_lab()?;
        let gateway = lab.add_pod(PodSpec::new("gateway").service_account("gateway"))?;
        lab.enrol(&gateway)?;
        lab.apply("policy", &Authorization::allow("only-gateway", "tcp-echo").from("default", "gateway").yaml())?;
        ports_become(&client, &[(9000, false)])?;
        ports_become(&gateway, &[(9000, true)])?;
        // The app sees the real client, and nothing of the refused one since the policy is in force.
        let log = server.stdout();
        ensure!(gateway.ips().iter().any(|ip| log.contains(&ip.to_string())), "{log}");
        ports_become(&client, &[(9000, false), (9001, false)])?;
        ports_become(&gateway, &[(9001, true)])?;
        let since = server.stdout().split_off(log.len());
        ensure!(
            since.contains("port=9001") && !client.ips().iter().any(|ip| since.contains(&ip.to_string())),
            "{since}"
        );
        Ok(())
    })
}

#[test]
fn features_B27_migration_to_strict() -> Result<()> {
    in_lab(Need::Mesh, || {
        let lab = Lab::with_mesh(LabConfig::default())?;
        let (mut pods, mut servers) = (Vec::new(), Vec::new());
        for (namespace, node) in [("foo", 1), ("bar", 2), ("legacy", 1)] {
            lab.namespace(namespace, &[])?;
            let client = lab.add_pod(PodSpec::new("curl").namespace(namespace).node(node).service_account("curl"))?;
            if namespace != "legacy" {
                lab.add_service(ServiceSpec::new("httpbin").namespace(namespace).port("http", 8000, 8080))?;
                let server =
                    lab.add_pod(PodSpec::new("httpbin").namespace(namespace).node(node).service_account("httpbin"))?;
                servers.push(server.serve(["http", "--port", "8080"])?);
                pods.push(server);
            }
            pods.push(client);
        }
        let client = |namespace: &str| {
            pods.iter()
                .find(|p| p.name == "curl" && p.namespace == namespace)
                .cloned()
                .expect("a client in each namespace")
        };
        let become_all = |step: &str, wanted: &[(&str, &str, bool)]| {
            eventually(step, SOON, || {
                for (from, to, open) in wanted {
                    let result = client(from).get(&format!("http://httpbin.{to}:8000/headers"))?;
                    let as_wanted = if *open { result.code == 0 } else { REFUSED.contains(&result.code) };
                    ensure!(as_wanted, "{from} -> {to}: exit {} {}", result.code, result.stderr.trim());
                }
                Ok(())
            })
        };
        for namespace in ["foo", "bar"] {
            lab.enrol_namespace(namespace)?;
        }
        let meshed: Vec<&Pod> = pods.iter().filter(|p| p.namespace != "legacy").map(AsRef::as_ref).collect();
        lab.wait_hbone(&meshed)?;
        let capture = Capture::start(&lab.fabric, &["GET /headers HTTP/1.1"])?;
        let enrolled = [("foo", "foo", true), ("foo", "bar", true), ("bar", "foo", true), ("bar", "bar", true)];
        become_all("enrolled pairs", &enrolled)?;
        ensure!(
            capture.seen().sightings.is_empty(),
            "HTTP in clear between enrolled pods: {:?}",
            capture.seen().sightings
        );
        become_all("PERMISSIVE", &[("legacy", "foo", true), ("legacy", "bar", true)])?;
        // What has no identity is in clear, so the capture would have seen the others too.
        ensure!(capture.seen().count("GET /headers HTTP/1.1") > 0, "the capture is blind");

        lab.apply("foo-strict", &peer_authentication("foo", "STRICT", None, &[]))?;
        become_all("STRICT in foo", &[("legacy", "foo", false), ("legacy", "bar", true)])?;
        become_all("enrolled pairs with STRICT in foo", &enrolled)?;

        lab.apply("mesh-strict", &peer_authentication("istio-system", "STRICT", None, &[]))?;
        become_all("STRICT in the mesh", &[("legacy", "foo", false), ("legacy", "bar", false)])?;
        capture.reset();
        become_all("enrolled pairs with STRICT in the mesh", &enrolled)?;
        let seen = capture.seen();
        ensure!(seen.sightings.is_empty() && seen.lost == 0, "{:?}", seen.sightings);
        Ok(())
    })
}

#[test]
fn features_B28_one_port_stays_open_under_strict() -> Result<()> {
    in_lab(Need::Mesh, || {
        let (lab, client, echo, _server) = echo_lab()?;
        lab.namespace("legacy", &[])?;
        let legacy = lab.add_pod(PodSpec::new("legacy").namespace("legacy"))?;
        let address = echo.address.v4.to_string();
        let legacy_ports = |wanted: &[(u16, bool)]| {
            eventually(&format!("legacy {wanted:?}"), SOON, || {
                for (port, open) in wanted {
                    let result = legacy.lab(["send", &address, &port.to_string(), "x", "--timeout", "2"])?;
                    ensure!(
                        (result.code == 0) == *open && (*open || REFUSED.contains(&result.code)),
                        "{port}: {result:?}"
                    );
                }
                Ok(())
            })
        };
        for mode in ["PERMISSIVE", "DISABLE"] {
            lab.apply("peer", &peer_authentication("default", "STRICT", Some("tcp-echo"), &[(9001, mode)]))?;
            legacy_ports(&[(9000, false), (9001, true), (9002, false)])?;
            ports_become(&client, &[(9000, true), (9001, true), (9002, true)])?;
        }
        Ok(())
    })
}

#[test]
fn features_open_connections_obey_new_policy() -> Result<()> {
    in_lab(Need::Mesh, || {
        let (lab, client, echo, _server) = echo_lab()?;
        let _load = echo.serve(["load", "serve", "--port", "8080"])?;
        let address = echo.address.v4.to_string();
        let hold = client.start("hold", "lab", ["hold", &address, "8080"])?;
        hold.wait_for("open", SOON)?;

        // A dry run cuts nobody.
        lab.apply("policy", &Authorization::deny("no-client", "tcp-echo").from("default", "client").dry_run().yaml())?;
        lab.apply("other", &Authorization::deny("other", "tcp-echo").ports(&[9002]).yaml())?;
        ports_become(&client, &[(9002, false)])?;
        ensure!(hold.running(), "a dry run cut the connection");

        let start = Instant::now();
        lab.apply("policy", &Authorization::deny("no-client", "tcp-echo").from("default", "client").yaml())?;
        let line = hold.wait_for("cut", SOON)?;
        ensure!(line.contains("reset") || line.contains("closed"), "{line}");
        ensure!(start.elapsed() < Duration::from_secs(1), "cut after {:?}", start.elapsed());
        Ok(())
    })
}
