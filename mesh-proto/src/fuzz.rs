//! Entry points for fuzzers. Each takes arbitrary bytes and panics only on a bug.
#![doc(hidden)]

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_core::l7::authorizer::Answer;
use mesh_core::{Change, Connection, Store, authorize};

use crate::convert::{self, AddressResource};

/// Resources as they come from a control plane: converted, encoded again, applied to a store, and the snapshot asked.
///
/// The data is a sequence of records: kind (even: address, odd: policy), length in two bytes, payload.
pub fn xds_resources(data: &[u8]) {
    let mut store = Store::new();
    let mut rest = data;
    while let [kind, high, low, tail @ ..] = rest {
        let length = (usize::from(*high) << 8 | usize::from(*low)).min(tail.len());
        let (payload, next) = tail.split_at(length);
        rest = next;
        let Some(change) = (if kind % 2 == 0 { address(payload) } else { policy(payload) }) else { continue };
        let first = store.apply(vec![change.clone()]);
        assert!(store.apply(vec![change]).diff.is_empty(), "the same change twice is one change");
        check(&first.snapshot);
    }
    // Everything can be taken back.
    let snapshot = store.snapshot();
    let mut removals: Vec<Change> = snapshot.workloads().map(|w| Change::RemoveAddress(w.uid.clone())).collect();
    removals.extend(snapshot.services().map(|s| Change::RemoveAddress(s.key().to_string().into())));
    removals.extend(snapshot.policies().map(|p| Change::RemovePolicy(p.name().clone())));
    let services: Vec<_> = snapshot.services().map(|s| s.key()).collect();
    let empty = store.apply(removals).snapshot;
    assert_eq!(empty.counts(), (0, 0, 0));
    assert!(services.iter().all(|key| empty.endpoints(key).is_none()));
}

/// One packet on the enrolment socket.
pub fn enrol_message(data: &[u8]) {
    if let Ok(request) = convert::enrol_request(data) {
        let again = convert::enrol_request(&convert::encode_enrol_request(&request));
        assert_eq!(again.as_ref(), Ok(&request));
    }
}

/// A request in one line, as `a.com/b?c`, and behind its end a table of routes: read, encoded again, and asked.
pub fn l7_tables(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (line, table) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    let Ok(read) = convert::route_table(table) else { return };
    let again = convert::route_table(&convert::encode_route_table(&read.table));
    // What is closed is written as such, and then it can be read.
    let expected = convert::RouteTable { table: read.table, closed: Vec::new(), more_closed: 0 };
    assert_eq!(again.as_ref(), Ok(&expected));
    if let Ok(line) = std::str::from_utf8(line) {
        mesh_core::fuzz::routed(&expected.table, line);
    }
}

/// How places are reached: read, and encoded again.
pub fn l7_clusters(data: &[u8]) {
    let Ok(read) = convert::clusters(data) else { return };
    let again = convert::clusters(&convert::encode_clusters(&read.name, &read.clusters));
    let expected = convert::ClustersRead { closed: Vec::new(), more_closed: 0, ..read };
    assert_eq!(again, Ok(expected));
}

/// Routes of connections: read, encoded again, and asked.
pub fn l4_routes(data: &[u8]) {
    let Ok(read) = convert::connection_routes(data) else { return };
    let again = convert::connection_routes(&convert::encode_connection_routes(&read.routes));
    // What is closed is written as such, and then it can be read.
    assert_eq!(again, Ok(convert::ConnectionRoutesRead { routes: read.routes.clone(), closed: Vec::new() }));
    mesh_core::fuzz::connected(&read.routes);
}

/// What an external authorizer answers by gRPC: whatever it asks for, what the message or the connection is stays as it was, and only the mesh speaks for the mesh.
pub fn authorizer_answers(data: &[u8]) {
    const FIXED: [&str; 7] =
        ["host", "content-length", "transfer-encoding", "connection", "upgrade", "expect", "x-mesh-hops"];
    let Ok(answer) = convert::check_answer(data) else { return };
    let edits = match &answer {
        Answer::Allowed(changes) => vec![&changes.request, &changes.response],
        Answer::Denied(denial) => {
            assert!(denial.status.as_u16() >= 200, "{}", denial.status);
            vec![&denial.headers]
        }
    };
    for edits in edits {
        let fixed = || FIXED.into_iter().map(|name| (HeaderName::from_static(name), HeaderValue::from_static("1")));
        let mut there: HeaderMap = fixed().collect();
        edits.apply(&mut there);
        for (name, value) in fixed() {
            assert_eq!(there.get_all(&name).iter().collect::<Vec<_>>(), [&value], "{name} {answer:?}");
        }
        let mut absent = HeaderMap::new();
        edits.apply(&mut absent);
        assert!(FIXED.into_iter().all(|name| !absent.contains_key(name)), "{answer:?}");
    }
    assert_eq!(convert::check_answer(data).ok(), Some(answer), "read twice");
}

fn address(payload: &[u8]) -> Option<Change> {
    match convert::address(payload).ok()? {
        AddressResource::Workload(workload) => {
            let again = convert::address(&convert::encode_workload(&workload));
            assert_eq!(again, Ok(AddressResource::Workload(workload.clone())));
            Some(Change::Workload(workload))
        }
        AddressResource::Service(service) => {
            let again = convert::address(&convert::encode_service(&service));
            assert_eq!(again, Ok(AddressResource::Service(service.clone())));
            Some(Change::Service(service))
        }
    }
}

fn policy(payload: &[u8]) -> Option<Change> {
    let policy = convert::policy(payload).ok()?;
    assert_eq!(convert::policy(&convert::encode_policy(&policy)), Ok(policy.clone()));
    Some(Change::Policy(policy))
}

fn check(snapshot: &mesh_core::Snapshot) {
    for workload in snapshot.workloads() {
        for address in &workload.addresses {
            if let Some(owner) = snapshot.owner(&workload.network, address) {
                assert!(owner.workload.addresses.contains(address));
            }
            let connection = Connection {
                source_ip: *address,
                source: None,
                via: None,
                destination_ip: *address,
                destination_port: 80,
            };
            let _ = authorize(snapshot, workload, &connection);
        }
        for service in workload.services.keys() {
            let members = snapshot.endpoints(service).map(|set| set.members()).unwrap_or_default();
            assert!(members.iter().any(|e| e.workload == *workload), "every membership has its endpoint");
        }
    }
}
