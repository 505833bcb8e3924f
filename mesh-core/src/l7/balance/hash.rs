//! Which endpoint has what hashes to a number: a ring of points (ketama) or Maglev's table. Made of addresses alone, so that all waypoints that know the same
//! endpoints agree; when one comes or goes, little of the rest moves. Who is not fit is passed over as if it were not there.

use std::net::SocketAddr;

use xxhash_rust::xxh64::xxh64;

use crate::l7::cluster::HashTable;

/// Most points of a ring, of all endpoints together.
const MOST_POINTS: u64 = 1 << 20;
/// Other places of a Maglev table that are looked at before the next ones in order.
const TRIES: u64 = 16;

/// What is said of a request, as a number.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    xxh64(bytes, 0)
}

/// Endpoints by number.
#[derive(Debug)]
pub(super) enum ByHash {
    /// Points in order, each with its endpoint.
    Ring(Vec<(u64, u32)>),
    /// One endpoint for each remainder.
    Maglev(Vec<u32>),
}

impl ByHash {
    /// Of endpoints with address and weight. Weights are at least 1.
    pub(super) fn new(kind: HashTable, endpoints: &[(u32, SocketAddr, u32)]) -> Self {
        match kind {
            HashTable::Ring(least) => Self::Ring(ring(least, endpoints)),
            HashTable::Maglev(size) => Self::Maglev(maglev(size, endpoints)),
        }
    }

    /// The first fit one for a number.
    pub(super) fn find(&self, hash: u64, fit: impl Fn(u32) -> bool) -> Option<u32> {
        match self {
            Self::Ring(points) => {
                let start = points.partition_point(|(point, _)| *point < hash);
                let mut last = None;
                points[start..].iter().chain(&points[..start]).map(|(_, endpoint)| *endpoint).find(|endpoint| {
                    // The points of one that is not fit often stand side by side.
                    last.replace(*endpoint) != Some(*endpoint) && fit(*endpoint)
                })
            }
            Self::Maglev(table) => {
                let size = u64::try_from(table.len()).ok().filter(|size| *size > 0)?;
                let at = |hash: u64| table[usize::try_from(hash % size).unwrap_or_default()];
                let tries = (0..TRIES).map(|n| if n == 0 { hash } else { xxh64(&hash.to_le_bytes(), n) });
                let start = usize::try_from(hash % size).unwrap_or_default();
                let rest = table[start..].iter().chain(&table[..start]).copied();
                tries.map(at).chain(rest).find(|endpoint| fit(*endpoint))
            }
        }
    }
}

fn ring(least: u64, endpoints: &[(u32, SocketAddr, u32)]) -> Vec<(u64, u32)> {
    let total: u64 = endpoints.iter().map(|(.., weight)| u64::from(*weight)).sum();
    let size = least.clamp(1, MOST_POINTS);
    let mut points = Vec::new();
    for (index, address, weight) in endpoints {
        let share = (u128::from(size) * u128::from(*weight)).div_ceil(u128::from(total.max(1)));
        let name = address.to_string();
        // At least one, whatever the weight.
        points.extend((0..share.max(1)).map(|n| (xxh64(format!("{name}_{n}").as_bytes(), 0), *index)));
    }
    // Equal points are nobody's by chance: the order of the endpoints decides.
    points.sort_unstable();
    points
}

fn maglev(size: u64, endpoints: &[(u32, SocketAddr, u32)]) -> Vec<u32> {
    let heaviest = endpoints.iter().map(|(.., weight)| *weight).max().unwrap_or(1).max(1);
    let size = size.max(2);
    struct Turn {
        index: u32,
        next: u64,
        skip: u64,
        weight: f64,
        due: f64,
    }
    let turn = |(index, address, weight): &(u32, SocketAddr, u32)| {
        let name = address.to_string();
        Turn {
            index: *index,
            next: xxh64(name.as_bytes(), 0) % size,
            skip: xxh64(name.as_bytes(), 1) % (size - 1) + 1,
            weight: f64::from(*weight) / f64::from(heaviest),
            due: 0.0,
        }
    };
    let mut turns: Vec<Turn> = endpoints.iter().map(turn).collect();
    let Ok(slots) = usize::try_from(size) else { return Vec::new() };
    if turns.is_empty() {
        return Vec::new();
    }
    let mut table = vec![u32::MAX; slots];
    let mut left = slots;
    loop {
        for turn in &mut turns {
            // Who weighs half as much as the heaviest has every other turn.
            turn.due += turn.weight;
            if turn.due < 1.0 {
                continue;
            }
            turn.due -= 1.0;
            // The table's size is a prime: each comes past all places.
            let slot = loop {
                let slot = usize::try_from(turn.next).unwrap_or_default();
                turn.next = (turn.next + turn.skip) % size;
                if table[slot] == u32::MAX {
                    break slot;
                }
            };
            table[slot] = turn.index;
            left -= 1;
            if left == 0 {
                return table;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn endpoints(weights: &[u32]) -> Vec<(u32, SocketAddr, u32)> {
        let one = |(index, weight): (u32, &u32)| (index, SocketAddr::from(([10, 0, 0, index as u8], 80)), *weight);
        (0..).zip(weights).map(one).collect()
    }

    fn numbers() -> impl Iterator<Item = u64> {
        (0..20_000_u32).map(|n| hash(&n.to_le_bytes()))
    }

    fn shares(table: &ByHash, fit: impl Fn(u32) -> bool) -> HashMap<u32, u32> {
        let mut shares = HashMap::new();
        numbers().for_each(|number| *shares.entry(table.find(number, &fit).unwrap()).or_default() += 1);
        shares
    }

    const TABLES: [HashTable; 2] = [HashTable::Ring(4096), HashTable::Maglev(4099)];

    #[test]
    fn features_DR_5_each_gets_its_share() {
        for kind in TABLES {
            let equal = shares(&ByHash::new(kind, &endpoints(&[1; 5])), |_| true);
            assert!(equal.len() == 5 && equal.values().all(|n| (3000..5000).contains(n)), "{kind:?} {equal:?}");
            let uneven = shares(&ByHash::new(kind, &endpoints(&[1, 3])), |_| true);
            assert!((3800..6200).contains(&uneven[&0]), "{kind:?} {uneven:?}");
        }
    }

    #[test]
    fn features_DR_5_little_moves_when_one_goes() {
        for kind in TABLES {
            let (five, four) = (endpoints(&[1; 5]), endpoints(&[1; 4]));
            let (all, without) = (ByHash::new(kind, &five), ByHash::new(kind, &four));
            let (mut moved, mut kept) = (0, 0);
            for number in numbers() {
                let before = all.find(number, |_| true).unwrap();
                let after = without.find(number, |_| true).unwrap();
                // One that is passed over is as good as gone.
                let passed = all.find(number, |index| index != 4).unwrap();
                match before {
                    4 => moved += 1,
                    _ => kept += u32::from(before == after),
                }
                assert!(passed != 4 && (before == 4 || before == passed));
            }
            assert!(f64::from(kept) > f64::from(20_000 - moved) * 0.85, "{kind:?}: {kept} of {}", 20_000 - moved);
        }
        assert!(shares(&ByHash::new(TABLES[0], &endpoints(&[1; 3])), |index| index == 2).len() == 1);
    }

    #[test]
    fn tables_without_anybody_find_nobody() {
        for kind in TABLES {
            assert_eq!(ByHash::new(kind, &[]).find(7, |_| true), None);
            assert_eq!(ByHash::new(kind, &endpoints(&[1, 1])).find(7, |_| false), None);
        }
        let many = ByHash::new(HashTable::Ring(0), &endpoints(&[1; 3]));
        assert_eq!(shares(&many, |_| true).len(), 3, "each has a point");
    }
}
