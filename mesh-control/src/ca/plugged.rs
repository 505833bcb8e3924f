//! A signer that the operator brings: the Secret `cacerts` with the keys that istiod reads, or a folder of files with these names. It is taken as a whole
//! or not at all. Pure; [`super::store`] reads the texts, [`super::turn`] decides what becomes of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use mesh_core::TrustDomain;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::authority::{Authority, pem};
use super::trial;

/// What the Secret and the folder are called.
pub const NAME: &str = "cacerts";
/// Its parts: certificate, key, what is above the certificate, roots. The other names are those of a Secret of the type `kubernetes.io/tls`, whose
/// certificate comes with what is above it.
const PARTS: [&str; 4] = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"];
const TLS_PARTS: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];
/// Of all names together.
const MAX_BYTES: usize = 512 << 10;

/// All names under which parts may be.
pub fn names() -> impl Iterator<Item = &'static str> {
    PARTS.into_iter().chain(TLS_PARTS)
}

/// A signer with its roots, in the two texts of an [`Authority`].
#[derive(Clone, PartialEq, Eq)]
pub struct Plugged {
    /// Its key, its certificate, and what is above it.
    pub key: String,
    /// Roots, as it says.
    pub roots: String,
}

impl std::fmt::Debug for Plugged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugged").field("roots", &self.roots.len()).finish_non_exhaustive()
    }
}

/// For whom it is to sign.
#[derive(Clone, Debug)]
pub struct Purpose {
    /// Trust domain of workloads.
    pub domain: TrustDomain,
    /// How agents call the control plane.
    pub host: String,
}

/// Reads and checks the parts. `place` is how the Secret or folder is called. The error says which part is wrong, and nothing of a key.
pub fn read(
    parts: &BTreeMap<String, String>,
    place: &str,
    purpose: &Purpose,
    now: SystemTime,
) -> Result<Plugged, String> {
    if parts.values().map(String::len).sum::<usize>() > MAX_BYTES {
        return Err(format!("{place} is larger than {MAX_BYTES} bytes"));
    }
    let is_tls = !parts.contains_key(PARTS[0]) && parts.contains_key(TLS_PARTS[0]);
    let [certificate, key, roots] = if is_tls { TLS_PARTS } else { [PARTS[0], PARTS[1], PARTS[3]] };
    let part = |name: &str| match parts.get(name).map(|text| text.trim()) {
        Some(text) if !text.is_empty() => Ok(text),
        _ => Err(format!("{place}: {name} is missing or empty")),
    };
    let (certificate_text, key_text, roots_text) = (part(certificate)?, part(key)?, part(roots)?);
    let chain_text = parts.get(PARTS[2]).filter(|_| !is_tls).map_or("", |text| text.as_str());
    let certificates = |name: &str, text: &str| {
        let read: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        read.map_err(|error| format!("{place}: {name}: not PEM: {error}"))
    };
    let roots_read = certificates(roots, roots_text)?;
    let mut above = certificates(certificate, certificate_text)?;
    if above.is_empty() {
        return Err(format!("{place}: {certificate}: there is no certificate in it"));
    }
    // Istio's chain begins with the certificate itself, and mostly ends with the root.
    for other in certificates(PARTS[2], chain_text)? {
        if !above.contains(&other) && !roots_read.contains(&other) {
            above.push(other);
        }
    }
    let private = PrivateKeyDer::from_pem_slice(key_text.as_bytes())
        .map_err(|_| format!("{place}: {key}: there is no private key in it that is not encrypted"))?;
    // Nothing but keys and certificates is kept, whatever else the parts hold.
    let label = match &private {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    let signer: String = std::iter::once(pem(label, private.secret_der()))
        .chain(above.iter().map(|certificate| pem("CERTIFICATE", certificate)))
        .collect();
    let bundle: String = roots_read.iter().map(|root| pem("CERTIFICATE", root)).collect();
    let in_place = |name: &str| PathBuf::from(format!("{place}: {name}"));
    let authority =
        Authority::parse(&signer, &bundle, now, &in_place(key), &in_place(roots)).map_err(|e| e.to_string())?;
    let Purpose { domain, host } = purpose;
    trial::workload(&authority, domain, now)
        .map_err(|why| format!("{place}: agents would not accept a workload of {domain} that it signs: {why}"))?;
    trial::listener(&authority, host, now)
        .map_err(|why| format!("{place}: agents would not accept the control plane {host} that it signs: {why}"))?;
    Ok(Plugged { key: signer, roots: bundle })
}
