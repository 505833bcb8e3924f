//! From header fields to a request or an answer. Strict where access depends on it (method, authority), lenient where only telemetry does.

use std::net::IpAddr;

use http::StatusCode;

use super::hpack::Field;
use super::{Authority, AuthorityProblem, Baggage, Forwarded, TraceParent};

/// A well-formed CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) authority: Authority,
    pub(super) baggage: Baggage,
    pub(super) forwarded: Option<Forwarded>,
    pub(super) traceparent: Option<TraceParent>,
    pub(super) network: Option<String>,
}

/// Why a request is answered 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestProblem {
    #[error("malformed_headers")]
    Malformed,
    #[error("not_connect")]
    NotConnect,
    #[error("bad_authority")]
    Authority,
    #[error(transparent)]
    Address(AuthorityProblem),
}

/// Reads a request that arrived at `local`.
pub(super) fn parse_request(fields: &[Field], local: IpAddr) -> Result<Request, RequestProblem> {
    let (mut method, mut authority) = (None, None);
    let (mut baggage, mut forwarded, mut forwarded_count, mut traceparent, mut network) =
        (Baggage::default(), None, 0, None, None);
    let mut regular = false;
    for Field { name, value } in fields {
        if name.is_empty()
            || name.iter().any(u8::is_ascii_uppercase)
            || value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'))
        {
            return Err(RequestProblem::Malformed);
        }
        if name[0] == b':' {
            let slot = match name.as_slice() {
                b":method" => &mut method,
                b":authority" => &mut authority,
                // A CONNECT has no scheme and no path; an extended one has a protocol, which is not what this port speaks.
                _ => return Err(RequestProblem::Malformed),
            };
            if regular || slot.replace(value.as_slice()).is_some() {
                return Err(RequestProblem::Malformed);
            }
            continue;
        }
        regular = true;
        match name.as_slice() {
            b"baggage" => baggage = Baggage::parse(value),
            b"forwarded" => {
                forwarded_count += 1;
                forwarded = Forwarded::parse(value);
            }
            b"traceparent" => traceparent = TraceParent::parse(value),
            b"x-forwarded-network" if value.len() <= 253 => network = String::from_utf8(value.clone()).ok(),
            b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => {
                return Err(RequestProblem::Malformed);
            }
            _ => {}
        }
    }
    if method != Some(b"CONNECT") {
        return Err(RequestProblem::NotConnect);
    }
    let authority = authority
        .and_then(|value| std::str::from_utf8(value).ok())
        .and_then(Authority::parse)
        .ok_or(RequestProblem::Authority)?;
    authority.check_address(local).map_err(RequestProblem::Address)?;
    // Two claims about who the client is are no claim.
    let forwarded = forwarded.filter(|_| forwarded_count == 1);
    Ok(Request { authority, baggage, forwarded, traceparent, network })
}

/// Reads an answer: its status and the serving workload's labels. `None` if there is no status.
pub(super) fn parse_answer(fields: &[Field]) -> Option<(StatusCode, Baggage)> {
    let mut status = None;
    let mut baggage = Baggage::default();
    for field in fields {
        match field.name.as_slice() {
            b":status" => status = Some(StatusCode::from_bytes(&field.value).ok()?),
            b"baggage" => baggage = Baggage::parse(&field.value),
            _ => {}
        }
    }
    Some((status?, baggage))
}
