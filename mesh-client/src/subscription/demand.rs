//! Questions about single addresses, asked beside the subscription to everything: a connection waits for an address that should be known, and the
//! control plane may be about to tell. Each question is taken back after a while, so that neither end keeps a growing list.

use std::collections::HashMap;

use mesh_proto::{
    ADDRESS_TYPE,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};

/// Questions that stand at the same time. What does not fit waits for the ordinary push: a pod that walks through addresses must not become load
/// on the control plane.
const MOST: usize = 256;

/// The questions that stand, each with its end.
#[derive(Debug, Default)]
pub(super) struct Demands {
    asked: HashMap<String, u64>,
}

impl Demands {
    /// Whether to ask: it has not been asked yet, and there is room.
    pub(super) fn ask(&mut self, name: &str, until_ms: u64) -> bool {
        if self.asked.len() >= MOST || self.asked.contains_key(name) {
            return false;
        }
        self.asked.insert(name.to_owned(), until_ms);
        true
    }

    /// Whether the response says nothing but that what was asked for does not exist.
    pub(super) fn are_all_of(&self, response: &DeltaDiscoveryResponse) -> bool {
        let removed = &response.removed_resources;
        response.resources.is_empty() && !removed.is_empty() && removed.iter().all(|name| self.asked.contains_key(name))
    }

    /// When the next question ends.
    pub(super) fn next_timer(&self) -> Option<u64> {
        self.asked.values().min().copied()
    }

    /// Forgets the questions whose time is over; their names, if there are any.
    pub(super) fn expire(&mut self, now_ms: u64) -> Option<Vec<String>> {
        let names: Vec<String> =
            self.asked.extract_if(|_, until_ms| now_ms >= *until_ms).map(|(name, _)| name).collect();
        (!names.is_empty()).then_some(names)
    }
}

pub(super) fn subscribe(name: String) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.to_owned(),
        resource_names_subscribe: vec![name],
        ..Default::default()
    }
}

pub(super) fn unsubscribe(names: Vec<String>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: ADDRESS_TYPE.to_owned(), resource_names_unsubscribe: names, ..Default::default() }
}
