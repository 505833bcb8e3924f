//! What pods meet on the network that is not the mesh's own traffic: unknown addresses (design 9.11), ports that app and agent both want (R14),
//! names (B83), floods of queries (B86).

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{Capture, Lab, LabConfig, Need, Pod, PodSpec, ServiceSpec, eventually, in_lab};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);
const TOKEN: &str = "canary-of-the-network-tests";
/// curl's codes for a connection that was refused or reset.
const REFUSED: [i32; 2] = [7, 56];

fn refusals(lab: &Lab, reason: &str) -> Result<f64> {
    Ok(lab.node(1).agent()?.metrics()?.sum("undermesh_proxy_refused_total", &[("reason", reason)]))
}

/// The agent's own view of whether it knows the pod.
fn is_known(lab: &Lab, pod: &Pod) -> Result<bool> {
    Ok(lab.node(1).agent()?.admin("/config_dump")?.body.contains(&format!("\"{}\"", pod.address.v4)))
}

fn waits(lab: &Lab, pod: &Pod) -> Result<bool> {
    Ok(lab.node(1).agent()?.admin("/connections")?.body.contains(&format!("\"{}:8080\"", pod.address.v4)))
}

/// A pod that runs and that the control plane has not heard of: nothing but the ranges says that it belongs to the cluster.
#[test]
fn hardening_9_11_an_unknown_address_of_the_mesh_is_held_then_refused_or_served() -> Result<()> {
    in_lab(Need::Mesh, || {
        let lab = Lab::with_mesh(LabConfig::default())?;
        let client = lab.add_pod(PodSpec::new("client"))?;
        let late = lab.add_pod(PodSpec::new("late").node(2))?;
        let _server = late.serve(["http", "--port", "8080", "--name", "late"])?;
        lab.enrol_namespace("default")?;
        lab.wait_hbone(&[&client, &late])?;
        let manifest = std::fs::read_to_string(lab.manifests.path("pod-default-late")).context("its manifest")?;
        let config = lab.node(1).agent()?.admin("/config_dump")?.body;
        ensure!(config.contains("198.18.1.0/24"), "the ranges are shown: {config:.2000}");
        let (file, url) = ("pod-default-late", format!("http://{}:8080/", late.address.v4));
        let forget = || -> Result<()> {
            lab.delete(file)?;
            eventually("the pod to be unknown", SOON, || {
                ensure!(!is_known(&lab, &late)?);
                Ok(())
            })
        };

        forget()?;
        let capture = Capture::start(&lab.fabric, &[TOKEN])?;
        let asked = client.lab(["get", &url, "-H", &format!("token: {TOKEN}")])?;
        ensure!(REFUSED.contains(&asked.code), "{asked:?}");
        ensure!(refusals(&lab, "unknown_mesh_address")? == 1.0, "the reason is counted");
        let demands = lab.node(1).agent()?.metrics()?.sum("undermesh_xds_on_demand_total", &[]);
        ensure!(demands >= 1.0, "the control plane was not asked");
        ensure!(capture.seen().sightings.is_empty(), "plaintext to an unknown pod: {:?}", capture.seen().sightings);

        // The pod becomes known while a connection waits. The wait is short, so on a slow machine it may take more than one try.
        let served = (0..5).try_fold(false, |served, _| -> Result<bool> {
            if served {
                return Ok(true);
            }
            let get = client.start("get", "lab", ["get", &url, "-H", &format!("token: {TOKEN}")])?;
            eventually("the connection to be held", SOON, || {
                ensure!(waits(&lab, &late)? || !get.running());
                Ok(())
            })?;
            lab.apply(file, &manifest)?;
            let output = get.wait(SOON)?;
            let served = output.code == 0;
            ensure!(served || REFUSED.contains(&output.code), "{output:?}");
            ensure!(!served || output.stdout.contains("\"server\":\"late\""), "{output:?}");
            if !served {
                forget()?;
            }
            Ok(served)
        })?;
        ensure!(served, "a pod that becomes known in time is reached");
        ensure!(capture.seen().sightings.is_empty(), "plaintext: {:?}", capture.seen().sightings);
        Ok(())
    })
}

/// R14: an app may have the ports that the agent would take. Everything works, and the app's ports stay the app's.
#[test]
fn hardening_R14_an_app_may_listen_on_the_meshs_ports() -> Result<()> {
    in_lab(Need::Mesh, || {
        let lab = Lab::with_mesh(LabConfig::default())?;
        lab.add_service(ServiceSpec::new("greedy").port("app", 9000, 9000))?;
        let client = lab.add_pod(PodSpec::new("client"))?;
        let greedy = lab.add_pod(PodSpec::new("greedy").node(2))?;
        lab.namespace("plain", &[])?;
        let outsider = lab.add_pod(PodSpec::new("outsider").namespace("plain").node(1))?;
        let ports = ["15001", "15006", "15008", "15053"];
        let wanted: Vec<&str> = ports.iter().chain(&["9000"]).flat_map(|port| ["--port", port]).collect();
        let _apps = greedy.serve(std::iter::once("tcp-echo").chain(wanted))?;
        lab.enrol_namespace("default")?;
        lab.wait_hbone(&[&client, &greedy])?;

        let hello = |pod: &Pod, host: &str, port: &str| -> Result<()> {
            eventually(&format!("{} to {host}:{port}", pod.name), SOON, || {
                let result = pod.lab(["send", host, port, "you"])?;
                ensure!(result.stdout == "hello you\n", "{result:?}");
                Ok(())
            })
        };
        // In from the mesh and from outside of it, and out, by name: HBONE, plaintext, capture and DNS have found other ports.
        hello(&client, "greedy", "9000")?;
        hello(&outsider, &greedy.address.v4.to_string(), "9000")?;
        let _echo = client.serve(["tcp-echo", "--port", "7000"])?;
        hello(&greedy, &client.address.v4.to_string(), "7000")?;
        let names = greedy.lab(["resolve", "greedy.default"])?.success()?;
        ensure!(!names.stdout.trim().is_empty(), "{names:?}");
        // Inside the pod the ports are the app's, on every address; from the network they are closed.
        for port in ports {
            for host in ["127.0.0.1", &greedy.address.v4.to_string()] {
                hello(&greedy, host, port)?;
            }
        }
        for port in ["15001", "15006", "15053"] {
            let probe = outsider.lab(["send", &greedy.address.v4.to_string(), port, "you"])?;
            ensure!(REFUSED.contains(&probe.code), "{port}: {probe:?}");
        }
        Ok(())
    })
}

/// R14: whoever calls the agent's listeners without a slot is refused and counted, and the agent does not notice.
#[test]
fn hardening_R14_the_agents_own_listeners_are_nobodys_servers() -> Result<()> {
    in_lab(Need::Mesh, || {
        let lab = Lab::with_mesh(LabConfig::default())?;
        let pod = lab.add_pod(PodSpec::new("client"))?;
        let other = lab.add_pod(PodSpec::new("other"))?;
        lab.enrol_namespace("default")?;
        lab.wait_hbone(&[&pod, &other])?;
        let counted = |reason| -> Result<f64> {
            Ok(lab.node(1).agent()?.metrics()?.sum("mesh_kernel_decisions_total", &[("reason", reason)]))
        };
        let before = counted("direct_to_agent")?;
        for port in ["15001", "15006", "15008", "15053"] {
            for host in ["127.0.0.1", "::1"] {
                let probe = pod.lab(["send", host, port, "x"])?;
                ensure!(probe.code == 7, "{host}:{port}: {probe:?}");
            }
        }
        ensure!(counted("direct_to_agent")? - before >= 8.0, "refusals are counted");
        // The pod's own address has none of them, and from another pod only the tunnel's port answers: with TLS, to whoever has a certificate.
        for port in ["15001", "15006", "15053"] {
            for (from, host) in [(&pod, pod.address.v4), (&other, pod.address.v4)] {
                let probe = from.lab(["send", &host.to_string(), port, "x"])?;
                ensure!(REFUSED.contains(&probe.code), "{} to {host}:{port}: {probe:?}", from.name);
            }
        }
        ensure!(refusals(&lab, "not_captured")? == 0.0, "none of them reached the agent");
        Ok(())
    })
}

fn resolve(pod: &Pod, name: &str) -> Result<BTreeSet<String>> {
    let output = pod.lab(["resolve", name])?;
    Ok(output.stdout.lines().map(String::from).filter(|_| output.code == 0).collect())
}

/// B83: an enrolled pod's names mean what cluster DNS says that they mean, which is what a pod outside the mesh hears.
#[test]
fn hardening_B83_names_mean_what_cluster_dns_says() -> Result<()> {
    in_lab(Need::Mesh, || {
        let lab = Lab::with_mesh(LabConfig::default())?;
        lab.add_service(ServiceSpec::new("web").port("http", 80, 8080))?;
        lab.add_service(ServiceSpec::new("db").port("sql", 5432, 5432).headless())?;
        lab.add_service(ServiceSpec::new("api").namespace("other").port("http", 80, 8080))?;
        lab.namespace("other", &[])?;
        lab.outside_name("www.outside.example", &mesh_tests::harness::plan::outside().both())?;
        let pods: Vec<Arc<Pod>> = [
            PodSpec::new("inside"),
            PodSpec::new("outsider"),
            PodSpec::new("db-0").label("app", "db").node(2),
            PodSpec::new("db-1").label("app", "db").node(2),
        ]
        .into_iter()
        .map(|spec| lab.add_pod(spec))
        .collect::<Result<_>>()?;
        let (inside, outsider) = (&pods[0], &pods[1]);
        lab.enrol(inside)?;
        lab.wait_hbone(&[inside])?;
        for name in [
            "web",
            "web.default",
            "web.default.svc",
            "web.default.svc.cluster.local",
            "web.default.svc.cluster.local.",
            "WEB.Default",
            "db",
            "db.default.svc",
            "api.other",
            "api.other.svc",
            "api.other.svc.cluster.local.",
            "api",
            "web.other",
            "nobody.default.svc.cluster.local.",
            "www.outside.example",
            "www.outside.example.",
            "nothing.example",
        ] {
            let expected = resolve(outsider, name)?;
            ensure!(resolve(inside, name)? == expected, "{name}: cluster DNS says {expected:?}");
        }
        ensure!(!resolve(inside, "web")?.is_empty() && resolve(inside, "db")?.len() == 4);
        // The answers are the agent's: without cluster DNS the names of the mesh go on, and no other does.
        let dns = mesh_tests::harness::plan::gateway(1);
        lab.node(1).netns.run(|| mesh_tests::harness::netlink::delete_address("lo", dns.v4.into(), 32))?;
        ensure!(resolve(outsider, "web.default.svc.cluster.local.")?.is_empty(), "cluster DNS is still there");
        for name in ["web", "db.default", "api.other.svc.cluster.local."] {
            ensure!(!resolve(inside, name)?.is_empty(), "{name}");
        }
        Ok(())
    })
}

/// The cluster's domain is a setting: short names are completed with it.
#[test]
fn features_names_follow_the_clusters_domain() -> Result<()> {
    in_lab(Need::Mesh, || {
        let domain = || vec!["--cluster-domain".to_owned(), "mesh.example".to_owned()];
        let lab = Lab::with_mesh(LabConfig { control_args: domain(), agent_args: domain(), ..LabConfig::default() })?;
        let web = lab.add_service(ServiceSpec::new("web").port("http", 80, 8080))?.context("its address")?;
        let client = lab.add_pod(PodSpec::new("client"))?;
        lab.enrol(&client)?;
        lab.wait_hbone(&[&client])?;
        for name in ["web", "web.default", "web.default.svc", "web.default.svc.mesh.example."] {
            let addresses = resolve(&client, name)?;
            ensure!(addresses.contains(&web.v4.to_string()), "{name}: {addresses:?}");
        }
        Ok(())
    })
}

/// B86: one pod asks as fast as it can; another pod of the same node does not notice.
#[test]
fn hardening_B86_a_flood_of_queries_is_its_senders_problem() -> Result<()> {
    in_lab(Need::Mesh, || {
        let lab = Lab::with_mesh(LabConfig::default())?;
        let web = lab.add_service(ServiceSpec::new("web").port("http", 80, 8080))?.context("its address")?;
        let loud = lab.add_pod(PodSpec::new("loud"))?;
        let quiet = lab.add_pod(PodSpec::new("quiet"))?;
        lab.enrol_namespace("default")?;
        lab.wait_hbone(&[&loud, &quiet])?;
        let name = "web.default.svc.cluster.local.";
        let flood = loud.start("flood", "lab", ["flood", name, "--count", "300000"])?;
        flood.wait_for("started", SOON)?;
        let mut asked = 0;
        while flood.running() || asked < 10 {
            let addresses = resolve(&quiet, name)?;
            ensure!(addresses.contains(&web.v4.to_string()), "query {asked} during the flood: {addresses:?}");
            asked += 1;
        }
        let output = flood.wait(SOON)?.success()?.stdout;
        let result: serde_json::Value = serde_json::from_str(output.lines().last().unwrap_or(""))?;
        let number = |key: &str| result[key].as_u64().unwrap_or(0);
        // Its own share was answered, and no more: 5,000 at once and 5,000 a second.
        let allowed = 5_000 + 5 * number("ms") + 5_000;
        ensure!(number("answered") > 0 && number("answered") <= allowed, "{result}");
        ensure!(number("answered") < number("sent"), "that was no flood: {result}");
        Ok(())
    })
}
