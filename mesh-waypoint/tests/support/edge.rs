//! A gateway on loopback: listeners, certificates of an authority of the test, and clients from outside.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use mesh_core::l7::{Backend as Place, Forward, HostPattern, Table, Target, VirtualHost};
use mesh_core::listener::{
    Certificates, Credential, Encryption, Listener, Listeners, Passage, Secret, Serves, Tls, Transport,
};
use mesh_waypoint::edge::ports;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Backend, Waypoint, cluster, rule, soon, to, whole};

pub const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// By which clients in tunnels know it: no loopback is asked for by one.
pub const INSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 9));

pub async fn free() -> u16 {
    TcpListener::bind((HERE, 0)).await.unwrap().local_addr().unwrap().port()
}

pub fn hosts(all: &[&str]) -> Vec<HostPattern> {
    all.iter().map(|text| HostPattern::parse(text).unwrap()).collect()
}

/// Everything for these names goes to a service.
pub fn to_service(names: &[&str], service: &str) -> Serves {
    let host = VirtualHost { hosts: hosts(names), rules: vec![rule(to(service))], ..VirtualHost::default() };
    Serves::Http(Arc::new(Table::new(service, vec![Arc::new(host)])))
}

pub fn listener(name: &str, bind: u16, names: &[&str], encryption: Encryption, serves: Serves) -> Arc<Listener> {
    let (name, gateway) = (name.into(), "shop/edge".into());
    let transport = if matches!(serves, Serves::Datagrams(_)) { Transport::Udp } else { Transport::Tcp };
    Arc::new(Listener { name, gateway, port: bind, bind, transport, hosts: hosts(names), encryption, serves })
}

pub fn http(name: &str, bind: u16, names: &[&str], service: &str) -> Arc<Listener> {
    listener(name, bind, names, Encryption::None, to_service(names, service))
}

pub fn ends(certificate: &str) -> Encryption {
    Encryption::Ends(Tls::with(vec![certificate.into()]))
}

pub fn passage(names: &[&str], services: &[(&str, u32)]) -> Serves {
    let places = services.iter().map(|(service, weight)| Place::new(Target::Cluster(cluster(service)), *weight));
    let forward = Forward::new(places.collect()).unwrap();
    Serves::Bytes(vec![Passage { origin: "TCPRoute shop/a".into(), hosts: hosts(names), forward }])
}

/// A gateway whose services are these.
pub async fn gateway(backends: &[Backend]) -> Waypoint {
    let gateway = Waypoint::at(INSIDE, backends).await;
    tokio::spawn(ports::keep(gateway.engine.clone(), HERE, vec![gateway.address.port()], gateway.drain.token()));
    gateway
}

pub fn listen(gateway: &Waypoint, all: Vec<Arc<Listener>>) {
    gateway.state.set_listeners(Arc::new(Listeners::new("shop/edge", all)));
}

/// A connection once the port is open.
pub async fn connect(port: u16) -> TcpStream {
    soon("the port is open", async {
        loop {
            match TcpStream::connect((HERE, port)).await {
                Ok(tcp) => return tcp,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
    })
    .await
}

pub async fn http1<S>(stream: S) -> SendRequest<Full<Bytes>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub async fn ask(sender: &mut SendRequest<Full<Bytes>>, host: &str) -> Response<Bytes> {
    let request = Request::builder().uri("/a").header("host", host).body(Full::default()).unwrap();
    whole(soon("answer", sender.send_request(request)).await.unwrap()).await
}

pub async fn get(port: u16, host: &str) -> Response<Bytes> {
    ask(&mut http1(connect(port).await).await, host).await
}

/// Certificates of one authority.
pub struct Ca(pub CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    pub fn credential(&self, name: &str) -> Arc<Credential> {
        let (chain, key) = self.issue(name);
        Arc::new(Credential { chain: chain.into(), key: Secret::new(key.into()), ..Credential::default() })
    }

    pub fn roots(&self) -> Arc<Credential> {
        Arc::new(Credential { roots: self.0.pem().into(), ..Credential::default() })
    }

    /// A client that believes this authority, and shows `own` if there is any.
    pub fn client(&self, own: Option<(String, String)>, alpn: &[&str]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.0.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }
}

pub fn certificates(all: &[(&str, Arc<Credential>)]) -> Arc<Certificates> {
    let all: BTreeMap<_, _> = all.iter().map(|(name, credential)| ((*name).into(), credential.clone())).collect();
    Arc::new(Certificates { name: "shop/edge".into(), all })
}

pub async fn tls(client: &TlsConnector, port: u16, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    soon("handshake", client.connect(name, connect(port).await)).await
}

pub fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// A server that says its name to whoever connects, and then what it hears.
pub async fn greeter(name: &'static str) -> SocketAddr {
    let listener = super::listener().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                tcp.write_all(name.as_bytes()).await.unwrap();
                let mut heard = Vec::new();
                let _ = tcp.read_to_end(&mut heard).await;
                let _ = tcp.write_all(&heard).await;
            });
        }
    });
    address
}

pub async fn talk<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(mut stream: S) -> String {
    stream.write_all(b" hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = String::new();
    soon("end", stream.read_to_string(&mut heard)).await.unwrap();
    heard
}
