//! A request made unambiguous before anything looks at it: one host, one spelling of the path, no fields of the client's connection, none that are ours.

use std::net::{IpAddr, Ipv4Addr};

use http::header::{CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderValue};
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, Method, Uri, Version};
use hyper::ext::Protocol;
use mesh_core::l7::Authority;
use mesh_core::l7::headers::HOPS;
use mesh_core::l7::path::{Spelling, normalise};
use rand::Rng;

use super::reply::Failure;
use crate::http::Fields;
use crate::http::fields::MESH;
use crate::http::grpc::{self, Call};
use crate::http::hop::{self, Said};
use crate::settings::Settings;

/// The longest method, in bytes. The longest that is registered has 17; what is longer is no method but something to fill logs and policies with.
const METHOD: usize = 64;
/// The longest id of a request that is believed, in bytes.
const ID: usize = 128;

/// What was read.
pub struct Asked {
    /// The host that is asked for.
    pub authority: Authority,
    /// What the client's connection was told.
    pub said: Said,
    /// What it is of gRPC.
    pub call: Call,
    /// Whether it opens a WebSocket inside HTTP/2 (RFC 8441): the agreement is 200 there, and no field says so.
    pub socket: bool,
    /// What it had when it came.
    pub has: Fields,
    /// The address that it came from, as far as those before a gateway are believed; nobody's until they have been asked.
    pub remote: IpAddr,
}

/// Reads a request and leaves of it what goes on: the target is a path and a query, the host is not among the headers.
pub fn read(parts: &mut Parts, settings: &Settings, spelling: Spelling) -> Result<Asked, Failure> {
    let socket = parts.version == Version::HTTP_2 && parts.method == Method::CONNECT && {
        let protocol = parts.extensions.remove::<Protocol>();
        protocol.is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case("websocket"))
    };
    // TRACE gives back what was sent, and with it what proxies have added.
    if parts.method == Method::TRACE || (parts.method == Method::CONNECT && !socket) {
        return Err(Failure::METHOD);
    }
    if parts.method.as_str().len() > METHOD {
        return Err(Failure::BAD_REQUEST);
    }
    let authority = authority(parts)?;
    let target = parts.uri.path_and_query().ok_or(Failure::BAD_REQUEST)?;
    if socket {
        // To rules and applications it is what it is in HTTP/1.1.
        parts.method = Method::GET;
    }
    let plain = normalise(&parts.method, target.as_str(), spelling).map_err(|_| Failure::BAD_REQUEST)?;
    let changed = match plain {
        std::borrow::Cow::Borrowed(_) => target.clone(),
        std::borrow::Cow::Owned(text) => PathAndQuery::try_from(text).map_err(|_| Failure::BAD_REQUEST)?,
    };
    parts.uri = Uri::from(changed);
    parts.headers.remove(HOST);
    let has = Fields::of(&parts.headers);
    if has.any(Fields::COOKIE) {
        join_cookies(&mut parts.headers);
    }
    // We ask for the body ourselves when we begin to read it.
    let is_unknown = |expected: HeaderValue| !expected.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if has.any(Fields::EXPECT) && parts.headers.remove(EXPECT).is_some_and(is_unknown) {
        return Err(Failure::EXPECTATION);
    }
    fields(&mut parts.headers, has, settings)?;
    let mut said = hop::strip(&mut parts.headers, has);
    if parts.version != Version::HTTP_11 {
        said.upgrade = socket.then(|| HeaderValue::from_static("websocket"));
    }
    let call = Call::of(&parts.headers);
    if call.is_any() && grpc::timeout(&parts.headers).is_err() {
        return Err(Failure::BAD_REQUEST);
    }
    Ok(Asked { authority, said, call, socket, has, remote: IpAddr::V4(Ipv4Addr::UNSPECIFIED) })
}

/// Looks at all fields: those that could be read in two ways are refused, and those that only the mesh may set are taken away.
fn fields(headers: &mut HeaderMap, has: Fields, settings: &Settings) -> Result<(), Failure> {
    let passed = |hops: &HeaderValue| hops.to_str().ok().and_then(|hops| hops.parse().ok()).unwrap_or(u8::MAX);
    let hops = if has.any(Fields::MESH) { headers.get(HOPS).map_or(0, passed) } else { 0 };
    if hops >= settings.hops {
        return Err(Failure::LOOP);
    }
    if has.any(Fields::LENGTH) && headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err(Failure::BAD_REQUEST);
    }
    if has.any(Fields::UNDERSCORE) && !settings.underscores {
        return Err(Failure::BAD_REQUEST);
    }
    if has.any(Fields::MESH) {
        hop::remove(headers, |name| name.starts_with(MESH));
    }
    headers.insert(HOPS, HeaderValue::from(u16::from(hops) + 1));
    Ok(())
}

/// HTTP/2 lets clients send each cookie on a line of its own, and HTTP/1.1 has one line (RFC 9113 8.2.3): rules, policies and endpoints see the same whatever the client speaks.
fn join_cookies(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(COOKIE).iter();
    let (Some(_), Some(_)) = (lines.next(), lines.next()) else { return };
    let lines: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // What stood in values may stand between two of them.
    if let Ok(mut joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        joined.set_sensitive(true);
        headers.insert(COOKIE, joined);
    }
}

/// Whether an id can be believed: it is kept for long and shown to people.
pub fn is_good_id(id: &HeaderValue) -> bool {
    !id.is_empty() && id.len() <= ID && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

/// Whom the request is for, if it says that once.
fn authority(parts: &Parts) -> Result<Authority, Failure> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    let written = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    if parts.uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
        return Err(Failure::BAD_REQUEST);
    }
    let text = match (written, host) {
        _ if more.is_some() => return Err(Failure::BAD_REQUEST),
        // In HTTP/1.1 an absolute target counts, and the header does not; in HTTP/2 both count, so they must agree.
        (Some(written), Some(host)) if parts.version == Version::HTTP_2 && written != host.as_bytes() => {
            return Err(Failure::BAD_REQUEST);
        }
        // HTTP/1.1 wants the header all the same.
        (Some(_), None) if parts.version == Version::HTTP_11 => return Err(Failure::BAD_REQUEST),
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
        let asked =
            read(&mut parts, &Settings::default(), Spelling::Base).map_err(|failure| failure.status.as_u16())?;
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
            (h1, "http://b/x?q", &[], Err(400)),
            (h1, "ftp://b/x?q", &["b"], Err(400)),
            (h1, "http://user@b/", &["b"], Err(400)),
            (h1, "a:80", &["a"], Err(400)),
            (h2, "http://b/x", &["b", "b"], Err(400)),
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
        assert_eq!(ask(h1, "TRACE", "/", &["a"]), Err(405));
        assert_eq!(ask(h1, "OPTIONS", "*", &["a"]), Ok("a *".to_owned()));
    }

    #[test]
    fn hardening_B166_what_only_the_mesh_sets_is_not_believed() {
        let fields = [("X-Mesh-Identity", "admin"), ("x-mesh-hops", "2"), ("x-forwarded-for", "10.0.0.1")];
        let mut request = Request::builder().uri("/").header(HOST, "a");
        for (name, value) in fields {
            request = request.header(name, value);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        read(&mut parts, &Settings::default(), Spelling::Base).unwrap_or_else(|_| panic!("refused"));
        let mut left: Vec<_> =
            parts.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        left.sort_unstable();
        assert_eq!(left, [("x-forwarded-for", "10.0.0.1"), ("x-mesh-hops", "3")]);
        for (id, good) in
            [("a-1", true), ("", false), ("a b", false), (&*"a".repeat(128), true), (&"a".repeat(129), false)]
        {
            assert_eq!(is_good_id(&HeaderValue::from_str(id).unwrap()), good, "{id}");
        }
    }

    #[test]
    fn fields_that_are_refused() {
        for (name, value, expected) in [
            ("x_user", "1", 400),
            ("expect", "x", 417),
            ("x-mesh-hops", "7", 200),
            ("x-mesh-hops", "8", 508),
            ("x-mesh-hops", "-1", 508),
            ("x-mesh-hops", "99999", 508),
        ] {
            let request = Request::builder().uri("/").header(HOST, "a").header(name, value);
            let mut parts = request.body(()).unwrap().into_parts().0;
            let read = read(&mut parts, &Settings::default(), Spelling::Base);
            assert_eq!(read.err().map_or(200, |failure| failure.status.as_u16()), expected, "{name}: {value}");
        }
    }

    #[test]
    fn hardening_B173_a_socket_in_http_2_is_a_get_and_other_tunnels_are_refused() {
        let ask = |protocol: Option<&'static str>| {
            let mut request = Request::builder().method("CONNECT").version(Version::HTTP_2).uri("http://a/chat");
            if let Some(protocol) = protocol {
                request = request.extension(Protocol::from_static(protocol));
            }
            let mut parts = request.body(()).unwrap().into_parts().0;
            read(&mut parts, &Settings::default(), Spelling::Base)
                .map(|asked| (parts.method, asked.said.upgrade, asked.socket))
        };
        let agreed = (Method::GET, Some(HeaderValue::from_static("websocket")), true);
        assert_eq!(ask(Some("websocket")).ok(), Some(agreed));
        for protocol in [None, Some("connect-udp"), Some("")] {
            assert_eq!(ask(protocol).err(), Some(Failure::METHOD), "{protocol:?}");
        }
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
