//! One resource of a response: read, named, and turned into a change, or refused with what must happen instead.

use arcstr::ArcStr;
use mesh_core::{Change, NamespacedName, intern::Interner, outbound, policy::Scope};
use mesh_proto::{
    ADDRESS_TYPE, CLUSTERS_TYPE, CONNECTION_ROUTES_TYPE, OUTBOUND_TYPE,
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
    /// What cannot be read still has an effect: a policy denies, or its last good form stays; routes refuse connections.
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
        let problem = "the reader panicked";
        let instead = match type_url {
            ADDRESS_TYPE | CLUSTERS_TYPE => None,
            CONNECTION_ROUTES_TYPE => closed(&name, problem),
            OUTBOUND_TYPE => shut(&name),
            _ => unreadable(&name, None),
        };
        Err(refused(&name, &format!("cannot be read: {problem}"), instead))
    })
}

fn read_sound(type_url: &str, resource: Resource, interner: &mut Interner) -> Result<Item, Box<Refused>> {
    let other = |problem: &str| {
        let instead = match type_url {
            CONNECTION_ROUTES_TYPE => closed(&resource.name, problem),
            OUTBOUND_TYPE => shut(&resource.name),
            _ => None,
        };
        Err(refused(&resource.name, problem, instead))
    };
    let Some(body) = resource.resource else { return other("has no content") };
    if body.type_url != type_url {
        return other(&format!("is of type {:?}", shortened(&body.type_url)));
    }
    match type_url {
        ADDRESS_TYPE => read_address(&resource.name, resource.version, &body.value, interner),
        CONNECTION_ROUTES_TYPE => read_connections(&resource.name, resource.version, &body.value),
        CLUSTERS_TYPE => read_clusters(&resource.name, resource.version, &body.value),
        OUTBOUND_TYPE => read_outbound(&resource.name, resource.version, &body.value),
        _ => read_policy(&resource.name, resource.version, &body.value),
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

/// Routes of which rules are closed are in force, and told of.
fn read_connections(name: &str, version: String, bytes: &[u8]) -> Result<Item, Box<Refused>> {
    let read = match convert::connection_routes(bytes) {
        Ok(read) => read,
        Err(error) => return Err(refused(name, &error.to_string(), closed(name, &error.to_string()))),
    };
    let real = read.routes.service.to_string();
    if real != name {
        let problem = format!("contains {:?}", shortened(&real));
        return Err(refused(name, &problem, closed(name, &problem)));
    }
    let item = |version| Item { name: name.into(), version, member: false, change: Change::Connections(read.routes) };
    match read.closed.first() {
        None => Ok(item(version.into())),
        Some(first) => Err(refused(name, &format!("refuses connections: {first}"), Some(item(Version::Refused)))),
    }
}

/// What cannot be read leaves what is held in force; of what can, places that are closed are told of.
fn read_clusters(name: &str, version: String, bytes: &[u8]) -> Result<Item, Box<Refused>> {
    let read = convert::clusters(bytes).map_err(|error| refused(name, &error.to_string(), None))?;
    let (true, Ok(service)) = (read.name == name, name.parse()) else {
        return Err(refused(name, &format!("contains {:?}", shortened(&read.name)), None));
    };
    let change = Change::Clusters(service, read.clusters);
    let item = |version| Item { name: name.into(), version, member: false, change };
    match read.closed.first() {
        None => Ok(item(version.into())),
        Some(first) => Err(refused(name, &format!("refuses connections: {first}"), Some(item(Version::Refused)))),
    }
}

/// A name that is nobody's is refused: it could be for anybody, and says for whom in no way that is understood.
fn read_outbound(name: &str, version: String, bytes: &[u8]) -> Result<Item, Box<Refused>> {
    let Some(scope) = outbound::Scope::parse(name) else {
        return Err(refused(name, "is for nobody that is known", None));
    };
    match convert::outbound(bytes) {
        Ok(said) => {
            let change = Change::Outbound(scope, said);
            Ok(Item { name: name.into(), version: version.into(), member: false, change })
        }
        Err(error) => Err(refused(name, &error.to_string(), shut(name))),
    }
}

/// What stands for what cannot be read of connections to what nobody is known to have.
fn shut(name: &str) -> Option<Item> {
    let change = Change::Outbound(outbound::Scope::parse(name)?, convert::unread_outbound());
    Some(Item { name: name.into(), version: Version::Refused, member: false, change })
}

/// What stands for routes that cannot be read: connections do not go where they would without any. The resource's name says which service is meant.
fn closed(name: &str, why: &str) -> Option<Item> {
    let change = Change::Connections(convert::closed_connections(name.parse().ok()?, why));
    Some(Item { name: name.into(), version: Version::Refused, member: false, change })
}

/// What stands for a policy that cannot be read. The resource's name, unlike its content, can be relied on to say which policy is meant.
fn unreadable(name: &str, scope: Option<Scope>) -> Option<Item> {
    let change = Change::PolicyUnreadable { name: name.parse().ok()?, scope };
    Some(Item { name: name.into(), version: Version::Refused, member: true, change })
}

/// The change that takes a resource away.
pub(super) fn removal(type_url: &str, name: ArcStr) -> Option<Change> {
    match type_url {
        ADDRESS_TYPE => Some(Change::RemoveAddress(name)),
        CONNECTION_ROUTES_TYPE => name.parse().ok().map(Change::RemoveConnections),
        CLUSTERS_TYPE => name.parse().ok().map(Change::RemoveClusters),
        OUTBOUND_TYPE => outbound::Scope::parse(&name).map(Change::RemoveOutbound),
        _ => name.parse().ok().map(Change::RemovePolicy),
    }
}

fn refused(name: &str, problem: &str, instead: Option<Item>) -> Box<Refused> {
    Box::new(Refused { name: name.to_owned(), problem: format!("{:?}: {problem}", shortened(name)), instead })
}

fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}
