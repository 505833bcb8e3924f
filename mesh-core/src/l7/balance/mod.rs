//! Which endpoint of a place takes a request: what a DestinationRule says, as functions over one version of the place's endpoints. Randomness and time are
//! arguments.
//!
//! ```text
//! members of the service ── labels of the subset ── locality: level and share ── Set          (once per change of any of them)
//! Set::pick: level (by how many are well) ── share ── draw | turn | hash ── Endpoint          (per request)
//! state: requests under way, ejections, limits: outlive versions, shared by all threads
//! ```

mod draw;
mod hash;
mod key;
pub mod limits;
mod locality;
pub mod outlier;
mod state;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use arcstr::ArcStr;
pub use hash::hash;
pub use key::{Said, key};
pub use limits::{Limit, Taken, Usage};
pub use outlier::{Ended, Reason};
use rand::Rng;
pub use state::{EndpointState, PlaceState};

use self::draw::{Draw, warmth};
use self::locality::Order;
use super::cluster::{Balancer, Outliers, Policy};
use super::{LabelIndex, Labels};
use crate::balance::may_serve;
use crate::{Client, EndpointSet, Workload};

/// One of the endpoints that a request may go to.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its address, and the application's port.
    pub address: SocketAddr,
    weight: u32,
    state: Arc<EndpointState>,
}

impl Endpoint {
    /// What is known of it.
    #[must_use]
    pub fn state(&self) -> &EndpointState {
        &self.state
    }
}

/// What endpoints are chosen from.
pub struct Sources<'a> {
    /// Members of the service.
    pub members: &'a EndpointSet,
    /// The service's port.
    pub port: u16,
    /// The port that all endpoints have for it, where that is known otherwise than by them and the service.
    pub target: Option<u16>,
    /// Labels that endpoints must have.
    pub subset: &'a Labels,
    /// How they are chosen.
    pub policy: &'a Policy,
    /// Labels of workloads.
    pub labels: &'a LabelIndex,
    /// Where the one is that chooses. Of an endpoint with addresses of both families that one is taken that is like its first.
    pub client: &'a Client,
    /// Its labels.
    pub own: Option<&'a Labels>,
    /// Monotonic milliseconds.
    pub now_ms: u64,
}

/// One version of a place's endpoints.
#[derive(Debug)]
pub struct Set {
    endpoints: Vec<Endpoint>,
    levels: Vec<Level>,
    balancer: Balancer,
    warmup: Option<super::cluster::Warmup>,
    outliers: Outliers,
    state: Arc<PlaceState>,
    reads_labels: bool,
    /// How many of each level are well, for a version of the ejections.
    well: Mutex<(u64, Vec<usize>)>,
}

#[derive(Debug)]
struct Level {
    count: usize,
    /// With the share of each; one if there are none.
    draws: Vec<(u32, Draw)>,
}

impl Level {
    /// Whether one of these is here.
    fn has_any(&self, of: &Set, uids: &[ArcStr]) -> bool {
        let mut members = self.draws.iter().flat_map(|(_, draw)| &draw.members);
        members.any(|index| uids.contains(&of.endpoints[*index as usize].workload.uid))
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// What the request says, if that decides.
    pub hash: Option<u64>,
    /// Uids that were tried already.
    pub tried: &'a [ArcStr],
    /// Whether who was tried stands for its locality: others are asked first then.
    pub elsewhere: bool,
    /// Monotonic milliseconds.
    pub now_ms: u64,
}

impl Set {
    /// The endpoints of a place, as they stand now.
    #[must_use]
    pub fn new(from: &Sources<'_>, state: &Arc<PlaceState>) -> Self {
        let Some(service) = from.members.service() else { return Self::of(from, state, Vec::new(), Vec::new(), false) };
        let order = Order::of(from.policy, service, from.client);
        let key = service.key();
        let default_port = service.port(from.port).map(|port| port.target_port).filter(|port| *port != 0);
        let like = from.client.ips.first().copied().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        let mut found = Vec::new();
        for member in from.members.members() {
            let workload = &member.workload;
            let is_here = workload.network == from.client.network && workload.capacity > 0;
            if !is_here || !may_serve(Some(&**service), workload) || !from.labels.has(&workload.uid, from.subset) {
                continue;
            }
            let own = || workload.target_port(&key, from.port).filter(|port| *port != 0).or(default_port);
            let port = from.target.or_else(own);
            let (Some(port), Some(ip)) = (port, workload.address_for(from.client, like)) else { continue };
            let Some(stand) = order.stand(workload, from.client, from.own, service, from.labels) else { continue };
            found.push((Arc::clone(workload), SocketAddr::new(ip, port), stand));
        }
        let shares: Vec<u32> = order.shares().iter().map(|(_, share)| *share).collect();
        let reads_labels = order.reads_labels() || !from.subset.is_empty();
        Self::of(from, state, found, shares, reads_labels)
    }

    fn of(
        from: &Sources<'_>,
        state: &Arc<PlaceState>,
        found: Vec<(Arc<Workload>, SocketAddr, locality::Stand)>,
        shares: Vec<u32>,
        reads_labels: bool,
    ) -> Self {
        let keys: Vec<_> = found.iter().map(|(workload, address, _)| (workload.uid.clone(), *address)).collect();
        let states = state.of(&keys, from.now_ms);
        let mut stands: Vec<_> = (0_u32..).zip(&found).map(|(index, (.., stand))| (*stand, index)).collect();
        let endpoints: Vec<Endpoint> = found
            .into_iter()
            .zip(states)
            .map(|((workload, address, _), state)| Endpoint { weight: workload.capacity, workload, address, state })
            .collect();
        stands.sort_unstable();
        let policy = from.policy;
        let levels = stands.chunk_by(|(one, _), (two, _)| one.level == two.level).map(|level| {
            let draws = level.chunk_by(|(one, _), (two, _)| one.share == two.share).map(|same| {
                let share = same.first().and_then(|(stand, _)| shares.get(stand.share as usize)).copied();
                let members = same.iter().map(|(_, index)| *index).collect();
                (share.unwrap_or(1), Draw::new(members, &endpoints, &policy.balancer))
            });
            Level { count: level.len(), draws: draws.collect() }
        });
        let levels = levels.collect();
        Self {
            levels,
            endpoints,
            balancer: policy.balancer.clone(),
            warmup: policy.warmup,
            outliers: policy.outliers.clone().unwrap_or_else(outlier::unsaid),
            state: Arc::clone(state),
            reads_labels,
            well: Mutex::default(),
        }
    }

    /// All of them, by uid.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Whether another version of labels may make another set.
    #[must_use]
    pub fn reads_labels(&self) -> bool {
        self.reads_labels
    }

    /// One that was not tried and is not left out.
    pub fn pick(&self, ask: &Ask<'_>, rng: &mut impl Rng) -> Option<&Endpoint> {
        let (out, version) = self.state.ejections.now(ask.now_ms);
        let (first, panics) = match out {
            0 => (0, Vec::new()),
            _ => self.level(version, ask, rng)?,
        };
        // Who was tried everywhere in a level is looked for in the others.
        let order = (first..self.levels.len()).chain(0..first);
        let mut draw = |index: usize| {
            let all = out == 0 || panics.get(index).copied().unwrap_or_default();
            self.draw(&self.levels[index], all, ask, rng)
        };
        if ask.elsewhere && !ask.tried.is_empty() {
            let (new, known): (Vec<_>, Vec<_>) = order.partition(|index| !self.levels[*index].has_any(self, ask.tried));
            return new.into_iter().chain(known).find_map(draw);
        }
        order.into_iter().find_map(&mut draw)
    }

    fn draw(&self, level: &Level, all: bool, ask: &Ask<'_>, rng: &mut impl Rng) -> Option<&Endpoint> {
        let fit = |index: u32| {
            let endpoint = &self.endpoints[index as usize];
            (all || !endpoint.state.is_ejected(ask.now_ms)) && !ask.tried.contains(&endpoint.workload.uid)
        };
        let total: u32 = level.draws.iter().map(|(share, _)| *share).sum();
        let start = match level.draws.len() {
            0 | 1 => 0,
            count => {
                let mut point = if total == 0 { 0 } else { rng.random_range(0..total) };
                let is_here = |(share, _): &(u32, Draw)| match point.checked_sub(*share) {
                    Some(rest) => {
                        point = rest;
                        false
                    }
                    None => true,
                };
                level.draws.iter().position(is_here).unwrap_or(count - 1)
            }
        };
        let draws = level.draws[start..].iter().chain(&level.draws[..start]);
        let index = draws.map(|(_, draw)| draw).find_map(|draw| self.one(draw, fit, ask, rng))?;
        self.endpoints.get(index as usize)
    }

    fn one(&self, draw: &Draw, fit: impl Fn(u32) -> bool, ask: &Ask<'_>, rng: &mut impl Rng) -> Option<u32> {
        let warm = |index: u32, lot: f64| {
            let since_ms = self.endpoints[index as usize].state.since_ms;
            self.warmup.as_ref().is_none_or(|warmup| lot < warmth(warmup, since_ms, ask.now_ms))
        };
        match (&self.balancer, ask.hash) {
            (Balancer::Hash(..), Some(hash)) => draw.by_hash(hash, fit),
            // What says nothing goes anywhere.
            (Balancer::Hash(..), None) | (Balancer::Random, _) => draw.random(fit, rng),
            (Balancer::RoundRobin, _) => {
                let next = draw.in_turn(self.state.turn(), &fit, rng)?;
                match warm(next, rng.random()) {
                    true => Some(next),
                    false => draw.in_turn(self.state.turn(), &fit, rng),
                }
            }
            // A waypoint knows no address of an endpoint that the client has named: that one would be asked for as a workload.
            (Balancer::LeastRequest | Balancer::Passthrough, _) => draw.least(&self.endpoints, fit, warm, rng),
        }
    }

    /// The level that takes a request, and in which levels so few are well that all are asked. Envoy's way: a level takes less than all only if fewer than
    /// five in seven of it are well; what it cannot take goes to the next.
    fn level(&self, version: u64, ask: &Ask<'_>, rng: &mut impl Rng) -> Option<(usize, Vec<bool>)> {
        let well = self.well(version, ask.now_ms);
        let available: Vec<u32> = well
            .iter()
            .zip(&self.levels)
            .map(|(well, level)| u32::try_from(well * 140 / level.count.max(1)).unwrap_or(100).min(100))
            .collect();
        let total: u32 = available.iter().sum::<u32>().min(100);
        let least = self.outliers.least_healthy_percent as usize;
        let panics = well.iter().zip(&self.levels).map(|(well, level)| total < 100 && well * 100 < least * level.count);
        let panics: Vec<bool> = panics.collect();
        if total == 0 {
            return (least > 0).then_some((0, panics));
        }
        let mut point = match ask.hash {
            // The same stays in the same level.
            Some(number) => u32::try_from(number % u64::from(total)).unwrap_or_default(),
            None => rng.random_range(0..total),
        };
        let level = available.iter().position(|share| match point.checked_sub(*share) {
            Some(rest) => {
                point = rest;
                false
            }
            None => true,
        });
        Some((level.unwrap_or_default(), panics))
    }

    fn well(&self, version: u64, now_ms: u64) -> Vec<usize> {
        let mut known = self.well.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0 != version || known.1.len() != self.levels.len() {
            let is_well = |index: &&u32| !self.endpoints[**index as usize].state.is_ejected(now_ms);
            let members =
                |level: &Level| level.draws.iter().flat_map(|(_, draw)| &draw.members).filter(is_well).count();
            *known = (version, self.levels.iter().map(members).collect());
        }
        known.1.clone()
    }

    /// Counts a request at an endpoint of this set.
    #[must_use]
    pub fn lease(self: &Arc<Self>, endpoint: &Endpoint) -> Lease {
        endpoint.state.begin();
        Lease { judge: Judge { set: Arc::clone(self), state: Arc::clone(&endpoint.state) } }
    }
}

/// One request under way at an endpoint. Dropping it ends the count.
#[derive(Debug)]
pub struct Lease {
    judge: Judge,
}

/// Takes note of how requests to an endpoint end.
#[derive(Clone, Debug)]
pub struct Judge {
    set: Arc<Set>,
    state: Arc<EndpointState>,
}

impl Judge {
    /// How one ended. Why the endpoint is left out from now on, if it is.
    pub fn report(&self, ended: Ended, now_ms: u64) -> Option<Reason> {
        let Set { state, outliers, endpoints, .. } = &*self.set;
        state.ejections.report(outliers, &self.state, ended, endpoints.len(), now_ms)
    }
}

impl Lease {
    /// Who outlives it.
    #[must_use]
    pub fn judge(&self) -> &Judge {
        &self.judge
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.judge.state.end();
    }
}
