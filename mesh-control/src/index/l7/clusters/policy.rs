//! How the endpoints of one place are reached: what a subset says before what its host says, field by field; and what is said of the port instead of all that.

use std::time::Duration;

use mesh_core::ArcStr;
use mesh_core::l7::cluster::{
    Balancer, HashKey, HashTable, Keepalive, Locality, Outliers, Policy, Pool, RetryBudget, Speaks, Warmup,
};
use mesh_core::l7::{ClusterKey, Labels, Share};

use super::{Reader, Rule, tls};
use crate::diagnosis::Problem;
use crate::index::routing::hosts::Host;
use crate::resource::routing::destination_rule::{self as kind, H2Upgrade, ProxyVersion, Simple, TrafficPolicy};
use crate::resource::routing::values::Span;
use crate::resource::{Key, Kind};

/// A part of a rule, with its field.
type Part<'a, T> = Option<(&'a T, String, &'a Rule)>;

/// What counts of several levels.
#[derive(Default)]
struct Levels<'a> {
    balancer: Part<'a, kind::LoadBalancer>,
    pool: Part<'a, kind::ConnectionPool>,
    outliers: Part<'a, kind::OutlierDetection>,
    tls: Part<'a, kind::Tls>,
    proxy_protocol: Part<'a, kind::ProxyProtocol>,
    retry_budget: Part<'a, kind::RetryBudget>,
}

/// Labels of a place's endpoints and how they are reached, or why they cannot be, by rules of which the first that says something counts.
pub fn policy(key: &ClusterKey, rules: &[&Rule], reader: &mut Reader<'_, '_>) -> (Labels, Result<Policy, ArcStr>) {
    let mut levels = Levels::default();
    for rule in rules {
        if let Some(policy) = &rule.spec.traffic_policy {
            levels.lay(policy, "spec.trafficPolicy", rule, key.port);
            break;
        }
    }
    let mut labels = Labels::new();
    if !key.subset.is_empty() {
        let found = rules.iter().find_map(|rule| {
            let mut subsets = rule.spec.subsets.iter().enumerate();
            subsets.find(|(_, subset)| *subset.name == *key.subset).map(|(index, subset)| (*rule, index, subset))
        });
        let Some((rule, index, subset)) = found else {
            let why = format!(
                "no DestinationRule that the client sees has a subset {:?} of {}",
                key.subset, key.service.name
            );
            return (labels, Err(why.into()));
        };
        labels = subset.labels.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect();
        if let Some(policy) = &subset.traffic_policy {
            levels.lay(policy, &format!("spec.subsets[{index}].trafficPolicy"), rule, key.port);
        }
    }
    (labels, levels.policy(key, reader))
}

impl<'a> Levels<'a> {
    /// Lays a level over those that there are.
    fn lay(&mut self, policy: &'a TrafficPolicy, field: &str, rule: &'a Rule, port: u16) {
        fn over<'a, T>(slot: &mut Part<'a, T>, value: &'a Option<T>, field: String, rule: &'a Rule) {
            if let Some(value) = value {
                *slot = Some((value, field, rule));
            }
        }
        over(&mut self.balancer, &policy.load_balancer, format!("{field}.loadBalancer"), rule);
        over(&mut self.pool, &policy.connection_pool, format!("{field}.connectionPool"), rule);
        over(&mut self.outliers, &policy.outlier_detection, format!("{field}.outlierDetection"), rule);
        over(&mut self.tls, &policy.tls, format!("{field}.tls"), rule);
        over(&mut self.proxy_protocol, &policy.proxy_protocol, format!("{field}.proxyProtocol"), rule);
        over(&mut self.retry_budget, &policy.retry_budget, format!("{field}.retryBudget"), rule);
        let mut ports = policy.port_level_settings.iter().enumerate();
        let Some((index, own)) = ports.find(|(_, own)| own.port.is_some_and(|known| known.number == port)) else {
            return;
        };
        let field = format!("{field}.portLevelSettings[{index}]");
        // What it does not say is the default, whatever stands above it.
        self.balancer = own.load_balancer.as_ref().map(|value| (value, format!("{field}.loadBalancer"), rule));
        self.pool = own.connection_pool.as_ref().map(|value| (value, format!("{field}.connectionPool"), rule));
        self.outliers = own.outlier_detection.as_ref().map(|value| (value, format!("{field}.outlierDetection"), rule));
        self.tls = own.tls.as_ref().map(|value| (value, format!("{field}.tls"), rule));
    }

    fn policy(&self, place: &ClusterKey, reader: &mut Reader<'_, '_>) -> Result<Policy, ArcStr> {
        let mut policy = Policy::default();
        if let Some((written, ..)) = &self.balancer {
            policy.balancer = balancer(written);
            policy.warmup = warmup(written);
        }
        let (hosts, defaults) = (&reader.around.hosts, reader.around.defaults);
        let own = self.balancer.as_ref().and_then(|(written, ..)| written.locality_lb_setting.as_ref());
        // What a Service asks for stands between the rule and the mesh: one whose pods are asked on their own nodes only would be asked everywhere.
        let of_mesh = defaults.locality.as_ref().filter(|_| {
            let host = hosts.keyed(&place.service);
            !host.is_some_and(|host| matches!(host, Host::Service(service) if hosts.has_order(service)))
        });
        policy.locality = own.or(of_mesh).map(locality).unwrap_or_default();
        policy.pool = pool(self.pool.as_ref().map(|(written, ..)| *written), defaults.connect_timeout);
        policy.outliers = self.outliers.as_ref().map(|(written, ..)| outliers(written));
        policy.proxy_protocol = self.proxy_protocol.as_ref().map(|(written, ..)| match written.version {
            Some(ProxyVersion::V2) => 2,
            None | Some(ProxyVersion::V1) => 1,
        });
        policy.retry_budget = self.retry_budget.as_ref().map(|(written, ..)| RetryBudget {
            share: share(written.percent.unwrap_or(20.0)),
            least: written.min_retry_concurrency.unwrap_or(3),
            interval: written.budget_interval.map_or(Duration::ZERO, |span| span.0),
        });
        let rule_key = |rule: &Rule| Key {
            kind: Kind::DestinationRule,
            namespace: rule.namespace.clone(),
            name: rule.name.clone(),
        };
        // Of the two APIs the Gateway API's counts.
        match (tls::of_policy(place, reader), &self.tls) {
            (Some((other, said)), own) => {
                if let Some((_, field, rule)) = own {
                    let problem = Problem::warning(field.clone(), format!("{other} says with which TLS it is reached"));
                    reader.problems.push((rule_key(rule), problem.help("delete one of the two")));
                }
                policy.tls = said?;
            }
            (None, Some((written, field, rule))) => {
                policy.tls = tls::of_rule(place, written, field, &rule_key(rule), reader)?;
            }
            (None, None) => {}
        }
        Ok(policy)
    }
}

fn share(percent: f64) -> Share {
    // Between 0 and a hundred: the reader has looked.
    Share::millionths((percent.clamp(0.0, 100.0) * 10_000.0).round() as u32).unwrap_or_default()
}

fn balancer(written: &kind::LoadBalancer) -> Balancer {
    if let Some(hash) = &written.consistent_hash {
        let table = match (&hash.ring_hash, &hash.maglev) {
            (None, Some(maglev)) => HashTable::Maglev(maglev.table_size.unwrap_or(65_537)),
            (ring, _) => {
                let size = ring.as_ref().and_then(|ring| ring.minimum_ring_size).or(hash.minimum_ring_size);
                HashTable::Ring(size.unwrap_or(1024))
            }
        };
        if let Some(key) = hash_key(hash) {
            return Balancer::Hash(key, table);
        }
    }
    match written.simple {
        None | Some(Simple::Unspecified | Simple::LeastConn | Simple::LeastRequest) => Balancer::LeastRequest,
        Some(Simple::RoundRobin) => Balancer::RoundRobin,
        Some(Simple::Random) => Balancer::Random,
        Some(Simple::Passthrough) => Balancer::Passthrough,
    }
}

fn hash_key(hash: &kind::ConsistentHash) -> Option<HashKey> {
    if let Some(name) = &hash.http_header_name {
        return Some(HashKey::Header(name.to_ascii_lowercase().into()));
    }
    if let Some(cookie) = &hash.http_cookie {
        let attribute = |one: &kind::Attribute| (one.name.as_str().into(), one.value.as_deref().map(Into::into));
        return Some(HashKey::Cookie {
            name: cookie.name.as_str().into(),
            path: cookie.path.as_deref().map(Into::into),
            lasts: cookie.ttl.map(|span| span.0),
            attributes: cookie.attributes.iter().map(attribute).collect(),
        });
    }
    if let Some(name) = &hash.http_query_parameter_name {
        return Some(HashKey::Parameter(name.as_str().into()));
    }
    (hash.use_source_ip == Some(true)).then_some(HashKey::Source)
}

fn warmup(written: &kind::LoadBalancer) -> Option<Warmup> {
    let of = |time: Span, percent: Option<f64>, aggression: Option<f64>| Warmup {
        time: time.0,
        least: share(percent.unwrap_or(10.0)),
        aggression: (aggression.unwrap_or(1.0).clamp(1.0, 1000.0) * 1000.0).round() as u32,
    };
    let new = written.warmup.as_ref().map(|warmup| of(warmup.duration, warmup.minimum_percent, warmup.aggression));
    new.or_else(|| written.warmup_duration_secs.map(|time| of(time, None, None)))
}

fn locality(written: &kind::Locality) -> Locality {
    let shares = |one: &kind::Distribute| {
        let to = one.to.iter().map(|(place, share)| (place.as_str().into(), *share)).collect();
        (one.from.as_str().into(), to)
    };
    Locality {
        enabled: written.enabled,
        distribute: written.distribute.iter().map(shares).collect(),
        failover: written.failover.iter().map(|one| (one.from.as_str().into(), one.to.as_str().into())).collect(),
        priority: written.priority.iter().map(|label| label.as_str().into()).collect(),
    }
}

fn pool(written: Option<&kind::ConnectionPool>, connect_timeout: Option<Duration>) -> Pool {
    let mut usual = Pool::default();
    usual.connect_timeout = connect_timeout.unwrap_or(usual.connect_timeout);
    let Some(written) = written else { return usual };
    // 0 is what is not said.
    let count = |count: Option<i32>| count.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(u32::MAX);
    let (tcp, http) = (&written.tcp, &written.http);
    let keepalive = tcp.tcp_keepalive.as_ref().map(|signs| Keepalive {
        probes: signs.probes,
        after: signs.time.map(|span| span.0),
        interval: signs.interval.map(|span| span.0),
    });
    Pool {
        connections: count(tcp.max_connections),
        connect_timeout: tcp.connect_timeout.map_or(usual.connect_timeout, |span| span.0),
        pending: count(http.http1_max_pending_requests),
        requests: count(http.http2_max_requests),
        requests_per_connection: count(http.max_requests_per_connection),
        retries: count(http.max_retries),
        streams: count(http.max_concurrent_streams),
        idle_timeout: match http.idle_timeout {
            None => usual.idle_timeout,
            Some(Span(Duration::ZERO)) => None,
            // What is not said is sent as Istio's hour, and waypoints keep nothing for longer: so the hour that is said is told from it.
            Some(Span(time)) if Some(time) == usual.idle_timeout => Some(time + Duration::from_nanos(1)),
            Some(Span(time)) => Some(time),
        },
        silence: tcp.idle_timeout.map(|span| span.0).filter(|time| !time.is_zero()),
        lifetime: tcp.max_connection_duration.map(|span| span.0).filter(|time| !time.is_zero()),
        keepalive,
        speaks: match (http.use_client_protocol, http.h2_upgrade_policy) {
            (Some(true), _) => Speaks::AsClient,
            (_, Some(H2Upgrade::Upgrade)) => Speaks::Http2,
            _ => Speaks::AsDeclared,
        },
    }
}

fn outliers(written: &kind::OutlierDetection) -> Outliers {
    let usual = Outliers::default();
    let old = written.consecutive_errors.and_then(|n| u32::try_from(n).ok());
    let splits = written.split_external_local_origin_errors == Some(true);
    Outliers {
        errors: written.consecutive_5xx_errors.or(old).unwrap_or(usual.errors),
        gateway_errors: written.consecutive_gateway_errors.unwrap_or(usual.gateway_errors),
        local_failures: splits.then(|| written.consecutive_local_origin_failures.unwrap_or(5)),
        statuses: written.outlier_detection_http_error_codes.clone(),
        interval: written.interval.map_or(usual.interval, |span| span.0),
        base: written.base_ejection_time.map_or(usual.base, |span| span.0),
        most_percent: written.max_ejection_percent.filter(|n| *n > 0).unwrap_or(usual.most_percent),
        least_healthy_percent: written.min_health_percent.unwrap_or(usual.least_healthy_percent),
    }
}
