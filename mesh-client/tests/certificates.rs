//! The certificate manager against authorities that are slow, gone, or lie, and against the real protocol over TLS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use common::{Ca, ControlPlane, Leaf, soon, until};
use mesh_client::{Authority, CertificateManager, ClientMetrics, IssueError, certificates::Issued};
use mesh_core::Identity;
use rcgen::{KeyPair, SanType};
use tokio::{io::AsyncReadExt, sync::Semaphore};
use tonic::Status;

type Answer = Box<dyn Fn(&Identity, &str) -> Result<Vec<String>, IssueError> + Send + Sync>;

/// An authority without a network. Requests wait at the gate, if there is one.
struct Mock {
    answer: Mutex<Answer>,
    calls: Mutex<Vec<Identity>>,
    running: AtomicUsize,
    most: AtomicUsize,
    gate: Option<Semaphore>,
}

impl Mock {
    fn new(answer: impl Fn(&Identity, &str) -> Result<Vec<String>, IssueError> + Send + Sync + 'static) -> Arc<Self> {
        Self::with_gate(answer, None)
    }

    fn with_gate(
        answer: impl Fn(&Identity, &str) -> Result<Vec<String>, IssueError> + Send + Sync + 'static,
        gate: Option<Semaphore>,
    ) -> Arc<Self> {
        Arc::new(Self {
            answer: Mutex::new(Box::new(answer)),
            calls: Mutex::default(),
            running: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            gate,
        })
    }

    fn honest() -> (Arc<Self>, Arc<Ca>) {
        let ca = Arc::new(Ca::new("mesh"));
        let signer = Arc::clone(&ca);
        (Self::new(move |_, csr| Ok(signer.answer(csr))), ca)
    }

    fn set(&self, answer: impl Fn(&Identity, &str) -> Result<Vec<String>, IssueError> + Send + Sync + 'static) {
        *self.answer.lock().unwrap() = Box::new(answer);
    }

    fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }
}

impl Authority for Mock {
    fn issue<'a>(&'a self, identity: &'a Identity, csr: String, _: Duration) -> Issued<'a> {
        Box::pin(async move {
            self.calls.lock().unwrap().push(identity.clone());
            let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(running, Ordering::SeqCst);
            if let Some(gate) = &self.gate {
                gate.acquire().await.unwrap().forget();
            }
            self.running.fetch_sub(1, Ordering::SeqCst);
            (self.answer.lock().unwrap())(identity, &csr)
        })
    }
}

fn manager(mock: &Arc<Mock>) -> CertificateManager {
    let authority: Arc<dyn Authority> = mock.clone();
    CertificateManager::with_authority(authority, Duration::from_secs(3600), vec![], ClientMetrics::default())
}

/// A manager on a node with one pod of the account `cart`.
fn manager_with_cart(mock: &Arc<Mock>) -> (CertificateManager, Identity) {
    let (manager, cart) = (manager(mock), identity("cart"));
    manager.prefetch(&cart);
    (manager, cart)
}

fn identity(account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

fn gone() -> Result<Vec<String>, IssueError> {
    Err(IssueError::Unavailable { problem: "down".into() })
}

#[tokio::test]
async fn a_certificate_is_asked_for_checked_and_kept() {
    let (mock, _) = Mock::honest();
    let (manager, cart) = manager_with_cart(&mock);
    assert!(manager.current(&cart).is_none());
    let certificate = soon("a certificate", manager.certificate(&cart)).await;
    assert_eq!(certificate.identity, cart);
    assert!(Arc::ptr_eq(&certificate, &manager.current(&cart).unwrap()));
    assert!(Arc::ptr_eq(&certificate, &soon("the same", manager.certificate(&cart)).await));
    assert_eq!(mock.calls(), 1);
    assert_eq!(manager.list().len(), 1);
    assert!(manager.last_error(&cart).is_none());
}

#[tokio::test]
async fn hardening_F54_a_thousand_pods_of_twenty_accounts_make_twenty_requests_eight_at_a_time() {
    let ca = Arc::new(Ca::new("mesh"));
    let mock = Mock::with_gate(move |_, csr| Ok(ca.answer(csr)), Some(Semaphore::new(0)));
    let manager = manager(&mock);
    let waiting: Vec<_> = (0..1000)
        .map(|n| {
            let (manager, identity) = (manager.clone(), identity(&format!("sa-{}", n % 20)));
            manager.prefetch(&identity);
            tokio::spawn(async move { manager.certificate(&identity).await })
        })
        .collect();
    until("eight requests", || mock.calls() == 8).await;
    mock.gate.as_ref().unwrap().add_permits(1000);
    for pod in waiting {
        soon("a certificate for each pod", pod).await.unwrap();
    }
    assert_eq!((mock.calls(), mock.most.load(Ordering::SeqCst)), (20, 8));
}

#[tokio::test]
async fn the_last_forget_drops_the_certificate_and_ends_renewal() {
    let (mock, ca) = Mock::honest();
    mock.set(move |_, csr| {
        let leaf = Leaf { life: Duration::from_secs(2), ..Leaf::default() };
        Ok(vec![ca.sign(csr, leaf), ca.pem.clone()])
    });
    let (manager, cart) = manager_with_cart(&mock);
    manager.prefetch(&cart);
    soon("a certificate", manager.certificate(&cart)).await;
    manager.forget(&cart);
    assert!(manager.current(&cart).is_some());
    until("a renewal", || mock.calls() >= 2).await;
    manager.forget(&cart);
    assert!(manager.current(&cart).is_none() && manager.list().is_empty());
    manager.forget(&cart);
    let calls = mock.calls();
    // Longer than a renewal would take.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(mock.calls(), calls);
}

#[tokio::test]
async fn hardening_F41_rotation_gives_new_connections_the_new_certificate() {
    let (mock, ca) = Mock::honest();
    let life = Duration::from_secs(3);
    mock.set(move |_, csr| Ok(vec![ca.sign(csr, Leaf { life, ..Leaf::default() }), ca.pem.clone()]));
    let (manager, cart) = manager_with_cart(&mock);
    let mut last = soon("a certificate", manager.certificate(&cart)).await;
    for _ in 0..3 {
        until("a renewal", || manager.current(&cart).is_some_and(|c| c.generation > last.generation)).await;
        let next = manager.current(&cart).expect("there is always a valid one");
        assert_ne!(next.serial, last.serial);
        assert!(mesh_runtime::clock::now() < last.not_after, "renewed before the old one ended");
        last = next;
    }
}

#[tokio::test]
async fn a_valid_certificate_outlives_the_authority_and_an_expired_one_does_not_serve() {
    let (mock, ca) = Mock::honest();
    let life = Duration::from_secs(3);
    mock.set(move |_, csr| Ok(vec![ca.sign(csr, Leaf { life, ..Leaf::default() }), ca.pem.clone()]));
    let (manager, cart) = manager_with_cart(&mock);
    let certificate = soon("a certificate", manager.certificate(&cart)).await;
    mock.set(|_, _| gone());
    until("a failed renewal", || manager.last_error(&cart).is_some()).await;
    assert!(manager.last_error(&cart).unwrap().contains("down"));
    assert!(Arc::ptr_eq(&certificate, &manager.current(&cart).unwrap()));
    until("the end of its life", || manager.current(&cart).is_none()).await;
    assert!(mesh_runtime::clock::now() >= certificate.not_after);
    let honest = Ca::new("mesh");
    mock.set(move |_, csr| Ok(honest.answer(csr)));
    let next = soon("a new certificate", manager.certificate(&cart)).await;
    assert!(next.generation > certificate.generation);
}

#[tokio::test]
async fn hardening_F42_lies_are_never_installed() {
    type Lie = Box<dyn Fn(&Ca, &str) -> Vec<String> + Send + Sync>;
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let names = move |names: Vec<SanType>| -> Lie {
        Box::new(move |ca, csr| {
            vec![ca.sign(csr, Leaf { names: Some(names.clone()), ..Leaf::default() }), ca.pem.clone()]
        })
    };
    let leaf = |make: fn() -> Leaf| -> Lie { Box::new(move |ca, csr| vec![ca.sign(csr, make()), ca.pem.clone()]) };
    let own = || uri("spiffe://cluster.local/ns/shop/sa/cart");
    let lies: Vec<(&str, Lie)> = vec![
        ("another account", names(vec![uri("spiffe://cluster.local/ns/shop/sa/admin")])),
        ("another namespace", names(vec![uri("spiffe://cluster.local/ns/other/sa/cart")])),
        ("another trust domain", names(vec![uri("spiffe://evil.example/ns/shop/sa/cart")])),
        ("two names", names(vec![own(), uri("spiffe://cluster.local/ns/shop/sa/admin")])),
        ("the same name twice", names(vec![own(), own()])),
        ("no name", names(vec![])),
        ("a DNS name", names(vec![SanType::DnsName("cart.shop".try_into().unwrap())])),
        ("not a SPIFFE name", names(vec![uri("https://cluster.local/ns/shop/sa/cart")])),
        ("expired", leaf(|| Leaf { expired_for: Duration::from_secs(2), ..Leaf::default() })),
        ("not yet valid", leaf(|| Leaf { starts_in: Duration::from_secs(600), ..Leaf::default() })),
        ("an authority itself", leaf(|| Leaf { is_ca: true, ..Leaf::default() })),
        (
            "another key",
            Box::new(|ca, _| {
                let mut params = rcgen::CertificateParams::default();
                params.subject_alt_names =
                    vec![SanType::URI("spiffe://cluster.local/ns/shop/sa/cart".try_into().unwrap())];
                let csr = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
                ca.answer(&csr)
            }),
        ),
        ("signed by another root", Box::new(|ca, csr| vec![Ca::new("evil").answer(csr).remove(0), ca.pem.clone()])),
        ("nothing", Box::new(|_, _| vec![])),
        ("only a leaf", Box::new(|ca, csr| vec![ca.answer(csr).remove(0)])),
        ("root before leaf", Box::new(|ca, csr| vec![ca.pem.clone(), ca.answer(csr).remove(0)])),
        ("garbage for a leaf", Box::new(|ca, _| vec!["\0\u{1F4A9}".into(), ca.pem.clone()])),
        ("an empty leaf", Box::new(|ca, _| vec![String::new(), ca.pem.clone()])),
        ("garbage for roots", Box::new(|ca, csr| vec![ca.answer(csr).remove(0), "no PEM".into()])),
        (
            "a chain of 10 MiB",
            Box::new(|ca, csr| vec![ca.answer(csr).remove(0), ca.pem.repeat(15_000), ca.pem.clone()]),
        ),
        ("roots of 10 MiB", Box::new(|ca, csr| vec![ca.answer(csr).remove(0), ca.pem.repeat(15_000)])),
        (
            "a broken certificate",
            Box::new(|ca, csr| vec![ca.answer(csr).remove(0).replace("MII", "AAA"), ca.pem.clone()]),
        ),
    ];
    let checks = lies.into_iter().map(|(name, lie)| async move {
        let ca = Arc::new(Ca::new("mesh"));
        let liar = Arc::clone(&ca);
        let mock = Mock::new(move |_, csr| Ok(lie(&liar, csr)));
        let (manager, cart) = manager_with_cart(&mock);
        manager.prefetch(&cart);
        until(name, || manager.last_error(&cart).is_some()).await;
        let error = manager.last_error(&cart).unwrap();
        assert!(manager.current(&cart).is_none(), "{name}");
        assert!(error.contains("refused"), "{name}: {error}");
        // The truth later is believed.
        mock.set(move |_, csr| Ok(ca.answer(csr)));
        soon(name, manager.certificate(&cart)).await;
    });
    futures_util::future::join_all(checks).await;
}

#[tokio::test]
async fn hardening_F42_an_authority_that_hangs_is_given_up_and_does_not_block_others() {
    let ca = Arc::new(Ca::new("mesh"));
    let mock = Mock::with_gate(move |_, csr| Ok(ca.answer(csr)), Some(Semaphore::new(0)));
    let (manager, cart) = manager_with_cart(&mock);
    until("the deadline", || manager.last_error(&cart).is_some_and(|e| e.contains("10 s"))).await;
    mock.gate.as_ref().unwrap().add_permits(10);
    soon("a certificate", manager.certificate(&cart)).await;
}

#[tokio::test]
async fn hardening_B97_without_a_pod_nothing_is_asked_for_or_kept() {
    let (mock, _) = Mock::honest();
    let (manager, cart) = manager_with_cart(&mock);
    soon("a certificate", manager.certificate(&cart)).await;
    manager.forget(&cart);
    // A connection of the pod that has just gone, and of one that never was.
    for late in [&cart, &identity("admin")] {
        let mut waiting = std::pin::pin!(manager.certificate(late));
        assert!(futures_util::poll!(&mut waiting).is_pending());
    }
    assert!(manager.list().is_empty());
    manager.prefetch(&identity("other"));
    soon("another's certificate", manager.certificate(&identity("other"))).await;
    assert_eq!(*mock.calls.lock().unwrap(), [cart, identity("other")]);
}

/// The wall clock of both the node and its authority, which stand on one machine, or of the node alone.
#[derive(Clone, Default)]
struct SetClock(Arc<Mutex<(u64, bool)>>);

impl SetClock {
    fn set(&self, ahead: i64) {
        *self.0.lock().unwrap() = (ahead.unsigned_abs(), ahead < 0);
    }

    fn now(&self) -> SystemTime {
        let (seconds, behind) = *self.0.lock().unwrap();
        let (real, by) = (mesh_runtime::clock::now(), Duration::from_secs(seconds));
        if behind { real - by } else { real + by }
    }

    fn manager(&self, mock: &Arc<Mock>) -> CertificateManager {
        let (authority, clock): (Arc<dyn Authority>, _) = (mock.clone(), self.clone());
        let day = Duration::from_secs(24 * 3600);
        CertificateManager::with_clock(authority, day, vec![], ClientMetrics::default(), Arc::new(move || clock.now()))
    }
}

const DAY: i64 = 24 * 3600;

#[tokio::test]
async fn hardening_F44_a_clock_that_jumps_renews_each_identity_once_at_most() {
    // Set back by a day, the clock is before all certificates: nobody accepts them until each is renewed. The new ones end where the first began.
    let jumps = [(DAY + 60, 20, 0), (-DAY, 20, 20), (10 * 365 * DAY, 20, 0), (3600, 0, 0), (-100, 0, 0)];
    let one_jump = async |(jump, renewals, back): (i64, usize, usize)| {
        let (clock, ca) = (SetClock::default(), Arc::new(Ca::new("mesh")));
        let (seen, signer) = (clock.clone(), Arc::clone(&ca));
        let mock = Mock::new(move |_, csr| {
            let leaf = Leaf { now: Some(seen.now()), life: Duration::from_secs(24 * 3600), ..Leaf::default() };
            Ok(vec![signer.sign(csr, leaf), signer.pem.clone()])
        });
        let manager = clock.manager(&mock);
        let identities: Vec<Identity> = (0..20).map(|n| identity(&format!("sa-{n}"))).collect();
        for identity in &identities {
            manager.prefetch(identity);
            soon("a certificate", manager.certificate(identity)).await;
        }
        let generations =
            || identities.iter().filter_map(|id| Some(manager.current(id)?.generation)).collect::<Vec<_>>();
        let first = generations();
        clock.set(jump);
        if jump < 0 {
            until("the renewals", || mock.calls() == 20 + renewals).await;
            let fresh = || identities.iter().all(|id| manager.current(id).is_some_and(|c| !c.is_early(clock.now())));
            until("certificates that have begun", fresh).await;
            assert_eq!(generations(), first, "what was proven with the former ones is still proven");
        }
        // Every pod has connections that want a certificate, all of them at once, again and again.
        for _ in 0..5 {
            let wanted = identities.iter().flat_map(|identity| [identity; 10]);
            let waiting = wanted.map(|identity| manager.certificate(identity));
            for certificate in soon("certificates", futures_util::future::join_all(waiting)).await {
                assert!(clock.now() < certificate.not_after);
            }
        }
        assert_eq!(mock.calls(), 20 + renewals, "a jump of {jump} s");
        // And back: what is valid then is kept.
        clock.set(0);
        for identity in &identities {
            soon("a certificate", manager.certificate(identity)).await;
        }
        assert_eq!(mock.calls(), 20 + renewals + back, "a jump of {jump} s, and back");
    };
    futures_util::future::join_all(jumps.map(one_jump)).await;
}

#[tokio::test]
async fn hardening_F44_a_node_that_alone_is_behind_keeps_what_it_has() {
    let (mock, ca) = Mock::honest();
    mock.set(move |_, csr| {
        let leaf = Leaf { life: Duration::from_secs(24 * 3600), ..Leaf::default() };
        Ok(vec![ca.sign(csr, leaf), ca.pem.clone()])
    });
    let (clock, cart) = (SetClock::default(), identity("cart"));
    let manager = clock.manager(&mock);
    manager.prefetch(&cart);
    let first = soon("a certificate", manager.certificate(&cart)).await;
    clock.set(-DAY);
    // The authority's new one is as early as the one that there is.
    until("the alarm", || manager.last_error(&cart).is_some_and(|error| error.contains("NotValidYet"))).await;
    assert_eq!(manager.current(&cart).unwrap().serial, first.serial, "peers with the right time accept it");
    clock.set(0);
    assert_eq!(soon("a certificate", manager.certificate(&cart)).await.serial, first.serial);
}

#[tokio::test]
async fn hardening_F44_a_node_whose_clock_is_wrong_says_so_and_does_not_hammer() {
    for (jump, word) in [(DAY + 60, "Expired"), (-DAY, "NotValidYet")] {
        let (mock, ca) = Mock::honest();
        mock.set(move |_, csr| {
            let leaf = Leaf { life: Duration::from_secs(24 * 3600), ..Leaf::default() };
            Ok(vec![ca.sign(csr, leaf), ca.pem.clone()])
        });
        let clock = SetClock::default();
        clock.set(jump);
        let manager = clock.manager(&mock);
        let cart = identity("cart");
        manager.prefetch(&cart);
        until("a refusal", || manager.last_error(&cart).is_some()).await;
        let error = manager.last_error(&cart).unwrap();
        assert!(error.contains(word), "{error}");
        assert!(manager.current(&cart).is_none());
        // Set right, it recovers by itself.
        clock.set(0);
        soon("a certificate", manager.certificate(&cart)).await;
    }
}

#[tokio::test]
async fn failures_back_off_per_identity() {
    let mock = Mock::new(|_, _| gone());
    let manager = manager(&mock);
    manager.prefetch(&identity("cart"));
    until("three requests", || mock.calls() >= 3).await;
    let start = mock.calls();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(mock.calls() - start <= 4, "{} requests in one second", mock.calls() - start);
}

#[tokio::test]
async fn dropping_the_manager_ends_its_tasks() {
    let (mock, _) = Mock::honest();
    let (manager, cart) = manager_with_cart(&mock);
    soon("a certificate", manager.certificate(&cart)).await;
    drop(manager);
    until("the tasks to end", || Arc::strong_count(&mock) == 1).await;
}

#[tokio::test]
async fn the_request_is_as_istio_expects_it() {
    let ca = Arc::new(Ca::new("mesh"));
    let (signer, seen) = (Arc::clone(&ca), Arc::new(Mutex::new(None)));
    let record = Arc::clone(&seen);
    let server = ControlPlane::start(Arc::new(move |request, metadata| {
        *record.lock().unwrap() = Some((request.clone(), metadata.clone()));
        Ok(signer.answer(&request.csr))
    }))
    .await;
    let mut config = server.config();
    config.certificate_ttl = Duration::from_secs(1800);
    let manager = CertificateManager::new(Arc::new(config), ClientMetrics::default()).unwrap();
    manager.prefetch(&identity("cart"));
    let certificate = soon("a certificate", manager.certificate(&identity("cart"))).await;
    assert_eq!(certificate.identity, identity("cart"));
    let (request, metadata) = seen.lock().unwrap().take().unwrap();
    assert_eq!(metadata.get("authorization").unwrap(), "Bearer secret-1");
    assert_eq!(metadata.get("clusterid").unwrap(), "Kubernetes");
    assert_eq!(request.validity_duration, 1800);
    let fields = request.metadata.unwrap().fields;
    let prost_types::value::Kind::StringValue(id) = fields["ImpersonatedIdentity"].kind.clone().unwrap() else {
        panic!("a string")
    };
    assert_eq!(id, "spiffe://cluster.local/ns/shop/sa/cart");
}

#[tokio::test]
async fn a_new_token_is_used_at_once_and_a_refusal_is_told() {
    let ca = Arc::new(Ca::new("mesh"));
    let signer = Arc::clone(&ca);
    let server = ControlPlane::start(Arc::new(move |request, metadata| {
        if metadata.get("authorization").is_some_and(|token| token == "Bearer secret-2") {
            Ok(signer.answer(&request.csr))
        } else {
            Err(Status::unauthenticated("token expired"))
        }
    }))
    .await;
    let manager = CertificateManager::new(Arc::new(server.config()), ClientMetrics::default()).unwrap();
    let cart = identity("cart");
    manager.prefetch(&cart);
    until("a refusal", || manager.last_error(&cart).is_some_and(|e| e.contains("token expired"))).await;
    std::fs::write(server.path("token"), "secret-2").unwrap();
    soon("a certificate", manager.certificate(&cart)).await;
}

#[tokio::test]
async fn hardening_F20_a_connection_for_a_pod_that_has_gone_is_not_kept() {
    let server = ControlPlane::start(common::no_authority()).await;
    // Accepts, and never says anything.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = mesh_client::ControlConfig { address: silent.local_addr().unwrap().to_string(), ..server.config() };
    let manager = CertificateManager::new(Arc::new(config), ClientMetrics::default()).unwrap();
    manager.prefetch(&identity("cart"));
    let (mut attempt, _) = soon("a connection", silent.accept()).await.unwrap();
    manager.forget(&identity("cart"));
    let mut heard = Vec::new();
    // At the deadline of connections, though nobody asks for anything any more.
    let _ = soon("the end of the connection", attempt.read_to_end(&mut heard)).await;
}
