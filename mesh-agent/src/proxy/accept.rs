//! Accept loops of one pod's listeners. Called by `pod_proxy.rs`; every connection's own work runs in its own task.

use std::net::SocketAddr;

use mesh_transport::socket::{AcceptLoop, Armed};
use tokio_util::sync::CancellationToken;

/// Accepts until `stop`; hands every connection to `serve`, which must not block. Ends too when the listener is gone, which is said loudly.
pub async fn run(mut listener: AcceptLoop, stop: CancellationToken, mut serve: impl FnMut(Armed, SocketAddr)) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    mesh_runtime::failpoint::pass("accept");
                    serve(stream, peer);
                }
                Err(error) => {
                    tracing::error!(%error, "listener lost");
                    return;
                }
            },
        }
    }
}
