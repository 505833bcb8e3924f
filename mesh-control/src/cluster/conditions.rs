//! Verdicts as conditions in an object's status, in the form and with the words that Istio's have, so that whatever waits for those sees these. Pure;
//! `cluster::report` writes them.
//!
//! | standing | type | status | reason |
//! |---|---|---|---|
//! | in force | `ZtunnelAccepted` | True | Accepted |
//! | in part | `ZtunnelAccepted` | True | UnsupportedValue |
//! | last good form, or closed | `ZtunnelAccepted` | False | Invalid |
//! | no effect | `ZtunnelAccepted` | False | UnsupportedValue |
//! | a waypoint's, which it is bound to | `WaypointAccepted` | as above | as above |
//! | a waypoint's, and there is none | `WaypointAccepted` | False | AncestorNotBound |
//!
//! Where an Istio runs, those two types are its own: then there is one of ours, `undermesh.io/Accepted`. So there is for what says where requests go; but where
//! an Istio runs it acts on those objects, and nothing is said. Services and ServiceEntries are told of their waypoint (`istio.io/WaypointBound`), unless an Istio runs, which tells it
//! the same of its own; one that names none any more has no such condition. Routes and policies of the Gateway API are told of each object above them instead
//! (`cluster::parents`).

use std::net::IpAddr;

use jiff::Timestamp;
use mesh_core::ArcStr;
use serde_json::{Value as Json, json};

use super::parents::{self, ParentSaid};
use crate::resource::Kind;
use crate::verdict::{Binding, Optional, Standing, Verdict, WAYPOINT_BOUND};

const ZTUNNEL: &str = "ZtunnelAccepted";
const WAYPOINT: &str = "WaypointAccepted";
const OWN: &str = "undermesh.io/Accepted";
/// Reasons in one message.
const MOST_REASONS: usize = 5;
/// Bytes of a message.
const LONGEST: usize = 2048;

/// What a condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Which condition.
    pub r#type: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// In one word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What the status of an object is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saying {
    /// One condition.
    Condition(Said),
    /// What a ServiceEntry is told: one condition, the other one of its waypoint if that is ours to tell, and the addresses that its hosts have.
    Entry(Said, Option<Box<Saying>>, Option<Vec<Json>>),
    /// That condition is to be gone.
    Absent(Said),
    /// Some for each parent of a route, and what is said of it elsewhere.
    Parents(Vec<ParentSaid>, Said),
}

impl Saying {
    /// What there is to say about a verdict. `with_istio`: there is an Istio in the cluster.
    pub fn of(kind: Kind, verdict: &Verdict, with_istio: bool) -> Self {
        if kind == Kind::Service {
            return of_service(verdict.binding.as_ref());
        }
        let said = said(kind, verdict, with_istio);
        if kind == Kind::ServiceEntry {
            let item =
                |(host, address): &(ArcStr, IpAddr)| json!({ "value": address.to_string(), "host": host.as_str() });
            let given = verdict.given.as_ref().map(|given| given.iter().map(item).collect());
            let bound = verdict.binding.as_ref();
            let bound = (bound != Some(&Binding::Untold)).then(|| Box::new(of_service(bound)));
            return Saying::Entry(said, bound, given);
        }
        if !kind.is_told_by_parent() {
            return Saying::Condition(said);
        }
        let parents = parents::said(kind, verdict);
        let worst = parents::worst(&parents).cloned().unwrap_or(said);
        Saying::Parents(parents, worst)
    }

    /// In one sentence.
    pub fn said(&self) -> &Said {
        match self {
            Saying::Condition(said) | Saying::Entry(said, ..) | Saying::Absent(said) | Saying::Parents(_, said) => said,
        }
    }

    /// What is worth an event when it is written into a status that was `before`: what is to be acted on, and that all is well where it was not. Whoever
    /// has no parent of ours hears nothing from us.
    pub fn news(&self, before: &[Json]) -> Option<&Said> {
        let (said, was_refused) = match self {
            Saying::Absent(_) => return None,
            Saying::Parents(parents, _) if parents.is_empty() => return None,
            Saying::Parents(_, said) => (said, parents::were_refused(before)),
            Saying::Condition(said) | Saying::Entry(said, ..) => {
                let is_refusal = |one: &Json| one["type"] == said.r#type && one["status"] == "False";
                (said, before.iter().any(is_refusal))
            }
        };
        let own = (!said.holds || was_refused).then_some(said);
        // Of its waypoint a ServiceEntry hears if all else is well.
        match self {
            Saying::Entry(_, Some(bound), _) => own.filter(|own| !is_said(before, own)).or_else(|| bound.news(before)),
            _ => own,
        }
    }

    /// The addresses that the status is to show; `None` if it does, in whatever order.
    pub fn addresses(&self, before: &[Json]) -> Option<&[Json]> {
        let Saying::Entry(_, _, Some(given)) = self else { return None };
        let is_same = given.len() == before.len() && given.iter().all(|one| before.contains(one));
        (!is_same).then_some(given)
    }

    /// The part of the status that is ours to write, after it was told; `None` if there is nothing new in it.
    pub fn told(&self, before: &[Json], generation: i64, now: Timestamp) -> Option<Vec<Json>> {
        match self {
            // A service has no generation, and its conditions have a number there.
            Saying::Condition(said) if said.r#type == WAYPOINT_BOUND => told(before, said, None, now),
            Saying::Condition(said) => told(before, said, Some(generation), now),
            Saying::Entry(said, bound, _) => {
                let own = told(before, said, Some(generation), now);
                let after = own.as_deref().unwrap_or(before);
                let bound = bound.as_deref().and_then(|bound| match bound {
                    Saying::Condition(said) => told(after, said, Some(generation), now),
                    bound => bound.told(after, generation, now),
                });
                bound.or(own)
            }
            Saying::Absent(said) => {
                let others: Vec<Json> = before.iter().filter(|one| one["type"] != said.r#type).cloned().collect();
                (others != before).then_some(others)
            }
            Saying::Parents(parents, _) => parents::told(before, parents, generation, now),
        }
    }
}

/// What there is to say to a service, or a ServiceEntry, of its waypoint.
fn of_service(binding: Option<&Binding>) -> Saying {
    let said = |holds, reason, message: String| Said { r#type: WAYPOINT_BOUND, holds, reason, message: cut(message) };
    match binding {
        Some(Binding::Accepted(name, beside)) => {
            let attached = format!("Successfully attached to waypoint {name}");
            let (reason, message) = match (&beside.optional, &beside.no_canary) {
                // It is bound all the same, to the one waypoint.
                (_, Some((reason, why))) => (*reason, format!("{attached}; {why}")),
                (Optional::Unsaid, None) => ("WaypointAccepted", attached),
                (Optional::InForce, None) => (
                    "WaypointOptional",
                    format!("{attached}; while nobody answers there, clients reach the service without it"),
                ),
                (Optional::Closed(why), None) => ("WaypointAccepted", format!("{attached}; it is not optional: {why}")),
            };
            Saying::Condition(said(true, reason, message))
        }
        Some(Binding::Refused(reason, why)) => Saying::Condition(said(false, reason, why.clone())),
        None | Some(Binding::Untold) => Saying::Absent(said(true, "NoWaypoint", String::new())),
    }
}

/// Whether a status says that already.
fn is_said(before: &[Json], said: &Said) -> bool {
    let status = if said.holds { "True" } else { "False" };
    let is_it = |one: &Json| one["type"] == said.r#type && one["status"] == status && one["message"] == *said.message;
    before.iter().any(is_it)
}

fn cut(mut message: String) -> String {
    if message.len() > LONGEST {
        message.truncate(message.floor_char_boundary(LONGEST));
        message.push('…');
    }
    message
}

/// What there is to say about a verdict. `with_istio`: there is an Istio in the cluster.
pub fn said(kind: Kind, verdict: &Verdict, with_istio: bool) -> Said {
    let (holds, reason, message) = match verdict.standing {
        Standing::InForce if verdict.at_waypoint => (true, "Accepted", "in force at the waypoints that it is bound to"),
        Standing::InPart if verdict.at_waypoint => {
            let message = "in force at the waypoints that it is bound to, but not just as it is written";
            (true, "UnsupportedValue", message)
        }
        Standing::InForce => (true, "Accepted", "in force at the nodes' agents"),
        Standing::InPart => (true, "UnsupportedValue", "in force at the nodes' agents, but not just as it is written"),
        Standing::LastGood => (false, "Invalid", "cannot be read; what it said before stays in force"),
        Standing::Closed => (false, "Invalid", "cannot be read and never could; what it selects is closed"),
        Standing::NoEffect => (false, "UnsupportedValue", "not in force"),
        Standing::Elsewhere if kind.is_routing() => (false, "AncestorNotBound", "read and kept"),
        Standing::Elsewhere => (false, "AncestorNotBound", "not in force"),
    };
    let mut message = message.to_owned();
    for (index, reason) in verdict.reasons.iter().enumerate() {
        if index == MOST_REASONS {
            message.push_str(&format!("; and {} more", verdict.reasons.len() - MOST_REASONS));
            break;
        }
        message.push_str(if index == 0 { ": " } else { "; " });
        message.push_str(reason);
    }
    let message = cut(message);
    let r#type = match (with_istio, verdict.standing) {
        // The other two are conditions of policies.
        _ if kind.is_routing() && kind != Kind::RequestAuthentication => OWN,
        (true, _) => OWN,
        (false, Standing::Elsewhere) => WAYPOINT,
        (false, _) if verdict.at_waypoint || kind.is_routing() => WAYPOINT,
        (false, _) => ZTUNNEL,
    };
    Said { r#type, holds, reason, message }
}

/// The conditions of an object after it was told; `None` if there is nothing new in it. Those of others stay, and so does the time since when something
/// holds or does not.
pub fn told(before: &[Json], said: &Said, generation: Option<i64>, now: Timestamp) -> Option<Vec<Json>> {
    let text =
        |condition: &Json, field: &str| condition.get(field).and_then(Json::as_str).unwrap_or_default().to_owned();
    let is = |condition: &Json, r#type: &str| text(condition, "type") == r#type;
    let status = if said.holds { "True" } else { "False" };
    let old = before.iter().find(|condition| is(condition, said.r#type));
    let since = old.filter(|old| text(old, "status") == status).map(|old| text(old, "lastTransitionTime"));
    let mut new = json!({
        "type": said.r#type,
        "status": status,
        "reason": said.reason,
        "message": said.message,
        "lastTransitionTime": since.filter(|since| !since.is_empty()).unwrap_or_else(|| format!("{now:.0}")),
    });
    if let (Some(new), Some(generation)) = (new.as_object_mut(), generation) {
        // As protobuf writes numbers of 64 bits.
        new.insert("observedGeneration".to_owned(), generation.to_string().into());
    }
    // What was ours and is about something else now.
    let stale = |condition: &Json| {
        ![OWN, WAYPOINT_BOUND].contains(&said.r#type)
            && [ZTUNNEL, WAYPOINT, OWN].iter().any(|t| is(condition, t) && *t != said.r#type)
    };
    let mut after: Vec<Json> = before.iter().filter(|condition| !stale(condition)).cloned().collect();
    match after.iter_mut().find(|condition| is(condition, said.r#type)) {
        Some(old) => *old = new,
        None => after.push(new),
    }
    (after != before).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Attached, Mark};

    fn verdict(standing: Standing, reasons: &[&str]) -> Verdict {
        let reasons = reasons.iter().map(|reason| (*reason).to_owned()).collect();
        Verdict {
            standing,
            reasons,
            route: None,
            at_waypoint: false,
            binding: None,
            given: None,
            mark: Mark::default(),
        }
    }

    #[test]
    fn verdicts_are_said_in_istio_s_words() {
        for (standing, with_istio, expected) in [
            (Standing::InForce, false, ("ZtunnelAccepted", true, "Accepted")),
            (Standing::InPart, false, ("ZtunnelAccepted", true, "UnsupportedValue")),
            (Standing::LastGood, false, ("ZtunnelAccepted", false, "Invalid")),
            (Standing::Closed, false, ("ZtunnelAccepted", false, "Invalid")),
            (Standing::NoEffect, false, ("ZtunnelAccepted", false, "UnsupportedValue")),
            (Standing::Elsewhere, false, ("WaypointAccepted", false, "AncestorNotBound")),
            (Standing::InForce, true, ("undermesh.io/Accepted", true, "Accepted")),
            (Standing::Elsewhere, true, ("undermesh.io/Accepted", false, "AncestorNotBound")),
        ] {
            let said = said(Kind::AuthorizationPolicy, &verdict(standing, &["a"]), with_istio);
            assert_eq!((said.r#type, said.holds, said.reason), expected, "{standing:?} {with_istio}");
            assert!(said.message.ends_with(": a"));
        }
        for (kind, standing, expected) in [
            (Kind::AuthorizationPolicy, Standing::InForce, ("WaypointAccepted", true, "Accepted")),
            (Kind::AuthorizationPolicy, Standing::InPart, ("WaypointAccepted", true, "UnsupportedValue")),
            (Kind::AuthorizationPolicy, Standing::Closed, ("WaypointAccepted", false, "Invalid")),
            (Kind::RequestAuthentication, Standing::InForce, ("WaypointAccepted", true, "Accepted")),
        ] {
            let there = Verdict { at_waypoint: true, ..verdict(standing, &["a"]) };
            let said = said(kind, &there, false);
            assert_eq!((said.r#type, said.holds, said.reason), expected, "{kind:?} {standing:?}");
        }
        let of_a_route = said(Kind::VirtualService, &verdict(Standing::Elsewhere, &["a"]), false);
        assert_eq!((of_a_route.r#type, of_a_route.holds), ("undermesh.io/Accepted", false));
        let many =
            said(Kind::AuthorizationPolicy, &verdict(Standing::Closed, &["1", "2", "3", "4", "5", "6", "7"]), false);
        assert!(many.message.ends_with(": 1; 2; 3; 4; 5; and 2 more"), "{}", many.message);
        let long = "é".repeat(5000);
        let long = said(Kind::AuthorizationPolicy, &verdict(Standing::Closed, &[&long]), false);
        assert!(long.message.len() < LONGEST + 4 && long.message.ends_with("é…"));
    }

    #[test]
    fn what_is_to_be_acted_on_is_news_and_that_all_is_well_only_where_it_was_not() {
        use crate::resource::routing::reference::{CONTROLLER, ParentReference};
        use crate::verdict::Belonging;

        let policy = |standing| Saying::of(Kind::AuthorizationPolicy, &verdict(standing, &[]), false);
        let is = |r#type: &str, status: &str| json!({ "type": r#type, "status": status });
        let parent = |by: &str, status: &str| json!({ "controllerName": by, "conditions": [is("Accepted", status)] });
        let reference = ParentReference {
            group: Some(String::new()),
            kind: Some("Service".to_owned()),
            namespace: None,
            name: "a".to_owned(),
            section_name: None,
            port: None,
        };
        let route = |parents: &[ParentReference]| {
            let parents = parents.iter().map(|parent| (parent.clone(), None)).collect();
            let route = Some(Belonging { parents, broken: Some(Vec::new()), ..Belonging::default() });
            Saying::of(Kind::HttpRoute, &Verdict { route, ..verdict(Standing::Elsewhere, &[]) }, false)
        };
        let nobodys = route(&[]);
        // As soon as something acts on routes.
        let good = match route(std::slice::from_ref(&reference)) {
            Saying::Parents(parents, said) => Saying::Parents(parents, Said { holds: true, ..said }),
            other => other,
        };
        let other = "example.com/c";
        for (what, saying, before, is_news) in [
            ("refused", policy(Standing::Closed), vec![], true),
            ("well from the beginning", policy(Standing::InForce), vec![], false),
            ("well as before", policy(Standing::InForce), vec![is(ZTUNNEL, "True")], false),
            ("well again", policy(Standing::InForce), vec![is(ZTUNNEL, "False")], true),
            ("another's was refused", policy(Standing::InForce), vec![is("Theirs", "False")], false),
            ("a route that waits", route(&[reference]), vec![], true),
            ("a route, well from the beginning", good.clone(), vec![], false),
            ("a route, well as before", good.clone(), vec![parent(CONTROLLER, "True")], false),
            ("a route, well again", good.clone(), vec![parent(other, "True"), parent(CONTROLLER, "False")], true),
            ("another controller refused it", good, vec![parent(other, "False")], false),
            ("it has a parent of ours no more", nobodys.clone(), vec![parent(CONTROLLER, "False")], false),
            ("it never had one", nobodys, vec![], false),
        ] {
            assert_eq!(saying.news(&before).is_some(), is_news, "{what}");
        }
    }

    #[test]
    fn features_CL_10_a_service_entry_is_told_of_itself_and_of_its_waypoint() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let of = |standing, binding: Option<Binding>| {
            Saying::of(Kind::ServiceEntry, &Verdict { binding, ..verdict(standing, &[]) }, false)
        };
        let name = mesh_core::NamespacedName::new("shop", "wp");
        let (good, bad) = (
            Some(Binding::Accepted(name, Attached::default())),
            Some(Binding::Refused("WaypointIsNotReady", "it is not".into())),
        );
        let shown = |conditions: &[Json]| {
            let one = |c: &Json| format!("{} {} {} {}", c["type"], c["status"], c["reason"], c["observedGeneration"]);
            conditions.iter().map(one).collect::<Vec<_>>().join("; ").replace('"', "")
        };
        let own = "undermesh.io/Accepted True Accepted 3";
        for (binding, expected, news) in [
            (None, own.to_owned(), None),
            (good, format!("{own}; istio.io/WaypointBound True WaypointAccepted 3"), None),
            (bad.clone(), format!("{own}; istio.io/WaypointBound False WaypointIsNotReady 3"), Some("it is not")),
        ] {
            let saying = of(Standing::InForce, binding);
            let after = saying.told(&[], 3, now).unwrap();
            assert_eq!(shown(&after), expected);
            assert_eq!(saying.told(&after, 3, now), None, "it is said once");
            assert_eq!(saying.news(&[]).map(|said| said.message.as_str()), news);
            // Who names a waypoint no more has no such condition.
            let gone = of(Standing::InForce, None).told(&after, 3, now);
            assert_eq!(shown(&gone.unwrap_or(after)), own);
        }
        let untold = of(Standing::InForce, Some(Binding::Untold));
        let theirs = json!({ "type": WAYPOINT_BOUND, "status": "True", "reason": "WaypointAccepted", "observedGeneration": "2" });
        let after = untold.told(std::slice::from_ref(&theirs), 3, now).unwrap();
        assert_eq!(shown(&after), format!("istio.io/WaypointBound True WaypointAccepted 2; {own}"), "it stays");
        let worse = of(Standing::NoEffect, bad);
        assert!(worse.news(&[]).is_some_and(|said| said.r#type == OWN), "what is wrong with itself comes first");
    }

    #[test]
    fn a_service_is_told_of_its_waypoint_in_the_form_that_its_conditions_have() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let of = |binding: Option<Binding>| {
            Saying::of(Kind::Service, &Verdict { binding, ..verdict(Standing::InForce, &[]) }, false)
        };
        let accepted = of(Some(Binding::Accepted(mesh_core::NamespacedName::new("shop", "wp"), Attached::default())));
        let theirs = json!({ "type": "example.com/Balanced", "status": "True", "observedGeneration": 1 });
        let bound = json!({ "type": "istio.io/WaypointBound", "status": "True", "reason": "WaypointAccepted",
            "message": "Successfully attached to waypoint shop/wp", "lastTransitionTime": "2026-11-21T10:00:00Z" });
        assert_eq!(accepted.told(std::slice::from_ref(&theirs), 0, now), Some(vec![theirs.clone(), bound.clone()]));
        let both = [theirs.clone(), bound];
        assert_eq!((accepted.told(&both, 0, now), accepted.news(&[])), (None, None));
        let refused = of(Some(Binding::Refused("AttachmentDenied", "why".into())));
        let after = refused.told(&both, 0, now).unwrap();
        assert_eq!((&after[1]["status"], &after[1]["reason"]), (&json!("False"), &json!("AttachmentDenied")));
        assert!(refused.news(&both).is_some() && accepted.news(&after).is_some());
        for (optional, reason, more) in [
            (
                Optional::InForce,
                "WaypointOptional",
                "; while nobody answers there, clients reach the service without it",
            ),
            (Optional::Closed("why"), "WaypointAccepted", "; it is not optional: why"),
        ] {
            let said = of(Some(Binding::Accepted(
                mesh_core::NamespacedName::new("shop", "wp"),
                Attached { optional, no_canary: None },
            )));
            let Saying::Condition(said) = said else { panic!("{said:?}") };
            let message = format!("Successfully attached to waypoint shop/wp{more}");
            assert_eq!((said.holds, said.reason, said.message), (true, reason, message));
        }
        // Of a service that names none any more it goes, and nothing else does.
        let none = of(None);
        assert_eq!(none.told(&both, 0, now), Some(vec![theirs.clone()]));
        assert_eq!((none.told(&[theirs], 0, now), none.news(&both)), (None, None));
    }

    #[test]
    fn conditions_are_written_when_they_say_something_new() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let say = |holds, message: &str| Said { r#type: ZTUNNEL, holds, reason: "r", message: message.into() };
        let condition = |r#type: &str, status: &str, message: &str, since: &str, generation: &str| {
            json!({ "type": r#type, "status": status, "reason": "r", "message": message,
                "lastTransitionTime": since, "observedGeneration": generation })
        };
        let (first, today) = ("2026-01-01T00:00:00Z", "2026-11-21T10:00:00Z");
        let (ours, theirs) = (condition(ZTUNNEL, "True", "m", first, "1"), json!({ "type": "Reconciled", "x": 1 }));
        for (what, before, said, generation, after) in [
            ("the first", vec![], say(true, "m"), 1, Some(vec![condition(ZTUNNEL, "True", "m", today, "1")])),
            ("the same", vec![ours.clone()], say(true, "m"), 1, None),
            ("beside another's", vec![theirs.clone(), ours.clone()], say(true, "m"), 1, None),
            (
                "another generation",
                vec![ours.clone()],
                say(true, "m"),
                2,
                Some(vec![condition(ZTUNNEL, "True", "m", first, "2")]),
            ),
            (
                "another message",
                vec![ours.clone(), theirs.clone()],
                say(true, "n"),
                1,
                Some(vec![condition(ZTUNNEL, "True", "n", first, "1"), theirs.clone()]),
            ),
            (
                "the opposite",
                vec![theirs.clone(), ours.clone()],
                say(false, "m"),
                1,
                Some(vec![theirs.clone(), condition(ZTUNNEL, "False", "m", today, "1")]),
            ),
            (
                "what was for a waypoint",
                vec![condition(WAYPOINT, "False", "w", first, "1"), theirs.clone()],
                say(true, "m"),
                1,
                Some(vec![theirs.clone(), condition(ZTUNNEL, "True", "m", today, "1")]),
            ),
        ] {
            assert_eq!(told(&before, &said, Some(generation), now), after, "{what}");
        }
        // Istio's are not touched where there is one.
        let own = Said { r#type: OWN, ..say(true, "m") };
        let after = told(std::slice::from_ref(&ours), &own, Some(1), now).unwrap();
        assert_eq!(after, [ours, condition(OWN, "True", "m", today, "1")]);
    }
}
