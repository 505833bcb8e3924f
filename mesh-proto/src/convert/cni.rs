//! Requests and answers on the CNI plugin's socket. The agent reads requests and the plugin answers, so that everything behind the socket
//! handles checked values.

use std::net::IpAddr;
use std::time::Duration;

use mesh_core::ArcStr;
use prost::Message;

use super::{ConvertError, field};
use crate::wire::cni as wire;

/// The only version of the protocol.
pub const CNI_VERSION: u32 = 1;
/// One packet, and so one message.
pub const MAX_CNI_BYTES: usize = 64 << 10;
/// The longest that a plugin may wait for an answer: container runtimes end it a little later.
pub const MAX_CNI_PATIENCE: Duration = Duration::from_secs(110);
/// Words of a kind that a resolv.conf may have.
const MAX_WORDS: usize = 64;
/// What is told to people stays short.
const MAX_REASON: usize = 1024;

/// What the container runtime asks the plugin for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CniCommand {
    /// The pod's network was made.
    Add,
    /// Is the pod as it was added?
    Check,
    /// The pod's network goes.
    Del,
}

/// One request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CniRequest {
    /// What is asked for.
    pub command: CniCommand,
    /// Of the sandbox.
    pub container: ArcStr,
    /// Kubernetes namespace.
    pub namespace: ArcStr,
    /// Name.
    pub name: ArcStr,
    /// UID as the kubelet runs it.
    pub uid: ArcStr,
    /// Addresses, at most one of each family; of an Add at least one.
    pub ips: Vec<IpAddr>,
    /// What its resolv.conf will say, if the runtime tells.
    pub dns: Option<CniDns>,
    /// How long the plugin waits.
    pub patience: Duration,
}

/// What the runtime writes into the pod's resolv.conf.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CniDns {
    /// Nameservers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options, as `ndots:5`.
    pub options: Vec<String>,
}

impl CniDns {
    /// The file that a container runtime makes of it.
    #[must_use]
    pub fn resolv_conf(&self) -> String {
        let mut text = String::new();
        for server in &self.servers {
            text += &format!("nameserver {server}\n");
        }
        for (keyword, words) in [("search", &self.searches), ("options", &self.options)] {
            if !words.is_empty() {
                text += &format!("{keyword} {}\n", words.join(" "));
            }
        }
        text
    }
}

/// What the agent says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CniAnswer {
    /// The pod is not to be in the mesh.
    Pass(String),
    /// It is captured and has its certificate; or what was asked for is done.
    Ready,
    /// It is to be in the mesh and is not yet.
    Wait(String),
    /// The agent does not know whether it is to be.
    Unknown(String),
    /// It is to be in the mesh and cannot be.
    Refused(String),
}

/// Reads a request.
pub fn cni_request(bytes: &[u8]) -> Result<CniRequest, ConvertError> {
    if bytes.len() > MAX_CNI_BYTES {
        return Err(ConvertError::invalid("request", format!("longer than {MAX_CNI_BYTES} bytes")));
    }
    let message = wire::Request::decode(bytes).map_err(ConvertError::decode)?;
    if message.version != CNI_VERSION {
        let text = format!("{} is not supported, {CNI_VERSION} is", message.version);
        return Err(ConvertError::invalid("version", text));
    }
    let command = match field::known::<wire::Command>("command", message.command)? {
        wire::Command::Add => CniCommand::Add,
        wire::Command::Check => CniCommand::Check,
        wire::Command::Del => CniCommand::Del,
        wire::Command::Unspecified => return Err(ConvertError::Missing { field: "command" }),
    };
    let ips = addresses(&message.ips)?;
    if command == CniCommand::Add && ips.is_empty() {
        return Err(ConvertError::Missing { field: "ips" });
    }
    Ok(CniRequest {
        command,
        container: field::text("container", message.container)?,
        namespace: field::segment("namespace", message.namespace)?,
        name: field::segment("name", message.name)?,
        uid: field::name("uid", message.uid)?,
        ips,
        dns: message.dns.map(dns).transpose()?,
        patience: Duration::from_millis(message.patience_ms.into()).min(MAX_CNI_PATIENCE),
    })
}

/// The bytes of a request.
#[must_use]
pub fn encode_cni_request(request: &CniRequest) -> Vec<u8> {
    let command = match request.command {
        CniCommand::Add => wire::Command::Add,
        CniCommand::Check => wire::Command::Check,
        CniCommand::Del => wire::Command::Del,
    };
    let dns =
        request.dns.clone().map(|dns| wire::Dns { servers: dns.servers, searches: dns.searches, options: dns.options });
    wire::Request {
        version: CNI_VERSION,
        command: command.into(),
        container: request.container.to_string(),
        namespace: request.namespace.to_string(),
        name: request.name.to_string(),
        uid: request.uid.to_string(),
        ips: request.ips.iter().map(ToString::to_string).collect(),
        dns,
        patience_ms: u32::try_from(request.patience.as_millis()).unwrap_or(u32::MAX),
    }
    .encode_to_vec()
}

/// Reads an answer.
pub fn cni_answer(bytes: &[u8]) -> Result<CniAnswer, ConvertError> {
    let message = wire::Answer::decode(bytes).map_err(ConvertError::decode)?;
    let reason = message.reason;
    Ok(match field::known::<wire::Verdict>("verdict", message.verdict)? {
        wire::Verdict::Pass => CniAnswer::Pass(reason),
        wire::Verdict::Ready => CniAnswer::Ready,
        wire::Verdict::Wait => CniAnswer::Wait(reason),
        wire::Verdict::Unknown => CniAnswer::Unknown(reason),
        wire::Verdict::Refused => CniAnswer::Refused(reason),
        wire::Verdict::Unspecified => return Err(ConvertError::Missing { field: "verdict" }),
    })
}

/// The bytes of an answer.
#[must_use]
pub fn encode_cni_answer(answer: &CniAnswer) -> Vec<u8> {
    let (verdict, reason) = match answer {
        CniAnswer::Pass(reason) => (wire::Verdict::Pass, reason.as_str()),
        CniAnswer::Ready => (wire::Verdict::Ready, ""),
        CniAnswer::Wait(reason) => (wire::Verdict::Wait, reason.as_str()),
        CniAnswer::Unknown(reason) => (wire::Verdict::Unknown, reason.as_str()),
        CniAnswer::Refused(reason) => (wire::Verdict::Refused, reason.as_str()),
    };
    let end = (0..=reason.len().min(MAX_REASON)).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
    wire::Answer { verdict: verdict.into(), reason: reason[..end].to_owned() }.encode_to_vec()
}

fn addresses(list: &[String]) -> Result<Vec<IpAddr>, ConvertError> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for text in list {
        let ip: IpAddr = text.parse().map_err(|_| ConvertError::invalid("ips", "not an address"))?;
        let ip = field::host_ip("ips", &field::octets(ip))?;
        if ips.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
            return Err(ConvertError::invalid("ips", "more than one address of a family"));
        }
        ips.push(ip);
    }
    Ok(ips)
}

/// What cannot stand in the file is refused, and not left out: the pod would be enrolled for other names than it asks. Options may have spaces:
/// the runtime joins them in the same way.
fn dns(dns: wire::Dns) -> Result<CniDns, ConvertError> {
    let words = |field: &'static str, list: Vec<String>| {
        let plain = |word: &String| !word.chars().any(char::is_control);
        match list.len() <= MAX_WORDS && list.iter().all(plain) {
            true => Ok(list),
            false => Err(ConvertError::invalid(field, format!("at most {MAX_WORDS} words on one line are wanted"))),
        }
    };
    Ok(CniDns {
        servers: words("dns.servers", dns.servers)?,
        searches: words("dns.searches", dns.searches)?,
        options: words("dns.options", dns.options)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> CniRequest {
        CniRequest {
            command: CniCommand::Add,
            container: "0f9d1c2e".into(),
            namespace: "shop".into(),
            name: "web-0".into(),
            uid: "2c48913c-b29f-11e7-9350-020968147796".into(),
            ips: vec!["198.18.0.1".parse().unwrap(), "fd00:198::1".parse().unwrap()],
            dns: Some(CniDns {
                servers: vec!["198.19.0.10".into()],
                searches: vec!["shop.svc.cluster.local".into(), "svc.cluster.local".into()],
                options: vec!["ndots:5".into()],
            }),
            patience: Duration::from_secs(30),
        }
    }

    #[test]
    fn requests_and_answers_come_through_as_they_are() {
        for command in [CniCommand::Add, CniCommand::Check, CniCommand::Del] {
            let request = CniRequest { command, ..request() };
            assert_eq!(cni_request(&encode_cni_request(&request)), Ok(request));
        }
        let bare = CniRequest { command: CniCommand::Del, ips: Vec::new(), dns: None, ..request() };
        assert_eq!(cni_request(&encode_cni_request(&bare)), Ok(bare));
        let why = || "because".to_owned();
        for answer in [
            CniAnswer::Pass(why()),
            CniAnswer::Ready,
            CniAnswer::Wait(why()),
            CniAnswer::Unknown(why()),
            CniAnswer::Refused(why()),
        ] {
            assert_eq!(cni_answer(&encode_cni_answer(&answer)), Ok(answer));
        }
        let long = encode_cni_answer(&CniAnswer::Wait("ä".repeat(4000)));
        assert!(matches!(cni_answer(&long), Ok(CniAnswer::Wait(text)) if text.len() == MAX_REASON));
    }

    #[test]
    fn hardening_B130_what_is_no_request_is_refused_by_the_name_of_what_is_wrong() {
        let changed = |change: &dyn Fn(&mut CniRequest)| {
            let mut request = request();
            change(&mut request);
            encode_cni_request(&request)
        };
        let dns = |word: &str| CniDns { searches: vec![word.to_owned()], ..CniDns::default() };
        let rows: Vec<(Vec<u8>, &str)> = vec![
            (Vec::new(), "version"),
            (vec![0xff; 64], ""),
            (vec![0; MAX_CNI_BYTES + 1], "request"),
            (wire::Request { version: 2, ..Default::default() }.encode_to_vec(), "version"),
            (wire::Request { version: 1, ..Default::default() }.encode_to_vec(), "command"),
            (wire::Request { version: 1, command: 9, ..Default::default() }.encode_to_vec(), "command"),
            (changed(&|r| r.uid = "".into()), "uid"),
            (changed(&|r| r.uid = "../x".into()), "uid"),
            (changed(&|r| r.namespace = "".into()), "namespace"),
            (changed(&|r| r.name = "a\nb".into()), "name"),
            (changed(&|r| r.ips.clear()), "ips"),
            (changed(&|r| r.ips = vec!["127.0.0.1".parse().unwrap()]), "ips"),
            (changed(&|r| r.ips.push("198.18.0.2".parse().unwrap())), "ips"),
            (changed(&|r| r.dns = Some(dns("a\nnameserver"))), "dns.searches"),
            (
                changed(&|r| {
                    r.dns = Some(CniDns { options: vec!["ndots:5".into(); MAX_WORDS + 1], ..CniDns::default() });
                }),
                "dns.options",
            ),
        ];
        for (index, (bytes, field)) in rows.into_iter().enumerate() {
            let error = cni_request(&bytes).unwrap_err().to_string();
            assert!(error.contains(field), "row {index}: {error}");
        }
        assert!(cni_answer(b"").is_err() && cni_answer(&[0xff; 8]).is_err());
    }

    #[test]
    fn nobody_waits_longer_than_the_runtime() {
        let endless = CniRequest { patience: Duration::from_secs(86_400), ..request() };
        assert_eq!(cni_request(&encode_cni_request(&endless)).unwrap().patience, MAX_CNI_PATIENCE);
    }

    #[test]
    fn the_file_is_as_runtimes_write_it() {
        let dns = request().dns.unwrap();
        let text = "nameserver 198.19.0.10\nsearch shop.svc.cluster.local svc.cluster.local\noptions ndots:5\n";
        assert_eq!(dns.resolv_conf(), text);
        assert_eq!(CniDns::default().resolv_conf(), "");
    }
}
