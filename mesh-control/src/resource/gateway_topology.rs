//! What stands before gateways, in Istio's words and one of our own (`proxyProtocol.trustedPeers`): `gatewayTopology` of the mesh settings' `defaultConfig`, and of the annotation `proxy.istio.io/config` that a
//! Gateway gives its pods, or that stands on these. What they mean together is `mesh_core::listener::Topology`.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_core::listener::{ClientCert, Topology};
use serde::Deserialize;

use super::Labels;
use super::strict::{self, Unknown};
use crate::diagnosis::{Problem, Severity};
use crate::yaml::node::{self, Node as Tree, Value};
use crate::yaml::stack;

/// Settings of one proxy, as a text of YAML.
pub const ANNOTATION: &str = "proxy.istio.io/config";
/// The field of such settings.
const FIELD: &str = "gatewayTopology";
/// Bytes of the annotation.
const LONGEST: usize = 64 << 10;
/// Proxies in front; gateways take no more.
const MOST_PROXIES: u32 = 64;
/// Ranges of those that may send a PROXY header.
const MOST_PEERS: usize = 256;

/// What somebody says; what is not said somebody else may say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayTopology {
    /// How many proxies of one's own add to `x-forwarded-for`.
    pub num_trusted_proxies: Option<u32>,
    /// What becomes of `x-forwarded-client-cert`.
    pub forward_client_cert_details: Option<ClientCertDetails>,
    /// Connections begin with a PROXY header.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// It is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyProtocol {
    /// Whose headers are believed, by addresses and ranges; others are closed. Whoever connects if it is not said, as in Istio, which has no such field.
    pub trusted_peers: Option<Vec<String>>,
}

impl ProxyProtocol {
    /// The ranges. One that cannot be read is nobody's.
    fn peers(&self) -> Option<Vec<IpNet>> {
        Some(self.trusted_peers.as_ref()?.iter().filter_map(|text| range(text)).collect())
    }

    /// This, and where it does not say whom it believes the other.
    fn or(own: Option<&Self>, other: Option<&Self>) -> Option<Self> {
        let peers = |one: Option<&Self>| one.and_then(|one| one.trusted_peers.clone());
        own.or(other).map(|_| Self { trusted_peers: peers(own).or_else(|| peers(other)) })
    }

    /// Without a header nobody is let in where any asks for one, and it is believed of those whom both believe.
    fn least(own: Option<&Self>, other: Option<&Self>) -> Option<Self> {
        let peers = |one: Option<&Self>| one.and_then(|one| one.trusted_peers.clone());
        let trusted_peers = match (peers(own), peers(other)) {
            (Some(mut one), Some(two)) => {
                one.retain(|peer| two.contains(peer));
                Some(one)
            }
            (one, two) => one.or(two),
        };
        own.or(other).map(|_| Self { trusted_peers })
    }
}

fn range(text: &str) -> Option<IpNet> {
    let range = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
    Some(range.trunc())
}

/// What becomes of `x-forwarded-client-cert`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum ClientCertDetails {
    Undefined,
    Sanitize,
    ForwardOnly,
    AppendForward,
    SanitizeSet,
    AlwaysForwardOnly,
}

impl ClientCertDetails {
    fn of(self) -> Option<ClientCert> {
        match self {
            ClientCertDetails::Undefined => None,
            ClientCertDetails::Sanitize => Some(ClientCert::Sanitize),
            ClientCertDetails::ForwardOnly => Some(ClientCert::ForwardOnly),
            ClientCertDetails::AppendForward => Some(ClientCert::AppendForward),
            ClientCertDetails::SanitizeSet => Some(ClientCert::SanitizeSet),
            ClientCertDetails::AlwaysForwardOnly => Some(ClientCert::AlwaysForwardOnly),
        }
    }
}

impl GatewayTopology {
    /// Of the settings of a proxy, which stand at `at`.
    pub fn read(proxy: &Tree, at: &str, problems: &mut Vec<Problem>) -> Self {
        let Some(tree) = proxy.get(FIELD) else { return Self::default() };
        let at = format!("{at}.{FIELD}");
        let known = problems.len();
        let read: Option<Self> = strict::read(tree, &at, Unknown::Either, problems);
        // What is not understood here may have been meant to keep somebody from saying who he is.
        let within = format!("{at}.proxyProtocol.");
        problems[known..]
            .iter_mut()
            .filter(|problem| problem.field.starts_with(&within))
            .for_each(|problem| problem.severity = Severity::Error);
        let read = read.unwrap_or_default();
        if read.num_trusted_proxies.is_some_and(|count| count > MOST_PROXIES) {
            let field = format!("{at}.numTrustedProxies");
            problems.push(Problem::error(field, format!("more than {MOST_PROXIES} proxies")));
        }
        if let Some(peers) = read.proxy_protocol.as_ref().and_then(|said| said.trusted_peers.as_ref()) {
            let field = format!("{at}.proxyProtocol.trustedPeers");
            if peers.is_empty() {
                let problem =
                    Problem::error(field.clone(), "nobody may send a PROXY header, and without one nobody gets in");
                problems
                    .push(problem.help("write addresses or ranges, or delete the field: then whoever connects may"));
            }
            if peers.len() > MOST_PEERS {
                problems.push(Problem::error(field.clone(), format!("more than {MOST_PEERS} ranges")));
            }
            let wrong = peers.iter().enumerate().filter(|(_, text)| range(text).is_none());
            problems.extend(wrong.map(|(index, text)| {
                let problem =
                    Problem::error(format!("{field}[{index}]"), format!("{text:?} is neither an address nor a range"));
                problem.help("write it as 10.0.0.0/8")
            }));
        }
        read
    }

    /// Of the annotations of an object, which stand at `at`. What is wrong with them is an error.
    pub fn annotated(annotations: &Labels, at: &str, problems: &mut Vec<Problem>) -> Self {
        let Some(text) = annotations.get(ANNOTATION).filter(|text| !text.trim().is_empty()) else {
            return Self::default();
        };
        let at = format!("{at}[\"{ANNOTATION}\"]");
        let mut wrong = |why: String| {
            problems.push(
                Problem::error(at.clone(), why)
                    .help("write a text of YAML, as `gatewayTopology: {numTrustedProxies: 1}`"),
            );
            Self::default()
        };
        if text.len() > LONGEST {
            return wrong(format!("longer than {LONGEST} bytes"));
        }
        let tree = match stack::with_room(|| node::parse(text)) {
            Ok(Ok(tree)) => tree,
            Ok(Err((message, span))) => {
                return wrong(format!("not valid YAML, line {} of the text: {message}", span.line));
            }
            Err(why) => return wrong(why.to_string()),
        };
        let Value::Map(entries) = &tree.value else {
            return wrong(format!("expected a mapping, found {}", tree.value.kind()));
        };
        for entry in entries.iter().filter(|entry| entry.key != FIELD) {
            let message = format!("{} is not read of this annotation: it has no effect", entry.key);
            problems.push(Problem::warning(format!("{at}.{}", entry.key), message));
        }
        Self::read(&tree, &at, problems)
    }

    /// This, and where it says nothing the other.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        let said = |details: Option<ClientCertDetails>| details.filter(|details| details.of().is_some());
        Self {
            num_trusted_proxies: self.num_trusted_proxies.or(other.num_trusted_proxies),
            forward_client_cert_details: said(self.forward_client_cert_details).or(other.forward_client_cert_details),
            proxy_protocol: ProxyProtocol::or(self.proxy_protocol.as_ref(), other.proxy_protocol.as_ref()),
        }
    }

    /// What both say, and of what they say otherwise what is believed least.
    #[must_use]
    pub fn least(&self, other: &Self) -> Self {
        let (one, two) = (self.num_trusted_proxies, other.num_trusted_proxies);
        let details = [self.forward_client_cert_details, other.forward_client_cert_details];
        let agreed = details[0] == details[1];
        Self {
            num_trusted_proxies: if one == two { one } else { Some(one.unwrap_or(0).min(two.unwrap_or(0))) },
            forward_client_cert_details: if agreed { details[0] } else { Some(ClientCertDetails::Sanitize) },
            proxy_protocol: ProxyProtocol::least(self.proxy_protocol.as_ref(), other.proxy_protocol.as_ref()),
        }
    }

    /// What a gateway goes by.
    #[must_use]
    pub fn topology(&self) -> Topology {
        Topology {
            trusted_proxies: self.num_trusted_proxies.unwrap_or_default(),
            proxy_protocol: self.proxy_protocol.is_some(),
            proxy_peers: self.proxy_protocol.as_ref().and_then(ProxyProtocol::peers),
            client_cert: self.forward_client_cert_details.and_then(ClientCertDetails::of).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotated(text: &str) -> (GatewayTopology, Vec<String>) {
        let mut problems = Vec::new();
        let annotations = [(ANNOTATION.to_owned(), text.to_owned())].into();
        let read = GatewayTopology::annotated(&annotations, "a", &mut problems);
        let said = |problem: &Problem| {
            format!(
                "{} {}: {}",
                problem.severity,
                problem.field.trim_start_matches("a[\"proxy.istio.io/config\"]"),
                problem.message
            )
        };
        (read, problems.iter().map(said).collect())
    }

    #[test]
    fn features_GW_8_an_annotation_says_what_stands_before_a_gateway() {
        let topology = |trusted_proxies, proxy_protocol, client_cert| Topology {
            trusted_proxies,
            proxy_protocol,
            proxy_peers: None,
            client_cert,
        };
        let usual = ClientCert::SanitizeSet;
        for (text, expected) in [
            ("", topology(0, false, usual)),
            ("gatewayTopology: {}", topology(0, false, usual)),
            (
                "gatewayTopology:\n  numTrustedProxies: 2\n  forwardClientCertDetails: APPEND_FORWARD\n",
                topology(2, false, ClientCert::AppendForward),
            ),
            ("{\"gatewayTopology\": {\"proxyProtocol\": {}}}", topology(0, true, usual)),
            ("gatewayTopology: {forwardClientCertDetails: SANITIZE}", topology(0, false, ClientCert::Sanitize)),
            (
                "gatewayTopology: {forwardClientCertDetails: ALWAYS_FORWARD_ONLY}",
                topology(0, false, ClientCert::AlwaysForwardOnly),
            ),
            ("gatewayTopology: {forwardClientCertDetails: UNDEFINED}", topology(0, false, usual)),
        ] {
            let (read, said) = annotated(text);
            assert_eq!((read.topology(), said), (expected, vec![]), "{text}");
        }
    }

    #[test]
    fn what_an_annotation_cannot_mean_is_told() {
        for (text, expected) in [
            (
                "gatewayTopology: {numTrustedProxies: -1}",
                "error .gatewayTopology.numTrustedProxies: -1 is out of range",
            ),
            (
                "gatewayTopology: {numTrustedProxies: 65}",
                "error .gatewayTopology.numTrustedProxies: more than 64 proxies",
            ),
            (
                "gatewayTopology: {numTrustedProxies: two}",
                "error .gatewayTopology.numTrustedProxies: expected a whole number, found a string",
            ),
            (
                "gatewayTopology: {numTrustedProxy: 2}",
                "error .gatewayTopology.numTrustedProxy!: unknown field \"numTrustedProxy\"",
            ),
            (
                "gatewayTopology: {forwardClientCertDetails: KEEP}",
                "error .gatewayTopology.forwardClientCertDetails: unknown value \"KEEP\"",
            ),
            (
                "gatewayTopology: {proxyProtocol: {trustedPeers: []}}",
                "error .gatewayTopology.proxyProtocol.trustedPeers: nobody may send a PROXY header, and without one nobody gets in",
            ),
            (
                "gatewayTopology: {proxyProtocol: {trustedPeers: [10.0.0.0/8, lb]}}",
                "error .gatewayTopology.proxyProtocol.trustedPeers[1]: \"lb\" is neither an address nor a range",
            ),
            (
                "gatewayTopology: {proxyProtocol: {trustedPeers: 10.0.0.0/8}}",
                "error .gatewayTopology.proxyProtocol.trustedPeers: expected a list, found a string",
            ),
            (
                "gatewayTopology: {proxyProtocol: {trusted: []}}",
                "error .gatewayTopology.proxyProtocol.trusted!: unknown field \"trusted\"",
            ),
            (
                "gatewayTopology: {proxyProtocol: true}",
                "error .gatewayTopology.proxyProtocol: expected a mapping, found a boolean",
            ),
            ("gatewayTopology: 1", "error .gatewayTopology: expected a mapping, found a number"),
            ("- a", "error : expected a mapping, found a list"),
            ("concurrency: 2", "warning .concurrency: concurrency is not read of this annotation: it has no effect"),
        ] {
            assert_eq!(annotated(text).1, [expected], "{text}");
        }
        for text in ["a: [\n", &"[".repeat(50_000), &"a".repeat(LONGEST + 1)] {
            let (read, said) = annotated(text);
            assert!(
                read == GatewayTopology::default() && said.len() == 1 && said[0].starts_with("error : "),
                "{said:?}"
            );
        }
    }

    #[test]
    fn whose_header_is_believed() {
        let read = |text: &str| annotated(&format!("gatewayTopology: {{{text}}}")).0;
        let shown = |topology: &GatewayTopology| match topology.topology() {
            Topology { proxy_protocol: false, .. } => "no header".to_owned(),
            Topology { proxy_peers: None, .. } => "anybody's".to_owned(),
            Topology { proxy_peers: Some(peers), .. } => format!("{peers:?}"),
        };
        let of = |peers: &str| format!("proxyProtocol: {{trustedPeers: [{peers}]}}");
        let (any, one, two) = ("proxyProtocol: {}".to_owned(), of("10.1.2.3/8"), of("192.0.2.7, 10.1.2.3/8"));
        let bad = of("lb");
        // Of what is said, and the mesh says; and of two pods.
        for (own, other, or, least) in [
            ("", "", "no header", "no header"),
            (&*any, "", "anybody's", "anybody's"),
            ("", &any, "anybody's", "anybody's"),
            (&one, "", "[10.0.0.0/8]", "[10.0.0.0/8]"),
            (&one, &any, "[10.0.0.0/8]", "[10.0.0.0/8]"),
            (&any, &one, "[10.0.0.0/8]", "[10.0.0.0/8]"),
            (&two, &one, "[192.0.2.7/32, 10.0.0.0/8]", "[10.0.0.0/8]"),
            // Whatever cannot be read trusts nobody.
            (&bad, &one, "[]", "[]"),
        ] {
            let (own, other) = (read(own), read(other));
            assert_eq!((&*shown(&own.or(&other)), &*shown(&own.least(&other))), (or, least), "{own:?} {other:?}");
        }
    }

    #[test]
    fn what_one_does_not_say_another_does_field_by_field() {
        let read = |text: &str| annotated(&format!("gatewayTopology: {{{text}}}")).0;
        let mesh = read("numTrustedProxies: 1, proxyProtocol: {}, forwardClientCertDetails: SANITIZE");
        for (own, expected) in [
            ("", (1, true, ClientCert::Sanitize)),
            ("numTrustedProxies: 0", (0, true, ClientCert::Sanitize)),
            ("forwardClientCertDetails: FORWARD_ONLY", (1, true, ClientCert::ForwardOnly)),
            ("forwardClientCertDetails: UNDEFINED", (1, true, ClientCert::Sanitize)),
        ] {
            let both = read(own).or(&mesh).topology();
            assert_eq!((both.trusted_proxies, both.proxy_protocol, both.client_cert), expected, "{own}");
        }
    }
}
