//! How opening a stream through a tunnel can fail, at which stage, and what that means for a retry and for the metrics.

use std::io;
use std::sync::Arc;

use http::StatusCode;
use mesh_core::identity::Identity;

use crate::tls::HandshakeError;

/// Where an attempt to open a stream failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The TCP connection to the tunnel port.
    Dial,
    /// The TLS handshake, including the verification of who answered.
    Tls,
    /// The HTTP/2 preface and settings.
    Handshake,
    /// Between the CONNECT request and its answer.
    Request,
    /// The peer answered the CONNECT with something else than 200.
    Refused,
}

/// Why a stream was not opened. Cheap to clone: everyone who waited for the same dial gets the same error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HboneError {
    /// The TCP connection failed.
    #[error("tunnel dial: {0}")]
    Dial(Arc<io::Error>),
    /// The TCP connection took too long.
    #[error("tunnel dial timed out")]
    DialTimeout,
    /// The TLS handshake failed.
    #[error("tunnel tls: {0}")]
    Tls(HandshakeError),
    /// The TLS handshake took too long.
    #[error("tunnel tls timed out")]
    TlsTimeout,
    /// The peer has too many tunnels, or handshakes under way.
    #[error("peer takes no more tunnels now")]
    PeerBusy,
    /// Somebody else than expected answered (peer_identity_mismatch).
    #[error("peer_identity_mismatch: {found} answered")]
    PeerIdentityMismatch {
        /// Who answered.
        found: Identity,
    },
    /// The peer did not speak HTTP/2 in time.
    #[error("tunnel http/2 preface timed out")]
    PrefaceTimeout,
    /// The tunnel ended before the request was answered.
    #[error("tunnel closed: {0}")]
    Closed(Arc<str>),
    /// The peer reset the stream before answering; the number is the HTTP/2 error code.
    #[error("peer reset the request, code {0}")]
    Reset(u32),
    /// The peer did not answer the request in time.
    #[error("request timed out")]
    RequestTimeout,
    /// The request was not answered, nor was a PING, nor has the peer said anything else: it has stopped, or the way to it. Or no tunnel came about in the
    /// time that was given.
    #[error("peer is silent")]
    Silent,
    /// The peer refused the request.
    #[error("peer refused with status {0}")]
    Refused(StatusCode),
    /// The pool does not hold more tunnels or waiters.
    #[error("too many tunnels or waiting connections")]
    Overloaded,
}

impl HboneError {
    /// The stage that failed.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Dial(_) | Self::DialTimeout | Self::Overloaded => Stage::Dial,
            Self::Tls(_) | Self::TlsTimeout | Self::PeerBusy | Self::PeerIdentityMismatch { .. } => Stage::Tls,
            Self::PrefaceTimeout => Stage::Handshake,
            Self::Closed(_) | Self::Reset(_) | Self::RequestTimeout | Self::Silent => Stage::Request,
            Self::Refused(_) => Stage::Refused,
        }
    }

    /// Whether another endpoint may be tried. Always true here: the application's bytes are sent only after the peer has answered 200. A refusal by
    /// policy (401) is final all the same, because another endpoint of the service has the same policy and an answer must not depend on luck.
    pub fn before_first_byte(&self) -> bool {
        !matches!(self, Self::Refused(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))
    }

    /// The value of the `response_flags` label, in ztunnel's words.
    pub fn response_flag(&self) -> &'static str {
        match self.stage() {
            Stage::Dial => "CONNECT",
            Stage::Tls => "TLS_FAILURE",
            Stage::Handshake => "H2_HANDSHAKE_FAILURE",
            Stage::Request => "CONNECT",
            Stage::Refused if matches!(self, Self::Refused(StatusCode::UNAUTHORIZED)) => "DENY",
            Stage::Refused => "CONNECT",
        }
    }

    /// A short stable name for logs and counters.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Dial(_) => "dial_failed",
            Self::DialTimeout => "dial_timeout",
            Self::Tls(_) => "tls_failed",
            Self::TlsTimeout => "tls_timeout",
            Self::PeerBusy => "peer_busy",
            Self::PeerIdentityMismatch { .. } => "peer_identity_mismatch",
            Self::PrefaceTimeout => "preface_timeout",
            Self::Closed(_) => "tunnel_closed",
            Self::Reset(_) => "request_reset",
            Self::RequestTimeout => "request_timeout",
            Self::Silent => "peer_silent",
            Self::Refused(_) => "refused",
            Self::Overloaded => "overloaded",
        }
    }
}
