//! Rate limits, both ways. Every value is either understood or refuses the whole.

use std::time::Duration;

use http::HeaderName;
use mesh_core::ArcStr;
use mesh_core::l7::ClusterKey;
use mesh_core::l7::limit::{Descriptor, Entry, Global, Local, Part, Rate, Value};
use mesh_core::l7::policy::Rule;
use prost::Message;

use super::{few, policy};
use crate::convert::{ConvertError, field};
use crate::wire::l7::{self as wire, limit_entry, limit_part};

/// Limits of one object, descriptors, entries, and what something is counted by.
const MOST: usize = 100;
/// Bytes of a value.
const LONGEST: usize = 4096;

type Read<T> = Result<T, ConvertError>;

const PLAIN: [(wire::PlainPart, Part); 7] = [
    (wire::PlainPart::Principal, Part::Principal),
    (wire::PlainPart::Namespace, Part::Namespace),
    (wire::PlainPart::Source, Part::Source),
    (wire::PlainPart::Host, Part::Host),
    (wire::PlainPart::Method, Part::Method),
    (wire::PlainPart::Path, Part::Path),
    (wire::PlainPart::RequestPrincipal, Part::RequestPrincipal),
];

/// What one object says, without its name and its target.
pub(super) type Limits = (Vec<Local>, Option<Global>);

pub(super) fn read(bytes: &[u8]) -> Read<Limits> {
    let message = wire::RateLimits::decode(bytes).map_err(ConvertError::decode)?;
    if message.encoded_len() != bytes.len() {
        return Err(ConvertError::UnknownFields);
    }
    few("local", message.local.len(), MOST)?;
    let local = message.local.into_iter().map(read_local).collect::<Read<_>>()?;
    Ok((local, message.global.map(read_global).transpose()?))
}

fn read_local(message: wire::LocalLimit) -> Read<Local> {
    few("local.by", message.by.len(), MOST)?;
    if message.requests == 0 || message.burst == 0 || message.per_ns == 0 {
        return Err(ConvertError::invalid("local", "it lets nothing through, or has no time"));
    }
    let per = Duration::from_nanos(message.per_ns);
    Ok(Local {
        rules: read_rules(message.rules)?,
        by: message.by.into_iter().map(part).collect::<Read<_>>()?,
        rate: Rate { requests: message.requests, per, burst: message.burst },
    })
}

fn read_global(message: wire::GlobalLimit) -> Read<Global> {
    few("global.descriptors", message.descriptors.len(), MOST)?;
    let place = match (message.service.is_empty(), message.port) {
        (true, 0) => None,
        _ => Some(ClusterKey {
            service: field::key("global.service", &message.service)?,
            port: field::port("global.port", message.port)?,
            subset: ArcStr::new(),
        }),
    };
    if message.timeout_ms == 0 {
        return Err(ConvertError::Missing { field: "global.timeout_ms" });
    }
    Ok(Global {
        domain: text("global.domain", message.domain)?,
        place,
        timeout: Duration::from_millis(message.timeout_ms),
        fail_open: message.fail_open,
        descriptors: message.descriptors.into_iter().map(descriptor).collect::<Read<_>>()?,
    })
}

fn descriptor(message: wire::LimitDescriptor) -> Read<Descriptor> {
    few("global.entries", message.entries.len(), MOST)?;
    if message.entries.is_empty() {
        return Err(ConvertError::Missing { field: "global.entries" });
    }
    let entry = |message: wire::LimitEntry| {
        let value = match message.value {
            None => return Err(ConvertError::Missing { field: "global.entries.value" }),
            Some(limit_entry::Value::Fixed(fixed)) => Value::Fixed(text("global.entries.fixed", fixed)?),
            Some(limit_entry::Value::Of(of)) => Value::Of(part(of)?),
        };
        Ok(Entry { key: text("global.entries.key", message.key)?, value })
    };
    Ok(Descriptor {
        rules: read_rules(message.rules)?,
        entries: message.entries.into_iter().map(entry).collect::<Read<_>>()?,
    })
}

fn read_rules(messages: Vec<wire::PolicyRule>) -> Read<Vec<Rule>> {
    few("rules", messages.len(), MOST)?;
    messages.into_iter().map(policy::read_rule).collect()
}

fn text(field: &'static str, value: String) -> Read<ArcStr> {
    if value.is_empty() {
        return Err(ConvertError::Missing { field });
    }
    field::bounded(field, value, LONGEST)
}

fn part(message: wire::LimitPart) -> Read<Part> {
    match message.part {
        None => Err(ConvertError::Missing { field: "part" }),
        Some(limit_part::Part::Header(name)) => {
            let name = HeaderName::try_from(name);
            Ok(Part::Header(name.map_err(|_| ConvertError::invalid("part.header", "not the name of a header"))?))
        }
        Some(limit_part::Part::Plain(plain)) => {
            let plain: wire::PlainPart = field::known("part", plain)?;
            let known = PLAIN.into_iter().find(|(wire, _)| *wire == plain);
            known.map(|(_, part)| part).ok_or(ConvertError::Missing { field: "part" })
        }
    }
}

pub(super) fn write(local: &[Local], global: Option<&Global>) -> Vec<u8> {
    let write_local = |one: &Local| wire::LocalLimit {
        rules: one.rules.iter().map(policy::write_rule).collect(),
        by: one.by.iter().map(write_part).collect(),
        requests: one.rate.requests,
        per_ns: u64::try_from(one.rate.per.as_nanos()).unwrap_or(u64::MAX),
        burst: one.rate.burst,
    };
    wire::RateLimits { local: local.iter().map(write_local).collect(), global: global.map(write_global) }
        .encode_to_vec()
}

fn write_global(global: &Global) -> wire::GlobalLimit {
    let entry = |one: &Entry| wire::LimitEntry {
        key: one.key.to_string(),
        value: Some(match &one.value {
            Value::Fixed(text) => limit_entry::Value::Fixed(text.to_string()),
            Value::Of(part) => limit_entry::Value::Of(write_part(part)),
        }),
    };
    let descriptor = |one: &Descriptor| wire::LimitDescriptor {
        rules: one.rules.iter().map(policy::write_rule).collect(),
        entries: one.entries.iter().map(entry).collect(),
    };
    wire::GlobalLimit {
        domain: global.domain.to_string(),
        service: global.place.as_ref().map(|place| place.service.to_string()).unwrap_or_default(),
        port: global.place.as_ref().map_or(0, |place| place.port.into()),
        timeout_ms: u64::try_from(global.timeout.as_millis()).unwrap_or(u64::MAX).max(1),
        fail_open: global.fail_open,
        descriptors: global.descriptors.iter().map(descriptor).collect(),
    }
}

fn write_part(part: &Part) -> wire::LimitPart {
    let plain = || PLAIN.iter().find(|(_, known)| known == part).map_or(0, |(wire, _)| *wire as i32);
    let part = match part {
        Part::Header(name) => limit_part::Part::Header(name.to_string()),
        _ => limit_part::Part::Plain(plain()),
    };
    wire::LimitPart { part: Some(part) }
}
