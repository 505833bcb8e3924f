//! Spans on their way to a collector: a bounded queue, in which nobody waits. What finds no room is counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use mesh_core::telemetry::Collector;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::Span;

/// Spans that wait.
const QUEUE: usize = 4096;

/// Spans to one collector.
#[derive(Debug)]
pub struct Exporter {
    collector: Collector,
    queue: mpsc::Sender<Span>,
    counts: Arc<Counts>,
}

/// What became of spans.
#[derive(Debug, Default)]
pub struct Counts {
    /// A collector has taken them.
    pub sent: AtomicU64,
    /// They are lost.
    pub dropped: AtomicU64,
}

/// A collector that somebody has to bring spans to.
#[derive(Debug)]
pub struct Start {
    /// Where it is.
    pub collector: Collector,
    /// What it gets; ends when nobody can send any more.
    pub spans: mpsc::Receiver<Span>,
    /// To be counted in.
    pub counts: Arc<Counts>,
}

impl Exporter {
    /// Sends a span some time, or counts it as dropped.
    pub fn send(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.counts.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// All collectors of a process.
#[derive(Debug)]
pub struct Exporters {
    known: Mutex<Vec<Weak<Exporter>>>,
    counts: Arc<Counts>,
    start: mpsc::UnboundedSender<Start>,
    starts: Mutex<Option<mpsc::UnboundedReceiver<Start>>>,
}

impl Default for Exporters {
    fn default() -> Self {
        let (start, starts) = mpsc::unbounded_channel();
        Self { known: Mutex::default(), counts: Arc::default(), start, starts: Mutex::new(Some(starts)) }
    }
}

impl Exporters {
    /// The one for that collector, as long as somebody uses it.
    pub fn to(&self, collector: &Collector) -> Arc<Exporter> {
        let mut known = self.known.lock();
        known.retain(|one| one.strong_count() > 0);
        if let Some(one) = known.iter().filter_map(Weak::upgrade).find(|one| one.collector == *collector) {
            return one;
        }
        let (queue, spans) = mpsc::channel(QUEUE);
        let counts = Arc::clone(&self.counts);
        // With nobody there, spans are dropped and counted.
        let _ = self.start.send(Start { collector: collector.clone(), spans, counts });
        let exporter = Exporter { collector: collector.clone(), queue, counts: Arc::clone(&self.counts) };
        let exporter = Arc::new(exporter);
        known.push(Arc::downgrade(&exporter));
        exporter
    }

    /// Collectors that are to be started; whoever takes this brings the spans there.
    pub fn starts(&self) -> Option<mpsc::UnboundedReceiver<Start>> {
        self.starts.lock().take()
    }

    /// What became of spans.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}
