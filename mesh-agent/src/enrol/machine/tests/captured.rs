//! What the kernel has captured stays so until a client lets it go: adoption, failed starts, new descriptions.

use super::*;

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
