//! What is written is read again; what cannot be read closes what it is about.

use mesh_core::l7::policy::{
    Action, Address, Attribute, List, Operation, PathPattern, Rule, ServiceAccountMatch, Source, StringMatch, When,
};
use mesh_core::l7::token::{JwtRule, Location};

use super::*;

fn everything() -> Security {
    let texts = || List {
        is: vec![StringMatch::Exact("a".into()), StringMatch::Prefix("b".into())],
        not: vec![StringMatch::Suffix("c".into()), StringMatch::Presence],
    };
    let nets = || List { is: vec!["10.0.0.0/8".parse().unwrap(), "0.0.0.0/0".parse().unwrap()], not: vec![] };
    let ports = || List { is: vec![80], not: vec![81] };
    let accounts =
        || List { is: vec![ServiceAccountMatch { namespace: "n".into(), service_account: "s".into() }], not: vec![] };
    let source = Source {
        principals: texts(),
        namespaces: texts(),
        service_accounts: accounts(),
        trust_domains: texts(),
        ips: nets(),
        remote_ips: nets(),
        request_principals: texts(),
    };
    let paths = List {
        is: vec![PathPattern::new("/a/{*}/{**}").unwrap()],
        not: vec![PathPattern::new("*").unwrap(), PathPattern::new("/x*").unwrap()],
    };
    let operation = Operation { hosts: texts(), ports: ports(), methods: texts(), paths };
    let header = |name: &'static str| HeaderName::from_static(name);
    let attributes = [
        Attribute::Header(header("x")),
        Attribute::Host,
        Attribute::Method,
        Attribute::Namespace,
        Attribute::Principal,
        Attribute::TrustDomain,
        Attribute::RequestPrincipal,
        Attribute::Audience,
        Attribute::Presenter,
        Attribute::Claim(vec!["a".into(), "b".into()]),
        Attribute::Sni,
    ];
    let mut when: Vec<When> = attributes.into_iter().map(|of| When::Text(of, texts())).collect();
    when.extend([Address::Source, Address::Remote, Address::Destination].map(|of| When::Ip(of, nets())));
    when.extend([When::Account(accounts()), When::Port(ports()), When::Unknown("x".into())]);
    let rule = Rule { from: vec![source], to: vec![operation], when };
    let policy = |name: &str, action, target| {
        let name = NamespacedName::new("shop", name);
        Arc::new(Policy { name, target, action, rules: vec![rule.clone(), Rule::default()], dry_run: true })
    };
    let services = Target::Services(vec![NamespacedName::new("shop", "a.shop.svc")]);
    let token = JwtRule {
        issuer: "me".into(),
        audiences: vec!["a".into()],
        keys: Some(r#"{"keys":[]}"#.into()),
        locations: vec![
            Location::Bearer,
            Location::Header(header("x-t"), "JWT ".into()),
            Location::Parameter("p".into()),
            Location::Cookie("c".into()),
        ],
        forward: true,
        payload_header: Some(header("x-p")),
        claim_headers: vec![(header("x-c"), "sub".into())],
        spaced: vec!["roles".into()],
    };
    let without = JwtRule { keys: None, payload_header: None, ..token.clone() };
    Security {
        name: "shop/waypoint".into(),
        spelling: Some(Spelling::MergeSlashes),
        policies: vec![
            policy("a", Action::Allow, Target::All),
            policy("b", Action::Deny, services.clone()),
            policy("c", Action::Audit, Target::Edge),
            policy("d", Action::Custom("ask".into()), Target::All),
        ],
        authentications: vec![Arc::new(Authentication {
            name: NamespacedName::new("shop", "jwt"),
            target: services,
            rules: vec![Arc::new(token), Arc::new(without)],
        })],
        authorizers: authorizers(),
        limits: limits(&rule),
        names_clients: true,
    }
}

fn limits(rule: &Rule) -> Vec<Arc<RateLimit>> {
    let parts = vec![
        Part::Principal,
        Part::Namespace,
        Part::Source,
        Part::Host,
        Part::Method,
        Part::Path,
        Part::RequestPrincipal,
        Part::Header(HeaderName::from_static("x")),
    ];
    let entry = |value| Entry { key: "k".into(), value };
    let entries = vec![entry(Value::Fixed("v".into())), entry(Value::Of(Part::Path))];
    let global = Global {
        domain: "d".into(),
        place: Some(ClusterKey { service: NamespacedName::new("a", "b.c"), port: 8081, subset: Default::default() }),
        timeout: Duration::from_millis(20),
        fail_open: true,
        descriptors: vec![Descriptor { rules: vec![rule.clone()], entries }],
    };
    let rate = Rate { requests: 3, per: Duration::from_secs(60), burst: 7 };
    let both = RateLimit {
        name: NamespacedName::new("shop", "limit"),
        target: Target::All,
        local: vec![Local { rules: vec![rule.clone()], by: parts, rate }],
        global: Some(global.clone()),
    };
    let nowhere = Global { place: None, fail_open: false, ..global };
    let other =
        RateLimit { name: NamespacedName::new("shop", "other"), local: vec![], global: Some(nowhere), ..both.clone() };
    vec![Arc::new(both), Arc::new(other)]
}

fn authorizers() -> Vec<Arc<Authorizer>> {
    let place = ClusterKey { service: NamespacedName::new("ask", "a.ask.svc"), port: 9000, subset: Default::default() };
    let texts = |text: &str| vec![StringMatch::Exact(text.into()), StringMatch::Prefix("p".into())];
    let form = HttpForm {
        path_prefix: "/check".into(),
        sent: texts("sent"),
        fixed: vec![(HeaderName::from_static("fixed"), HeaderValue::from_static("1"))],
        to_upstream: texts("up"),
        on_deny: texts("deny"),
        on_allow: texts("allow"),
    };
    let http = Authorizer {
        name: "http".into(),
        place: place.clone(),
        form: Form::Http(form),
        timeout: Duration::from_millis(1500),
        fail_open: true,
        status_on_error: StatusCode::SERVICE_UNAVAILABLE,
        body: Some(BodyShown { most: 10, partial: true, as_bytes: true }),
        routes_again: true,
    };
    let grpc = Authorizer { name: "grpc".into(), form: Form::Grpc, body: None, fail_open: false, ..http.clone() };
    vec![Arc::new(http), Arc::new(grpc)]
}

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use mesh_core::l7::ClusterKey;
use mesh_core::l7::authorizer::{Authorizer, BodyShown, Form, HttpForm};
use mesh_core::l7::limit::{Descriptor, Entry, Global, Local, Part, Rate, Value};

#[test]
fn what_is_written_is_read_again() {
    for value in [everything(), Security::default()] {
        let read = security(&encode_security(&value)).unwrap();
        assert_eq!((read.security, read.closed), (value, vec![]));
    }
}

#[test]
fn what_cannot_be_read_denies_what_it_is_about_and_nothing_else() {
    let good = wire::Security::decode(&*encode_security(&everything())).unwrap();
    let body = |change: &dyn Fn(&mut wire::RequestPolicy)| {
        let mut policy = wire::RequestPolicy::decode(&*good.policies[1].body).unwrap();
        change(&mut policy);
        policy.encode_to_vec()
    };
    let strange = [&*good.policies[1].body, &[0xf8, 0x01, 0x01]].concat();
    for (what, bytes) in [
        ("no message", vec![0xff]),
        ("an unknown field", strange),
        ("no action", body(&|policy| policy.action = 0)),
        ("a later action", body(&|policy| policy.action = 99)),
        ("custom of nobody", body(&|policy| policy.action = 4)),
        ("a source of everybody", body(&|policy| policy.rules[0].from.push(wire::PolicySource::default()))),
        ("an operation of everything", body(&|policy| policy.rules[0].to.push(wire::PolicyOperation::default()))),
        ("no condition", body(&|policy| policy.rules[0].when.push(wire::PolicyCondition::default()))),
        (
            "a path that is none",
            body(&|policy| {
                let paths = wire::PathPatterns { is: vec!["/{a}".into()], not: vec![] };
                policy.rules[0].to[0].paths = Some(paths);
            }),
        ),
        (
            "a condition without values",
            body(&|policy| {
                let kind = policy_condition_port();
                policy.rules[0].when.push(wire::PolicyCondition { kind: Some(kind) });
            }),
        ),
    ] {
        let mut message = good.clone();
        message.policies[1].body = bytes;
        let read = security(&message.encode_to_vec()).unwrap();
        let expected = &everything().policies;
        let closed = Policy::closed(expected[1].name.clone(), expected[1].target.clone());
        assert_eq!(*read.security.policies[1], closed, "{what}");
        assert_eq!((&read.security.policies[0], read.closed.len()), (&expected[0], 1), "{what}");
    }
    let mut message = good.clone();
    message.authentications[0].body = wire::TokenRules { rules: vec![wire::TokenRule::default()] }.encode_to_vec();
    let read = security(&message.encode_to_vec()).unwrap();
    assert_eq!((read.security.authentications.len(), read.closed.len()), (0, 1));
    let last = read.security.policies.last().unwrap();
    assert_eq!((&last.action, &last.target), (&Action::Deny, &everything().authentications[0].target));
    let mut both = good;
    both.policies[1].all = true;
    assert!(security(&both.encode_to_vec()).is_err());
}

#[test]
fn an_authorizer_that_cannot_be_read_is_none() {
    let good = wire::Security::decode(&*encode_security(&everything())).unwrap();
    let body = |change: &dyn Fn(&mut wire::Authorizer)| {
        let mut authorizer = wire::Authorizer::decode(&*good.authorizers[0].body).unwrap();
        change(&mut authorizer);
        authorizer.encode_to_vec()
    };
    let shown = |most| Some(wire::BodyShown { most, partial: false, as_bytes: false });
    for (what, bytes) in [
        ("no message", vec![0xff]),
        ("an unknown field", [&*good.authorizers[0].body, &[0xf8, 0x01, 0x01]].concat()),
        ("no form", body(&|one| one.form = None)),
        ("no service", body(&|one| one.service.clear())),
        ("no port", body(&|one| one.port = 0)),
        ("no time", body(&|one| one.timeout_ms = 0)),
        ("a status that is none", body(&|one| one.status_on_error = 100)),
        ("nothing of the body", body(&|one| one.body = shown(0))),
        ("too much of the body", body(&|one| one.body = shown(u32::MAX))),
        (
            "a prefix that is no path",
            body(&|one| {
                let Some(wire::authorizer::Form::Http(form)) = &mut one.form else { panic!() };
                form.path_prefix = "check".into();
            }),
        ),
    ] {
        let mut message = good.clone();
        message.authorizers[0].body = bytes;
        let read = security(&message.encode_to_vec()).unwrap();
        assert_eq!((read.security.authorizer("http"), read.closed.len()), (None, 1), "{what}");
        assert_eq!(read.security.authorizers[0], everything().authorizers[1], "{what}");
    }
}

#[test]
fn a_limit_that_cannot_be_read_denies_what_it_is_about() {
    let good = wire::Security::decode(&*encode_security(&everything())).unwrap();
    let body = |change: &dyn Fn(&mut wire::RateLimits)| {
        let mut limits = wire::RateLimits::decode(&*good.limits[0].body).unwrap();
        change(&mut limits);
        limits.encode_to_vec()
    };
    let global = |change: &dyn Fn(&mut wire::GlobalLimit)| body(&|one| change(one.global.as_mut().unwrap()));
    for (what, bytes) in [
        ("no message", vec![0xff]),
        ("an unknown field", [&*good.limits[0].body, &[0xf8, 0x01, 0x01]].concat()),
        ("no requests", body(&|one| one.local[0].requests = 0)),
        ("no burst", body(&|one| one.local[0].burst = 0)),
        ("no time", body(&|one| one.local[0].per_ns = 0)),
        ("by nothing", body(&|one| one.local[0].by.push(wire::LimitPart::default()))),
        ("a service without a port", global(&|one| one.port = 0)),
        ("no domain", global(&|one| one.domain.clear())),
        ("no time for an answer", global(&|one| one.timeout_ms = 0)),
        ("a descriptor of nothing", global(&|one| one.descriptors[0].entries.clear())),
        ("an entry without a value", global(&|one| one.descriptors[0].entries[0].value = None)),
    ] {
        let mut message = good.clone();
        message.limits[0].body = bytes;
        let read = security(&message.encode_to_vec()).unwrap();
        assert_eq!((read.security.limits.len(), read.closed.len()), (1, 1), "{what}");
        let last = read.security.policies.last().unwrap();
        assert_eq!((&last.action, &*last.name.name), (&Action::Deny, "limit"), "{what}");
    }
}

fn policy_condition_port() -> wire::policy_condition::Kind {
    wire::policy_condition::Kind::Port(wire::PortNumbers::default())
}
