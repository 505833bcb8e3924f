//! What live taps hear of a request or a connection that is over: what its line of the log says, and no header. Called by who writes that line, while anybody
//! listens.

use std::fmt;
use std::time::{Instant, SystemTime};

use jiff::Timestamp;
use mesh_core::Workload;
use mesh_core::tap::{Asked, End, Kind, Seen, Selector};
use mesh_runtime::tap::Taps;

use super::facts::Facts;
use super::plan::Plan;

/// When it came.
struct Start(SystemTime);

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Timestamp::try_from(self.0).map_or(Ok(()), |at| write!(f, "{at:.3}"))
    }
}

/// Tells it to those who mean it. `plan` is what is logged of it.
#[cold]
pub fn offer(taps: &Taps<Selector>, began: Instant, facts: &Facts<'_>, plan: Option<&Plan>) {
    let (who, measured) = (facts.who, facts.measured);
    let (flags, details) = (measured.flags.to_string(), facts.details());
    let (start, identity) = (Start(facts.start), who.proved());
    let asked = facts.remembered.map(|remembered| Asked {
        method: remembered.method().as_str(),
        authority: remembered.authority(),
        path: remembered.path(),
        query: remembered.query().filter(|_| plan.is_some_and(|plan| plan.shows_query(facts))),
    });
    let chosen = facts.endpoint.and_then(|reached| reached.service.as_ref()).or(who.service);
    let chosen = chosen.map(|service| (&*service.namespace, &*service.hostname));
    let wanted = who.asked.map(|asked| (&*asked.namespace, &*asked.name));
    // At a gateway the metrics' source is the gateway itself.
    let source = who.client.filter(|_| !facts.edge).map(|client| end(client)).unwrap_or_default();
    let destination = match facts.endpoint {
        Some(reached) => End { address: Some(reached.address), ..end(&reached.workload) },
        None => who.endpoint.map(|workload| end(workload)).unwrap_or_default(),
    };
    let seen = Seen {
        kind: if facts.copied.is_some() { Kind::Connection } else { Kind::Request },
        time: &start,
        source: End {
            address: Some(who.from),
            // Of who is no workload that we know its certificate says where it is.
            namespace: if source.namespace.is_empty() {
                identity.map_or("", |identity| &*identity.namespace)
            } else {
                source.namespace
            },
            identity: identity.map(|identity| identity as &dyn fmt::Display),
            ..source
        },
        destination,
        service: wanted.or(chosen),
        routed: chosen.filter(|chosen| wanted.is_some_and(|wanted| wanted != *chosen)),
        asked,
        protocol: facts.copied.or_else(|| facts.protocol()).unwrap_or_default(),
        status: facts.copied.is_none().then_some(measured.status),
        grpc_status: measured.grpc_status,
        flags: &flags,
        details: details.as_deref().or(facts.ended).unwrap_or_default(),
        failure: facts.unreached.unwrap_or_default(),
        duration_ms: u64::try_from(measured.duration.as_millis()).unwrap_or(u64::MAX),
        received: measured.received,
        sent: measured.sent,
        attempts: Some(facts.attempts),
        rule: facts.rule,
        direction: "",
        security: "",
    };
    taps.offer(began, Instant::now(), |selector| selector.selects(&seen), || seen.line());
}

fn end(workload: &Workload) -> End<'_> {
    End {
        address: None,
        namespace: &workload.namespace,
        workload: &workload.workload_name,
        pod: &workload.name,
        identity: None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::flags::WORDS;

    #[test]
    fn every_flag_can_be_asked_for() {
        assert!(WORDS.iter().all(|word| mesh_core::tap::FLAGS.contains(word)));
    }
}
