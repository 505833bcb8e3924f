//! The manager with a fake node: starts, stops, panics, cancellation and drain without kernel or sockets.

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use mesh_proto::convert::{PodDnsRequest, PodRequest};
use parking_lot::Mutex;

use super::super::machine::NetnsId;
use super::*;

/// What a fake start does, by pod name.
#[derive(Default)]
struct FakeNode {
    live: AtomicUsize,
    released: Mutex<Vec<BTreeSet<u64>>>,
    let_go: Mutex<Vec<ArcStr>>,
    stop_panics: AtomicBool,
    counts: Mutex<Counts>,
}

struct FakePod(Arc<FakeNode>);

impl Drop for FakePod {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Runner for FakeNode {
    type Payload = ();
    type Running = FakePod;

    async fn start(
        self: Arc<Self>,
        _generation: Generation,
        spec: Arc<Spec>,
        _payload: (),
        _captured: bool,
        cancel: CancellationToken,
    ) -> Result<FakePod, Failure> {
        match &*spec.pod.name {
            "panics" => panic!("on purpose"),
            "fails" => return Err(Failure::passing(Code::Failed, "on purpose")),
            "hangs" => {
                cancel.cancelled().await;
                return Err(Failure::passing(Code::Conflict, "cancelled"));
            }
            _ => tokio::task::yield_now().await,
        }
        self.live.fetch_add(1, Ordering::SeqCst);
        Ok(FakePod(self))
    }

    async fn stop(self: Arc<Self>, running: FakePod, _close: bool) {
        tokio::task::yield_now().await;
        assert!(!self.stop_panics.load(Ordering::SeqCst), "on purpose");
        drop(running);
    }

    async fn drain(self: Arc<Self>, running: FakePod, limit: Duration) {
        tokio::time::sleep(limit).await;
        drop(running);
    }

    async fn let_go(self: Arc<Self>, uid: ArcStr) {
        tokio::task::yield_now().await;
        self.let_go.lock().push(uid);
        panic!("on purpose");
    }

    async fn release(self: Arc<Self>, cookies: BTreeSet<u64>) {
        self.released.lock().push(cookies);
    }

    fn counted(&self, counts: Counts) {
        *self.counts.lock() = counts;
    }
}

fn spec(name: &str, netns: u64) -> Spec {
    let pod = PodRequest {
        uid: format!("uid-{name}-{netns}").into(),
        namespace: "ns".into(),
        name: name.into(),
        service_account: "sa".into(),
        ips: vec!["198.18.0.1".parse().unwrap()],
        dns: PodDnsRequest::default(),
        node: "node".into(),
        rules: Box::default(),
    };
    Spec { pod, netns: NetnsId { cookie: netns, inode: netns } }
}

async fn add(manager: &ManagerHandle<()>, session: SessionId, name: &str, netns: u64) -> Answer {
    let request = manager.fresh_id();
    manager.ask(request, Event::Add { session, request, spec: spec(name, netns), payload: () }).await
}

async fn del(manager: &ManagerHandle<()>, name: &str, netns: u64) -> Result<(), Failure> {
    let request = manager.fresh_id();
    let uid = spec(name, netns).pod.uid;
    manager.ask(request, Event::Del { request, uid }).await.await.unwrap()
}

#[tokio::test]
async fn hardening_f6_a_start_that_panics_or_fails_touches_no_other_pod() {
    let node = Arc::new(FakeNode::default());
    let manager = Manager::spawn(node.clone());
    let session = manager.open_session().await;
    let good = add(&manager, session, "good", 1).await;
    let panics = add(&manager, session, "panics", 2).await;
    let fails = add(&manager, session, "fails", 3).await;
    assert_eq!(good.await.unwrap(), Ok(()));
    assert_eq!(panics.await.unwrap().unwrap_err().code, Code::Failed);
    assert_eq!(fails.await.unwrap().unwrap_err().code, Code::Failed);
    assert_eq!(*node.let_go.lock(), ["uid-panics-2"]);
    let pods = manager.pods().await;
    assert_eq!(pods.iter().map(|pod| pod.name.as_str()).collect::<Vec<_>>(), ["good"]);
    assert_eq!(node.live.load(Ordering::SeqCst), 1);
    // What the one that panicked left in the kernel, if anything, goes with the next snapshot that does not name it.
    let request = manager.fresh_id();
    manager.ask(request, Event::Snapshot { session, request }).await.await.unwrap().unwrap();
    let released = async {
        while node.released.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), released).await.unwrap();
    assert_eq!(*node.released.lock(), [BTreeSet::from([2])]);
}

#[tokio::test]
async fn hardening_f6_nothing_is_held_of_a_pod_whose_stop_panicked() {
    let node = Arc::new(FakeNode::default());
    let manager = Manager::spawn(node.clone());
    let session = manager.open_session().await;
    assert_eq!(add(&manager, session, "pod", 1).await.await.unwrap(), Ok(()));
    node.stop_panics.store(true, Ordering::SeqCst);
    assert_eq!(del(&manager, "pod", 1).await, Ok(()));
    assert_eq!(*node.let_go.lock(), ["uid-pod-1"]);
    assert_eq!(add(&manager, session, "pod", 1).await.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn a_hanging_start_is_cancelled_by_its_removal() {
    let node = Arc::new(FakeNode::default());
    let manager = Manager::spawn(node.clone());
    let session = manager.open_session().await;
    let hangs = add(&manager, session, "hangs", 1).await;
    assert_eq!(del(&manager, "hangs", 1).await, Ok(()));
    assert_eq!(hangs.await.unwrap().unwrap_err().code, Code::Conflict);
    assert_eq!(*node.counts.lock(), Counts::default());
}

#[tokio::test]
async fn hardening_f20_five_hundred_pods_come_and_go() {
    let node = Arc::new(FakeNode::default());
    let manager = Manager::spawn(node.clone());
    let session = manager.open_session().await;
    let mut answers = Vec::new();
    for netns in 0..500 {
        answers.push(add(&manager, session, "pod", netns).await);
    }
    for answer in answers {
        assert_eq!(answer.await.unwrap(), Ok(()));
    }
    assert_eq!(node.live.load(Ordering::SeqCst), 500);
    for netns in 0..500 {
        assert_eq!(del(&manager, "pod", netns).await, Ok(()));
    }
    assert_eq!(node.live.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn hardening_b136_a_closed_session_takes_its_unheard_pods_along() {
    let node = Arc::new(FakeNode::default());
    let manager = Manager::spawn(node.clone());
    let session = manager.open_session().await;
    assert_eq!(add(&manager, session, "unheard", 1).await.await.unwrap(), Ok(()));
    let heard = manager.fresh_id();
    let event = Event::Add { session, request: heard, spec: spec("heard", 2), payload: () };
    assert_eq!(manager.ask(heard, event).await.await.unwrap(), Ok(()));
    manager.tell(Event::Delivered { request: heard }).await;
    manager.tell(Event::Closed { session }).await;
    // A removal of an unknown pod is answered at once, and after what was told before.
    del(&manager, "unheard", 1).await.unwrap();
    let pods = manager.pods().await;
    assert_eq!(pods.iter().map(|pod| pod.name.as_str()).collect::<Vec<_>>(), ["heard"]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_the_pods_and_refuses_requests() {
    let node = Arc::new(FakeNode::default());
    let manager = Manager::spawn(node.clone());
    let session = manager.open_session().await;
    assert_eq!(add(&manager, session, "pod", 1).await.await.unwrap(), Ok(()));
    manager.drain(Duration::from_secs(5)).await;
    assert_eq!(node.live.load(Ordering::SeqCst), 0);
    let refused = add(&manager, session, "late", 2).await.await.unwrap().unwrap_err();
    assert_eq!(refused.code, Code::Stopping);
}

#[tokio::test]
async fn what_only_the_kernel_knows_is_released_and_can_then_be_added() {
    let node = Arc::new(FakeNode::default());
    let manager = Manager::spawn(node.clone());
    manager.tell(Event::Captured { cookies: vec![7, 8] }).await;
    let session = manager.open_session().await;
    assert_eq!(add(&manager, session, "pod", 7).await.await.unwrap(), Ok(()));
    let request = manager.fresh_id();
    manager.ask(request, Event::Snapshot { session, request }).await.await.unwrap().unwrap();
    let added = async { while add(&manager, session, "pod", 8).await.await.unwrap().is_err() {} };
    tokio::time::timeout(Duration::from_secs(5), added).await.unwrap();
    assert_eq!(*node.released.lock(), [BTreeSet::from([8])]);
}
