//! The proxy as one thing: what each lane has for itself, and all of them. Made by the process and by tests.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use mesh_runtime::lanes::{self, Lanes};
use mesh_runtime::{DrainToken, task};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::http::cork::Spare;
use crate::shared::Shared;
use crate::sources::{EdgePlace, Full, Places};
use crate::telemetry::{self, Meters};
use crate::upstream::Pool;

/// How often unused connections are looked for.
const TIDY: Duration = Duration::from_secs(5);
/// How long label sets are shown that nobody uses, and how often they are looked for.
const UNUSED: Duration = Duration::from_secs(3600);
const EXPIRE: Duration = Duration::from_secs(60);

/// What one thread has for itself. Its locks are taken by that thread alone, but for a scrape of the metrics.
pub struct Lane {
    /// What all have.
    pub shared: Arc<Shared>,
    /// Connections to endpoints.
    pub pool: Pool,
    /// What is drawn by lot.
    pub rng: Mutex<SmallRng>,
    /// Numbers of requests.
    pub meters: Arc<Meters>,
    /// Copies on their way.
    pub mirrors: AtomicUsize,
    /// Bytes of their bodies that wait to be sent.
    pub mirrored: Arc<AtomicUsize>,
    /// In which lines of the log are made.
    pub scratch: Mutex<[String; 2]>,
    /// In which answers of HTTP/2 wait for the end of a round.
    pub spare: Arc<Spare>,
    /// Connections from outside of the mesh.
    edge: Arc<Places>,
}

impl Lane {
    /// A place for one more connection from outside of the mesh, if there is one.
    pub fn edge_place(&self) -> Result<EdgePlace, Full> {
        self.edge.enter(self.shared.settings.edge_connections)
    }
}

/// All lanes. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    lanes: Arc<[Arc<Lane>]>,
    threads: Lanes,
}

impl Engine {
    /// One lane for each of these threads.
    #[must_use]
    pub fn new(shared: Shared, threads: Lanes) -> Self {
        let shared = Arc::new(shared);
        let lane = |index: usize| {
            let seed = shared.settings.seed.map(|seed| seed.wrapping_add(index as u64));
            let rng = seed.map_or_else(|| SmallRng::from_rng(&mut rand::rng()), SmallRng::seed_from_u64);
            Arc::new(Lane {
                shared: Arc::clone(&shared),
                pool: Pool::default(),
                rng: Mutex::new(rng),
                meters: Arc::default(),
                mirrors: AtomicUsize::new(0),
                mirrored: Arc::default(),
                scratch: Mutex::default(),
                spare: Arc::default(),
                edge: Arc::default(),
            })
        };
        let count = threads.handles().len();
        Self { lanes: (0..count).map(lane).collect(), threads }
    }

    /// The lane of this thread.
    #[must_use]
    pub fn here(&self) -> &Arc<Lane> {
        &self.lanes[lanes::current().min(self.lanes.len() - 1)]
    }

    /// All of them.
    #[must_use]
    pub fn lanes(&self) -> &[Arc<Lane>] {
        &self.lanes
    }

    /// Their threads.
    #[must_use]
    pub fn threads(&self) -> &Lanes {
        &self.threads
    }

    /// What all lanes share.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.lanes[0].shared
    }

    /// Forgets numbers that nobody adds to any more, until the process drains.
    pub async fn expire(self, drain: DrainToken) {
        let meters: Vec<_> = self.lanes.iter().map(|lane| Arc::clone(&lane.meters)).collect();
        loop {
            tokio::select! {
                () = drain.started() => return,
                () = tokio::time::sleep(EXPIRE) => {}
            }
            let (shared, now) = (self.shared(), self.shared().now_ms());
            telemetry::expire(&meters, now, UNUSED);
            shared.paths.expire(|| |_| false, now, UNUSED);
        }
    }

    /// Closes connections to endpoints that nobody has used for a while, on each lane, until the process drains.
    pub fn keep_tidy(&self, drain: &DrainToken) {
        for (lane, thread) in self.lanes.iter().zip(self.threads.handles()) {
            let (lane, drain) = (Arc::downgrade(lane), drain.clone());
            task::spawn_on(thread, "unused connections", async move {
                loop {
                    tokio::select! {
                        () = drain.started() => return,
                        () = tokio::time::sleep(TIDY) => {}
                    }
                    let Some(lane) = lane.upgrade() else { return };
                    lane.pool.expire();
                    lane.shared.places.expire(lane.shared.now_ms());
                    lane.shared.datagram_places.expire(lane.shared.now_ms());
                }
            });
        }
    }
}
