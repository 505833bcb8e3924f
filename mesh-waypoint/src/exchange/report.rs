//! What is known of a request when it is over: numbers and a line of the log. It also holds what the request holds: its place at the endpoint, the connection
//! that goes back to the pool, and the client's connection, which is not idle before.

use std::sync::Arc;
use std::time::Instant;

use arcstr::ArcStr;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method, Request, Response, Version};
use hyper::body::Incoming;
use mesh_core::l7::Handling;

use crate::downstream::{Bound, Downstream};
use crate::http::ResponseBody;
use crate::http::body::Held;
use crate::http::count::{Count, Messages};
use crate::telemetry::{Flags, Measured, Protocol, Who};
use crate::upstream::{Connection, Endpoint};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// One request.
pub struct Report {
    down: Arc<Downstream>,
    bound: Option<Arc<Bound>>,
    began: Instant,
    http2: bool,
    grpc: bool,
    status: u16,
    grpc_status: Option<u16>,
    flags: Flags,
    retries: u32,
    received: Option<Arc<Count>>,
    sent: u64,
    messages: Messages,
    endpoint: Option<Endpoint>,
    connection: Option<Connection>,
    log: Option<Box<Line>>,
    recorded: bool,
}

/// What only the log wants to know.
struct Line {
    method: Method,
    path: String,
    id: String,
    rule: ArcStr,
}

impl Report {
    /// A request has come.
    pub fn begin(down: Arc<Downstream>, request: &Request<Incoming>) -> Self {
        down.watch.begin();
        Self {
            down,
            bound: None,
            began: Instant::now(),
            http2: request.version() == Version::HTTP_2,
            grpc: false,
            status: 0,
            grpc_status: None,
            flags: Flags::default(),
            retries: 0,
            received: None,
            sent: 0,
            messages: Messages::default(),
            endpoint: None,
            connection: None,
            log: None,
            recorded: false,
        }
    }

    /// What the connection leads to.
    pub fn bound(&mut self, bound: &Arc<Bound>) {
        self.bound = Some(Arc::clone(bound));
    }

    /// It was read.
    pub fn asked(&mut self, parts: &Parts, grpc: bool) {
        self.grpc = grpc;
        if self.down.lane.shared.settings.access_log {
            let id = parts.headers.get("x-request-id").and_then(|id| id.to_str().ok());
            self.log = Some(Box::new(Line {
                method: parts.method.clone(),
                path: parts.uri.to_string(),
                id: id.unwrap_or("-").to_owned(),
                rule: ArcStr::new(),
            }));
        }
    }

    /// A rule means it.
    pub fn rule(&mut self, handling: &Handling) {
        if let Some(log) = &mut self.log {
            log.rule = handling.origin.clone();
        }
    }

    /// Something is to be said of it, in Envoy's word.
    pub fn flag(&mut self, flag: &'static str) {
        self.flags.add(Flags::of(flag));
    }

    /// It is tried again.
    pub fn retried(&mut self) {
        self.retries += 1;
    }

    /// Counts what comes of its body.
    pub fn received(&mut self) -> Arc<Count> {
        Arc::clone(self.received.get_or_insert_with(|| Arc::new(Count::new(self.grpc))))
    }

    /// An endpoint has answered.
    pub fn forwarded(&mut self, endpoint: Endpoint, connection: Connection) {
        (self.endpoint, self.connection) = (Some(endpoint), Some(connection));
    }

    /// The head of the answer is known.
    pub fn answered(&mut self, response: &Response<ResponseBody>) {
        self.status = response.status().as_u16();
        if self.grpc {
            self.grpc_status = grpc_status(response.headers());
        }
    }

    /// Whether it is gRPC.
    pub fn is_grpc(&self) -> bool {
        self.grpc
    }

    /// Whether the client speaks HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.http2
    }

    fn record(&mut self) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        self.down.watch.end();
        let received = self.received.as_deref().map_or(0, Count::bytes);
        let duration = self.began.elapsed();
        let shared = &self.down.lane.shared;
        let target = self.bound.as_ref().map(|bound| &bound.target);
        let who = Who {
            peer: &self.down.peer,
            client: self.bound.as_ref().and_then(|bound| bound.client.as_ref()),
            endpoint: self.endpoint.as_ref().map(|endpoint| &endpoint.workload),
            service: self.endpoint.as_ref().and_then(|endpoint| endpoint.service.as_ref()),
            asked: target.and_then(|target| target.service()),
        };
        let measured = Measured {
            status: self.status,
            grpc_status: self.grpc_status,
            flags: self.flags,
            protocol: if self.grpc { Protocol::Grpc } else { Protocol::Http },
            duration,
            received,
            sent: self.sent,
            messages_received: self.received.as_deref().map_or(0, Count::messages),
            messages_sent: self.messages.count,
        };
        self.down.lane.meters.record(&who, &measured, shared.ms_of(self.began + duration));
        if let Some(log) = &self.log {
            tracing::info!(
                target: "access",
                method = %log.method,
                path = log.path,
                protocol = if self.http2 { "HTTP/2" } else { "HTTP/1.1" },
                response_code = self.status,
                response_flags = %self.flags,
                bytes_received = received,
                bytes_sent = self.sent,
                duration_ms = duration.as_millis() as u64,
                request_id = log.id,
                retries = self.retries,
                route = %log.rule,
                upstream_host = self.endpoint.as_ref().map(|endpoint| endpoint.address.to_string()),
                downstream_remote_address = %self.down.peer.address,
                source_principal = %self.down.peer.identity,
                "request"
            );
        }
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

impl Held for Report {
    fn data(&mut self, bytes: &Bytes) {
        self.sent += bytes.len() as u64;
        if self.grpc {
            self.messages.feed(bytes);
        }
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        if self.grpc {
            self.grpc_status = grpc_status(trailers);
        }
    }

    fn end(mut self: Box<Self>, in_order: bool) {
        if in_order {
            if let Some(connection) = self.connection.take() {
                self.down.lane.pool.give_back(&self.down.lane.shared, connection);
            }
        } else {
            self.flag("DC");
        }
        self.record();
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // Given up before there was an answer: the client has left.
        if !self.recorded {
            self.flag("DC");
        }
        self.record();
    }
}
