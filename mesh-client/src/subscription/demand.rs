//! Questions about single addresses, asked beside the subscription to everything: a connection waits for an address that should be known, and the
//! control plane may be about to tell. Each question is taken back after a while, so that neither end keeps a growing list.
//!
//! A control plane may answer each question, and each one that is taken back, with all that it has, as istiod does. Then nothing is asked any more: a
//! connection to an unknown address waits for the ordinary push.

use std::collections::HashMap;

use mesh_proto::{
    ADDRESS_TYPE,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};

/// Questions that stand at the same time. What does not fit waits for the ordinary push: a pod that walks through addresses must not become load
/// on the control plane.
const MOST: usize = 256;

/// Questions that stand until it is known how they are answered.
const TRIAL: usize = 8;
/// So many resources are no answer to one question, if they are most of what there is.
const LAVISH: usize = 64;

/// How questions are answered.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Manner {
    #[default]
    Unknown,
    /// With what was asked for.
    Sparing,
    /// With everything.
    Lavish,
}

/// The questions that stand, each with its end.
#[derive(Debug, Default)]
pub(super) struct Demands {
    asked: HashMap<String, u64>,
    manner: Manner,
}

impl Demands {
    /// Whether to ask: it has not been asked yet, and there is room.
    pub(super) fn ask(&mut self, name: &str, until_ms: u64) -> bool {
        let most = match self.manner {
            Manner::Unknown => TRIAL,
            Manner::Sparing => MOST,
            Manner::Lavish => 0,
        };
        if self.asked.len() >= most || self.asked.contains_key(name) {
            return false;
        }
        self.asked.insert(name.to_owned(), until_ms);
        true
    }

    /// A new stream: its first answer is about everything.
    pub(super) fn renew(&mut self) {
        self.asked.clear();
    }

    /// Learns from a response how questions are answered. `held` is how many resources there are.
    pub(super) fn learn(&mut self, response: &DeltaDiscoveryResponse, held: usize) {
        if self.asked.is_empty() || self.manner == Manner::Lavish {
            return;
        }
        let count = response.resources.len();
        let answers = response.removed_resources.iter().any(|name| self.asked.contains_key(name));
        if answers && count >= LAVISH && count * 2 > held {
            self.manner = Manner::Lavish;
            // To take them back would be answered in the same way.
            self.asked.clear();
            tracing::info!(
                "the control plane answers questions about one address with all of them: none is asked any more"
            );
        } else if answers || count == 1 {
            self.manner = Manner::Sparing;
        }
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
