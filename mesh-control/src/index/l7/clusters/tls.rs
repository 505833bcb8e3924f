//! With which TLS the endpoints of a place are reached, as a BackendTLSPolicy says it, and else a DestinationRule: of that, whom a gateway believes there, and what it
//! shows, are Secrets of its own namespace. Whose names a server may have, the ServiceEntry of the host says where the rule does not.

use mesh_core::ArcStr;
use mesh_core::l7::ClusterKey;
use mesh_core::l7::cluster::{ServerName, Tls};

use super::Reader;
use crate::index::certificates::{Part, Reference};
use crate::index::l7::notes::Notes;
use crate::index::routing::hosts::Host;
use crate::resource::routing::destination_rule::{self as kind, TlsMode};
use crate::resource::secret::named;
use crate::resource::{Key, Kind, meta};

/// What a policy says of a place, or why nothing is reached; with the policy. Nothing is said to agents.
pub(super) fn of_policy(place: &ClusterKey, reader: &mut Reader<'_, '_>) -> Option<(Key, Result<Tls, ArcStr>)> {
    let of = reader.of_gateway?;
    let (policy, mut tls) = of.policies.tls(place, of.gateway, of.shown.clone(), reader.references)?;
    if let Ok(Tls::Simple(server) | Tls::Mutual(server)) = &mut tls {
        server.spoken = reader.around.defaults.tls.spoken();
    }
    Some((policy.clone(), tls))
}

/// What the part at `field` of the rule `object` says of a place, or why nothing is reached.
pub(super) fn of_rule(
    place: &ClusterKey,
    written: &kind::Tls,
    field: &str,
    object: &Key,
    reader: &mut Reader<'_, '_>,
) -> Result<Tls, ArcStr> {
    let is_mutual = match written.mode {
        None | Some(TlsMode::IstioMutual) => return Ok(Tls::Mesh),
        Some(TlsMode::Disable) => return Ok(Tls::Plain),
        Some(TlsMode::Simple) => false,
        Some(TlsMode::Mutual) => true,
    };
    let files = [
        ("clientCertificate", &written.client_certificate),
        ("privateKey", &written.private_key),
        ("caCertificates", &written.ca_certificates),
        ("caCrl", &written.ca_crl),
    ];
    let mut notes = Notes::new(object.clone(), reader.problems);
    for (name, _) in files.iter().filter(|(_, file)| file.is_some()) {
        let message = "a waypoint has no such file: what has this policy is not reached";
        notes.close(format!("{field}.{name}"), message, "put it into a Secret, and write `credentialName`");
    }
    let name = written.credential_name.as_deref().map(|name| name.strip_prefix("kubernetes://").unwrap_or(name));
    if let Some(name) = name.filter(|name| meta::subdomain(name).is_err()) {
        let message = format!("{name:?} is no name of a Secret");
        notes.close(format!("{field}.credentialName"), message, "write the name alone");
    }
    if let Some(why) = notes.closed() {
        return Err(why.into());
    }
    let hosts = &reader.around.hosts;
    let names: Vec<&String> = match hosts.keyed(&place.service) {
        _ if !written.subject_alt_names.is_empty() => written.subject_alt_names.iter().collect(),
        Some(Host::Entry(entry)) => entry.spec.subject_alt_names.iter().collect(),
        Some(Host::Service(service)) => hosts.added_names(&place.service.name, service),
        None => Vec::new(),
    };
    let mut server = ServerName {
        sni: written.sni.as_deref().map(Into::into),
        names: names.iter().map(|name| name.as_str().into()).collect(),
        unverified: written.insecure_skip_verify == Some(true),
        spoken: reader.around.defaults.tls.spoken(),
        ..ServerName::default()
    };
    if let Some((gateway, name)) = reader.of_gateway.map(|of| of.gateway).zip(name) {
        let key = |name: &str| Key { kind: Kind::Secret, namespace: gateway.namespace.clone(), name: name.into() };
        let (own, apart) = (key(name), key(&format!("{name}-cacert")));
        let mut refer = |holder: &Key, or: Option<Key>, part: Part| {
            reader.references.push(Reference {
                gateway: gateway.clone(),
                object: object.clone(),
                listener: ArcStr::new(),
                field: format!("{field}.credentialName"),
                holder: holder.clone(),
                or,
                part,
            });
            named(holder)
        };
        // As in Istio the roots are in a Secret of their own, or in that with the certificate.
        if !server.unverified {
            server.roots.push(refer(&apart, Some(own.clone()), Part::Believed));
        }
        if is_mutual {
            server.shown = Some(refer(&own, None, Part::Shown));
        }
    }
    Ok(if is_mutual { Tls::Mutual(server) } else { Tls::Simple(server) })
}
