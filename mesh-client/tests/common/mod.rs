//! A control plane inside the test process: an authority that signs (or lies), and an ADS server whose streams the test drives by hand,
//! both over TLS on a port of 127.0.0.1.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use mesh_client::ControlConfig;
use mesh_proto::{
    ca::{
        IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
    },
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    metadata::MetadataMap,
    transport::{Server, server::Connected},
};

/// Everything in these tests happens within this, or has failed.
pub const SOON: Duration = Duration::from_secs(20);

/// Awaits with a deadline.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what}: not within {SOON:?}"))
}

/// Polls a condition until it holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A certificate authority of the test.
pub struct Ca {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a leaf should say; the rest comes from the request.
pub struct Leaf {
    pub names: Option<Vec<SanType>>,
    /// The authority's clock, if it is not this machine's.
    pub now: Option<std::time::SystemTime>,
    pub age: Duration,
    pub life: Duration,
    pub starts_in: Duration,
    pub expired_for: Duration,
    pub is_ca: bool,
}

impl Default for Leaf {
    fn default() -> Self {
        let life = Duration::from_secs(3600);
        Self {
            names: None,
            now: None,
            age: Duration::from_secs(120),
            life,
            starts_in: Duration::ZERO,
            expired_for: Duration::ZERO,
            is_ca: false,
        }
    }
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// The leaf for a request, as PEM.
    pub fn sign(&self, csr: &str, leaf: Leaf) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        let now = leaf.now.map_or_else(time::OffsetDateTime::now_utc, time::OffsetDateTime::from);
        request.params.not_before = now - leaf.age + leaf.starts_in;
        request.params.not_after = now + leaf.life + leaf.starts_in;
        if !leaf.expired_for.is_zero() {
            request.params.not_after = now - leaf.expired_for;
        }
        request.params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        request.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if let Some(names) = leaf.names {
            request.params.subject_alt_names = names;
        }
        if leaf.is_ca {
            request.params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        request.signed_by(&self.issuer).unwrap().pem()
    }

    /// An honest answer.
    pub fn answer(&self, csr: &str) -> Vec<String> {
        vec![self.sign(csr, Leaf::default()), self.pem.clone()]
    }

    fn server_config(&self, names: &[&str]) -> rustls::ServerConfig {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let chain = vec![CertificateDer::from(params.signed_by(&key, &self.issuer).unwrap().der().to_vec())];
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

/// One stream of a client, in the hands of the test. Dropping it ends the stream.
pub struct AdsStream {
    pub metadata: MetadataMap,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl AdsStream {
    pub async fn request(&mut self) -> DeltaDiscoveryRequest {
        soon("a request", self.requests.message()).await.unwrap().expect("the stream is open")
    }

    pub async fn respond(&self, response: DeltaDiscoveryResponse) {
        self.responses.send(Ok(response)).await.unwrap();
    }

    pub async fn fail(self, status: Status) {
        self.responses.send(Err(status)).await.unwrap();
    }
}

/// What the authority does with a request.
pub type Sign = Arc<dyn Fn(&IstioCertificateRequest, &MetadataMap) -> Result<Vec<String>, Status> + Send + Sync>;

/// The server.
pub struct ControlPlane {
    pub address: SocketAddr,
    pub ca: Arc<Ca>,
    pub folder: tempfile::TempDir,
    streams: mpsc::Receiver<AdsStream>,
    task: JoinHandle<()>,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ControlPlane {
    pub async fn start(sign: Sign) -> Self {
        Self::start_as(&["127.0.0.1", "istiod.test"], sign).await
    }

    /// With a certificate for these names.
    pub async fn start_as(names: &[&str], sign: Sign) -> Self {
        let ca = Arc::new(Ca::new("control plane"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(ca.server_config(names)));
        let (opened, streams) = mpsc::channel(64);
        let (accepted, incoming) = mpsc::channel(64);
        let ads = AggregatedDiscoveryServiceServer::new(Ads { opened }).max_decoding_message_size(64 << 20);
        let authority = IstioCertificateServiceServer::new(Signer { sign });
        let server = Server::builder().add_service(ads).add_service(authority);
        let task = tokio::spawn(async move {
            let accept = async move {
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
                    tokio::spawn(async move {
                        if let Ok(tls) = acceptor.accept(tcp).await {
                            let _ = accepted.send(Ok::<_, io::Error>(Tls(tls))).await;
                        }
                    });
                }
            };
            tokio::select! {
                () = accept => {}
                result = server.serve_with_incoming(ReceiverStream::new(incoming)) => result.unwrap(),
            }
        });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("root.pem"), &ca.pem).unwrap();
        std::fs::write(folder.path().join("token"), "secret-1\n").unwrap();
        Self { address, ca, folder, streams, task }
    }

    pub fn config(&self) -> ControlConfig {
        ControlConfig::new(self.address.to_string(), self.path("root.pem"), Some(self.path("token")), "node-1")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub async fn stream(&mut self) -> AdsStream {
        soon("a stream", self.streams.recv()).await.expect("the server runs")
    }

    pub fn try_stream(&mut self) -> Option<AdsStream> {
        self.streams.try_recv().ok()
    }
}

/// For tests without certificates.
pub fn no_authority() -> Sign {
    Arc::new(|_, _| Err(Status::unimplemented("no authority")))
}

struct Ads {
    opened: mpsc::Sender<AdsStream>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let metadata = request.metadata().clone();
        let (responses, outgoing) = mpsc::channel(16);
        let stream = AdsStream { metadata, requests: request.into_inner(), responses };
        self.opened.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

struct Signer {
    sign: Sign,
}

#[tonic::async_trait]
impl IstioCertificateService for Signer {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let metadata = request.metadata().clone();
        let cert_chain = (self.sign)(request.get_ref(), &metadata)?;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

struct Tls(TlsStream<TcpStream>);

impl Connected for Tls {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Tls {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tls {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
