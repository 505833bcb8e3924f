//! What is believed of a request's headers: a gateway's of one that comes from outside of the mesh, and a waypoint's. And what is said of it to those inside. Whatever only the mesh may say is taken
//! away; where a client came from is said by us, unless proxies of one's own stand in front.

use std::net::IpAddr;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use mesh_core::Identity;
use mesh_core::listener::{ClientCert, Topology};

use super::Entry;
use crate::http::fields::ENVOY;
use crate::http::{Fields, hop};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
/// Longest request id that is kept.
const LONGEST_ID: usize = 128;

/// Makes the headers of a request, which came with these fields, such as those inside may believe. Where the client is comes back.
pub fn sanitise(headers: &mut HeaderMap, has: Fields, entry: &Entry, topology: &Topology) -> IpAddr {
    if has.any(Fields::ENVOY) {
        hop::remove(headers, |name| name.starts_with(ENVOY));
    }
    let long = |id: &HeaderValue| id.len() > LONGEST_ID || !id.as_bytes().iter().all(u8::is_ascii_graphic);
    if headers.get(REQUEST_ID).is_some_and(long) {
        headers.remove(REQUEST_ID);
    }
    // Who may not even say where its client is, in a PROXY header, says it here to no effect.
    let is_believed = entry.client.is_none() || topology.believes(entry.from.ip());
    let trusted = if is_believed { topology.trusted_proxies } else { 0 };
    let behind = trusted > 0;
    // A proxy of one's own knows how the client came to it.
    if !behind || !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(entry.scheme()));
    }
    let address = client(headers, entry, trusted);
    if address == entry.from.ip() {
        headers.insert(EXTERNAL_ADDRESS, entry.written().clone());
    } else if let Ok(address) = HeaderValue::from_str(&address.to_string()) {
        headers.insert(EXTERNAL_ADDRESS, address);
    }
    append(headers, FORWARDED_FOR, entry.written());
    client_cert(headers, has, entry, topology.client_cert);
    address
}

/// How the client came, by headers that [`sanitise`] has been at: as a proxy of one's own says it, else as the connection did.
#[must_use]
pub fn scheme(headers: &HeaderMap, entry: &Entry) -> &'static str {
    let mut lines = headers.get_all(FORWARDED_PROTO).iter();
    match (lines.next().map(HeaderValue::as_bytes), lines.next()) {
        (Some(said), None) if said.eq_ignore_ascii_case(b"https") => "https",
        (Some(said), None) if said.eq_ignore_ascii_case(b"http") => "http",
        _ => entry.scheme(),
    }
}

/// The same for a request of the mesh. Its client is known by its tunnel: that it has another certificate it must not say.
pub fn of_mesh(headers: &mut HeaderMap, has: Fields) {
    without_client_cert(headers, has);
}

/// Tells the endpoint who the client has proved to be, and to whom: an element of Envoy's without a hash, for the certificate stays with the tunnel.
pub fn name_client(headers: &mut HeaderMap, own: &Identity, client: Option<&Identity>) {
    if let Some(element) = client.and_then(|client| element(own, client)) {
        headers.insert(CLIENT_CERT, element);
    }
}

/// Who a client has proved to be in a tunnel, and to whom, as `x-forwarded-client-cert` has it.
#[must_use]
pub fn element(own: &Identity, client: &Identity) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("By={own};URI={client}")).ok()
}

fn without_client_cert(headers: &mut HeaderMap, has: Fields) {
    if has.any(Fields::CLIENT_CERT) {
        headers.remove(CLIENT_CERT);
    }
}

/// Where the client is: of the addresses that proxies have added the one before the last trusted ones, else that of the connection.
fn client(headers: &HeaderMap, entry: &Entry, trusted: u32) -> IpAddr {
    let own = || entry.from.ip();
    let Some(back) = trusted.checked_sub(1) else { return own() };
    // Word by word: a client must not make what a proxy has added unreadable.
    let words = headers.get_all(FORWARDED_FOR).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let all: Vec<&str> = words.map(|word| std::str::from_utf8(word).unwrap_or_default().trim()).collect();
    let said = all.len().checked_sub(1 + back as usize).and_then(|at| all.get(at)?.parse::<IpAddr>().ok());
    said.unwrap_or_else(own)
}

fn client_cert(headers: &mut HeaderMap, has: Fields, entry: &Entry, policy: ClientCert) {
    let shown = entry.tls.as_ref().and_then(|tls| tls.client.as_ref());
    match (policy, shown) {
        (ClientCert::AlwaysForwardOnly, _) | (ClientCert::ForwardOnly, Some(_)) => {}
        (ClientCert::AppendForward, Some(element)) => append(headers, CLIENT_CERT, element),
        (ClientCert::SanitizeSet, Some(element)) => drop(headers.insert(CLIENT_CERT, element.clone())),
        (ClientCert::Sanitize, _) | (_, None) => without_client_cert(headers, has),
    }
}

/// One line, with what came before in front.
fn append(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    if !headers.contains_key(&name) {
        headers.insert(name, value.clone());
        return;
    }
    let mut line = Vec::new();
    for before in headers.get_all(&name) {
        line.extend_from_slice(before.as_bytes());
        line.extend_from_slice(b",");
    }
    line.extend_from_slice(value.as_bytes());
    if let Ok(line) = HeaderValue::from_bytes(&line) {
        headers.insert(name, line);
    }
}

#[cfg(test)]
mod tests {
    use super::super::EntryTls;
    use super::*;

    fn entry(client: Option<&str>) -> Entry {
        let tls = client.map(|client| EntryTls { client: HeaderValue::from_str(client).ok(), ..EntryTls::default() });
        Entry { tls, ..Entry::new(80, "203.0.113.9:4711".parse().unwrap()) }
    }

    fn after(lines: &[(&'static str, &'static str)], entry: &Entry, topology: &Topology) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let has = Fields::of(&headers);
        sanitise(&mut headers, has, entry, topology);
        headers
    }

    #[test]
    fn features_GW_8_what_a_client_says_of_itself_is_not_believed() {
        let said = [
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-for", "10.0.0.2, 198.51.100.7"),
            ("x-forwarded-proto", "https"),
            ("x-envoy-upstream-rq-timeout-ms", "1"),
            ("x-envoy-external-address", "10.0.0.1"),
            ("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/a/sa/b"),
            ("x-kept", "1"),
        ];
        for (trusted, external, proto) in [
            (0, "203.0.113.9", "http"),
            (1, "198.51.100.7", "https"),
            (2, "10.0.0.2", "https"),
            (9, "203.0.113.9", "https"),
        ] {
            let topology = Topology { trusted_proxies: trusted, ..Topology::default() };
            let headers = after(&said, &entry(None), &topology);
            let said = |name: &str| headers[name].to_str().unwrap();
            assert_eq!(headers["x-forwarded-for"], "10.0.0.1,10.0.0.2, 198.51.100.7,203.0.113.9");
            assert_eq!((said("x-forwarded-proto"), said("x-envoy-external-address")), (proto, external), "{trusted}");
            assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
            assert!(!headers.contains_key("x-envoy-upstream-rq-timeout-ms"));
            assert!(!headers.contains_key("x-forwarded-client-cert") && headers.contains_key("x-kept"));
        }
    }

    #[test]
    fn features_GW_8_a_client_s_certificate_goes_on_as_is_asked_for() {
        let came = [("x-forwarded-client-cert", "Hash=1")];
        for (policy, with, without) in [
            (ClientCert::Sanitize, None, None),
            (ClientCert::SanitizeSet, Some("Hash=2"), None),
            (ClientCert::AppendForward, Some("Hash=1,Hash=2"), None),
            (ClientCert::ForwardOnly, Some("Hash=1"), None),
            (ClientCert::AlwaysForwardOnly, Some("Hash=1"), Some("Hash=1")),
        ] {
            let topology = Topology { client_cert: policy, ..Topology::default() };
            let line = |entry: &Entry| {
                let headers = after(&came, entry, &topology);
                headers.get("x-forwarded-client-cert").map(|value| value.to_str().unwrap().to_owned())
            };
            assert_eq!(line(&entry(Some("Hash=2"))).as_deref(), with, "{policy:?}");
            assert_eq!(line(&entry(None)).as_deref(), without, "{policy:?}");
        }
    }

    #[test]
    fn hardening_B166_a_client_of_the_mesh_says_nothing_of_its_certificate() {
        let mut headers = HeaderMap::new();
        headers.append(CLIENT_CERT, HeaderValue::from_static("URI=spiffe://cluster.local/ns/a/sa/admin"));
        headers.append(CLIENT_CERT, HeaderValue::from_static("Hash=1"));
        headers.append(FORWARDED_FOR, HeaderValue::from_static("10.0.0.1"));
        let has = Fields::of(&headers);
        of_mesh(&mut headers, has);
        assert!(!headers.contains_key(CLIENT_CERT) && headers.contains_key(FORWARDED_FOR));
    }

    #[test]
    fn hardening_B166_a_request_id_is_kept_while_it_is_short() {
        const LONG: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
        let kept = |id| after(&[("x-request-id", id)], &entry(None), &Topology::default()).contains_key("x-request-id");
        assert!(kept("7b1f2c3d") && !kept("a b") && !kept(LONG));
    }
}
