//! How an attempt ended: what that means for another one, for its endpoint and for the client.

use http::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, Response};
use hyper::body::Incoming;
use mesh_core::l7::balance::Ended;
use mesh_core::l7::retry::AttemptEnd;
use mesh_transport::hbone::HboneError;

use super::reply::Failure;
use crate::http::{Fields, grpc};
use crate::places::NoEndpoint;
use crate::upstream::{ConnectError, Connection};

const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

/// An attempt without an answer.
pub(super) struct Lost {
    pub(super) end: AttemptEnd,
    pub(super) failure: Failure,
    /// Another endpoint may do better.
    pub(super) elsewhere: bool,
}

/// An attempt with one.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) connection: Connection,
    /// What the answer has.
    pub(super) has: Fields,
}

impl Answer {
    pub(super) fn new(response: Response<Incoming>, connection: Connection) -> Self {
        let has = Fields::of(response.headers());
        Self { response, connection, has }
    }

    /// Whether it can be read in one way only. What cannot is not passed on, for the client may read it in another.
    pub(super) fn is_sound(&self) -> bool {
        self.response.status().as_u16() < 600 && (!self.has.any(Fields::LENGTH) || ends_once(self.response.headers()))
    }

    /// The status, or what one of gRPC that comes with the head is in HTTP.
    fn status(&self) -> u16 {
        match self.grpc_status() {
            Some("2" | "13" | "15") => 500,
            Some("4") => 504,
            Some("12") => 501,
            Some("14") => 503,
            _ => self.response.status().as_u16(),
        }
    }

    fn grpc_status(&self) -> Option<&str> {
        if !self.has.any(Fields::GRPC_STATUS) {
            return None;
        }
        self.response.headers().get(grpc::STATUS)?.to_str().ok()
    }

    /// What it means for another attempt.
    pub(super) fn judged(&self) -> AttemptEnd {
        AttemptEnd::Response {
            status: self.response.status().as_u16(),
            grpc: self.grpc_status().and_then(|status| status.parse().ok()),
            rate_limited: self.has.any(Fields::ENVOY) && self.response.headers().contains_key(RATE_LIMITED),
        }
    }
}

/// Whether the fields that say where an answer ends say it once.
fn ends_once(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let (coding, more) = (codings.next(), codings.next());
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let (length, again) = (lengths.next(), lengths.next());
    let is_number = |value: &HeaderValue| !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
    more.is_none()
        && coding.is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked") && length.is_none())
        && again.is_none()
        && length.is_none_or(is_number)
}

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
        Ok(answer) => Some(Ended::Status(answer.status())),
        Err(lost) if lost.failure == Failure::OVERFLOW => None,
        Err(lost) if lost.failure == Failure::LATE => Some(Ended::Late),
        // We have nothing to prove who we are, or the client's body is gone.
        Err(lost) => lost.elsewhere.then_some(Ended::Failed),
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
