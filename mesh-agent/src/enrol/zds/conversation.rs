//! The order of requests within one connection. Pure: packets in, verdicts out.
//!
//! ```text
//!   Open ── SnapshotSent ──> Settled
//!    Add, Keep, Del           Add, Del
//! ```

use std::os::fd::OwnedFd;

use mesh_core::ArcStr;
use mesh_proto::convert::{ConvertError, ZdsPod, ZdsRequest, zds_request};

use crate::keeper::packet::Packet;

/// A request that is in order.
#[derive(Debug)]
pub(super) enum Asked {
    /// Enrol this pod; the descriptor is its network namespace, if it is one.
    Add(ZdsPod, OwnedFd),
    /// The pod is still there.
    Keep(ArcStr),
    /// The pod is gone.
    Del(ArcStr),
    /// Everything has been said.
    Snapshot,
}

/// Why a packet is not carried out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Wrong {
    /// This one request: it is answered so, and the conversation goes on.
    Request(String),
    /// The two ends disagree on what was said: the connection is closed and begun anew.
    Conversation(String),
}

/// Where one connection is.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    settled: bool,
}

impl Conversation {
    /// Reads one packet. Descriptors that are not returned are closed here.
    pub(super) fn read(&mut self, packet: Packet) -> Result<Asked, Wrong> {
        let broken = |text: &str| Err(Wrong::Conversation(text.to_owned()));
        if packet.truncated {
            return broken("a packet or its descriptors did not fit");
        }
        let count = packet.fds.len();
        let fd: Result<[OwnedFd; 1], _> = packet.fds.try_into();
        let request = zds_request(&packet.bytes).map_err(|error| match &error {
            ConvertError::Decode(_) | ConvertError::UnknownFields => Wrong::Conversation(error.to_string()),
            // A well-formed request about a pod that cannot be.
            ConvertError::Missing { .. } | ConvertError::Invalid { .. } => Wrong::Request(error.to_string()),
        })?;
        match (request, fd) {
            (ZdsRequest::Add(pod), Ok([netns])) => Ok(Asked::Add(pod, netns)),
            (ZdsRequest::Add(_), Err(_)) => {
                Err(Wrong::Request(format!("an add carries one descriptor, the network namespace; this one {count}")))
            }
            (ZdsRequest::Unknown, _) => Err(Wrong::Request("this request is not known here".to_owned())),
            _ if count > 0 => broken("only an add carries a descriptor"),
            (ZdsRequest::Keep(_), _) if self.settled => broken("keep after the snapshot"),
            (ZdsRequest::Snapshot, _) if self.settled => broken("a second snapshot"),
            (ZdsRequest::Keep(uid), _) => Ok(Asked::Keep(uid)),
            (ZdsRequest::Del(uid), _) => Ok(Asked::Del(uid)),
            (ZdsRequest::Snapshot, _) => {
                self.settled = true;
                Ok(Asked::Snapshot)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::convert::encode_zds_request;

    use super::*;

    fn packet(bytes: Vec<u8>, fds: usize) -> Packet {
        let fds = (0..fds).map(|_| OwnedFd::from(tempfile::tempfile().unwrap())).collect();
        Packet { bytes, fds, truncated: false }
    }

    fn add() -> ZdsRequest {
        let (uid, namespace, name) = ("uid".into(), "ns".into(), "pod".into());
        ZdsRequest::Add(ZdsPod { uid, namespace, name, service_account: "sa".into() })
    }

    #[derive(Debug, Eq, PartialEq)]
    enum Verdict {
        Fine,
        Alone,
        Ends,
    }

    /// What the last of `requests` meets in a new conversation.
    fn last(requests: &[(ZdsRequest, usize)]) -> Verdict {
        let mut conversation = Conversation::default();
        let mut verdict = Verdict::Fine;
        for (request, fds) in requests {
            assert_eq!(verdict, Verdict::Fine, "only the last request may fail");
            verdict = match conversation.read(packet(encode_zds_request(request), *fds)) {
                Ok(_) => Verdict::Fine,
                Err(Wrong::Request(_)) => Verdict::Alone,
                Err(Wrong::Conversation(_)) => Verdict::Ends,
            };
        }
        verdict
    }

    #[test]
    fn hardening_b132_requests_out_of_order_end_the_conversation() {
        use ZdsRequest::{Del, Keep, Snapshot, Unknown};
        let (keep, del) = (|| (Keep("uid".into()), 0), || (Del("uid".into()), 0));
        let all = vec![(add(), 1), keep(), del(), (add(), 1), (Snapshot, 0), del(), del(), (add(), 1), (add(), 1)];
        let rows = [
            (all, Verdict::Fine),
            (vec![(Snapshot, 0), (Snapshot, 0)], Verdict::Ends),
            (vec![(Snapshot, 0), keep()], Verdict::Ends),
            (vec![(Keep("uid".into()), 1)], Verdict::Ends),
            (vec![(Snapshot, 1)], Verdict::Ends),
            (vec![(Del("uid".into()), 2)], Verdict::Ends),
            (vec![(Unknown, 0)], Verdict::Alone),
            (vec![(Unknown, 1)], Verdict::Alone),
        ];
        for (requests, expected) in rows {
            assert_eq!(last(&requests), expected, "{requests:?}");
        }
    }

    #[test]
    fn hardening_b129_an_add_without_exactly_one_descriptor_fails_alone() {
        for fds in [0, 2, 3, 200] {
            assert_eq!(last(&[(add(), fds)]), Verdict::Alone, "{fds}");
        }
    }

    #[test]
    fn hardening_b130_bytes_that_are_no_request_end_the_conversation() {
        let rows: [&[u8]; 3] = [b"\x08", b"hello", &[0xff; 64]];
        for bytes in rows {
            let wrong = Conversation::default().read(packet(bytes.to_vec(), 0)).unwrap_err();
            assert!(matches!(wrong, Wrong::Conversation(_)), "{bytes:?}: {wrong:?}");
        }
        let mut cut = packet(encode_zds_request(&add()), 1);
        cut.truncated = true;
        assert!(matches!(Conversation::default().read(cut), Err(Wrong::Conversation(_))));
        let nobody = ZdsPod { uid: "u".into(), namespace: "".into(), name: "n".into(), service_account: "s".into() };
        assert_eq!(last(&[(ZdsRequest::Add(nobody), 1)]), Verdict::Alone);
    }
}
