//! A gateway: clients from outside of the mesh, on ports that follow its listeners.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::l7::redirect::{Redirect, RedirectPort};
use mesh_core::l7::{Action, Condition, Handling, Rule, Table, Text, VirtualHost};
use mesh_core::listener::{ClientCert, Clients, Credential, Encryption, Listeners, Secret, Serves, Tls, Topology};
use mesh_core::telemetry::{AccessLog, LogFormat, Scopes, Telemetry};
use mesh_waypoint::Settings;
use mesh_waypoint::edge::ports;
use mesh_waypoint::refused::Reason;
use parking_lot::Mutex;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use support::edge::{
    Ca, HERE, ask, certificates, connect, ends, free, gateway, get, greeter, hosts, http, http1, listen, listener,
    passage, shown, talk, tls, to_service,
};
use support::{Backend, Waypoint, by_source, different, echo, rule, soon, text, to, whole};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

#[tokio::test]
async fn features_B15_requests_go_by_the_listener_and_its_routes() {
    let (one, two) = (echo("one").await, echo("two").await);
    let gateway = gateway(&[Backend::new("one", "10.96.0.1", &[one]), Backend::new("two", "10.96.0.2", &[two])]).await;
    let port = free().await;
    listen(&gateway, vec![http("all", port, &["*"], "one"), http("two", port, &["two.example"], "two")]);
    for (host, expected) in [("a.example", "one"), ("two.example", "two"), ("TWO.example:81", "two")] {
        let answer = get(port, host).await;
        assert!(text(&answer).starts_with(&format!("{expected} GET /a ")), "{host}: {}", text(&answer));
        let said = text(&answer);
        assert!(said.contains("x-forwarded-for: 127.0.0.1\n") && said.contains("x-forwarded-proto: http\n"), "{said}");
        assert!(said.contains(&format!("host: {}\n", host.to_lowercase())), "{said}");
    }
    // What a listener has is no other's: its own routes are all that count there.
    let narrow = listener("narrow", port, &["two.example"], Encryption::None, to_service(&["x.example"], "two"));
    listen(&gateway, vec![http("all", port, &["*"], "one"), narrow]);
    assert_eq!(get(port, "two.example").await.status(), StatusCode::NOT_FOUND);
    listen(&gateway, vec![http("two", port, &["two.example"], "two")]);
    assert_eq!(get(port, "a.example").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn ports_come_and_go_and_cut_nobody() {
    let app = echo("app").await;
    let gateway = gateway(&[Backend::new("app", "10.96.0.1", &[app])]).await;
    let (first, second) = (free().await, free().await);
    listen(&gateway, vec![http("first", first, &["*"], "app")]);
    let mut kept = http1(connect(first).await).await;
    assert_eq!(ask(&mut kept, "a").await.status(), StatusCode::OK);
    listen(&gateway, vec![http("first", first, &["*"], "app"), http("second", second, &["*"], "app")]);
    assert_eq!(get(second, "a").await.status(), StatusCode::OK);
    assert_eq!(ask(&mut kept, "a").await.status(), StatusCode::OK);
    listen(&gateway, vec![http("second", second, &["*"], "app")]);
    soon("the port is closed", async {
        while TcpStream::connect((HERE, first)).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    // Its connection is there still, and its routes are not.
    assert_eq!(ask(&mut kept, "a").await.status(), StatusCode::NOT_FOUND);
    // The tunnels' own port is nobody's to take, and others are opened all the same.
    let own = gateway.address.port();
    listen(&gateway, vec![http("own", own, &["*"], "app"), http("first", first, &["*"], "app")]);
    assert_eq!(get(first, "a").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn features_B16_certificates_go_by_name_and_are_replaced_under_live_connections() {
    let app = echo("app").await;
    let gateway = gateway(&[Backend::new("app", "10.96.0.1", &[app])]).await;
    let (port, ca) = (free().await, Ca::new());
    let (old, new, other) = (ca.credential("a.example"), ca.credential("a.example"), ca.credential("b.example"));
    gateway.state.set_certificates(certificates(&[("shop/a", old), ("shop/b", other.clone())]));
    let secure = |name, host, certificate| {
        listener(name, port, &[host], ends(certificate), to_service(&["a.example", "b.example"], "app"))
    };
    let both = || vec![secure("a", "a.example", "shop/a"), secure("b", "b.example", "shop/b")];
    listen(&gateway, both());
    let client = ca.client(None, &["http/1.1"]);
    let stream = tls(&client, port, "a.example").await.unwrap();
    let first = shown(&stream);
    let mut kept = http1(stream).await;
    let answer = ask(&mut kept, "a.example").await;
    assert!(text(&answer).contains("x-forwarded-proto: https\n"), "{}", text(&answer));
    // A request for a name that has another listener is not for this connection; of one that has none nothing is known.
    assert_eq!(ask(&mut kept, "b.example").await.status(), StatusCode::MISDIRECTED_REQUEST);
    assert_eq!(ask(&mut kept, "c.example").await.status(), StatusCode::NOT_FOUND);
    assert_ne!(first, shown(&tls(&client, port, "b.example").await.unwrap()));

    gateway.state.set_certificates(certificates(&[("shop/a", new), ("shop/b", other.clone())]));
    assert_ne!(first, shown(&tls(&client, port, "a.example").await.unwrap()));
    assert_eq!(ask(&mut kept, "a.example").await.status(), StatusCode::OK);
    // Without its certificate a listener refuses, and the other does not.
    gateway.state.set_certificates(certificates(&[("shop/b", other)]));
    assert!(tls(&client, port, "a.example").await.is_err());
    assert!(tls(&client, port, "b.example").await.is_ok());
    assert!(tls(&client, port, "c.example").await.is_err());

    let stream = tls(&ca.client(None, &["h2"]), port, "b.example").await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    // What the client speaks says nothing of an application whose port says nothing, but for gRPC.
    for (kind, version) in [("text/plain", "HTTP/1.1"), ("application/grpc", "HTTP/2.0")] {
        let request = Request::builder().uri("https://b.example/a").header("content-type", kind);
        let answer = sender.send_request(request.body(Full::<Bytes>::default()).unwrap());
        let answer = whole(soon("answer", answer).await.unwrap()).await;
        let first = text(&answer).lines().next().unwrap_or_default().to_owned();
        assert!(first.starts_with("app GET") && first.ends_with(version), "{kind}: {first}");
    }
}

#[tokio::test]
async fn features_B16_clients_without_a_certificate_are_refused_where_one_is_asked_for() {
    let app = echo("app").await;
    let gateway = gateway(&[Backend::new("app", "10.96.0.1", &[app])]).await;
    let (port, ca, others) = (free().await, Ca::new(), Ca::new());
    gateway.state.set_certificates(certificates(&[("shop/a", ca.credential("a.example")), ("shop/ca", ca.roots())]));
    let mutual = |clients: Clients| {
        let clients = Some(Clients { roots: vec!["shop/ca".into()], ..clients });
        let encryption = Encryption::Ends(Tls { clients, ..Tls::with(vec!["shop/a".into()]) });
        listen(&gateway, vec![listener("a", port, &["a.example"], encryption, to_service(&["*"], "app"))]);
    };
    // In TLS 1.3 a client learns that it is refused with what it reads first.
    let come = async |own: Option<(String, String)>| {
        let stream = tls(&ca.client(own, &["http/1.1"]), port, "a.example").await.ok()?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        let request = Request::builder()
            .uri("/a")
            .header("host", "a.example")
            .header("x-forwarded-client-cert", "Hash=said")
            .body(Full::<Bytes>::default());
        let answer = whole(soon("answer", sender.send_request(request.unwrap())).await.ok()?).await;
        let line = text(&answer).lines().find(|line| line.starts_with("x-forwarded-client-cert")).map(str::to_owned);
        Some(line.unwrap_or_default())
    };
    mutual(Clients { required: true, ..Clients::default() });
    let certificate = come(Some(ca.issue("client.example"))).await.unwrap();
    assert!(certificate.contains("Hash=") && certificate.contains("DNS=client.example"), "{certificate}");
    assert!(!certificate.contains("Hash=said"), "{certificate}");
    assert_eq!(come(None).await, None);
    gateway.refuses(1, &[Reason::ClientCertificate]).await;
    assert_eq!(come(Some(others.issue("client.example"))).await, None);
    gateway.refuses(2, &[Reason::ClientCertificate]).await;
    mutual(Clients { required: true, names: vec!["one.example".into()], ..Clients::default() });
    assert_eq!(come(Some(ca.issue("client.example"))).await, None);
    gateway.refuses(3, &[Reason::ClientCertificate]).await;
    assert!(come(Some(ca.issue("one.example"))).await.is_some());
    mutual(Clients::default());
    assert_eq!(come(None).await, Some(String::new()));
    assert_eq!(come(Some(others.issue("client.example"))).await, None);
    // Who comes in without anybody's word is told of to nobody as who he says he is.
    mutual(Clients { unverified: true, ..Clients::default() });
    assert_eq!(come(Some(others.issue("client.example"))).await, Some(String::new()));
    assert_eq!(come(None).await, Some(String::new()));
    assert!(come(Some(ca.issue("client.example"))).await.unwrap().contains("DNS=client.example"));
    // Of several roots those that are known count; without one nobody comes in, asked or not.
    let believing = |roots: &[&str], unverified: bool| {
        let roots = roots.iter().map(|root| (*root).into()).collect();
        let clients = Some(Clients { required: !unverified, unverified, roots, ..Clients::default() });
        let encryption = Encryption::Ends(Tls { clients, ..Tls::with(vec!["shop/a".into()]) });
        listen(&gateway, vec![listener("a", port, &["a.example"], encryption, to_service(&["*"], "app"))]);
    };
    believing(&["ConfigMap shop/none", "shop/ca"], false);
    assert!(come(Some(ca.issue("client.example"))).await.is_some());
    for unverified in [false, true] {
        believing(&["ConfigMap shop/none", "shop/a"], unverified);
        assert_eq!(come(Some(ca.issue("client.example"))).await, None, "{unverified}");
    }
    // What a proxy in front has said of its client goes on where that is asked for.
    for (client_cert, shows, expected) in [
        (ClientCert::Sanitize, true, ["", ""]),
        (ClientCert::SanitizeSet, true, ["", "DNS=client.example"]),
        (ClientCert::AppendForward, true, ["Hash=said,", "DNS=client.example"]),
        (ClientCert::AppendForward, false, ["", ""]),
        (ClientCert::ForwardOnly, true, ["Hash=said", ""]),
        (ClientCert::ForwardOnly, false, ["", ""]),
        (ClientCert::AlwaysForwardOnly, false, ["Hash=said", ""]),
    ] {
        let clients = Some(Clients { roots: vec!["shop/ca".into()], ..Clients::default() });
        let encryption = Encryption::Ends(Tls { clients, ..Tls::with(vec!["shop/a".into()]) });
        let all = vec![listener("a", port, &["a.example"], encryption, to_service(&["*"], "app"))];
        let topology = Topology { client_cert, ..Topology::default() };
        gateway.state.set_listeners(Arc::new(Listeners::new("shop/edge", all).behind(topology)));
        let line = come(shows.then(|| ca.issue("client.example"))).await.unwrap();
        let found = ["Hash=said", "DNS=client.example"].map(|part| line.contains(part));
        assert_eq!(found, expected.map(|part| !part.is_empty()), "{client_cert:?} {shows}: {line}");
        assert!(line.contains(expected[0]) && line.contains(expected[1]), "{client_cert:?} {shows}: {line}");
    }
}

#[tokio::test]
async fn features_GW_5_only_who_has_a_key_or_certificate_that_is_named_is_let_in() {
    let app = echo("app").await;
    let gateway = gateway(&[Backend::new("app", "10.96.0.1", &[app])]).await;
    let (port, ca) = (free().await, Ca::new());
    gateway.state.set_certificates(certificates(&[("shop/a", ca.credential("a.example")), ("shop/ca", ca.roots())]));
    let (one, two) = (ca.issue("one.example"), ca.issue("two.example"));
    let sha = |bytes: &[u8]| -> [u8; 32] {
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().try_into().unwrap()
    };
    let der = |own: &(String, String)| CertificateDer::from_pem_slice(own.0.as_bytes()).unwrap();
    let hash = |own: &(String, String)| sha(&der(own));
    let key = |own: &(String, String)| sha(&KeyPair::from_pem(&own.1).unwrap().subject_public_key_info());
    let come = async |own: &(String, String)| {
        let Ok(stream) = tls(&ca.client(Some(own.clone()), &["http/1.1"]), port, "a.example").await else {
            return false;
        };
        let Ok((mut sender, connection)) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await else {
            return false;
        };
        tokio::spawn(connection);
        let request = Request::builder().uri("/a").header("host", "a.example").body(Full::<Bytes>::default());
        soon("answer", sender.send_request(request.unwrap())).await.is_ok()
    };
    let mut refused = 0;
    for (keys, hashes, expected) in [
        (vec![], vec![], [true, true]),
        (vec![key(&one)], vec![], [true, false]),
        (vec![], vec![hash(&two)], [false, true]),
        // Either is enough.
        (vec![key(&one)], vec![hash(&two)], [true, true]),
        (vec![hash(&one)], vec![key(&two)], [false, false]),
    ] {
        let roots = vec!["shop/ca".into()];
        let clients = Some(Clients { required: true, roots, keys, hashes, ..Clients::default() });
        let encryption = Encryption::Ends(Tls { clients: clients.clone(), ..Tls::with(vec!["shop/a".into()]) });
        listen(&gateway, vec![listener("a", port, &["a.example"], encryption, to_service(&["*"], "app"))]);
        assert_eq!([come(&one).await, come(&two).await], expected, "{clients:?}");
        refused += expected.iter().filter(|is| !**is).count() as u64;
        gateway.refuses(refused, &[Reason::ClientCertificate]).await;
    }
}

/// A client that verifies these signatures alone, believes everything, and notes what it is shown: the certificate and what its authority says of it.
#[derive(Debug)]
struct Noting(Vec<SignatureScheme>, Mutex<Vec<(Vec<u8>, Vec<u8>)>>);

impl ServerCertVerifier for Noting {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        staple: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.1.lock().push((leaf.to_vec(), staple.to_vec()));
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

#[tokio::test]
async fn features_GW_5_of_two_certificates_each_client_is_shown_the_one_that_it_can_verify_with_its_staple() {
    let gateway = gateway(&[Backend::new("app", "10.96.0.1", &[echo("app").await])]).await;
    let (port, ca) = (free().await, Ca::new());
    let of = |algorithm, staple: &'static [u8]| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let chain = CertificateParams::new(vec!["a.example".to_owned()]).unwrap().signed_by(&key, &ca.0).unwrap();
        let (leaf, key) = (chain.der().to_vec(), Secret::new(key.serialize_pem().into()));
        (Arc::new(Credential { chain: chain.pem().into(), key, staple: staple.into(), ..Credential::default() }), leaf)
    };
    let (rsa, rsa_leaf) = of(&rcgen::PKCS_RSA_SHA256, b"good says the one");
    let (ecdsa, ecdsa_leaf) = of(&rcgen::PKCS_ECDSA_P256_SHA256, b"");
    gateway.state.set_certificates(certificates(&[("shop/rsa", rsa), ("shop/ecdsa", ecdsa)]));
    use SignatureScheme::{ECDSA_NISTP256_SHA256, RSA_PSS_SHA256};
    let (rsa, ecdsa) = ((&rsa_leaf, &b"good says the one"[..]), (&ecdsa_leaf, &b""[..]));
    for (names, schemes, (leaf, staple)) in [
        (["shop/rsa", "shop/ecdsa"], vec![RSA_PSS_SHA256], rsa),
        (["shop/rsa", "shop/ecdsa"], vec![ECDSA_NISTP256_SHA256], ecdsa),
        (["shop/ecdsa", "shop/rsa"], vec![RSA_PSS_SHA256], rsa),
        // Of two that it can verify the first one.
        (["shop/ecdsa", "shop/rsa"], vec![RSA_PSS_SHA256, ECDSA_NISTP256_SHA256], ecdsa),
        (["shop/rsa", "shop/ecdsa"], vec![ECDSA_NISTP256_SHA256, RSA_PSS_SHA256], rsa),
    ] {
        let encryption = Encryption::Ends(Tls::with(names.map(Into::into).to_vec()));
        listen(&gateway, vec![listener("a", port, &["a.example"], encryption, to_service(&["*"], "app"))]);
        let noting = Arc::new(Noting(schemes, Mutex::default()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.dangerous().with_custom_certificate_verifier(noting.clone());
        let client = TlsConnector::from(Arc::new(builder.with_no_client_auth()));
        tls(&client, port, "a.example").await.unwrap();
        let shown = noting.1.lock().pop().unwrap();
        assert!(shown.0 == *leaf && shown.1 == staple, "{names:?} {:?}: {:?}", noting.0, shown.1);
    }
}

#[tokio::test]
async fn features_B30_the_log_says_how_a_client_came_in() {
    let app = echo("app").await;
    let folder = tempfile::tempdir().unwrap();
    let log = |name: &str, filter: Option<&str>| {
        let path = folder.path().join(name).to_str().unwrap().into();
        AccessLog { path, format: LogFormat::Text("%REQ(:SCHEME)%\n".into()), filter: filter.map(Into::into) }
    };
    let logs = vec![log("all", None), log("encrypted", Some("request.scheme == 'https'"))];
    let waypoint = Arc::new(Telemetry { logs, ..Telemetry::default() });
    let settings = Settings { telemetry: Scopes { waypoint, ..Scopes::default() }, ..Settings::default() };
    let gateway = Waypoint::with(&[Backend::new("app", "10.96.0.1", &[app])], Table::default(), settings).await;
    tokio::spawn(ports::keep(gateway.engine.clone(), HERE, vec![gateway.address.port()], gateway.drain.token()));
    let (plain, encrypted, ca) = (free().await, free().await, Ca::new());
    gateway.state.set_certificates(certificates(&[("shop/a", ca.credential("a.example"))]));
    let https = listener("https", encrypted, &["a.example"], ends("shop/a"), to_service(&["*"], "app"));
    listen(&gateway, vec![http("http", plain, &["*"], "app"), https]);
    assert_eq!(get(plain, "a.example").await.status(), StatusCode::OK);
    connect(encrypted).await;
    let stream = tls(&ca.client(None, &["http/1.1"]), encrypted, "a.example").await.unwrap();
    assert_eq!(ask(&mut http1(stream).await, "a.example").await.status(), StatusCode::OK);
    for (name, expected) in [("all", &["http", "https"][..]), ("encrypted", &["https"])] {
        let lines = || -> Vec<String> {
            let text = std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        soon(name, async {
            while lines() != expected {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn features_B7_connections_are_shared_by_weight_each_as_a_whole() {
    let (one, two) = (greeter("one").await, greeter("two").await);
    let gateway = gateway(&[Backend::new("one", "10.96.0.1", &[one]), Backend::new("two", "10.96.0.2", &[two])]).await;
    let port = free().await;
    let tcp = |places: &[(&str, u32)]| listener("tcp", port, &["*"], Encryption::None, passage(&["*"], places));
    listen(&gateway, vec![tcp(&[("one", 4), ("two", 1)])]);
    let mut counts = BTreeMap::new();
    for _ in 0..100 {
        *counts.entry(talk(connect(port).await).await).or_insert(0) += 1;
    }
    let (one, two) = (counts["one hello"], counts["two hello"]);
    assert!(one + two == 100 && (5..=40).contains(&two), "{counts:?}");
    listen(&gateway, vec![tcp(&[("one", 0), ("two", 1)])]);
    assert_eq!(talk(connect(port).await).await, "two hello");
}

#[tokio::test]
async fn features_DR_5_connections_of_one_client_go_to_one_endpoint() {
    let all = [greeter("one").await, greeter("two").await, greeter("three").await];
    let gateway = gateway(&[Backend::new("a", "10.96.0.1", &all)]).await;
    let port = free().await;
    listen(&gateway, vec![listener("tcp", port, &["*"], Encryption::None, passage(&["*"], &[("a", 1)]))]);
    let count = async || different(async || talk(connect(port).await).await).await;
    assert!(count().await > 1);
    gateway.state.set_clusters(by_source("a"));
    assert_eq!(count().await, 1);
}

#[tokio::test]
async fn features_B16_tls_that_is_passed_on_goes_by_its_name_untouched() {
    let (ca, plain) = (Ca::new(), greeter("plain").await);
    let secure = {
        let (chain, key) = ca.issue("a.example");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()];
        let config = builder.with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap();
        let (acceptor, listener) = (TlsAcceptor::from(Arc::new(config)), support::listener().await);
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).await.unwrap();
                stream.write_all(&heard).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        });
        address
    };
    let gateway =
        gateway(&[Backend::new("one", "10.96.0.1", &[secure]), Backend::new("two", "10.96.0.2", &[plain])]).await;
    let port = free().await;
    gateway.state.set_certificates(certificates(&[("shop/b", ca.credential("b.example"))]));
    listen(
        &gateway,
        vec![
            listener("passes", port, &["*.example"], Encryption::Passes, passage(&["a.example"], &[("one", 1)])),
            listener("ends", port, &["b.example"], ends("shop/b"), passage(&["*"], &[("two", 1)])),
        ],
    );
    let client = ca.client(None, &[]);
    assert_eq!(talk(tls(&client, port, "a.example").await.unwrap()).await, " hello");
    assert_eq!(talk(tls(&client, port, "b.example").await.unwrap()).await, "plain hello");
    assert!(tls(&client, port, "c.example").await.is_err(), "no route has the name");
    // What is no TLS is closed at once.
    let mut tcp = connect(port).await;
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await.unwrap();
    let mut heard = Vec::new();
    let _ = soon("end", tcp.read_to_end(&mut heard)).await;
    assert!(heard.is_empty());
    gateway.refuses(1, &[Reason::NotTls]).await;
    // Nor is what begins like it and is none, nor what does not believe the certificate that it is shown.
    let mut tcp = connect(port).await;
    tcp.write_all(&[22, 3, 1, 0xff, 0xff, 1]).await.unwrap();
    let _ = soon("end", tcp.read_to_end(&mut heard)).await;
    gateway.refuses(1, &[Reason::Handshake]).await;
    assert!(tls(&Ca::new().client(None, &[]), port, "b.example").await.is_err());
    gateway.refuses(1, &[Reason::RefusedByPeer]).await;
    gateway.state.set_certificates(certificates(&[]));
    assert!(tls(&client, port, "b.example").await.is_err());
    gateway.refuses(1, &[Reason::NoCertificate]).await;
    drop(connect(port).await);
    gateway.refuses(1, &[Reason::HandshakeClosed]).await;
}

#[tokio::test]
async fn hardening_B190_a_proxy_in_front_says_who_the_client_is_or_nothing_is_served() {
    let app = echo("app").await;
    let gateway = gateway(&[Backend::new("app", "10.96.0.1", &[app])]).await;
    let port = free().await;
    let topology = Topology { proxy_protocol: true, ..Topology::default() };
    let all = Listeners::new("shop/edge", vec![http("http", port, &["*"], "app")]).behind(topology);
    gateway.state.set_listeners(Arc::new(all));
    let mut tcp = connect(port).await;
    tcp.write_all(b"PROXY TCP4 198.51.100.22 203.0.113.7 35646 80\r\n").await.unwrap();
    let answer = ask(&mut http1(tcp).await, "a").await;
    assert!(text(&answer).contains("x-forwarded-for: 198.51.100.22\n"), "{}", text(&answer));
    // A second one is the client's own, and no request.
    let header = "PROXY TCP4 198.51.100.22 203.0.113.7 35646 80\r\n";
    let mut tcp = connect(port).await;
    tcp.write_all(format!("{header}{header}GET / HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
    let mut heard = String::new();
    let _ = soon("end", tcp.read_to_string(&mut heard)).await;
    assert!(heard.starts_with("HTTP/1.1 400") && !heard.contains("198.51.100.22"), "{heard}");
    // One that does not end in time: nothing is answered.
    for late in ["", &header[..20]] {
        let mut tcp = connect(port).await;
        tcp.write_all(late.as_bytes()).await.unwrap();
        let began = std::time::Instant::now();
        assert!(!matches!(soon("end", tcp.read(&mut [0; 1])).await, Ok(1..)), "{late:?}");
        assert!(began.elapsed() >= std::time::Duration::from_millis(4500), "{late:?}");
    }
    // The deadline of all that comes first may be over before the header's own.
    let late = [Reason::ProxyHeader, Reason::HandshakeTimeout];
    gateway.refuses(2, &late).await;
    for first in ["GET / HTTP/1.1\r\nhost: a\r\n\r\n", "PROXY UNKNOWN\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n"] {
        let mut tcp = connect(port).await;
        tcp.write_all(first.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        let _ = soon("end", tcp.read_to_end(&mut heard)).await;
        assert!(heard.is_empty(), "{first:?}");
    }
    gateway.refuses(4, &late).await;
    // Nor who may not send one: whatever he says, it is not read.
    let peers = |text: &str| Topology {
        proxy_protocol: true,
        proxy_peers: Some(vec![text.parse().unwrap()]),
        ..Topology::default()
    };
    let behind =
        |topology| Arc::new(Listeners::new("shop/edge", vec![http("http", port, &["*"], "app")]).behind(topology));
    gateway.state.set_listeners(behind(peers("192.0.2.0/24")));
    let before = gateway.engine.shared().refusals.of(Reason::ProxyUntrusted);
    for first in [header, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", ""] {
        let mut tcp = connect(port).await;
        let _ = tcp.write_all(first.as_bytes()).await;
        assert!(!matches!(soon("end", tcp.read(&mut [0; 1])).await, Ok(1..)), "{first:?}");
    }
    let refused = gateway.engine.shared().refusals.of(Reason::ProxyUntrusted) - before;
    assert_eq!(refused, 3);
    gateway.state.set_listeners(behind(peers("127.0.0.0/8")));
    let mut tcp = connect(port).await;
    tcp.write_all(header.as_bytes()).await.unwrap();
    let answer = ask(&mut http1(tcp).await, "a").await;
    assert!(text(&answer).contains("x-forwarded-for: 198.51.100.22\n"), "{}", text(&answer));
    // Where nobody is said to stand in front, nobody is believed who says so.
    gateway.state.set_listeners(Arc::new(Listeners::new("shop/edge", vec![http("http", port, &["*"], "app")])));
    for header in [header.as_bytes(), b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x16\xcb\0\x71\x07\x8b\x3e\0\x50"]
    {
        let mut tcp = connect(port).await;
        tcp.write_all(header).await.unwrap();
        tcp.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut heard = Vec::new();
        let _ = soon("end", tcp.read_to_end(&mut heard)).await;
        assert!(heard.is_empty() || heard.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&heard));
    }
}

#[tokio::test]
async fn features_GW_8_routes_ask_how_a_client_came_to_the_proxy_in_front() {
    let app = echo("app").await;
    let gateway = gateway(&[Backend::new("app", "10.96.0.1", &[app])]).await;
    let port = free().await;
    let plain = Condition { scheme: Some(Text::Exact("http".into())), ..Condition::default() };
    let redirect = Handling::new(Action::Redirect(Redirect {
        scheme: Some(http::uri::Scheme::HTTPS),
        host: None,
        port: RedirectPort::OfScheme,
        path: None,
        status: StatusCode::MOVED_PERMANENTLY,
    }));
    let rules = vec![Rule { conditions: vec![plain], ..rule(redirect) }, rule(to("app"))];
    let host = VirtualHost { hosts: hosts(&["*"]), rules, ..VirtualHost::default() };
    let table = Serves::Http(Arc::new(Table::new("all", vec![Arc::new(host)])));
    let all = vec![listener("all", port, &["*"], Encryption::None, table)];
    for (trusted_proxies, said, expected) in [
        (1, &["https"][..], StatusCode::OK),
        (1, &["HTTPS"], StatusCode::OK),
        (1, &["http"], StatusCode::MOVED_PERMANENTLY),
        (1, &[], StatusCode::MOVED_PERMANENTLY),
        (1, &["ftp"], StatusCode::MOVED_PERMANENTLY),
        (1, &["https", "http"], StatusCode::MOVED_PERMANENTLY),
        // Nobody in front is believed: a client says it of itself.
        (0, &["https"], StatusCode::MOVED_PERMANENTLY),
    ] {
        let topology = Topology { trusted_proxies, ..Topology::default() };
        gateway.state.set_listeners(Arc::new(Listeners::new("shop/edge", all.clone()).behind(topology)));
        let mut request = Request::builder().uri("/a").header("host", "a.example");
        for line in said {
            request = request.header("x-forwarded-proto", *line);
        }
        let mut sender = http1(connect(port).await).await;
        let answer = soon("answer", sender.send_request(request.body(Full::default()).unwrap())).await.unwrap();
        assert_eq!(answer.status(), expected, "{trusted_proxies} {said:?}");
    }
}
