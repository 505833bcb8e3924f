//! One enrolled pod, as the rest of the agent sees it. Made by [`crate::enrol`] after the pod's descriptors and addresses were checked; the
//! proxy, DNS and telemetry hold it in an `Arc` as long as one of its connections lives.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use mesh_core::{ArcStr, CaptureRules, Identity};
use mesh_transport::netns::NetnsSockets;
use serde::{Deserialize, Serialize};

/// What the pod's `resolv.conf` says.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct PodDns {
    /// Where the pod's own queries go.
    pub nameservers: Vec<IpAddr>,
    /// Suffixes tried for short names.
    pub searches: Vec<String>,
    /// Dots from which a name is tried as it stands first.
    pub ndots: u32,
}

/// One enrolled pod.
#[derive(Debug)]
pub struct Pod {
    /// The Kubernetes UID: what makes this pod different from an earlier one of the same name or address.
    pub uid: ArcStr,
    /// Kubernetes namespace.
    pub namespace: ArcStr,
    /// Pod name.
    pub name: ArcStr,
    /// Kubernetes service account.
    pub service_account: ArcStr,
    /// Who the pod is on the wire.
    pub identity: Identity,
    /// At most one address per family, each checked to exist inside the pod.
    pub ips: Vec<IpAddr>,
    /// How the pod resolves names.
    pub dns: PodDns,
    /// What of its traffic is left alone.
    pub rules: CaptureRules,
    /// The pod's network namespace. Closing the last copy lets the namespace go.
    pub netns: OwnedFd,
    /// How the kernel programs name the namespace.
    pub netns_cookie: u64,
    /// How `/proc` names the namespace.
    pub netns_inode: u64,
    /// Grows with every enrolment of this agent: tells apart two enrolments of one UID.
    pub generation: u64,
    /// Makes sockets inside the pod.
    pub sockets: NetnsSockets,
}
