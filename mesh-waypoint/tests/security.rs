//! Which requests a waypoint answers: policies, and tokens.
#![allow(clippy::unwrap_used, non_snake_case, reason = "tests carry the ids of the rows that they prove")]

mod support;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use mesh_core::NamespacedName;
use mesh_core::l7::policy::{Action, Attribute, List, Operation, PathPattern, Policy, Rule, Source, StringMatch, When};
use mesh_core::l7::security::{Authentication, Target};
use mesh_core::l7::token::{JwtRule, Location};
use mesh_core::l7::{Security, Table};
use mesh_core::service::AppProtocol;
use rcgen::{KeyPair, PublicKeyData};
use serde_json::{Value, json};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const VIP: &str = "10.96.0.10";
const ASKED: &str = "10.96.0.10:80";

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    Policy { name: NamespacedName::new("shop", name), target: Target::All, action, rules, dry_run: false }
}

fn is<T>(values: Vec<T>) -> List<T> {
    List { is: values, not: Vec::new() }
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn methods(methods: &[&str]) -> Rule {
    let methods = is(methods.iter().map(|method| exact(method)).collect());
    Rule { to: vec![Operation { methods, ..Operation::default() }], ..Rule::default() }
}

fn paths(paths: &[&str]) -> Rule {
    let paths = is(paths.iter().map(|path| PathPattern::new(*path).unwrap()).collect());
    Rule { to: vec![Operation { paths, ..Operation::default() }], ..Rule::default() }
}

fn principals(principals: &[&str]) -> Rule {
    let principals = is(principals.iter().map(|one| exact(one)).collect());
    Rule { from: vec![Source { principals, ..Source::default() }], ..Rule::default() }
}

fn of(policies: Vec<Policy>) -> Option<Arc<Security>> {
    Some(Arc::new(Security { policies: policies.into_iter().map(Arc::new).collect(), ..Security::default() }))
}

fn send(method: Method, path: &str) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri(path).header("host", "shop").body(Full::default()).unwrap()
}

async fn shop() -> Waypoint {
    let app = echo("app").await;
    Waypoint::start(&[Backend::new("app", VIP, &[app])], Table::default()).await
}

#[tokio::test]
async fn features_B21_each_policy_lets_through_what_it_says() {
    let waypoint = shop().await;
    let allow = |rules| policy("viewer", Action::Allow, rules);
    let nothing = || policy("allow-nothing", Action::Allow, vec![]);
    let client = "cluster.local/ns/shop/sa/client";
    let other = "cluster.local/ns/shop/sa/other";
    let (ok, denied) = (StatusCode::OK, StatusCode::FORBIDDEN);
    let elsewhere = Target::Services(vec![name("other")]);
    let here = Target::Services(vec![name("app")]);
    for (what, policies, by_get, by_post) in [
        ("no policy", vec![], ok, ok),
        ("nothing is allowed", vec![nothing()], denied, denied),
        ("GET is", vec![nothing(), allow(vec![methods(&["GET"])])], ok, denied),
        ("another may", vec![nothing(), allow(vec![principals(&[other])])], denied, denied),
        ("the client may", vec![nothing(), allow(vec![principals(&[other, client])])], ok, ok),
        (
            "POST is denied",
            vec![allow(vec![principals(&[client])]), policy("d", Action::Deny, vec![methods(&["POST"])])],
            ok,
            denied,
        ),
        ("of another service", vec![Policy { target: elsewhere, ..nothing() }], ok, ok),
        ("of this service", vec![Policy { target: here, ..nothing() }], denied, denied),
        ("only to be told", vec![Policy { dry_run: true, ..nothing() }], ok, ok),
        ("nobody can be asked", vec![policy("c", Action::Custom("x".into()), vec![methods(&["POST"])])], ok, denied),
        ("cannot be read", vec![Policy::closed(NamespacedName::new("shop", "p"), Target::All)], denied, denied),
    ] {
        waypoint.state.set_security(of(policies));
        for (method, expected) in [(Method::GET, by_get), (Method::POST, by_post)] {
            let answer = waypoint.ask(ASKED, send(method.clone(), "/productpage")).await;
            assert_eq!(answer.status(), expected, "{what}: {method}");
            if expected == denied {
                assert_eq!(text(&answer), "RBAC: access denied", "{what}: {method}");
            }
        }
    }
    // Nobody says any more what is let through.
    waypoint.state.set_security(None);
    assert_eq!(waypoint.ask(ASKED, get("/")).await.status(), denied);
}

#[tokio::test]
async fn a_denial_of_grpc_is_told_in_its_way() {
    let waypoint = shop().await;
    waypoint.state.set_security(of(vec![policy("d", Action::Deny, vec![Rule::default()])]));
    let mut request = get("/shop.Cart/Add");
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let answer = waypoint.ask(ASKED, request).await;
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(
        (answer.status(), header("grpc-status"), header("grpc-message")),
        (StatusCode::OK, "7".into(), "RBAC: access denied".into())
    );
}

#[tokio::test]
async fn features_B26_a_dry_run_is_counted_and_changes_nothing() {
    let waypoint = shop().await;
    let would = Policy { dry_run: true, ..policy("would", Action::Deny, vec![methods(&["GET"])]) };
    let told = policy("told", Action::Audit, vec![methods(&["GET"])]);
    waypoint.state.set_security(of(vec![would, told, policy("d", Action::Deny, vec![methods(&["POST"])])]));
    for (method, expected) in [(Method::GET, 200), (Method::GET, 200), (Method::POST, 403)] {
        assert_eq!(waypoint.ask(ASKED, send(method, "/")).await.status(), expected);
    }
    let scrape = waypoint.scrape();
    for line in [
        "undermesh_request_policies_total{policy=\"shop/would\",outcome=\"would_deny\"} 2",
        "undermesh_request_policies_total{policy=\"shop/told\",outcome=\"audited\"} 2",
        "undermesh_request_policies_total{policy=\"shop/d\",outcome=\"denied\"} 1",
    ] {
        assert!(scrape.contains(line), "{line}: {scrape}");
    }
}

#[tokio::test]
async fn hardening_CVE_2021_29492_no_spelling_of_a_denied_path_gets_through() {
    let (app, mut told) = noting(StatusCode::OK).await;
    let backend = Backend::new("app", VIP, &[app]).speaking(AppProtocol::Http11);
    let waypoint = Waypoint::start(&[backend], Table::default()).await;
    waypoint.state.set_security(of(vec![policy("d", Action::Deny, vec![paths(&["/admin", "/admin/*", "/$meta"])])]));
    for target in [
        "/admin",
        "/admin?x=/public",
        "/%61dmin",
        "/%61%64%6d%69%6E",
        "/admin/x",
        "/a/../admin",
        "/a/%2e%2e/admin",
        "/a/%2E%2E/admin",
        "/./admin",
        "//admin",
        "///admin/x",
        "/%2fadmin",
        "/%2Fadmin",
        "/admin%2fx",
        "/admin%2Fx",
        "/%5cadmin",
        "/\\admin",
        "/a\\..\\admin",
        "/admin;x=1",
        "/admin;/x",
        "/;a=b/admin",
        "/admin%3bx",
        "/a/..;/admin",
        "/a/..%2fadmin",
        "/a%2f..%2fadmin",
        "/%c0%afadmin",
        "/%e0%80%afadmin",
        "/%f0%80%80%afadmin",
        "/admin%00",
        "/admin%20%00.html",
        "/%u002fadmin",
        "/admin#x",
        "/%24meta",
        "/$met%61",
        "http://shop/admin",
        "http://shop//admin",
        "HTTP://shop/%61dmin",
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n");
        let mut stream = waypoint.stream(ASKED).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = soon("answer", stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        assert!(matches!(status, Some("403" | "400")), "{target}: {answer}");
    }
    assert!(told.try_recv().is_err());
    for target in ["/public", "/ADMIN", "/administrator", "/%2561dmin"] {
        assert_eq!(waypoint.ask(ASKED, get(target)).await.status(), StatusCode::OK, "{target}");
        assert_eq!(soon("request", told.recv()).await.unwrap().uri().path(), target);
    }
}

#[tokio::test]
async fn what_is_no_http_does_not_come_around_policies() {
    let listener = listener().await;
    let app = listener.local_addr().unwrap();
    let waypoint = Waypoint::start(&[Backend::new("app", VIP, &[app])], Table::default()).await;
    let client = principals(&["cluster.local/ns/shop/sa/client"]);
    for (what, policy, is_let) in [
        ("a method is allowed", policy("p", Action::Allow, vec![methods(&["GET"])]), false),
        ("a path is denied", policy("p", Action::Deny, vec![paths(&["/admin"])]), false),
        ("somebody is to be asked", policy("p", Action::Custom("x".into()), vec![paths(&["/admin"])]), false),
        ("the client is allowed", policy("p", Action::Allow, vec![client]), true),
    ] {
        waypoint.state.set_security(of(vec![policy]));
        let mut stream = waypoint.stream(ASKED).await.unwrap();
        stream.write_all(b"\x16\x03 no http").await.unwrap();
        if is_let {
            let (mut far, _) = soon("accept", listener.accept()).await.unwrap();
            let mut bytes = [0; 2];
            soon("bytes", far.read_exact(&mut bytes)).await.unwrap();
            assert_eq!(&bytes, b"\x16\x03", "{what}");
        } else {
            let mut answer = Vec::new();
            assert!(soon("end", stream.read_to_end(&mut answer)).await.is_err() || answer.is_empty(), "{what}");
        }
    }
}

/// Somebody who makes tokens.
struct Issuer {
    key: KeyPair,
}

impl Issuer {
    fn new() -> Self {
        Self { key: KeyPair::generate().unwrap() }
    }

    fn jwk(&self, kid: &str) -> Value {
        // An uncompressed point.
        let point = self.key.der_bytes();
        let (x, y) = (BASE64.encode(&point[1..33]), BASE64.encode(&point[33..65]));
        json!({ "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": kid, "x": x, "y": y })
    }

    fn sign(&self, kid: Option<&str>, claims: &Value) -> String {
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_ec_der(&self.key.serialize_der())).unwrap()
    }
}

fn now() -> i64 {
    let since = mesh_runtime::clock::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

fn rule(keys: &[Value]) -> JwtRule {
    JwtRule {
        issuer: "testing@secure.istio.io".into(),
        audiences: vec!["shop".into()],
        keys: Some(json!({ "keys": keys }).to_string().into()),
        locations: JwtRule::usual_locations(),
        forward: false,
        payload_header: None,
        claim_headers: vec![(HeaderName::from_static("x-user"), "sub".into())],
        spaced: Vec::new(),
    }
}

fn tokens(rules: Vec<JwtRule>, policies: Vec<Policy>) -> Option<Arc<Security>> {
    let rules = rules.into_iter().map(Arc::new).collect();
    let authentication = Authentication { name: NamespacedName::new("shop", "jwt"), target: Target::All, rules };
    let policies = policies.into_iter().map(Arc::new).collect();
    Some(Arc::new(Security { policies, authentications: vec![Arc::new(authentication)], ..Security::default() }))
}

fn with(token: &str) -> Request<Full<Bytes>> {
    let mut request = get("/");
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

fn forged(header: &Value, claims: &Value, signature: &str) -> String {
    format!("{}.{}.{signature}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()))
}

#[tokio::test]
async fn features_B24_hardening_B182_to_B186_only_what_a_key_vouches_for_is_believed() {
    let waypoint = shop().await;
    let (issuer, other) = (Issuer::new(), Issuer::new());
    waypoint.state.set_security(tokens(vec![rule(&[issuer.jwk("one"), other.jwk("two")])], vec![]));
    let claims = |changes: Value| {
        let mut claims = json!({ "iss": "testing@secure.istio.io", "sub": "u", "aud": "shop", "exp": now() + 600 });
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims
    };
    let good = claims(json!({}));
    let signed = issuer.sign(Some("one"), &good);
    let (head, signature) = signed.rsplit_once('.').unwrap();
    let zeros = BASE64.encode([0_u8; 64]);
    let secret = EncodingKey::from_secret(issuer.jwk("one").to_string().as_bytes());
    let of_secret = Header { kid: Some("one".into()), ..Header::new(Algorithm::HS256) };
    let confused = jsonwebtoken::encode(&of_secret, &good, &secret).unwrap();
    let es = |kid: &str| json!({ "alg": "ES256", "kid": kid });
    let none = |alg: &str| forged(&json!({ "alg": alg, "kid": "one" }), &good, signature);
    for (what, token, expected) in [
        ("good", signed.clone(), Ok(())),
        ("expired", issuer.sign(Some("one"), &claims(json!({ "exp": now() - 61 }))), Err("Jwt is expired")),
        ("expired a moment ago", issuer.sign(Some("one"), &claims(json!({ "exp": now() - 5 }))), Ok(())),
        ("not yet", issuer.sign(Some("one"), &claims(json!({ "nbf": now() + 300 }))), Err("Jwt not yet valid")),
        (
            "for another",
            issuer.sign(Some("one"), &claims(json!({ "aud": "x" }))),
            Err("Audiences in Jwt are not allowed"),
        ),
        ("of another", issuer.sign(Some("one"), &claims(json!({ "iss": "x" }))), Err("Jwt issuer is not configured")),
        ("other key", other.sign(Some("one"), &good), Err("Jwt verification fails")),
        ("other kid", issuer.sign(Some("two"), &good), Err("Jwt verification fails")),
        ("unknown kid", issuer.sign(Some("../../x"), &good), Err("Jwks doesn't have key to match kid or alg from Jwt")),
        ("no kid of two keys", issuer.sign(None, &good), Err("Jwks doesn't have key to match kid or alg from Jwt")),
        ("none", none("none"), Err("Jwks doesn't have key to match kid or alg from Jwt")),
        ("None", none("None"), Err("Jwks doesn't have key to match kid or alg from Jwt")),
        ("secret", confused, Err("Jwks doesn't have key to match kid or alg from Jwt")),
        ("zeros", forged(&es("one"), &good, &zeros), Err("Jwt verification fails")),
        ("unsigned", format!("{head}."), Err("Jwt signature is an invalid Base64url encoded")),
        (
            "another payload",
            forged(&es("one"), &claims(json!({ "sub": "root" })), signature),
            Err("Jwt verification fails"),
        ),
        (
            "no token",
            "x".to_owned(),
            Err("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"),
        ),
    ] {
        let answer = waypoint.ask(ASKED, with(&token)).await;
        match expected {
            Ok(()) => {
                assert_eq!(answer.status(), StatusCode::OK, "{what}: {}", text(&answer));
                assert!(text(&answer).contains("x-user: u\n"), "{what}: {}", text(&answer));
                assert!(!text(&answer).contains("authorization"), "{what}: {}", text(&answer));
            }
            Err(why) => {
                assert_eq!((answer.status(), text(&answer)), (StatusCode::UNAUTHORIZED, why), "{what}");
                assert!(answer.headers().contains_key("www-authenticate"), "{what}");
            }
        }
    }
    // None is nobody's; and what we write nobody else does.
    let mut request = get("/?access_token=");
    request.headers_mut().insert("x-user", "root".parse().unwrap());
    assert_eq!(waypoint.ask(ASKED, request).await.status(), StatusCode::UNAUTHORIZED);
    let mut request = get("/");
    request.headers_mut().insert("x-user", "root".parse().unwrap());
    let answer = waypoint.ask(ASKED, request).await;
    assert!(answer.status() == StatusCode::OK && !text(&answer).contains("x-user"), "{}", text(&answer));
    // In the query, which goes on without it.
    let answer = waypoint.ask(ASKED, get(&format!("/?a=1&access_token={signed}&b=2"))).await;
    assert!(text(&answer).starts_with("app GET /?a=1&b=2 "), "{}", text(&answer));
    // Two.
    let mut request = with(&signed);
    request.headers_mut().append("authorization", format!("Bearer {signed}").parse().unwrap());
    assert_eq!(waypoint.ask(ASKED, request).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn hardening_CVE_2026_31837_without_keys_no_token_is_believed() {
    let waypoint = shop().await;
    let issuer = Issuer::new();
    let claims = json!({ "iss": "testing@secure.istio.io", "sub": "u", "aud": "shop", "exp": now() + 600 });
    let token = issuer.sign(Some("one"), &claims);
    let mut private = issuer.jwk("one");
    private["d"] = json!("AAAA");
    let mut encrypts = issuer.jwk("one");
    encrypts["use"] = json!("enc");
    let secret = json!({ "kty": "oct", "kid": "one", "k": "AAAA", "alg": "HS256" });
    for (what, keys) in [
        ("none", None),
        ("no set", Some("<html>".to_owned())),
        ("an empty set", Some(json!({ "keys": [] }).to_string())),
        ("private", Some(json!({ "keys": [private] }).to_string())),
        ("for something else", Some(json!({ "keys": [encrypts] }).to_string())),
        ("symmetric", Some(json!({ "keys": [secret] }).to_string())),
        ("two of one name", Some(json!({ "keys": [issuer.jwk("one"), issuer.jwk("one")] }).to_string())),
        ("too many", Some(json!({ "keys": vec![issuer.jwk("one"); 10_000] }).to_string())),
    ] {
        let rule = JwtRule { keys: keys.map(Into::into), ..rule(&[]) };
        waypoint.state.set_security(tokens(vec![rule], vec![]));
        let answer = waypoint.ask(ASKED, with(&token)).await;
        assert_eq!(
            (answer.status(), text(&answer)),
            (StatusCode::UNAUTHORIZED, "Jwks remote fetch is failed"),
            "{what}"
        );
        assert_eq!(waypoint.ask(ASKED, get("/")).await.status(), StatusCode::OK, "{what}");
    }
    let one = rule(&[issuer.jwk("one")]);
    waypoint.state.set_security(tokens(vec![one], vec![]));
    assert_eq!(waypoint.ask(ASKED, with(&token)).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn features_B24_policies_ask_for_what_a_token_proves() {
    let waypoint = shop().await;
    let issuer = Issuer::new();
    let sign = |groups: Value| {
        let claims = json!({
            "iss": "testing@secure.istio.io", "sub": "u", "aud": "shop", "exp": now() + 600, "groups": groups,
        });
        issuer.sign(None, &claims)
    };
    let principal = is(vec![exact("testing@secure.istio.io/u")]);
    let of_token =
        Rule { from: vec![Source { request_principals: principal, ..Source::default() }], ..Rule::default() };
    let in_group = Rule {
        when: vec![When::Text(Attribute::Claim(vec!["groups".into()]), is(vec![exact("group1")]))],
        ..of_token.clone()
    };
    let own = JwtRule {
        locations: vec![Location::Bearer, Location::Cookie("session".into())],
        forward: true,
        payload_header: Some(HeaderName::from_static("x-payload")),
        ..rule(&[issuer.jwk("one")])
    };
    for (what, rule, without, with_group, with_other) in
        [("a token", of_token, 403, 200, 200), ("a group", in_group, 403, 200, 403)]
    {
        let allow = policy("p", Action::Allow, vec![rule]);
        waypoint.state.set_security(tokens(vec![own.clone()], vec![allow]));
        assert_eq!(waypoint.ask(ASKED, get("/")).await.status(), without, "{what}");
        for (groups, expected) in [(json!(["group0", "group1"]), with_group), (json!(["group2"]), with_other)] {
            let token = sign(groups);
            assert_eq!(waypoint.ask(ASKED, with(&token)).await.status(), expected, "{what}");
            let mut request = get("/");
            request.headers_mut().insert("cookie", format!("a=b; session={token}").parse().unwrap());
            let answer = waypoint.ask(ASKED, request).await;
            assert_eq!(answer.status(), expected, "{what}");
            if expected == 200 {
                let payload = token.split('.').nth(1).unwrap();
                assert!(text(&answer).contains(&format!("x-payload: {payload}\n")), "{}", text(&answer));
                assert!(text(&answer).contains("session="), "it is sent on");
            }
        }
    }
}

#[tokio::test]
async fn features_GW_8_endpoints_are_told_who_the_client_is_where_that_is_asked_for() {
    let waypoint = shop().await;
    let told = format!("x-forwarded-client-cert: By={WAYPOINT};URI={CLIENT}");
    for (names_clients, expected) in [(false, vec![]), (true, vec![told.as_str()])] {
        waypoint.state.set_security(Some(Arc::new(Security { names_clients, ..Security::default() })));
        let mut request = send(Method::GET, "/");
        // What a client says of itself there is believed in neither case.
        for forged in ["URI=spiffe://a/ns/b/sa/admin", "Hash=1"] {
            request.headers_mut().append("x-forwarded-client-cert", HeaderValue::from_static(forged));
        }
        let answer = waypoint.ask(ASKED, request).await;
        let lines: Vec<&str> =
            text(&answer).lines().filter(|line| line.starts_with("x-forwarded-client-cert")).collect();
        assert_eq!(lines, expected, "{names_clients}");
    }
}
