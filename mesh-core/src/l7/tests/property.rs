//! Arbitrary tables and requests from a small world: the matcher against the plain one.

use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::fuzz::agree;

fn word() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "ab", "A", "", "a/b", "/"])
}

fn path_text() -> impl Strategy<Value = String> {
    vec(prop::sample::select(vec!["a", "b", "ab", "A", ""]), 0..4).prop_map(|words| format!("/{}", words.join("/")))
}

fn text() -> impl Strategy<Value = Text> {
    let pattern = prop::sample::select(vec!["a", "a|ab", "[ab]*", ".*", "(?i)a", "a.*", "x"]);
    prop_oneof![
        word().prop_map(|word| Text::Exact(word.into())),
        word().prop_map(|word| Text::Prefix(word.into())),
        pattern.prop_map(|pattern| Text::Regex(Pattern::new(pattern).unwrap())),
        Just(Text::Present),
    ]
}

fn path_match() -> impl Strategy<Value = PathMatch> {
    let kind = prop_oneof![
        path_text().prop_map(|path| PathKind::Exact(path.into())),
        path_text().prop_map(|path| PathKind::Prefix(path.into())),
        path_text().prop_map(|path| PathKind::Segments(path.into())),
        prop::sample::select(vec!["/a.*", "/(a|b)(/.*)?", "/.*"])
            .prop_map(|pattern| PathKind::Regex(Pattern::new(pattern).unwrap())),
    ];
    (kind, any::<bool>()).prop_map(|(kind, ignore_case)| PathMatch { kind, ignore_case })
}

fn labels() -> impl Strategy<Value = Labels> {
    let pair = (prop::sample::select(vec!["app", "version"]), prop::sample::select(vec!["a", "b"]));
    vec(pair, 0..2).prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
}

fn condition() -> impl Strategy<Value = Condition> {
    let header = (prop::sample::select(vec!["x-a", "x-b"]), text(), any::<bool>())
        .prop_map(|(name, value, invert)| HeaderMatch { name: HeaderName::from_static(name), value, invert });
    let parameter = (prop::sample::select(vec!["a", "b"]), text())
        .prop_map(|(name, value)| QueryMatch { name: name.into(), value });
    let authority = prop_oneof![
        prop::sample::select(vec!["a.com", "a.com:80", "b.a.com:8080"]).prop_map(|host| Text::Exact(host.into())),
        prop::sample::select(vec!["a.com", "b."]).prop_map(|host| Text::Prefix(host.into())),
        Just(Text::Regex(Pattern::new(r".*\.com(:80)?").unwrap())),
    ];
    let method = prop::sample::select(vec!["GET", "POST"]).prop_map(|method| Text::Exact(method.into()));
    let rarely = |p| prop::option::weighted(0.2, p);
    (
        (option::of(path_match()), rarely(text().boxed()), rarely(method.boxed()), rarely(authority.boxed())),
        (vec(header, 0..2), vec(parameter, 0..2)),
        (
            prop::option::weighted(0.2, 80..82_u16),
            rarely(Just(Text::Present).boxed()),
            labels(),
            option::of(namespace()),
        ),
    )
        .prop_map(
            |((path, scheme, method, authority), (headers, query), (port, gateway, labels, source_namespace))| {
                Condition {
                    name: ArcStr::new(),
                    path,
                    scheme,
                    method,
                    authority,
                    headers,
                    query,
                    port,
                    gateways: gateway.map(|_| "shop/in".into()).into_iter().collect(),
                    source_labels: labels,
                    source_namespace: source_namespace.filter(|name| *name != "c").map(Into::into),
                }
            },
        )
}

fn namespace() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "c"])
}

fn service() -> impl Strategy<Value = NamespacedName> {
    prop::sample::select(vec!["one", "two"]).prop_map(|name| NamespacedName::new("shop", name))
}

fn virtual_host() -> impl Strategy<Value = VirtualHost> {
    let pattern = prop::sample::select(vec!["*", "*.com", "*.a.com", "a.com", "b.a.com", "c.b.a.com"]);
    let clients = prop::option::weighted(0.3, vec(namespace().prop_map(Into::into), 1..3));
    (
        option::of(service()),
        vec(pattern.prop_map(|text| HostPattern::parse(text).unwrap()), 0..3),
        (vec(80..82_u16, 0..2), clients, any::<bool>()),
        vec(vec(condition(), 0..3), 0..4),
    )
        .prop_map(|(service, mut hosts, (ports, clients, falls_through), rules)| {
            hosts.sort();
            hosts.dedup();
            let rules = rules.into_iter().enumerate().map(|(index, conditions)| rule(&index.to_string(), conditions));
            VirtualHost { service, hosts, ports, clients, falls_through, rules: rules.collect(), name: ArcStr::new() }
        })
}

fn any_table() -> impl Strategy<Value = Table> {
    vec(virtual_host(), 0..5).prop_map(|hosts| {
        let named = |(index, host)| VirtualHost { name: format!("host-{index}").into(), ..host };
        table(hosts.into_iter().enumerate().map(named).collect())
    })
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let host = prop::sample::select(vec!["com", "a.com", "A.com.", "b.a.com", "c.b.a.com", "b.com", "org"]);
    let value = || prop::sample::select(vec!["a", "b", "ab", "A", ""]);
    (
        (prop::sample::select(vec!["GET", "POST"]), prop::sample::select(vec!["http", "a"])),
        (host, option::of(prop::sample::select(vec![80, 8080]))),
        (path_text(), vec((prop::sample::select(vec!["a", "b"]), value(), any::<bool>()), 0..3)),
        vec((prop::sample::select(vec!["x-a", "x-b"]), value()), 0..3),
        (80..82_u16, any::<bool>(), option::weighted(0.3, service()), option::of(namespace()), option::of(labels())),
    )
        .prop_map(
            |(
                (method, scheme),
                (host, port),
                (path, query),
                headers,
                (own_port, gateway, service, namespace, labels),
            )| {
                let port = port.map(|port: u16| format!(":{port}")).unwrap_or_default();
                let escape = |value: &str| value.bytes().map(|b| format!("%{b:02x}")).collect::<String>();
                let pair = |(name, value, escaped): &(&str, &str, bool)| {
                    format!("{name}={}", if *escaped { escape(value) } else { (*value).to_owned() })
                };
                let query = query.iter().map(pair).collect::<Vec<_>>().join("&");
                let headers: String = headers.iter().map(|(name, value)| format!(" {name}={value}")).collect();
                let line = format!("{method} {scheme}://{host}{port}{path}?{query}{headers}");
                let gateway = if gateway { "shop/in" } else { "mesh" }.to_owned();
                let namespace = namespace.map(str::to_owned);
                Sent { port: own_port, gateway, service, namespace, labels, ..sent(&line) }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_matcher_and_the_plain_one_agree(table in any_table(), sents in vec(any_sent(), 1..8)) {
        sents.iter().for_each(|sent| agree(&table, sent));
    }

    #[test]
    fn hardening_CVE_2021_39155_a_host_in_any_spelling_decides_the_same(table in any_table(), sent in any_sent()) {
        let host = sent.authority.host().to_owned();
        let port = sent.authority.port().map(|port| format!(":{port}")).unwrap_or_default();
        let expected = sent.ask(&table);
        for spelt in [host.to_ascii_uppercase(), format!("{host}.")] {
            let again = Sent { authority: Authority::parse(&format!("{spelt}{port}")).unwrap(), ..sent.clone() };
            prop_assert_eq!(again.ask(&table), expected.clone());
        }
    }
}
