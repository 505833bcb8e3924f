//! Reads a pod's `resolv.conf`. Pure; called by [`super::find`] with text that the pod may have written.

use mesh_proto::convert::PodDnsRequest;

/// Entries of a kind that are looked at: more than any resolver asks.
const MOST: usize = 8;
/// Of a name (RFC 1035 2.3.4).
const LONGEST: usize = 253;
/// As resolvers cap it.
const MOST_DOTS: u32 = 15;

/// What the file says, as resolvers read it: unknown lines say nothing, the last `search` or `domain` counts. Nameservers of the pod's own
/// loopback are its own business.
pub fn parse(text: &str) -> PodDnsRequest {
    let mut dns = PodDnsRequest { ndots: 1, ..PodDnsRequest::default() };
    for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                let address = words.next().and_then(|word| word.parse::<std::net::IpAddr>().ok());
                let outside =
                    address.map(|ip| ip.to_canonical()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified());
                dns.nameservers.extend(outside.filter(|_| dns.nameservers.len() < MOST));
            }
            Some("search" | "domain") => {
                let domains = words.map(|word| word.trim_end_matches('.')).filter(|word| may_be_domain(word));
                dns.searches = domains.take(MOST).map(Into::into).collect();
            }
            Some("options") => {
                let dots = words.filter_map(|word| word.strip_prefix("ndots:")?.parse::<u32>().ok()).next_back();
                dns.ndots = dots.map_or(dns.ndots, |dots| dots.min(MOST_DOTS));
            }
            _ => {}
        }
    }
    dns
}

/// Whether enrolment takes it. What a pod writes here must not be what keeps it out of the mesh.
fn may_be_domain(word: &str) -> bool {
    !word.is_empty() && word.len() <= LONGEST && !word.contains('/') && !word.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<String>, Vec<String>, u32) {
        let dns = parse(text);
        let text = |list: &[std::net::IpAddr]| list.iter().map(ToString::to_string).collect();
        (text(&dns.nameservers), dns.searches.iter().map(ToString::to_string).collect(), dns.ndots)
    }

    #[test]
    fn as_the_kubelet_writes_it() {
        let text =
            "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 198.19.0.10\noptions ndots:5\n";
        let searches = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"].map(str::to_owned).to_vec();
        assert_eq!(read(text), (vec!["198.19.0.10".into()], searches, 5));
    }

    #[test]
    fn as_others_write_it() {
        let none: Vec<String> = Vec::new();
        assert_eq!(read(""), (none.clone(), none.clone(), 1));
        assert_eq!(read("search .\n").1, none);
        assert_eq!(read("domain a.\nsearch b c.\n").1, ["b", "c"]);
        assert_eq!(read(&format!("search a/b {} x\u{1}y \u{85} ok\n", "l".repeat(254))).1, ["ok"]);
        assert_eq!(
            read("# nameserver 198.18.0.1\n;x\nnameserver fd00:198::35 # dns\nnameserver 127.0.0.53\nnameserver x\n").0,
            ["fd00:198::35"]
        );
        assert_eq!(read("options timeout:1 ndots:2 rotate\noptions ndots:99999999999\noptions ndots:99\n").2, 15);
        assert_eq!(read(&"nameserver 198.18.0.1\n".repeat(100)).0.len(), MOST);
    }
}
