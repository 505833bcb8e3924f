//! Requests on the enrolment socket. The agent reads them here, so that everything behind the socket handles checked values.

use std::net::IpAddr;

use mesh_core::{ArcStr, CaptureRules};
use prost::Message;

use super::{ConvertError, capture, field};
use crate::wire::enrol as wire;

/// The only version of the protocol.
pub const ENROL_VERSION: u32 = 1;
/// One packet, and so one message.
pub const MAX_ENROL_BYTES: usize = 64 << 10;
/// Two families, and room for more than one network.
const MAX_IPS: usize = 16;
/// What resolv.conf honours, with room.
const MAX_DNS_ENTRIES: usize = 32;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnrolRequest {
    /// Opens the conversation; the version is [`ENROL_VERSION`].
    Hello,
    /// A pod is to be enrolled; two file descriptors come with it: netns, cgroup.
    Add(PodRequest),
    /// A pod that the agent knows still exists.
    Keep(ArcStr),
    /// A pod is gone.
    Del(ArcStr),
    /// Everything has been said; pods not mentioned are gone.
    Snapshot,
}

/// A pod to be enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRequest {
    /// Kubernetes' uid of the pod.
    pub uid: ArcStr,
    /// Its namespace.
    pub namespace: ArcStr,
    /// Its name.
    pub name: ArcStr,
    /// Its service account.
    pub service_account: ArcStr,
    /// Its addresses, at least one.
    pub ips: Vec<IpAddr>,
    /// What its resolv.conf says.
    pub dns: PodDnsRequest,
    /// Its node.
    pub node: ArcStr,
    /// What the mesh leaves alone.
    pub rules: Box<CaptureRules>,
}

/// What the pod's resolv.conf says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodDnsRequest {
    /// Resolvers in order.
    pub nameservers: Vec<IpAddr>,
    /// Search domains in order, without final dots.
    pub searches: Vec<ArcStr>,
    /// The option `ndots`.
    pub ndots: u32,
}

/// Reads one packet.
pub fn enrol_request(bytes: &[u8]) -> Result<EnrolRequest, ConvertError> {
    use wire::request::Payload;
    if bytes.len() > MAX_ENROL_BYTES {
        return Err(ConvertError::invalid("request", format!("longer than {MAX_ENROL_BYTES} bytes")));
    }
    let message = wire::Request::decode(bytes).map_err(ConvertError::decode)?;
    match message.payload {
        None => Err(ConvertError::Missing { field: "payload" }),
        Some(Payload::Hello(hello)) if hello.version == ENROL_VERSION => Ok(EnrolRequest::Hello),
        Some(Payload::Hello(hello)) => {
            Err(ConvertError::invalid("version", format!("{} is not supported, {ENROL_VERSION} is", hello.version)))
        }
        Some(Payload::Add(add)) => read_add(add).map(EnrolRequest::Add),
        Some(Payload::Keep(keep)) => field::name("uid", keep.uid).map(EnrolRequest::Keep),
        Some(Payload::Del(del)) => field::name("uid", del.uid).map(EnrolRequest::Del),
        Some(Payload::Snapshot(_)) => Ok(EnrolRequest::Snapshot),
    }
}

/// The bytes of one request.
#[must_use]
pub fn encode_enrol_request(request: &EnrolRequest) -> Vec<u8> {
    use wire::request::Payload;
    let payload = match request {
        EnrolRequest::Hello => Payload::Hello(wire::Hello { version: ENROL_VERSION }),
        EnrolRequest::Add(pod) => Payload::Add(write_add(pod)),
        EnrolRequest::Keep(uid) => Payload::Keep(wire::Keep { uid: uid.to_string() }),
        EnrolRequest::Del(uid) => Payload::Del(wire::Del { uid: uid.to_string() }),
        EnrolRequest::Snapshot => Payload::Snapshot(wire::Snapshot {}),
    };
    wire::Request { payload: Some(payload) }.encode_to_vec()
}

fn read_add(add: wire::Add) -> Result<PodRequest, ConvertError> {
    let dns = add.dns.unwrap_or_default();
    let domain = |name: String| field::name("dns.searches", name.trim_end_matches('.').to_owned());
    Ok(PodRequest {
        uid: field::name("uid", add.uid)?,
        namespace: field::segment("namespace", add.namespace)?,
        name: field::segment("name", add.name)?,
        service_account: field::segment("service_account", add.service_account)?,
        ips: pod_ips(&add.ips)?,
        dns: PodDnsRequest {
            nameservers: some(few("dns.nameservers", dns.nameservers, MAX_DNS_ENTRIES)?, |text| {
                parse_ip("dns.nameservers", &text)
            })?,
            // A lone dot in a search list means no domain.
            searches: some(
                few("dns.searches", dns.searches, MAX_DNS_ENTRIES)?.into_iter().filter(|s| s != ".").collect(),
                domain,
            )?,
            ndots: dns.ndots,
        },
        node: field::name("node", add.node)?,
        rules: capture::read(add.capture.unwrap_or_default())?.into(),
    })
}

/// A pod without an address cannot be enrolled: nothing could be captured in its name.
fn pod_ips(list: &[String]) -> Result<Vec<IpAddr>, ConvertError> {
    if list.is_empty() {
        return Err(ConvertError::Missing { field: "ips" });
    }
    let mut ips = Vec::new();
    for text in few("ips", list.to_vec(), MAX_IPS)? {
        let ip = parse_ip("ips", &text)?;
        field::host_ip("ips", &field::octets(ip))?;
        if ips.contains(&ip) {
            return Err(ConvertError::invalid("ips", format!("{ip} is repeated")));
        }
        ips.push(ip);
    }
    Ok(ips)
}

fn few(field: &'static str, list: Vec<String>, limit: usize) -> Result<Vec<String>, ConvertError> {
    if list.len() > limit {
        return Err(ConvertError::invalid(field, format!("{} of them, the limit is {limit}", list.len())));
    }
    Ok(list)
}

fn some<T>(list: Vec<String>, read: impl Fn(String) -> Result<T, ConvertError>) -> Result<Vec<T>, ConvertError> {
    list.into_iter().map(read).collect()
}

fn parse_ip(field: &'static str, text: &str) -> Result<IpAddr, ConvertError> {
    let ip: Result<IpAddr, _> = text.parse();
    ip.map(|ip| ip.to_canonical()).map_err(|_| ConvertError::invalid(field, "not an address"))
}

fn write_add(pod: &PodRequest) -> wire::Add {
    wire::Add {
        uid: pod.uid.to_string(),
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        service_account: pod.service_account.to_string(),
        ips: pod.ips.iter().map(ToString::to_string).collect(),
        dns: Some(wire::Dns {
            nameservers: pod.dns.nameservers.iter().map(ToString::to_string).collect(),
            searches: pod.dns.searches.iter().map(ToString::to_string).collect(),
            ndots: pod.dns.ndots,
        }),
        node: pod.node.to_string(),
        capture: (*pod.rules != CaptureRules::default()).then(|| capture::write(&pod.rules)),
    }
}
