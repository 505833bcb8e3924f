//! Tables of requests and what they mean.

mod order;
mod pick;
mod property;

use std::sync::Arc;

use arcstr::ArcStr;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::NamespacedName;

/// A rule that answers, with a name.
fn rule(name: &str, conditions: Vec<Condition>) -> Rule {
    Rule { conditions, handling: handling(name) }
}

fn handling(name: &str) -> Arc<Handling> {
    let cluster = ClusterKey { service: NamespacedName::new("shop", name), port: 80, subset: Default::default() };
    Arc::new(Handling { name: name.into(), ..Handling::new(Action::Forward(Forward::to(cluster))) })
}

fn host(pattern: &str, rules: Vec<Rule>) -> VirtualHost {
    VirtualHost { name: pattern.into(), hosts: vec![HostPattern::parse(pattern).unwrap()], rules, ..Default::default() }
}

fn table(hosts: Vec<VirtualHost>) -> Table {
    Table::new("test", hosts.into_iter().map(Arc::new).collect())
}

fn path(kind: PathKind) -> Condition {
    Condition { path: Some(kind.into()), ..Condition::default() }
}

/// A request as a line: method, URL, then headers; with where it came in.
#[derive(Clone, Debug)]
struct Sent {
    method: Method,
    scheme: String,
    authority: Authority,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    port: u16,
    gateway: &'static str,
    service: Option<NamespacedName>,
    namespace: Option<&'static str>,
    labels: Option<Labels>,
}

fn sent(line: &str) -> Sent {
    let mut words = line.split(' ');
    let method = Method::from_bytes(words.next().unwrap().as_bytes()).unwrap();
    let (scheme, rest) = words.next().unwrap().split_once("://").unwrap();
    let (authority, target) = rest.split_at(rest.find('/').unwrap());
    let target = path::normalise(&method, target, path::Spelling::Base).unwrap();
    let (path, query) = target.split_once('?').map_or((&*target, None), |(path, query)| (path, Some(query)));
    let mut headers = HeaderMap::new();
    for word in words {
        let (name, value) = word.split_once('=').unwrap();
        headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    Sent {
        scheme: scheme.to_owned(),
        authority: Authority::parse(authority).unwrap(),
        path: path.to_owned(),
        query: query.map(str::to_owned),
        method,
        headers,
        port: 80,
        gateway: "mesh",
        service: None,
        namespace: None,
        labels: None,
    }
}

impl Sent {
    fn request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            scheme: &self.scheme,
            authority: &self.authority,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            port: self.port,
            gateway: self.gateway,
            service: self.service.as_ref(),
        }
    }

    fn client(&self) -> Client<'_> {
        Client { identity: None, namespace: self.namespace, labels: self.labels.as_ref() }
    }

    /// `host/rule`, or why there is none.
    fn ask(&self, table: &Table) -> String {
        match pick(table, &self.request(), &self.client(), &mut StdRng::seed_from_u64(7)) {
            Ok(decision) => format!("{} {}", decision.host.name, decision.handling.name),
            Err(miss) => miss.to_string(),
        }
    }
}
