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

fn released(cookies: &[u64]) -> Event<()> {
    Event::Released { cookies: cookies.iter().copied().collect() }
}

fn show(actions: &[Action<()>]) -> String {
    let show = |action: &Action<()>| match action {
        Action::Start { generation, spec, captured, .. } => {
            let captured = if *captured { " captured" } else { "" };
            format!("start {generation} {}@{}{captured}", spec.pod.uid, spec.netns.cookie)
        }
        Action::Cancel { generation } => format!("cancel {generation}"),
        Action::Stop { generation, close: false } => format!("stop {generation}"),
        Action::Stop { generation, close: true } => format!("close {generation}"),
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
        (adopt("kept", 1), "start 1 kept@1 captured"),
        (adopt("added", 2), "start 2 added@2 captured"),
        (adopt("gone", 3), "start 3 gone@3 captured"),
        (adopt("starting", 4), "start 4 starting@4 captured"),
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
        // It was cancelled because nobody named it.
        (failed(4), "release {4}"),
        (started(5), "13 ok"),
    ]);
    assert_eq!(machine.counts(), Counts { running: 3, pending: 0, unnamed: 0 });
}

/// Pods of an agent whose keeper died too: captured, and nothing else is known of them.
#[test]
fn what_only_the_kernel_knows_is_released_by_the_first_snapshot() {
    check(vec![
        (adopt("held", 1), "start 1 held@1 captured"),
        (Event::Captured { cookies: vec![1, 2, 3] }, ""),
        (started(1), ""),
        opened(1),
        (Event::Keep { request: 9, uid: "held".into() }, "9 ok"),
        (add(1, 10, "claimed", 2), "start 2 claimed@2 captured"),
        (Event::Snapshot { session: 1, request: 11 }, "release {3}, 11 ok"),
        // Until that has happened nobody may take its place.
        (add(1, 12, "late", 3), "12 Conflict retry"),
        (released(&[3]), ""),
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

/// The first client dies before it hears; who was told since that the pod is enrolled counts on it.
#[test]
fn hardening_b136_what_another_client_was_told_is_not_taken_back() {
    let begun = || vec![opened(1), opened(2), (add(1, 10, "a", 1), "start 1 a@1"), (started(1), "10 ok")];
    let mut told = begun();
    told.extend([
        (add(2, 20, "a", 1), "20 ok"),
        (Event::Delivered { request: 20 }, ""),
        (Event::Closed { session: 1 }, ""),
        (Event::Closed { session: 2 }, ""),
    ]);
    check(told);
    let mut kept = begun();
    kept.extend([(Event::Keep { request: 20, uid: "a".into() }, "20 ok"), (Event::Closed { session: 1 }, "")]);
    check(kept);
    // Nobody heard of it.
    let mut untold = begun();
    untold.extend([
        (add(2, 20, "a", 1), "20 ok"),
        (Event::Closed { session: 1 }, ""),
        (Event::Closed { session: 2 }, "stop 1"),
    ]);
    check(untold);
}

/// A client describes a pod anew that it knows to be enrolled, and dies before the answer: the pod stays.
#[test]
fn hardening_b136_what_was_enrolled_before_a_new_description_stays() {
    let changed = |request| {
        let mut spec = spec("a", 7);
        spec.pod.dns.ndots = request as u32;
        Event::Add { session: 1, request, spec, payload: () }
    };
    let enrolled = || {
        vec![
            opened(1),
            (add(1, 10, "a", 7), "start 1 a@7"),
            (started(1), "10 ok"),
            (Event::Delivered { request: 10 }, ""),
        ]
    };
    let mut once = enrolled();
    once.extend([
        (changed(11), "close 1"),
        (Event::Closed { session: 1 }, ""),
        (stopped(1), "start 2 a@7 captured"),
        (started(2), "11 ok"),
    ]);
    check(once);
    let mut twice = enrolled();
    twice.extend([
        (changed(11), "close 1"),
        (changed(12), "11 Conflict retry"),
        (Event::Closed { session: 1 }, ""),
        (stopped(1), "start 2 a@7 captured"),
    ]);
    check(twice);
    // Deleted in between: the second enrolment is one that nobody heard of.
    let mut anew = enrolled();
    anew.extend([
        (del(11, "a"), "stop 1"),
        (add(1, 12, "a", 7), ""),
        (Event::Closed { session: 1 }, "12 Conflict retry"),
        (stopped(1), "11 ok"),
    ]);
    check(anew);
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
        (adopt("a", 1), "start 1 a@1 captured"),
        (failed(1), ""),
        opened(1),
        (Event::Keep { request: 10, uid: "a".into() }, "10 Unknown"),
        (add(1, 11, "a", 1), "start 2 a@1 captured"),
    ]);
}

/// What fails stays closed until a client says what is to become of it.
#[test]
fn a_captured_pod_whose_start_fails_is_never_let_go_by_that() {
    check(vec![
        (adopt("a", 1), "start 1 a@1 captured"),
        (adopt("b", 2), "start 2 b@2 captured"),
        (failed(1), ""),
        (failed(2), ""),
        opened(1),
        (add(1, 10, "a", 1), "start 3 a@1 captured"),
        (failed(3), "10 Failed retry"),
        (add(1, 11, "a", 1), "start 4 a@1 captured"),
        (Event::Snapshot { session: 1, request: 12 }, "release {2}, 12 ok"),
        (started(4), "11 ok"),
        (released(&[2]), ""),
    ]);
}

/// A delete of a pod that is closed because its start failed lets it go, and nobody else.
#[test]
fn what_failed_and_stayed_closed_is_let_go_by_its_del() {
    check(vec![
        (adopt("a", 1), "start 1 a@1 captured"),
        (adopt("b", 2), "start 2 b@2 captured"),
        (Event::Captured { cookies: vec![1, 2, 3] }, ""),
        (failed(1), ""),
        (failed(2), ""),
        opened(1),
        (del(10, "unknown"), "10 ok"),
        (del(11, "a"), "release {1}, 11 ok"),
        (add(1, 12, "a", 1), "12 Conflict retry"),
        (released(&[1]), ""),
        (add(1, 13, "a", 1), "start 3 a@1"),
        // Elsewhere by now: both its places are let go.
        (add(1, 14, "b", 4), "start 4 b@4"),
        (started(4), "14 ok"),
        (del(15, "b"), "stop 4, release {2}"),
        (stopped(4), "15 ok"),
    ]);
    // Another pod is to be started there.
    check(vec![
        (adopt("a", 1), "start 1 a@1 captured"),
        (adopt("b", 2), "start 2 b@2 captured"),
        (failed(1), ""),
        (started(2), ""),
        opened(1),
        (add(1, 10, "b", 1), "stop 2"),
        (del(11, "a"), "11 ok"),
        (stopped(2), "start 3 b@1 captured"),
    ]);
}

/// After a panic nobody knows what the kernel has: a pod that was to come stays closed if it is captured, one that was to go is let go again.
#[test]
fn what_broke_off_is_cleared_up_like_what_was_captured() {
    let broke_off = |generation| (Event::BrokeOff { generation }, "");
    check(vec![
        opened(1),
        (add(1, 10, "a", 1), "start 1 a@1"),
        broke_off(1),
        (failed(1), "10 Failed retry"),
        (add(1, 11, "a", 1), "start 2 a@1 captured"),
        (started(2), "11 ok"),
        (del(12, "a"), "stop 2"),
        broke_off(2),
        (stopped(2), "release {1}, 12 ok"),
        (add(1, 13, "b", 2), "start 3 b@2"),
        broke_off(3),
        (failed(3), "13 Failed retry"),
        (Event::Snapshot { session: 1, request: 14 }, "release {2}, 14 ok"),
    ]);
}

/// Another description of the same pod: between the old and the new nothing of it passes.
#[test]
fn a_pod_that_is_started_anew_in_its_namespace_stays_captured() {
    let changed = |request| {
        let mut spec = spec("a", 7);
        spec.pod.dns.ndots = request as u32;
        Event::Add { session: 1, request, spec, payload: () }
    };
    check(vec![
        opened(1),
        (add(1, 10, "a", 7), "start 1 a@7"),
        (started(1), "10 ok"),
        (changed(11), "close 1"),
        (stopped(1), "start 2 a@7 captured"),
        (changed(12), "11 Conflict retry, cancel 2"),
        // Cancelled in time, or too late.
        (failed(2), "start 3 a@7 captured"),
        (changed(13), "12 Conflict retry, cancel 3"),
        (started(3), "close 3"),
        // What was closed for a successor that nobody wants any more is let go.
        (del(14, "a"), "13 Conflict retry"),
        (stopped(3), "release {7}, 14 ok"),
        (add(1, 15, "a", 7), "15 Conflict retry"),
        (released(&[7]), ""),
        (add(1, 16, "a", 7), "start 4 a@7"),
        (started(4), "16 ok"),
        (changed(17), "close 4"),
        (add(1, 18, "a", 8), "17 Conflict retry"),
        (stopped(4), "release {7}, start 5 a@8"),
    ]);
}

/// What a kernel would have captured, and who waits for what, while a machine is driven.
#[derive(Default)]
struct World {
    machine: Machine<()>,
    starting: Vec<(Generation, u64, bool)>,
    stopping: Vec<(Generation, u64, bool)>,
    releasing: Vec<BTreeSet<u64>>,
    captured: BTreeSet<u64>,
    cookies: HashMap<Generation, u64>,
    answered: BTreeSet<RequestId>,
}

impl World {
    fn apply(&mut self, event: Event<()>) {
        for action in self.machine.apply(event) {
            match action {
                Action::Start { generation, spec, captured, .. } => {
                    let cookie = spec.netns.cookie;
                    assert!(self.cookies.keys().all(|earlier| *earlier < generation));
                    // A failed start lets go of what the machine did not know to be captured.
                    assert!(captured || !self.captured.contains(&cookie), "{cookie} would be let go by a failure");
                    self.cookies.insert(generation, cookie);
                    self.starting.push((generation, cookie, captured));
                }
                Action::Stop { generation, close } => {
                    assert!(!self.starting.iter().chain(&self.stopping).any(|(other, ..)| *other == generation));
                    self.stopping.push((generation, self.cookies[&generation], close));
                }
                Action::Reply { request, .. } => assert!(self.answered.insert(request), "{request} answered twice"),
                Action::Cancel { generation } => {
                    assert!(self.starting.iter().any(|(other, ..)| *other == generation));
                }
                Action::Release { cookies } => self.releasing.push(cookies),
            }
        }
    }

    fn start(&mut self, index: usize, works: bool) {
        let (generation, cookie, captured) = self.starting.swap_remove(index);
        if works {
            self.captured.insert(cookie);
        } else if !captured {
            self.captured.remove(&cookie);
        }
        self.apply(if works { started(generation) } else { failed(generation) });
    }

    fn stop(&mut self, index: usize) {
        let (generation, cookie, close) = self.stopping.swap_remove(index);
        if !close {
            self.captured.remove(&cookie);
        }
        self.apply(stopped(generation));
    }

    fn release(&mut self, index: usize) {
        let cookies = self.releasing.swap_remove(index);
        self.captured.retain(|cookie| !cookies.contains(cookie));
        self.apply(Event::Released { cookies });
    }

    fn settle(&mut self) {
        loop {
            match (self.starting.is_empty(), self.stopping.is_empty(), self.releasing.is_empty()) {
                (false, _, _) => self.start(0, true),
                (_, false, _) => self.stop(0),
                (_, _, false) => self.release(0),
                (true, true, true) => return,
            }
        }
    }
}

/// Whatever the order of events: every request is answered at most once, no start is left without its end, generations never repeat,
/// nothing captured is let go by a failure, and what nobody wants is let go in the end.
#[test]
fn random_orders_keep_the_promises() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    for seed in 0..500 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut world = World { captured: BTreeSet::from([1, 4]), ..World::default() };
        world.apply(adopt("a", 1));
        world.apply(Event::Captured { cookies: vec![1, 4] });
        world.apply(Event::Opened { session: 1 });
        for request in 0..120 {
            let uid = ["a", "b", "c"][random.random_range(0..3)];
            let (starting, stopping, releasing) = (world.starting.len(), world.stopping.len(), world.releasing.len());
            match random.random_range(0..9) {
                0 | 1 => {
                    let mut spec = spec(uid, random.random_range(1..5));
                    spec.pod.dns.ndots = random.random_range(0..2);
                    world.apply(Event::Add { session: 1, request, spec, payload: () });
                }
                2 => world.apply(del(request, uid)),
                3 if random.random_bool(0.3) => world.apply(Event::Snapshot { session: 1, request }),
                4 if stopping > 0 => world.stop(random.random_range(0..stopping)),
                5 if releasing > 0 => world.release(random.random_range(0..releasing)),
                _ if starting > 0 => world.start(random.random_range(0..starting), random.random_bool(0.7)),
                _ => world.apply(Event::Keep { request, uid: uid.into() }),
            }
        }
        // Let everything end, then remove everything.
        world.apply(Event::Closed { session: 1 });
        for (request, uid) in (1000..).zip(["a", "b", "c"]) {
            world.apply(del(request, uid));
        }
        world.settle();
        world.apply(Event::Opened { session: 2 });
        world.apply(Event::Snapshot { session: 2, request: 2000 });
        world.settle();
        assert_eq!(world.machine.counts(), Counts::default());
        assert_eq!(world.captured, BTreeSet::new());
    }
}
