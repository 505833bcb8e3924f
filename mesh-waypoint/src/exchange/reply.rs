//! Answers of ours: what a request gets that is not forwarded, or whose endpoint gave none. To gRPC in gRPC's way.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use mesh_core::l7::authorizer::Denial;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use crate::http::{ResponseBody, grpc};

/// Why a request has no answer of an endpoint, in Envoy's words, which dashboards and people know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The status.
    pub status: StatusCode,
    /// The response flag.
    pub flag: &'static str,
    /// The body.
    pub text: &'static str,
}

macro_rules! failures {
    ($($(#[$doc:meta])* $name:ident: $status:ident, $flag:literal, $text:literal;)*) => {
        impl Failure {
            $($(#[$doc])* pub const $name: Self = Self { status: StatusCode::$status, flag: $flag, text: $text };)*
        }
    };
}

failures! {
    /// The request is malformed, or could be read in two ways.
    BAD_REQUEST: BAD_REQUEST, "-", "bad request";
    /// Something is expected that nobody here knows.
    EXPECTATION: EXPECTATION_FAILED, "-", "expectation failed";
    /// It has passed too many waypoints.
    LOOP: LOOP_DETECTED, "-", "the request has passed too many waypoints: routes lead back to where it came from";
    /// The client's body cannot be read to its end.
    BODY: BAD_REQUEST, "DPE", "bad request";
    /// The client's body does not go on, or hardly.
    SLOW_BODY: REQUEST_TIMEOUT, "SI", "the body of the request did not go on in time";
    /// CONNECT, which only tunnels may use, or TRACE.
    METHOD: METHOD_NOT_ALLOWED, "-", "method not allowed";
    /// No rule means it.
    NO_ROUTE: NOT_FOUND, "NR", "";
    /// The connection was made for another host, and what is asked for has a listener of its own.
    MISDIRECTED: MISDIRECTED_REQUEST, "-", "misdirected request";
    /// A rule cannot be carried out, or what is said of its place.
    CLOSED: INTERNAL_SERVER_ERROR, "NC", "";
    /// A policy refuses it.
    DENIED: FORBIDDEN, "-", "RBAC: access denied";
    /// More of its body than may be shown to whoever is asked about it.
    TOO_LARGE: PAYLOAD_TOO_LARGE, "-", "Payload Too Large";
    /// Whoever counts requests does not answer, and must.
    UNCOUNTED: INTERNAL_SERVER_ERROR, "RLSE", "";
    /// Nothing is known of the destination any more.
    GONE: SERVICE_UNAVAILABLE, "NC", "";
    /// No endpoint is left.
    NO_ENDPOINT: SERVICE_UNAVAILABLE, "UH", "no healthy upstream";
    /// Nothing that the registry knows.
    UNKNOWN_HOST: BAD_GATEWAY, "NR", "";
    /// Its name has no address.
    NO_ADDRESS: SERVICE_UNAVAILABLE, "DF", "no healthy upstream";
    /// No connection came about.
    CONNECT: SERVICE_UNAVAILABLE, "UF", "upstream connect error or disconnect/reset before headers. reset reason: connection failure";
    /// There are too many connections.
    OVERFLOW: SERVICE_UNAVAILABLE, "UO", "upstream connect error or disconnect/reset before headers. reset reason: overflow";
    /// The connection was lost before an answer.
    LOST: SERVICE_UNAVAILABLE, "UC", "upstream connect error or disconnect/reset before headers. reset reason: connection termination";
    /// The endpoint refused the stream.
    REFUSED: SERVICE_UNAVAILABLE, "UR", "upstream connect error or disconnect/reset before headers. reset reason: remote refused stream reset";
    /// It took too long.
    LATE: GATEWAY_TIMEOUT, "UT", "upstream request timeout";
    /// The endpoint's answer is none, or could be read in two ways; or it changed the protocol, and nobody had asked for that.
    PROTOCOL: BAD_GATEWAY, "UPE", "upstream protocol error";
}

impl Failure {
    /// What Envoy calls it, where its flag does not say it.
    #[must_use]
    pub fn details(&self) -> Option<&'static str> {
        const WORDS: [(Failure, &str); 7] = [
            (Failure::BAD_REQUEST, "request_headers_failed_strict_check"),
            (Failure::EXPECTATION, "request_headers_failed_strict_check"),
            (Failure::METHOD, "method_not_allowed"),
            (Failure::LOOP, "loop_detected"),
            (Failure::MISDIRECTED, "misdirected_request"),
            (Failure::DENIED, "rbac_access_denied"),
            (Failure::TOO_LARGE, "request_payload_too_large"),
        ];
        WORDS.iter().find(|(failure, _)| failure == self).map(|(_, word)| *word)
    }

    /// Whether what comes next from the same client of HTTP/1.1 may not be the request that it seems to be.
    #[must_use]
    pub fn closes(&self) -> bool {
        matches!(self.status, StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED | StatusCode::EXPECTATION_FAILED)
    }
}

/// The answer to a request that failed.
pub fn failure(failure: Failure, grpc: bool) -> Response<ResponseBody> {
    let mut response = text(failure.status, Bytes::from_static(failure.text.as_bytes()), grpc);
    if failure == Failure::OVERFLOW {
        response.headers_mut().insert("x-envoy-overloaded", HeaderValue::from_static("true"));
    }
    response
}

/// What gRPC does not have in a message as it is: all but what is printed of ASCII, and the sign of an escape.
const NO_MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

/// A status and a text.
pub fn text(status: StatusCode, body: Bytes, grpc: bool) -> Response<ResponseBody> {
    if grpc {
        let message = percent_encode(&body, NO_MESSAGE).to_string();
        return of_grpc(grpc::code(status), HeaderValue::try_from(message).ok().filter(|message| !message.is_empty()));
    }
    let typed = !body.is_empty();
    let mut response = Response::new(ResponseBody::whole(body));
    *response.status_mut() = status;
    if typed {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}

/// The request has a token that is not believed; the text says why.
pub fn unauthorized(why: &str, grpc: bool) -> Response<ResponseBody> {
    let mut response = text(StatusCode::UNAUTHORIZED, Bytes::copy_from_slice(why.as_bytes()), grpc);
    let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    response
}

/// An authorizer does not let the request through, and says what the client is told.
pub fn denied(denial: Denial, grpc: bool) -> Response<ResponseBody> {
    let mut response = text(denial.status, denial.body.into(), grpc);
    let headers = response.headers_mut();
    let own = if grpc { headers.clone() } else { HeaderMap::new() };
    denial.headers.apply(headers);
    // What gRPC's clients read is not an authorizer's of HTTP to say.
    headers.extend(own);
    response
}

/// Only a status of gRPC.
pub fn of_grpc(code: u16, message: Option<HeaderValue>) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::whole(Bytes::new()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(grpc::STATUS, HeaderValue::from(code));
    if let Some(message) = message {
        headers.insert(grpc::MESSAGE, message);
    }
    response
}

/// The client is sent elsewhere. A place that cannot be written in a header is a mistake of the rule.
pub fn redirect(status: StatusCode, location: &str) -> Response<ResponseBody> {
    let Ok(location) = HeaderValue::from_str(location) else { return failure(Failure::CLOSED, false) };
    let mut response = Response::new(ResponseBody::whole(Bytes::new()));
    *response.status_mut() = status;
    response.headers_mut().insert(LOCATION, location);
    response
}

/// Nothing but headers.
pub fn empty(headers: HeaderMap) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::whole(Bytes::new()));
    *response.headers_mut() = headers;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grpc_is_told_is_written_as_it_reads_it() {
        for (body, expected) in [
            ("RBAC: access denied", Some("RBAC: access denied")),
            ("quota 100% used", Some("quota 100%25 used")),
            ("acc\u{e8}s refus\u{e9}", Some("acc%C3%A8s refus%C3%A9")),
            ("two\nlines", Some("two%0Alines")),
            ("", None),
        ] {
            let answer = text(StatusCode::FORBIDDEN, Bytes::from_static(body.as_bytes()), true);
            let told = answer.headers().get(grpc::MESSAGE).map(|message| message.to_str().unwrap());
            assert_eq!(told, expected);
        }
    }
}
