//! Which policies each waypoint is given, and what is said of those that none is.

use std::collections::BTreeMap;

use mesh_core::NamespacedName;
use mesh_core::l7::policy::{Action, Attribute, When};
use mesh_core::l7::security::Target;
use mesh_core::l7::token::Location;
use mesh_core::l7::{Security, path::Spelling};

use super::*;
use crate::resource::Key;

/// Two waypoints: of `shop`, with the service `web`, and of `other`, with nothing.
pub(super) fn mesh(more: &str) -> View {
    let gateway = |namespace: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: wp, namespace: {namespace}}}\nspec: {{gatewayClassName: undermesh-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n"
        )
    };
    let web = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: wp}}\nspec: {selector: {app: web}, clusterIP: 198.19.0.1, ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: free, namespace: shop}\nspec: {selector: {app: free}, clusterIP: 198.19.0.2, ports: [{port: 80}]}\n";
    view(&format!("{}{}{web}{more}", gateway("shop"), gateway("other")))
}

pub(super) fn policy(namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn refs(kind: &str, name: &str) -> String {
    let group = match kind {
        "Service" => "\"\"",
        "ServiceEntry" => "networking.istio.io",
        _ => "gateway.networking.k8s.io",
    };
    format!("targetRefs: [{{group: {group}, kind: {kind}, name: {name}}}]")
}

/// What each waypoint has: of each policy its target in a word.
pub(super) fn given(view: &View) -> BTreeMap<String, Vec<String>> {
    let target = |target: &Target| match target {
        Target::All => "all".to_owned(),
        Target::Edge => "edge".to_owned(),
        Target::Services(services) => services.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    };
    let of = |own: &Security| {
        let policies = own.policies.iter().map(|one| target(&one.target));
        policies.chain(own.authentications.iter().map(|one| target(&one.target))).collect()
    };
    let own = view.security.iter().map(|(gateway, own)| (gateway.to_string(), of(own)));
    own.filter(|(_, all): &(_, Vec<String>)| !all.is_empty()).collect()
}

pub(super) fn said(view: &View) -> Vec<String> {
    let of_policies = |key: &Key| matches!(key.kind, Kind::AuthorizationPolicy | Kind::RequestAuthentication);
    let own = view.problems.iter().filter(|(key, _)| of_policies(key));
    own.map(|(_, problem)| format!("{}: {}", problem.field, problem.message)).collect()
}

/// A field that there is not.
const TYPO: &str = ", jwtRules: [{issuer: a, fromHeader: []}]";

/// A RequestAuthentication that cannot be read.
fn tokens(namespace: &str, of: &str) -> String {
    policy(namespace, &format!("{{{of}{TYPO}}}")).replace("AuthorizationPolicy", "RequestAuthentication")
}

#[test]
fn features_AP_2_a_policy_goes_to_the_waypoints_of_its_targets() {
    let web = "shop/web.shop.svc.cluster.local";
    for (what, policy, expected, saying) in [
        ("a gateway", policy("shop", &format!("{{{}}}", refs("Gateway", "wp"))), &[("shop/wp", "all")][..], ""),
        ("a service", policy("shop", &format!("{{{}}}", refs("Service", "web"))), &[("shop/wp", web)], ""),
        (
            "a class",
            policy("undermesh-system", &format!("{{{}}}", refs("GatewayClass", "undermesh-waypoint"))),
            &[("other/wp", "all"), ("shop/wp", "all")],
            "",
        ),
        (
            "a class elsewhere",
            policy("shop", &format!("{{{}}}", refs("GatewayClass", "undermesh-waypoint"))),
            &[],
            "spec.targetRefs[0]: policies of a whole class are read in the root namespace only: it is not in force there",
        ),
        (
            "a service without a waypoint",
            policy("shop", &format!("{{{}}}", refs("Service", "free"))),
            &[],
            "spec.targetRefs[0]: Service shop/free has no waypoint and is no gateway of ours: it is not in force there",
        ),
        (
            "no service",
            policy("shop", &format!("{{{}}}", refs("Service", "none"))),
            &[],
            "spec.targetRefs[0]: there is no Service shop/none: it is not in force there",
        ),
        (
            "another namespace's gateway",
            policy("third", &format!("{{{}}}", refs("Gateway", "wp"))),
            &[],
            "spec.targetRefs[0]: Gateway third/wp has no waypoint and is no gateway of ours: it is not in force there",
        ),
        (
            "two targets, one without",
            policy("shop", "{targetRefs: [{group: \"\", kind: Service, name: web}, {kind: Service, name: free}]}"),
            &[("shop/wp", web)],
            "spec.targetRefs[1]: Service shop/free has no waypoint and is no gateway of ours: it is not in force there",
        ),
        // Those of agents.
        ("a selector", policy("shop", "{selector: {matchLabels: {app: web}}}"), &[], ""),
        ("a namespace", policy("shop", "{}"), &[], ""),
        ("the mesh", policy("undermesh-system", "{}"), &[], ""),
        // What cannot be read is closed where it is bound.
        ("unreadable", policy("shop", &format!("{{{}, rulez: []}}", refs("Service", "web"))), &[("shop/wp", web)], ""),
        ("unreadable targets", policy("shop", "{targetRefs: [{kind: Pod, name: web}]}"), &[("shop/wp", "all")], ""),
        // Tokens of which nobody knows whose they would be: nothing gets in without.
        ("unreadable tokens", tokens("shop", &refs("Service", "web")), &[("shop/wp", web)], ""),
        ("unreadable tokens of a gateway", tokens("shop", &refs("Gateway", "wp")), &[("shop/wp", "all")], ""),
        (
            "unreadable tokens of something",
            tokens("shop", "targetRefs: [{kind: Pod, name: web}]"),
            &[("shop/wp", "all")],
            "",
        ),
        ("unreadable tokens of a name", tokens("shop", "targetRef: web"), &[("shop/wp", "all")], ""),
        ("unreadable tokens, misspelt", tokens("shop", "targetRfs: []"), &[("shop/wp", "all")], ""),
        ("unreadable tokens of pods", tokens("shop", "selector: {matchLabels: {app: web}}"), &[], ""),
        ("unreadable tokens of all pods", tokens("shop", "jwtRules: [{issuer: ''}]").replace(TYPO, ""), &[], ""),
    ] {
        let view = mesh(&policy);
        let expected: BTreeMap<String, Vec<String>> =
            expected.iter().map(|(gateway, target)| ((*gateway).to_owned(), vec![(*target).to_owned()])).collect();
        assert_eq!(given(&view), expected, "{what}");
        let said = said(&view);
        assert_eq!(said.first().map(String::as_str).unwrap_or_default(), saying, "{what}: {said:?}");
        let kind = if what.contains("tokens") { Kind::RequestAuthentication } else { Kind::AuthorizationPolicy };
        let key = Key { kind, namespace: "shop".into(), name: "p".into() };
        assert_eq!(view.at_waypoints.contains(&key), expected.contains_key("shop/wp") && what != "a class", "{what}");
        // No waypoint has less than that: an empty one lets everything through, and none nothing.
        assert_eq!(view.security.len(), 2, "{what}");
        if what.starts_with("unreadable") && !expected.is_empty() {
            let own = &view.security[&NamespacedName::new("shop", "wp")].policies[0];
            assert_eq!((&own.action, own.rules.len()), (&Action::Deny, 1), "{what}");
        }
    }
}

#[test]
fn features_AP_3_to_AP_5_all_that_a_policy_says_goes_to_the_waypoint() {
    let spec = format!(
        "\n  {}\n  action: DENY\n  rules:\n  - from:\n    - source: {{principals: [a*], notNamespaces: [b], remoteIpBlocks: [10.0.0.0/8], requestPrincipals: ['*']}}\n    to:\n    - operation: {{hosts: ['*.Example.COM'], notMethods: [GET], paths: ['/a/{{*}}', '/b*'], ports: ['80']}}\n    when:\n    - {{key: 'request.headers[X-Token]', values: [a]}}\n    - {{key: 'request.headers[:authority]', notValues: [b]}}\n    - {{key: 'request.auth.claims[a][b]', values: ['*c']}}\n    - {{key: source.serviceAccount, values: [x/y]}}\n    - {{key: remote.ip, notValues: [10.1.0.0/16]}}\n    - {{key: experimental.envoy.filters.x, values: [a]}}",
        refs("Gateway", "wp")
    );
    let view = mesh(&policy("shop", &spec));
    let own = &view.security[&NamespacedName::new("shop", "wp")].policies[0];
    assert_eq!((&own.action, own.rules.len(), own.dry_run), (&Action::Deny, 1, false));
    let rule = &own.rules[0];
    let source = &rule.from[0];
    assert_eq!((source.principals.is.len(), source.namespaces.not.len(), source.remote_ips.is.len()), (1, 1, 1));
    let operation = &rule.to[0];
    assert_eq!(operation.hosts.is, [StringMatch::Suffix(".example.com".into())]);
    assert_eq!(operation.paths.is.iter().map(|path| path.text().as_str()).collect::<Vec<_>>(), ["/a/{*}", "/b*"]);
    let kinds: Vec<String> = rule
        .when
        .iter()
        .map(|when| match when {
            When::Text(Attribute::Header(name), _) => format!("header {name}"),
            When::Text(Attribute::Claim(path), _) => format!("claim {}", path.join("/")),
            When::Text(Attribute::Host, _) => "host".into(),
            When::Account(_) => "account".into(),
            When::Ip(of, _) => format!("{of:?}"),
            When::Unknown(what) => format!("unknown {what}"),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(
        kinds,
        ["header x-token", "host", "claim a/b", "account", "Remote", "unknown experimental.envoy.filters.x"]
    );
    for bad in [
        "{key: 'request.headers[:path]', values: [a]}",
        "{key: 'request.headers[connection]', values: [a]}",
        "{key: 'request.headers[a b]', values: [a]}",
        "{key: 'request.auth.claims[]', values: [a]}",
        "{key: request.method, values: [a]}",
        "{key: source.ip, values: [a]}",
    ] {
        let spec = format!("{{{}, rules: [{{when: [{bad}]}}]}}", refs("Gateway", "wp"));
        let view = mesh(&policy("shop", &spec));
        let own = &view.security[&NamespacedName::new("shop", "wp")].policies[0];
        assert_eq!((&own.action, own.rules.len()), (&Action::Deny, 1), "{bad}");
    }
    for (action, expected) in [
        ("action: CUSTOM, provider: {name: ask}", Action::Custom("ask".into())),
        ("action: AUDIT", Action::Audit),
        ("action: ALLOW", Action::Allow),
        ("action: CUSTOM", Action::Deny),
        ("action: ALLOW, provider: {name: ask}", Action::Deny),
    ] {
        let view = mesh(&policy("shop", &format!("{{{}, {action}, rules: []}}", refs("Gateway", "wp"))));
        let own = &view.security[&NamespacedName::new("shop", "wp")].policies[0];
        assert_eq!(own.action, expected, "{action}");
    }
}

#[test]
fn features_AP_10_policies_and_limits_of_waypoints_mean_all_trust_domains_of_the_mesh() {
    let who = "principals: [old.example/ns/a/sa/b]";
    let to_web = refs("Service", "web");
    let policy = policy("shop", &format!("{{{to_web}, rules: [{{from: [{{source: {{{who}}}}}]}}]}}"));
    let limit = format!(
        "---\napiVersion: undermesh.io/v1alpha1\nkind: RateLimit\nmetadata: {{name: l, namespace: shop}}\nspec: {{{to_web}, local: [{{match: [{{{who}}}], requests: 1, per: 1s}}]}}\n"
    );
    let settings = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: undermesh, namespace: undermesh-system}\ndata: {mesh: 'trustDomainAliases: [old.example]'}\n";
    let view = mesh(&format!("{policy}{limit}{settings}"));
    let own = &view.security[&"shop/wp".parse().unwrap()];
    let exact = |domain: &str| StringMatch::Exact(format!("{domain}/ns/a/sa/b").into());
    let both = [exact("cluster.local"), exact("old.example")];
    assert_eq!(own.policies[0].rules[0].from[0].principals.is, both);
    assert_eq!(own.limits[0].local[0].rules[0].from[0].principals.is, both);
}

#[test]
fn features_AP_10_a_policy_that_aliases_make_too_long_is_told() {
    let aliases: Vec<String> = (0..16).map(|n| format!("a{n}.example")).collect();
    let settings = format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: undermesh, namespace: undermesh-system}}\ndata: {{mesh: \"trustDomainAliases: [{}]\"}}\n",
        aliases.join(", ")
    );
    let principals = |count: usize| {
        let all: Vec<String> = (0..count).map(|n| format!("cluster.local/ns/a/sa/b{n}")).collect();
        format!("rules: [{{from: [{{source: {{principals: [{}]}}}}]}}]", all.join(", "))
    };
    let long = "p spec.rules[0].from[0].source.principals: 10200 values with what they mean in each of 17 trust domains of the mesh settings, and waypoints read 10000: they refuse all requests that it is bound to";
    for (targets, count, with, expected) in [
        (refs("Service", "web"), 600, &*settings, &[long][..]),
        (refs("Service", "web"), 588, &settings, &[]),
        (refs("Service", "web"), 600, "", &[]),
        // Agents read as many as there are.
        ("selector: {matchLabels: {app: web}}".to_owned(), 600, &settings, &[]),
    ] {
        let text = policy("shop", &format!("{{{targets}, {}}}", principals(count)));
        let view = mesh(&format!("{with}{text}"));
        let about = view.problems.iter().filter(|(key, _)| key.kind == Kind::AuthorizationPolicy);
        let told: Vec<_> = about.map(|(key, p)| format!("{} {}: {}", key.name, p.field, p.message)).collect();
        assert_eq!(told, expected, "{targets} {count}");
    }
}

#[test]
fn features_AP_10_a_rate_limit_that_aliases_make_too_long_is_told() {
    let aliases: Vec<String> = (0..16).map(|n| format!("a{n}.example")).collect();
    let settings = format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: undermesh, namespace: undermesh-system}}\ndata: {{mesh: \"trustDomainAliases: [{}]\"}}\n",
        aliases.join(", ")
    );
    let matched = |count: usize| {
        let all: Vec<String> = (0..count).map(|n| format!("cluster.local/ns/a/sa/b{n}")).collect();
        format!("match: [{{methods: [GET]}}, {{principals: [{}]}}]", all.join(", "))
    };
    let local = |count| format!("local: [{{requests: 1, per: 1s}}, {{{}, requests: 1, per: 1s}}]", matched(count));
    let global = |count| {
        let descriptor = format!("{{{}, entries: [{{key: k, value: v}}]}}", matched(count));
        format!("global: {{domain: d, service: web.shop.svc.cluster.local, port: 80, descriptors: [{descriptor}]}}")
    };
    let long = ": 10200 values with what they mean in each of 17 trust domains of the mesh settings, and waypoints read 10000: they refuse all requests that it is bound to";
    for (limits, with, field) in [
        (local(600), &*settings, "spec.local[1].match[1].principals"),
        (global(600), &settings, "spec.global.descriptors[0].match[1].principals"),
        (local(588), &settings, ""),
        (local(600), "", ""),
    ] {
        let limit = format!(
            "---\napiVersion: undermesh.io/v1alpha1\nkind: RateLimit\nmetadata: {{name: l, namespace: shop}}\nspec: {{{}, {limits}}}\n",
            refs("Service", "web")
        );
        let view = mesh(&format!("{with}{limit}"));
        let about = view.problems.iter().filter(|(key, _)| key.kind == Kind::RateLimit);
        let told: Vec<_> = about.map(|(_, p)| format!("{}: {}", p.field, p.message)).collect();
        let expected = if field.is_empty() { Vec::new() } else { vec![format!("{field}{long}")] };
        assert_eq!(told, expected, "{limits:.60}");
    }
}

#[test]
fn features_RA_1_whose_tokens_are_believed_goes_to_the_waypoint() {
    let authentication = |spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let rule = "{issuer: me, audiences: [a], jwks: '{\"keys\": []}', fromHeaders: [{name: X-Jwt, prefix: 'JWT '}], fromCookies: [c], outputClaimToHeaders: [{header: x-user, claim: sub}, {header: content-length, claim: size}], spaceDelimitedClaims: [roles]}";
    let far = "{issuer: you, jwksUri: 'https://example.com/keys', forwardOriginalToken: true}";
    let view = mesh(&authentication(&format!("{{{}, jwtRules: [{rule}, {far}]}}", refs("Service", "web"))));
    assert_eq!(given(&view), [("shop/wp".to_owned(), vec!["shop/web.shop.svc.cluster.local".to_owned()])].into());
    let own = &view.security[&NamespacedName::new("shop", "wp")];
    let [one, two] = &own.authentications[0].rules[..] else { panic!() };
    assert_eq!(
        (one.keys.as_deref(), one.forward, two.keys.as_deref(), two.forward),
        (Some("{\"keys\": []}"), false, None, true)
    );
    let name = http::HeaderName::from_static("x-jwt");
    assert_eq!(one.locations, [Location::Header(name, "JWT ".into()), Location::Cookie("c".into())]);
    assert_eq!(two.locations[0], Location::Bearer);
    assert_eq!(one.claim_headers.len(), 1);
    assert_eq!(
        said(&view),
        [
            "spec.jwtRules[0].outputClaimToHeaders: content-length says what the message or the connection is: nothing is sent on in it",
            "spec.jwtRules[1].jwksUri: the keys have not been fetched: tokens of this issuer are refused until they are",
        ]
    );
    for unbound in ["{jwtRules: []}", "{selector: {matchLabels: {app: web}}}"] {
        let view = mesh(&authentication(unbound));
        assert_eq!(given(&view), BTreeMap::new(), "{unbound}");
        assert_eq!(said(&view), [": known, not in force: there is no waypoint that acts on it"], "{unbound}");
    }
    assert_eq!(own.spelling, None::<Spelling>);
    let settings = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: undermesh, namespace: undermesh-system}\ndata:\n  mesh: |\n    pathNormalization: {normalization: MERGE_SLASHES}\n";
    let view = mesh(settings);
    let own = &view.security[&NamespacedName::new("shop", "wp")];
    assert_eq!(own.spelling, Some(Spelling::MergeSlashes));
}

#[test]
fn features_AP_6_whom_a_policy_asks_is_found_and_of_nobody_it_is_told() {
    let settings = |providers: &str| {
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: undermesh, namespace: undermesh-system}}\ndata:\n  mesh: |\n    extensionProviders: [{providers}]\n"
        )
    };
    let entry = "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: far}\nspec: {hosts: [ask.example.com], ports: [{number: 9000, name: grpc, protocol: GRPC}], resolution: DNS}\n";
    let grpc =
        |service: &str, port: u16| format!("{{name: ask, envoyExtAuthzGrpc: {{service: {service}, port: {port}}}}}");
    let web = "web.shop.svc.cluster.local";
    let at = |namespace: &str, host: &str, port| Some((NamespacedName::new(namespace, host), port));
    let denied = ": what the rules match is denied";
    for (providers, expected, saying) in [
        (grpc(web, 80), at("shop", web, 80), String::new()),
        (grpc("shop/Web.shop.svc.cluster.local", 80), at("shop", web, 80), String::new()),
        (
            grpc("ask.example.com", 9000),
            None,
            format!(
                "the provider \"ask\" is nowhere: ask.example.com is a ServiceEntry's: say of which namespace, as `NAMESPACE/ask.example.com`{denied}"
            ),
        ),
        (grpc("far/ask.example.com", 9000), at("far", "ask.example.com", 9000), String::new()),
        (grpc(web, 81), None, format!("the provider \"ask\" is nowhere: Service shop/web has no port 81{denied}")),
        (
            grpc("shop/ask.example.com", 9000),
            None,
            format!(
                "the provider \"ask\" is nowhere: there is no service and no ServiceEntry with the host ask.example.com{denied}"
            ),
        ),
        ("{name: other, prometheus: {}}".into(), None, format!("the mesh settings have no provider \"ask\"{denied}")),
        ("{name: ask, prometheus: {}}".into(), None, format!("the provider \"ask\" is no authorizer{denied}")),
    ] {
        let spec = format!("{{{}, action: CUSTOM, provider: {{name: ask}}, rules: [{{}}]}}", refs("Gateway", "wp"));
        let view = mesh(&format!("{}{entry}{}", settings(&providers), policy("shop", &spec)));
        let own = &view.security[&NamespacedName::new("shop", "wp")];
        assert_eq!(own.policies[0].action, Action::Custom("ask".into()), "{providers}");
        let found = own.authorizer("ask").map(|one| (one.place.service.clone(), one.place.port));
        assert_eq!(found, expected, "{providers}");
        let saying: Vec<_> =
            (!saying.is_empty()).then(|| format!("spec.provider.name: {saying}")).into_iter().collect();
        assert_eq!(said(&view), saying, "{providers}");
        // Another waypoint has no policy that asks.
        assert_eq!(view.security[&NamespacedName::new("other", "wp")].authorizers, []);
    }
}

#[test]
fn features_AP_7_there_is_no_dry_run_of_custom() {
    let spec = format!("{{{}, action: CUSTOM, provider: {{name: ask}}, rules: [{{}}]}}", refs("Gateway", "wp"));
    let text = policy("shop", &spec).replace("name: p,", "name: p, annotations: {istio.io/dry-run: 'true'},");
    let read = crate::manifest::file::read("a.yaml", text.trim_start_matches("---\n").as_bytes());
    let said: Vec<&str> = read.diagnoses.iter().map(|said| said.message.as_str()).collect();
    assert_eq!(said, ["there is no dry run of CUSTOM: nobody is asked, and nothing is denied"]);
}

#[test]
fn features_SEC_5_rate_limits_go_to_the_waypoints_of_their_targets() {
    use std::time::Duration;

    use mesh_core::l7::limit::{Global, Part, Value};

    let object = |spec: &str| {
        format!(
            "---\napiVersion: undermesh.io/v1alpha1\nkind: RateLimit\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let limits = |view: &View| {
        let own = view
            .security
            .iter()
            .flat_map(|(gateway, own)| own.limits.iter().map(move |one| (gateway.to_string(), one.clone())));
        own.collect::<Vec<_>>()
    };
    let told = |view: &View| {
        let own = view.problems.iter().filter(|(key, _)| key.kind == Kind::RateLimit);
        own.map(|(_, problem)| format!("{}: {}", problem.field, problem.message)).collect::<Vec<_>>()
    };
    let local = "local: [{match: [{paths: [/a], principals: ['*/sa/x'], headers: {X-User: '*'}}], by: [source.principal, 'request.headers[x-user]'], requests: 2, per: 1m}]";
    let global = |service: &str, more: &str| {
        format!(
            "global: {{domain: d, service: {service}, port: 80{more}, descriptors: [{{entries: [{{key: PATH, from: request.path}}, {{key: k, value: v}}]}}]}}"
        )
    };
    let web = "web.shop.svc.cluster.local";
    let view = mesh(&object(&format!("{{{}, {local}, {}}}", refs("Service", "web"), global(web, ""))));
    assert_eq!(told(&view), Vec::<String>::new());
    let [(gateway, limit)] = &limits(&view)[..] else { panic!() };
    assert_eq!((&**gateway, &limit.target), ("shop/wp", &Target::Services(vec![NamespacedName::new("shop", web)])));
    let one = &limit.local[0];
    assert_eq!((one.rate.requests, one.rate.per, one.rate.burst), (2, Duration::from_secs(60), 2));
    assert_eq!(one.by, [Part::Principal, Part::Header(http::HeaderName::from_static("x-user"))]);
    let rule = &one.rules[0];
    assert_eq!((rule.from.len(), rule.to.len(), rule.when.len(), one.rules.len()), (1, 1, 1, 1));
    let Some(Global { place: Some(place), timeout, fail_open: true, descriptors, .. }) = &limit.global else {
        panic!()
    };
    assert_eq!((&*place.service.name, place.port, *timeout), (web, 80, Duration::from_millis(20)));
    assert_eq!(descriptors[0].entries[1].value, Value::Fixed("v".into()));
    let key = Key { kind: Kind::RateLimit, namespace: "shop".into(), name: "p".into() };
    assert!(view.at_waypoints.contains(&key));

    let nowhere = "there is no service and no ServiceEntry with the host none.example";
    for (what, spec, expected, saying) in [
        ("everything", format!("{{{}, {local}}}", refs("Gateway", "wp")), 1, String::new()),
        (
            "a service nobody knows",
            format!("{{{}, {}}}", refs("Gateway", "wp"), global("none.example", "")),
            1,
            format!("spec.global.service: {nowhere}: nothing is counted"),
        ),
        (
            "that must answer",
            format!("{{{}, {}}}", refs("Gateway", "wp"), global("none.example", ", failOpen: false")),
            1,
            format!("spec.global.service: {nowhere}: requests that it means are answered with 500"),
        ),
        (
            "bound to nothing",
            format!("{{{local}}}"),
            0,
            ": known, not in force: there is no waypoint that acts on it".into(),
        ),
        ("unreadable", format!("{{{}, locals: []}}", refs("Gateway", "wp")), 0, String::new()),
    ] {
        let view = mesh(&object(&spec));
        assert_eq!(limits(&view).len(), expected, "{what}");
        assert_eq!(told(&view).into_iter().next().unwrap_or_default(), saying, "{what}");
    }
    for (bad, field) in [
        ("{requests: 0, per: 1s}", "spec.local[0].requests"),
        ("{requests: 1, per: 1us}", "spec.local[0].per"),
        ("{requests: 1, per: 1s, burst: 0}", "spec.local[0].burst"),
        ("{requests: 1, per: 1s, by: [request.size]}", "spec.local[0].by[0]"),
        ("{requests: 1, per: 1s, by: ['request.headers[host]']}", "spec.local[0].by[0]"),
        ("{requests: 1, per: 1s, match: [{}]}", "spec.local[0].match[0]"),
        ("{requests: 1, per: 1s, match: [{methods: ['G*T']}]}", "spec.local[0].match[0].methods[0]"),
        ("{requests: 1, per: 1s, match: [{paths: ['/{a}']}]}", "spec.local[0].match[0].paths[0]"),
        ("{requests: 1, per: 1s, match: [{header: {a: b}}]}", "spec.local[0].match[0].header"),
    ] {
        let text = object(&format!("{{{}, local: [{bad}]}}", refs("Gateway", "wp")));
        let read = crate::manifest::file::read("a.yaml", text.trim_start_matches("---\n").as_bytes());
        let fields: Vec<&str> = read.diagnoses.iter().map(|said| said.field.as_str()).collect();
        assert!(fields.contains(&field), "{bad}: {fields:?}");
    }
}

#[test]
fn a_policy_that_is_bound_to_nobody_knows_what_closes_gateways_at_the_edge_too() {
    let edge = |namespace: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: {namespace}}}\nspec: {{gatewayClassName: undermesh, listeners: [{{name: http, port: 80, protocol: HTTP}}]}}\n"
        )
    };
    let unreadable = policy("shop", "{targetRefs: [{kind: Pod, name: web}]}");
    let view = mesh(&format!("{}{}{unreadable}", edge("shop"), edge("other")));
    let closed = |name: &str| (name.to_owned(), vec!["all".to_owned()]);
    assert_eq!(given(&view), [closed("shop/edge"), closed("shop/wp")].into());
}

#[test]
fn features_GW_8_a_waypoint_names_clients_where_its_gateway_asks_for_it() {
    let gateway = |name: &str, said: &str, spec: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: shop, annotations: {{ambient.istio.io/xfcc-include-client-identity: {said}}}}}\nspec: {spec}\n"
        )
    };
    let waypoint = "{gatewayClassName: undermesh-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}";
    let edge = "{gatewayClassName: undermesh, listeners: [{name: http, port: 80, protocol: HTTP}]}";
    for (said, spec, expected, told) in [
        ("'true'", waypoint, true, ""),
        ("'false'", waypoint, false, ""),
        ("'yes'", waypoint, false, "neither true nor false"),
        ("'true'", edge, false, "it is for waypoints"),
    ] {
        let view = view(&gateway("own", said, spec));
        let own = &view.security[&mesh_core::NamespacedName::new("shop", "own")];
        assert_eq!(own.names_clients, expected, "{said} {spec}");
        let of_it = view.problems.iter().filter(|(_, problem)| problem.field.contains("xfcc"));
        let messages: Vec<&str> = of_it.map(|(_, problem)| problem.message.as_str()).collect();
        assert_eq!(messages.len(), usize::from(!told.is_empty()), "{messages:?}");
        assert!(messages.iter().all(|one| one.contains(told)), "{messages:?}");
    }
}

#[test]
fn a_policy_of_a_service_entry_holds_for_all_of_its_hosts_in_its_namespace() {
    let (web, free) = ("web.shop.svc.cluster.local", "free.shop.svc.cluster.local");
    for (what, namespace, hosts, expected) in [
        ("of a service of Kubernetes", "shop", web.to_owned(), Some(format!("shop/{web}"))),
        ("that has no waypoint", "shop", free.to_owned(), None),
        (
            "beside one of its own",
            "shop",
            format!("out.example.com, {web}"),
            Some(format!("shop/out.example.com shop/{web}")),
        ),
        ("of another namespace", "other", web.to_owned(), None),
    ] {
        let entry = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: {namespace}, labels: {{istio.io/use-waypoint: wp}}}}\nspec: {{hosts: [{hosts}], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: DNS}}\n"
        );
        let spec = format!("{{{}, action: DENY, rules: [{{}}]}}", refs("ServiceEntry", "e"));
        let view = mesh(&format!("{entry}{}", policy(namespace, &spec)));
        let expected: BTreeMap<_, _> = expected.into_iter().map(|all| ("shop/wp".to_owned(), vec![all])).collect();
        assert_eq!(given(&view), expected, "{what}");
    }
}
