//! Simulated agents: each is a stream of its own, over TLS, with the token of its own node, that acknowledges everything and remembers the version of
//! everything it has. They share the names, and the clock by which it is measured how long a change takes to reach them.
use super::message::{Reader, Resource, TYPES, frame, node, token};
use super::objects;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use mesh_proto::discovery::DeltaDiscoveryRequest;
use rand::Rng;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::net::TcpSocket;
use tokio::sync::watch;

/// Names beyond those of the beginning.
const ROOM: usize = 1 << 17;
/// Windows of HTTP/2, as agents have them.
const WINDOW: u32 = 2 << 20;

/// All of them.
pub struct Fleet {
    /// In the order of their nodes.
    pub agents: Vec<Arc<Agent>>,
    names: [RwLock<Names>; 2],
    /// When a workload was changed, in microseconds; 0: not.
    changed: Vec<AtomicU64>,
    origin: Instant,
    control: watch::Sender<SocketAddr>,
    tls: Arc<rustls::ClientConfig>,
    /// The requests with which somebody with the same state began a stream.
    resumed: Mutex<Option<(u64, [Bytes; 2])>>,
    ended: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Names {
    numbers: HashMap<String, usize>,
    texts: Vec<String>,
}

/// One agent.
pub struct Agent {
    number: u32,
    state: Mutex<State>,
    /// Types that have been answered on the stream that is open.
    pub answered: AtomicUsize,
}

/// What an agent has, and what it has heard.
#[derive(Default, Clone)]
pub struct State {
    /// By type, then by number of the name: the version, or 0.
    pub versions: [Vec<u64>; 2],
    /// How many there are.
    pub held: [usize; 2],
    /// Resources sent and taken away since this was looked at last.
    pub heard: usize,
    /// Bytes of streams since this was looked at last.
    pub bytes: usize,
    /// How long changes took, in microseconds.
    pub delays: Vec<u32>,
    /// Bodies of workloads and services, for the one that is looked at closely.
    pub bodies: Option<HashMap<usize, Bytes>>,
}

impl Agent {
    /// What it has.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn set(&mut self, kind: usize, number: usize, version: u64) -> u64 {
        let versions = &mut self.versions[kind];
        if versions.len() <= number {
            versions.resize(number + 1, 0);
        }
        let old = std::mem::replace(&mut versions[number], version);
        self.held[kind] = self.held[kind] + usize::from(version != 0) - usize::from(old != 0);
        old
    }

    /// The same for everybody who has the same.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for versions in &self.versions {
            let end = versions.iter().rposition(|v| *v != 0).map_or(0, |last| last + 1);
            versions[..end].hash(&mut hasher);
        }
        hasher.finish()
    }
}

impl Fleet {
    /// Agents for `count` nodes, which trust `root`. None is connected yet.
    pub fn new(count: u32, addresses: usize, control: SocketAddr, root: &str) -> Result<Arc<Fleet>> {
        let mut store = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(root.as_bytes()) {
            store.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut tls = config.with_root_certificates(store).with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let agent = |number| {
            // The first one is looked at closely.
            let state = State { bodies: (number == 0).then(HashMap::new), ..State::default() };
            Arc::new(Agent { number, state: Mutex::new(state), answered: AtomicUsize::new(0) })
        };
        Ok(Arc::new(Fleet {
            agents: (0..count).map(agent).collect(),
            names: Default::default(),
            changed: (0..addresses + ROOM).map(|_| AtomicU64::new(0)).collect(),
            origin: Instant::now(),
            control: watch::Sender::new(control),
            tls: Arc::new(tls),
            resumed: Mutex::default(),
            ended: Mutex::default(),
        }))
    }

    /// Connects all of them, and connects them again whenever their streams end.
    pub fn start(self: &Arc<Self>) {
        for agent in &self.agents {
            let (fleet, agent) = (self.clone(), agent.clone());
            tokio::spawn(async move {
                let mut delay = Duration::from_millis(50);
                loop {
                    let begun = Instant::now();
                    let end = fleet.stream(&agent).await;
                    agent.answered.store(0, Ordering::Relaxed);
                    fleet
                        .ended
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .extend(end.err().map(|e| format!("{e:#}")));
                    // As agents do it: not all of them at once.
                    delay = if begun.elapsed() > Duration::from_secs(5) {
                        delay
                    } else {
                        (2 * delay).min(Duration::from_secs(5))
                    };
                    let share = rand::rng().random_range(0.0..1.0);
                    tokio::time::sleep(delay.mul_f64(share)).await;
                }
            });
        }
    }

    /// From now on they connect there.
    pub fn move_to(&self, control: SocketAddr) {
        self.control.send_replace(control);
    }

    /// Why streams have ended, since this was asked last.
    pub fn ends(&self) -> Vec<String> {
        std::mem::take(&mut self.ended.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The number of a name.
    pub fn number(&self, kind: usize, name: &str) -> usize {
        let lock = &self.names[kind];
        if let Some(number) = lock.read().unwrap_or_else(PoisonError::into_inner).numbers.get(name) {
            return *number;
        }
        let mut names = lock.write().unwrap_or_else(PoisonError::into_inner);
        let next = names.texts.len();
        let number = *names.numbers.entry(name.to_owned()).or_insert(next);
        if number == next {
            names.texts.push(name.to_owned());
        }
        number
    }

    /// The clock of a change of this workload starts.
    pub fn touch(&self, uid: &str) {
        let now = self.origin.elapsed().as_micros() as u64;
        if let Some(changed) = self.changed.get(self.number(0, uid)) {
            changed.store(now.max(1), Ordering::Relaxed);
        }
    }

    /// All clocks stop. How long changes took, by agent and change.
    pub fn delays(&self) -> Vec<u32> {
        self.changed.iter().for_each(|changed| changed.store(0, Ordering::Relaxed));
        self.agents.iter().flat_map(|agent| std::mem::take(&mut agent.state().delays)).collect()
    }

    /// Resources and bytes that all of them have heard of since this was asked last.
    pub fn heard(&self) -> (usize, usize) {
        let heard = self.agents.iter().map(|agent| {
            let mut state = agent.state();
            (std::mem::take(&mut state.heard), std::mem::take(&mut state.bytes))
        });
        heard.fold((0, 0), |(a, b), (c, d)| (a + c, b + d))
    }

    async fn stream(&self, agent: &Agent) -> Result<()> {
        let address = *self.control.borrow();
        let socket = TcpSocket::new_v4()?;
        // A control plane allows each address some connections.
        socket.bind((Ipv4Addr::new(127, 1, (agent.number / 250) as u8, (agent.number % 250 + 1) as u8), 0).into())?;
        let stream = socket.connect(address).await.context("connect")?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("127.0.0.1")?;
        let tls = tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, stream).await.context("TLS")?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(2 * WINDOW);
        let (mut client, connection) = builder.handshake::<_, Bytes>(tls).await?;
        let connection = tokio::spawn(connection);
        let _ends = Ends(connection.abort_handle());
        let node = objects::node(agent.number);
        let request = http::Request::post(
            "https://control/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        )
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {}", token(&node)))
        .body(())?;
        let (response, mut requests) = client.send_request(request, false)?;
        for bytes in self.first(agent, &node) {
            requests.send_data(bytes, false)?;
        }
        let response = response.await?;
        ensure!(!response.headers().contains_key("grpc-status"), "refused: {:?}", response.headers());
        let mut body = response.into_body();
        let mut reader = Reader::default();
        let mut answered = [false; 2];
        while let Some(data) = body.data().await {
            let data = data?;
            reader.take(&data);
            body.flow_control().release_capacity(data.len())?;
            let mut state = agent.state();
            state.bytes += data.len();
            while let Some(rest) = reader.next(|resource| self.applied(&mut state, &resource))? {
                let kind = rest.kind.context("a response without a type")?;
                for name in &rest.removed {
                    let number = self.number(kind, name);
                    state.heard += 1;
                    if state.set(kind, number, 0) != 0 {
                        self.measure(&mut state, kind, number);
                    }
                    state.bodies.as_mut().map(|bodies| bodies.remove(&number));
                }
                answered[kind] = true;
                agent.answered.store(answered.iter().filter(|a| **a).count(), Ordering::Relaxed);
                let ack = DeltaDiscoveryRequest {
                    type_url: TYPES[kind].into(),
                    response_nonce: rest.nonce,
                    ..DeltaDiscoveryRequest::default()
                };
                requests.send_data(frame(&ack), false)?;
            }
        }
        let trailers = body.trailers().await?;
        anyhow::bail!("ended: {:?}", trailers.and_then(|t| t.get("grpc-message").cloned()))
    }

    fn applied(&self, state: &mut State, resource: &Resource<'_>) -> Result<()> {
        let number = self.number(resource.kind, resource.name);
        state.heard += 1;
        if state.set(resource.kind, number, resource.version) != resource.version {
            self.measure(state, resource.kind, number);
        }
        if let Some(bodies) = state.bodies.as_mut().filter(|_| resource.kind == 0) {
            bodies.insert(number, Bytes::copy_from_slice(resource.body));
        }
        Ok(())
    }

    fn measure(&self, state: &mut State, kind: usize, number: usize) {
        let begun = self.changed.get(number).map_or(0, |changed| changed.load(Ordering::Relaxed));
        if kind == 0 && begun != 0 {
            let delay = (self.origin.elapsed().as_micros() as u64).saturating_sub(begun);
            state.delays.push(u32::try_from(delay).unwrap_or(u32::MAX));
        }
    }

    /// The requests that open a stream, with the versions of what the agent has. What is the same for all is made once.
    fn first(&self, agent: &Agent, name: &str) -> Vec<Bytes> {
        let state = agent.state();
        let digest = state.digest();
        let mut resumed = self.resumed.lock().unwrap_or_else(PoisonError::into_inner);
        if resumed.as_ref().is_none_or(|(of, _)| *of != digest) {
            let list = |kind: usize| {
                let names = self.names[kind].read().unwrap_or_else(PoisonError::into_inner);
                let held = state.versions[kind].iter().zip(&names.texts).filter(|(version, _)| **version != 0);
                let versions = held.map(|(version, name)| (name.clone(), format!("{version:016x}"))).collect();
                let request = DeltaDiscoveryRequest { initial_resource_versions: versions, ..Default::default() };
                // Without the head of its frame: another part of the same message comes before it.
                frame(&request).slice(5..)
            };
            *resumed = Some((digest, [list(0), list(1)]));
        }
        let Some((_, versions)) = resumed.as_ref() else { return Vec::new() };
        let mut frames = Vec::new();
        for (kind, url) in TYPES.iter().enumerate() {
            let head = DeltaDiscoveryRequest { node: Some(node(name)), type_url: (*url).into(), ..Default::default() };
            let head = frame(&head);
            let length = u32::try_from(head.len() - 5 + versions[kind].len()).unwrap_or(u32::MAX);
            let mut start = Vec::with_capacity(head.len());
            start.push(0);
            start.extend(length.to_be_bytes());
            start.extend_from_slice(&head[5..]);
            frames.extend([Bytes::from(start), versions[kind].clone()]);
        }
        frames
    }
}

/// Ends the task of a connection.
struct Ends(tokio::task::AbortHandle);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}
