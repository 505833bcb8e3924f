//! Tables of HTTP routes, and how the places that they name are reached, both ways. A rule that cannot be read in all of its parts is in the table all the same, and answers 500: what it could still be
//! told of its conditions says to which requests. Left out, a later rule would take them. A host that cannot be read refuses the table, because its
//! requests would go to a less specific one.

mod action;
mod budget;
mod certificate;
mod cluster;
mod condition;
mod labels;
mod listener;
mod policy;
mod reach;
mod spoken;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use mesh_core::l7::{Action, Condition, Handling, HostPattern, Retries, Rule, Table, VirtualHost};
use prost::Message;

use self::budget::Budget;
pub use self::certificate::{certificates, encode_certificates};
pub use self::cluster::{ClosedPlace, ClustersRead, clusters, encode_clusters};
pub use self::labels::{encode_workload_labels, workload_labels};
pub use self::listener::{ReadListeners, encode_listeners, listeners};
use super::{ConvertError, field};
use crate::wire::l7 as wire;

/// Hosts of a table, rules of a host, rules of all its hosts, and conditions of a rule.
const MOST_HOSTS: usize = 100_000;
const MOST_RULES: usize = 10_000;
const MOST_RULES_OF_ALL: usize = 50_000;
const MOST_CONDITIONS: usize = 1_000;
/// Closed rules of a table that are told of one by one.
const MOST_TOLD: usize = 100;

/// A table, and what of it is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteTable {
    /// The table.
    pub table: Table,
    /// Rules that answer 500 because they could not be read, the first 100 of them. To be reported: a control plane of another version may have
    /// written them.
    pub closed: Vec<ClosedRule>,
    /// How many more there are.
    pub more_closed: usize,
}

/// A rule that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedRule {
    /// The name of its virtual host.
    pub host: mesh_core::ArcStr,
    /// Which of its rules.
    pub index: usize,
    /// Its name and the object it is written in, as far as they could be read.
    pub name: String,
    /// What is wrong with it.
    pub problem: ConvertError,
}

impl fmt::Display for ClosedRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, index, name, problem } = self;
        write!(f, "host {host}, rule {index} ({name}): {problem}; its requests are answered with 500")
    }
}

/// Reads one `undermesh.l7.v1.RouteTable`. Fields of tables and hosts that this version does not know refuse it, those of rules close the rule.
pub fn route_table(bytes: &[u8]) -> Result<RouteTable, ConvertError> {
    let mut reader = Reader::default();
    let table = reader.table(bytes)?;
    Ok(RouteTable { table, closed: reader.closed, more_closed: reader.more_closed })
}

/// The bytes of an `undermesh.l7.v1.RouteTable`. The same table always gives the same bytes.
#[must_use]
pub fn encode_route_table(table: &Table) -> Vec<u8> {
    let hosts = table.hosts().iter().map(|host| write_host(host)).collect();
    let retries = (*table.retries() != Retries::default()).then(|| policy::write_retries(table.retries()));
    wire::RouteTable { name: table.name().to_string(), hosts, retries }.encode_to_vec()
}

/// What is counted and collected while a table is read, or all tables of a gateway together.
#[derive(Default)]
struct Reader {
    budget: Budget,
    hosts: usize,
    rules: usize,
    closed: Vec<ClosedRule>,
    more_closed: usize,
}

impl Reader {
    fn table(&mut self, bytes: &[u8]) -> Result<Table, ConvertError> {
        let message = wire::RouteTable::decode(bytes).map_err(ConvertError::decode)?;
        if message.encoded_len() != bytes.len() {
            return Err(ConvertError::UnknownFields);
        }
        self.hosts += message.hosts.len();
        self.rules += message.hosts.iter().map(|host| host.rules.len()).sum::<usize>();
        few("hosts", self.hosts, MOST_HOSTS)?;
        few("rules of all hosts", self.rules, MOST_RULES_OF_ALL)?;
        let name = field::text("name", message.name)?;
        let hosts = message.hosts.into_iter().map(|host| self.host(host).map(Arc::new));
        let retries = message.retries.map_or_else(|| Ok(Retries::default()), policy::retries)?;
        Ok(Table::new(name, hosts.collect::<Result<Vec<_>, _>>()?).retrying(retries))
    }

    fn host(&mut self, message: wire::VirtualHost) -> Result<VirtualHost, ConvertError> {
        few("hosts.rules", message.rules.len(), MOST_RULES)?;
        let pattern = |text: String| {
            let problem =
                || ConvertError::invalid("hosts.hosts", format!("{text:?} is neither a host nor `*.` with one"));
            HostPattern::parse(&text).ok_or_else(problem)
        };
        let namespace = |name: String| field::name("hosts.clients", name);
        let mut host = VirtualHost {
            name: field::text("hosts.name", message.name)?,
            service: match message.service.as_str() {
                "" => None,
                key => Some(field::key("hosts.service", key)?),
            },
            hosts: message.hosts.into_iter().map(pattern).collect::<Result<_, _>>()?,
            ports: message.ports.iter().map(|p| field::port("hosts.ports", *p)).collect::<Result<_, _>>()?,
            clients: match message.clients {
                None => None,
                Some(clients) => Some(clients.namespaces.into_iter().map(namespace).collect::<Result<_, _>>()?),
            },
            falls_through: message.falls_through,
            rules: Vec::with_capacity(message.rules.len()),
        };
        for (index, bytes) in message.rules.iter().enumerate() {
            let (rule, problem) = self.rule(bytes);
            if let Some(problem) = problem {
                self.note(&host, index, &rule, problem);
            }
            host.rules.push(rule);
        }
        Ok(host)
    }

    fn note(&mut self, host: &VirtualHost, index: usize, rule: &Rule, problem: ConvertError) {
        if self.closed.len() == MOST_TOLD {
            self.more_closed += 1;
            return;
        }
        let name = format!("{} of {}", rule.handling.name, rule.handling.origin);
        self.closed.push(ClosedRule { host: host.name.clone(), index, name, problem });
    }

    /// A rule, closed if there is a problem. What of a condition cannot be read is taken to hold, so that it means more requests rather than fewer.
    fn rule(&mut self, bytes: &[u8]) -> (Rule, Option<ConvertError>) {
        let message = match wire::Rule::decode(bytes) {
            Ok(message) => message,
            Err(error) => {
                let problem = ConvertError::decode(error);
                return (Rule { conditions: Vec::new(), handling: closed(None, &problem) }, Some(problem));
            }
        };
        let mut leaves = condition::Leaves { budget: &mut self.budget, problem: None };
        if message.encoded_len() != bytes.len() {
            leaves.problem = Some(ConvertError::UnknownFields);
        }
        let count = message.conditions.len();
        let allowed = few("conditions", count, MOST_CONDITIONS).and_then(|()| leaves.budget.conditions(count));
        let conditions: Vec<Condition> = match allowed {
            Ok(()) => message.conditions.into_iter().map(|one| leaves.condition(one)).collect(),
            Err(problem) => {
                leaves.note(problem);
                Vec::new()
            }
        };
        let problem = leaves.problem;
        let (head, handling) = match message.handling {
            None => (None, Err(ConvertError::Missing { field: "handling" })),
            Some(handling) => {
                let head = (handling.name.clone(), handling.origin.clone());
                (Some(head), action::handling(handling, &mut self.budget))
            }
        };
        match (problem, handling) {
            (None, Ok(handling)) => (Rule { conditions, handling: Arc::new(handling) }, None),
            (Some(problem), _) | (None, Err(problem)) => {
                (Rule { conditions, handling: closed(head, &problem) }, Some(problem))
            }
        }
    }
}

fn closed(head: Option<(String, String)>, problem: &ConvertError) -> Arc<Handling> {
    let (name, origin) = head.unwrap_or_default();
    let text = |text: String| field::text("name", text).unwrap_or_default();
    let why = action::reason("closed", format!("the rule cannot be read: {problem}"));
    let action = Action::Closed(why.unwrap_or_default());
    Arc::new(Handling { name: text(name), origin: text(origin), ..Handling::new(action) })
}

fn few(field: &'static str, count: usize, limit: usize) -> Result<(), ConvertError> {
    if count > limit {
        return Err(ConvertError::invalid(field, format!("{count} of them, the limit is {limit}")));
    }
    Ok(())
}

fn write_host(host: &VirtualHost) -> wire::VirtualHost {
    let rule = |rule: &Rule| {
        let conditions = rule.conditions.iter().map(condition::write).collect();
        wire::Rule { conditions, handling: Some(action::write(&rule.handling)) }.encode_to_vec()
    };
    let clients =
        |names: &Vec<mesh_core::ArcStr>| wire::Clients { namespaces: names.iter().map(ToString::to_string).collect() };
    wire::VirtualHost {
        name: host.name.to_string(),
        service: host.service.as_ref().map(ToString::to_string).unwrap_or_default(),
        hosts: host.hosts.iter().map(ToString::to_string).collect(),
        ports: host.ports.iter().map(|port| u32::from(*port)).collect(),
        clients: host.clients.as_ref().map(clients),
        falls_through: host.falls_through,
        rules: host.rules.iter().map(rule).collect(),
    }
}
