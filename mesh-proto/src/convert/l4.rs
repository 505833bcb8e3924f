//! Routes of connections, both ways. A rule that cannot be read in all of its parts refuses what the understood part means; if it cannot be told for whom
//! rules are, all connections to the service are refused. Left out, they would go somewhere else than is written.

use mesh_core::l4::{Condition, ConnectionRoutes, Group, Place, Rule, Split};
use mesh_core::l7::{ClusterKey, HostPattern, Target};
use mesh_core::{ArcStr, NamespacedName};
use prost::Message;

use super::{ConvertError, field};
use crate::wire::l4 as wire;

/// Groups of a service, rules of a group, conditions and places of a rule, entries of a list in them.
const MOST: usize = 1_000;
/// Rules of all groups together.
const MOST_RULES: usize = 10_000;
/// Longest reason.
const LONGEST: usize = 8192;

/// Routes of connections to one service, and what of them is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionRoutesRead {
    /// The routes.
    pub routes: ConnectionRoutes,
    /// What is wrong with rules that refuse because they could not be read, of each group the first.
    pub closed: Vec<ConvertError>,
}

/// Routes that refuse every connection to a service, because what was sent for it cannot be read.
#[must_use]
pub fn closed_connections(service: NamespacedName, why: &str) -> ConnectionRoutes {
    let split = Split::closed(reason(format!("what was sent cannot be read: {why}")));
    let rule = Rule { origin: ArcStr::new(), conditions: Vec::new(), split };
    ConnectionRoutes { service, groups: vec![Group { rules: vec![rule], ..Group::default() }] }
}

/// Reads one `undermesh.l4.v1.ConnectionRoutes`.
///
/// # Errors
/// What is wrong, if it is not with single rules.
pub fn connection_routes(bytes: &[u8]) -> Result<ConnectionRoutesRead, ConvertError> {
    let message = wire::ConnectionRoutes::decode(bytes).map_err(ConvertError::decode)?;
    if message.encoded_len() != bytes.len() {
        return Err(ConvertError::UnknownFields);
    }
    few("groups", message.groups.len(), MOST)?;
    few("rules", message.groups.iter().map(|group| group.rules.len()).sum(), MOST_RULES)?;
    let service = field::key("service", &message.service)?;
    let (mut groups, mut closed) = (Vec::new(), Vec::new());
    for message in message.groups {
        let mut problem = None;
        groups.push(read_group(message, &mut problem)?);
        closed.extend(problem);
    }
    Ok(ConnectionRoutesRead { routes: ConnectionRoutes { service, groups }, closed })
}

fn read_group(message: wire::Group, first: &mut Option<ConvertError>) -> Result<Group, ConvertError> {
    few("groups.ports", message.ports.len(), MOST)?;
    let namespaces = |clients: wire::Clients| {
        let names = clients.namespaces.into_iter().map(|name| field::name("groups.clients", name));
        names.collect::<Result<_, _>>()
    };
    let rule = |bytes: &Vec<u8>| {
        let (rule, problem) = read_rule(bytes);
        if first.is_none() {
            *first = problem;
        }
        rule
    };
    Ok(Group {
        clients: message.clients.map(namespaces).transpose()?,
        ports: message.ports.iter().map(|port| field::port("groups.ports", *port)).collect::<Result<_, _>>()?,
        falls_through: message.falls_through,
        rules: message.rules.iter().map(rule).collect(),
    })
}

/// A rule, closed if there is a problem. What of a condition cannot be read is taken to hold, so that it means more connections rather than fewer.
fn read_rule(bytes: &[u8]) -> (Rule, Option<ConvertError>) {
    let mut rule = Rule { origin: ArcStr::new(), conditions: Vec::new(), split: Split::default() };
    let mut problem;
    match wire::Rule::decode(bytes) {
        Err(error) => problem = Some(ConvertError::decode(error)),
        Ok(message) => {
            let known = message.encoded_len() == bytes.len();
            problem = (!known).then_some(ConvertError::UnknownFields);
            let mut note = |error| _ = problem.get_or_insert(error);
            match field::text("rules.origin", message.origin) {
                Ok(origin) => rule.origin = origin,
                Err(error) => note(error),
            }
            match few("rules.conditions", message.conditions.len(), MOST) {
                Ok(()) => {
                    rule.conditions = message.conditions.into_iter().map(|one| condition(one, &mut note)).collect()
                }
                Err(error) => note(error),
            }
            match split(message.places) {
                Ok(split) => rule.split = split,
                Err(error) => note(error),
            }
        }
    }
    if let Some(problem) = &problem {
        rule.split = Split::closed(reason(format!("the rule cannot be read: {problem}")));
    }
    (rule, problem)
}

fn condition(message: wire::Condition, note: &mut impl FnMut(ConvertError)) -> Condition {
    let mut read = Condition::default();
    let mut or_note = |result: Result<(), ConvertError>| result.err().into_iter().for_each(&mut *note);
    or_note(field::port_or_zero("conditions.port", message.port).map(|port| read.port = (port > 0).then_some(port)));
    or_note(field::text("conditions.source_namespace", message.source_namespace).map(|name| {
        read.source_namespace = (!name.is_empty()).then_some(name);
    }));
    let labels = few("conditions.source_labels", message.source_labels.len(), MOST);
    let text = |text| field::text("conditions.source_labels", text);
    let label = |(key, value)| Ok((text(key)?, text(value)?));
    let labels = labels.and_then(|()| message.source_labels.into_iter().map(label).collect::<Result<_, _>>());
    or_note(labels.map(|labels| read.source_labels = labels));
    let names = few("conditions.server_names", message.server_names.len(), MOST);
    let name = |text: String| {
        let problem = || ConvertError::invalid("conditions.server_names", format!("{text:?} is no name of a host"));
        HostPattern::parse(&text).ok_or_else(problem)
    };
    let names = names.and_then(|()| message.server_names.into_iter().map(name).collect::<Result<_, _>>());
    or_note(names.map(|names| read.server_names = names));
    let nets = few("conditions.destinations", message.destinations.len(), MOST);
    let net = |range: wire::Range| field::net("conditions.destinations", &range.address, range.length);
    let nets = nets.and_then(|()| message.destinations.into_iter().map(net).collect::<Result<_, _>>());
    or_note(nets.map(|nets| read.destinations = nets));
    read
}

fn split(places: Vec<wire::Place>) -> Result<Split, ConvertError> {
    use wire::place::Target as Kind;
    few("rules.places", places.len(), MOST)?;
    let place = |message: wire::Place| {
        let target = match message.target {
            Some(Kind::Broken(why)) => Target::Broken(reason(why)),
            Some(Kind::Cluster(cluster)) => Target::Cluster(ClusterKey {
                service: field::key("places.service", &cluster.service)?,
                port: field::port("places.port", cluster.port)?,
                subset: field::text("places.subset", cluster.subset)?,
            }),
            None => return Err(ConvertError::Missing { field: "places.target" }),
        };
        Ok(Place { target, weight: message.weight })
    };
    let places = places.into_iter().map(place).collect::<Result<_, _>>()?;
    Split::new(places).map_err(|error| ConvertError::invalid("places.weight", error.to_string()))
}

/// Somebody's name may be in it: it is for logs.
fn reason(mut why: String) -> ArcStr {
    why.retain(|c| !c.is_control());
    why.chars().take(LONGEST).collect::<String>().into()
}

fn few(field: &'static str, count: usize, limit: usize) -> Result<(), ConvertError> {
    if count > limit {
        return Err(ConvertError::invalid(field, format!("{count} of them, the limit is {limit}")));
    }
    Ok(())
}

/// The bytes of an `undermesh.l4.v1.ConnectionRoutes`. The same routes always give the same bytes.
#[must_use]
pub fn encode_connection_routes(routes: &ConnectionRoutes) -> Vec<u8> {
    let names = |names: &Vec<ArcStr>| wire::Clients { namespaces: names.iter().map(ToString::to_string).collect() };
    let group = |group: &Group| wire::Group {
        clients: group.clients.as_ref().map(names),
        ports: group.ports.iter().map(|port| u32::from(*port)).collect(),
        falls_through: group.falls_through,
        rules: group.rules.iter().map(|rule| write_rule(rule).encode_to_vec()).collect(),
    };
    let groups = routes.groups.iter().map(group).collect();
    wire::ConnectionRoutes { service: routes.service.to_string(), groups }.encode_to_vec()
}

fn write_rule(rule: &Rule) -> wire::Rule {
    use wire::place::Target as Kind;
    let condition = |one: &Condition| wire::Condition {
        port: u32::from(one.port.unwrap_or_default()),
        server_names: one.server_names.iter().map(ToString::to_string).collect(),
        destinations: one
            .destinations
            .iter()
            .map(|net| wire::Range { address: field::octets(net.addr()), length: u32::from(net.prefix_len()) })
            .collect(),
        source_namespace: one.source_namespace.as_deref().unwrap_or_default().to_owned(),
        source_labels: one.source_labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
    };
    let place = |place: &Place| wire::Place {
        weight: place.weight,
        target: Some(match &place.target {
            Target::Broken(why) => Kind::Broken(why.to_string()),
            Target::Cluster(key) => Kind::Cluster(wire::Cluster {
                service: key.service.to_string(),
                port: u32::from(key.port),
                subset: key.subset.to_string(),
            }),
        }),
    };
    wire::Rule {
        origin: rule.origin.to_string(),
        conditions: rule.conditions.iter().map(condition).collect(),
        places: rule.split.places().iter().map(place).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> ConnectionRoutes {
        let key = |subset: &str| ClusterKey {
            service: NamespacedName::new("shop", "echo-v2.shop.svc.cluster.local"),
            port: 9000,
            subset: subset.into(),
        };
        let place = |target, weight| Place { target, weight };
        let split = vec![
            place(Target::Cluster(key("")), 80),
            place(Target::Cluster(key("v2")), 20),
            place(Target::Broken("gone".into()), 1),
        ];
        let condition = Condition {
            port: Some(9000),
            server_names: vec![HostPattern::parse("a.example").unwrap(), HostPattern::parse("*.b.example").unwrap()],
            destinations: vec!["198.19.0.0/16".parse().unwrap(), "fd00:198::/64".parse().unwrap()],
            source_namespace: Some("test".into()),
            source_labels: [("app".into(), "web".into()), ("v".into(), "".into())].into(),
        };
        let rule = |conditions, split| Rule { origin: "TCPRoute shop/echo".into(), conditions, split };
        let rules = vec![rule(vec![condition], Split::new(split).unwrap()), rule(vec![], Split::default())];
        let istio = Group { ports: vec![9000, 9001], falls_through: true, rules, ..Group::default() };
        let other = Group { clients: Some(vec!["test".into()]), ..Group::default() };
        ConnectionRoutes {
            service: NamespacedName::new("shop", "echo.shop.svc.cluster.local"),
            groups: vec![other, istio],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = encode_connection_routes(&full());
        assert_eq!(connection_routes(&bytes), Ok(ConnectionRoutesRead { routes: full(), closed: vec![] }));
        // A cut message is refused, or something else is read of it: it never panics, and never says the same.
        for end in 0..bytes.len() {
            assert!(connection_routes(&bytes[..end]).map(|read| read.routes) != Ok(full()), "{end}");
        }
        let closed = closed_connections(full().service, "no \n reason");
        assert_eq!(connection_routes(&encode_connection_routes(&closed)).unwrap().routes, closed);
    }

    #[test]
    fn a_rule_that_cannot_be_read_refuses() {
        let good = wire::Place { weight: 1, target: Some(wire::place::Target::Broken("x".into())) };
        let condition = |change: fn(&mut wire::Condition)| {
            let mut condition = wire::Condition { port: 9, ..wire::Condition::default() };
            change(&mut condition);
            wire::Rule { origin: "o".into(), conditions: vec![condition], places: vec![good.clone()] }
        };
        let place = |place: wire::Place| wire::Rule { origin: "o".into(), conditions: vec![], places: vec![place] };
        let cluster = |service: &str, port| wire::Place {
            weight: 1,
            target: Some(wire::place::Target::Cluster(wire::Cluster {
                service: service.into(),
                port,
                subset: "".into(),
            })),
        };
        for (rule, expected) in [
            (condition(|c| c.port = 70_000), "port"),
            (condition(|c| c.server_names = vec!["a b".into()]), "server_names"),
            (condition(|c| c.destinations = vec![wire::Range { address: vec![1], length: 3 }]), "destinations"),
            (condition(|c| c.source_namespace = "\u{7}".into()), "source_namespace"),
            (condition(|c| _ = c.source_labels.insert("a".into(), "\u{7}".into())), "source_labels"),
            (place(wire::Place { weight: 1, target: None }), "target"),
            (place(cluster("nothing", 1)), "service"),
            (place(cluster("a/b", 0)), "port"),
        ] {
            let (read, problem) = read_rule(&rule.encode_to_vec());
            assert!(problem.as_ref().is_some_and(|problem| problem.to_string().contains(expected)), "{problem:?}");
            assert!(matches!(&read.split.places()[0].target, Target::Broken(_)), "{read:?}");
            // What is understood still says for whom it is.
            assert_eq!(read.conditions.len(), rule.conditions.len());
        }
        let heavy =
            wire::Rule { places: vec![wire::Place { weight: u32::MAX, ..good.clone() }; 2], ..wire::Rule::default() };
        assert!(read_rule(&heavy.encode_to_vec()).1.is_some());
        assert!(read_rule(&[0xff, 1, 2]).1.is_some());
        assert!(read_rule(&[0x78, 1]).1.is_some(), "an unknown field");
    }

    #[test]
    fn whose_rules_cannot_be_told_refuses_all() {
        let of = |group: wire::Group| {
            let message = wire::ConnectionRoutes { service: "a/b".into(), groups: vec![group] };
            connection_routes(&message.encode_to_vec()).map(|read| read.closed.len())
        };
        assert!(of(wire::Group { ports: vec![0], ..Default::default() }).is_err());
        assert!(
            of(wire::Group { clients: Some(wire::Clients { namespaces: vec!["".into()] }), ..Default::default() })
                .is_err()
        );
        assert!(of(wire::Group { rules: vec![vec![]; MOST_RULES + 1], ..Default::default() }).is_err());
        assert_eq!(of(wire::Group { rules: vec![vec![0xff]; 3], ..Default::default() }), Ok(1));
        assert!(
            connection_routes(&wire::ConnectionRoutes { service: "ab".into(), groups: vec![] }.encode_to_vec())
                .is_err()
        );
    }
}
