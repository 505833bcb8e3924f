//! Whatever a table may say comes back as it was, and damage panics nobody.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode, uri::Scheme};
use mesh_core::{
    ArcStr, NamespacedName,
    l7::{
        Abort, AbortStatus, Action, Backend, ClusterKey, Condition, Cors, Delay, DirectResponse, Fault, Forward,
        Handling, HeaderChanges, HeaderMatch, HostPattern, Mirror, PathChange, PathKind, PathMatch, Pattern,
        QueryMatch, Redirect, RedirectPort, Replacement, Retries, RetryOn, Rewrite, Rule, Share, Table, Target, Text,
        VirtualHost,
    },
};
use proptest::{collection::vec, option, prelude::*};

use crate::convert::l7::{RouteTable, encode_route_table, route_table};

fn word() -> impl Strategy<Value = ArcStr> {
    "[a-z][a-z0-9]{0,6}".prop_map(Into::into)
}

fn pattern() -> impl Strategy<Value = Pattern> {
    prop::sample::select(vec!["a|b", "/v[0-9]+/.*", "(?i)x"]).prop_map(|text| Pattern::new(text).unwrap())
}

fn text() -> impl Strategy<Value = Text> {
    prop_oneof![
        word().prop_map(Text::Exact),
        word().prop_map(Text::Prefix),
        pattern().prop_map(Text::Regex),
        Just(Text::Present)
    ]
}

fn header_name() -> impl Strategy<Value = HeaderName> {
    word().prop_map(|name| HeaderName::try_from(format!("x-{name}")).unwrap())
}

fn condition() -> impl Strategy<Value = Condition> {
    let kind = prop_oneof![
        word().prop_map(PathKind::Exact),
        word().prop_map(PathKind::Prefix),
        word().prop_map(PathKind::Segments),
        pattern().prop_map(PathKind::Regex)
    ];
    let path = (kind, any::<bool>()).prop_map(|(kind, ignore_case)| PathMatch { kind, ignore_case });
    let header = (header_name(), text(), any::<bool>());
    let texts = (option::of(path), option::of(text()), option::of(text()), option::of(text()));
    let lists = (vec(header, 0..3), vec((word(), text()), 0..3), vec(word(), 0..3), vec((word(), word()), 0..3));
    (word(), texts, lists, option::of(1..=u16::MAX), option::of(word())).prop_map(
        |(name, (path, scheme, method, authority), (headers, query, gateways, labels), port, source_namespace)| {
            let header = |(name, value, invert)| HeaderMatch { name, value, invert };
            Condition {
                name,
                path,
                scheme,
                method,
                authority,
                headers: headers.into_iter().map(header).collect(),
                query: query.into_iter().map(|(name, value)| QueryMatch { name, value }).collect(),
                port,
                gateways,
                source_labels: labels.into_iter().collect(),
                source_namespace,
            }
        },
    )
}

fn changes() -> impl Strategy<Value = HeaderChanges> {
    let value = vec(prop_oneof![32..127_u8, 128..=255_u8], 0..5).prop_map(|v| HeaderValue::from_bytes(&v).unwrap());
    let pairs = || vec((header_name(), value.clone()), 0..3);
    (pairs(), pairs(), vec(header_name(), 0..3)).prop_map(|(set, add, remove)| HeaderChanges { set, add, remove })
}

fn path_change() -> impl Strategy<Value = PathChange> {
    prop_oneof![
        word().prop_map(PathChange::Full),
        word().prop_map(PathChange::Prefix),
        Just(PathChange::Regex(Replacement::new("/(a)", r"/\1\\").unwrap())),
    ]
}

fn rewrite() -> impl Strategy<Value = Rewrite> {
    (option::of(path_change()), option::of(word())).prop_map(|(path, authority)| Rewrite { path, authority })
}

fn share() -> impl Strategy<Value = Share> {
    (0..=1_000_000_u32).prop_map(|parts| Share::millionths(parts).unwrap())
}

fn target() -> impl Strategy<Value = Target> {
    let cluster = (word(), word(), 1..=u16::MAX, word()).prop_map(|(namespace, name, port, subset)| {
        Target::Cluster(ClusterKey { service: NamespacedName { namespace, name }, port, subset })
    });
    prop_oneof![cluster, word().prop_map(Target::Broken)]
}

fn mirrors() -> impl Strategy<Value = Vec<Mirror>> {
    vec((target(), share()).prop_map(|(target, share)| Mirror { target, share }), 0..3)
}

fn redirect() -> impl Strategy<Value = Redirect> {
    let port = prop_oneof![
        Just(RedirectPort::AsWritten),
        Just(RedirectPort::OfListener),
        Just(RedirectPort::OfScheme),
        (1..=u16::MAX).prop_map(RedirectPort::Number)
    ];
    let scheme = option::of(prop::sample::select(vec![Scheme::HTTP, Scheme::HTTPS]));
    let fragment = word().prop_map(|text| PathChange::Full(format!("/#{text}").into()));
    let path = prop_oneof![path_change(), fragment];
    (scheme, option::of(word()), port, option::of(path), 300..400_u16).prop_map(|(scheme, host, port, path, status)| {
        Redirect { scheme, host, port, path, status: StatusCode::from_u16(status).unwrap() }
    })
}

fn backend() -> impl Strategy<Value = Backend> {
    (target(), 0..1_000_000_u32, changes(), changes(), rewrite(), option::of(redirect()), mirrors()).prop_map(
        |(target, weight, request, response, rewrite, redirect, mirrors)| Backend {
            target,
            weight,
            request,
            response,
            rewrite,
            redirect,
            mirrors,
        },
    )
}

fn action() -> impl Strategy<Value = Action> {
    let respond = (200..600_u16, vec(any::<u8>(), 0..9)).prop_map(|(status, body)| {
        Action::Respond(DirectResponse { status: StatusCode::from_u16(status).unwrap(), body: body.into() })
    });
    prop_oneof![
        vec(backend(), 0..4).prop_map(|backends| Action::Forward(Forward::new(backends).unwrap())),
        redirect().prop_map(Action::Redirect),
        respond,
        word().prop_map(Action::Closed),
    ]
}

fn time() -> impl Strategy<Value = Duration> {
    (any::<u32>(), 0..1_000_000_000_u32).prop_map(|(seconds, nanos)| Duration::new(seconds.into(), nanos))
}

fn fault() -> impl Strategy<Value = Fault> {
    let status = prop_oneof![
        (200..600_u16).prop_map(|status| AbortStatus::Http(StatusCode::from_u16(status).unwrap())),
        (0..=16_u8).prop_map(AbortStatus::Grpc)
    ];
    let delay = (time(), share()).prop_map(|(time, share)| Delay { time, share });
    let abort = (status, share()).prop_map(|(status, share)| Abort { status, share });
    (option::of(delay), option::of(abort)).prop_map(|(delay, abort)| Fault { delay, abort })
}

fn cors() -> impl Strategy<Value = Cors> {
    let names = || vec(prop_oneof![word(), Just("*".into())], 0..3);
    (vec(text(), 0..3), names(), names(), names(), option::of(time()), any::<[bool; 2]>()).prop_map(
        |(origins, methods, headers, expose, max_age, [credentials, forward_unmatched])| Cors {
            origins,
            methods,
            headers,
            expose,
            max_age,
            credentials,
            forward_unmatched,
        },
    )
}

fn retries() -> impl Strategy<Value = Retries> {
    let on = (0..=RetryOn::ALL, 0..=RetryOn::ALL_GRPC, vec(100..600_u16, 0..3))
        .prop_map(|(events, grpc, statuses)| RetryOn { events, grpc, statuses });
    (0..=100_u32, option::of(time()), on, time(), time(), any::<[bool; 2]>()).prop_map(
        |(attempts, per_try_timeout, on, backoff, least_pause, [elsewhere, remote_localities])| Retries {
            attempts,
            per_try_timeout,
            on,
            backoff,
            least_pause,
            elsewhere,
            remote_localities,
        },
    )
}

fn handling() -> impl Strategy<Value = Handling> {
    let head = (word(), word(), action(), changes(), changes(), rewrite());
    (head, mirrors(), option::of(fault()), option::of(cors()), option::of(time()), retries()).prop_map(
        |((name, origin, action, request, response, rewrite), mirrors, fault, cors, timeout, retries)| Handling {
            name,
            origin,
            action,
            request,
            response,
            rewrite,
            mirrors,
            fault,
            cors,
            timeout,
            retries,
        },
    )
}

fn any_table() -> impl Strategy<Value = Table> {
    let rule = (vec(condition(), 0..3), handling())
        .prop_map(|(conditions, handling)| Rule { conditions, handling: Arc::new(handling) });
    let hosts = prop::sample::select(vec!["*", "*.com", "a.com", "b.a.com"]);
    let service = (word(), word()).prop_map(|(namespace, name)| NamespacedName { namespace, name });
    let host = (
        (word(), option::of(service), vec(hosts.prop_map(|h| HostPattern::parse(h).unwrap()), 0..3)),
        (vec(1..=u16::MAX, 0..3), option::of(vec(word(), 0..3)), any::<bool>()),
        vec(rule, 0..3),
    )
        .prop_map(|((name, service, hosts), (ports, clients, falls_through), rules)| {
            Arc::new(VirtualHost { name, service, hosts, ports, clients, falls_through, rules })
        });
    let retries = prop_oneof![Just(Retries::default()), Just(Retries::none()), retries()];
    (word(), vec(host, 0..3), retries).prop_map(|(name, hosts, retries)| Table::new(name, hosts).retrying(retries))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_table_comes_back_as_it_was(table in any_table()) {
        let bytes = encode_route_table(&table);
        prop_assert_eq!(route_table(&bytes), Ok(RouteTable { table, closed: vec![], more_closed: 0 }));
    }

    #[test]
    fn damage_never_panics(table in any_table(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = encode_route_table(&table);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(read) = route_table(&bytes) {
            // Whatever is left has as many rules as were written, and is itself a table that can be written.
            prop_assert_eq!(route_table(&encode_route_table(&read.table)).map(|again| again.table), Ok(read.table));
        }
    }
}
