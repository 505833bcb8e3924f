//! Carries out what the [book](super::book) asks for: watches on one side, the pod manager on the other. One task, started by the worker.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use kube::Client;
use mesh_runtime::{DrainToken, task};
use serde::Serialize;
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot, watch as watch_channel};
use tokio::task::{Id, JoinSet};

use super::super::check::Checker;
use super::super::machine::{Event, SessionId};
use super::super::manager::ManagerHandle;
use super::super::server::PodFds;
use super::super::session::{Code, Failure};
use super::book::{Book, Knowledge, NotBegun, Op, PodState, Trouble};
use super::facts::{Called, Facts};
use super::find::{Finder, Seen};
use super::kubelet::Probes;
use super::watch;

/// Annotations under way at once: a node that starts must not flood the API server.
const ANNOTATIONS: usize = 8;

/// How long the admin socket waits for the enroller, which begins when the pods of an earlier agent are taken over.
const PATIENCE: Duration = Duration::from_secs(1);

/// The admin socket's part.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// What the last failed contact with the API server said, until it speaks again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Whose probes pass.
    pub probes: Probes,
    /// Every pod of the node.
    pub pods: Vec<PodState>,
}

/// Asks the enroller.
#[derive(Clone, Debug)]
pub struct KubeHandle {
    asks: mpsc::Sender<Ask>,
    knowledge: watch_channel::Receiver<Knowledge>,
}

/// The other end.
pub struct KubeAsked {
    asks: mpsc::Receiver<Ask>,
    knowledge: watch_channel::Sender<Knowledge>,
}

enum Ask {
    View(oneshot::Sender<View>),
    Begin(Called, oneshot::Sender<Result<Begun, NotBegun>>),
}

/// An enrolment that somebody else carries out; dropping it says that it broke off.
#[derive(Debug)]
pub struct Begun {
    /// The pod, as the API knows it.
    pub facts: Arc<Facts>,
    done: oneshot::Sender<Result<(), Trouble>>,
}

impl Begun {
    /// It has ended.
    pub fn end(self, result: Result<(), Trouble>) {
        let _ = self.done.send(result);
    }
}

impl KubeHandle {
    /// What became of each pod; none while there is no enroller.
    pub async fn view(&self) -> Option<View> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            // There may be no room for the question either.
            self.asks.send(Ask::View(reply)).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(PATIENCE, asked).await.ok()?
    }

    /// Begins to enrol a pod of which the caller knows where it is.
    pub async fn begin(&self, called: Called) -> Result<Begun, NotBegun> {
        let (reply, answer) = oneshot::channel();
        let asked = self.asks.send(Ask::Begin(called, reply)).await;
        asked.map_err(|_| NotBegun::Unheard)?;
        answer.await.unwrap_or(Err(NotBegun::Unheard))
    }

    /// What the API has said, and every change of it.
    pub fn knowledge(&self) -> watch_channel::Receiver<Knowledge> {
        self.knowledge.clone()
    }
}

/// The two ends of questions to the enroller.
pub fn handle() -> (KubeHandle, KubeAsked) {
    let (asks, asked) = mpsc::channel(4);
    let (tells, knowledge) = watch_channel::channel(Knowledge::default());
    (KubeHandle { asks, knowledge }, KubeAsked { asks: asked, knowledge: tells })
}

/// What the operations share.
struct Means {
    client: Client,
    finder: Finder,
    checker: Arc<Checker>,
    manager: ManagerHandle<PodFds>,
    session: SessionId,
    /// The last look at the node and when it began: one look serves all who asked before it.
    look: Mutex<Option<(Instant, Arc<Seen>)>>,
    annotations: Semaphore,
}

/// Enrols what the API wants.
pub struct Enroller {
    /// The API server.
    pub client: Client,
    /// Where to look for pods.
    pub finder: Finder,
    /// The same checks as for clients of the socket.
    pub checker: Arc<Checker>,
    /// The pods.
    pub manager: ManagerHandle<PodFds>,
    /// Whose probes pass, for the admin socket.
    pub probes: Arc<parking_lot::Mutex<Probes>>,
}

impl Enroller {
    /// Runs until the drain starts.
    pub async fn run(self, asked: KubeAsked, drain: DrainToken) {
        let KubeAsked { mut asks, knowledge } = asked;
        let Enroller { client, finder, checker, manager, probes } = self;
        let (mut namespaces, mut pods) = (watch::namespaces(&client), watch::pods(&client, &finder.node));
        // Before the first list: what another client enrols from now on is not ours to judge by an older list.
        let session = manager.open_session().await;
        let (look, annotations) = (Mutex::new(None), Semaphore::new(ANNOTATIONS));
        let means = Arc::new(Means { client, finder, checker, manager, session, look, annotations });
        let mut book = Book::default();
        let mut work: JoinSet<(Op, Result<(), Trouble>)> = JoinSet::new();
        let mut under_way: HashMap<Id, Op> = HashMap::new();
        let (mut namespaces_away, mut pods_away) = (None, None);
        let (mut told, mut inherited) = (0, false);
        loop {
            if !inherited && book.is_complete() {
                inherited = true;
                let unnamed = means.manager.unnamed(session).await;
                book.inherit(unnamed.iter().map(|spec| Facts::of_the_past(&spec.pod)).collect());
            }
            if book.heard() != told {
                told = book.heard();
                knowledge.send_replace(book.knowledge());
            }
            for op in book.due(Instant::now()) {
                let (means, what) = (means.clone(), op.clone());
                let running = work.spawn(async move {
                    let result = means.carry_out(&what).await;
                    (what, result)
                });
                under_way.insert(running.id(), op);
            }
            if book.settle() {
                means.snapshot().await;
            }
            let next = book.next_due();
            let wake = async {
                match next {
                    Some(then) => tokio::time::sleep_until(then.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = drain.started() => return,
                Some(heard) = namespaces.next() => if let Some(heard) = listen("namespaces", heard, &mut namespaces_away) {
                    book.namespace(heard);
                },
                Some(heard) = pods.next() => if let Some(heard) = listen("pods", heard, &mut pods_away)
                    && let Some(pod) = book.pod(heard)
                {
                    tell_of_calls(&pod);
                },
                Some(done) = work.join_next_with_id(), if !work.is_empty() => match done {
                    Ok((id, (op, result))) => {
                        under_way.remove(&id);
                        report(&op, &result);
                        book.done(&op, result, Instant::now());
                    }
                    Err(error) => {
                        tracing::error!(%error, "an operation on a pod broke off");
                        if let Some(op) = under_way.remove(&error.id()) {
                            book.done(&op, Err(broke_off()), Instant::now());
                        }
                    }
                },
                Some(ask) = asks.recv() => match ask {
                    Ask::View(reply) => {
                        let trouble = namespaces_away.clone().or(pods_away.clone());
                        let _ = reply.send(View { trouble, probes: probes.lock().clone(), pods: book.view() });
                    }
                    Ask::Begin(called, reply) => {
                        let begun = book.begin(&called).map(|op| {
                            let ((done, end), facts, what) = (oneshot::channel(), op.pod().clone(), op.clone());
                            let running = work.spawn(async move { (what, end.await.unwrap_or_else(|_| Err(broke_off()))) });
                            under_way.insert(running.id(), op);
                            Begun { facts, done }
                        });
                        // Nobody there to carry it out ends it.
                        let _ = reply.send(begun);
                    }
                },
                () = wake => {}
            }
        }
    }

    /// Starts the task.
    pub fn spawn(self, asked: KubeAsked, drain: DrainToken) {
        task::spawn_vital("enrolment from Kubernetes", self.run(asked, drain));
    }
}

/// Logs the first failure of a series and its end.
fn listen<T>(what: &str, heard: Result<T, String>, trouble: &mut Option<String>) -> Option<T> {
    match heard {
        Ok(heard) => {
            if trouble.take().is_some() {
                tracing::info!(what, "the API server answers again");
            }
            Some(heard)
        }
        Err(error) => {
            if trouble.is_none() {
                tracing::warn!(what, error, "watching the API server failed: pods stay as they are until it answers");
            }
            *trouble = Some(error);
            None
        }
    }
}

/// The kernel cannot tell whose call it is: people must.
fn tell_of_calls(pod: &Facts) {
    let Facts { namespace, name, uid, .. } = pod;
    let hosts = pod.said.elsewhere.join(", ");
    tracing::warn!(%namespace, pod = %name, %uid, hosts, "probes or hooks of the pod have the kubelet call others, past their policies where they declare the port for a probe");
}

fn report(op: &Op, result: &Result<(), Trouble>) {
    let Facts { namespace, name, uid, .. } = &**op.pod();
    match (op, result) {
        (_, Ok(())) => tracing::debug!(%namespace, pod = %name, %uid, "{}", describe(op)),
        // A pod that an earlier agent did not have is nothing to tell.
        (Op::Keep(_), Err(_)) => {}
        // Looked at again and again; the admin dump has it.
        (Op::Bury(_), Err(trouble)) => {
            tracing::debug!(%namespace, pod = %name, %uid, reason = trouble.message, held = trouble.held, "not yet released");
        }
        (_, Err(trouble)) => {
            tracing::info!(%namespace, pod = %name, %uid, reason = trouble.message, held = trouble.held, "cannot yet {}", describe(op));
        }
    }
}

fn describe(op: &Op) -> &'static str {
    match op {
        Op::Enrol(_) => "enrol the pod",
        Op::Keep(_) => "keep the pod",
        Op::Release(_) | Op::Bury(_) => "release the pod",
        Op::Annotate(_, Some(_)) => "annotate the pod",
        Op::Annotate(_, None) => "take the annotation from the pod",
    }
}

impl Means {
    async fn carry_out(&self, op: &Op) -> Result<(), Trouble> {
        match op {
            Op::Enrol(pod) => match self.enrol(pod).await {
                Ok(()) => Ok(()),
                Err(failure) => {
                    let held = self.keep(pod).await.is_ok();
                    Err(Trouble { lasting: !failure.retry, message: failure.message, held })
                }
            },
            Op::Keep(pod) => self.keep(pod).await.map_err(trouble),
            Op::Release(pod) => self.release(pod).await,
            Op::Bury(pod) => {
                let (finder, uid) = (self.finder.clone(), pod.cgroup_uid.clone());
                match blocking(move || Ok(finder.has_processes(&uid))).await {
                    Ok(false) => self.release(pod).await,
                    runs => {
                        let why = "the pod has ended, and its processes still run".to_owned();
                        let message = runs.err().map_or(why, |failure| failure.message);
                        match self.keep(pod).await {
                            // Nothing is held of it. A mirror says itself whose processes are looked at: they may be anybody's.
                            Err(failure) if failure.code == Code::Unknown && pod.is_mirror() => self.release(pod).await,
                            kept => Err(Trouble { message, held: kept.is_ok(), lasting: false }),
                        }
                    }
                }
            }
            Op::Annotate(pod, mark) => {
                let _turn = self.annotations.acquire().await;
                let failed =
                    |message| Trouble { message: format!("annotation: {message}"), held: false, lasting: false };
                watch::annotate(&self.client, pod, *mark).await.map_err(failed)
            }
        }
    }

    async fn enrol(&self, pod: &Arc<Facts>) -> Result<(), Failure> {
        let seen = self.look().await?;
        let (finder, checker, facts) = (self.finder.clone(), self.checker.clone(), pod.clone());
        let (spec, payload) = blocking(move || finder.open(&seen, &facts, &checker)).await?;
        let (session, request) = (self.session, self.manager.fresh_id());
        self.ask(request, Event::Add { session, request, spec, payload }).await?;
        self.manager.tell(Event::Delivered { request }).await;
        Ok(())
    }

    async fn release(&self, pod: &Facts) -> Result<(), Trouble> {
        let request = self.manager.fresh_id();
        self.ask(request, Event::Del { request, uid: pod.uid.clone() }).await.map_err(trouble)
    }

    async fn keep(&self, pod: &Facts) -> Result<(), Failure> {
        let request = self.manager.fresh_id();
        self.ask(request, Event::Keep { request, uid: pod.uid.clone() }).await
    }

    async fn snapshot(&self) {
        let (session, request) = (self.session, self.manager.fresh_id());
        match self.ask(request, Event::Snapshot { session, request }).await {
            Ok(()) => tracing::info!("the pods of this node are as the API server says"),
            Err(failure) => tracing::warn!(%failure, "snapshot"),
        }
    }

    async fn ask(&self, request: u64, event: Event<PodFds>) -> Result<(), Failure> {
        let gone = || Failure::passing(Code::Stopping, "the agent is stopping");
        self.manager.ask(request, event).await.await.unwrap_or_else(|_| Err(gone()))
    }

    /// The node as it was at some moment after the call.
    async fn look(&self) -> Result<Arc<Seen>, Failure> {
        let asked = Instant::now();
        let mut last = self.look.lock().await;
        if let Some((begun, seen)) = &*last
            && *begun >= asked
        {
            return Ok(seen.clone());
        }
        let (begun, finder) = (Instant::now(), self.finder.clone());
        let look = move || {
            finder
                .look()
                .map_err(|error| Failure::passing(Code::Failed, format!("cannot look at {:?}: {error}", finder.proc)))
        };
        let seen = Arc::new(blocking(look).await?);
        *last = Some((begun, seen.clone()));
        Ok(seen)
    }
}

fn broke_off() -> Trouble {
    Trouble { message: "the operation broke off".into(), held: false, lasting: false }
}

fn trouble(failure: Failure) -> Trouble {
    Trouble { lasting: !failure.retry, message: failure.message, held: false }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let broke = |_| Err(Failure::passing(Code::Failed, "looking for the pod panicked"));
    tokio::task::spawn_blocking(work).await.unwrap_or_else(broke)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_an_enroller_that_has_not_begun() {
        let (asks, _asked) = handle();
        for question in 0..20 {
            let answer = tokio::time::timeout(PATIENCE * 2, asks.view()).await;
            assert!(matches!(answer, Ok(None)), "question {question}");
        }
    }
}
