//! What an operator can ask of this process over a Unix socket of its own user: a live tap. Whoever may run something in the pod may ask; over the network nobody
//! may. The process starts it, `mesh-waypoint tap` asks it.
//!
//! ```text
//! GET /tap?SELECTOR
//! ```

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use mesh_core::tap::Selector;
use mesh_runtime::DrainToken;
use mesh_runtime::http::{Limits, Reply, is_foreign, own_user, serve_unix, text};
use mesh_runtime::tap::{self, answer};
use tokio::net::UnixListener;

use crate::shared::Shared;

/// Serves until the drain starts.
pub async fn serve(listener: UnixListener, shared: Arc<Shared>, drain: DrainToken) {
    let handler = move |request: Request<Bytes>| {
        let shared = Arc::clone(&shared);
        async move { said(&request, &shared) }
    };
    serve_unix(listener, own_user(), Limits::default(), drain, handler).await;
}

fn said(request: &Request<Bytes>, shared: &Shared) -> Reply {
    if is_foreign(request) {
        return text(
            StatusCode::FORBIDDEN,
            "requests of browsers are not served: no Origin, and Host must be localhost\n",
        );
    }
    match (request.uri().path(), request.method()) {
        ("/tap", &Method::GET) => {
            let selector = Selector::parse(request.uri().query().unwrap_or_default());
            let asked = selector.map(|selector| {
                let limits = tap::Limits { rate: selector.rate, time: selector.time };
                (selector, limits)
            });
            answer(&shared.taps, asked, who(shared).into())
        }
        ("/tap", _) => text(StatusCode::METHOD_NOT_ALLOWED, "GET it\n"),
        _ => text(StatusCode::NOT_FOUND, "there is /tap\n"),
    }
}

/// The pod, as `namespace/name`.
fn who(shared: &Shared) -> String {
    let own = &shared.own;
    let mut parts = own.uid.rsplit('/');
    match (parts.next(), parts.next()) {
        (Some(pod), Some(namespace)) => format!("{namespace}/{pod}"),
        _ => own.uid.to_string(),
    }
}
