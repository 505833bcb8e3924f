//! One attempt to reach one endpoint for one outbound connection, and what its failure means: whose fault it was, what the metrics say, whether another
//! endpoint may be tried. Called by `outbound.rs`, which decides about further attempts.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::{ArcStr, EndpointLease, Identity, Refusal, Route, Upstream};
use mesh_runtime::lanes;
use mesh_transport::copy::Peer as CopyPeer;
use mesh_transport::hbone::{Authority, ConnectRequest, Forwarded, HboneError, Patience, TunnelKey};

use super::connections::{Direction, Endpoints, Registration};
use super::context::{self, PodContext};
use super::deliver;
use super::local;
use super::outbound::Flow;
use super::reasons::Reason;
use crate::telemetry::{ConnectionLabels, End, Ends, Peer, Reporter, ResponseFlags, Security};

/// Failures in a row by which a waypoint is left out, where there is another one: all that is led through it fails with it, whatever it is for.
const WAYPOINT_FAILURES: u32 = 3;

/// The far end, open.
pub struct Connected {
    /// To copy to.
    pub peer: CopyPeer,
    /// What the telemetry says of it.
    pub labels: ConnectionLabels,
    /// Counts the connection at its endpoint while it lives.
    pub lease: Option<EndpointLease>,
    /// The registration as a destination, when the pod called itself.
    pub hairpin: Option<Registration>,
}

/// Why an attempt failed.
pub struct Failure {
    /// In a word.
    pub reason: Reason,
    /// In the metric's word.
    pub flags: ResponseFlags,
    /// In a sentence.
    pub error: String,
    /// What the telemetry says of it.
    pub labels: ConnectionLabels,
    /// What may help.
    pub next: Next,
    /// The far end has not answered at all: nothing is known that it would have said.
    pub is_down: bool,
}

/// What may be done about a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    GiveUp,
    /// Another endpoint than this one.
    Other(ArcStr),
    /// Another one than this, which gives no sign; if there is no other, this one again, with patience.
    Instead(ArcStr),
    /// The same in a moment: a waypoint does not know of what it was asked for, because it or this agent is behind.
    Again,
}

impl Failure {
    /// No attempt was made.
    pub fn refused(context: &PodContext, flow: &Flow, refusal: &Refusal) -> Failure {
        Failure {
            reason: Reason::from(refusal),
            flags: ResponseFlags::Connect,
            error: refusal.to_string(),
            labels: labels(context, flow, flow.destination),
            next: Next::GiveUp,
            is_down: false,
        }
    }

    /// The pod or the agent is stopping.
    pub fn cut(context: &PodContext, flow: &Flow) -> Failure {
        Failure {
            reason: Reason::Stopping,
            flags: ResponseFlags::Connect,
            error: "cut while connecting".into(),
            labels: labels(context, flow, flow.destination),
            next: Next::GiveUp,
            is_down: false,
        }
    }
}

/// Connects along `route`. The outcome is reported to the endpoint's lease. `wait`: how long an endpoint that gives no sign is waited for.
pub async fn run(context: &Arc<PodContext>, flow: &Flow, route: Route, wait: Patience) -> Result<Connected, Failure> {
    match route {
        Route::Hbone(upstream) if upstream.waypoint => tunnel(context, flow, upstream, wait).await,
        // It had a waypoint a moment ago.
        _ if flow.stranger.is_some() => Err(Failure {
            reason: Reason::NoWaypoint,
            flags: ResponseFlags::Connect,
            error: "the pod has no waypoint any more".into(),
            labels: labels(context, flow, flow.destination),
            next: Next::GiveUp,
            is_down: false,
        }),
        Route::Passthrough(destination) => {
            let labels = labels(context, flow, destination);
            match context.dial(destination).await {
                Ok(stream) => Ok(Connected { peer: CopyPeer::Tcp(stream), labels, lease: None, hairpin: None }),
                Err(error) => Err(Failure {
                    reason: Reason::Upstream,
                    flags: ResponseFlags::Connect,
                    error: error.to_string(),
                    labels,
                    next: Next::GiveUp,
                    is_down: false,
                }),
            }
        }
        Route::Plain(upstream) | Route::Hbone(upstream)
            if !upstream.waypoint && local::is_own(&context.pod, upstream.target.ip()) =>
        {
            hairpin(context, flow, upstream).await
        }
        Route::Plain(upstream) => plain(context, flow, upstream).await,
        Route::Hbone(upstream) => tunnel(context, flow, upstream, wait).await,
    }
}

async fn plain(context: &PodContext, flow: &Flow, upstream: Upstream) -> Result<Connected, Failure> {
    let labels = upstream_labels(context, flow, &upstream, Security::Unknown);
    match context.dial_as(upstream.target, upstream.pool.as_deref()).await {
        Ok(stream) => {
            report(context, &upstream, true);
            Ok(Connected { peer: CopyPeer::Tcp(stream), labels, lease: upstream.lease, hairpin: None })
        }
        Err(error) => {
            let theirs = is_peers_fault(&error);
            report(context, &upstream, !theirs);
            let next = next_endpoint(&upstream, theirs);
            Err(Failure {
                reason: Reason::Upstream,
                flags: ResponseFlags::Connect,
                error: error.to_string(),
                labels,
                next,
                is_down: false,
            })
        }
    }
}

async fn tunnel(context: &PodContext, flow: &Flow, upstream: Upstream, wait: Patience) -> Result<Connected, Failure> {
    let labels = upstream_labels(context, flow, &upstream, Security::MutualTls);
    let certificate = match context.certificate().await {
        Ok(certificate) => certificate,
        Err(error) => {
            let labels = ConnectionLabels { security: Security::Unknown, ..labels };
            return Err(Failure {
                reason: Reason::NoCertificate,
                flags: ResponseFlags::IdentityError,
                error: error.to_string(),
                labels,
                next: Next::GiveUp,
                is_down: false,
            });
        }
    };
    let Some(source_ip) = local::source_for(&context.pod, upstream.tunnel.ip()) else {
        let error = format!("the pod has no address of the family of {}", upstream.tunnel);
        return Err(Failure {
            reason: Reason::Upstream,
            flags: ResponseFlags::Connect,
            error,
            labels,
            next: Next::GiveUp,
            is_down: false,
        });
    };
    let key = TunnelKey {
        source: context.pod.identity.clone(),
        source_uid: context.pod.uid.clone(),
        source_ip,
        destination: upstream.tunnel,
        destination_uid: upstream.workload.uid.clone(),
        destination_generation: upstream.generation,
        expected: upstream.expected.as_slice().into(),
        lane: lanes::current(),
    };
    let (pod, destination) = (context.pod.clone(), upstream.tunnel);
    let dial = move || async move { context::dial(&pod, destination).await };
    let (pool, request) = (&context.shared.pool, request(context, flow, &upstream));
    // Where nobody was chosen nobody else can be.
    let wait = if wait == Patience::Sign && upstream.lease.is_none() { Patience::Usual } else { wait };
    let connecting = pool.connect_with(&key, certificate, dial, request, wait);
    // Tunnels are shared and have signs of life of their own; what is said of connections is said of each one in them.
    let connected = match &upstream.pool {
        Some(pool) => {
            tokio::time::timeout(pool.connect_timeout, connecting).await.unwrap_or(Err(HboneError::DialTimeout))
        }
        None => connecting.await,
    };
    match connected {
        Ok((stream, _)) => {
            report(context, &upstream, true);
            stream.measure(|| context.shared.telemetry.path(&tunnel_ends(context, &upstream, stream.peer())));
            // Of the identities that may answer, the one that did.
            let labels = ConnectionLabels { destination_identity: Some(stream.peer().clone()), ..labels };
            Ok(Connected { peer: CopyPeer::Hbone(stream), labels, lease: upstream.lease, hairpin: None })
        }
        Err(error) => Err(tunnel_failure(context, &upstream, labels, &error)),
    }
}

/// Who is at the ends of a tunnel, whoever its streams are of: strangers are led through the pod's own.
fn tunnel_ends(context: &PodContext, upstream: &Upstream, peer: &Identity) -> Ends {
    let pod = Peer::Workload(context.view().workload.clone());
    Ends {
        reporter: Reporter::Source,
        security: Security::MutualTls,
        source: End { peer: pod, identity: Some(context.pod.identity.clone()) },
        destination: End { peer: Peer::Workload(upstream.workload.clone()), identity: Some(peer.clone()) },
        service: None,
    }
}

fn request(context: &PodContext, flow: &Flow, upstream: &Upstream) -> ConnectRequest {
    // What is said of a stranger is who he is, if he is anybody.
    let baggage = if flow.stranger.is_some() { Default::default() } else { context.view().baggage.clone() };
    ConnectRequest {
        authority: if flow.stranger.is_some() {
            Authority::of_stranger(upstream.target)
        } else {
            Authority::Address(upstream.target)
        },
        baggage,
        forwarded: Some(Forwarded {
            client: Some(flow.client),
            host: upstream.service.as_ref().map(|service| service.hostname.clone()),
            identity: flow.stranger.clone(),
        }),
        traceparent: None,
        hops: 0,
    }
}

fn tunnel_failure(context: &PodContext, upstream: &Upstream, labels: ConnectionLabels, error: &HboneError) -> Failure {
    let Fault { reason, theirs, report: tell } = fault(error, upstream.waypoint);
    if let Some(success) = tell {
        report(context, upstream, success);
    }
    // Only a handshake that was finished proves anything; what the labels say must have been checked on this flow.
    let authenticated = matches!(error, HboneError::Refused(_) | HboneError::Reset(_) | HboneError::RequestTimeout);
    let labels = if authenticated {
        labels
    } else {
        ConnectionLabels { security: Security::Unknown, source_identity: None, destination_identity: None, ..labels }
    };
    let next = match error {
        HboneError::Refused(http::StatusCode::BAD_REQUEST) if upstream.waypoint => Next::Again,
        HboneError::Silent => Next::Instead(upstream.workload.uid.clone()),
        _ => next_endpoint(upstream, theirs && error.before_first_byte()),
    };
    Failure { reason, flags: flags_of(error), error: error.to_string(), labels, next, is_down: is_down(error) }
}

/// Whether nobody is there who could have answered. Whoever proves to be another, refuses or takes his time over a request is there; so may be who ends a tunnel,
/// which is how a certificate is refused: one that has died is dialled once more, and does not take that.
fn is_down(error: &HboneError) -> bool {
    match error {
        HboneError::Dial(error) => is_peers_fault(error),
        HboneError::DialTimeout | HboneError::TlsTimeout | HboneError::PrefaceTimeout | HboneError::Silent => true,
        HboneError::Tls(_)
        | HboneError::Closed(_)
        | HboneError::PeerBusy
        | HboneError::PeerIdentityMismatch { .. }
        | HboneError::Reset(_)
        | HboneError::RequestTimeout
        | HboneError::Refused(_)
        | HboneError::Overloaded => false,
    }
}

/// Whose fault it is that there is no tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Fault {
    reason: Reason,
    /// Another endpoint may do better.
    theirs: bool,
    /// What the endpoint's lease is told: success, failure, or nothing.
    report: Option<bool>,
}

fn fault(error: &HboneError, waypoint: bool) -> Fault {
    let (reason, theirs) = match error {
        HboneError::PeerIdentityMismatch { .. } => (Reason::PeerIdentityMismatch, true),
        HboneError::Refused(http::StatusCode::UNAUTHORIZED | http::StatusCode::FORBIDDEN) => {
            (Reason::DeniedByPeer, false)
        }
        HboneError::Dial(error) => (Reason::Upstream, is_peers_fault(error)),
        HboneError::Overloaded => (Reason::Upstream, false),
        _ => (Reason::Upstream, true),
    };
    let report = match error {
        // A peer at its limit is not broken, but another endpoint may have room.
        HboneError::PeerBusy => None,
        // What a waypoint makes of a request, and how long that takes it, is about the service that was asked for: one whose endpoints are all gone must
        // not take the waypoint from the others that it is for. One that is silent altogether fails the PINGs of its tunnel.
        HboneError::Refused(_) | HboneError::Reset(_) | HboneError::RequestTimeout if waypoint && theirs => None,
        _ => Some(!theirs),
    };
    Fault { reason, theirs, report }
}

fn flags_of(error: &HboneError) -> ResponseFlags {
    if matches!(error, HboneError::DialTimeout) {
        return ResponseFlags::NetworkPolicy;
    }
    match error.response_flag() {
        "DENY" => ResponseFlags::Deny,
        "TLS_FAILURE" => ResponseFlags::TlsFailure,
        "H2_HANDSHAKE_FAILURE" => ResponseFlags::H2HandshakeFailure,
        _ => ResponseFlags::Connect,
    }
}

/// The pod was chosen as the endpoint of its own call. Its own address is not captured, so there is no tunnel to take: its policies are asked here and
/// the connection is made inside the pod.
async fn hairpin(context: &Arc<PodContext>, flow: &Flow, upstream: Upstream) -> Result<Connected, Failure> {
    let labels = upstream_labels(context, flow, &upstream, Security::Kernel);
    let fail = |reason, error: String| {
        let flags = if reason == Reason::Denied { ResponseFlags::Deny } else { ResponseFlags::Connect };
        Failure {
            reason,
            flags,
            error,
            labels: labels.clone(),
            next: next_endpoint(&upstream, reason == Reason::AppUnreachable),
            is_down: false,
        }
    };
    let endpoints = Endpoints {
        direction: Direction::Inbound,
        source: flow.client,
        destination: upstream.target,
        identity: Some(context.pod.identity.clone()),
        via: None,
    };
    let registration =
        context.connections.register(endpoints).map_err(|full| fail(Reason::ConnectionLimit, full.to_string()))?;
    let (permit, _) =
        deliver::authorize(context, registration.live()).map_err(|refused| fail(refused.reason, refused.why))?;
    match deliver::connect(permit, context, upstream.target, flow.client).await {
        Ok(stream) => {
            report(context, &upstream, true);
            Ok(Connected { peer: CopyPeer::Tcp(stream), labels, lease: upstream.lease, hairpin: Some(registration) })
        }
        Err(refused) => {
            report(context, &upstream, refused.reason != Reason::AppUnreachable);
            Err(fail(refused.reason, refused.why))
        }
    }
}

fn report(context: &PodContext, upstream: &Upstream, success: bool) {
    let Some(lease) = &upstream.lease else { return };
    if success {
        lease.report_success(context.shared.now_ms());
        return;
    }
    let enough = if upstream.waypoint { WAYPOINT_FAILURES } else { u32::MAX };
    if lease.report_failure_of(enough, context.shared.now_ms()) {
        tracing::info!(endpoint = %upstream.workload.uid, target = %upstream.target, "endpoint ejected after repeated failures");
    }
}

/// Another endpoint exists only where one was chosen, and helps only if this one was at fault.
fn next_endpoint(upstream: &Upstream, theirs: bool) -> Next {
    if theirs && upstream.lease.is_some() { Next::Other(upstream.workload.uid.clone()) } else { Next::GiveUp }
}

/// Errors that say something about the far end, as opposed to this node's own limits.
fn is_peers_fault(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut,
    };
    matches!(
        error.kind(),
        ConnectionRefused | ConnectionReset | ConnectionAborted | TimedOut | HostUnreachable | NetworkUnreachable
    )
}

fn labels(context: &PodContext, flow: &Flow, destination: SocketAddr) -> ConnectionLabels {
    let source = match flow.stranger.is_some() {
        // Known by his address only: a label, never an identity.
        true => {
            let snapshot = context.shared.state.snapshot();
            Peer::from(snapshot.workload_by_address(&context.shared.config.network, &flow.client.ip()).cloned())
        }
        false => Peer::Workload(context.view().workload.clone()),
    };
    ConnectionLabels { source, ..ConnectionLabels::unknown(Reporter::Source, flow.client, destination) }
}

fn upstream_labels(context: &PodContext, flow: &Flow, upstream: &Upstream, security: Security) -> ConnectionLabels {
    let tunnelled = security == Security::MutualTls;
    let identified = security != Security::Unknown;
    // Who may answer is who answers only if there is one.
    let certain = identified && (!tunnelled || upstream.expected.len() == 1);
    ConnectionLabels {
        source_identity: match &flow.stranger {
            None => identified.then(|| context.pod.identity.clone()),
            Some(claimed) => claimed.identity().cloned(),
        },
        destination: Peer::Workload(upstream.workload.clone()),
        destination_identity: certain.then(|| upstream.workload.identity()),
        service: upstream.service.clone(),
        security,
        hbone_target: tunnelled.then_some(upstream.target),
        ..labels(context, flow, if tunnelled { upstream.tunnel } else { upstream.target })
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn whose_fault_a_failed_tunnel_is_and_what_counts_for_ejection() {
        let dial = |kind: io::ErrorKind| HboneError::Dial(Arc::new(kind.into()));
        let refused = HboneError::Refused;
        let (success, failure, nothing) = (Some(true), Some(false), None);
        // Whether another endpoint may do better, and what the lease is told: of a workload, and of a waypoint.
        let rows = [
            (dial(io::ErrorKind::ConnectionRefused), true, failure, failure),
            (dial(io::ErrorKind::AddrInUse), false, success, success),
            (HboneError::DialTimeout, true, failure, failure),
            (HboneError::TlsTimeout, true, failure, failure),
            (
                HboneError::PeerIdentityMismatch { found: "spiffe://a/ns/b/sa/c".parse().unwrap() },
                true,
                failure,
                failure,
            ),
            (HboneError::PrefaceTimeout, true, failure, failure),
            (HboneError::Closed("gone".into()), true, failure, failure),
            (HboneError::Silent, true, failure, failure),
            (HboneError::PeerBusy, true, nothing, nothing),
            (HboneError::Overloaded, false, success, success),
            (refused(StatusCode::UNAUTHORIZED), false, success, success),
            (refused(StatusCode::FORBIDDEN), false, success, success),
            // By what is behind it.
            (refused(StatusCode::NOT_FOUND), true, failure, nothing),
            (refused(StatusCode::SERVICE_UNAVAILABLE), true, failure, nothing),
            (refused(StatusCode::GATEWAY_TIMEOUT), true, failure, nothing),
            (HboneError::Reset(8), true, failure, nothing),
            (HboneError::RequestTimeout, true, failure, nothing),
        ];
        for (error, theirs, of_workload, of_waypoint) in rows {
            for (waypoint, report) in [(false, of_workload), (true, of_waypoint)] {
                let fault = fault(&error, waypoint);
                assert_eq!((fault.theirs, fault.report), (theirs, report), "{error}, waypoint: {waypoint}");
            }
        }
    }

    #[test]
    fn hardening_3_2_who_has_answered_in_any_way_is_not_down() {
        let dial = |kind: io::ErrorKind| HboneError::Dial(Arc::new(kind.into()));
        let found = "spiffe://a/ns/b/sa/c".parse().unwrap();
        for (error, expected) in [
            (dial(io::ErrorKind::ConnectionRefused), true),
            (dial(io::ErrorKind::TimedOut), true),
            // This node's own limits say nothing of others.
            (dial(io::ErrorKind::AddrInUse), false),
            (HboneError::Overloaded, false),
            (HboneError::DialTimeout, true),
            (HboneError::TlsTimeout, true),
            (HboneError::PrefaceTimeout, true),
            (HboneError::Silent, true),
            (HboneError::Closed("gone".into()), false),
            (HboneError::PeerIdentityMismatch { found }, false),
            (HboneError::PeerBusy, false),
            (HboneError::Reset(8), false),
            (HboneError::RequestTimeout, false),
            (HboneError::Refused(StatusCode::FORBIDDEN), false),
            (HboneError::Refused(StatusCode::SERVICE_UNAVAILABLE), false),
        ] {
            assert_eq!(is_down(&error), expected, "{error}");
        }
    }
}
