//! Endpoints of one level and share, and how one of them is drawn: by weight, in turn, or by what a request says. Drawing costs the same for two and for ten
//! thousand, as long as most are fit.

use rand::Rng;

use super::Endpoint;
use super::hash::ByHash;
use crate::balance::Alias;
use crate::l7::cluster::{Balancer, Warmup};

/// Draws that are tried before the endpoints are searched one by one.
const DRAWS: usize = 4;
/// Longest order in which endpoints with different weights take turns; with more they are drawn by lot.
const LONGEST_ORDER: u64 = 4096;

/// Some endpoints, by their index.
#[derive(Debug)]
pub(super) struct Draw {
    pub(super) members: Vec<u32>,
    /// Absent when all weights are equal.
    alias: Option<Alias>,
    /// In turn, if that is what counts.
    order: Option<Vec<u32>>,
    by_hash: Option<ByHash>,
}

impl Draw {
    pub(super) fn new(members: Vec<u32>, endpoints: &[Endpoint], balancer: &Balancer) -> Self {
        let weights = || members.iter().map(|index| endpoints[*index as usize].weight);
        let equal = weights().min() == weights().max();
        let (mut order, mut by_hash) = (None, None);
        match balancer {
            Balancer::RoundRobin => order = turns(&members, weights().collect()),
            Balancer::Hash(_, kind) => {
                let of = |index: &u32| {
                    let endpoint = &endpoints[*index as usize];
                    (*index, endpoint.address, endpoint.weight)
                };
                by_hash = Some(ByHash::new(*kind, &members.iter().map(of).collect::<Vec<_>>()));
            }
            Balancer::LeastRequest | Balancer::Random | Balancer::Passthrough => {}
        }
        let alias = (!equal).then(|| Alias::build(weights().collect::<Vec<_>>().into_iter()));
        Self { members, alias, order, by_hash }
    }

    fn lot(&self, rng: &mut impl Rng) -> u32 {
        let column = rng.random_range(0..self.members.len());
        self.members[self.alias.as_ref().map_or(column, |alias| alias.settle(column, rng))]
    }

    /// Any, each as often as its weight says.
    pub(super) fn random(&self, fit: impl Fn(u32) -> bool, rng: &mut impl Rng) -> Option<u32> {
        let drawn = (0..DRAWS).map(|_| self.lot(rng)).find(|index| fit(*index));
        drawn.or_else(|| self.search(rng.random_range(0..self.members.len()), fit))
    }

    /// Of two the one with fewer requests for its weight. Who is not warm gives way, as often as a lot from 0 to 1 says.
    pub(super) fn least(
        &self,
        endpoints: &[Endpoint],
        fit: impl Fn(u32) -> bool,
        warm: impl Fn(u32, f64) -> bool,
        rng: &mut impl Rng,
    ) -> Option<u32> {
        // Nobody gives way to the only one.
        if let [only] = *self.members {
            return fit(only).then_some(only);
        }
        let good = |index: u32, lot: f64| fit(index) && warm(index, lot);
        let first = (0..DRAWS).map(|_| (self.lot(rng), rng.random())).find(|(index, lot)| good(*index, *lot));
        let first = match first {
            Some((first, _)) => first,
            None => self.search(rng.random_range(0..self.members.len()), &fit)?,
        };
        let second = (0..DRAWS).map(|_| (self.lot(rng), rng.random()));
        let mut second = second.filter(|(index, _)| *index != first);
        let Some((second, _)) = second.find(|(index, lot)| good(*index, *lot)) else { return Some(first) };
        let load = |one: u32, other: u32| {
            u64::from(endpoints[one as usize].state.active()) * u64::from(endpoints[other as usize].weight)
        };
        Some(if load(second, first) < load(first, second) { second } else { first })
    }

    /// The next one in turn.
    pub(super) fn in_turn(&self, turn: u64, fit: impl Fn(u32) -> bool, rng: &mut impl Rng) -> Option<u32> {
        let Some(order) = &self.order else { return self.random(fit, rng) };
        let start = usize::try_from(turn % order.len() as u64).unwrap_or_default();
        order[start..].iter().chain(&order[..start]).copied().find(|index| fit(*index))
    }

    /// The one for a number.
    pub(super) fn by_hash(&self, hash: u64, fit: impl Fn(u32) -> bool) -> Option<u32> {
        self.by_hash.as_ref()?.find(hash, fit)
    }

    fn search(&self, start: usize, fit: impl Fn(u32) -> bool) -> Option<u32> {
        self.members[start..].iter().chain(&self.members[..start]).copied().find(|index| fit(*index))
    }
}

/// How much of its share an endpoint gets, from 0 to 1, that came so long ago.
pub(super) fn warmth(warmup: &Warmup, since_ms: Option<u64>, now_ms: u64) -> f64 {
    let Some(since) = since_ms else { return 1.0 };
    let (age, time) = (now_ms.saturating_sub(since) as f64, warmup.time.as_millis() as f64);
    if age >= time {
        return 1.0;
    }
    let aggression = f64::from(warmup.aggression.max(1)) / 1000.0;
    let least = f64::from(warmup.least.parts()) / 1_000_000.0;
    (age.max(1.0) / time).powf(1.0 / aggression).max(least)
}

/// An order in which each stands as often as its weight says, spread as evenly as weights allow (the smooth way).
fn turns(members: &[u32], weights: Vec<u32>) -> Option<Vec<u32>> {
    fn gcd(one: u64, two: u64) -> u64 {
        if two == 0 { one } else { gcd(two, one % two) }
    }
    let common = weights.iter().fold(0, |so_far, weight| gcd(so_far, u64::from(*weight))).max(1);
    let weights: Vec<i64> = weights.iter().map(|weight| i64::from(*weight) / common.cast_signed()).collect();
    let total: i64 = weights.iter().sum();
    if weights.iter().all(|weight| *weight == 1) {
        return Some(members.to_vec());
    }
    let is_long = u64::try_from(total).is_ok_and(|total| total > LONGEST_ORDER)
        || members.len() as u64 * total.unsigned_abs() > LONGEST_ORDER * 64;
    if is_long {
        return None;
    }
    let mut credit = vec![0_i64; members.len()];
    let order = (0..total).filter_map(|_| {
        credit.iter_mut().zip(&weights).for_each(|(credit, weight)| *credit += weight);
        let next = (0..credit.len()).rev().max_by_key(|index| credit[*index])?;
        credit[next] -= total;
        Some(members[next])
    });
    Some(order.collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::l7::Share;

    #[test]
    fn features_DR_6_what_is_new_gets_little_at_first() {
        let warmup = |aggression, percent: u32| Warmup {
            time: Duration::from_secs(10),
            least: Share::millionths(percent * 10_000).unwrap(),
            aggression,
        };
        for (warmup, since, now, expected) in [
            (warmup(1000, 10), None, 0, 1.0),
            (warmup(1000, 10), Some(0), 0, 0.1),
            (warmup(1000, 10), Some(0), 5_000, 0.5),
            (warmup(1000, 10), Some(5_000), 5_500, 0.1),
            (warmup(2000, 10), Some(0), 2_500, 0.5),
            (warmup(1000, 0), Some(0), 100, 0.01),
            (warmup(1000, 10), Some(0), 10_000, 1.0),
        ] {
            let warmth = super::warmth(&warmup, since, now);
            assert!((warmth - expected).abs() < 1e-9, "{warmup:?} {since:?} {now}: {warmth}");
        }
    }

    #[test]
    fn features_DR_4_turns_are_spread() {
        for (weights, expected) in [
            (vec![1, 1, 1], Some(vec![0, 1, 2])),
            (vec![7, 7], Some(vec![0, 1])),
            (vec![5, 1, 1], Some(vec![0, 0, 1, 0, 2, 0, 0])),
            (vec![u32::MAX, 1], None),
        ] {
            let members: Vec<u32> = (0..).take(weights.len()).collect();
            assert_eq!(turns(&members, weights.clone()), expected, "{weights:?}");
        }
    }
}
