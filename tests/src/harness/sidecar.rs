//! A client whose pod has a sidecar of Istio's, as far as the mesh sees one: mutual TLS straight to an address and a port, with a certificate of the mesh's own
//! authority, and HTTP in it. For the rows about migrations.
use super::netns::Netns;
use anyhow::{Context, Result, ensure};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);
/// What sidecars offer for HTTP.
const OFFERS: [&str; 3] = ["istio-http/1.1", "istio", "http/1.1"];

/// An authority of identities.
pub struct Mesh(Issuer<'static, KeyPair>);

/// A certificate with its key.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Mesh {
    /// The one that a control plane has in its folder.
    pub fn of(state: &Path) -> Result<Mesh> {
        let read = |file| std::fs::read_to_string(state.join(file)).with_context(|| format!("read {file}"));
        let key = KeyPair::from_pem(&read("ca-key.pem")?)?;
        Ok(Mesh(Issuer::from_ca_cert_pem(&read("root-cert.pem")?, key)?))
    }

    /// One that nobody believes.
    pub fn unknown() -> Result<Mesh> {
        Ok(Mesh(Issuer::new(CertificateParams::default(), KeyPair::generate()?)))
    }

    /// A certificate for a SPIFFE id.
    pub fn issue(&self, id: &str) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let chain = vec![params.signed_by(&key, &self.0)?.der().clone()];
        Ok(Identity { chain, key: PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())? })
    }
}

/// One request by a sidecar, with this identity if it shows any: the status of the answer. The server must show `server`.
pub fn get(from: &Netns, to: SocketAddr, path: &str, identity: Option<&Identity>, server: &str) -> Result<u16> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Shown(provider)));
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = OFFERS.iter().map(|name| name.as_bytes().to_vec()).collect();
    config.enable_sni = false;
    let tcp = from.run(|| {
        let tcp = TcpStream::connect_timeout(&to, LIMIT).context("connect")?;
        tcp.set_read_timeout(Some(LIMIT))?;
        Ok(tcp)
    })?;
    let client = ClientConnection::new(Arc::new(config), ServerName::IpAddress(to.ip().into()))?;
    let mut stream = StreamOwned::new(client, tcp);
    write!(stream, "GET {path} HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n").context("send a request")?;
    let mut answer = [0; 256];
    let length = stream.read(&mut answer).context("read an answer")?;
    ensure!(stream.conn.alpn_protocol() == Some(b"istio"), "{:?} was agreed on", stream.conn.alpn_protocol());
    let shown = stream.conn.peer_certificates().and_then(<[_]>::first).context("a certificate")?;
    ensure!(shown.windows(server.len()).any(|part| part == server.as_bytes()), "the server is not {server}");
    let text = String::from_utf8_lossy(&answer[..length]);
    text.split(' ').nth(1).and_then(|code| code.parse().ok()).with_context(|| format!("a status in {text:?}"))
}

/// Who answers is looked at afterwards.
#[derive(Debug)]
struct Shown(Arc<CryptoProvider>);

impl ServerCertVerifier for Shown {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
