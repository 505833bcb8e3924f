//! Connections that the pod opens.
//!
//! ```text
//! accept -> is the peer the pod, what did it ask for -> register -> hold until synced
//!   -> steer: has the service routes -> places: is it said how, else resolve -> tunnel | plain | as asked -> copy
//!         ^------- failed before the first byte: the next endpoint, a bounded number of times; after the last one of a waypoint that is optional: around it
//! ```
//!
//! The app's connect has already succeeded when the agent accepts, so every failure reaches it as a reset, never as an orderly end.
//! Called by the accept loop of port 15001.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::l4::ServerName;
use mesh_core::l7::ClusterKey;
use mesh_core::{ArcStr, Refusal, Request, Route, Steer, WaypointProblem, around, resolve, steer, waypoint_endpoints};
use mesh_runtime::failpoint;
use mesh_transport::hbone::{Claimed, Patience};
use mesh_transport::socket::{self, Armed};
use mesh_transport::tls::peek_server_name;
use tokio::time::Instant;

use super::attempt::{self, Connected, Failure, Next};
use super::connections::{Direction, Endpoints};
use super::context::PodContext;
use super::local;
use super::reasons::Reason;
use super::relay::Carried;
use crate::telemetry::{ConnectionGuard, ConnectionLabels, Outcome, Reporter, Security};

/// How long a connection waits before it is decided again when a waypoint does not know of what it was asked for. Together less than clients wait.
const BEHIND_MS: [u64; 6] = [10, 20, 40, 80, 160, 320];

/// Endpoints of an optional waypoint that one connection asks: it goes around when none of all has answered, and not when it has been unlucky with some.
const OPTIONAL_TRIES: usize = 16;

/// One connection of the app.
pub struct Flow {
    /// The app's side.
    pub client: SocketAddr,
    /// What it asked for.
    pub destination: SocketAddr,
    /// The client is none of the pod's apps but somebody who came for the pod, without a tunnel: only the pod's waypoint may have the connection, and is told who he is.
    pub stranger: Option<Claimed>,
}

/// Serves one connection to its end.
pub async fn serve(context: Arc<PodContext>, app: Armed, peer: SocketAddr) {
    // Boxed: setting up needs several times the memory of copying, and a connection copies for most of its life.
    if let Some(carried) = Box::pin(set_up(context, app, peer)).await {
        carried.run().await;
    }
}

/// Connects the app to what it asked for. `None`: it was refused, and the telemetry knows.
async fn set_up(context: Arc<PodContext>, app: Armed, peer: SocketAddr) -> Option<Box<Carried>> {
    failpoint::pass("outbound");
    let counted = context.shared.telemetry.socket(Reporter::Source);
    let flow = flow(&context, &app, local::canonical(peer))?;
    let endpoints = Endpoints {
        direction: Direction::Outbound,
        source: flow.client,
        destination: flow.destination,
        identity: None,
        via: None,
    };
    let registration = match context.connections.register(endpoints) {
        Ok(registration) => registration,
        Err(full) => {
            context.refuse(Reason::ConnectionLimit, full);
            return None;
        }
    };
    let connected = tokio::select! {
        biased;
        () = registration.live().cut().cancelled() => Err(Failure::cut(&context, &flow)),
        connected = connect(&context, &flow, &app) => connected,
    };
    match connected {
        Ok(Connected { peer, labels, lease, hairpin }) => {
            let guard = opened(&context, labels);
            let counted = (lease, Some(counted));
            Some(Box::new(Carried { app, peer, registration, hairpin, counted, guard }))
        }
        Err(failure) => {
            context.refuse(failure.reason, format_args!("{} to {}: {}", flow.client, flow.destination, failure.error));
            opened(&context, failure.labels).close(Outcome::failed(failure.flags, failure.error));
            None
        }
    }
}

/// The telemetry of a connection; of both its ends if it never leaves the pod, because no other agent will report the far one.
fn opened(context: &PodContext, labels: ConnectionLabels) -> ConnectionGuard {
    let telemetry = &context.shared.telemetry;
    if labels.security == Security::Kernel { telemetry.open_both_ends(labels) } else { telemetry.open(labels) }
}

/// Who asks for what. Only the pod itself may speak to its slots; nobody reaches this port but through one.
fn flow(context: &PodContext, app: &Armed, client: SocketAddr) -> Option<Flow> {
    if !local::is_own(&context.pod, client.ip()) {
        context.refuse(Reason::PeerNotPod, format_args!("captured connection from {client}"));
        return None;
    }
    let slot = local::canonical(app.local_addr().ok()?);
    let destination = context.shared.interception.original_destination(context.pod.netns_cookie, slot).or_else(|| {
        // Not through a slot, but by a rule in the pod. What is the pod's own, or of this machine, no rule sends here.
        let before = context.shared.config.redirected.then(|| socket::before_redirection(app)).flatten()?;
        let ip = before.ip().to_canonical();
        (!ip.is_loopback() && !ip.is_unspecified() && !local::is_own(&context.pod, ip)).then_some(before)
    });
    if destination.is_none() {
        context.refuse(Reason::NotCaptured, format_args!("connection from {client} to {slot} without a slot"));
    }
    destination.map(|destination| Flow { client, destination: local::canonical(destination), stranger: None })
}

/// Tries endpoints until one is connected, the failure is final, or enough have been tried.
pub async fn connect(context: &Arc<PodContext>, flow: &Flow, app: &Armed) -> Result<Connected, Failure> {
    let shared = &context.shared;
    if !shared.state.synced_within(shared.config.hold_unsynced).await {
        return Err(Failure::refused(context, flow, &Refusal::NotSynced));
    }
    let mut attempts = Attempts {
        context,
        flow,
        app,
        tried: Vec::new(),
        silent: Vec::new(),
        patient: false,
        hello: None,
        place: None,
        end: None,
        around: false,
        answered: false,
    };
    let mut last: Option<Failure> = None;
    let mut pauses = BEHIND_MS.iter();
    loop {
        let route = match attempts.route().await {
            Ok(route) => route,
            Err(refusal) if is_away(&refusal) && attempts.turn_around() => {
                last = None;
                continue;
            }
            Err(_) if attempts.turn_patient() => continue,
            // What went wrong with the endpoints says more than that none is left.
            Err(refusal) => return Err(last.unwrap_or_else(|| Failure::refused(context, flow, &refusal))),
        };
        if attempts.is_late() {
            if attempts.turn_around() {
                last = None;
                continue;
            }
            attempts.ask_with_patience();
        }
        let optional = attempts.optional(&route);
        let has_more = attempts.tried.len() + 1 < shared.config.tries;
        let patience = match &optional {
            Some((_, until)) => Patience::Until(*until),
            None if has_more && !attempts.patient => Patience::Sign,
            None => Patience::Usual,
        };
        match attempt::run(context, flow, route, patience).await {
            Ok(connected) => {
                if attempts.around {
                    shared.telemetry.health().went_around();
                    tracing::debug!(destination = %flow.destination, "the waypoint is optional and does not answer: gone around");
                }
                return Ok(connected);
            }
            Err(failure) => match &failure.next {
                next if failure.is_down && optional.is_some() => {
                    let uid = optional.map(|(uid, _)| uid);
                    if matches!(next, Next::Instead(_)) {
                        attempts.silent.extend(uid.clone());
                    }
                    attempts.tried.extend(uid);
                    last = Some(failure);
                }
                // The waypoint and this agent hear of a change at different moments, in either order: soon both know.
                Next::Again => {
                    attempts.answered |= optional.is_some();
                    let (Some(pause), Some(_place)) = (pauses.next(), context.waiting_place()) else {
                        return Err(failure);
                    };
                    tokio::time::sleep(Duration::from_millis(*pause)).await;
                }
                Next::Other(uid) | Next::Instead(uid) if has_more || optional.is_some() => {
                    attempts.answered |= optional.is_some();
                    attempts.tried.push(uid.clone());
                    if matches!(failure.next, Next::Instead(_)) {
                        attempts.silent.push(uid.clone());
                    }
                    // Had it not been optional, some that gave no sign would have been waited for.
                    if !has_more && !attempts.turn_patient() {
                        return Err(failure);
                    }
                    last = Some(failure);
                }
                _ => return Err(failure),
            },
        }
    }
}

/// The attempts of one connection.
struct Attempts<'a> {
    context: &'a PodContext,
    flow: &'a Flow,
    app: &'a Armed,
    tried: Vec<ArcStr>,
    /// Of these, who gave no sign. They may only have been slow.
    silent: Vec<ArcStr>,
    /// Nobody else is left: who gives no sign is waited for.
    patient: bool,
    /// What the client's first message asks for, once somebody has looked.
    hello: Option<Option<String>>,
    /// Where a route leads the connection: with every attempt the same.
    place: Option<ClusterKey>,
    /// When an optional waypoint has been asked for long enough, whatever of it was asked.
    end: Option<Instant>,
    /// The waypoint has not answered, and is gone around.
    around: bool,
    /// An endpoint of an optional waypoint has answered, though not well: it is there, and decides.
    answered: bool,
}

impl Attempts<'_> {
    /// The endpoint of a waypoint that may be gone around if it does not answer, and until when a tunnel to it is waited for: all of them together have the
    /// time of one connection.
    fn optional(&mut self, route: &Route) -> Option<(ArcStr, Instant)> {
        let Route::Hbone(upstream) = route else { return None };
        let service = upstream.service.as_ref().filter(|service| upstream.waypoint && service.waypoint_optional)?;
        // Who comes for the pod and is none of its apps is for the waypoint of the pod alone.
        if self.patient || self.flow.stranger.is_some() || self.tried.len() >= OPTIONAL_TRIES {
            return None;
        }
        let (shared, now) = (&self.context.shared, Instant::now());
        let all = waypoint_endpoints(&shared.state.snapshot(), service).min(OPTIONAL_TRIES);
        let end = *self.end.get_or_insert_with(|| now + shared.config.connect_timeout);
        let until = now + share(end.saturating_duration_since(now), all, self.tried.len());
        Some((upstream.workload.uid.clone(), until))
    }

    /// The time for an optional waypoint is over, and nothing has come of it yet.
    fn is_late(&self) -> bool {
        !self.around && !self.patient && self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// Nobody of the waypoint has answered, and it may be gone without. False: it may not, or it is gone around already.
    fn turn_around(&mut self) -> bool {
        if self.around || self.answered || self.patient || self.flow.stranger.is_some() {
            return false;
        }
        let (view, shared) = (self.context.view(), &self.context.shared);
        let request = Request {
            source: &view.client,
            destination: self.flow.destination,
            place: self.place.as_ref(),
            now_ms: shared.now_ms(),
            tried: &[],
        };
        self.around = around(&shared.state.snapshot(), &request, &mut rand::rng()).is_some();
        if self.around {
            self.tried.clear();
            self.silent.clear();
        }
        self.around
    }

    /// Nobody is left who was not tried: those who gave no sign are asked again, as if there had never been others. False: there are none, or they were.
    fn turn_patient(&mut self) -> bool {
        if self.patient || self.silent.is_empty() {
            return false;
        }
        self.ask_with_patience();
        true
    }

    fn ask_with_patience(&mut self) {
        self.patient = true;
        let silent = std::mem::take(&mut self.silent);
        self.tried.retain(|uid| !silent.contains(uid));
    }

    /// The next route. An address that should be known is asked for and waited for: the configuration may be a moment behind the pod.
    async fn route(&mut self) -> Result<Route, Refusal> {
        let first = self.decided().await;
        let Err(Refusal::UnknownMeshAddress(address)) = first else { return first };
        let shared = &self.context.shared;
        let Some(_place) = self.context.waiting_place() else { return first };
        let deadline = Instant::now() + shared.config.hold_unknown;
        let mut updates = shared.state.updates();
        shared.state.want(address);
        loop {
            let route = self.decided().await;
            if !matches!(route, Err(Refusal::UnknownMeshAddress(_))) {
                return route;
            }
            let Ok(Some(_)) = tokio::time::timeout_at(deadline, updates.next()).await else { return route };
        }
    }

    /// As it is now. Where the name that the client asks for decides, its first message is waited for.
    async fn decided(&mut self) -> Result<Route, Refusal> {
        if let Now::Decided(route) = self.now() {
            return route;
        }
        let limit = self.context.shared.config.hold_hello;
        // What is wrong with the connection shows when it is copied.
        self.hello = Some(peek_server_name(self.app, limit).await.unwrap_or_default());
        match self.now() {
            Now::Decided(route) => route,
            Now::Look => Err(Refusal::NotSynced),
        }
    }

    fn now(&mut self) -> Now {
        let (view, shared) = (self.context.view(), &self.context.shared);
        let (snapshot, mut rng) = (shared.state.snapshot(), rand::rng());
        let destination = self.flow.destination;
        let request =
            Request { source: &view.client, destination, place: None, now_ms: shared.now_ms(), tried: &self.tried };
        if self.place.is_none() {
            let name = match &self.hello {
                None => ServerName::Unread,
                Some(None) => ServerName::Absent,
                Some(Some(name)) => ServerName::Is(name),
            };
            match steer(&snapshot, &request, name, &mut rng) {
                Ok(Steer::Asked) => {}
                Ok(Steer::Look) => return Now::Look,
                Ok(Steer::To(place)) => self.place = Some(place),
                Err(refusal) => return Now::Decided(Err(refusal)),
            }
        }
        let request = Request { place: self.place.as_ref(), ..request };
        if self.around
            && let Some(route) = around(&snapshot, &request, &mut rng)
        {
            return Now::Decided(route);
        }
        let said = shared.places.route(&snapshot, &request, self.flow.client.ip(), &mut rng);
        Now::Decided(said.unwrap_or_else(|| resolve(&snapshot, &request, &mut rng)))
    }
}

/// Nobody is left of the waypoint, or never was there.
fn is_away(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::NoWaypoint { problem: WaypointProblem::Unknown | WaypointProblem::NoEndpoints, .. })
}

/// The share of one of `all` in the time that is left, where so many have had theirs: the last one has all of it.
fn share(left: Duration, all: usize, tried: usize) -> Duration {
    left / u32::try_from(all.saturating_sub(tried)).unwrap_or(u32::MAX).max(1)
}

/// Whether the configuration decides about a connection as it is known.
enum Now {
    Decided(Result<Route, Refusal>),
    /// The name that the client asks for is needed.
    Look,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardening_3_2_each_endpoint_of_an_optional_waypoint_has_its_share_of_the_time() {
        for (left, all, tried, share_ms) in [
            (5_000, 1, 0, 5_000),
            (5_000, 4, 0, 1_250),
            // Some have told at once that they are not there: the others have more of it.
            (4_900, 4, 2, 2_450),
            (1_250, 4, 3, 1_250),
            // There are fewer by now than were tried.
            (600, 2, 5, 600),
            (600, 0, 0, 600),
            (0, 4, 1, 0),
        ] {
            let expected = Duration::from_millis(share_ms);
            assert_eq!(share(Duration::from_millis(left), all, tried), expected, "{left} of {all} after {tried}");
        }
    }
}
