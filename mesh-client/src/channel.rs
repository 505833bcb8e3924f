//! A gRPC channel to the control plane: TLS with our own root file, verified by name before a token leaves the process. Roots and token are
//! read again each time, so that rotation needs no restart.

use std::{io, path::Path, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use mesh_transport::tls::WallClock;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    metadata::{Ascii, MetadataMap, MetadataValue},
    transport::{Channel, Endpoint},
};

use crate::ControlConfig;

/// For TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent peer is noticed after at most 30 s: ping after 20 s, answer within 10 s. Istiod ends connections on which pings come within 15 s of each other,
/// or without a call.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_FILE: u64 = 1 << 20;

/// Why there is no channel, or why it may not be used.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// A file of ours.
    #[error("{what} {path}: {problem}")]
    File {
        /// Which file.
        what: &'static str,
        /// Where.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The settings make no URI.
    #[error("control plane address {address:?}: {problem}")]
    Address {
        /// As configured.
        address: String,
        /// What is wrong.
        problem: String,
    },
    /// Not reachable, or not who it should be.
    #[error("cannot connect to {address}: {problem}")]
    Connect {
        /// As configured.
        address: String,
        /// What happened.
        problem: String,
    },
}

/// Connects now.
pub(crate) async fn connect(config: &Arc<ControlConfig>) -> Result<Channel, ChannelError> {
    let endpoint = endpoint(config)?;
    let connected = endpoint.connect_with_connector(connector(Arc::clone(config))).await;
    connected.map_err(|e| ChannelError::Connect { address: config.address.clone(), problem: chain(&e) })
}

/// Connects when first used, and again after a failure.
pub(crate) fn lazy(config: &Arc<ControlConfig>) -> Result<Channel, ChannelError> {
    Ok(endpoint(config)?.connect_with_connector_lazy(connector(Arc::clone(config))))
}

fn endpoint(config: &ControlConfig) -> Result<Endpoint, ChannelError> {
    // The connector brings TLS; tonic's own would not see the root file change.
    let endpoint = Endpoint::from_shared(format!("https://{}", config.address));
    let endpoint = endpoint
        .map_err(|e| ChannelError::Address { address: config.address.clone(), problem: chain(&e) })?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false);
    Ok(endpoint)
}

fn connector(
    config: Arc<ControlConfig>,
) -> impl tower::Service<http::Uri, Response = TokioIo<TlsStream<TcpStream>>, Error = io::Error, Future: Send> + Send + 'static
{
    tower::service_fn(move |_: http::Uri| {
        let config = Arc::clone(&config);
        async move {
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, handshake(&config)).await;
            let deadline = |_| io::Error::new(io::ErrorKind::TimedOut, "no TLS session within 5 s");
            connected.map_err(deadline)?.map(TokioIo::new)
        }
    })
}

async fn handshake(config: &ControlConfig) -> io::Result<TlsStream<TcpStream>> {
    let tls = tls_config(&config.root_cert).map_err(io::Error::other)?;
    let name = ServerName::try_from(config.server_name.clone()).map_err(io::Error::other)?;
    let tcp = TcpStream::connect(&config.address).await?;
    tcp.set_nodelay(true)?;
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(io::Error::other("the control plane does not speak HTTP/2"));
    }
    Ok(stream)
}

fn tls_config(root_cert: &Path) -> Result<ClientConfig, ChannelError> {
    let file = |problem: String| ChannelError::File {
        what: "root certificate",
        path: root_cert.display().to_string(),
        problem,
    };
    let pem = read(root_cert).map_err(|e| file(e.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| file(e.to_string()))?;
        roots.add(certificate).map_err(|e| file(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(file("holds no certificate".into()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_details(provider, Arc::new(WallClock)).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| file(e.to_string()))?;
    let mut tls = builder.with_root_certificates(roots).with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(tls)
}

/// What each request carries: the token of this node and its cluster.
pub(crate) fn credentials(config: &ControlConfig) -> Result<MetadataMap, ChannelError> {
    let mut map = MetadataMap::new();
    if let Ok(cluster) = MetadataValue::try_from(&config.cluster_id) {
        map.insert("clusterid", cluster);
    }
    let Some(path) = &config.token else { return Ok(map) };
    let file = |problem: String| ChannelError::File { what: "token", path: path.display().to_string(), problem };
    let token = String::from_utf8(read(path).map_err(|e| file(e.to_string()))?).map_err(|_| file("not text".into()))?;
    let mut value: MetadataValue<Ascii> =
        format!("Bearer {}", token.trim()).parse().map_err(|_| file("cannot be sent in a header".into()))?;
    value.set_sensitive(true);
    map.insert("authorization", value);
    Ok(map)
}

/// These files are a few kilobytes; anything else is a mistake that must not eat memory, or be waited for as a pipe would.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    use io::Read;
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    let size = std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if size as u64 > MAX_FILE { Err(io::Error::other("larger than 1 MiB")) } else { Ok(bytes) }
}

/// An error with its causes, which is where transport errors say what happened.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
