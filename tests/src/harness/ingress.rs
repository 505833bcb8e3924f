//! Visitors from outside of the mesh: HTTP over TCP or TLS to an ingress gateway, and the certificates that either side shows.
use super::http::Response;
use super::netns::Netns;
use anyhow::{Context, Result, bail, ensure};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

/// An authority of somebody outside.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub pem: String,
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Pair {
    /// PEM.
    pub cert: String,
    /// PEM.
    pub key: String,
}

impl Authority {
    /// A new one.
    pub fn new() -> Result<Authority> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Authority { issuer: Issuer::new(params, key), pem })
    }

    /// A certificate for these names, for servers and clients.
    pub fn issue(&self, names: &[&str]) -> Result<Pair> {
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        Ok(Pair { cert: params.signed_by(&key, &self.issuer)?.pem(), key: key.serialize_pem() })
    }
}

impl Pair {
    fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        Ok(CertificateDer::pem_slice_iter(self.cert.as_bytes()).collect::<Result<_, _>>()?)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>> {
        Ok(PrivateKeyDer::from_pem_slice(self.key.as_bytes())?)
    }

    /// A server that shows it.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(Arc::new(builder.with_no_client_auth().with_single_cert(self.chain()?, self.key()?)?))
    }

    /// The same, that asks clients for a certificate of `authority`, and goes on without one.
    pub fn server_asking(&self, authority: &Authority) -> Result<Arc<ServerConfig>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes())?)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = builder.with_client_cert_verifier(verifier.allow_unauthenticated().build()?);
        Ok(Arc::new(builder.with_single_cert(self.chain()?, self.key()?)?))
    }
}

/// A visitor of one address.
#[derive(Clone, Debug)]
pub struct Visitor {
    netns: Netns,
    address: SocketAddr,
    /// PEM: by whom the gateway's certificate is believed.
    roots: String,
    /// What it shows.
    pair: Option<Pair>,
}

/// A connection over which one request follows the other.
pub struct Visit {
    stream: BufReader<Box<dyn Stream>>,
    /// The certificate that was shown.
    pub shown: Option<CertificateDer<'static>>,
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

impl Visitor {
    /// One that comes from `netns`.
    pub fn new(netns: &Netns, address: SocketAddr) -> Visitor {
        Visitor { netns: netns.clone(), address, roots: String::new(), pair: None }
    }

    /// One that believes an authority.
    pub fn believing(self, authority: &Authority) -> Visitor {
        Visitor { roots: authority.pem.clone(), ..self }
    }

    /// One that shows a certificate if it is asked for one.
    pub fn showing(self, pair: &Pair) -> Visitor {
        Visitor { pair: Some(pair.clone()), ..self }
    }

    fn connect(&self) -> Result<TcpStream> {
        self.netns.run(|| {
            let stream = TcpStream::connect_timeout(&self.address, LIMIT);
            let stream = stream.with_context(|| format!("connect to {}", self.address))?;
            stream.set_read_timeout(Some(LIMIT))?;
            Ok(stream)
        })
    }

    /// A connection without TLS.
    pub fn plain(&self) -> Result<Visit> {
        Ok(Visit { stream: BufReader::new(Box::new(self.connect()?)), shown: None })
    }

    /// A connection without TLS that begins with `first`, as of a proxy in front.
    pub fn behind(&self, first: &[u8]) -> Result<Visit> {
        let mut stream = self.connect()?;
        stream.write_all(first).context("send what comes first")?;
        Ok(Visit { stream: BufReader::new(Box::new(stream)), shown: None })
    }

    /// One with TLS, for `name`.
    pub fn tls(&self, name: &str) -> Result<Visit> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(self.roots.as_bytes()) {
            roots.add(root?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = builder.with_root_certificates(roots);
        let mut config = match &self.pair {
            Some(pair) => builder.with_client_auth_cert(pair.chain()?, pair.key()?)?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut stream = self.connect()?;
        let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned())?)?;
        while client.is_handshaking() {
            client.complete_io(&mut stream).with_context(|| format!("handshake for {name}"))?;
        }
        let shown = client.peer_certificates().and_then(<[_]>::first).map(|leaf| leaf.clone().into_owned());
        Ok(Visit { stream: BufReader::new(Box::new(StreamOwned::new(client, stream))), shown })
    }

    /// The status of a GET without TLS.
    pub fn status(&self, host: &str, path: &str) -> Result<u16> {
        Ok(self.plain()?.get(host, path)?.status)
    }

    /// The status of a GET with TLS.
    pub fn tls_status(&self, host: &str, path: &str) -> Result<u16> {
        Ok(self.tls(host)?.get(host, path)?.status)
    }
}

impl Visit {
    /// One request and its answer, whose headers stand before its body.
    pub fn get(&mut self, host: &str, path: &str) -> Result<Response> {
        self.get_with(host, path, "")
    }

    /// The same with more lines of headers, each with its end.
    pub fn get_with(&mut self, host: &str, path: &str, lines: &str) -> Result<Response> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: visitor\r\n{lines}\r\n");
        self.stream.get_mut().write_all(request.as_bytes()).context("send request")?;
        self.stream.get_mut().flush()?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(self.stream.read_line(&mut head).context("read answer")? > 0, "the connection ended: {head:?}");
        }
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
        let lower = head.to_lowercase();
        let length = lower.split("\r\n").find_map(|line| line.strip_prefix("content-length: "));
        let mut body = Vec::new();
        if let Some(length) = length {
            body = vec![0; length.trim().parse()?];
            self.stream.read_exact(&mut body).context("read body")?;
        } else if lower.contains("transfer-encoding: chunked") {
            self.chunks(&mut body)?;
        } else if !matches!(status, 204 | 304) {
            bail!("an answer without a length: {head}");
        }
        Ok(Response { status, body: format!("{head}{}", String::from_utf8_lossy(&body)) })
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> Result<()> {
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).context("read a chunk's size")?;
            let size = usize::from_str_radix(line.trim(), 16).context("a chunk's size")?;
            let mut chunk = vec![0; size + 2];
            self.stream.read_exact(&mut chunk).context("read a chunk")?;
            if size == 0 {
                return Ok(());
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }
}
