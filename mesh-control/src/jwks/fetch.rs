//! One document, from one place: the name is resolved here, every address of it is judged, and that very address is connected to, so that a second answer of a
//! name server changes nothing. Nobody is followed elsewhere.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use mesh_core::ArcStr;
use mesh_runtime::task;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::resource::token_keys::Place;

/// Bytes of a document.
const MOST_BYTES: usize = 256 << 10;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not a URL of http or https.
    #[error("not a place that can be asked: {0}")]
    Place(String),
    /// Its name has no address.
    #[error("{0} has no address: {1}")]
    Name(String, std::io::Error),
    /// It leads to this machine, to the link or to what clouds tell of machines.
    #[error("{0} has the address {1}, which is not asked")]
    Guarded(String, IpAddr),
    /// No connection came about.
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    /// The connection was lost.
    #[error("lost: {0}")]
    Lost(String),
    /// Another status than 200; who sends elsewhere is not followed.
    #[error("the answer is {0}")]
    Status(StatusCode),
    /// No document of that kind.
    #[error("{0}")]
    Document(&'static str),
    /// It took too long.
    #[error("it took too long")]
    Late,
}

/// Asks places.
pub struct Client {
    tls: TlsConnector,
    is_allowed: fn(IpAddr) -> bool,
}

impl Client {
    /// One that believes in the certificates that this machine does.
    pub fn new(is_allowed: fn(IpAddr) -> bool) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = config.with_root_certificates(roots).with_no_client_auth();
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), is_allowed })
    }

    /// The keys of a place, as they are written.
    pub async fn keys(&self, place: &Place) -> Result<ArcStr, FetchError> {
        let text = match place {
            Place::Keys(uri) => self.document(uri).await?,
            Place::Issuer(issuer) => {
                let issuer = issuer.trim_end_matches('/');
                let said = self.document(&format!("{issuer}/.well-known/openid-configuration")).await?;
                let said: Value = serde_json::from_str(&said)
                    .map_err(|_| FetchError::Document("the issuer does not say where its keys are"))?;
                let uri = said["jwks_uri"].as_str();
                self.document(uri.ok_or(FetchError::Document("the issuer does not say where its keys are"))?).await?
            }
        };
        let set: Option<Value> = serde_json::from_str(&text).ok();
        match set.is_some_and(|set| set["keys"].is_array()) {
            true => Ok(text.into()),
            false => Err(FetchError::Document("it is no set of keys")),
        }
    }

    async fn document(&self, uri: &str) -> Result<String, FetchError> {
        let wrong = || FetchError::Place(uri.chars().take(200).collect());
        let uri: Uri = uri.parse().map_err(|_| wrong())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(wrong()) };
        let is_tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(wrong()),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let tcp = self.connect(&host, authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 })).await?;
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let named = authority.as_str().rsplit('@').next().unwrap_or_default();
        let request = Request::get(target).header(HOST, named).header(ACCEPT, "application/json");
        let request = request.body(Empty::new()).map_err(|_| wrong())?;
        let response = if is_tls {
            let name = ServerName::try_from(host).map_err(|_| wrong())?;
            ask(self.tls.connect(name, tcp).await.map_err(FetchError::Connect)?, request).await?
        } else {
            ask(tcp, request).await?
        };
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), MOST_BYTES).collect().await;
        let bytes = body.map_err(|error| FetchError::Lost(error.to_string()))?.to_bytes();
        String::from_utf8(bytes.into()).map_err(|_| FetchError::Document("it is no text"))
    }

    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, FetchError> {
        let found = tokio::net::lookup_host((host, port)).await;
        let all: Vec<_> = found.map_err(|error| FetchError::Name(host.to_owned(), error))?.collect();
        // A name that leads to both leads where it should not.
        if let Some(bad) = all.iter().find(|address| !(self.is_allowed)(address.ip())) {
            return Err(FetchError::Guarded(host.to_owned(), bad.ip()));
        }
        TcpStream::connect(&*all).await.map_err(FetchError::Connect)
    }
}

async fn ask(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, FetchError> {
    let lost = |error: hyper::Error| FetchError::Lost(error.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(lost)?;
    task::spawn("keys of an issuer", async move {
        let _ = connection.await;
    });
    sender.send_request(request).await.map_err(lost)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers once, with these bytes.
    async fn answering(answer: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let _ = tcp.read(&mut head).await;
            let _ = tcp.write_all(&answer).await;
            let _ = tcp.shutdown().await;
        });
        format!("http://127.0.0.1:{port}/keys")
    }

    fn http(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[tokio::test]
    async fn hardening_B187_only_a_set_of_keys_is_taken() {
        let client = Client::new(|_| true).unwrap();
        let good = r#"{"keys": []}"#;
        let long = format!(r#"{{"keys": [], "x": "{}"}}"#, "x".repeat(MOST_BYTES));
        for (what, answer, expected) in [
            ("good", http("200 OK", good), Ok(good)),
            ("HTML", http("200 OK", "<html>"), Err("it is no set of keys")),
            ("other JSON", http("200 OK", "[]"), Err("it is no set of keys")),
            ("too long", http("200 OK", &long), Err("lost: length limit exceeded")),
            ("elsewhere", http("302 Found\r\nlocation: http://169.254.169.254/", good), Err("the answer is 302 Found")),
            ("an error", http("500 Internal Server Error", good), Err("the answer is 500 Internal Server Error")),
        ] {
            let uri = answering(answer).await;
            let got = client.keys(&Place::Keys(uri)).await.map_err(|error| error.to_string());
            assert_eq!(got.as_deref().map_err(String::as_str), expected, "{what}");
        }
    }

    #[tokio::test]
    async fn hardening_GHSA_fgw5_who_leads_to_this_machine_is_not_asked() {
        let client = Client::new(mesh_core::outside::is_public).unwrap();
        for uri in
            ["http://127.0.0.1:1/", "http://localhost:1/", "http://[::1]:1/", "http://user@127.1:1/", "https://0/"]
        {
            let got = client.keys(&Place::Keys(uri.to_owned())).await;
            assert!(matches!(got, Err(FetchError::Guarded(..))), "{uri}: {got:?}");
        }
        for uri in ["file:///etc/passwd", "gopher://a/", "/keys", ""] {
            assert!(matches!(client.keys(&Place::Keys(uri.to_owned())).await, Err(FetchError::Place(_))), "{uri}");
        }
    }
}
