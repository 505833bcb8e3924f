//! The order of requests within one connection. Pure: packets in, verdicts out.
//!
//! ```text
//!   Fresh ── Hello ──> Greeted ── Snapshot ──> Settled
//!                       Add, Keep, Del          Add, Del
//! ```

use std::os::fd::OwnedFd;

use mesh_proto::convert::{EnrolRequest, PodRequest, enrol_request};

use crate::keeper::packet::Packet;

/// Why a request was not carried out; the number is in the response, for programs.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind of failure.
    pub code: Code,
    /// What failed, for people.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retry: bool,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Code {
    /// The packet or its place in the conversation is wrong; the connection is closed.
    Protocol = 1,
    /// The pod is not what the request says.
    Refused = 2,
    /// Another request or pod is in the way.
    Conflict = 3,
    /// The pod is not known.
    Unknown = 4,
    /// Something of the agent or the machine failed.
    Failed = 5,
    /// The agent is stopping.
    Stopping = 6,
}

impl Failure {
    /// A failure that the same request meets again.
    pub fn lasting(code: Code, message: impl Into<String>) -> Self {
        Failure { code, message: message.into(), retry: false }
    }

    /// A failure that may pass.
    pub fn passing(code: Code, message: impl Into<String>) -> Self {
        Failure { code, message: message.into(), retry: true }
    }
}

/// A request that is in order. Not yet checked: whether its descriptors are what they claim.
#[derive(Debug)]
pub enum Asked {
    /// Answer yes.
    Hello,
    /// Enrol this pod.
    Add {
        /// Who it is.
        pod: PodRequest,
        /// Its network namespace, if it is one.
        netns: OwnedFd,
        /// Its cgroup, if it is one.
        cgroup: OwnedFd,
    },
    /// The pod still exists.
    Keep(mesh_core::ArcStr),
    /// The pod is gone.
    Del(mesh_core::ArcStr),
    /// Everything has been said.
    Snapshot,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Fresh,
    Greeted,
    Settled,
}

/// Where one connection is in its conversation.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
}

impl Default for Session {
    fn default() -> Self {
        Session { phase: Phase::Fresh }
    }
}

impl Session {
    /// Whether the snapshot has come.
    pub fn is_settled(&self) -> bool {
        self.phase == Phase::Settled
    }

    /// Reads one packet. Code `Protocol` means: answer, then close. Descriptors that are not returned are closed here.
    pub fn read(&mut self, packet: Packet) -> Result<Asked, Failure> {
        let protocol = |message: &str| Failure::lasting(Code::Protocol, message);
        if packet.truncated {
            return Err(protocol("packet or descriptors truncated: at most 64 KiB and two descriptors"));
        }
        let request = enrol_request(&packet.bytes).map_err(|error| match &error {
            // A well-formed request about a pod that cannot be: only that request fails.
            mesh_proto::convert::ConvertError::Invalid { field, .. }
                if self.phase != Phase::Fresh && *field != "version" && *field != "request" =>
            {
                Failure::lasting(Code::Refused, error.to_string())
            }
            mesh_proto::convert::ConvertError::Missing { field }
                if *field != "payload" && self.phase != Phase::Fresh =>
            {
                Failure::lasting(Code::Refused, error.to_string())
            }
            _ => protocol(&error.to_string()),
        })?;
        match (&request, self.phase) {
            (EnrolRequest::Hello, Phase::Fresh) => self.phase = Phase::Greeted,
            (EnrolRequest::Hello, _) => return Err(protocol("a second hello")),
            (_, Phase::Fresh) => return Err(protocol("the first request must be a hello")),
            (EnrolRequest::Keep(_), Phase::Settled) => return Err(protocol("keep after the snapshot")),
            (EnrolRequest::Snapshot, Phase::Settled) => return Err(protocol("a second snapshot")),
            (EnrolRequest::Snapshot, Phase::Greeted) => self.phase = Phase::Settled,
            (EnrolRequest::Add(_) | EnrolRequest::Del(_) | EnrolRequest::Keep(_), _) => {}
        }
        let count = packet.fds.len();
        let fds: Result<[OwnedFd; 2], _> = packet.fds.try_into();
        match (request, fds) {
            (EnrolRequest::Add(pod), Ok([netns, cgroup])) => Ok(Asked::Add { pod, netns, cgroup }),
            (EnrolRequest::Add(_), Err(_)) => {
                let message = format!("an add carries two descriptors, netns and cgroup; this one carries {count}");
                Err(Failure::lasting(Code::Refused, message))
            }
            (_, _) if count > 0 => Err(protocol("only an add carries descriptors")),
            (EnrolRequest::Hello, _) => Ok(Asked::Hello),
            (EnrolRequest::Keep(uid), _) => Ok(Asked::Keep(uid)),
            (EnrolRequest::Del(uid), _) => Ok(Asked::Del(uid)),
            (EnrolRequest::Snapshot, _) => Ok(Asked::Snapshot),
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::convert::encode_enrol_request;

    use super::*;

    fn packet(request: &EnrolRequest, fds: usize) -> Packet {
        let fds = (0..fds).map(|_| OwnedFd::from(tempfile::tempfile().unwrap())).collect();
        Packet { bytes: encode_enrol_request(request), fds, truncated: false }
    }

    fn add() -> EnrolRequest {
        EnrolRequest::Add(PodRequest {
            uid: "uid".into(),
            namespace: "ns".into(),
            name: "pod".into(),
            service_account: "sa".into(),
            ips: vec!["198.18.0.1".parse().unwrap()],
            dns: mesh_proto::convert::PodDnsRequest::default(),
            node: "node".into(),
            rules: Box::default(),
        })
    }

    /// The last of `requests` in a fresh session: the code of its failure, or none.
    fn check(requests: &[(EnrolRequest, usize)]) -> Option<Code> {
        let mut session = Session::default();
        let mut last = None;
        for (request, fds) in requests {
            assert_eq!(last, None, "only the last request may fail");
            last = session.read(packet(request, *fds)).err().map(|failure| failure.code);
        }
        last
    }

    #[test]
    fn hardening_b132_requests_out_of_order_are_protocol_errors() {
        use EnrolRequest::{Del, Hello, Keep, Snapshot};
        let keep = || Keep("uid".into());
        let protocol = Some(Code::Protocol);
        let rows = [
            (
                vec![
                    (Hello, 0),
                    (add(), 2),
                    (keep(), 0),
                    (Del("uid".into()), 0),
                    (Snapshot, 0),
                    (add(), 2),
                    (Del("uid".into()), 0),
                ],
                None,
            ),
            (vec![(add(), 2)], protocol),
            (vec![(Snapshot, 0)], protocol),
            (vec![(Hello, 0), (Hello, 0)], protocol),
            (vec![(Hello, 0), (Snapshot, 0), (keep(), 0)], protocol),
            (vec![(Hello, 0), (Snapshot, 0), (Snapshot, 0)], protocol),
            (vec![(Hello, 0), (keep(), 1)], protocol),
            (vec![(Hello, 1)], protocol),
        ];
        for (requests, expected) in rows {
            assert_eq!(check(&requests), expected, "{requests:?}");
        }
    }

    #[test]
    fn hardening_b129_an_add_without_exactly_two_descriptors_fails_alone() {
        for fds in [0, 1, 3, 200] {
            assert_eq!(check(&[(EnrolRequest::Hello, 0), (add(), fds)]), Some(Code::Refused), "{fds}");
        }
    }

    #[test]
    fn hardening_b130_bytes_that_are_no_request_are_protocol_errors() {
        let rows: [&[u8]; 5] = [b"", b"\x08", b"hello", &[0xff; 64], &[0x0a, 0x02, 0x08, 0x63]];
        for bytes in rows {
            let packet = Packet { bytes: bytes.to_vec(), fds: Vec::new(), truncated: false };
            assert_eq!(Session::default().read(packet).unwrap_err().code, Code::Protocol, "{bytes:?}");
        }
        let mut cut = packet(&EnrolRequest::Hello, 0);
        cut.truncated = true;
        assert_eq!(Session::default().read(cut).unwrap_err().code, Code::Protocol);
    }
}
