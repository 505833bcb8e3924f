//! The static part of a choice, computed once for each version of a set, port and place: which members can serve, in which rank, with which
//! weight. Drawing from it is O(1).

use std::net::IpAddr;

use rand::Rng;

use super::Endpoint;
use crate::{
    ArcStr, Client, Locality, Service, Workload,
    service::{HealthPolicy, LoadBalancing, Mode, Scope},
    workload::Health,
};

/// Draws that are tried before the members are searched one by one.
const DRAWS: usize = 4;

/// The properties of a client that a choice looks at: its preferences may ask for more of them, and the rest stays empty so that equal choices share a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    network: ArcStr,
    cluster: ArcStr,
    node: ArcStr,
    locality: Locality,
    /// As [`Client::only_ipv4`] says it.
    only_ipv4: Option<bool>,
}

impl Place {
    pub(crate) fn of(client: &Client, balancing: &LoadBalancing) -> Self {
        let (network, only_ipv4) = (client.network.clone(), client.only_ipv4());
        if !uses_locality(balancing) {
            return Self { network, only_ipv4, ..Self::default() };
        }
        let (cluster, node) = (client.cluster_id.clone(), client.node.clone());
        Self { network, cluster, node, locality: client.locality.clone(), only_ipv4 }
    }

    fn can_reach(&self, workload: &Workload) -> bool {
        let is_usable = |address: &IpAddr| self.only_ipv4.is_none_or(|only| only == address.is_ipv4());
        workload.network == self.network && workload.addresses.iter().any(is_usable)
    }

    /// Whether the service asks for one place before another.
    pub(crate) fn is_asked(balancing: &LoadBalancing) -> bool {
        uses_locality(balancing)
    }

    fn shares(&self, scope: Scope, workload: &Workload) -> bool {
        let (here, there) = (&self.locality, &workload.locality);
        match scope {
            Scope::Region => here.region == there.region,
            Scope::Zone => here.zone == there.zone,
            Scope::Subzone => here.subzone == there.subzone,
            // An unknown node is nobody's.
            Scope::Node => !self.node.is_empty() && self.node == workload.node,
            Scope::Cluster => self.cluster == workload.cluster_id,
            Scope::Network => self.network == workload.network,
        }
    }

    /// How many leading scopes match, or `None` if the endpoint is out of the question.
    pub(crate) fn rank(&self, balancing: &LoadBalancing, workload: &Workload) -> Option<usize> {
        if !uses_locality(balancing) {
            return Some(0);
        }
        let wanted = balancing.preferences.len();
        let matched = balancing.preferences.iter().take_while(|scope| self.shares(**scope, workload)).count();
        (balancing.mode == Mode::Failover || matched == wanted).then_some(matched)
    }
}

fn uses_locality(balancing: &LoadBalancing) -> bool {
    matches!(balancing.mode, Mode::Strict | Mode::Failover) && !balancing.preferences.is_empty()
}

/// Whether health lets the workload serve.
pub(crate) fn may_serve(service: Option<&Service>, workload: &Workload) -> bool {
    workload.health == Health::Healthy || service.is_some_and(|s| s.load_balancing.health == HealthPolicy::AllowAll)
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Index into the set's members.
    pub(super) member: u32,
    pub(super) target_port: u16,
    weight: u32,
}

/// Ranks in order of preference.
#[derive(Debug)]
pub(super) struct Table {
    ranks: Vec<Rank>,
}

impl Table {
    pub(super) fn build(service: &Service, members: &[Endpoint], port: u16, place: &Place) -> Self {
        let balancing = &service.load_balancing;
        let key = service.key();
        let default_port = service.port(port).map(|p| p.target_port).filter(|p| *p != 0);
        let mut ranks: Vec<Vec<Candidate>> = vec![Vec::new(); balancing.preferences.len() + 1];
        for (member, endpoint) in (0_u32..).zip(members) {
            let workload = &*endpoint.workload;
            if !place.can_reach(workload) || workload.capacity == 0 || !may_serve(Some(service), workload) {
                continue;
            }
            let own_port = workload.target_port(&key, port).filter(|p| *p != 0);
            if let (Some(target_port), Some(rank)) = (own_port.or(default_port), place.rank(balancing, workload)) {
                ranks[rank].push(Candidate { member, target_port, weight: workload.capacity });
            }
        }
        let ranks = ranks.into_iter().rev().filter(|r| !r.is_empty()).map(Rank::new).collect();
        Self { ranks }
    }

    /// The less loaded of two fitting candidates of the first rank that has any.
    pub(super) fn choose(
        &self,
        members: &[Endpoint],
        fit: impl Fn(&Endpoint) -> bool,
        rng: &mut impl Rng,
    ) -> Option<Candidate> {
        self.ranks.iter().find_map(|rank| rank.choose(members, &fit, rng))
    }
}

#[derive(Debug)]
struct Rank {
    candidates: Vec<Candidate>,
    /// Absent when all weights are equal.
    alias: Option<Alias>,
}

impl Rank {
    fn new(candidates: Vec<Candidate>) -> Self {
        let equal = candidates.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        let alias = (!equal).then(|| Alias::build(candidates.iter().map(|c| c.weight)));
        Self { candidates, alias }
    }

    fn draw(&self, rng: &mut impl Rng) -> usize {
        let column = rng.random_range(0..self.candidates.len());
        self.alias.as_ref().map_or(column, |alias| alias.settle(column, rng))
    }

    fn choose(&self, members: &[Endpoint], fit: &impl Fn(&Endpoint) -> bool, rng: &mut impl Rng) -> Option<Candidate> {
        let fits = |index: &usize| fit(&members[self.candidates[*index].member as usize]);
        let first = (0..DRAWS).map(|_| self.draw(rng)).find(&fits);
        let (first, second) = match first {
            Some(first) => (first, (0..DRAWS).map(|_| self.draw(rng)).find(|i| *i != first && fits(i))),
            None => {
                let start = rng.random_range(0..self.candidates.len());
                let mut rest = (start..self.candidates.len()).chain(0..start).filter(fits);
                (rest.next()?, rest.next())
            }
        };
        let (first, second) = (self.candidates[first], second.map(|i| self.candidates[i]));
        Some(second.filter(|s| load(members, s, &first) < load(members, &first, s)).unwrap_or(first))
    }
}

/// Load of `one` relative to `other`: active connections per weight, cross-multiplied.
fn load(members: &[Endpoint], one: &Candidate, other: &Candidate) -> u64 {
    u64::from(members[one.member as usize].active()) * u64::from(other.weight)
}

/// Walker's alias table: a weighted draw in O(1).
#[derive(Debug)]
pub(crate) struct Alias {
    /// For each column the part (of 2^32) that it keeps, and who gets the rest.
    columns: Vec<(u32, u32)>,
}

impl Alias {
    pub(crate) fn build(weights: impl Iterator<Item = u32> + Clone) -> Self {
        let total: f64 = weights.clone().map(f64::from).sum();
        let mut share: Vec<f64> = weights.map(f64::from).collect();
        let count = share.len();
        share.iter_mut().for_each(|s| *s *= count as f64 / total);
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..count).partition(|i| share[*i] < 1.0);
        let mut columns: Vec<(u32, u32)> = (0..count as u32).map(|i| (u32::MAX, i)).collect();
        while let (Some(&poor), Some(&rich)) = (small.last(), large.last()) {
            small.pop();
            columns[poor] = ((share[poor] * f64::from(u32::MAX)) as u32, rich as u32);
            share[rich] -= 1.0 - share[poor];
            if share[rich] < 1.0 {
                large.pop();
                small.push(rich);
            }
        }
        Self { columns }
    }

    pub(crate) fn settle(&self, column: usize, rng: &mut impl Rng) -> usize {
        let (keeps, other) = self.columns[column];
        if rng.random::<u32>() <= keeps { column } else { other as usize }
    }
}
