//! Selectors against what was seen, as a table; what is refused, with its reason; and the line.

use super::*;

const REQUEST: Seen<'static> = Seen {
    kind: Kind::Request,
    time: &"2026-01-02T03:04:05Z",
    source: End {
        address: None,
        namespace: "shop",
        workload: "web",
        pod: "web-1",
        identity: Some(&"spiffe://cluster.local/ns/shop/sa/web"),
    },
    destination: End { address: None, namespace: "books", workload: "reviews-v1", pod: "reviews-v1-x", identity: None },
    service: Some(("books", "reviews.books.svc.cluster.local")),
    routed: None,
    asked: Some(Asked { method: "GET", authority: "reviews:9080", path: "/api/1", query: None }),
    protocol: "HTTP/2",
    status: Some(503),
    grpc_status: Some(14),
    flags: "UF,URX",
    details: "",
    failure: "",
    duration_ms: 12,
    received: 1,
    sent: 2,
    attempts: Some(3),
    rule: "",
    direction: "",
    security: "",
};

const CONNECTION: Seen<'static> = Seen {
    kind: Kind::Connection,
    asked: None,
    status: None,
    grpc_status: None,
    attempts: None,
    flags: "DENY",
    direction: "inbound",
    ..REQUEST
};

#[test]
fn features_TM_16_a_selector_means_what_it_says() {
    for (query, request, connection) in [
        ("", true, true),
        ("kind=request", true, false),
        ("kind=connection", false, true),
        ("from=namespace:shop", true, true),
        ("from=namespace:books", false, false),
        ("from=workload:shop/web", true, true),
        ("from=workload:books/web", false, false),
        ("from=pod:shop/web-1&from=pod:shop/other", true, true),
        ("to=namespace:books", true, true),
        ("to=namespace:shop", false, false),
        ("to=workload:books/reviews-v1", true, true),
        ("to=pod:books/reviews-v1", false, false),
        ("to=service:books/reviews", true, true),
        ("to=service:books/reviews.books.svc.cluster.local", true, true),
        // A name is not a part of a name, and a namespace not another one.
        ("to=service:books/review", false, false),
        ("to=service:shop/reviews", false, false),
        ("method=GET", true, false),
        ("method=get", true, false),
        ("method=POST", false, false),
        ("method=POST&method=GET", true, false),
        ("path=/api", true, false),
        ("path=%2Fapi%2F1", true, false),
        ("path=/api/1/2", false, false),
        ("authority=reviews", true, false),
        ("authority=REVIEWS:9080", true, false),
        ("authority=reviews:80", false, false),
        ("authority=*.reviews", false, false),
        ("code=503", true, false),
        ("code=5xx", true, false),
        ("code=500-502", false, false),
        ("code=4xx&code=503-504", true, false),
        ("code=0", false, false),
        ("grpc=14", true, false),
        ("grpc=unavailable", true, false),
        ("grpc=0", false, false),
        ("flag=UF", true, false),
        ("flag=URX", true, false),
        // A flag is not a part of a flag.
        ("flag=UR", false, false),
        ("flag=DENY", false, true),
        ("flag=-", false, false),
        ("code=5xx&method=POST", false, false),
        ("to=service:books/reviews&code=5xx&path=/api&max-rps=5&seconds=9", true, false),
    ] {
        let selector = Selector::parse(query).unwrap_or_else(|error| panic!("{query}: {error}"));
        assert_eq!((selector.selects(&REQUEST), selector.selects(&CONNECTION)), (request, connection), "{query}");
    }
    let suffix = |authority| {
        let asked = Some(Asked { authority, ..REQUEST.asked.unwrap() });
        Selector::parse("authority=*.example.com").unwrap().selects(&Seen { asked, ..REQUEST })
    };
    assert_eq!(
        ["a.Example.com:443", "example.com", "badexample.com", "a.example.com", "é.com"].map(suffix),
        [true, false, false, true, false]
    );
    // A rule may lead elsewhere: both are meant.
    let routed = Seen { routed: Some(("new", "reviews-v2.new.svc.cluster.local")), ..REQUEST };
    for (query, expected) in
        [("to=service:books/reviews", true), ("to=service:new/reviews-v2", true), ("to=namespace:old", false)]
    {
        assert_eq!(Selector::parse(query).unwrap().selects(&routed), expected, "{query}");
    }
    // A request that could not be read has neither, and is seen where they are not asked for.
    let unread = Seen { asked: None, status: Some(400), ..REQUEST };
    assert!(
        !Selector::parse("path=/").unwrap().selects(&unread) && Selector::parse("code=4xx").unwrap().selects(&unread)
    );
}

#[test]
fn features_TM_16_what_is_no_selector_is_told_with_its_place_and_what_would_do() {
    for (query, told) in [
        ("cod=500", "`cod` is no key of a selector: there are kind, from,"),
        ("code=9xx", "`code=9xx`: a code is 100 to 599, a class as 5xx"),
        ("code=99", "`code=99`: a code"),
        ("code=504-500", "`code=504-500`: a code"),
        ("code=", "`code=`: a code"),
        ("kind=both", "`kind=both`: a kind is request or connection"),
        ("from=web", "`from=web`: an end is namespace:NS"),
        ("from=service:a/b", "`from=service:a/b`: an end is namespace:NS, workload:NS/NAME or pod:NS/NAME"),
        ("to=deployment:a/b", "`to=deployment:a/b`: an end is namespace:NS, service:NS/NAME"),
        ("to=pod:a", "`to=pod:a`: an end"),
        ("method=G%20T", "`method=G T`: a method"),
        ("path=api", "`path=api`: a path begins with /"),
        ("path=/a?b", "`path=/a?b`: a path begins with /, and has no query"),
        ("authority=*", "`authority=*`: an authority is HOST"),
        ("grpc=17", "`grpc=17`: a status of gRPC is 0 to 16"),
        ("flag=XX", "`flag=XX`: a flag is one of - LH UH"),
        ("max-rps=0", "`max-rps=0`: a number of lines a second from 1 to 1000"),
        ("max-rps=1001", "`max-rps=1001`: a number"),
        ("seconds=3601", "`seconds=3601`: a number of seconds from 1 to 3600"),
    ] {
        let error = Selector::parse(query).expect_err(query).to_string();
        assert!(error.starts_with(told), "{query}: {error}");
    }
    let many = "to=namespace:a&".repeat(513);
    assert_eq!(Selector::parse(&many), Err(SelectorError::TooMany("to".into())));
    assert_eq!(Selector::parse(&"a".repeat(70_000)), Err(SelectorError::TooLong));
    let usual = Selector::parse("").unwrap();
    assert_eq!((usual.rate, usual.time.as_secs(), usual.means_requests()), (100, 600, false));
    assert!(Selector::parse("code=5xx").unwrap().means_requests());
    assert!(!Selector::parse("flag=UF&to=namespace:a").unwrap().means_requests());
}

#[test]
fn features_TM_16_a_line_can_be_shown_and_read_whatever_was_asked() {
    let line = Seen { rule: "shop/r", routed: Some(("new", "v2.new.svc.x")), ..REQUEST }.line();
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    let expected = serde_json::json!({
        "kind": "request", "time": "2026-01-02T03:04:05Z",
        "source": {"namespace": "shop", "workload": "web", "pod": "web-1", "identity": "spiffe://cluster.local/ns/shop/sa/web"},
        "destination": {
            "service": "reviews.books.svc.cluster.local", "serviceNamespace": "books",
            "namespace": "books", "workload": "reviews-v1", "pod": "reviews-v1-x",
        },
        "routedTo": "v2.new.svc.x",
        "protocol": "HTTP/2", "method": "GET", "authority": "reviews:9080", "path": "/api/1", "status": 503, "grpcStatus": 14,
        "flags": "UF,URX", "rule": "shop/r", "attempts": 3, "durationMs": 12, "bytesReceived": 1, "bytesSent": 2,
    });
    assert_eq!(value, expected);
    let path = format!("/\u{9b}\u{202e}\"\n\x1b[2J{}", "ä".repeat(2000));
    let asked = Some(Asked { path: &path, query: Some("a=b"), ..REQUEST.asked.unwrap() });
    let line = Seen { asked, ..REQUEST }.line();
    assert!(line.len() < 2048 && line.ends_with("}\n") && line.matches('\n').count() == 1, "{line}");
    assert!(!line.chars().any(|c| c != '\n' && (c.is_control() || c == '\u{202e}')), "{line}");
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert!(value["path"].as_str().unwrap().starts_with("/\u{9b}\u{202e}\"\n") && value["query"] == "a=b");
}

#[test]
fn features_TM_16_a_line_is_short_whatever_was_asked() {
    let long = ["\"".repeat(3000), "\u{80}".repeat(3000), "ä".repeat(3000), "\u{2028}".repeat(3000)];
    for text in &long {
        let asked = Some(Asked { method: text, authority: text, path: text, query: Some(text) });
        let one = End { address: None, namespace: text, workload: text, pod: text, identity: Some(text) };
        // What a client can make long, beside names as long as they can be.
        let line = Seen { asked, details: text, failure: text, ..REQUEST }.line();
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(line.len() <= LONGEST_LINE, "{}", line.len());
        let is_told = |key: &str| value[key].as_str().is_some_and(|told| told.len() > 300 && text.starts_with(told));
        assert!(["method", "authority", "path", "query", "details", "failure"].into_iter().all(is_told), "{line}");
        // And nothing makes it longer.
        let (service, routed) = (Some((&**text, &**text)), Some((&**text, &**text)));
        let all =
            Seen { source: one, destination: one, service, routed, rule: text, flags: text, protocol: text, ..REQUEST };
        let line = Seen { asked, details: text, failure: text, ..all }.line();
        assert!(
            line.len() <= LONGEST_LINE && serde_json::from_str::<serde_json::Value>(&line).is_ok(),
            "{}",
            line.len()
        );
    }
}
