//! What gRPC says in HTTP, by its description "gRPC over HTTP2": the type of its messages, how long a client waits, and how a call ends. Used by bodies and the exchange.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::web::Web;

/// The status of a call, in trailers or, if there is nothing else, in the head.
pub const STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// What is said with it.
pub const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Its media type; a subtype or parameters may follow.
const TYPE: &[u8] = b"application/grpc";
/// Digits of a timeout, at most.
const DIGITS: usize = 8;
/// The status of what is no status: nobody knows.
pub const UNKNOWN: u16 = 2;
/// The last status that there is.
const LAST: u16 = 16;

/// A timeout that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadTimeout;

/// Whether a message with these fields is gRPC. What browsers speak, gRPC-Web, is not: it has its status in its body.
pub fn is(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| is_type(value.as_bytes()))
}

/// What a request is of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Nothing.
    None,
    /// A call.
    Grpc,
    /// A call as browsers speak it, which is one of gRPC to endpoints whose port says that they speak that.
    Web(Web),
}

impl Call {
    /// What one with these fields is.
    pub fn of(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes) else { return Self::None };
        if is_type(value) { Self::Grpc } else { Web::of(value, headers).map_or(Self::None, Self::Web) }
    }

    /// Whether it is one, spoken in either way.
    pub fn is_any(self) -> bool {
        self != Self::None
    }

    /// Whether it is gRPC itself.
    pub fn is_grpc(self) -> bool {
        self == Self::Grpc
    }
}

fn is_type(value: &[u8]) -> bool {
    let (own, rest) = value.split_at(value.len().min(TYPE.len()));
    own.eq_ignore_ascii_case(TYPE) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// Whether an endpoint's answer to a call is an answer of something else, such as a page of a proxy, or a failure of HTTP. One that is 200 and does not say its type is
/// taken for gRPC.
pub fn is_foreign(status: StatusCode, headers: &HeaderMap) -> bool {
    let is_none = status != StatusCode::OK || (headers.contains_key(CONTENT_TYPE) && !is(headers));
    is_none && !headers.contains_key(STATUS)
}

/// How long the client waits; nothing, if it does not say so, or says 0, which each end reads in its own way.
pub fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, BadTimeout> {
    let mut said = headers.get_all(TIMEOUT).iter();
    let (Some(value), more) = (said.next(), said.next()) else { return Ok(None) };
    let (Some((unit, digits)), None) = (value.as_bytes().split_last(), more) else { return Err(BadTimeout) };
    if digits.is_empty() || digits.len() > DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return Err(BadTimeout);
    }
    let number = digits.iter().fold(0, |number: u64, digit| number * 10 + u64::from(digit - b'0'));
    let time = match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return Err(BadTimeout),
    };
    Ok(Some(time).filter(|time| !time.is_zero()))
}

/// The status that these fields have. What is none is [`UNKNOWN`], as for clients: it stands in labels, which are to be few.
pub fn status(headers: &HeaderMap) -> Option<u16> {
    let value = headers.get(STATUS)?.to_str().ok();
    Some(value.and_then(|value| value.parse().ok()).filter(|status| *status <= LAST).unwrap_or(UNKNOWN))
}

/// The status of gRPC that stands for one of HTTP, by gRPC's own table.
pub fn code(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: HeaderName, values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn hardening_B177_timeouts_are_read_as_they_are_described_and_in_no_other_way() {
        for (values, expected) in [
            (&[][..], Ok(None)),
            (&["1S"], Ok(Some(Duration::from_secs(1)))),
            (&["20m"], Ok(Some(Duration::from_millis(20)))),
            (&["3u"], Ok(Some(Duration::from_micros(3)))),
            (&["4n"], Ok(Some(Duration::from_nanos(4)))),
            (&["2M"], Ok(Some(Duration::from_secs(120)))),
            (&["99999999H"], Ok(Some(Duration::from_secs(99_999_999 * 3600)))),
            (&["0S"], Ok(None)),
            (&["99999999999H"], Err(BadTimeout)),
            (&["-1S"], Err(BadTimeout)),
            (&["+1S"], Err(BadTimeout)),
            (&["1x"], Err(BadTimeout)),
            (&["1"], Err(BadTimeout)),
            (&["S"], Err(BadTimeout)),
            (&["1.5S"], Err(BadTimeout)),
            (&["1 S"], Err(BadTimeout)),
            (&[""], Err(BadTimeout)),
            (&["1S", "2S"], Err(BadTimeout)),
        ] {
            assert_eq!(timeout(&with(TIMEOUT, values)), expected, "{values:?}");
        }
    }

    #[test]
    fn what_is_grpc_says_so() {
        for (value, expected) in [
            ("application/grpc", true),
            ("Application/gRPC+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grp", false),
            ("text/html", false),
            ("", false),
        ] {
            assert_eq!(is(&with(CONTENT_TYPE, &[value])), expected, "{value}");
        }
        assert!(!is(&HeaderMap::new()));
    }

    #[test]
    fn hardening_B181_a_status_that_is_none_is_unknown() {
        for (value, expected) in
            [("0", 0), ("16", 16), ("17", 2), ("99", 2), ("65536", 2), ("-1", 2), ("x", 2), ("", 2)]
        {
            assert_eq!(status(&with(STATUS, &[value])), Some(expected), "{value}");
        }
        assert_eq!(status(&HeaderMap::new()), None);
    }
}
