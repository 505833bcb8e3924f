//! What the mesh settings say where no manifest says anything: how paths are written, what is tried again, what is spoken of TLS, which trust domains are one, and who
//! sees what. Rows AP-8, AP-10 and EX-5.
use crate::stage::{CHANGE, Stage, bookinfo, httpbin, is};
use anyhow::{Result, ensure};
use mesh_tests::harness::routing::{http_route, virtual_service};
use mesh_tests::harness::waypoint::USE_WAYPOINT;
use mesh_tests::harness::{Need, Process, eventually, in_lab, plan};

/// Its only pod is the first server.
const HOST: &str = "httpbin-v1";

#[test]
fn features_AP_8_AP_10_EX_5_what_holds_where_manifests_say_nothing() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = bookinfo("istio-waypoint")?;
        let servers = httpbin(&stage)?;
        slashes_are_merged(&stage, &servers[0])?;
        requests_are_tried_again(&stage, &servers[0])?;
        trust_domains_are_one(&stage)?;
        tls_is_spoken_as_the_mesh_says(&stage)?;
        a_rule_is_for_its_own_namespace(&stage)
    })
}

fn settings(mesh: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: undermesh, namespace: undermesh-system}}\ndata:\n  mesh: |\n    {mesh}\n"
    )
}

fn url(path: &str) -> String {
    format!("http://{HOST}:9080{path}")
}

/// How many requests for just this path have come.
fn requests(server: &Process, path: &str) -> usize {
    let line = format!("request GET {path} host={HOST}:9080");
    server.stdout().lines().filter(|told| *told == line).count()
}

/// AP-8
fn slashes_are_merged(stage: &Stage, server: &Process) -> Result<()> {
    let client = &stage.bookinfo.client;
    client.get(&url("//merged//x"))?.success()?;
    let seen = (requests(server, "//merged//x"), requests(server, "/merged/x"));
    ensure!(seen == (1, 0), "not as the client wrote it: {}", server.stdout());
    stage.lab.apply("settings", &settings("pathNormalization: {normalization: MERGE_SLASHES}"))?;
    eventually("one slash", CHANGE, || {
        client.get(&url("//merged//x"))?.success()?;
        ensure!(requests(server, "/merged/x") > 0, "{}", server.stdout());
        Ok(())
    })?;
    let before = requests(server, "//merged//x");
    client.get(&url("//merged///x"))?.success()?;
    let seen = (requests(server, "//merged//x"), requests(server, "//merged///x"), requests(server, "/merged/x"));
    ensure!(seen == (before, 0, 2), "{seen:?}: {}", server.stdout());
    Ok(())
}

/// EX-5: without a rule and by rules that say nothing of it as the mesh settings say, and by a rule that says something as that says.
fn requests_are_tried_again(stage: &Stage, server: &Process) -> Result<()> {
    const FAILS: &str = "/status/503";
    let client = &stage.bookinfo.client;
    let times = |path: &str| {
        let before = requests(server, FAILS);
        is(&client.get(&url(path))?, 503, "")?;
        Ok::<_, anyhow::Error>(requests(server, FAILS) - before)
    };
    ensure!(times(FAILS)? == 1, "tried again by default: {}", server.stdout());
    stage.lab.apply("settings", &settings("defaultHttpRetryPolicy: {attempts: 1, retryOn: \"503\"}"))?;
    eventually("a second attempt", CHANGE, || {
        let came = times(FAILS)?;
        ensure!(came == 2, "{came} came");
        Ok(())
    })?;
    // Each rule is about a path of its own, which fails by it alone: that it does shows that the rule is in force.
    let istio = |path: &str, more: &str| {
        virtual_service(
            HOST,
            &[&format!(
                "{{match: [{{uri: {{exact: {path}}}}}], rewrite: {{uri: {FAILS}}}, {more}route: [{{destination: {{host: {HOST}}}}}]}}"
            )],
        )
    };
    let gateway = format!(
        "{{matches: [{{path: {{type: Exact, value: /route}}}}], filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplaceFullPath, replaceFullPath: {FAILS}}}}}}}], backendRefs: [{{name: {HOST}, port: 9080}}]}}"
    );
    for (path, text, expected) in [
        ("/none", istio("/none", ""), 2),
        ("/own", istio("/own", "retries: {attempts: 0}, "), 1),
        // VS-15: nothing about attempts is none.
        ("/bare", istio("/bare", "retries: {retryOn: \"503\"}, "), 1),
        // Of the two kinds the Gateway API's would count before.
        ("/route", http_route(HOST, &[&gateway]), 2),
    ] {
        stage.lab.apply(HOST, &text)?;
        eventually("the rule", CHANGE, || is(&client.get(&url(path))?, 503, ""))?;
        let came = times(path)?;
        ensure!(came == expected, "{came} of {path} came, not {expected}");
    }
    stage.lab.delete(HOST)
}

/// AP-10: a policy that names the old trust domain means whoever is of the new one.
fn trust_domains_are_one(stage: &Stage) -> Result<()> {
    let client = &stage.bookinfo.client;
    let policy = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: old, namespace: default}}\nspec:\n  targetRefs: [{{group: \"\", kind: Service, name: {HOST}}}]\n  rules: [{{from: [{{source: {{principals: [old.example/ns/default/sa/sleep]}}}}]}}]\n"
    );
    stage.lab.apply("old", &policy)?;
    eventually("nobody is of the old domain", CHANGE, || is(&client.get(&url("/x"))?, 403, "RBAC: access denied"))?;
    stage.lab.apply("settings", &settings("trustDomainAliases: [old.example]"))?;
    eventually("everybody is", CHANGE, || is(&client.get(&url("/x"))?, 200, ""))?;
    stage.lab.delete("old")
}

/// EX-5: a waypoint that begins TLS offers what the settings name.
fn tls_is_spoken_as_the_mesh_says(stage: &Stage) -> Result<()> {
    let server = stage.lab.serve_outside_tls("api", "api.example.com")?;
    let entry = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api, namespace: default, labels: {{{USE_WAYPOINT}: waypoint}}}}\n\
         spec: {{hosts: [api.example.com], resolution: STATIC, ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 443}}], endpoints: [{{address: {}}}]}}\n",
        plan::outside().v4
    );
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: api, namespace: default}\n\
         spec: {host: api.example.com, trafficPolicy: {tls: {mode: SIMPLE}}}\n";
    stage.lab.apply("rule", rule)?;
    stage.lab.apply("api", &entry)?;
    let get = || stage.bookinfo.client.get("http://api.example.com/x")?.success();
    eventually("an answer over TLS", CHANGE, get)?;
    ensure!(!server.stdout().contains("group=secp384r1"), "it likes something else: {}", server.stdout());
    stage.lab.apply("settings", &settings("tlsDefaults: {ecdhCurves: [P-384]}"))?;
    eventually("the group that is named", CHANGE, || {
        get()?;
        ensure!(server.stdout().contains("sni=api.example.com group=secp384r1"), "{}", server.stdout());
        Ok(())
    })?;
    ["rule", "api"].iter().try_for_each(|file| stage.lab.delete(file))
}

/// EX-5: a rule of another namespace counts as long as everybody sees it.
fn a_rule_is_for_its_own_namespace(stage: &Stage) -> Result<()> {
    let client = &stage.bookinfo.client;
    stage.lab.namespace("elsewhere", &[])?;
    let rule = |more: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: foreign, namespace: elsewhere}}\nspec:\n  hosts: [{HOST}.default.svc.cluster.local]\n  http: [{{directResponse: {{status: 418}}}}]\n{more}"
        )
    };
    stage.lab.apply("foreign", &rule(""))?;
    eventually("the rule of another namespace", CHANGE, || is(&client.get(&url("/x"))?, 418, ""))?;
    stage.lab.apply("settings", &settings("defaultVirtualServiceExportTo: [\".\"]"))?;
    eventually("none", CHANGE, || is(&client.get(&url("/x"))?, 200, ""))?;
    stage.lab.apply("foreign", &rule("  exportTo: [\"*\"]\n"))?;
    eventually("one that says it is for all", CHANGE, || is(&client.get(&url("/x"))?, 418, ""))
}
