//! Looks at sockets over the network: what the kernel knows of them is counted where their owner says (`mesh_runtime::paths`).
//!
//! ```text
//!  tunnel: its driver, at each PING and at its end ─┐
//!  plain socket: Watch, from time to time           ├─ Leg::look ── what is new since the last look ──> PathCounters
//!                Measured, when it is dropped       ┘
//! ```
//! A socket's counters say what this end has sent; what the other end has sent it counts itself. Nothing here is on the way of a byte.

use std::sync::{Arc, Weak};

use mesh_runtime::paths::PathCounters;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::socket::{Armed, TcpInfo};

/// Where one connection is counted, and what of it was.
#[derive(Debug)]
pub(crate) struct Leg {
    counters: Arc<PathCounters>,
    /// The last look. Locked for one system call that does not wait, so that two looks never count the same.
    counted: Mutex<Option<TcpInfo>>,
}

impl Leg {
    pub(crate) fn new(counters: Arc<PathCounters>) -> Self {
        Self { counters, counted: Mutex::new(None) }
    }

    /// Counts what has happened since the last look.
    pub(crate) fn look(&self, socket: &TcpStream) {
        let mut counted = self.counted.lock();
        if let Some(now) = TcpInfo::of(socket) {
            self.counters.add(&now.since(counted.as_ref()));
            *counted = Some(now);
        }
    }
}

/// A socket over the network that is counted whenever somebody looks, and when it is dropped.
#[derive(Debug)]
pub struct Measured(Arc<Inner>);

/// Looks at a [`Measured`] socket as long as there is one, and does not keep it.
#[derive(Debug, Clone)]
pub struct Watch(Weak<Inner>);

#[derive(Debug)]
struct Inner {
    leg: Leg,
    socket: Armed,
}

impl Measured {
    /// Counts `socket` from its beginning.
    pub fn new(socket: Armed, counters: Arc<PathCounters>) -> Self {
        Self(Arc::new(Inner { leg: Leg::new(counters), socket }))
    }

    /// To look at it while somebody else has it.
    pub fn watch(&self) -> Watch {
        Watch(Arc::downgrade(&self.0))
    }
}

impl AsRef<Armed> for Measured {
    fn as_ref(&self) -> &Armed {
        &self.0.socket
    }
}

impl Watch {
    /// Counts what has happened since the last look.
    pub fn look(&self) {
        if let Some(inner) = self.0.upgrade() {
            inner.leg.look(&inner.socket);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.leg.look(&self.socket);
    }
}

#[cfg(test)]
#[expect(non_snake_case, reason = "tests carry the ids of their rows")]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn features_TM_13_what_was_counted_while_a_socket_lived_is_not_counted_again_at_its_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let counters = Arc::new(PathCounters::default());
        let measured = Measured::new(Armed::new(socket), counters.clone());
        let (near, watch) = (measured.as_ref(), measured.watch());
        let mut sent = Vec::new();
        for _ in 0..3 {
            near.try_write(b"x").unwrap();
            far.read_exact(&mut [0; 1]).await.unwrap();
            // The answer acknowledges what it answers.
            far.write_all(b"y").await.unwrap();
            near.readable().await.unwrap();
            near.try_read(&mut [0; 1]).unwrap();
            watch.look();
            sent.push(counters.totals().unwrap().sent);
        }
        assert_eq!(sent, [1, 2, 3]);
        let before = counters.totals().unwrap();
        assert_eq!(before.round_trips.iter().sum::<u64>(), 3, "one for each look at something new: {before:?}");
        watch.look();
        assert_eq!(counters.totals(), Some(before), "nothing has happened since");
        near.try_write(b"z").unwrap();
        drop(measured);
        let after = counters.totals().unwrap();
        assert_eq!(after.sent, 4, "and the rest at its end");
        watch.look();
        assert_eq!(counters.totals(), Some(after), "it is gone");
    }
}
