//! What the connections of clients lead to. When this waypoint is no more for it, all of them are told to end: one that is idle asks for nothing and would never
//! notice, and a request that came to it later had to be refused. Asked by each new connection; `downstream::follow` tells of each snapshot.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use mesh_runtime::DrainToken;
use mesh_transport::hbone::Authority;
use parking_lot::Mutex;

/// All that there is a connection to.
#[derive(Default)]
pub struct Leads(Arc<Mutex<HashMap<Authority, Weak<Lead>>>>);

/// What some connections lead to; each of them holds it.
pub struct Lead {
    /// When they are to end: with the process, or before.
    pub drain: DrainToken,
    asked: Authority,
    all: Arc<Mutex<HashMap<Authority, Weak<Lead>>>>,
}

impl Leads {
    /// What a connection leads to that asks for this. `drain`: when the process stops.
    pub fn to(&self, asked: &Authority, drain: &DrainToken) -> Arc<Lead> {
        let mut all = self.0.lock();
        if let Some(lead) = all.get(asked).and_then(Weak::upgrade) {
            return lead;
        }
        let lead = Arc::new(Lead { drain: drain.earlier(), asked: asked.clone(), all: Arc::clone(&self.0) });
        all.insert(asked.clone(), Arc::downgrade(&lead));
        lead
    }

    /// Tells connections to what is gone to end. Who asks for it afterwards has nothing to do with them.
    pub fn let_go(&self, is_gone: impl Fn(&Authority) -> bool) {
        // The last holder of one takes the lock again.
        let mut gone = Vec::new();
        self.0.lock().retain(|asked, lead| {
            let stays = !is_gone(asked);
            if !stays {
                gone.extend(lead.upgrade());
            }
            stays
        });
        gone.iter().for_each(|lead| lead.drain.start());
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        // Somebody else may have its name by now.
        if all.get(&self.asked).is_some_and(|lead| lead.strong_count() == 0) {
            all.remove(&self.asked);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_runtime::Drain;

    use super::*;

    #[test]
    fn connections_to_what_is_gone_are_told_and_no_others() {
        let (leads, drain) = (Leads::default(), Drain::new());
        let to = |host: &str| leads.to(&Authority::Host(host.into(), 80), &drain.token());
        let (a, again, b) = (to("a"), to("a"), to("b"));
        let told = || [&a, &again, &b].map(|lead| lead.drain.is_started());
        leads.let_go(|_| false);
        assert_eq!(told(), [false; 3]);
        leads.let_go(|asked| *asked == a.asked);
        assert_eq!(told(), [true, true, false]);
        // It is back.
        let anew = to("a");
        drop((a, again));
        assert!(!anew.drain.is_started() && Arc::ptr_eq(&anew, &to("a")));
        drop((anew, b));
        assert_eq!(leads.0.lock().len(), 0);
        let a = to("a");
        drain.start();
        assert!(a.drain.is_started());
    }
}
