//! What is refused before there is a request or a record of it: connections, handshakes, and what is neither HTTP/1.1 nor HTTP/2 beyond doubt. Each is counted by one
//! word (`undermesh_waypoint_refused_total`) and has a line in the process's own log, of which there are few a second whatever clients do. Told by `edge`,
//! `inbound` and `connection`; shown by `shown`.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use mesh_runtime::limit::{Limiter, Rate, Verdict};
use mesh_transport::hbone::AcceptError;
use mesh_transport::tls::HandshakeError;

use crate::http::io::{Broken, Watch};
use crate::http::serve::End;

/// Lines of each word: clients decide how many there would be.
const LINES: Rate = Rate { rate: 1.0, burst: 10.0 };

/// Declares the reasons with their words, so that a reason cannot lack one.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $word:literal,)+) => {
        /// A reason to refuse.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[doc = $doc])* $name,)+ }

        impl Reason {
            /// Every reason.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$name),+];

            /// Its word, for the log and the metric.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)+ }
            }
        }
    };
}

reasons! {
    /// There are as many connections from outside of the mesh as may be.
    ConnectionLimit = "connection_limit",
    /// One source has as many of them as it may.
    SourceLimit = "source_limit",
    /// The port is one that no listener asks for any more.
    NoListener = "no_listener",
    /// TLS cannot end: a certificate is not here, or is none.
    NoCertificate = "no_certificate",
    /// No PROXY header is believed of who connects.
    ProxyUntrusted = "proxy_untrusted",
    /// The PROXY header is none, or not here in time.
    ProxyHeader = "proxy_header",
    /// A handshake did not end in time.
    HandshakeTimeout = "handshake_timeout",
    /// The other end went away before the handshake, or the PROXY header, was over: whoever looks whether a port is open does.
    HandshakeClosed = "handshake_closed",
    /// Something else than TLS where TLS begins.
    NotTls = "not_tls",
    /// TLS that comes to nothing.
    Handshake = "handshake_failed",
    /// The client shows no certificate that lets it in.
    ClientCertificate = "client_certificate",
    /// The client does not believe the certificate that it is shown.
    RefusedByPeer = "refused_by_peer",
    /// It comes from outside of the mesh to what is for the mesh.
    NotOfMesh = "not_of_mesh",
    /// Too many handshakes of tunnels from one address, or in all.
    HalfOpenLimit = "half_open_limit",
    /// Too many tunnels from one address, or in all.
    TunnelLimit = "tunnel_limit",
    /// A tunnel's own protocol is broken in it.
    Tunnel = "tunnel_protocol",
    /// No configuration has ever arrived.
    NotSynced = "not_synced",
    /// Nobody is known by the address that a tunnel asks for.
    UnknownAddress = "unknown_mesh_address",
    /// What a tunnel asks for is not bound to this waypoint.
    NotBound = "not_bound",
    /// The service has no such port, or it is one of the mesh itself.
    UnknownPort = "unknown_port",
    /// Bytes that two programs may read as different requests.
    Smuggling = "http_ambiguous",
    /// No request of HTTP/1.1.
    Http1 = "http1_malformed",
    /// The head of a request is too large.
    HeadTooLarge = "http_head_too_large",
    /// A client of HTTP has said nothing at all for as long as it has for a head. Browsers connect beforehand and may then have nothing to ask.
    Silent = "silent",
    /// The head of a request does not end in time.
    HeadTimeout = "http_head_timeout",
    /// A connection of HTTP/2 that is broken.
    Http2 = "http2_protocol",
    /// Frames of HTTP/2 that ask for nothing, or streams that are given up as soon as they are begun.
    Http2Flood = "http2_flood",
}

impl Reason {
    /// Whether the operator can do something about it, and not the client alone.
    fn is_ours(self) -> bool {
        matches!(
            self,
            Self::ConnectionLimit
                | Self::SourceLimit
                | Self::NoCertificate
                | Self::HalfOpenLimit
                | Self::TunnelLimit
                | Self::NotSynced
        )
    }

    /// Whether it happens all the time where nothing is wrong: somebody looks whether a port is open, a browser connects beforehand.
    fn is_usual(self) -> bool {
        matches!(self, Self::HandshakeClosed | Self::Silent)
    }

    /// Why a handshake with a client from outside of the mesh failed.
    #[must_use]
    pub fn of_handshake(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => Self::of_tls(tls),
            None => Self::HandshakeClosed,
        }
    }

    /// Why TLS came to nothing.
    #[must_use]
    pub fn of_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(_)
            | rustls::Error::NoCertificatesPresented
            | rustls::Error::InvalidCertRevocationList(_) => Self::ClientCertificate,
            rustls::Error::AlertReceived(_) => Self::RefusedByPeer,
            _ => Self::Handshake,
        }
    }

    /// Why a connection of HTTP ended, if it was for what the client sent. Of slow bodies and answers that are not read the request itself tells.
    fn of_end(end: &End) -> Option<Self> {
        let error = match end {
            End::Http(error) => error,
            End::SlowHeader => return Some(Self::HeadTimeout),
            End::Silent => return Some(Self::Silent),
            End::SlowBody | End::Unread | End::Cut => return None,
        };
        if error.is_parse() {
            return Some(if error.is_parse_too_large() { Self::HeadTooLarge } else { Self::Http1 });
        }
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<h2::Error>() {
                let flood = error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
                let word = if flood { Self::Http2Flood } else { Self::Http2 };
                return error.is_library().then_some(word);
            }
            cause = error.source();
        }
        None
    }
}

impl From<&AcceptError> for Reason {
    fn from(error: &AcceptError) -> Self {
        match error {
            AcceptError::TooManyHalfOpen | AcceptError::TooFast => Self::HalfOpenLimit,
            AcceptError::TooManyTunnels => Self::TunnelLimit,
            AcceptError::Timeout => Self::HandshakeTimeout,
            AcceptError::Handshake(error) => match error {
                HandshakeError::Io(_) => Self::HandshakeClosed,
                HandshakeError::NotTls => Self::NotTls,
                HandshakeError::Peer(_) => Self::ClientCertificate,
                HandshakeError::PeerAlert(_) => Self::RefusedByPeer,
                HandshakeError::Tls(error) => Self::of_tls(error),
                HandshakeError::Alpn | HandshakeError::TooLarge => Self::Handshake,
            },
        }
    }
}

/// How often each was refused. One for the process; who asks in order never touches it.
#[derive(Debug)]
pub struct Refusals {
    counts: [AtomicU64; Reason::ALL.len()],
    lines: Limiter<{ Reason::ALL.len() }>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), lines: Limiter::new(LINES) }
    }
}

impl Refusals {
    /// Counts one, and says so if it may; `error` is in our words and holds none of the client's bytes.
    pub fn tell(&self, reason: Reason, client: SocketAddr, error: impl Display) {
        self.counts[reason as usize].fetch_add(1, Relaxed);
        let (ours, word) = (reason.is_ours(), reason.as_str());
        match self.may(reason, Instant::now()) {
            None => tracing::debug!(reason = word, %client, %error, "a connection was refused"),
            Some(left_out) if ours => {
                tracing::warn!(reason = word, %client, %error, left_out, "a connection was refused")
            }
            Some(left_out) => tracing::info!(reason = word, %client, %error, left_out, "a connection was refused"),
        }
    }

    /// Whether that is said now; then, how often it was not since it was said last.
    fn may(&self, reason: Reason, now: Instant) -> Option<u64> {
        if reason.is_usual() {
            return None;
        }
        match self.lines.check(reason as usize, now) {
            Verdict::Write { suppressed } => Some(suppressed),
            Verdict::Suppress => None,
        }
    }

    /// Tells how a connection of HTTP has ended, if that was because of what the client sent.
    pub fn ended(&self, watch: &Watch, end: &Result<(), End>, client: SocketAddr) {
        let broken = watch.broken();
        match (broken, end) {
            (Some(Broken::Bytes(bad)), _) => self.tell(Reason::Smuggling, client, bad),
            (Some(Broken::Frames), _) => self.tell(Reason::Http2Flood, client, "frames that ask for nothing"),
            (None, Err(error)) => match Reason::of_end(error) {
                Some(reason) => self.tell(reason, client, error),
                None => tracing::debug!(%client, %error, "a connection ended out of order"),
            },
            (None, Ok(())) => {}
        }
    }

    /// How often that was so far.
    #[must_use]
    pub fn of(&self, reason: Reason) -> u64 {
        self.counts[reason as usize].load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_reason_has_its_own_word_and_count() {
        let (refusals, client) = (Refusals::default(), "198.51.100.1:7".parse().unwrap());
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            // More than has lines: all are counted.
            for _ in 0..100 {
                refusals.tell(reason, client, "why");
            }
            assert_eq!(refusals.of(reason), 100, "{reason:?}");
        }
        let words: std::collections::BTreeSet<_> = Reason::ALL.map(Reason::as_str).into();
        assert_eq!(words.len(), Reason::ALL.len());
    }

    #[test]
    fn hardening_f50_a_flood_of_what_is_refused_has_few_lines_and_says_how_many_were_left_out() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        for reason in Reason::ALL {
            let mut said = (0, 0);
            for at in 0..100_000 {
                if let Some(left_out) = refusals.may(reason, start + Duration::from_micros(at * 600)) {
                    said = (said.0 + 1, said.1 + left_out);
                }
            }
            let closed = reason.is_usual();
            assert!(if closed { said.0 == 0 } else { (60..=70).contains(&said.0) }, "{reason:?}: {said:?}");
            let left = refusals.may(reason, start + Duration::from_secs(120)).unwrap_or_default();
            assert_eq!(said.0 + said.1 + left, if closed { 0 } else { 100_000 }, "{reason:?}: all are accounted for");
        }
    }

    #[test]
    fn why_tls_fails_has_a_word() {
        let of = |error: rustls::Error| Reason::of_handshake(&io::Error::new(io::ErrorKind::InvalidData, error));
        let unknown = rustls::CertificateError::UnknownIssuer;
        for (error, expected) in [
            (rustls::Error::InvalidCertificate(unknown), Reason::ClientCertificate),
            (rustls::Error::NoCertificatesPresented, Reason::ClientCertificate),
            (rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA), Reason::RefusedByPeer),
            (rustls::Error::PeerMisbehaved(rustls::PeerMisbehaved::TooManyEmptyFragments), Reason::Handshake),
        ] {
            assert_eq!(of(error), expected);
        }
        assert_eq!(Reason::of_handshake(&io::ErrorKind::UnexpectedEof.into()), Reason::HandshakeClosed);
    }
}
