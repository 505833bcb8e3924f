//! Answers that a client does not read. hyper asks an answer's body for more only when the client has taken what it has, so a body whose client takes nothing never
//! learns that its time is over, and would keep its endpoint's place for ever. Whoever runs the body looks at it from outside: `serve` at a connection of HTTP/1.1,
//! [`Streams`] at each stream of HTTP/2. What it is told goes by the thread, for between both is hyper. Only a client that has bytes waiting for it is waited for:
//! streams whose endpoint has nothing to say may be silent.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::Executor;
use tokio::time::{Instant, Sleep};

use super::body::Over;

thread_local! {
    /// What became of the body that was polled last on this thread.
    static LAST: Cell<Last> = const { Cell::new(Last::Nothing) };
    /// Why what is dropped just now is cut.
    static CUT: Cell<Option<Over>> = const { Cell::new(None) };
}

#[derive(Clone, Copy)]
enum Last {
    /// Nobody has asked it.
    Nothing,
    /// It has nothing to give, or is over.
    Asked,
    /// It has given something, and may live no longer than this.
    Given(Option<Instant>),
}

/// A body was asked, and has given nothing, or its last.
pub(super) fn asked() {
    LAST.set(Last::Asked);
}

/// A body has given some of it: until it is asked again that waits for the client.
pub(super) fn given(deadline: Option<Instant>) {
    LAST.set(Last::Given(deadline));
}

/// How a body ends that is dropped just now, if that is because nobody reads it.
pub(super) fn cut() -> Option<Over> {
    CUT.get()
}

/// While it lives, bodies that are dropped on this thread are cut.
pub(super) struct Cutting(());

impl Cutting {
    pub(super) fn begin(how: Over) -> Self {
        CUT.set(Some(how));
        Self(())
    }
}

impl Drop for Cutting {
    fn drop(&mut self) {
        CUT.set(None);
    }
}

/// Looks at what runs one body at a time.
pub(super) struct Unread {
    /// How long a client may take nothing.
    limit: Duration,
    /// How long it may still, and how long the answer.
    until: Option<(Instant, Option<Instant>)>,
    /// Made for the first client that does not take all at once, and not set anew for each piece of what it takes.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Unread {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, until: None, timer: None }
    }

    /// Polls what runs the body. An error: it is to be dropped, while [`Cutting`] says why.
    pub(super) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        run: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<Result<T, Over>> {
        LAST.set(Last::Nothing);
        if let Poll::Ready(ended) = run(cx) {
            return Poll::Ready(Ok(ended));
        }
        match LAST.get() {
            Last::Nothing => {}
            Last::Asked => self.until = None,
            // Far away is never.
            Last::Given(deadline) => {
                self.until = Instant::now().checked_add(self.limit).map(|until| (until, deadline));
            }
        }
        let Some((idle, deadline)) = self.until else { return Poll::Pending };
        let until = deadline.map_or(idle, |deadline| deadline.min(idle));
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if until < timer.deadline() {
            timer.as_mut().reset(until);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= until {
                return Poll::Ready(Err(if until < idle { Over::Late } else { Over::Unread }));
            }
            timer.as_mut().reset(until);
        }
    }
}

/// Runs the streams of a connection of HTTP/2, and ends those that nobody reads.
#[derive(Clone, Copy)]
pub(super) struct Streams {
    limit: Duration,
}

impl Streams {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit }
    }
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(Stream { stream: Some(stream), unread: Unread::new(self.limit) });
    }
}

pin_project_lite::pin_project! {
    struct Stream<F> {
        #[pin]
        stream: Option<F>,
        unread: Unread,
    }
}

impl<F: Future<Output = ()>> Future for Stream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let Some(stream) = this.stream.as_mut().as_pin_mut() else { return Poll::Ready(()) };
        if let Err(how) = ready!(this.unread.poll(cx, |cx| stream.poll(cx))) {
            // A stream that nobody holds any more is reset.
            let _cutting = Cutting::begin(how);
            this.stream.set(None);
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs what does these things, one each second, until it is cut: after how many seconds and how.
    async fn run(limit: u64, what: &[Last]) -> Option<(u64, Over)> {
        let began = Instant::now();
        let mut unread = Unread::new(Duration::from_secs(limit));
        let (mut next, mut second) = (0, tokio::time::interval(Duration::from_secs(1)));
        let ended = std::future::poll_fn(|cx| {
            unread.poll(cx, |cx| {
                while second.poll_tick(cx).is_ready() {
                    LAST.set(what.get(next).copied().unwrap_or(Last::Nothing));
                    next += 1;
                }
                if next > 60 { Poll::Ready(()) } else { Poll::Pending }
            })
        });
        ended.await.err().map(|how| (began.elapsed().as_secs(), how))
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_client_that_has_something_to_take_and_takes_nothing_is_cut() {
        let late = |seconds| Some(Instant::now() + Duration::from_secs(seconds));
        let given = Last::Given(None);
        assert_eq!(run(10, &[]).await, None, "an endpoint may take its time");
        assert_eq!(run(10, &[given, Last::Asked]).await, None);
        assert_eq!(run(10, &[given]).await, Some((10, Over::Unread)));
        assert_eq!(run(10, &[Last::Nothing, Last::Asked, given]).await, Some((12, Over::Unread)));
        // Whoever takes some now and then goes on.
        let slowly: Vec<_> = (0..30).map(|second| if second % 9 == 0 { given } else { Last::Nothing }).collect();
        assert_eq!(run(10, &slowly).await, Some((37, Over::Unread)));
        // The time of the request is over all the same.
        assert_eq!(run(10, &[Last::Given(late(5))]).await, Some((5, Over::Late)));
        let deadline = late(20);
        let slowly: Vec<_> = (0..30).map(|_| Last::Given(deadline)).collect();
        assert_eq!(run(10, &slowly).await, Some((20, Over::Late)));
        // The next body of the connection may have less time.
        assert_eq!(run(30, &[given, Last::Asked, Last::Given(late(7))]).await, Some((7, Over::Late)));
    }
}
