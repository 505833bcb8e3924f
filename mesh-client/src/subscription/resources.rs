//! One resource of a response: read, named, and turned into a change, or refused with what must happen instead.

use arcstr::ArcStr;
use mesh_core::{Change, NamespacedName, intern::Interner};
use mesh_proto::{
    ADDRESS_TYPE,
    convert::{self, AddressResource},
    discovery::Resource,
};

use super::held::Version;

/// A resource to remember and to apply.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) name: ArcStr,
    pub(super) version: Version,
    pub(super) member: bool,
    pub(super) change: Change,
}

/// A resource that was refused.
#[derive(Debug)]
pub(super) struct Refused {
    /// As the server named it: it exists, whatever is wrong with it.
    pub(super) name: String,
    /// For the NACK: the name and what is wrong.
    pub(super) problem: String,
    /// A policy that cannot be read still has an effect: it denies, or its last good form stays.
    pub(super) instead: Option<Item>,
}

pub(super) fn read(type_url: &str, resource: Resource, interner: &mut Interner) -> Result<Item, Box<Refused>> {
    let Some(body) = resource.resource else {
        return Err(refused(&resource.name, "has no content", None));
    };
    if body.type_url != type_url {
        return Err(refused(&resource.name, &format!("is of type {:?}", shortened(&body.type_url)), None));
    }
    if type_url == ADDRESS_TYPE {
        read_address(&resource.name, resource.version, &body.value, interner)
    } else {
        read_policy(&resource.name, resource.version, &body.value)
    }
}

fn read_address(name: &str, version: String, bytes: &[u8], interner: &mut Interner) -> Result<Item, Box<Refused>> {
    let (real, member, change) = match convert::address(bytes) {
        Ok(AddressResource::Workload(mut workload)) => {
            interner.workload(&mut workload);
            (workload.uid.clone(), true, Change::Workload(workload))
        }
        Ok(AddressResource::Service(service)) => (service.key().to_string().into(), false, Change::Service(service)),
        Err(error) => return Err(refused(name, &error.to_string(), None)),
    };
    if real != name {
        return Err(refused(name, &format!("contains {:?}", shortened(&real)), None));
    }
    Ok(Item { name: real, version: version.into(), member, change })
}

fn read_policy(name: &str, version: String, bytes: &[u8]) -> Result<Item, Box<Refused>> {
    // The resource's name, unlike its content, can be relied on to say which policy is meant.
    let key: Result<NamespacedName, _> = name.parse();
    let instead = |scope| {
        let key = key.clone().ok()?;
        let change = Change::PolicyUnreadable { name: key, scope };
        Some(Item { name: name.into(), version: Version::Refused, member: true, change })
    };
    match convert::policy(bytes) {
        Ok(policy) if key.as_ref().ok() == Some(&policy.name) => {
            Ok(Item { name: name.into(), version: version.into(), member: true, change: Change::Policy(policy) })
        }
        Ok(policy) => Err(refused(name, &format!("contains {:?}", policy.name.to_string()), instead(None))),
        Err(error) => Err(refused(name, &error.to_string(), instead(error.scope))),
    }
}

/// The change that takes a resource away.
pub(super) fn removal(type_url: &str, name: ArcStr) -> Option<Change> {
    if type_url == ADDRESS_TYPE {
        return Some(Change::RemoveAddress(name));
    }
    name.parse().ok().map(Change::RemovePolicy)
}

fn refused(name: &str, problem: &str, instead: Option<Item>) -> Box<Refused> {
    Box::new(Refused { name: name.to_owned(), problem: format!("{:?}: {problem}", shortened(name)), instead })
}

fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}
