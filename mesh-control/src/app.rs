//! Starts everything and ends it: root, tokens, source, listener, status. Tests start the same [`App`] in their own process.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use kube::Client;
use mesh_runtime::drain::Drain;
use mesh_runtime::http::{Limits, serve_tcp};
use mesh_runtime::readiness::Readiness;
use mesh_runtime::task;
use prometheus_client::registry::Registry;
use rcgen::SanType;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::access::check::{Access, Verifier};
use crate::access::discovery::Keys;
use crate::access::layer::Authenticated;
use crate::access::pace::Lines;
use crate::access::review::Reviewer;
use crate::access::token::Tokens;
use crate::access::writer::TokenWriter;
use crate::api_server;
use crate::ca::authority::Authority;
use crate::ca::keeper::{Keeper, Renewed};
use crate::ca::plugged::Purpose;
use crate::ca::rotation::Terms;
use crate::ca::server::Issuing;
use crate::ca::store::RootStore;
use crate::cluster::bundle;
use crate::cluster::lease;
use crate::cluster::report::{self, Pace};
use crate::cluster::secrets;
use crate::cluster::source::ClusterSource;
use crate::cluster::watch::Tuning;
use crate::companions::WithCompanions;
use crate::config::{Config, Origin};
use crate::deploy;
use crate::diagnosis::Diagnosis;
use crate::grace::{GRACE, Grace};
use crate::index::Settings;
use crate::jwks;
use crate::lookup::{self, WithAddresses};
use crate::manifest::watch::FolderSource;
use crate::metrics::Metrics;
use crate::publish::{self, Outlets};
use crate::resource::Secrets;
use crate::serve::server::{self, Discovery, Streams};
use crate::serve::throttle::Throttle;
use crate::serve::tls::{self, ServerCertificate};
use crate::status::Status;
use crate::webhook;
use crate::webhook::registration::{self, Times};

/// The listener's certificate; it is renewed at half of it.
const SERVER_TTL: Duration = Duration::from_secs(24 * 3600);
/// For a request to arrive whole and be answered; a stream of discovery is answered when it opens.
const REQUEST: Duration = Duration::from_secs(30);
/// What a client may send on a stream before it is read. Those that come back list what they have, all at once.
const WINDOW: u32 = 64 << 10;
/// At once on one connection. An agent has eight requests for certificates and its stream; each may hold up a request that is not whole yet.
const MAX_CALLS: u32 = 32;
/// Until every kubelet has given its pods a ConfigMap that has changed.
const KUBELETS: Duration = Duration::from_secs(180);
/// How long streams have to end.
const DRAIN: Duration = Duration::from_secs(5);

/// A running control plane.
#[derive(Debug)]
pub struct App {
    /// Where xDS and CA listen.
    pub listen: SocketAddr,
    /// Where the status listens.
    pub metrics: SocketAddr,
    /// Where the webhook listens, in a cluster.
    pub webhook: Option<SocketAddr>,
    drain: Drain,
}

impl App {
    /// Starts; returns when it serves the first state of the source.
    pub async fn start(config: Config) -> Result<App> {
        let settings = &config.settings;
        let listener =
            TcpListener::bind(config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
        let status_listener =
            TcpListener::bind(config.metrics).await.with_context(|| format!("listen on {}", config.metrics))?;
        let (listen, metrics_address) = (listener.local_addr()?, status_listener.local_addr()?);
        let mut place = Place::open(config.origin).await?;

        let drain = Drain::new();
        let readiness = Readiness::new();
        let metrics = Arc::new(Metrics::default());
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        mesh_runtime::metrics::register_process(&mut registry);
        let outlets = Outlets::new(metrics.clone());
        let (view, world) = (outlets.view.subscribe(), outlets.world.subscribe());
        let streams = Arc::new(Streams::default());
        let problems: Arc<ArcSwap<Vec<Diagnosis>>> = Arc::default();
        let status = Status {
            registry: Arc::new(registry),
            readiness: readiness.clone(),
            diagnoses: outlets.diagnoses.clone(),
            authority: problems.clone(),
            streams: streams.clone(),
            world: world.clone(),
        };
        let rooted = readiness.task("root certificate");
        let configured = readiness.task("configuration");
        let authenticates = readiness.task("node tokens");
        task::spawn_vital(
            "status",
            serve_tcp(status_listener, Limits::default(), drain.token(), move |r| status.clone().answer(r)),
        );

        let store = place.roots(settings);
        let purpose =
            Purpose { domain: settings.trust_domain.clone(), host: format!("mesh-control.{}.svc", settings.home) };
        let authority = store.open(&purpose, mesh_runtime::clock::now).await?;
        metrics.set_authority(authority.root_ends(), authority.not_after(), authority.roots().len());
        rooted.met();
        let names = names(listen.ip(), &settings.home, &settings.cluster_domain, &config.san);
        let now = mesh_runtime::clock::now();
        let certificate = Arc::new(ServerCertificate::new(&authority, names.clone(), SERVER_TTL, now)?);
        let mut renewed: Vec<Arc<dyn Renewed>> = vec![certificate.clone()];
        let authority = Arc::new(ArcSwap::from_pointee(authority));
        let verifier = place.verifier(settings, &metrics, &drain)?;

        let (first, read) = tokio::sync::oneshot::channel();
        let first = move || {
            // The receiver is gone only if the start was given up.
            let _ = first.send(());
        };
        let mut webhook_address = None;
        // Without a cluster there is one process, and who can read the state folder reads it all.
        let (mut leads, mut spread) = (watch::channel(true).1, None);
        let begun = watch::Sender::new(false);
        let (fetched, keys) = watch::channel(Arc::default());
        until_drained("keys of tokens", &drain, jwks::follow(view.clone(), fetched));
        let (found, addresses) = watch::channel(Arc::default());
        until_drained("names of hosts", &drain, lookup::follow(view.clone(), found, lookup::by_the_system));
        match &mut place {
            Place::Folder { manifests, .. } => {
                let source = Grace::new(FolderSource::new(manifests), settings.home.clone(), GRACE);
                let source = WithCompanions::new(source, keys, None);
                let source = WithAddresses::new(source, addresses);
                until_drained("publish", &drain, publish::run(source, settings.clone(), outlets, first));
            }
            Place::Cluster { client, webhook, gateways, .. } => {
                let source = Grace::new(ClusterSource::new(client, Tuning::default()), settings.home.clone(), GRACE);
                let (heard, secrets) = watch::channel(Arc::new(Secrets::asked()));
                let source = WithCompanions::new(source, keys, Some(secrets));
                let source = WithAddresses::new(source, addresses);
                let following = secrets::follow(client.clone(), view.clone(), heard, Tuning::default());
                until_drained("secrets of gateways", &drain, following);
                let (told, read) = watch::channel(0);
                spread = Some(read);
                let look = store.look();
                let copies =
                    bundle::publish(client.clone(), authority.clone(), view.clone(), look, told, Tuning::default());
                until_drained("root copies", &drain, copies);
                leads = elected(client, settings, &outlets, &authority, &begun, &drain);
                if let Some(defaults) = gateways.take() {
                    let deploying =
                        deploy::run::run(client.clone(), *defaults, view.clone(), leads.clone(), Tuning::default());
                    begun_only("gateways", &begun, &drain, deploying);
                }
                if let Some(listener) = webhook.take() {
                    webhook_address = Some(listener.local_addr()?);
                    let own = Arc::new(ServerCertificate::new(&authority.load(), names, SERVER_TTL, now)?);
                    renewed.push(own.clone());
                    // Before the configuration can be read: who repairs it is not to be in need of it.
                    let served = webhook::server::serve(listener, own, view.clone(), metrics.clone(), drain.token());
                    until_drained("webhook", &drain, async { drop(served.await) });
                }
                until_drained("publish", &drain, publish::run(source, settings.clone(), outlets, first));
            }
        }
        // A start may wait for long, and the webhook serves meanwhile.
        let terms = terms(config.root_overlap, config.secret_ttl, &store);
        let (authority_of, metrics_of) = (authority.clone(), metrics.clone());
        let keeper = Keeper {
            store,
            authority: authority_of,
            renewed,
            purpose,
            terms,
            leads,
            spread,
            problems,
            metrics: metrics_of,
        };
        until_drained("root", &drain, keeper.run());
        // Nothing partial is served: streams and the authority begin with a whole state.
        read.await.context("read the configuration")?;
        configured.met();
        begun.send_replace(true);

        if let (Place::Folder { state_dir, .. }, Verifier::Own(tokens)) = (&place, &verifier) {
            let folder = state_dir.join("tokens");
            let now = mesh_runtime::clock::now();
            let writer = TokenWriter::start(tokens.clone(), folder, config.token_ttl, view.clone(), now)?;
            until_drained("tokens", &drain, writer.follow());
        }
        authenticates.met();

        let access = Access::new(verifier, view, metrics.clone());
        let discovery = Discovery {
            access: access.clone(),
            world,
            streams,
            throttle: Throttle::default(),
            reading: Throttle::reading(),
            answer: server::ANSWER,
            lines: Lines::default(),
            metrics: metrics.clone(),
            drain: drain.token(),
        };
        let issuing = Issuing {
            access: access.clone(),
            authority,
            longest: config.secret_ttl,
            metrics,
            lines: Lines::default(),
            ledger: Arc::default(),
        };
        let (sender, secured) = mpsc::channel(64);
        let tls = Arc::new(tls::config(certificate)?);
        task::spawn_vital("accept", tls::accept(listener, tls, drain.token(), sender));
        let services = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .max_concurrent_streams(MAX_CALLS)
            .initial_stream_window_size(WINDOW)
            .timeout(REQUEST)
            .add_service(Authenticated::new("xds", access, discovery))
            .add_service(issuing.service());
        let token = drain.token();
        task::spawn_vital("grpc", async move {
            let ended = services
                .serve_with_incoming_shutdown(ReceiverStream::new(secured), async move { token.started().await })
                .await;
            if let Err(error) = ended {
                tracing::error!(%error, "grpc server");
            }
        });
        tracing::info!(%listen, metrics = %metrics_address, "ready");
        Ok(App { listen, metrics: metrics_address, webhook: webhook_address, drain })
    }

    /// Ends all streams and tasks.
    pub async fn stop(self) {
        let drained = self.drain.drain(DRAIN).await;
        tracing::info!(?drained, "stopped");
    }
}

/// Where objects come from, opened.
enum Place {
    Folder {
        manifests: PathBuf,
        state_dir: PathBuf,
    },
    Cluster {
        client: Client,
        audiences: Vec<String>,
        agents: Vec<(String, String)>,
        webhook: Option<TcpListener>,
        gateways: Option<Box<deploy::Defaults>>,
    },
}

impl Place {
    async fn open(origin: Origin) -> Result<Place> {
        Ok(match origin {
            Origin::Folder { manifests, state_dir } => Place::Folder { manifests, state_dir },
            Origin::Cluster { kubeconfig, audiences, agents, webhook, gateways } => {
                let webhook = TcpListener::bind(webhook).await.with_context(|| format!("listen on {webhook}"))?;
                let webhook = Some(webhook);
                let client = api_server::connect(kubeconfig.as_deref()).await?;
                Place::Cluster { client, audiences, agents, webhook, gateways }
            }
        })
    }

    fn roots(&self, settings: &Settings) -> RootStore {
        match self {
            Place::Folder { state_dir, .. } => RootStore::Folder(state_dir.clone()),
            Place::Cluster { client, .. } => {
                RootStore::Secret { client: client.clone(), namespace: settings.home.to_string() }
            }
        }
    }

    fn verifier(&self, settings: &Settings, metrics: &Arc<Metrics>, drain: &Drain) -> Result<Verifier> {
        Ok(match self {
            Place::Folder { state_dir, .. } => {
                Verifier::Own(Arc::new(Tokens::open(state_dir, settings.cluster_id.clone())?))
            }
            Place::Cluster { client, audiences, agents, .. } => {
                let keys = Keys::default();
                until_drained("keys of tokens", drain, keys.clone().follow(client.clone(), metrics.clone()));
                let reviewer = Reviewer::new(client.clone(), audiences.clone(), agents);
                Verifier::Cluster(Arc::new(reviewer.or_by(keys, metrics.clone())))
            }
        })
    }
}

/// What one replica does for all of them. One that has not `begun` knows nothing to tell objects, and looks after the webhook if nobody else does: whoever
/// repairs what it waits for has to get past that.
fn elected(
    client: &Client,
    settings: &Settings,
    outlets: &Outlets,
    authority: &Arc<ArcSwap<Authority>>,
    begun: &watch::Sender<bool>,
    drain: &Drain,
) -> watch::Receiver<bool> {
    let (leads, leader) = watch::channel(false);
    let home = settings.home.to_string();
    let election =
        lease::run(client.clone(), home.clone(), lease::Terms::default(), begun.subscribe(), leads, drain.token());
    task::spawn_vital("election", election);
    let (verdicts, view) = (outlets.verdicts.subscribe(), outlets.view.subscribe());
    let report = report::run(client.clone(), verdicts, view, leader.clone(), Pace::default());
    begun_only("report", begun, drain, report);
    let registration = registration::run(client.clone(), home, authority.clone(), leader.clone(), Times::default());
    until_drained("webhook registration", drain, registration);
    leader
}

/// How long the stages of a rotation last, if certificates last for `longest`. Agents get the roots with each certificate, and from a ConfigMap, which a
/// kubelet looks at every other minute; replicas look at what is kept.
fn terms(overlap: Option<Duration>, longest: Duration, store: &RootStore) -> Terms {
    let replicas = 3 * store.look();
    let (spread, retire) = match (overlap, store) {
        (Some(overlap), _) => (overlap, overlap),
        (None, RootStore::Folder(_)) => (longest, longest + longest / 10),
        (None, RootStore::Secret { .. }) => (longest.max(KUBELETS), longest + longest / 10),
    };
    Terms { spread, retire: retire + replicas }
}

/// Runs a task that never ends by itself once this replica has begun to serve.
fn begun_only(
    name: &'static str,
    begun: &watch::Sender<bool>,
    drain: &Drain,
    work: impl Future<Output = ()> + Send + 'static,
) {
    let mut begun = begun.subscribe();
    until_drained(name, drain, async move {
        if begun.wait_for(|begun| *begun).await.is_ok() {
            work.await;
        }
    });
}

/// Runs a task that never ends by itself, until the process does.
fn until_drained(name: &'static str, drain: &Drain, work: impl Future<Output = ()> + Send + 'static) {
    let token = drain.token();
    task::spawn_vital(name, async move {
        tokio::select! {
            () = work => tracing::error!(task = name, "ended"),
            () = token.started() => {}
        }
    });
}

/// The names under which clients may know this process.
fn names(listen: IpAddr, home: &str, cluster_domain: &str, extra: &[String]) -> Vec<SanType> {
    let mut addresses = BTreeSet::from([IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])]);
    let mut dns = BTreeSet::from(["localhost".to_owned(), "mesh-control".to_owned()]);
    if listen.is_unspecified() {
        for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
            let Some(address) = interface.address else { continue };
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
            let v6 = address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip()));
            addresses.extend(v4.or(v6).filter(|a| !matches!(a, IpAddr::V6(a) if a.is_unicast_link_local())));
        }
    } else {
        addresses.insert(listen);
    }
    for (name, namespace) in [("mesh-control", home), ("istiod", "istio-system")] {
        for end in ["", ".svc", &format!(".svc.{cluster_domain}")] {
            dns.insert(format!("{name}.{namespace}{end}"));
        }
    }
    for name in extra {
        match name.parse() {
            Ok(address) => drop(addresses.insert(address)),
            Err(_) => drop(dns.insert(name.clone())),
        }
    }
    let dns = dns.iter().filter_map(|n| rcgen::string::Ia5String::try_from(n.as_str()).ok().map(SanType::DnsName));
    dns.chain(addresses.into_iter().map(SanType::IpAddress)).collect()
}
