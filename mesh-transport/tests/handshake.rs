//! How a handshake may go: other protocols, silence, pieces, damage, an end at any point.
#![allow(clippy::unwrap_used, missing_docs, non_snake_case)]

mod support;

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_transport::hbone::AcceptorConfig;
use rcgen::KeyPair;
use rustls::version::{TLS12, TLS13};
use support::port::{CLIENT, Port};
use support::{Ca, client, pair, pair_from, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn an_honest_peer_is_accepted() {
    let port = Port::new(AcceptorConfig::default());
    assert_eq!(port.judge_params(Ca::params(CLIENT)).await, Ok(CLIENT.into()));
}

#[tokio::test]
async fn hardening_B6_B7_B8_B18_handshakes_of_another_kind_are_refused() {
    let port = Port::new(AcceptorConfig::default());
    let (chain, key) = port.ca.sign(Ca::params(CLIENT));
    let good = Some((chain.as_str(), key.as_str()));
    let own_key = KeyPair::generate().unwrap();
    let self_signed = (Ca::params(CLIENT).self_signed(&own_key).unwrap().pem(), own_key.serialize_pem());
    let other_ca = Ca::new().sign(Ca::params(CLIENT));
    let cases = [
        ("TLS 1.2 only", client::config(good, &["h2"], &[&TLS12])),
        ("no certificate", client::config(None, &["h2"], &[&TLS13])),
        ("self-signed", client::config(Some((&self_signed.0, &self_signed.1)), &["h2"], &[&TLS13])),
        ("other authority", client::config(Some((&other_ca.0, &other_ca.1)), &["h2"], &[&TLS13])),
        ("no ALPN", client::config(good, &[], &[&TLS13])),
        ("http/1.1", client::config(good, &["http/1.1"], &[&TLS13])),
        ("spdy", client::config(good, &["spdy/3"], &[&TLS13])),
    ];
    for (name, config) in cases {
        let judged = port.judge(config).await;
        assert!(judged.is_err(), "{name}: {judged:?}");
    }
    assert!(port.judge(client::config(good, &["http/1.1", "h2"], &[&TLS12, &TLS13])).await.is_ok());
}

#[tokio::test]
async fn hardening_B1_B2_a_silent_or_slow_client_is_cut_at_the_deadline() {
    let port = Port::new(AcceptorConfig { tls_timeout: Duration::from_millis(200), ..AcceptorConfig::default() });
    for slow in [false, true] {
        let (mut near, far) = pair().await;
        let trickle = tokio::spawn(async move {
            // The start of a ClientHello, one byte at a time.
            for byte in [22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3].into_iter().chain(std::iter::repeat_n(0, 10_000)) {
                if slow && near.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let start = Instant::now();
        let error = port.acceptor.accept(far, &port.certificate).await.unwrap_err();
        assert_eq!(error.reason(), "handshake_timeout");
        assert!(start.elapsed() < Duration::from_millis(1500));
        trickle.abort();
    }
    assert_eq!(port.acceptor.half_open(), 0);
}

#[tokio::test]
async fn hardening_B4_B5_what_is_not_tls_is_answered_at_once() {
    let port = Port::new(AcceptorConfig::default());
    let mut large = vec![22, 3, 1, 0x40, 0];
    large.extend([1, 0x0f, 0xff, 0xff]);
    large.extend(vec![0; 200_000]);
    let cases: [(&str, Vec<u8>); 4] = [
        ("http", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        ("record of 64 KiB", vec![22, 3, 1, 0xff, 0xff, 1, 0, 0, 0]),
        ("message of 1 MiB", large),
        ("alert", vec![21, 3, 3, 0, 2, 2, 40]),
    ];
    for (name, bytes) in cases {
        let (mut near, far) = pair().await;
        tokio::spawn(async move {
            let _ = near.write_all(&bytes).await;
            let _ = near.read_u8().await;
        });
        let start = Instant::now();
        let error = soon(name, port.acceptor.accept(far, &port.certificate)).await.unwrap_err();
        assert!(start.elapsed() < Duration::from_millis(1000), "{name}: {error}");
        if name == "http" {
            assert_eq!(error.reason(), "not_tls");
        }
    }
}

#[tokio::test]
async fn hardening_B3_a_hello_in_tiny_records_is_read() {
    let port = Port::new(AcceptorConfig::default());
    let (chain, key) = port.ca.sign(Ca::params(CLIENT));
    let mut config = client::config(Some((&chain, &key)), &["h2"], &[&TLS13]);
    // The smallest record size that rustls makes.
    config.max_fragment_size = Some(32);
    assert!(port.judge(config).await.is_ok());

    // And the hello in records of one byte, by hand.
    let config = client::config(Some((&chain, &key)), &["h2"], &[&TLS13]);
    let name = rustls::pki_types::ServerName::try_from("pod.test").unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    let (mut near, far) = pair().await;
    let accepting = tokio::spawn({
        let (acceptor, certificate) = (port.acceptor.clone(), port.certificate.clone());
        async move { acceptor.accept(far, &certificate).await.map(drop) }
    });
    let records: Vec<u8> = hello[5..].iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]).collect();
    near.write_all(&records).await.unwrap();
    // The server's hello or an alert, but an answer; and no panic.
    soon("answer", near.read_u8()).await.unwrap();
    drop(near);
    assert!(soon("end", accepting).await.unwrap().is_err());
}

#[tokio::test]
async fn hardening_B22_an_end_at_any_point_is_clean() {
    // Half a record and then an alert is half a record still: that case ends with the deadline.
    let port = Port::new(AcceptorConfig { tls_timeout: Duration::from_millis(300), ..AcceptorConfig::default() });
    let (chain, key) = port.ca.sign(Ca::params(CLIENT));
    // What an honest client sends, cut at every length that ends a state, once with FIN, once with RST, once with close_notify.
    let config = client::config(Some((&chain, &key)), &["h2"], &[&TLS13]);
    let name = rustls::pki_types::ServerName::try_from("pod.test").unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    for cut in [0, 1, 5, 6, hello.len() / 2, hello.len() - 1, hello.len()] {
        for end in ["fin", "rst", "close_notify"] {
            let (mut near, far) = pair().await;
            near.write_all(&hello[..cut]).await.unwrap();
            match end {
                "rst" => mesh_transport::socket::reset(near),
                "close_notify" => {
                    let _ = near.write_all(&[21, 3, 3, 0, 2, 1, 0]).await;
                }
                _ => drop(near),
            }
            let judged = soon("end", port.acceptor.accept(far, &port.certificate)).await;
            assert!(judged.is_err(), "{cut} {end}");
        }
    }
    assert_eq!(port.acceptor.half_open(), 0);
}

#[tokio::test]
async fn hardening_F35_half_open_handshakes_are_capped() {
    let config = AcceptorConfig { half_open_per_source: 8, half_open: 100, ..AcceptorConfig::default() };
    let port = Arc::new(Port::new(config));
    let mut silent = Vec::new();
    let mut accepting = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (near, far) = pair().await;
        silent.push(near);
        let port = port.clone();
        accepting
            .spawn(async move { port.acceptor.accept(far, &port.certificate).await.map(drop).unwrap_err().reason() });
    }
    for _ in 0..12 {
        assert_eq!(soon("refusal", accepting.join_next()).await.unwrap().unwrap(), "too_many_handshakes");
    }
    assert_eq!(port.acceptor.half_open(), 8);
    // Another address is not affected.
    let (chain, key) = port.ca.sign(Ca::params(CLIENT));
    let config = client::config(Some((&chain, &key)), &["h2"], &[&TLS13]);
    assert_eq!(port.judge_from([127, 0, 0, 2].into(), config).await, Ok(CLIENT.into()));
    drop(silent);
    while accepting.join_next().await.is_some() {}
    assert_eq!(port.acceptor.half_open(), 0);
}

/// Whatever a peer sends in the place of an honest handshake, the acceptor answers with an error, never with a panic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_handshake_is_an_error() {
    let port =
        Arc::new(Port::new(AcceptorConfig { tls_timeout: Duration::from_millis(500), ..AcceptorConfig::default() }));
    let (chain, key) = port.ca.sign(Ca::params(CLIENT));
    let mut trials = tokio::task::JoinSet::new();
    for trial in 0..400usize {
        let (port, config) = (port.clone(), client::config(Some((&chain, &key)), &["h2"], &[&TLS13]));
        trials.spawn(async move {
            let ((near, relay_near), (relay_far, far)) = (pair().await, pair().await);
            tokio::spawn(async move { client::connect(near, config).await?.read_u8().await });
            tokio::spawn(async move {
                let (mut from_client, mut to_client) = relay_near.into_split();
                let (mut from_server, mut to_server) = relay_far.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
                let mut at = 0;
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                    // One byte somewhere in the client's flights, about 2.5 KiB together.
                    if let Some(byte) =
                        (trial * 7 % 2600).checked_sub(at).and_then(|place| buffer[..count].get_mut(place))
                    {
                        *byte ^= 1 << (trial % 8);
                    }
                    at += count;
                    if to_server.write_all(&buffer[..count]).await.is_err() {
                        return;
                    }
                }
            });
            port.acceptor.accept(far, &port.certificate).await.is_ok()
        });
    }
    let mut accepted = 0;
    while let Some(trial) = trials.join_next().await {
        accepted += usize::from(trial.expect("no panic"));
    }
    // Only damage behind the handshake goes unnoticed here.
    assert!(accepted < 200, "{accepted} accepted");
    assert_eq!(port.acceptor.half_open(), 0);
}

#[tokio::test]
async fn hardening_F35_trickling_handshakes_do_not_hurt_others() {
    // Long enough for all of them to trickle at once, on any machine.
    let config = AcceptorConfig { tls_timeout: Duration::from_secs(120), ..AcceptorConfig::default() };
    let port = Arc::new(Port::new(config));
    let mut trickling = tokio::task::JoinSet::new();
    for _ in 0..256 {
        let (mut near, far) = pair_from([127, 0, 0, 3].into()).await;
        let port = port.clone();
        trickling.spawn(async move {
            let trickle = async {
                for byte in [22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3].into_iter().chain(std::iter::repeat(0)) {
                    if near.write_all(&[byte]).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            let _ = tokio::join!(trickle, port.acceptor.accept(far, &port.certificate));
        });
    }
    until("all trickle", || port.acceptor.half_open() == 256).await;
    let (chain, key) = port.ca.sign(Ca::params(CLIENT));
    let config = || client::config(Some((&chain, &key)), &["h2"], &[&TLS13]);
    let refused = port.judge_from([127, 0, 0, 3].into(), config()).await;
    assert!(refused.as_ref().is_err_and(|error| error.starts_with("too_many_handshakes")), "{refused:?}");
    for _ in 0..20 {
        assert_eq!(port.judge(config()).await, Ok(CLIENT.into()));
    }
}

/// The end of the handshake and what follows it may arrive together; the keys must be followed from the first record on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hardening_B21_a_key_update_right_behind_the_handshake_is_answered() {
    let port = Port::new(AcceptorConfig::default());
    let (chain, key) = port.ca.sign(Ca::params(CLIENT));
    let config = Arc::new(client::config(Some((&chain, &key)), &["h2"], &[&TLS13]));
    let (near, far) = pair().await;
    let mut tcp = near.into_std().unwrap();
    let client = tokio::task::spawn_blocking(move || {
        tcp.set_nonblocking(false).unwrap();
        let name = rustls::pki_types::ServerName::try_from("pod.test").unwrap();
        let mut connection = rustls::ClientConnection::new(config, name).unwrap();
        connection.write_tls(&mut tcp).unwrap();
        while connection.is_handshaking() {
            connection.read_tls(&mut tcp).unwrap();
            connection.process_new_packets().unwrap();
        }
        connection.refresh_traffic_keys().unwrap();
        connection.writer().write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
        let mut flight = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut flight).unwrap();
        }
        tcp.write_all(&flight).unwrap();
        // Settings, a window, and the answer to our settings.
        rustls::Stream::new(&mut connection, &mut tcp).read_exact(&mut [0; 9 + 24 + 13 + 9]).unwrap();
    });
    let tunnel = soon("handshake", port.acceptor.accept(far, &port.certificate)).await.unwrap();
    let serving = tokio::spawn(tunnel.serve(CancellationToken::new(), |_| {}));
    soon("frames", client).await.unwrap();
    serving.abort();
}

#[tokio::test]
async fn one_source_does_not_get_all_tunnels() {
    let port = Port::new(AcceptorConfig { tunnels_per_source: 2, ..AcceptorConfig::default() });
    let (chain, key) = port.ca.sign(Ca::params(CLIENT));
    let config = || client::config(Some((&chain, &key)), &["h2"], &[&TLS13]);
    let open = async || {
        let (near, far) = pair().await;
        let (client, tunnel) =
            tokio::join!(client::connect(near, config()), port.acceptor.accept(far, &port.certificate));
        (client.unwrap(), tunnel.unwrap())
    };
    let (first, second) = (open().await, open().await);
    let refused = port.judge(config()).await;
    assert!(refused.as_ref().is_err_and(|error| error.starts_with("too_many_tunnels")), "{refused:?}");
    assert_eq!(port.judge_from([127, 0, 0, 2].into(), config()).await, Ok(CLIENT.into()));
    // Served to its end, or never served: its place is free again.
    drop(first);
    let (client, tunnel) = second;
    drop(client);
    tunnel.serve(CancellationToken::new(), |_| {}).await;
    open().await;
    assert!(port.judge(config()).await.is_ok());
}

#[tokio::test]
async fn hardening_B23_a_source_that_shakes_hands_all_the_time_is_refused_and_others_are_not() {
    // Without income, so that the time this test takes does not matter.
    let config = AcceptorConfig { handshakes_per_second: 0, handshake_burst: 3, ..AcceptorConfig::default() };
    let port = Port::new(config);
    let (chain, key) = port.ca.sign(Ca::params(CLIENT));
    let config = || client::config(Some((&chain, &key)), &["h2"], &[&TLS13]);
    for _ in 0..3 {
        assert_eq!(port.judge(config()).await, Ok(CLIENT.into()));
    }
    let refused = port.judge(config()).await;
    assert!(refused.as_ref().is_err_and(|error| error.starts_with("handshake_rate")), "{refused:?}");
    assert_eq!(port.judge_from([127, 0, 0, 2].into(), config()).await, Ok(CLIENT.into()));
    assert_eq!(port.acceptor.half_open(), 0);
}

/// An honest hello, but for the server name in it.
fn hello_with_name(port: &Port, name: &[u8]) -> Vec<u8> {
    let (chain, key) = port.ca.sign(Ca::params(CLIENT));
    let config = client::config(Some((&chain, &key)), &["h2"], &[&TLS13]);
    let honest = "a".repeat(name.len());
    let server = rustls::pki_types::ServerName::try_from(honest.clone()).unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), server).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    let at = hello.windows(name.len()).position(|window| window == honest.as_bytes()).unwrap();
    hello[at..at + name.len()].copy_from_slice(name);
    hello
}

#[tokio::test]
async fn hardening_B19_the_server_name_means_nothing_and_junk_in_it_does_no_harm() {
    let port = Port::new(AcceptorConfig { tls_timeout: Duration::from_secs(2), ..AcceptorConfig::default() });
    let (chain, key) = port.ca.sign(Ca::params(CLIENT));
    // Another pod's name, and none at all: the identity is the certificate's.
    for name in ["admin.app.svc.cluster.local", "10.0.0.1"] {
        let config = client::config(Some((&chain, &key)), &["h2"], &[&TLS13]);
        let (near, far) = pair().await;
        let client = tokio::spawn(async move { client::connect_to(name, near, config).await?.read_u8().await });
        let tunnel = soon(name, port.acceptor.accept(far, &port.certificate)).await.unwrap();
        assert_eq!(tunnel.peer().to_string(), CLIENT);
        client.abort();
    }
    let names: [&[u8]; 6] = [
        b"10.0.0.1",
        b"fd00:198::1",
        "\u{f6}\u{f6}\u{f6}\u{f6}\u{f6}".as_bytes(),
        b"\0\0\0\0\0\0\0\0",
        b"\x1b[31mred\r\n",
        b"..........",
    ];
    for name in names {
        let (mut near, far) = pair().await;
        near.write_all(&hello_with_name(&port, name)).await.unwrap();
        near.shutdown().await.unwrap();
        let refused = soon("end", port.acceptor.accept(far, &port.certificate)).await.unwrap_err();
        let text = refused.to_string();
        assert!(text.is_ascii() && !text.chars().any(char::is_control), "not reflected: {text:?}");
    }
    // A name of nearly 64 KiB: the whole hello is one message of four records.
    let name = vec![b'a'; 60_000];
    let mut list = vec![0, 0, 0];
    list[1..].copy_from_slice(&(name.len() as u16).to_be_bytes());
    list.extend(&name);
    let mut extension = vec![0, 0];
    extension.extend(((list.len() + 2) as u16).to_be_bytes());
    extension.extend((list.len() as u16).to_be_bytes());
    extension.extend(list);
    let mut body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat();
    body.extend((extension.len() as u16).to_be_bytes());
    body.extend(extension);
    let mut message = vec![1, 0];
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(body);
    let mut large = Vec::new();
    for piece in message.chunks(16_384) {
        large.extend([22, 3, 1]);
        large.extend((piece.len() as u16).to_be_bytes());
        large.extend(piece);
    }
    let (mut near, far) = pair().await;
    tokio::spawn(async move {
        let _ = near.write_all(&large).await;
        let _ = near.read_u8().await;
    });
    let refused = soon("end", port.acceptor.accept(far, &port.certificate)).await.unwrap_err();
    assert_ne!(refused.reason(), "handshake_timeout");
}

/// Shakes hands, with early data or else to read one byte and the tickets in front of it.
async fn shake(near: TcpStream, config: &Arc<rustls::ClientConfig>, early: bool) -> rustls::ClientConnection {
    let (config, mut tcp) = (config.clone(), near.into_std().unwrap());
    let shaking = tokio::task::spawn_blocking(move || {
        tcp.set_nonblocking(false).unwrap();
        let name = rustls::pki_types::ServerName::try_from("pod.test").unwrap();
        let mut connection = rustls::ClientConnection::new(config, name).unwrap();
        assert_eq!(connection.early_data().is_some(), early, "a ticket is at hand");
        if let Some(mut early) = connection.early_data() {
            early.write_all(b"early").unwrap();
        }
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp).unwrap();
        }
        if !early {
            rustls::Stream::new(&mut connection, &mut tcp).read_exact(&mut [0]).unwrap();
        }
        connection
    });
    soon("client", shaking).await.unwrap()
}

#[tokio::test]
async fn hardening_B20_tickets_are_neither_given_nor_taken_and_early_data_is_refused() {
    let port = Port::new(AcceptorConfig::default());
    let (chain, key) = port.ca.sign(Ca::params(CLIENT));
    let mut config = client::config(Some((&chain, &key)), &["h2"], &[&TLS13]);
    config.enable_early_data = true;
    let config = Arc::new(config);
    // Another server of the same name, careless with tickets, fills the client's store with them.
    let mut careless = (*port.certificate.server_config()).clone();
    careless.send_tls13_tickets = 4;
    careless.session_storage = rustls::server::ServerSessionMemoryCache::new(16);
    careless.max_early_data_size = 16_384;
    let careless = tokio_rustls::TlsAcceptor::from(Arc::new(careless));
    let (near, far) = pair().await;
    let server = tokio::spawn(async move { careless.accept(far).await.unwrap().write_all(b"x").await });
    let connection = shake(near, &config, false).await;
    assert!(connection.tls13_tickets_received() > 0);
    server.await.unwrap().unwrap();

    let (near, far) = pair().await;
    let (accepted, connection) = tokio::join!(port.acceptor.accept(far, &port.certificate), shake(near, &config, true));
    assert_eq!(accepted.unwrap().peer().to_string(), CLIENT, "the certificate was asked for and checked");
    assert_eq!(connection.handshake_kind(), Some(rustls::HandshakeKind::Full));
    assert!(!connection.is_early_data_accepted());
    assert_eq!(connection.tls13_tickets_received(), 0);
}
