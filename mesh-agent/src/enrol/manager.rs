//! The task that owns [`Machine`] and carries its actions out: one loop, one mailbox, and a set of starts and stops under way.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mesh_core::ArcStr;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::machine::{Action, Counts, Event, Generation, Machine, RequestId, SessionId, Spec};
use super::session::{Code, Failure};

/// Messages that may wait: sessions stop reading from their clients when the manager is behind.
const MAILBOX: usize = 256;
/// How often the operator is told that adopted pods are named by no client.
const ALARM: Duration = Duration::from_secs(60);

/// Starts and stops pods: the kernel, the proxy and DNS behind [`super::node::Node`], a fake in tests.
pub trait Runner: Send + Sync + 'static {
    /// What a start needs beside the pod's description.
    type Payload: Send + 'static;
    /// A pod that runs.
    type Running: Send + 'static;

    /// Captures a pod. When it fails, nothing of the pod is left; if the kernel had it `captured` before, it stays so, closed. `cancel`
    /// says that it is not wanted any more.
    fn start(
        self: Arc<Self>,
        generation: Generation,
        spec: Arc<Spec>,
        payload: Self::Payload,
        captured: bool,
        cancel: CancellationToken,
    ) -> impl Future<Output = Result<Self::Running, Failure>> + Send;

    /// Releases a pod; with `close` it stays captured, and its new connections are refused.
    fn stop(self: Arc<Self>, running: Self::Running, close: bool) -> impl Future<Output = ()> + Send;

    /// Lets a pod's connections end within `limit`; the pod stays captured, for the next agent.
    fn drain(self: Arc<Self>, running: Self::Running, limit: Duration) -> impl Future<Output = ()> + Send;

    /// Has nobody hold the sockets of a pod whose start or stop panicked.
    fn let_go(self: Arc<Self>, uid: ArcStr) -> impl Future<Output = ()> + Send + 'static;

    /// Releases what the kernel has captured under these cookies.
    fn release(self: Arc<Self>, cookies: BTreeSet<u64>) -> impl Future<Output = ()> + Send;

    /// Is told whenever the counts may have changed.
    fn counted(&self, counts: Counts);
}

/// A pod in the admin dump.
#[derive(Clone, Debug, Serialize)]
pub struct PodView {
    /// Kubernetes UID.
    pub uid: ArcStr,
    /// Kubernetes namespace.
    pub namespace: ArcStr,
    /// Pod name.
    pub name: ArcStr,
    /// Service account.
    pub service_account: ArcStr,
    /// Addresses.
    pub ips: Vec<std::net::IpAddr>,
    /// Which start this is.
    pub generation: Generation,
    /// How the kernel names the network namespace.
    pub netns_cookie: u64,
    /// How `/proc` names it.
    pub netns_inode: u64,
}

enum Message<P> {
    Event(Event<P>),
    Ask(RequestId, Event<P>, oneshot::Sender<Result<(), Failure>>),
    View(oneshot::Sender<Vec<PodView>>),
    Spec(ArcStr, oneshot::Sender<Option<Arc<Spec>>>),
    Unnamed(SessionId, oneshot::Sender<Vec<Arc<Spec>>>),
    Drain(Duration, oneshot::Sender<()>),
    Freeze(oneshot::Sender<()>),
}

/// Talks to the manager. Cheap to clone.
pub struct ManagerHandle<P> {
    mailbox: mpsc::Sender<Message<P>>,
    next: Arc<AtomicU64>,
}

impl<P> Clone for ManagerHandle<P> {
    fn clone(&self) -> Self {
        ManagerHandle { mailbox: self.mailbox.clone(), next: self.next.clone() }
    }
}

/// The answer to a request, when it comes.
pub type Answer = oneshot::Receiver<Result<(), Failure>>;

impl<P> ManagerHandle<P> {
    /// A number that no session and no request had before.
    pub fn fresh_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells an event that nobody waits for.
    pub async fn tell(&self, event: Event<P>) {
        // The manager ends only with the process.
        let _ = self.mailbox.send(Message::Event(event)).await;
    }

    /// Makes a request. If the manager is gone the answer never comes and its channel says so.
    pub async fn ask(&self, request: RequestId, event: Event<P>) -> Answer {
        let (reply, answer) = oneshot::channel();
        let _ = self.mailbox.send(Message::Ask(request, event, reply)).await;
        answer
    }

    /// The pods that run.
    pub async fn pods(&self) -> Vec<PodView> {
        let (reply, answer) = oneshot::channel();
        let _ = self.mailbox.send(Message::View(reply)).await;
        answer.await.unwrap_or_default()
    }

    /// From what a pod runs or is started, if it is.
    pub async fn spec(&self, uid: &ArcStr) -> Option<Arc<Spec>> {
        let (reply, answer) = oneshot::channel();
        let _ = self.mailbox.send(Message::Spec(uid.clone(), reply)).await;
        answer.await.ok().flatten()
    }

    /// The pods that a snapshot of this session would let go, if nobody names them before.
    pub async fn unnamed(&self, session: SessionId) -> Vec<Arc<Spec>> {
        let (reply, answer) = oneshot::channel();
        let _ = self.mailbox.send(Message::Unnamed(session, reply)).await;
        answer.await.unwrap_or_default()
    }

    /// Lets all connections end within `limit`. From now on every request is refused.
    pub async fn drain(&self, limit: Duration) {
        let (done, answer) = oneshot::channel();
        let _ = self.mailbox.send(Message::Drain(limit, done)).await;
        let _ = answer.await;
    }

    /// Leaves the pods as they are, for good: another agent says what becomes of them. Returns when nothing is under way any more.
    pub async fn freeze(&self) {
        let (done, answer) = oneshot::channel();
        let _ = self.mailbox.send(Message::Freeze(done)).await;
        let _ = answer.await;
    }

    /// The events of a session: `Opened` now, `Closed` when the guard's session says so.
    pub async fn open_session(&self) -> SessionId {
        let session = self.fresh_id();
        self.tell(Event::Opened { session }).await;
        session
    }
}

struct Live<T> {
    spec: Arc<Spec>,
    cancel: CancellationToken,
    /// None while it starts.
    running: Option<T>,
}

enum Done<T> {
    Started(Generation, Result<T, Failure>),
    Stopped(Generation),
    Released(BTreeSet<u64>),
    Drained,
}

/// What a task does, for tasks that panic.
enum Task {
    Start(Generation, ArcStr),
    Stop(Generation, ArcStr),
    Release(BTreeSet<u64>),
}

/// The owner of all pods.
pub struct Manager<R: Runner> {
    runner: Arc<R>,
    machine: Machine<R::Payload>,
    live: HashMap<Generation, Live<R::Running>>,
    replies: HashMap<RequestId, oneshot::Sender<Result<(), Failure>>>,
    work: JoinSet<Done<R::Running>>,
    tasks: HashMap<Id, Task>,
    draining: bool,
    /// Who waits until nothing is under way; from then on nothing begins.
    frozen: Option<Option<oneshot::Sender<()>>>,
}

impl<R: Runner> Manager<R> {
    /// Starts the task on the current runtime.
    pub fn spawn(runner: Arc<R>) -> ManagerHandle<R::Payload> {
        let (mailbox, messages) = mpsc::channel(MAILBOX);
        let manager = Manager {
            runner,
            machine: Machine::default(),
            live: HashMap::new(),
            replies: HashMap::new(),
            work: JoinSet::new(),
            tasks: HashMap::new(),
            draining: false,
            frozen: None,
        };
        mesh_runtime::task::spawn_vital("pod manager", manager.run(messages));
        ManagerHandle { mailbox, next: Arc::new(AtomicU64::new(1)) }
    }

    async fn run(mut self, mut messages: mpsc::Receiver<Message<R::Payload>>) {
        let mut alarm = tokio::time::interval(ALARM);
        alarm.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => self.receive(message),
                    None => return,
                },
                Some(done) = self.work.join_next_with_id(), if !self.work.is_empty() => self.finished(done),
                _ = alarm.tick() => {
                    let unnamed = self.machine.counts().unnamed;
                    if unnamed > 0 {
                        tracing::warn!(pods = unnamed, "adopted pods that no client has named since: is whoever enrols pods away?");
                    }
                }
            }
            self.runner.counted(self.machine.counts());
            if self.work.is_empty()
                && let Some(done) = self.frozen.as_mut().and_then(Option::take)
            {
                let _ = done.send(());
            }
        }
    }

    fn receive(&mut self, message: Message<R::Payload>) {
        match message {
            Message::Event(_) if self.frozen.is_some() => {}
            Message::Event(event) => self.apply(event),
            Message::Ask(_, _, reply) if self.draining || self.frozen.is_some() => {
                let _ = reply.send(Err(Failure::passing(Code::Stopping, "the agent is stopping")));
            }
            Message::Ask(request, event, reply) => {
                self.replies.insert(request, reply);
                self.apply(event);
            }
            Message::View(reply) => {
                let _ = reply.send(self.view());
            }
            Message::Spec(uid, reply) => {
                let wanted =
                    self.live.iter().filter(|(_, live)| live.spec.pod.uid == uid && !live.cancel.is_cancelled());
                let last = wanted.max_by_key(|(generation, _)| **generation);
                let _ = reply.send(last.map(|(_, live)| live.spec.clone()));
            }
            Message::Unnamed(session, reply) => {
                let _ = reply.send(self.machine.unnamed(session));
            }
            Message::Drain(limit, done) => self.drain(limit, done),
            Message::Freeze(done) => self.frozen = Some(Some(done)),
        }
    }

    fn apply(&mut self, event: Event<R::Payload>) {
        for action in self.machine.apply(event) {
            match action {
                Action::Start { generation, spec, payload, captured } => {
                    self.start(generation, spec, payload, captured)
                }
                Action::Cancel { generation } => {
                    if let Some(live) = self.live.get(&generation) {
                        live.cancel.cancel();
                    }
                }
                Action::Stop { generation, close } => self.stop(generation, close),
                Action::Reply { request, result } => {
                    if let Some(reply) = self.replies.remove(&request) {
                        let _ = reply.send(result);
                    }
                }
                Action::Release { cookies } => {
                    let release = self.runner.clone().release(cookies.clone());
                    let released = cookies.clone();
                    let task = self.work.spawn(async move {
                        release.await;
                        Done::Released(released)
                    });
                    self.tasks.insert(task.id(), Task::Release(cookies));
                }
            }
        }
    }

    fn start(&mut self, generation: Generation, spec: Arc<Spec>, payload: R::Payload, captured: bool) {
        let cancel = CancellationToken::new();
        let started = self.runner.clone().start(generation, spec.clone(), payload, captured, cancel.clone());
        let task = self.work.spawn(async move { Done::Started(generation, started.await) });
        self.tasks.insert(task.id(), Task::Start(generation, spec.pod.uid.clone()));
        self.live.insert(generation, Live { spec, cancel, running: None });
    }

    fn stop(&mut self, generation: Generation, close: bool) {
        let live = self.live.remove(&generation);
        let uid = live.as_ref().map(|live| live.spec.pod.uid.clone()).unwrap_or_default();
        let running = live.and_then(|live| live.running);
        let runner = self.runner.clone();
        let task = self.work.spawn(async move {
            if let Some(running) = running {
                runner.stop(running, close).await;
            }
            Done::Stopped(generation)
        });
        self.tasks.insert(task.id(), Task::Stop(generation, uid));
    }

    fn finished(&mut self, done: Result<(Id, Done<R::Running>), JoinError>) {
        let done = match done {
            Ok((id, done)) => {
                self.tasks.remove(&id);
                done
            }
            Err(error) => {
                tracing::error!(%error, "starting or stopping a pod panicked");
                match self.tasks.remove(&error.id()) {
                    Some(Task::Start(generation, uid)) => {
                        let failure = Failure::passing(Code::Failed, "starting the pod panicked");
                        return self.broke_off(generation, uid, Done::Started(generation, Err(failure)));
                    }
                    Some(Task::Stop(generation, uid)) => {
                        return self.broke_off(generation, uid, Done::Stopped(generation));
                    }
                    Some(Task::Release(cookies)) => Done::Released(cookies),
                    None => Done::Drained,
                }
            }
        };
        match done {
            Done::Started(generation, Ok(running)) => {
                if let Some(live) = self.live.get_mut(&generation) {
                    live.running = Some(running);
                }
                self.apply(Event::Started { generation, result: Ok(()) });
            }
            Done::Started(generation, Err(failure)) => {
                if let Some(live) = self.live.remove(&generation)
                    && !live.cancel.is_cancelled()
                {
                    let pod = &live.spec.pod;
                    tracing::warn!(namespace = %pod.namespace, pod = %pod.name, uid = %pod.uid, %failure, "pod not enrolled");
                }
                self.apply(Event::Started { generation, result: Err(failure) });
            }
            Done::Stopped(generation) => self.apply(Event::Stopped { generation }),
            Done::Released(cookies) => self.apply(Event::Released { cookies }),
            Done::Drained => {}
        }
    }

    /// Clears away what a panic left before the start or stop is over: the pod may be started again then.
    fn broke_off(&mut self, generation: Generation, uid: ArcStr, done: Done<R::Running>) {
        self.apply(Event::BrokeOff { generation });
        let let_go = self.runner.clone().let_go(uid);
        self.work.spawn(async move {
            let _ = mesh_runtime::task::spawn("sockets of a pod", let_go).await;
            done
        });
    }

    fn drain(&mut self, limit: Duration, done: oneshot::Sender<()>) {
        self.draining = true;
        let mut pods = JoinSet::new();
        for live in self.live.values_mut() {
            live.cancel.cancel();
            if let Some(running) = live.running.take() {
                pods.spawn(self.runner.clone().drain(running, limit));
            }
        }
        self.work.spawn(async move {
            pods.join_all().await;
            let _ = done.send(());
            Done::Drained
        });
    }

    fn view(&self) -> Vec<PodView> {
        let running = self.live.iter().filter(|(_, live)| live.running.is_some());
        let mut views: Vec<PodView> = running
            .map(|(generation, live)| {
                let Spec { pod, netns } = &*live.spec;
                PodView {
                    uid: pod.uid.clone(),
                    namespace: pod.namespace.clone(),
                    name: pod.name.clone(),
                    service_account: pod.service_account.clone(),
                    ips: pod.ips.clone(),
                    generation: *generation,
                    netns_cookie: netns.cookie,
                    netns_inode: netns.inode,
                }
            })
            .collect();
        views
            .sort_unstable_by(|a, b| (&a.namespace, &a.name, a.generation).cmp(&(&b.namespace, &b.name, b.generation)));
        views
    }
}

#[cfg(test)]
mod tests;
