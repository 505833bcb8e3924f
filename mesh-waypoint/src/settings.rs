//! Limits and deadlines of the proxy: those of an edge proxy, because whoever has an identity may be anybody's pod. Read by every part.

use std::time::Duration;

use mesh_core::l7::path::Spelling;
use mesh_core::ports;
use mesh_core::telemetry::Scopes;

/// Limits and deadlines.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes of all header fields of one message; more is answered with 431.
    pub header_bytes: usize,
    /// How long a client may take for the header of a request once it has begun.
    pub header_timeout: Duration,
    /// Whether names of header fields may have `_`. What reads its fields as CGI does takes `X_User` for `X-User`, which others have set or removed.
    pub underscores: bool,
    /// Waypoints that one request may pass; more are a loop.
    pub hops: u8,
    /// How long a client of HTTP/1.1 may leave us waiting for more of a request's body.
    pub body_timeout: Duration,
    /// How long a client may take to have room for the next piece of an answer, which has some hundred KiB at most.
    pub stream_idle: Duration,
    /// How long a client's connection may be without a request.
    pub idle_timeout: Duration,
    /// How long a connection is watched for what it speaks, where the port does not say it.
    pub sniff_timeout: Duration,
    /// How long a client from outside may take for all that comes before its first request: a PROXY header, the TLS handshake.
    pub handshake_timeout: Duration,
    /// Connections from outside of the mesh, of one lane; more are closed.
    pub edge_connections: usize,
    /// The same of one source, which is an address, or 64 bits of one of IPv6. Who comes through proxies that are told of is not limited by their addresses.
    pub source_connections: usize,
    /// Sessions of datagrams, of one port and lane. If there are as many, one that does not talk makes room.
    pub datagram_sessions: usize,
    /// The same of the process: all ports, all lanes. If there are as many, one of the same port that does not talk makes room, and without one none is begun.
    pub datagram_sessions_together: usize,
    /// Of one port and lane and one client, which is an address, or 64 bits of one of IPv6.
    pub client_datagram_sessions: usize,
    /// How long a session of datagrams lasts in which nobody says anything.
    pub datagram_idle: Duration,
    /// The same of one that was asked and answered once, as by DNS.
    pub datagram_answered: Duration,
    /// Requests at once in one HTTP/2 connection of a client.
    pub streams: u32,
    /// How long an endpoint may take to accept a connection.
    pub connect_timeout: Duration,
    /// Connections to endpoints, of one lane.
    pub upstream_connections: usize,
    /// Unused connections that are kept for one endpoint and client, of one lane.
    pub idle_connections: usize,
    /// How long an unused connection to an endpoint is kept.
    pub upstream_idle: Duration,
    /// Bytes of a request's body that are kept for another attempt. Of a longer one there is none.
    pub replay_bytes: usize,
    /// Copies on their way at once, of one lane; more are not made.
    pub mirrors: usize,
    /// Bytes of a copy's body that may wait to be sent; a copy that is slower is given up.
    pub mirror_bytes: usize,
    /// The same of all copies of a lane together.
    pub mirrors_bytes: usize,
    /// How long a copy may take once its body has come.
    pub mirror_timeout: Duration,
    /// How paths are made one.
    pub spelling: Spelling,
    /// Where endpoints take tunnels. Tests have ports of their own.
    pub hbone_port: u16,
    /// How long clients of HTTP/1.1 that ask nothing are left their connections once the process is to stop.
    pub drain_idle: Duration,
    /// Makes what is drawn by lot the same in each run: for tests.
    pub seed: Option<u64>,
    /// What is measured, logged and traced as long as the control plane has not said it.
    pub telemetry: Scopes,
    /// How long spans are collected before they are sent.
    pub span_flush: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            header_bytes: 60 * 1024,
            header_timeout: Duration::from_secs(10),
            underscores: false,
            hops: 8,
            body_timeout: Duration::from_secs(300),
            stream_idle: Duration::from_secs(300),
            idle_timeout: Duration::from_secs(3600),
            sniff_timeout: Duration::from_secs(3),
            handshake_timeout: Duration::from_secs(5),
            edge_connections: 32_768,
            source_connections: 16_384,
            datagram_sessions: 8192,
            datagram_sessions_together: 65_536,
            client_datagram_sessions: 1024,
            datagram_idle: Duration::from_secs(60),
            datagram_answered: Duration::from_secs(5),
            streams: 100,
            connect_timeout: Duration::from_secs(10),
            upstream_connections: 16_384,
            idle_connections: 256,
            upstream_idle: Duration::from_secs(60),
            replay_bytes: 64 * 1024,
            mirrors: 1024,
            mirror_bytes: 1024 * 1024,
            mirrors_bytes: 64 * 1024 * 1024,
            mirror_timeout: Duration::from_secs(15),
            spelling: Spelling::Base,
            hbone_port: ports::HBONE,
            drain_idle: Duration::from_secs(1),
            seed: None,
            telemetry: Scopes::default(),
            span_flush: Duration::from_secs(1),
        }
    }
}
