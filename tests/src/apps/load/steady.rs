//! Steady load: new connections at a fixed rate and long-lived ones beside them - what a user's traffic would notice of a fault, and when.
use crate::apps::client::now_ms;
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Failures with less than this between them are of one burst.
const APART_MS: u64 = 2000;
/// Bursts and cuts that are told one by one.
const TOLD: usize = 1000;

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// A load server.
    pub target: SocketAddr,
    /// How long at most; standard input closing ends it earlier.
    pub time: Duration,
    /// New connections per second.
    pub rate: u32,
    /// Long-lived connections.
    pub long: usize,
    /// What they carry.
    pub token: String,
    /// Limit of one attempt.
    pub limit: Duration,
}

#[derive(Default)]
struct Tally {
    ok: AtomicU64,
    refused: AtomicU64,
    reset: AtomicU64,
    timeout: AtomicU64,
    other: AtomicU64,
    cut: AtomicU64,
    gap: Mutex<Gap>,
    slowest_us: AtomicU64,
    errors: Mutex<Vec<String>>,
    /// When the last attempt that succeeded began, by the clock of the machine.
    last_ok_ms: AtomicU64,
    bursts: Mutex<Bursts>,
    cuts: Mutex<Vec<u64>>,
}

/// Failed attempts by when they began, by the clock of the machine.
#[derive(Default)]
struct Bursts(Vec<Burst>);

#[derive(Debug, Eq, PartialEq)]
struct Burst {
    first_ms: u64,
    last_ms: u64,
    count: u64,
}

impl Bursts {
    /// Attempts are told of when they end, so their beginnings come in any order.
    fn failed(&mut self, began_ms: u64) {
        let has_room = self.0.len() < TOLD;
        let is_close = |one: &&mut Burst| began_ms + APART_MS > one.first_ms && began_ms < one.last_ms + APART_MS;
        match self.0.iter_mut().rev().find(is_close) {
            Some(burst) => {
                burst.first_ms = burst.first_ms.min(began_ms);
                burst.last_ms = burst.last_ms.max(began_ms);
                burst.count += 1;
            }
            None if has_room => self.0.push(Burst { first_ms: began_ms, last_ms: began_ms, count: 1 }),
            None => {}
        }
    }
}

#[derive(Default)]
struct Gap {
    last_ok: Option<Instant>,
    worst: Duration,
}

/// Runs the plan and prints one JSON line; before it `started`, when each of the long-lived connections has been through once or has failed.
pub fn run(plan: &Plan) {
    let tally = Tally::default();
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0; 1]);
        asked.store(true, Ordering::Relaxed);
    });
    let start = Instant::now();
    const WORKERS: u32 = 32;
    let running = || start.elapsed() < plan.time && !stop.load(Ordering::Relaxed);
    // One for ourselves: who brings it down to nothing says it.
    let left = AtomicUsize::new(plan.long + 1);
    let begun = || {
        if left.fetch_sub(1, Ordering::Relaxed) == 1 {
            println!("started");
        }
    };
    begun();
    std::thread::scope(|scope| {
        for worker in 0..WORKERS.min(plan.rate) {
            let (tally, running) = (&tally, &running);
            scope.spawn(move || {
                let step = Duration::from_secs_f64(f64::from(WORKERS.min(plan.rate)) / f64::from(plan.rate));
                let mut at = start + step.mul_f64(f64::from(worker) / f64::from(WORKERS));
                while running() {
                    std::thread::sleep(at.saturating_duration_since(Instant::now()));
                    at += step;
                    attempt(plan, tally);
                }
            });
        }
        for _ in 0..plan.long {
            let (tally, running, begun) = (&tally, &running, &begun);
            scope.spawn(move || long(plan, tally, running, begun));
        }
    });
    let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let gap = tally.gap.lock().map(|g| g.worst.as_millis() as u64).unwrap_or(0);
    let errors = tally.errors.lock().map(|e| e.clone()).unwrap_or_default();
    let bursts = tally.bursts.lock().map(|b| b.0.iter().map(|b| [b.first_ms, b.last_ms, b.count]).collect::<Vec<_>>());
    let cuts = tally.cuts.lock().map(|c| c.clone()).unwrap_or_default();
    println!(
        "{}",
        json!({
            "ok": load(&tally.ok), "refused": load(&tally.refused), "reset": load(&tally.reset), "timeout": load(&tally.timeout),
            "other": load(&tally.other), "cut": load(&tally.cut), "long": plan.long, "worst_gap_ms": gap,
            "slowest_us": load(&tally.slowest_us), "errors": errors, "last_ok_ms": load(&tally.last_ok_ms),
            "bursts": bursts.unwrap_or_default(), "cuts_ms": cuts,
        })
    );
}

fn attempt(plan: &Plan, tally: &Tally) {
    let (start, began_ms) = (Instant::now(), now_ms() as u64);
    match exchange(plan) {
        Ok(()) => {
            tally.ok.fetch_add(1, Ordering::Relaxed);
            tally.last_ok_ms.fetch_max(began_ms, Ordering::Relaxed);
            tally.slowest_us.fetch_max(start.elapsed().as_micros() as u64, Ordering::Relaxed);
            if let Ok(mut gap) = tally.gap.lock() {
                let now = Instant::now();
                if let Some(last) = gap.last_ok {
                    gap.worst = gap.worst.max(now.saturating_duration_since(last));
                }
                gap.last_ok = Some(now);
            }
        }
        Err(e) => {
            let counter = match e.kind() {
                ErrorKind::ConnectionRefused => &tally.refused,
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => &tally.reset,
                ErrorKind::WouldBlock | ErrorKind::TimedOut => &tally.timeout,
                _ => &tally.other,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            if let Ok(mut bursts) = tally.bursts.lock() {
                bursts.failed(began_ms);
            }
            if let Ok(mut errors) = tally.errors.lock()
                && errors.len() < 5
            {
                errors.push(format!("{e} after {:?}", start.elapsed()));
            }
        }
    }
}

fn exchange(plan: &Plan) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&plan.target, plan.limit)?;
    stream.set_read_timeout(Some(plan.limit))?;
    stream.write_all(format!("C{}", plan.token).as_bytes())?;
    let mut answer = vec![0; plan.token.len()];
    stream.read_exact(&mut answer)?;
    if answer == plan.token.as_bytes() { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

fn long(plan: &Plan, tally: &Tally, running: impl Fn() -> bool, begun: impl Fn()) {
    let mut answer = vec![0; plan.token.len()];
    let mut echo = |stream: &mut TcpStream| {
        stream.write_all(plan.token.as_bytes())?;
        stream.read_exact(&mut answer)
    };
    let mut open = || {
        let mut stream = TcpStream::connect_timeout(&plan.target, plan.limit)?;
        stream.set_read_timeout(Some(plan.limit))?;
        stream.write_all(b"E")?;
        echo(&mut stream)?;
        Ok::<_, std::io::Error>(stream)
    };
    let opened = open();
    begun();
    let held = opened.and_then(|mut stream| {
        while running() {
            std::thread::sleep(Duration::from_millis(50));
            echo(&mut stream)?;
        }
        Ok(())
    });
    if held.is_err() {
        tally.cut.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut cuts) = tally.cuts.lock()
            && cuts.len() < TOLD
        {
            cuts.push(now_ms() as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_close_to_each_other_are_one_burst() {
        let mut bursts = Bursts::default();
        for began in [10_000, 10_300, 9_900, 12_250, 20_000, 14_300, 19_000] {
            bursts.failed(began);
        }
        let burst = |first_ms, last_ms, count| Burst { first_ms, last_ms, count };
        assert_eq!(bursts.0, [burst(9_900, 12_250, 4), burst(19_000, 20_000, 2), burst(14_300, 14_300, 1)]);
    }
}
