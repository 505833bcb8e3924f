//! What the keeper stores beside a pod's descriptors, so that the next worker can take the pod over without asking anybody.

use std::net::IpAddr;

use mesh_core::CaptureRules;
use mesh_proto::convert::{PodDnsRequest, PodRequest};
use serde::{Deserialize, Serialize};

use super::listeners::Kind;
use super::machine::{NetnsId, Spec};

/// Changes whenever an older worker could misread a record; a record of another version is not adopted.
const VERSION: u32 = 1;

/// The stored form of a [`Spec`] and of the order of its sockets.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Record {
    version: u32,
    uid: String,
    namespace: String,
    name: String,
    service_account: String,
    ips: Vec<IpAddr>,
    nameservers: Vec<IpAddr>,
    searches: Vec<String>,
    ndots: u32,
    node: String,
    netns_cookie: u64,
    netns_inode: u64,
    sockets: Vec<Kind>,
    /// Not in what earlier agents stored.
    #[serde(default)]
    rules: CaptureRules,
}

impl Record {
    /// The record of a pod whose sockets are stored in this order.
    pub fn new(spec: &Spec, sockets: Vec<Kind>) -> Self {
        let Spec { pod, netns } = spec;
        Record {
            version: VERSION,
            uid: pod.uid.to_string(),
            namespace: pod.namespace.to_string(),
            name: pod.name.to_string(),
            service_account: pod.service_account.to_string(),
            ips: pod.ips.clone(),
            nameservers: pod.dns.nameservers.clone(),
            searches: pod.dns.searches.iter().map(ToString::to_string).collect(),
            ndots: pod.dns.ndots,
            node: pod.node.to_string(),
            netns_cookie: netns.cookie,
            netns_inode: netns.inode,
            sockets,
            rules: CaptureRules::clone(&pod.rules),
        }
    }

    /// As stored.
    pub fn encode(&self) -> Vec<u8> {
        // Plain data with text keys: serialising it into memory cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// What was stored, unless it is of another version or broken.
    pub fn decode(bytes: &[u8]) -> Result<(Spec, Vec<Kind>), String> {
        let record: Record = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if record.version != VERSION {
            return Err(format!("version {} instead of {VERSION}", record.version));
        }
        let pod = PodRequest {
            uid: record.uid.into(),
            namespace: record.namespace.into(),
            name: record.name.into(),
            service_account: record.service_account.into(),
            ips: record.ips,
            dns: PodDnsRequest {
                nameservers: record.nameservers,
                searches: record.searches.into_iter().map(Into::into).collect(),
                ndots: record.ndots,
            },
            node: record.node.into(),
            rules: record.rules.into(),
        };
        let netns = NetnsId { cookie: record.netns_cookie, inode: record.netns_inode };
        Ok((Spec { pod, netns }, record.sockets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_stored_and_garbage_is_refused() {
        let pod = PodRequest {
            uid: "u".into(),
            namespace: "ns".into(),
            name: "n".into(),
            service_account: "sa".into(),
            ips: vec!["198.18.0.1".parse().unwrap(), "fd00:198::1".parse().unwrap()],
            dns: PodDnsRequest {
                nameservers: vec!["198.18.0.10".parse().unwrap()],
                searches: vec!["a.b".into()],
                ndots: 5,
            },
            node: "node".into(),
            rules: Box::new(CaptureRules {
                probe_ports: vec![80],
                outbound_only: Some(vec!["198.18.0.0/15".parse().unwrap()]),
                ..CaptureRules::default()
            }),
        };
        let spec = Spec { pod, netns: NetnsId { cookie: u64::MAX, inode: 4_026_531_840 } };
        let kinds = vec![Kind::Outbound, Kind::DnsUdp];
        assert_eq!(Record::decode(&Record::new(&spec, kinds.clone()).encode()).unwrap(), (spec.clone(), kinds));
        let mut newer = Record::new(&spec, Vec::new());
        newer.version += 1;
        for bytes in [&b""[..], b"{}", b"\xff", &newer.encode()] {
            assert!(Record::decode(bytes).is_err());
        }
    }
}
