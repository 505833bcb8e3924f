//! Requests of the waypoint's own: to services that help it decide about others'. They go the way that all requests go, to an endpoint of a place by a connection
//! of the lane's pool, in the waypoint's own name. Whoever asks has a deadline of his own.

use std::net::SocketAddr;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TE, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use mesh_core::l7::ClusterKey;
use mesh_core::l7::cluster::Speaks;
use mesh_core::service::AppProtocol;

use crate::engine::Lane;
use crate::http::outgoing::address;
use crate::http::{BoxError, RequestBody, grpc};
use crate::peer::Peer;
use crate::places::{Found, NoEndpoint};
use crate::state::View;
use crate::upstream::choose::{self, Wish};
use crate::upstream::{ConnectError, Endpoint, SendError};

/// Bytes of an answer's body; more is a failure.
const LONGEST: usize = 64 * 1024;
/// Connections that were closed under our hands, before a new one is made.
const STALE: u32 = 3;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Call {
    /// The method.
    pub method: Method,
    /// The path and query.
    pub target: PathAndQuery,
    /// The host.
    pub host: HeaderValue,
    /// Headers, but for the host and the length.
    pub headers: HeaderMap,
    /// The body; an empty one is none.
    pub body: Bytes,
}

/// What was answered.
#[derive(Debug)]
pub struct Answered {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// What came behind it.
    pub trailers: Option<HeaderMap>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody is there who could be asked.
    #[error(transparent)]
    Place(#[from] NoEndpoint),
    /// No connection came about.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The request cannot be written, or was lost.
    #[error("the request was lost")]
    Lost,
    /// The answer's body broke off, or is too long.
    #[error("the answer cannot be read: {0}")]
    Body(BoxError),
    /// The answer is none of gRPC, or says that the call has failed.
    #[error("the answer is no message of gRPC: status {0}, grpc-status {1:?}")]
    NoMessage(StatusCode, Option<HeaderValue>),
}

/// Asks one of a place's endpoints.
pub async fn call(lane: &Lane, view: &View, place: &ClusterKey, call: Call) -> Result<Answered, CallError> {
    let (endpoint, peer) = endpoint(lane, view, place)?;
    let http2 = endpoint.found.as_ref().is_some_and(|found| speaks_http2(found, place));
    send(lane, &endpoint, &peer, call, http2).await
}

/// Asks by gRPC: one message, and one for an answer.
pub async fn grpc(
    lane: &Lane,
    view: &View,
    place: &ClusterKey,
    path: &'static str,
    message: &[u8],
) -> Result<Bytes, CallError> {
    let (endpoint, peer) = endpoint(lane, view, place)?;
    let mut body = BytesMut::with_capacity(5 + message.len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).map_err(|_| CallError::Lost)?);
    body.extend_from_slice(message);
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(USER_AGENT, HeaderValue::from_static("undermesh-waypoint"));
    let host = HeaderValue::from_str(&place.service.name).map_err(|_| CallError::Lost)?;
    let target = PathAndQuery::from_static(path);
    let call = Call { method: Method::POST, target, host, headers, body: body.freeze() };
    let answered = send(lane, &endpoint, &peer, call, true).await?;
    message_of(answered)
}

/// The one message of an answer.
fn message_of(answered: Answered) -> Result<Bytes, CallError> {
    let trailers = answered.trailers.as_ref();
    let status = trailers.and_then(|all| all.get(grpc::STATUS)).or_else(|| answered.headers.get(grpc::STATUS));
    let is_ok = answered.status == StatusCode::OK && status.is_some_and(|status| status == "0");
    let mut body = answered.body;
    let is_message = is_ok && body.len() >= 5 && body[0] == 0;
    let failed = CallError::NoMessage(answered.status, status.cloned());
    if !is_message {
        return Err(failed);
    }
    body.advance(1);
    let length = body.get_u32() as usize;
    if body.len() == length { Ok(body) } else { Err(failed) }
}

fn endpoint(lane: &Lane, view: &View, place: &ClusterKey) -> Result<(Endpoint, Peer), CallError> {
    let own = &lane.shared.own;
    let wish = Wish::new(view, own, lane.shared.now_ms());
    let labels = view.labels.get(&own.uid).map(|labels| &**labels);
    let client =
        mesh_core::l7::Client { identity: Some(&own.identity), namespace: Some(&own.identity.namespace), labels };
    let found = choose::place(&lane.shared.places, &wish, place, &client)?;
    let endpoint = choose::endpoint(&found, &wish, &mut *lane.rng.lock())?;
    let like = endpoint.address.ip();
    let address = own.ip_like(like).unwrap_or(match like.is_ipv4() {
        true => std::net::Ipv4Addr::UNSPECIFIED.into(),
        false => std::net::Ipv6Addr::UNSPECIFIED.into(),
    });
    Ok((endpoint, own.on_behalf_of(SocketAddr::new(address, 0))))
}

fn speaks_http2(found: &Found, place: &ClusterKey) -> bool {
    let declared = found.now.service.port(place.port).map(|port| port.app_protocol);
    found.now.policy().pool.speaks == Speaks::Http2 || matches!(declared, Some(AppProtocol::Http2 | AppProtocol::Grpc))
}

async fn send(lane: &Lane, endpoint: &Endpoint, peer: &Peer, call: Call, http2: bool) -> Result<Answered, CallError> {
    let mut stale = 0;
    loop {
        let fresh = stale >= STALE;
        let mut connection = lane.pool.connect(&lane.shared, endpoint, peer, http2, fresh).await?;
        let request = request(&call, http2).ok_or(CallError::Lost)?;
        let response = match connection.send(request).await {
            Ok(response) => response,
            // Nothing of it has been looked at.
            Err(SendError::NotSent(_) | SendError::Refused) if !fresh => {
                stale += 1;
                continue;
            }
            Err(_) => return Err(CallError::Lost),
        };
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, LONGEST).collect().await.map_err(CallError::Body)?;
        let trailers = body.trailers().cloned();
        lane.pool.give_back(&lane.shared, connection, endpoint.found.as_ref());
        return Ok(Answered { status: parts.status, headers: parts.headers, body: body.to_bytes(), trailers });
    }
}

fn request(call: &Call, http2: bool) -> Option<Request<RequestBody>> {
    let body = match call.body.is_empty() {
        true => RequestBody::Empty,
        false => RequestBody::Kept(Some(call.body.clone())),
    };
    let mut request = Request::new(body);
    *request.method_mut() = call.method.clone();
    *request.headers_mut() = call.headers.clone();
    request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(call.body.len()));
    address(&mut request, call.target.clone(), call.host.clone(), http2)?;
    Some(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_whole_message_of_a_call_that_succeeded_is_an_answer() {
        let answered = |status: u16, grpc: Option<&'static str>, body: &'static [u8]| Answered {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::from_static(body),
            trailers: grpc.map(|code| [(grpc::STATUS, HeaderValue::from_static(code))].into_iter().collect()),
        };
        let good = b"\0\0\0\0\x02ab";
        assert_eq!(&*message_of(answered(200, Some("0"), good)).unwrap(), b"ab");
        assert_eq!(&*message_of(answered(200, Some("0"), b"\0\0\0\0\0")).unwrap(), b"");
        for (status, grpc, body) in [
            (200, None, &good[..]),
            (200, Some("14"), good),
            (503, Some("0"), good),
            (200, Some("0"), b""),
            (200, Some("0"), b"\x01\0\0\0\x02ab"),
            (200, Some("0"), b"\0\0\0\0\x03ab"),
            (200, Some("0"), b"\0\0\0\0\x01ab"),
            (200, Some("0"), b"\0\xff\xff\xff\xff"),
        ] {
            assert!(message_of(answered(status, grpc, body)).is_err(), "{status} {grpc:?} {body:?}");
        }
    }
}
