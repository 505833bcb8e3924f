//! Copies of requests that were given up, counted for each lane by why. A scrape adds them up.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::meters::Meters;

/// Why a copy was given up. Nobody waits for copies, so nobody else tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenUp {
    /// There are too many at once.
    TooMany,
    /// Nobody is there to take it, or there may be no more connections.
    NoEndpoint,
    /// The policies of the endpoint do not let the client in.
    Denied,
    /// The endpoint cannot be reached.
    Connect,
    /// The endpoint ended it before its answer.
    NoAnswer,
    /// It did not take the body as fast as it came.
    Slow,
    /// The request ended before its body did.
    Cut,
    /// There was no answer in time.
    Timeout,
}

const ALL: [(GivenUp, &str); 8] = [
    (GivenUp::TooMany, "too_many"),
    (GivenUp::NoEndpoint, "no_endpoint"),
    (GivenUp::Denied, "denied"),
    (GivenUp::Connect, "connect"),
    (GivenUp::NoAnswer, "no_answer"),
    (GivenUp::Slow, "slow"),
    (GivenUp::Cut, "cut"),
    (GivenUp::Timeout, "timeout"),
];

/// Counts of one lane.
#[derive(Default)]
pub(super) struct Mirrors([AtomicU64; ALL.len()]);

impl Mirrors {
    /// Counts one.
    pub(super) fn count(&self, why: GivenUp) {
        self.0[why as usize].fetch_add(1, Relaxed);
    }
}

/// Writes the sums of all lanes; nothing where nothing was given up.
pub(super) fn encode(all: &[Arc<Meters>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let sum = |why: GivenUp| all.iter().map(|meters| meters.mirrors().0[why as usize].load(Relaxed)).sum::<u64>();
    let sums: Vec<_> = ALL.iter().map(|(why, name)| (*name, sum(*why))).filter(|(_, sum)| *sum > 0).collect();
    if sums.is_empty() {
        return Ok(());
    }
    let help = "Copies of requests for mirrors that were given up";
    let mut family = encoder.encode_descriptor("undermesh_mirrors_given_up", help, None, MetricType::Counter)?;
    for (reason, sum) in sums {
        ConstCounter::new(sum).encode(family.encode_family(&[("reason", reason)])?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_number() {
        for (index, (why, _)) in ALL.iter().enumerate() {
            assert_eq!(*why as usize, index, "{why:?}");
        }
    }
}
