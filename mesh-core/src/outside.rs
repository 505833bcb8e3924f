//! Which addresses may be reached for what a user has written, or a name of his was looked up to: not of the machine that asks, and not of what clouds tell
//! machines about themselves. The control plane asks before it fetches keys and takes addresses of names, waypoints before they look up names of requests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether an address is nobody's secret: not this machine's, nor of the link, where metadata of clouds are.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    // Azure's and Alibaba's are no link's.
    const METADATA: [Ipv4Addr; 2] = [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200)];
    let first = address.octets()[0];
    !(address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        || first == 0
        || first >= 240
        || METADATA.contains(&address))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    let tail = Ipv4Addr::from((u32::from(parts[6]) << 16) | u32::from(parts[7]));
    match parts {
        // Addresses of IPv4 in other clothes.
        [0x64, 0xff9b, ..] => is_public_v4(tail),
        [0x2002, high, low, ..] => is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))),
        [0, 0, 0, 0, 0, 0, ..] => false,
        [0xfd00, 0xec2, ..] => false,
        [first, ..] => first & 0xffc0 != 0xfe80 && first & 0xff00 != 0xff00,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardening_GHSA_fgw5_addresses_that_are_not_asked() {
        for (address, expected) in [
            ("10.96.0.10", true),
            ("192.0.2.1", true),
            ("198.18.0.1", true),
            ("2001:db8::1", true),
            ("fd00:198::1", true),
            ("127.0.0.1", false),
            ("127.9.9.9", false),
            ("0.0.0.0", false),
            ("169.254.169.254", false),
            ("168.63.129.16", false),
            ("100.100.100.200", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("::", false),
            ("::ffff:169.254.169.254", false),
            ("::ffff:10.0.0.1", true),
            ("64:ff9b::a9fe:a9fe", false),
            ("2002:a9fe:a9fe::1", false),
            ("fe80::1", false),
            ("ff02::1", false),
            ("fd00:ec2::254", false),
            ("::7f00:1", false),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), expected, "{address}");
        }
    }
}
