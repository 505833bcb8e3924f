//! Metrics, readiness and status over plain HTTP. Nothing here is a secret, and nothing can be changed.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use mesh_runtime::http::{Reply, json, reply, text};
use mesh_runtime::metrics;
use mesh_runtime::readiness::Readiness;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::watch;

use crate::diagnosis::Diagnosis;
use crate::serve::server::Streams;
use crate::world::{Audience, Kind, World};

/// What is shown.
#[derive(Clone, Debug)]
pub struct Status {
    /// All counters.
    pub registry: Arc<Registry>,
    /// Whether it serves.
    pub readiness: Readiness,
    /// What is wrong with the configuration.
    pub diagnoses: Arc<ArcSwap<Vec<Diagnosis>>>,
    /// What is wrong with the authority.
    pub authority: Arc<ArcSwap<Vec<Diagnosis>>>,
    /// Who is served.
    pub streams: Arc<Streams>,
    /// What is served.
    pub world: watch::Receiver<Arc<World>>,
}

impl Status {
    /// Answers one request.
    pub async fn answer(self, request: Request<Bytes>) -> Reply {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
        }
        match request.uri().path() {
            "/metrics" | "/stats/prometheus" => {
                reply(StatusCode::OK, metrics::CONTENT_TYPE, metrics::encode(&self.registry).into_bytes())
            }
            "/ready" | "/healthz/ready" => match self.readiness.pending() {
                pending if pending.is_empty() => text(StatusCode::OK, "ready\n"),
                pending => text(StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n", pending.join(", "))),
            },
            "/debug/diagnoses" => {
                let (diagnoses, authority) = (self.diagnoses.load(), self.authority.load());
                json(&json!(authority.iter().chain(diagnoses.iter()).collect::<Vec<_>>()))
            }
            "/debug/syncz" => json(&self.sync()),
            "/" => text(StatusCode::OK, "/metrics\n/ready\n/debug/diagnoses\n/debug/syncz\n"),
            _ => text(StatusCode::NOT_FOUND, "no such page\n"),
        }
    }

    fn sync(&self) -> serde_json::Value {
        let world = self.world.borrow().clone();
        let count = |kind| world.table(kind, &Audience::Agent).len();
        json!({
            "generation": world.generation,
            "resources": {
                "address": count(Kind::Address),
                "authorization": count(Kind::Authorization),
                "connection_routes": count(Kind::Connections),
            },
            "diagnoses": self.diagnoses.load().len() + self.authority.load().len(),
            "streams": self.streams.list(),
        })
    }
}
