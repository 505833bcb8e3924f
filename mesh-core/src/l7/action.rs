//! What is done with a request that a rule means.

use std::time::Duration;

use arcstr::ArcStr;
use bytes::Bytes;
use http::StatusCode;
use rand::Rng;

use super::{HeaderChanges, Redirect, Rewrite};
use crate::NamespacedName;

/// How a request ends, or where it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// To one of several places.
    Forward(Forward),
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// The client is answered at once.
    Respond(DirectResponse),
    /// 500, because what is written cannot be done. The text says why.
    Closed(ArcStr),
}

/// Places by weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    backends: Vec<Backend>,
    total: u32,
}

/// All weights together do not fit 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all weights together are {0}, the limit is 4294967295")]
pub struct WeightOverflow(pub u64);

impl Forward {
    /// To these places. Without places, or if all weights are 0, requests are answered with 500.
    pub fn new(backends: Vec<Backend>) -> Result<Self, WeightOverflow> {
        let sum = backends.iter().map(|backend| u64::from(backend.weight)).sum();
        let total = u32::try_from(sum).map_err(|_| WeightOverflow(sum))?;
        Ok(Self { backends, total })
    }

    /// To one place.
    #[must_use]
    pub fn to(cluster: ClusterKey) -> Self {
        Self { backends: vec![Backend::new(Target::Cluster(cluster), 1)], total: 1 }
    }

    /// The places.
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// One of them, each as often as its weight says.
    pub fn choose(&self, rng: &mut impl Rng) -> Option<&Backend> {
        if let ([one], 1..) = (&*self.backends, self.total) {
            return Some(one);
        }
        let mut point = (self.total > 0).then(|| rng.random_range(0..self.total))?;
        self.backends.iter().find(|backend| match point.checked_sub(backend.weight) {
            Some(rest) => {
                point = rest;
                false
            }
            None => true,
        })
    }
}

/// One of the places, and what is changed on the way to it. Its changes come after those of the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The place.
    pub target: Target,
    /// Its share of all weights.
    pub weight: u32,
    /// Changes of the request.
    pub request: HeaderChanges,
    /// Changes of the response.
    pub response: HeaderChanges,
    /// Another path or host; instead of the rule's where both say something.
    pub rewrite: Rewrite,
    /// The client is sent elsewhere after all.
    pub redirect: Option<Redirect>,
    /// Copies, besides those of the rule.
    pub mirrors: Vec<Mirror>,
}

impl Backend {
    /// A place where nothing is changed.
    #[must_use]
    pub fn new(target: Target, weight: u32) -> Self {
        Self {
            target,
            weight,
            request: HeaderChanges::default(),
            response: HeaderChanges::default(),
            rewrite: Rewrite::default(),
            redirect: None,
            mirrors: Vec::new(),
        }
    }
}

/// Where requests can go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// To endpoints.
    Cluster(ClusterKey),
    /// Nowhere: 500. The text says why.
    Broken(ArcStr),
}

/// What endpoints are chosen from: a port of a service, or of a subset of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterKey {
    /// `namespace/hostname`
    pub service: NamespacedName,
    /// The service's port.
    pub port: u16,
    /// Of a DestinationRule; empty means all endpoints.
    pub subset: ArcStr,
}

/// How often something happens, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    /// Always.
    pub const ALWAYS: Self = Self(1_000_000);

    /// So many of a million; `None` if that is more than all.
    #[must_use]
    pub fn millionths(parts: u32) -> Option<Self> {
        (parts <= Self::ALWAYS.0).then_some(Self(parts))
    }

    /// `numerator / denominator`, rounded down but for what is more than nothing; `None` if that is more than all.
    #[must_use]
    pub fn fraction(numerator: u32, denominator: u32) -> Option<Self> {
        let parts = (u64::from(numerator) * u64::from(Self::ALWAYS.0)).checked_div(denominator.into())?;
        let least = u64::from(numerator > 0);
        Self::millionths(u32::try_from(parts.max(least)).ok()?)
    }

    /// In millionths.
    #[must_use]
    pub fn parts(self) -> u32 {
        self.0
    }

    /// Whether it happens this time.
    pub fn happens(self, rng: &mut impl Rng) -> bool {
        self == Self::ALWAYS || (self.0 > 0 && rng.random_range(0..Self::ALWAYS.0) < self.0)
    }
}

/// An answer that is written in the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectResponse {
    /// Its status, 200 to 599.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
}

/// A copy of requests whose answer nobody waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Where it goes.
    pub target: Target,
    /// Of how many requests.
    pub share: Share,
}

/// What goes wrong on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// Requests wait.
    pub delay: Option<Delay>,
    /// Requests fail, after the delay if there is one.
    pub abort: Option<Abort>,
}

/// Requests wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    /// So long.
    pub time: Duration,
    /// So many.
    pub share: Share,
}

/// Requests fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// With this.
    pub status: AbortStatus,
    /// So many.
    pub share: Share,
}

/// What a request fails with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortStatus {
    /// This status.
    Http(StatusCode),
    /// 200 with this status of gRPC, 0 to 16.
    Grpc(u8),
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn forward(weights: &[u32]) -> Result<Forward, WeightOverflow> {
        let broken = |(index, weight): (usize, &u32)| Backend::new(Target::Broken(index.to_string().into()), *weight);
        Forward::new(weights.iter().enumerate().map(broken).collect())
    }

    #[test]
    fn each_place_gets_its_share() {
        let mut rng = StdRng::seed_from_u64(7);
        for weights in [&[1, 1][..], &[0, 3, 1], &[90, 0, 10, 0], &[5], &[u32::MAX - 1, 1]] {
            let (forward, mut counts) = (forward(weights).unwrap(), vec![0_u32; weights.len()]);
            for _ in 0..10_000 {
                let chosen = forward.choose(&mut rng).unwrap();
                counts[forward.backends().iter().position(|b| std::ptr::eq(b, chosen)).unwrap()] += 1;
            }
            let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            for (count, weight) in counts.iter().zip(weights) {
                let share = f64::from(*weight) / total;
                let deviation = 4.0 * (10_000.0 * share * (1.0 - share)).sqrt();
                assert!((f64::from(*count) - 10_000.0 * share).abs() <= deviation, "{weights:?} {counts:?}");
            }
        }
        assert_eq!(forward(&[]).unwrap().choose(&mut rng), None);
        assert_eq!(forward(&[0]).unwrap().choose(&mut rng), None);
        assert_eq!(forward(&[0, 0]).unwrap().choose(&mut rng), None);
        assert_eq!(forward(&[u32::MAX, 1]), Err(WeightOverflow(1 << 32)));
    }

    #[test]
    fn shares() {
        for (numerator, denominator, expected) in [
            (1, 2, Some(500_000)),
            (0, 7, Some(0)),
            (7, 7, Some(1_000_000)),
            (1, u32::MAX, Some(1)),
            (2, 1, None),
            (0, 0, None),
        ] {
            assert_eq!(
                Share::fraction(numerator, denominator).map(Share::parts),
                expected,
                "{numerator}/{denominator}"
            );
        }
        let mut rng = StdRng::seed_from_u64(7);
        let mut of = |share: Share| (0..10_000).filter(|_| share.happens(&mut rng)).count();
        assert_eq!((of(Share::default()), of(Share::ALWAYS)), (0, 10_000));
        assert!((2_800..3_200).contains(&of(Share::millionths(300_000).unwrap())));
        assert_eq!(Share::millionths(1_000_001), None);
    }
}
