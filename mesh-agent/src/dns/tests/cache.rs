//! The cache by the clock.

use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType as Kind;

use super::harness::{answer_to, ip, query};
use crate::dns::cache::{Cache, Key, STALE};
use crate::dns::wire::{self, Answer, Query};

fn stored(cache: &mut Cache, host: &str, ttl: u32, now: Instant) -> (Vec<u8>, Key) {
    let bytes = query(host, Kind::A).to_vec().unwrap();
    let asked = Query::parse(&bytes).unwrap();
    let key = Key::of(&asked, "198.18.0.53:53".parse().unwrap()).unwrap();
    let answer: Answer = wire::answer(&asked, 0x4242, answer_to(&bytes, ttl, &[ip(1)])).unwrap();
    cache.store(key.clone(), &answer, now);
    (bytes, key)
}

#[test]
fn hardening_f48_an_answer_is_fresh_then_stale_for_thirty_seconds_then_gone() {
    let mut cache = Cache::default();
    let start = Instant::now();
    let (_, key) = stored(&mut cache, "example.com.", 60, start);
    let at = |seconds| cache.find(&key, start + Duration::from_secs(seconds)).map(|cached| (cached.age, cached.stale));
    assert_eq!(at(0), Some((0, false)));
    assert_eq!(at(59), Some((59, false)));
    assert_eq!(at(60), Some((60, true)));
    assert_eq!(at(60 + STALE.as_secs() - 1), Some((89, true)));
    assert_eq!(at(60 + STALE.as_secs()), None);
}

#[test]
fn ttls_count_down_and_never_reach_zero() {
    let mut cache = Cache::default();
    let start = Instant::now();
    let (bytes, key) = stored(&mut cache, "example.com.", 60, start);
    let asked = Query::parse(&bytes).unwrap();
    for (seconds, ttl) in [(0, 60), (25, 35), (60, 1), (80, 1)] {
        let cached = cache.find(&key, start + Duration::from_secs(seconds)).unwrap();
        let reply = asked.deliver(&cached.bytes, cached.age, 512);
        let reply = hickory_proto::op::Message::from_vec(&reply).unwrap();
        assert_eq!(reply.answers[0].ttl, ttl, "after {seconds} s");
    }
}

#[test]
fn the_cache_is_bounded_and_forgets_the_oldest_question() {
    let mut cache = Cache::default();
    let start = Instant::now();
    let (_, first) = stored(&mut cache, "h0.example.", 60, start);
    let (_, second) = stored(&mut cache, "h1.example.", 60, start);
    for i in 2..514 {
        stored(&mut cache, &format!("h{i}.example."), 60, start);
    }
    assert_eq!(cache.len(), 512);
    assert!(cache.find(&first, start).is_none() && cache.find(&second, start).is_none());
    stored(&mut cache, "h513.example.", 60, start);
    assert_eq!(cache.len(), 512, "the same question again takes no room");
}

#[test]
fn nameservers_do_not_answer_for_each_other() {
    let mut cache = Cache::default();
    let start = Instant::now();
    let (bytes, _) = stored(&mut cache, "example.com.", 60, start);
    let asked = Query::parse(&bytes).unwrap();
    let other = Key::of(&asked, "198.18.0.54:53".parse().unwrap()).unwrap();
    assert!(cache.find(&other, start).is_none());
}
