//! How the endpoints of one place are chosen and reached, both ways. Every part must be understood.

use std::time::Duration;

use http::HeaderName;
use mesh_core::ArcStr;
use mesh_core::l7::Labels;
use mesh_core::l7::cluster::{
    Balancer, HashKey, HashTable, Keepalive, Locality, Outliers, Policy, Pool, RetryBudget, ServerName, Speaks, Tls,
    Warmup,
};
use mesh_core::spoken::Spoken;
use prost::Message;
use prost_types::Duration as Time;

use super::{
    action::{reason, share, status},
    cluster::{read_labels, write_labels},
    few,
    policy::{time, write_time},
    spoken,
};
use crate::convert::{ConvertError, field};
use crate::wire::l7 as wire;

/// Entries of a list.
const MOST: usize = 1000;
/// Largest tables that are made of endpoints.
const LARGEST_RING: u64 = 8 << 20;
const LARGEST_MAGLEV: u64 = 5_000_011;

/// Labels of the endpoints, and how they are reached or why none is.
type Reach = (Labels, Result<Policy, ArcStr>);

pub(super) fn read(bytes: &[u8]) -> Result<Reach, ConvertError> {
    use wire::reach::How;
    let message = wire::Reach::decode(bytes).map_err(ConvertError::decode)?;
    if message.encoded_len() != bytes.len() {
        return Err(ConvertError::UnknownFields);
    }
    let labels = read_labels("reach.labels", message.labels)?;
    match message.how {
        Some(How::Policy(message)) => Ok((labels, Ok(policy(message)?))),
        Some(How::Closed(why)) => Ok((labels, Err(reason("reach.closed", why)?))),
        None => Err(ConvertError::Missing { field: "reach.how" }),
    }
}

pub(super) fn write(labels: &Labels, policy: &Result<Policy, ArcStr>) -> wire::Reach {
    use wire::reach::How;
    let how = match policy {
        Ok(policy) => How::Policy(write_policy(policy)),
        Err(why) => How::Closed(why.to_string()),
    };
    wire::Reach { labels: write_labels(labels), how: Some(how) }
}

fn policy(message: wire::Policy) -> Result<Policy, ConvertError> {
    Ok(Policy {
        balancer: message.balancer.map(balancer).transpose()?.unwrap_or_default(),
        warmup: message.warmup.map(warmup).transpose()?,
        locality: message.locality.map(locality).transpose()?.unwrap_or_default(),
        pool: message.pool.map(pool).transpose()?.unwrap_or_default(),
        outliers: message.outliers.map(outliers).transpose()?,
        tls: message.tls.map(tls).transpose()?.unwrap_or_default(),
        proxy_protocol: match message.proxy_protocol {
            0 => None,
            1 => Some(1),
            2 => Some(2),
            other => return Err(ConvertError::invalid("proxy_protocol", format!("{other} is no version of it"))),
        },
        retry_budget: message.retry_budget.map(retry_budget).transpose()?,
    })
}

fn write_policy(policy: &Policy) -> wire::Policy {
    wire::Policy {
        balancer: Some(write_balancer(&policy.balancer)),
        warmup: policy.warmup.map(|warmup| wire::Warmup {
            time: Some(write_time(warmup.time)),
            least_millionths: warmup.least.parts(),
            aggression: warmup.aggression,
        }),
        locality: (policy.locality != Locality::default()).then(|| write_locality(&policy.locality)),
        pool: (policy.pool != Pool::default()).then(|| write_pool(&policy.pool)),
        outliers: policy.outliers.as_ref().map(write_outliers),
        tls: write_tls(&policy.tls),
        proxy_protocol: policy.proxy_protocol.unwrap_or(0).into(),
        retry_budget: policy.retry_budget.map(|budget| wire::RetryBudget {
            millionths: budget.share.parts(),
            least: budget.least,
            interval: Some(write_time(budget.interval)),
        }),
    }
}

fn balancer(message: wire::Balancer) -> Result<Balancer, ConvertError> {
    use wire::balancer::Kind;
    match message.kind {
        Some(Kind::Simple(value)) => Ok(match field::known("balancer.simple", value)? {
            wire::Simple::LeastRequest => Balancer::LeastRequest,
            wire::Simple::RoundRobin => Balancer::RoundRobin,
            wire::Simple::Random => Balancer::Random,
            wire::Simple::Passthrough => Balancer::Passthrough,
        }),
        Some(Kind::Hash(hash)) => Ok(Balancer::Hash(hash_key(hash.key)?, hash_table(hash.table)?)),
        None => Err(ConvertError::Missing { field: "balancer.kind" }),
    }
}

fn hash_key(key: Option<wire::hash::Key>) -> Result<HashKey, ConvertError> {
    use wire::hash::Key;
    match key.ok_or(ConvertError::Missing { field: "hash.key" })? {
        Key::Header(name) => match HeaderName::try_from(&name) {
            Ok(header) if header.as_str() == name => Ok(HashKey::Header(name.into())),
            _ => Err(ConvertError::invalid("hash.header", format!("{name:?} is no header in lower case"))),
        },
        Key::Cookie(cookie) => {
            few("hash.cookie.attributes", cookie.attributes.len(), MOST)?;
            let attribute = |one: wire::CookieAttribute| {
                let value = one.value.map(|value| cookie_text("hash.cookie.attributes", value)).transpose()?;
                Ok((cookie_name("hash.cookie.attributes", one.name)?, value))
            };
            Ok(HashKey::Cookie {
                name: cookie_name("hash.cookie.name", cookie.name)?,
                path: cookie.path.map(|path| cookie_text("hash.cookie.path", path)).transpose()?,
                lasts: cookie.lasts.map(|lasts| time("hash.cookie.lasts", lasts)).transpose()?,
                attributes: cookie.attributes.into_iter().map(attribute).collect::<Result<_, ConvertError>>()?,
            })
        }
        Key::Source(()) => Ok(HashKey::Source),
        Key::Parameter(name) => field::text("hash.parameter", name).map(HashKey::Parameter),
    }
}

/// A token, which cannot end what is written around it.
fn cookie_name(field: &'static str, name: String) -> Result<ArcStr, ConvertError> {
    // Names of headers are tokens, too; in a cookie the case counts.
    match HeaderName::try_from(&name) {
        Ok(_) => field::text(field, name),
        Err(_) => Err(ConvertError::invalid(field, format!("{name:?} is no name of a cookie"))),
    }
}

fn cookie_text(field: &'static str, text: String) -> Result<ArcStr, ConvertError> {
    match text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b';') {
        true => field::text(field, text),
        false => Err(ConvertError::invalid(field, format!("{text:?} cannot be part of a cookie"))),
    }
}

fn hash_table(table: Option<wire::hash::Table>) -> Result<HashTable, ConvertError> {
    use wire::hash::Table;
    match table.ok_or(ConvertError::Missing { field: "hash.table" })? {
        Table::Ring(size) if size <= LARGEST_RING => Ok(HashTable::Ring(size)),
        Table::Ring(size) => {
            Err(ConvertError::invalid("hash.ring", format!("{size} points, the limit is {LARGEST_RING}")))
        }
        Table::Maglev(size) if size <= LARGEST_MAGLEV && is_prime(size) => Ok(HashTable::Maglev(size)),
        Table::Maglev(size) => {
            Err(ConvertError::invalid("hash.maglev", format!("{size} is not a prime up to {LARGEST_MAGLEV}")))
        }
    }
}

fn is_prime(number: u64) -> bool {
    number >= 2 && (2..).take_while(|factor| factor * factor <= number).all(|factor| !number.is_multiple_of(factor))
}

fn write_balancer(balancer: &Balancer) -> wire::Balancer {
    use wire::balancer::Kind;
    let kind = match balancer {
        Balancer::LeastRequest => Kind::Simple(wire::Simple::LeastRequest as i32),
        Balancer::RoundRobin => Kind::Simple(wire::Simple::RoundRobin as i32),
        Balancer::Random => Kind::Simple(wire::Simple::Random as i32),
        Balancer::Passthrough => Kind::Simple(wire::Simple::Passthrough as i32),
        Balancer::Hash(key, table) => Kind::Hash(wire::Hash {
            key: Some(write_hash_key(key)),
            table: Some(match table {
                HashTable::Ring(size) => wire::hash::Table::Ring(*size),
                HashTable::Maglev(size) => wire::hash::Table::Maglev(*size),
            }),
        }),
    };
    wire::Balancer { kind: Some(kind) }
}

fn write_hash_key(key: &HashKey) -> wire::hash::Key {
    use wire::hash::Key;
    match key {
        HashKey::Header(name) => Key::Header(name.to_string()),
        HashKey::Cookie { name, path, lasts, attributes } => Key::Cookie(wire::Cookie {
            name: name.to_string(),
            path: path.as_ref().map(ToString::to_string),
            lasts: lasts.map(write_time),
            attributes: attributes
                .iter()
                .map(|(name, value)| wire::CookieAttribute {
                    name: name.to_string(),
                    value: value.as_ref().map(ToString::to_string),
                })
                .collect(),
        }),
        HashKey::Source => Key::Source(()),
        HashKey::Parameter(name) => Key::Parameter(name.to_string()),
    }
}

fn needed(field: &'static str, given: Option<Time>) -> Result<Duration, ConvertError> {
    time(field, given.ok_or(ConvertError::Missing { field })?)
}

fn maybe(field: &'static str, given: Option<Time>) -> Result<Option<Duration>, ConvertError> {
    given.map(|given| time(field, given)).transpose()
}

fn warmup(message: wire::Warmup) -> Result<Warmup, ConvertError> {
    if !(1000..=1_000_000).contains(&message.aggression) {
        let problem = format!("{} is not from 1000 to 1000000", message.aggression);
        return Err(ConvertError::invalid("warmup.aggression", problem));
    }
    Ok(Warmup {
        time: needed("warmup.time", message.time)?,
        least: share("warmup.least_millionths", message.least_millionths)?,
        aggression: message.aggression,
    })
}

fn locality(message: wire::Locality) -> Result<Locality, ConvertError> {
    few("locality.distribute", message.distribute.len(), MOST)?;
    few("locality.failover", message.failover.len(), MOST)?;
    few("locality.priority", message.priority.len(), MOST)?;
    let distribute = |one: wire::Distribute| {
        let field = "locality.distribute";
        few(field, one.to.len(), MOST)?;
        let to = one.to.into_iter().map(|(place, share)| match share {
            0..=100 => Ok((field::text(field, place)?, share)),
            _ => Err(ConvertError::invalid(field, format!("{share} of a hundred"))),
        });
        Ok((field::text(field, one.from)?, to.collect::<Result<_, ConvertError>>()?))
    };
    let failover = |one: wire::Failover| {
        Ok((field::text("locality.failover", one.from)?, field::text("locality.failover", one.to)?))
    };
    Ok(Locality {
        enabled: message.enabled,
        distribute: message.distribute.into_iter().map(distribute).collect::<Result<_, ConvertError>>()?,
        failover: message.failover.into_iter().map(failover).collect::<Result<_, ConvertError>>()?,
        priority: message
            .priority
            .into_iter()
            .map(|label| field::text("locality.priority", label))
            .collect::<Result<_, _>>()?,
    })
}

fn write_locality(locality: &Locality) -> wire::Locality {
    wire::Locality {
        enabled: locality.enabled,
        distribute: locality
            .distribute
            .iter()
            .map(|(from, to)| wire::Distribute {
                from: from.to_string(),
                to: to.iter().map(|(place, share)| (place.to_string(), *share)).collect(),
            })
            .collect(),
        failover: locality
            .failover
            .iter()
            .map(|(from, to)| wire::Failover { from: from.to_string(), to: to.to_string() })
            .collect(),
        priority: locality.priority.iter().map(ToString::to_string).collect(),
    }
}

fn pool(message: wire::Pool) -> Result<Pool, ConvertError> {
    let count = |count: u32| if count == 0 { u32::MAX } else { count };
    let keepalive = |signs: wire::Keepalive| {
        Ok::<_, ConvertError>(Keepalive {
            probes: signs.probes,
            after: maybe("pool.keepalive.after", signs.after)?,
            interval: maybe("pool.keepalive.interval", signs.interval)?,
        })
    };
    Ok(Pool {
        connections: count(message.connections),
        connect_timeout: needed("pool.connect_timeout", message.connect_timeout)?,
        pending: count(message.pending),
        requests: count(message.requests),
        requests_per_connection: count(message.requests_per_connection),
        retries: count(message.retries),
        streams: count(message.streams),
        idle_timeout: maybe("pool.idle_timeout", message.idle_timeout)?,
        silence: maybe("pool.silence", message.silence)?,
        lifetime: maybe("pool.lifetime", message.lifetime)?,
        keepalive: message.keepalive.map(keepalive).transpose()?,
        speaks: match field::known("pool.speaks", message.speaks)? {
            wire::Speaks::AsDeclared => Speaks::AsDeclared,
            wire::Speaks::Http2 => Speaks::Http2,
            wire::Speaks::AsClient => Speaks::AsClient,
        },
    })
}

fn write_pool(pool: &Pool) -> wire::Pool {
    let count = |count: u32| if count == u32::MAX { 0 } else { count };
    wire::Pool {
        connections: count(pool.connections),
        connect_timeout: Some(write_time(pool.connect_timeout)),
        pending: count(pool.pending),
        requests: count(pool.requests),
        requests_per_connection: count(pool.requests_per_connection),
        retries: count(pool.retries),
        streams: count(pool.streams),
        idle_timeout: pool.idle_timeout.map(write_time),
        silence: pool.silence.map(write_time),
        lifetime: pool.lifetime.map(write_time),
        keepalive: pool.keepalive.map(|signs| wire::Keepalive {
            probes: signs.probes,
            after: signs.after.map(write_time),
            interval: signs.interval.map(write_time),
        }),
        speaks: match pool.speaks {
            Speaks::AsDeclared => wire::Speaks::AsDeclared,
            Speaks::Http2 => wire::Speaks::Http2,
            Speaks::AsClient => wire::Speaks::AsClient,
        } as i32,
    }
}

fn outliers(message: wire::Outliers) -> Result<Outliers, ConvertError> {
    few("outliers.statuses", message.statuses.len(), MOST)?;
    let percent = |field, value: u32| match value {
        0..=100 => Ok(value),
        _ => Err(ConvertError::invalid(field, format!("{value} of a hundred"))),
    };
    let code = |code: u32| Ok(status("outliers.statuses", code, 100..600)?.as_u16());
    Ok(Outliers {
        errors: message.errors,
        gateway_errors: message.gateway_errors,
        local_failures: message.local_failures,
        statuses: message.statuses.into_iter().map(code).collect::<Result<_, ConvertError>>()?,
        interval: needed("outliers.interval", message.interval)?,
        base: needed("outliers.base", message.base)?,
        most_percent: percent("outliers.most_percent", message.most_percent)?,
        least_healthy_percent: percent("outliers.least_healthy_percent", message.least_healthy_percent)?,
    })
}

fn write_outliers(outliers: &Outliers) -> wire::Outliers {
    wire::Outliers {
        errors: outliers.errors,
        gateway_errors: outliers.gateway_errors,
        local_failures: outliers.local_failures,
        statuses: outliers.statuses.iter().map(|status| u32::from(*status)).collect(),
        interval: Some(write_time(outliers.interval)),
        base: Some(write_time(outliers.base)),
        most_percent: outliers.most_percent,
        least_healthy_percent: outliers.least_healthy_percent,
    }
}

fn tls(message: wire::Tls) -> Result<Tls, ConvertError> {
    use wire::tls::Mode;
    match message.mode.ok_or(ConvertError::Missing { field: "tls.mode" })? {
        Mode::Plain(()) => Ok(Tls::Plain),
        Mode::Simple(name) => server_name(name).map(Tls::Simple),
        Mode::Mutual(name) => server_name(name).map(Tls::Mutual),
    }
}

fn server_name(message: wire::ServerName) -> Result<ServerName, ConvertError> {
    few("tls.names", message.names.len(), MOST)?;
    few("tls.roots", message.roots.len(), MOST)?;
    let texts = |field, all: Vec<String>| all.into_iter().map(|one| field::text(field, one)).collect::<Result<_, _>>();
    let filled = |field, text: String| Ok::<_, ConvertError>(Some(field::text(field, text)?).filter(|t| !t.is_empty()));
    Ok(ServerName {
        roots: texts("tls.roots", message.roots)?,
        shown: filled("tls.shown", message.shown)?,
        sni: filled("tls.sni", message.sni)?,
        names: texts("tls.names", message.names)?,
        unverified: message.unverified,
        end_to_end: message.end_to_end,
        spoken: message.spoken.map(spoken::read).transpose()?.unwrap_or_default(),
    })
}

fn write_tls(tls: &Tls) -> Option<wire::Tls> {
    use wire::tls::Mode;
    let name = |name: &ServerName| wire::ServerName {
        roots: name.roots.iter().map(ToString::to_string).collect(),
        shown: name.shown.as_ref().map(ToString::to_string).unwrap_or_default(),
        sni: name.sni.as_ref().map(ToString::to_string).unwrap_or_default(),
        names: name.names.iter().map(ToString::to_string).collect(),
        unverified: name.unverified,
        end_to_end: name.end_to_end,
        // Absent it is what older readers know.
        spoken: (name.spoken != Spoken::default()).then(|| spoken::write(&name.spoken)),
    };
    let mode = match tls {
        Tls::Mesh => return None,
        Tls::Plain => Mode::Plain(()),
        Tls::Simple(server) => Mode::Simple(name(server)),
        Tls::Mutual(server) => Mode::Mutual(name(server)),
    };
    Some(wire::Tls { mode: Some(mode) })
}

fn retry_budget(message: wire::RetryBudget) -> Result<RetryBudget, ConvertError> {
    Ok(RetryBudget {
        share: share("retry_budget.millionths", message.millionths)?,
        least: message.least,
        interval: needed("retry_budget.interval", message.interval)?,
    })
}
