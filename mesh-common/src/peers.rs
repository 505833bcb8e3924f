//! Whom a pod has sent datagrams to, so that they may answer: one row for each pod, which no other pod can fill. Written by the sendmsg hooks, read by
//! sk_lookup, where the mesh refuses datagrams that answer nothing.
//!
//! A peer has one bucket of few places: looking is bounded, and what has to make room is what the pod itself asked longest ago there.

use crate::Address;

/// How long after the pod's last datagram to somebody his datagrams count as answers, in nanoseconds: what connection tracking gives a stream.
pub const ANSWER_TIME: u64 = 120_000_000_000;
/// Places of a bucket.
const WAYS: usize = 7;
/// Buckets of a pod.
const BUCKETS: usize = 32;

/// Somebody who was sent a datagram.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Peer {
    /// Monotonic nanoseconds of the last datagram to him; 0 if there was none.
    pub asked_at: u64,
    /// Who.
    pub address: Address,
    /// Host byte order.
    pub port: u16,
    /// Explicit padding.
    pub reserved: u16,
    /// The pod's cookie, the low half: the memory of a row that is deleted may be another pod's by the time that a hook still writes to it.
    pub owner: u32,
}
const _: () = assert!(size_of::<Peer>() == 32);

/// The row of a pod.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peers {
    buckets: [[Peer; WAYS]; BUCKETS],
}
const _: () = assert!(size_of::<Peers>() == WAYS * BUCKETS * size_of::<Peer>() && BUCKETS.is_power_of_two());
// The kernel allocates a row and its header as one piece, of a power of two.
const _: () = assert!(size_of::<Peers>() + 128 <= 8192);

impl Peers {
    /// A row of nobody.
    pub const NONE: Self = Self {
        buckets: [[Peer { asked_at: 0, address: Address::UNSPECIFIED, port: 0, reserved: 0, owner: 0 }; WAYS]; BUCKETS],
    };

    /// The pod has sent somebody a datagram.
    #[inline(always)]
    pub fn remember(&mut self, cookie: u64, address: &Address, port: u16, now: u64) {
        let bucket = &mut self.buckets[bucket(address, port)];
        let peer = Peer { asked_at: now, address: *address, port, reserved: 0, owner: cookie as u32 };
        let (mut oldest, mut oldest_at) = (0, u64::MAX);
        let mut way = 0;
        while way < WAYS {
            if bucket[way].is(&peer) {
                bucket[way].asked_at = now;
                return;
            }
            if bucket[way].asked_at < oldest_at {
                (oldest, oldest_at) = (way, bucket[way].asked_at);
            }
            way += 1;
        }
        bucket[oldest] = peer;
    }

    /// Whether the pod has sent him a datagram lately.
    #[inline(always)]
    pub fn may_answer(&self, cookie: u64, address: &Address, port: u16, now: u64) -> bool {
        let bucket = &self.buckets[bucket(address, port)];
        let peer = Peer { asked_at: 0, address: *address, port, reserved: 0, owner: cookie as u32 };
        let mut way = 0;
        while way < WAYS {
            if bucket[way].is(&peer) {
                return now.saturating_sub(bucket[way].asked_at) <= ANSWER_TIME;
            }
            way += 1;
        }
        false
    }
}

impl Peer {
    #[inline(always)]
    fn is(&self, other: &Self) -> bool {
        self.address.same(&other.address) && self.port == other.port && self.owner == other.owner
    }
}

#[inline(always)]
fn bucket(address: &Address, port: u16) -> usize {
    let mut hash = u32::from(port);
    let mut word = 0;
    while word < address.words.len() {
        // The halves are mixed first: what differs in a network is at one end of the word, and a product carries upwards only.
        hash ^= address.words[word];
        hash = (hash ^ hash >> 16).wrapping_mul(0x9e37_79b1);
        word += 1;
    }
    (hash >> (u32::BITS - BUCKETS.trailing_zeros())) as usize
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use core::net::IpAddr;

    use super::*;

    fn address(number: u32) -> Address {
        IpAddr::from(0xc612_0000_u32.wrapping_add(number).to_be_bytes()).into()
    }

    #[test]
    fn who_was_asked_may_answer_for_a_time() {
        let mut peers = Peers::NONE;
        let (start, asked) = (5_000_000_000_000, address(9));
        assert!(!peers.may_answer(7, &asked, 53, start));
        peers.remember(7, &asked, 53, start);
        assert!(peers.may_answer(7, &asked, 53, start + ANSWER_TIME));
        assert!(
            peers.may_answer(7, &asked, 53, start - 1),
            "asked again by another CPU, after this one has looked at the clock"
        );
        assert!(!peers.may_answer(7, &asked, 53, start + ANSWER_TIME + 1));
        peers.remember(7, &asked, 53, start + ANSWER_TIME);
        assert!(peers.may_answer(7, &asked, 53, start + 2 * ANSWER_TIME));
        assert!(!peers.may_answer(7, &asked, 54, start) && !peers.may_answer(7, &address(8), 53, start));
        assert!(!peers.may_answer(8, &asked, 53, start), "of another pod");
        assert!(!Peers::NONE.may_answer(0, &Address::UNSPECIFIED, 0, start), "an empty place is nobody");
    }

    #[test]
    fn who_was_asked_longest_ago_makes_room() {
        let mut peers = Peers::NONE;
        let start = 5_000_000_000_000;
        for number in 0..10_000_u32 {
            peers.remember(7, &address(number), 53, start + u64::from(number));
            // Asked again and again: as many others as there are places must not push it out.
            peers.remember(7, &address(77_777), 123, start + u64::from(number));
        }
        let now = start + 10_000;
        let may = |number| peers.may_answer(7, &address(number), 53, now);
        assert!(peers.may_answer(7, &address(77_777), 123, now));
        assert!((9_960..10_000).all(may), "the last 40 of 224 places");
        assert!(!(0..9_000).any(may));
        let kept = (0..10_000).filter(|number| may(*number)).count();
        assert_eq!(kept, WAYS * BUCKETS - 1, "all places are used");
    }

    /// Peers that differ in the port only, or in the last bits of the address only, spread.
    #[test]
    fn neighbours_do_not_share_a_bucket() {
        for from in [0_u32, 4_096, 0x00ff_0000] {
            let mut fill = [[0; BUCKETS]; 2];
            for number in 0..128_u32 {
                fill[0][bucket(&address(from + number), 443)] += 1;
                fill[1][bucket(&address(from), 30_000 + number as u16)] += 1;
            }
            assert!(fill.iter().flatten().all(|count| *count <= 12), "{fill:?}");
        }
    }
}
