//! Who else decides about requests: external authorizers, and rate limits. Rows B25 and B33.
use crate::stage::{CHANGE, SOON, Stage, bookinfo, httpbin, is};
use anyhow::{Result, ensure};
use mesh_tests::harness::{Finished, Need, Pod, PodSpec, Process, ServiceSpec, eventually, in_lab};
use std::sync::Arc;

const URL: &str = "http://httpbin:9080/headers";

#[test]
fn features_B25_B33_others_decide_about_requests() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = bookinfo("istio-waypoint")?;
        let _servers = httpbin(&stage)?;
        authorizers(&stage)?;
        a_waypoint_counts(&stage)?;
        a_service_counts(&stage)
    })
}

/// A pod of the mesh with a service of its name.
fn helper(stage: &Stage, name: &str, ports: &[(&str, u16)]) -> Result<Arc<Pod>> {
    let mut service = ServiceSpec::new(name).selector(&[("app", name)]);
    for (port, number) in ports {
        service = service.port(port, *number, *number);
    }
    stage.lab.add_service(service)?;
    let pod = stage.lab.add_pod(PodSpec::new(name).label("app", name).service_account(name).node(2))?;
    stage.lab.enrol(&pod)?;
    stage.lab.wait_hbone(&[&pod])?;
    Ok(pod)
}

fn asks(client: &Pod, said: &str) -> Result<Finished> {
    client.lab(["get", "-H", &format!("x-ext-authz: {said}"), URL])
}

/// The log is written now and then.
fn logged(stage: &Stage, words: &[&str]) -> Result<()> {
    eventually("a line of the access log", SOON, || {
        ensure!(!stage.waypoint.lines(words).is_empty(), "no line with {words:?}");
        Ok(())
    })
}

fn settings(more: &str) -> String {
    let host = "ext-authz.default.svc.cluster.local";
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: undermesh, namespace: undermesh-system}}\ndata:\n  mesh: |\n    extensionProviders:\n    - name: by-http\n      envoyExtAuthzHttp: {{service: {host}, port: 8000, {more}includeRequestHeadersInCheck: [x-ext-authz], headersToUpstreamOnAllow: [x-ext-authz-check-result]}}\n    - name: by-grpc\n      envoyExtAuthzGrpc: {{service: {host}, port: 9000, {more}}}\n"
    )
}

fn custom(provider: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: ask, namespace: default}}\nspec:\n  targetRefs: [{{group: \"\", kind: Service, name: httpbin}}]\n  action: CUSTOM\n  provider: {{name: {provider}}}\n  rules: [{{to: [{{operation: {{paths: [/headers]}}}}]}}]\n"
    )
}

/// B25
fn authorizers(stage: &Stage) -> Result<()> {
    let client = &stage.bookinfo.client;
    let pod = helper(stage, "ext-authz", &[("http", 8000), ("grpc", 9000)])?;
    let mut server = pod.serve(["authorizer"])?;
    stage.lab.apply("settings", &settings(""))?;
    for provider in ["by-http", "by-grpc"] {
        stage.lab.apply("ask", &custom(provider))?;
        eventually("a denial", CHANGE, || is(&asks(client, "deny")?, 403, "denied by ext_authz"))?;
        eventually("an authorizer that can be reached", SOON, || {
            is(&asks(client, "allow")?, 200, "\"x-ext-authz-check-result\":")
        })?;
        is(&asks(client, "deny")?, 403, "denied by ext_authz")?;
        // Nobody is asked about what no rule means.
        let before = server.stdout().lines().count();
        client.get("http://httpbin:9080/ip")?.success()?;
        ensure!(server.stdout().lines().count() == before, "{}", server.stdout());
        // Without it nobody gets in, unless that is asked for.
        server.kill();
        is(&asks(client, "allow")?, 403, "")?;
        stage.lab.apply("settings", &settings("failOpen: true, "))?;
        eventually("an open door", CHANGE, || is(&asks(client, "allow")?, 200, ""))?;
        stage.lab.apply("settings", &settings("statusOnError: '503', "))?;
        eventually("the status that is asked for", CHANGE, || is(&asks(client, "allow")?, 503, ""))?;
        stage.lab.apply("settings", &settings(""))?;
        eventually("nobody gets in again", CHANGE, || is(&asks(client, "allow")?, 403, ""))?;
        server = pod.serve(["authorizer"])?;
        eventually("the authorizer again", SOON, || is(&asks(client, "allow")?, 200, ""))?;
    }
    let who = server.stdout().lines().any(|line| line.ends_with("/ns/default/sa/sleep"));
    ensure!(who, "the authorizer is not told who the client is: {}", server.stdout());
    logged(stage, &["/headers", " 403 ", " UAEX "])?;
    let labels = [("response_code", "403"), ("response_flags", "UAEX"), ("destination_service_name", "httpbin")];
    ensure!(stage.waypoint.metrics()?.sum("istio_requests_total", &labels) > 0.0, "no denial was counted");
    // Nobody is known by that name.
    stage.lab.apply("ask", &custom("nobody"))?;
    eventually("a denial", CHANGE, || is(&asks(client, "allow")?, 403, "RBAC: access denied"))?;
    stage.lab.delete("ask")?;
    eventually("the end of the policy", CHANGE, || is(&asks(client, "deny")?, 200, ""))
}

fn limit(spec: &str) -> String {
    format!(
        "apiVersion: undermesh.io/v1alpha1\nkind: RateLimit\nmetadata: {{name: page, namespace: default}}\nspec:\n  targetRefs: [{{group: \"\", kind: Service, name: productpage}}]\n{spec}"
    )
}

/// Loads of the page one after the other, until one is refused; how many were not.
fn loads(client: &Pod, most: usize) -> Result<usize> {
    for count in 0..most {
        let result = client.get("http://productpage:9080/productpage")?;
        if result.stderr.contains("HTTP 429") {
            return Ok(count);
        }
        result.success()?;
    }
    Ok(most)
}

/// B33: one a minute for each client, and the second is refused.
fn a_waypoint_counts(stage: &Stage) -> Result<()> {
    let client = &stage.bookinfo.client;
    let other = stage.lab.add_pod(PodSpec::new("other").service_account("other"))?;
    stage.lab.enrol(&other)?;
    stage.lab.wait_hbone(&[&other])?;
    eventually("a page", SOON, || other.get("http://productpage:9080/productpage")?.success())?;
    let spec = "  local:\n  - match: [{paths: [/productpage], methods: [GET]}]\n    by: [source.principal]\n    requests: 1\n    per: 60s\n";
    stage.lab.apply("page", &limit(spec))?;
    eventually("a refusal", CHANGE, || {
        ensure!(loads(client, 2)? < 2, "two loads within a minute");
        Ok(())
    })?;
    // Another client has a minute of its own.
    ensure!(loads(&other, 3)? == 1, "not one load for the other client");
    ensure!(loads(client, 1)? == 0, "another load within the minute");
    client.get("http://productpage:9080/login")?;
    logged(stage, &["/productpage", " 429 ", " RL "])?;
    let labels = [("response_code", "429"), ("response_flags", "RL"), ("destination_service_name", "productpage")];
    ensure!(stage.waypoint.metrics()?.sum("istio_requests_total", &labels) > 0.0, "no refusal was counted");
    stage.lab.delete("page")?;
    eventually("the end of the limit", CHANGE, || {
        ensure!(loads(client, 3)? == 3, "still limited");
        Ok(())
    })
}

/// B33: the same counted by a service that Envoy could ask as well; without it pages are shown, unless that is not wanted.
fn a_service_counts(stage: &Stage) -> Result<()> {
    let client = &stage.bookinfo.client;
    let pod = helper(stage, "ratelimit", &[("grpc", 8081)])?;
    let server = pod.serve(["rate-limits", "--limit", "PATH=/productpage:1"])?;
    let spec = |fail_open: bool| {
        limit(&format!(
            "  global:\n    domain: productpage-ratelimit\n    service: ratelimit.default.svc.cluster.local\n    port: 8081\n    timeout: 5s\n    failOpen: {fail_open}\n    descriptors:\n    - entries: [{{key: PATH, from: request.path}}]\n    - entries: [{{key: client, from: source.principal}}]\n"
        ))
    };
    stage.lab.apply("page", &spec(true))?;
    eventually("a refusal", CHANGE, || {
        ensure!(loads(client, 2)? < 2, "two loads within a minute");
        Ok(())
    })?;
    told(&server)?;
    server.kill();
    eventually("a page without the service", CHANGE, || client.get("http://productpage:9080/productpage")?.success())?;
    stage.lab.apply("page", &spec(false))?;
    eventually("a refusal", CHANGE, || is(&client.get("http://productpage:9080/productpage")?, 500, ""))?;
    logged(stage, &["/productpage", " 500 ", " RLSE "])?;
    stage.lab.delete("page")?;
    eventually("the end of the limit", CHANGE, || client.get("http://productpage:9080/productpage")?.success())
        .map(drop)
}

fn told(server: &Process) -> Result<()> {
    let said = server.stdout();
    let is_told = said.contains("productpage-ratelimit") && said.contains("cluster.local/ns/default/sa/sleep");
    ensure!(is_told, "the service is not told what is counted: {said}");
    Ok(())
}
