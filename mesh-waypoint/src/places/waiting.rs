//! Connections of HTTP/1.1 that wait for a request, of one place under its limits and all lanes. Where a place may have few connections, one that waits on one lane
//! for one client must not keep another lane or client from having any: whoever finds the limit reached closes one.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;

use crate::http::RequestBody;

/// Where a connection waits, for whoever comes first.
pub(crate) type Slot = Mutex<Option<SendRequest<RequestBody>>>;

/// Those of one place under its limits, the one that has waited longest first.
#[derive(Default)]
pub(crate) struct Waiting(Mutex<VecDeque<Weak<Slot>>>);

impl Waiting {
    /// One that waits.
    pub(crate) fn add(&self, slot: &Arc<Slot>) {
        let mut waiting = self.0.lock();
        // Those that were taken stand here until they come first: seldom more than there are connections.
        while waiting.front().is_some_and(|slot| slot.upgrade().is_none_or(|slot| slot.lock().is_none())) {
            waiting.pop_front();
        }
        waiting.push_back(Arc::downgrade(slot));
    }

    /// Closes one that waits; whether there was one.
    pub(crate) fn close_one(&self) -> bool {
        let mut waiting = self.0.lock();
        while let Some(slot) = waiting.pop_front() {
            if slot.upgrade().is_some_and(|slot| slot.lock().take().is_some()) {
                return true;
            }
        }
        false
    }
}
