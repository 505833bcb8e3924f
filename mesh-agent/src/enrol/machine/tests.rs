//! The pod state machine as tables: each step is an event and what must come of it, written as text.

use mesh_proto::convert::PodDnsRequest;

use super::*;

fn spec(uid: &str, netns: u64) -> Spec {
    let pod = PodRequest {
        uid: uid.into(),
        namespace: "ns".into(),
        name: uid.into(),
        service_account: "sa".into(),
        ips: vec!["198.18.0.1".parse().unwrap()],
        dns: PodDnsRequest::default(),
        node: "node".into(),
    };
    Spec { pod, netns: NetnsId { cookie: netns, inode: netns } }
}

fn add(session: SessionId, request: RequestId, uid: &str, netns: u64) -> Event<()> {
    Event::Add { session, request, spec: spec(uid, netns), payload: () }
}

fn adopt(uid: &str, netns: u64) -> Event<()> {
    Event::Adopt { spec: spec(uid, netns), payload: () }
}

fn del(request: RequestId, uid: &str) -> Event<()> {
    Event::Del { request, uid: uid.into() }
}

fn started(generation: Generation) -> Event<()> {
    Event::Started { generation, result: Ok(()) }
}

fn failed(generation: Generation) -> Event<()> {
    Event::Started { generation, result: Err(Failure::passing(Code::Failed, "broken")) }
}

fn stopped(generation: Generation) -> Event<()> {
    Event::Stopped { generation }
}

fn show(actions: &[Action<()>]) -> String {
    let show = |action: &Action<()>| match action {
        Action::Start { generation, spec, .. } => format!("start {generation} {}@{}", spec.pod.uid, spec.netns.cookie),
        Action::Cancel { generation } => format!("cancel {generation}"),
        Action::Stop { generation } => format!("stop {generation}"),
        Action::Reply { request, result: Ok(()) } => format!("{request} ok"),
        Action::Reply { request, result: Err(failure) } => {
            format!("{request} {:?}{}", failure.code, if failure.retry { " retry" } else { "" })
        }
        Action::Release { cookies } => format!("release {cookies:?}"),
    };
    actions.iter().map(show).collect::<Vec<_>>().join(", ")
}

/// Runs a table; returns the machine for a last look.
fn check(rows: Vec<(Event<()>, &str)>) -> Machine<()> {
    let mut machine = Machine::default();
    for (row, (event, expected)) in rows.into_iter().enumerate() {
        let event_text = format!("{event:?}");
        assert_eq!(show(&machine.apply(event)), expected, "row {row}: {event_text}");
    }
    machine
}

fn opened(session: SessionId) -> (Event<()>, &'static str) {
    (Event::Opened { session }, "")
}

#[test]
fn a_pod_comes_and_goes() {
    let machine = check(vec![
        opened(1),
        (add(1, 10, "a", 7), "start 1 a@7"),
        (started(1), "10 ok"),
        (Event::Delivered { request: 10 }, ""),
        (del(11, "a"), "stop 1"),
        (stopped(1), "11 ok"),
        (Event::Closed { session: 1 }, ""),
    ]);
    assert_eq!(machine.counts(), Counts::default());
}

#[test]
fn hardening_b131_add_and_del_are_idempotent() {
    check(vec![
        opened(1),
        (del(9, "unknown"), "9 ok"),
        (add(1, 10, "a", 7), "start 1 a@7"),
        (add(1, 11, "a", 7), ""),
        (started(1), "10 ok, 11 ok"),
        (add(1, 12, "a", 7), "12 ok"),
        (del(13, "a"), "stop 1"),
        (del(14, "a"), ""),
        (stopped(1), "13 ok, 14 ok"),
        (del(15, "a"), "15 ok"),
        (add(1, 16, "a", 7), "start 2 a@7"),
    ]);
}

#[test]
fn hardening_b131_the_same_uid_in_another_netns_replaces_the_first() {
    check(vec![
        opened(1),
        (add(1, 10, "a", 7), "start 1 a@7"),
        (started(1), "10 ok"),
        (add(1, 11, "a", 8), "stop 1"),
        (add(1, 12, "a", 9), "11 Conflict retry"),
        (stopped(1), "start 2 a@9"),
        (started(2), "12 ok"),
        // Late news of the first changes nothing.
        (stopped(1), ""),
        (failed(1), ""),
    ]);
}

#[test]
fn hardening_b131_a_stale_start_is_cancelled() {
    check(vec![
        opened(1),
        (add(1, 10, "a", 7), "start 1 a@7"),
        (add(1, 11, "a", 8), "10 Conflict retry, cancel 1"),
        (failed(1), "start 2 a@8"),
        (started(2), "11 ok"),
    ]);
    check(vec![
        opened(1),
        (add(1, 10, "a", 7), "start 1 a@7"),
        (del(11, "a"), "10 Conflict retry, cancel 1"),
        // The cancellation came too late: what was started is stopped.
        (started(1), "stop 1"),
        (add(1, 12, "a", 7), ""),
        (stopped(1), "11 ok, start 2 a@7"),
    ]);
}

#[test]
fn hardening_b129_a_netns_has_one_pod() {
    check(vec![
        opened(1),
        (add(1, 10, "a", 7), "start 1 a@7"),
        (add(1, 11, "b", 7), "11 Conflict"),
        (started(1), "10 ok"),
        (add(1, 12, "b", 7), "12 Conflict"),
        (del(13, "a"), "stop 1"),
        (add(1, 14, "b", 7), "14 Conflict retry"),
        (stopped(1), "13 ok"),
        (add(1, 15, "b", 7), "start 2 b@7"),
    ]);
}

#[test]
fn hardening_b132_a_snapshot_removes_what_was_not_named() {
    let machine = check(vec![
        (adopt("kept", 1), "start 1 kept@1"),
        (adopt("added", 2), "start 2 added@2"),
        (adopt("gone", 3), "start 3 gone@3"),
        (adopt("starting", 4), "start 4 starting@4"),
        (started(1), ""),
        (started(2), ""),
        (started(3), ""),
        opened(1),
        (Event::Keep { request: 10, uid: "kept".into() }, "10 ok"),
        (Event::Keep { request: 11, uid: "unknown".into() }, "11 Unknown"),
        (add(1, 12, "added", 2), "12 ok"),
        (add(1, 13, "new", 5), "start 5 new@5"),
        (Event::Snapshot { session: 1, request: 14 }, "stop 3, cancel 4, 14 ok"),
        (Event::Keep { request: 15, uid: "gone".into() }, "15 Unknown"),
        (stopped(3), ""),
        (failed(4), ""),
        (started(5), "13 ok"),
    ]);
    assert_eq!(machine.counts(), Counts { running: 3, pending: 0, unnamed: 0 });
}

/// Pods of an agent whose keeper died too: captured, and nothing else is known of them.
#[test]
fn what_only_the_kernel_knows_is_released_by_the_first_snapshot() {
    check(vec![
        (adopt("held", 1), "start 1 held@1"),
        (Event::Captured { cookies: vec![1, 2, 3] }, ""),
        (started(1), ""),
        opened(1),
        (Event::Keep { request: 9, uid: "held".into() }, "9 ok"),
        (add(1, 10, "claimed", 2), "start 2 claimed@2"),
        (Event::Snapshot { session: 1, request: 11 }, "release {3}, 11 ok"),
        // Until that has happened nobody may take its place.
        (add(1, 12, "late", 3), "12 Conflict retry"),
        (Event::Released, ""),
        (add(1, 13, "late", 3), "start 3 late@3"),
        opened(2),
        (Event::Keep { request: 14, uid: "held".into() }, "14 ok"),
        (Event::Keep { request: 15, uid: "claimed".into() }, "15 ok"),
        (Event::Keep { request: 16, uid: "late".into() }, "16 ok"),
        (Event::Snapshot { session: 2, request: 17 }, "17 ok"),
    ]);
}

#[test]
fn a_snapshot_does_not_remove_what_another_client_added_meanwhile() {
    check(vec![
        opened(1),
        (add(1, 10, "old", 1), "start 1 old@1"),
        (started(1), "10 ok"),
        (Event::Delivered { request: 10 }, ""),
        opened(2),
        (add(1, 11, "new", 2), "start 2 new@2"),
        (started(2), "11 ok"),
        (Event::Snapshot { session: 2, request: 12 }, "stop 1, 12 ok"),
    ]);
}

#[test]
fn hardening_b136_what_a_dead_client_never_heard_of_is_rolled_back() {
    check(vec![
        opened(1),
        (add(1, 10, "early", 1), "start 1 early@1"),
        (add(1, 11, "unsent", 2), "start 2 unsent@2"),
        (add(1, 12, "known", 3), "start 3 known@3"),
        (started(2), "11 ok"),
        (started(3), "12 ok"),
        (Event::Delivered { request: 12 }, ""),
        (Event::Closed { session: 1 }, "10 Conflict retry, cancel 1, stop 2"),
        (failed(1), ""),
        (stopped(2), ""),
    ]);
}

#[test]
fn hardening_b136_a_second_client_keeps_what_the_first_did_not_hear_of() {
    check(vec![
        opened(1),
        opened(2),
        (add(1, 10, "a", 1), "start 1 a@1"),
        (add(2, 20, "a", 1), ""),
        (Event::Closed { session: 1 }, ""),
        (started(1), "10 ok, 20 ok"),
        (Event::Delivered { request: 20 }, ""),
        (Event::Closed { session: 2 }, ""),
    ]);
}

#[test]
fn a_failed_start_leaves_nothing_and_touches_nobody() {
    let machine = check(vec![
        opened(1),
        (add(1, 10, "good", 1), "start 1 good@1"),
        (add(1, 11, "bad", 2), "start 2 bad@2"),
        (failed(2), "11 Failed retry"),
        (started(1), "10 ok"),
        (add(1, 12, "bad", 2), "start 3 bad@2"),
        (failed(3), "12 Failed retry"),
    ]);
    assert_eq!(machine.counts(), Counts { running: 1, pending: 0, unnamed: 0 });
    assert_eq!(machine.running(), [1]);
}

#[test]
fn an_adopted_pod_that_cannot_start_is_unknown_to_a_keep() {
    check(vec![
        (adopt("a", 1), "start 1 a@1"),
        (failed(1), ""),
        opened(1),
        (Event::Keep { request: 10, uid: "a".into() }, "10 Unknown"),
        (add(1, 11, "a", 1), "start 2 a@1"),
    ]);
}

/// Whatever the order of events: every request is answered at most once, no start is left without its end, generations never repeat.
#[test]
fn random_orders_keep_the_promises() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut machine = Machine::default();
        let (mut open, mut asked, mut answered): (Vec<Generation>, u64, Vec<u64>) = (vec![], 0, vec![]);
        let (mut starting, mut stopping) = (vec![], vec![]);
        let mut step = |machine: &mut Machine<()>, event, starting: &mut Vec<u64>, stopping: &mut Vec<u64>| {
            for action in machine.apply(event) {
                match action {
                    Action::Start { generation, .. } => {
                        assert!(open.last().is_none_or(|last| *last < generation));
                        open.push(generation);
                        starting.push(generation);
                    }
                    Action::Stop { generation } => {
                        assert!(!starting.contains(&generation) && !stopping.contains(&generation));
                        stopping.push(generation);
                    }
                    Action::Reply { request, .. } => {
                        assert!(!answered.contains(&request), "seed {seed}: {request} answered twice");
                        answered.push(request);
                    }
                    Action::Cancel { generation } => assert!(starting.contains(&generation)),
                    Action::Release { .. } => {}
                }
            }
        };
        step(&mut machine, Event::Opened { session: 1 }, &mut starting, &mut stopping);
        for _ in 0..120 {
            let uid = ["a", "b", "c"][random.random_range(0..3)];
            asked += 1;
            let request = asked;
            let event = match random.random_range(0..8) {
                0 | 1 => add(1, request, uid, random.random_range(1..5)),
                2 => del(request, uid),
                3 if random.random_bool(0.3) => Event::Snapshot { session: 1, request },
                4 if !stopping.is_empty() => stopped(stopping.swap_remove(random.random_range(0..stopping.len()))),
                _ if !starting.is_empty() => {
                    let generation = starting.swap_remove(random.random_range(0..starting.len()));
                    if random.random_bool(0.7) { started(generation) } else { failed(generation) }
                }
                _ => Event::Keep { request, uid: uid.into() },
            };
            step(&mut machine, event, &mut starting, &mut stopping);
        }
        // Let everything end, then remove everything.
        step(&mut machine, Event::Closed { session: 1 }, &mut starting, &mut stopping);
        for uid in ["a", "b", "c"] {
            asked += 1;
            step(&mut machine, del(asked, uid), &mut starting, &mut stopping);
        }
        while !starting.is_empty() || !stopping.is_empty() {
            let event = starting.pop().map(started).or_else(|| stopping.pop().map(stopped)).unwrap();
            step(&mut machine, event, &mut starting, &mut stopping);
        }
        assert_eq!(machine.counts(), Counts::default(), "seed {seed}");
    }
}
