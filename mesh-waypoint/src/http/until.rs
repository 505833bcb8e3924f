//! When a request is over whose rule gives it a time. As in Envoy that runs from the moment at which all of the request is here: who sends for long is not cut for it,
//! and a call whose client still speaks is not over. It stands still only while somebody waits for the client: a request that nobody takes, or no more of, has its time as any
//! other. Moments that a client names itself stand. Asked by attempts and by the body of their answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::count::Count;

/// The end of a request, of one attempt, or of an answer.
#[derive(Debug)]
pub struct Until {
    /// Whatever comes.
    fixed: Option<Instant>,
    /// Of the request.
    whole: Option<Own>,
    /// Of the attempt that is made.
    attempt: Option<Own>,
    /// Counts the request's body, if it has one.
    body: Option<Arc<Count>>,
}

/// So long after a moment, and after the end of the request.
#[derive(Debug)]
struct Own {
    time: Duration,
    since: Instant,
}

impl Until {
    /// At a moment, and no longer than a time after another one.
    #[must_use]
    pub fn new(fixed: Option<Instant>, time: Option<Duration>, since: Instant) -> Self {
        Self { fixed, whole: time.map(|time| Own { time, since }), attempt: None, body: None }
    }

    /// Times do not run before the end of that body.
    pub fn after(&mut self, body: Arc<Count>) {
        self.body = Some(body);
    }

    /// An attempt begins at a moment, and may have less time.
    pub fn begin(&mut self, time: Option<Duration>, since: Instant) {
        self.attempt = time.map(|time| Own { time, since });
    }

    /// When the attempt or the request is over, as far as is known now; `None` is never. Never earlier when it is asked later.
    #[must_use]
    pub fn at(&self, now: Instant) -> Option<Instant> {
        self.whole(now).into_iter().chain(self.end(self.attempt.as_ref(), now)).min()
    }

    /// The same, if that is still to come.
    #[must_use]
    pub fn left(&self) -> Option<Instant> {
        let now = Instant::now();
        self.at(now).filter(|end| *end > now)
    }

    /// When the request is.
    #[must_use]
    pub fn whole(&self, now: Instant) -> Option<Instant> {
        self.fixed.into_iter().chain(self.end(self.whole.as_ref(), now)).min()
    }

    /// Whether the moment is over that the client has named.
    #[must_use]
    pub fn is_named(&self, now: Instant) -> bool {
        self.fixed.is_some_and(|fixed| fixed <= now)
    }

    /// Whether the request is.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        self.whole(now).is_some_and(|end| end <= now)
    }

    fn end(&self, own: Option<&Own>, now: Instant) -> Option<Instant> {
        let own = own?;
        let rests = self.body.as_ref().and_then(|body| body.rests_since(now)).unwrap_or(own.since);
        // Nobody waits for years, and not every moment can be told.
        rests.max(own.since).checked_add(own.time)
    }

    /// Whether what is known now is known for good.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.ended_at().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_VS_14_a_time_runs_from_the_end_of_the_request() {
        let zero = Instant::now();
        let at = |seconds: u64| zero + Duration::from_secs(seconds);
        let (count, ended) = (|| Count::new(false, None, None), Count::new(false, None, None));
        ended.ended(at(4));
        let (waits, left) = (count(), count());
        waits.wait.begin();
        left.wait.begin();
        left.left();
        // Of the last one nobody has asked for anything, as while a request waits for a connection.
        let [ended, waits, left, idle] = [ended, waits, left, count()].map(|count| Some(Arc::new(count)));
        let second = Some(Duration::from_secs(1));
        let rule = Some(Duration::from_secs(3));
        for (fixed, time, body, now, expected) in [
            (None, None, None, 0, None),
            (None, rule, None, 9, Some(3)),
            (Some(2), rule, None, 0, Some(2)),
            (Some(5), rule, None, 0, Some(3)),
            (None, rule, waits.clone(), 7, Some(10)),
            (Some(8), rule, waits.clone(), 7, Some(8)),
            (None, rule, ended, 9, Some(7)),
            (None, rule, idle, 9, Some(3)),
            (Some(2), None, waits, 0, Some(2)),
        ] {
            let mut until = Until::new(fixed.map(at), time, zero);
            body.into_iter().for_each(|body| until.after(body));
            assert_eq!(until.at(at(now)), expected.map(at), "{until:?} {now}");
            // An attempt that begins later, and one that began before the end.
            until.begin(second, at(6));
            let try_at = until.at(at(now));
            assert_eq!(until.whole(at(now)), expected.map(at), "{until:?} {now}");
            let waits = until.body.as_ref().is_some_and(|body| body.wait.is_on());
            let own = if waits { now.max(6) } else { 6 } + 1;
            assert_eq!(try_at, Some(at(expected.map_or(own, |whole| whole.min(own)))), "{until:?} {now}");
        }
        // Since somebody left it, which was just now.
        let mut until = Until::new(None, rule, zero - Duration::from_secs(60));
        until.after(left.unwrap());
        let end = until.at(Instant::now()).unwrap();
        assert!(end > zero && end <= Instant::now() + Duration::from_secs(3), "{:?}", end - zero);
    }

    #[test]
    fn an_end_stays_the_first_one() {
        let count = Count::new(false, None, None);
        let zero = Instant::now();
        count.ended(zero);
        count.ended(zero + Duration::from_secs(1));
        assert_eq!(count.ended_at(), Some(zero));
    }
}
