//! How TLS ends at a listener: rustls' configuration for what the listener says, made of its credentials, and what is asked of a client's certificate beyond
//! that somebody vouches for it. Errors name credentials, never what is in them.

use std::fmt;
use std::fmt::Write;
use std::sync::Arc;

use ::aws_lc_rs::digest::{SHA256, digest};
use mesh_core::listener::{Certificates, Clients, Credential, Tls};
use mesh_transport::tls::{WallClock, pem};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::spoken::{provider, versions};

/// How TLS ends.
pub struct Terms {
    /// For the handshake.
    pub config: Arc<ServerConfig>,
    clients: Option<Clients>,
    /// Who judges certificates of clients that come in all the same.
    doubted: Option<Arc<dyn ClientCertVerifier>>,
}

impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms").finish_non_exhaustive()
    }
}

/// Makes the terms of a listener, or says why there are none.
pub fn make(tls: &Tls, http: bool, certificates: &Certificates) -> Result<Terms, String> {
    let provider = provider(&tls.spoken)?;
    let mut keys = Vec::new();
    for name in &tls.certificates {
        let credential = certificates.all.get(name).ok_or_else(|| format!("{name} is not known"))?;
        keys.push(Arc::new(certified(credential, &provider).map_err(|why| format!("{name}: {why}"))?));
    }
    if keys.is_empty() {
        return Err("there is no certificate to show".to_owned());
    }
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions(&tls.spoken))
        .map_err(|error| error.to_string())?;
    let mut doubted = None;
    let builder = match &tls.clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let path = verifier(clients, certificates, provider)?;
            doubted = clients.unverified.then(|| Arc::clone(&path));
            builder.with_client_cert_verifier(Arc::new(Judge { path, unverified: clients.unverified }))
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(Shown(keys)));
    if http {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    if tls.clients.is_some() {
        // A resumed session would skip the verification of a certificate that is revoked meanwhile.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
    }
    Ok(Terms { config: Arc::new(config), clients: tls.clients.clone(), doubted })
}

fn certified(credential: &Credential, provider: &CryptoProvider) -> Result<CertifiedKey, String> {
    let chain = pem::certificates(&credential.chain).map_err(|why| format!("the certificate: {why}"))?;
    let key = PrivateKeyDer::from_pem_slice(credential.key.expose()).map_err(|_| "the key is not PEM")?;
    let key = provider.key_provider.load_private_key(key).map_err(|_| "the key is of no kind that is used")?;
    let mut certified = CertifiedKey::new(chain, key);
    if !credential.staple.is_empty() {
        certified.ocsp = Some(credential.staple.to_vec());
    }
    match certified.keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(certified),
        Err(_) => Err("the key is not the certificate's".to_owned()),
    }
}

fn verifier(
    clients: &Clients,
    certificates: &Certificates,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let (mut roots, mut revoked) = (RootCertStore::empty(), Vec::new());
    // One that is there to be shown alone says of nobody whether to believe him.
    let says = |one: &&Arc<Credential>| !one.roots.is_empty() || !one.revoked.is_empty();
    let known = |name| Some((name, certificates.all.get(name).filter(says)?));
    for (name, credential) in clients.roots.iter().filter_map(known) {
        // A list of what is revoked may stand without the roots that it is about.
        if !credential.roots.is_empty() {
            pem::add_roots(&credential.roots, &mut roots).map_err(|why| format!("{name}: the roots: {why}"))?;
        }
        revoked.extend(pem::revoked(&credential.revoked).map_err(|why| format!("{name}: what is revoked: {why}"))?);
    }
    if roots.is_empty() {
        return Err(format!("nobody is known by whom clients are believed, of {}", clients.roots.join(", ")));
    }
    let only_known = revoked.is_empty();
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).with_crls(revoked);
    if !clients.required {
        builder = builder.allow_unauthenticated();
    }
    if !only_known {
        // The list is the leaf's issuer's; those between it and a root have lists elsewhere.
        builder = builder.only_check_end_entity_revocation().allow_unknown_revocation_status();
    }
    builder.build().map_err(|error| error.to_string()).map(|path| path as Arc<dyn ClientCertVerifier>)
}

impl Terms {
    /// Whether somebody vouches for a client that was let in and has shown this chain: of another nothing is said to anybody.
    #[must_use]
    pub fn vouches_for(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((path, (leaf, rest))) = self.doubted.as_ref().zip(chain.split_first()) else { return true };
        let now = WallClock.current_time();
        rest.len() <= pem::INTERMEDIATES && now.is_some_and(|now| path.verify_client_cert(leaf, rest, now).is_ok())
    }

    /// Whether a client may come in that has shown this chain; the error says why not.
    pub fn admit(&self, chain: Option<&[CertificateDer<'_>]>) -> Result<(), &'static str> {
        let Some(clients) = &self.clients else { return Ok(()) };
        let asks = !(clients.names.is_empty() && clients.keys.is_empty() && clients.hashes.is_empty());
        let Some(leaf) = chain.and_then(<[_]>::first).filter(|_| asks) else { return Ok(()) };
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| "its certificate cannot be read")?;
        let is =
            |wanted: &[[u8; 32]], bytes: &[u8]| wanted.iter().any(|hash| hash[..] == *digest(&SHA256, bytes).as_ref());
        if !clients.names.is_empty()
            && !names(&certificate).iter().any(|(_, name)| clients.names.iter().any(|n| n == name))
        {
            return Err("none of its names is expected");
        }
        // As in Istio either of both is enough.
        let (by_key, by_hash) = (is(&clients.keys, certificate.public_key().raw), is(&clients.hashes, leaf));
        match (clients.keys.is_empty() && clients.hashes.is_empty()) || by_key || by_hash {
            true => Ok(()),
            false => Err("neither its key nor its certificate is expected"),
        }
    }
}

/// Alternative names, with what `x-forwarded-client-cert` calls their kinds.
fn names(certificate: &X509Certificate<'_>) -> Vec<(&'static str, String)> {
    let extension = certificate.subject_alternative_name().ok().flatten();
    let all = extension.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let named = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some(("URI", (*uri).to_owned())),
        GeneralName::DNSName(name) => Some(("DNS", (*name).to_owned())),
        _ => None,
    };
    all.iter().filter_map(named).collect()
}

/// A client's certificate as an element of `x-forwarded-client-cert`. What would end a part of it is left out.
#[must_use]
pub fn element(leaf: &CertificateDer<'_>) -> String {
    let mut element = String::from("Hash=");
    for byte in digest(&SHA256, leaf).as_ref() {
        let _ = write!(element, "{byte:02x}");
    }
    if let Ok((_, certificate)) = X509Certificate::from_der(leaf) {
        let clean = |text: &str| text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect::<String>();
        let quoted = clean(&certificate.subject().to_string()).replace(['"', '\\'], "");
        let _ = write!(element, ";Subject=\"{quoted}\"");
        for (kind, name) in names(&certificate) {
            let name: String = clean(&name).chars().filter(|c| !matches!(c, ';' | ',' | '=' | '"' | '\\')).collect();
            let _ = write!(element, ";{kind}={name}");
        }
    }
    element
}

/// The certificates of a listener: the first whose key can sign what the client can verify.
#[derive(Debug)]
struct Shown(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let can = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        self.0.iter().find(can).or_else(|| self.0.first()).cloned()
    }
}

/// Whether a client's certificate is believed. Where `unverified` ones are let in as well, what they prove is nothing.
#[derive(Debug)]
struct Judge {
    path: Arc<dyn ClientCertVerifier>,
    unverified: bool,
}

impl ClientCertVerifier for Judge {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.path.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        !self.unverified && self.path.client_auth_mandatory()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.unverified {
            true => Ok(ClientCertVerified::assertion()),
            false if intermediates.len() > pem::INTERMEDIATES => {
                Err(Error::General("the chain is too long".to_owned()))
            }
            false => self.path.verify_client_cert(leaf, intermediates, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.path.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.path.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.path.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyIdMethod,
        KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
    };

    use super::*;

    #[test]
    fn what_is_revoked_may_stand_without_roots_and_nobody_is_believed_by_it() {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let leaf = |number: u64| {
            let mut params = CertificateParams::default();
            params.serial_number = Some(SerialNumber::from(number));
            params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().clone()
        };
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(7u64),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2124, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&issuer).unwrap().pem().unwrap();
        let roots = Credential { roots: issuer.pem().into(), ..Credential::default() };
        let list = Credential { revoked: list.into(), ..Credential::default() };
        let certificates = Certificates {
            all: [("roots".into(), Arc::new(roots)), ("list".into(), Arc::new(list))].into(),
            ..Certificates::default()
        };
        let judge = |names: &[&str]| {
            let roots = names.iter().map(|name| (*name).into()).collect();
            verifier(
                &Clients { roots, ..Clients::default() },
                &certificates,
                provider(&mesh_core::spoken::Spoken::default()).unwrap(),
            )
        };
        let now = WallClock.current_time().unwrap();
        for (number, names, believed) in [
            (6, &["roots"][..], true),
            (7, &["roots"], true),
            (6, &["roots", "list"], true),
            (7, &["roots", "list"], false),
            (7, &["list", "roots"], false),
        ] {
            let judged = judge(names).unwrap().verify_client_cert(&leaf(number), &[], now);
            assert_eq!(judged.is_ok(), believed, "{number} {names:?}: {judged:?}");
        }
        assert!(judge(&["list"]).is_err() && judge(&["none"]).is_err());
    }
}
