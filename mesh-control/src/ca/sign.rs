//! From a certificate request to a certificate. Of the request only the public key counts; everything else in the certificate is decided
//! here.

use std::time::{Duration, SystemTime};

use mesh_core::Identity;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
    SubjectPublicKeyInfo,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry as oids;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::authority::{Authority, offset, pem, serial};

/// A request with an RSA key of 8192 bits fits; extensions by the thousand do not.
pub const MAX_CSR_BYTES: usize = 16 << 10;
/// Clocks of nodes may be behind by this much.
pub const BACKDATED: Duration = Duration::from_secs(120);
/// No certificate is made for less, unless the operator's own maximum is lower.
pub const SHORTEST: Duration = Duration::from_secs(600);

/// Why there is no certificate.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// Nothing that could be a request.
    #[error("the certificate request cannot be read: {0}")]
    Unreadable(&'static str),
    /// The request was not made by the owner of its key.
    #[error("the certificate request is not signed by its own key")]
    Signature,
    /// A key that nobody should use.
    #[error("the key is not supported: {0}")]
    Key(&'static str),
    /// The root has ended, or ends too soon to sign anything.
    #[error("the root certificate has expired")]
    RootExpired,
    /// The cryptographic library refused.
    #[error("sign: {0}")]
    Library(String),
}

/// The public key of a request, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedKey {
    spki: Vec<u8>,
}

impl CheckedKey {
    /// The key's DER: two requests with the same key have the same bytes.
    pub fn der(&self) -> &[u8] {
        &self.spki
    }
}

/// A certificate with its chain.
#[derive(Clone, Debug)]
pub struct Signed {
    /// PEM: the leaf, what is between it and a root, and as last element all roots.
    pub chain: Vec<String>,
    /// When the leaf ends.
    pub not_after: SystemTime,
}

/// Reads and checks a request.
pub fn check(csr: &str) -> Result<CheckedKey, SignError> {
    if csr.len() > MAX_CSR_BYTES {
        return Err(SignError::Unreadable("it is too large"));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(csr.as_bytes())
        .map_err(|_| SignError::Unreadable("it is not PEM with a CERTIFICATE REQUEST"))?;
    let (rest, request) =
        X509CertificationRequest::from_der(&der).map_err(|_| SignError::Unreadable("it is not PKCS#10"))?;
    if !rest.is_empty() {
        return Err(SignError::Unreadable("there is something behind it"));
    }
    let spki = &request.certification_request_info.subject_pki;
    let weak = [oids::OID_PKCS1_SHA1WITHRSA, oids::OID_SHA1_WITH_RSA];
    if weak.contains(&request.signature_algorithm.algorithm) {
        return Err(SignError::Key("SHA-1"));
    }
    match spki.parsed().map_err(|_| SignError::Key("it cannot be read"))? {
        PublicKey::EC(_) => {
            let curve = spki.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
            let supported = curve.is_some_and(|c| c == oids::OID_EC_P256 || c == oids::OID_NIST_EC_P384);
            if !supported {
                return Err(SignError::Key("of elliptic curves only P-256 and P-384"));
            }
        }
        PublicKey::RSA(key) => {
            if !(2048..=4096).contains(&key.key_size()) {
                return Err(SignError::Key("of RSA only 2048 to 4096 bits"));
            }
        }
        _ if spki.algorithm.algorithm == oids::OID_SIG_ED25519 => {}
        _ => return Err(SignError::Key("only P-256, P-384, Ed25519 and RSA")),
    }
    request.verify_signature().map_err(|_| SignError::Signature)?;
    Ok(CheckedKey { spki: spki.raw.to_vec() })
}

/// The lifetime that is granted: what was asked for, within the limits.
pub fn lifetime(asked_seconds: i64, longest: Duration) -> Duration {
    let asked = Duration::from_secs(u64::try_from(asked_seconds).unwrap_or(0));
    asked.clamp(SHORTEST.min(longest), longest)
}

/// Signs a certificate for a workload.
pub fn sign(
    authority: &Authority,
    key: &CheckedKey,
    identity: &Identity,
    lifetime: Duration,
    now: SystemTime,
) -> Result<Signed, SignError> {
    let uri =
        rcgen::string::Ia5String::try_from(identity.to_string()).map_err(|e| SignError::Library(e.to_string()))?;
    let mut params = leaf(authority, lifetime, now)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let public = SubjectPublicKeyInfo::from_der(&key.spki).map_err(|_| SignError::Key("it cannot be used"))?;
    let certificate = params.signed_by(&public, &authority.issuer).map_err(|e| SignError::Library(e.to_string()))?;
    let not_after = (now + lifetime).min(authority.not_after);
    let mut chain = vec![pem("CERTIFICATE", certificate.der())];
    chain.extend(authority.chain().iter().map(|der| pem("CERTIFICATE", der)));
    chain.push(authority.bundle().to_owned());
    Ok(Signed { chain, not_after })
}

/// A certificate and key for the control plane's own listener.
pub fn server(
    authority: &Authority,
    names: &[SanType],
    lifetime: Duration,
    now: SystemTime,
) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), SignError> {
    let library = |e: rcgen::Error| SignError::Library(e.to_string());
    let key = KeyPair::generate().map_err(library)?;
    let mut params = leaf(authority, lifetime, now)?;
    params.subject_alt_names = names.to_vec();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&key, &authority.issuer).map_err(library)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((certificate.der().clone(), key))
}

/// What all leaves have in common. None outlives its issuer.
fn leaf(authority: &Authority, lifetime: Duration, now: SystemTime) -> Result<CertificateParams, SignError> {
    if now >= authority.not_after {
        return Err(SignError::RootExpired);
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = offset(now - BACKDATED);
    params.not_after = offset((now + lifetime).min(authority.not_after));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial());
    Ok(params)
}
