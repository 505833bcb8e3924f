//! The loop of a keeper that leads: one thread that polls its signals, its worker's socket, those who wait for their turn, and timers. It does what
//! [`Supervisor`] decides about the worker and [`Succession`] about the lead.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;

use super::heirs::{self, Heirs};
use super::lock::InstanceLock;
use super::packet;
use super::process::{self, Leaving, Line, Worker, WorkerCommand, start_worker};
use super::store::{Held, Message, Store};
use super::succession::{self, HeirId, Succession};
use super::supervisor::{Action, Event, Supervisor};

/// What a leader starts with.
#[derive(Debug)]
pub struct Inheritance {
    /// Makes it the only one.
    pub lock: InstanceLock,
    /// What the one before held.
    pub store: Store,
    /// Pods that have led.
    pub past: BTreeSet<String>,
    /// Who waits to hear that the lead is taken.
    pub offered_by: Option<OwnedFd>,
    /// How long clients may wait for the first worker.
    pub hold: Option<Duration>,
}

/// How it ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// For good, with a status.
    Exit(i32),
    /// Another keeper leads.
    Succeeded {
        /// And this one was told to stop.
        stopping: bool,
    },
    /// The one before goes on.
    BackedOut,
}

/// Leads. Workers that are followed by another keeper's go into `leaving`.
pub fn lead(
    command: &WorkerCommand,
    line: Option<&Line>,
    inheritance: Inheritance,
    signals: &SignalFd,
    leaving: &mut Leaving,
) -> io::Result<End> {
    let Inheritance { lock, store, past, offered_by, hold } = inheritance;
    let heirs = line.map(|line| Heirs::listen(&line.run_dir)).transpose()?;
    let supervisor = Supervisor::inheriting(Duration::ZERO, command.grace, hold.filter(|_| store.has_perishable()));
    let mut leader = Loop {
        command,
        start: Instant::now(),
        supervisor,
        store,
        worker: None,
        line: line.zip(heirs).map(|(line, heirs)| InLine {
            line,
            heirs,
            succession: Succession::new(&line.pod, past),
            offered_by,
        }),
        lock,
        leaving,
        yielded: false,
        turns: Vec::new(),
    };
    leader.run(signals)
}

struct InLine<'a> {
    line: &'a Line,
    heirs: Heirs,
    succession: Succession,
    offered_by: Option<OwnedFd>,
}

struct Loop<'a> {
    command: &'a WorkerCommand,
    start: Instant,
    supervisor: Supervisor,
    store: Store,
    worker: Option<Worker>,
    line: Option<InLine<'a>>,
    lock: InstanceLock,
    leaving: &'a mut Leaving,
    /// The worker has said so.
    yielded: bool,
    /// What is to be dealt with about the line.
    turns: Vec<succession::Event>,
}

impl Loop<'_> {
    fn run(&mut self, signals: &SignalFd) -> io::Result<End> {
        let mut events = vec![Event::Tick];
        loop {
            for event in std::mem::take(&mut events) {
                if let Some(end) = self.apply(event) {
                    return Ok(end);
                }
            }
            self.wait(signals)?;
            for signal in process::asked(signals)? {
                match self.line {
                    Some(_) => self.turns.push(succession::Event::Stop),
                    None => events.push(Event::Signal(signal)),
                }
            }
            if self.serve_store() {
                events.push(Event::Listed);
            }
            if self.is_called_back() {
                return self.back_out();
            }
            if let Some(InLine { line, heirs, succession, .. }) = &mut self.line {
                let past: Vec<String> = succession.past().iter().cloned().collect();
                self.turns.extend(heirs.serve(&line.pod, &past, &self.store));
            }
            if let Some(status) = self.reap()? {
                match self.line.as_ref().is_some_and(|line| line.succession.is_handing_over()) {
                    true => self.turns.push(succession::Event::WorkerGone),
                    false => events.push(Event::Exited(status)),
                }
            }
            self.leaving.look();
            self.turns.push(succession::Event::Tick);
            for turn in std::mem::take(&mut self.turns) {
                if let Some(end) = self.turn(turn) {
                    return Ok(end);
                }
            }
            events.push(Event::Tick);
        }
    }

    /// Runs an event through the supervisor and does what it says.
    fn apply(&mut self, event: Event) -> Option<End> {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            if event == Event::Listed {
                self.taken();
            }
            for action in self.supervisor.apply(event, self.start.elapsed()) {
                match action {
                    Action::Spawn => events.push(self.spawn()),
                    Action::Forward(signal) => self.signal(signal),
                    Action::Kill => {
                        tracing::error!("the worker did not end in time: killing it");
                        self.signal(libc::SIGKILL);
                    }
                    Action::Perish => self.perish(),
                    Action::Exit(status) => return Some(End::Exit(status)),
                }
            }
        }
        None
    }

    /// The same for who leads.
    fn turn(&mut self, event: succession::Event) -> Option<End> {
        use succession::Action as Turn;
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let now = self.start.elapsed();
            for action in self.line.as_mut()?.succession.apply(event, now) {
                match action {
                    Turn::Yield => match &self.worker {
                        Some(worker) => {
                            tracing::info!("another agent is there: the worker lets go of the node");
                            worker.signal(process::YIELD);
                        }
                        None => events.push(succession::Event::WorkerGone),
                    },
                    Turn::KillWorker => {
                        tracing::error!("the worker does not let go of the node: killing it");
                        self.signal(libc::SIGKILL);
                    }
                    Turn::Offer(id) => events.extend(self.offer(id)),
                    Turn::TakeBack(id) => self.take_back(id),
                    Turn::Succeed => {
                        tracing::info!("another agent has followed");
                        let line = self.line.as_ref()?;
                        if let Some(worker) = self.worker.take() {
                            self.leaving.add(worker, line.line.grace);
                        }
                        return Some(End::Succeeded { stopping: line.succession.is_stopping() });
                    }
                    Turn::StopAlone => {
                        if let Some(end) = self.apply(Event::Signal(libc::SIGTERM)) {
                            return Some(end);
                        }
                    }
                }
            }
        }
        None
    }

    fn offer(&mut self, id: HeirId) -> Option<succession::Event> {
        let line = self.line.as_mut()?;
        let take = Message::Take { past: line.succession.past().iter().cloned().collect() };
        let offered = line.heirs.tell(id, &take, &[self.lock.as_fd()]);
        let error = offered.err()?;
        tracing::warn!(%error, "cannot give the lead to another agent");
        line.heirs.drop_heir(id);
        Some(succession::Event::Left(id))
    }

    fn take_back(&mut self, id: Option<HeirId>) {
        tracing::error!("the other agent did not follow: going on");
        if let Some(line) = &mut self.line {
            if let Some(id) = id {
                let _ = line.heirs.tell(id, &Message::Back, &[]);
                line.heirs.drop_heir(id);
            }
            if let Err(error) = line.heirs.listen_again(&line.line.run_dir) {
                tracing::error!(%error, "no agent can follow this one: cannot listen for any");
            }
            if let Some(worker) = self.worker.take() {
                // One that has not let go would be in the way of the next.
                if !self.yielded {
                    worker.signal(Signal::SIGKILL);
                }
                self.leaving.add(worker, line.line.grace);
            }
        }
        self.yielded = false;
        self.supervisor.renew(self.start.elapsed());
    }

    /// The worker accepts: whoever offered the lead may let go of it.
    fn taken(&mut self) {
        let Some(offered_by) = self.line.as_mut().and_then(|line| line.offered_by.take()) else { return };
        if let Err(error) = heirs::send(&offered_by, &Message::Taken, &[]) {
            tracing::info!(%error, "who led before is gone");
        }
    }

    /// Whether who offered the lead wants it back. If that one is gone the lead is ours without a word.
    fn is_called_back(&mut self) -> bool {
        let Some(line) = &mut self.line else { return false };
        let Some(offered_by) = &line.offered_by else { return false };
        match packet::receive(offered_by.as_fd()) {
            Ok(Some(packet)) => matches!(Message::decode(&packet.bytes), Ok(Message::Back)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Ok(None) | Err(_) => {
                line.offered_by = None;
                false
            }
        }
    }

    fn back_out(&mut self) -> io::Result<End> {
        tracing::error!("took too long to follow another agent, which goes on");
        if let Some(worker) = self.worker.take() {
            worker.signal(Signal::SIGKILL);
            nix::sys::wait::waitpid(worker.pid, None)?;
        }
        Ok(End::BackedOut)
    }

    fn perish(&mut self) {
        let closed = self.store.perish();
        if closed > 0 {
            tracing::warn!(sockets = closed, "no worker came back in time: closed the listening sockets");
        }
        self.mirror(&Message::Perish, &[]);
    }

    fn mirror(&mut self, message: &Message, fds: &[std::os::fd::BorrowedFd<'_>]) {
        if let Some(line) = &mut self.line {
            self.turns.extend(line.heirs.mirror(message, fds));
        }
    }

    fn wait(&self, signals: &SignalFd) -> io::Result<()> {
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if let Some(socket) = self.worker.as_ref().and_then(|worker| worker.socket.as_ref()) {
            fds.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        }
        let now = self.start.elapsed();
        let mut due = vec![self.supervisor.next_due().map(|due| due.saturating_sub(now)), self.leaving.next_due()];
        if let Some(line) = &self.line {
            fds.extend(line.heirs.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            fds.extend(line.offered_by.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
            due.push(line.succession.next_due().map(|due| due.saturating_sub(now)));
        }
        process::wait_for(&mut fds, due.into_iter().flatten().min())
    }

    fn spawn(&mut self) -> Event {
        let follows = self.line.as_ref().is_some_and(|line| line.offered_by.is_some());
        match start_worker(self.command, follows) {
            Ok(worker) => {
                tracing::info!(pid = worker.pid.as_raw(), "worker started");
                (self.worker, self.yielded) = (Some(worker), false);
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
        let Some(status) = worker.reap()? else { return Ok(None) };
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
        let mut listed = false;
        while let Some(socket) = self.worker.as_mut().and_then(|worker| worker.socket.take()) {
            let served = self.serve_one(&socket);
            let Some(worker) = &mut self.worker else { return listed };
            match served {
                Ok(Served::HungUp) => return listed,
                Ok(Served::Nothing) => {
                    worker.socket = Some(socket);
                    return listed;
                }
                Ok(Served::Request) => {}
                Ok(Served::List) => listed = true,
                Ok(Served::Yielded) => {
                    self.yielded = true;
                    self.turns.push(succession::Event::Yielded);
                }
                Err(error) => {
                    // A worker that cannot talk to its keeper cannot be replaced without loss later: replace it now.
                    tracing::error!(%error, "lost the worker's socket: killing the worker");
                    worker.signal(Signal::SIGKILL);
                    return listed;
                }
            }
            if let Some(worker) = &mut self.worker {
                worker.socket = Some(socket);
            }
        }
        listed
    }

    fn serve_one(&mut self, socket: &OwnedFd) -> io::Result<Served> {
        let packet = match packet::receive(socket.as_fd()) {
            Ok(Some(packet)) => packet,
            Ok(None) => return Ok(Served::HungUp),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Served::Nothing),
            // The worker died with unread answers.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Served::HungUp),
            Err(error) => return Err(error),
        };
        let reply = |message: Message| process::reply(socket, &message, &[]);
        if packet.truncated {
            reply(Message::Refused { why: "the packet was cut: too few free descriptors in the keeper".to_owned() })?;
            return Ok(Served::Request);
        }
        match Message::decode(&packet.bytes)? {
            Message::Put { key, lasting, meta } => {
                let held = Held::new(meta.clone(), lasting, packet.fds);
                self.mirror(&Message::Put { key: key.clone(), lasting, meta }, &held.fds());
                match self.store.put(key, held) {
                    Ok(()) => reply(Message::Done)?,
                    Err(why) => reply(Message::Refused { why: why.to_owned() })?,
                }
            }
            Message::Remove { key } => {
                self.store.remove(&key);
                self.mirror(&Message::Remove { key }, &[]);
                reply(Message::Done)?;
            }
            Message::List => {
                for (key, held) in self.store.entries() {
                    let lasting = held.lasting.len() as u8;
                    let message = Message::Held { key: key.to_owned(), lasting, meta: held.meta.clone() };
                    process::reply(socket, &message, &held.fds())?;
                }
                reply(Message::Done)?;
                return Ok(Served::List);
            }
            Message::Yielded => {
                reply(Message::Done)?;
                return Ok(Served::Yielded);
            }
            other => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("no request of a worker: {other:?}")));
            }
        }
        Ok(Served::Request)
    }
}

enum Served {
    Nothing,
    HungUp,
    Request,
    List,
    Yielded,
}
