//! The worker as a process: how keepers start it, how they answer it, and those that were told to end and may still take their time. Used by
//! [`super::lead`]; here is also where a keeper begins, alone or in a line with others.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::time::TimeVal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::client::{FOLLOWS, KEEPER_FD};
use super::lead::{self, End, Inheritance};
use super::lock::InstanceLock;
use super::packet;
use super::standby::{self, Turn};
use super::store::{Message, Store};

/// jemalloc's settings, read when a process starts.
const ALLOCATOR: &str = "_RJEM_MALLOC_CONF";
/// What a burst leaves free (start-up, many connections that end) goes back to the system within a second and by a thread of its own. By
/// default that takes ten seconds, and it never happens in a process that then idles. Threads keep small freed blocks only: the large ones are
/// buffers and tasks, and a node's agent is to be small. What is built in is for waypoints: here it is as jemalloc has it.
const ALLOCATOR_SETTINGS: &str = "background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0,tcache_max:1024,\
     tcache_nslots_small_min:20,tcache_nslots_small_max:200,tcache_gc_incr_bytes:65536";
/// Status of a child that could not become a worker (EX_OSERR).
const EXIT_EXEC: i32 = 71;
/// Asks a worker to let go of what only one may have. Ignored until it listens for it.
pub const YIELD: Signal = Signal::SIGUSR1;

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

/// Where keepers of one node stand in line.
#[derive(Clone, Debug)]
pub struct Line {
    /// The folder with the lock and the socket.
    pub run_dir: PathBuf,
    /// Which pod this keeper is of.
    pub pod: String,
    /// How long a worker that another one has followed has before it is killed.
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
pub fn run(command: &WorkerCommand, lock: InstanceLock) -> io::Result<i32> {
    let signals = signals()?;
    let inheritance =
        Inheritance { lock, store: Store::default(), past: BTreeSet::new(), offered_by: None, hold: None };
    match lead::lead(command, None, inheritance, &signals, &mut Leaving::default())? {
        End::Exit(status) => Ok(status),
        End::Succeeded { .. } | End::BackedOut => Ok(0),
    }
}

/// The same as one of several keepers: waits until it is to lead, and waits again when it has given the lead away.
pub fn run_in_line(command: &WorkerCommand, line: &Line) -> io::Result<i32> {
    let signals = signals()?;
    let mut leaving = Leaving::default();
    let status = loop {
        let inheritance = match standby::wait(line, &signals, &mut leaving)? {
            Turn::Lead(inheritance) => inheritance,
            Turn::Exit => break 0,
        };
        match lead::lead(command, Some(line), inheritance, &signals, &mut leaving)? {
            End::Exit(status) => break status,
            End::Succeeded { stopping: true } => break 0,
            End::Succeeded { stopping: false } | End::BackedOut => {}
        }
    };
    leaving.finish(&signals)?;
    Ok(status)
}

fn signals() -> io::Result<SignalFd> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        mask.add(signal);
    }
    mask.thread_block()?;
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// Signals that ask the keeper to stop.
pub fn asked(signals: &SignalFd) -> io::Result<Vec<i32>> {
    let mut asked = Vec::new();
    while let Some(signal) = signals.read_signal()? {
        match Signal::try_from(signal.ssi_signo as i32) {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            Ok(signal) => asked.push(signal as i32),
        }
    }
    Ok(asked)
}

/// Waits until one of the descriptors can be read, or for `left`.
pub fn wait_for(fds: &mut [PollFd<'_>], left: Option<Duration>) -> io::Result<()> {
    // Rounded up, so that a timer is due when the poll returns.
    let timeout = left.map_or(PollTimeout::NONE, |left| {
        PollTimeout::try_from(left.as_millis() as i64 + 1).unwrap_or(PollTimeout::MAX)
    });
    match poll(fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A worker that runs.
#[derive(Debug)]
pub struct Worker {
    /// Not reaped yet, so the number cannot belong to anyone else.
    pub pid: Pid,
    /// None once the worker broke the protocol or hung up.
    pub socket: Option<OwnedFd>,
}

impl Worker {
    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(self.pid, signal);
    }

    /// Its status if it has ended; a signal is 128 plus its number.
    pub fn reap(&self) -> io::Result<Option<i32>> {
        Ok(match waitpid(self.pid, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, status) => Some(status),
            WaitStatus::Signaled(_, signal, _) => Some(128 + signal as i32),
            _ => None,
        })
    }
}

/// Workers that others have followed: they let their connections end.
#[derive(Debug, Default)]
pub struct Leaving(Vec<(Worker, Instant)>);

impl Leaving {
    /// Tells a worker to end within `grace`.
    pub fn add(&mut self, worker: Worker, grace: Duration) {
        worker.signal(Signal::SIGTERM);
        self.0.push((worker, Instant::now() + grace));
    }

    /// Reaps those that have ended and kills those that took too long.
    pub fn look(&mut self) {
        self.0.retain(|(worker, until)| {
            match worker.reap() {
                Ok(None) => {}
                Ok(Some(status)) => {
                    tracing::info!(status, "a worker that another one followed has ended");
                    return false;
                }
                Err(_) => return false,
            }
            if Instant::now() >= *until {
                worker.signal(Signal::SIGKILL);
            }
            true
        });
    }

    /// How long until one takes too long. Never less than a moment: one that was killed may need it.
    pub fn next_due(&self) -> Option<Duration> {
        let next = self.0.iter().map(|(_, until)| *until).min()?;
        Some(next.saturating_duration_since(Instant::now()).max(Duration::from_millis(50)))
    }

    fn finish(&mut self, signals: &SignalFd) -> io::Result<()> {
        loop {
            self.look();
            let Some(left) = self.next_due() else { return Ok(()) };
            wait_for(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], Some(left))?;
            for signal in asked(signals)? {
                tracing::warn!(signal, "asked again: ending connections now");
                self.0.iter().for_each(|(worker, _)| worker.signal(Signal::SIGTERM));
            }
        }
    }
}

/// Sends to a worker that is reading; one that does not read for a second is stuck.
pub fn reply(socket: &OwnedFd, message: &Message, fds: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()> {
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

/// Starts a worker.
pub fn start_worker(command: &WorkerCommand, follows: bool) -> io::Result<Worker> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // The worker's end blocks; its client sets deadlines.
    nix::fcntl::fcntl(&theirs, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))?;
    setsockopt(&ours, sockopt::SendTimeout, &TimeVal::new(1, 0))?;
    let number: RawFd = theirs.as_raw_fd();
    let keeper = std::process::id();
    let mut worker = Command::new(&command.program);
    worker.args(&command.arguments).env(KEEPER_FD, number.to_string());
    if follows {
        worker.env(FOLLOWS, "1");
    }
    if std::env::var_os(ALLOCATOR).is_none() {
        worker.env(ALLOCATOR, ALLOCATOR_SETTINGS);
    }
    // Not Command::spawn: it waits until the child has executed the program, and a child that is stopped or stuck on a slow disk before
    // that would hold the keeper up, with all its clients in the backlogs.
    // SAFETY: the keeper has one thread besides jemalloc's, which takes no locks but jemalloc's own, and those are taken before a fork and given back in the
    // child (`pthread_atfork`); so the child may do whatever its parent might.
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
    // It would end a worker that does not listen for it yet.
    // SAFETY: ignoring a signal installs no code.
    unsafe { nix::sys::signal::signal(YIELD, SigHandler::SigIgn) }?;
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
