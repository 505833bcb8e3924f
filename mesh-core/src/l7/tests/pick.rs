//! Each kind of condition, each way to find a host, and what a decision draws.

use std::time::Duration;

use http::StatusCode;

use super::*;

fn text(kind: &str, value: &str) -> Text {
    match kind {
        "=" => Text::Exact(value.into()),
        "^" => Text::Prefix(value.into()),
        "~" => Text::Regex(Pattern::new(value).unwrap()),
        _ => Text::Present,
    }
}

fn header(name: &'static str, value: Text, invert: bool) -> Condition {
    let name = HeaderName::from_static(name);
    Condition { headers: vec![HeaderMatch { name, value, invert }], ..Condition::default() }
}

#[test]
fn features_VS_4_to_7_each_condition() {
    let regex = |text: &str| PathKind::Regex(Pattern::new(text).unwrap());
    let any_case = |kind| Condition { path: Some(PathMatch { kind, ignore_case: true }), ..Condition::default() };
    let authority = |t| Condition { authority: Some(t), ..Condition::default() };
    let query =
        |name: &str, value| Condition { query: vec![QueryMatch { name: name.into(), value }], ..Condition::default() };
    for (condition, line, expected) in [
        (path(PathKind::Exact("/a".into())), "GET http://a/a", true),
        (path(PathKind::Exact("/a".into())), "GET http://a/a?b", true),
        (path(PathKind::Exact("/a".into())), "GET http://a/%61", true),
        (path(PathKind::Exact("/a".into())), "GET http://a/a/", false),
        (path(PathKind::Exact("/a".into())), "GET http://a/A", false),
        (any_case(PathKind::Exact("/a".into())), "GET http://a/A", true),
        (path(PathKind::Prefix("/a".into())), "GET http://a/ab", true),
        (path(PathKind::Prefix("/ab".into())), "GET http://a/a", false),
        (any_case(PathKind::Prefix("/Ab".into())), "GET http://a/aBc", true),
        (path(PathKind::Segments("/a".into())), "GET http://a/a", true),
        (path(PathKind::Segments("/a".into())), "GET http://a/a/b", true),
        (path(PathKind::Segments("/a".into())), "GET http://a/ab", false),
        (path(PathKind::Segments("/a/".into())), "GET http://a/a", true),
        (path(PathKind::Segments("/".into())), "GET http://a/b", true),
        (path(regex("/a[0-9]")), "GET http://a/a1", true),
        (path(regex("/a[0-9]")), "GET http://a/a1b", false),
        (Condition { method: Some(text("=", "GET")), ..Condition::default() }, "GET http://a/", true),
        (Condition { method: Some(text("=", "GET")), ..Condition::default() }, "POST http://a/", false),
        (Condition { scheme: Some(text("=", "https")), ..Condition::default() }, "GET https://a/", true),
        (Condition { scheme: Some(text("=", "https")), ..Condition::default() }, "GET http://a/", false),
        (authority(text("=", "a.com")), "GET http://A.com:8080/", true),
        (authority(text("=", "a.com:8080")), "GET http://a.com:8080/", true),
        (authority(text("=", "a.com:8080")), "GET http://a.com/", false),
        (authority(text("~", r"a\.com(:80)?")), "GET http://a.com:80/", true),
        (header("x-a", text("=", "1"), false), "GET http://a/ x-a=1", true),
        (header("x-a", text("=", "1"), false), "GET http://a/ x-a=11", false),
        (header("x-a", text("=", "1"), false), "GET http://a/ x-a=2 x-a=1", true),
        (header("x-a", text("^", "1"), false), "GET http://a/ x-a=11", true),
        (header("x-a", text("~", "[12]+"), false), "GET http://a/ x-a=12", true),
        (header("x-a", text("~", "[12]+"), false), "GET http://a/ x-a=123", false),
        (header("x-a", Text::Present, false), "GET http://a/ x-a=", true),
        (header("x-a", Text::Present, false), "GET http://a/", false),
        (header("x-a", text("=", "1"), true), "GET http://a/", true),
        (header("x-a", text("=", "1"), true), "GET http://a/ x-a=2", true),
        (header("x-a", text("=", "1"), true), "GET http://a/ x-a=2 x-a=1", false),
        (header("x-a", Text::Present, true), "GET http://a/ x-a=", false),
        (query("a", text("=", "1")), "GET http://a/?a=1", true),
        (query("a", text("=", "1")), "GET http://a/", false),
        (Condition { port: Some(80), ..Condition::default() }, "GET http://a:81/", true),
        (Condition { port: Some(81), ..Condition::default() }, "GET http://a:81/", false),
        (Condition { gateways: vec!["shop/in".into()], ..Condition::default() }, "GET http://a/", false),
        (Condition { gateways: vec!["shop/in".into(), "mesh".into()], ..Condition::default() }, "GET http://a/", true),
    ] {
        let table = table(vec![host("*", vec![rule("r", vec![condition.clone()])])]);
        assert_eq!(sent(line).ask(&table) == "* r", expected, "{condition:?} {line}");
    }
}

#[test]
fn features_VS_7_a_client_that_is_not_known_fits_nothing() {
    let labels = |pairs: &[(&str, &str)]| -> Labels { pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect() };
    let of_labels = Condition { source_labels: labels(&[("app", "a")]), ..Condition::default() };
    let of_namespace = Condition { source_namespace: Some("shop".into()), ..Condition::default() };
    let table = table(vec![host(
        "*",
        vec![rule("labels", vec![of_labels]), rule("namespace", vec![of_namespace]), rule("rest", vec![])],
    )]);
    for (namespace, labels, expected) in [
        (Some("shop"), Some(labels(&[("app", "a"), ("version", "v1")])), "* labels"),
        (Some("shop"), Some(labels(&[("app", "b")])), "* namespace"),
        (Some("shop"), None, "* namespace"),
        (Some("other"), Some(Labels::new()), "* rest"),
        (None, None, "* rest"),
    ] {
        let namespace = namespace.map(str::to_owned);
        let sent = Sent { namespace, labels, ..sent("GET http://a/") };
        assert_eq!(sent.ask(&table), expected, "{sent:?}");
    }
}

#[test]
fn which_host_decides() {
    let all = |name: &str| rule(name, vec![]);
    let on = |ports: Vec<u16>, host: VirtualHost| VirtualHost { ports, ..host };
    let cart = NamespacedName::new("shop", "cart.shop.svc");
    let of_service = |name: &str, clients: Option<Vec<ArcStr>>, ports: Vec<u16>| VirtualHost {
        name: name.into(),
        service: Some(cart.clone()),
        clients,
        ports,
        rules: vec![rule("r", vec![path(PathKind::Segments("/r".into()))])],
        ..VirtualHost::default()
    };
    let table = table(vec![
        host("*", vec![all("any")]),
        host("*.com", vec![all("com")]),
        on(vec![81], host("a.com", vec![all("81")])),
        host("a.com", vec![rule("only-x", vec![path(PathKind::Exact("/x".into()))])]),
        VirtualHost { falls_through: true, ..host("b.com", vec![rule("x", vec![path(PathKind::Exact("/x".into()))])]) },
        of_service("producer", None, vec![]),
        of_service("producer-81", None, vec![81]),
        of_service("consumer", Some(vec!["blog".into(), "news".into()]), vec![]),
    ]);
    let to_cart = |port, namespace: Option<&str>| {
        let namespace = namespace.map(str::to_owned);
        Sent { service: Some(cart.clone()), port, namespace, ..sent("GET http://a.com/r") }
    };
    for (sent, expected) in [
        (sent("GET http://a.com/x"), "a.com only-x"),
        (sent("GET http://A.COM.:8080/x"), "a.com only-x"),
        (sent("GET http://a.com/y"), "no rule fits"),
        (Sent { port: 81, ..sent("GET http://a.com/y") }, "a.com 81"),
        (sent("GET http://b.com/x"), "b.com x"),
        (sent("GET http://b.com/y"), "*.com com"),
        (sent("GET http://c.com/"), "*.com com"),
        (sent("GET http://com/"), "* any"),
        (sent("GET http://[fd00::1]:80/"), "* any"),
        (to_cart(80, None), "producer r"),
        (to_cart(81, Some("shop")), "producer-81 r"),
        (to_cart(81, Some("news")), "consumer r"),
        (Sent { service: Some(cart.clone()), ..sent("GET http://a.com/x") }, "no rule fits"),
        (Sent { service: Some(NamespacedName::new("shop", "other")), ..sent("GET http://a.com/x") }, "no host fits"),
    ] {
        assert_eq!(sent.ask(&table), expected, "{sent:?}");
    }
    assert_eq!(sent("GET http://a.com/").ask(&Table::default()), "no host fits");
    assert_eq!(table.hosts().len(), 8);
}

#[test]
fn the_first_alternative_and_the_first_rule_decide() {
    let alternatives = vec![
        path(PathKind::Prefix("/a".into())),
        Condition { name: "b".into(), ..path(PathKind::Prefix("/ab".into())) },
    ];
    let table = table(vec![host("*", vec![rule("one", alternatives), rule("two", vec![])])]);
    let sent = sent("GET http://a/abc");
    let (request, client) = (sent.request(), sent.client());
    let decision = pick(&table, &request, &client, &mut StdRng::seed_from_u64(1)).unwrap();
    assert_eq!(decision.condition.unwrap().name, "");
    assert_eq!(decision.handling.name, "one");
    let Outcome::Forward(backend) = decision.outcome else { panic!("{decision:?}") };
    let Target::Cluster(cluster) = &backend.target else { panic!("{backend:?}") };
    assert_eq!(cluster.service.to_string(), "shop/one");
}

#[test]
fn what_cannot_be_done_is_closed_and_never_skipped() {
    let broken = Forward::new(vec![Backend::new(Target::Broken("no such service".into()), 1)]).unwrap();
    let respond = DirectResponse { status: StatusCode::OK, body: "hello".into() };
    let redirect = Redirect {
        scheme: None,
        host: Some("b".into()),
        port: RedirectPort::AsWritten,
        path: None,
        status: StatusCode::FOUND,
    };
    let elsewhere = Backend { redirect: Some(redirect.clone()), ..Backend::new(Target::Broken("unused".into()), 1) };
    let cluster = ClusterKey { service: NamespacedName::new("shop", "a"), port: 80, subset: Default::default() };
    let redirected = Backend { target: Target::Cluster(cluster), ..elsewhere };
    for (action, expected) in [
        (Action::Closed("unreadable".into()), Outcome::Closed("unreadable")),
        (Action::Forward(broken), Outcome::Closed("no such service")),
        (Action::Forward(Forward::new(vec![]).unwrap()), Outcome::Closed("the rule has no place with a weight")),
        (Action::Respond(respond.clone()), Outcome::Respond(&respond)),
        (Action::Redirect(redirect.clone()), Outcome::Redirect(&redirect)),
        (Action::Forward(Forward::new(vec![redirected]).unwrap()), Outcome::Redirect(&redirect)),
    ] {
        let first = Rule { conditions: vec![], handling: Arc::new(Handling::new(action)) };
        let table = table(vec![host("*", vec![first, rule("second", vec![])])]);
        let sent = sent("GET http://a/");
        let (request, client) = (sent.request(), sent.client());
        let decision = pick(&table, &request, &client, &mut StdRng::seed_from_u64(1)).unwrap();
        assert_eq!(decision.outcome, expected);
        assert_eq!(decision.mirrors.iter().count(), 0);
    }
}

#[test]
fn faults_and_copies_are_drawn() {
    let share = |parts| Share::millionths(parts).unwrap();
    let mirror = |name: &str, parts| Mirror { target: Target::Broken(name.into()), share: share(parts) };
    let cluster = ClusterKey { service: NamespacedName::new("shop", "a"), port: 80, subset: Default::default() };
    let backend = Backend { mirrors: vec![mirror("place", 1_000_000)], ..Backend::new(Target::Cluster(cluster), 1) };
    let handling = Handling {
        mirrors: vec![mirror("all", 1_000_000), mirror("none", 0), mirror("half", 500_000)],
        fault: Some(Fault {
            delay: Some(Delay { time: Duration::from_secs(7), share: share(250_000) }),
            abort: Some(Abort { status: AbortStatus::Http(StatusCode::IM_A_TEAPOT), share: share(100_000) }),
        }),
        ..Handling::new(Action::Forward(Forward::new(vec![backend]).unwrap()))
    };
    let rule = Rule { conditions: vec![], handling: Arc::new(handling) };
    let (table, sent, mut rng) = (table(vec![host("*", vec![rule])]), sent("GET http://a/"), StdRng::seed_from_u64(7));
    let (request, client) = (sent.request(), sent.client());
    let mut counts = [0_u32; 6];
    for _ in 0..10_000 {
        let decision = pick(&table, &request, &client, &mut rng).unwrap();
        counts[0] += u32::from(decision.delay == Some(Duration::from_secs(7)));
        counts[1] += u32::from(decision.abort.is_some());
        for mirror in decision.mirrors.iter() {
            assert!(decision.abort.is_none());
            let Target::Broken(name) = &mirror.target else { panic!("{mirror:?}") };
            counts[["all", "none", "half", "place"].iter().position(|known| known == name).unwrap() + 2] += 1;
        }
    }
    let expected = [2500, 1000, 9000, 0, 4500, 9000];
    assert!(counts.iter().zip(expected).all(|(count, wanted)| count.abs_diff(wanted) < 200), "{counts:?}");
}

#[test]
fn a_decision_says_what_is_rewritten() {
    let rewrite = |path: &str, authority: Option<&str>| Rewrite {
        path: Some(PathChange::Prefix(path.into())),
        authority: authority.map(Into::into),
    };
    let cluster = ClusterKey { service: NamespacedName::new("shop", "a"), port: 80, subset: Default::default() };
    let place = |rewrite| Backend { rewrite, ..Backend::new(Target::Cluster(cluster.clone()), 1) };
    for (of_rule, of_place, expected) in [
        (Rewrite::default(), Rewrite::default(), (None, None)),
        (rewrite("/b", Some("r")), Rewrite::default(), (Some("/b/x?y=1"), Some("r"))),
        (rewrite("/b", Some("r")), rewrite("/c", None), (Some("/c/x?y=1"), Some("r"))),
        (Rewrite::default(), rewrite("/", Some("p")), (Some("/x?y=1"), Some("p"))),
    ] {
        let handling = Handling {
            rewrite: of_rule,
            ..Handling::new(Action::Forward(Forward::new(vec![place(of_place)]).unwrap()))
        };
        let rule = Rule { conditions: vec![path(PathKind::Segments("/a".into()))], handling: Arc::new(handling) };
        let (table, sent) = (table(vec![host("*", vec![rule])]), sent("GET http://a/a/x?y=1"));
        let (request, client) = (sent.request(), sent.client());
        let decision = pick(&table, &request, &client, &mut StdRng::seed_from_u64(1)).unwrap();
        let rewritten = (decision.rewritten_path(&request), decision.rewritten_authority().map(ToString::to_string));
        assert_eq!((rewritten.0.as_deref(), rewritten.1.as_deref()), expected);
    }
}
