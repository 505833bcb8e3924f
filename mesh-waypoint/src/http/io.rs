//! The byte stream below HTTP: gives back what was read to find out what is spoken, notes when something was heard, shows hyper no byte that `guard` refuses,
//! and ends in order.

use std::any::Any;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use mesh_runtime::ticks;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::calm::{Calm, TOO_MANY};
use super::guard::{Bad, Guard};
use super::paced::Bodies;

/// How long the other end may take to end its direction after we have ended ours.
const LINGER: Duration = Duration::from_secs(2);
/// Of a body that is waited for so many bytes buy the whole time again: less and somebody keeps a connection, and an endpoint's, with a byte now and then.
pub(super) const LEAST: u64 = 4 * 1024;
/// What hyper reads in place of a head that is refused: no head has a NUL, so it answers 400 and closes. The empty line makes it look.
const NO_HEAD: &[u8] = b"\0\r\n\r\n";

/// In place of a time: there is none.
const NEVER: u64 = u64::MAX;

/// What a connection does, for its deadlines. Written by one thread.
#[derive(Debug)]
pub struct Watch {
    began_ms: u64,
    /// Requests that are not answered yet.
    requests: AtomicU32,
    /// Something was heard since the last request.
    heard: AtomicBool,
    /// When the connection began to wait, in milliseconds since it began; [`NEVER`] before anything was heard.
    since: AtomicU64,
    /// Nothing has come of a body that was announced: there is no reason to wait for it for as long as for one that comes.
    awaited: AtomicBool,
    /// How the client's body comes, in the same measure.
    pace: Pace,
    /// The same of HTTP/2, for each stream.
    bodies: Mutex<Bodies>,
    /// Bytes that may be read before an answer's head ends; see [`Watch::await_head`].
    head: AtomicUsize,
    /// For what no more is read.
    broken: OnceLock<Broken>,
}

/// What a client sent for which no more is read of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// What `guard` refuses.
    Bytes(Bad),
    /// What `calm` does.
    Frames,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            began_ms: ticks::now_ms(),
            requests: AtomicU32::new(0),
            heard: AtomicBool::new(false),
            since: AtomicU64::new(NEVER),
            awaited: AtomicBool::new(false),
            pace: Pace::default(),
            bodies: Mutex::default(),
            head: AtomicUsize::new(usize::MAX),
            broken: OnceLock::new(),
        }
    }
}

/// How long a client has let us wait for a body. What the endpoint takes its time for does not count: then nobody reads.
#[derive(Debug, Default)]
struct Pace {
    /// Since when it does, and one more; 0: it does not.
    since: AtomicU64,
    /// How long it has before, for the bytes below.
    waited: AtomicU64,
    /// What came meanwhile.
    bytes: AtomicU64,
}

impl Pace {
    /// A body begins, or none.
    fn begin(&self) {
        for of in [&self.since, &self.waited, &self.bytes] {
            of.store(0, Relaxed);
        }
    }

    /// Nothing is there.
    fn stall(&self, now: u64) {
        if self.since.load(Relaxed) == 0 {
            self.since.store(now + 1, Relaxed);
        }
    }

    /// Something has come. The time is asked for only if it was waited for.
    fn hear(&self, bytes: u64, now: impl FnOnce() -> u64) {
        let since = self.since.load(Relaxed);
        if since == 0 && self.waited.load(Relaxed) == 0 {
            return;
        }
        let bytes = self.bytes.load(Relaxed).saturating_add(bytes);
        if bytes >= LEAST {
            return self.begin();
        }
        if since > 0 {
            self.waited.store(self.waited(now()), Relaxed);
            self.since.store(0, Relaxed);
        }
        self.bytes.store(bytes, Relaxed);
    }

    /// Whether we wait for the client now.
    fn is_waited_for(&self) -> bool {
        self.since.load(Relaxed) > 0
    }

    /// How long we have waited for the last few bytes, in milliseconds.
    fn waited(&self, now: u64) -> u64 {
        let since = self.since.load(Relaxed);
        let still = since.checked_sub(1).map_or(0, |since| now.saturating_sub(since));
        self.waited.load(Relaxed).saturating_add(still)
    }
}

impl Watch {
    fn now(&self) -> u64 {
        ticks::now_ms().wrapping_sub(self.began_ms)
    }

    /// What no more is read for, if the client has sent such a thing.
    pub fn broken(&self) -> Option<Broken> {
        self.broken.get().copied()
    }

    /// Of an endpoint: from now on so many bytes may come before the head of its answer ends. `1xx` heads count: there may be any number of them.
    pub fn await_head(&self, bytes: usize) {
        self.head.store(bytes, Relaxed);
    }

    /// The head is here.
    pub fn has_head(&self) {
        self.head.store(usize::MAX, Relaxed);
    }

    /// Nothing of a stream's body is there; `at` is where it is noted. False: the stream is too slow.
    pub fn stall(&self, at: &mut Option<usize>, waker: &Waker) -> bool {
        let noted = self.bodies.lock().stall(*at, waker, self.now());
        *at = noted.or(*at);
        noted.is_some()
    }

    /// So much of a stream's body has come that was waited for.
    pub fn hear_of(&self, at: usize, bytes: usize) {
        self.bodies.lock().hear(at, bytes as u64, self.now());
    }

    /// A stream's body is over.
    pub fn leave(&self, at: usize) {
        self.bodies.lock().leave(at);
    }

    /// Ends streams whose bodies do not go on, or hardly, and says when to look again.
    pub fn look(&self, limit: Duration) -> Duration {
        self.bodies.lock().look(limit, self.now())
    }

    fn spend(&self, bytes: usize) {
        let left = self.head.load(Relaxed);
        if left != usize::MAX {
            self.head.store(left.saturating_sub(bytes), Relaxed);
        }
    }

    fn hear(&self, bytes: usize) {
        self.pace.hear(bytes as u64, || self.now());
        if !self.heard.load(Relaxed) && self.requests.load(Relaxed) == 0 {
            self.since.store(self.now(), Relaxed);
        }
        self.heard.store(true, Relaxed);
    }

    /// A request has come; `announced`: it has said that a body follows at once.
    pub fn begin(&self, announced: bool) {
        self.pace.begin();
        self.awaited.store(announced, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        self.heard.store(false, Relaxed);
    }

    /// Some of its body is here.
    pub fn has_body(&self) {
        self.awaited.store(false, Relaxed);
    }

    /// A request is answered, with all of its body.
    pub fn end(&self) {
        if self.requests.fetch_sub(1, Relaxed) == 1 {
            self.since.store(self.now(), Relaxed);
            self.heard.store(false, Relaxed);
        }
    }

    /// Whether the client has never said anything.
    pub fn is_silent(&self) -> bool {
        self.since.load(Relaxed) == NEVER && self.is_idle() && !self.heard.load(Relaxed)
    }

    /// Whether no request is under way.
    pub fn is_idle(&self) -> bool {
        self.requests.load(Relaxed) == 0
    }

    /// What is left of the time that the connection may wait. With a limit for headers, what is heard between requests is the header of one; without it
    /// that may be anything. For its first byte it may wait for `silent`.
    pub fn left(
        &self,
        silent: Duration,
        header: Option<Duration>,
        body: Duration,
        idle: Duration,
    ) -> Result<Duration, TooSlow> {
        let look = header.unwrap_or(idle).min(idle).min(body);
        let waited = |since: u64| Duration::from_millis(self.now().saturating_sub(since));
        if !self.is_idle() {
            // What has come may be all of it, and then nobody waits for the client.
            let stalled = match self.pace.is_waited_for() {
                true => Duration::from_millis(self.pace.waited(self.now())),
                false => Duration::ZERO,
            };
            // Who does not begin is too slow as one whose head does not end.
            let limit = header.filter(|_| self.awaited.load(Relaxed)).map_or(body, |header| header.min(body));
            return if stalled < limit { Ok(look.min(limit - stalled)) } else { Err(TooSlow::Body) };
        }
        let since = self.since.load(Relaxed);
        let (limit, slow) = match header.filter(|_| self.heard.load(Relaxed)) {
            _ if self.is_silent() && silent < idle => (silent, TooSlow::Silent),
            Some(header) => (header, TooSlow::Header),
            None => (idle, TooSlow::Idle),
        };
        let waited = waited(if since == NEVER { 0 } else { since });
        // A header may begin at any time, and nobody tells.
        limit.checked_sub(waited).filter(|left| !left.is_zero()).map(|left| left.min(look)).ok_or(slow)
    }
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooSlow {
    /// The header of a request does not end.
    Header,
    /// The body of a request does not go on, or hardly.
    Body,
    /// Nothing is asked.
    Idle,
    /// Nothing was ever said.
    Silent,
}

/// See the module. Dropped before it was shut down, it aborts as the stream below does.
#[derive(Debug)]
pub struct Io<S: AsyncRead + Unpin + Send + 'static> {
    prefix: Bytes,
    inner: Option<S>,
    watch: Arc<Watch>,
    guard: Option<Guard>,
    /// The same of HTTP/2.
    calm: Option<Box<Calm>>,
    refused: Option<Refused>,
    shut: bool,
    over: bool,
    held: Option<Box<dyn Any + Send + Sync>>,
}

/// What follows the last byte that was good.
#[derive(Clone, Copy, Debug)]
enum Refused {
    /// What is no head, of which so many bytes were read.
    Head(usize),
    /// The end of the body, and an error.
    Body(Bad),
    /// What is no frame, of which so many bytes were read.
    Frames(usize),
}

impl<S: AsyncRead + Unpin + Send + 'static> Io<S> {
    /// `prefix` was read already.
    pub fn new(inner: S, prefix: Bytes, watch: Arc<Watch>) -> Self {
        if !prefix.is_empty() {
            watch.hear(0);
        }
        Self {
            prefix,
            inner: Some(inner),
            watch,
            guard: None,
            calm: None,
            refused: None,
            shut: false,
            over: false,
            held: None,
        }
    }

    /// Until it is dropped it holds this.
    #[must_use]
    pub fn holding(mut self, held: impl Any + Send + Sync) -> Self {
        self.held = Some(Box::new(held));
        self
    }

    /// Of a client that speaks HTTP/1.1: what could be read in two ways is not read.
    #[must_use]
    pub fn guarded(mut self) -> Self {
        self.guard = Some(Guard::default());
        self
    }

    /// Of a client that speaks HTTP/2: what asks for nothing is counted.
    #[must_use]
    pub fn calmed(mut self) -> Self {
        self.calm = Some(Box::new(Calm::new(self.watch.now())));
        self
    }

    /// Counts what was read since `before`, and takes away what is too much.
    fn count(&mut self, buffer: &mut ReadBuf<'_>, before: usize) -> Poll<io::Result<()>> {
        let Some(calm) = &mut self.calm else { return Poll::Ready(Ok(())) };
        let Err(good) = calm.look(&buffer.filled()[before..], || self.watch.now()) else { return Poll::Ready(Ok(())) };
        let _ = self.watch.broken.set(Broken::Frames);
        buffer.set_filled(before + good);
        let refused = self.refused.insert(Refused::Frames(0));
        Poll::Ready(if good > 0 { Ok(()) } else { refused.read(buffer) })
    }

    /// Looks at what was read since `before`, and takes away what is refused.
    fn look(&mut self, buffer: &mut ReadBuf<'_>, before: usize) -> Option<io::Result<()>> {
        let Some(guard) = &mut self.guard else { return Some(Ok(())) };
        let Err(verdict) = guard.look(&buffer.filled()[before..]) else { return Some(Ok(())) };
        let _ = self.watch.broken.set(Broken::Bytes(verdict.bad));
        buffer.set_filled(before + verdict.good);
        self.refused = Some(if verdict.head { Refused::Head(0) } else { Refused::Body(verdict.bad) });
        // Nothing read means the end, which it is not yet.
        (verdict.good > 0).then_some(Ok(()))
    }
}

impl Refused {
    fn read(&mut self, buffer: &mut ReadBuf<'_>) -> io::Result<()> {
        match self {
            Self::Head(read) => give(NO_HEAD, read, buffer),
            Self::Frames(read) => give(&TOO_MANY, read, buffer),
            Self::Body(bad) => Err(io::Error::new(io::ErrorKind::InvalidData, *bad)),
        }
    }
}

/// What is left of it.
fn give(bytes: &[u8], read: &mut usize, buffer: &mut ReadBuf<'_>) -> io::Result<()> {
    let rest = &bytes[*read..];
    let rest = &rest[..rest.len().min(buffer.remaining())];
    buffer.put_slice(rest);
    *read += rest.len();
    Ok(())
}

fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl<S: AsyncRead + Unpin + Send + 'static> AsyncRead for Io<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(refused) = &mut this.refused {
            return Poll::Ready(refused.read(buffer));
        }
        let before = buffer.filled().len();
        if !this.prefix.is_empty() {
            let length = this.prefix.len().min(buffer.remaining());
            buffer.put_slice(&this.prefix[..length]);
            this.prefix.advance(length);
        } else {
            let inner = this.inner.as_mut().ok_or_else(gone)?;
            if this.watch.head.load(Relaxed) == 0 {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the head of the answer does not end",
                )));
            }
            let Poll::Ready(result) = Pin::new(inner).poll_read(cx, buffer) else {
                if this.guard.as_ref().is_some_and(Guard::in_body) {
                    this.watch.pace.stall(this.watch.now());
                }
                return Poll::Pending;
            };
            let read = buffer.filled().len() - before;
            if result.is_err() || read == 0 {
                this.over = true;
                return Poll::Ready(result);
            }
            this.watch.hear(read);
            this.watch.spend(read);
        }
        if this.calm.is_some() {
            return this.count(buffer, before);
        }
        match this.look(buffer, before) {
            Some(result) => Poll::Ready(result),
            None => Poll::Ready(this.refused.as_mut().map_or(Ok(()), |refused| refused.read(buffer))),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> AsyncWrite for Io<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(self.inner.as_mut().ok_or_else(gone)?).poll_write(cx, bytes));
        if let (Some(calm), Ok(written)) = (&mut self.calm, &written) {
            calm.sent(*written);
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.inner.as_mut().ok_or_else(gone)?).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(self.inner.as_mut().ok_or_else(gone)?).poll_shutdown(cx));
        self.shut = result.is_ok();
        Poll::Ready(result)
    }
}

impl<S: AsyncRead + Unpin + Send + 'static> Drop for Io<S> {
    fn drop(&mut self) {
        // What was sent is complete. Dropped at once the stream would be reset, and the client might not read all of it.
        let Some(mut inner) = self.inner.take().filter(|_| self.shut && !self.over) else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let mut rest = [0; 1024];
                let end = async { while matches!(inner.read(&mut rest).await, Ok(1..)) {} };
                let _ = tokio::time::timeout(LINGER, end).await;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardening_B164_a_body_has_to_come_at_some_rate() {
        // (so many bytes every so many milliseconds, for so many of them, waited at the end)
        for (bytes, every, length, expected) in [
            (0, 1000, 300_000, 300_000),
            (1, 1000, 300_000, 300_000),
            (1, 299_000, 300_000, 300_000),
            (LEAST / 2, 100_000, 300_000, 100_000),
            (LEAST, 100_000, 300_000, 0),
        ] {
            let pace = Pace::default();
            let mut now = 0;
            pace.stall(now);
            while now + every <= length {
                now += every;
                pace.hear(bytes, || now);
                pace.stall(now);
                pace.stall(now);
            }
            assert_eq!(pace.waited(length), expected, "{bytes} {every}");
            pace.begin();
            assert_eq!(pace.waited(length), 0, "the next request has a body of its own");
        }
        // An endpoint that reads slowly is no fault of the client's: nobody waits for the client meanwhile.
        let pace = Pace::default();
        for now in [0, 100_000, 200_000, 300_000] {
            pace.stall(now);
            pace.hear(1, || now + 1000);
        }
        assert_eq!(pace.waited(400_000), 4000);
        assert!(!pace.is_waited_for());
    }

    #[test]
    fn a_connection_may_wait_long_for_a_request_and_not_long_for_its_end() {
        let (header, body, idle) = (Duration::from_secs(10), Duration::from_secs(300), Duration::from_secs(3600));
        let silent = Duration::from_secs(20);
        let watch = |waited: u64, heard: bool, requests: u32| Watch {
            // The machine may have started after that.
            began_ms: ticks::now_ms().wrapping_sub(waited * 1000),
            requests: AtomicU32::new(requests),
            heard: AtomicBool::new(heard),
            since: AtomicU64::new(0),
            ..Watch::default()
        };
        // (seconds, heard, requests, expected)
        for (waited, heard, requests, expected) in [
            (0, false, 0, None),
            (11, false, 0, None),
            (3600, false, 0, Some(TooSlow::Idle)),
            (9, true, 0, None),
            (10, true, 0, Some(TooSlow::Header)),
            (4000, true, 1, None),
        ] {
            let left = watch(waited, heard, requests).left(silent, Some(header), body, idle);
            assert_eq!(left.err(), expected, "{waited} {heard} {requests}");
        }
        // In HTTP/2 a ping is heard as well.
        assert!(watch(100, true, 0).left(silent, None, body, idle).is_ok());
        assert_eq!(watch(3600, true, 0).left(silent, None, body, idle), Err(TooSlow::Idle));
        let stalled = watch(300, false, 1);
        assert!(stalled.left(silent, Some(header), body, idle).is_ok(), "an endpoint may take its time");
        stalled.pace.stall(0);
        assert_eq!(stalled.left(silent, Some(header), body, idle), Err(TooSlow::Body));
        // (announced, some of it is here, seconds, expected)
        for (announced, begun, waited, expected) in [
            (true, false, 9, None),
            (true, false, 10, Some(TooSlow::Body)),
            (true, true, 299, None),
            (true, true, 300, Some(TooSlow::Body)),
            (false, false, 299, None),
        ] {
            let watch = watch(waited, false, 0);
            watch.begin(announced);
            if begun {
                watch.has_body();
            }
            watch.pace.stall(0);
            let left = watch.left(silent, Some(header), body, idle);
            assert_eq!(left.err(), expected, "hardening B163: {announced} {begun} {waited}");
        }
        // Who has never said anything need not be waited for as long as who has asked before.
        for header in [Some(header), None] {
            for (waited, silent, expected) in [
                (19, silent, None),
                (20, silent, Some(TooSlow::Silent)),
                (20, idle, None),
                (3600, idle, Some(TooSlow::Idle)),
            ] {
                let watch = watch(waited, false, 0);
                watch.since.store(NEVER, Relaxed);
                assert_eq!(watch.left(silent, header, body, idle).err(), expected, "{waited} {silent:?}");
            }
        }
        let watch = watch(100, false, 0);
        watch.since.store(NEVER, Relaxed);
        watch.hear(1);
        assert!(watch.left(silent, Some(header), body, idle).is_ok(), "the header begins when its first byte is heard");
    }
}
