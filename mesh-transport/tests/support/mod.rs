//! A certificate authority, two agents and their applications on loopback, for the tests and the bench of this crate.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod port;
pub mod raw;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::{Identity, TrustDomain};
use mesh_transport::copy::{self, ByteCounters, Outcome, Peer};
use mesh_transport::hbone::{
    Acceptor, AcceptorConfig, Authority, Baggage, ConnectRequest, HboneError, InboundRequest, Pool, PoolConfig,
    ServeEnd, TunnelKey,
};
use mesh_transport::socket::Armed;
use mesh_transport::tls::{IdentityCertificate, Roots};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub fn identity(text: &str) -> Identity {
    text.parse().unwrap()
}

/// A certificate authority.
pub struct Ca {
    pub issuer: CertifiedIssuer<'static, KeyPair>,
    pub roots: Arc<Roots>,
}

impl Ca {
    pub fn new() -> Self {
        let issuer = ca_issuer("root");
        let roots = Arc::new(Roots::from_pem(issuer.pem().as_bytes(), vec![TrustDomain::default()]).unwrap());
        Self { issuer, roots }
    }

    /// The parameters of an honest workload certificate.
    pub fn params(uri: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now - time::Duration::minutes(2);
        params.not_after = now + time::Duration::hours(24);
        params
    }

    /// Those of one that ends soon.
    pub fn brief_params(uri: &str) -> CertificateParams {
        let mut params = Self::params(uri);
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::seconds(4);
        params
    }

    pub fn sign(&self, params: CertificateParams) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub fn issue(&self, id: &Identity) -> Arc<IdentityCertificate> {
        self.issue_with(id, Self::params(&id.to_string()), 1)
    }

    pub fn issue_with(&self, id: &Identity, params: CertificateParams, generation: u64) -> Arc<IdentityCertificate> {
        let (chain, key) = self.sign(params);
        let (chain, key, roots) = (chain.as_bytes(), key.as_bytes(), self.roots.clone());
        Arc::new(
            IdentityCertificate::from_pem(id.clone(), chain, key, roots, generation, mesh_runtime::clock::now())
                .unwrap(),
        )
    }
}

pub fn ca_issuer(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Two agents: the client's pool and the server's tunnel port, which connects every request to the application at the requested address.
pub struct Lab {
    pub ca: Ca,
    pub pool: Pool,
    pub client: Arc<IdentityCertificate>,
    pub server: Arc<IdentityCertificate>,
    pub tunnel_port: SocketAddr,
    pub app: TcpListener,
    pub acceptor: Acceptor,
    pub drain: CancellationToken,
    pub cancel: CancellationToken,
    pub ends: mpsc::UnboundedReceiver<ServeEnd>,
}

impl Lab {
    pub async fn new() -> Self {
        Self::with(PoolConfig::default(), AcceptorConfig::default()).await
    }

    pub async fn with(pool: PoolConfig, acceptor: AcceptorConfig) -> Self {
        let ca = Ca::new();
        let server = ca.issue(&identity("spiffe://cluster.local/ns/app/sa/server"));
        Self::of(ca, server, pool, acceptor).await
    }

    pub async fn of(ca: Ca, server: Arc<IdentityCertificate>, pool: PoolConfig, acceptor: AcceptorConfig) -> Self {
        let client = ca.issue(&identity("spiffe://cluster.local/ns/app/sa/client"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tunnel_port = listener.local_addr().unwrap();
        let acceptor = Acceptor::new(acceptor);
        let drain = CancellationToken::new();
        let cancel = CancellationToken::new();
        let (ended, ends) = mpsc::unbounded_channel();
        tokio::spawn(serve(listener, acceptor.clone(), server.clone(), drain.clone(), cancel.clone(), ended));
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { ca, pool: Pool::new(pool), client, server, tunnel_port, app, acceptor, drain, cancel, ends }
    }

    pub fn key(&self) -> TunnelKey {
        TunnelKey {
            source: self.client.identity.clone(),
            source_uid: "client-1".into(),
            source_ip: [127, 0, 0, 1].into(),
            destination: self.tunnel_port,
            destination_uid: "server-1".into(),
            destination_generation: 1,
            expected: [self.server.identity.clone()].into(),
            lane: 0,
        }
    }

    /// Opens a stream to the application and connects a client to it, as the outbound proxy does.
    pub async fn connect(
        &self,
    ) -> Result<(TcpStream, tokio::task::JoinHandle<Outcome>, Arc<ByteCounters>), HboneError> {
        let port = self.tunnel_port;
        let target = self.app.local_addr().unwrap();
        let (stream, _) = self
            .pool
            .connect(&self.key(), self.client.clone(), move || TcpStream::connect(port), ConnectRequest::to(target))
            .await?;
        let (near, far) = pair().await;
        let counters = Arc::new(ByteCounters::default());
        let copy = tokio::spawn(copy::bidirectional(
            Armed::new(far),
            Peer::Hbone(stream),
            counters.clone(),
            self.cancel.clone(),
        ));
        Ok((near, copy, counters))
    }

    /// A client's socket and the application's socket of one connection through the mesh.
    pub async fn through(&self) -> (TcpStream, TcpStream, tokio::task::JoinHandle<Outcome>) {
        let both = async { tokio::try_join!(self.connect(), async { Ok(self.app.accept().await.unwrap().0) }) };
        let ((near, copy, _), far) = soon("connection", both).await.unwrap();
        (near, far, copy)
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: Acceptor,
    certificate: Arc<IdentityCertificate>,
    drain: CancellationToken,
    cancel: CancellationToken,
    ended: mpsc::UnboundedSender<ServeEnd>,
) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (acceptor, certificate, drain, cancel, ended) =
            (acceptor.clone(), certificate.clone(), drain.clone(), cancel.clone(), ended.clone());
        tokio::spawn(async move {
            let Ok(tunnel) = acceptor.accept(tcp, &certificate).await else { return };
            let cancel = cancel.clone();
            let end = tunnel.serve(drain, move |request| drop(tokio::spawn(handle(request, cancel.clone())))).await;
            let _ = ended.send(end);
        });
    }
}

pub async fn handle(request: InboundRequest, cancel: CancellationToken) -> Option<Outcome> {
    let Authority::Address(target) = *request.authority() else {
        request.refuse(http::StatusCode::SERVICE_UNAVAILABLE);
        return None;
    };
    let app = tokio::select! {
        app = TcpStream::connect(target) => app,
        () = request.cancelled() => return None,
    };
    let Ok(app) = app else {
        request.refuse(http::StatusCode::SERVICE_UNAVAILABLE);
        return None;
    };
    app.set_nodelay(true).unwrap();
    let stream = request.accept(&Baggage::default()).ok()?;
    Some(copy::bidirectional(Armed::new(app), Peer::Hbone(stream), Arc::default(), cancel).await)
}

/// A connected pair of sockets.
pub async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

/// A connected pair of sockets whose first end has this address.
pub async fn pair_from(ip: IpAddr) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((ip, 0).into()).unwrap();
    let (near, far) = tokio::join!(socket.connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// Everything in these tests has to happen soon.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap_or_else(|_| panic!("{what}: not within 20 s"))
}

/// Waits for a condition.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// A TLS client that does as the test says: any certificate or none, any ALPN, no check of the server.
pub mod client {
    use std::sync::Arc;

    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
    use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme, SupportedProtocolVersion};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;

    #[derive(Debug)]
    pub struct Trusting;

    impl ServerCertVerifier for Trusting {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
        }
    }

    pub fn config(
        certificate: Option<(&str, &str)>,
        alpn: &[&str],
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trusting));
        let mut config = match certificate {
            Some((chain, key)) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|alpn| alpn.as_bytes().to_vec()).collect();
        config
    }

    pub async fn connect(tcp: TcpStream, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
        connect_to("pod.test", tcp, config).await
    }

    /// With this server name in the hello.
    pub async fn connect_to(
        name: &'static str,
        tcp: TcpStream,
        config: ClientConfig,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name).unwrap(), tcp).await
    }
}
