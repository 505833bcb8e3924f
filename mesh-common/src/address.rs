//! One address type for both families, as the kernel holds it: four words in network byte order, IPv4 as `::ffff:a.b.c.d`.
//! Map keys, rows and decisions use it; only the edges (hooks, user space) know families.

#[cfg(feature = "user")]
use core::net::{IpAddr, Ipv6Addr};

/// An IPv6 or v4-mapped address, words in network byte order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Address {
    /// The four words as they stand in a packet.
    pub words: [u32; 4],
}

const MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Address {
    /// `::`, used for "no address" in fixed arrays.
    pub const UNSPECIFIED: Self = Self { words: [0; 4] };

    /// An IPv4 address given as the network-order word of the kernel.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self { words: [0, 0, MAPPED, word] }
    }

    /// True for `::ffff:0:0/96`.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }

    /// The last word in host byte order: the whole address for IPv4.
    #[inline(always)]
    pub const fn low(&self) -> u32 {
        u32::from_be(self.words[3])
    }

    /// `::`, `0.0.0.0` or `::ffff:0.0.0.0`.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.words[0] == 0
            && self.words[1] == 0
            && (self.words[2] == 0 || self.words[2] == MAPPED)
            && self.words[3] == 0
    }

    /// `127.0.0.0/8` or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            return self.low() >> 24 == 127;
        }
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == 0 && self.low() == 1
    }

    /// Multicast, or the limited broadcast address.
    #[inline(always)]
    pub const fn is_multicast_or_broadcast(&self) -> bool {
        if self.is_v4() {
            return self.low() >> 28 == 0xe || self.low() == u32::MAX;
        }
        u32::from_be(self.words[0]) >> 24 == 0xff
    }

    /// `fe80::/10`: carries a scope that a proxy cannot carry on.
    #[inline(always)]
    pub const fn is_v6_link_local(&self) -> bool {
        u32::from_be(self.words[0]) >> 22 == 0xfe80 >> 6
    }

    /// Equality as one number and one branch: the verifier follows every branch.
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        let difference = (self.words[0] ^ other.words[0])
            | (self.words[1] ^ other.words[1])
            | (self.words[2] ^ other.words[2])
            | (self.words[3] ^ other.words[3]);
        difference == 0
    }
}

#[cfg(feature = "user")]
impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        let octets = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Self { words }
    }
}

#[cfg(feature = "user")]
impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(address.words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets).to_canonical()
    }
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        // address, loopback, unspecified, multicast, link-local, v4
        let table = [
            ("127.0.0.1", true, false, false, false, true),
            ("127.200.1.2", true, false, false, false, true),
            ("::1", true, false, false, false, false),
            ("::2", false, false, false, false, false),
            ("0.0.0.0", false, true, false, false, true),
            ("::", false, true, false, false, false),
            ("224.0.0.1", false, false, true, false, true),
            ("239.255.255.255", false, false, true, false, true),
            ("255.255.255.255", false, false, true, false, true),
            ("ff02::1", false, false, true, false, false),
            ("fe80::1", false, false, false, true, false),
            ("fec0::1", false, false, false, false, false),
            ("169.254.169.254", false, false, false, false, true),
            ("198.18.0.1", false, false, false, false, true),
            ("fd00:198::1", false, false, false, false, false),
        ];
        for (text, loopback, unspecified, multicast, link_local, v4) in table {
            let ip: IpAddr = text.parse().unwrap();
            let address = Address::from(ip);
            assert_eq!(
                (loopback, unspecified, multicast, link_local, v4),
                (
                    address.is_loopback(),
                    address.is_unspecified(),
                    address.is_multicast_or_broadcast(),
                    address.is_v6_link_local(),
                    address.is_v4()
                ),
                "{text}"
            );
            assert_eq!(IpAddr::from(address), ip, "{text} comes back");
        }
    }
}
