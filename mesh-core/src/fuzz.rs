//! Entry points for fuzzers, and what property tests share with them: the builder of arbitrary policies, and requests that are
//! asked of tables. Each entry point takes arbitrary bytes
//! and panics only on a bug.
#![doc(hidden)]

mod matches;
mod routes;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, header};
use ipnet::IpNet;
pub use matches::{header_matches, patterns};
use rand::{SeedableRng, rngs::StdRng};
pub use routes::routes_match;
#[cfg(test)]
pub(crate) use routes::{Sent, agree};

use crate::{
    Connection, Identity, NamespacedName, Policy,
    authorize::{Applicable, decide},
    l4::{Ask, Choice, ConnectionRoutes, ServerName},
    l7::{
        Authority, Client, Outcome, Request, Table, Token,
        path::{Spelling, normalise},
        token::{self, JwtRule, Location, Unverified},
    },
    policy::{
        Action, Clause, Match, Rule, Scope, ServiceAccountMatch, StringMatch,
        reference::{Facts, allowed},
    },
};

/// Builds policies and a connection from `data` and holds the evaluator against the reference.
pub fn authorization(data: &[u8]) {
    let mut bytes = Bytes(data);
    let facts = bytes.facts();
    let policies = bytes.policies();
    assert_eq!(evaluate(&policies, &facts), allowed(&policies, &facts), "{policies:#?} {facts:#?}");
}

/// Looks for tokens in a request that is written in three lines, `Authorization`, query and cookies, and takes them apart.
pub fn tokens(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let mut headers = HeaderMap::new();
    let mut header = |name, line: Option<&str>| {
        if let Some(Ok(value)) = line.map(HeaderValue::from_str) {
            headers.append(name, value);
        }
    };
    header(header::AUTHORIZATION, lines.next());
    let query = lines.next();
    header(header::COOKIE, lines.next());
    let rule = |locations| {
        Arc::new(JwtRule {
            issuer: "me".into(),
            audiences: Vec::new(),
            keys: None,
            locations,
            forward: false,
            payload_header: None,
            claim_headers: Vec::new(),
            spaced: Vec::new(),
        })
    };
    let cookie = vec![Location::Cookie("session".into())];
    let rules = [rule(JwtRule::usual_locations()), rule(cookie)];
    let Ok(all) = token::found(&rules, &headers, query) else { return };
    assert!(all.iter().map(|found| found.rules.len()).sum::<usize>() <= rules.len(), "one token of each rule");
    for found in &all {
        let Ok(read) = Unverified::parse(&found.text) else { continue };
        assert_eq!(format!("{}.{}", read.signed, read.signature), found.text, "what is signed is what was sent");
        if let Ok(token) = Token::believed(read.payload.clone(), &rules[0], 1_000) {
            assert_eq!(read.issuer(), Some("me"));
            let _ = token.claim_is(&["aud".into()], true, |value| value.is_empty());
        }
    }
}

/// Asks a table about a request, of which `line` is the host and what is asked of it, as `a.com/b?c`, and works out what is done with it.
pub fn routed(table: &Table, line: &str) {
    let (host, target) = line.split_at(line.find(['/', '\\', '*']).unwrap_or(line.len()));
    let Ok(authority) = Authority::parse(host) else { return };
    let again = Authority::parse(authority.as_str()).map(|again| again.as_str().to_owned());
    assert_eq!(again.as_deref(), Ok(authority.as_str()), "one spelling of a host");
    let headers: HeaderMap = [(header::ORIGIN, HeaderValue::from_static("https://a.com"))].into_iter().collect();
    for spelling in [Spelling::Base, Spelling::MergeSlashes, Spelling::DecodeAndMergeSlashes] {
        let Ok(plain) = normalise(&Method::OPTIONS, target, spelling) else { continue };
        assert_eq!(normalise(&Method::OPTIONS, &plain, spelling).as_deref(), Ok(&*plain), "one spelling of a path");
        let (path, query) = plain.split_once('?').map_or((&*plain, None), |(path, query)| (path, Some(query)));
        let services = table.hosts().iter().take(4).filter_map(|host| host.service.as_ref()).map(Some);
        for service in services.chain([None]) {
            let request = Request {
                method: &Method::OPTIONS,
                scheme: "http",
                authority: &authority,
                path,
                query,
                headers: &headers,
                port: 80,
                gateway: "mesh",
                service,
            };
            decided(table, &request);
        }
    }
}

/// Asks routes of connections about some connections.
pub fn connected(routes: &ConnectionRoutes) {
    let mut rng = StdRng::seed_from_u64(1);
    for (port, namespace) in [(80, "a"), (443, "b")] {
        let address = Ipv4Addr::new(198, 19, 0, 1).into();
        let ask = |server_name| Ask { address, port, namespace, labels: None, server_name };
        for known in [ServerName::Absent, ServerName::Is("a.com")] {
            assert_ne!(routes.choose(&ask(known), &mut rng), Choice::Look, "there is nothing more to know");
        }
        routes.choose(&ask(ServerName::Unread), &mut rng);
    }
}

fn decided(table: &Table, request: &Request<'_>) {
    let client = Client { namespace: Some("a"), ..Client::default() };
    let Ok(decision) = crate::l7::pick(table, request, &client, &mut StdRng::seed_from_u64(1)) else { return };
    if let Some(path) = decision.rewritten_path(request) {
        assert!(path.starts_with('/'), "{path:?}");
    }
    if let Outcome::Redirect(redirect) = decision.outcome {
        let location = redirect.location(request, decision.condition);
        assert!(location.starts_with("http"), "{location:?}");
    }
    assert!(decision.mirrors.iter().count() <= crate::l7::Handling::MOST_MIRRORS);
    if let Some(cors) = &decision.handling.cors {
        _ = cors.judge(request.method, request.headers);
    }
}

pub(crate) fn evaluate(policies: &[Policy], facts: &Facts) -> bool {
    let connection = Connection {
        source_ip: facts.source_ip,
        source: facts.identity.as_ref(),
        via: None,
        destination_ip: facts.destination_ip,
        destination_port: facts.destination_port,
    };
    decide(policies.iter().map(Applicable::Policy), &connection).is_allowed()
}

/// Values from a small world, so that conditions often hold. Ends of data read as zero.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl Bytes<'_> {
    fn below(&mut self, limit: u8) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                first % limit
            }
            None => 0,
        }
    }

    fn list<T>(&mut self, limit: u8, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.below(limit);
        (0..count).map(|_| item(self)).collect()
    }

    fn word(&mut self) -> &'static str {
        ["a", "b", "ab", "ns", "cluster.local/ns/a/sa/a", "cluster.local/ns/a", "/sa/b", "other/ns/b/sa/ab"]
            [usize::from(self.below(8))]
    }

    fn segment(&mut self) -> &'static str {
        ["a", "b", "ab"][usize::from(self.below(3))]
    }

    fn ip(&mut self) -> IpAddr {
        let low = self.below(4);
        match self.below(4) {
            0 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, low.into()).into(),
            high => Ipv4Addr::new(10, 0, high, low).into(),
        }
    }

    fn net(&mut self) -> IpNet {
        let ip = self.ip();
        let lengths: [u8; 5] = if ip.is_ipv4() { [32, 24, 8, 0, 31] } else { [128, 64, 8, 0, 127] };
        let length = lengths[usize::from(self.below(5))];
        IpNet::new(ip, length).map_or(IpNet::from(ip), |net| net.trunc())
    }

    fn port(&mut self) -> u16 {
        [80, 81, 8080, 65535][usize::from(self.below(4))]
    }

    fn string_match(&mut self) -> StringMatch {
        let word = self.word().into();
        match self.below(4) {
            0 => StringMatch::Exact(word),
            1 => StringMatch::Prefix(word),
            2 => StringMatch::Suffix(word),
            _ => StringMatch::Presence,
        }
    }

    fn account(&mut self) -> ServiceAccountMatch {
        ServiceAccountMatch { namespace: self.segment().into(), service_account: self.segment().into() }
    }

    /// Mostly few fields, because a match with many rarely holds.
    fn one_match(&mut self) -> Match {
        let mut m = Match::default();
        for _ in 0..self.below(4) {
            match self.below(12) {
                0 => m.namespaces = self.list(3, Self::string_match),
                1 => m.not_namespaces = self.list(3, Self::string_match),
                2 => m.principals = self.list(3, Self::string_match),
                3 => m.not_principals = self.list(3, Self::string_match),
                4 => m.service_accounts = self.list(3, Self::account),
                5 => m.not_service_accounts = self.list(3, Self::account),
                6 => m.source_ips = self.list(3, Self::net),
                7 => m.not_source_ips = self.list(3, Self::net),
                8 => m.destination_ips = self.list(3, Self::net),
                9 => m.not_destination_ips = self.list(3, Self::net),
                10 => m.destination_ports = self.list(3, Self::port),
                _ => m.not_destination_ports = self.list(3, Self::port),
            }
        }
        m
    }

    pub(crate) fn policy(&mut self) -> Policy {
        let action = if self.below(2) == 0 { Action::Allow } else { Action::Deny };
        let scope = [Scope::Global, Scope::Namespace, Scope::WorkloadSelector][usize::from(self.below(3))];
        let name = NamespacedName::new(self.segment(), format!("p{}", self.below(6)));
        let rules = self.list(4, |b| Rule { clauses: b.list(3, |b| Clause { matches: b.list(3, Self::one_match) }) });
        Policy { name, scope, action, rules, dry_run: self.below(8) == 7 }
    }

    pub(crate) fn policies(&mut self) -> Vec<Policy> {
        self.list(5, Self::policy)
    }

    pub(crate) fn facts(&mut self) -> Facts {
        let domain = ["cluster.local", "other"][usize::from(self.below(2))];
        let identity = match self.below(4) {
            0 => None,
            _ => domain.parse().ok().and_then(|td| Identity::new(td, self.segment(), self.segment()).ok()),
        };
        Facts { identity, source_ip: self.ip(), destination_ip: self.ip(), destination_port: self.port() }
    }
}
