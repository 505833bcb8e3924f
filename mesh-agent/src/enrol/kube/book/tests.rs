//! The book's operations for what the API says, without API, node or clock.

use super::super::facts::tests::pod;
use super::*;

/// A book with one namespace, `default`, and pods, both lists complete.
fn book(namespace: Option<Mode>, pods: &[Facts]) -> Book {
    let mut book = Book::default();
    book.namespace(Heard::Listing);
    book.namespace(Heard::Listed(("default".into(), namespace)));
    book.namespace(Heard::Complete);
    list(&mut book, pods);
    book
}

fn list(book: &mut Book, pods: &[Facts]) {
    book.pod(Heard::Listing);
    pods.iter().for_each(|pod| drop(book.pod(Heard::Listed(pod.clone()))));
    book.pod(Heard::Complete);
}

fn label(book: &mut Book, mode: Option<Mode>) {
    book.namespace(Heard::Changed(("default".into(), mode)));
}

fn named(op: &Op) -> String {
    let name = &op.pod().name;
    match op {
        Op::Enrol(_) => format!("enrol {name}"),
        Op::Keep(_) => format!("keep {name}"),
        Op::Release(_) => format!("release {name}"),
        Op::Bury(_) => format!("bury {name}"),
        Op::Annotate(_, mark) => format!("annotate {name} {}", mark.map_or("nothing", Mark::value)),
    }
}

/// Pod `a` as the kubelet names it.
fn called(cgroup_uid: &str) -> Called {
    Called { cgroup_uid: cgroup_uid.into(), namespace: "default".into(), name: "a".into() }
}

fn trouble(held: bool) -> Result<(), Trouble> {
    Err(Trouble { message: "trouble".into(), held, lasting: false })
}

/// Carries out what is due, everything with success, until nothing is and nobody lingers.
fn run(book: &mut Book, mut now: Instant) -> Vec<String> {
    let mut done = Vec::new();
    loop {
        let due = book.due(now);
        if due.is_empty() {
            match book.pods.values().find_map(|entry| entry.lingers) {
                Some(until) => now = until,
                None => return done,
            }
        }
        for op in due {
            done.push(named(&op));
            book.done(&op, Ok(()), now);
        }
    }
}

fn states(book: &Book) -> Vec<(&'static str, Option<String>)> {
    book.view().into_iter().map(|pod| (pod.state, pod.reason)).collect()
}

#[test]
fn features_en3_a_pod_that_serves_a_gateway_is_never_enrolled_and_is_let_go_of_when_it_comes_to_serve_one() {
    let now = Instant::now();
    let serving = Facts { gateway: true, mode: Some(Mode::InMesh), ..pod("a") };
    let mut book = book(Some(Mode::InMesh), std::slice::from_ref(&serving));
    assert_eq!(run(&mut book, now), ["release a"], "an earlier agent may have had it");
    assert_eq!(states(&book), [("left out", Some(Reason::Gateway.to_string()))]);
    assert_eq!(book.begin(&called(&serving.cgroup_uid)), Err(NotBegun::Left(Reason::Gateway)));
    drop(book.pod(Heard::Changed(pod("a"))));
    assert_eq!(run(&mut book, now), ["enrol a", "annotate a enabled"]);
    drop(book.pod(Heard::Changed(Facts { redirection: Some(Mark::Enabled), ..serving })));
    assert_eq!(run(&mut book, now), ["annotate a nothing", "release a"]);
}

#[test]
fn features_en4_a_label_on_the_namespace_enrols_and_its_end_releases() {
    let now = Instant::now();
    let mut book = book(None, &[pod("a")]);
    assert_eq!(run(&mut book, now), ["release a"], "an earlier agent may have had it");
    assert_eq!(states(&book), [("left out", Some(Reason::NotLabelled.to_string()))]);
    label(&mut book, Some(Mode::InMesh));
    assert_eq!(run(&mut book, now), ["enrol a", "annotate a enabled"]);
    assert_eq!(states(&book), [("enrolled", None)]);
    label(&mut book, None);
    assert_eq!(
        run(&mut book, now),
        ["annotate a nothing", "release a"],
        "first the others stop sending through the mesh"
    );
    assert_eq!(states(&book)[0].0, "left out");
}

#[test]
fn features_b35_a_pod_that_leaves_answers_until_the_others_know() {
    let now = Instant::now();
    let mut book = book(Some(Mode::InMesh), &[pod("a"), pod("b")]);
    assert_eq!(run(&mut book, now).len(), 4);
    let leave = |book: &mut Book| {
        label(book, None);
        let due = book.due(now);
        assert_eq!(due.iter().map(named).collect::<Vec<_>>(), ["annotate a nothing", "annotate b nothing"]);
        due.iter().for_each(|op| book.done(op, Ok(()), now));
    };
    leave(&mut book);
    let until = now + LINGER;
    assert_eq!((book.due(until - Duration::from_millis(1)), book.next_due()), (Vec::new(), Some(until)));
    // Whoever changes his mind goes on as if nothing had been.
    label(&mut book, Some(Mode::InMesh));
    let back = book.due(now);
    assert_eq!(back.iter().map(named).collect::<Vec<_>>(), ["annotate a enabled", "annotate b enabled"]);
    back.iter().for_each(|op| book.done(op, Ok(()), now));
    assert_eq!(book.next_due(), None);
    leave(&mut book);
    // What is gone has nobody to wait for.
    book.pod(Heard::Gone("uid-b".into()));
    assert_eq!(book.due(now).iter().map(named).collect::<Vec<_>>(), ["bury b"]);
    assert_eq!(book.due(until).iter().map(named).collect::<Vec<_>>(), ["release a"]);
}

#[test]
fn nothing_happens_before_both_lists_are_complete() {
    let now = Instant::now();
    let mut book = Book::default();
    list(&mut book, &[pod("a")]);
    assert!(book.due(now).is_empty() && !book.settle());
    book.namespace(Heard::Listing);
    book.namespace(Heard::Listed(("default".into(), Some(Mode::InMesh))));
    assert!(book.due(now).is_empty() && !book.settle());
    book.namespace(Heard::Complete);
    assert_eq!(run(&mut book, now), ["enrol a", "annotate a enabled"]);
    assert!(book.settle() && !book.settle(), "once");
}

#[test]
fn hardening_f13_a_relist_forgets_only_what_is_not_in_it() {
    let now = Instant::now();
    let mut book = book(Some(Mode::InMesh), &[pod("a"), pod("b")]);
    run(&mut book, now);
    book.namespace(Heard::Listing);
    book.pod(Heard::Listing);
    assert!(run(&mut book, now).is_empty(), "a list that has only begun says nothing");
    let marked = |name| Facts { redirection: Some(Mark::Enabled), ..pod(name) };
    book.pod(Heard::Listed(marked("b")));
    book.namespace(Heard::Listed(("default".into(), Some(Mode::InMesh))));
    assert!(run(&mut book, now).is_empty());
    book.pod(Heard::Complete);
    book.namespace(Heard::Complete);
    assert_eq!(run(&mut book, now), ["bury a"]);
    book.due(now);
    assert_eq!(states(&book).len(), 1);
}

#[test]
fn a_pod_whose_namespace_is_not_known_yet_stays_as_it_is() {
    let now = Instant::now();
    let elsewhere = Facts { namespace: "new".into(), ..pod("a") };
    let mut book = book(None, &[elsewhere]);
    let [keep] = &book.due(now)[..] else { panic!("one operation") };
    assert_eq!(named(keep), "keep a");
    book.done(keep, trouble(false), now);
    assert!(!book.settle(), "an earlier agent may have captured it");
    assert_eq!(states(&book)[0].0, "waiting");
    book.namespace(Heard::Changed(("new".into(), Some(Mode::InMesh))));
    assert_eq!(run(&mut book, now + LONGEST_WAIT), ["enrol a", "annotate a enabled"]);
    assert!(book.settle());
    book.namespace(Heard::Gone("new".into()));
    assert!(run(&mut book, now + LONGEST_WAIT).is_empty(), "its pods are deleted before it, one by one");
    assert_eq!(states(&book)[0].0, "enrolled");
}

#[test]
fn a_pod_without_address_waits_and_one_with_another_is_enrolled_again() {
    let now = Instant::now();
    let young = Facts { ips: Vec::new(), ..pod("a") };
    let mut book = book(Some(Mode::InMesh), &[]);
    assert!(book.settle());
    book.pod(Heard::Changed(young));
    assert!(run(&mut book, now).is_empty());
    assert_eq!(states(&book), [("waiting", Some("the pod has no address yet".into()))]);
    book.pod(Heard::Changed(pod("a")));
    assert_eq!(run(&mut book, now), ["enrol a", "annotate a enabled"]);
    book.pod(Heard::Changed(Facts { redirection: Some(Mark::Enabled), ..pod("a") }));
    assert!(run(&mut book, now).is_empty(), "our own annotation is no news");
    book.pod(Heard::Changed(Facts { redirection: Some(Mark::Enabled), life: 7, ..pod("a") }));
    assert_eq!(run(&mut book, now), ["enrol a"], "a container was started: the network may be another one");
    book.pod(Heard::Changed(pod("a")));
    assert_eq!(run(&mut book, now), ["enrol a", "annotate a enabled"], "somebody took the annotation away");
}

#[test]
fn what_fails_is_tried_again_with_growing_waits_and_at_once_when_there_is_news() {
    let start = Instant::now();
    let mut now = start;
    let mut book = book(Some(Mode::InMesh), &[pod("a")]);
    let mut waits = Vec::new();
    for round in 1..=10 {
        let due = book.due(now);
        assert_eq!(due.iter().map(named).collect::<Vec<_>>(), ["enrol a"]);
        assert!(book.due(now).is_empty(), "one operation at a time");
        book.done(&due[0], trouble(false), now);
        let said = run(&mut book, now);
        assert_eq!(said, ["annotate a pending"][..usize::from(round == SOME_FAILURES)], "failure {round}");
        assert!(!book.settle(), "what is captured and not found yet stays closed");
        let next = book.next_due().unwrap();
        waits.push(next - now);
        now = next;
    }
    assert_eq!(waits[..3], [FIRST_WAIT, FIRST_WAIT * 2, FIRST_WAIT * 4]);
    assert_eq!(waits[9], LONGEST_WAIT);
    assert_eq!(states(&book), [("waiting", Some("trouble".into()))]);
    let due = book.due(now);
    book.done(&due[0], trouble(false), now);
    book.pod(Heard::Changed(Facts { life: 1, redirection: Some(Mark::Pending), ..pod("a") }));
    assert_eq!(run(&mut book, now), ["enrol a", "annotate a enabled"]);
    assert!(book.settle());
}

#[test]
fn hardening_f9_what_cannot_be_enrolled_stays_closed_and_is_released_when_nobody_wants_it() {
    let now = Instant::now();
    let mut book = book(Some(Mode::InMesh), &[pod("a")]);
    let due = book.due(now);
    book.done(&due[0], Err(Trouble { message: "odd".into(), held: false, lasting: true }), now);
    assert!(!book.settle(), "what an earlier agent had captured of it is not let go");
    run(&mut book, now + LONGEST_WAIT);
    assert!(book.settle());
    // An enrolment that is to be changed, and fails half way.
    book.pod(Heard::Changed(Facts { life: 1, redirection: Some(Mark::Enabled), ..pod("a") }));
    let due = book.due(now);
    assert_eq!(named(&due[0]), "enrol a");
    book.done(&due[0], trouble(false), now);
    label(&mut book, None);
    assert_eq!(run(&mut book, now + LONGEST_WAIT), ["annotate a nothing", "release a"]);
}

#[test]
fn a_pod_that_an_earlier_agent_had_is_kept_until_it_is_found() {
    let now = Instant::now();
    let mut book = book(Some(Mode::InMesh), &[pod("a")]);
    let due = book.due(now);
    book.done(&due[0], trouble(true), now);
    assert!(book.settle(), "it is held: the snapshot does not touch it");
    assert_eq!(states(&book), [("enrolled", Some("trouble".into()))]);
    assert_eq!(run(&mut book, now + LONGEST_WAIT), ["enrol a", "annotate a enabled"]);
}

#[test]
fn an_annotation_that_cannot_be_removed_does_not_hold_the_release() {
    let now = Instant::now();
    let mut book = book(Some(Mode::InMesh), &[pod("a")]);
    run(&mut book, now);
    label(&mut book, None);
    let due = book.due(now);
    assert_eq!(named(&due[0]), "annotate a nothing");
    book.done(&due[0], trouble(false), now);
    let due = book.due(now);
    assert_eq!(named(&due[0]), "release a");
    book.done(&due[0], Ok(()), now);
    assert_eq!(run(&mut book, now), ["annotate a nothing"], "and then it is tried again");
}

#[test]
fn features_en4_a_pod_that_is_said_to_be_enrolled_and_is_not_is_said_to_be_pending() {
    let now = Instant::now();
    let marked = Facts { redirection: Some(Mark::Enabled), ..pod("a") };
    let mut book = book(Some(Mode::InMesh), &[marked]);
    let due = book.due(now);
    book.done(&due[0], trouble(false), now);
    assert_eq!(run(&mut book, now), ["annotate a pending"], "at once");
    assert_eq!(states(&book), [("waiting", Some("trouble".into()))], "why is not forgotten");
    assert_eq!(run(&mut book, now + FIRST_WAIT), ["enrol a", "annotate a enabled"]);
    // What no other try will mend.
    book.pod(Heard::Changed(Facts { life: 1, redirection: Some(Mark::Other), ..pod("b") }));
    let due = book.due(now);
    assert_eq!(due.iter().map(named).collect::<Vec<_>>(), ["enrol b"]);
    book.done(&due[0], Err(Trouble { message: "no".into(), held: false, lasting: true }), now);
    let due = book.due(now);
    assert_eq!(due.iter().map(named).collect::<Vec<_>>(), ["annotate b pending"]);
    // Nobody hears it: the pod is tried again all the same.
    book.done(&due[0], trouble(false), now);
    assert!(book.due(now).is_empty());
    assert_eq!(run(&mut book, now + FIRST_WAIT), ["enrol b", "annotate b enabled"]);
}

#[test]
fn features_en9_en11_a_pod_whose_annotations_change_is_enrolled_anew() {
    let now = Instant::now();
    let mut book = book(Some(Mode::InMesh), &[pod("a")]);
    run(&mut book, now);
    let mut changed = Facts { redirection: Some(Mark::Enabled), ..pod("a") };
    changed.said.rules.inbound_open = true;
    book.pod(Heard::Changed(changed.clone()));
    assert_eq!(run(&mut book, now), ["enrol a"]);
    changed.said.complaints.push("odd".into());
    book.pod(Heard::Changed(changed));
    assert_eq!(book.view()[0].complaints, ["odd"]);
    assert!(run(&mut book, now).is_empty(), "what is not in force changes nothing");
}

#[test]
fn what_changes_while_an_operation_runs_is_looked_at_afterwards() {
    let now = Instant::now();
    let mut book = book(Some(Mode::InMesh), &[pod("a"), pod("b")]);
    let due = book.due(now);
    assert_eq!(due.iter().map(named).collect::<Vec<_>>(), ["enrol a", "enrol b"]);
    label(&mut book, None);
    book.pod(Heard::Gone("uid-b".into()));
    assert!(book.due(now).is_empty() && !book.settle());
    book.done(&due[0], Ok(()), now);
    book.done(&due[1], trouble(false), now);
    assert_eq!(run(&mut book, now), ["release a", "bury b"], "what failed may have left it closed");
    assert!(book.settle());
    assert_eq!(states(&book).len(), 1, "b is gone");
}

#[test]
fn features_en3_what_finished_or_was_marked_by_others_is_put_right() {
    let now = Instant::now();
    let mut book = book(Some(Mode::InMesh), &[pod("job")]);
    run(&mut book, now);
    book.pod(Heard::Changed(Facts { finished: true, redirection: Some(Mark::Enabled), ..pod("job") }));
    assert_eq!(run(&mut book, now), ["bury job"]);
    assert_eq!(states(&book), [("left out", Some(Reason::Finished.to_string()))]);
    let forged = Facts { host_network: true, redirection: Some(Mark::Enabled), ..pod("host") };
    book.pod(Heard::Changed(forged));
    assert_eq!(run(&mut book, now), ["annotate host nothing", "release host"], "nobody says HBONE of it");
}

#[test]
fn a_pod_that_comes_back_in_the_list_after_it_was_gone_is_enrolled_again() {
    let now = Instant::now();
    let mut book = book(Some(Mode::InMesh), &[pod("a")]);
    run(&mut book, now);
    book.pod(Heard::Gone("uid-a".into()));
    let due = book.due(now);
    assert_eq!(named(&due[0]), "bury a");
    book.pod(Heard::Changed(pod("a")));
    book.done(&due[0], Ok(()), now);
    assert_eq!(run(&mut book, now), ["enrol a", "annotate a enabled"]);
}

#[test]
fn hardening_f21_a_later_pod_of_the_same_name_is_another() {
    let now = Instant::now();
    let mut book = book(Some(Mode::InMesh), &[pod("a")]);
    run(&mut book, now);
    // Of the deletion nobody heard.
    let later = Facts { uid: "uid-later".into(), cgroup_uid: "uid-later".into(), ..pod("a") };
    book.pod(Heard::Changed(later.clone()));
    assert_eq!(run(&mut book, now), ["enrol a", "annotate a enabled"]);
    list(&mut book, &[Facts { redirection: Some(Mark::Enabled), ..later }]);
    let due = book.due(now);
    assert_eq!(
        due.iter().map(|op| (named(op), op.pod().uid.to_string())).collect::<Vec<_>>(),
        [("bury a".to_owned(), "uid-a".to_owned())]
    );
}

#[test]
fn features_en5_who_knows_earlier_where_a_pod_is_enrols_it_in_the_books_turn() {
    let now = Instant::now();
    let early = Facts { ips: Vec::new(), cgroup_uid: "hash-a".into(), ..pod("a") };
    assert_eq!(Book::default().begin(&called("hash-a")), Err(NotBegun::Unheard));
    let mut book = book(None, std::slice::from_ref(&early));
    assert_eq!(book.begin(&called("other")), Err(NotBegun::Unheard));
    assert_eq!(book.begin(&called("uid-a")), Err(NotBegun::Unheard), "the kubelet runs it under another");
    assert_eq!(book.begin(&called("hash-a")), Err(NotBegun::Left(Reason::NotLabelled)));
    label(&mut book, Some(Mode::InMesh));
    let op = book.begin(&called("hash-a")).unwrap();
    assert_eq!((named(&op), book.begin(&called("hash-a"))), ("enrol a".to_owned(), Err(NotBegun::Busy)));
    // Whatever is said meanwhile waits for its end.
    label(&mut book, None);
    assert_eq!(run(&mut book, now), Vec::<String>::new());
    book.done(&op, Ok(()), now);
    assert_eq!(run(&mut book, now), ["release a"]);

    label(&mut book, Some(Mode::InMesh));
    let op = book.begin(&called("hash-a")).unwrap();
    book.done(&op, Ok(()), now);
    assert_eq!(run(&mut book, now), Vec::<String>::new(), "it has no address for the API yet");
    assert_eq!(states(&book), [("enrolled", None)]);
    book.pod(Heard::Changed(Facts { cgroup_uid: "hash-a".into(), ..pod("a") }));
    assert_eq!(run(&mut book, now), ["enrol a", "annotate a enabled"]);

    let op = book.begin(&called("hash-a")).unwrap();
    book.done(&op, trouble(false), now);
    assert_eq!(book.next_due().map(|then| then > now), Some(true), "what failed is tried again by the book itself");
    book.pod(Heard::Gone("uid-a".into()));
    assert_eq!(book.begin(&called("hash-a")), Err(NotBegun::Unheard));
}

#[test]
fn features_en5_a_pod_that_claims_the_uid_of_another_does_not_speak_for_it() {
    // The annotation of mirror pods can be written by whoever may make pods; this one comes first by its UID, and is none of the mesh.
    let forged = Facts { uid: "uid-0".into(), cgroup_uid: "uid-a".into(), mode: Some(Mode::OptedOut), ..pod("forged") };
    let mut book = book(Some(Mode::InMesh), &[forged.clone(), pod("a")]);
    let op = book.begin(&called("uid-a")).unwrap();
    assert_eq!(named(&op), "enrol a");
    assert_eq!(
        book.knowledge().pod(&called("uid-a")).map(|(pod, verdict)| (pod.uid.as_str(), *verdict)),
        Some(("uid-a", Verdict::Enrol))
    );
    // A UID that the API has given under another name is no pod that is yet to be heard of; one that is merely claimed is.
    let renamed = Called { name: "b".into(), ..called("uid-a") };
    assert!(matches!(book.begin(&renamed), Err(NotBegun::Other(facts)) if facts.name == "a"));
    let claimed = Called { name: "static".into(), ..called("hash") };
    book.pod(Heard::Changed(Facts { cgroup_uid: "hash".into(), ..forged }));
    assert_eq!(book.begin(&claimed), Err(NotBegun::Unheard));
}

#[test]
fn what_others_may_know() {
    let mut book = Book::default();
    book.namespace(Heard::Listing);
    book.namespace(Heard::Listed(("default".into(), Some(Mode::InMesh))));
    let told = book.heard();
    assert!(!book.knowledge().complete);
    book.namespace(Heard::Complete);
    list(&mut book, &[pod("a"), Facts { host_network: true, ..pod("b") }]);
    assert_ne!(book.heard(), told);
    let known = book.knowledge();
    assert!(known.complete);
    assert_eq!(known.namespaces().collect::<Vec<_>>(), [("default", Some(Mode::InMesh))]);
    let verdicts: Vec<_> = known.pods.iter().map(|(pod, verdict)| (pod.name.as_str(), *verdict)).collect();
    assert_eq!(verdicts, [("a", Verdict::Enrol), ("b", Verdict::Leave(Reason::HostNetwork))]);
    book.pod(Heard::Gone("uid-a".into()));
    assert_eq!(book.knowledge().pods.len(), 1);
}

#[test]
fn features_pl5_a_pod_that_has_others_called_is_news_once() {
    let calls = |hosts: &[&str]| {
        let mut facts = pod("a");
        facts.said.elsewhere = hosts.iter().map(|host| (*host).to_owned()).collect();
        facts
    };
    // Its own place in the mesh does not matter.
    let mut book = book(None, &[pod("b")]);
    let mut news = |heard| book.pod(heard).map(|pod| pod.said.elsewhere.concat());
    assert_eq!(news(Heard::Changed(calls(&[]))), None);
    assert_eq!(news(Heard::Changed(calls(&["x"]))), Some("x".into()));
    assert_eq!(news(Heard::Changed(Facts { life: 7, ..calls(&["x"]) })), None);
    assert_eq!(news(Heard::Listing), None);
    assert_eq!(news(Heard::Listed(calls(&["x"]))), None);
    assert_eq!(news(Heard::Changed(calls(&["x", "y"]))), Some("xy".into()));
    assert_eq!(news(Heard::Gone("uid-a".into())), None);
}

#[test]
fn what_has_ended_stays_captured_until_its_processes_are_gone() {
    let now = Instant::now();
    let mut book = book(Some(Mode::InMesh), &[pod("a"), pod("b")]);
    run(&mut book, now);
    assert!(book.settle());
    // Deleted by force: the object is gone at once. And one that somebody says has failed.
    book.pod(Heard::Gone("uid-a".into()));
    book.pod(Heard::Changed(Facts { finished: true, ..pod("b") }));
    let mut then = now;
    for _ in 0..10 {
        let due = book.due(then);
        assert_eq!(due.iter().map(named).collect::<Vec<_>>(), ["bury a", "bury b"]);
        due.iter().for_each(|op| book.done(op, trouble(true), then));
        assert_eq!(book.due(then), [], "not at once again");
        let next = book.next_due().unwrap();
        assert!(next <= then + LONGEST_LOOK);
        then = next;
        let waiting = ("waiting", Some("trouble".to_owned()));
        assert_eq!(states(&book), [waiting.clone(), waiting]);
    }
    // What is said meanwhile changes nothing.
    list(&mut book, &[Facts { finished: true, ..pod("b") }]);
    label(&mut book, None);
    assert_eq!(run(&mut book, then), ["bury a", "bury b"]);
    assert_eq!(states(&book), [("left out", Some(Reason::Finished.to_string()))]);
}

#[test]
fn a_pod_that_ended_while_no_agent_was_there_is_looked_at_before_it_is_let_go() {
    let now = Instant::now();
    let mut book = book(Some(Mode::InMesh), &[pod("a")]);
    book.inherit(vec![pod("a"), pod("gone")]);
    assert!(!book.settle());
    let due = book.due(now);
    assert_eq!(due.iter().map(named).collect::<Vec<_>>(), ["enrol a", "bury gone"]);
    book.done(&due[0], Ok(()), now);
    // Its processes run: it is kept, so that the snapshot does not let it go.
    book.done(&due[1], trouble(true), now);
    assert!(book.settle());
    assert_eq!(run(&mut book, now + LONGEST_LOOK), ["annotate a enabled", "bury gone"]);
    assert_eq!(states(&book).len(), 1);
    // Nor does one that is captured and that nobody has hinder others, if none of its processes is left.
    let mut book = super::tests::book(None, &[]);
    book.inherit(vec![pod("gone")]);
    assert_eq!((run(&mut book, now), book.settle()), (vec!["bury gone".to_owned()], true));
}

#[test]
fn of_a_pod_of_the_kubelets_folder_only_the_object_may_be_new() {
    let now = Instant::now();
    let mirror = |uid: &str| Facts { uid: uid.into(), cgroup_uid: "hash".into(), ..pod("a") };
    let mut book = book(Some(Mode::InMesh), &[mirror("uid-1")]);
    run(&mut book, now);
    book.pod(Heard::Gone("uid-1".into()));
    let due = book.due(now);
    assert_eq!(named(&due[0]), "bury a", "the kubelet makes it anew");
    book.done(&due[0], trouble(true), now);
    // One that has its name and says to be run as it does not end the wait for an ordinary pod.
    book.pod(Heard::Changed(pod("b")));
    run(&mut book, now);
    book.pod(Heard::Gone("uid-b".into()));
    book.pod(Heard::Changed(Facts { uid: "uid-forger".into(), cgroup_uid: "uid-b".into(), ..pod("b") }));
    book.pod(Heard::Changed(mirror("uid-2")));
    let due: Vec<_> = book.due(now + LONGEST_LOOK).iter().map(|op| (named(op), op.pod().uid.to_string())).collect();
    let row = |op: &str, uid: &str| (op.to_owned(), uid.to_owned());
    let expected =
        [row("release a", "uid-1"), row("enrol a", "uid-2"), row("bury b", "uid-b"), row("enrol b", "uid-forger")];
    assert_eq!(due, expected);
}
