//! From header fields to a request or an answer. Strict where access depends on it (method, authority), lenient where only telemetry does.

use std::net::IpAddr;

use http::StatusCode;

use super::hpack::Field;
use super::{Authority, AuthorityProblem, Baggage, Forwarded, TraceParent};

/// How many proxies a connection has passed.
pub(super) const HOPS: &[u8] = b"x-mesh-hops";

/// A well-formed CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) authority: Authority,
    pub(super) baggage: Baggage,
    pub(super) forwarded: Option<Forwarded>,
    pub(super) traceparent: Option<TraceParent>,
    pub(super) hops: u8,
}

/// Why a request is answered 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestProblem {
    #[error("malformed_headers")]
    Malformed,
    #[error("not_connect")]
    NotConnect,
    #[error("bad_authority")]
    Authority,
    #[error(transparent)]
    Address(AuthorityProblem),
}

/// Reads a request that arrived at `local`, to which it must lead; `None` lets it lead anywhere but to special addresses.
pub(super) fn parse_request(fields: &[Field], local: Option<IpAddr>) -> Result<Request, RequestProblem> {
    let (mut method, mut authority) = (None, None);
    let (mut baggage, mut forwarded, mut forwarded_count, mut traceparent) = (Baggage::default(), None, 0, None);
    let (mut regular, mut hops) = (false, 0_u8);
    for Field { name, value } in fields {
        if name.is_empty()
            || name.iter().any(u8::is_ascii_uppercase)
            || value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'))
        {
            return Err(RequestProblem::Malformed);
        }
        if name[0] == b':' {
            let slot = match name.as_slice() {
                b":method" => &mut method,
                b":authority" => &mut authority,
                // A CONNECT has no scheme and no path; an extended one has a protocol, which is not what this port speaks.
                _ => return Err(RequestProblem::Malformed),
            };
            if regular || slot.replace(value.as_slice()).is_some() {
                return Err(RequestProblem::Malformed);
            }
            continue;
        }
        regular = true;
        match name.as_slice() {
            b"baggage" => baggage = Baggage::parse(value),
            b"forwarded" => {
                forwarded_count += 1;
                forwarded = Forwarded::parse(value);
            }
            b"traceparent" => traceparent = TraceParent::parse(value),
            // Said twice it is the most that was said, and what is no number is more than any: it ends circles.
            HOPS => hops = hops.max(read_hops(value)),
            b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => {
                return Err(RequestProblem::Malformed);
            }
            _ => {}
        }
    }
    if method != Some(b"CONNECT") {
        return Err(RequestProblem::NotConnect);
    }
    let authority = authority
        .and_then(|value| std::str::from_utf8(value).ok())
        .and_then(Authority::parse)
        .ok_or(RequestProblem::Authority)?;
    authority.check_address(local).map_err(RequestProblem::Address)?;
    // Two claims about who the client is are no claim.
    let forwarded = forwarded.filter(|_| forwarded_count == 1);
    Ok(Request { authority, baggage, forwarded, traceparent, hops })
}

fn read_hops(value: &[u8]) -> u8 {
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let read = || std::str::from_utf8(value).ok()?.parse().ok();
    is_number.then(read).flatten().unwrap_or(u8::MAX)
}

/// Reads an answer: its status and the serving workload's labels. `None` if there is no status.
pub(super) fn parse_answer(fields: &[Field]) -> Option<(StatusCode, Baggage)> {
    let mut status = None;
    let mut baggage = Baggage::default();
    for field in fields {
        match field.name.as_slice() {
            b":status" => status = Some(StatusCode::from_bytes(&field.value).ok()?),
            b"baggage" => baggage = Baggage::parse(&field.value),
            _ => {}
        }
    }
    Some((status?, baggage))
}

/// Reads two header blocks with one decoder, as a tunnel does; the first byte says where the second begins.
pub(crate) fn fuzz_request(data: &[u8]) {
    let local = IpAddr::from([10, 0, 0, 1]);
    let mut decoder = super::hpack::Decoder::new(64 * 1024);
    let Some((split, blocks)) = data.split_first() else { return };
    let (first, second) = blocks.split_at(usize::from(*split).min(blocks.len()));
    for block in [first, second] {
        let Ok(fields) = decoder.decode(block) else { return };
        let size: usize = fields.iter().map(|field| field.name.len() + field.value.len()).sum();
        assert!(size <= 64 * 1024, "the limit holds on the decoded size");
        let _ = parse_answer(&fields);
        let Ok(request) = parse_request(&fields, Some(local)) else { continue };
        if let Authority::Address(address) = &request.authority {
            assert_eq!(address.ip(), local, "a tunnel leads to its own pod");
        }
        assert_eq!(Authority::parse(&request.authority.to_string()).as_ref(), Some(&request.authority));
    }
}

#[cfg(test)]
#[allow(non_snake_case)]
mod tests {
    use super::*;

    fn request(fields: &[(&str, &str)]) -> Result<Request, RequestProblem> {
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| Field { name: (*name).into(), value: (*value).into() }).collect();
        parse_request(&fields, Some(IpAddr::from([10, 0, 0, 1])))
    }

    #[test]
    fn hardening_B29_B30_B31_only_the_pods_own_address() {
        let to = |authority: &str| {
            request(&[(":method", "CONNECT"), (":authority", authority)]).map(|request| request.authority.to_string())
        };
        for own in ["10.0.0.1:80", "[::ffff:10.0.0.1]:80"] {
            assert_eq!(to(own), Ok("10.0.0.1:80".into()));
        }
        let mismatch = RequestProblem::Address(AuthorityProblem::AddressMismatch);
        for other in ["10.0.0.2:80", "[::ffff:10.0.0.2]:80", "[fd00::1]:80", "8.8.8.8:53", "[2001:db8::1]:80"] {
            assert_eq!(to(other), Err(mismatch), "{other}");
        }
        let special = RequestProblem::Address(AuthorityProblem::SpecialAddress);
        for address in [
            "127.0.0.1:80",
            "[::1]:80",
            "0.0.0.0:80",
            "[::]:80",
            "169.254.169.254:80",
            "224.0.0.1:80",
            "[ff02::1]:80",
            "255.255.255.255:80",
            "[fe80::1]:80",
            "[::ffff:127.0.0.1]:80",
        ] {
            assert_eq!(to(address), Err(special), "{address}");
        }
        for bad in [
            "1.2.3.4",
            "10.0.0.1:0",
            "10.0.0.1:65536",
            "10.0.0.1:99999999999",
            "10.0.0.1:-1",
            "10.0.0.1: 80",
            "10.0.0.1:80 ",
            "10.0.0.1:+80",
            "10.0.0.1:0x50",
            "[fe80::1%eth0]:80",
            "fd00::1:80",
            "[10.0.0.1]:80",
            "[::1:80",
            "10.0.0.1.:80",
            "010.0.0.1:80",
            "0x0a000001:80",
            "167772161:80",
            "10.1:80",
            ":80",
            "",
            ":",
            "a..b:80",
            "-a.b:80",
            "user@host:80",
            "host/path:80",
            "h\u{f6}st:80",
            "a b:80",
        ] {
            assert_eq!(to(bad), Err(RequestProblem::Authority), "{bad}");
        }
        let long = format!("{}:80", ["a".repeat(63).as_str(); 5].join("."));
        assert_eq!(to(&long), Err(RequestProblem::Authority));
        assert_eq!(to(&format!("{}.svc:80", "a".repeat(64))), Err(RequestProblem::Authority));
        assert_eq!(to("Reviews.app.svc.cluster.local.:9080"), Ok("reviews.app.svc.cluster.local:9080".into()));
        assert_eq!(to("xn--hst-sna.example:80"), Ok("xn--hst-sna.example:80".into()));
    }

    #[test]
    fn whoever_serves_many_addresses_is_asked_for_any_but_special_ones() {
        let to = |authority: &str| {
            let field = |name: &str, value: &str| Field { name: name.into(), value: value.into() };
            let fields = [field(":method", "CONNECT"), field(":authority", authority)];
            parse_request(&fields, None).map(|request| request.authority.to_string())
        };
        for address in ["10.96.0.10:80", "[fd00::1]:80", "8.8.8.8:53"] {
            assert_eq!(to(address).as_deref(), Ok(address));
        }
        for address in ["127.0.0.1:80", "[::1]:80", "169.254.169.254:80", "0.0.0.0:80", "[::ffff:127.0.0.1]:80"] {
            assert_eq!(to(address), Err(RequestProblem::Address(AuthorityProblem::SpecialAddress)), "{address}");
        }
    }

    #[test]
    fn hardening_B34_B35_B36_B37_B38_what_telemetry_reads_never_refuses() {
        let base = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];
        let with = |extra: &[(&str, &str)]| request(&[&base, extra].concat()).unwrap();
        let clean = with(&[]);
        let kib64 = "x".repeat(64 * 1024);
        for extra in [
            ("forwarded", kib64.as_str()),
            ("baggage", &kib64),
            ("traceparent", &kib64),
            ("forwarded", "for=\""),
            ("traceparent", "00-0-0-0"),
            ("x-forwarded-network", "other"),
        ] {
            assert_eq!(with(&[extra]), clean, "{}", extra.0);
        }
        // But how often it was led on.
        for (said, read) in [("0", 0), ("3", 3), ("255", 255), ("256", 255), ("-1", 255), ("", 255), ("+1", 255)] {
            assert_eq!(with(&[("x-mesh-hops", said)]).hops, read, "{said}");
        }
        assert_eq!((with(&[("x-mesh-hops", "4"), ("x-mesh-hops", "1")]).hops, clean.hops), (4, 0));
        // Two claims are no claim.
        let twice = [("forwarded", "for=\"10.0.0.7:1\""), ("forwarded", "for=\"10.0.0.8:1\"")];
        assert_eq!(with(&twice), clean);
        assert!(with(&twice[..1]).forwarded.is_some());
    }
}
