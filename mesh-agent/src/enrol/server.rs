//! The enrolment server: accepts root's connections and runs one conversation per connection.
//!
//! Requests are checked in order and carried out in parallel; answers go back in the order of the requests. When a client goes, what it had
//! asked for and not heard of is rolled back.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::stream::{FuturesOrdered, StreamExt};
use mesh_proto::enrol::Response;
use mesh_runtime::{DrainToken, failpoint, task};
use prost::Message;
use tokio::sync::Semaphore;

use super::check::Checker;
use super::machine::{Event, RequestId, SessionId, Spec};
use super::manager::ManagerHandle;
use super::session::{Asked, Code, Failure, Session};
use super::socket::{SeqConnection, SeqListener};

/// Clients at once; there is one, and the CNI plugin's short calls beside it.
const SESSIONS: usize = 64;
/// Requests of one client under way; beyond it the client's packets wait in its socket.
const IN_FLIGHT: usize = 1024;
/// A client that does not read its answers for this long is gone.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// File name of the socket in the run folder.
pub const SOCKET: &str = "enrol.sock";

/// What an enrolment brings along beside its description.
#[derive(Debug)]
pub struct PodFds {
    /// The pod's network namespace.
    pub netns: OwnedFd,
    /// Sockets that the keeper held, if they have not perished.
    pub adopted: Option<super::listeners::Listeners>,
    /// An earlier worker had enrolled it: nobody waits for an answer.
    pub taken_over: bool,
}

/// The listening server.
#[derive(Debug)]
pub struct EnrolServer {
    listener: SeqListener,
    checker: Arc<Checker>,
}

impl EnrolServer {
    /// Listens in the run folder.
    pub fn bind(run_dir: &Path, checker: Arc<Checker>) -> io::Result<Self> {
        Ok(EnrolServer { listener: SeqListener::bind(&run_dir.join(SOCKET))?, checker })
    }

    /// Serves until the drain starts.
    pub async fn run(self, manager: ManagerHandle<PodFds>, drain: DrainToken) {
        let slots = Arc::new(Semaphore::new(SESSIONS));
        loop {
            let accepted = tokio::select! {
                () = drain.started() => return,
                accepted = self.listener.accept() => accepted,
            };
            let connection = match accepted {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an enrolment client");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if connection.peer.uid() != 0 {
                tracing::warn!(
                    uid = connection.peer.uid(),
                    pid = connection.peer.pid(),
                    "refused an enrolment client that is not root"
                );
                continue;
            }
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                tracing::warn!("refused an enrolment client: {SESSIONS} are connected");
                continue;
            };
            let conversation = follow(connection, manager.clone(), self.checker.clone());
            let drain = drain.clone();
            task::spawn("enrolment client", async move {
                let _slot = slot;
                tokio::select! {
                    () = conversation => {}
                    () = drain.forced() => {}
                }
            });
        }
    }
}

/// A request's answer on its way: which request, and whether the client must hear of it for it to count.
type Pending = std::pin::Pin<Box<dyn Future<Output = (Option<RequestId>, Result<(), Failure>)> + Send>>;

/// Has a conversation. However it ends, the manager hears that the client is gone.
async fn follow(connection: SeqConnection, manager: ManagerHandle<PodFds>, checker: Arc<Checker>) {
    let session = manager.fresh_id();
    let ended = AssertUnwindSafe(converse(session, connection, &manager, checker)).catch_unwind().await;
    manager.tell(Event::Closed { session }).await;
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

async fn converse(id: SessionId, connection: SeqConnection, manager: &ManagerHandle<PodFds>, checker: Arc<Checker>) {
    let mut session = Session::default();
    let mut pending: FuturesOrdered<Pending> = FuturesOrdered::new();
    let mut open = true;
    while open || !pending.is_empty() {
        tokio::select! {
            Some((request, result)) = pending.next(), if !pending.is_empty() => {
                if result.as_ref().is_err_and(|failure| failure.code == Code::Protocol) {
                    open = false;
                }
                let bytes = response(&result).encode_to_vec();
                match tokio::time::timeout(SEND_DEADLINE, connection.send(&bytes)).await {
                    Ok(Ok(())) => if let (Some(request), Ok(())) = (request, result) {
                        manager.tell(Event::Delivered { request }).await;
                    },
                    _ => break,
                }
            }
            packet = connection.receive(), if open && pending.len() < IN_FLIGHT => {
                let Ok(Some(packet)) = packet else { break };
                let asked = session.read(packet);
                failpoint::pass("enrolment");
                if matches!(asked, Ok(Asked::Hello)) {
                    manager.tell(Event::Opened { session: id }).await;
                }
                // Nothing after a protocol error is read: the client and we disagree on what was said.
                open = !asked.as_ref().is_err_and(|failure| failure.code == Code::Protocol);
                pending.push_back(carry_out(asked, id, manager, &checker).await);
            }
        }
    }
}

async fn carry_out(
    asked: Result<Asked, Failure>,
    session: SessionId,
    manager: &ManagerHandle<PodFds>,
    checker: &Arc<Checker>,
) -> Pending {
    let request = manager.fresh_id();
    let (event, claims) = match asked {
        Err(failure) => return ready(Err(failure)),
        Ok(Asked::Hello) => return ready(Ok(())),
        Ok(Asked::Keep(uid)) => (Event::Keep { request, uid }, false),
        Ok(Asked::Del(uid)) => (Event::Del { request, uid }, false),
        Ok(Asked::Snapshot) => (Event::Snapshot { session, request }, false),
        Ok(Asked::Add { pod, netns, cgroup }) => {
            let checker = checker.clone();
            // In order with the client's other requests: a snapshot must not overtake an add before it.
            let checked = tokio::task::spawn_blocking(move || {
                let id = checker.check(&pod, netns.as_fd(), cgroup.as_fd())?;
                Ok((Spec { pod, netns: id }, PodFds { netns, adopted: None, taken_over: false }))
            });
            match checked.await {
                Ok(Ok((spec, payload))) => (Event::Add { session, request, spec, payload }, true),
                Ok(Err(failure)) => return ready(Err(failure)),
                Err(_) => return ready(Err(Failure::passing(Code::Failed, "checking the pod panicked"))),
            }
        }
    };
    let answer = manager.ask(request, event).await;
    Box::pin(async move {
        let gone = || Failure::passing(Code::Stopping, "the agent is stopping");
        (claims.then_some(request), answer.await.unwrap_or_else(|_| Err(gone())))
    })
}

fn ready(result: Result<(), Failure>) -> Pending {
    Box::pin(std::future::ready((None, result)))
}

fn response(result: &Result<(), Failure>) -> Response {
    match result {
        Ok(()) => Response { done: true, ..Response::default() },
        Err(failure) => {
            Response { error: failure.message.clone(), code: failure.code as u32, retry: failure.retry, done: false }
        }
    }
}
