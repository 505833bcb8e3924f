//! Carries the subscription out: one delta ADS stream at a time, kept alive by pings, opened again after a jittered delay whatever ended it.

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use mesh_core::Change;
use mesh_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, CONNECTION_ROUTES_TYPE, MAX_MESSAGE_BYTES, OUTBOUND_TYPE, WORKLOAD_LABELS_TYPE,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use mesh_runtime::backoff::Backoff;
use prost::Message;
use prost_types::{Struct, Value, value::Kind};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

use crate::{
    ClientMetrics, ControlConfig,
    channel::{self, ChannelError},
    metrics::{Reason, Url},
    subscription::{Alarm, Own, OwnKind, Subscription},
};

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(10);
/// A stream that lived this long after its first message was a good one: the next failure starts from the first delay.
const GOOD_AFTER: Duration = Duration::from_secs(15);
/// An initial request for each type and one answer for each message in flight; the server reads faster than it writes.
const REQUESTS: usize = 16;

/// Takes what the control plane says. One call is one batch; the answer goes to the control plane after it returns.
pub trait Sink: Send {
    /// Applies the batch as a whole. An error is reported as a NACK; it must mean that nothing less safe than before is in force.
    fn apply(&mut self, changes: Vec<Change>) -> Result<(), String>;

    /// Something that a waypoint has of its own is another now. Called only if that is subscribed to; who does not take it should not.
    fn apply_own(&mut self, own: Own) -> Result<(), String> {
        Err(format!("nobody takes what a waypoint has of its own: {own:?}").chars().take(200).collect())
    }
}

impl<F: FnMut(Vec<Change>) -> Result<(), String> + Send> Sink for F {
    fn apply(&mut self, changes: Vec<Change>) -> Result<(), String> {
        self(changes)
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("the control plane ended the stream: {code:?}: {message}", code = .0.code(), message = .0.message())]
    Status(Status),
    #[error("the control plane closed the stream")]
    Closed,
    #[error("asking again about a large removal")]
    Recheck,
}

impl End {
    fn reason(&self) -> &'static str {
        match self {
            Self::Channel(_) => "ConnectionError",
            Self::Status(_) => "Error",
            Self::Closed => "Complete",
            Self::Recheck => "Reconnect",
        }
    }

    /// tonic and grpc-go name a message over their limit differently.
    fn is_too_large(&self) -> bool {
        matches!(self, Self::Status(status) if matches!(status.code(), Code::ResourceExhausted | Code::OutOfRange))
    }
}

/// Subscribes until the future is dropped. The sink runs on a blocking thread, one call at a time: a batch of a hundred thousand resources takes
/// a second or more, and neither the stream's pings nor whatever else the runtime serves waits for it.
///
/// Addresses that come out of `wanted` are asked for at once; who waits for them hears of the answer from the sink.
pub async fn run(
    config: Arc<ControlConfig>,
    sink: impl Sink + 'static,
    mut wanted: mpsc::Receiver<IpAddr>,
    metrics: ClientMetrics,
) -> Infallible {
    let subscription = Subscription::new(node(&config), config.limits).with_own(config.own.as_deref());
    let origin = Instant::now();
    let mut worker = Worker { work: Some(Work { subscription, sink, metrics: metrics.clone(), origin }) };
    let mut backoff = Backoff::new(FIRST_DELAY, LAST_DELAY);
    loop {
        let mut session =
            Session { worker: &mut worker, wanted: &mut wanted, metrics: &metrics, origin, first_message: None };
        let end = match session.run(&config).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        if session.first_message.is_some_and(|at| at.elapsed() >= GOOD_AFTER) {
            backoff.reset();
        }
        let too_large = end.is_too_large();
        worker.run(move |work| work.subscription.on_end(too_large)).await;
        metrics.connected.set(0);
        metrics.set_error(Some(end.to_string()));
        metrics.terminations.get_or_create(&Reason { reason: end.reason() }).inc();
        let delay = backoff.next(&mut rand::rng());
        match end {
            End::Recheck => tracing::info!(address = %config.address, "{end}"),
            end => tracing::warn!(address = %config.address, retry_ms = delay.as_millis() as u64, "{end}"),
        }
        tokio::time::sleep(delay).await;
    }
}

struct Session<'a, S> {
    worker: &'a mut Worker<S>,
    wanted: &'a mut mpsc::Receiver<IpAddr>,
    metrics: &'a ClientMetrics,
    origin: Instant,
    first_message: Option<Instant>,
}

impl<S: Sink + 'static> Session<'_, S> {
    async fn run(&mut self, config: &Arc<ControlConfig>) -> Result<Infallible, End> {
        let channel = channel::connect(config).await?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        for request in self.worker.run(Work::open).await {
            send(&requests, request).await?;
        }
        let mut request = Request::new(ReceiverStream::new(outgoing));
        *request.metadata_mut() = channel::credentials(config)?;
        let response = client.delta_aggregated_resources(request).await.map_err(End::Status)?;
        self.metrics.connected.set(1);
        self.metrics.set_error(None);
        tracing::info!(address = %config.address, "subscribed to the control plane");
        let mut incoming = response.into_inner();
        loop {
            let timer = self.worker.next_timer().map(|at| self.origin + Duration::from_millis(at));
            let due = async {
                match timer {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = incoming.message() => match message.map_err(End::Status)? {
                    Some(response) => {
                        self.first_message.get_or_insert_with(Instant::now);
                        let reply = self.worker.run(|work| work.receive(response)).await;
                        send(&requests, reply).await?;
                    }
                    None => return Err(End::Closed),
                },
                () = due => for request in self.worker.run(Work::tick).await? {
                    send(&requests, request).await?;
                },
                Some(address) = self.wanted.recv() => {
                    let name = format!("{}/{address}", config.network);
                    // A look into a small table: not worth a thread.
                    if let Some(request) = self.worker.work.as_mut().and_then(|work| work.on_demand(name)) {
                        send(&requests, request).await?;
                    }
                }
            }
        }
    }
}

/// Lends the work to blocking threads.
struct Worker<S> {
    /// Absent while it is lent.
    work: Option<Work<S>>,
}

impl<S: Sink + 'static> Worker<S> {
    async fn run<T: Send + 'static>(&mut self, job: impl FnOnce(&mut Work<S>) -> T + Send + 'static) -> T {
        // It is not there only after a job that never came back, and then neither does this one.
        let Some(mut work) = self.work.take() else { return std::future::pending().await };
        let done = tokio::task::spawn_blocking(move || {
            let value = job(&mut work);
            (work, value)
        });
        match done.await {
            Ok((work, value)) => {
                self.work = Some(work);
                value
            }
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime is being shut down.
            Err(_) => std::future::pending().await,
        }
    }

    fn next_timer(&self) -> Option<u64> {
        self.work.as_ref()?.subscription.next_timer()
    }
}

/// What is subscribed to, and who takes it.
struct Work<S> {
    subscription: Subscription,
    sink: S,
    metrics: ClientMetrics,
    origin: Instant,
}

impl<S: Sink> Work<S> {
    fn open(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let now_ms = self.now_ms();
        self.subscription.on_connected(now_ms)
    }

    fn receive(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        mesh_runtime::failpoint::pass("xds");
        self.metrics.heard();
        let own = OwnKind::ALL.iter().map(|kind| kind.url());
        let shared = [ADDRESS_TYPE, AUTHORIZATION_TYPE, CONNECTION_ROUTES_TYPE, OUTBOUND_TYPE, WORKLOAD_LABELS_TYPE];
        let known = shared.into_iter().chain(own).find(|url| *url == response.type_url);
        let url = || Url { url: known.unwrap_or("other").to_owned() };
        self.metrics.messages.get_or_create(&url()).inc();
        self.metrics.message_bytes.get_or_create(&url()).inc_by(response.encoded_len() as u64);
        let now_ms = self.now_ms();
        let received = self.subscription.on_message(response, now_ms);
        self.report(&received.alarms);
        let mut reply = received.reply;
        if let Some(Err(problem)) = received.own.map(|own| self.sink.apply_own(own)) {
            reply.refuse(problem);
        }
        if let Err(problem) = self.apply(received.changes) {
            reply.refuse(problem);
        }
        reply.into_request()
    }

    fn on_demand(&mut self, name: String) -> Option<DeltaDiscoveryRequest> {
        let request = self.subscription.on_demand(name, self.now_ms())?;
        self.metrics.demands.inc();
        Some(request)
    }

    fn tick(&mut self) -> Result<Vec<DeltaDiscoveryRequest>, End> {
        let now_ms = self.now_ms();
        let due = self.subscription.on_timer(now_ms);
        self.report(&due.alarms);
        if let Err(problem) = self.apply(due.changes) {
            tracing::error!(%problem, "a removal could not be applied");
        }
        if due.reconnect { Err(End::Recheck) } else { Ok(due.requests) }
    }

    fn apply(&mut self, changes: Vec<Change>) -> Result<(), String> {
        for url in [ADDRESS_TYPE, AUTHORIZATION_TYPE, CONNECTION_ROUTES_TYPE] {
            let held = i64::try_from(self.subscription.held(url)).unwrap_or(i64::MAX);
            self.metrics.held.get_or_create(&Url { url: url.to_owned() }).set(held);
        }
        self.metrics.suspended.set(i64::try_from(self.subscription.suspended()).unwrap_or(i64::MAX));
        if changes.is_empty() { Ok(()) } else { self.sink.apply(changes) }
    }

    fn report(&self, alarms: &[Alarm]) {
        for alarm in alarms {
            match alarm {
                Alarm::Rejected { type_url, problems } => {
                    let url = Url { url: (*type_url).to_owned() };
                    self.metrics.rejected.get_or_create(&url).inc_by(problems.len() as u64);
                    tracing::error!(type_url, count = problems.len(), first = problems.first(), "refused resources");
                }
                Alarm::RemovalSuspended { names } => {
                    tracing::error!(
                        names,
                        "one push removes more than half of the mesh: held back until it is confirmed"
                    );
                }
                Alarm::RemovalConfirmed { names } => tracing::warn!(names, "a large removal was confirmed"),
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The receiver lives in the call; when it is gone the stream has ended, and reading it says why.
async fn send(requests: &mpsc::Sender<DeltaDiscoveryRequest>, request: DeltaDiscoveryRequest) -> Result<(), End> {
    requests.send(request).await.map_err(|_| End::Closed)
}

/// Who asks, in the form that Istio's control plane expects of a node proxy.
fn node(config: &ControlConfig) -> Node {
    let ip = config.instance_ip.map_or_else(|| "1.1.1.1".to_owned(), |ip| ip.to_string());
    let (pod, namespace) = (&config.pod_name, &config.namespace);
    let text = |value: &str| Value { kind: Some(Kind::StringValue(value.to_owned())) };
    let fields = [
        ("NAME", text(pod)),
        ("NAMESPACE", text(namespace)),
        ("INSTANCE_IPS", text(&ip)),
        ("NODE_NAME", text(&config.node)),
        ("CLUSTER_ID", text(&config.cluster_id)),
        ("NETWORK", text(&config.network)),
    ];
    Node {
        id: format!("ztunnel~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
        cluster: String::new(),
        metadata: Some(Struct { fields: fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect() }),
        build_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
