//! What of a request decides its endpoint (`consistentHash`), as a number; and the cookie that a client gets that has none.

use std::net::IpAddr;

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use rand::Rng;

use super::hash::hash;
use crate::l7::cluster::HashKey;
use crate::l7::query;

/// A request, as far as it may decide.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its query.
    pub query: Option<&'a str>,
    /// The client's address.
    pub source: IpAddr,
}

/// The number, if the request says anything; and what the answer sets, if the client is to say it from now on.
pub fn key(wanted: &HashKey, said: &Said<'_>, rng: &mut impl Rng) -> (Option<u64>, Option<HeaderValue>) {
    match wanted {
        HashKey::Header(name) => (said.headers.get(name.as_str()).map(|value| hash(value.as_bytes())), None),
        HashKey::Source => {
            let number = match said.source.to_canonical() {
                IpAddr::V4(ip) => hash(&ip.octets()),
                IpAddr::V6(ip) => hash(&ip.octets()),
            };
            (Some(number), None)
        }
        HashKey::Parameter(name) => {
            let value = said.query.and_then(|query| query::first(query, name));
            (value.map(|value| hash(&value.plain())), None)
        }
        HashKey::Cookie { name, path, lasts, attributes } => {
            if let Some(value) = cookie(said.headers, name) {
                return (Some(hash(value)), None);
            }
            let Some(lasts) = lasts else { return (None, None) };
            let value = format!("{:016x}", rng.random::<u64>());
            let mut text = format!("{name}=\"{value}\"");
            if !lasts.is_zero() {
                text.push_str(&format!("; Max-Age={}", lasts.as_secs()));
            }
            if let Some(path) = path {
                text.push_str(&format!("; Path={path}"));
            }
            for (name, value) in attributes {
                match value {
                    Some(value) => text.push_str(&format!("; {name}={value}")),
                    None => text.push_str(&format!("; {name}")),
                }
            }
            text.push_str("; HttpOnly");
            (Some(hash(value.as_bytes())), HeaderValue::try_from(text).ok())
        }
    }
}

/// The value of a cookie, without the quotes that it may stand in.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    let value =
        pairs.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    let quoted = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    Some(quoted.unwrap_or(value)).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    fn ask(wanted: &HashKey, headers: &[(&str, &str)], query: Option<&str>) -> (Option<u64>, Option<String>) {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap()))
            .collect();
        let said = Said { headers: &headers, query, source: "::ffff:10.0.0.1".parse().unwrap() };
        let (number, cookie) = key(wanted, &said, &mut SmallRng::seed_from_u64(1));
        (number, cookie.map(|cookie| cookie.to_str().unwrap().to_owned()))
    }

    #[test]
    fn features_DR_5_what_of_a_request_is_the_same() {
        let ann = Some(hash(b"ann"));
        let header = HashKey::Header("x-user".into());
        let parameter = HashKey::Parameter("user".into());
        let cookie = HashKey::Cookie { name: "user".into(), path: None, lasts: None, attributes: vec![] };
        for (wanted, headers, query, expected) in [
            (&header, &[("x-user", "ann"), ("x-user", "bob")][..], None, ann),
            (&header, &[("x-other", "ann")], None, None),
            (&parameter, &[], Some("a=b&user=ann&user=bob"), ann),
            (&parameter, &[], Some("a=b"), None),
            (&parameter, &[], None, None),
            (&cookie, &[("cookie", "xuser=bob; user=ann"), ("cookie", "user=eve")], None, ann),
            (&cookie, &[("cookie", "a=b"), ("cookie", "user=\"ann\"")], None, ann),
            (&cookie, &[("cookie", "user")], None, None),
            (&cookie, &[("cookie", "user=")], None, None),
            (&HashKey::Source, &[], None, Some(hash(&[10, 0, 0, 1]))),
        ] {
            assert_eq!(ask(wanted, headers, query), (expected, None), "{wanted:?} {headers:?} {query:?}");
        }
    }

    #[test]
    fn features_DR_5_a_client_without_the_cookie_gets_one() {
        let of = |lasts, path: Option<&str>, attributes| HashKey::Cookie {
            name: "user".into(),
            path: path.map(Into::into),
            lasts: Some(lasts),
            attributes,
        };
        let strict = vec![("SameSite".into(), Some("Strict".into())), ("Secure".into(), None)];
        for (wanted, rest) in [
            (of(Duration::from_secs(60), Some("/shop"), vec![]), "; Max-Age=60; Path=/shop; HttpOnly"),
            (of(Duration::ZERO, None, strict), "; SameSite=Strict; Secure; HttpOnly"),
        ] {
            let (number, made) = ask(&wanted, &[("cookie", "other=1")], None);
            let made = made.unwrap();
            let value = made.strip_suffix(rest).unwrap().strip_prefix("user=").unwrap();
            assert_eq!(value.len(), 18, "{made}");
            // The client's next request says the same.
            assert_eq!(ask(&wanted, &[("cookie", &format!("user={value}"))], None), (number, None));
        }
    }
}
