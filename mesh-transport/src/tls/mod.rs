//! Identities on the wire: certificates, peer verification and the TLS 1.3 record layer of tunnels.

mod certificate;
mod handshake;
mod hello;
pub mod pem;
mod record;
mod revocation;
mod sidecar;
mod verify;

pub use certificate::{CertificateError, IdentityCertificate, Roots};
pub use handshake::{HandshakeError, TlsStream};
pub(crate) use handshake::{KeySchedule, accept, connect, say_busy};
pub use hello::{Hello, is_tls, judge as judge_hello, peek_server_name};
pub(crate) use record::{
    CONTENT_ALERT, CONTENT_DATA, CONTENT_HANDSHAKE, Front, Opener, RECORD_CONTENT, RECORD_HEADER, Sealer, TRAILER,
};
pub(crate) use revocation::{Admission, Proof};
pub use revocation::{CRL_LIMIT, CrlError, Revocations};
pub use sidecar::{SidecarStream, accept_sidecar, is_sidecar};
pub(crate) use verify::Usage;
pub use verify::{VerifyError, WallClock, peer_identity};

#[cfg(test)]
mod weak;
