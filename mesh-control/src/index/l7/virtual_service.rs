//! VirtualServices: their rules for HTTP, in the order in which they are written, with those of others that they delegate to.

mod action;
mod condition;
mod delegate;
mod failures;

use mesh_core::NamespacedName;
use mesh_core::l7::order::{Api, Candidate, Origin};

use super::Around;
use super::notes::Notes;
use super::parts::Parts;
use crate::index::l7::Problems;
use crate::index::routing::hosts::sees;
use crate::resource::routing::Routed;
use crate::resource::routing::virtual_service::{Delegate, HttpRule, VirtualService};
use crate::resource::{Key, Kind};

pub use failures::retries_of as retries;

/// What an object says of requests to one port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// In their order.
    pub candidates: Vec<Candidate>,
    /// Some place has no port of its own: it is the one that clients connect to, so each port has rules of its own.
    pub by_port: bool,
}

/// One object while its rules are read.
struct Reading<'a, 'b> {
    around: &'a Around<'a>,
    /// Where its short names, and what it sees, are.
    namespace: &'a str,
    /// The port that clients connect to.
    port: Option<u16>,
    /// See [`Rules::by_port`].
    by_port: &'b mut bool,
}

/// The rules of an object for clients that connect to `port`; without one for those to any port, as far as that can be said.
pub fn rules(
    object: &Routed<VirtualService>,
    port: Option<u16>,
    around: &Around<'_>,
    problems: &mut Problems,
) -> Rules {
    let mut rules = Rules::default();
    let origin = |index| Origin {
        api: Api::Istio,
        created: object.created,
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        kind: Kind::VirtualService.name().into(),
        index,
    };
    for (index, rule) in object.spec.http.iter().enumerate() {
        for parts in parts(object, index, rule, port, around, &mut rules.by_port, problems) {
            rules.candidates.push(parts.finish(origin(rules.candidates.len()), &around.retries));
        }
    }
    rules
}

fn key(object: &Routed<VirtualService>) -> Key {
    Key { kind: Kind::VirtualService, namespace: object.namespace.clone(), name: object.name.clone() }
}

/// One rule; or, if it delegates, those that come of it.
fn parts(
    object: &Routed<VirtualService>,
    index: usize,
    rule: &HttpRule,
    port: Option<u16>,
    around: &Around<'_>,
    by_port: &mut bool,
    problems: &mut Problems,
) -> Vec<Parts> {
    let mut reading = Reading { around, namespace: &object.namespace, port, by_port };
    let mut notes = Notes::new(key(object), problems);
    let field = format!("spec.http[{index}]");
    let mut outer = reading.rule(rule, &field, &mut notes);
    let Some(delegate) = &rule.delegate else { return vec![outer] };
    let inner = match other(delegate, object, around) {
        Ok(inner) => inner,
        Err(told) => {
            let field = format!("{field}.delegate");
            match told {
                Refused::Told(why) => notes.closed_by(&field, &why),
                Refused::New(why, help) => notes.close(&field, why, help),
            }
            outer.closed = outer.closed.or(notes.closed());
            return vec![outer];
        }
    };
    let (mut all, mut count) = (Vec::new(), 0);
    for (at, inner_rule) in inner.spec.http.iter().enumerate() {
        let mut reading = Reading { around, namespace: &inner.namespace, port, by_port };
        let mut own = Notes::new(key(inner), problems);
        let inner_parts = reading.rule(inner_rule, &format!("spec.http[{at}]"), &mut own);
        let Some(parts) = delegate::joined(&outer, inner_parts) else {
            let what = format!("no request comes to http[{at}] of VirtualService {}/{}", inner.namespace, inner.name);
            let mut notes = Notes::new(key(object), problems);
            notes.warn(format!("{field}.delegate"), what, "its match contradicts that of this rule");
            continue;
        };
        count += parts.conditions.len();
        if count > delegate::MOST_CONDITIONS {
            let mut notes = Notes::new(key(object), problems);
            let message = format!("more than {} conditions come of it", delegate::MOST_CONDITIONS);
            notes.close(format!("{field}.delegate"), message, "write fewer alternatives");
            outer.closed = notes.closed();
            return vec![outer];
        }
        all.push(parts);
    }
    // What no rule of the other means belongs to this object's next rule.
    all
}

/// Why nobody can be delegated to.
enum Refused {
    /// It is told when the objects are looked at beside each other.
    Told(String),
    /// It is told here: why, and what to do.
    New(String, &'static str),
}

/// The object that is delegated to.
fn other<'a>(
    delegate: &Delegate,
    object: &Routed<VirtualService>,
    around: &'a Around<'_>,
) -> Result<&'a Routed<VirtualService>, Refused> {
    let namespace = delegate.namespace.as_deref().unwrap_or(&object.namespace);
    let name = NamespacedName::new(namespace, delegate.name.as_str());
    let told = |why: &str| Refused::Told(format!("VirtualService {name} {why}"));
    let other = around.routes.virtual_services.get(&name).ok_or_else(|| told("does not count, or there is none"))?;
    if !other.spec.hosts.is_empty() {
        return Err(told("has hosts of its own"));
    }
    if other.spec.http.iter().any(|rule| rule.delegate.is_some()) {
        return Err(told("delegates further"));
    }
    match sees(&other.spec.export_to, &other.namespace, &object.namespace) {
        true => Ok(other),
        false => {
            let why = format!("VirtualService {name} is not exported to {}", object.namespace);
            Err(Refused::New(why, "add that namespace to its exportTo"))
        }
    }
}

impl Reading<'_, '_> {
    fn rule(&mut self, rule: &HttpRule, field: &str, notes: &mut Notes<'_>) -> Parts {
        let mut parts = Parts::new(rule.name.as_deref().unwrap_or_default(), notes.origin());
        let ((), closed) = notes.apart(|notes| {
            for (index, one) in rule.matches.iter().enumerate() {
                parts.conditions.push(condition::condition(
                    one,
                    self.namespace,
                    &format!("{field}.match[{index}]"),
                    notes,
                ));
            }
            parts.action = self.action(rule, field, notes);
            let authority;
            (parts.request, parts.response, authority) =
                action::headers(&rule.headers, &format!("{field}.headers"), notes);
            parts.rewrite = action::rewrite(rule.rewrite.as_ref(), authority, &format!("{field}.rewrite"), notes);
            parts.timeout = rule.limit();
            parts.retries = failures::retries(rule, &format!("{field}.retries"), notes);
            parts.fault = failures::fault(rule, field, notes);
            parts.mirrors = self.mirrors(rule, field, notes);
            parts.cors = failures::cors(rule.cors_policy.as_ref(), &format!("{field}.corsPolicy"), notes);
        });
        parts.closed = closed;
        parts
    }
}
