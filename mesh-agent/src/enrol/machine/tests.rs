//! The pod state machine as tables: each step is an event and what must come of it, written as text.

mod captured;
mod clients;
mod orders;
mod requests;

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
        rules: Box::default(),
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
