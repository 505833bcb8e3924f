//! What is refused and where, whatever the pieces that the bytes come in.

use proptest::prelude::*;

use super::*;

/// The verdict, with the place counted from the beginning.
fn look(pieces: &[&[u8]]) -> (usize, Option<(Bad, bool)>, Guard) {
    let (mut guard, mut read) = (Guard::default(), 0);
    for piece in pieces {
        if let Err(verdict) = guard.look(piece) {
            return (read + verdict.good, Some((verdict.bad, verdict.head)), guard);
        }
        read += piece.len();
    }
    (read, None, guard)
}

fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}")
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

fn rows() -> Vec<(String, Option<Bad>)> {
    let chunked = |body: &str| post(CHUNKED, body);
    // More than are kept of any value.
    let blanks = " \t".repeat(30);
    vec![
        (post("", ""), None),
        (post("", "\r\n\r\nGET / HTTP/1.1\r\n\r\n"), None),
        (post("Content-Length: 3\r\n", "abcGET / HTTP/1.1\r\n\r\n"), None),
        (post("content-length:0\r\n", "GET / HTTP/1.1\r\n\r\n"), None),
        (chunked("3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n"), None),
        (chunked("A;x=\"y\"\r\n0123456789\r\n0\r\nx-sum: 1\r\n\r\n"), None),
        (post("Upgrade: websocket\r\n", "\0\n\r anything"), None),
        (post("Upgrade: WebSocket\r\n", "\0\n\r anything"), None),
        (post("Upgrade: TLS/1.0\r\n", &chunked("1\na")), Some(Bad::Chunk)),
        (post("Upgrade: h2c\r\nHTTP2-Settings: AA\r\n", "GET / HTTP/1.1\r\n\r\n"), None),
        (post(&format!("Upgrade:{blanks}h2c{blanks}\r\n"), "GET / HTTP/1.1\r\n\r\n"), None),
        (post(&format!("Upgrade:{blanks}h2c\r\n"), &chunked("1\na")), Some(Bad::Chunk)),
        (post(&format!("Upgrade: h2c{blanks}\r\n"), &chunked("1\na")), Some(Bad::Chunk)),
        (post(&format!("Upgrade: h2c{blanks},x\r\n"), &chunked("1\na")), Some(Bad::Chunk)),
        (post(&format!("Upgrade: {}\r\n", "a".repeat(41)), &chunked("1\na")), Some(Bad::Chunk)),
        (post(&format!("Content-Length:{blanks}3{blanks}\r\n"), "abc"), None),
        (post(&format!("Content-Length: 3{blanks}3\r\n"), "abc"), Some(Bad::Length)),
        (post(&format!("Content-Length:{blanks}\r\n"), ""), Some(Bad::Length)),
        (post(&format!("Transfer-Encoding:{blanks}chunked{blanks}\r\n"), "0\r\n\r\n"), None),
        (post(&format!("Transfer-Encoding: chunked{blanks}x\r\n"), ""), Some(Bad::Coding)),
        // hardening B153
        (post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", ""), Some(Bad::Length)),
        (post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", ""), Some(Bad::Length)),
        (post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", ""), Some(Bad::Length)),
        (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", ""), Some(Bad::Coding)),
        (post("Transfer-Encoding: chunked, identity\r\n", ""), Some(Bad::Coding)),
        (post("Transfer-Encoding: gzip, chunked\r\n", ""), Some(Bad::Coding)),
        (post("Transfer-Encoding: xchunked\r\n", ""), Some(Bad::Coding)),
        (post("Transfer-Encoding: \"chunked\"\r\n", ""), Some(Bad::Coding)),
        (post("Transfer-Encoding:\r\n", ""), Some(Bad::Coding)),
        (post("Transfer-Encoding:\x0bchunked\r\n", ""), Some(Bad::Coding)),
        (post("Transfer-Encoding : chunked\r\n", ""), Some(Bad::Name)),
        // hardening B154
        (post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"), Some(Bad::Length)),
        (post("Content-Length: 3\r\nContent-Length: 4\r\n", "abc"), Some(Bad::Length)),
        (post("Content-Length: +5\r\n", "abcde"), Some(Bad::Length)),
        (post("Content-Length: -1\r\n", ""), Some(Bad::Length)),
        (post("Content-Length: 0x5\r\n", "abcde"), Some(Bad::Length)),
        (post("Content-Length: 5,5\r\n", "abcde"), Some(Bad::Length)),
        (post("Content-Length: 5 5\r\n", "abcde"), Some(Bad::Length)),
        (post("Content-Length:\r\n", ""), Some(Bad::Length)),
        (post("Content-Length: 18446744073709551616\r\n", ""), Some(Bad::Length)),
        (post("Content-Length: 00000000000000000000000000000000000000003\r\n", "abc"), Some(Bad::Length)),
        // hardening B155
        (chunked("ffffffffffffffff0\r\n"), Some(Bad::Chunk)),
        (chunked("-1\r\n"), Some(Bad::Chunk)),
        (chunked("0x1\r\na"), Some(Bad::Chunk)),
        (chunked("1 \r\na"), Some(Bad::Chunk)),
        (chunked("\r\n"), Some(Bad::Chunk)),
        (chunked(";x\r\n"), Some(Bad::Chunk)),
        (chunked("1\na"), Some(Bad::Chunk)),
        (chunked("1\rX"), Some(Bad::Chunk)),
        (chunked("1;a\nb\r\n"), Some(Bad::Chunk)),
        (chunked(&format!("1;{}\r\n", "a".repeat(64 * 1024))), Some(Bad::Chunk)),
        (chunked("1\r\nab"), Some(Bad::Chunk)),
        (chunked("1\r\na\n"), Some(Bad::Chunk)),
        (chunked("0\r\nContent-Length: 5\r\n\r\n"), Some(Bad::Trailer)),
        (chunked("0\r\nTRANSFER-encoding: chunked\r\n\r\n"), Some(Bad::Trailer)),
        (chunked("0\r\nHost: b\r\n\r\n"), Some(Bad::Trailer)),
        (chunked("0\r\na: b\n\r\n"), Some(Bad::LineEnd)),
        (chunked("0\r\n a: b\r\n\r\n"), Some(Bad::Folded)),
        // hardening B156
        ("GET / HTTP/1.1\nHost: a\r\n\r\n".into(), Some(Bad::LineEnd)),
        ("\nGET / HTTP/1.1\r\n\r\n".into(), Some(Bad::LineEnd)),
        ("\rGET / HTTP/1.1\r\n\r\n".into(), Some(Bad::LineEnd)),
        (post("a: b\n", ""), Some(Bad::LineEnd)),
        (post("a: b\rc\r\n", ""), Some(Bad::LineEnd)),
        (post("a: b\r\r\n", ""), Some(Bad::LineEnd)),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n".into(), Some(Bad::LineEnd)),
        (post(" a: b\r\n", ""), Some(Bad::Folded)),
        (post("a: b\r\n\tc\r\n", ""), Some(Bad::Folded)),
        (post(": b\r\n", ""), Some(Bad::Name)),
        (post("a b: c\r\n", ""), Some(Bad::Name)),
        (post("a : c\r\n", ""), Some(Bad::Name)),
        (post("nothing\r\n", ""), Some(Bad::Name)),
        ("GET /admin#x HTTP/1.1\r\n\r\n".into(), Some(Bad::Fragment)),
        // hardening B161
        (post("Upgrade: websocket\r\nContent-Length: 3\r\n", "abc"), Some(Bad::UpgradeBody)),
        (post(&format!("Upgrade: websocket\r\n{CHUNKED}"), ""), Some(Bad::UpgradeBody)),
    ]
}

#[test]
fn hardening_B153_to_B156_one_reading_or_none() {
    for (bytes, expected) in rows() {
        let (at, verdict, guard) = look(&[bytes.as_bytes()]);
        assert_eq!(verdict.map(|(bad, _)| bad), expected, "{bytes:.120?}");
        if let Some((_, head)) = verdict {
            assert_eq!(head, bytes.find("\r\n\r\n").is_none_or(|end| at < end + 4), "{bytes:.120?}");
        } else {
            assert!(!guard.in_body(), "{bytes:?}");
        }
    }
}

#[test]
fn the_pieces_in_which_bytes_come_change_nothing() {
    for (bytes, _) in rows().iter().filter(|(bytes, _)| bytes.len() < 1000) {
        let bytes = bytes.as_bytes();
        let (at, verdict, _) = look(&[bytes]);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(
            (at, verdict),
            {
                let (at, verdict, _) = look(&single);
                (at, verdict)
            },
            "{bytes:?}"
        );
        for cut in 0..bytes.len() {
            let (a, b) = bytes.split_at(cut);
            let cut = look(&[a, b]);
            assert_eq!((at, verdict), (cut.0, cut.1), "{bytes:?} {cut:?}");
        }
    }
}

#[test]
fn a_body_is_waited_for_until_its_end() {
    let (mut guard, request) = (Guard::default(), post("Content-Length: 3\r\n", ""));
    guard.look(&request.as_bytes()[..20]).unwrap();
    assert!(!guard.in_body(), "a head is not a body");
    guard.look(&request.as_bytes()[20..]).unwrap();
    assert!(guard.in_body());
    guard.look(b"ab").unwrap();
    assert!(guard.in_body());
    guard.look(b"c").unwrap();
    assert!(!guard.in_body());
}

proptest! {
    #[test]
    fn any_bytes_are_read_alike_in_any_pieces(
        bytes in proptest::collection::vec(prop::sample::select(b"GET / HTTP/1.1\r\nContent-Length: 3Transfer-Encoding: chunked0\r\n\r\n;#".to_vec()), 0..400),
        cut in 0_usize..400,
    ) {
        let (at, verdict, _) = look(&[&bytes]);
        let (a, b) = bytes.split_at(cut.min(bytes.len()));
        let cut = look(&[a, b]);
        prop_assert_eq!((at, verdict), (cut.0, cut.1));
    }
}
