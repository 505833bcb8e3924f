//! A rule while it is put together: what it says itself, and what it leaves to the rule that delegates to it, or to the default.

use std::sync::Arc;

use mesh_core::ArcStr;
use mesh_core::l7::order::{Candidate, Origin};
use mesh_core::l7::{Action, Condition, Cors, Fault, Handling, HeaderChanges, Mirror, Retries, Rewrite};

use crate::resource::meta;
use crate::resource::routing::values::Limit;

/// What a rule says.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Its name, for logs.
    pub name: String,
    /// The object that it is written in, for logs.
    pub origin: ArcStr,
    /// Alternatives; none means every request.
    pub conditions: Vec<Condition>,
    /// What is done; `None` if another object says so.
    pub action: Option<Action>,
    /// Changes of the request.
    pub request: HeaderChanges,
    /// Changes of the response.
    pub response: HeaderChanges,
    /// Another path or host.
    pub rewrite: Option<Rewrite>,
    /// Copies.
    pub mirrors: Option<Vec<Mirror>>,
    /// What goes wrong on purpose.
    pub fault: Option<Fault>,
    /// Who may call from a page of another origin.
    pub cors: Option<Cors>,
    /// For all attempts together.
    pub timeout: Limit,
    /// What is tried again.
    pub retries: Option<Retries>,
    /// Why all its requests are answered with 500.
    pub closed: Option<String>,
}

impl Parts {
    /// A rule that says nothing yet.
    pub fn new(name: &str, origin: ArcStr) -> Self {
        Self {
            name: meta::shown(name).to_string(),
            origin,
            conditions: Vec::new(),
            action: None,
            request: HeaderChanges::default(),
            response: HeaderChanges::default(),
            rewrite: None,
            mirrors: None,
            fault: None,
            cors: None,
            timeout: Limit::Unset,
            retries: None,
            closed: None,
        }
    }

    /// The rule as it is tried; `usual` is tried again where it does not say it.
    pub fn finish(self, origin: Origin, usual: &Retries) -> Candidate {
        let is_many = |mirrors: &Vec<Mirror>| mirrors.len() > Handling::MOST_MIRRORS;
        let closed = self.closed.or_else(|| {
            let too_many = self.mirrors.as_ref().is_some_and(is_many);
            too_many.then(|| format!("more than {} copies of one request", Handling::MOST_MIRRORS))
        });
        let mut handling = match (closed, self.action) {
            (Some(why), _) => Handling::new(Action::Closed(why.into())),
            (None, None) => Handling::new(Action::Closed("the rule does nothing".into())),
            (None, Some(action)) => Handling {
                request: self.request,
                response: self.response,
                rewrite: self.rewrite.unwrap_or_default(),
                mirrors: self.mirrors.unwrap_or_default(),
                cors: self.cors,
                timeout: match self.timeout {
                    Limit::After(time) => Some(time),
                    Limit::Unset | Limit::None => None,
                },
                retries: self.retries.unwrap_or_else(|| usual.clone()),
                ..Handling::new(action)
            },
        };
        // As in Istio: what fails on purpose is neither hurried nor tried again.
        if let (Some(fault), false) = (self.fault, matches!(handling.action, Action::Closed(_))) {
            handling = Handling { fault: Some(fault), timeout: None, retries: Retries::none(), ..handling };
        }
        (handling.name, handling.origin) = (self.name.into(), self.origin);
        let mut conditions = self.conditions;
        let rule = if handling.name.is_empty() { &handling.origin } else { &handling.name };
        // As in Istio, in logs an alternative that has a name is told after that of its rule.
        for one in conditions.iter_mut().filter(|one| !one.name.is_empty()) {
            one.name = meta::shown(&format!("{rule}.{}", one.name));
        }
        Candidate { origin, conditions, handling: Arc::new(handling) }
    }
}

/// Changes of which those of `inner` win.
pub fn merged(outer: HeaderChanges, inner: HeaderChanges) -> HeaderChanges {
    let HeaderChanges { mut set, mut add, mut remove } = outer;
    set.retain(|(name, _)| !inner.set.iter().any(|(other, _)| other == name));
    add.retain(|(name, _)| !inner.add.iter().any(|(other, _)| other == name));
    set.extend(inner.set);
    add.extend(inner.add);
    remove.extend(inner.remove);
    HeaderChanges { set, add, remove }
}
