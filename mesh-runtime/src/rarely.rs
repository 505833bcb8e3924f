//! A future that is rarely ready among others that often are: what polls all of them each time one is ready asks this one only if it was woken itself. A poll of a
//! timer or of a cancellation takes a lock or two, which is a lot where nothing else does.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

/// Polls `F` once, and then each time it was woken. Must not be polled after it was ready, as any future.
#[derive(Debug)]
pub struct Rarely<F> {
    future: Pin<Box<F>>,
    bell: Arc<Bell>,
    /// The bell, as the future sees it.
    rings: Waker,
    /// Whom the bell wakes.
    task: Option<Waker>,
}

#[derive(Debug)]
struct Bell {
    rung: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before the task is woken, so that it finds it.
        self.rung.store(true, Ordering::Release);
        let task = self.task.lock().clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<F: Future> Rarely<F> {
    /// Around a future that nobody has polled.
    #[must_use]
    pub fn new(future: F) -> Self {
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), task: Mutex::new(None) });
        Self { future: Box::pin(future), rings: Waker::from(Arc::clone(&bell)), bell, task: None }
    }

    /// Changes the future, which is polled anew then.
    pub fn change<T>(&mut self, change: impl FnOnce(Pin<&mut F>) -> T) -> T {
        self.bell.rung.store(true, Ordering::Release);
        change(self.future.as_mut())
    }
}

impl<F: Future> Future for Rarely<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        // Known before the bell is looked at: what rings after that wakes it.
        if !this.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            *this.bell.task.lock() = Some(cx.waker().clone());
            this.task = Some(cx.waker().clone());
        }
        if !this.bell.rung.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        this.bell.rung.swap(false, Ordering::Acquire);
        this.future.as_mut().poll(&mut Context::from_waker(&this.rings))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use super::*;

    /// Counts its polls, and is ready at the third.
    struct Third(Arc<AtomicUsize>);

    impl Future for Third {
        type Output = ();

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                0 => Poll::Pending,
                1 => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        }
    }

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn it_is_polled_only_when_it_was_woken_and_wakes_whoever_polled_last() {
        let polls = Arc::new(AtomicUsize::new(0));
        let mut rarely = Rarely::new(Third(Arc::clone(&polls)));
        let tasks = [Arc::new(Count(AtomicUsize::new(0))), Arc::new(Count(AtomicUsize::new(0)))];
        let wakers = tasks.clone().map(Waker::from);
        let mut poll = |waker: &Waker| Pin::new(&mut rarely).poll(&mut Context::from_waker(waker)).is_ready();
        for _ in 0..5 {
            assert!(!poll(&wakers[0]));
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        assert!(!poll(&wakers[1]), "moved to another task");
        rarely.change(|_| ());
        let mut poll = |waker: &Waker| Pin::new(&mut rarely).poll(&mut Context::from_waker(waker)).is_ready();
        assert!(!poll(&wakers[1]), "it wakes itself");
        let woken = tasks.map(|task| task.0.load(Ordering::Relaxed));
        assert_eq!(woken, [0, 1]);
        assert!(poll(&wakers[1]));
        assert_eq!(polls.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn timers_and_cancellations_come_through() {
        let token = CancellationToken::new();
        let mut timer = Rarely::new(tokio::time::sleep(Duration::from_secs(3600)));
        let mut cancelled = Rarely::new(token.cancelled());
        let canceller = token.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            canceller.cancel();
        });
        tokio::select! {
            () = &mut timer => panic!("an hour is longer than a second"),
            () = &mut cancelled => {}
        }
        task.await.unwrap();
        timer.change(|timer| timer.reset(tokio::time::Instant::now() + Duration::from_secs(1)));
        let began = tokio::time::Instant::now();
        timer.await;
        assert!(began.elapsed() <= Duration::from_secs(2), "the timer was set anew");
    }
}
