//! One resource of a response: read, named, and turned into a change, or refused with what must happen instead.

use arcstr::ArcStr;
use mesh_core::{Change, NamespacedName, intern::Interner, policy::Scope};
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

/// A panic over a resource makes it one that cannot be read: the others are not its concern, nor is the process, which would meet it again.
pub(super) fn read(type_url: &str, resource: Resource, interner: &mut Interner) -> Result<Item, Box<Refused>> {
    let name = resource.name.clone();
    let read = mesh_runtime::task::contain("xds resource", || {
        mesh_runtime::failpoint::pass("xds-resource");
        read_sound(type_url, resource, interner)
    });
    read.unwrap_or_else(|| {
        let policy = if type_url == ADDRESS_TYPE { None } else { unreadable(&name, None) };
        Err(refused(&name, "cannot be read: the reader panicked", policy))
    })
}

fn read_sound(type_url: &str, resource: Resource, interner: &mut Interner) -> Result<Item, Box<Refused>> {
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
    let key: Option<NamespacedName> = name.parse().ok();
    match convert::policy(bytes) {
        Ok(policy) if key.as_ref() == Some(&policy.name) => {
            Ok(Item { name: name.into(), version: version.into(), member: true, change: Change::Policy(policy) })
        }
        Ok(policy) => Err(refused(name, &format!("contains {:?}", policy.name.to_string()), unreadable(name, None))),
        Err(error) => Err(refused(name, &error.to_string(), unreadable(name, error.scope))),
    }
}

/// What stands for a policy that cannot be read. The resource's name, unlike its content, can be relied on to say which policy is meant.
fn unreadable(name: &str, scope: Option<Scope>) -> Option<Item> {
    let change = Change::PolicyUnreadable { name: name.parse().ok()?, scope };
    Some(Item { name: name.into(), version: Version::Refused, member: true, change })
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
