//! What waypoints hold requests against, both ways. A policy that cannot be read in all of its parts denies what it is about, and so does what says whose tokens
//! are believed, or how many requests there may be. What the whole says is read strictly: of one that is not understood the last good form stays.

mod authorizer;
mod limit;
mod policy;
#[cfg(test)]
mod tests;
mod token;

use std::fmt;
use std::sync::Arc;

use mesh_core::NamespacedName;
use mesh_core::l7::limit::RateLimit;
use mesh_core::l7::path::Spelling;
use mesh_core::l7::policy::Policy;
use mesh_core::l7::security::{Authentication, Security, Target};
use prost::Message;

use super::{ConvertError, field};
use crate::wire::l7 as wire;

/// Entries of either kind.
const MOST_ENTRIES: usize = 10_000;
/// Whom policies ask.
const MOST_AUTHORIZERS: usize = 1_000;
/// Services that one is about.
const MOST_SERVICES: usize = 10_000;

/// What was read, and what of it is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadSecurity {
    /// What is to be held against requests.
    pub security: Security,
    /// Entries that deny what they are about because they cannot be read. To be reported.
    pub closed: Vec<ClosedEntry>,
}

/// An entry that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedEntry {
    /// `namespace/name` of the object.
    pub name: NamespacedName,
    /// What is wrong with it.
    pub problem: ConvertError,
}

impl fmt::Display for ClosedEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; what it is about is denied", self.name, self.problem)
    }
}

/// Reads one `undermesh.l7.v1.Security`. Fields that this version does not know refuse it; those of an entry's body close the entry.
pub fn security(bytes: &[u8]) -> Result<ReadSecurity, ConvertError> {
    let message = wire::Security::decode(bytes).map_err(ConvertError::decode)?;
    if message.encoded_len() != bytes.len() {
        return Err(ConvertError::UnknownFields);
    }
    few("policies", message.policies.len(), MOST_ENTRIES)?;
    few("authentications", message.authentications.len(), MOST_ENTRIES)?;
    few("limits", message.limits.len(), MOST_ENTRIES)?;
    few("authorizers", message.authorizers.len(), MOST_AUTHORIZERS)?;
    let spelling = match field::known("spelling", message.spelling)? {
        wire::PathSpelling::Unsaid => None,
        wire::PathSpelling::Base => Some(Spelling::Base),
        wire::PathSpelling::MergeSlashes => Some(Spelling::MergeSlashes),
        wire::PathSpelling::DecodeAndMergeSlashes => Some(Spelling::DecodeAndMergeSlashes),
    };
    let (name, names_clients) = (field::text("name", message.name)?, message.names_clients);
    let mut security = Security { name, spelling, names_clients, ..Security::default() };
    let mut closed = Vec::new();
    let mut close = |name: &NamespacedName, target: &Target, problem| {
        closed.push(ClosedEntry { name: name.clone(), problem });
        Arc::new(Policy::closed(name.clone(), target.clone()))
    };
    for entry in message.policies {
        let (name, target) = head(&entry)?;
        let policy = policy::read(&name, &target, &entry.body);
        let policy = policy.map_or_else(|problem| close(&name, &target, problem), Arc::new);
        security.policies.push(policy);
    }
    for entry in message.authentications {
        let (name, target) = head(&entry)?;
        match token::read(&entry.body) {
            Ok(rules) => security.authentications.push(Arc::new(Authentication { name, target, rules })),
            Err(problem) => security.policies.push(close(&name, &target, problem)),
        }
    }
    for entry in message.limits {
        let (name, target) = head(&entry)?;
        match limit::read(&entry.body) {
            Ok((local, global)) => security.limits.push(Arc::new(RateLimit { name, target, local, global })),
            Err(problem) => security.policies.push(close(&name, &target, problem)),
        }
    }
    for one in message.authorizers {
        let name = field::name("authorizers.name", one.name)?;
        match authorizer::read(name.clone(), &one.body) {
            Ok(authorizer) => security.authorizers.push(Arc::new(authorizer)),
            // Nobody is called so then, and what is to be asked of nobody is denied.
            Err(problem) => closed.push(ClosedEntry { name: NamespacedName::new("extensionProviders", name), problem }),
        }
    }
    Ok(ReadSecurity { security, closed })
}

/// The bytes of an `undermesh.l7.v1.Security`. The same value always gives the same bytes.
#[must_use]
pub fn encode_security(security: &Security) -> Vec<u8> {
    let spelling = match security.spelling {
        None => wire::PathSpelling::Unsaid,
        Some(Spelling::Base) => wire::PathSpelling::Base,
        Some(Spelling::MergeSlashes) => wire::PathSpelling::MergeSlashes,
        Some(Spelling::DecodeAndMergeSlashes) => wire::PathSpelling::DecodeAndMergeSlashes,
    };
    let entry = |name: &NamespacedName, target: &Target, body| wire::SecurityEntry {
        name: name.to_string(),
        all: matches!(target, Target::All | Target::Edge),
        edge_only: *target == Target::Edge,
        services: match target {
            Target::All | Target::Edge => Vec::new(),
            Target::Services(services) => services.iter().map(ToString::to_string).collect(),
        },
        body,
    };
    wire::Security {
        name: security.name.to_string(),
        spelling: spelling.into(),
        policies: security.policies.iter().map(|one| entry(&one.name, &one.target, policy::write(one))).collect(),
        authentications: security
            .authentications
            .iter()
            .map(|one| entry(&one.name, &one.target, token::write(&one.rules)))
            .collect(),
        limits: security
            .limits
            .iter()
            .map(|one| entry(&one.name, &one.target, limit::write(&one.local, one.global.as_ref())))
            .collect(),
        authorizers: security
            .authorizers
            .iter()
            .map(|one| wire::NamedAuthorizer { name: one.name.to_string(), body: authorizer::write(one) })
            .collect(),
        names_clients: security.names_clients,
    }
    .encode_to_vec()
}

fn head(entry: &wire::SecurityEntry) -> Result<(NamespacedName, Target), ConvertError> {
    let name = field::key("name", &entry.name)?;
    few("services", entry.services.len(), MOST_SERVICES)?;
    let target = match (entry.all, entry.services.is_empty()) {
        (true, true) if entry.edge_only => Target::Edge,
        (true, true) => Target::All,
        (false, _) => {
            let services = entry.services.iter().map(|service| field::key("services", service));
            Target::Services(services.collect::<Result<_, _>>()?)
        }
        (true, false) => return Err(ConvertError::invalid("services", "it is about all requests and about some")),
    };
    Ok((name, target))
}

fn few(field: &'static str, count: usize, limit: usize) -> Result<(), ConvertError> {
    if count > limit {
        return Err(ConvertError::invalid(field, format!("{count} of them, the limit is {limit}")));
    }
    Ok(())
}
