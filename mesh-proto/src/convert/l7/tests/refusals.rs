//! What cannot be read: of a rule it closes the rule, of a host it refuses the table.

use http::Method;
use mesh_core::l7::{Authority, Client, Outcome, Request, pick};
use prost::Message;
use rand::{SeedableRng, rngs::StdRng};

use crate::{
    convert::{ConvertError, l7::route_table},
    wire::l7 as wire,
};

/// What a request to `path` is answered by a table of one host: this rule, then one that takes all.
fn answer(rule: Vec<u8>, path: &str) -> (String, Vec<String>) {
    let last = wire::Rule { conditions: vec![], handling: Some(good()) }.encode_to_vec();
    let host =
        wire::VirtualHost { name: "h".into(), hosts: vec!["*".into()], rules: vec![rule, last], ..Default::default() };
    let read =
        route_table(&wire::RouteTable { name: "t".into(), hosts: vec![host], retries: None }.encode_to_vec()).unwrap();
    let request = Request {
        method: &Method::GET,
        scheme: "http",
        authority: &Authority::parse("a").unwrap(),
        path,
        query: None,
        headers: &http::HeaderMap::new(),
        port: 80,
        gateway: "mesh",
        service: None,
    };
    let decision = pick(&read.table, &request, &Client::default(), &mut StdRng::seed_from_u64(1)).unwrap();
    let outcome = match decision.outcome {
        Outcome::Closed(why) => format!("closed: {why}"),
        _ => decision.handling.name.to_string(),
    };
    (outcome, read.closed.iter().map(ToString::to_string).collect())
}

fn good() -> wire::Handling {
    let cluster = wire::Cluster { service: "shop/cart".into(), port: 80, subset: String::new() };
    let target = Some(wire::Target { kind: Some(wire::target::Kind::Cluster(cluster)) });
    let backend = wire::Backend { target, weight: 1, ..Default::default() };
    let forward = wire::Forward { backends: vec![backend] };
    wire::Handling {
        name: "last".into(),
        origin: "HTTPRoute shop/cart".into(),
        action: Some(wire::handling::Action::Forward(forward)),
        ..Default::default()
    }
}

fn prefix(path: &str) -> Option<wire::PathMatch> {
    Some(wire::PathMatch { kind: Some(wire::path_match::Kind::Prefix(path.into())), ignore_case: false })
}

fn exactly(text: &str) -> Option<wire::Text> {
    Some(wire::Text { kind: Some(wire::text::Kind::Exact(text.into())) })
}

fn regex(text: impl Into<String>) -> Option<wire::Text> {
    Some(wire::Text { kind: Some(wire::text::Kind::Regex(text.into())) })
}

/// A rule for `/a`, changed.
fn changed(change: impl FnOnce(&mut wire::Condition, &mut wire::Handling)) -> wire::Rule {
    let mut condition = wire::Condition { path: prefix("/a"), ..Default::default() };
    let mut handling = wire::Handling { name: "first".into(), ..good() };
    change(&mut condition, &mut handling);
    wire::Rule { conditions: vec![condition], handling: Some(handling) }
}

fn forward(handling: &mut wire::Handling) -> &mut wire::Forward {
    match &mut handling.action {
        Some(wire::handling::Action::Forward(forward)) => forward,
        other => panic!("{other:?}"),
    }
}

/// What of a condition cannot be read is taken to hold, so the closed rule takes at least what was meant for it.
#[test]
fn hardening_B146_a_condition_that_cannot_be_read_closes_its_rule_and_opens_no_later_one() {
    let header = |name: &str, value| wire::HeaderMatch { name: name.into(), value, invert: false };
    type Change = Box<dyn FnOnce(&mut wire::Condition, &mut wire::Handling)>;
    let bad: Vec<(&str, Change)> = vec![
        (
            "conditions.headers: the regular expression is too large",
            Box::new(move |c, _| c.headers.push(header("x", regex("(a{1000}){1000}")))),
        ),
        (
            "conditions.headers: not a regular expression",
            Box::new(move |c, _| c.headers.push(header("x", regex("a)|(?:b")))),
        ),
        (
            "conditions.headers: a regular expression of 65536 bytes",
            Box::new(move |c, _| c.headers.push(header("x", regex("a".repeat(1 << 16))))),
        ),
        ("conditions.headers: host is about", Box::new(move |c, _| c.headers.push(header("Host", exactly("a"))))),
        (
            "conditions.headers: connection is about",
            Box::new(move |c, _| c.headers.push(header("connection", exactly("a")))),
        ),
        (
            "conditions.headers: \":path\" is no header",
            Box::new(move |c, _| c.headers.push(header(":path", exactly("a")))),
        ),
        ("conditions.headers: \"a b\" is no header", Box::new(move |c, _| c.headers.push(header("a b", exactly("a"))))),
        ("conditions.headers.value is missing", Box::new(move |c, _| c.headers.push(header("x", None)))),
        (
            "conditions.headers: says neither",
            Box::new(move |c, _| c.headers.push(header("x", Some(wire::Text::default())))),
        ),
        (
            "conditions.headers: 101 of them",
            Box::new(move |c, _| {
                c.headers = vec![wire::HeaderMatch { invert: true, ..header("x", exactly("a")) }; 101]
            }),
        ),
        ("conditions.query.value is missing", Box::new(|c, _| c.query.push(wire::QueryMatch::default()))),
        ("conditions.method: says neither", Box::new(|c, _| c.method = Some(wire::Text::default()))),
        ("conditions.scheme: not a regular", Box::new(|c, _| c.scheme = regex("["))),
        ("conditions.authority: an empty regular", Box::new(|c, _| c.authority = regex(""))),
        ("conditions.port: 65536 is not a port", Box::new(|c, _| c.port = 65_536)),
        ("conditions.gateways: an empty name", Box::new(|c, _| c.gateways = vec!["x".into(), String::new()])),
        (
            "conditions.source_labels: contains a control",
            Box::new(|c, _| drop(c.source_labels.insert("app".into(), "\n".into()))),
        ),
        ("conditions.source_namespace: 600 bytes", Box::new(|c, _| c.source_namespace = "n".repeat(600))),
        ("conditions.path: says neither", Box::new(|c, _| c.path = Some(wire::PathMatch::default()))),
    ];
    for (problem, change) in bad {
        let is_path = problem.starts_with("conditions.path");
        let rule = changed(change).encode_to_vec();
        let (outcome, closed) = answer(rule.clone(), "/a/b");
        assert!(outcome.starts_with(&format!("closed: the rule cannot be read: {problem}")), "{problem}: {outcome}");
        assert!(
            closed[0].starts_with(&format!("host h, rule 0 (first of HTTPRoute shop/cart): {problem}")),
            "{closed:?}"
        );
        assert_eq!(closed.len(), 1);
        // Where the path could be read it still says who is meant.
        assert_eq!(answer(rule, "/b").0 == "last", !is_path, "{problem}");
    }
}

#[test]
fn hardening_B141_an_action_that_cannot_be_read_closes_its_rule() {
    type Change = Box<dyn FnOnce(&mut wire::Condition, &mut wire::Handling)>;
    let time = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let header = |name: &str, value: &str| wire::Header { name: name.into(), value: value.into() };
    let set = move |header| Some(wire::HeaderChanges { set: vec![header], ..Default::default() });
    let redirect = |change: fn(&mut wire::Redirect)| -> Change {
        Box::new(move |_, h| {
            let mut redirect = wire::Redirect { status: 302, ..Default::default() };
            change(&mut redirect);
            h.action = Some(wire::handling::Action::Redirect(redirect));
        })
    };
    let retries = |change: fn(&mut wire::Retries)| -> Change {
        Box::new(move |_, h| change(h.retries.insert(wire::Retries::default())))
    };
    let bad: Vec<(&str, Change)> = vec![
        ("handling.action is missing", Box::new(|_, h| h.action = None)),
        ("closed is missing", Box::new(|_, h| h.action = Some(wire::handling::Action::Closed(String::new())))),
        (
            "forward.backends.weight: all weights together are 4294967296",
            Box::new(|_, h| {
                let backends = &mut forward(h).backends;
                backends.push(wire::Backend { weight: u32::MAX, ..backends[0].clone() });
            }),
        ),
        ("target is missing", Box::new(|_, h| forward(h).backends[0].target = None)),
        (
            "target.port: 0 is not a port",
            Box::new(|_, h| {
                let cluster = wire::Cluster { service: "a/b".into(), port: 0, subset: String::new() };
                forward(h).backends[0].target = Some(wire::Target { kind: Some(wire::target::Kind::Cluster(cluster)) });
            }),
        ),
        ("request: \"a b\" is no header", Box::new(move |_, h| h.request = set(header("a b", "x")))),
        ("request: x-a gets a value", Box::new(move |_, h| h.request = set(header("x-a", "a\r\nb: c")))),
        (
            "response: transfer-encoding is not a rule's",
            Box::new(move |_, h| h.response = set(header("transfer-encoding", "x"))),
        ),
        (
            "request: content-length is not a rule's",
            Box::new(|_, h| {
                h.request = Some(wire::HeaderChanges { remove: vec!["Content-Length".into()], ..Default::default() });
            }),
        ),
        (
            "rewrite.authority: \"a b\"",
            Box::new(|_, h| h.rewrite = Some(wire::Rewrite { authority: "a b".into(), path: None })),
        ),
        (
            "rewrite.path: says neither",
            Box::new(|_, h| {
                h.rewrite = Some(wire::Rewrite { authority: String::new(), path: Some(wire::PathChange::default()) });
            }),
        ),
        (
            "rewrite.path: \"\\\\1\" names a group",
            Box::new(|_, h| {
                let regex = wire::Replacement { pattern: "a".into(), substitution: "\\1".into() };
                let path = Some(wire::PathChange { kind: Some(wire::path_change::Kind::Regex(regex)) });
                h.rewrite = Some(wire::Rewrite { authority: String::new(), path });
            }),
        ),
        (
            "mirrors.millionths: 1000001 of a million",
            Box::new(|_, h| {
                let target = forward(h).backends[0].target.clone();
                h.mirrors.push(wire::Mirror { target, millionths: 1_000_001 });
            }),
        ),
        ("mirrors: 33 of them", Box::new(|_, h| h.mirrors = vec![wire::Mirror::default(); 33])),
        ("timeout: not a length of time", Box::new(move |_, h| h.timeout = time(-1, 0))),
        ("timeout: not a length of time", Box::new(move |_, h| h.timeout = time(1, -1))),
        ("retries.attempts: 101", retries(|r| r.attempts = 101)),
        ("retries.events: unknown value 99", retries(|r| r.events = vec![99])),
        ("retries.events: an event that is not said", retries(|r| r.events = vec![0])),
        ("retries.grpc: 17 is not a code", retries(|r| r.grpc = vec![17])),
        ("retries.statuses: 99 is not a status", retries(|r| r.statuses = vec![99])),
        (
            "fault.delay.time is missing",
            Box::new(|_, h| {
                h.fault = Some(wire::Fault { delay: Some(wire::Delay::default()), abort: None });
            }),
        ),
        (
            "fault.abort.status is missing",
            Box::new(|_, h| {
                h.fault = Some(wire::Fault { delay: None, abort: Some(wire::Abort::default()) });
            }),
        ),
        (
            "cors.methods: \"a b\"",
            Box::new(|_, h| {
                h.cors = Some(wire::Cors { methods: vec!["a b".into()], ..Default::default() });
            }),
        ),
        ("redirect.status: 200 is not a status from 300 to 399", redirect(|r| r.status = 200)),
        ("redirect.port_from: unknown value 9", redirect(|r| r.port_from = 9)),
        ("redirect.port: a number that is not asked for", redirect(|r| r.port = 80)),
        ("redirect.port: 0 is not a port", redirect(|r| r.port_from = 3)),
        ("redirect.scheme: \"ftp\"", redirect(|r| r.scheme = "ftp".into())),
        ("redirect.host: \"a/b\"", redirect(|r| r.host = "a/b".into())),
        (
            "respond.status: 600",
            Box::new(|_, h| {
                h.action = Some(wire::handling::Action::Respond(wire::DirectResponse { status: 600, body: vec![] }));
            }),
        ),
    ];
    for (problem, change) in bad {
        let rule = changed(change).encode_to_vec();
        let (outcome, closed) = answer(rule.clone(), "/a/b");
        assert!(outcome.starts_with(&format!("closed: the rule cannot be read: {problem}")), "{problem}: {outcome}");
        assert_eq!(closed.len(), 1);
        assert_eq!(answer(rule, "/b").0, "last", "{problem}");
    }
}

#[test]
fn a_rule_of_another_version_or_of_no_sense_is_closed() {
    let known = changed(|_, _| {}).encode_to_vec();
    assert_eq!(answer(known.clone(), "/a"), ("first".into(), vec![]));
    // A field that this version does not know, in the rule itself.
    let newer = [&known[..], &[0x78, 1]].concat();
    assert!(answer(newer.clone(), "/a").0.starts_with("closed: the rule cannot be read: has fields"));
    assert_eq!(answer(newer, "/b").0, "last");
    for torn in [&known[..known.len() - 1], &[0xff]] {
        assert!(answer(torn.to_vec(), "/b").0.starts_with("closed: the rule cannot be read: cannot be decoded"));
    }
    let empty = answer(vec![], "/b");
    assert_eq!(empty.0, "closed: the rule cannot be read: handling is missing");
}

#[test]
fn a_host_that_cannot_be_read_refuses_the_table() {
    type Change = fn(&mut wire::VirtualHost);
    let bad: [(&str, Change); 6] = [
        ("hosts.hosts: \"a b\" is neither a host nor `*.` with one", |h| h.hosts = vec!["a b".into()]),
        ("hosts.service: \"cart\" is not namespace/name", |h| h.service = "cart".into()),
        ("hosts.ports: 0 is not a port", |h| h.ports = vec![0]),
        ("hosts.clients is missing", |h| h.clients = Some(wire::Clients { namespaces: vec![String::new()] })),
        ("hosts.name: 600 bytes long, the limit is 512", |h| h.name = "n".repeat(600)),
        ("hosts.rules: 10001 of them, the limit is 10000", |h| h.rules = vec![vec![]; 10_001]),
    ];
    for (problem, change) in bad {
        let mut host = wire::VirtualHost::default();
        change(&mut host);
        let bytes = wire::RouteTable { name: "t".into(), hosts: vec![host], retries: None }.encode_to_vec();
        assert_eq!(route_table(&bytes).unwrap_err().to_string(), problem);
    }
    assert_eq!(route_table(&[0x78, 1]), Err(ConvertError::UnknownFields));
    let retries = Some(wire::Retries { attempts: 101, ..Default::default() });
    let table = wire::RouteTable { name: "t".into(), hosts: vec![], retries };
    assert_eq!(route_table(&table.encode_to_vec()).unwrap_err().to_string(), "retries.attempts: 101, the limit is 100");
    assert!(matches!(route_table(&[0xff]), Err(ConvertError::Decode(_))));
    // Nobody may see what is for no namespaces; it is not for all.
    let nobody = wire::VirtualHost { clients: Some(wire::Clients::default()), ..Default::default() };
    let read = route_table(&wire::RouteTable { name: "t".into(), hosts: vec![nobody], retries: None }.encode_to_vec())
        .unwrap();
    assert_eq!(read.table.hosts()[0].clients, Some(vec![]));
}
