//! The keeper's loop: one thread that polls its signals, its worker's socket and one timer, and does what [`Supervisor`] decides.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::time::TimeVal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::client::KEEPER_FD;
use super::packet;
use super::store::{Held, Message, Store};
use super::supervisor::{Action, Event, Supervisor};

/// jemalloc's settings, read when a process starts.
const ALLOCATOR: &str = "_RJEM_MALLOC_CONF";
/// What a burst leaves free (start-up, many connections that end) goes back to the system within a second and by a thread of its own. By
/// default that takes ten seconds, and it never happens in a process that then idles. Threads keep small freed blocks only: the large ones are
/// buffers and tasks, and a node's agent is to be small.
const ALLOCATOR_SETTINGS: &str = "background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0,tcache_max:1024";
/// Status of a child that could not become a worker (EX_OSERR).
const EXIT_EXEC: i32 = 71;

/// How the keeper starts its worker.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// The program; the keeper's own by default.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// How long a stopped worker has before it is killed.
    pub grace: Duration,
}

impl WorkerCommand {
    /// This very program as `worker`, with the same options. `/proc/self/exe` stays right when the file on disk is replaced.
    pub fn same_program(grace: Duration) -> Self {
        let mut arguments = vec![OsString::from("worker")];
        arguments.extend(std::env::args_os().skip(1));
        WorkerCommand { program: "/proc/self/exe".into(), arguments, grace }
    }
}

/// Supervises workers until told to stop or until a worker ends for good; returns the status to exit with.
pub fn run(command: &WorkerCommand) -> io::Result<i32> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        mask.add(signal);
    }
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let start = Instant::now();
    let mut keeper = Loop {
        command,
        start,
        supervisor: Supervisor::new(Duration::ZERO, command.grace),
        store: Store::default(),
        worker: None,
    };
    keeper.run(&signals)
}

struct Worker {
    /// Not reaped yet, so the number cannot belong to anyone else.
    pid: Pid,
    /// None once the worker broke the protocol or hung up.
    socket: Option<OwnedFd>,
}

struct Loop<'a> {
    command: &'a WorkerCommand,
    start: Instant,
    supervisor: Supervisor,
    store: Store,
    worker: Option<Worker>,
}

impl Loop<'_> {
    fn run(&mut self, signals: &SignalFd) -> io::Result<i32> {
        let mut events = vec![Event::Tick];
        loop {
            for event in std::mem::take(&mut events) {
                if let Some(status) = self.apply(event) {
                    return Ok(status);
                }
            }
            self.wait(signals)?;
            while let Some(signal) = signals.read_signal()? {
                events.push(match Signal::try_from(signal.ssi_signo as i32) {
                    Ok(Signal::SIGCHLD) | Err(_) => continue,
                    Ok(signal) => Event::Signal(signal as i32),
                });
            }
            if self.serve_store() {
                events.push(Event::Listed);
            }
            if let Some(status) = self.reap()? {
                events.push(Event::Exited(status));
            }
            events.push(Event::Tick);
        }
    }

    /// Runs an event through the machine and does what it says; a status means the end.
    fn apply(&mut self, event: Event) -> Option<i32> {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.supervisor.apply(event, self.start.elapsed()) {
                match action {
                    Action::Spawn => events.push(self.spawn()),
                    Action::Forward(signal) => self.signal(signal),
                    Action::Kill => {
                        tracing::error!("the worker did not end in time: killing it");
                        self.signal(libc::SIGKILL);
                    }
                    Action::Perish => {
                        let closed = self.store.perish();
                        if closed > 0 {
                            tracing::warn!(
                                sockets = closed,
                                "no worker came back in time: closed the listening sockets"
                            );
                        }
                    }
                    Action::Exit(status) => return Some(status),
                }
            }
        }
        None
    }

    fn wait(&self, signals: &SignalFd) -> io::Result<()> {
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if let Some(socket) = self.worker.as_ref().and_then(|worker| worker.socket.as_ref()) {
            fds.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        }
        let left = self.supervisor.next_due().map(|due| due.saturating_sub(self.start.elapsed()));
        // Rounded up, so that a timer is due when the poll returns.
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left.as_millis() as i64 + 1).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn spawn(&mut self) -> Event {
        match start_worker(self.command) {
            Ok(worker) => {
                tracing::info!(pid = worker.pid.as_raw(), "worker started");
                self.worker = Some(worker);
                Event::Spawned
            }
            Err(error) => {
                tracing::error!(%error, "cannot start the worker");
                Event::SpawnFailed
            }
        }
    }

    fn signal(&self, signal: i32) {
        let signal = Signal::try_from(signal).unwrap_or(Signal::SIGTERM);
        if let Some(worker) = &self.worker {
            let _ = kill(worker.pid, signal);
        }
    }

    fn reap(&mut self) -> io::Result<Option<i32>> {
        let Some(worker) = &self.worker else { return Ok(None) };
        let status = match waitpid(worker.pid, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, status) => status,
            WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
            _ => return Ok(None),
        };
        // What the worker said last still counts.
        self.serve_store();
        self.worker = None;
        if status == 0 {
            tracing::info!("worker ended");
        } else {
            tracing::warn!(status, "worker ended");
        }
        Ok(Some(status))
    }

    /// Answers what the worker asked; true if it listed (and so adopted) what is held.
    fn serve_store(&mut self) -> bool {
        let Some(worker) = &mut self.worker else { return false };
        let mut listed = false;
        while let Some(socket) = &worker.socket {
            match serve_one(socket, &mut self.store) {
                Ok(Served::Nothing) => break,
                Ok(Served::Request) => {}
                Ok(Served::List) => listed = true,
                Ok(Served::HungUp) => worker.socket = None,
                Err(error) => {
                    // A worker that cannot talk to its keeper cannot be replaced without loss later: replace it now.
                    tracing::error!(%error, "lost the worker's socket: killing the worker");
                    let _ = kill(worker.pid, Signal::SIGKILL);
                    worker.socket = None;
                }
            }
        }
        listed
    }
}

enum Served {
    Nothing,
    HungUp,
    Request,
    List,
}

fn serve_one(socket: &OwnedFd, store: &mut Store) -> io::Result<Served> {
    let packet = match packet::receive(socket.as_fd()) {
        Ok(Some(packet)) => packet,
        Ok(None) => return Ok(Served::HungUp),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Served::Nothing),
        // The worker died with unread answers.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Served::HungUp),
        Err(error) => return Err(error),
    };
    let reply = |message: Message| reply(socket, &message, &[]);
    if packet.truncated {
        reply(Message::Refused { why: "the packet was cut: too few free descriptors in the keeper".to_owned() })?;
        return Ok(Served::Request);
    }
    match Message::decode(&packet.bytes)? {
        Message::Put { key, lasting, meta } => match store.put(key, Held::new(meta, lasting, packet.fds)) {
            Ok(()) => reply(Message::Done)?,
            Err(why) => reply(Message::Refused { why: why.to_owned() })?,
        },
        Message::Remove { key } => {
            store.remove(&key);
            reply(Message::Done)?;
        }
        Message::List => {
            for (key, held) in store.entries() {
                let lasting = held.lasting.len() as u8;
                let message = Message::Held { key: key.to_owned(), lasting, meta: held.meta.clone() };
                self::reply(socket, &message, &held.fds())?;
            }
            reply(Message::Done)?;
            return Ok(Served::List);
        }
        Message::Held { .. } | Message::Done | Message::Refused { .. } => {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer where a request belongs"));
        }
    }
    Ok(Served::Request)
}

/// Sends to a worker that is reading; one that does not read for a second is stuck.
fn reply(socket: &OwnedFd, message: &Message, fds: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = message.encode();
    loop {
        match packet::send(socket.as_fd(), &bytes, fds) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut writable = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut writable, 1000u16)? == 0 {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the worker does not read its answers"));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            result => return result,
        }
    }
}

fn start_worker(command: &WorkerCommand) -> io::Result<Worker> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // The worker's end blocks; its client sets deadlines.
    nix::fcntl::fcntl(&theirs, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))?;
    setsockopt(&ours, sockopt::SendTimeout, &TimeVal::new(1, 0))?;
    let number: RawFd = theirs.as_raw_fd();
    let keeper = std::process::id();
    let mut worker = Command::new(&command.program);
    worker.args(&command.arguments).env(KEEPER_FD, number.to_string());
    if std::env::var_os(ALLOCATOR).is_none() {
        worker.env(ALLOCATOR, ALLOCATOR_SETTINGS);
    }
    // Not Command::spawn: it waits until the child has executed the program, and a child that is stopped or stuck on a slow disk before
    // that would hold the keeper up, with all its clients in the backlogs.
    // SAFETY: the keeper has one thread, so the child may do whatever its parent might.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Worker { pid: child, socket: Some(ours) }),
        ForkResult::Child => {
            let error = prepare_worker(number, keeper).err().unwrap_or_else(|| worker.exec());
            // Nobody may read it, and a macro that panics would unwind into the keeper's own work.
            let _ = writeln!(io::stderr(), "mesh-agent: cannot execute the worker: {error}");
            // SAFETY: ends the child at once, without running what the keeper meant for its own end.
            unsafe { libc::_exit(EXIT_EXEC) }
        }
    }
}

/// In the child: die with the keeper, take signals again, keep the socket and nothing else of the keeper's.
fn prepare_worker(socket: RawFd, keeper: u32) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getppid().as_raw() as u32 != keeper {
        return Err(io::Error::other("the keeper died"));
    }
    SigSet::empty().thread_set_mask()?;
    // Executing the program would close the sockets that the keeper holds too, but it may take long, and as long as this copy is open the
    // keeper cannot give them up.
    for (first, last) in [(3, socket as u32 - 1), (socket as u32 + 1, u32::MAX)] {
        // SAFETY: closes descriptors of this child that nothing in it uses.
        if first <= last && unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: changes a flag of a descriptor that the parent opened for this child.
    if unsafe { libc::fcntl(socket, libc::F_SETFD, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
