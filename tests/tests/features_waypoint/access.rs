//! Who may ask for what: policies about requests, and tokens. Rows B21, the part of B23 about requests, B24 and B26.
use crate::stage::{CHANGE, SOON, Stage, bookinfo, httpbin, is};
use anyhow::{Result, ensure};
use mesh_tests::harness::{Finished, Issuer, Need, Pod, PodSpec, eventually, in_lab};
use serde_json::json;

const PAGE: &str = "http://productpage:9080/productpage";
const DENIED: &str = "RBAC: access denied";

#[test]
fn features_B21_B23_B24_B26_who_may_ask_for_what() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = bookinfo("istio-waypoint")?;
        bookinfo_is_opened_step_by_step(&stage)?;
        a_service_account_may_ask_in_one_way(&stage)?;
        a_policy_is_tried_out(&stage)?;
        let _servers = httpbin(&stage)?;
        tokens(&stage)
    })
}

/// An AuthorizationPolicy of `default` with these rules in YAML's flow style.
fn policy(name: &str, target: &str, annotations: &str, rest: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: default, annotations: {{{annotations}}}}}\nspec:\n  targetRefs: [{target}]\n{rest}"
    )
}

fn service(name: &str) -> String {
    format!("{{group: \"\", kind: Service, name: {name}}}")
}

fn viewer(name: &str, from: &str) -> String {
    let from = format!("{{source: {{principals: [cluster.local/ns/default/sa/{from}]}}}}");
    let rules = format!("  rules: [{{from: [{from}], to: [{{operation: {{methods: [GET]}}}}]}}]\n");
    policy(&format!("{name}-viewer"), &service(name), "", &rules)
}

fn asks(client: &Pod, method: &str, url: &str) -> Result<Finished> {
    client.lab(["get", "-X", method, url])
}

/// B21
fn bookinfo_is_opened_step_by_step(stage: &Stage) -> Result<()> {
    let client = &stage.bookinfo.client;
    let gateway = "{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}";
    stage.lab.apply("nothing", &policy("allow-nothing", gateway, "", ""))?;
    eventually("nothing is allowed", CHANGE, || is(&client.get(PAGE)?, 403, DENIED))?;
    let any = "  rules: [{to: [{operation: {methods: [GET]}}]}]\n";
    stage.lab.apply("productpage", &policy("productpage-viewer", &service("productpage"), "", any))?;
    let shows = |step: &str, there: &[&str], missing: &[&str]| {
        eventually(step, CHANGE, || {
            let load = stage.page(None)?;
            let good = load.status == 200
                && there.iter().all(|text| load.text.contains(text))
                && !missing.iter().any(|text| load.text.contains(text));
            ensure!(good, "{load:?}");
            Ok(())
        })
    };
    let (details, reviews) = ("Error fetching product details!", "Error fetching product reviews!");
    let ratings = "Ratings service is currently unavailable";
    shows("a page with both blocks of errors", &[details, reviews], &[])?;
    stage.lab.apply("details", &viewer("details", "bookinfo-productpage"))?;
    stage.lab.apply("reviews", &viewer("reviews", "bookinfo-productpage"))?;
    // Of three versions of reviews two ask for ratings.
    shows("details, and reviews without ratings", &["ISBN-13", "Reviews served by", ratings], &[details, reviews])?;
    stage.lab.apply("ratings", &viewer("ratings", "bookinfo-reviews"))?;
    shows("a whole page", &["ISBN-13", "Reviews served by", "stars"], &[details, reviews, ratings])?;
    is(&asks(client, "POST", PAGE)?, 403, DENIED)?;
    is(&client.get("http://details:9080/details/0")?, 403, DENIED)?;
    ["nothing", "productpage", "details", "reviews", "ratings"].iter().try_for_each(|file| stage.lab.delete(file))
}

/// B23: as it goes on in the getting started of ambient, with a policy about requests.
fn a_service_account_may_ask_in_one_way(stage: &Stage) -> Result<()> {
    let client = &stage.bookinfo.client;
    let other = stage.lab.add_pod(PodSpec::new("other").service_account("other"))?;
    stage.lab.enrol(&other)?;
    stage.lab.wait_hbone(&[&other])?;
    stage.lab.apply("productpage", &viewer("productpage", "sleep"))?;
    eventually("one may not", CHANGE, || is(&other.get(PAGE)?, 403, DENIED))?;
    is(&client.get(PAGE)?, 200, "Simple Bookstore App")?;
    is(&asks(client, "DELETE", PAGE)?, 403, DENIED)?;
    stage.lab.delete("productpage")?;
    eventually("the end of the policy", CHANGE, || is(&other.get(PAGE)?, 200, ""))?;
    stage.lab.remove_pod(&other)
}

/// B26: what would have been denied is logged and counted, and is not denied.
fn a_policy_is_tried_out(stage: &Stage) -> Result<()> {
    let client = &stage.bookinfo.client;
    let rest = "  action: DENY\n  rules: [{to: [{operation: {paths: [/productpage]}}]}]\n";
    let text = policy("trial", &service("productpage"), "istio.io/dry-run: \"true\"", rest);
    stage.lab.apply("trial", &text)?;
    let labels = [("policy", "default/trial"), ("outcome", "would_deny")];
    let counted = || Ok::<_, anyhow::Error>(stage.waypoint.metrics()?.sum("undermesh_request_policies_total", &labels));
    eventually("a denial that is none", CHANGE, || {
        is(&client.get(PAGE)?, 200, "Simple Bookstore App")?;
        ensure!(counted()? > 0.0, "none was counted");
        Ok(())
    })?;
    let before = counted()?;
    is(&client.get(PAGE)?, 200, "Simple Bookstore App")?;
    ensure!(counted()? == before + 1.0, "{before} and then {}", counted()?);
    eventually("a line of the log", SOON, || {
        let lines = stage.waypoint.lines(&["a dry run would have denied", "default/trial"]);
        ensure!(!lines.is_empty(), "no line");
        Ok(())
    })?;
    stage.lab.apply("trial", &text.replace("\"true\"", "\"false\""))?;
    eventually("a denial", CHANGE, || is(&client.get(PAGE)?, 403, DENIED))?;
    stage.lab.delete("trial")?;
    eventually("the end of the policy", CHANGE, || is(&client.get(PAGE)?, 200, "")).map(drop)
}

/// B24
fn tokens(stage: &Stage) -> Result<()> {
    const URL: &str = "http://httpbin:9080/headers";
    let client = &stage.bookinfo.client;
    let issuer = Issuer::new()?;
    let with = |token: &str| client.lab(["get", "-H", &format!("authorization: Bearer {token}"), URL]);
    let httpbin = service("httpbin");
    // One of two versions is slow, and not meant here.
    let route =
        mesh_tests::harness::routing::virtual_service("httpbin", &["{route: [{destination: {host: httpbin-v1}}]}"]);
    stage.lab.apply("httpbin", &route)?;
    stage.lab.apply("tokens", &issuer.request_authentication(&httpbin))?;
    let (good, expired) = (issuer.token(3600, &json!({}))?, issuer.token(-3600, &json!({}))?);
    let (member, forged) =
        (issuer.token(3600, &json!({"groups": ["group1", "group2"]}))?, Issuer::new()?.token(3600, &json!({}))?);
    eventually("a token that is looked at", CHANGE, || is(&with("no.to.ken")?, 401, "Jwt"))?;
    is(&client.get(URL)?, 200, "")?;
    is(&with(&expired)?, 401, "Jwt is expired")?;
    is(&with(&forged)?, 401, "Jwt")?;
    is(&with(&good)?, 200, "")?;
    let required = |when: &str| {
        let source = "{source: {requestPrincipals: [testing@secure.istio.io/testing@secure.istio.io]}}";
        policy("required", &httpbin, "", &format!("  rules: [{{from: [{source}]{when}}}]\n"))
    };
    stage.lab.apply("required", &required(""))?;
    eventually("a token that is required", CHANGE, || is(&client.get(URL)?, 403, DENIED))?;
    is(&with(&good)?, 200, "")?;
    stage.lab.apply("required", &required(", when: [{key: 'request.auth.claims[groups]', values: [group1]}]"))?;
    eventually("a claim that is required", CHANGE, || is(&with(&good)?, 403, DENIED))?;
    is(&with(&member)?, 200, "")?;
    is(&with(&expired)?, 401, "Jwt is expired")
}
