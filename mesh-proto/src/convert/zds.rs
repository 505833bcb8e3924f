//! What Istio's node agent says of pods on its socket. The agent reads requests and writes answers here, so that everything behind the socket handles
//! checked values; the other direction is for tests that play the node agent.

use mesh_core::ArcStr;
use prost::Message;

use super::{ConvertError, field};
use crate::wire::zds as wire;

/// One packet, and so one message. Istio's side reads and writes at most 1024 bytes.
const MAX_ZDS_BYTES: usize = 64 << 10;
/// Longest reason in an answer: Istio's side takes no answer above 1024 bytes.
const MAX_REASON: usize = 900;

/// One request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ZdsRequest {
    /// A pod is to be enrolled; one file descriptor comes with it: its network namespace.
    Add(ZdsPod),
    /// A pod is still there, and its network namespace is not at hand.
    Keep(ArcStr),
    /// A pod is gone, or out of the mesh.
    Del(ArcStr),
    /// Everything has been said; pods not mentioned are gone.
    Snapshot,
    /// Something that only a later version knows.
    Unknown,
}

/// A pod, as far as Istio's node agent describes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ZdsPod {
    /// Kubernetes' UID of the pod.
    pub uid: ArcStr,
    /// Its namespace.
    pub namespace: ArcStr,
    /// Its name.
    pub name: ArcStr,
    /// Its service account.
    pub service_account: ArcStr,
}

/// Reads one packet. Fields that this version does not know are ignored.
pub fn zds_request(bytes: &[u8]) -> Result<ZdsRequest, ConvertError> {
    use wire::workload_request::Payload;
    if bytes.len() > MAX_ZDS_BYTES {
        return Err(ConvertError::invalid("request", format!("longer than {MAX_ZDS_BYTES} bytes")));
    }
    match wire::WorkloadRequest::decode(bytes).map_err(ConvertError::decode)?.payload {
        None => Ok(ZdsRequest::Unknown),
        Some(Payload::Add(add)) => read_add(add).map(ZdsRequest::Add),
        Some(Payload::Keep(keep)) => field::name("uid", keep.uid).map(ZdsRequest::Keep),
        Some(Payload::Del(del)) => field::name("uid", del.uid).map(ZdsRequest::Del),
        Some(Payload::SnapshotSent(_)) => Ok(ZdsRequest::Snapshot),
    }
}

/// Without a service account a pod has no identity, so nothing is guessed.
fn read_add(add: wire::AddWorkload) -> Result<ZdsPod, ConvertError> {
    let uid = field::name("uid", add.uid)?;
    let info = add.workload_info.ok_or(ConvertError::Missing { field: "workload_info" })?;
    Ok(ZdsPod {
        uid,
        namespace: field::segment("namespace", info.namespace)?,
        name: field::segment("name", info.name)?,
        service_account: field::segment("service_account", info.service_account)?,
    })
}

/// The bytes of a request.
#[must_use]
pub fn encode_zds_request(request: &ZdsRequest) -> Vec<u8> {
    use wire::workload_request::Payload;
    let payload = match request {
        ZdsRequest::Add(pod) => Some(Payload::Add(wire::AddWorkload {
            uid: pod.uid.to_string(),
            workload_info: Some(wire::WorkloadInfo {
                name: pod.name.to_string(),
                namespace: pod.namespace.to_string(),
                service_account: pod.service_account.to_string(),
            }),
        })),
        ZdsRequest::Keep(uid) => Some(Payload::Keep(wire::KeepWorkload { uid: uid.to_string() })),
        ZdsRequest::Del(uid) => Some(Payload::Del(wire::DelWorkload { uid: uid.to_string() })),
        ZdsRequest::Snapshot => Some(Payload::SnapshotSent(wire::SnapshotSent {})),
        ZdsRequest::Unknown => None,
    };
    wire::WorkloadRequest { payload }.encode_to_vec()
}

/// The bytes with which a proxy begins.
#[must_use]
pub fn encode_zds_hello() -> Vec<u8> {
    wire::ZdsHello { version: wire::Version::V1.into() }.encode_to_vec()
}

/// The bytes of an answer: done, or why not.
#[must_use]
pub fn encode_zds_ack(error: Option<&str>) -> Vec<u8> {
    let error = error.map_or("", |text| if text.is_empty() { "failed" } else { text });
    let end = (0..=error.len().min(MAX_REASON)).rev().find(|at| error.is_char_boundary(*at)).unwrap_or(0);
    let ack = wire::Ack { error: error[..end].to_owned() };
    wire::WorkloadResponse { payload: Some(wire::workload_response::Payload::Ack(ack)) }.encode_to_vec()
}

/// Reads an answer.
pub fn zds_ack(bytes: &[u8]) -> Result<Option<String>, ConvertError> {
    let message = wire::WorkloadResponse::decode(bytes).map_err(ConvertError::decode)?;
    match message.payload {
        None => Err(ConvertError::Missing { field: "payload" }),
        Some(wire::workload_response::Payload::Ack(ack)) => Ok(Some(ack.error).filter(|error| !error.is_empty())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> ZdsPod {
        ZdsPod {
            uid: "2c48913c-b29f-11e7-9350-020968147796".into(),
            namespace: "shop".into(),
            name: "web-0".into(),
            service_account: "web".into(),
        }
    }

    #[test]
    fn requests_come_through_as_they_are() {
        let uid = || pod().uid;
        for request in [
            ZdsRequest::Add(pod()),
            ZdsRequest::Keep(uid()),
            ZdsRequest::Del(uid()),
            ZdsRequest::Snapshot,
            ZdsRequest::Unknown,
        ] {
            assert_eq!(zds_request(&encode_zds_request(&request)), Ok(request));
        }
    }

    /// As Istio's node agent and its proxy were seen to write them.
    #[test]
    fn the_bytes_are_those_of_istio() {
        let named = |tag: u8, text: &str| [&[tag, text.len() as u8][..], text.as_bytes()].concat();
        let info = [named(0x0a, "web-0"), named(0x12, "shop"), named(0x1a, "web")].concat();
        let body = [named(0x0a, "u"), [&[0x12, info.len() as u8][..], &info].concat()].concat();
        let add = [&[0x0a, body.len() as u8][..], &body].concat();
        assert_eq!(zds_request(&add), Ok(ZdsRequest::Add(ZdsPod { uid: "u".into(), ..pod() })));
        assert_eq!(zds_request(&[0x12, 3, 0x12, 1, b'u']), Ok(ZdsRequest::Del("u".into())), "the UID is field 2 here");
        assert_eq!(zds_request(&[0x2a, 3, 0x0a, 1, b'u']), Ok(ZdsRequest::Keep("u".into())));
        assert_eq!(zds_request(&[0x1a, 0]), Ok(ZdsRequest::Snapshot));
        assert_eq!(encode_zds_hello(), [0x08, 0x01]);
        assert_eq!(encode_zds_ack(None), [0x0a, 0]);
        assert_eq!(encode_zds_ack(Some("no")), [0x0a, 4, 0x0a, 2, b'n', b'o']);
    }

    #[test]
    fn hardening_B130_what_is_no_request_is_refused_by_the_name_of_what_is_wrong() {
        let changed = |change: &dyn Fn(&mut ZdsPod)| {
            let mut pod = pod();
            change(&mut pod);
            encode_zds_request(&ZdsRequest::Add(pod))
        };
        let bare = wire::AddWorkload { uid: "u".into(), workload_info: None };
        let bare = wire::WorkloadRequest { payload: Some(wire::workload_request::Payload::Add(bare)) }.encode_to_vec();
        let rows: [(Vec<u8>, &str); 12] = [
            (vec![0xff; 64], ""),
            (vec![0; MAX_ZDS_BYTES + 1], "request"),
            (vec![0x0a, 0x7f], ""),
            (bare, "workload_info"),
            (changed(&|pod| pod.uid = "".into()), "uid"),
            (changed(&|pod| pod.uid = "../x".into()), "uid"),
            (changed(&|pod| pod.uid = "u".repeat(600).into()), "uid"),
            (changed(&|pod| pod.namespace = "".into()), "namespace"),
            (changed(&|pod| pod.name = "a\nb".into()), "name"),
            (changed(&|pod| pod.service_account = "".into()), "service_account"),
            (changed(&|pod| pod.service_account = "a/b".into()), "service_account"),
            (vec![0x12, 3, 0x0a, 1, b'u'], "uid"),
        ];
        for (index, (bytes, field)) in rows.into_iter().enumerate() {
            let error = zds_request(&bytes).unwrap_err().to_string();
            assert!(error.contains(field), "row {index}: {error}");
        }
    }

    #[test]
    fn hardening_B130_what_a_later_version_says_is_unknown_and_breaks_nothing() {
        assert_eq!(zds_request(&[]), Ok(ZdsRequest::Unknown));
        assert_eq!(zds_request(&[0x32, 1, 0]), Ok(ZdsRequest::Unknown), "another payload");
        let more = [encode_zds_request(&ZdsRequest::Add(pod())), vec![0x7a, 1, 0]].concat();
        assert_eq!(zds_request(&more), Ok(ZdsRequest::Add(pod())), "another field");
    }

    #[test]
    fn answers_fit_into_what_istio_reads() {
        assert_eq!(zds_ack(&encode_zds_ack(None)), Ok(None));
        assert_eq!(zds_ack(&encode_zds_ack(Some("why"))), Ok(Some("why".to_owned())));
        assert_eq!(zds_ack(&encode_zds_ack(Some(""))), Ok(Some("failed".to_owned())), "a failure is never a yes");
        assert!(encode_zds_ack(Some(&"ä".repeat(4000))).len() <= 1024);
        assert!(zds_ack(&[]).is_err() && zds_ack(&[0xff; 8]).is_err());
    }
}
