//! Ingress without TLS: row B15, and Bookinfo's page.
use crate::stage::{CHANGE, Stage, stage};
use anyhow::{Result, ensure};
use mesh_tests::harness::waypoint::USE_WAYPOINT;
use mesh_tests::harness::{Need, eventually, in_lab};

/// A listener for one host, and one for all of a domain.
const LISTENERS: &str = "[{name: httpbin, port: 80, protocol: HTTP, hostname: httpbin.example.com}, {name: books, port: 8080, protocol: HTTP, hostname: \"*.bookinfo.com\"}]";
const HTTPBIN: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: httpbin, namespace: default}\nspec:\n  parentRefs: [{name: edge}]\n  hostnames: [httpbin.example.com]\n  rules:\n  - matches: [{path: {type: PathPrefix, value: /status}}, {path: {type: PathPrefix, value: /delay}}]\n    backendRefs: [{name: httpbin, port: 8000}]\n";
const BOOKS: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: books, namespace: default}\nspec:\n  parentRefs: [{name: edge, sectionName: books}]\n  rules:\n  - matches: [{path: {value: /productpage}}]\n    backendRefs: [{name: productpage, port: 9080}]\n";

/// The same with Istio's kinds, for another host.
const ISTIO_S: &str = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: httpbin-gateway, namespace: default}\nspec:\n  selector: {istio: ingressgateway}\n  servers:\n  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [httpbin.istio.example.com]}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: httpbin, namespace: default}\nspec:\n  hosts: [httpbin.istio.example.com]\n  gateways: [httpbin-gateway]\n  http:\n  - match: [{uri: {prefix: /status}}, {uri: {prefix: /delay}}]\n    route: [{destination: {host: httpbin, port: {number: 8000}}}]\n";

#[test]
fn features_B15_ingress_over_HTTP() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = stage(LISTENERS)?;
        let visitor = stage.visitor(80);
        for (text, host) in [(HTTPBIN, "httpbin.example.com"), (ISTIO_S, "httpbin.istio.example.com")] {
            // A listener without routes has nothing to answer with.
            stage.becomes("no route", 404, || visitor.status(host, "/status/200"))?;
            stage.lab.apply("httpbin", text)?;
            stage.becomes("the route", 200, || visitor.status(host, "/status/200"))?;
            for (host, path, expected) in [
                (host, "/status/418", 418),
                (host, "/delay/1", 200),
                (&*format!("{}:80", host.to_uppercase()), "/status/200", 200),
                (host, "/headers", 404),
                ("other.example.com", "/status/200", 404),
                ("www.bookinfo.com", "/productpage", 404),
            ] {
                let status = visitor.status(host, path)?;
                ensure!(status == expected, "{host}{path}: {status}");
            }
            let answer = visitor.plain()?.get(host, "/status/200")?.body;
            let is_it = answer.contains("\"x-forwarded-proto\":\"http\"") && answer.contains("\"server\":\"httpbin\"");
            ensure!(is_it, "{answer}");
            stage.lab.delete("httpbin")?;
            stage.becomes("no route", 404, || visitor.status(host, "/status/200"))?;
        }

        stage.lab.apply("books", BOOKS)?;
        let visitor = stage.visitor(8080);
        let page = eventually("the page", CHANGE, || {
            let answer = visitor.plain()?.get("www.bookinfo.com", "/productpage")?;
            ensure!(answer.status == 200, "{}", answer.status);
            Ok(answer.body)
        })?;
        ensure!(page.contains("<title>Simple Bookstore App</title>") && page.contains("Reviews served by"), "{page}");
        through_the_waypoint(&stage)?;
        // SEC-6: no agent stands before the gateway's pods, so what selects them it judges itself.
        let page = || visitor.status("www.bookinfo.com", "/productpage");
        stage.lab.apply("front", &FRONT.replace("HERE", "[\"*\"]"))?;
        stage.becomes("a list that the visitor is on", 403, page)?;
        ensure!(stage.visitor(80).status("httpbin.example.com", "/status/200")? == 404, "others were not meant");
        stage.lab.apply("front", &FRONT.replace("HERE", "[\"www.example.com\"]"))?;
        stage.becomes("a list that he is not on", 200, page)?;
        stage.lab.delete("front")?;
        // Its own principal, which is what policies speak of.
        stage.lab.apply("viewer", VIEWER)?;
        stage.becomes("only the gateway", 200, || visitor.status("www.bookinfo.com", "/productpage"))?;
        let load = |count| stage.bookinfo.load(&stage.bookinfo.client, count);
        eventually("nobody else", CHANGE, || {
            let loads = load(1)?;
            ensure!(loads.iter().all(|load| load.status != 200), "{loads:?}");
            Ok(())
        })?;
        ensure!(visitor.status("www.bookinfo.com", "/productpage")? == 200);
        // A port that nobody listens on any more is closed, without a word to the others.
        let mut open = stage.visitor(8080).plain()?;
        stage.lab.apply("edge", &crate::stage::edge("[{name: books, port: 8080, protocol: HTTP}]"))?;
        eventually("port 80 closed", CHANGE, || {
            ensure!(stage.visitor(80).plain().is_err());
            Ok(())
        })?;
        ensure!(open.get("www.bookinfo.com", "/productpage")?.status == 200);
        Ok(())
    })
}

/// A service that says so is reached through its waypoint, as by clients of the mesh; without the label nothing goes there.
fn through_the_waypoint(stage: &Stage) -> Result<()> {
    let (visitor, namespace) = (stage.visitor(8080), "default");
    stage.lab.add_gateway(namespace, "waypoint", "undermesh-waypoint", &Default::default())?;
    let waypoint = stage.lab.start_waypoint(namespace, "waypoint", 2)?;
    stage.lab.label_service(namespace, "productpage", USE_WAYPOINT, Some("waypoint"))?;
    let ask = || -> Result<f64> {
        let before = waypoint.metrics()?.sum("istio_requests_total", &[]);
        let status = visitor.status("www.bookinfo.com", "/productpage")?;
        ensure!(status == 200, "{status}");
        Ok(waypoint.metrics()?.sum("istio_requests_total", &[]) - before)
    };
    ensure!(ask()? == 0.0, "gateways go to endpoints themselves unless that is said");
    stage.lab.label_service(namespace, "productpage", "istio.io/ingress-use-waypoint", Some("true"))?;
    eventually("through the waypoint", CHANGE, || {
        let passed = ask()?;
        ensure!(passed == 1.0, "{passed} requests");
        Ok(())
    })?;
    // Nothing goes around one that is gone.
    let pod = stage.lab.kill_waypoint(waypoint);
    stage.lab.set_ready(&pod, false)?;
    stage.becomes("no waypoint", 503, || visitor.status("www.bookinfo.com", "/productpage"))?;
    for label in ["istio.io/ingress-use-waypoint", USE_WAYPOINT] {
        stage.lab.label_service(namespace, "productpage", label, None)?;
    }
    stage.becomes("without it", 200, || visitor.status("www.bookinfo.com", "/productpage"))
}

const FRONT: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: front, namespace: default}\nspec:\n  selector: {matchLabels: {istio: ingressgateway}}\n  action: DENY\n  rules: [{from: [{source: {ipBlocks: [0.0.0.0/0]}}], to: [{operation: {hosts: HERE, paths: [/productpage]}}]}]\n";
const VIEWER: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: viewer, namespace: default}\nspec:\n  selector: {matchLabels: {app: productpage}}\n  action: ALLOW\n  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/edge-undermesh]}}]}]\n";
