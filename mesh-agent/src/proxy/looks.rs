//! Clients whose first message is looked at and whose handshakes are under way, for one pod: how many there may be of one address and in all, as each holds a
//! buffer and a socket before anything is known of it. `sidecar` asks before it looks.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// In all.
const MOST: u32 = 1024;
/// Of one address, so that none keeps all others out.
const MOST_OF_ONE: u32 = 64;

/// Those of one pod.
#[derive(Debug, Default)]
pub struct Looks(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    total: u32,
    sources: HashMap<IpAddr, u32>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Look {
    looks: Arc<Looks>,
    from: IpAddr,
}

impl Looks {
    /// One more; `None` if there are too many.
    pub fn begin(self: &Arc<Self>, from: IpAddr) -> Option<Look> {
        let mut table = self.0.lock();
        let of_one = table.sources.get(&from).copied().unwrap_or_default();
        if table.total >= MOST || of_one >= MOST_OF_ONE {
            return None;
        }
        table.total += 1;
        table.sources.insert(from, of_one + 1);
        Some(Look { looks: Arc::clone(self), from })
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        let mut table = self.looks.0.lock();
        table.total -= 1;
        match table.sources.get_mut(&self.from) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(table.sources.remove(&self.from)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn one_address_keeps_nobody_out_and_all_of_them_have_a_limit() {
        let looks = Arc::new(Looks::default());
        let at = |n: u32| IpAddr::from(Ipv4Addr::from(n));
        let mut held: Vec<Look> = (0..MOST_OF_ONE).map(|_| looks.begin(at(1)).unwrap()).collect();
        assert!(looks.begin(at(1)).is_none());
        held.extend((MOST_OF_ONE..MOST).map(|n| looks.begin(at(n)).unwrap()));
        assert!(looks.begin(at(0)).is_none(), "there are too many in all");
        held.remove(0);
        let again = looks.begin(at(1)).unwrap();
        drop((held, again));
        let table = looks.0.lock();
        assert_eq!((table.total, table.sources.len()), (0, 0));
    }
}
