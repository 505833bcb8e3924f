//! Where objects come from. The folder of manifests is one source; whatever else watches objects delivers the same: complete and
//! consistent sets, each replacing the one before.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Instant;

use crate::diagnosis::Diagnosis;
use crate::resource::{Key, Objects};
use crate::verdict::Mark;

/// Everything that is in force, and what is wrong with what was read.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// All objects.
    pub objects: Objects,
    /// All diagnoses.
    pub diagnoses: Vec<Diagnosis>,
    /// File and line of each object, for sources that are files.
    pub places: BTreeMap<Key, (String, u32)>,
    /// Parts of the source with something that could not even be identified. What came from them before stays; at a start there is nothing that could.
    pub unread: Vec<String>,
    /// Objects to whose writers it is told what is in force of them, for sources where that can be told.
    pub marks: BTreeMap<Key, Mark>,
    /// When the first of what is new in it was heard of, if its source says so.
    pub since: Option<Instant>,
}

impl Update {
    /// A copy of it, which may be delivered again later: what is new then is something else.
    pub fn taken(&mut self) -> Update {
        let now = self.clone();
        self.since = None;
        now
    }
}

/// Delivers updates, the first one as soon as everything has been read once.
pub trait Source: Send + 'static {
    /// The next state. `None` when the source has ended.
    fn next(&mut self) -> impl Future<Output = Option<Update>> + Send;
}
