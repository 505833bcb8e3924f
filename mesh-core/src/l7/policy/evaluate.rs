//! Whether a policy matches a request: any rule; of a rule any source, any operation and all conditions; of each of them all lists.

use std::net::IpAddr;

use http::HeaderValue;
use http::header::GetAll;

use super::pattern::text_matches;
use super::{Action, Address, Attribute, List, Operation, PathPattern, Policy, Rule, Source, StringMatch, When};
use crate::Identity;
use crate::l7::{Request, Token};

/// What a policy looks at.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// What the peer proved by TLS.
    pub identity: Option<&'a Identity>,
    /// Without `spiffe://`; empty without an identity.
    pub principal: &'a str,
    /// The address that the connection came from.
    pub source: IpAddr,
    /// The address that the request came from.
    pub remote: IpAddr,
    /// The address that the client asked for, if it asked for one.
    pub destination: Option<IpAddr>,
    /// The name that TLS was asked for.
    pub sni: Option<&'a str>,
    /// The port that the client connected to.
    pub port: u16,
    /// Ports of services that lead to that one of a workload: what refuses these refuses it, too, or its address would go around.
    pub also: &'a [u16],
    /// The request, in the one spelling that is forwarded. Of a connection that is no HTTP there is none: what would be known of one is not known then.
    pub request: Option<Request<'a>>,
    /// Its path as [`plainest`](crate::l7::path::plainest) has it, if that is another.
    pub plainest: Option<&'a str>,
    /// What was proved by a token.
    pub token: Option<&'a Token>,
}

impl Subject<'_> {
    fn has_port(&self, port: u16, reading: Reading) -> bool {
        port == self.port || reading == Reading::Wide && self.also.contains(&port)
    }
}

/// How what can be understood in several ways is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// It matches if any way does.
    Wide,
    /// It matches if all do.
    Narrow,
}

impl Reading {
    fn of(action: &Action) -> Self {
        if *action == Action::Allow { Self::Narrow } else { Self::Wide }
    }

    fn opposite(self) -> Self {
        if self == Self::Wide { Self::Narrow } else { Self::Wide }
    }
}

impl<T> List<T> {
    fn holds(&self, reading: Reading, matches: impl Fn(&T, Reading) -> bool) -> bool {
        (self.is.is_empty() || self.is.iter().any(|value| matches(value, reading)))
            && !self.not.iter().any(|value| matches(value, reading.opposite()))
    }
}

impl Policy {
    /// Whether any rule matches. Says nothing about allowing or denying.
    #[must_use]
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        let reading = Reading::of(&self.action);
        self.rules.iter().any(|rule| rule.matches(subject, reading))
    }
}

impl Rule {
    /// Whether a request is meant, or may be: for what restricts those that are.
    #[must_use]
    pub fn is_about(&self, subject: &Subject<'_>) -> bool {
        self.matches(subject, Reading::Wide)
    }

    fn matches(&self, subject: &Subject<'_>, reading: Reading) -> bool {
        (self.from.is_empty() || self.from.iter().any(|source| source.matches(subject, reading)))
            && (self.to.is_empty() || self.to.iter().any(|operation| operation.matches(subject, reading)))
            && self.when.iter().all(|condition| condition.matches(subject, reading))
    }
}

impl Source {
    fn matches(&self, subject: &Subject<'_>, reading: Reading) -> bool {
        let text = |list: &List<StringMatch>, of: &Attribute| of.holds(list, subject, reading);
        self.namespaces.holds(reading, |m, _| subject.identity.is_some_and(|id| m.matches(&id.namespace)))
            && text(&self.principals, &Attribute::Principal)
            && accounts(&self.service_accounts, subject, reading)
            && text(&self.trust_domains, &Attribute::TrustDomain)
            && addresses(&self.ips, Some(subject.source), reading)
            && addresses(&self.remote_ips, Some(subject.remote), reading)
            && text(&self.request_principals, &Attribute::RequestPrincipal)
    }
}

impl Operation {
    fn matches(&self, subject: &Subject<'_>, reading: Reading) -> bool {
        self.ports.holds(reading, |port, reading| subject.has_port(*port, reading))
            && Attribute::Method.holds(&self.methods, subject, reading)
            && Attribute::Host.holds(&self.hosts, subject, reading)
            && self.path(subject, reading)
    }

    fn path(&self, subject: &Subject<'_>, reading: Reading) -> bool {
        let Some(request) = &subject.request else { return self.paths.is_empty() || reading == Reading::Wide };
        let path = request.path;
        let plainest = subject.plainest.unwrap_or(path);
        let spelt = |pattern: &PathPattern| pattern.matches(path);
        let plain = |pattern: &PathPattern| pattern.matches_plainest(plainest);
        let List { is, not } = &self.paths;
        match reading {
            Reading::Wide => {
                (is.is_empty() || is.iter().any(|pattern| spelt(pattern) || plain(pattern)))
                    && !(not.iter().any(spelt) && not.iter().any(plain))
            }
            // An escape that is written in an allowance is meant as it is written.
            Reading::Narrow => {
                (is.is_empty() || is.iter().any(spelt)) && !not.iter().any(|pattern| spelt(pattern) || plain(pattern))
            }
        }
    }
}

impl When {
    fn matches(&self, subject: &Subject<'_>, reading: Reading) -> bool {
        match self {
            Self::Text(of, values) => of.holds(values, subject, reading),
            Self::Account(values) => accounts(values, subject, reading),
            Self::Ip(of, values) => {
                let address = match of {
                    Address::Source => Some(subject.source),
                    Address::Remote => Some(subject.remote),
                    Address::Destination => subject.destination,
                };
                addresses(values, address, reading)
            }
            Self::Port(values) => values.holds(reading, |port, reading| subject.has_port(*port, reading)),
            Self::Unknown(_) => reading == Reading::Wide,
        }
    }
}

impl Attribute {
    fn holds(&self, list: &List<StringMatch>, subject: &Subject<'_>, reading: Reading) -> bool {
        list.is_empty() || list.holds(reading, |pattern, reading| self.is(pattern, subject, reading))
    }

    fn is(&self, pattern: &StringMatch, subject: &Subject<'_>, reading: Reading) -> bool {
        let known = |value: Option<&str>| value.is_some_and(|value| pattern.matches(value));
        let identity = subject.identity;
        match self {
            Self::Namespace => return known(identity.map(|id| &*id.namespace)),
            Self::Principal => return known(identity.map(|_| subject.principal)),
            Self::TrustDomain => return known(identity.map(|id| id.trust_domain.as_str())),
            Self::Sni => return known(subject.sni),
            _ => {}
        }
        let Some(request) = &subject.request else { return reading == Reading::Wide };
        match self {
            Self::Header(name) => header(pattern, request.headers.get_all(name), reading),
            Self::Host => pattern.matches(request.authority.host()) || pattern.matches(request.authority.as_str()),
            Self::Method => pattern.matches(request.method.as_str()),
            Self::RequestPrincipal => known(subject.token.and_then(Token::principal)),
            Self::Audience => subject.token.is_some_and(|token| token.audiences().any(|one| pattern.matches(one))),
            Self::Presenter => known(subject.token.and_then(Token::presenter)),
            Self::Claim(path) => subject
                .token
                .is_some_and(|token| token.claim_is(path, reading == Reading::Wide, |value| pattern.matches(value))),
            Self::Namespace | Self::Principal | Self::TrustDomain | Self::Sni => false,
        }
    }
}

/// Of several lines each one is a value, and so are all of them with commas between, as Envoy has it.
fn header(pattern: &StringMatch, all: GetAll<'_, HeaderValue>, reading: Reading) -> bool {
    let mut lines = all.iter();
    let Some(first) = lines.next() else { return false };
    let is_there = reading == Reading::Wide && *pattern == StringMatch::Presence;
    if lines.next().is_none() || is_there {
        return is_there || text_matches(pattern, first.as_bytes());
    }
    let lines = || all.iter().map(|line| line.as_bytes());
    let joined = text_matches(pattern, &lines().collect::<Vec<_>>().join(&b","[..]));
    match reading {
        Reading::Wide => joined || lines().any(|line| text_matches(pattern, line)),
        Reading::Narrow => {
            let is_whole = matches!(pattern, StringMatch::Exact(_));
            joined && (is_whole || lines().all(|line| text_matches(pattern, line)))
        }
    }
}

fn accounts(list: &List<super::ServiceAccountMatch>, subject: &Subject<'_>, reading: Reading) -> bool {
    list.holds(reading, |account, _| {
        let is = |id: &Identity| id.namespace == account.namespace && id.service_account == account.service_account;
        subject.identity.is_some_and(is)
    })
}

fn addresses(list: &List<ipnet::IpNet>, address: Option<IpAddr>, reading: Reading) -> bool {
    let address = address.map(|address| address.to_canonical());
    list.holds(reading, |net, _| address.is_some_and(|address| net.contains(&address)))
}
