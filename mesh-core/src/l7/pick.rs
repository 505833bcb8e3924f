//! What is done with one request: the first rule of the first host that means it. Nothing is allocated; the decision borrows from the table.

use std::{sync::Arc, time::Duration};

use arcstr::ArcStr;
use rand::Rng;

use super::{
    AbortStatus, Action, Backend, Client, Condition, DirectResponse, Handling, Mirror, Redirect, Request, Rewrite,
    Table, Target, VirtualHost, rewrite::with_query,
};

/// The decision about one request.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'t> {
    /// The host that decided.
    pub host: &'t Arc<VirtualHost>,
    /// The rule.
    pub handling: &'t Arc<Handling>,
    /// Which of its alternatives it was, if it has any: what a rewrite of a prefix replaces.
    pub condition: Option<&'t Condition>,
    /// Where the request goes.
    pub outcome: Outcome<'t>,
    /// It waits before anything else happens.
    pub delay: Option<Duration>,
    /// It fails then, whatever the outcome says.
    pub abort: Option<AbortStatus>,
    /// Copies that are made of it.
    pub mirrors: Mirrors<'t>,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'t> {
    /// To this place, which is never a broken one.
    Forward(&'t Backend),
    /// The client is sent elsewhere.
    Redirect(&'t Redirect),
    /// The client is answered.
    Respond(&'t DirectResponse),
    /// 500; the text says why.
    Closed(&'t str),
}

/// No rule means the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Miss {
    /// The host is not known: with a service, it has no rules for this client and its endpoints are asked; without one, the answer is 404.
    #[error("no host fits")]
    Host,
    /// The host is, and has no rule for it: 404.
    #[error("no rule fits")]
    Rule,
}

/// Mirrors that were drawn: those of the rule and of the place, one after the other, and a bit for each.
#[derive(Clone, Copy, Debug)]
pub struct Mirrors<'t> {
    rule: &'t [Mirror],
    place: &'t [Mirror],
    drawn: u64,
}

impl<'t> Mirrors<'t> {
    fn draw(rule: &'t [Mirror], place: &'t [Mirror], rng: &mut impl Rng) -> Self {
        let mut drawn = 0;
        for (index, mirror) in rule.iter().chain(place).take(Handling::MOST_MIRRORS).enumerate() {
            if mirror.share.happens(rng) {
                drawn |= 1 << index;
            }
        }
        Self { rule, place, drawn }
    }

    /// Those that get a copy.
    pub fn iter(&self) -> impl Iterator<Item = &'t Mirror> {
        let (drawn, all) = (self.drawn, self.rule.iter().chain(self.place));
        all.take(Handling::MOST_MIRRORS).enumerate().filter(move |(index, _)| drawn >> index & 1 == 1).map(|(_, m)| m)
    }
}

impl Decision<'_> {
    /// The path and query to forward, if they are not the request's. They are to be normalised again: what a prefix leaves may begin with dots.
    #[must_use]
    pub fn rewritten_path(&self, request: &Request<'_>) -> Option<String> {
        let of_place = self.place_rewrite().and_then(|rewrite| rewrite.path.as_ref());
        let change = of_place.or(self.handling.rewrite.path.as_ref())?;
        Some(with_query(change.apply(request.path, self.condition), request.query))
    }

    /// The host to ask for, if it is not the request's.
    #[must_use]
    pub fn rewritten_authority(&self) -> Option<&ArcStr> {
        let of_place = self.place_rewrite().and_then(|rewrite| rewrite.authority.as_ref());
        of_place.or(self.handling.rewrite.authority.as_ref())
    }

    fn place_rewrite(&self) -> Option<&Rewrite> {
        match self.outcome {
            Outcome::Forward(backend) => Some(&backend.rewrite),
            _ => None,
        }
    }
}

/// Decides. With a service only its hosts are asked, without one those of the authority, from the most specific to `*`.
pub fn pick<'t>(
    table: &'t Table,
    request: &Request<'t>,
    client: &Client<'t>,
    rng: &mut impl Rng,
) -> Result<Decision<'t>, Miss> {
    let mut miss = Miss::Host;
    for host in table.find(request, client) {
        for rule in &host.rules {
            let condition = rule.conditions.iter().find(|condition| condition.matches(request, client));
            if condition.is_some() || rule.conditions.is_empty() {
                return Ok(decide(host, &rule.handling, condition, rng));
            }
        }
        miss = Miss::Rule;
        if !host.falls_through {
            break;
        }
    }
    Err(miss)
}

fn decide<'t>(
    host: &'t Arc<VirtualHost>,
    handling: &'t Arc<Handling>,
    condition: Option<&'t Condition>,
    rng: &mut impl Rng,
) -> Decision<'t> {
    let mut of_place: &[Mirror] = &[];
    let outcome = match &handling.action {
        Action::Forward(forward) => match forward.choose(rng) {
            None => Outcome::Closed("the rule has no place with a weight"),
            Some(Backend { target: Target::Broken(why), .. }) => Outcome::Closed(why),
            Some(Backend { redirect: Some(redirect), .. }) => Outcome::Redirect(redirect),
            Some(backend) => {
                of_place = &backend.mirrors;
                Outcome::Forward(backend)
            }
        },
        Action::Redirect(redirect) => Outcome::Redirect(redirect),
        Action::Respond(response) => Outcome::Respond(response),
        Action::Closed(why) => Outcome::Closed(why),
    };
    let fault = handling.fault.as_ref();
    let delay = fault.and_then(|fault| fault.delay).filter(|delay| delay.share.happens(rng));
    let abort = fault.and_then(|fault| fault.abort).filter(|abort| abort.share.happens(rng));
    // Only what goes on is copied.
    let copied = matches!(outcome, Outcome::Forward(_)) && abort.is_none();
    let of_rule = if copied { &*handling.mirrors } else { &[] };
    let mirrors = Mirrors::draw(of_rule, if copied { of_place } else { &[] }, rng);
    Decision {
        host,
        handling,
        condition,
        outcome,
        delay: delay.map(|delay| delay.time),
        abort: abort.map(|abort| abort.status),
        mirrors,
    }
}
