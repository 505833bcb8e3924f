//! How long it takes from a change until a client has it: of one stream, as Istio's `pilot_proxy_convergence_time` has it. It has a change when it has answered all
//! that was sent for it. What counts is the first change that is in what it has answered and was not in what it had answered before. What a stream is sent when it
//! begins is no change, and a change of which nothing concerns the client is none for it. Pure: instants are arguments.
//!
//! ```text
//! changed ──> since ── sent_all ──> unanswered, by the last response ── answered ──> how long it took
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Moments that are waited for at once, of a client that answers some kinds and another one not.
const MOST: usize = 64;

/// What a stream has not been sent yet, or has not answered.
#[derive(Debug, Default)]
pub struct Convergence {
    /// Since when there is something to send.
    since: Option<Instant>,
    /// Some of it has been sent.
    has_begun: bool,
    /// What was sent, by the number of the last response of it, with the first change in it.
    unanswered: VecDeque<(u64, Instant)>,
}

impl Convergence {
    /// There is a new world; the first of what is new in it for this stream was heard of then.
    pub fn changed(&mut self, since: Option<Instant>) {
        self.since = self.since.into_iter().chain(since).min();
    }

    /// Something was sent.
    pub fn sent(&mut self) {
        self.has_begun = true;
    }

    /// The client has been sent everything; `last` is the number of the last response.
    pub fn sent_all(&mut self, last: u64) {
        let since = self.since.take();
        let has_begun = std::mem::take(&mut self.has_begun);
        let Some(since) = since.filter(|_| has_begun) else { return };
        let is_full = self.unanswered.len() >= MOST;
        match self.unanswered.back_mut().filter(|_| is_full) {
            // With the one before it: the first change of both counts.
            Some(newest) => newest.0 = last,
            None => self.unanswered.push_back((last, since)),
        }
    }

    /// How long each took of what the client has answered by now: all but `oldest`, the first response without an answer, and what came after that.
    pub fn answered(&mut self, oldest: Option<u64>, now: Instant) -> impl Iterator<Item = Duration> {
        let known = self.unanswered.partition_point(|(last, _)| oldest.is_none_or(|oldest| *last < oldest));
        self.unanswered.drain(..known).map(move |(_, since)| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens, second by second.
    enum Event {
        /// A change that was heard of so many seconds before.
        Change(u64),
        /// A world of which nobody says since when it is.
        World,
        Sent,
        /// Everything is sent, with the response of this number.
        All(u64),
        /// All before this response are answered, or all, and what that took.
        Answer(Option<u64>, &'static [u64]),
    }

    #[test]
    fn features_TM_12_from_the_first_change_to_its_answer() {
        use Event::{All, Answer, Change, Sent, World};
        for (what, events) in [
            ("what a stream begins with", vec![Sent, All(1), Answer(None, &[]), All(1), Answer(None, &[])]),
            ("one change", vec![Change(0), Sent, All(2), Answer(Some(2), &[]), Answer(None, &[4])]),
            ("one that took a while to be joined", vec![Change(4), Sent, All(2), Answer(None, &[7])]),
            (
                "a second one meanwhile: the first counts",
                vec![Change(0), Sent, Change(0), Sent, All(3), Answer(None, &[5])],
            ),
            (
                "one that is no concern of the client's",
                vec![Change(0), All(2), Answer(None, &[]), Sent, All(3), Answer(None, &[])],
            ),
            ("names that are known without a change", vec![World, Sent, All(2), Answer(None, &[])]),
            (
                "one after the other",
                vec![Change(0), Sent, All(2), Answer(None, &[3]), Change(0), Sent, All(3), Answer(None, &[3])],
            ),
            (
                "another one before the answer: each has its own time",
                vec![Change(0), Sent, All(2), Change(0), Sent, All(3), Answer(Some(3), &[6]), Answer(None, &[4])],
            ),
            (
                "both are answered at once",
                vec![Change(0), Sent, All(2), Change(0), Sent, All(3), Answer(None, &[6, 3])],
            ),
        ] {
            let (mut convergence, start) = (Convergence::default(), Instant::now() + Duration::from_secs(100));
            for (second, event) in (0..).zip(events) {
                let now = start + Duration::from_secs(second);
                match event {
                    Change(before) => convergence.changed(now.checked_sub(Duration::from_secs(before))),
                    World => convergence.changed(None),
                    Sent => convergence.sent(),
                    All(last) => convergence.sent_all(last),
                    Answer(oldest, expected) => {
                        let took: Vec<u64> = convergence.answered(oldest, now).map(|took| took.as_secs()).collect();
                        assert_eq!(took, expected, "{what}, {second}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_client_that_answers_nothing_fills_nothing() {
        let (mut convergence, start) = (Convergence::default(), Instant::now());
        let last = 2 * MOST as u64;
        for second in 0..last {
            convergence.changed(Some(start + Duration::from_secs(second)));
            convergence.sent();
            convergence.sent_all(second);
        }
        assert_eq!(convergence.unanswered.len(), MOST);
        let now = start + Duration::from_secs(last);
        assert_eq!(convergence.answered(Some(last - 1), now).count(), MOST - 1);
        // What has no place of its own counts from the first that it is with.
        let took: Vec<u64> = convergence.answered(None, now).map(|took| took.as_secs()).collect();
        assert_eq!(took, [last - (MOST as u64 - 1)]);
    }
}
