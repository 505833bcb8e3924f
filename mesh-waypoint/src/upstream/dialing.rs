//! A connection of HTTP/2 that is being made, and the requests that wait for it. It is nobody's: whoever has begun it may give up, and the others get it all the
//! same.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use hyper::client::conn::http2::SendRequest;
use mesh_runtime::task;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::dial::ConnectError;
use super::life::Life;
use super::room::Room;
use crate::http::RequestBody;

type Made = Result<(SendRequest<RequestBody>, Room), ConnectError>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    UnderWay,
    Made,
    Failed,
}

/// One that is being made.
pub(super) struct Dial {
    ended: watch::Receiver<State>,
    made: Arc<Mutex<Option<Made>>>,
    riders: Arc<AtomicUsize>,
    life: Life,
}

/// A request that waits for it.
pub(super) struct Ride {
    ended: watch::Receiver<State>,
    made: Arc<Mutex<Option<Made>>>,
    riders: Arc<AtomicUsize>,
}

impl Drop for Ride {
    fn drop(&mut self) {
        self.riders.fetch_sub(1, Relaxed);
    }
}

impl Dial {
    /// Begins to make one.
    pub(super) fn begin(life: Life, connect: impl Future<Output = Made> + Send + 'static) -> Self {
        let (tell, ended) = watch::channel(State::UnderWay);
        let made = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&made);
        task::spawn("connecting to an endpoint", async move {
            let made = connect.await;
            let state = if made.is_ok() { State::Made } else { State::Failed };
            *slot.lock() = Some(made);
            tell.send_replace(state);
        });
        Self { ended, made, riders: Arc::default(), life }
    }

    /// One request more waits for it.
    pub(super) fn ride(&self) -> Ride {
        self.riders.fetch_add(1, Relaxed);
        Ride { ended: self.ended.clone(), made: Arc::clone(&self.made), riders: Arc::clone(&self.riders) }
    }

    /// Requests that wait for it.
    pub(super) fn riders(&self) -> usize {
        self.riders.load(Relaxed)
    }

    /// Whether it is over; also if nobody is there any more who would end it.
    pub(super) fn is_over(&self) -> bool {
        *self.ended.borrow() != State::UnderWay || self.ended.has_changed().is_err()
    }

    /// The connection, once it is made. Why there is none is left to the requests that have waited.
    pub(super) fn take(self) -> Option<(SendRequest<RequestBody>, Room, Life)> {
        let made = self.made.lock().take_if(|made| made.is_ok())?;
        made.ok().map(|(sender, room)| (sender, room, self.life))
    }
}

impl Ride {
    /// Waits for its end. An error: there is no connection. One of those who wait is told why.
    pub(super) async fn ended(mut self) -> Result<(), ConnectError> {
        let state = self.ended.wait_for(|state| *state != State::UnderWay).await.map(|state| *state);
        match state {
            Ok(State::Made) => Ok(()),
            Ok(State::UnderWay | State::Failed) | Err(_) => {
                Err(self.made.lock().take().and_then(Result::err).unwrap_or(ConnectError::Shared))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::sync::oneshot;

    use super::super::room::drive;
    use super::*;

    fn life() -> Life {
        Life::forever()
    }

    async fn connected() -> Made {
        let (near, _far) = tokio::io::duplex(4096);
        let begun = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(near)).await;
        begun.map(|(sender, connection)| (sender, drive(connection).1)).map_err(ConnectError::Http)
    }

    #[tokio::test]
    async fn who_gives_up_takes_nothing_from_those_who_wait() {
        let (open, opened) = oneshot::channel();
        let dial = Dial::begin(life(), async move {
            opened.await.unwrap();
            connected().await
        });
        let (first, second) = (dial.ride(), dial.ride());
        assert!(tokio::time::timeout(Duration::from_millis(5), first.ended()).await.is_err());
        assert_eq!((dial.riders(), dial.is_over()), (1, false));
        open.send(()).unwrap();
        second.ended().await.unwrap();
        assert!(dial.is_over() && dial.riders() == 0 && dial.take().is_some());
    }

    #[tokio::test]
    async fn one_of_those_who_wait_is_told_why_there_is_no_connection() {
        let dial = Dial::begin(life(), async { Err(ConnectError::Timeout) });
        let ends = [dial.ride().ended().await, dial.ride().ended().await];
        assert!(matches!(ends, [Err(ConnectError::Timeout), Err(ConnectError::Shared)]), "{ends:?}");
        assert!(dial.is_over() && dial.take().is_none());
    }
}
