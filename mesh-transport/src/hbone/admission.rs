//! The last question about the peer of a new tunnel: has its certificate been revoked. Asked by the pool and by the acceptor.

use std::sync::Arc;

use super::tunnel::{Closed, Tunnel};
use crate::socket;
use crate::tls::{Admission, Proof, Revocations, VerifyError};

/// TLS' alert for a revoked certificate.
const CERTIFICATE_REVOKED: u8 = 44;

/// Lets the tunnel's peer in, for as long as what is returned lives and no new list names it. Without lists everybody is let in.
pub(super) fn admit(
    revocations: Option<&Arc<Revocations>>,
    tunnel: &Arc<Tunnel>,
    proof: impl FnOnce() -> Proof,
) -> Result<Option<Admission>, VerifyError> {
    let Some(revocations) = revocations else { return Ok(None) };
    let watched = Arc::downgrade(tunnel);
    let cut = move || {
        if let Some(tunnel) = watched.upgrade() {
            tracing::warn!(peer = %tunnel.peer, address = %tunnel.remote, "tunnel is cut: the peer's certificate was revoked");
            tunnel.close(Closed::Lost("peer certificate was revoked".into()));
            // Also one that has ended, and is only waiting for its peer to take the rest.
            socket::close(&tunnel.socket);
        }
    };
    revocations.admit(proof(), cut).map(Some).inspect_err(|_| tunnel.alert(CERTIFICATE_REVOKED))
}
