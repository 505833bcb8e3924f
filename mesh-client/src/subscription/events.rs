//! What goes in and out of a subscription besides requests: bounds, alarms, and what a message or a timer brought.

use mesh_core::Change;
use mesh_proto::discovery::{DeltaDiscoveryRequest, Status};

use super::own::Own;

/// The longest NACK text.
pub(super) const MAX_NACK: usize = 8 << 10;
/// `INVALID_ARGUMENT`
const INVALID: i32 = 3;

/// Bounds and delays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of names and versions in a reconnect request. It shrinks by itself when a server refuses the size.
    pub initial_versions_bytes: usize,
    /// Pushes that remove fewer workloads than this are never held back.
    pub guarded_removals: usize,
    /// How long a suspicious removal is held before it is asked for again.
    pub hold_ms: u64,
    /// How long a new stream must be quiet before names that it did not mention are gone.
    pub settle_ms: u64,
    /// How long a question about one address stands. Longer than a connection is held for the answer.
    pub demand_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            initial_versions_bytes: 16 << 20,
            guarded_removals: 10,
            hold_ms: 60_000,
            settle_ms: 10_000,
            demand_ms: 5_000,
        }
    }
}

/// Something that an operator must see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Resources were refused.
    Rejected {
        /// The type.
        type_url: &'static str,
        /// Which and why.
        problems: Vec<String>,
    },
    /// A removal of most of the mesh is held back.
    RemovalSuspended {
        /// How many resources.
        names: usize,
    },
    /// A removal of most of the mesh was confirmed and is being applied.
    RemovalConfirmed {
        /// How many resources.
        names: usize,
    },
}

/// The answer to one response. It is sent after its changes have been applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub(super) type_url: String,
    pub(super) nonce: String,
    pub(super) problems: Vec<String>,
}

impl Reply {
    /// Adds a reason to refuse, for example that the changes could not be applied.
    pub fn refuse(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// The request to send: an ACK, or a NACK that names what is wrong.
    #[must_use]
    pub fn into_request(self) -> DeltaDiscoveryRequest {
        let mut message = self.problems.join("; ");
        if message.len() > MAX_NACK {
            let end = (0..=MAX_NACK).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
            message.truncate(end);
            message.push_str("...");
        }
        let error_detail = (!self.problems.is_empty()).then(|| Status { code: INVALID, message, details: Vec::new() });
        DeltaDiscoveryRequest {
            type_url: self.type_url,
            response_nonce: self.nonce,
            error_detail,
            ..DeltaDiscoveryRequest::default()
        }
    }
}

/// What came out of one response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// To be applied in order, as one batch.
    pub changes: Vec<Change>,
    /// To be applied before them: what is said to be complete is.
    pub own: Option<Own>,
    /// To be sent afterwards.
    pub reply: Reply,
    /// To be logged and counted.
    pub alarms: Vec<Alarm>,
}

/// What a timer brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Due {
    /// To be applied.
    pub changes: Vec<Change>,
    /// To be sent.
    pub requests: Vec<DeltaDiscoveryRequest>,
    /// End the stream and open a new one.
    pub reconnect: bool,
    /// To be logged and counted.
    pub alarms: Vec<Alarm>,
}
