//! What routes of the Gateway API are told: in `status.parents`, for each of their parents that is ours, whether it takes the route (`Accepted`) and whether
//! all references lead somewhere (`ResolvedRefs`), in that API's words. A BackendTLSPolicy is told the same in `status.ancestors`, for each gateway that reaches what it is
//! about. What other controllers say there stays. Pure; `cluster::report` writes it.

use jiff::Timestamp;
use serde_json::{Map, Value as Json, json};

use super::conditions::Said;
use crate::resource::Kind;
use crate::resource::routing::inaction;
use crate::resource::routing::reference::{CONTROLLER, ParentReference};
use crate::verdict::Verdict;

/// The definitions of routes and of policies let no more stand there.
const MOST: usize = 32;
const MOST_ANCESTORS: usize = 16;

/// What is said of one parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentSaid {
    /// What the part of the status calls it.
    field: &'static str,
    /// Which, as the route names it.
    parent: Json,
    conditions: Vec<Said>,
}

/// What there is to say of each parent that is ours.
pub fn said(kind: Kind, verdict: &Verdict) -> Vec<ParentSaid> {
    let Some(route) = &verdict.route else { return Vec::new() };
    // Of references that could never be read it is not known whether they lead anywhere.
    let references = route.broken.as_ref().map(|broken| match broken.first() {
        None => condition("ResolvedRefs", true, "ResolvedRefs", "all references lead somewhere".to_owned()),
        Some((_, reason, _)) => {
            let all: Vec<String> = broken.iter().take(5).map(|(spot, _, why)| format!("{spot}: {why}")).collect();
            condition("ResolvedRefs", false, reason, all.join("; "))
        }
    });
    let of = |(reference, refused): &(ParentReference, Option<(&'static str, String)>)| {
        let accepted = match (refused, inaction(kind)) {
            _ if !verdict.mark.is_read => {
                let why = verdict.reasons.first().map(String::as_str).unwrap_or_default();
                let reason = if kind.is_route() { "UnsupportedValue" } else { "Invalid" };
                condition("Accepted", false, reason, format!("cannot be read: {why}"))
            }
            (Some((reason, why)), _) => condition("Accepted", false, reason, why.clone()),
            (None, Some(_)) if route.served.contains(reference) => {
                let place = if reference.is_service() { "waypoint" } else { "gateway" };
                condition("Accepted", true, "Accepted", format!("in force at the {place}"))
            }
            (None, Some(why)) => condition("Accepted", false, "Pending", format!("read and kept: {why}")),
            (None, None) => condition("Accepted", true, "Accepted", "in force".to_owned()),
        };
        ParentSaid {
            field: if kind.is_route() { "parentRef" } else { "ancestorRef" },
            parent: named(reference),
            conditions: std::iter::once(accepted).chain(references.clone()).collect(),
        }
    };
    route.parents.iter().map(of).collect()
}

fn condition(r#type: &'static str, holds: bool, reason: &'static str, message: String) -> Said {
    Said { r#type, holds, reason, message }
}

/// A parent as a route names it.
fn named(reference: &ParentReference) -> Json {
    let mut named = Map::new();
    let fields = [
        ("group", &reference.group),
        ("kind", &reference.kind),
        ("namespace", &reference.namespace),
        ("sectionName", &reference.section_name),
    ];
    for (field, value) in fields {
        if let Some(value) = value {
            named.insert(field.to_owned(), json!(value));
        }
    }
    named.insert("name".to_owned(), json!(reference.name));
    if let Some(port) = reference.port {
        named.insert("port".to_owned(), json!(port));
    }
    Json::Object(named)
}

/// What is worst of all that is said, for an event.
pub fn worst(parents: &[ParentSaid]) -> Option<&Said> {
    let all = || parents.iter().flat_map(|parent| &parent.conditions);
    all().find(|said| !said.holds && said.reason != "Pending").or_else(|| all().next())
}

/// Whether anything that is said of our parents does not hold.
pub fn were_refused(before: &[Json]) -> bool {
    let ours = before.iter().filter(|one| one["controllerName"] == CONTROLLER);
    ours.filter_map(|one| one["conditions"].as_array()).flatten().any(|condition| condition["status"] == "False")
}

/// The list of parents after it was told; `None` if there is nothing new in it.
pub fn told(before: &[Json], parents: &[ParentSaid], generation: i64, now: Timestamp) -> Option<Vec<Json>> {
    let (ours, theirs): (Vec<&Json>, Vec<&Json>) = before.iter().partition(|one| one["controllerName"] == CONTROLLER);
    let mut after: Vec<Json> = theirs.into_iter().cloned().collect();
    let most = parents.first().map_or(MOST, |said| if said.field == "parentRef" { MOST } else { MOST_ANCESTORS });
    for said in parents.iter().take(most.saturating_sub(after.len())) {
        let old = ours.iter().find(|one| one[said.field] == said.parent);
        let conditions: Vec<Json> =
            said.conditions.iter().map(|said| since(old.copied(), said, generation, now)).collect();
        after.push(json!({ said.field: said.parent, "controllerName": CONTROLLER, "conditions": conditions }));
    }
    // In whatever order they stand there.
    let is_same = after.len() == before.len() && after.iter().all(|one| before.contains(one));
    (!is_same).then_some(after)
}

/// A condition, and since when it holds or does not.
fn since(old: Option<&Json>, said: &Said, generation: i64, now: Timestamp) -> Json {
    let status = if said.holds { "True" } else { "False" };
    let before = old.and_then(|old| old["conditions"].as_array()).into_iter().flatten();
    let mut before = before.filter(|one| one["type"] == said.r#type && one["status"] == status);
    let since = before.find_map(|one| one["lastTransitionTime"].as_str()).map(str::to_owned);
    json!({
        "type": said.r#type,
        "status": status,
        "reason": said.reason,
        "message": said.message,
        "lastTransitionTime": since.unwrap_or_else(|| format!("{now:.0}")),
        "observedGeneration": generation,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Belonging, Mark, Standing};

    fn reference(name: &str) -> ParentReference {
        let (group, kind) = (Some(String::new()), Some("Service".to_owned()));
        ParentReference { group, kind, namespace: None, name: name.to_owned(), section_name: None, port: Some(80) }
    }

    fn verdict(is_read: bool, is_attached: bool, is_broken: bool) -> Verdict {
        let refused = (!is_attached).then(|| ("NoMatchingParent", "there is no Service shop/a".to_owned()));
        let broken =
            is_broken.then(|| ("spec.rules[0].backendRefs[1]".to_owned(), "BackendNotFound", "none".to_owned()));
        let route = Some(Belonging {
            parents: vec![(reference("a"), refused)],
            broken: Some(broken.into_iter().collect()),
            ..Belonging::default()
        });
        let mark = Mark { is_read, ..Mark::default() };
        Verdict {
            standing: Standing::Elsewhere,
            reasons: vec!["spec.x: bad".to_owned()],
            route,
            at_waypoint: false,
            binding: None,
            given: None,
            mark,
        }
    }

    #[test]
    fn routes_are_told_in_the_words_of_their_api() {
        let pending = "read and kept: known, not in force: there is no waypoint that acts on it";
        let resolved = ("ResolvedRefs", true, "ResolvedRefs", "all references lead somewhere");
        let broken = ("ResolvedRefs", false, "BackendNotFound", "spec.rules[0].backendRefs[1]: none");
        for (what, verdict, accepted, references, worst_is) in [
            ("good", verdict(true, true, false), (false, "Pending", pending), resolved, "Pending"),
            ("broken", verdict(true, true, true), (false, "Pending", pending), broken, "BackendNotFound"),
            (
                "refused",
                verdict(true, false, true),
                (false, "NoMatchingParent", "there is no Service shop/a"),
                broken,
                "NoMatchingParent",
            ),
            (
                "unread",
                verdict(false, true, false),
                (false, "UnsupportedValue", "cannot be read: spec.x: bad"),
                resolved,
                "UnsupportedValue",
            ),
        ] {
            let said = said(Kind::HttpRoute, &verdict);
            assert_eq!(said[0].parent, json!({ "group": "", "kind": "Service", "name": "a", "port": 80 }), "{what}");
            let found: Vec<_> =
                said[0].conditions.iter().map(|c| (c.r#type, c.holds, c.reason, c.message.as_str())).collect();
            assert_eq!(found, [("Accepted", accepted.0, accepted.1, accepted.2), references], "{what}");
            assert_eq!(worst(&said).unwrap().reason, worst_is, "{what}");
        }
        let mut acts = verdict(true, true, true);
        acts.route.as_mut().unwrap().served = [reference("a")].into();
        let of_it = said(Kind::HttpRoute, &acts);
        assert_eq!((of_it[0].conditions[0].holds, of_it[0].conditions[0].reason), (true, "Accepted"));
        // Never read: of its references nothing is known.
        let mut never = verdict(false, true, false);
        never.route.as_mut().unwrap().broken = None;
        let of_it = said(Kind::HttpRoute, &never);
        assert_eq!(of_it[0].conditions.iter().map(|c| c.r#type).collect::<Vec<_>>(), ["Accepted"]);
        let nobody = Verdict { route: None, ..verdict(true, true, true) };
        assert_eq!(said(Kind::HttpRoute, &nobody), []);
    }

    #[test]
    fn features_GA_policies_are_told_of_gateways_in_the_same_form() {
        let kind = Kind::BackendTlsPolicy;
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let mut good = verdict(true, true, false);
        good.route.as_mut().unwrap().served = [reference("a")].into();
        let written = |said: &[ParentSaid]| told(&[], said, 3, now).unwrap();
        let ours = written(&said(kind, &good));
        assert_eq!(ours[0]["ancestorRef"]["name"], "a");
        let reasons = |one: &Json| {
            let all = one["conditions"].as_array().unwrap().iter();
            all.map(|c| format!("{}:{}", c["status"], c["reason"]).replace('"', "")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(reasons(&ours[0]), "True:Accepted True:ResolvedRefs");
        assert_eq!(told(&ours, &said(kind, &good), 3, now), None, "nothing new");
        // Nobody reaches what it is about any more.
        assert_eq!(told(&ours, &[], 3, now), Some(Vec::new()));
        let mut never = verdict(false, true, false);
        never.route.as_mut().unwrap().broken = None;
        assert_eq!(reasons(&written(&said(kind, &never))[0]), "False:Invalid");
        // The definition lets no more stand there.
        let mut many = good;
        many.route.as_mut().unwrap().parents = (0..20).map(|n| (reference(&n.to_string()), None)).collect();
        assert_eq!(written(&said(kind, &many)).len(), MOST_ANCESTORS);
    }

    #[test]
    fn what_others_say_of_their_parents_stays() {
        let (first, now): (Timestamp, Timestamp) =
            ("2026-01-01T00:00:00Z".parse().unwrap(), "2026-11-21T10:00:00Z".parse().unwrap());
        let theirs = json!({ "parentRef": { "name": "gate" }, "controllerName": "example.com/c", "conditions": [] });
        let ours = json!({ "parentRef": { "name": "gone" }, "controllerName": CONTROLLER, "conditions": [] });
        let good = said(Kind::HttpRoute, &verdict(true, true, false));
        let bad = said(Kind::HttpRoute, &verdict(true, true, true));
        let once = told(std::slice::from_ref(&theirs), &good, 1, first).unwrap();
        assert_eq!((once.len(), &once[0]), (2, &theirs));
        let back: Vec<Json> = once.iter().rev().cloned().collect();
        assert_eq!((told(&once, &good, 1, now), told(&back, &good, 1, now)), (None, None), "nothing new");
        // What is as before has been so since then.
        let twice = told(&once, &bad, 2, now).unwrap();
        let times: Vec<&str> = twice[1]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["lastTransitionTime"].as_str().unwrap())
            .collect();
        assert_eq!(times, ["2026-01-01T00:00:00Z", "2026-11-21T10:00:00Z"]);
        assert_eq!(twice[1]["conditions"][1]["observedGeneration"], 2);
        // A parent that is ours no more.
        assert_eq!(told(&[theirs.clone(), ours], &[], 1, now).as_deref(), Some(std::slice::from_ref(&theirs)));
        assert_eq!(told(std::slice::from_ref(&theirs), &[], 1, now), None);
        let many: Vec<Json> = (0..MOST).map(|_| theirs.clone()).collect();
        assert_eq!(told(&many, &good, 1, now), None, "there is no room");
    }
}
