//! Which of two rules comes first.

use super::*;
use crate::l7::order::{Api, Candidate, Origin, arrange, assemble};

fn origin(api: Api, created: Option<i64>, name: &str, index: usize) -> Origin {
    Origin { api, created, namespace: "shop".into(), name: name.into(), kind: "HTTPRoute".into(), index }
}

fn candidate(origin: Origin, conditions: Vec<Condition>) -> Candidate {
    let handling = handling(&format!("{}/{}", origin.name, origin.index));
    Candidate { origin, conditions, handling }
}

fn names(rules: &[Rule]) -> Vec<String> {
    rules.iter().map(|rule| rule.handling.name.to_string()).collect()
}

/// A match of the Gateway API in a few letters: path kind and text, then what else.
fn gateway(text: &str) -> Condition {
    let mut words = text.split(' ');
    let (kind, value) = words.next().unwrap().split_at(1);
    let mut condition = match kind {
        "=" => path(PathKind::Exact(value.into())),
        "^" => path(PathKind::Segments(value.into())),
        _ => path(PathKind::Regex(Pattern::new(value).unwrap())),
    };
    for word in words {
        let name = word.split_at(1).1;
        let value = Text::Exact("1".into());
        match word.split_at(1).0 {
            "m" => condition.method = Some(Text::Exact(name.into())),
            "h" => {
                let name = HeaderName::try_from(name).unwrap();
                condition.headers.push(HeaderMatch { name, value, invert: false });
            }
            _ => condition.query.push(QueryMatch { name: name.into(), value }),
        }
    }
    condition
}

#[test]
fn the_gateway_apis_order() {
    let sorted = [
        "=/a mGET",
        "=/a hx-a",
        "=/match",
        "^/long/path",
        "^/long mGET hx-a",
        "^/long mGET",
        "^/long hx-a hx-b",
        "^/long hx-a qa qb",
        "^/long hx-a qa",
        "^/long hx-a",
        "^/long qa qb qc",
        "^/long",
        "~/long.*",
        "~/.*",
        "^/ mGET",
        "^/ hx-a",
        "^/ qa",
        "^/",
    ];
    for shift in 0..sorted.len() {
        // Each is a route of its own; however they come, and however old, they are sorted by what they say.
        let mut shuffled: Vec<usize> = (0..sorted.len()).map(|n| (n * 7 + shift) % sorted.len()).collect();
        shuffled.sort_unstable_by_key(|n| (n * 11 + shift) % 19);
        let routes = shuffled.iter().map(|n| {
            let age = i64::try_from(sorted.len() - n).unwrap();
            Candidate {
                handling: handling(sorted[*n]),
                ..candidate(origin(Api::Gateway, Some(age), "r", *n), vec![gateway(sorted[*n])])
            }
        });
        assert_eq!(names(&arrange(routes.collect())), sorted, "{shift}");
    }
}

#[test]
fn of_equals_the_oldest_then_the_first_by_name_then_as_written() {
    let same = || vec![gateway("^/a")];
    let one = |created, name, index| candidate(origin(Api::Gateway, created, name, index), same());
    let rules = arrange(vec![
        one(Some(9), "a", 0),
        one(Some(5), "c", 1),
        one(Some(5), "c", 0),
        one(Some(5), "b", 0),
        one(None, "z", 0),
    ]);
    assert_eq!(names(&rules), ["z/0", "b/0", "c/0", "c/1", "a/0"]);
}

#[test]
fn alternatives_of_one_rule_are_ordered_each_for_itself() {
    let both = candidate(origin(Api::Gateway, Some(1), "both", 0), vec![gateway("^/"), gateway("=/x")]);
    let between = candidate(origin(Api::Gateway, Some(2), "between", 0), vec![gateway("^/x")]);
    let all = candidate(origin(Api::Gateway, Some(3), "all", 0), vec![]);
    let rules = arrange(vec![all, between, both]);
    assert_eq!(names(&rules), ["both/0", "between/0", "both/0", "all/0"]);
    assert!(Arc::ptr_eq(&rules[0].handling, &rules[2].handling));
}

#[test]
fn a_virtual_service_is_tried_as_it_is_written() {
    let istio =
        |created, name, index, conditions| candidate(origin(Api::Istio, Some(created), name, index), conditions);
    let exact = |text: &str| vec![path(PathKind::Exact(text.into()))];
    let prefix = |text: &str| vec![path(PathKind::Prefix(text.into()))];
    let written = vec![
        istio(1, "a", 0, prefix("/")),
        istio(1, "a", 1, exact("/a")),
        istio(1, "b", 0, exact("/b")),
        istio(2, "c", 0, vec![]),
    ];
    assert_eq!(names(&arrange(written)), ["b/0", "a/0", "c/0"]);
    let written = vec![istio(1, "a", 2, vec![]), istio(1, "a", 0, prefix("/x")), istio(1, "a", 1, exact("/x/y"))];
    assert_eq!(names(&arrange(written)), ["a/0", "a/1", "a/2"]);
}

#[test]
fn what_a_rule_says_beside_everything_is_asked_before_other_virtual_services() {
    let exact = |text: &str| path(PathKind::Exact(text.into()));
    let prefix = |text: &str| path(PathKind::Prefix(text.into()));
    let istio = |created, name, conditions| candidate(origin(Api::Istio, Some(created), name, 0), conditions);
    let older = istio(1, "older", vec![exact("/a"), prefix("/"), exact("/never")]);
    let rules = arrange(vec![older, istio(2, "younger", vec![prefix("/a")])]);
    assert_eq!(names(&rules), ["older/0", "younger/0", "older/0"]);
    let conditions: Vec<_> = rules.into_iter().map(|rule| rule.conditions).collect();
    assert_eq!(conditions, [vec![exact("/a")], vec![prefix("/a")], vec![prefix("/")]]);
}

#[test]
fn of_two_apis_the_gateway_apis_counts() {
    let istio = candidate(origin(Api::Istio, Some(1), "old", 0), vec![]);
    let route = candidate(origin(Api::Gateway, Some(9), "young", 0), vec![gateway("=/x")]);
    assert_eq!(names(&arrange(vec![istio, route])), ["young/0"]);
    assert_eq!(arrange(vec![]), []);
}

#[test]
fn hosts_have_the_rules_of_all_that_name_them() {
    let hosts = |texts: &[&str]| texts.iter().map(|text| HostPattern::parse(text).unwrap()).collect::<Vec<_>>();
    let route = |name: &str, text: &str| candidate(origin(Api::Gateway, None, name, 0), vec![gateway(text)]);
    let istio = candidate(origin(Api::Istio, None, "vs", 0), vec![]);
    let assembled = assemble(&[
        (hosts(&["a.com", "*.com"]), route("wide", "^/")),
        (hosts(&["a.com", "a.com"]), route("narrow", "^/n")),
        (hosts(&["b.com"]), istio),
    ]);
    let table = table(assembled);
    for (line, expected) in [
        ("GET http://a.com/n", "a.com narrow/0"),
        ("GET http://a.com/", "a.com wide/0"),
        ("GET http://c.com/n", "*.com wide/0"),
        ("GET http://b.com/n", "b.com vs/0"),
        ("GET http://c.org/", "no host fits"),
    ] {
        assert_eq!(sent(line).ask(&table), expected, "{line}");
    }
    assert_eq!(table.hosts().iter().map(|host| host.rules.len()).sum::<usize>(), 4);
    assert_eq!(table.hosts().iter().filter(|host| host.falls_through).count(), 2);
}
