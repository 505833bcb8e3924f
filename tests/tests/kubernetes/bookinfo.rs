//! Bookinfo, as the README deploys it: into the mesh while it runs (B1), and out of it again (B35); and behind the gateway of the profile demo.
use super::mesh::{Mesh, NODES, Namespace, SYSTEM, in_mesh, name};
use super::objects;
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::Stars;
use mesh_tests::harness::bookinfo::{Load, parse};
use mesh_tests::harness::http;
use mesh_tests::harness::metrics::Metrics;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};

const PAGE: &str = "http://productpage:9080/productpage";
const TITLE: &str = "<title>Simple Bookstore App</title>";
/// Those of the Gateway API that a test brings, as an administrator does.
const GATEWAY_KINDS: &str =
    "gatewayclasses.gateway.networking.k8s.io gateways.gateway.networking.k8s.io httproutes.gateway.networking.k8s.io";
const OPENED: &str = "istio_tcp_connections_opened_total";
/// Who calls whom. The client is `default`.
const HOPS: [(&str, &str); 4] = [
    ("default", "bookinfo-productpage"),
    ("bookinfo-productpage", "bookinfo-details"),
    ("bookinfo-productpage", "bookinfo-reviews"),
    ("bookinfo-reviews", "bookinfo-ratings"),
];

/// Bookinfo and a client in a namespace that is not in the mesh.
fn deploy<'a>(mesh: &'a Mesh, name: &'static str) -> Result<Namespace<'a>> {
    let namespace = mesh.namespace(name, serde_json::json!({}))?;
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/bookinfo/bookinfo.yaml");
    mesh.kubectl(&format!("apply -n {name} -f {manifests}"))?;
    mesh.apply_all(&[objects::idle(name, "client", 1)])?;
    namespace.becomes_ready(7)?;
    // They have no readiness probes. One load alone is printed as a page.
    mesh.eventually("a page before the mesh", || loads(&namespace, 2).map(drop))?;
    Ok(namespace)
}

fn loads(namespace: &Namespace, count: u32) -> Result<Vec<Load>> {
    let loads = parse(&namespace.exec("client", &["/lab", "get", PAGE, "--count", &count.to_string()])?);
    ensure!(loads.len() == count as usize, "{} of {count} loads", loads.len());
    if let Some(bad) = loads.iter().find(|load| load.status != 200 || load.stars == Stars::Broken) {
        anyhow::bail!("exit {} status {}: {:.300}", bad.exit, bad.status, bad.text);
    }
    Ok(loads)
}

/// Connections of a hop as all agents count them: all, and those by mutual TLS.
fn hop(scrapes: &[Metrics], namespace: &str, reporter: &str, (from, to): (&str, &str)) -> [f64; 2] {
    let id = |account: &str| format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
    let (from, to) = (id(from), id(to));
    let hop = [("reporter", reporter), ("source_principal", &from), ("destination_principal", &to)];
    let mutual = [&hop[..], &[("connection_security_policy", "mutual_tls")]].concat();
    [&hop[..], &mutual].map(|labels| scrapes.iter().map(|scrape| scrape.sum(OPENED, labels)).sum())
}

fn scrape(mesh: &Mesh) -> Result<Vec<Metrics>> {
    NODES.iter().map(|node| mesh.metrics(*node)).collect()
}

/// In the mesh, and everybody knows.
fn join(mesh: &Mesh, namespace: &Namespace) -> Result<()> {
    mesh.kubectl(&format!("label namespace {} istio.io/dataplane-mode=ambient", namespace.name))?;
    mesh.eventually("seven pods in the mesh", || {
        let outside: Vec<String> =
            namespace.pods()?.iter().filter(|pod| !super::mesh::is_in_mesh(pod)).map(|pod| name(pod).into()).collect();
        ensure!(outside.is_empty(), "not yet: {outside:?}");
        Ok(())
    })?;
    // What is announced reaches the agents a moment later.
    mesh.eventually("pages by mutual TLS alone", || {
        let before = scrape(mesh)?;
        loads(namespace, 6)?;
        let after = scrape(mesh)?;
        for edge in HOPS {
            let [before, after] = [&before, &after].map(|scrapes| hop(scrapes, namespace.name, "source", edge)[1]);
            ensure!(after > before, "none yet of {edge:?}");
        }
        Ok(())
    })
}

#[test]
fn features_B1_EN4_bookinfo_joins_while_it_runs_and_all_its_hops_are_mutual_tls() -> Result<()> {
    in_mesh(|mesh| {
        let namespace = deploy(mesh, "bookinfo")?;
        let life = namespace.life()?;
        loads(&namespace, 3)?;
        join(mesh, &namespace)?;

        // As its users would look, from inside of the pod of ratings.
        let pods = namespace.pods()?;
        let ratings = pods.iter().map(name).find(|name| name.starts_with("ratings")).unwrap_or_default();
        let command = ["debug", "-n", namespace.name, ratings, "--image", objects::IMAGE, "-c", "asks", "--quiet"];
        mesh.run(&[&["kubectl"], &command[..], &["--", "/lab", "get", PAGE]].concat())?;
        mesh.eventually("a page for ratings", || {
            let page = mesh.kubectl(&format!("logs -n {} {ratings} -c asks", namespace.name))?;
            ensure!(page.contains(TITLE), "{page}");
            Ok(())
        })?;

        let capture = mesh.capture(&[TITLE, "GET /reviews/0"])?;
        let before = scrape(mesh)?;
        // Of 300 loads seven points are two and a half standard deviations of a third: ten are nearly four.
        let pages = loads(&namespace, 300)?;
        for stars in [Stars::None, Stars::Black, Stars::Red] {
            let percent = pages.iter().filter(|load| load.stars == stars).count() as f64 / 3.0;
            println!("{stars:?}: {percent:.1} %");
            ensure!((percent - 33.3).abs() <= 10.0, "{stars:?} got {percent:.1} %");
        }
        let after = scrape(mesh)?;
        for edge in HOPS {
            for reporter in ["source", "destination"] {
                let [before, after] = [&before, &after].map(|scrapes| hop(scrapes, namespace.name, reporter, edge));
                let [all, mutual] = [after[0] - before[0], after[1] - before[1]];
                ensure!(all > 0.0 && all == mutual, "{reporter}: {edge:?}: {mutual} of {all} by mutual TLS");
            }
        }
        let seen = capture.seen();
        ensure!(seen.sightings.is_empty() && seen.lost == 0, "{:?}, {} lost", seen.sightings.first(), seen.lost);
        ensure!(seen.hbone_packets > 0, "nothing crossed on port 15008");
        ensure!(namespace.life()? == life, "before {life:#?}, now {:#?}", namespace.life()?);
        Ok(())
    })
}

#[test]
fn features_B35_a_namespace_leaves_while_its_pages_are_loaded() -> Result<()> {
    in_mesh(|mesh| {
        let namespace = deploy(mesh, "leaves")?;
        join(mesh, &namespace)?;
        let life = namespace.life()?;
        let captured = mesh.settled()?;
        ensure!(!residue(mesh)?.is_empty(), "what is looked for later is not there now");

        let pages = std::thread::scope(|scope| {
            let loading = scope.spawn(|| loads(&namespace, 150));
            mesh.kubectl(&format!("label namespace {} istio.io/dataplane-mode-", namespace.name))?;
            namespace.in_mesh_are(&[])?;
            loading.join().map_err(|_| anyhow::anyhow!("the load panicked"))?
        })?;
        println!("{} pages while it left", pages.len());

        let capture = mesh.capture(&[TITLE, "GET /reviews/0"])?;
        loads(&namespace, 20)?;
        mesh.eventually("plaintext", || {
            ensure!(!capture.seen().sightings.is_empty());
            Ok(())
        })?;
        mesh.eventually("the kernel has let go of seven pods", || {
            let left = mesh.captured_pods()?;
            ensure!(left <= captured - 7.0, "{left} of {captured}");
            Ok(())
        })?;
        // Pods of an earlier test may still end.
        mesh.eventually("nothing of the mesh in the pods' networks", || {
            let found = residue(mesh)?;
            ensure!(found.is_empty(), "{found:#?}");
            Ok(())
        })?;
        ensure!(namespace.life()? == life, "before {life:#?}, now {:#?}", namespace.life()?);
        Ok(())
    })
}

/// What a user of Istio has for a page at the ingress gateway, with the port that its pods listen on, or the one that clients come to.
fn ingress(namespace: &str, port: u16) -> [Value; 2] {
    let head = |kind: &str, name: &str| {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": kind,
            "metadata": { "name": name, "namespace": namespace },
        })
    };
    let (mut gateway, mut routes) = (head("Gateway", "shop-gateway"), head("VirtualService", "shop"));
    gateway["spec"] = json!({
        "selector": { "istio": "ingressgateway" },
        "servers": [{ "port": { "number": port, "name": "http", "protocol": "HTTP" }, "hosts": ["*"] }],
    });
    routes["spec"] = json!({
        "hosts": ["*"],
        "gateways": ["shop-gateway"],
        "http": [{
            "match": [{ "uri": { "exact": "/productpage" } }],
            "route": [{ "destination": { "host": "productpage", "port": { "number": 9080 } } }],
        }],
    });
    [gateway, routes]
}

#[test]
fn features_GW_the_profile_demo_serves_what_selects_istios_ingress_gateway() -> Result<()> {
    in_mesh(|mesh| {
        mesh.apply(include_str!("gateway-api.yaml"))?;
        let namespace = deploy(mesh, "behind")?;
        join(mesh, &namespace)?;
        let installed = mesh.meshctl_json(&format!("install -f {} --profile demo", mesh.values), 0)?;
        ensure!(installed["ready"] == true, "{installed:#}");
        let components = installed["components"].as_array().context("no components")?;
        ensure!(components.iter().any(|one| one["component"] == "Gateway istio-ingressgateway"), "{installed:#}");

        let service = format!("service -n {SYSTEM} istio-ingressgateway");
        let ingress_address = mesh.eventually("an address of the gateway", || {
            let service = mesh.object(&service)?;
            let ip = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().context("none yet")?;
            let ports = service["spec"]["ports"].as_array().context("no ports")?;
            let http2 = ports.iter().find(|port| port["name"] == "http2").context("no port http2")?;
            ensure!(http2["port"] == 80 && http2["targetPort"] == 8080, "{http2}");
            Ok(SocketAddr::new(ip.parse::<IpAddr>()?, 80))
        })?;
        let ask = |path: &str| http::get(&mesh.netns("n2")?, ingress_address, path);
        for port in [8080, 80] {
            mesh.apply_all(&ingress(namespace.name, port))?;
            mesh.eventually(&format!("the page, by a Gateway for port {port}"), || {
                let page = ask("/productpage")?;
                ensure!(page.status == 200 && page.body.contains(TITLE), "{} {:.300}", page.status, page.body);
                Ok(())
            })?;
            ensure!(ask("/other")?.status == 404, "what no route means is served");
        }
        mesh.kubectl(&format!("delete gateways.networking.istio.io -n {} shop-gateway", namespace.name))?;
        mesh.eventually("no page without the Gateway", || {
            ensure!(ask("/productpage")?.status == 404);
            Ok(())
        })?;
        // `meshctl check` of the next test would tell of one without its Gateway as long as the namespace takes to end.
        mesh.kubectl(&format!("delete virtualservices -n {} shop", namespace.name))?;

        mesh.meshctl_json(&format!("install -f {}", mesh.values), 0)?;
        mesh.eventually("nothing of the gateway", || {
            let left = mesh.kubectl(&format!(
                "get deployments,services,serviceaccounts,pods -n {SYSTEM} -l istio=ingressgateway -o name"
            ))?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        })?;
        // They are nobody's of the mesh, and would stay for the tests after this one.
        mesh.kubectl(&format!("delete crd --timeout=60s {GATEWAY_KINDS}")).map(drop)
    })
}

/// What of the mesh is in the networks of the pods of both nodes: listeners on its ports, routes of its slots.
pub fn residue(mesh: &Mesh) -> Result<Vec<String>> {
    const LOOK: &str = "for n in /run/netns/*; do echo \"at $n\"; nsenter --net=$n sh -c \
        'ss -Hlntu \"( sport = :15001 or sport = :15006 or sport = :15008 or sport = :15053 )\"; ip -o route show table all; ip -o -6 route show table all; ip rule' \
        | grep -E ':150(01|06|08|53) |127\\.128\\.|fd75:6e64:657' ; done; true";
    let mut found = Vec::new();
    for node in NODES {
        let mut place = String::new();
        for line in mesh.on_node(node, LOOK)?.lines() {
            match line.strip_prefix("at ") {
                Some(netns) => place = netns.to_owned(),
                None => found.push(format!("n{node} {place}: {line}")),
            }
        }
    }
    Ok(found)
}
