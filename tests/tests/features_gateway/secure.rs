//! Ingress with TLS: row B16.
use crate::stage::{CHANGE, HTTPBIN, Stage, edge, stage};
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::ingress::Authority;
use mesh_tests::harness::manifest::secret;
use mesh_tests::harness::{Need, PodSpec, ServiceSpec, eventually, in_lab};
use rustls::{ServerConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::TcpListener;

const LISTENERS: &str = "[{name: httpbin, port: 443, protocol: HTTPS, hostname: httpbin.example.com, tls: {certificateRefs: [{name: httpbin-credential}]}}, \
    {name: hello, port: 443, protocol: HTTPS, hostname: hello.example.com, tls: {certificateRefs: [{name: hello-credential}]}}, \
    {name: nginx, port: 443, protocol: TLS, hostname: nginx.example.com, tls: {mode: Passthrough}, allowedRoutes: {kinds: [{kind: TLSRoute}]}}]";
const PASSED: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {name: nginx, namespace: default}\nspec:\n  parentRefs: [{name: edge, sectionName: nginx}]\n  hostnames: [nginx.example.com]\n  rules: [{backendRefs: [{name: nginx, port: 443}]}]\n";

#[test]
fn features_B16_ingress_over_TLS() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = stage(LISTENERS)?;
        stage.lab.apply("httpbin", HTTPBIN)?;
        let authority = Authority::new()?;
        two_hosts_two_secrets(&stage, &authority)?;
        a_secret_is_replaced(&stage, &authority)?;
        clients_with_certificates(&stage, &authority)?;
        what_is_passed_on(&stage, &authority)
    })
}

/// Each name has its own certificate, and one without a Secret refuses connections while the other serves.
fn two_hosts_two_secrets(stage: &Stage, authority: &Authority) -> Result<()> {
    let visitor = stage.visitor(443).believing(authority);
    let one = authority.issue(&["httpbin.example.com"])?;
    stage
        .lab
        .apply("one", &secret("default", "httpbin-credential", &[("tls.crt", &one.cert), ("tls.key", &one.key)]))?;
    stage.becomes("its certificate", 418, || visitor.tls_status("httpbin.example.com", "/status/418"))?;
    ensure!(visitor.tls("hello.example.com").is_err(), "without a Secret");
    let two = authority.issue(&["hello.example.com"])?;
    stage.lab.apply("two", &secret("default", "hello-credential", &[("cert", &two.cert), ("key", &two.key)]))?;
    stage.becomes("the other", 200, || visitor.tls_status("hello.example.com", "/status/200"))?;
    ensure!(visitor.tls("other.example.com").is_err(), "a name that nobody has");
    // A request in the connection of another name.
    let answer = visitor.tls("hello.example.com")?.get("httpbin.example.com", "/status/200")?;
    ensure!(answer.status == 421, "{}", answer.status);
    let answer = visitor.tls("hello.example.com")?.get("hello.example.com", "/status/200")?.body;
    ensure!(answer.contains("\"x-forwarded-proto\":\"https\""), "{answer}");
    Ok(())
}

/// Another certificate is shown at once, without a restart, and whoever is connected goes on.
fn a_secret_is_replaced(stage: &Stage, authority: &Authority) -> Result<()> {
    let name = "httpbin.example.com";
    let visitor = stage.visitor(443).believing(authority);
    let mut old = visitor.tls(name)?;
    ensure!(old.get(name, "/status/200")?.status == 200);
    let before = old.shown.clone().context("a certificate")?;
    let new = authority.issue(&[name])?;
    stage
        .lab
        .apply("one", &secret("default", "httpbin-credential", &[("tls.crt", &new.cert), ("tls.key", &new.key)]))?;
    eventually("another certificate", CHANGE, || {
        let mut visit = visitor.tls(name)?;
        ensure!(visit.shown.as_ref() != Some(&before), "it is the same");
        ensure!(visit.get(name, "/status/200")?.status == 200);
        Ok(())
    })?;
    ensure!(old.get(name, "/status/200")?.status == 200, "a connection from before");
    // One that is no good refuses new connections; those that are open go on.
    stage.lab.apply("one", &secret("default", "httpbin-credential", &[("tls.crt", &new.cert), ("tls.key", "none")]))?;
    eventually("refused", CHANGE, || {
        ensure!(visitor.tls(name).is_err(), "it is let in");
        Ok(())
    })?;
    ensure!(old.get(name, "/status/200")?.status == 200, "a connection from before");
    ensure!(visitor.tls_status("hello.example.com", "/status/200")? == 200, "another listener");
    let log = stage.gateway.log();
    ensure!(!log.contains("PRIVATE KEY") && !log.contains(new.key.lines().nth(1).unwrap_or("?")), "a key in the log");
    Ok(())
}

/// Istio's MUTUAL: who shows no certificate, or somebody else's, is refused. Without TLS a client is sent where there is some.
fn clients_with_certificates(stage: &Stage, authority: &Authority) -> Result<()> {
    let name = "mutual.example.com";
    stage.lab.apply("mutual", MUTUAL)?;
    let own = authority.issue(&[name])?;
    stage.lab.apply("mutual-one", &secret("default", "mutual", &[("tls.crt", &own.cert), ("tls.key", &own.key)]))?;
    stage.lab.apply("mutual-ca", &secret("default", "mutual-cacert", &[("cacert", &authority.pem)]))?;
    let visitor = stage.visitor(443).believing(authority);
    let client = authority.issue(&["client.example.com"])?;
    let known = visitor.clone().showing(&client);
    stage.becomes("a client that is known", 200, || known.tls_status(name, "/status/200"))?;
    let answer = known.tls(name)?.get(name, "/status/200")?.body;
    ensure!(answer.contains("x-forwarded-client-cert") && answer.contains("DNS=client.example.com"), "{answer}");
    ensure!(visitor.tls_status(name, "/status/200").is_err(), "without a certificate");
    let other = Authority::new()?.issue(&["client.example.com"])?;
    ensure!(visitor.clone().showing(&other).tls_status(name, "/status/200").is_err(), "somebody else's");
    let plain = stage.visitor(80).plain()?.get(name, "/status/200?a=1")?;
    let location = format!("location: https://{name}/status/200?a=1");
    ensure!(plain.status == 301 && plain.body.to_lowercase().contains(&location), "{}", plain.body);
    Ok(())
}

const MUTUAL: &str = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: mutual, namespace: default}\nspec:\n  selector: {istio: ingressgateway}\n  servers:\n  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [mutual.example.com], tls: {mode: MUTUAL, credentialName: mutual}}\n  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [mutual.example.com], tls: {httpsRedirect: true}}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: mutual, namespace: default}\nspec:\n  hosts: [mutual.example.com]\n  gateways: [mutual]\n  http: [{route: [{destination: {host: httpbin, port: {number: 8000}}}]}]\n";

/// TLS is passed on to a server that ends it, as it is.
fn what_is_passed_on(stage: &Stage, authority: &Authority) -> Result<()> {
    let name = "nginx.example.com";
    stage.lab.add_service(ServiceSpec::new("nginx").port("tls", 443, 8443))?;
    let pod = stage.lab.add_pod(PodSpec::new("nginx").label("app", "nginx").service_account("nginx").node(2))?;
    let listener = pod.netns.run(|| Ok(TcpListener::bind("0.0.0.0:8443")?))?;
    let config = authority.issue(&[name])?.server()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let Ok(server) = ServerConnection::new(config.clone()) else { return };
            std::thread::spawn(move || {
                let mut stream = StreamOwned::new(server, stream);
                let mut request = [0; 1024];
                while stream.read(&mut request).is_ok_and(|read| read > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\npassed\n");
                }
            });
        }
    });
    stage.lab.enrol(&pod)?;
    stage.lab.wait_hbone(&[&pod])?;
    stage.lab.apply("passed", PASSED)?;
    let visitor = stage.visitor(443).believing(authority);
    eventually("passed on", CHANGE, || {
        let answer = visitor.tls(name)?.get(name, "/")?;
        ensure!(answer.body.ends_with("passed\n"), "{}", answer.body);
        Ok(())
    })?;
    // The other names of the port are served as before.
    ensure!(visitor.tls_status("hello.example.com", "/status/200")? == 200);
    stage.lab.apply(
        "edge",
        &edge(
            LISTENERS.rsplit_once(", {name: nginx").map(|(left, _)| format!("{left}]")).as_deref().unwrap_or_default(),
        ),
    )?;
    eventually("not passed on", CHANGE, || {
        ensure!(visitor.tls(name).is_err());
        Ok(())
    })
}
