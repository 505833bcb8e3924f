//! What an external authorizer is asked by gRPC, and what it answers. Only waypoints ask, so a question is written and an answer is read.

use std::net::SocketAddr;
use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use mesh_core::l7::authorizer::{Answer, Changes, Denial, Edit, HeaderEdits};
use prost::Message;

use super::ConvertError;
use crate::wire::ext_authz as wire;
use wire::check_response::HttpResponse;

/// One request, as an authorizer is told of it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Where the client's connection came from.
    pub source: SocketAddr,
    /// Who the client is: a SPIFFE id.
    pub client: &'a str,
    /// Where the client's connection was for, if that was an address.
    pub destination: Option<SocketAddr>,
    /// Who answers for it: the waypoint's SPIFFE id.
    pub server: &'a str,
    /// When the request came.
    pub time: SystemTime,
    /// Its id.
    pub id: &'a str,
    /// Its method.
    pub method: &'a str,
    /// Its scheme.
    pub scheme: &'a str,
    /// The host that it is for.
    pub host: &'a str,
    /// Its path and query.
    pub path: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'a str,
    /// Bytes of its body; `None` if that is not known.
    pub size: Option<u64>,
    /// Its body, if that is shown.
    pub body: Shown<'a>,
}

/// How a body is shown.
#[derive(Clone, Copy, Debug)]
pub enum Shown<'a> {
    /// Not at all.
    Nothing,
    /// As a text; what is none is replaced.
    Text(&'a [u8]),
    /// As it is.
    Bytes(&'a [u8]),
}

/// Why an answer cannot be heeded.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// It is none.
    #[error(transparent)]
    Message(#[from] ConvertError),
    /// It asks for what is not done here.
    #[error("it asks for changes of the query, which are not made here")]
    Query,
}

/// The bytes of a `CheckRequest`.
#[must_use]
pub fn encode_check(asked: &Asked<'_>) -> Vec<u8> {
    let peer = |address: Option<SocketAddr>, principal: &str| wire::Peer {
        address: address.map(|address| wire::Address {
            socket_address: Some(wire::SocketAddress {
                address: address.ip().to_string(),
                port_value: address.port().into(),
            }),
        }),
        service: String::new(),
        principal: principal.to_owned(),
    };
    let mut http = wire::HttpRequest {
        id: asked.id.to_owned(),
        method: asked.method.to_owned(),
        path: asked.path.to_owned(),
        host: asked.host.to_owned(),
        scheme: asked.scheme.to_owned(),
        size: asked.size.map_or(-1, |size| i64::try_from(size).unwrap_or(i64::MAX)),
        protocol: asked.protocol.to_owned(),
        ..wire::HttpRequest::default()
    };
    for (name, value) in
        [(":authority", asked.host), (":method", asked.method), (":path", asked.path), (":scheme", asked.scheme)]
    {
        http.headers.insert(name.to_owned(), value.to_owned());
    }
    for name in asked.headers.keys() {
        let lines: Vec<_> =
            asked.headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
        http.headers.insert(name.to_string(), lines.join(","));
    }
    match asked.body {
        Shown::Nothing => {}
        Shown::Text(bytes) => http.body = String::from_utf8_lossy(bytes).into_owned(),
        Shown::Bytes(bytes) => http.raw_body = bytes.to_vec(),
    }
    let attributes = wire::Attributes {
        source: Some(peer(Some(asked.source), asked.client)),
        destination: Some(peer(asked.destination, asked.server)),
        request: Some(wire::Asked { time: Some(asked.time.into()), http: Some(http) }),
    };
    wire::CheckRequest { attributes: Some(attributes) }.encode_to_vec()
}

/// Reads a `CheckResponse`. Fields that this version does not know are left: they describe, or ask for what nobody has to do.
pub fn check_answer(bytes: &[u8]) -> Result<Answer, CheckError> {
    let message = wire::CheckResponse::decode(bytes).map_err(ConvertError::decode)?;
    let is_ok = message.status.is_none_or(|status| status.code == 0);
    match (is_ok, message.http_response) {
        (true, None) => Ok(Answer::Allowed(Changes::default())),
        (true, Some(HttpResponse::OkResponse(ok))) => {
            if !ok.query_parameters_to_set.is_empty() || !ok.query_parameters_to_remove.is_empty() {
                return Err(CheckError::Query);
            }
            let mut request = edits(&ok.headers)?;
            let names = ok.headers_to_remove.iter().filter_map(|name| HeaderName::try_from(name).ok());
            names.for_each(|name| request.remove(name));
            Ok(Answer::Allowed(Changes { request, response: edits(&ok.response_headers_to_add)? }))
        }
        (true, Some(HttpResponse::DeniedResponse(_))) => Err(ConvertError::invalid(
            "http_response",
            "it lets through, and says what the client is told that is not let through",
        )
        .into()),
        (false, Some(HttpResponse::DeniedResponse(denied))) => {
            let code = denied.status.map_or(0, |status| status.code);
            let status = match u16::try_from(code).ok().map(|code| (code, StatusCode::from_u16(code))) {
                Some((0, _)) => StatusCode::FORBIDDEN,
                Some((200.., Ok(status))) => status,
                _ => return Err(ConvertError::invalid("denied_response.status", format!("{code} is no status")).into()),
            };
            Ok(Answer::Denied(Denial { status, headers: edits(&denied.headers)?, body: denied.body.into_bytes() }))
        }
        (false, _) => {
            let (status, headers, body) = (StatusCode::FORBIDDEN, HeaderEdits::default(), Vec::new());
            Ok(Answer::Denied(Denial { status, headers, body }))
        }
    }
}

fn edits(options: &[wire::HeaderOption]) -> Result<HeaderEdits, ConvertError> {
    let mut edits = HeaderEdits::default();
    for option in options {
        let header = option.header.as_ref().ok_or(ConvertError::Missing { field: "header" })?;
        // Those of the first line are nobody's to change, as headers of the connection are not.
        if header.key.starts_with(':') {
            continue;
        }
        let name = HeaderName::try_from(&header.key);
        let name = name.map_err(|_| ConvertError::invalid("header.key", format!("{:?} is no header", header.key)))?;
        let text = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
        let value = HeaderValue::from_bytes(text);
        let value = value.map_err(|_| ConvertError::invalid("header.value", format!("not a value of {name}")))?;
        let edit = match (option.append, wire::AppendAction::try_from(option.append_action)) {
            (Some(true), _) => Edit::Append,
            (Some(false), _) => Edit::Set,
            // Here nothing said is a replacement, as Envoy has it for authorizers.
            (None, Ok(wire::AppendAction::AppendIfExistsOrAdd | wire::AppendAction::OverwriteIfExistsOrAdd)) => {
                Edit::Set
            }
            (None, Ok(wire::AppendAction::AddIfAbsent)) => Edit::AddIfAbsent,
            (None, Ok(wire::AppendAction::OverwriteIfExists)) => Edit::SetIfPresent,
            (None, Err(_)) => {
                return Err(ConvertError::invalid("append_action", format!("unknown value {}", option.append_action)));
            }
        };
        edits.edit(name, value, edit);
    }
    Ok(edits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(key: &str, value: &str, append: Option<bool>) -> wire::HeaderOption {
        let header = wire::Header { key: key.into(), value: value.into(), raw_value: Vec::new() };
        wire::HeaderOption { header: Some(header), append, append_action: 0 }
    }

    fn read(status: Option<i32>, response: Option<HttpResponse>) -> Result<Answer, CheckError> {
        let status = status.map(|code| wire::Status { code });
        check_answer(&wire::CheckResponse { status, http_response: response }.encode_to_vec())
    }

    fn texts(edits: &HeaderEdits, old: &[(&'static str, &'static str)]) -> Vec<String> {
        let pairs = old.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)));
        let mut headers: HeaderMap = pairs.collect();
        edits.apply(&mut headers);
        headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect()
    }

    #[test]
    fn only_ok_lets_through() {
        let ok = |ok| Some(HttpResponse::OkResponse(ok));
        let changes = wire::OkResponse {
            headers: vec![option("x-a", "2", None), option(":path", "/admin", None), option("host", "b", None)],
            headers_to_remove: vec!["x-b".into(), ":path".into(), "x-mesh-hops".into()],
            response_headers_to_add: vec![option("x-c", "3", Some(true))],
            ..wire::OkResponse::default()
        };
        let Ok(Answer::Allowed(changes)) = read(Some(0), ok(changes)) else { panic!() };
        assert_eq!(texts(&changes.request, &[("x-a", "1"), ("x-b", "1")]), ["x-a=2"]);
        assert_eq!(texts(&changes.response, &[("x-c", "1")]), ["x-c=1", "x-c=3"]);
        assert_eq!(read(None, None).unwrap(), Answer::Allowed(Changes::default()));
        let denied = |response| match read(Some(7), response) {
            Ok(Answer::Denied(denial)) => (denial.status.as_u16(), texts(&denial.headers, &[]), denial.body),
            other => panic!("{other:?}"),
        };
        assert_eq!(denied(None), (403, vec![], vec![]));
        assert_eq!(denied(ok(wire::OkResponse::default())), (403, vec![], vec![]));
        let told = |code: Option<i32>| wire::DeniedResponse {
            status: code.map(|code| wire::HttpStatus { code }),
            headers: vec![option("location", "/login", None), option("content-length", "9", None)],
            body: "no".into(),
        };
        let location = vec!["location=/login".to_owned()];
        for (code, expected) in [(None, 403), (Some(0), 403), (Some(302), 302), (Some(200), 200)] {
            let response = Some(HttpResponse::DeniedResponse(told(code)));
            assert_eq!(denied(response), (expected, location.clone(), b"no".to_vec()));
        }
    }

    #[test]
    fn what_cannot_be_done_is_no_answer() {
        let ok = |ok| Some(HttpResponse::OkResponse(ok));
        let query = wire::OkResponse { query_parameters_to_remove: vec!["a".into()], ..Default::default() };
        let none = wire::OkResponse { headers: vec![option("a b", "1", None)], ..Default::default() };
        let value = wire::OkResponse { headers: vec![option("a", "1\n2", None)], ..Default::default() };
        let mut later = option("a", "1", None);
        later.append_action = 9;
        let later = wire::OkResponse { headers: vec![later], ..Default::default() };
        for response in [ok(query), ok(none), ok(value), ok(later)] {
            assert!(read(Some(0), response).is_err());
        }
        let denied = |code| {
            Some(HttpResponse::DeniedResponse(wire::DeniedResponse {
                status: Some(wire::HttpStatus { code }),
                ..Default::default()
            }))
        };
        for (status, response) in [(0, denied(401)), (7, denied(100)), (7, denied(-1)), (7, denied(70_000))] {
            assert!(read(Some(status), response).is_err());
        }
        assert!(check_answer(&[0xff]).is_err());
    }

    #[test]
    fn a_question_says_what_is_known() {
        let mut headers = HeaderMap::new();
        for value in ["a", "b"] {
            headers.append("x-user", HeaderValue::from_static(value));
        }
        headers.append("x-raw", HeaderValue::from_bytes(b"\xff").unwrap());
        let mut asked = Asked {
            source: "10.0.0.1:9".parse().unwrap(),
            client: "spiffe://a/ns/b/sa/c",
            destination: None,
            server: "spiffe://a/ns/b/sa/w",
            time: SystemTime::UNIX_EPOCH,
            id: "1",
            method: "GET",
            scheme: "http",
            host: "shop",
            path: "/a?b",
            headers: &headers,
            protocol: "HTTP/1.1",
            size: None,
            body: Shown::Text(b"ab"),
        };
        let read = |asked: &Asked<'_>| wire::CheckRequest::decode(&*encode_check(asked)).unwrap().attributes.unwrap();
        let attributes = read(&asked);
        let source = attributes.source.unwrap();
        assert_eq!((&*source.principal, source.address.unwrap().socket_address.unwrap().port_value), (asked.client, 9));
        let http = attributes.request.unwrap().http.unwrap();
        let header = |name: &str| http.headers[name].as_str();
        assert_eq!([header("x-user"), header("x-raw"), header(":path")], ["a,b", "\u{fffd}", "/a?b"]);
        assert_eq!((http.size, &*http.body, &*http.host, &*http.path), (-1, "ab", "shop", "/a?b"));
        (asked.size, asked.body) = (Some(2), Shown::Bytes(b"\xff"));
        let http = read(&asked).request.unwrap().http.unwrap();
        assert_eq!((http.size, &*http.body, &*http.raw_body), (2, "", &b"\xff"[..]));
    }
}
