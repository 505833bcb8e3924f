//! What the control plane has said, as requests read it: one immutable view of endpoints and routes, replaced as a whole.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use mesh_core::Snapshot;
use mesh_core::l7::Table;

/// One moment.
#[derive(Clone, Default)]
pub struct View {
    /// Workloads, services, policies.
    pub snapshot: Arc<Snapshot>,
    /// Routes.
    pub table: Arc<Table>,
}

/// The current view. Whoever applies what arrives is the only writer.
#[derive(Default)]
pub struct State {
    view: ArcSwap<View>,
}

impl State {
    /// Nothing is known yet: everything is refused.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The current view. Not to be held over an await.
    pub fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// Other workloads, services or policies.
    pub fn set_snapshot(&self, snapshot: Arc<Snapshot>) {
        self.view.rcu(|view| View { snapshot: Arc::clone(&snapshot), table: Arc::clone(&view.table) });
    }

    /// Other routes.
    pub fn set_table(&self, table: Arc<Table>) {
        self.view.rcu(|view| View { snapshot: Arc::clone(&view.snapshot), table: Arc::clone(&table) });
    }
}
