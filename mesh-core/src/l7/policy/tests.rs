//! Tables of policies and requests.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::json;

use super::*;
use crate::Identity;
use crate::l7::path::{self, Spelling};
use crate::l7::token::{JwtRule, Token};
use crate::l7::{Authority, Comes, Request};

/// A request as a line: method, host and path, then headers; whose it is; what its token says.
struct Sent {
    method: Method,
    authority: Authority,
    path: String,
    headers: HeaderMap,
    identity: Option<Identity>,
    token: Option<Token>,
}

fn sent(line: &str, account: &str) -> Sent {
    let mut words = line.split(' ');
    let method = Method::from_bytes(words.next().unwrap().as_bytes()).unwrap();
    let url = words.next().unwrap();
    let (host, target) = url.split_at(url.find('/').unwrap());
    let path = path::normalise(&method, target, Spelling::Base).unwrap().into_owned();
    let header = |word: &str| {
        let (name, value) = word.split_once(':').unwrap();
        (HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    let mut headers = HeaderMap::new();
    for (name, value) in words.map(header) {
        headers.append(name, value);
    }
    let identity = (!account.is_empty()).then(|| {
        let (namespace, account) = account.split_once('/').unwrap();
        format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").parse().unwrap()
    });
    Sent { method, authority: Authority::parse(host).unwrap(), path, headers, identity, token: None }
}

impl Sent {
    fn with(self, claims: serde_json::Value) -> Self {
        let serde_json::Value::Object(mut payload) = claims else { panic!() };
        payload.insert("exp".into(), json!(1_000));
        let rule = JwtRule {
            issuer: payload["iss"].as_str().unwrap().into(),
            audiences: Vec::new(),
            keys: None,
            locations: Vec::new(),
            forward: false,
            payload_header: None,
            claim_headers: Vec::new(),
            spaced: vec!["roles".into()],
        };
        Self { token: Some(Token::believed(payload, &rule, 1).unwrap()), ..self }
    }

    fn ask<T>(&self, ask: impl FnOnce(&Subject<'_>) -> T) -> T {
        let plainest = path::plainest(&self.path).unwrap();
        let principal = self.identity.as_ref().map(Identity::principal).unwrap_or_default();
        let ip: IpAddr = "198.18.0.7".parse().unwrap();
        ask(&Subject {
            identity: self.identity.as_ref(),
            principal: &principal,
            source: ip,
            remote: "203.0.113.9".parse().unwrap(),
            destination: Some("198.18.9.9".parse().unwrap()),
            sni: None,
            port: 80,
            also: &[],
            request: Some(Request {
                method: &self.method,
                scheme: "http",
                authority: &self.authority,
                path: &self.path,
                query: None,
                headers: &self.headers,
                port: 80,
                gateway: "mesh",
                service: None,
            }),
            plainest: plainest.as_deref(),
            token: self.token.as_ref(),
        })
    }

    fn matches(&self, action: Action, rule: Rule) -> bool {
        self.ask(|subject| policy("p", action, vec![rule]).matches(subject))
    }
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    Policy { name: NamespacedName::new("shop", name), target: Target::All, action, rules, dry_run: false }
}

fn text(text: &str) -> StringMatch {
    match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => StringMatch::Presence,
        (Some(rest), _) => StringMatch::Suffix(rest.into()),
        (_, Some(rest)) => StringMatch::Prefix(rest.into()),
        _ => StringMatch::Exact(text.into()),
    }
}

fn is<T>(values: Vec<T>) -> List<T> {
    List { is: values, not: Vec::new() }
}

fn not<T>(values: Vec<T>) -> List<T> {
    List { is: Vec::new(), not: values }
}

fn to(operation: Operation) -> Rule {
    Rule { to: vec![operation], ..Rule::default() }
}

fn from(source: Source) -> Rule {
    Rule { from: vec![source], ..Rule::default() }
}

fn when(condition: When) -> Rule {
    Rule { when: vec![condition], ..Rule::default() }
}

fn paths(list: List<&str>) -> Rule {
    let of = |texts: Vec<&str>| texts.into_iter().map(|text| PathPattern::new(text).unwrap()).collect();
    to(Operation { paths: List { is: of(list.is), not: of(list.not) }, ..Operation::default() })
}

#[test]
fn templates_mean_segments() {
    for (pattern, path, expected) in [
        ("/a", "/a", true),
        ("/a", "/a/", false),
        ("/a*", "/ab/c", true),
        ("*/b", "/a/b", true),
        ("*", "/", true),
        ("/foo/{*}", "/foo/bar", true),
        ("/foo/{*}", "/foo/", false),
        ("/foo/{*}", "/foo/bar/baz", false),
        ("/foo/{**}/", "/foo/bar/", true),
        ("/foo/{**}/", "/foo/bar/baz/", true),
        ("/foo/{**}/", "/foo//", true),
        ("/foo/{**}/", "/foo/bar", false),
        ("/foo/{*}/bar/{**}", "/foo/buzz/bar/", true),
        ("/foo/{*}/bar/{**}", "/foo/buzz/bar/baz/x", true),
        ("/foo/{*}/bar/{**}", "/foo/buzz/bar", false),
        ("/{**}", "/anything/at/all", true),
        ("/{**}/end", "/a/b/end", true),
        ("/{**}/end", "/end", false),
        ("/{*}/{*}", "/a/b", true),
        ("/{*}/{*}", "/a/b/c", false),
        ("/ä*", "/%C3%A4/x", true),
        ("/%61%2fb", "/a%2Fb", true),
    ] {
        let pattern = PathPattern::new(pattern).unwrap();
        assert_eq!(pattern.matches(path), expected, "{pattern:?} {path}");
    }
    for bad in ["", "/a*b", "**", "/{a}", "/{*", "/x{*}", "/{**}/{*}", "/{**}/{**}", "/a/{**}b", "/{*}*", "{*}"] {
        assert!(PathPattern::new(bad).is_err(), "{bad}");
    }
}

#[test]
fn no_spelling_of_a_path_gets_through_a_denial() {
    for (pattern, target, expected) in [
        ("/admin", "/admin", true),
        ("/admin", "/%61dmin", true),
        ("/admin", "/a/%2e%2e/admin", true),
        ("/admin", "//admin", true),
        ("/admin", "/%2Fadmin", true),
        ("/admin", "/\\admin", true),
        ("/admin", "/%5cadmin", true),
        ("/admin", "/admin;x=1", true),
        ("/admin", "/admin%3bx", true),
        ("/admin", "/;/admin", true),
        ("/admin", "/admin?x", true),
        // Another path to whoever gets it.
        ("/admin", "/ADMIN", false),
        ("/admin", "/admin/", false),
        ("/admin", "/%2561dmin", false),
        ("/admin/*", "/admin%2Fx", true),
        ("/admin/*", "/admin//x", true),
        ("*.php", "/x.php;a", true),
        ("/$metadata", "/%24metadata", true),
        ("/%24metadata", "/$metadata", true),
        ("/a b", "/a%20b", true),
        ("/admin/{*}", "/admin/%2Fx", true),
        ("/public/a%2Fb", "/public/a%2Fb", true),
    ] {
        let target = target.split('?').next().unwrap();
        let request = sent(&format!("GET shop{target}"), "shop/a");
        assert_eq!(request.matches(Action::Deny, paths(is(vec![pattern]))), expected, "{pattern} {target}");
        // The same of what is let in "but for".
        let but_for = request.matches(Action::Allow, paths(not(vec![pattern])));
        assert_eq!(but_for, !expected, "{pattern} {target}");
    }
    // What is denied "but for" is let through only if it is that in every way.
    for (pattern, target, denied) in [
        ("/public/*", "/public/a", false),
        ("/public/*", "/public;/a", true),
        ("/public/*", "/public%2Fa", true),
        ("/a%2Fb", "/a%2Fb", false),
    ] {
        let request = sent(&format!("GET shop{target}"), "shop/a");
        assert_eq!(request.matches(Action::Deny, paths(not(vec![pattern]))), denied, "{pattern} {target}");
    }
    let npm = sent("GET shop/@scope%2fname", "shop/a");
    assert!(npm.matches(Action::Allow, paths(is(vec!["/@scope%2F*"]))));
    assert!(!npm.matches(Action::Allow, paths(is(vec!["/@scope/*"]))));
}

#[test]
fn hosts_have_one_spelling_and_a_port_does_not_count() {
    for host in ["shop.example", "SHOP.example", "shop.example:80", "shop.example.", "Shop.Example.:8080"] {
        let request = sent(&format!("GET {host}/"), "shop/a");
        for (pattern, expected) in
            [("shop.example", true), ("*.example", true), ("shop.*", true), ("other.example", false)]
        {
            let hosts = |list| to(Operation { hosts: list, ..Operation::default() });
            assert_eq!(request.matches(Action::Deny, hosts(is(vec![text(pattern)]))), expected, "{host} {pattern}");
            assert_eq!(request.matches(Action::Allow, hosts(not(vec![text(pattern)]))), !expected, "{host} {pattern}");
            let host_header = when(When::Text(Attribute::Host, is(vec![text(pattern)])));
            assert_eq!(request.matches(Action::Deny, host_header), expected, "{host} {pattern}");
        }
    }
}

#[test]
fn of_several_lines_a_denial_looks_at_each_and_an_allowance_at_all() {
    for (headers, pattern, denied, allowed) in [
        ("x:a", "a", true, true),
        ("x:a x:b", "a", true, false),
        ("x:b x:a", "a", true, false),
        ("x:a x:b", "a,b", true, true),
        ("x:a x:b", "a*", true, false),
        ("x:a1 x:a2", "a*", true, true),
        ("x:b x:a", "*a", true, false),
        ("x:a x:b", "*", true, true),
        ("x:", "*", true, false),
        ("y:a", "a", false, false),
        ("y:a", "*", false, false),
    ] {
        let request = sent(&format!("GET shop/ {headers}"), "shop/a");
        let header = |list| when(When::Text(Attribute::Header(HeaderName::from_static("x")), list));
        let denies = request.matches(Action::Deny, header(is(vec![text(pattern)])));
        let allows = request.matches(Action::Allow, header(is(vec![text(pattern)])));
        assert_eq!((denies, allows), (denied, allowed), "{headers} {pattern}");
        // What must not be there: the other way about.
        let denies = request.matches(Action::Deny, header(not(vec![text(pattern)])));
        let allows = request.matches(Action::Allow, header(not(vec![text(pattern)])));
        assert_eq!((denies, allows), (!allowed, !denied), "not {headers} {pattern}");
    }
}

#[test]
fn who_asks_is_who_has_proved_it() {
    let net = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
    let account =
        |namespace: &str, name: &str| ServiceAccountMatch { namespace: namespace.into(), service_account: name.into() };
    let known = sent("GET shop/", "shop/cart");
    let unknown = sent("GET shop/", "");
    for (what, rule, by_known, by_unknown) in [
        (
            "principal",
            from(Source { principals: is(vec![text("cluster.local/ns/shop/sa/cart")]), ..Source::default() }),
            true,
            false,
        ),
        ("any principal", from(Source { principals: is(vec![text("*")]), ..Source::default() }), true, false),
        ("no principal", from(Source { principals: not(vec![text("*")]), ..Source::default() }), false, true),
        ("namespace", from(Source { namespaces: is(vec![text("sh*")]), ..Source::default() }), true, false),
        ("not namespace", from(Source { namespaces: not(vec![text("shop")]), ..Source::default() }), false, true),
        (
            "account",
            from(Source { service_accounts: is(vec![account("shop", "cart")]), ..Source::default() }),
            true,
            false,
        ),
        (
            "another",
            from(Source { service_accounts: is(vec![account("shop", "c")]), ..Source::default() }),
            false,
            false,
        ),
        ("domain", from(Source { trust_domains: is(vec![text("cluster.local")]), ..Source::default() }), true, false),
        ("address", from(Source { ips: is(vec![net("198.18.0.0/16")]), ..Source::default() }), true, true),
        ("remote", from(Source { remote_ips: is(vec![net("198.18.0.0/16")]), ..Source::default() }), false, false),
        ("remote", when(When::Ip(Address::Remote, is(vec![net("203.0.113.9/32")]))), true, true),
        ("destination", when(When::Ip(Address::Destination, is(vec![net("198.18.9.9/32")]))), true, true),
        ("port", when(When::Port(is(vec![81]))), false, false),
        ("port", to(Operation { ports: is(vec![80]), ..Operation::default() }), true, true),
        ("method", to(Operation { methods: is(vec![text("GET")]), ..Operation::default() }), true, true),
        ("method", to(Operation { methods: not(vec![text("GET")]), ..Operation::default() }), false, false),
        ("sni", when(When::Text(Attribute::Sni, is(vec![text("*")]))), false, false),
        ("everybody", Rule::default(), true, true),
        (
            "two of one source",
            from(Source {
                namespaces: is(vec![text("shop")]),
                ips: is(vec![net("192.0.2.0/24")]),
                ..Source::default()
            }),
            false,
            false,
        ),
    ] {
        for action in [Action::Allow, Action::Deny] {
            assert_eq!(known.matches(action.clone(), rule.clone()), by_known, "{what}");
            assert_eq!(unknown.matches(action, rule.clone()), by_unknown, "{what}");
        }
    }
}

#[test]
fn what_cannot_be_told_denies_and_allows_nothing() {
    let request = sent("GET shop/", "shop/a");
    let rule = || when(When::Unknown("experimental.envoy.filters.x".into()));
    assert!(request.matches(Action::Deny, rule()) && !request.matches(Action::Allow, rule()));
}

#[test]
fn of_what_is_no_http_a_denial_means_all_that_cannot_be_told() {
    let request = sent("GET shop/", "shop/a");
    let of_http = [
        paths(is(vec!["/a"])),
        paths(not(vec!["/"])),
        to(Operation { methods: is(vec![text("POST")]), ..Operation::default() }),
        to(Operation { methods: not(vec![text("GET")]), ..Operation::default() }),
        to(Operation { hosts: is(vec![text("other")]), ..Operation::default() }),
        when(When::Text(Attribute::Header(HeaderName::from_static("x")), is(vec![text("*")]))),
        when(When::Text(Attribute::RequestPrincipal, not(vec![text("*")]))),
    ];
    let others = [
        (to(Operation { ports: is(vec![80]), ..Operation::default() }), true),
        (to(Operation { ports: is(vec![81]), ..Operation::default() }), false),
        (from(Source { namespaces: is(vec![text("shop")]), ..Source::default() }), true),
    ];
    let rows = of_http.into_iter().map(|rule| (rule, true, false));
    for (rule, denied, allowed) in rows.chain(others.into_iter().map(|(rule, is)| (rule, is, is))) {
        let matches = |action| {
            let policy = policy("p", action, vec![rule.clone()]);
            request.ask(|subject| policy.matches(&Subject { request: None, token: None, plainest: None, ..*subject }))
        };
        assert_eq!((matches(Action::Deny), matches(Action::Allow)), (denied, allowed), "{rule:?}");
    }
}

#[test]
fn who_asks_for_a_pods_own_port_does_not_get_around_what_is_said_of_its_services() {
    let request = sent("GET shop/", "shop/a");
    let ports = |list| to(Operation { ports: list, ..Operation::default() });
    for (rule, denied, allowed) in [
        (ports(is(vec![80])), true, true),
        (ports(is(vec![8000])), true, false),
        (ports(is(vec![81])), false, false),
        (ports(not(vec![80])), false, false),
        // Of all but 8000 it is one by its own number.
        (ports(not(vec![8000])), true, false),
        (when(When::Port(is(vec![8001]))), true, false),
    ] {
        let matches = |action| {
            let policy = policy("p", action, vec![rule.clone()]);
            request.ask(|subject| policy.matches(&Subject { also: &[8000, 8001], ..*subject }))
        };
        assert_eq!((matches(Action::Deny), matches(Action::Allow)), (denied, allowed), "{rule:?}");
    }
}

#[test]
fn tokens_are_known_by_what_was_proved() {
    let bare = || sent("GET shop/", "shop/a");
    let token = || {
        bare().with(json!({
            "iss": "me", "sub": "u", "aud": ["x", "y"], "azp": "app", "groups": ["g1", "g2"], "roles": "r1 r2",
            "scope": "read write", "admin": true, "deep": { "er": ["z"] }, "name": "a b",
        }))
    };
    let claim = |path: &[&str]| Attribute::Claim(path.iter().map(|name| (*name).into()).collect());
    for (of, value, allowed, denied) in [
        (Attribute::RequestPrincipal, "me/u", true, true),
        (Attribute::RequestPrincipal, "*", true, true),
        (Attribute::RequestPrincipal, "me/v", false, false),
        (Attribute::Audience, "y", true, true),
        (Attribute::Presenter, "app", true, true),
        (claim(&["groups"]), "g2", true, true),
        (claim(&["groups"]), "g3", false, false),
        (claim(&["roles"]), "r2", true, true),
        (claim(&["scope"]), "write", true, true),
        (claim(&["name"]), "a", false, false),
        (claim(&["name"]), "a b", true, true),
        (claim(&["deep", "er"]), "z", true, true),
        (claim(&["deep"]), "z", false, false),
        // Istio has texts only; a denial means what is written.
        (claim(&["admin"]), "true", false, true),
        (claim(&["none"]), "*", false, false),
    ] {
        let rule = |list| when(When::Text(of.clone(), list));
        assert_eq!(token().matches(Action::Allow, rule(is(vec![text(value)]))), allowed, "{of:?} {value}");
        assert_eq!(token().matches(Action::Deny, rule(is(vec![text(value)]))), denied, "{of:?} {value}");
        assert_eq!(token().matches(Action::Allow, rule(not(vec![text(value)]))), !denied, "{of:?} {value}");
        assert!(!bare().matches(Action::Allow, rule(is(vec![text(value)]))), "{of:?} {value}");
        assert!(bare().matches(Action::Deny, rule(not(vec![text(value)]))), "{of:?} {value}");
    }
}

fn all(policies: &[Policy]) -> Policies {
    let mut all = Policies::default();
    policies.iter().for_each(|policy| all.add(&Arc::new(policy.clone())));
    all
}

#[test]
fn a_denial_comes_before_an_allowance_and_one_of_those_is_needed_if_there_is_any() {
    let get = || to(Operation { methods: is(vec![text("GET")]), ..Operation::default() });
    let post = || to(Operation { methods: is(vec![text("POST")]), ..Operation::default() });
    let dry = |policy: Policy| Policy { dry_run: true, ..policy };
    let name = |name: &str| NamespacedName::new("shop", name);
    let request = sent("GET shop/", "shop/a");
    let (a, d) = (name("a"), name("d"));
    for (what, policies, decision, dry_run) in [
        ("none", vec![], Decision::Allowed(None), DryRun::Nothing),
        ("allowed", vec![policy("a", Action::Allow, vec![get()])], Decision::Allowed(Some(&a)), DryRun::Nothing),
        ("not allowed", vec![policy("a", Action::Allow, vec![post()])], Decision::NotAllowed, DryRun::Nothing),
        ("allow nothing", vec![policy("a", Action::Allow, vec![])], Decision::NotAllowed, DryRun::Nothing),
        (
            "both",
            vec![policy("a", Action::Allow, vec![get()]), policy("d", Action::Deny, vec![get()])],
            Decision::Denied(&d),
            DryRun::Nothing,
        ),
        (
            "one of two",
            vec![policy("x", Action::Allow, vec![post()]), policy("a", Action::Allow, vec![post(), get()])],
            Decision::Allowed(Some(&a)),
            DryRun::Nothing,
        ),
        ("closed", vec![Policy::closed(d.clone(), Target::All)], Decision::Denied(&d), DryRun::Nothing),
        ("dry", vec![dry(policy("d", Action::Deny, vec![get()]))], Decision::Allowed(None), DryRun::Denied(&d)),
        ("dry", vec![dry(policy("d", Action::Deny, vec![post()]))], Decision::Allowed(None), DryRun::Allowed),
        ("dry", vec![dry(policy("a", Action::Allow, vec![post()]))], Decision::Allowed(None), DryRun::Denied(&a)),
        ("dry", vec![dry(policy("a", Action::Allow, vec![get()]))], Decision::Allowed(None), DryRun::Allowed),
        (
            "dry beside another",
            vec![policy("a", Action::Allow, vec![get()]), dry(policy("x", Action::Allow, vec![post()]))],
            Decision::Allowed(Some(&a)),
            DryRun::Allowed,
        ),
    ] {
        let policies = all(&policies);
        let verdict = request.ask(|subject| policies.decide(subject));
        assert_eq!((verdict.decision, verdict.dry_run), (decision, dry_run), "{what}");
    }
    let audited = all(&[policy("a", Action::Audit, vec![get()])]);
    let verdict = request.ask(|subject| audited.decide(subject));
    assert_eq!((verdict.decision, verdict.audited), (Decision::Allowed(None), Some(&a)));
}

#[test]
fn who_is_to_be_asked_is_asked_once() {
    let custom = |provider: &str, path: &str| {
        let rule = paths(is(vec![path]));
        policy(path, Action::Custom(provider.into()), vec![rule])
    };
    let policies = all(&[custom("a", "/x*"), custom("a", "/xy"), custom("b", "/xy"), custom("c", "/z")]);
    for (path, expected) in [("/xy", vec!["a", "b"]), ("/x", vec!["a"]), ("/w", vec![])] {
        let asked = sent(&format!("GET shop{path}"), "shop/a")
            .ask(|subject| policies.asked(subject).map(|(_, name)| name.to_string()).collect::<Vec<_>>());
        assert_eq!(asked, expected, "{path}");
    }
}

#[test]
fn a_policy_is_about_its_target() {
    let cart = NamespacedName::new("shop", "cart.shop.svc.cluster.local");
    let other = NamespacedName::new("shop", "other.shop.svc.cluster.local");
    let of = |name: &str, target| Arc::new(Policy { target, ..policy(name, Action::Allow, vec![]) });
    let security = crate::l7::Security {
        policies: vec![
            of("all", Target::All),
            of("cart", Target::Services(vec![cart.clone()])),
            of("edge", Target::Edge),
        ],
        ..Default::default()
    };
    for (services, expected) in [
        (Some(vec![&cart]), &[0, 1][..]),
        (Some(vec![&other]), &[0]),
        (Some(vec![&other, &cart]), &[0, 1]),
        (Some(vec![]), &[0]),
        (None, &[0, 2]),
    ] {
        let comes = services.as_ref().map_or(Comes::AtEdge, |services| Comes::For(services.iter().copied()));
        let applied = security.applied(comes);
        let mut wanted = Policies::default();
        expected.iter().for_each(|at| wanted.add(&security.policies[*at]));
        assert_eq!(applied.policies, wanted, "{services:?}");
    }
}
