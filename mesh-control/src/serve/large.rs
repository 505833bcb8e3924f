//! A state that does not fit in one message, between a session and the client's own subscription, without sockets: in parts both ways, and what either
//! side sends is within what the other takes.

use std::sync::Arc;

use mesh_client::subscription::{Limits, Subscription};
use mesh_core::{Change, Store, Workload};
use mesh_proto::MAX_MESSAGE_BYTES;
use mesh_proto::discovery::{DeltaDiscoveryRequest, Node};
use prost::Message;

use super::request::MAX_REQUEST;
use super::session::{Action, Session};
use crate::index::View;
use crate::world::{Audience, World};

/// Without optimization so many that there are two parts.
const WORKLOADS: u32 = if cfg!(debug_assertions) { 200_000 } else { 300_000 };

fn workload(n: u32) -> Arc<Workload> {
    let namespace = format!("namespace-{}", n % 200);
    let name = format!("service-{}-7d4b9c6f5-{n:07}", n % 5000);
    let mut w = Workload::new(format!("Kubernetes//Pod/{namespace}/{name}"), namespace, name);
    w.addresses = vec![std::net::IpAddr::from((0x0a00_0000 + n).to_be_bytes())];
    w.node = format!("ip-10-0-{}.eu-central-1.compute.internal", n % 1000).into();
    w.workload_name = format!("service-{}", n % 5000).into();
    w.service_account = w.workload_name.clone();
    w.canonical_name = w.workload_name.clone();
    w.canonical_revision = "v1".into();
    w.cluster_id = "Kubernetes".into();
    Arc::new(w)
}

/// A client, and what it has heard since this was looked at last.
struct Client {
    subscription: Subscription,
    store: Store,
    now_ms: u64,
    parts: usize,
    resources: usize,
    removed: usize,
}

impl Client {
    /// A stream from its beginning until nobody has anything to say.
    fn stream(&mut self, world: &Arc<World>) -> usize {
        (self.parts, self.resources, self.removed) = (0, 0, 0);
        let mut session = Session::new(world.clone(), Audience::Agent);
        let mut requests = self.subscription.on_connected(self.now_ms);
        let listed = requests.iter().map(|r| r.initial_resource_versions.len()).sum();
        while !requests.is_empty() {
            let heard: Vec<Action> = requests.drain(..).flat_map(|request| Self::sent(&mut session, request)).collect();
            let actions = heard.into_iter().chain(session.send());
            requests = actions.filter_map(|action| self.hear(action)).collect();
        }
        listed
    }

    fn sent(session: &mut Session, request: DeltaDiscoveryRequest) -> Vec<Action> {
        assert!(request.encoded_len() <= MAX_REQUEST, "{} bytes", request.encoded_len());
        session.request(request.into())
    }

    fn hear(&mut self, action: Action) -> Option<DeltaDiscoveryRequest> {
        let Action::Send(response) = action else { panic!("{action:?}") };
        assert!(response.size() <= MAX_MESSAGE_BYTES, "{} bytes", response.size());
        self.parts += usize::from(response.count > 0);
        self.resources += response.count;
        self.removed += response.head.removed_resources.len();
        let received = self.subscription.on_message(response.message(), self.now_ms);
        assert_eq!(received.alarms, []);
        self.apply(received.changes);
        let reply = received.reply.into_request();
        assert!(reply.error_detail.is_none());
        Some(reply)
    }

    fn apply(&mut self, changes: Vec<Change>) {
        self.store.apply(changes);
    }

    fn workloads(&self) -> usize {
        self.store.snapshot().counts().0
    }
}

#[test]
fn hardening_F15_a_state_larger_than_a_message_comes_in_parts() {
    let mut view = View::default();
    view.workloads.extend((0..WORKLOADS).map(workload).map(|w| (w.uid.clone(), w)));
    let world = Arc::new(World::default().next(&Arc::new(view.clone())));
    let subscription = Subscription::new(Node::default(), Limits::default());
    let mut client = Client { subscription, store: Store::new(), now_ms: 0, parts: 0, resources: 0, removed: 0 };
    assert_eq!(client.stream(&world), 0);
    println!("{WORKLOADS} workloads in {} parts", client.parts);
    assert!(client.parts > 1);
    assert_eq!((client.resources, client.workloads()), (WORKLOADS as usize, WORKLOADS as usize));

    client.subscription.on_end(false);
    assert!(client.subscription.is_synced());

    // It comes back. What it can list is not sent again unless it has changed, and what is gone is gone, whether it was listed or not.
    let gone = WORKLOADS / 100;
    for n in 0..gone {
        view.workloads.remove(&workload(n * 10).uid);
    }
    let mut changed = (*workload(7)).clone();
    changed.canonical_revision = "v2".into();
    view.workloads.insert(changed.uid.clone(), Arc::new(changed));
    let world = Arc::new(world.next(&Arc::new(view)));
    client.now_ms = 1_000;
    let listed = client.stream(&world);
    let left = (WORKLOADS - gone) as usize;
    println!("{listed} listed, {} sent, {} removed", client.resources, client.removed);
    assert!(listed < WORKLOADS as usize && client.resources <= WORKLOADS as usize - listed + 1);
    assert!(client.removed > 0 && client.workloads() > left, "what was not listed is not gone at once");
    let due = client.subscription.on_timer(client.now_ms + Limits::default().settle_ms);
    client.apply(due.changes);
    assert_eq!(client.workloads(), left);
}
