//! Who signs (kept by [`super::store`]): a key, its certificate, the certificates between that and a root, and the bundle that everybody trusts. The
//! bundle may hold more roots than the one that vouches for the signer, so that a root can be replaced while both are trusted ([`super::rotation`]).
//!
//! Two texts hold it. The key's may go on with the signer's certificate and what is above it; without, the signer is the root of the bundle that is
//! for the key.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_core::TrustDomain;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::clock::unix;
use crate::state::{self, StateError};

/// Ten years, as istiod's own root.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Clocks of nodes may be behind.
const ROOT_BACKDATED: Duration = Duration::from_secs(3600);
/// Trusted roots at once.
pub const MAX_ROOTS: usize = 16;
/// Certificates from the signer upwards: agents take no more between a leaf and a root.
const MAX_CHAIN: usize = 6;

/// File of the bundle.
pub const ROOTS_FILE: &str = "root-cert.pem";
/// File of the signing key.
pub const KEY_FILE: &str = "ca-key.pem";

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// One of the two files is there without the other.
    #[error("{present} is there, {absent} is not: restore it, or remove both to begin with a new root")]
    Half {
        /// The file that is there.
        present: PathBuf,
        /// The file that is missing.
        absent: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("{path}: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The cryptographic library refused.
    #[error("make a root: {0}")]
    Make(#[from] rcgen::Error),
}

/// Who signs.
#[derive(Debug)]
pub struct Authority {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(super) not_after: SystemTime,
    not_before: SystemTime,
    /// The signer's certificate.
    signer: CertificateDer<'static>,
    /// What is between a leaf and a root.
    chain: Vec<CertificateDer<'static>>,
    bundle: String,
    roots: Vec<CertificateDer<'static>>,
    /// Which of the roots vouch for it, and when the last of them ends.
    anchors: Vec<usize>,
    root_ends: SystemTime,
    /// Of the two files as they were read.
    files: u64,
}

/// A certificate that may sign others.
struct Checked {
    not_before: SystemTime,
    not_after: SystemTime,
    key: Vec<u8>,
}

/// Reads a certificate; `number` is how it is called if it is no authority.
fn checked(der: &CertificateDer<'_>, number: usize) -> Result<Checked, String> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|e| format!("certificate {number} cannot be read: {e}"))?;
    if !rest.is_empty() {
        return Err(format!("certificate {number} has something behind it"));
    }
    if !certificate.is_ca() {
        return Err(format!("certificate {number} is not a certificate authority (CA:TRUE is missing)"));
    }
    if !certificate.key_usage().ok().flatten().is_none_or(|u| u.value.key_cert_sign()) {
        return Err(format!("certificate {number} may not sign certificates"));
    }
    let time = |t: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(t).unwrap_or(0));
    let validity = certificate.validity();
    Ok(Checked {
        not_before: time(validity.not_before.timestamp()),
        not_after: time(validity.not_after.timestamp()),
        key: certificate.public_key().raw.to_vec(),
    })
}

fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().map_err(|e| format!("not PEM: {e}"))
}

impl Authority {
    /// Reads the root from the state folder, or makes one there.
    pub fn open(folder: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, AuthorityError> {
        state::folder(folder)?;
        let (roots_path, key_path) = (folder.join(ROOTS_FILE), folder.join(KEY_FILE));
        let key = state::read_secret(&key_path)?;
        let roots = state::read(&roots_path)?;
        match (key, roots) {
            (Some(key), Some(roots)) => Self::parse(&key, &roots, now, &key_path, &roots_path),
            (Some(_), None) => Err(AuthorityError::Half { present: key_path, absent: roots_path }),
            (None, Some(_)) => Err(AuthorityError::Half { present: roots_path, absent: key_path }),
            (None, None) => {
                let (key, roots) = make(trust_domain, now)?;
                // The key first: a certificate without it would be distributed and never used.
                state::write(&key_path, &key, 0o600)?;
                state::write(&roots_path, &roots, 0o644)?;
                Self::parse(&key, &roots, now, &key_path, &roots_path)
            }
        }
    }

    /// Reads the root again; `None` if neither file changed since this one was read. Never makes one.
    pub fn reload(&self, folder: &Path, now: SystemTime) -> Result<Option<Self>, AuthorityError> {
        let (roots_path, key_path) = (folder.join(ROOTS_FILE), folder.join(KEY_FILE));
        match (state::read_secret(&key_path)?, state::read(&roots_path)?) {
            (Some(key), Some(roots)) if self.is_of(&key, &roots) => Ok(None),
            (Some(key), Some(roots)) => Self::parse(&key, &roots, now, &key_path, &roots_path).map(Some),
            (None, _) => Err(AuthorityError::Half { present: roots_path, absent: key_path }),
            (_, None) => Err(AuthorityError::Half { present: key_path, absent: roots_path }),
        }
    }

    /// Checks everything that a signer must be: a key whose certificate is a CA, valid now, that a root of the bundle vouches for.
    pub(super) fn parse(
        key_text: &str,
        bundle: &str,
        now: SystemTime,
        key_path: &Path,
        roots_path: &Path,
    ) -> Result<Self, AuthorityError> {
        let in_key = |why: String| AuthorityError::Content { path: key_path.to_owned(), why };
        let in_roots = |why: String| AuthorityError::Content { path: roots_path.to_owned(), why };
        let not_a_key = |why: String| in_key(format!("not a private key: {why}"));
        let key = PrivateKeyDer::from_pem_slice(key_text.as_bytes()).map_err(|e| not_a_key(e.to_string()))?;
        let key = KeyPair::try_from(&key).map_err(|e| not_a_key(e.to_string()))?;
        let public = rcgen::PublicKeyData::subject_public_key_info(&key);
        let roots = certificates(bundle).map_err(in_roots)?;
        if roots.is_empty() || roots.len() > MAX_ROOTS {
            return Err(in_roots(format!("it holds {} certificates, wanted 1 to {MAX_ROOTS}", roots.len())));
        }
        let trusted: Vec<Checked> =
            roots.iter().enumerate().map(|(i, der)| checked(der, i + 1)).collect::<Result<_, _>>().map_err(in_roots)?;
        let own = certificates(key_text).map_err(in_key)?;
        if own.len() > MAX_CHAIN {
            return Err(in_key(format!("it holds {} certificates, wanted at most {MAX_CHAIN}", own.len())));
        }
        let own_checked: Vec<Checked> =
            own.iter().enumerate().map(|(i, der)| checked(der, i + 1)).collect::<Result<_, _>>().map_err(in_key)?;
        let of_key = || roots.iter().zip(&trusted).find(|(_, root)| root.key == public);
        let (signer, facts) = match own.first().zip(own_checked.first()) {
            Some((_, first)) if first.key != public => {
                return Err(in_key("its first certificate is for another key".to_owned()));
            }
            Some(found) => found,
            None => {
                of_key().ok_or_else(|| in_key(format!("no certificate in {} is for this key", roots_path.display())))?
            }
        };
        if now < facts.not_before || now >= facts.not_after {
            let why = "the certificate that signs is not valid now".to_owned();
            return Err(if own.is_empty() { in_roots(why) } else { in_key(why) });
        }
        let issuer = Issuer::from_ca_cert_der(signer, key)?;
        let above = own_checked.iter().map(|certificate| certificate.not_after).min();
        let (signer, not_before) = (signer.clone(), facts.not_before);
        let mut authority = Self {
            issuer,
            not_after: above.unwrap_or(facts.not_after).min(facts.not_after),
            not_before,
            signer,
            chain: own.into_iter().filter(|certificate| !roots.contains(certificate)).collect(),
            // Nothing but the certificates is handed out, whatever else the file holds.
            bundle: roots.iter().map(|d| pem("CERTIFICATE", d)).collect(),
            roots,
            anchors: Vec::new(),
            root_ends: now,
            files: files_hash(key_text, bundle),
        };
        let vouching = vouching(&authority);
        if vouching.is_empty() {
            return Err(in_key(format!("no root in {} vouches for the certificate that signs", roots_path.display())));
        }
        // A root that is over vouches for nothing, whatever verifiers say.
        let ends = vouching.iter().filter_map(|index| trusted.get(*index)).map(|root| root.not_after);
        authority.root_ends = ends.max().unwrap_or(now);
        if now >= authority.root_ends {
            return Err(in_roots("the root of the certificate that signs is not valid any more".to_owned()));
        }
        authority.not_after = authority.not_after.min(authority.root_ends);
        authority.anchors = vouching;
        Ok(authority)
    }

    /// Whether it was read from just these texts.
    pub(super) fn is_of(&self, key: &str, roots: &str) -> bool {
        files_hash(key, roots) == self.files
    }

    /// All trusted roots as PEM.
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// All trusted roots.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// When the first of the certificates ends that lead from a leaf to a root.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// When the last of the roots ends that vouch for it.
    pub fn root_ends(&self) -> SystemTime {
        self.root_ends
    }

    /// When the certificate that signs begins.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The certificates between a leaf and a root, the signer's first; none if the signer is a root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The certificate that signs.
    pub fn signer(&self) -> &CertificateDer<'static> {
        &self.signer
    }

    /// The roots that vouch for it.
    pub fn anchors(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.anchors.iter().filter_map(|index| self.roots.get(*index))
    }
}

fn read<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}

/// Which roots vouch for the signer: they are it, or have signed it, or what is above it.
fn vouching(authority: &Authority) -> Vec<usize> {
    let Some(mut reached) = read(&authority.signer).map(|signer| vec![signer]) else { return Vec::new() };
    let signs = |above: &X509Certificate<'_>, below: &X509Certificate<'_>| {
        above.subject().as_raw() == below.issuer().as_raw() && below.verify_signature(Some(above.public_key())).is_ok()
    };
    let mut others: Vec<_> = authority.chain.iter().filter_map(read).collect();
    while let Some(next) = others.iter().position(|other| reached.iter().any(|below| signs(other, below))) {
        reached.push(others.swap_remove(next));
    }
    let vouches = |root: &X509Certificate<'_>| {
        let is_same = |below: &X509Certificate<'_>| {
            root.subject().as_raw() == below.subject().as_raw() && root.public_key().raw == below.public_key().raw
        };
        reached.iter().any(|below| is_same(below) || signs(root, below))
    };
    let roots = authority.roots.iter().enumerate().filter_map(|(index, root)| Some((index, read(root)?)));
    roots.filter(|(_, root)| vouches(root)).map(|(index, _)| index).collect()
}

fn files_hash(key: &str, bundle: &str) -> u64 {
    xxhash_rust::xxh64::xxh64(bundle.as_bytes(), xxhash_rust::xxh64::xxh64(key.as_bytes(), 0))
}

/// A new key and its certificate, as PEM.
pub fn make(trust_domain: &TrustDomain, now: SystemTime) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    params.distinguished_name.push(DnType::CommonName, format!("Undermesh root {}", unix(now)));
    params.not_before = offset(now - ROOT_BACKDATED);
    params.not_after = offset(now + ROOT_LIFETIME);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial());
    let certificate = params.self_signed(&key)?;
    Ok((key.serialize_pem(), certificate.pem()))
}

/// A random serial number of 127 bits, as RFC 5280 wants it: positive and hard to guess.
pub(super) fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

pub(super) fn offset(time: SystemTime) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(unix(time)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// DER as PEM.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}
