//! The worker's side of the keeper: put, remove and list what must survive the worker.
//!
//! Calls block for the answer, which a keeper gives at once; callers on an async runtime use a blocking thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use parking_lot::Mutex;

use super::packet;
use super::store::{Held, Message};

/// The environment variable that names the worker's end of the socketpair.
pub const KEEPER_FD: &str = "UNDERMESH_KEEPER_FD";
/// The environment variable that says that another worker goes on accepting until this one lists what is held.
pub const FOLLOWS: &str = "UNDERMESH_FOLLOWS";
/// A keeper answers in microseconds; one that needs longer than this is gone or stopped.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection to the keeper, or none: a worker started by hand holds everything itself.
#[derive(Debug, Default)]
pub struct Keeper {
    // A short critical section: one packet out, its answer in.
    socket: Option<Mutex<OwnedFd>>,
    /// What is held is another worker's affair.
    yielded: AtomicBool,
    follows: bool,
}

impl Keeper {
    /// A worker without keeper: nothing survives it.
    pub fn none() -> Self {
        Keeper::default()
    }

    /// The keeper that started this process, by the environment. Call it once, before other descriptors are opened.
    pub fn from_environment() -> io::Result<Self> {
        let Some(number) = std::env::var_os(KEEPER_FD) else { return Ok(Keeper::none()) };
        let wrong = || io::Error::new(io::ErrorKind::InvalidInput, format!("{KEEPER_FD} does not name a socket"));
        let number: RawFd =
            number.to_str().and_then(|text| text.parse().ok()).filter(|fd| *fd > 2).ok_or_else(wrong)?;
        // SAFETY: only probes whether the number is open.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
            return Err(wrong());
        }
        // SAFETY: the keeper opened this number for us before exec and nothing else in this process knows of it.
        let keeper = Keeper::over(unsafe { OwnedFd::from_raw_fd(number) })?;
        Ok(Keeper { follows: std::env::var_os(FOLLOWS).is_some(), ..keeper })
    }

    /// A keeper at the other end of `socket`.
    pub fn over(socket: OwnedFd) -> io::Result<Self> {
        let patience = TimeVal::new(PATIENCE.as_secs() as i64, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
        setsockopt(&socket, sockopt::SendTimeout, &patience)?;
        Ok(Keeper { socket: Some(Mutex::new(socket)), ..Keeper::default() })
    }

    /// Whether there is a keeper.
    pub fn is_present(&self) -> bool {
        self.socket.is_some()
    }

    /// Whether another worker serves the pods until this one lists what is held.
    pub fn follows(&self) -> bool {
        self.follows
    }

    /// Has descriptors held under `key`, in place of what was held there. `lasting` ones outlive a missing worker, `perishable` ones
    /// only for [`super::supervisor::HOLD`].
    pub fn put(
        &self,
        key: &str,
        meta: &[u8],
        lasting: &[BorrowedFd<'_>],
        perishable: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let lasting_count = u8::try_from(lasting.len()).map_err(|_| io::Error::other("too many descriptors"))?;
        let message = Message::Put { key: key.to_owned(), lasting: lasting_count, meta: meta.to_vec() };
        self.request(&message, &[lasting, perishable].concat())
    }

    /// Has the descriptors under `key` closed.
    pub fn remove(&self, key: &str) -> io::Result<()> {
        self.request(&Message::Remove { key: key.to_owned() }, &[])
    }

    /// Everything held. From this call on the worker accepts from the listening sockets.
    pub fn list(&self) -> io::Result<Vec<(String, Held)>> {
        let Some(socket) = &self.socket else { return Ok(Vec::new()) };
        let socket = socket.lock();
        packet::send(socket.as_fd(), &Message::List.encode(), &[])?;
        let mut entries = Vec::new();
        loop {
            match answer(socket.as_fd())? {
                (Message::Held { key, lasting, meta }, fds) => entries.push((key, Held::new(meta, lasting, fds))),
                (Message::Done, _) => return Ok(entries),
                (other, _) => return Err(unexpected(&other)),
            }
        }
    }

    /// Says that this worker has let go of what only one may have. From now on nothing is put or removed.
    pub fn yielded(&self) -> io::Result<()> {
        let said = self.request(&Message::Yielded, &[]);
        self.yielded.store(true, Ordering::Relaxed);
        said
    }

    fn request(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let Some(socket) = self.socket.as_ref().filter(|_| !self.yielded.load(Ordering::Relaxed)) else {
            return Ok(());
        };
        let socket = socket.lock();
        packet::send(socket.as_fd(), &message.encode(), fds)?;
        match answer(socket.as_fd())? {
            (Message::Done, _) => Ok(()),
            (Message::Refused { why }, _) => Err(io::Error::other(why)),
            (other, _) => Err(unexpected(&other)),
        }
    }
}

fn answer(socket: BorrowedFd<'_>) -> io::Result<(Message, Vec<OwnedFd>)> {
    let packet =
        packet::receive(socket)?.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the keeper is gone"))?;
    if packet.truncated {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the keeper's answer was cut: too few free descriptors",
        ));
    }
    Ok((Message::decode(&packet.bytes)?, packet.fds))
}

fn unexpected(message: &Message) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected answer from the keeper: {message:?}"))
}
