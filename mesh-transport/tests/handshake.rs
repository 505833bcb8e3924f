//! Who may open a tunnel: the table of bad handshakes, and what the client says when the wrong peer answers.
#![allow(clippy::unwrap_used, missing_docs, non_snake_case)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_core::identity::TrustDomain;
use mesh_transport::hbone::{Acceptor, AcceptorConfig, ConnectRequest, HboneError, PoolConfig, Stage};
use mesh_transport::tls::{CertificateError, IdentityCertificate, Roots};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls::version::{TLS12, TLS13};
use support::{Ca, Lab, ca_issuer, client, identity, pair, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CLIENT: &str = "spiffe://cluster.local/ns/app/sa/client";

struct Port {
    ca: Ca,
    certificate: Arc<IdentityCertificate>,
    acceptor: Acceptor,
}

impl Port {
    fn new(config: AcceptorConfig) -> Self {
        let ca = Ca::new();
        let certificate = ca.issue(&identity("spiffe://cluster.local/ns/app/sa/server"));
        Self { ca, certificate, acceptor: Acceptor::new(config) }
    }

    /// What the acceptor says about a client: its identity, or the reason of the refusal.
    async fn judge(&self, config: rustls::ClientConfig) -> Result<String, String> {
        let (near, far) = pair().await;
        let client = tokio::spawn(async move {
            let mut tls = client::connect(near, config).await?;
            // Keeps the connection until the server has decided.
            tls.read_u8().await
        });
        let judged = soon("handshake", self.acceptor.accept(far, &self.certificate)).await;
        client.abort();
        judged.map(|tunnel| tunnel.peer().to_string()).map_err(|error| format!("{}: {error}", error.reason()))
    }

    async fn judge_params(&self, params: CertificateParams) -> Result<String, String> {
        let (chain, key) = self.ca.sign(params);
        self.judge(client::config(Some((&chain, &key)), &["h2"], &[&TLS13])).await
    }
}

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
async fn hardening_B9_only_accepted_trust_domains() {
    let mut port = Port::new(AcceptorConfig::default());
    let domain = |domain: &str| Ca::params(&format!("spiffe://{domain}/ns/app/sa/client"));
    for other in ["other.local", "alias.local", "Cluster.Local", "cluster.local.evil", "cluster.loca", "cluster.local."]
    {
        let judged = port.judge_params(domain(other)).await;
        assert!(judged.as_ref().is_err_and(|error| error.starts_with("peer_refused")), "{other}: {judged:?}");
    }
    let domains = vec![TrustDomain::default(), "alias.local".parse().unwrap()];
    let roots = Arc::new(Roots::from_pem(port.ca.issuer.pem().as_bytes(), domains).unwrap());
    port.ca.roots = roots;
    port.certificate = port.ca.issue(&identity("spiffe://cluster.local/ns/app/sa/server"));
    assert!(port.judge_params(domain("alias.local")).await.is_ok());
    assert!(port.judge_params(domain("other.local")).await.is_err());
}

#[tokio::test]
async fn hardening_B10_B11_B12_exactly_one_strict_spiffe_uri() {
    let port = Port::new(AcceptorConfig::default());
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let lists: Vec<Vec<SanType>> = vec![
        vec![],
        vec![uri(CLIENT), uri("spiffe://cluster.local/ns/app/sa/admin")],
        vec![uri(CLIENT), uri(CLIENT)],
        vec![uri(CLIENT), uri("https://example.com")],
        (0..100).map(|number| uri(&format!("{CLIENT}{number}"))).collect(),
        vec![SanType::DnsName("client.app.svc".try_into().unwrap())],
    ];
    for names in lists {
        let mut params = Ca::params(CLIENT);
        let count = names.len();
        params.subject_alt_names = names;
        let judged = port.judge_params(params).await;
        assert!(judged.as_ref().is_err_and(|error| error.starts_with("peer_refused")), "{count} names: {judged:?}");
    }
    let mut params = Ca::params(CLIENT);
    params.subject_alt_names.push(SanType::DnsName("client.app.svc".try_into().unwrap()));
    assert_eq!(port.judge_params(params).await, Ok(CLIENT.into()), "DNS names are ignored");

    let long = format!("spiffe://cluster.local/ns/app/sa/{}", "a".repeat(2048));
    for text in [
        "spiffe://cluster.local/ns/app/sa/client\0",
        "spiffe://cluster.local/ns/app/sa/cl\0ient",
        "spiffe://cluster.local/ns/app%2fsa/sa/client",
        "spiffe://cluster.local/ns/../sa/client",
        "spiffe://cluster.local/ns/./sa/client",
        "spiffe://cluster.local/ns//sa/client",
        "spiffe://cluster.local/ns/app/sa/client/",
        "spiffe://cluster.local:443/ns/app/sa/client",
        "spiffe://user@cluster.local/ns/app/sa/client",
        "spiffe://cluster.local/ns/app/sa/client?x=y",
        "spiffe://cluster.local/ns/app/sa/client#x",
        "SPIFFE://cluster.local/ns/app/sa/client",
        "https://cluster.local/ns/app/sa/client",
        "spiffe://cluster.local/ns/app",
        "spiffe://cluster.local/sa/client/ns/app",
        "spiffe://cluster.local/ns/app/sa/client/x/y",
        "spiffe://cluster.local",
        "spiffe:///ns/app/sa/client",
        &long,
    ] {
        let judged = port.judge_params(Ca::params(text)).await;
        assert!(judged.is_err(), "{text:?}: {judged:?}");
    }
}

#[tokio::test]
async fn hardening_B13_B14_usages_and_dates() {
    let port = Port::new(AcceptorConfig::default());
    let params = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = Ca::params(CLIENT);
        change(&mut params);
        params
    };
    let now = time::OffsetDateTime::now_utc();
    let (second, minute) = (time::Duration::seconds(1), time::Duration::minutes(1));
    let refused: [(&str, CertificateParams); 7] = [
        ("server only", params(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])),
        ("CA", params(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("no signature", params(&|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment])),
        ("expired", params(&|params| params.not_after = now - second)),
        ("far future", params(&|params| params.not_before = now + minute * 3)),
        ("backwards", params(&|params| params.not_after = params.not_before - minute)),
        (
            "long over",
            params(&|params| {
                params.not_before = now - minute * 100;
                params.not_after = now - minute * 90;
            }),
        ),
    ];
    for (name, params) in refused {
        let judged = port.judge_params(params).await;
        assert!(judged.is_err(), "{name}: {judged:?}");
    }
    for (name, params) in [
        ("clock ahead", params(&|params| params.not_before = now + second * 50)),
        ("for ever", params(&|params| params.not_after = rcgen::date_time_ymd(9999, 12, 31))),
        ("no usages", params(&|params| params.extended_key_usages.clear())),
    ] {
        let judged = port.judge_params(params).await;
        assert!(judged.is_ok(), "{name}: {judged:?}");
    }
}

#[tokio::test]
async fn hardening_B15_long_chains_cost_little() {
    let port = Port::new(AcceptorConfig::default());
    // Sixty-four authorities with one name, each of which could have signed each.
    let (leaf, key) = Ca::new().sign(Ca::params(CLIENT));
    let padding: String = (0..64).map(|_| ca_issuer("root").pem()).collect();
    let start = Instant::now();
    let judged = port.judge(client::config(Some((&(leaf + &padding), &key)), &["h2"], &[&TLS13])).await;
    assert!(judged.is_err(), "{judged:?}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
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
    let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let (near, far) = tokio::join!(socket.connect(listener.local_addr().unwrap()), listener.accept());
    let (chain, key) = port.ca.sign(Ca::params(CLIENT));
    let config = client::config(Some((&chain, &key)), &["h2"], &[&TLS13]);
    tokio::spawn(async move { client::connect(near.unwrap(), config).await.unwrap().read_u8().await });
    soon("other", port.acceptor.accept(far.unwrap().0, &port.certificate)).await.unwrap();
    drop(silent);
    while accepting.join_next().await.is_some() {}
    assert_eq!(port.acceptor.half_open(), 0);
}

#[tokio::test]
async fn the_client_refuses_a_peer_that_it_does_not_expect() {
    let lab = Lab::new().await;
    let target = lab.app.local_addr().unwrap();
    let mut key = lab.key();
    key.expected = [identity("spiffe://cluster.local/ns/app/sa/other")].into();
    let port = lab.tunnel_port;
    let dial = move || TcpStream::connect(port);
    let error = lab.pool.connect(&key, lab.client.clone(), dial, ConnectRequest::to(target)).await.unwrap_err();
    assert!(matches!(&error, HboneError::PeerIdentityMismatch { found } if *found == lab.server.identity), "{error}");
    assert_eq!(
        (error.stage(), error.response_flag(), error.reason()),
        (Stage::Tls, "TLS_FAILURE", "peer_identity_mismatch")
    );

    // A peer of another authority.
    let other = Ca::new();
    let stranger = other.issue(&identity("spiffe://cluster.local/ns/app/sa/client"));
    let error = lab.pool.connect(&lab.key(), stranger, dial, ConnectRequest::to(target)).await.unwrap_err();
    assert!(matches!(error, HboneError::Tls(_)), "{error}");
    assert_eq!(lab.pool.stats().keys, 0);
}

#[tokio::test]
async fn a_client_that_the_server_refuses_learns_that_tls_was_the_reason() {
    let lab = Lab::new().await;
    // It trusts the server's authority, but its own certificate is from elsewhere.
    let other = Ca::new();
    let (chain, key) = other.sign(Ca::params(CLIENT));
    let both = format!("{}{}", lab.ca.issuer.pem(), other.issuer.pem());
    let roots = Arc::new(Roots::from_pem(both.as_bytes(), vec![TrustDomain::default()]).unwrap());
    let stranger =
        IdentityCertificate::from_pem(identity(CLIENT), chain.as_bytes(), key.as_bytes(), roots, 1, SystemTime::now());
    let port = lab.tunnel_port;
    let request = ConnectRequest::to(lab.app.local_addr().unwrap());
    let error = lab
        .pool
        .connect(&lab.key(), Arc::new(stranger.unwrap()), move || TcpStream::connect(port), request)
        .await
        .unwrap_err();
    assert_eq!((error.stage(), error.response_flag()), (Stage::Tls, "TLS_FAILURE"), "{error}");
    assert!(error.before_first_byte());
}

#[tokio::test]
async fn hardening_F43_two_roots_overlap_and_a_removed_one_is_refused() {
    let (old, new) = (Ca::new(), Ca::new());
    let both = format!("{}{}", old.issuer.pem(), new.issuer.pem());
    let roots = |pem: &str| Arc::new(Roots::from_pem(pem.as_bytes(), vec![TrustDomain::default()]).unwrap());
    let issue = |ca: &Ca, roots: &Arc<Roots>| {
        let (chain, key) = ca.sign(Ca::params("spiffe://cluster.local/ns/app/sa/server"));
        let id = identity("spiffe://cluster.local/ns/app/sa/server");
        Arc::new(
            IdentityCertificate::from_pem(id, chain.as_bytes(), key.as_bytes(), roots.clone(), 1, SystemTime::now())
                .unwrap(),
        )
    };
    let overlap = roots(&both);
    assert_eq!(overlap.len(), 2);
    let mut port =
        Port { certificate: issue(&old, &overlap), ca: new, acceptor: Acceptor::new(AcceptorConfig::default()) };
    assert!(port.judge_params(Ca::params(CLIENT)).await.is_ok(), "new peer, old server");
    let new_only = roots(&port.ca.issuer.pem());
    port.certificate = issue(&port.ca, &new_only);
    assert!(port.judge_params(Ca::params(CLIENT)).await.is_ok(), "new peer, new server");
    let (chain, key) = old.sign(Ca::params(CLIENT));
    let judged = port.judge(client::config(Some((&chain, &key)), &["h2"], &[&TLS13])).await;
    assert!(judged.is_err(), "old peer after its root is gone: {judged:?}");
}

#[test]
fn hardening_F42_lies_of_an_authority_are_never_installed() {
    let ca = Ca::new();
    let id = identity(CLIENT);
    let adopt = |id: &mesh_core::Identity, chain: &str, key: &str| {
        IdentityCertificate::from_pem(
            id.clone(),
            chain.as_bytes(),
            key.as_bytes(),
            ca.roots.clone(),
            1,
            SystemTime::now(),
        )
    };
    let (chain, key) = ca.sign(Ca::params(CLIENT));
    let good = adopt(&id, &chain, &key).unwrap();
    assert!(good.not_before < SystemTime::now() && good.not_after > SystemTime::now() && !good.serial.is_empty());
    assert!(
        Arc::ptr_eq(&good.client_config(std::slice::from_ref(&id)), &good.client_config(std::slice::from_ref(&id))),
        "configurations are made once"
    );

    let (_, other_key) = ca.sign(Ca::params(CLIENT));
    let changed = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = Ca::params(CLIENT);
        change(&mut params);
        ca.sign(params)
    };
    let now = time::OffsetDateTime::now_utc();
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let foreign = Ca::new().sign(Ca::params(CLIENT));
    let lies: Vec<(&str, (String, String))> = vec![
        ("wrong key", (chain.clone(), other_key)),
        ("no key", (chain.clone(), String::new())),
        ("certificate for key", (chain.clone(), chain.clone())),
        ("empty chain", (String::new(), key.clone())),
        ("garbage", ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(), key.clone())),
        ("truncated", (chain[..chain.len() / 2].into(), key.clone())),
        (
            "other identity",
            changed(&|params| params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/app/sa/admin")]),
        ),
        (
            "other trust domain",
            changed(&|params| params.subject_alt_names = vec![uri("spiffe://evil.local/ns/app/sa/client")]),
        ),
        (
            "two identities",
            changed(&|params| params.subject_alt_names.push(uri("spiffe://cluster.local/ns/app/sa/admin"))),
        ),
        ("no identity", changed(&|params| params.subject_alt_names.clear())),
        (
            "DNS only",
            changed(&|params| params.subject_alt_names = vec![SanType::DnsName("client".try_into().unwrap())]),
        ),
        ("expired", changed(&|params| params.not_after = now - time::Duration::seconds(2))),
        ("future", changed(&|params| params.not_before = now + time::Duration::hours(1))),
        ("an authority", changed(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("no client use", changed(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])),
        ("no server use", changed(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth])),
        ("no signatures", changed(&|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment])),
        ("foreign root", foreign),
        ("root instead of leaf", (ca.issuer.pem(), key.clone())),
        ("leaf not first", (format!("{}{chain}", ca.issuer.pem()), key.clone())),
    ];
    for (name, (chain, key)) in &lies {
        assert!(adopt(&id, chain, key).is_err(), "{name}");
    }
    let huge = chain.repeat(40);
    assert!(matches!(adopt(&id, &huge, &key), Err(CertificateError::TooLarge { .. })));
    let ten_mib = "x".repeat(10 << 20);
    assert!(matches!(adopt(&id, &ten_mib, &key), Err(CertificateError::TooLarge { .. })));
    assert!(Roots::from_pem(b"", vec![]).is_err(), "an empty trust store never replaces a good one");
    let partly = format!("{}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", ca.issuer.pem());
    assert_eq!(Roots::from_pem(partly.as_bytes(), vec![]).unwrap().len(), 1);
}

#[tokio::test]
async fn handshakes_of_the_client_have_deadlines() {
    let config = PoolConfig {
        tls_timeout: Duration::from_millis(100),
        preface_timeout: Duration::from_millis(100),
        ..PoolConfig::default()
    };
    let lab = Lab::with(config, AcceptorConfig::default()).await;
    let request = || ConnectRequest::to(lab.app.local_addr().unwrap());
    // A peer that accepts and is silent.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let error = lab
        .pool
        .connect(&lab.key(), lab.client.clone(), move || TcpStream::connect(address), request())
        .await
        .unwrap_err();
    assert!(matches!(error, HboneError::TlsTimeout), "{error}");
    // A peer that shakes hands and never speaks HTTP/2.
    let (acceptor, certificate) = (lab.acceptor.clone(), lab.server.clone());
    tokio::spawn(async move {
        let _first = silent.accept().await.unwrap();
        let (tcp, _) = silent.accept().await.unwrap();
        let _tunnel = acceptor.accept(tcp, &certificate).await.unwrap();
        std::future::pending::<()>().await;
    });
    let error = soon(
        "preface",
        lab.pool.connect(&lab.key(), lab.client.clone(), move || TcpStream::connect(address), request()),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, HboneError::PrefaceTimeout), "{error}");
    assert_eq!(error.response_flag(), "H2_HANDSHAKE_FAILURE");
    support::until("pool forgets", || lab.pool.stats().keys == 0).await;
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
