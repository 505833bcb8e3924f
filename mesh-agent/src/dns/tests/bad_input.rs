//! Rows of the bad-input catalogue that are about what a pod may send, and the fuzz corpus.

use std::time::{Duration, Instant};

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::RecordType as Kind;
use mesh_core::names::NameAnswer;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::{FakePod, LIMIT, exchange, ip, query, serve, serve_with, soon};
use crate::dns::handle::{Action, handle};
use crate::dns::{DnsConfig, fuzz};
use crate::telemetry::{DnsEvent, DnsProtocol, Rate};

const HOST: &str = "reviews.bookinfo.svc.cluster.local";
const NAME: &str = "reviews.bookinfo.svc.cluster.local.";

fn decide(bytes: &[u8]) -> Action<'_> {
    handle(bytes, DnsProtocol::Udp, |_, _| NameAnswer::NotMesh, &mut SmallRng::seed_from_u64(7))
}

/// The response code of a refusal.
fn refused(bytes: &[u8]) -> Option<u8> {
    match decide(bytes) {
        Action::Refuse(reply) => {
            assert_eq!((&reply[..2], reply[2] & 0x80), (&bytes[..2], 0x80));
            Some(reply[3] & 0xf)
        }
        _ => None,
    }
}

/// Header of a query with one question, then these bytes.
fn raw(tail: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x42, 0x42, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(tail);
    bytes
}

const FORMAT_ERROR: Option<u8> = Some(1);
const NOT_IMPLEMENTED: Option<u8> = Some(4);

#[test]
fn hardening_b77_short_and_long_messages_are_refused() {
    let whole = query(NAME, Kind::A).to_vec().unwrap();
    for length in 0..whole.len() {
        match length {
            0..4 => assert!(matches!(decide(&whole[..length]), Action::Drop(DnsEvent::Malformed)), "{length}"),
            _ => assert_eq!(refused(&whole[..length]), FORMAT_ERROR, "{length}"),
        }
    }
    assert!(matches!(decide(&whole), Action::Forward(_)));
    let long: Vec<u8> = whole.iter().copied().chain(std::iter::repeat(0)).take(65535).collect();
    assert_eq!(refused(&long), FORMAT_ERROR);
    assert_eq!(refused(&[&whole[..], &[0]].concat()), FORMAT_ERROR, "bytes after the message");
}

#[tokio::test]
async fn hardening_b77_lengths_that_lie_close_the_connection() {
    let config = DnsConfig { idle: Duration::from_millis(200), ..DnsConfig::default() };
    let served = serve_with(FakePod::new(None).with(HOST, &[ip(1)]), config);
    let whole = query(NAME, Kind::A).to_vec().unwrap();
    let size = u16::try_from(whole.len()).unwrap();
    // Longer than any query, shorter than a header, longer than what follows, and silence.
    for prefix in [Some(65535), Some(2049), Some(0), Some(11), Some(size + 1), None] {
        let mut stream = served.stream().await;
        if let Some(prefix) = prefix {
            stream.write_all(&u16::to_be_bytes(prefix)).await.unwrap();
            stream.write_all(&whole).await.unwrap();
        }
        let mut rest = Vec::new();
        // Closed with bytes unread is a reset, which is as good.
        let _ = soon(stream.read_to_end(&mut rest)).await;
        assert!(rest.is_empty(), "{prefix:?}");
    }
    // A length shorter than the message makes another message of it: refused, then closed.
    let mut stream = served.stream().await;
    stream.write_all(&(size - 1).to_be_bytes()).await.unwrap();
    stream.write_all(&whole).await.unwrap();
    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
    assert_eq!(rest.get(5).map(|flags| flags & 0xf), FORMAT_ERROR, "{rest:?}");
    assert!(served.telemetry.dns().events(DnsEvent::Malformed) > 0);
}

#[test]
fn hardening_b78_names_that_loop_or_are_too_long_are_refused() {
    let label = |length: u8| [&[length][..], &vec![b'a'; usize::from(length)]].concat();
    let end = [0, 0, 1, 0, 1];
    let cases: [(&str, Vec<u8>); 7] = [
        ("a pointer to itself", vec![0xc0, 12, 0, 1, 0, 1]),
        ("a pointer forward", vec![0xc0, 18, 0, 1, 0, 1, 1, b'a', 0]),
        ("a pointer into the header", vec![1, b'a', 0xc0, 0, 0, 1, 0, 1]),
        ("a label of 64 bytes", [label(64), end.to_vec()].concat()),
        ("the reserved label type", [vec![0x80, 1], end.to_vec()].concat()),
        ("256 bytes", [label(63), label(63), label(63), label(62), end.to_vec()].concat()),
        ("no end", label(63)),
    ];
    for (what, tail) in cases {
        assert_eq!(refused(&raw(&tail)), FORMAT_ERROR, "{what}");
    }
    let longest = raw(&[label(63), label(63), label(63), label(61), end.to_vec()].concat());
    assert!(matches!(decide(&longest), Action::Forward(_)), "255 bytes are a name");
    // A thousand pointers in a row, each to the one before: one pass, no following.
    let chain: Vec<u8> = (0..1000_u16).flat_map(|i| (0xc000 | (12 + 2 * i.saturating_sub(1))).to_be_bytes()).collect();
    let started = Instant::now();
    for _ in 0..1000 {
        assert_eq!(refused(&raw(&chain)), FORMAT_ERROR);
    }
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[test]
fn hardening_b79_counts_and_operations_that_are_not_served() {
    let whole = query(NAME, Kind::A).to_vec().unwrap();
    let with = |at: usize, word: u16| {
        let mut bytes = whole.clone();
        bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
        bytes
    };
    for count in [0, 2, 65535] {
        assert_eq!(refused(&with(4, count)), FORMAT_ERROR, "questions: {count}");
    }
    for (at, section) in [(6, "answers"), (8, "authorities"), (10, "additional")] {
        for count in [1, 65535] {
            assert_eq!(refused(&with(at, count)), FORMAT_ERROR, "{section}: {count}");
        }
    }
    for operation in [OpCode::Status, OpCode::Update, OpCode::Notify, OpCode::Unknown(15)] {
        let mut message = query(NAME, Kind::A);
        message.metadata.op_code = operation;
        assert_eq!(refused(&message.to_vec().unwrap()), NOT_IMPLEMENTED, "{operation}");
    }
    for kind in [Kind::AXFR, Kind::IXFR] {
        assert_eq!(refused(&query(NAME, kind).to_vec().unwrap()), NOT_IMPLEMENTED, "{kind}");
    }
    let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    let mut twice = [&with(10, 2)[..], &opt, &opt].concat();
    assert_eq!(refused(&twice), FORMAT_ERROR, "two OPT records");
    twice = [&with(10, 1)[..], &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 3, 0, 10, 9]].concat();
    assert_eq!(refused(&twice), FORMAT_ERROR, "an option longer than the record");
}

#[tokio::test]
async fn hardening_b80_responses_are_dropped_in_silence() {
    let served = serve(FakePod::new(None).with(HOST, &[ip(1)]));
    let client = served.client().await;
    let mut response = query(NAME, Kind::A);
    response.metadata.message_type = hickory_proto::op::MessageType::Response;
    client.send(&response.to_vec().unwrap()).await.unwrap();
    // The next query is answered, and its reply is the first thing the client hears.
    let mut asked = query(NAME, Kind::A);
    asked.metadata.id = 77;
    let reply = Message::from_vec(&exchange(&client, &asked.to_vec().unwrap()).await).unwrap();
    assert_eq!(reply.id, 77);
    assert_eq!(served.telemetry.dns().events(DnsEvent::Reflected), 1);
}

#[tokio::test]
async fn hardening_b86_a_flood_meets_its_own_bucket() {
    let config = DnsConfig { rate: Rate { rate: 0.001, burst: 50.0 }, ..DnsConfig::default() };
    let flooding = serve_with(FakePod::new(None).with(HOST, &[ip(1)]), config);
    let quiet = serve(FakePod::new(None).with(HOST, &[ip(1)]));
    let bytes = query(NAME, Kind::A).to_vec().unwrap();
    let client = flooding.client().await;
    for _ in 0..1000 {
        // The kernel drops what the socket has no room for, as it should.
        let _ = client.send(&bytes).await;
        let started = Instant::now();
        if client.try_recv(&mut [0; 512]).is_err() && started.elapsed() > LIMIT {
            break;
        }
    }
    assert_eq!(
        quiet.ask(&query(NAME, Kind::A)).await.response_code,
        ResponseCode::NoError,
        "the others are not touched"
    );
    soon(async {
        while flooding.telemetry.dns().events(DnsEvent::RateLimited) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(flooding.pod.asked.load(std::sync::atomic::Ordering::Relaxed) <= 50);
}

#[tokio::test]
async fn strangers_get_nothing() {
    let mut pod = FakePod::new(None).with(HOST, &[ip(1)]);
    pod.owned = false;
    let served = serve(pod);
    served.client().await.send(&query(NAME, Kind::A).to_vec().unwrap()).await.unwrap();
    let mut stream = served.stream().await;
    let _ = stream.write_all(&[0, 12]).await;
    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
    soon(async {
        while served.telemetry.dns().events(DnsEvent::ForeignPeer) < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn connections_of_a_pod_are_capped() {
    let config = DnsConfig { connections: 2, ..DnsConfig::default() };
    let served = serve_with(FakePod::new(None).with(HOST, &[ip(1)]), config);
    let bytes = query(NAME, Kind::A).to_vec().unwrap();
    let (mut first, mut second) = (served.stream().await, served.stream().await);
    super::harness::framed(&mut first, &bytes).await;
    super::harness::framed(&mut second, &bytes).await;
    let mut third = served.stream().await;
    let mut rest = Vec::new();
    let _ = soon(third.read_to_end(&mut rest)).await;
    assert_eq!(served.telemetry.dns().events(DnsEvent::Overloaded), 1);
    super::harness::framed(&mut first, &bytes).await;
}

/// Every message of the corpus through the fuzz entry; hickory-proto agrees on which are queries.
#[test]
fn the_fuzz_corpus_holds() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/dns_message");
    let mut replayed = 0;
    for entry in std::fs::read_dir(folder).expect("the corpus") {
        let path = entry.unwrap().path();
        let data = std::fs::read(&path).unwrap();
        fuzz::dns_message(&data);
        if let Action::Forward(query) = decide(&data) {
            let decoded = Message::from_vec(&data).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert_eq!(u16::from(decoded.queries[0].query_type()), query.kind, "{}", path.display());
        }
        replayed += 1;
    }
    assert!(replayed >= 10, "{replayed} files");
}

/// Flips every bit and cuts at every byte of real messages; a poor man's fuzzer that runs everywhere.
#[test]
fn damaged_messages_do_no_harm() {
    let asked = super::harness::with_edns(query("a.example.", Kind::A), 1232, 0).to_vec().unwrap();
    let answer = super::harness::answer_to(&asked, 60, &[ip(1), ip(2)]);
    for message in [asked, answer] {
        for at in 0..message.len() {
            fuzz::dns_message(&message[..at]);
            for bit in 0..8 {
                let mut damaged = message.clone();
                damaged[at] ^= 1 << bit;
                fuzz::dns_message(&damaged);
            }
        }
    }
}
