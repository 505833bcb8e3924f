//! What stands in for the kernel and for the certificate authority in the tests' mesh.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ipnet::IpNet;
use mesh_core::{Identity, TrustDomain, ports};
use mesh_transport::tls::{IdentityCertificate, Roots};
use parking_lot::Mutex;

use crate::bpf::InboundMode;
use crate::proxy::{Certificates, FetchedCertificate, Interception};

/// The kernel's part, written down.
#[derive(Default)]
pub struct FakeKernel {
    slots: Mutex<HashMap<SocketAddr, SocketAddr>>,
    next: AtomicU32,
    pub clients: Mutex<Vec<SocketAddr>>,
    pub modes: Mutex<HashMap<u64, InboundMode>>,
    /// Set: the agent's plaintext port stands for this port of the app.
    pub steered: Mutex<Option<u16>>,
    pub client_map_full: AtomicBool,
    /// Set: the app of a connected socket sees the agent's own address.
    pub client_hidden: AtomicBool,
    /// Whether pods may reach only what the registry knows, and that.
    pub registry_only: Mutex<HashMap<u64, bool>>,
    pub registry: Mutex<BTreeSet<IpNet>>,
    /// Set: there is no room for the modes of ports.
    pub ports_full: AtomicBool,
    /// How many modes found none.
    pub reduced: AtomicU32,
}

impl FakeKernel {
    /// A slot that stands for `destination`.
    pub fn slot(&self, destination: SocketAddr) -> SocketAddr {
        let n = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let slot = SocketAddr::from(([127, 1, (n >> 8) as u8, n as u8], ports::OUTBOUND));
        self.slots.lock().insert(slot, destination);
        slot
    }
}

impl Interception for FakeKernel {
    fn original_destination(&self, _cookie: u64, local: SocketAddr) -> Option<SocketAddr> {
        self.slots.lock().get(&local).copied()
    }

    fn plaintext_destination(&self, _cookie: u64, local: SocketAddr) -> SocketAddr {
        let port = self.steered.lock().unwrap_or(local.port());
        SocketAddr::new(local.ip(), port)
    }

    fn set_client(&self, _socket: BorrowedFd<'_>, client: SocketAddr) -> std::io::Result<()> {
        if self.client_map_full.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("map full"));
        }
        self.clients.lock().push(client);
        Ok(())
    }

    fn client_shown(&self, _socket: BorrowedFd<'_>) -> bool {
        !self.client_hidden.load(Ordering::Relaxed)
    }

    fn set_inbound(&self, cookie: u64, mode: &InboundMode) -> std::io::Result<bool> {
        let whole = mode.ports.is_empty() || !self.ports_full.load(Ordering::Relaxed);
        let reduced = InboundMode { undecided: true, ..InboundMode::default() };
        self.modes.lock().insert(cookie, if whole { mode.clone() } else { reduced });
        self.reduced.fetch_add((!whole).into(), Ordering::Relaxed);
        Ok(whole)
    }

    fn set_registry_only(&self, cookie: u64, registry_only: bool) -> std::io::Result<()> {
        self.registry_only.lock().insert(cookie, registry_only);
        Ok(())
    }

    fn registry(&self) -> std::io::Result<BTreeSet<IpNet>> {
        Ok(self.registry.lock().clone())
    }

    fn set_registry(&self, add: &[IpNet], remove: &[IpNet]) -> std::io::Result<Vec<IpNet>> {
        let mut registry = self.registry.lock();
        registry.retain(|range| !remove.contains(range));
        registry.extend(add);
        Ok(Vec::new())
    }
}

/// Certificates of one self-signed root.
pub struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    roots: Arc<Roots>,
    issued: Mutex<HashMap<Identity, Arc<IdentityCertificate>>>,
    /// Identities that get somebody else's certificate never; those listed here get none at all.
    pub withheld: Mutex<Vec<Identity>>,
}

impl Authority {
    pub fn new() -> Arc<Authority> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        let roots = Roots::from_pem(root.pem().as_bytes(), vec![TrustDomain::default()]).unwrap();
        Arc::new(Authority {
            issuer: rcgen::Issuer::new(params, key),
            roots: Arc::new(roots),
            issued: Mutex::default(),
            withheld: Mutex::default(),
        })
    }

    pub fn issue(&self, identity: &Identity) -> Arc<IdentityCertificate> {
        self.issued.lock().entry(identity.clone()).or_insert_with(|| Arc::new(self.mint(identity))).clone()
    }

    fn mint(&self, identity: &Identity) -> IdentityCertificate {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![rcgen::SanType::URI(identity.to_string().try_into().unwrap())];
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (chain, key) = (certificate.pem(), key.serialize_pem());
        IdentityCertificate::from_pem(
            identity.clone(),
            chain.as_bytes(),
            key.as_bytes(),
            self.roots.clone(),
            1,
            mesh_runtime::clock::now(),
        )
        .unwrap()
    }
}

impl Certificates for Authority {
    fn current(&self, identity: &Identity) -> Option<Arc<IdentityCertificate>> {
        (!self.withheld.lock().contains(identity)).then(|| self.issue(identity))
    }

    fn fetch<'a>(&'a self, _identity: &'a Identity) -> FetchedCertificate<'a> {
        Box::pin(std::future::pending())
    }
}
