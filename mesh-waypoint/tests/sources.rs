//! Who comes to a gateway and how many places that takes: of one source there are so many connections, and none that says nothing is kept for long.
#![allow(clippy::unwrap_used, non_snake_case, reason = "tests carry the ids of the rows that they prove")]

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use mesh_core::l7::{Backend as Place, Forward, HostPattern, Table, Target, VirtualHost};
use mesh_core::listener::{
    Certificates, Credential, Encryption, Listener, Listeners, Passage, Secret, Serves, Tls, Topology, Transport,
};
use mesh_waypoint::Settings;
use mesh_waypoint::edge::ports;
use mesh_waypoint::refused::Reason;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use support::{Backend, Waypoint, cluster, echo, rule, soon, to, whole};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

async fn free() -> u16 {
    TcpListener::bind((HERE, 0)).await.unwrap().local_addr().unwrap().port()
}

async fn gateway(settings: Settings) -> Waypoint {
    let backends = [Backend::new("app", "10.96.0.1", &[echo("app").await])];
    let gateway = Waypoint::with(&backends, Table::default(), settings).await;
    tokio::spawn(ports::keep(gateway.engine.clone(), HERE, vec![gateway.address.port()], gateway.drain.token()));
    gateway
}

fn listener(name: &str, bind: u16, encryption: Encryption, serves: Serves) -> Arc<Listener> {
    let hosts = vec![HostPattern::parse("*").unwrap()];
    let (name, gateway, transport) = (name.into(), "shop/edge".into(), Transport::Tcp);
    Arc::new(Listener { name, gateway, port: bind, bind, transport, hosts, encryption, serves })
}

fn requests() -> Serves {
    let hosts = vec![HostPattern::parse("*").unwrap()];
    let host = VirtualHost { hosts, rules: vec![rule(to("app"))], ..VirtualHost::default() };
    Serves::Http(Arc::new(Table::new("app", vec![Arc::new(host)])))
}

async fn connect(port: u16) -> TcpStream {
    soon("the port is open", async {
        loop {
            match TcpStream::connect((HERE, port)).await {
                Ok(tcp) => return tcp,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await
}

/// A client of HTTP/1.1.
struct Asking(hyper::client::conn::http1::SendRequest<Full<Bytes>>);

impl Asking {
    async fn on(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    /// Whether it is answered.
    async fn is_served(&mut self) -> bool {
        let request = Request::builder().uri("/a").header("host", "a").body(Full::default()).unwrap();
        let Ok(answer) = soon("answer", self.0.send_request(request)).await else { return false };
        whole(answer).await.status() == StatusCode::OK
    }
}

#[tokio::test]
async fn hardening_B23_one_source_has_its_share_of_connections() {
    let gateway = gateway(Settings { source_connections: 2, ..Settings::default() }).await;
    let port = free().await;
    let behind = |topology: Topology| {
        let all = vec![listener("http", port, Encryption::None, requests())];
        gateway.state.set_listeners(Arc::new(Listeners::new("shop/edge", all).behind(topology)));
    };
    let come = async |first: &str| {
        let mut tcp = connect(port).await;
        tcp.write_all(first.as_bytes()).await.unwrap();
        let mut asking = Asking::on(tcp).await;
        asking.is_served().await.then_some(asking)
    };
    behind(Topology::default());
    let mut kept = vec![come("").await.unwrap(), come("").await.unwrap()];
    assert!(come("").await.is_none());
    gateway.refuses(1, &[Reason::SourceLimit]).await;
    assert!(kept[0].is_served().await, "who is there stays");
    // One that ends makes room.
    kept.pop();
    soon("room", async { while come("").await.is_none() {} }).await;
    // Who stands in front is not who asks.
    kept.extend(come("").await);
    behind(Topology { trusted_proxies: 1, ..Topology::default() });
    for _ in 0..3 {
        kept.push(come("").await.unwrap());
    }
    behind(Topology { proxy_protocol: true, ..Topology::default() });
    let before = gateway.refused(&[Reason::SourceLimit]);
    let from = |client: &str| format!("PROXY TCP4 {client} 203.0.113.7 35646 80\r\n");
    for client in ["198.51.100.1", "198.51.100.1", "198.51.100.2", "198.51.100.2", "198.51.100.3"] {
        kept.push(come(&from(client)).await.unwrap());
    }
    assert!(come(&from("198.51.100.1")).await.is_none());
    gateway.refuses(before + 1, &[Reason::SourceLimit]).await;
}

#[tokio::test]
async fn hardening_who_says_nothing_to_a_gateway_keeps_no_place() {
    let limit = Duration::from_secs(1);
    let gateway = gateway(Settings { header_timeout: limit, ..Settings::default() }).await;
    let (plain, encrypted, bytes) = (free().await, free().await, free().await);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["a.example".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let key = Secret::new(key.serialize_pem().into());
    let credential = Arc::new(Credential { chain: certificate.clone().into(), key, ..Credential::default() });
    let all = [("shop/a".into(), credential)].into();
    gateway.state.set_certificates(Arc::new(Certificates { name: "shop/edge".into(), all }));
    let forward = Forward::new(vec![Place::new(Target::Cluster(cluster("app")), 1)]).unwrap();
    let passage = Passage { origin: "TCPRoute shop/a".into(), hosts: vec![HostPattern::parse("*").unwrap()], forward };
    let all = vec![
        listener("http", plain, Encryption::None, requests()),
        listener("https", encrypted, Encryption::Ends(Tls::with(vec!["shop/a".into()])), requests()),
        listener("tcp", bytes, Encryption::None, Serves::Bytes(vec![passage])),
    ];
    gateway.state.set_listeners(Arc::new(Listeners::new("shop/edge", all)));
    let tls = |alpn: &'static [&'static str]| {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        async move {
            let name = "a.example".to_owned().try_into().unwrap();
            soon("handshake", TlsConnector::from(Arc::new(config)).connect(name, connect(encrypted).await))
                .await
                .unwrap()
        }
    };
    let mut asked = Asking::on(connect(plain).await).await;
    assert!(asked.is_served().await);
    let mut asked_tls = Asking::on(tls(&["http/1.1"]).await).await;
    assert!(asked_tls.is_served().await);
    // Where the server may begin nobody has to say anything.
    let mut silent_bytes = connect(bytes).await;
    let mut rest = Vec::new();
    assert_eq!(soon("the end", connect(plain).await.read_to_end(&mut rest)).await.unwrap(), 0, "in order");
    for (count, alpn) in [(2, &[][..]), (3, &["http/1.1"]), (4, &["h2"])] {
        let mut stream = tls(alpn).await;
        let _ = soon("the end", stream.read_to_end(&mut rest)).await;
        gateway.refuses(count, &[Reason::Silent]).await;
    }
    // Four times as long as the first byte may take: who has asked before may go on when he likes.
    assert!(asked.is_served().await && asked_tls.is_served().await);
    silent_bytes.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(soon("answer", silent_bytes.read_to_end(&mut rest)).await.unwrap() > 0);
}
