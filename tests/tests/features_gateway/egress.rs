//! An egress gateway with Istio's kinds: rows B18, B19 and B20 for what leaves the mesh through it.
use crate::stage::CHANGE;
use anyhow::{Result, ensure};
use mesh_tests::harness::{Finished, Lab, Need, PodSpec, ServiceSpec, eventually, in_lab, plan};

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: exit, namespace: default}\nspec:\n  gatewayClassName: undermesh\n  listeners: [{name: none, port: 8099, protocol: HTTP, hostname: nobody.example.com}]\n";
/// The gateway's side, for all hosts, and for one name in TLS that is passed on.
const SERVERS: &str = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: out, namespace: default}\nspec:\n  selector: {istio: egressgateway}\n  servers:\n  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [\"*\"]}\n  - {port: {number: 443, name: tls, protocol: TLS}, hosts: [edition.example.com], tls: {mode: PASSTHROUGH}}\n";

fn entry(target: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: edition, namespace: default}}\n\
         spec: {{hosts: [edition.example.com], location: MESH_EXTERNAL, resolution: STATIC, endpoints: [{{address: {}}}],\n\
         \x20 ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {target}}}, {{number: 443, name: tls, protocol: TLS}}]}}\n",
        plan::outside().v4
    )
}

/// From the mesh to the gateway, and from there to the host; `more` is added to the rule of the gateway.
fn through(more: &str) -> String {
    let gateway = "exit-undermesh.default.svc.cluster.local";
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: edition, namespace: default}}\nspec:\n  hosts: [edition.example.com]\n  gateways: [out, mesh]\n  http:\n\
         \x20 - {{match: [{{gateways: [mesh], port: 80}}], route: [{{destination: {{host: {gateway}, port: {{number: 80}}}}}}]}}\n\
         \x20 - {{match: [{{gateways: [out], port: 80}}], route: [{{destination: {{host: edition.example.com, port: {{number: 80}}}}}}]{more}}}\n\
         \x20 tls:\n\
         \x20 - {{match: [{{gateways: [mesh], port: 443, sniHosts: [edition.example.com]}}], route: [{{destination: {{host: {gateway}, port: {{number: 443}}}}}}]}}\n\
         \x20 - {{match: [{{gateways: [out], port: 443, sniHosts: [edition.example.com]}}], route: [{{destination: {{host: edition.example.com, port: {{number: 443}}}}}}]}}\n"
    )
}

const ORIGINATES: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: edition, namespace: default}\nspec: {host: edition.example.com, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}}\n";
const REGISTRY_ONLY: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: undermesh, namespace: undermesh-system}\ndata: {mesh: \"outboundTrafficPolicy: {mode: REGISTRY_ONLY}\"}\n";

#[test]
fn features_B18_B19_B20_what_leaves_the_mesh_leaves_by_the_egress_gateway() -> Result<()> {
    in_lab(Need::Mesh, || {
        let (lab, client) = Lab::with_client()?;
        let tls = lab.serve_outside_tls("tls", "edition.example.com")?;
        let _plain = lab.serve_outside(&["http", "--port", "8080", "--name", "plain"])?;
        lab.apply("gateway", GATEWAY)?;
        let selector = [("istio", "egressgateway")];
        lab.add_service(
            ServiceSpec::new("exit-undermesh").selector(&selector).port("http", 80, 80).port("tls", 443, 443),
        )?;
        let gateway = lab.start_gateway("default", "exit", 2, &selector)?;
        let gateway_ip = gateway.pod.ips()[0].to_string();
        let own_ip = client.ips()[0].to_string();
        let url = "http://edition.example.com/politics";
        let becomes = |what: &str, wanted: &dyn Fn(&Finished) -> bool| {
            eventually(what, CHANGE, || {
                let answer = client.get(url)?;
                ensure!(wanted(&answer), "{answer:?}");
                Ok(answer)
            })
        };
        let requests = || Ok::<_, anyhow::Error>(gateway.metrics()?.sum("istio_requests_total", &[]));

        // Who is known is reached directly, until something else is said.
        lab.apply("entry", &entry(8080))?;
        becomes("directly", &|answer| {
            answer.stdout.contains("\"server\":\"plain\"") && answer.stdout.contains(&own_ip)
        })?;
        lab.apply("servers", SERVERS)?;
        lab.apply("through", &through(""))?;
        becomes("through the gateway", &|answer| {
            answer.stdout.contains("\"server\":\"plain\"") && answer.stdout.contains(&gateway_ip)
        })?;
        eventually("its log and its numbers", CHANGE, || {
            ensure!(requests()? >= 1.0 && !gateway.lines(&["/politics", "edition.example.com", "200"]).is_empty());
            Ok(())
        })?;

        // What the gateway's rule says holds: a limit, and then TLS that it begins.
        let _slow = lab.serve_outside(&["http", "--port", "8081", "--name", "slow", "--delay-ms", "4000"])?;
        lab.apply("entry", &entry(8081))?;
        lab.apply("through", &through(", timeout: 1s"))?;
        eventually("504", CHANGE, || {
            let answer = client.get(url)?;
            ensure!(answer.stderr.contains("HTTP 504"), "{answer:?}");
            Ok(())
        })?;
        lab.apply("through", &through(""))?;
        lab.apply("rule", ORIGINATES)?;
        lab.apply("entry", &entry(443))?;
        becomes("one answer over TLS", &|answer| answer.code == 0 && answer.stdout.contains("\"server\":\"tls\""))?;
        tls.wait_for("sni=edition.example.com", CHANGE)?;

        // TLS of the client's own is passed on by its name.
        let before = gateway.metrics()?.sum("istio_tcp_connections_opened_total", &[]);
        eventually("a connection through the gateway", CHANGE, || {
            client.lab(["hello", "edition.example.com", "443", "edition.example.com", "--timeout", "1"])?;
            ensure!(gateway.metrics()?.sum("istio_tcp_connections_opened_total", &[]) > before);
            Ok(())
        })?;

        // A host that nobody knows has no rule; where only the registry counts it is Envoy's 502, and the way around the gateway is closed.
        let stranger = || client.lab(["get", "http://exit-undermesh.default.svc.cluster.local/"]);
        ensure!(stranger()?.stderr.contains("HTTP 404"), "{:?}", stranger()?);
        lab.apply("settings", REGISTRY_ONLY)?;
        eventually("502", CHANGE, || {
            let answer = stranger()?;
            ensure!(answer.stderr.contains("HTTP 502"), "{answer:?}");
            Ok(())
        })?;
        // The client's agent may hear of it later than the gateway.
        eventually("no way around", CHANGE, || {
            let around = client.lab(["probe", &plan::outside().v6.to_string(), "443", "--timeout", "2"])?;
            ensure!(around.code == 7, "{around:?}");
            Ok(())
        })?;
        becomes("through the gateway as before", &|answer| {
            answer.code == 0 && answer.stdout.contains("\"server\":\"tls\"")
        })?;

        // Without a gateway that is ready nothing goes around it.
        lab.set_ready(&gateway.pod, false)?;
        becomes("nothing", &|answer| answer.code != 0)?;
        lab.set_ready(&gateway.pod, true)?;
        becomes("through the gateway again", &|answer| answer.code == 0)?;
        lab.delete("through")?;
        becomes("not through the gateway", &|answer| answer.code != 0 || answer.stdout.contains(&own_ip))?;
        Ok(())
    })
}

/// A server for the mesh alone: Istio's task has it between clients and an egress gateway.
const MUTUAL: &str = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: out, namespace: default}\nspec:\n  selector: {istio: egressgateway}\n  servers:\n  - {port: {number: 80, name: https, protocol: HTTPS}, hosts: [edition.example.com], tls: {mode: ISTIO_MUTUAL}}\n  - {port: {number: 443, name: tls, protocol: TLS}, hosts: [edition.example.com], tls: {mode: ISTIO_MUTUAL}}\n";
const TO_GATEWAY: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: exit, namespace: default}\nspec:\n  host: exit-undermesh.default.svc.cluster.local\n  trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: ISTIO_MUTUAL, sni: edition.example.com}}]}\n";
const PRINCIPALS: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: exit, namespace: default}\nspec:\n  selector: {matchLabels: {istio: egressgateway}}\n  action: ALLOW\n  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/WHO]}}]}]\n";
/// Bytes of the mesh on port 443 go on to the host's port 80.
const BYTES: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: bytes, namespace: default}\nspec:\n  hosts: [edition.example.com]\n  gateways: [out]\n  tcp: [{match: [{port: 443}], route: [{destination: {host: edition.example.com, port: {number: 80}}}]}]\n";

#[test]
fn features_GW_4_an_egress_gateway_that_is_for_the_mesh_knows_its_clients_and_takes_nobody_else() -> Result<()> {
    in_lab(Need::Mesh, || {
        let (lab, client) = Lab::with_client()?;
        let _plain = lab.serve_outside(&["http", "--port", "8080", "--name", "plain"])?;
        lab.apply("gateway", GATEWAY)?;
        let selector = [("istio", "egressgateway")];
        lab.add_service(
            ServiceSpec::new("exit-undermesh").selector(&selector).port("http", 80, 80).port("tls", 443, 443),
        )?;
        let gateway = lab.start_gateway("default", "exit", 2, &selector)?;
        let gateway_ip = gateway.pod.ips()[0].to_string();
        let stranger = lab.add_pod(PodSpec::new("stranger").node(1).label("istio.io/dataplane-mode", "none"))?;
        let becomes = |what: &str, url: &str, wanted: &dyn Fn(&Finished) -> bool| {
            eventually(what, CHANGE, || {
                let answer = client.get(url)?;
                ensure!(wanted(&answer), "{answer:?}");
                Ok(answer)
            })
        };
        let through_it =
            |answer: &Finished| answer.stdout.contains("\"server\":\"plain\"") && answer.stdout.contains(&gateway_ip);
        lab.apply("entry", &entry(8080))?;
        lab.apply("servers", MUTUAL)?;
        lab.apply("exit", TO_GATEWAY)?;
        lab.apply("through", &through(""))?;
        lab.apply("bytes", BYTES)?;
        let url = "http://edition.example.com/politics";
        becomes("through the gateway", url, &through_it)?;
        // It is the client's own identity that the gateway knows, and not its address.
        lab.apply("policy", &PRINCIPALS.replace("WHO", "somebody"))?;
        becomes("somebody else's", url, &|answer| answer.stderr.contains("HTTP 403"))?;
        lab.apply("policy", &PRINCIPALS.replace("WHO", "default"))?;
        becomes("its own", url, &through_it)?;
        let bytes = format!("http://{}:443/bytes", "exit-undermesh.default.svc.cluster.local");
        becomes("bytes of the mesh", &bytes, &through_it)?;
        // Whoever is not of the mesh is not let in, with TLS or without.
        for port in [80, 443] {
            let answer = stranger.get(&format!("http://{gateway_ip}:{port}/politics"))?;
            ensure!(answer.code != 0 && !answer.stderr.contains("HTTP "), "{port}: {answer:?}");
        }
        let hello = stranger.lab(["hello", &gateway_ip, "80", "edition.example.com", "--timeout", "2"])?;
        ensure!(
            gateway.metrics()?.sum("undermesh_waypoint_refused_total", &[("reason", "not_of_mesh")]) > 0.0,
            "{hello:?}"
        );
        Ok(())
    })
}
