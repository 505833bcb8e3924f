//! An open tap as the body of an answer: what it is, its lines, now and then how many there were, and why it has ended. Whoever drops the body ends the tap.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::{Counted, Open};

/// How often it is looked whether something was dropped.
const LOOK: Duration = Duration::from_secs(1);
/// After so many looks without a word something is said all the same: by that a client that is gone is known, and one knows that we are there.
const QUIET: u32 = 5;
/// Lines that wait together go out together, up to so many bytes.
const PIECE: usize = 16 * 1024;

enum Phase {
    Begin,
    Lines,
    Ended,
}

struct State<S> {
    open: Open<S>,
    about: Value,
    until: Instant,
    looks: Interval,
    quiet: u32,
    told: Counted,
    shown: u64,
    phase: Phase,
}

/// All that the client hears. `about` is what the first line says of the process.
pub fn stream<S: Send + Sync + 'static>(open: Open<S>, about: Value) -> impl Stream<Item = Bytes> + Send + 'static {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let until = Instant::now() + open.limits.time;
    let (told, quiet) = (Counted::default(), 0);
    let state = State { open, about, until, looks, quiet, told, shown: 0, phase: Phase::Begin };
    futures_util::stream::unfold(state, |mut state| async move {
        let piece = state.next().await?;
        Some((piece, state))
    })
}

impl<S> State<S> {
    async fn next(&mut self) -> Option<Bytes> {
        match self.phase {
            Phase::Begin => {
                self.phase = Phase::Lines;
                let limits = self.open.limits;
                let first = json!({
                    "kind": "tap", "version": env!("CARGO_PKG_VERSION"), "name": self.about,
                    "maxRps": limits.rate, "seconds": limits.time.as_secs(),
                });
                Some(line(&first))
            }
            Phase::Lines => Some(self.piece().await),
            Phase::Ended => None,
        }
    }

    async fn piece(&mut self) -> Bytes {
        loop {
            tokio::select! {
                biased;
                // First, so that many lines keep neither the end nor the counts away.
                () = tokio::time::sleep_until(self.until) => {
                    self.phase = Phase::Ended;
                    return self.end();
                }
                _ = self.looks.tick() => {
                    let counted = self.open.counted();
                    let is_news = (counted.limited, counted.lost) != (self.told.limited, self.told.lost);
                    self.quiet += 1;
                    if is_news || self.quiet > QUIET {
                        self.quiet = 0;
                        return self.counts("counts", counted);
                    }
                }
                first = self.open.lines.recv() => {
                    // The tap itself holds the sender, so that there is always another line.
                    let Some(first) = first else { continue };
                    self.quiet = 0;
                    return self.together(first);
                }
            }
        }
    }

    /// A line with those that wait behind it.
    fn together(&mut self, first: Bytes) -> Bytes {
        self.shown += 1;
        let Ok(next) = self.open.lines.try_recv() else { return first };
        let mut piece = BytesMut::from(&*first);
        let mut next = Some(next);
        while let Some(more) = next {
            self.shown += 1;
            piece.extend_from_slice(&more);
            next = (piece.len() < PIECE).then(|| self.open.lines.try_recv().ok()).flatten();
        }
        piece.freeze()
    }

    /// What still waits, and then the last word.
    fn end(&mut self) -> Bytes {
        let mut last = BytesMut::new();
        while let Ok(more) = self.open.lines.try_recv() {
            self.shown += 1;
            last.extend_from_slice(&more);
        }
        let counted = self.open.counted();
        last.extend_from_slice(&self.counts("end", counted));
        last.freeze()
    }

    fn counts(&mut self, kind: &str, counted: Counted) -> Bytes {
        self.told = counted;
        line(&json!({
            "kind": kind, "matched": counted.matched, "shown": self.shown,
            "limited": counted.limited, "lost": counted.lost,
        }))
    }
}

fn line(value: &Value) -> Bytes {
    format!("{value}\n").into()
}
