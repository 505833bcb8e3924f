//! Long faults between the control plane and its agents, scaled: a state that is suddenly empty, and the change of the root under load. Both
//! sides are the real ones.
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_client::certificates::Issued;
use mesh_client::subscription::Limits;
use mesh_client::{Authority, CertificateManager, ClientMetrics, ControlConfig};
use mesh_control::ca::{authority, sign};
use mesh_control::state;
use mesh_core::{Change, Identity, Snapshot, Store};
use prometheus_client::registry::Registry;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use support::{Plane, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use x509_parser::prelude::{FromDer, X509Certificate};

fn config(plane: &Plane, limits: Limits) -> ControlConfig {
    let token = plane.state("tokens").join("node1");
    let address = plane.app.listen.to_string();
    ControlConfig { limits, ..ControlConfig::new(address, plane.state("root-cert.pem"), Some(token), "node1") }
}

/// An agent's view of the mesh.
struct Subscriber {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    registry: Registry,
    /// The fewest workloads that it has had since the first.
    fewest: Arc<AtomicUsize>,
}

impl Subscriber {
    fn start(config: ControlConfig) -> Self {
        let mut store = Store::new();
        let (sender, snapshots) = watch::channel(store.snapshot());
        let fewest = Arc::new(AtomicUsize::new(usize::MAX));
        let low = fewest.clone();
        let sink = move |changes: Vec<Change>| {
            let snapshot = store.apply(changes).snapshot;
            if snapshot.is_synced() {
                low.fetch_min(snapshot.counts().0, Ordering::Relaxed);
            }
            sender.send(snapshot).map_err(|e| e.to_string())
        };
        let mut registry = Registry::default();
        // Nobody asks for addresses of its own.
        let wanted = tokio::sync::mpsc::channel(1).1;
        tokio::spawn(mesh_client::run(Arc::new(config), sink, wanted, ClientMetrics::new(&mut registry)));
        Self { snapshots, registry, fewest }
    }

    async fn workloads(&mut self, count: usize) {
        soon("workloads", self.snapshots.wait_for(|s| s.is_synced() && s.counts().0 == count)).await.unwrap();
    }

    async fn metric(&self, line: &str) {
        soon(line, async {
            while !mesh_runtime::metrics::encode(&self.registry).lines().any(|l| l == line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

fn pods(numbers: std::ops::Range<usize>) -> String {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: node1}\n".to_owned();
    let pod = |n| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: cart-{n}, namespace: shop}}\nspec: {{nodeName: node1, containers: []}}\nstatus: {{phase: Running, podIP: 198.18.3.{n}}}\n"
        )
    };
    node + &numbers.map(pod).collect::<String>()
}

#[tokio::test]
async fn hardening_F13_most_of_the_mesh_is_not_removed_on_one_word() {
    let plane = Plane::start(&[("pods.yaml", &pods(1..31))], &[]).await;
    // One waits for a minute, as agents do; one is in a hurry, to see the end.
    let mut patient = Subscriber::start(config(&plane, Limits::default()));
    let mut hasty = Subscriber::start(config(&plane, Limits { hold_ms: 500, ..Limits::default() }));
    patient.workloads(30).await;
    hasty.workloads(30).await;

    // Less than half goes at once.
    plane.write("pods.yaml", &pods(1..25));
    patient.workloads(24).await;
    hasty.workloads(24).await;
    patient.metric("undermesh_xds_suspended_removals 0").await;

    // More than half waits, and an operator sees it. What comes back in time has never been gone.
    plane.write("pods.yaml", &pods(1..12));
    patient.metric("undermesh_xds_suspended_removals 13").await;
    plane.write("pods.yaml", &pods(1..25));
    patient.metric("undermesh_xds_suspended_removals 0").await;
    hasty.workloads(24).await;

    // Nothing at all: held until a second stream says the same.
    plane.write("pods.yaml", &pods(0..0));
    patient.metric("undermesh_xds_suspended_removals 24").await;
    hasty.workloads(0).await;
    hasty.metric("undermesh_xds_suspended_removals 0").await;
    assert_eq!(patient.snapshots.borrow().counts().0, 24);
    assert_eq!(patient.fewest.load(Ordering::Relaxed), 24);
}

/// An authority that still signs with the old root.
struct Old(authority::Authority);

impl Authority for Old {
    fn issue<'a>(&'a self, identity: &'a Identity, csr: String, _: Duration) -> Issued<'a> {
        Box::pin(async move {
            let key = sign::check(&csr).unwrap();
            let hour = Duration::from_secs(3600);
            Ok(sign::sign(&self.0, &key, identity, hour, mesh_runtime::clock::now()).unwrap().chain)
        })
    }
}

/// A peer of the mesh, with its certificates.
struct Peer {
    identity: Identity,
    manager: CertificateManager,
}

impl Peer {
    fn new(account: &str, manager: CertificateManager) -> Self {
        let identity = format!("spiffe://cluster.local/ns/bookinfo/sa/bookinfo-{account}").parse().unwrap();
        manager.prefetch(&identity);
        Self { identity, manager }
    }

    /// Whether its certificate in use was signed by `root`, and how many roots it trusts.
    async fn state(&self, root: &str) -> (bool, usize) {
        let certificate = soon("a certificate", self.manager.certificate(&self.identity)).await;
        let root = CertificateDer::from_pem_slice(root.as_bytes()).unwrap();
        let (_, root) = X509Certificate::from_der(&root).unwrap();
        let (_, leaf) = X509Certificate::from_der(&certificate.chain()[0]).unwrap();
        (leaf.verify_signature(Some(root.public_key())).is_ok(), certificate.roots().len())
    }

    /// Connects to another peer; both prove who they are.
    async fn connect(&self, to: &Peer) -> std::io::Result<()> {
        let own = soon("a certificate", self.manager.certificate(&self.identity)).await;
        let other = soon("a certificate", to.manager.certificate(&to.identity)).await;
        let (near, far) = tokio::io::duplex(64 << 10);
        let connector = tokio_rustls::TlsConnector::from(own.client_config(std::slice::from_ref(&to.identity)));
        let acceptor = tokio_rustls::TlsAcceptor::from(other.server_config());
        let dial = async {
            let mut stream = connector.connect(ServerName::try_from("peer").unwrap(), near).await?;
            // With TLS 1.3 a client learns only now that it was refused.
            stream.write_all(b"a").await?;
            stream.flush().await?;
            stream.read_u8().await
        };
        let serve = async {
            let mut stream = acceptor.accept(far).await?;
            let byte = stream.read_u8().await?;
            stream.write_u8(byte).await?;
            stream.flush().await
        };
        soon("a handshake", async { tokio::try_join!(dial, serve) }).await.map(drop)
    }
}

#[tokio::test]
async fn hardening_F43_the_root_is_changed_under_load_and_nobody_notices() {
    let bookinfo = include_str!("bookinfo/bookinfo.yaml");
    let plane = Plane::start(&[("bookinfo.yaml", bookinfo)], &["--secret-ttl", "10s", "--root-overlap", "1h"]).await;
    let mut subscriber = Subscriber::start(config(&plane, Limits::default()));
    subscriber.workloads(6).await;
    let manager = || {
        let config = Arc::new(config(&plane, Limits::default()));
        CertificateManager::new(config, ClientMetrics::default()).unwrap()
    };
    // Two agents that renew at their own times, and one that never comes to the new root.
    let peers = [Peer::new("reviews", manager()), Peer::new("productpage", manager())];
    let old = plane.roots();
    let (new_key, new) = authority::make(&"cluster.local".parse().unwrap(), mesh_runtime::clock::now()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let left_behind = folder.path().join("state");
    state::folder(&left_behind).unwrap();
    for name in ["root-cert.pem", "ca-key.pem"] {
        let text = std::fs::read_to_string(plane.state(name)).unwrap();
        let text = if name == "root-cert.pem" { format!("{text}{new}") } else { text };
        state::write(&left_behind.join(name), &text, 0o600).unwrap();
    }
    let trust_domain = "cluster.local".parse().unwrap();
    let late = Old(authority::Authority::open(&left_behind, &trust_domain, mesh_runtime::clock::now()).unwrap());
    let hour = Duration::from_secs(3600);
    let late = CertificateManager::with_authority(Arc::new(late), hour, vec![], ClientMetrics::default());
    let late = Peer::new("reviews", late);

    let both = format!("{old}{new}");
    // What is written, and what each agent has when it has followed: signed by the new root, roots trusted.
    let stages =
        [("root-cert.pem", &both, (false, 2)), ("ca-key.pem", &new_key, (true, 2)), ("root-cert.pem", &new, (true, 1))];
    let mut connections = 0;
    for (file, text, wanted) in stages {
        // An agent left on the old root is served for as long as the old root is trusted.
        if connections > 0 {
            late.connect(&peers[1]).await.unwrap();
        }
        state::write(&plane.state(file), text, if file == "ca-key.pem" { 0o600 } else { 0o644 }).unwrap();
        soon(file, async {
            while [peers[0].state(&new).await, peers[1].state(&new).await] != [wanted; 2] {
                peers[0].connect(&peers[1]).await.unwrap();
                peers[1].connect(&peers[0]).await.unwrap();
                connections += 2;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
    assert!(connections > 50, "{connections} connections");
    peers[0].connect(&peers[1]).await.unwrap();
    late.connect(&peers[1]).await.unwrap_err();
    peers[0].connect(&late).await.unwrap_err();
    // The stream has lived through it, or came back; either way it follows.
    let fewer: Vec<&str> = bookinfo.split("---\n").filter(|d| !d.contains("name: ratings-v1")).collect();
    plane.write("bookinfo.yaml", &fewer.join("---\n"));
    subscriber.workloads(5).await;
}

/// A certificate authority that an operator has.
struct Ca {
    key: rcgen::KeyPair,
    params: rcgen::CertificateParams,
    pem: String,
}

impl Ca {
    /// One below `above`, or a root.
    fn new(name: &str, above: Option<&Ca>) -> Ca {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = match above {
            None => params.self_signed(&key).unwrap(),
            Some(above) => {
                params.use_authority_key_identifier_extension = true;
                params.signed_by(&key, &rcgen::Issuer::from_params(&above.params, &above.key)).unwrap()
            }
        };
        Ca { key, params, pem: certificate.pem() }
    }
}

/// Puts a signer where the operator puts it. Nobody sees a half of it: the folder is replaced.
fn plug(plane: &Plane, signer: &Ca, root: &Ca) {
    let (folder, new) = (plane.state("cacerts"), plane.state("cacerts.new"));
    state::folder(&new).unwrap();
    let chain = format!("{}{}", signer.pem, root.pem);
    for (name, text, mode) in [
        ("ca-cert.pem", &signer.pem, 0o644),
        ("ca-key.pem", &signer.key.serialize_pem(), 0o600),
        ("cert-chain.pem", &chain, 0o644),
        ("root-cert.pem", &root.pem, 0o644),
    ] {
        state::write(&new.join(name), text, mode).unwrap();
    }
    if folder.exists() {
        std::fs::rename(&folder, plane.state("cacerts.old")).unwrap();
    }
    std::fs::rename(&new, &folder).unwrap();
}

/// Who has signed the certificate of a peer: the first certificate above it, or else the root's name.
async fn issuer(peer: &Peer) -> String {
    let certificate = soon("a certificate", peer.manager.certificate(&peer.identity)).await;
    let (_, leaf) = X509Certificate::from_der(&certificate.chain()[0]).unwrap();
    leaf.issuer().to_string()
}

#[tokio::test]
async fn hardening_F43_features_CA_5_roots_and_signers_rotate_by_themselves_and_nobody_notices() {
    let bookinfo = include_str!("bookinfo/bookinfo.yaml");
    let plane = Plane::start(&[("bookinfo.yaml", bookinfo)], &["--secret-ttl", "10s"]).await;
    let mut subscriber = Subscriber::start(config(&plane, Limits::default()));
    subscriber.workloads(6).await;
    let manager = || {
        let config = Arc::new(config(&plane, Limits::default()));
        CertificateManager::new(config, ClientMetrics::default()).unwrap()
    };
    let peers = [Peer::new("reviews", manager()), Peer::new("productpage", manager())];
    let own = plane.roots();
    let mut connections = 0;
    let (root, other) = (Ca::new("plugged root", None), Ca::new("stranger", None));
    let signers = [Ca::new("first signer", Some(&root)), Ca::new("second signer", Some(&root))];
    for stage in ["a root of our own", "a signer", "another signer", "a bad signer"] {
        match stage {
            "a root of our own" => state::write(&plane.state("rotate-root"), "now", 0o600).unwrap(),
            "a signer" => plug(&plane, &signers[0], &root),
            "another signer" => plug(&plane, &signers[1], &root),
            _ => {
                std::fs::remove_dir_all(plane.state("cacerts.old")).unwrap();
                plug(&plane, &signers[0], &other);
            }
        }
        let start = std::time::Instant::now();
        // Both directions, and to the control plane with the roots that are to be had, all the time.
        tokio::time::timeout(2 * support::DEADLINE, async {
            loop {
                peers[0].connect(&peers[1]).await.unwrap();
                peers[1].connect(&peers[0]).await.unwrap();
                plane.channel().await;
                connections += 2;
                let issuers = [issuer(&peers[0]).await, issuer(&peers[1]).await];
                let (settled, roots) = (!plane.state("next-ca-key.pem").exists(), plane.roots());
                let count = CertificateDer::pem_slice_iter(roots.as_bytes()).count();
                let signed = |by: &str| issuers.iter().all(|issuer| issuer.contains(by));
                let is_done = match stage {
                    "a root of our own" => count == 1 && roots != own && signed("Undermesh root"),
                    "a signer" => count == 1 && roots == root.pem && signed("first signer"),
                    "another signer" => count == 1 && signed("second signer"),
                    _ => plane.page("/metrics").await.1.contains("\nmesh_control_authority_problems 1\n"),
                };
                if is_done && settled {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{stage}: not within twice {:?}", support::DEADLINE));
        println!("{stage}: {:.1} s, {connections} connections so far", start.elapsed().as_secs_f32());
    }
    // What is wrong is told, and what was good goes on.
    let (_, diagnoses) = plane.page("/debug/diagnoses").await;
    assert!(diagnoses.contains("cacerts") && diagnoses.contains("vouches for"), "{diagnoses}");
    assert!(issuer(&peers[0]).await.contains("second signer"));
    assert!(connections > 100, "{connections} connections");
    let fewer: Vec<&str> = bookinfo.split("---\n").filter(|d| !d.contains("name: ratings-v1")).collect();
    plane.write("bookinfo.yaml", &fewer.join("---\n"));
    subscriber.workloads(5).await;
}
