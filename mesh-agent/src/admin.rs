//! What an operator on the node can ask and order over the Unix socket `admin.sock`: the configuration in force, certificates without keys,
//! pods and connections, a live tap, the log level, a drain. Only root reaches it, by the socket's mode, its folder, and the peer's credentials.
//!
//! ```text
//! GET  /config_dump  /connections  /healthz  /tap?SELECTOR          POST /logging?level=FILTER  /drain  /quit  /cni-uninstall
//! ```
//! Orders need the header `undermesh-admin`, which no browser sends by itself, and no request with an `Origin` or a foreign `Host` is served.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use mesh_client::CertificateManager;
use mesh_core::snapshot::PolicyEntry;
use mesh_core::tap::{Selector, SelectorError};
use mesh_runtime::http::{Limits, Reply, is_foreign, json, listen_unix, serve_unix, text};
use mesh_runtime::logging::{Filter, LogControl};
use mesh_runtime::{DrainToken, Readiness, tap};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use crate::bpf::Kernel;
use crate::cni::CniHandle;
use crate::enrol::ManagerHandle;
use crate::enrol::kube::{KubeHandle, View};
use crate::enrol::manager::PodView;
use crate::enrol::server::PodFds;
use crate::enrol::zds;
use crate::proxy::ProxyShared;
use crate::state::StateHandle;
use crate::telemetry::Telemetry;

/// File name of the socket in the run folder.
pub const SOCKET: &str = "admin.sock";
/// The header that orders need.
pub const ORDER_HEADER: &str = "undermesh-admin";

/// What an order asks the process to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// Let connections end, then stop.
    Drain,
    /// Stop now.
    Quit,
}

/// What the admin server shows and changes.
pub struct Admin {
    /// The effective configuration.
    pub config: Value,
    /// The node.
    pub node: String,
    /// Who listens to what passes.
    pub telemetry: Telemetry,
    /// The mesh as the agent knows it.
    pub state: Arc<StateHandle>,
    /// Certificates held.
    pub certificates: CertificateManager,
    /// Connections.
    pub proxy: Arc<ProxyShared>,
    /// What the kernel lacks, and who else is in our hooks.
    pub kernel: Arc<Kernel>,
    /// Pods.
    pub manager: ManagerHandle<PodFds>,
    /// Which pods the Kubernetes API wants enrolled.
    pub kube: KubeHandle,
    /// What istio-cni says, if it is asked.
    pub zds: Option<Arc<Mutex<zds::View>>>,
    /// The CNI plugin, if it is kept installed.
    pub cni: Option<CniHandle>,
    /// The log.
    pub log: LogControl,
    /// What the agent waits for.
    pub readiness: Readiness,
    /// Where orders go.
    pub orders: mpsc::Sender<Order>,
}

/// Listens in the run folder, for root alone.
pub fn listen(run_dir: &Path) -> io::Result<UnixListener> {
    listen_unix(&run_dir.join(SOCKET))
}

/// Serves until the drain is over.
pub async fn serve(listener: UnixListener, admin: Arc<Admin>, drain: DrainToken) {
    let handler = move |request: Request<Bytes>| {
        let admin = admin.clone();
        async move { admin.answer(&request).await }
    };
    serve_unix(listener, 0, Limits::default(), drain, handler).await;
}

/// What a request asks for.
#[derive(Debug, Eq, PartialEq)]
enum Asked {
    ConfigDump,
    Connections,
    Healthz,
    Tap(Selector),
    Logging(Filter),
    CniUninstall,
    Order(Order),
}

impl Admin {
    async fn answer(self: Arc<Self>, request: &Request<Bytes>) -> Reply {
        match read(request) {
            Err((status, why)) => text(status, format!("{why}\n")),
            Ok(Asked::ConfigDump) => self.config_dump().await,
            Ok(Asked::Connections) => json(&serde_json::to_value(self.proxy.connections()).unwrap_or_default()),
            Ok(Asked::Tap(selector)) => {
                let limits = tap::Limits { rate: selector.rate, time: selector.time };
                let asked = Ok::<_, SelectorError>((selector, limits));
                tap::answer(self.telemetry.taps(), asked, self.node.as_str().into())
            }
            Ok(Asked::Healthz) => {
                let pending = self.readiness.pending();
                text(
                    StatusCode::OK,
                    if pending.is_empty() {
                        "ready\n".to_owned()
                    } else {
                        format!("pending: {}\n", pending.join(", "))
                    },
                )
            }
            Ok(Asked::Logging(filter)) => match self.log.set_level(filter) {
                Ok(()) => text(StatusCode::OK, format!("log level is {}\n", self.log.level())),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            Ok(Asked::CniUninstall) => self.cni_uninstall().await,
            Ok(Asked::Order(order)) => {
                tracing::info!(?order, "ordered over the admin socket");
                match self.orders.try_send(order) {
                    Ok(()) => text(StatusCode::ACCEPTED, format!("{order:?} under way\n")),
                    Err(_) => text(StatusCode::CONFLICT, "an order is under way already\n"),
                }
            }
        }
    }

    async fn cni_uninstall(&self) -> Reply {
        let Some(cni) = &self.cni else { return text(StatusCode::NOT_FOUND, "this agent keeps no CNI plugin\n") };
        match cni.uninstall().await {
            Ok(()) => text(StatusCode::OK, "the CNI plugin is off this node until the agent starts again\n"),
            Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
        }
    }

    /// Everything. A large mesh takes seconds to print: not on the thread that everything else of control runs on.
    async fn config_dump(self: Arc<Self>) -> Reply {
        let (pods, kube) = (self.manager.pods().await, self.kube.view().await);
        let printed = tokio::task::spawn_blocking(move || json(&self.dump(&pods, kube.as_ref())));
        printed.await.unwrap_or_else(|error| text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")))
    }

    fn dump(&self, pods: &[PodView], kube: Option<&View>) -> Value {
        let snapshot = self.state.snapshot_owned();
        let mut workloads: Vec<_> = snapshot.workloads().cloned().collect();
        workloads.sort_unstable_by(|a, b| a.uid.cmp(&b.uid));
        let mut services: Vec<_> = snapshot.services().cloned().collect();
        services.sort_unstable_by_key(|service| service.key());
        let mut policies: Vec<&PolicyEntry> = snapshot.policies().collect();
        policies.sort_unstable_by_key(|entry| entry.name());
        let policies: Vec<Value> = policies.into_iter().map(policy_view).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "config": self.config,
            "synced": self.state.is_synced(),
            "pending": self.readiness.pending(),
            "logLevel": self.log.level().to_string(),
            "certificates": self.certificates.list().iter().map(certificate_view).collect::<Vec<_>>(),
            "workloads": workloads.iter().map(|workload| serde_json::to_value(&**workload).unwrap_or_default()).collect::<Vec<_>>(),
            "services": services.iter().map(|service| serde_json::to_value(&**service).unwrap_or_default()).collect::<Vec<_>>(),
            "policies": policies,
            "pods": pods,
            "kubernetes": kube,
            "istioCni": self.zds.as_ref().map(|view| view.lock().clone()),
            "cni": self.cni.as_ref().map(CniHandle::status),
            "kernel": {
                "degradations": self.kernel.degradations(),
                "foreignPrograms": self.kernel.foreign().unwrap_or_default(),
            },
            "workloadState": self.proxy.connections(),
        })
    }
}

/// Decides what a request asks for, or why it is refused. Paths are compared as sent: nothing is decoded or folded.
fn read(request: &Request<Bytes>) -> Result<Asked, (StatusCode, String)> {
    let refuse = |status, why: &str| Err((status, why.to_owned()));
    let headers = request.headers();
    if is_foreign(request) {
        return refuse(
            StatusCode::FORBIDDEN,
            "requests of browsers are not served: no Origin, and Host must be localhost",
        );
    }
    let order = match request.uri().path() {
        "/config_dump" | "/connections" | "/healthz" | "/tap" => false,
        "/logging" | "/drain" | "/quit" | "/cni-uninstall" => true,
        _ => {
            return refuse(
                StatusCode::NOT_FOUND,
                "there are /config_dump /connections /healthz /tap, and to POST: /logging?level= /drain /quit /cni-uninstall",
            );
        }
    };
    if request.method() != if order { Method::POST } else { Method::GET } {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, if order { "POST it" } else { "GET it" });
    }
    if order && !headers.contains_key(ORDER_HEADER) {
        return refuse(StatusCode::FORBIDDEN, &format!("orders need the header {ORDER_HEADER}, with any value"));
    }
    match request.uri().path() {
        "/config_dump" => Ok(Asked::ConfigDump),
        "/connections" => Ok(Asked::Connections),
        "/healthz" => Ok(Asked::Healthz),
        "/tap" => Selector::parse(request.uri().query().unwrap_or_default())
            .map(Asked::Tap)
            .map_err(|error| (StatusCode::BAD_REQUEST, error.to_string())),
        "/drain" => Ok(Asked::Order(Order::Drain)),
        "/quit" => Ok(Asked::Order(Order::Quit)),
        "/cni-uninstall" => Ok(Asked::CniUninstall),
        _ => match request.uri().query().and_then(|query| query.strip_prefix("level=")).map(str::parse) {
            Some(Ok(filter)) => Ok(Asked::Logging(filter)),
            Some(Err(error)) => Err((StatusCode::BAD_REQUEST, mesh_runtime::logging::LogError::to_string(&error))),
            None => refuse(StatusCode::BAD_REQUEST, "?level=LEVEL or ?level=TARGET=LEVEL, separated by commas"),
        },
    }
}

/// A policy with how it came to be in force.
fn policy_view(entry: &PolicyEntry) -> Value {
    json!({ "name": entry.name(), "stale": entry.is_stale(), "policy": entry.policy() })
}

/// A certificate as `istioctl ztunnel-config` reads it. The key has no form that could be printed.
fn certificate_view(status: &mesh_client::CertificateStatus) -> Value {
    let chain: Vec<Value> = status
        .certificate
        .iter()
        .map(|certificate| {
            json!({
                "serialNumber": certificate.serial,
                "validFrom": rfc3339(certificate.not_before),
                "expirationTime": rfc3339(certificate.not_after),
                "generation": certificate.generation,
            })
        })
        .collect();
    json!({
        "identity": status.identity.to_string(),
        "state": if chain.is_empty() { "Unavailable" } else { "Available" },
        "certChain": chain,
        "lastError": status.last_error,
    })
}

fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|time| time.to_string()).unwrap_or_default()
}
