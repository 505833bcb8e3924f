//! What a cluster gives pods beside the mesh, and without it: service addresses (kube-proxy's part, on each node) and cluster DNS.
use super::nft::{self, Translation, Transport};
use super::node::Node;
use super::plan::{self, Dual};
use super::pod::Pod;
use super::process::lock;
use super::service::ServiceSpec;
use anyhow::{Context, Result};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

/// Services with their addresses, and names of the outside world.
#[derive(Default)]
pub(super) struct Cluster {
    services: Vec<(ServiceSpec, Option<Dual>)>,
    outside_names: Vec<(String, Vec<IpAddr>)>,
}

impl Cluster {
    /// Adds a service and gives it an address, unless it is headless.
    pub fn add_service(&mut self, spec: ServiceSpec) -> Option<Dual> {
        let address = (!spec.headless).then(|| plan::service(self.services.len() as u16));
        self.services.push((spec, address));
        address
    }

    /// Changes a service that is there; its addresses stay. Gives what it is now.
    pub fn change_service(
        &mut self,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut ServiceSpec),
    ) -> Result<(ServiceSpec, Option<Dual>)> {
        let found = self.services.iter_mut().find(|(spec, _)| spec.namespace == namespace && spec.name == name);
        let (spec, address) = found.with_context(|| format!("no service {namespace}/{name}"))?;
        change(spec);
        Ok((spec.clone(), *address))
    }

    /// Adds a name of the outside world.
    pub fn add_outside(&mut self, name: &str, addresses: &[IpAddr]) {
        self.outside_names.push((name.into(), addresses.to_vec()));
    }

    /// Brings the records of cluster DNS and the translations of each node in line with services and pods.
    pub fn write(&self, pods: &[Arc<Pod>], nodes: &[Arc<Node>], records: &Path) -> Result<()> {
        let partial = records.with_extension("partial");
        std::fs::write(&partial, self.records(pods))
            .and_then(|()| std::fs::rename(&partial, records))
            .with_context(|| format!("write {}", records.display()))?;
        let services = self.translations(pods);
        for node in nodes {
            let dns = [Transport::Udp, Transport::Tcp].map(|transport| Translation {
                transport,
                service: SocketAddr::new(plan::DNS.into(), 53),
                endpoints: vec![SocketAddr::new(plan::gateway(node.number).v4.into(), 53)],
            });
            let all = [&services[..], &dns[..]].concat();
            node.netns.run(|| nft::replace(&all)).with_context(|| format!("services of {}", node.name))?;
        }
        Ok(())
    }

    /// One line per name: the name and its addresses.
    fn records(&self, pods: &[Arc<Pod>]) -> String {
        let services = self.services.iter().map(|(service, address)| {
            let addresses = match address {
                Some(address) => address.both().to_vec(),
                None => endpoints(service, pods),
            };
            (format!("{}.{}.svc.cluster.local", service.name, service.namespace), addresses)
        });
        let mut text = String::new();
        for (name, addresses) in services.chain(self.outside_names.iter().cloned()) {
            text.push_str(&name);
            for ip in addresses {
                text.push_str(&format!(" {ip}"));
            }
            text.push('\n');
        }
        text
    }

    /// Every address and port of every service with its endpoints of the same family.
    fn translations(&self, pods: &[Arc<Pod>]) -> Vec<Translation> {
        let mut found = Vec::new();
        for (service, address) in &self.services {
            let endpoints = endpoints(service, pods);
            for ip in address.iter().flat_map(|a| a.both()) {
                for (_, port, target) in &service.ports {
                    let same_family = endpoints.iter().filter(|e| e.is_ipv4() == ip.is_ipv4());
                    found.push(Translation {
                        transport: Transport::Tcp,
                        service: SocketAddr::new(ip, *port),
                        endpoints: same_family.map(|e| SocketAddr::new(*e, *target)).collect(),
                    });
                }
            }
        }
        found
    }
}

/// The addresses of the ready pods that a service selects.
fn endpoints(service: &ServiceSpec, pods: &[Arc<Pod>]) -> Vec<IpAddr> {
    pods.iter()
        .filter(|pod| pod.namespace == service.namespace && lock(&pod.manifest).ready)
        .filter(|pod| {
            let labels = pod.labels();
            service.selector.iter().all(|(k, v)| labels.get(k) == Some(v))
        })
        .flat_map(|pod| pod.ips())
        .collect()
}
