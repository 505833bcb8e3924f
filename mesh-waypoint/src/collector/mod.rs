//! Brings spans to collectors: batches, one connection at a time, on the control thread. A collector that is away costs spans, which are counted, and nothing
//! else: it is tried again ever more seldom.

mod post;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use mesh_core::telemetry::{Collector, CollectorKind};
use mesh_runtime::{DrainToken, task};
use tokio::sync::mpsc;

use self::post::{Connection, PostError};
use crate::shared::Shared;
use crate::telemetry::spans::{Counts, Span, otlp, zipkin};

/// Spans of one batch.
const BATCH: usize = 256;
/// How long a batch may take.
const POST: Duration = Duration::from_secs(5);
/// How long is waited after a batch was lost, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Brings spans to all collectors that are named from now on, until the process drains. To be run once.
pub async fn run(shared: Arc<Shared>, drain: DrainToken) {
    let Some(mut starts) = shared.telemetry.exporters.starts() else { return };
    loop {
        let start = tokio::select! {
            () = drain.started() => return,
            start = starts.recv() => start,
        };
        let Some(start) = start else { return };
        let worker = Worker {
            shared: Arc::downgrade(&shared),
            collector: start.collector,
            service: service(&shared),
            flush: shared.settings.span_flush,
            counts: start.counts,
        };
        task::spawn("spans", worker.run(start.spans));
    }
}

/// As Istio calls it: the workload and its namespace.
fn service(shared: &Shared) -> String {
    let own = &shared.own;
    let name = own.baggage.workload.as_deref().or_else(|| own.service.name.split('.').next());
    format!("{}.{}", name.unwrap_or_default(), own.service.namespace)
}

struct Worker {
    shared: Weak<Shared>,
    collector: Collector,
    service: String,
    flush: Duration,
    counts: Arc<Counts>,
}

impl Worker {
    /// Ends when nobody can send any more.
    async fn run(self, mut spans: mpsc::Receiver<Span>) {
        let (mut connection, mut pause) = (None, PAUSE.0);
        while let Some(batch) = self.batch(&mut spans).await {
            let posted = tokio::time::timeout(POST, self.post(&mut connection, &batch)).await;
            let failure = match posted {
                Ok(Ok(())) => {
                    self.counts.sent.fetch_add(batch.len() as u64, Relaxed);
                    pause = PAUSE.0;
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "timed out".to_owned(),
            };
            connection = None;
            self.counts.dropped.fetch_add(batch.len() as u64, Relaxed);
            let (host, port) = (&self.collector.host, self.collector.port);
            tracing::debug!(%host, port, failure, spans = batch.len(), "spans are lost");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Waits for a span, and for a while for more.
    async fn batch(&self, spans: &mut mpsc::Receiver<Span>) -> Option<Vec<Span>> {
        let mut batch = vec![spans.recv().await?];
        let more = async {
            while batch.len() < BATCH {
                let left = BATCH - batch.len();
                if spans.recv_many(&mut batch, left).await == 0 {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(self.flush, more).await;
        Some(batch)
    }

    async fn post(&self, connection: &mut Option<Connection>, batch: &[Span]) -> Result<(), PostError> {
        let bytes = match self.collector.kind {
            CollectorKind::OtlpGrpc | CollectorKind::OtlpHttp => otlp::encode(&self.service, batch),
            CollectorKind::Zipkin => zipkin::encode(&self.service, batch),
        };
        if !connection.as_ref().is_some_and(Connection::is_open) {
            let gone = || PostError::Connect("the process ends".to_owned());
            let shared = self.shared.upgrade().ok_or_else(gone)?;
            *connection = Some(Connection::open(&shared, &self.collector).await?);
        }
        match connection {
            Some(open) => open.post(&self.collector, bytes).await,
            None => Err(PostError::Answer),
        }
    }
}
