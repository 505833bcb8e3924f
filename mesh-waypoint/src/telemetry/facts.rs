//! What is known of one request when it is over, as lines of the log, expressions and spans ask for it. What must be remembered from its messages is named
//! beforehand, and nothing else is kept.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use arcstr::ArcStr;
use http::header::USER_AGENT;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use jiff::Timestamp;
use mesh_core::l7::ClusterKey;
use mesh_core::telemetry::expression::{Attribute, Datum, Expression};
use mesh_core::telemetry::format::{Field, Format, Message, Plain, Template, Values};
use mesh_core::telemetry::write;
use mesh_core::{Identity, Service, Workload, grpc};

use super::details::{self, Details};
use super::{Measured, Protocol, Who};

/// Longest value of a header that an expression sees.
const LONGEST: usize = 4096;
const SERVICE_TIME: &str = "x-envoy-upstream-service-time";

/// What must be remembered of messages.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    request: Vec<HeaderName>,
    response: Vec<HeaderName>,
    trailers: Vec<HeaderName>,
    /// Expressions ask for headers by names that are known only then.
    all_request: bool,
    all_response: bool,
}

impl Wanted {
    /// For that format.
    pub fn format(&mut self, format: &Format) {
        format.fields().for_each(|(message, field)| self.field(message, field));
    }

    /// For that template.
    pub fn template(&mut self, template: &Template) {
        template.fields().for_each(|(message, field)| self.field(message, field));
    }

    /// For that expression.
    pub fn expression(&mut self, expression: &Expression) {
        self.all_request |= expression.wants(Attribute::RequestHeaders);
        self.all_response |= expression.wants(Attribute::ResponseHeaders);
        for (attribute, name) in [
            (Attribute::RequestReferer, "referer"),
            (Attribute::RequestUserAgent, "user-agent"),
            (Attribute::RequestId, "x-request-id"),
        ] {
            if expression.wants(attribute) {
                self.header(name);
            }
        }
    }

    /// A header of the request.
    pub fn header(&mut self, name: &'static str) {
        self.field(Message::Request, &Field::Header(HeaderName::from_static(name)));
    }

    fn field(&mut self, message: Message, field: &Field) {
        let Field::Header(name) = field else { return };
        let list = match message {
            Message::Request => &mut self.request,
            Message::Response => &mut self.response,
            Message::Trailer => &mut self.trailers,
        };
        if !list.contains(name) {
            list.push(name.clone());
        }
    }
}

/// What was remembered of the messages of one request.
#[derive(Debug)]
pub struct Remembered {
    method: Method,
    uri: Uri,
    authority: ArcStr,
    request: HeaderMap,
    status: Option<StatusCode>,
    response: HeaderMap,
    trailers: HeaderMap,
}

fn pick(from: &HeaderMap, names: &[HeaderName], all: bool) -> HeaderMap {
    if all {
        return from.clone();
    }
    let mut kept = HeaderMap::new();
    for name in names {
        if let Some(value) = from.get(name) {
            kept.insert(name.clone(), value.clone());
        }
    }
    kept
}

impl Remembered {
    /// Of a request.
    #[must_use]
    pub fn of(parts: &Parts, authority: &str, wanted: &Wanted) -> Self {
        Self {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            authority: authority.into(),
            request: pick(&parts.headers, &wanted.request, wanted.all_request),
            status: None,
            response: HeaderMap::new(),
            trailers: HeaderMap::new(),
        }
    }

    /// Of one that was refused while it was read. Of its headers nothing is shown but who it says it is: the rest may claim what only the mesh may say.
    #[must_use]
    pub fn unread(parts: &Parts, authority: &str) -> Self {
        let wanted = Wanted { request: vec![USER_AGENT], ..Wanted::default() };
        Self::of(parts, authority, &wanted)
    }

    /// Of its answer; `took` is how long its endpoint had.
    pub fn answer(&mut self, (status, headers): (StatusCode, &HeaderMap), took_ms: u128, wanted: &Wanted) {
        self.status = Some(status);
        self.response = pick(headers, &wanted.response, wanted.all_response);
        // Envoy adds it to the answer, and its log shows it.
        if wanted.response.iter().any(|name| name == SERVICE_TIME) && !self.response.contains_key(SERVICE_TIME) {
            let took = u64::try_from(took_ms).unwrap_or(u64::MAX);
            self.response.insert(HeaderName::from_static(SERVICE_TIME), HeaderValue::from(took));
        }
    }

    /// Of what came after it.
    pub fn trailers(&mut self, headers: &HeaderMap, wanted: &Wanted) {
        self.trailers = pick(headers, &wanted.trailers, false);
    }

    /// A header of the request, as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.request.get(name)?.to_str().ok()
    }

    /// The path that was asked for.
    #[must_use]
    pub fn path(&self) -> &str {
        self.uri.path()
    }

    /// The query that was asked for.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.uri.query()
    }

    /// The path and query that was asked for.
    #[must_use]
    pub fn target(&self) -> &str {
        self.uri.path_and_query().map_or("/", |target| target.as_str())
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The host that was asked for.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

/// Whoever was asked.
#[derive(Clone)]
pub struct Reached {
    /// The endpoint.
    pub workload: Arc<Workload>,
    /// The service that it was chosen for.
    pub service: Option<Arc<Service>>,
    /// Its address.
    pub address: SocketAddr,
    /// The place that it was chosen from, which the log names.
    pub place: Option<ClusterKey>,
}

/// All that is known of one request.
pub struct Facts<'a> {
    /// Of its messages; none if nobody is told of them.
    pub remembered: Option<&'a Remembered>,
    /// Between whom it went.
    pub who: &'a Who<'a>,
    /// How it went.
    pub measured: &'a Measured,
    /// When it came.
    pub start: SystemTime,
    /// When all of the request was here, in milliseconds since its head was.
    pub body_ms: Option<u64>,
    /// Milliseconds to the head of the answer.
    pub head_ms: Option<u64>,
    /// What is spoken with the client.
    pub http2: bool,
    /// It is no request but what was copied as it is: `tcp` or `udp`.
    pub copied: Option<&'static str>,
    /// It came to a gateway from outside of the mesh.
    pub edge: bool,
    /// `https` if its TLS ends here, and is not the mesh's.
    pub scheme: &'static str,
    /// The rule.
    pub rule: &'a str,
    /// Whoever was asked last, whether or not it has answered.
    pub endpoint: Option<&'a Reached>,
    /// An endpoint has answered.
    pub answered: bool,
    /// Why this proxy has, if that was said where it was decided.
    pub said: Option<&'a Details>,
    /// Why there was no connection to it.
    pub unreached: Option<&'a str>,
    /// How often it was sent.
    pub attempts: u32,
    /// The name that the client's TLS has asked for.
    pub server_name: Option<&'a str>,
    /// Why what was copied was ended here.
    pub ended: Option<&'a str>,
    /// What the client asked the waypoint for, and its port.
    pub asked: (&'a str, u16),
    /// Who the waypoint is.
    pub own: &'a Identity,
    /// The waypoint's pod.
    pub pod: &'a str,
    /// The waypoint's gateway.
    pub gateway: &'a str,
    /// Its cluster.
    pub cluster_id: &'a str,
    /// The trace.
    pub trace: Option<u128>,
}

impl Facts<'_> {
    /// Who has answered, in Envoy's words.
    pub(super) fn details(&self) -> Option<Cow<'_, str>> {
        if self.copied.is_some() {
            return None;
        }
        Some(details::of(self.said, self.answered, self.measured.flags))
    }

    /// The place that it was sent to, as Istio writes it.
    pub fn cluster(&self, out: &mut String) -> bool {
        self.endpoint.is_some_and(|reached| self.cluster_of(reached, out))
    }

    /// The place of one of those that it was sent to.
    pub(super) fn cluster_of(&self, reached: &Reached, out: &mut String) -> bool {
        reached
            .place
            .as_ref()
            .is_some_and(|key| write_cluster(self.edge, self.copied.unwrap_or("http"), key, out).is_ok())
    }

    /// The status of gRPC.
    fn grpc(&self) -> Option<u16> {
        self.measured.grpc_status.filter(|_| self.measured.protocol == Protocol::Grpc)
    }

    pub(super) fn protocol(&self) -> Option<&'static str> {
        self.copied.is_none().then_some(if self.http2 { "HTTP/2" } else { "HTTP/1.1" })
    }

    /// For expressions.
    #[must_use]
    pub fn datum(&self, attribute: Attribute) -> Option<Datum> {
        let text = |text: &str| Some(Datum::Text(write::cut(text, LONGEST).to_owned()));
        let number = |number: u64| Some(Datum::Number(i64::try_from(number).unwrap_or(i64::MAX)));
        let header = |name: &str| text(self.remembered?.header(name)?);
        match attribute {
            Attribute::RequestPath => text(self.remembered?.target()),
            Attribute::RequestUrlPath => text(self.remembered?.uri.path()),
            Attribute::RequestQuery => text(self.remembered?.uri.query().unwrap_or_default()),
            Attribute::RequestHost => text(self.remembered?.authority()),
            Attribute::RequestScheme => text(self.scheme),
            Attribute::RequestMethod => text(self.remembered?.method.as_str()),
            Attribute::RequestProtocol => text(self.protocol()?),
            Attribute::RequestReferer => header("referer"),
            Attribute::RequestUserAgent => header("user-agent"),
            Attribute::RequestId => header("x-request-id"),
            Attribute::RequestHeaders => Some(headers(&self.remembered?.request)),
            Attribute::RequestSize => number(self.measured.received),
            Attribute::ResponseCode => number(self.measured.status.into()).filter(|_| self.measured.status != 0),
            Attribute::ResponseCodeDetails => text(&self.details()?),
            Attribute::ResponseFlags => number(self.measured.flags.bits().into()),
            Attribute::ResponseGrpcStatus => number(self.measured.grpc_status?.into()),
            Attribute::ResponseHeaders => Some(headers(&self.remembered?.response)),
            Attribute::ResponseSize => number(self.measured.sent),
            Attribute::SourceAddress => text(&self.who.from.to_string()),
            Attribute::SourcePort => number(self.who.from.port().into()),
            Attribute::DestinationAddress => text(self.asked.0),
            Attribute::DestinationPort => number(self.asked.1.into()),
            Attribute::ConnectionMtls => Some(Datum::Is(self.who.proved().is_some())),
            Attribute::ConnectionPeer => text(&self.who.proved()?.to_string()),
            Attribute::ConnectionLocal => text(&self.own.to_string()),
            Attribute::ConnectionServerName => text(self.server_name?),
            Attribute::ConnectionTermination => text(self.ended?),
            Attribute::UpstreamAddress => text(&self.endpoint?.address.to_string()),
            Attribute::UpstreamPort => number(self.endpoint?.address.port().into()),
            Attribute::UpstreamFailure => text(self.unreached?),
            Attribute::RouteName => text(self.rule).filter(|_| !self.rule.is_empty()),
            Attribute::ClusterName => {
                let mut name = String::new();
                self.cluster(&mut name).then_some(Datum::Text(name))
            }
        }
    }
}

/// A place in Istio's words: a gateway sends outbound; a waypoint is in front of servers, and its subsets are of a kind.
fn write_cluster(edge: bool, kind: &str, key: &ClusterKey, out: &mut String) -> std::fmt::Result {
    let ClusterKey { service, port, subset } = key;
    let host = &service.name;
    // Istio has no word for datagrams, which only gateways take: their kind tells them apart.
    match (edge && kind != "udp", subset.is_empty()) {
        (true, _) => write!(out, "outbound|{port}|{subset}|{host}"),
        (false, true) => write!(out, "inbound-vip|{port}|{kind}|{host}"),
        (false, false) => write!(out, "inbound-vip|{port}|{kind}/{subset}|{host}"),
    }
}

fn headers(map: &HeaderMap) -> Datum {
    let text = |(name, value): (&HeaderName, &HeaderValue)| {
        let mut text = String::new();
        write::lossy(value.as_bytes(), &mut text);
        (name.as_str().to_owned(), write::cut(&text, LONGEST).to_owned())
    };
    Datum::Headers(map.iter().map(text).collect())
}

impl Values for Facts<'_> {
    fn field(&self, message: Message, field: &Field) -> Option<&[u8]> {
        let remembered = self.remembered?;
        match (message, field) {
            (Message::Request, Field::Method) => Some(remembered.method.as_str().as_bytes()),
            (Message::Request, Field::Path) => Some(remembered.target().as_bytes()),
            (Message::Request, Field::Authority) => Some(remembered.authority.as_bytes()),
            (Message::Request, Field::Scheme) => Some(self.scheme.as_bytes()),
            (Message::Request, Field::Header(name)) => Some(remembered.request.get(name)?.as_bytes()),
            (Message::Response, Field::Status) => Some(remembered.status.as_ref()?.as_str().as_bytes()),
            (Message::Response, Field::Header(name)) => Some(remembered.response.get(name)?.as_bytes()),
            (Message::Trailer, Field::Header(name)) => Some(remembered.trailers.get(name)?.as_bytes()),
            _ => None,
        }
    }

    fn plain(&self, what: Plain, out: &mut String) -> bool {
        fn put(out: &mut String, value: impl std::fmt::Display) -> bool {
            write!(out, "{value}").is_ok()
        }
        let some = |out: &mut String, text: Option<&str>| {
            let text = text.filter(|text| !text.is_empty());
            text.is_some_and(|text| put(out, text))
        };
        let measured = self.measured;
        match what {
            Plain::BytesReceived => put(out, measured.received),
            Plain::BytesSent => put(out, measured.sent),
            Plain::Duration => put(out, measured.duration.as_millis()),
            Plain::RequestDuration => self.body_ms.is_some_and(|ms| put(out, ms)),
            Plain::ResponseDuration => self.head_ms.is_some_and(|ms| put(out, ms)),
            Plain::Protocol => some(out, self.protocol()),
            Plain::ResponseCode => put(out, measured.status),
            Plain::ResponseFlags => put(out, measured.flags),
            Plain::ResponseCodeDetails => some(out, self.details().as_deref()),
            Plain::GrpcNumber => self.grpc().is_some_and(|status| put(out, status)),
            // Whatever is no status of gRPC's is a number all the same.
            Plain::GrpcCamel => self.grpc().is_some_and(|status| match grpc::camel(status) {
                Some(name) => put(out, name),
                None => put(out, status),
            }),
            Plain::GrpcSnake => self.grpc().is_some_and(|status| match grpc::snake(status) {
                Some(name) => put(out, name),
                None => put(out, status),
            }),
            Plain::RouteName => some(out, Some(self.rule)),
            Plain::UpstreamHost => self.endpoint.is_some_and(|reached| put(out, reached.address)),
            Plain::UpstreamCluster => self.cluster(out),
            Plain::UpstreamFailure => some(out, self.unreached),
            Plain::UpstreamPeer => self.endpoint.is_some_and(|reached| put(out, reached.workload.identity())),
            Plain::Attempts => put(out, self.attempts),
            Plain::ClientAddress => put(out, self.who.from),
            Plain::ClientIp => put(out, self.who.from.ip()),
            Plain::LocalAddress => put(out, self.asked.0),
            Plain::ClientPeer => self.who.proved().is_some_and(|identity| put(out, identity)),
            Plain::LocalPeer => put(out, self.own),
            Plain::ServerName => some(out, self.server_name),
            Plain::Termination => some(out, self.ended),
            Plain::Hostname => some(out, Some(self.pod)),
            Plain::TraceId => self.trace.is_some_and(|trace| write!(out, "{trace:032x}").is_ok()),
            // At a gateway `client` is the gateway itself, as in its metrics, unless who asked is known.
            Plain::SourceWorkload => {
                let client = self.who.client.filter(|_| !(self.edge && self.who.proved().is_some()));
                some(out, client.map(|client| &*client.workload_name))
            }
            Plain::SourceNamespace => {
                let proved = self.who.proved().or(self.who.peer.proved());
                proved.is_some_and(|identity| put(out, &identity.namespace))
            }
            Plain::DestinationService => {
                let service = self.who.service.map(|service| &*service.hostname);
                some(out, service.or_else(|| self.who.asked.map(|asked| &*asked.name)))
            }
            Plain::DestinationWorkload => some(out, self.endpoint.map(|reached| &*reached.workload.workload_name)),
            Plain::DestinationNamespace => some(out, self.endpoint.map(|reached| &*reached.workload.namespace)),
        }
    }

    fn start(&self, format: Option<&str>, out: &mut String) {
        let Ok(at) = Timestamp::try_from(self.start) else { return out.push('-') };
        let written = match format {
            None => write!(out, "{at:.3}"),
            Some(format) => match jiff::fmt::strtime::format(format, at) {
                Ok(text) => {
                    out.push_str(&text);
                    Ok(())
                }
                Err(_) => write!(out, "{at:.3}"),
            },
        };
        debug_assert!(written.is_ok(), "a String takes everything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named_as_istio_names_them() {
        for (edge, kind, subset, expected) in [
            (false, "http", "", "inbound-vip|9080|http|reviews.shop.svc.cluster.local"),
            (false, "http", "v2", "inbound-vip|9080|http/v2|reviews.shop.svc.cluster.local"),
            (false, "tcp", "v2", "inbound-vip|9080|tcp/v2|reviews.shop.svc.cluster.local"),
            (true, "http", "", "outbound|9080||reviews.shop.svc.cluster.local"),
            (true, "udp", "", "inbound-vip|9080|udp|reviews.shop.svc.cluster.local"),
            (true, "tcp", "v2", "outbound|9080|v2|reviews.shop.svc.cluster.local"),
        ] {
            let service = "shop/reviews.shop.svc.cluster.local".parse().unwrap();
            let key = ClusterKey { service, port: 9080, subset: subset.into() };
            let mut name = String::new();
            write_cluster(edge, kind, &key, &mut name).unwrap();
            assert_eq!(name, expected);
        }
    }
}
