//! The connection to istio-cni, and what is done about its requests. One task, started by the worker.
//!
//! istio-cni waits five seconds for an answer, and holds the start of a new pod until it has it. An enrolment that takes longer, or fails, is answered
//! so and goes on here: only for pods that are being made would istio-cni ask again.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use mesh_core::ArcStr;
use mesh_proto::convert::{ZdsPod, encode_zds_ack, encode_zds_hello};
use mesh_runtime::backoff::Backoff;
use mesh_runtime::{DrainToken, ReadyGuard, failpoint, task};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::task::{AbortHandle, JoinSet};

use super::super::machine::{Event, RequestId, SessionId};
use super::super::manager::ManagerHandle;
use super::super::server::PodFds;
use super::super::session::{Code, Failure};
use super::super::socket::SeqConnection;
use super::conversation::{Asked, Conversation, Wrong};
use super::find::Places;
use super::waiting::Waiting;
use crate::keeper::packet::Packet;

/// Between attempts to connect. istio-cni takes five new connections a second.
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LAST_DELAY: Duration = Duration::from_secs(15);
/// An answer comes within this; istio-cni waits five seconds.
const ANSWER: Duration = Duration::from_secs(4);
/// An istio-cni that does not read for this long is gone.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// The admin socket's part.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// istio-cni is connected.
    pub connected: bool,
    /// It has named all its pods at least once.
    pub heard: bool,
    /// Why the last connection ended or could not be made, until there is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Pods that it has named and that are not enrolled, with the reason.
    pub waiting: Vec<WaitingPod>,
}

/// A pod that waits.
#[derive(Clone, Debug, Serialize)]
pub struct WaitingPod {
    /// Kubernetes namespace.
    pub namespace: ArcStr,
    /// Name.
    pub name: ArcStr,
    /// Kubernetes UID.
    pub uid: ArcStr,
    /// Why.
    pub reason: String,
}

/// Enrols what istio-cni names.
pub struct ZdsClient {
    socket: PathBuf,
    means: Arc<Means>,
    view: Arc<Mutex<View>>,
    waiting: Waiting<Arc<OwnedFd>>,
    attempts: JoinSet<Tried>,
    /// The attempt of each pod that is under way.
    under_way: HashMap<ArcStr, AbortHandle>,
    /// Met when istio-cni has named all its pods once.
    unheard: Option<ReadyGuard>,
}

#[derive(Clone)]
struct Means {
    places: Places,
    manager: ManagerHandle<PodFds>,
}

/// How an attempt ended.
type Tried = (ZdsPod, Result<RequestId, Failure>);

/// What happens next.
enum Next {
    Packet(io::Result<Option<Packet>>),
    /// Pods are to be tried again.
    Due,
    Tried(Option<Tried>),
}

impl ZdsClient {
    /// A client of the socket at this path.
    pub fn new(
        socket: PathBuf,
        places: Places,
        manager: ManagerHandle<PodFds>,
        view: Arc<Mutex<View>>,
        unheard: ReadyGuard,
    ) -> Self {
        ZdsClient {
            socket,
            means: Arc::new(Means { places, manager }),
            view,
            waiting: Waiting::default(),
            attempts: JoinSet::new(),
            under_way: HashMap::new(),
            unheard: Some(unheard),
        }
    }

    /// Starts the task.
    pub fn spawn(self, drain: DrainToken) {
        task::spawn_vital("enrolment from istio-cni", async move {
            tokio::select! {
                () = drain.started() => {}
                never = self.run() => match never {},
            }
        });
    }

    async fn run(mut self) -> Infallible {
        let mut backoff = Backoff::new(FIRST_DELAY, LAST_DELAY);
        loop {
            // What istio-cni names from now on is compared with what was named before.
            let session = self.means.manager.open_session().await;
            let end = AssertUnwindSafe(self.converse(session, &mut backoff)).catch_unwind().await;
            let end = end.unwrap_or_else(|_| "a request of istio-cni made the agent panic".to_owned());
            self.means.manager.tell(Event::Closed { session }).await;
            self.tell_end(end);
            let again = tokio::time::Instant::now() + backoff.next(&mut rand::rng());
            // What waits is tried whether istio-cni is there or not.
            while let Ok(next) = tokio::time::timeout_at(again, self.next(None)).await {
                self.turn(session, next).await;
            }
        }
    }

    /// One connection, to its end; says why it ended.
    async fn converse(&mut self, session: SessionId, backoff: &mut Backoff) -> String {
        let connection = match self.connect().await {
            Ok(connection) => connection,
            Err(end) => return end,
        };
        tracing::info!(socket = ?self.socket, pid = connection.peer.pid(), "connected to istio-cni");
        {
            let mut view = self.view.lock();
            (view.connected, view.trouble) = (true, None);
        }
        self.waiting.opened();
        let mut conversation = Conversation::default();
        loop {
            let packet = match self.next(Some(&connection)).await {
                Next::Packet(Ok(Some(packet))) => packet,
                Next::Packet(Ok(None)) => return "istio-cni has closed the connection".to_owned(),
                Next::Packet(Err(error)) => return format!("cannot read from istio-cni: {error}"),
                other => {
                    self.turn(session, other).await;
                    continue;
                }
            };
            failpoint::pass("zds");
            let (answer, request) = match conversation.read(packet) {
                Ok(asked) => self.carry_out(session, asked).await,
                Err(Wrong::Request(why)) => (Err(why), None),
                Err(Wrong::Conversation(why)) => return format!("istio-cni says what cannot be understood: {why}"),
            };
            if let Err(why) = &answer {
                tracing::warn!(why, "cannot do what istio-cni asks for");
            }
            let why = answer.as_ref().err().map(String::as_str);
            if let Err(end) = send(&connection, &encode_zds_ack(why)).await {
                return end;
            }
            if let Some(request) = request {
                self.means.manager.tell(Event::Delivered { request }).await;
            }
            backoff.reset();
            self.settle(session).await;
        }
    }

    async fn connect(&self) -> Result<SeqConnection, String> {
        let socket = &self.socket;
        let connection =
            SeqConnection::connect(socket).map_err(|error| format!("cannot connect to {socket:?}: {error}"))?;
        match connection.peer.uid() {
            0 => send(&connection, &encode_zds_hello()).await.map(|()| connection),
            uid => Err(format!("{socket:?} is served by user {uid} and not by root: whoever it is is not believed")),
        }
    }

    /// Cancel safe.
    async fn next(&mut self, connection: Option<&SeqConnection>) -> Next {
        let due = self.waiting.next_due();
        let due = async {
            match due {
                Some(then) => tokio::time::sleep_until(then.into()).await,
                None => std::future::pending().await,
            }
        };
        let packet = async {
            match connection {
                Some(connection) => connection.receive().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            packet = packet => Next::Packet(packet),
            Some(tried) = self.attempts.join_next(), if !self.attempts.is_empty() => Next::Tried(tried.ok()),
            () = due => Next::Due,
        }
    }

    /// Does what is not a request.
    async fn turn(&mut self, session: SessionId, next: Next) {
        match next {
            Next::Packet(_) | Next::Tried(None) => {}
            Next::Due => {
                for (pod, netns) in self.waiting.due(Instant::now()) {
                    let (means, uid) = (self.means.clone(), pod.uid.clone());
                    let attempt = self.attempts.spawn(async move {
                        let enrolled = AssertUnwindSafe(means.enrol(session, &pod, &netns)).catch_unwind().await;
                        let panicked = || Failure::passing(Code::Failed, "the attempt panicked");
                        (pod, enrolled.unwrap_or_else(|_| Err(panicked())))
                    });
                    self.under_way.insert(uid, attempt);
                }
            }
            Next::Tried(Some((pod, enrolled))) => {
                self.under_way.remove(&pod.uid);
                if let Ok(request) = enrolled {
                    self.means.manager.tell(Event::Delivered { request }).await;
                }
                let result = enrolled.map(drop).map_err(|failure| failure.message);
                let why = result.as_ref().err().cloned();
                if let (true, Some(why)) = (self.waiting.tried(&pod.uid, result, Instant::now()), why) {
                    tracing::warn!(namespace = %pod.namespace, pod = %pod.name, uid = %pod.uid, why, "still not enrolled");
                }
                self.show();
                self.settle(session).await;
            }
        }
    }

    /// Gives back the request that counts once its answer is heard.
    async fn carry_out(&mut self, session: SessionId, asked: Asked) -> (Result<(), String>, Option<RequestId>) {
        let means = self.means.clone();
        let late = || Failure::passing(Code::Failed, "it takes longer than istio-cni waits, and goes on");
        let mut request = None;
        let result = match asked {
            Asked::Add(pod, netns) => {
                self.supersede(&pod.uid);
                let netns = Arc::new(netns);
                let enrolled = tokio::time::timeout(ANSWER, means.enrol(session, &pod, &netns)).await;
                match enrolled.unwrap_or_else(|_| Err(late())) {
                    Ok(enrolled) => {
                        self.waiting.forget(&pod.uid);
                        request = Some(enrolled);
                        Ok(())
                    }
                    Err(failure) => {
                        // An earlier start of the pod is named too.
                        let _ = means.keep(&pod.uid).await;
                        let answer = format!("{}/{}: {}", pod.namespace, pod.name, failure.message);
                        self.waiting.failed(pod, netns, failure.message, Instant::now());
                        Err(answer)
                    }
                }
            }
            Asked::Keep(uid) => means.keep(&uid).await.map_err(|failure| failure.message),
            Asked::Del(uid) => {
                self.supersede(&uid);
                self.waiting.forget(&uid);
                let gone = tokio::time::timeout(ANSWER, means.del(&uid)).await.unwrap_or_else(|_| Err(late()));
                gone.map_err(|failure| failure.message)
            }
            Asked::Snapshot => {
                self.waiting.named_all();
                self.view.lock().heard = true;
                if let Some(unheard) = self.unheard.take() {
                    unheard.met();
                }
                Ok(())
            }
        };
        self.show();
        (result, request)
    }

    /// Ends an attempt at a pod of which something new was said: what it has asked the manager for comes before that, and it asks for no more.
    fn supersede(&mut self, uid: &ArcStr) {
        if let Some(attempt) = self.under_way.remove(uid) {
            attempt.abort();
        }
    }

    /// Makes the snapshot when it is due.
    async fn settle(&mut self, session: SessionId) {
        if self.waiting.settle() {
            match self.means.snapshot(session).await {
                Ok(()) => tracing::info!("the pods of this node are as istio-cni says"),
                Err(failure) => tracing::warn!(%failure, "snapshot"),
            }
        }
    }

    fn tell_end(&self, end: String) {
        let mut view = self.view.lock();
        // Once for each series: an istio-cni that is away stays so for a while.
        if view.trouble.as_ref() != Some(&end) {
            tracing::warn!(end, "no connection to istio-cni: pods stay as they are until there is one");
        }
        (view.connected, view.trouble) = (false, Some(end));
    }

    fn show(&self) {
        let waiting = self.waiting.view().map(|(pod, reason)| WaitingPod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            reason: reason.to_owned(),
        });
        self.view.lock().waiting = waiting.collect();
    }
}

impl Means {
    async fn enrol(&self, session: SessionId, pod: &ZdsPod, netns: &Arc<OwnedFd>) -> Result<RequestId, Failure> {
        let known = self.manager.spec(&pod.uid).await;
        let (places, pod, netns) = (self.places.clone(), pod.clone(), netns.clone());
        let open = move || {
            let netns = netns.try_clone();
            let netns = netns
                .map_err(|error| Failure::passing(Code::Failed, format!("cannot duplicate the descriptor: {error}")))?;
            places.open(&pod, netns, known)
        };
        let broke_off = |_| Err(Failure::passing(Code::Failed, "looking at the pod panicked"));
        let (spec, payload) = tokio::task::spawn_blocking(open).await.unwrap_or_else(broke_off)?;
        let request = self.manager.fresh_id();
        self.ask(request, Event::Add { session, request, spec, payload }).await?;
        Ok(request)
    }

    async fn keep(&self, uid: &ArcStr) -> Result<(), Failure> {
        let request = self.manager.fresh_id();
        self.ask(request, Event::Keep { request, uid: uid.clone() }).await
    }

    async fn del(&self, uid: &ArcStr) -> Result<(), Failure> {
        let request = self.manager.fresh_id();
        self.ask(request, Event::Del { request, uid: uid.clone() }).await
    }

    async fn snapshot(&self, session: SessionId) -> Result<(), Failure> {
        let request = self.manager.fresh_id();
        self.ask(request, Event::Snapshot { session, request }).await
    }

    async fn ask(&self, request: RequestId, event: Event<PodFds>) -> Result<(), Failure> {
        let gone = || Failure::passing(Code::Stopping, "the agent is stopping");
        self.manager.ask(request, event).await.await.unwrap_or_else(|_| Err(gone()))
    }
}

async fn send(connection: &SeqConnection, bytes: &[u8]) -> Result<(), String> {
    match tokio::time::timeout(SEND_DEADLINE, connection.send(bytes)).await {
        Ok(sent) => sent.map_err(|error| format!("cannot write to istio-cni: {error}")),
        Err(_) => Err("istio-cni does not read".to_owned()),
    }
}
