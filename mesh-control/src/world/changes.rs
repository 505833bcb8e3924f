//! When what is new in each of the last worlds was heard of: a stream that was busy has not seen the worlds between its own and the newest, and the newest alone says
//! nothing of what came with those. Pure: instants are arguments.

use std::sync::Arc;
use std::time::Instant;

/// Worlds that are told apart. Beyond that the oldest ones are told of two by two.
const MOST: usize = 256;

/// Since when what came with each world was known, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Changes(Arc<[(u64, Instant)]>);

impl Changes {
    /// With one more world, the first of what is new in which was heard of then.
    #[must_use]
    pub fn with(&self, generation: u64, since: Option<Instant>) -> Self {
        let Some(since) = since else { return self.clone() };
        let (mut all, rest) = match self.0.len() < MOST {
            true => (Vec::with_capacity(self.0.len() + 1), &*self.0),
            false => {
                let (old, rest) = self.0.split_at(MOST / 2);
                // The later world with the earlier moment: too early for who has seen the first of both, and never too late.
                (old.chunks(2).filter_map(|two| Some((two.last()?.0, two.first()?.1))).collect(), rest)
            }
        };
        all.extend_from_slice(rest);
        all.push((generation, since));
        Self(all.into())
    }

    /// When the first of what somebody lacks was heard of who has the world of this generation; `None` if nobody knows.
    pub fn after(&self, generation: u64) -> Option<Instant> {
        let first = self.0.partition_point(|(known, _)| *known <= generation);
        self.0[first..].iter().map(|(_, since)| *since).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_has_missed_worlds_lacks_what_came_with_the_first_of_them() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        // The world of generation 4 came with nothing that anybody had said a time for, that of 6 was heard of before that of 5.
        let worlds = [(2, Some(20)), (3, Some(30)), (4, None), (5, Some(50)), (6, Some(45))];
        let none = Changes::default();
        let changes = worlds.iter().fold(none.clone(), |all, (world, second)| all.with(*world, second.map(at)));
        for (generation, expected) in [
            (0, Some(20)),
            (1, Some(20)),
            (2, Some(30)),
            (3, Some(45)),
            (4, Some(45)),
            (5, Some(45)),
            (6, None),
            (9, None),
        ] {
            assert_eq!(changes.after(generation), expected.map(at), "{generation}");
        }
        assert_eq!(none.after(0), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_never_too_late() {
        let start = Instant::now();
        let at = |world: u64| start + Duration::from_secs(world);
        let last = 10 * MOST as u64;
        let changes = (1..=last).fold(Changes::default(), |all, world| all.with(world, Some(at(world))));
        assert!(changes.0.len() <= MOST);
        for generation in 0..last {
            let since = changes.after(generation).expect("something is lacked");
            assert!(since <= at(generation + 1), "{generation}");
        }
        // Of the newest each is known.
        for generation in last - MOST as u64 / 2..last {
            assert_eq!(changes.after(generation), Some(at(generation + 1)), "{generation}");
        }
    }
}
