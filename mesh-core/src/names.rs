//! What a DNS question about the mesh is answered with. The agent's DNS server asks here first and forwards what is not of the mesh to the
//! resolver that the app asked.

use std::net::IpAddr;

use arcstr::ArcStr;

use crate::{
    Service, Snapshot,
    service::{IpFamilies, Mode},
};

/// The type of record asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordType {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Anything else: the mesh has none.
    Other,
}

/// Address families that the client can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Families {
    /// It has an IPv4 address.
    pub v4: bool,
    /// It has an IPv6 address.
    pub v6: bool,
}

/// One question.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The name, with or without the final dot, in any case.
    pub name: &'a str,
    /// The type.
    pub record: RecordType,
    /// The client's namespace.
    pub namespace: &'a str,
    /// The client's network.
    pub network: &'a str,
    /// The client's families.
    pub families: Families,
    /// The client's search domains, without final dots.
    pub searches: &'a [ArcStr],
    /// Usually `cluster.local`.
    pub cluster_domain: &'a str,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameAnswer {
    /// Addresses of the asked family, at least one, sorted. The server shuffles those of headless services.
    Addresses(Vec<IpAddr>),
    /// The name exists and has no such record.
    NoData,
    /// Not a name of the mesh: forward the question.
    NotMesh,
}

const MAX_NAME: usize = 253;

/// Answers from the snapshot. Tries the name as it is, then without one of the client's search domains, then completed as Kubernetes does
/// (`svc`, `svc.ns`, `svc.ns.svc`); whole names win over wildcards.
#[must_use]
pub fn answer(snapshot: &Snapshot, question: &Question<'_>) -> NameAnswer {
    let name = question.name.strip_suffix('.').unwrap_or(question.name).to_ascii_lowercase();
    if name.is_empty() || name.len() > MAX_NAME {
        return NameAnswer::NotMesh;
    }
    let candidates = candidates(&name, question);
    let host = candidates.iter().find_map(|name| lookup(snapshot, name, question.namespace));
    if let Some(service) = host {
        return service_answer(snapshot, service, question);
    }
    if let Some(addresses) = candidates.iter().find_map(|name| member(snapshot, name, question.namespace)) {
        return filtered(addresses, question);
    }
    let wildcard = outer(&name, question).find_map(|name| wildcard(snapshot, &name, question.namespace));
    wildcard.map_or(NameAnswer::NotMesh, |service| service_answer(snapshot, service, question))
}

/// Names that the question may mean, the most literal first.
fn candidates(name: &str, question: &Question<'_>) -> Vec<String> {
    let mut names: Vec<String> = std::iter::once(name.to_owned()).chain(bare(name, question)).collect();
    for short in names.clone() {
        names.extend(completed(&short, question));
    }
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// The name without each of the search domains that it has.
fn bare(name: &str, question: &Question<'_>) -> impl Iterator<Item = String> {
    question.searches.iter().filter_map(move |search| {
        let search = search.trim_matches('.').to_ascii_lowercase();
        let rest = name.strip_suffix(&search)?.strip_suffix('.')?;
        (!search.is_empty() && !rest.is_empty()).then(|| rest.to_owned())
    })
}

/// Names that a wildcard may answer for: what was asked, unless it is of the cluster, and what the longest search domain leaves of it. Shorter ones leave parts of
/// that domain, which would look like names below `*.NAMESPACE` or `*.svc`.
fn outer(name: &str, question: &Question<'_>) -> impl Iterator<Item = String> {
    let asked = (!is_below(name, question.cluster_domain)).then(|| name.to_owned());
    asked.into_iter().chain(bare(name, question).min_by_key(String::len))
}

fn completed(name: &str, question: &Question<'_>) -> Vec<String> {
    let (namespace, domain) = (question.namespace, question.cluster_domain);
    match name.split('.').collect::<Vec<_>>()[..] {
        [service] => vec![format!("{service}.{namespace}.svc.{domain}")],
        // `service.namespace`, or `pod.service` of the client's own namespace.
        [first, second] => {
            vec![format!("{first}.{second}.svc.{domain}"), format!("{first}.{second}.{namespace}.svc.{domain}")]
        }
        [.., namespace, "svc"] if !namespace.is_empty() => vec![format!("{name}.{domain}")],
        _ => Vec::new(),
    }
}

/// Among services of one host, the client's namespace wins, then the canonical one.
fn lookup<'a>(snapshot: &'a Snapshot, host: &str, namespace: &str) -> Option<&'a Service> {
    let services = snapshot.service_by_host(host);
    let own = services.iter().find(|s| s.namespace == namespace);
    own.or_else(|| services.iter().find(|s| s.visible_from(namespace))).map(|s| &**s)
}

/// `*.example.com` answers for every name below `example.com`; the longest wildcard wins.
fn wildcard<'a>(snapshot: &'a Snapshot, name: &str, namespace: &str) -> Option<&'a Service> {
    let mut rest = name;
    while let Some((_, parent)) = rest.split_once('.') {
        if let Some(service) = lookup(snapshot, &format!("*.{parent}"), namespace) {
            return Some(service);
        }
        rest = parent;
    }
    None
}

/// `pod.service...`: one member of a headless service, by its name or hostname.
fn member(snapshot: &Snapshot, name: &str, namespace: &str) -> Option<Vec<IpAddr>> {
    let (label, host) = name.split_once('.')?;
    let service = lookup(snapshot, host, namespace).filter(|s| s.is_headless())?;
    let members = snapshot.endpoints(&service.key())?.members();
    let named = |w: &crate::Workload| w.name == label || w.hostname == label || w.hostname == name;
    members.iter().find(|e| named(&e.workload)).map(|e| e.workload.addresses.clone())
}

fn service_answer(snapshot: &Snapshot, service: &Service, question: &Question<'_>) -> NameAnswer {
    // A host that the mesh only knows by name or by ranges, such as an external one that is passed through, is resolved where it lives.
    let elsewhere =
        !is_below(&service.hostname, question.cluster_domain) || service.load_balancing.mode == Mode::Passthrough;
    if !service.is_headless() {
        if elsewhere && service.addresses.iter().all(|address| address.single().is_none()) {
            return NameAnswer::NotMesh;
        }
        let here = service.addresses.iter().filter(|a| a.network == question.network);
        let addresses: Vec<_> = here.filter_map(|a| a.single()).collect();
        return filtered(allowed(addresses, service.ip_families), question);
    }
    let set = snapshot.endpoints(&service.key());
    let serving = set.iter().flat_map(|set| set.serving()).filter(|e| e.workload.network == question.network);
    let addresses: Vec<_> = serving.flat_map(|e| e.workload.addresses.iter().copied()).collect();
    if addresses.is_empty() && elsewhere {
        return NameAnswer::NotMesh;
    }
    filtered(allowed(addresses, service.ip_families), question)
}

fn is_below(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

fn allowed(mut addresses: Vec<IpAddr>, families: IpFamilies) -> Vec<IpAddr> {
    match families {
        IpFamilies::Ipv4Only => addresses.retain(IpAddr::is_ipv4),
        IpFamilies::Ipv6Only => addresses.retain(IpAddr::is_ipv6),
        IpFamilies::Automatic | IpFamilies::Dual => {}
    }
    addresses
}

fn filtered(mut addresses: Vec<IpAddr>, question: &Question<'_>) -> NameAnswer {
    addresses.retain(|ip| match question.record {
        RecordType::A => ip.is_ipv4() && question.families.v4,
        RecordType::Aaaa => ip.is_ipv6() && question.families.v6,
        RecordType::Other => false,
    });
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() { NameAnswer::NoData } else { NameAnswer::Addresses(addresses) }
}

#[cfg(test)]
mod tests;
