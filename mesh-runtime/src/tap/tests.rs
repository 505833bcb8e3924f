//! Limits of taps: how many, how fast, what a slow client costs, and when they end. The time of what is offered is said, that of streams stands still and is
//! moved.

use std::pin::pin;

use futures_util::StreamExt;
use serde_json::{Value, json};

use super::*;

const LIMITS: Limits = Limits { rate: 10_000, time: Duration::from_secs(60) };

fn taps() -> Arc<Taps<&'static str>> {
    Arc::default()
}

/// Something of this sort, that has begun and is over at that time.
fn offer(taps: &Taps<&'static str>, sort: &str, at: Instant) {
    taps.offer(at, at, |selector| *selector == sort, || format!("{{\"kind\":\"{sort}\"}}\n"));
}

fn values(piece: &Bytes) -> Vec<Value> {
    std::str::from_utf8(piece).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_window_lets_its_rate_through_each_second() {
    let mut window = Window::default();
    let let_through = |window: &mut Window, second, of| (0..of).filter(|_| window.admit(second, 3)).count();
    assert_eq!(let_through(&mut window, 0, 10), 3);
    assert_eq!(let_through(&mut window, 0, 10), 0);
    assert_eq!(let_through(&mut window, 1, 2), 2);
    assert_eq!(let_through(&mut window, 1, 2), 1);
    assert_eq!(let_through(&mut window, 7, 10), 3);
}

#[test]
fn features_tm_16_taps_are_few_and_give_their_place_back() {
    let taps = taps();
    assert!(!taps.is_on());
    let mut held: Vec<_> = (0..MOST_TAPS).map(|_| taps.open("a", LIMITS).unwrap()).collect();
    assert!(taps.is_on() && taps.open("a", LIMITS).is_none());
    held.pop();
    assert!(taps.open("a", LIMITS).is_some());
    held.clear();
    assert!(!taps.is_on());
}

#[test]
fn features_tm_16_what_is_meant_is_offered_and_the_rest_counted() {
    let taps = taps();
    let before = Instant::now();
    let (mut a, b) = (taps.open("a", LIMITS).unwrap(), taps.open("b", Limits { rate: 2, ..LIMITS }).unwrap());
    // What began before a tap was not remembered for it.
    let now = Instant::now();
    taps.offer(before - Duration::from_secs(1), now, |_| true, || unreachable!("nobody hears it"));
    offer(&taps, "a", now);
    offer(&taps, "c", now);
    (0..5).for_each(|_| offer(&taps, "b", now));
    assert_eq!(a.lines.try_recv().unwrap(), "{\"kind\":\"a\"}\n");
    assert!(a.lines.try_recv().is_err());
    assert_eq!(a.counted(), Counted { matched: 1, limited: 0, lost: 0 });
    assert_eq!((b.lines.len(), b.counted()), (2, Counted { matched: 5, limited: 3, lost: 0 }));
    // In another second there is room again.
    offer(&taps, "b", now + Duration::from_secs(1));
    assert_eq!((b.lines.len(), b.counted()), (3, Counted { matched: 6, limited: 3, lost: 0 }));
    // Nobody reads: what has no room is lost, and nobody has waited.
    (0..BUFFER + 7).for_each(|_| offer(&taps, "a", now));
    assert_eq!(a.counted(), Counted { matched: 1 + BUFFER as u64 + 7, limited: 0, lost: 7 });
}

#[tokio::test(start_paused = true)]
async fn features_tm_16_a_stream_says_what_it_is_what_it_left_out_and_why_it_ends() {
    let taps = taps();
    let open = taps.open("a", Limits { rate: 3, time: Duration::from_secs(8) }).unwrap();
    let mut stream = pin!(stream(open, json!("waypoint")));
    let first = values(&stream.next().await.unwrap());
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(first, [json!({"kind": "tap", "version": version, "name": "waypoint", "maxRps": 3, "seconds": 8})]);
    let now = Instant::now();
    (0..5).for_each(|_| offer(&taps, "a", now));
    let counts = |kind: &str| json!({"kind": kind, "matched": 5, "shown": 3, "limited": 2, "lost": 0});
    let mut heard = Vec::new();
    while heard.len() < 4 {
        heard.extend(values(&stream.next().await.unwrap()));
    }
    heard.sort_by_key(|value| value["kind"] != "counts");
    let line = json!({"kind": "a"});
    assert!(heard[0]["kind"] == "counts" && heard[1..] == [line.clone(), line.clone(), line], "{heard:?}");
    // Nothing happens, and it says that it is there.
    let began = tokio::time::Instant::now();
    assert_eq!(values(&stream.next().await.unwrap()), [counts("counts")]);
    assert!((5..8).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(values(&stream.next().await.unwrap()), [counts("end")]);
    assert_eq!(stream.next().await, None);
}

/// Over a socket, in a folder or in none: a client hears his lines until he goes, and a selector that is none is told.
#[tokio::test]
async fn features_tm_16_a_tap_is_asked_for_over_a_socket() {
    let folder = std::env::temp_dir().join(format!("mesh-runtime-tap-{}", std::process::id()));
    let name = format!("@mesh-runtime-tap-{}", std::process::id());
    for path in [folder.as_path(), std::path::Path::new(&name)] {
        let (taps, drain) = (taps(), crate::Drain::new());
        let served = Arc::clone(&taps);
        let handler = move |request: http::Request<Bytes>| {
            let asked = match request.uri().query() {
                Some("a") => Ok(("a", LIMITS)),
                other => Err(format!("{other:?} is none")),
            };
            let reply = answer(&served, asked, json!("waypoint"));
            async move { reply }
        };
        let listener = crate::http::listen_unix(path).unwrap();
        let limits = crate::http::Limits::default();
        tokio::spawn(crate::http::serve_unix(listener, crate::http::own_user(), limits, drain.token(), handler));
        let refused = client::ask(path, "b").await.err().unwrap();
        assert_eq!((refused.status, refused.why.as_str()), (client::EXIT_SELECTOR, "Some(\"b\") is none"));
        let mut lines = client::ask(path, "a").await.unwrap();
        assert_eq!(values(&lines.next().await.unwrap())[0]["kind"], "tap");
        offer(&taps, "a", Instant::now());
        assert_eq!(lines.next().await.unwrap(), "{\"kind\":\"a\"}\n");
        drop(lines);
        let gone = async {
            while taps.is_on() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
    }
    std::fs::remove_file(folder).unwrap();
}

#[tokio::test(start_paused = true)]
async fn features_tm_16_who_goes_away_ends_the_tap() {
    let taps = taps();
    let mut stream = Box::pin(stream(taps.open("a", LIMITS).unwrap(), Value::Null));
    stream.next().await.unwrap();
    assert!(taps.is_on());
    drop(stream);
    assert!(!taps.is_on());
}

#[test]
fn features_tm_16_a_tap_that_cannot_be_written_has_failed_unless_nobody_reads() {
    struct Out(std::io::ErrorKind);
    impl std::io::Write for Out {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    assert_eq!(client::write(b"a", &mut Vec::new()), Ok(true));
    assert_eq!(client::write(b"a", &mut Out(std::io::ErrorKind::BrokenPipe)), Ok(false));
    let full = client::write(b"a", &mut Out(std::io::ErrorKind::StorageFull)).unwrap_err();
    assert_eq!(full.status, client::EXIT_OUTPUT);
    assert!(full.why.starts_with("standard output: "), "{full}");
}

#[tokio::test(start_paused = true)]
async fn features_tm_16_a_process_that_says_nothing_is_given_up() {
    let name = format!("@mesh-runtime-tap-mute-{}", std::process::id());
    let path = std::path::Path::new(&name);
    let _listener = crate::http::listen_unix(path).unwrap();
    let began = tokio::time::Instant::now();
    let refused = client::ask(path, "a").await.err().unwrap();
    assert_eq!((refused.status, began.elapsed().as_secs()), (client::EXIT_UNAVAILABLE, 10));
    assert!(refused.why.contains("no answer within 10 s"), "{refused}");
}
