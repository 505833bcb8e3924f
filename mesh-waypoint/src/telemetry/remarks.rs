//! What is said of single requests in the process's own log. Clients decide how many requests there are, so of each kind there are a few lines a second: the next one
//! says how many were left out, and the metrics count them all. Used by `security`.

use std::time::Instant;

use mesh_runtime::limit::{Limiter, Rate, Verdict};

/// Lines of each kind: a million requests a minute are 600 lines.
const LINES: Rate = Rate { rate: 10.0, burst: 20.0 };

/// What is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remark {
    /// An authorizer has not answered.
    NoAuthorizer,
    /// Whoever counts requests has not answered.
    NoCount,
    /// A dry run would have denied.
    WouldDeny,
    /// A policy wants to be told.
    Audited,
}

impl Remark {
    const ALL: [Self; 4] = [Self::NoAuthorizer, Self::NoCount, Self::WouldDeny, Self::Audited];
}

/// How often each was said. One for the process.
#[derive(Debug)]
pub struct Remarks(Limiter<{ Remark::ALL.len() }>);

impl Default for Remarks {
    fn default() -> Self {
        Self(Limiter::new(LINES))
    }
}

impl Remarks {
    /// Whether that is said now; then, how often it was not since it was said last.
    pub fn may(&self, remark: Remark, now: Instant) -> Option<u64> {
        match self.0.check(remark as usize, now) {
            Verdict::Write { suppressed } => Some(suppressed),
            Verdict::Suppress => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn hardening_f50_a_million_requests_a_minute_are_few_lines_of_each_kind() {
        let (remarks, start) = (Remarks::default(), Instant::now());
        for (index, remark) in Remark::ALL.into_iter().enumerate() {
            assert_eq!(remark as usize, index, "{remark:?} has a place of its own");
            let mut said = (0_u32, 0);
            for at in 0..1_000_000 {
                if let Some(left_out) = remarks.may(remark, start + Duration::from_micros(at * 60)) {
                    said = (said.0 + 1, said.1 + left_out);
                }
            }
            // Of two hundred bytes each that is an eighth of a MiB.
            assert!((600..=621).contains(&said.0), "{remark:?}: {said:?}");
            let left = remarks.may(remark, start + Duration::from_secs(120)).unwrap();
            assert_eq!(u64::from(said.0) + said.1 + left, 1_000_000, "{remark:?}: all are accounted for");
        }
    }
}
