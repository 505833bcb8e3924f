//! Where a connection to a service goes that is no HTTP: to the service's own endpoints, or where its routes (`mesh_core::l4`) lead it. Agents do the same for
//! services without a waypoint. `connection` asks once for each connection; all its attempts go to the same place.

use std::net::{IpAddr, Ipv4Addr};

use bytes::{Bytes, BytesMut};
use mesh_core::l4::{Ask, Choice, ConnectionRoutes, ServerName};
use mesh_core::l7::ClusterKey;
use mesh_transport::hbone::Authority;
use mesh_transport::tls::{Hello, judge_hello};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::Instant;

use crate::downstream::{Bound, Downstream};
use crate::record::{Nowhere, Record};
use crate::target::Target;

/// Whether all that comes through the connection, HTTP included, goes where routes of the Gateway API for connections lead it: those that there are for the
/// client, unless others say what is to be done with its requests.
#[must_use]
pub fn takes_all(downstream: &Downstream, bound: &Bound) -> bool {
    let Some(routes) = routes(bound) else { return false };
    let ask = ask(downstream, bound, ServerName::Unread);
    let replaces = routes.group(&ask).is_some_and(|group| !group.falls_through);
    let is_asked = |names: &Vec<mesh_core::ArcStr>| names.iter().any(|name| name == ask.namespace);
    let has_rules = bound.view.table.hosts().iter().any(|host| {
        host.service.as_ref() == bound.target.service()
            && (host.ports.is_empty() || host.ports.contains(&ask.port))
            && host.clients.as_ref().is_none_or(is_asked)
    });
    replaces && !has_rules
}

/// The place that a connection goes to; `None` if its client asks for a workload. What has to be read for that is added to `first`.
pub async fn place<S: AsyncRead + Unpin>(
    downstream: &Downstream,
    stream: &mut S,
    first: &mut Bytes,
    record: &mut Record<'_>,
) -> Result<Option<ClusterKey>, Nowhere> {
    if let Some(decided) = decide(downstream, ServerName::Unread, record)? {
        return Ok(decided);
    }
    let limit = downstream.lane.shared.settings.handshake_timeout;
    let name = server_name(stream, first, limit).await;
    let name = name.as_deref().map_or(ServerName::Absent, ServerName::Is);
    decide(downstream, name, record)?.ok_or_else(|| ("NR", "the routes ask for more than a name".to_owned()))
}

/// `None`: the name has to be known.
fn decide(
    downstream: &Downstream,
    name: ServerName<'_>,
    record: &mut Record<'_>,
) -> Result<Option<Option<ClusterKey>>, Nowhere> {
    let bound = downstream.bound().map_err(|why| ("NC", why.to_string()))?;
    let Target::Service { key, port, .. } = &bound.target else { return Ok(Some(None)) };
    let own = || ClusterKey { service: key.clone(), port: *port, subset: Default::default() };
    let Some(routes) = routes(&bound) else { return Ok(Some(Some(own()))) };
    let ask = ask(downstream, &bound, name);
    let chosen = routes.choose(&ask, &mut *downstream.lane.rng.lock());
    if record.is_logged() {
        routes.rule(&ask).into_iter().for_each(|rule| record.rule(&rule.origin));
    }
    match chosen {
        Choice::Own => Ok(Some(Some(own()))),
        Choice::Look => Ok(None),
        Choice::To(place) => Ok(Some(Some(place.clone()))),
        Choice::Closed(origin, why) => Err(("NR", format!("refused by {origin}: {why}"))),
    }
}

fn routes(bound: &Bound) -> Option<&ConnectionRoutes> {
    Some(bound.view.snapshot.connections(bound.target.service()?)?)
}

fn ask<'a>(downstream: &'a Downstream, bound: &'a Bound, server_name: ServerName<'a>) -> Ask<'a> {
    let address = match &downstream.asked {
        Authority::Address(address) => address.ip(),
        // Who asks by name has chosen no address.
        Authority::Host(..) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
    };
    let client = bound.seen(&downstream.peer);
    let (namespace, labels) = (client.namespace.unwrap_or_default(), client.labels);
    Ask { address, port: bound.target.port(), namespace, labels, server_name }
}

/// The name in the first message of TLS, if there is one within `limit`. What is wrong with the connection shows when it is copied.
pub(crate) async fn server_name<S: AsyncRead + Unpin>(
    stream: &mut S,
    first: &mut Bytes,
    limit: std::time::Duration,
) -> Option<String> {
    let deadline = Instant::now() + limit;
    let mut bytes = BytesMut::from(&**first);
    let name = loop {
        match judge_hello(&bytes) {
            Hello::Name(name) => break Some(name),
            Hello::Nameless => break None,
            Hello::More => {}
        }
        match tokio::time::timeout_at(deadline, stream.read_buf(&mut bytes)).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) | Err(_) => break None,
        }
    };
    *first = bytes.freeze();
    name
}
