//! The plugin's socket: root's connections, one request and one answer on each. What is answered is decided by [`super::admit`].

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mesh_proto::convert::{CniAnswer, CniCommand, CniRequest, cni_request, encode_cni_answer};
use mesh_runtime::metrics::Registry;
use mesh_runtime::{DrainToken, task};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::admit::{Admitted, Means};
use super::install::CniHandle;
use crate::enrol::machine::{Event, SessionId};
use crate::enrol::socket::{SeqConnection, SeqListener};
use crate::keeper::packet::Packet;

/// File name of the socket in the run folder.
pub const SOCKET: &str = "cni.sock";
/// Pods that start or end at once; the others find no answer and try again.
const SESSIONS: usize = 512;
/// A plugin that connects says at once what it wants.
const ASK: Duration = Duration::from_secs(5);
/// A plugin that does not take its answer for this long is gone.
const SEND: Duration = Duration::from_secs(5);

/// How requests were answered, and how it stands with the chain.
#[derive(Clone, Debug)]
pub struct CniMetrics(Family<Labels, Counter>);

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    command: &'static str,
    answer: &'static str,
}

impl CniMetrics {
    /// Registers them.
    pub fn new(registry: &mut Registry, installer: &CniHandle) -> CniMetrics {
        let requests = Family::default();
        registry.register(
            "undermesh_cni_requests",
            "Requests of the CNI plugin by what was answered",
            requests.clone(),
        );
        registry.register_collector(Box::new(Chain(installer.clone())));
        CniMetrics(requests)
    }

    fn count(&self, command: &'static str, answer: &'static str) {
        self.0.get_or_create(&Labels { command, answer }).inc();
    }
}

#[derive(Debug)]
struct Chain(CniHandle);

impl Collector for Chain {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let chained = ConstGauge::new(i64::from(self.0.status().chain.is_some()));
        let help = "Whether the chain of CNI plugins has our entry";
        chained.encode(encoder.encode_descriptor("undermesh_cni_chained", help, None, MetricType::Gauge)?)?;
        let contested = ConstGauge::new(i64::from(self.0.status().contested.is_some()));
        let help = "Whether somebody takes what is ours in the chain of CNI plugins away again and again";
        contested.encode(encoder.encode_descriptor("undermesh_cni_contested", help, None, MetricType::Gauge)?)?;
        let edits = ConstCounter::new(self.0.edits.load(Relaxed));
        let help = "How often the chain of CNI plugins was edited: once, and whenever somebody took our entry out";
        edits.encode(encoder.encode_descriptor("undermesh_cni_chain_edits", help, None, MetricType::Counter)?)
    }
}

/// The listening server.
#[derive(Debug)]
pub struct CniServer {
    listener: SeqListener,
}

impl CniServer {
    /// Listens in the run folder.
    pub fn bind(run_dir: &Path) -> io::Result<Self> {
        Ok(CniServer { listener: SeqListener::bind(&run_dir.join(SOCKET))? })
    }

    /// Serves until the drain starts.
    pub async fn run(self, means: Arc<Means>, metrics: CniMetrics, drain: DrainToken) {
        let slots = Arc::new(Semaphore::new(SESSIONS));
        loop {
            let accepted = tokio::select! {
                () = drain.started() => return,
                accepted = self.listener.accept() => accepted,
            };
            let connection = match accepted {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept the CNI plugin");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let peer = connection.peer;
            if peer.uid() != 0 {
                tracing::warn!(
                    uid = peer.uid(),
                    pid = peer.pid(),
                    "refused a client of the CNI socket that is not root"
                );
                continue;
            }
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                tracing::warn!("refused a CNI plugin: {SESSIONS} are connected");
                continue;
            };
            let (means, metrics, drain) = (means.clone(), metrics.clone(), drain.clone());
            task::spawn("CNI request", async move {
                let _slot = slot;
                let session = means.manager.open_session().await;
                converse(&connection, session, &means, &metrics, &drain).await;
                // Whatever the plugin has not heard of is undone.
                means.manager.tell(Event::Closed { session }).await;
            });
        }
    }
}

async fn converse(
    connection: &SeqConnection,
    session: SessionId,
    means: &Means,
    metrics: &CniMetrics,
    drain: &DrainToken,
) {
    let asked = tokio::select! {
        asked = timeout(ASK, connection.receive()) => asked,
        () = drain.started() => return,
    };
    let Ok(Ok(Some(packet))) = asked else { return };
    let (request, netns) = match read(packet) {
        Ok(request) => request,
        Err(why) => {
            tracing::warn!(why, "the CNI plugin asked for something else than it can");
            metrics.count("none", "unknown");
            // By the file that we left, the plugin knows what to do.
            let _ = send(connection, &CniAnswer::Unknown(why)).await;
            return;
        }
    };
    let began = std::time::Instant::now();
    let (answer, admitted) = tokio::select! {
        answered = means.answer(session, &request, netns) => answered,
        // It says nothing more; so it is gone.
        _ = connection.receive() => {
            tracing::info!(pod = %Pod(&request), "the CNI plugin went before it had an answer");
            return;
        }
        () = drain.started() => return,
    };
    // From here on to the end, whatever stops: a pod whose plugin was told that it is captured must not be undone for want of a word.
    let heard = send(connection, &answer).await;
    finish(means, admitted, heard).await;
    let (command, word) = (command(&request), word(&answer));
    metrics.count(command, word);
    let reason = match &answer {
        CniAnswer::Ready => "",
        CniAnswer::Pass(why) | CniAnswer::Wait(why) | CniAnswer::Unknown(why) | CniAnswer::Refused(why) => why.as_str(),
    };
    let after = began.elapsed();
    match &answer {
        CniAnswer::Refused(_) => tracing::warn!(pod = %Pod(&request), command, reason, "a new pod is refused"),
        CniAnswer::Wait(_) | CniAnswer::Unknown(_) => {
            tracing::info!(pod = %Pod(&request), command, answer = word, reason, ?after, "a new pod waits");
        }
        CniAnswer::Pass(_) | CniAnswer::Ready => {
            tracing::debug!(pod = %Pod(&request), command, answer = word, reason, ?after, "answered the CNI plugin");
        }
    }
}

async fn finish(means: &Means, admitted: Option<Admitted>, heard: bool) {
    if let Some(admitted) = admitted {
        means.end(admitted, heard).await;
    }
}

async fn send(connection: &SeqConnection, answer: &CniAnswer) -> bool {
    matches!(timeout(SEND, connection.send(&encode_cni_answer(answer))).await, Ok(Ok(())))
}

/// A request with at most one descriptor. Those that are too many are closed here.
fn read(packet: Packet) -> Result<(CniRequest, Option<OwnedFd>), String> {
    if packet.truncated {
        return Err("packet or descriptors truncated".to_owned());
    }
    let request = cni_request(&packet.bytes).map_err(|error| error.to_string())?;
    let count = packet.fds.len();
    let mut fds = packet.fds.into_iter();
    match (fds.next(), fds.next()) {
        (_, Some(_)) => Err(format!("{count} descriptors, at most one is wanted")),
        (netns, None) => Ok((request, netns)),
    }
}

fn command(request: &CniRequest) -> &'static str {
    match request.command {
        CniCommand::Add => "add",
        CniCommand::Check => "check",
        CniCommand::Del => "del",
    }
}

fn word(answer: &CniAnswer) -> &'static str {
    match answer {
        CniAnswer::Pass(_) => "pass",
        CniAnswer::Ready => "ready",
        CniAnswer::Wait(_) => "wait",
        CniAnswer::Unknown(_) => "unknown",
        CniAnswer::Refused(_) => "refused",
    }
}

struct Pod<'a>(&'a CniRequest);

impl fmt::Display for Pod<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.namespace, self.0.name)
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::convert::encode_cni_request;

    use super::*;

    #[test]
    fn hardening_b129_b130_packets_that_are_no_request() {
        let request = CniRequest {
            command: CniCommand::Add,
            container: "0f".into(),
            namespace: "shop".into(),
            name: "web".into(),
            uid: "u".into(),
            ips: vec!["198.18.0.1".parse().unwrap()],
            dns: None,
            patience: Duration::from_secs(1),
        };
        let good = encode_cni_request(&request);
        let packet = |bytes: &[u8], fds: usize, truncated: bool| Packet {
            bytes: bytes.to_vec(),
            fds: (0..fds).map(|_| OwnedFd::from(tempfile::tempfile().unwrap())).collect(),
            truncated,
        };
        for (packet, good) in [
            (packet(&good, 1, false), true),
            (packet(&good, 0, false), true),
            (packet(&good, 2, false), false),
            (packet(&good, 200, false), false),
            (packet(&good, 1, true), false),
            (packet(&good[..good.len() - 1], 1, false), false),
            (packet(b"", 0, false), false),
            (packet(&[0xff; 100], 1, false), false),
        ] {
            assert_eq!(read(packet).is_ok(), good);
        }
    }
}
