//! Whether what an authority signs is accepted: it signs, and the verifiers of agents judge. Whatever certificates may forbid (path lengths, names,
//! usages, times, algorithms) is judged by those who will judge it. Asked before a signer is taken over from outside ([`super::plugged`]).

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_core::{Identity, TrustDomain};
use mesh_transport::tls::{IdentityCertificate, Roots};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::{ServerName, UnixTime};

use super::authority::Authority;
use super::sign;

/// Of what is signed on trial.
const LIFETIME: Duration = Duration::from_secs(600);

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Whether agents accept a workload of the trust domain `domain`.
pub fn workload(authority: &Authority, domain: &TrustDomain, now: SystemTime) -> Result<(), String> {
    let identity: Identity = format!("spiffe://{domain}/ns/trial/sa/trial").parse().map_err(text)?;
    let key = KeyPair::generate().map_err(text)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key).and_then(|csr| csr.pem()).map_err(text)?;
    let checked = sign::check(&csr).map_err(text)?;
    let signed = sign::sign(authority, &checked, &identity, LIFETIME, now).map_err(text)?;
    let chain = signed.chain.split_last().map(|(_, chain)| chain.concat()).unwrap_or_default();
    let roots = Roots::from_pem(authority.bundle().as_bytes(), vec![domain.clone()]).map_err(text)?;
    let key = key.serialize_pem();
    IdentityCertificate::from_pem(identity, chain.as_bytes(), key.as_bytes(), Arc::new(roots), 0, now).map_err(text)?;
    Ok(())
}

/// Whether they accept a listener that is called `name`.
pub fn listener(authority: &Authority, name: &str, now: SystemTime) -> Result<(), String> {
    let dns = rcgen::string::Ia5String::try_from(name).map_err(text)?;
    let (leaf, _) = sign::server(authority, &[SanType::DnsName(dns)], LIFETIME, now).map_err(text)?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authority.roots().iter().cloned());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(text)?;
    let name = ServerName::try_from(name.to_owned()).map_err(text)?;
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    verifier.verify_server_cert(&leaf, authority.chain(), &name, &[], now).map(drop).map_err(text)
}
