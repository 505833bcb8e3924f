//! Servers that meshes ask about requests: an external authorizer as Istio's sample has it, by HTTP and by gRPC, and a service that counts requests. A line
//! tells of each question.
use super::servers::{listen, runtime};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_proto::ext_authz::authorization_server::{Authorization, AuthorizationServer};
use mesh_proto::ext_authz::check_response::HttpResponse;
use mesh_proto::ext_authz::{self as authz, CheckRequest, CheckResponse};
use mesh_proto::rate_limit::rate_limit_service_server::{RateLimitService, RateLimitServiceServer};
use mesh_proto::rate_limit::{self as limits, RateLimitRequest, RateLimitResponse};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Mutex;
use tokio_stream::wrappers::TcpListenerStream;

/// The header by which a request asks to be let through.
const SAID: &str = "x-ext-authz";

/// Lets through what says `x-ext-authz: allow`, and adds a header to it; anything else is denied.
pub fn authorizer(http_port: u16, grpc_port: u16) -> Result<()> {
    runtime()?.block_on(async {
        let (http, grpc) = (adopted(http_port)?, adopted(grpc_port)?);
        let server = tonic::transport::Server::builder().add_service(AuthorizationServer::new(ByGrpc));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(grpc)));
        println!("ready");
        loop {
            let Ok((stream, _)) = http.accept().await else { continue };
            let service = service_fn(|request| async move { Ok::<_, Infallible>(by_http(&request)) });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move { connection.await.is_ok() });
        }
    })
}

fn adopted(port: u16) -> Result<tokio::net::TcpListener> {
    let listener = listen(port, false)?;
    listener.set_nonblocking(true).context("set non-blocking")?;
    tokio::net::TcpListener::from_std(listener).context("adopt listener")
}

fn by_http(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let said = request.headers().get(SAID).and_then(|value| value.to_str().ok()).unwrap_or_default();
    println!("asked http {} {} {said}", request.method(), request.uri().path());
    let (status, text) = if said == "allow" { (200, "") } else { (403, "denied by ext_authz") };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    response.headers_mut().insert("x-ext-authz-check-result", http::HeaderValue::from_static("http"));
    response
}

struct ByGrpc;

#[tonic::async_trait]
impl Authorization for ByGrpc {
    async fn check(
        &self,
        request: tonic::Request<CheckRequest>,
    ) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
        let attributes = request.into_inner().attributes.unwrap_or_default();
        let client = attributes.source.unwrap_or_default().principal;
        let http = attributes.request.and_then(|request| request.http).unwrap_or_default();
        let said = http.headers.get(SAID).cloned().unwrap_or_default();
        println!("asked grpc {} {} {said} {client}", http.method, http.path);
        let header = authz::Header { key: "x-ext-authz-check-result".into(), value: "grpc".into(), raw_value: vec![] };
        let headers = vec![authz::HeaderOption { header: Some(header), ..Default::default() }];
        let (code, response) = match said == "allow" {
            true => (0, HttpResponse::OkResponse(authz::OkResponse { headers, ..Default::default() })),
            false => {
                let (status, body) = (Some(authz::HttpStatus { code: 403 }), "denied by ext_authz".to_owned());
                (7, HttpResponse::DeniedResponse(authz::DeniedResponse { status, headers, body }))
            }
        };
        let status = Some(authz::Status { code });
        Ok(tonic::Response::new(CheckResponse { status, http_response: Some(response) }))
    }
}

/// How many requests there may be while the server lives: of `key=value:count` those with that entry, of `key:count` those of each value.
pub fn counting(port: u16, limits: &[String]) -> Result<()> {
    let mut known = BTreeMap::new();
    for limit in limits {
        let Some((what, count)) = limit.rsplit_once(':') else {
            bail!("{limit:?}: write KEY:COUNT or KEY=VALUE:COUNT")
        };
        known.insert(what.to_owned(), count.parse::<u32>().context("a count")?);
    }
    runtime()?.block_on(async {
        let incoming = TcpListenerStream::new(adopted(port)?);
        let service = RateLimitServiceServer::new(Counting { known, seen: Mutex::default() });
        println!("ready");
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.context("serve")
    })
}

struct Counting {
    known: BTreeMap<String, u32>,
    /// By domain, key and value.
    seen: Mutex<BTreeMap<(String, String), u32>>,
}

impl Counting {
    fn is_over(&self, domain: &str, entry: &limits::Entry) -> bool {
        let whole = format!("{}={}", entry.key, entry.value);
        let Some(most) = self.known.get(&whole).or_else(|| self.known.get(&entry.key)) else { return false };
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let count = seen.entry((domain.to_owned(), whole)).or_default();
        *count += 1;
        *count > *most
    }
}

#[tonic::async_trait]
impl RateLimitService for Counting {
    async fn should_rate_limit(
        &self,
        request: tonic::Request<RateLimitRequest>,
    ) -> Result<tonic::Response<RateLimitResponse>, tonic::Status> {
        let request = request.into_inner();
        let entries = request.descriptors.iter().flat_map(|descriptor| &descriptor.entries);
        let over = entries.filter(|entry| self.is_over(&request.domain, entry)).count() > 0;
        println!("counted {} over={over} {:?}", request.domain, request.descriptors);
        let code = if over { limits::Code::OverLimit } else { limits::Code::Ok };
        Ok(tonic::Response::new(RateLimitResponse { overall_code: code.into(), ..Default::default() }))
    }
}
