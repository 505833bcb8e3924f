//! TLS towards backends, and certificates of clients, as the Gateway API asks for them: BackendTLSPolicy, `spec.tls.backend` and `spec.tls.frontend` of Gateways.
use crate::stage::{CHANGE, Stage, edge, stage};
use anyhow::{Result, ensure};
use mesh_tests::harness::ingress::Authority;
use mesh_tests::harness::manifest::secret;
use mesh_tests::harness::{Need, PodSpec, ServiceSpec, eventually, in_lab};
use rustls::{ServerConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::TcpListener;

const LISTENERS: &str = "[{name: http, port: 80, protocol: HTTP}, {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: edge-credential}]}}]";
const HOST: &str = "tls.example.com";
const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: tls, namespace: default}\nspec:\n  parentRefs: [{name: edge}]\n  hostnames: [tls.example.com]\n  rules: [{backendRefs: [{name: tls, port: 443}]}]\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: httpbin, namespace: default}\nspec:\n  parentRefs: [{name: edge}]\n  hostnames: [httpbin.example.com]\n  rules: [{backendRefs: [{name: httpbin, port: 8000}]}]\n";
const POLICY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: tls, namespace: default}\nspec:\n  targetRefs: [{group: \"\", kind: Service, name: tls, sectionName: web}]\n  validation:\n    hostname: inside.example.com\n    caCertificateRefs: [{group: \"\", kind: ConfigMap, name: backend-ca}]\n";

#[test]
fn features_GA_TLS_towards_backends_and_certificates_of_clients() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = stage(LISTENERS)?;
        let (inside, clients) = (Authority::new()?, Authority::new()?);
        serve(&stage, &inside, &clients)?;
        stage.lab.apply("routes", ROUTE)?;
        policies(&stage, &inside)?;
        what_the_gateway_shows(&stage, &clients)?;
        who_is_let_in(&stage)
    })
}

/// An ordinary application of the mesh that ends TLS itself, and says how many certificates it was shown.
fn serve(stage: &Stage, inside: &Authority, clients: &Authority) -> Result<()> {
    stage.lab.add_service(ServiceSpec::new("tls").port("web", 443, 8443))?;
    let pod = stage.lab.add_pod(PodSpec::new("tls").label("app", "tls").service_account("tls").node(2))?;
    let listener = pod.netns.run(|| Ok(TcpListener::bind("0.0.0.0:8443")?))?;
    let config = inside.issue(&["inside.example.com"])?.server_asking(clients)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let Ok(server) = ServerConnection::new(config.clone()) else { return };
            std::thread::spawn(move || {
                let mut stream = StreamOwned::new(server, stream);
                let mut request = [0; 4096];
                while stream.read(&mut request).is_ok_and(|read| read > 0) {
                    let shown = stream.conn.peer_certificates().map_or(0, <[_]>::len);
                    let name = stream.conn.server_name().unwrap_or("-").to_owned();
                    let body = format!("sni={name} shown={shown}\n");
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
        }
    });
    stage.lab.enrol(&pod)?;
    stage.lab.wait_hbone(&[&pod])
}

fn bundle(authority: &Authority) -> String {
    let lines: String = authority.pem.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: backend-ca, namespace: default}}\ndata:\n  ca.crt: |\n{lines}"
    )
}

/// Without roots nothing is reached; with them the application is, by its own TLS; with others nobody is believed.
fn policies(stage: &Stage, inside: &Authority) -> Result<()> {
    let visitor = stage.visitor(80);
    stage.lab.apply("policy", POLICY)?;
    stage.becomes("without roots", 500, || visitor.status(HOST, "/"))?;
    stage.lab.apply("ca", &bundle(inside))?;
    stage.becomes("with roots", 200, || visitor.status(HOST, "/"))?;
    let answer = visitor.plain()?.get(HOST, "/")?.body;
    ensure!(answer.contains("sni=inside.example.com shown=0"), "{answer}");
    stage.lab.apply("ca", &bundle(&Authority::new()?))?;
    stage.becomes("with roots of others", 503, || visitor.status(HOST, "/"))?;
    stage.lab.apply("ca", &bundle(inside))?;
    stage.becomes("with its own roots again", 200, || visitor.status(HOST, "/"))?;
    stage.lab.apply("policy", &POLICY.replace("inside.example.com", "other.example.com"))?;
    stage.becomes("with another name", 503, || visitor.status(HOST, "/"))?;
    stage.lab.apply("policy", POLICY)?;
    stage.becomes("as before", 200, || visitor.status(HOST, "/"))
}

/// A certificate of the gateway's own; while it is not there, nothing is reached by TLS.
fn what_the_gateway_shows(stage: &Stage, clients: &Authority) -> Result<()> {
    let visitor = stage.visitor(80);
    let shows = "  tls: {backend: {clientCertificateRef: {name: edge-client}}}\n";
    stage.lab.apply("edge", &format!("{}{shows}", edge(LISTENERS)))?;
    stage.becomes("nothing to show", 500, || visitor.status(HOST, "/"))?;
    ensure!(visitor.status("httpbin.example.com", "/status/200")? == 200, "what is reached without it");
    let own = clients.issue(&["edge.example.com"])?;
    stage.lab.apply("client", &secret("default", "edge-client", &[("tls.crt", &own.cert), ("tls.key", &own.key)]))?;
    stage.becomes("something to show", 200, || visitor.status(HOST, "/"))?;
    let answer = visitor.plain()?.get(HOST, "/")?.body;
    ensure!(answer.contains("shown=1"), "{answer}");
    Ok(())
}

/// Certificates of clients: asked for on a port, by roots of a ConfigMap; or let in all the same, and known for what they are.
fn who_is_let_in(stage: &Stage) -> Result<()> {
    let (name, outside) = ("httpbin.example.com", Authority::new()?);
    let own = outside.issue(&[name])?;
    stage.lab.apply("own", &secret("default", "edge-credential", &[("tls.crt", &own.cert), ("tls.key", &own.key)]))?;
    let visitor = stage.visitor(443).believing(&outside);
    stage.becomes("nobody is asked", 200, || visitor.tls_status(name, "/status/200"))?;
    let asks = |mode: &str| {
        let validation =
            format!("{{mode: {mode}, caCertificateRefs: [{{group: \"\", kind: ConfigMap, name: clients-ca}}]}}");
        format!(
            "{}  tls: {{frontend: {{default: {{}}, perPort: [{{port: 443, tls: {{validation: {validation}}}}}]}}}}\n",
            edge(LISTENERS)
        )
    };
    stage.lab.apply("edge", &asks("AllowValidOnly"))?;
    eventually("nobody is let in", CHANGE, || {
        ensure!(visitor.tls_status(name, "/status/200").is_err());
        Ok(())
    })?;
    ensure!(stage.visitor(80).status(name, "/status/200")? == 200, "without TLS nothing is asked");
    stage.lab.apply("clients", &bundle(&outside).replace("backend-ca", "clients-ca"))?;
    let known = visitor.clone().showing(&outside.issue(&["client.example.com"])?);
    let stranger = visitor.clone().showing(&Authority::new()?.issue(&["client.example.com"])?);
    stage.becomes("one that is known", 200, || known.tls_status(name, "/status/200"))?;
    ensure!(visitor.tls_status(name, "/status/200").is_err(), "without a certificate");
    ensure!(stranger.tls_status(name, "/status/200").is_err(), "somebody else's");
    stage.lab.apply("edge", &asks("AllowInsecureFallback"))?;
    stage.becomes("anybody", 200, || visitor.tls_status(name, "/status/200"))?;
    let said = |visitor: &mesh_tests::harness::ingress::Visitor| -> Result<bool> {
        Ok(visitor.tls(name)?.get(name, "/status/200")?.body.contains("x-forwarded-client-cert"))
    };
    ensure!(said(&known)?, "who is known is told");
    ensure!(!said(&stranger)?, "what nobody vouches for is not told to anybody");
    Ok(())
}
