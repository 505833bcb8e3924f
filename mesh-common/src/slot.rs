//! Slot addresses: a captured connection goes to a loopback address that encodes, by number, the destination the app asked for.
//!
//! ```text
//!  IPv4  127.128.0.0/9   slot 0x80_0000 ..= 0xff_fffd, the low 24 bits of the address
//!  IPv6  fd75:6e64:6572:6d65:7368::/96, the low 32 bits of the address hold the same number
//!
//!  DNS_FIRST + i     the pod's i-th nameserver, fixed at enrolment
//!  FIRST ..          handed out by the connect hook, freed by the agent
//!  REFUSED           steered nowhere: connects to it are refused (kernels that cannot choose the errno of a denial)
//! ```
//!
//! Both ranges are local routes of the pod's namespace with the pod's address as preferred source, so an unbound socket gets the
//! source address it would have had without the mesh, and keeps no binding when it reconnects elsewhere. 127.0.0.0/9 stays as it is.

use crate::Address;

/// Number of the first slot of the pod's nameservers.
pub const DNS_FIRST: u32 = 0x80_0001;
/// How many nameservers a pod may have.
pub const NAMESERVERS: u32 = 4;
/// First slot for captured connections.
pub const FIRST: u32 = 0x80_0100;
/// Last slot for captured connections.
pub const LAST: u32 = 0xff_fffd;
/// Never steered. 127.255.255.255 above it is a broadcast address on some hosts and stays unused.
pub const REFUSED: u32 = 0xff_fffe;

/// The IPv4 range as network-order network and prefix length.
pub const V4_NETWORK: [u8; 4] = [127, 128, 0, 0];
/// Prefix length of [`V4_NETWORK`].
pub const V4_PREFIX: u8 = 9;
/// The IPv6 range.
pub const V6_NETWORK: [u8; 16] = [0xfd, 0x75, 0x6e, 0x64, 0x65, 0x72, 0x6d, 0x65, 0x73, 0x68, 0, 0, 0, 0, 0, 0];
/// Prefix length of [`V6_NETWORK`].
pub const V6_PREFIX: u8 = 96;

const V6_WORDS: [u32; 3] = [0xfd75_6e64_u32.to_be(), 0x6572_6d65_u32.to_be(), 0x7368_0000_u32.to_be()];

/// The address of a slot, in the family of the connection.
#[inline(always)]
pub const fn address(slot: u32, v4: bool) -> Address {
    if v4 {
        Address::from_v4_word((0x7f00_0000 | slot).to_be())
    } else {
        Address { words: [V6_WORDS[0], V6_WORDS[1], V6_WORDS[2], slot.to_be()] }
    }
}

/// The slot number of an address; 0 if the address lies outside both ranges.
#[inline(always)]
pub const fn number(address: &Address) -> u32 {
    if address.is_v4() {
        let low = address.low();
        return if low >> 23 == 0x7f80_0000 >> 23 { low & 0x00ff_ffff } else { 0 };
    }
    if is_v6_range(address) { address.low() } else { 0 }
}

/// True inside the IPv6 range, where nothing but slots lives.
#[inline(always)]
pub const fn is_v6_range(address: &Address) -> bool {
    address.words[0] == V6_WORDS[0] && address.words[1] == V6_WORDS[1] && address.words[2] == V6_WORDS[2]
}

/// The index of the nameserver that a slot stands for.
#[inline(always)]
pub const fn nameserver(slot: u32) -> Option<u32> {
    if slot >= DNS_FIRST && slot < DNS_FIRST + NAMESERVERS { Some(slot - DNS_FIRST) } else { None }
}

/// True for numbers that the connect hook hands out.
#[inline(always)]
pub const fn is_flow(slot: u32) -> bool {
    slot >= FIRST && slot <= LAST
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use core::net::IpAddr;
    use std::string::ToString;

    use super::*;

    #[test]
    fn addresses() {
        let table = [
            (DNS_FIRST, "127.128.0.1", "fd75:6e64:6572:6d65:7368:0:80:1"),
            (FIRST, "127.128.1.0", "fd75:6e64:6572:6d65:7368:0:80:100"),
            (LAST, "127.255.255.253", "fd75:6e64:6572:6d65:7368:0:ff:fffd"),
        ];
        for (slot, v4, v6) in table {
            assert_eq!(IpAddr::from(address(slot, true)).to_string(), v4);
            assert_eq!(IpAddr::from(address(slot, false)).to_string(), v6);
            assert_eq!(number(&address(slot, true)), slot);
            assert_eq!(number(&address(slot, false)), slot);
        }
    }

    #[test]
    fn other_addresses_are_no_slots() {
        for text in ["127.0.0.1", "127.127.255.255", "128.128.0.1", "::1", "fd75:6e64:6572:6d65:7369::80:1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(number(&ip.into()), 0, "{text}");
        }
        assert!(!is_flow(DNS_FIRST) && !is_flow(REFUSED) && !is_flow(0));
        assert_eq!(nameserver(DNS_FIRST + 3), Some(3));
        assert_eq!(nameserver(DNS_FIRST + NAMESERVERS), None);
    }
}
