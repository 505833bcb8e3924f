//! A control plane in this process, and clients that speak to it over TLS on the loopback address.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_control::app::App;
use mesh_control::config;
use mesh_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use mesh_proto::discovery as wire;
use mesh_proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// Nothing here takes longer, on any machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits, but not for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// A control plane with its folders.
pub struct Plane {
    folder: tempfile::TempDir,
    pub app: App,
}

impl Plane {
    /// Starts with some manifests (name, text) and further arguments.
    pub async fn start(manifests: &[(&str, &str)], more: &[&str]) -> Plane {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("manifests")).unwrap();
        for (name, text) in manifests {
            fs::write(folder.path().join("manifests").join(name), text).unwrap();
        }
        let app = Self::app(folder.path(), more).await;
        Plane { folder, app }
    }

    async fn app(folder: &Path, more: &[&str]) -> App {
        let path = |name: &str| folder.join(name).display().to_string();
        let (manifests, state) = (path("manifests"), path("state"));
        let fixed = [
            "mesh-control",
            "--manifests",
            &manifests,
            "--state-dir",
            &state,
            "--listen",
            "127.0.0.1:0",
            "--metrics",
            "127.0.0.1:0",
        ];
        let args = config::parse(fixed.iter().chain(more)).map_err(|(e, _)| e).unwrap();
        soon("start", App::start(args.check().unwrap())).await.unwrap()
    }

    /// Ends the process and starts it again on the same folders.
    pub async fn restart(self) -> Plane {
        soon("stop", self.app.stop()).await;
        let app = Self::app(self.folder.path(), &[]).await;
        Plane { folder: self.folder, app }
    }

    pub fn state(&self, name: &str) -> PathBuf {
        self.folder.path().join("state").join(name)
    }

    /// Replaces a manifest as editors do: by rename.
    pub fn write(&self, name: &str, text: &str) {
        let manifests = self.folder.path().join("manifests");
        let new = manifests.join(format!(".{name}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, manifests.join(name)).unwrap();
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.folder.path().join("manifests").join(name)).unwrap();
    }

    pub fn token(&self, node: &str) -> String {
        fs::read_to_string(self.state("tokens").join(node)).unwrap()
    }

    pub fn roots(&self) -> String {
        fs::read_to_string(self.state("root-cert.pem")).unwrap()
    }

    pub async fn channel(&self) -> Channel {
        connect(self.app.listen, &self.roots(), "127.0.0.1").await.unwrap()
    }

    /// A stream of the node's agent.
    pub async fn agent(&self, node: &str) -> Agent {
        Agent::open(self.channel().await, &self.token(node), node).await.unwrap()
    }

    /// Asks for a certificate.
    pub async fn certificate(
        &self,
        token: &str,
        request: IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, Status> {
        let mut client = IstioCertificateServiceClient::new(self.channel().await);
        let mut request = Request::new(request);
        if let Ok(value) = format!("Bearer {token}").parse() {
            request.metadata_mut().insert("authorization", value);
        }
        soon("certificate", client.create_certificate(request)).await.map(tonic::Response::into_inner)
    }

    /// A page of the status listener: code and body.
    pub async fn page(&self, path: &str) -> (u16, String) {
        page(self.app.metrics, path).await
    }
}

/// A page of a status listener: code and body.
pub async fn page(address: SocketAddr, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    soon("page", stream.read_to_string(&mut text)).await.unwrap();
    let code = text.split(' ').nth(1).unwrap().parse().unwrap();
    (code, text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// TLS to the control plane, trusting `roots`, expecting `name`.
pub async fn connect(address: SocketAddr, roots: &str, name: &str) -> Result<Channel, tonic::transport::Error> {
    let tls = client_config(roots, &[&rustls::version::TLS13]);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connector = tower::service_fn(move |_| {
        let (tls, name) = (tls.clone(), name.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://control").connect_with_connector(connector).await
}

pub fn client_config(roots: &str, versions: &[&'static rustls::SupportedProtocolVersion]) -> Arc<ClientConfig> {
    let mut store = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// A request for a certificate, as ztunnel writes it.
pub fn request(identity: &str, csr: &str, seconds: i64) -> IstioCertificateRequest {
    let value = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(identity.to_owned())) };
    let metadata = prost_types::Struct { fields: [("ImpersonatedIdentity".to_owned(), value)].into() };
    IstioCertificateRequest { csr: csr.to_owned(), validity_duration: seconds, metadata: Some(metadata) }
}

/// A fresh key and its request.
pub fn csr() -> (rcgen::KeyPair, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let text = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, text)
}

/// What a resource is held by. What waypoints have of their own has one name in each kind; all but the routes are told apart by their kind.
fn key(url: &str, name: &str) -> String {
    match url.rsplit('.').next() {
        Some("Address" | "Authorization" | "RouteTable") | None => name.to_owned(),
        Some(kind) => format!("{kind} {name}"),
    }
}

/// A client of aggregated discovery that acknowledges everything and remembers what it has.
pub struct Agent {
    requests: mpsc::Sender<wire::DeltaDiscoveryRequest>,
    responses: Streaming<wire::DeltaDiscoveryResponse>,
    pub held: HashMap<String, wire::Resource>,
}

impl Agent {
    pub async fn open(channel: Channel, token: &str, node: &str) -> Result<Agent, Status> {
        Self::open_for(channel, token, node, &[ADDRESS_TYPE, AUTHORIZATION_TYPE], HashMap::new()).await
    }

    /// A stream that asks for these types, and says that it has what is held.
    pub async fn open_for(
        channel: Channel,
        token: &str,
        node: &str,
        types: &[&str],
        held: HashMap<String, wire::Resource>,
    ) -> Result<Agent, Status> {
        let (requests, receiver) = mpsc::channel(16);
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 << 20);
        let mut request = Request::new(ReceiverStream::new(receiver));
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let value = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(node.to_owned())) };
        let metadata = prost_types::Struct { fields: [("NODE_NAME".to_owned(), value)].into() };
        let id = format!("ztunnel~198.18.0.1~ztunnel-x.istio-system~{node}");
        let node = wire::Node { id, metadata: Some(metadata), ..Default::default() };
        for url in types {
            let own = held.values().filter(|r| r.resource.as_ref().is_some_and(|body| body.type_url == **url));
            let request = wire::DeltaDiscoveryRequest {
                node: Some(node.clone()),
                type_url: (*url).into(),
                initial_resource_versions: own.map(|r| (r.name.clone(), r.version.clone())).collect(),
                ..Default::default()
            };
            requests.send(request).await.unwrap();
        }
        let responses = soon("stream", client.delta_aggregated_resources(request)).await?.into_inner();
        Ok(Agent { requests, responses, held })
    }

    /// The next response, applied and acknowledged.
    pub async fn next(&mut self) -> Result<wire::DeltaDiscoveryResponse, Status> {
        soon("response", self.receive()).await
    }

    /// The same, however long it takes.
    pub async fn receive(&mut self) -> Result<wire::DeltaDiscoveryResponse, Status> {
        let response = self.responses.message().await?.ok_or_else(|| Status::cancelled("ended"))?;
        for name in &response.removed_resources {
            self.held.remove(&key(&response.type_url, name));
        }
        for resource in &response.resources {
            self.held.insert(key(&response.type_url, &resource.name), resource.clone());
        }
        let ack = wire::DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        let _ = self.requests.send(ack).await;
        Ok(response)
    }

    /// Takes responses until `done` holds of what it has.
    pub async fn until(&mut self, what: &str, done: impl Fn(&HashMap<String, wire::Resource>) -> bool) {
        soon(what, async {
            while !done(&self.held) {
                self.next().await.unwrap();
            }
        })
        .await;
    }

    /// The next response, neither applied nor acknowledged.
    pub async fn raw(&mut self) -> wire::DeltaDiscoveryResponse {
        self.responses.message().await.unwrap().unwrap()
    }

    pub fn bytes(&self, name: &str) -> &[u8] {
        &self.held[name].resource.as_ref().unwrap().value
    }

    pub async fn send(&self, request: wire::DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }
}
