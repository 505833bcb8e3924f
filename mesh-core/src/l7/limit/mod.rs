//! Rate limits: which requests they count, by what, and how many there may be. The control plane makes them of RateLimits, waypoints ask them for each request:
//! buckets of their own (`rate`), or a service that counts for many.

mod rate;

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use arcstr::ArcStr;
use http::HeaderName;

pub use rate::{Bucket, Rate, Verdict};

use super::ClusterKey;
use super::policy::{Rule, Subject};
use super::security::Target;
use crate::NamespacedName;
use crate::l7::Token;

/// How long a service that counts may take where nothing is said, as in Envoy.
pub const USUAL_TIMEOUT: Duration = Duration::from_millis(20);

/// What is said of some requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// `namespace/name`
    pub name: NamespacedName,
    /// Which requests it is about.
    pub target: Target,
    /// Counted by each waypoint for itself; all that mean a request must have room for it.
    pub local: Vec<Local>,
    /// Counted by a service.
    pub global: Option<Global>,
}

/// Counted by each waypoint for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Which requests: those that any of them matches, or all if there are none.
    pub rules: Vec<Rule>,
    /// What requests have in common that are counted together; all are if nothing is said.
    pub by: Vec<Part>,
    /// How many there may be.
    pub rate: Rate,
}

/// Counted by a service that speaks Envoy's rate-limit protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Global {
    /// Whose limits are meant.
    pub domain: ArcStr,
    /// Where the service is; `None` if nobody knows.
    pub place: Option<ClusterKey>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Without an answer the request is let through.
    pub fail_open: bool,
    /// What the service is told of a request.
    pub descriptors: Vec<Descriptor>,
}

/// What a service is told of a request, for one of its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Of which requests: those that any of them matches, or all if there are none.
    pub rules: Vec<Rule>,
    /// Names and values, in this order.
    pub entries: Vec<Entry>,
}

/// A name and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub key: ArcStr,
    /// The value.
    pub value: Value,
}

/// A value of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Always this.
    Fixed(ArcStr),
    /// What the request says; if it says nothing, the descriptor does not mean it.
    Of(Part),
}

/// Something that a request says, or that is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The identity that the client has proved.
    Principal,
    /// Its namespace.
    Namespace,
    /// The address that the connection came from.
    Source,
    /// The host that is asked for.
    Host,
    /// The method.
    Method,
    /// The path, without the query.
    Path,
    /// A header; of several lines all, with commas between.
    Header(HeaderName),
    /// `issuer/subject` of the token.
    RequestPrincipal,
}

impl Part {
    /// What it is of a request, if there is any.
    #[must_use]
    pub fn of<'a>(&self, subject: &Subject<'a>) -> Option<Cow<'a, str>> {
        let request = subject.request.as_ref();
        match self {
            Self::Principal => subject.identity.map(|_| subject.principal.into()),
            Self::Namespace => subject.identity.map(|identity| identity.namespace.as_str().into()),
            Self::Source => Some(subject.source.to_string().into()),
            Self::Host => request.map(|request| request.authority.host().into()),
            Self::Method => request.map(|request| request.method.as_str().into()),
            Self::Path => request.map(|request| request.path.into()),
            Self::RequestPrincipal => subject.token.and_then(Token::principal).map(Cow::from),
            Self::Header(name) => {
                let mut lines =
                    request?.headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes()));
                let first = lines.next()?;
                Some(lines.fold(first, |all, line| format!("{all},{line}").into()))
            }
        }
    }
}

fn is_about(rules: &[Rule], subject: &Subject<'_>) -> bool {
    rules.is_empty() || rules.iter().any(|rule| rule.is_about(subject))
}

impl Local {
    /// Whether a request counts.
    #[must_use]
    pub fn is_about(&self, subject: &Subject<'_>) -> bool {
        is_about(&self.rules, subject)
    }

    /// By what a request is counted, in `key`: equal ones are counted together. What a request does not say is nothing, and that is also in common.
    pub fn key(&self, subject: &Subject<'_>, key: &mut String) {
        for part in &self.by {
            let value = match (part, subject.source.to_canonical()) {
                // Whoever has one address of IPv6 has 2^64 of them.
                (Part::Source, IpAddr::V6(ip)) => {
                    Some(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).to_string().into())
                }
                _ => part.of(subject),
            };
            // No two lists of values are written the same.
            key.push_str(&value.as_ref().map_or(0, |value| value.len() + 1).to_string());
            key.push(':');
            key.push_str(value.as_deref().unwrap_or_default());
        }
    }
}

impl Global {
    /// What the service is told of a request: nothing if no descriptor means it.
    #[must_use]
    pub fn descriptors<'a>(&'a self, subject: &Subject<'a>) -> Vec<Vec<(&'a str, Cow<'a, str>)>> {
        let entry = |entry: &'a Entry| {
            let value = match &entry.value {
                Value::Fixed(text) => Cow::from(text.as_str()),
                Value::Of(part) => part.of(subject)?,
            };
            Some((entry.key.as_str(), value))
        };
        let about = self.descriptors.iter().filter(|descriptor| is_about(&descriptor.rules, subject));
        about.filter_map(|descriptor| descriptor.entries.iter().map(entry).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Method};

    use super::*;
    use crate::Identity;
    use crate::l7::policy::{List, Operation, StringMatch};
    use crate::l7::{Authority, Request};

    /// Asks about a request of a client, if it is known.
    fn about<T>(
        client: Option<&str>,
        lines: &[(&'static str, &'static str)],
        ask: impl FnOnce(&Subject<'_>) -> T,
    ) -> T {
        let identity: Option<Identity> = client.map(|name| format!("spiffe://a/ns/shop/sa/{name}").parse().unwrap());
        let principal = identity.as_ref().map(Identity::principal).unwrap_or_default();
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let authority = Authority::parse("Shop:80").unwrap();
        ask(&Subject {
            identity: identity.as_ref(),
            principal: &principal,
            source: [10, 0, 0, 1].into(),
            remote: [10, 0, 0, 1].into(),
            destination: None,
            sni: None,
            port: 80,
            also: &[],
            request: Some(Request {
                method: &Method::GET,
                scheme: "http",
                authority: &authority,
                path: "/a",
                query: Some("b"),
                headers: &headers,
                port: 80,
                gateway: "mesh",
                service: None,
            }),
            plainest: None,
            token: None,
        })
    }

    #[test]
    fn a_request_is_counted_by_what_it_says() {
        let user = || Part::Header(HeaderName::from_static("x-user"));
        let lines = [("x-user", "a"), ("x-user", "b")];
        let parts = [Part::Principal, Part::Namespace, Part::Source, Part::Host, Part::Method, Part::Path, user()];
        let texts = about(Some("c"), &lines, |subject| {
            parts.iter().map(|part| part.of(subject).unwrap().into_owned()).collect::<Vec<_>>()
        });
        assert_eq!(texts, ["a/ns/shop/sa/c", "shop", "10.0.0.1", "shop", "GET", "/a", "a,b"]);
        about(None, &[], |subject| {
            for part in [Part::Principal, Part::Namespace, Part::RequestPrincipal, user()] {
                assert_eq!(part.of(subject), None, "{part:?}");
            }
        });
        let rate = Rate { requests: 1, per: Duration::from_secs(1), burst: 1 };
        let other = Part::Header(HeaderName::from_static("x-other"));
        let local = Local { rules: vec![], by: vec![user(), other], rate };
        let key = |lines: &[(&'static str, &'static str)]| {
            about(Some("c"), lines, |subject| {
                let mut key = String::new();
                local.key(subject, &mut key);
                key
            })
        };
        let same = key(&[("x-user", "a"), ("x-other", "b")]);
        assert_eq!(same, key(&[("x-other", "b"), ("x-user", "a")]));
        let others: [&[(&str, &str)]; 5] =
            [&[], &[("x-user", "")], &[("x-other", "a"), ("x-user", "b")], &[("x-user", "a2:b")], &[("x-user", "ab")]];
        let mut all: Vec<String> = others.iter().map(|lines| key(lines)).chain([same]).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 6);
    }

    #[test]
    fn only_requests_that_are_meant_are_counted() {
        let by_method = |method: &str| {
            let methods = List { is: vec![StringMatch::Exact(method.into())], not: vec![] };
            Rule { to: vec![Operation { methods, ..Operation::default() }], ..Rule::default() }
        };
        let user = || Value::Of(Part::Header(HeaderName::from_static("x-user")));
        let entry = |key: &str, value| Entry { key: key.into(), value };
        let descriptor = |rules, entries| Descriptor { rules, entries };
        let global = Global {
            domain: "d".into(),
            place: None,
            timeout: USUAL_TIMEOUT,
            fail_open: true,
            descriptors: vec![
                descriptor(vec![], vec![entry("fixed", Value::Fixed("1".into())), entry("user", user())]),
                descriptor(vec![by_method("POST")], vec![entry("post", Value::Fixed("1".into()))]),
                descriptor(vec![by_method("POST"), by_method("GET")], vec![entry("path", Value::Of(Part::Path))]),
            ],
        };
        let told = |lines: &[(&'static str, &'static str)]| {
            about(Some("c"), lines, |subject| {
                let told = global.descriptors(subject);
                let text = |one: &Vec<(&str, Cow<'_, str>)>| {
                    one.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
                };
                told.iter().map(text).collect::<Vec<_>>()
            })
        };
        assert_eq!(told(&[("x-user", "u")]), ["fixed=1 user=u", "path=/a"]);
        assert_eq!(told(&[]), ["path=/a"]);
        let rate = Rate { requests: 1, per: Duration::from_secs(1), burst: 1 };
        for (rules, expected) in [(vec![], true), (vec![by_method("GET")], true), (vec![by_method("POST")], false)] {
            let local = Local { rules, by: vec![], rate };
            assert_eq!(about(None, &[], |subject| local.is_about(subject)), expected);
        }
    }
}
