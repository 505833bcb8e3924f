//! How a line of the access log looks: Envoy's format strings, compiled once. `%REQ(X-A?:PATH):20%` is an operator with an alternative and a length;
//! `%%` is a percent sign. The control plane compiles them to say what is wrong, the waypoint to write lines.

use http::HeaderName;

use super::write;

/// Longest format in bytes, and most keys of one of JSON.
pub const LONGEST: usize = 16 * 1024;
/// Most keys of a JSON format.
pub const MOST_KEYS: usize = 256;
/// Longest value of one operator in bytes, if the format sets no length of its own; no length may be more.
pub const LONGEST_VALUE: usize = 4096;

/// Istio's format of text lines, with what a waypoint knows.
pub const DEFAULT_TEXT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% ",
    "%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% ",
    "%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER% %UPSTREAM_LOCAL_ADDRESS% ",
    "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n",
);

/// Istio's keys of JSON lines, then those that ztunnel's lines have.
pub const DEFAULT_JSON: [(&str, &str); 32] = [
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("src.workload", "%SOURCE_WORKLOAD%"),
    ("src.namespace", "%SOURCE_NAMESPACE%"),
    ("src.identity", "%DOWNSTREAM_PEER_URI_SAN%"),
    ("dst.service", "%DESTINATION_SERVICE%"),
    ("dst.workload", "%DESTINATION_WORKLOAD%"),
    ("dst.namespace", "%DESTINATION_NAMESPACE%"),
    ("dst.identity", "%UPSTREAM_PEER_URI_SAN%"),
    ("attempts", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
];

/// What a message says in a place of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// `:method`
    Method,
    /// `:path`, as the client has asked for it, with its query.
    Path,
    /// `:authority`
    Authority,
    /// `:scheme`
    Scheme,
    /// `:status`
    Status,
    /// A header.
    Header(HeaderName),
}

/// Of which message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// The request.
    Request,
    /// The answer.
    Response,
    /// What comes after the answer.
    Trailer,
}

/// What an operator stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// A header or the like; if there is none, the alternative.
    Field(Message, Field, Option<Field>),
    /// When the request came, by strftime; none is RFC 3339 with milliseconds.
    StartTime(Option<Box<str>>),
    /// Anything without parameters.
    Plain(Plain),
    /// What Envoy knows and a waypoint does not: `-`.
    Nothing,
}

macro_rules! plain {
    ($($name:ident = $text:literal $(| $alias:literal)*, $doc:literal;)*) => {
        /// Operators without parameters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Plain { $(#[doc = $doc] $name,)* }

        /// Their names.
        const PLAIN: &[(&str, Plain)] = &[$(($text, Plain::$name), $(($alias, Plain::$name),)*)*];
    };
}

plain! {
    BytesReceived = "BYTES_RECEIVED", "Bytes of the request's body.";
    BytesSent = "BYTES_SENT", "Bytes of the answer's body.";
    Duration = "DURATION", "Milliseconds to the end of the answer.";
    RequestDuration = "REQUEST_DURATION", "Milliseconds to the end of the request.";
    ResponseDuration = "RESPONSE_DURATION", "Milliseconds to the head of the answer.";
    Protocol = "PROTOCOL", "`HTTP/1.1` or `HTTP/2`.";
    ResponseCode = "RESPONSE_CODE", "The status; 0 if there was none.";
    ResponseFlags = "RESPONSE_FLAGS", "What was unusual.";
    ResponseCodeDetails = "RESPONSE_CODE_DETAILS", "Who has answered.";
    GrpcNumber = "GRPC_STATUS_NUMBER", "The status of gRPC as a number.";
    GrpcCamel = "GRPC_STATUS" | "GRPC_STATUS(CAMEL_STRING)" | "GRPC_STATUS()", "Its name: `Unavailable`.";
    GrpcSnake = "GRPC_STATUS(SNAKE_STRING)", "Its name: `UNAVAILABLE`.";
    RouteName = "ROUTE_NAME", "The rule.";
    UpstreamHost = "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS", "Address and port of the endpoint.";
    UpstreamCluster = "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW", "The place, as Istio writes it.";
    UpstreamFailure = "UPSTREAM_TRANSPORT_FAILURE_REASON", "Why there was no connection to the endpoint.";
    UpstreamPeer = "UPSTREAM_PEER_URI_SAN", "Identity of the endpoint.";
    Attempts = "UPSTREAM_REQUEST_ATTEMPT_COUNT", "How often it was sent.";
    ClientAddress = "DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS", "Address and port of the client.";
    ClientIp = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", "Its address.";
    LocalAddress = "DOWNSTREAM_LOCAL_ADDRESS", "What the client has asked the waypoint for.";
    ClientPeer = "DOWNSTREAM_PEER_URI_SAN", "Identity of the client.";
    LocalPeer = "DOWNSTREAM_LOCAL_URI_SAN", "Identity of the waypoint.";
    ServerName = "REQUESTED_SERVER_NAME", "The name that the client's TLS has asked for.";
    Termination = "CONNECTION_TERMINATION_DETAILS", "Why a connection that is no HTTP was ended here.";
    Hostname = "HOSTNAME", "The waypoint's pod.";
    TraceId = "TRACE_ID", "The trace that the request belongs to.";
    SourceWorkload = "SOURCE_WORKLOAD", "The client's workload.";
    SourceNamespace = "SOURCE_NAMESPACE", "The client's namespace.";
    DestinationService = "DESTINATION_SERVICE", "The host of the service.";
    DestinationWorkload = "DESTINATION_WORKLOAD", "The endpoint's workload.";
    DestinationNamespace = "DESTINATION_NAMESPACE", "The endpoint's namespace.";
}

/// Operators of Envoy that mean nothing at a waypoint.
const NOTHING: [&str; 19] = [
    "UPSTREAM_LOCAL_ADDRESS",
    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    "DOWNSTREAM_TLS_VERSION",
    "DOWNSTREAM_TLS_CIPHER",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_LOCAL_SUBJECT",
    "CONNECTION_ID",
    "STREAM_ID",
    "FILTER_CHAIN_NAME",
    "VIRTUAL_CLUSTER_NAME",
    "UPSTREAM_TLS_VERSION",
    "UPSTREAM_TLS_CIPHER",
    "UPSTREAM_PROTOCOL",
    "RESPONSE_TX_DURATION",
    "REQUEST_HEADERS_BYTES",
    "RESPONSE_HEADERS_BYTES",
    "RESPONSE_TRAILERS_BYTES",
];

/// Why a format is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at character {position}{}", place(key.as_deref()))]
pub struct FormatError {
    /// Of JSON: where.
    pub key: Option<String>,
    /// From 1.
    pub position: usize,
    /// What it is.
    pub what: String,
}

fn place(key: Option<&str>) -> String {
    key.map_or_else(String::new, |key| format!(" of {key:?}"))
}

/// A part of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Operator(Operator, usize),
}

/// A compiled format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// One text.
    Text(Template),
    /// Keys, and what stands there. A key whose value is one operator of a number has a number.
    Json(Vec<(Box<str>, Template)>),
}

/// Text with operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

/// The values of one request.
pub trait Values {
    /// A header or the like, as it came.
    fn field(&self, message: Message, field: &Field) -> Option<&[u8]>;
    /// Writes a value; false if there is none.
    fn plain(&self, what: Plain, out: &mut String) -> bool;
    /// Writes when the request came.
    fn start(&self, format: Option<&str>, out: &mut String);
}

impl Default for Format {
    fn default() -> Self {
        Self::text(DEFAULT_TEXT).unwrap_or(Self::Json(Vec::new()))
    }
}

impl Format {
    /// Lines of text. If the format does not end a line, nothing does, as in Envoy.
    pub fn text(text: &str) -> Result<Self, FormatError> {
        Template::compile(text).map(Self::Text)
    }

    /// Lines that are an object of JSON each.
    pub fn json<K: AsRef<str>, V: AsRef<str>>(keys: &[(K, V)]) -> Result<Self, FormatError> {
        if keys.len() > MOST_KEYS {
            let what = format!("more than {MOST_KEYS} keys");
            return Err(FormatError { key: None, position: 1, what });
        }
        let one = |(key, value): &(K, V)| {
            let template = Template::compile(value.as_ref())
                .map_err(|error| FormatError { key: Some(key.as_ref().to_owned()), ..error })?;
            let mut quoted = String::new();
            write::json(key.as_ref(), &mut quoted);
            Ok((quoted.into_boxed_str(), template))
        };
        keys.iter().map(one).collect::<Result<_, _>>().map(Self::Json)
    }

    /// Istio's keys.
    #[must_use]
    pub fn default_json() -> Self {
        Self::json(&DEFAULT_JSON).unwrap_or(Self::Json(Vec::new()))
    }

    /// Which header fields lines want, of all messages.
    pub fn fields(&self) -> impl Iterator<Item = (Message, &Field)> {
        let (one, many) = match self {
            Self::Text(template) => (Some(template), None),
            Self::Json(keys) => (None, Some(keys)),
        };
        one.into_iter().chain(many.into_iter().flatten().map(|(_, template)| template)).flat_map(Template::fields)
    }

    /// Writes one line. What others write has no control characters and is cut to its length; in JSON it is a text.
    pub fn line(&self, values: &impl Values, scratch: &mut String, out: &mut String) {
        match self {
            Self::Text(template) => template.write(values, scratch, out),
            Self::Json(keys) => {
                out.push('{');
                for (index, (key, template)) in keys.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    out.push_str(key);
                    out.push(':');
                    template.json(values, scratch, out);
                }
                out.push_str("}\n");
            }
        }
    }
}

impl Template {
    /// Compiles a text.
    pub fn compile(text: &str) -> Result<Self, FormatError> {
        if text.len() > LONGEST {
            return Err(FormatError { key: None, position: 1, what: format!("a format of more than {LONGEST} bytes") });
        }
        let (mut parts, mut plain) = (Vec::new(), String::new());
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            let position = text[..text.len() - rest.len() + at].chars().count() + 1;
            plain.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                plain.push('%');
                rest = after;
                continue;
            }
            let wrong = |what| FormatError { key: None, position, what };
            let (written, after) = split(rest).ok_or_else(|| wrong("an operator without its second %".to_owned()))?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain).into()));
            }
            let (operator, length) = operator(written).map_err(wrong)?;
            parts.push(Part::Operator(operator, length));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain.into()));
        }
        Ok(Self(parts))
    }

    /// Which header fields it wants.
    pub fn fields(&self) -> impl Iterator<Item = (Message, &Field)> {
        self.0
            .iter()
            .flat_map(|part| match part {
                Part::Operator(Operator::Field(message, field, other), _) => {
                    [Some((*message, field)), other.as_ref().map(|other| (*message, other))]
                }
                _ => [None, None],
            })
            .flatten()
    }

    /// Writes it; `-` stands for what is not known. `scratch` is anything.
    pub fn write(&self, values: &impl Values, scratch: &mut String, out: &mut String) {
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Operator(operator, length) => {
                    scratch.clear();
                    if value(operator, values, scratch) {
                        write::escaped(write::cut(scratch, *length), out);
                    } else {
                        out.push('-');
                    }
                }
            }
        }
    }

    /// Writes it as a value of JSON: a number, null, or a text.
    fn json(&self, values: &impl Values, scratch: &mut String, out: &mut String) {
        scratch.clear();
        if let [Part::Operator(operator, length)] = &*self.0 {
            if !value(operator, values, scratch) {
                out.push_str("null");
            } else if is_number(operator) && !scratch.is_empty() && scratch.bytes().all(|byte| byte.is_ascii_digit()) {
                out.push_str(scratch);
            } else {
                write::json(write::cut(scratch, *length), out);
            }
            return;
        }
        // Rare: a text with several parts.
        let (mut text, mut more) = (String::new(), String::new());
        for part in &self.0 {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Operator(operator, length) => {
                    more.clear();
                    if value(operator, values, &mut more) {
                        text.push_str(write::cut(&more, *length));
                    } else {
                        text.push('-');
                    }
                }
            }
        }
        write::json(&text, out);
    }
}

fn value(operator: &Operator, values: &impl Values, out: &mut String) -> bool {
    match operator {
        Operator::Field(message, field, other) => {
            let found = values.field(*message, field);
            let found = found.or_else(|| values.field(*message, other.as_ref()?));
            let Some(found) = found else { return false };
            write::lossy(found, out);
            true
        }
        Operator::StartTime(format) => {
            values.start(format.as_deref(), out);
            true
        }
        Operator::Plain(plain) => values.plain(*plain, out),
        Operator::Nothing => false,
    }
}

fn is_number(operator: &Operator) -> bool {
    use Plain::{
        Attempts, BytesReceived, BytesSent, Duration, GrpcNumber, RequestDuration, ResponseCode, ResponseDuration,
    };
    matches!(
        operator,
        Operator::Plain(
            Attempts
                | BytesReceived
                | BytesSent
                | Duration
                | GrpcNumber
                | RequestDuration
                | ResponseCode
                | ResponseDuration
        )
    )
}

/// Splits behind the percent sign that ends an operator; one between brackets does not.
fn split(text: &str) -> Option<(&str, &str)> {
    let mut inside = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => inside = true,
            b')' => inside = false,
            b'%' if !inside => return Some((&text[..at], &text[at + 1..])),
            _ => {}
        }
    }
    None
}

/// `NAME`, `NAME(PARAMETERS)`, `NAME(PARAMETERS):LENGTH`
fn operator(written: &str) -> Result<(Operator, usize), String> {
    let (name, rest) = written.split_at(written.find(['(', ':']).unwrap_or(written.len()));
    let (parameters, length) = match rest.strip_prefix('(') {
        None => (None, rest),
        Some(rest) => {
            let (parameters, length) = rest.rsplit_once(')').ok_or_else(|| format!("%{written}% without its )"))?;
            (Some(parameters), length)
        }
    };
    let length = match length.strip_prefix(':') {
        None if length.is_empty() => LONGEST_VALUE,
        Some(digits) => digits.parse().map_err(|_| format!("%{written}%: {digits:?} is no length"))?,
        None => return Err(format!("%{written}%: {length:?} after the )")),
    };
    let message = match name {
        "REQ" => Some(Message::Request),
        "RESP" => Some(Message::Response),
        "TRAILER" => Some(Message::Trailer),
        _ => None,
    };
    let operator = match (message, parameters) {
        (Some(message), Some(parameters)) => {
            let (first, other) = match parameters.split_once('?') {
                Some((first, other)) => (first, Some(field(other)?)),
                None => (parameters, None),
            };
            Operator::Field(message, field(first)?, other)
        }
        (Some(_), None) => return Err(format!("%{written}%: write %{name}(HEADER)%")),
        (None, parameters) if name == "START_TIME" => {
            Operator::StartTime(parameters.filter(|format| !format.is_empty()).map(Into::into))
        }
        (None, Some("NUMBER")) if name == "GRPC_STATUS" => Operator::Plain(Plain::GrpcNumber),
        (None, Some(parameters)) => match PLAIN.iter().find(|(known, _)| is_called(known, name, parameters)) {
            Some((_, plain)) => Operator::Plain(*plain),
            None => return Err(format!("%{written}%: a waypoint has no operator {name} with parameters")),
        },
        (None, None) => match PLAIN.iter().find(|(known, _)| *known == name) {
            Some((_, plain)) => Operator::Plain(*plain),
            None if NOTHING.contains(&name) => Operator::Nothing,
            None => return Err(format!("the operator %{written}% is not known")),
        },
    };
    Ok((operator, length.min(LONGEST_VALUE)))
}

/// Whether an operator is called so together with its parameters.
fn is_called(known: &str, name: &str, parameters: &str) -> bool {
    let with = known.strip_prefix(name).and_then(|rest| rest.strip_prefix('(')).and_then(|rest| rest.strip_suffix(')'));
    with == Some(parameters)
}

fn field(name: &str) -> Result<Field, String> {
    Ok(match name.to_ascii_lowercase().as_str() {
        ":method" => Field::Method,
        ":path" => Field::Path,
        ":authority" => Field::Authority,
        ":scheme" => Field::Scheme,
        ":status" => Field::Status,
        header => Field::Header(header.parse().map_err(|_| format!("{name:?} is no name of a header"))?),
    })
}

#[cfg(test)]
mod tests;
