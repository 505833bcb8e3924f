//! Tables of requests and what they mean.

mod order;
mod pick;
mod property;

use std::sync::Arc;

use arcstr::ArcStr;
use http::HeaderName;
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{NamespacedName, fuzz::Sent};

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

/// A request, as [`Sent::parse`] reads it.
fn sent(line: &str) -> Sent {
    Sent::parse(line).unwrap()
}
