//! What is small on the wire stays bounded in memory.

use prost::Message;

use crate::{convert::l7::route_table, wire::l7 as wire};

fn hosts(count: usize, rules: &[Vec<u8>]) -> Vec<u8> {
    let host = wire::VirtualHost { name: "h".into(), rules: rules.to_vec(), ..Default::default() };
    wire::RouteTable { name: "t".into(), hosts: vec![host; count], retries: None }.encode_to_vec()
}

#[test]
fn rules_of_all_hosts_have_a_limit_together() {
    let rules = vec![vec![]; 10_000];
    assert_eq!(route_table(&hosts(5, &rules)).unwrap().table.hosts().len(), 5);
    let problem = route_table(&hosts(6, &rules)).unwrap_err().to_string();
    assert_eq!(problem, "rules of all hosts: 60000 of them, the limit is 50000");
}

#[test]
fn closed_rules_are_told_of_up_to_a_number_and_counted() {
    let read = route_table(&hosts(3, &vec![vec![]; 70])).unwrap();
    assert_eq!((read.closed.len(), read.more_closed), (100, 110));
    assert_eq!(read.closed[99].index, 29);
    assert_eq!(read.table.hosts()[2].rules.len(), 70);
}

#[test]
fn conditions_of_all_rules_have_a_limit_together() {
    let action = Some(wire::handling::Action::Respond(wire::DirectResponse { status: 200, body: vec![] }));
    let handling = Some(wire::Handling { action, ..Default::default() });
    let rule = |count| wire::Rule { conditions: vec![Default::default(); count], handling: handling.clone() };
    let mut rules = vec![rule(1000).encode_to_vec(); 201];
    // What has none is not concerned.
    rules.push(rule(0).encode_to_vec());
    let read = route_table(&hosts(1, &rules)).unwrap();
    let closed: Vec<_> = read.closed.iter().map(|rule| (rule.index, rule.problem.to_string())).collect();
    assert_eq!(closed, [(200, "conditions of all rules: 201000 of them, the limit is 200000".to_owned())]);
}

#[test]
fn equal_patterns_of_many_rules_are_one() {
    let path = wire::PathMatch { kind: Some(wire::path_match::Kind::Regex("/a/[0-9]+".into())), ignore_case: false };
    let action = Some(wire::handling::Action::Closed("not".into()));
    let rule = wire::Rule {
        conditions: vec![wire::Condition { path: Some(path), ..Default::default() }],
        handling: Some(wire::Handling { action, ..Default::default() }),
    };
    let read = route_table(&hosts(1, &vec![rule.encode_to_vec(); 5000])).unwrap();
    assert_eq!(read.closed, []);
}
