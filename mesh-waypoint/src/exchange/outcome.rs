//! How an attempt ended: what that means for another one, for its endpoint and for the client.

use http::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderName, Response};
use hyper::body::Incoming;
use mesh_core::l7::balance::Ended;
use mesh_core::l7::retry::AttemptEnd;
use mesh_transport::hbone::HboneError;

use super::reply::Failure;
use crate::places::NoEndpoint;
use crate::upstream::{ConnectError, Connection};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

/// An attempt without an answer.
pub(super) struct Lost {
    pub(super) end: AttemptEnd,
    pub(super) failure: Failure,
    /// Another endpoint may do better.
    pub(super) elsewhere: bool,
}

/// An attempt with one.
pub(super) type Answer = (Response<Incoming>, Connection);

/// Why nobody can be asked.
pub(super) fn none(why: NoEndpoint) -> Failure {
    match why {
        NoEndpoint::Unknown => Failure::GONE,
        NoEndpoint::Closed => Failure::CLOSED,
        NoEndpoint::NoneLeft => Failure::NO_ENDPOINT,
        NoEndpoint::Overflow => Failure::OVERFLOW,
    }
}

/// What the end of an attempt says of its endpoint; nothing if it never was about the endpoint.
pub(super) fn counted(ended: &Result<Answer, Lost>) -> Option<Ended> {
    match ended {
        Ok((response, _)) => Some(Ended::Status(status(response))),
        Err(lost) if lost.failure == Failure::OVERFLOW => None,
        Err(lost) if lost.failure == Failure::LATE => Some(Ended::Late),
        // We have nothing to prove who we are, or the client's body is gone.
        Err(lost) => lost.elsewhere.then_some(Ended::Failed),
    }
}

/// The status, or what one of gRPC that comes with the head is in HTTP.
fn status(response: &Response<Incoming>) -> u16 {
    match response.headers().get(GRPC_STATUS).and_then(|value| value.to_str().ok()) {
        Some("2" | "13" | "15") => 500,
        Some("4") => 504,
        Some("12") => 501,
        Some("14") => 503,
        _ => response.status().as_u16(),
    }
}

/// An attempt whose endpoint cannot be reached.
pub(super) fn unreached(error: &ConnectError) -> Lost {
    let elsewhere = match error {
        ConnectError::Tunnel(error) => error.before_first_byte(),
        ConnectError::Overflow | ConnectError::NoCertificate => false,
        _ => true,
    };
    let full = matches!(error, ConnectError::Overflow | ConnectError::Tunnel(HboneError::Overloaded));
    Lost {
        end: AttemptEnd::ConnectFailure,
        failure: if full { Failure::OVERFLOW } else { Failure::CONNECT },
        elsewhere,
    }
}

/// Whether an answer can be read in one way only. What cannot is not passed on, for the client may read it in another.
pub(super) fn is_sound(response: &Response<Incoming>) -> bool {
    let headers = response.headers();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let (coding, more) = (codings.next(), codings.next());
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let (length, again) = (lengths.next(), lengths.next());
    let is_number = |value: &HeaderValue| !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
    response.status().as_u16() < 600
        && more.is_none()
        && coding.is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked") && length.is_none())
        && again.is_none()
        && length.is_none_or(is_number)
}

/// What an answer means for another attempt.
pub(super) fn judged(response: &Response<Incoming>) -> AttemptEnd {
    let grpc = response.headers().get(GRPC_STATUS).and_then(|value| value.to_str().ok()?.parse().ok());
    let rate_limited = response.headers().contains_key(RATE_LIMITED);
    AttemptEnd::Response { status: response.status().as_u16(), grpc, rate_limited }
}
