//! How long it takes from a change to its being sent: of one stream, as Istio's `pilot_proxy_convergence_time` has it. What a stream is sent when it begins is no
//! change, and a change of which nothing concerns the client is none for it. Pure: instants are arguments.

use std::time::{Duration, Instant};

/// What a stream has not been sent yet.
#[derive(Debug, Default)]
pub struct Convergence {
    /// Since when there is something.
    since: Option<Instant>,
    /// Some of it has been sent.
    has_begun: bool,
}

impl Convergence {
    /// There is a new world; the first of what is new in it was heard of then.
    pub fn changed(&mut self, since: Option<Instant>) {
        self.since = self.since.into_iter().chain(since).min();
    }

    /// Something was sent.
    pub fn sent(&mut self) {
        self.has_begun = true;
    }

    /// The client has been sent everything. How long that took, if it was anything.
    pub fn done(&mut self, now: Instant) -> Option<Duration> {
        let since = self.since.take();
        let has_begun = std::mem::take(&mut self.has_begun);
        since.filter(|_| has_begun).map(|since| now.saturating_duration_since(since))
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
        Done(Option<u64>),
    }

    #[test]
    fn features_TM_12_from_the_first_change_to_the_last_response() {
        use Event::{Change, Done, Sent, World};
        for (what, events) in [
            ("what a stream begins with", vec![Sent, Done(None), Done(None)]),
            ("one change", vec![Change(0), Sent, Done(Some(2))]),
            ("one that took a while to be joined", vec![Change(4), Sent, Done(Some(6))]),
            ("a second one meanwhile: the first counts", vec![Change(0), Sent, Change(0), Sent, Done(Some(4))]),
            ("one that is no concern of the client's", vec![Change(0), Done(None), Sent, Done(None)]),
            ("names that are known without a change", vec![World, Sent, Done(None)]),
            ("one after the other", vec![Change(0), Sent, Done(Some(2)), Change(0), Sent, Done(Some(2))]),
        ] {
            let (mut convergence, start) = (Convergence::default(), Instant::now() + Duration::from_secs(100));
            for (second, event) in (0..).zip(events) {
                let now = start + Duration::from_secs(second);
                match event {
                    Change(before) => convergence.changed(now.checked_sub(Duration::from_secs(before))),
                    World => convergence.changed(None),
                    Sent => convergence.sent(),
                    Done(expected) => {
                        assert_eq!(convergence.done(now).map(|took| took.as_secs()), expected, "{what}, {second}");
                    }
                }
            }
        }
    }
}
