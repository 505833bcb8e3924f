//! Which listener a name means.

use super::*;
use crate::l7::Target;

fn host(text: &str) -> HostPattern {
    HostPattern::parse(text).unwrap()
}

fn listener(name: &str, bind: u16, hosts: &[&str], encryption: Encryption, serves: Serves) -> Arc<Listener> {
    let hosts = hosts.iter().map(|text| host(text)).collect();
    let gateway = "shop/edge".into();
    let transport = if matches!(serves, Serves::Datagrams(_)) { Transport::Udp } else { Transport::Tcp };
    Arc::new(Listener { name: name.into(), gateway, port: bind, bind, transport, hosts, encryption, serves })
}

fn http(name: &str, bind: u16, hosts: &[&str]) -> Arc<Listener> {
    listener(name, bind, hosts, Encryption::None, Serves::Http(Arc::default()))
}

fn https(name: &str, bind: u16, hosts: &[&str]) -> Arc<Listener> {
    let tls = Encryption::Ends(Tls::with(vec!["shop/cert".into()]));
    listener(name, bind, hosts, tls, Serves::Http(Arc::default()))
}

fn passage(hosts: &[&str], origin: &str) -> Passage {
    let hosts = hosts.iter().map(|text| host(text)).collect();
    let forward = Forward::new(vec![crate::l7::Backend::new(Target::Broken("-".into()), 1)]).unwrap();
    Passage { origin: origin.into(), hosts, forward }
}

fn named<'a>(listeners: &'a Listeners, bind: u16, name: Option<&str>) -> Option<&'a str> {
    Some(listeners.port(bind)?.named(name)?.name.as_str())
}

#[test]
fn features_GA_the_most_specific_listener_has_a_name_alone() {
    let listeners = Listeners::new(
        "shop/edge",
        vec![
            http("any", 80, &["*"]),
            http("wide", 80, &["*.example.com"]),
            http("deep", 80, &["*.foo.example.com"]),
            http("one", 80, &["abc.foo.example.com"]),
            http("other-port", 81, &["abc.foo.example.com"]),
        ],
    );
    for (bind, name, expected) in [
        (80, "bar.com", Some("any")),
        (80, "example.com", Some("any")),
        (80, "bar.example.com", Some("wide")),
        (80, "x.y.example.com", Some("wide")),
        (80, "bar.foo.example.com", Some("deep")),
        (80, "abc.foo.example.com", Some("one")),
        (81, "abc.foo.example.com", Some("other-port")),
        (81, "bar.com", None),
        (82, "bar.com", None),
    ] {
        assert_eq!(named(&listeners, bind, Some(name)), expected, "{bind} {name}");
        let port = listeners.port(bind);
        let request = port.and_then(|port| port.request(Made::For(None), name).ok()).map(|found| found.name.as_str());
        assert_eq!(request, expected, "{bind} {name}");
    }
    assert_eq!(listeners.ports().collect::<Vec<_>>(), [80, 81]);
    assert_eq!(listeners.shadowed().count(), 0);
}

#[test]
fn features_GA_a_request_in_another_listener_s_connection_is_misdirected() {
    let listeners = Listeners::new(
        "shop/edge",
        vec![
            https("one", 443, &["one.com"]),
            https("two", 443, &["*.two.com"]),
            https("three", 443, &["a.two.com", "three.com"]),
        ],
    );
    let port = listeners.port(443).unwrap();
    for (sni, host, expected) in [
        (Some("one.com"), "one.com", Ok("one")),
        (Some("one.com"), "b.two.com", Err(Astray::Misdirected)),
        (Some("one.com"), "else.com", Err(Astray::Unknown)),
        (Some("b.two.com"), "c.two.com", Ok("two")),
        (Some("b.two.com"), "a.two.com", Err(Astray::Misdirected)),
        // A listener of several names is one.
        (Some("three.com"), "a.two.com", Ok("three")),
        (None, "one.com", Err(Astray::Misdirected)),
        (Some("else.com"), "one.com", Err(Astray::Misdirected)),
    ] {
        let found = port.request(Made::For(sni), host).map(|found| found.name.as_str());
        assert_eq!(found, expected, "{sni:?} {host}");
    }
    assert_eq!(named(&listeners, 443, None), None, "without a name nobody's but of who takes all");
    let all = Listeners::new("shop/edge", vec![https("all", 443, &["*"])]);
    assert_eq!(named(&all, 443, None), Some("all"));
}

#[test]
fn a_port_is_of_one_family_and_a_name_is_one_s() {
    let tcp = listener("tcp", 80, &["*"], Encryption::None, Serves::Bytes(Vec::new()));
    let pass = listener("pass", 443, &["*.a.com"], Encryption::Passes, Serves::Bytes(Vec::new()));
    let listeners = Listeners::new(
        "shop/edge",
        vec![
            http("first", 80, &["a.com"]),
            https("secure", 80, &["b.com"]),
            tcp,
            http("again", 80, &["a.com"]),
            http("part", 80, &["a.com", "c.com"]),
            https("mixed", 443, &["b.a.com"]),
            pass,
        ],
    );
    let shadowed: Vec<_> = listeners.shadowed().map(|listener| listener.name.as_str()).collect();
    assert_eq!(shadowed, ["secure", "tcp", "again"]);
    assert_eq!(named(&listeners, 80, Some("c.com")), Some("part"));
    assert_eq!(named(&listeners, 443, Some("b.a.com")), Some("mixed"));
    assert_eq!(named(&listeners, 443, Some("c.a.com")), Some("pass"));
}

#[test]
fn datagrams_have_ports_of_their_own() {
    let udp = |name: &str, bind| listener(name, bind, &["*"], Encryption::None, Serves::Datagrams(None));
    let tcp = listener("tcp", 53, &["*"], Encryption::None, Serves::Bytes(Vec::new()));
    let listeners = Listeners::new("shop/edge", vec![udp("one", 53), tcp, udp("two", 53), udp("three", 54)]);
    let shadowed: Vec<_> = listeners.shadowed().map(|listener| listener.name.as_str()).collect();
    assert_eq!(shadowed, ["two"]);
    let name = |bind| listeners.datagrams(bind).map(|listener| listener.name.as_str());
    assert_eq!([name(53), name(54), name(55)], [Some("one"), Some("three"), None]);
    assert_eq!(named(&listeners, 53, None), Some("tcp"));
    assert!(listeners.port(54).is_none(), "connections do not come there");
    let open: Vec<_> = listeners.open().map(|one| (one.transport, one.port)).collect();
    assert_eq!(open, [(Transport::Tcp, 53), (Transport::Udp, 53), (Transport::Udp, 54)]);
}

#[test]
fn features_GA_5_bytes_go_by_the_name_that_was_asked_for() {
    let passages = vec![passage(&["a.com"], "one"), passage(&["*.b.com", "c.com"], "two"), passage(&["*"], "rest")];
    let all = listener("tls", 443, &["*"], Encryption::Passes, Serves::Bytes(passages));
    let some = listener("tls", 443, &["*"], Encryption::Passes, Serves::Bytes(vec![passage(&["a.com"], "one")]));
    for (name, of_all, of_some) in [
        (Some("a.com"), Some("one"), Some("one")),
        (Some("x.b.com"), Some("two"), None),
        (Some("b.com"), Some("rest"), None),
        (Some("c.com"), Some("two"), None),
        (None, Some("rest"), None),
    ] {
        let origin = |listener: &Listener| listener.passage(name).map(|passage| passage.origin.to_string());
        assert_eq!(origin(&all).as_deref(), of_all, "{name:?}");
        assert_eq!(origin(&some).as_deref(), of_some, "{name:?}");
    }
    assert_eq!(http("http", 80, &["*"]).passage(Some("a.com")), None);
}

#[test]
fn a_key_has_no_text() {
    let key = Secret::new(bytes::Bytes::from_static(b"-----BEGIN PRIVATE KEY-----"));
    let credential = Arc::new(Credential { key, ..Credential::default() });
    let all = Certificates { name: "shop/edge".into(), all: [("shop/cert".into(), credential)].into() };
    let shown = format!("{all:?} {all:#?}");
    assert!(shown.contains("(secret)") && !shown.contains("PRIVATE") && !shown.contains("45, 45"), "{shown}");
}

#[test]
fn a_proxy_in_front_is_believed_by_its_address() {
    let believes = |peers: Option<&[&str]>, peer: &str| {
        let proxy_peers = peers.map(|all| all.iter().map(|one| one.parse().unwrap()).collect());
        Topology { proxy_protocol: true, proxy_peers, ..Topology::default() }.believes(peer.parse().unwrap())
    };
    let some = Some(&["10.0.0.0/8", "192.0.2.7/32", "fd00::/16"][..]);
    for (peers, peer, expected) in [
        (None, "198.51.100.1", true),
        (Some(&[][..]), "198.51.100.1", false),
        (some, "10.1.2.3", true),
        (some, "::ffff:10.1.2.3", true),
        (some, "11.0.0.1", false),
        (some, "192.0.2.7", true),
        (some, "192.0.2.8", false),
        (some, "fd00:1::1", true),
        (some, "2001:db8::1", false),
        (Some(&["0.0.0.0/0"]), "198.51.100.1", true),
        (Some(&["0.0.0.0/0"]), "2001:db8::1", false),
    ] {
        assert_eq!(believes(peers, peer), expected, "{peers:?} {peer}");
    }
}

#[test]
fn features_GW_4_in_a_tunnel_of_the_mesh_no_name_is_asked_for() {
    let requests = || listener("web", 443, &["a.com", "b.com"], Encryption::Mesh, Serves::Http(Arc::default()));
    let bytes = |name: &str, host: &str| listener(name, 443, &[host], Encryption::Mesh, Serves::Bytes(Vec::new()));
    let inside = |all: &[Arc<Listener>], http| {
        let listeners = Listeners::new("shop/edge", all.to_vec());
        let port = listeners.port(443).unwrap();
        let meant = match port.inside(http) {
            Inside::Requests => "requests".to_owned(),
            Inside::Bytes(listener) => listener.name.to_string(),
            Inside::Nobody => "nobody".to_owned(),
            Inside::Unclear => "unclear".to_owned(),
        };
        (meant, port.all_inside().is_some())
    };
    let (one, two, outside) = (bytes("one", "c.com"), bytes("two", "d.com"), https("outside", 443, &["e.com"]));
    for (what, all, requests, others, alone) in [
        ("requests alone", vec![requests()], "requests", "nobody", false),
        ("bytes alone", vec![one.clone()], "one", "one", true),
        ("both", vec![one.clone(), requests()], "requests", "one", false),
        ("two of bytes", vec![one.clone(), two.clone()], "unclear", "unclear", false),
        ("bytes beside what is for others", vec![outside.clone(), one.clone()], "one", "one", false),
        ("nothing", vec![outside.clone()], "nobody", "nobody", false),
        // A listener whose names are all another's is none.
        ("the same name twice", vec![one.clone(), bytes("again", "c.com")], "one", "one", true),
        ("the name of another", vec![https("first", 443, &["c.com"]), one.clone()], "nobody", "nobody", false),
        ("no TLS at all", vec![http("plain", 443, &["*"])], "nobody", "nobody", false),
    ] {
        assert_eq!(inside(&all, true), (requests.to_owned(), alone), "{what}");
        assert_eq!(inside(&all, false), (others.to_owned(), alone), "{what}");
    }
    let listeners = Listeners::new("shop/edge", vec![requests(), outside]);
    let port = listeners.port(443).unwrap();
    for (made, host, expected) in [
        (Made::Inside, "a.com", Ok("web")),
        (Made::Inside, "b.com", Ok("web")),
        (Made::Inside, "e.com", Err(Astray::Misdirected)),
        (Made::Inside, "x.com", Err(Astray::Unknown)),
        (Made::For(Some("e.com")), "e.com", Ok("outside")),
        (Made::For(Some("e.com")), "a.com", Err(Astray::Misdirected)),
    ] {
        assert_eq!(port.request(made, host).map(|found| found.name.as_str()), expected, "{made:?} {host}");
    }
}
