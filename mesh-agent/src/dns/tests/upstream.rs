//! Names that are not of the mesh: what is asked of the pod's nameserver, what is believed, what the client hears.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{RData, Record, RecordType as Kind};
use parking_lot::Mutex;
use tokio::net::UdpSocket;

use super::harness::{
    FakePod, addresses, answer_to, ip, name, nameserver, no_tcp, query, serve, serve_with, soon, with_edns,
};
use crate::dns::DnsConfig;
use crate::telemetry::DnsEvent;

#[tokio::test]
async fn other_names_go_to_the_nameserver_that_was_asked() {
    let upstream = nameserver(|_, asked| vec![answer_to(asked, 60, &[ip(9)])], no_tcp).await;
    let served = serve(FakePod::new(Some(upstream)));
    let reply = served.ask(&query("wWw.Example.com.", Kind::A)).await;
    assert_eq!((reply.id, addresses(&reply)), (0x4242, vec![ip(9)]));
    assert!(reply.queries[0].name().eq_case(&name("wWw.Example.com.")));
    assert_eq!(*served.pod.locals.lock(), [served.slot(1)], "looked up by the address the query came to");
    let metrics = served.metrics();
    for line in ["istio_dns_upstream_requests_total{", "istio_dns_upstream_request_duration_seconds_count{"] {
        assert!(metrics.lines().any(|l| l.starts_with(line) && l.ends_with(" 1")), "{line} in\n{metrics}");
    }
    assert!(!metrics.contains("istio_dns_upstream_failures"), "a family without samples is not printed");
}

/// Before the first configuration no name is of the mesh, so every query takes this way; the fake pod knows no name at all.
#[tokio::test]
async fn names_of_other_namespaces_take_the_same_way_hardening_b84() {
    let upstream = nameserver(|_, asked| vec![answer_to(asked, 60, &[ip(9)])], no_tcp).await;
    let served = serve(FakePod::new(Some(upstream)));
    let reply = served.ask(&query("hidden.other.svc.cluster.local.", Kind::A)).await;
    assert_eq!(addresses(&reply), [ip(9)]);
}

#[tokio::test]
async fn a_slot_without_nameserver_is_a_failure_at_once() {
    let served = serve(FakePod::new(None));
    assert_eq!(served.ask(&query("example.com.", Kind::A)).await.response_code, ResponseCode::ServFail);
    assert_eq!(served.telemetry.dns().events(DnsEvent::UnknownServer), 1);
}

#[tokio::test]
async fn hardening_b85_the_nameserver_is_asked_for_what_fits_a_packet() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let copy = seen.clone();
    let script = move |_, asked: &[u8]| {
        copy.lock().push(Message::from_vec(asked).unwrap().edns.map(|edns| edns.max_payload()));
        vec![answer_to(asked, 60, &[ip(9)])]
    };
    let served = serve(FakePod::new(Some(nameserver(script, no_tcp).await)));
    for (host, payload) in [("a.example.", 65535), ("b.example.", 1000)] {
        served.ask(&with_edns(query(host, Kind::A), payload, 0)).await;
    }
    served.ask(&query("c.example.", Kind::A)).await;
    assert_eq!(*seen.lock(), [Some(1232), Some(1000), None]);
}

#[tokio::test]
async fn hardening_b87_lies_are_ignored_and_the_true_answer_is_waited_for() {
    let script = |_, asked: &[u8]| {
        let good = answer_to(asked, 60, &[ip(9)]);
        let mut wrong_id = answer_to(asked, 60, &[ip(66)]);
        wrong_id[0] ^= 0xff;
        let mut wrong_question = answer_to(asked, 60, &[ip(66)]);
        wrong_question[13] = b'x';
        let mut wrong_type = answer_to(asked, 60, &[ip(66)]);
        let end = 12 + "www.example.com.".len() + 1;
        wrong_type[end + 1] = 28;
        let mut is_query = answer_to(asked, 60, &[ip(66)]);
        is_query[2] &= 0x7f;
        let mut cut = answer_to(asked, 60, &[ip(66)]);
        cut.truncate(cut.len() - 1);
        // The record's name points to itself, and behind itself.
        let [mut to_itself, mut forward] = [answer_to(asked, 60, &[ip(66)]), answer_to(asked, 60, &[ip(66)])];
        let at = to_itself.windows(2).rposition(|pair| pair == [0xc0, 12]).unwrap();
        to_itself[at + 1] = u8::try_from(at).unwrap();
        forward[at + 1] = u8::try_from(at + 4).unwrap();
        vec![to_itself, forward, wrong_id, wrong_question, wrong_type, is_query, cut, vec![], vec![0; 11], good]
    };
    let served = serve(FakePod::new(Some(nameserver(script, no_tcp).await)));
    assert_eq!(addresses(&served.ask(&query("www.example.com.", Kind::A)).await), [ip(9)]);
}

#[tokio::test]
async fn hardening_b87_ttls_are_clamped() {
    for (ttl, expected) in
        [(0, 1), (1, 1), (299, 299), (86400, 300), (1 << 31, 1), (u32::MAX, 1), (i32::MAX as u32, 300)]
    {
        let upstream = nameserver(move |_, asked| vec![answer_to(asked, ttl, &[ip(9)])], no_tcp).await;
        let served = serve(FakePod::new(Some(upstream)));
        let reply = served.ask(&query("example.com.", Kind::A)).await;
        assert_eq!(reply.answers[0].ttl, expected, "{ttl}");
    }
}

#[tokio::test]
async fn hardening_b87_records_about_other_names_answer_nothing() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let script = move |_, asked: &[u8]| {
        counter.fetch_add(1, Relaxed);
        let mut reply = Message::from_vec(&answer_to(asked, 60, &[ip(9)])).unwrap();
        let foreign = Record::from_rdata(name("bank.example."), 60, RData::A(A(Ipv4Addr::new(198, 18, 66, 66))));
        reply.add_answer(foreign.clone());
        reply.add_additional(foreign);
        vec![reply.to_vec().unwrap()]
    };
    let served = serve(FakePod::new(Some(nameserver(script, no_tcp).await)));
    served.ask(&query("evil.example.", Kind::A)).await;
    served.ask(&query("bank.example.", Kind::A)).await;
    assert_eq!(count.load(Relaxed), 2, "the second name was asked for itself");
}

#[tokio::test]
async fn hardening_b88_truncated_answers_are_asked_for_over_tcp() {
    let many: Vec<IpAddr> = (0..100).map(ip).collect();
    let copy = many.clone();
    let script = |_, asked: &[u8]| {
        let mut cut = answer_to(asked, 60, &[]);
        cut[2] |= 2;
        vec![cut]
    };
    let upstream = nameserver(script, move |asked| Some(answer_to(asked, 60, &copy))).await;
    let served = serve(FakePod::new(Some(upstream)));
    // 100 records do not fit in a datagram for this client either: it is told, asks over TCP, and gets them from the cache.
    let reply = served.ask(&query("many.example.", Kind::A)).await;
    assert_eq!((reply.truncation, reply.answers.len()), (true, 0));
    let reply = served.ask_tcp(&query("many.example.", Kind::A)).await;
    assert_eq!((reply.truncation, addresses(&reply)), (false, many));
}

#[tokio::test]
async fn hardening_b88_truncated_without_tcp_is_passed_on_as_truncated() {
    let script = |_, asked: &[u8]| {
        let mut cut = answer_to(asked, 60, &[ip(1)]);
        cut[2] |= 2;
        cut.truncate(cut.len() - 3);
        vec![cut]
    };
    let served = serve(FakePod::new(Some(nameserver(script, no_tcp).await)));
    let reply = served.ask(&query("many.example.", Kind::A)).await;
    assert_eq!((reply.truncation, reply.answers.len()), (true, 0));
}

#[tokio::test]
async fn hardening_b87_more_than_a_message_over_tcp_is_not_read() {
    let upstream = nameserver(
        |_, _| Vec::new(),
        |asked| {
            let mut reply = answer_to(asked, 60, &[ip(9)]);
            reply.resize(1 << 20, 0);
            Some(reply)
        },
    )
    .await;
    let served = serve(FakePod::new(Some(upstream)));
    let reply = served.ask_tcp(&query("example.com.", Kind::A)).await;
    assert_eq!(addresses(&reply), [ip(9)]);
}

#[tokio::test]
async fn hardening_b88_a_silent_nameserver_is_a_failure_after_two_seconds() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let script = move |_, _: &[u8]| {
        counter.fetch_add(1, Relaxed);
        Vec::new()
    };
    let served = serve(FakePod::new(Some(nameserver(script, no_tcp).await)));
    let started = Instant::now();
    let (udp, tcp) = (query("example.com.", Kind::A), query("example.org.", Kind::A));
    let (udp, tcp) = tokio::join!(served.ask(&udp), served.ask_tcp(&tcp));
    let took = started.elapsed();
    assert_eq!(udp.response_code, ResponseCode::ServFail);
    assert!((1900..3500).contains(&took.as_millis()), "{took:?}");
    assert_eq!(count.load(Relaxed), 3, "sent again within the deadline");
    // This nameserver closes TCP connections without an answer, which needs no waiting.
    assert_eq!(tcp.response_code, ResponseCode::ServFail);
    assert!(served.metrics().contains("istio_dns_upstream_failures_total"));
}

#[tokio::test]
async fn a_nameserver_that_is_away_is_a_failure_at_once() {
    let away = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let served = serve(FakePod::new(Some(away)));
    let started = Instant::now();
    assert_eq!(served.ask(&query("example.com.", Kind::A)).await.response_code, ResponseCode::ServFail);
    assert!(started.elapsed() < Duration::from_millis(1500));
}

#[tokio::test]
async fn hardening_f48_a_stale_answer_stands_in_for_a_failing_nameserver() {
    let script = |number, asked: &[u8]| {
        if number == 0 {
            return vec![answer_to(asked, 0, &[ip(9)])];
        }
        let mut failure = Message::from_vec(&answer_to(asked, 0, &[])).unwrap();
        failure.metadata.response_code = ResponseCode::ServFail;
        vec![failure.to_vec().unwrap()]
    };
    let served = serve(FakePod::new(Some(nameserver(script, no_tcp).await)));
    let asked = query("example.com.", Kind::A);
    served.ask(&asked).await;
    soon(async {
        // Kept for a second; from then on the nameserver is asked, fails, and the old answer is given once more.
        // Asked at an interval, because a pod's queries are limited in rate and one too many is dropped unanswered.
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        while served.telemetry.dns().events(DnsEvent::Stale) == 0 {
            pace.tick().await;
            assert_eq!(addresses(&served.ask(&asked).await), [ip(9)]);
        }
    })
    .await;
}

#[tokio::test]
async fn hardening_b89_odd_addresses_of_other_names_are_passed_on() {
    for odd in [Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::LOCALHOST] {
        let upstream = nameserver(move |_, asked| vec![answer_to(asked, 60, &[odd.into()])], no_tcp).await;
        let served = serve(FakePod::new(Some(upstream)));
        assert_eq!(addresses(&served.ask(&query("rebind.example.", Kind::A)).await), [IpAddr::V4(odd)]);
    }
}

#[tokio::test]
async fn hardening_b90_ports_and_ids_are_random_and_strangers_are_not_heard() {
    let ids = Arc::new(Mutex::new(Vec::new()));
    let (copy, spoofer) = (ids.clone(), std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    // Before the nameserver answers, someone who knows the id and the port answers from another address.
    let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = upstream.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        loop {
            let (length, peer) = upstream.recv_from(&mut buffer).await.unwrap();
            copy.lock().push(u16::from_be_bytes([buffer[0], buffer[1]]));
            spoofer.send_to(&answer_to(&buffer[..length], 60, &[ip(66)]), peer).unwrap();
            upstream.send_to(&answer_to(&buffer[..length], 60, &[ip(9)]), peer).await.unwrap();
        }
    });
    let served = serve(FakePod::new(Some(address)));
    for i in 0..50 {
        let reply = served.ask(&query(&format!("h{i}.example."), Kind::A)).await;
        assert_eq!(addresses(&reply), [ip(9)]);
    }
    let distinct = |numbers: &[u16]| numbers.iter().collect::<std::collections::HashSet<_>>().len();
    assert!(distinct(&ids.lock()) > 45 && distinct(&served.pod.ports.lock()) > 40);
    let steps: Vec<i32> = ids.lock().windows(2).map(|pair| i32::from(pair[1]) - i32::from(pair[0])).collect();
    assert!(steps.iter().any(|step| step.abs() > 100), "ids are not counted up: {steps:?}");
}

#[tokio::test]
async fn queries_in_flight_are_capped() {
    let config = DnsConfig { in_flight: 1, ..DnsConfig::default() };
    let served = serve_with(FakePod::new(Some(nameserver(|_, _| Vec::new(), no_tcp).await)), config);
    let first = served.client().await;
    first.send(&query("a.example.", Kind::A).to_vec().unwrap()).await.unwrap();
    let started = Instant::now();
    soon(async {
        while served.pod.ports.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(served.ask(&query("b.example.", Kind::A)).await.response_code, ResponseCode::ServFail);
    assert!(started.elapsed() < Duration::from_secs(1), "not after the deadline of the first");
    assert_eq!(served.telemetry.dns().events(DnsEvent::Overloaded), 1);
}

#[tokio::test]
async fn answers_are_kept_and_missing_names_too() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let script = move |_, asked: &[u8]| {
        counter.fetch_add(1, Relaxed);
        let mut reply = Message::from_vec(&answer_to(asked, 0, &[])).unwrap();
        if reply.queries[0].name() == &name("there.example.") {
            return vec![answer_to(asked, 60, &[ip(9)])];
        }
        reply.metadata.response_code = ResponseCode::NXDomain;
        let soa = SOA::new(name("ns.example."), name("root.example."), 1, 2, 3, 4, 30);
        reply.add_authority(Record::from_rdata(name("example."), 3600, RData::SOA(soa)));
        vec![reply.to_vec().unwrap()]
    };
    let served = serve(FakePod::new(Some(nameserver(script, no_tcp).await)));
    for _ in 0..3 {
        assert_eq!(addresses(&served.ask(&query("There.example.", Kind::A)).await), [ip(9)]);
        assert_eq!(served.ask(&query("gone.example.", Kind::A)).await.response_code, ResponseCode::NXDomain);
    }
    assert_eq!(count.load(Relaxed), 2);
    served.ask(&with_edns(query("there.example.", Kind::A), 1232, 0)).await;
    assert_eq!(count.load(Relaxed), 3, "an answer with OPT is not for a client without");
}

#[tokio::test]
async fn error_replies_without_question_are_told_to_the_client() {
    let script = |_, asked: &[u8]| vec![[&asked[..2], &[0x81, 0x85, 0, 0, 0, 0, 0, 0, 0, 0]].concat()];
    let served = serve(FakePod::new(Some(nameserver(script, no_tcp).await)));
    assert_eq!(served.ask(&query("example.com.", Kind::A)).await.response_code, ResponseCode::Refused);
}
