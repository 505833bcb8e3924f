//! Clients that come, say what there is, and die: what they named, were told, and never heard of.

use super::*;

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
