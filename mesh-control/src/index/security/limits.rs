//! The rate limits of each waypoint: the RateLimits that are bound to it, to its class, or to services that it serves, and where the services are that count.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::l7::limit::{Global, Local, RateLimit};
use mesh_core::l7::{ClusterKey, Security};
use mesh_core::{ArcStr, NamespacedName};

use super::authorizers::place;
use super::{Finder, Made};
use crate::diagnosis::Problem;
use crate::index::trust::TooLong;
use crate::resource::routing::{Routed, inaction, rate_limit};
use crate::resource::{Key, Kind};

/// Adds those of one object.
pub(super) fn add(
    finder: &Finder<'_>,
    name: &NamespacedName,
    object: &Routed<rate_limit::RateLimit>,
    all: &mut BTreeMap<NamespacedName, Security>,
    made: &mut Made,
) {
    let kind = Kind::RateLimit;
    let own = Key { kind, namespace: name.namespace.clone(), name: name.name.clone() };
    let found = finder.targets(&own, &object.spec.target_refs, &mut made.problems);
    if found.is_empty() {
        let help = "bind it to a Gateway or a Service with `targetRefs`";
        made.problems.push((own, Problem::warning("", inaction(kind).unwrap_or_default()).help(help)));
        return;
    }
    let mut local: Vec<Local> = object.spec.local.iter().map(rate_limit::Local::limit).collect();
    let mut global = object.spec.global.as_ref().map(|global| counted(finder, &own, global, made));
    let too_long = too_long(finder, &local, global.as_ref());
    made.problems.extend(too_long.map(|too_long| (own.clone(), too_long.problem())));
    local.iter_mut().for_each(|one| finder.domains.fill_l7(&mut one.rules));
    let descriptors = global.iter_mut().flat_map(|global| &mut global.descriptors);
    descriptors.for_each(|one| finder.domains.fill_l7(&mut one.rules));
    made.in_force.insert(own);
    for (gateway, target) in found {
        let limit = RateLimit { name: name.clone(), target, local: local.clone(), global: global.clone() };
        all.entry(gateway).or_default().limits.push(Arc::new(limit));
    }
}

/// The first list that waypoints do not read: they refuse then whatever the object is bound to.
fn too_long(finder: &Finder<'_>, local: &[Local], global: Option<&Global>) -> Option<TooLong> {
    let of_local = local.iter().enumerate().map(|(at, one)| (format!("spec.local[{at}]"), &one.rules));
    let descriptors = global.iter().flat_map(|global| &global.descriptors).enumerate();
    let of_global = descriptors.map(|(at, one)| (format!("spec.global.descriptors[{at}]"), &one.rules));
    of_local.chain(of_global).find_map(|(at, rules)| finder.domains.too_long_match(rules, &at))
}

fn counted(finder: &Finder<'_>, own: &Key, global: &rate_limit::Global, made: &mut Made) -> Global {
    let (namespace, host) = global.place();
    let found = place(
        finder.objects,
        finder.settings,
        namespace,
        &host.trim_end_matches('.').to_ascii_lowercase(),
        global.port,
    );
    let place = match found {
        Ok(service) => Some(ClusterKey { service, port: global.port, subset: ArcStr::new() }),
        Err(why) => {
            let what = match global.fail_open {
                Some(false) => "requests that it means are answered with 500",
                _ => "nothing is counted",
            };
            let problem = Problem::warning("spec.global.service", format!("{why}: {what}"));
            let help =
                "write the whole name of its host, as ratelimit.default.svc.cluster.local, and a port that it has";
            made.problems.push((own.clone(), problem.help(help)));
            None
        }
    };
    global.limit(place)
}
