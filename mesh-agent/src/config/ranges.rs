//! The ranges of `--mesh-ranges`: a wrong one would either refuse the outside or let unknown pods pass in plaintext, so nothing is guessed.

use ipnet::IpNet;

/// Reads `CIDR,CIDR`. The good ones, and for each wrong one its text with what was expected instead.
pub(super) fn parse(list: &str) -> (Vec<IpNet>, Vec<(String, String)>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    if list.is_empty() {
        return (good, bad);
    }
    for text in list.split(',').map(str::trim) {
        match range(text) {
            Ok(range) => good.push(range),
            Err(expected) => bad.push((text.to_owned(), expected)),
        }
    }
    (good, bad)
}

/// As it is given on the command line.
pub(super) fn text(ranges: &[IpNet]) -> String {
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn range(text: &str) -> Result<IpNet, String> {
    let range: IpNet = text.parse().map_err(|_| "a range like 10.244.0.0/16 or fd00:10::/64".to_owned())?;
    if range.prefix_len() == 0 {
        return Err("the ranges of pods and services: this is every address, nothing would be outside the mesh".into());
    }
    if range != range.trunc() {
        return Err(format!("a range without bits after its length: {}", range.trunc()));
    }
    if let IpNet::V6(v6) = range
        && v6.addr().to_ipv4_mapped().is_some()
    {
        return Err("an IPv4 range in IPv4 notation".into());
    }
    let first = range.network();
    if first.is_loopback() || first.is_multicast() {
        return Err("addresses that pods or services can have".into());
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_ranges_are_read_and_printed_alike() {
        for list in ["", "10.244.0.0/16", "10.244.0.0/16,10.96.0.0/12,fd00:10::/64", "192.0.2.7/32"] {
            let (good, bad) = parse(list);
            assert!(bad.is_empty(), "{bad:?}");
            assert_eq!(text(&good), list);
        }
        assert_eq!(text(&parse(" 10.0.0.0/8 , 11.0.0.0/8").0), "10.0.0.0/8,11.0.0.0/8");
    }

    #[test]
    fn hardening_b192_each_wrong_range_is_named_with_what_to_write() {
        for (given, expected) in [
            ("10.0.0.1", "a range like"),
            ("10.0.0.0/33", "a range like"),
            ("pods", "a range like"),
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("fd00::1/64", "fd00::/64"),
            ("0.0.0.0/0", "every address"),
            ("::/0", "every address"),
            ("::ffff:10.0.0.0/104", "IPv4 notation"),
            ("127.0.0.0/8", "pods or services can have"),
            ("224.0.0.0/4", "pods or services can have"),
        ] {
            let (good, bad) = parse(&format!("10.96.0.0/12,{given}"));
            assert_eq!(good.len(), 1);
            assert_eq!(bad.len(), 1, "{given}");
            assert!(bad[0].0 == given && bad[0].1.contains(expected), "{bad:?}");
        }
        assert_eq!(parse("10.0.0.0/8,").1.len(), 1, "a comma too many");
    }
}
