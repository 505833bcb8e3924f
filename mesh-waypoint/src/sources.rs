//! Places for connections from outside of the mesh: so many in all, and a share of them for each source, so that nobody shuts a gateway alone. A pure count; each
//! lane has one. Asked by `edge`; sessions of datagrams are counted by the same sources.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// That of all connections.
    All,
    /// That of one source.
    Source,
}

/// The connections that there are. It grows with them alone: a source without one is forgotten.
#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// Who has places.
#[derive(Debug, Default)]
pub struct Places(Mutex<Counts>);

/// The place of one connection.
#[derive(Debug)]
pub struct EdgePlace {
    places: Arc<Places>,
    source: Option<IpAddr>,
}

impl Places {
    /// A place for one more connection if there are not so `many`.
    pub fn enter(self: &Arc<Self>, many: usize) -> Result<EdgePlace, Full> {
        let mut counts = self.0.lock();
        if counts.all >= many {
            return Err(Full::All);
        }
        counts.all += 1;
        Ok(EdgePlace { places: Arc::clone(self), source: None })
    }
}

impl EdgePlace {
    /// The connection is from there, which may have so `many`: an address, or 64 bits of one of IPv6.
    pub fn of(&mut self, from: IpAddr, many: usize) -> Result<(), Full> {
        let from = group(from);
        let mut counts = self.places.0.lock();
        let count = counts.by_source.get(&from).copied().unwrap_or_default();
        if count >= many {
            return Err(Full::Source);
        }
        counts.by_source.insert(from, count + 1);
        drop(counts);
        self.leave();
        self.source = Some(from);
        Ok(())
    }

    /// It is of its source no more.
    fn leave(&mut self) {
        let Some(source) = self.source.take() else { return };
        if let Entry::Occupied(mut count) = self.places.0.lock().by_source.entry(source) {
            match count.get() {
                0 | 1 => drop(count.remove()),
                _ => *count.get_mut() -= 1,
            }
        }
    }
}

impl Drop for EdgePlace {
    fn drop(&mut self) {
        self.leave();
        self.places.0.lock().all -= 1;
    }
}

/// Who is counted as one: an address, or 64 bits of one of IPv6, of which one customer has them all.
#[must_use]
pub fn group(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) & !u128::from(u64::MAX)).into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardening_B23_one_source_has_its_share_and_others_have_theirs() {
        let places = Arc::<Places>::default();
        let come = |from: &str| {
            let mut place = places.enter(5)?;
            place.of(from.parse().unwrap(), 2)?;
            Ok(place)
        };
        let mut kept = Vec::new();
        for (from, expected) in [
            ("198.51.100.1", None),
            ("198.51.100.1", None),
            ("198.51.100.1", Some(Full::Source)),
            ("198.51.100.2", None),
            // One customer of IPv6 has 64 bits of addresses.
            ("2001:db8::1", None),
            ("2001:db8:0:0:ffff::2", None),
            ("2001:db8:0:0:1::3", Some(Full::All)),
        ] {
            let place = come(from);
            assert_eq!(place.as_ref().err().copied(), expected, "{from}");
            kept.extend(place);
        }
        kept.remove(0);
        assert_eq!(come("2001:db8::4").err(), Some(Full::Source));
        assert!(come("2001:db8:0:1::1").is_ok(), "who is refused has no place");
        kept.extend(come("198.51.100.1"));
        assert_eq!(come("198.51.100.3").err(), Some(Full::All));
        drop(kept);
        let counts = places.0.lock();
        assert_eq!((counts.all, counts.by_source.len()), (0, 0), "nobody is remembered");
    }
}
