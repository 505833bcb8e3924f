//! A dial of the pool: TCP, TLS and the shared half of the tunnel; and the guards that keep the pool's table true however a dial, a wait for one or
//! a tunnel ends.

use std::sync::Arc;
use std::time::SystemTime;

use super::{BoxedDial, Pool, PoolConfig, TunnelKey};
use crate::hbone::HboneError;
use crate::hbone::admission::admit;
use crate::hbone::tunnel::{Closed, Parts, Role, Tunnel};
use crate::tls::{self, Admission, HandshakeError, IdentityCertificate, Proof, TlsStream, Usage, VerifyError};

/// TCP, TLS, and the shared half of the tunnel.
pub(super) async fn dial_tunnel(
    config: &PoolConfig,
    key: &TunnelKey,
    cert: &IdentityCertificate,
    dial: BoxedDial,
) -> Result<(Arc<Tunnel>, Received), HboneError> {
    let tcp = tokio::time::timeout(config.dial_timeout, dial())
        .await
        .map_err(|_| HboneError::DialTimeout)?
        .map_err(|error| HboneError::Dial(Arc::new(error)))?;
    tcp.set_nodelay(true).map_err(|error| HboneError::Dial(Arc::new(error)))?;
    let handshake = tls::connect(tcp, cert.client_config(&key.expected));
    let tls = tokio::time::timeout(config.tls_timeout, handshake).await.map_err(|_| HboneError::TlsTimeout)?.map_err(
        |error| match error {
            HandshakeError::Peer(VerifyError::PeerIdentityMismatch { found }) => {
                HboneError::PeerIdentityMismatch { found }
            }
            error if error.is_busy() => HboneError::PeerBusy,
            error => HboneError::Tls(error),
        },
    )?;
    let TlsStream { tcp, peer, chain, expires, sealer, opener, keys, received, opened, unsent } = tls;
    let parts = Parts { socket: tcp, peer, generation: cert.generation, sealer, keys, unsent };
    let tunnel =
        Tunnel::new(Role::Client, parts, config.max_streams).map_err(|error| HboneError::Dial(Arc::new(error)))?;
    let tunnel = Arc::new(tunnel);
    let proof = || Proof { chain, roots: cert.roots().clone(), usage: Usage::Server, at: mesh_runtime::clock::now() };
    let admission = admit(config.revocations.as_ref(), &tunnel, proof)
        .map_err(|error| HboneError::Tls(HandshakeError::Peer(error)))?;
    Ok((tunnel, Received { admission, expires, opener, received, opened }))
}

/// The receiving half of a finished handshake.
pub(super) struct Received {
    /// Held while the tunnel lives.
    pub(super) admission: Option<Admission>,
    /// When the peer's certificate ends.
    pub(super) expires: SystemTime,
    pub(super) opener: tls::Opener,
    pub(super) received: Vec<u8>,
    pub(super) opened: Vec<u8>,
}

/// Somebody waits for a dial.
pub(super) struct Waiting<'a> {
    pub(super) pool: &'a Pool,
    pub(super) key: &'a TunnelKey,
    pub(super) id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pool.change(self.key, |entry| {
            if let Some(dial) = entry.dials.iter_mut().find(|dial| dial.id == self.id) {
                dial.waiting -= 1;
            }
            0
        });
    }
}

/// A dial under way; when it ends its tunnel, if any, takes its place.
pub(super) struct UnderWay<'a> {
    pub(super) pool: &'a Pool,
    pub(super) key: &'a TunnelKey,
    pub(super) id: u64,
    pub(super) tunnel: Option<Arc<Tunnel>>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let tunnel = self.tunnel.take();
        let mut placed = false;
        self.pool.change(self.key, |entry| {
            let before = entry.dials.len();
            entry.dials.retain(|dial| dial.id != self.id);
            // Not there any more: purged meanwhile.
            if before == entry.dials.len() {
                return 0;
            }
            match &tunnel {
                Some(tunnel) => {
                    entry.tunnels.push(tunnel.clone());
                    placed = true;
                    0
                }
                None => -1,
            }
        });
        if let Some(tunnel) = tunnel.filter(|_| !placed) {
            tunnel.close(Closed::Purged);
        }
    }
}

/// A tunnel that is in the pool as long as its driver runs.
pub(super) struct InPool<'a> {
    pub(super) pool: &'a Pool,
    pub(super) key: &'a TunnelKey,
    pub(super) tunnel: &'a Arc<Tunnel>,
}

impl Drop for InPool<'_> {
    fn drop(&mut self) {
        self.pool.change(self.key, |entry| {
            let before = entry.tunnels.len();
            entry.tunnels.retain(|tunnel| !Arc::ptr_eq(tunnel, self.tunnel));
            if before == entry.tunnels.len() { 0 } else { -1 }
        });
    }
}
