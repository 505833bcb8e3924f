//! Values that are well formed and still too much: retries, times, patterns, names of headers; and what a definition that is older or newer leaves of an object.

use std::time::Duration;

use super::*;
use crate::resource::routing::values::{Limit, Pattern};

fn service(rule: &str) -> String {
    format!("{{hosts: [a], http: [{{route: [{{destination: {{host: a}}}}], {rule}}}]}}")
}

fn route(rule: &str) -> String {
    format!("{{parentRefs: [{{group: '', kind: Service, name: a}}], rules: [{{{rule}}}]}}")
}

#[test]
fn hardening_B142_retries_have_bounds() {
    let many = "(write at most 100: a request that fails as often only adds to what fails)";
    let never = "w http[0].retries: nothing is tried again without `attempts`, which is 0 then (write `attempts: 2`)";
    let longer = "w http[0].retries.perTryTimeout: longer than `timeout`, which ends all attempts together (write a shorter one, or delete it)";
    for (rule, expected) in [
        ("retries: {attempts: 100}", vec![]),
        ("timeout: 1s, retries: {attempts: 2, perTryTimeout: 2s}", vec![longer.to_owned()]),
        ("timeout: 0s, retries: {attempts: 2, perTryTimeout: 2s}", vec![]),
        ("retries: {attempts: 2, perTryTimeout: 2s}", vec![]),
        ("retries: {}", vec![]),
        ("retries: {perTryTimeout: 2s}", vec![never.to_owned()]),
        ("retries: {retryRemoteLocalities: false}", vec![never.to_owned()]),
    ] {
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        good(Kind::VirtualService, &[(&service(rule), &expected)]);
    }
    let refused = format!("http[0].retries.attempts: 1000000 attempts {many}");
    bad(Kind::VirtualService, &[(&service("retries: {attempts: 1000000}"), &[&refused])]);
    good(Kind::HttpRoute, &[(&route("retry: {attempts: 100}"), &[])]);
    let refused = format!("rules[0].retry.attempts: 1000000 attempts {many}");
    bad(Kind::HttpRoute, &[(&route("retry: {attempts: 1000000}"), &[&refused])]);
}

#[test]
fn hardening_B143_a_time_of_nothing_is_not_the_same_as_no_time() {
    let second = Limit::After(Duration::from_secs(1));
    for (rule, expected) in [("name: x", Limit::Unset), ("timeout: 0s", Limit::None), ("timeout: 1s", second)] {
        let Some(Routing::VirtualService(object)) = read(Kind::VirtualService, &service(rule)).0 else {
            panic!("{rule}")
        };
        assert_eq!(object.spec.http[0].limit(), expected, "{rule}");
    }
    for (rule, expected) in [
        ("timeouts: {}", (Limit::Unset, Limit::Unset)),
        ("timeouts: {request: 0s}", (Limit::None, Limit::Unset)),
        ("timeouts: {request: 0s, backendRequest: 1s}", (Limit::None, second)),
        ("timeouts: {request: 1s, backendRequest: 0s}", (second, Limit::None)),
    ] {
        let Some(Routing::HttpRoute(object)) = read(Kind::HttpRoute, &route(rule)).0 else { panic!("{rule}") };
        assert_eq!(object.spec.rules[0].timeouts.as_ref().unwrap().limits(), expected, "{rule}");
    }
}

#[test]
fn lists_are_as_long_as_definitions_and_readers_let_them_be() {
    let many = |count: usize, one: &str| vec![one; count].join(", ");
    let policy = |names: usize, roots: usize, targets: usize| {
        let names = many(names, "{type: Hostname, hostname: b.com}");
        let roots = many(roots, "{group: '', kind: ConfigMap, name: c}");
        let targets: Vec<_> = (0..targets).map(|n| format!("{{group: '', kind: Service, name: a{n}}}")).collect();
        let targets = targets.join(", ");
        format!(
            "{{targetRefs: [{targets}], validation: {{hostname: a.com, caCertificateRefs: [{roots}], subjectAltNames: [{names}]}}}}"
        )
    };
    let hostnames = |count| format!("{{parentRefs: [{{name: gw}}], hostnames: [{}]}}", many(count, "a.com"));
    let backends = "rules: [{backendRefs: [{name: a, port: 443}]}]";
    let tls = |count| format!("{{parentRefs: [{{name: gw}}], {backends}, hostnames: [{}]}}", many(count, "a.com"));
    let server = |hosts: usize, names: usize| {
        let (hosts, names) = (many(hosts, "a.com"), many(names, "a"));
        format!(
            "{{selector: {{a: b}}, servers: [{{port: {{number: 443, name: a, protocol: HTTPS}}, hosts: [{hosts}], tls: {{mode: MUTUAL, credentialName: c, subjectAltNames: [{names}]}}}}]}}"
        )
    };
    for (kind, most, over, field, limit) in [
        (Kind::BackendTlsPolicy, policy(5, 8, 16), policy(6, 8, 16), "validation.subjectAltNames", 5),
        (Kind::BackendTlsPolicy, policy(5, 8, 16), policy(5, 9, 16), "validation.caCertificateRefs", 8),
        (Kind::BackendTlsPolicy, policy(5, 8, 16), policy(5, 8, 17), "targetRefs", 16),
        (Kind::HttpRoute, hostnames(16), hostnames(17), "hostnames", 16),
        (Kind::GrpcRoute, hostnames(16), hostnames(17), "hostnames", 16),
        (Kind::TlsRoute, tls(16), tls(17), "hostnames", 16),
        (Kind::IstioGateway, server(1000, 1000), server(1001, 1000), "servers[0].hosts", 1000),
        (Kind::IstioGateway, server(1000, 1000), server(1000, 1001), "servers[0].tls.subjectAltNames", 1000),
    ] {
        good(kind, &[(&most, &[])]);
        bad(kind, &[(&over, &[&format!("{field}: {} entries, the limit is {limit}", limit + 1)])]);
    }
}

#[test]
fn hardening_B146_patterns_cost_what_their_texts_do() {
    let long = "a".repeat(65536);
    for (text, expected) in [
        ("(a{1000}){1000}", Err("the regular expression is too large")),
        ("((a{100}){100}){100}", Err("the regular expression is too large")),
        (&*long, Err("a regular expression longer than 4096 bytes")),
        ("", Err("an empty regular expression")),
        ("(", Err("not a regular expression: unclosed group")),
        (r"(a)\1", Err("not a regular expression: backreferences are not supported")),
        (
            "(?=a)b",
            Err("not a regular expression: look-around, including look-ahead and look-behind, is not supported"),
        ),
        // Slow for whoever goes back; here it takes as long as the text is.
        (".*.*.*x", Ok(())),
        ("(a*)*b", Ok(())),
    ] {
        let outcome = Pattern::try_from(text.to_owned()).map(drop);
        assert_eq!(outcome, expected.map_err(str::to_owned), "{}", &text[..text.len().min(40)]);
    }
    let pattern = regex::bytes::RegexBuilder::new("^(?:.*.*.*x|(a*)*b)$").unicode(false).build().unwrap();
    let start = std::time::Instant::now();
    assert!(!pattern.is_match("a".repeat(65536).as_bytes()));
    assert!(start.elapsed() < Duration::from_secs(5), "it grows with the text, and not with its square");
    // Wherever a pattern can stand.
    let spec = service("match: [{headers: {x: {regex: '(a{1000}){1000}'}}}]");
    bad(Kind::VirtualService, &[(&spec, &["http[0].match[0].headers.x.regex: the regular expression is too large"])]);
    let spec = route("matches: [{path: {type: RegularExpression, value: '/(a{1000}){1000}'}}]");
    bad(Kind::HttpRoute, &[(&spec, &["rules[0].matches[0].path.value: the regular expression is too large"])]);
}

#[test]
fn hardening_B147_requests_are_not_told_by_what_is_no_header_of_theirs() {
    for (name, why) in [
        ("host", "\"host\" is the host that is asked for, and has a match of its own"),
        (":path", "\":path\" is not the name of a header"),
        ("connection", "\"connection\" is about one connection, and not a request"),
        ("transfer-encoding", "\"transfer-encoding\" is about one connection, and not a request"),
        ("a b", "\"a b\" is not the name of a header"),
        ("", "\"\" is not the name of a header"),
    ] {
        let key = if name.contains([':', ' ']) || name.is_empty() { format!("[{name:?}]") } else { format!(".{name}") };
        let said = read(Kind::VirtualService, &service(&format!("match: [{{headers: {{{name:?}: {{exact: x}}}}}}]")));
        assert!(said.0.is_none() && said.1.iter().any(|line| line.ends_with(why)), "{key}: {said:?}");
        for (kind, rule) in [
            (Kind::HttpRoute, format!("matches: [{{headers: [{{name: {name:?}, value: x}}]}}]")),
            (Kind::GrpcRoute, format!("matches: [{{headers: [{{name: {name:?}, value: x}}]}}]")),
        ] {
            let expected = format!("rules[0].matches[0].headers[0].name: {why}");
            bad(kind, &[(&route(&rule), &[&expected])]);
        }
    }
    // Protocols are changed by it, and rules for that match it.
    good(Kind::VirtualService, &[(&service("match: [{headers: {upgrade: {exact: websocket}}}]"), &[])]);
}

#[test]
fn hardening_B150_a_later_definition_may_have_more_fields() {
    // An API server shows what its definition has; a file has what somebody wrote.
    let object = json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": "o", "namespace": "shop" },
        "spec": { "parentRefs": [{ "group": "", "kind": "Service", "name": "a" }], "newField": { "x": 1 },
            "rules": [{ "backendRefs": [{ "name": "a", "port": 80, "newField": [1] }] }] } });
    let from_server = decode(Kind::HttpRoute, "gateway.networking.k8s.io/v1", object.clone()).unwrap();
    assert!(from_server.outcome.is_ok(), "{:?}", from_server.diagnoses);
    let severities: Vec<Severity> = from_server.diagnoses.iter().map(|d| d.severity).collect();
    assert_eq!(severities, [Severity::Warning, Severity::Warning], "it is said that they are not known");
    let [(from_file, _)] = <[_; 1]>::try_from(file::read("o.yaml", object.to_string().as_bytes()).found).unwrap();
    assert!(from_file.outcome.is_err(), "in a file it is a mistake");
    // One that is older lacks some, and all of them may be left out.
    let old = json!({ "metadata": { "name": "o", "namespace": "shop" }, "spec": {} });
    for kind in [Kind::HttpRoute, Kind::GrpcRoute] {
        assert!(decode(kind, kind.api_versions()[0], old.clone()).unwrap().outcome.is_ok(), "{}", kind.name());
    }
}
