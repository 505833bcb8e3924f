//! A request made unambiguous before anything looks at it: one host, one spelling of the path, no fields of the client's connection.

use http::header::{EXPECT, HOST, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Uri, Version};
use mesh_core::l7::Authority;
use mesh_core::l7::path::{Spelling, normalise};
use rand::Rng;

use super::reply::Failure;
use crate::http::hop::{self, Said};

/// What was read.
pub struct Asked {
    /// The host that is asked for.
    pub authority: Authority,
    /// What the client's connection was told.
    pub said: Said,
    /// Whether it is gRPC.
    pub grpc: bool,
}

/// Reads a request and leaves of it what goes on: the target is a path and a query, the host is not among the headers.
pub fn read(parts: &mut Parts, spelling: Spelling) -> Result<Asked, Failure> {
    if parts.method == Method::CONNECT {
        return Err(Failure::METHOD);
    }
    let authority = authority(parts)?;
    let target = parts.uri.path_and_query().ok_or(Failure::BAD_REQUEST)?;
    let plain = normalise(&parts.method, target.as_str(), spelling).map_err(|_| Failure::BAD_REQUEST)?;
    let changed = match plain {
        std::borrow::Cow::Borrowed(_) => target.clone(),
        std::borrow::Cow::Owned(text) => PathAndQuery::try_from(text).map_err(|_| Failure::BAD_REQUEST)?,
    };
    parts.uri = Uri::from(changed);
    parts.headers.remove(HOST);
    // We ask for the body ourselves when we begin to read it.
    parts.headers.remove(EXPECT);
    let said = hop::strip(&mut parts.headers);
    let content_type = parts.headers.get(http::header::CONTENT_TYPE);
    let grpc = content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    Ok(Asked { authority, said, grpc })
}

/// Whom the request is for, if it says that once.
fn authority(parts: &Parts) -> Result<Authority, Failure> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    let written = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    let text = match (written, host) {
        _ if more.is_some() => return Err(Failure::BAD_REQUEST),
        // In HTTP/1.1 an absolute target counts, and the header does not; in HTTP/2 both count, so they must agree.
        (Some(written), Some(host)) if parts.version == Version::HTTP_2 && written != host.as_bytes() => {
            return Err(Failure::BAD_REQUEST);
        }
        (Some(written), _) => written,
        (None, Some(host)) => host.as_bytes(),
        (None, None) => return Err(Failure::BAD_REQUEST),
    };
    let text = std::str::from_utf8(text).map_err(|_| Failure::BAD_REQUEST)?;
    Authority::parse(text).map_err(|_| Failure::BAD_REQUEST)
}

/// A request id in the form of a random UUID.
pub fn request_id(rng: &mut impl Rng) -> HeaderValue {
    let mut bytes = [0; 16];
    rng.fill_bytes(&mut bytes);
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (index, byte) in bytes.iter().enumerate() {
        at += usize::from(matches!(index, 4 | 6 | 8 | 10));
        text[at] = DIGITS[usize::from(byte >> 4)];
        text[at + 1] = DIGITS[usize::from(byte & 15)];
        at += 2;
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use http::Request;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    fn ask(version: Version, method: &str, target: &str, hosts: &[&str]) -> Result<String, u16> {
        let mut request = Request::builder().version(version).method(method).uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        let asked = read(&mut parts, Spelling::Base).map_err(|failure| failure.status.as_u16())?;
        assert!(!parts.headers.contains_key(HOST) && parts.uri.authority().is_none());
        Ok(format!("{} {}", asked.authority.as_str(), parts.uri))
    }

    #[test]
    fn a_request_says_once_whom_it_is_for() {
        let (h1, h2) = (Version::HTTP_11, Version::HTTP_2);
        for (version, target, hosts, expected) in [
            (h1, "/a", &["Shop.example:80"][..], Ok("shop.example:80 /a")),
            (h1, "/a", &[], Err(400)),
            (h1, "/a", &["a", "a"], Err(400)),
            (h1, "/a", &["a,b"], Err(400)),
            (h1, "/a", &["user@a"], Err(400)),
            (h1, "http://b/x?q", &["a"], Ok("b /x?q")),
            (h2, "http://b/x", &["a"], Err(400)),
            (h2, "http://b/x", &["b"], Ok("b /x")),
            (h1, "/a/../b/%2e%2e/c", &["a"], Ok("a /c")),
            (h1, "/a/..%2fb", &["a"], Err(400)),
            (h1, "/a%00", &["a"], Err(400)),
            (h1, "/%61", &["a"], Ok("a /a")),
        ] {
            assert_eq!(ask(version, "GET", target, hosts), expected.map(str::to_owned), "{target} {hosts:?}");
        }
        assert_eq!(ask(h1, "CONNECT", "a:80", &["a"]), Err(405));
        assert_eq!(ask(h1, "OPTIONS", "*", &["a"]), Ok("a *".to_owned()));
    }

    #[test]
    fn a_request_id_is_a_uuid() {
        let id = request_id(&mut SmallRng::seed_from_u64(1));
        let id = id.to_str().unwrap();
        let shape: String = id.chars().map(|c| if c.is_ascii_hexdigit() { 'x' } else { c }).collect();
        assert_eq!(shape, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx");
        assert_eq!((&id[14..15], "89ab".contains(&id[19..20])), ("4", true));
    }
}
