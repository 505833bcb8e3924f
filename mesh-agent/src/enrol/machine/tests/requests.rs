//! One pod, its adds and deletes, one after the other and at once.

use super::*;

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
