//! The root of trust (kept by [`super::store`]): a key, its certificate, and the bundle that everybody trusts. The bundle may hold more roots than the one that
//! signs, so that a root can be replaced while both are trusted. Agents get the bundle with their certificates, so each step waits until all
//! have been renewed once:
//!
//! ```text
//! root-cert.pem: old + new   ->   ca-key.pem: new key   ->   root-cert.pem: new
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_core::TrustDomain;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::clock::unix;
use crate::state::{self, StateError};

/// Ten years, as istiod's own root.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Clocks of nodes may be behind.
const ROOT_BACKDATED: Duration = Duration::from_secs(3600);
/// Trusted roots at once.
const MAX_ROOTS: usize = 16;

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

/// A root that signs.
#[derive(Debug)]
pub struct Authority {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(super) not_after: SystemTime,
    bundle: String,
    roots: Vec<CertificateDer<'static>>,
    /// Of the two files as they were read.
    files: u64,
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

    /// Checks everything that a signer must be: an EC key whose certificate is a CA, valid now, in a bundle of CAs.
    pub(super) fn parse(
        key_text: &str,
        bundle: &str,
        now: SystemTime,
        key_path: &Path,
        roots_path: &Path,
    ) -> Result<Self, AuthorityError> {
        let in_key = |why: String| AuthorityError::Content { path: key_path.to_owned(), why };
        let in_roots = |why: String| AuthorityError::Content { path: roots_path.to_owned(), why };
        let key = KeyPair::from_pem(key_text).map_err(|e| in_key(format!("not a private key: {e}")))?;
        let roots: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(bundle.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|e| in_roots(format!("not PEM: {e}")))?;
        if roots.is_empty() || roots.len() > MAX_ROOTS {
            return Err(in_roots(format!("it holds {} certificates, wanted 1 to {MAX_ROOTS}", roots.len())));
        }
        let mut signer = None;
        for (index, der) in roots.iter().enumerate() {
            let number = index + 1;
            let (rest, certificate) = X509Certificate::from_der(der)
                .map_err(|e| in_roots(format!("certificate {number} cannot be read: {e}")))?;
            if !rest.is_empty() {
                return Err(in_roots(format!("certificate {number} has something behind it")));
            }
            if !certificate.is_ca() {
                return Err(in_roots(format!(
                    "certificate {number} is not a certificate authority (CA:TRUE is missing)"
                )));
            }
            let may_sign = certificate.key_usage().ok().flatten().is_none_or(|u| u.value.key_cert_sign());
            if certificate.public_key().raw == rcgen::PublicKeyData::subject_public_key_info(&key).as_slice() {
                if !may_sign {
                    return Err(in_roots(format!("certificate {number} may not sign certificates")));
                }
                signer.get_or_insert((der.clone(), certificate.validity().clone()));
            }
        }
        let Some((der, validity)) = signer else {
            return Err(in_key(format!("no certificate in {} is for this key", roots_path.display())));
        };
        let time = |t: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(t).unwrap_or(0));
        let (not_before, not_after) = (time(validity.not_before.timestamp()), time(validity.not_after.timestamp()));
        if now < not_before || now >= not_after {
            return Err(in_roots("the certificate that signs is not valid now".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        let files = files_hash(key_text, bundle);
        // Nothing but the certificates is handed out, whatever else the file holds.
        let bundle = roots.iter().map(|d| pem("CERTIFICATE", d)).collect();
        Ok(Self { issuer, not_after, bundle, roots, files })
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

    /// When the certificate that signs ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
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
