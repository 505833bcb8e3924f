//! What an enrolment needs and istio-cni does not say: of a network namespace the pod's addresses, its cgroup, and how it resolves names. Called by
//! [`super::client`]; blocking.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_core::{ArcStr, CaptureRules};
use mesh_proto::convert::{PodDnsRequest, PodRequest, ZdsPod};

use super::super::check::{Checker, Interface, interfaces};
use super::super::kube::{Finder, checked, resolv_conf};
use super::super::machine::Spec;
use super::super::server::PodFds;
use super::super::session::{Code, Failure};

/// The network device that kubelets have CNI plugins make.
const POD_DEVICE: &str = "eth0";
/// What kubelets write into a pod's `resolv.conf`.
const NDOTS: u32 = 5;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Places {
    /// Finds cgroups and processes.
    pub finder: Finder,
    /// The same checks as for clients of the enrolment socket.
    pub checker: Arc<Checker>,
    /// DNS domain of the cluster.
    pub cluster_domain: ArcStr,
    /// The agent's own: it names the cluster's nameservers.
    pub resolv_conf: PathBuf,
}

impl Places {
    /// Makes an enrolment of a pod and the namespace it is in, and has it checked. `known` is an enrolment of the same pod that runs.
    pub(super) fn open(
        &self,
        pod: &ZdsPod,
        netns: OwnedFd,
        known: Option<Arc<Spec>>,
    ) -> Result<(Spec, PodFds), Failure> {
        // Whether it is a network namespace, and a pod's, before anybody enters it.
        self.checker.check_netns(netns.as_fd(), &[])?;
        let failed = |error| Failure::passing(Code::Failed, format!("cannot read the pod's addresses: {error}"));
        let ips = addresses(&interfaces(netns.as_fd()).map_err(failed)?)?;
        let id = self.checker.check_netns(netns.as_fd(), &ips)?;
        // What was learnt first stays: the same pod named again is no other enrolment, so nothing of it is interrupted.
        let known = known.filter(|spec| spec.netns == id).map(|spec| spec.pod.dns.clone());
        let (cgroup, found) = self.finder.place(&pod.uid, netns.as_fd(), known.is_none())?;
        let dns = known.or(found).unwrap_or_else(|| self.usual_dns(&pod.namespace));
        let request = checked(PodRequest {
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            service_account: pod.service_account.clone(),
            ips,
            dns,
            node: self.finder.node.as_str().into(),
            rules: Box::new(CaptureRules::default()),
        })?;
        self.checker.check(&request, netns.as_fd(), cgroup.as_fd())?;
        Ok((Spec { pod: request, netns: id }, PodFds { netns, adopted: None, taken_over: false }))
    }

    /// A pod that is only being made has no process to ask.
    fn usual_dns(&self, namespace: &str) -> PodDnsRequest {
        usual_dns(&read(&self.resolv_conf), namespace, &self.cluster_domain)
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// What a kubelet writes for a pod that asks for nothing of its own.
fn usual_dns(own: &str, namespace: &str, cluster_domain: &str) -> PodDnsRequest {
    let domain = cluster_domain.trim_end_matches('.');
    let searches = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
    PodDnsRequest {
        nameservers: resolv_conf(own).nameservers,
        searches: searches.into_iter().map(Into::into).collect(),
        ndots: NDOTS,
    }
}

/// The addresses that are the pod's: those of the device that kubelets ask for, or of all if there is none of that name. Of each family there must be
/// one to choose; a device's first is what its packets leave with.
fn addresses(interfaces: &[Interface]) -> Result<Vec<IpAddr>, Failure> {
    let own = interfaces.iter().filter(|one| is_own(one.address));
    let named: Vec<&Interface> = own.clone().filter(|one| one.name == POD_DEVICE).collect();
    let (all, one_device): (Vec<&Interface>, bool) =
        if named.is_empty() { (own.collect(), false) } else { (named, true) };
    let mut ips: Vec<IpAddr> = Vec::new();
    for interface in all {
        match ips.iter().any(|ip| ip.is_ipv4() == interface.address.is_ipv4()) {
            false => ips.push(interface.address),
            true if one_device => {}
            true => {
                let message = format!("no device {POD_DEVICE}, and others with more than one address of a family");
                return Err(Failure::passing(Code::Refused, message));
            }
        }
    }
    if ips.is_empty() {
        return Err(Failure::passing(Code::Failed, "the network namespace has no address yet"));
    }
    ips.sort_unstable();
    Ok(ips)
}

/// Whether packets from outside can be for this address.
fn is_own(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses with their interfaces, and which of them are the pod's.
    type Row<'a> = (&'a [(&'a str, &'a str)], Option<&'a [&'a str]>);

    #[test]
    fn hardening_b133_which_addresses_are_the_pods() {
        let some = |list: &[(&str, &str)]| {
            let one = |(name, ip): &(&str, &str)| Interface { name: (*name).to_owned(), address: ip.parse().unwrap() };
            list.iter().map(one).collect::<Vec<_>>()
        };
        let local = [("lo", "127.0.0.1"), ("lo", "::1"), ("eth0", "fe80::1")];
        let rows: [Row<'_>; 9] = [
            (&[], None),
            (&[("eth0", "198.18.0.2")], Some(&["198.18.0.2"])),
            (&[("eth0", "fd00:198::2"), ("eth0", "198.18.0.2")], Some(&["198.18.0.2", "fd00:198::2"])),
            (&[("eth0", "198.18.0.2"), ("net1", "198.18.7.2")], Some(&["198.18.0.2"])),
            (&[("eth0", "198.18.0.2"), ("eth0", "198.18.0.3")], Some(&["198.18.0.2"])),
            (&[("ens3", "198.18.0.2"), ("ens4", "fd00:198::2")], Some(&["198.18.0.2", "fd00:198::2"])),
            (&[("ens3", "198.18.0.2"), ("ens4", "198.18.7.2")], None),
            (&[("eth0", "169.254.1.1")], None),
            (&[("net1", "198.18.7.2"), ("eth0", "169.254.1.1")], Some(&["198.18.7.2"])),
        ];
        for (list, expected) in rows {
            let found = addresses(&some(&[&local[..], list].concat())).ok();
            let expected = expected.map(|ips| ips.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>());
            assert_eq!(found, expected, "{list:?}");
        }
    }

    #[test]
    fn a_pod_without_a_process_resolves_names_as_kubelets_have_it() {
        let dns = usual_dns("nameserver 198.19.0.10\nnameserver 127.0.0.53\nsearch x\n", "shop", "cluster.local.");
        assert_eq!(dns.nameservers, ["198.19.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(dns.searches, ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"]);
        assert_eq!(dns.ndots, 5);
        assert!(usual_dns("", "shop", "cluster.local").nameservers.is_empty());
    }
}
