//! Copies of requests, for which nobody waits: sent when all of the body is here, to hosts whose name says that they are copies; at most so many at once.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::header::HeaderValue;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt;
use mesh_core::l7::ClusterKey;
use mesh_runtime::task;

use crate::downstream::Downstream;
use crate::engine::Lane;
use crate::http::RequestBody;
use crate::http::outgoing::address;
use crate::http::tape::Tape;
use crate::upstream::choose::{self, Wish};

/// What is copied.
pub struct Copy {
    /// The method.
    pub method: Method,
    /// The path and query.
    pub target: PathAndQuery,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, if there is one.
    pub tape: Option<Arc<Tape>>,
}

struct Place(Arc<Lane>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.mirrors.fetch_sub(1, Relaxed);
    }
}

/// Sends a copy, unless there are too many already.
pub fn send(down: &Arc<Downstream>, copy: Copy, cluster: ClusterKey, host: &HeaderValue, http2: bool) {
    let lane = &down.lane;
    let before = lane.mirrors.fetch_add(1, Relaxed);
    let place = Place(Arc::clone(lane));
    let Some(host) = shadow(host).filter(|_| before < lane.shared.settings.mirrors) else { return };
    let down = Arc::clone(down);
    task::spawn("copy of a request", async move {
        let limit = place.0.shared.settings.mirror_timeout;
        let _ = tokio::time::timeout(limit, deliver(&down, copy, &cluster, host, http2)).await;
        drop(place);
    });
}

async fn deliver(down: &Downstream, copy: Copy, cluster: &ClusterKey, host: HeaderValue, http2: bool) -> Option<()> {
    let lane = &down.lane;
    let body = match &copy.tape {
        None => RequestBody::Empty,
        Some(tape) => {
            let (frames, trailers) = tape.whole().await?;
            RequestBody::Kept(Box::new((frames.into_iter(), trailers)))
        }
    };
    let bound = down.bound().ok()?;
    let endpoint = {
        let (view, own) = (&bound.view, &lane.shared.own);
        let wish = Wish { view, own, tried: &[], hash: None, encrypted: false, now_ms: lane.shared.now_ms() };
        let found = choose::place(&lane.shared.places, &wish, cluster, &bound.seen(&down.peer)).ok()?;
        choose::endpoint(&found, &wish, &mut *lane.rng.lock()).ok()?
    };
    if endpoint.waypoint.is_none() && !bound.admits(&down.peer, &endpoint.workload, endpoint.address) {
        return None;
    }
    let mut connection = lane.pool.connect(&lane.shared, &endpoint, &down.peer, http2, false).await.ok()?;
    let mut request = Request::new(body);
    *request.method_mut() = copy.method;
    *request.headers_mut() = copy.headers;
    address(&mut request, copy.target, host, http2)?;
    let mut response = connection.send(request).await.ok()?;
    while let Some(frame) = response.body_mut().frame().await {
        frame.ok()?;
    }
    lane.pool.give_back(&lane.shared, connection, endpoint.found.as_ref());
    Some(())
}

/// The host with what says that it is a copy, before the port.
fn shadow(host: &HeaderValue) -> Option<HeaderValue> {
    let host = host.to_str().ok()?;
    let end = host.rfind(':').filter(|at| !host[*at..].contains(']')).unwrap_or(host.len());
    let (name, port) = host.split_at(end);
    HeaderValue::from_str(&format!("{name}-shadow{port}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_told_by_their_host() {
        for (host, expected) in
            [("shop", "shop-shadow"), ("shop:80", "shop-shadow:80"), ("10.0.0.1:80", "10.0.0.1-shadow:80")]
        {
            assert_eq!(shadow(&HeaderValue::from_static(host)).unwrap(), expected);
        }
    }
}
