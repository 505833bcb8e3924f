//! A workload's certificate, checked before it is ever used, and the TLS configurations made from it once.
//!
//! `mesh-client` builds these from what the certificate authority returned; the pool and the HBONE listener read them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use mesh_core::identity::{Identity, TrustDomain};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::verify::{self, ClientVerifier, ServerVerifier, VerifyError, WallClock, timestamp};

/// Largest PEM chain accepted from a certificate authority.
const CHAIN_LIMIT: usize = 16 * 1024;
/// Largest PEM bundle of roots; a bundle holds several roots while they are rotated.
const ROOTS_LIMIT: usize = 256 * 1024;
/// Expected sets remembered per certificate. A set is a service's, so the number is small; the bound is for safety.
const CLIENT_CONFIGS: usize = 1024;
/// How far in the future a certificate may begin: clocks differ, and authorities back-date by two minutes.
pub(crate) const NOT_BEFORE_TOLERANCE: Duration = Duration::from_secs(60);

/// Why a certificate or a bundle of roots was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The input is larger than any honest one.
    #[error("{what} of {size} bytes is larger than {limit}")]
    TooLarge {
        /// Which input.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The PEM text holds nothing of the wanted kind, or does not parse.
    #[error("{what} is not readable PEM: {detail}")]
    Pem {
        /// Which input.
        what: &'static str,
        /// What the parser said.
        detail: String,
    },
    /// The private key cannot sign, or is not the certificate's.
    #[error("private key: {0}")]
    Key(String),
    /// The certificate's identity is not the one asked for.
    #[error("certificate is for {found}, asked for {wanted}")]
    WrongIdentity {
        /// The identity asked for.
        wanted: String,
        /// The identity in the certificate.
        found: String,
    },
    /// The certificate does not verify.
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// The trust anchors of a mesh. Several are valid at once while a root is rotated.
pub struct Roots {
    anchors: Vec<TrustAnchor<'static>>,
    trust_domains: Vec<TrustDomain>,
}

impl Roots {
    /// Reads a PEM bundle. Unreadable certificates in it are skipped as long as one is good; an empty result is an error, because an empty
    /// trust store must never replace a good one. `trust_domains` are the domains whose peers are accepted: the mesh's own, and its aliases.
    pub fn from_pem(bundle: &[u8], trust_domains: Vec<TrustDomain>) -> Result<Self, CertificateError> {
        limit("root bundle", bundle, ROOTS_LIMIT)?;
        let mut anchors = Vec::new();
        let mut problem = None;
        for certificate in CertificateDer::pem_slice_iter(bundle) {
            let certificate = match certificate {
                Ok(certificate) => certificate,
                Err(error) => {
                    problem = Some(error.to_string());
                    continue;
                }
            };
            match webpki::anchor_from_trusted_cert(&certificate) {
                Ok(anchor) => anchors.push(anchor.to_owned()),
                Err(error) => problem = Some(error.to_string()),
            }
        }
        if anchors.is_empty() {
            return Err(CertificateError::Pem {
                what: "root bundle",
                detail: problem.unwrap_or_else(|| "no certificate".into()),
            });
        }
        if let Some(problem) = problem {
            tracing::warn!(%problem, good = anchors.len(), "skipped an unreadable root certificate");
        }
        Ok(Self { anchors, trust_domains })
    }

    /// How many trust anchors there are.
    pub fn len(&self) -> usize {
        self.anchors.len()
    }

    /// Never true for a value made by [`Roots::from_pem`].
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    /// The trust domains whose peers are accepted.
    pub fn trust_domains(&self) -> &[TrustDomain] {
        &self.trust_domains
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roots")
            .field("anchors", &self.anchors.len())
            .field("trust_domains", &self.trust_domains)
            .finish()
    }
}

/// A certificate with its key, proven to be usable: the key matches, the identity is the wanted one, the window is open.
pub struct IdentityCertificate {
    /// Whom the certificate names.
    pub identity: Identity,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
    /// Chosen by the caller. A tunnel that was made with a lower one takes no new connections.
    pub generation: u64,
    chain: Vec<CertificateDer<'static>>,
    roots: Arc<Roots>,
    key: Arc<CertifiedKey>,
    server: Arc<ServerConfig>,
    /// Made when the first sidecar comes: most pods meet none.
    sidecar: OnceLock<Arc<ServerConfig>>,
    /// One configuration per expected set. The lock is held to look up or insert, never while shaking hands.
    clients: Mutex<HashMap<Box<[Identity]>, Arc<ClientConfig>>>,
}

impl IdentityCertificate {
    /// Checks and adopts a certificate chain (leaf first) and its key, both PEM. `now` decides the validity window.
    pub fn from_pem(
        identity: Identity,
        chain: &[u8],
        key: &[u8],
        roots: Arc<Roots>,
        generation: u64,
        now: SystemTime,
    ) -> Result<Self, CertificateError> {
        limit("certificate chain", chain, CHAIN_LIMIT)?;
        limit("private key", key, CHAIN_LIMIT)?;
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| CertificateError::Pem { what: "certificate chain", detail: error.to_string() })?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| CertificateError::Pem { what: "private key", detail: error.to_string() })?;
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(CertificateError::Pem { what: "certificate chain", detail: "no certificate".into() });
        };

        let found = verify::peer_identity(&chain)?;
        if found != identity {
            return Err(CertificateError::WrongIdentity { wanted: identity.to_string(), found: found.to_string() });
        }
        verify::verify_chain(&roots, leaf, intermediates, verify::Usage::Server, now)?;
        verify::verify_chain(&roots, leaf, intermediates, verify::Usage::Client, now)?;

        let provider = super::verify::provider();
        let signer =
            provider.key_provider.load_private_key(key).map_err(|error| CertificateError::Key(error.to_string()))?;
        let certified = CertifiedKey::new(chain.clone(), signer);
        certified.keys_match().map_err(|error| CertificateError::Key(error.to_string()))?;
        let certified = Arc::new(certified);

        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| VerifyError::Malformed)?;
        let server = server_config(&roots, &certified);
        Ok(Self {
            identity,
            not_before: timestamp(parsed.validity().not_before.timestamp()),
            not_after: timestamp(parsed.validity().not_after.timestamp()),
            serial: parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
            generation,
            chain,
            roots,
            key: certified,
            server: Arc::new(server),
            sidecar: OnceLock::new(),
            clients: Mutex::new(HashMap::new()),
        })
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The roots that peers of this identity are verified with.
    pub fn roots(&self) -> &Arc<Roots> {
        &self.roots
    }

    /// Whether peers whose clocks agree with `now` refuse it because it has not begun. Ours was ahead when it was made, and has been set back since.
    pub fn is_early(&self, now: SystemTime) -> bool {
        now + NOT_BEFORE_TOLERANCE < self.not_before
    }

    /// The configuration for accepting tunnels as this identity.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// The configuration for accepting clients with sidecars as this identity.
    pub(super) fn sidecar_config(&self) -> Arc<ServerConfig> {
        self.sidecar.get_or_init(|| Arc::new(super::sidecar::server_config(&self.roots, &self.key))).clone()
    }

    /// The configuration for dialling a peer that must be one of `expected`. Made once per set.
    pub fn client_config(&self, expected: &[Identity]) -> Arc<ClientConfig> {
        if let Some(config) = self.clients.lock().get(expected) {
            return config.clone();
        }
        let config = Arc::new(client_config(&self.roots, &self.key, expected));
        let mut clients = self.clients.lock();
        if clients.len() >= CLIENT_CONFIGS {
            clients.clear();
        }
        clients.entry(expected.into()).or_insert(config).clone()
    }
}

impl fmt::Debug for IdentityCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityCertificate")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

fn limit(what: &'static str, input: &[u8], limit: usize) -> Result<(), CertificateError> {
    if input.len() > limit {
        return Err(CertificateError::TooLarge { what, size: input.len(), limit });
    }
    Ok(())
}

/// TLS 1.3 only, a client certificate required, no tickets: a resumed session would skip the verification of a changed certificate.
fn server_config(roots: &Arc<Roots>, key: &Arc<CertifiedKey>) -> ServerConfig {
    let mut config = ServerConfig::builder_with_details(verify::provider(), Arc::new(WallClock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .with_client_cert_verifier(Arc::new(ClientVerifier::new(roots.clone())))
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.enable_secret_extraction = true;
    config
}

fn client_config(roots: &Arc<Roots>, key: &Arc<CertifiedKey>, expected: &[Identity]) -> ClientConfig {
    let mut config = ClientConfig::builder_with_details(verify::provider(), Arc::new(WallClock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(roots.clone(), expected)))
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_secret_extraction = true;
    config
}
