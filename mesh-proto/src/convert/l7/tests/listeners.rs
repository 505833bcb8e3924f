//! Listeners and certificates survive the wire; what cannot be read of a listener closes it and no other.

use std::sync::Arc;

use mesh_core::l7::{Action, Backend, ClusterKey, Forward, Handling, HostPattern, Rule, Table, Target, VirtualHost};
use mesh_core::listener::{
    Certificates, ClientCert, Clients, Credential, DatagramPlace, DatagramRoute, Encryption, Listener, Listeners,
    Passage, Secret, Serves, Tls, Topology, Transport,
};
use mesh_core::spoken::{Spoken, TlsVersion};
use prost::Message;

use crate::convert::l7::{certificates, encode_certificates, encode_listeners, listeners};
use crate::wire::l7 as wire;

fn table(name: &str) -> Serves {
    let rule = Rule { conditions: vec![], handling: Arc::new(Handling::new(Action::Closed("-".into()))) };
    let host = VirtualHost { hosts: vec![HostPattern::Any], rules: vec![rule], ..VirtualHost::default() };
    Serves::Http(Arc::new(Table::new(name, vec![Arc::new(host)])))
}

fn listener(name: &str, hosts: &[&str], encryption: Encryption, serves: Serves) -> Listener {
    let hosts = hosts.iter().map(|text| HostPattern::parse(text).unwrap()).collect();
    let transport = if matches!(serves, Serves::Datagrams(_)) { Transport::Udp } else { Transport::Tcp };
    let gateway = "shop/edge".into();
    Listener { name: name.into(), gateway, port: 443, bind: 8443, transport, hosts, encryption, serves }
}

fn all() -> Listeners {
    let cluster = ClusterKey { service: "shop/cart".parse().unwrap(), port: 80, subset: "v1".into() };
    let broken = DatagramPlace { target: Target::Broken("gone".into()), port: 0, weight: 1 };
    let places = vec![DatagramPlace { target: Target::Cluster(cluster.clone()), port: 5353, weight: 3 }, broken];
    let route = DatagramRoute::new("UDPRoute shop/a", places).unwrap();
    let forward = Forward::new(vec![Backend::new(Target::Cluster(cluster), 3)]).unwrap();
    let passages = vec![Passage { origin: "TLSRoute shop/a".into(), hosts: vec![HostPattern::Any], forward }];
    let clients = Clients {
        required: true,
        unverified: true,
        roots: vec!["shop/ca".into()],
        names: vec!["spiffe://a".into()],
        keys: vec![[1; 32]],
        hashes: vec![[2; 32]],
    };
    let tls = Tls {
        clients: Some(clients),
        spoken: Spoken {
            oldest: TlsVersion::V1_3,
            newest: TlsVersion::V1_2,
            suites: vec!["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".into()],
            groups: vec!["X25519".into()],
        },
        ..Tls::with(vec!["shop/rsa".into(), "shop/ecdsa".into()])
    };
    let all = vec![
        listener("plain", &["*"], Encryption::None, table("plain")),
        listener("mutual", &["a.com", "*.b.com"], Encryption::Ends(tls), table("mutual")),
        listener("simple", &["c.com"], Encryption::Ends(Tls::with(vec![])), Serves::Bytes(passages.clone())),
        listener("passes", &["d.com"], Encryption::Passes, Serves::Bytes(passages)),
        listener("closed", &["e.com"], Encryption::Passes, Serves::Closed("because".into())),
        listener("datagrams", &["*"], Encryption::None, Serves::Datagrams(Some(route))),
        listener("dropped", &["*"], Encryption::None, Serves::Datagrams(None)),
        Listener {
            transport: Transport::Udp,
            ..listener("shut", &["*"], Encryption::None, Serves::Closed("b".into()))
        },
        listener("mesh", &["f.com"], Encryption::Mesh, table("mesh")),
    ];
    let topology = Topology {
        trusted_proxies: 2,
        proxy_protocol: true,
        proxy_peers: Some(vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()]),
        client_cert: ClientCert::ForwardOnly,
    };
    Listeners::new("shop/edge", all.into_iter().map(Arc::new).collect())
        .behind(topology)
        .through_waypoints(["shop/cart".parse().unwrap()].into())
}

#[test]
fn listeners_survive_the_wire() {
    let read = listeners(&encode_listeners(&all())).unwrap();
    assert_eq!((read.listeners, read.closed.len(), read.closed_rules.len()), (all(), 0, 0));
    for client_cert in [ClientCert::SanitizeSet, ClientCert::Sanitize, ClientCert::AppendForward] {
        let one = Listeners::new("a", vec![]).behind(Topology { client_cert, ..Topology::default() });
        assert_eq!(listeners(&encode_listeners(&one)).unwrap().listeners, one);
    }
    // Nobody is not anybody.
    for proxy_peers in [None, Some(vec![])] {
        let one = Listeners::new("a", vec![]).behind(Topology { proxy_peers, ..Topology::default() });
        assert_eq!(listeners(&encode_listeners(&one)).unwrap().listeners, one);
    }
    let bad = |length| {
        let mut message = wire::Listeners::decode(&*encode_listeners(&all())).unwrap();
        let peers = message.topology.as_mut().and_then(|topology| topology.proxy_peers.as_mut()).unwrap();
        peers.all[0].length = length;
        listeners(&message.encode_to_vec()).unwrap_err().to_string()
    };
    assert_eq!(bad(33), "topology.proxy_peers: 10.0.0.0/33 is not a range");
}

/// What becomes of one listener after `change`, beside another.
fn changed(change: impl Fn(&mut wire::Listener)) -> Result<Vec<String>, String> {
    let mut message = wire::Listeners::decode(&*encode_listeners(&all())).unwrap();
    let mut one = wire::Listener::decode(&*message.listeners[1]).unwrap();
    change(&mut one);
    message.listeners = vec![one.encode_to_vec(), message.listeners[0].clone()];
    let read = listeners(&message.encode_to_vec()).map_err(|error| error.to_string())?;
    let said = |listener: &Arc<Listener>| match &listener.serves {
        Serves::Closed(why) => why.to_string(),
        _ => listener.name.to_string(),
    };
    Ok(read.listeners.all().iter().map(said).collect())
}

#[test]
fn what_cannot_be_read_of_a_listener_closes_it_alone() {
    type Change = fn(&mut wire::Listener);
    for (change, problem) in [
        ((|one| one.tls = None) as Change, "listeners.tls is missing"),
        (|one| one.serves = None, "listeners.serves is missing"),
        (|one| one.serves = Some(wire::listener::Serves::Http(vec![0xff])), "cannot be decoded"),
        (|one| one.tls.as_mut().unwrap().oldest = 9, "tls.oldest: unknown value 9"),
        (|one| one.tls.as_mut().unwrap().clients.as_mut().unwrap().keys = vec![vec![1]], "not the length of SHA-256"),
        (|one| one.place.as_mut().unwrap().encryption = 2, "TLS does not end here"),
        (|one| one.gateway = "a\n".into(), "contains a control character"),
    ] {
        let said = changed(change).unwrap();
        assert!(said[0].contains(problem) && said[1] == "plain", "{problem}: {said:?}");
    }
    for (change, problem) in [
        ((|one| one.place = None) as Change, "listeners.place is missing"),
        (|one| one.place.as_mut().unwrap().bind = 0, "listeners.place.bind: 0 is not a port"),
        (|one| one.place.as_mut().unwrap().hosts = vec!["a b".into()], "neither a host"),
        (|one| one.place.as_mut().unwrap().encryption = 9, "unknown value 9"),
    ] {
        let said = changed(change).unwrap_err();
        assert!(said.contains(problem), "{problem}: {said}");
    }
}

#[test]
fn what_cannot_be_read_of_datagrams_closes_their_port_and_no_other() {
    type Change = fn(&mut wire::Listener);
    fn place(one: &mut wire::Listener) -> &mut wire::DatagramPlace {
        let Some(wire::listener::Serves::Datagrams(datagrams)) = &mut one.serves else { panic!("no datagrams") };
        &mut datagrams.route.as_mut().unwrap().places[0]
    }
    for (change, problem) in [
        ((|one| place(one).port = 0) as Change, "datagrams.port: 0 is not a port"),
        (|one| place(one).port = 65_536, "datagrams.port"),
        (|one| place(one).target = None, "target is missing"),
        (|one| place(one).weight = u32::MAX, "datagrams.weight: all weights together"),
        (|one| one.place.as_mut().unwrap().transport = 0, "connections come there"),
        (|one| one.place.as_mut().unwrap().encryption = 2, "connections come there"),
        (|one| one.serves = Some(wire::listener::Serves::Bytes(wire::Passages::default())), "datagrams come there"),
    ] {
        let mut message = wire::Listeners::decode(&*encode_listeners(&all())).unwrap();
        let mut one = wire::Listener::decode(&*message.listeners[5]).unwrap();
        change(&mut one);
        message.listeners = vec![one.encode_to_vec(), message.listeners[0].clone()];
        let read = listeners(&message.encode_to_vec()).unwrap();
        let (listener, error) = (&read.listeners.all()[0], read.closed[0].1.to_string());
        assert!(matches!(listener.serves, Serves::Closed(_)) && error.contains(problem), "{problem}: {error}");
        assert_eq!((read.closed.len(), read.listeners.all().len()), (1, 2), "{problem}");
    }
}

#[test]
fn certificates_survive_the_wire_and_have_no_text() {
    let credential = Credential {
        chain: "chain".into(),
        key: Secret::new("KEY".into()),
        roots: "roots".into(),
        revoked: "revoked".into(),
        staple: "staple".into(),
    };
    let all = Certificates { name: "shop/edge".into(), all: [("shop/cert".into(), Arc::new(credential))].into() };
    let bytes = encode_certificates(&all);
    assert_eq!(certificates(&bytes).unwrap(), all);
    let shown = format!("{:?}", wire::Certificates::decode(&*bytes).unwrap());
    assert!(shown.contains("shop/cert") && !shown.contains("KEY") && !shown.contains("75, 69, 89"), "{shown}");
    let large = Credential { chain: vec![b'a'; (1 << 20) + 1].into(), ..Credential::default() };
    let large = Certificates { all: [("a".into(), Arc::new(large))].into(), ..Certificates::default() };
    assert!(certificates(&encode_certificates(&large)).is_err());
}
