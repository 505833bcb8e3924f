//! Who a peer is: the chain to a root, exactly one SPIFFE URI, the accepted trust domains, the expected identities.
//!
//! Called by rustls during handshakes and by `certificate.rs` for our own certificates. Names in DNS or IP form are never an identity.

use std::str::FromStr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use mesh_core::identity::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::certificate::{NOT_BEFORE_TOLERANCE, Roots};

/// Longest chain besides the leaf. Real ones have one or two intermediates; path building is exponential in the worst case.
const INTERMEDIATES: usize = 8;
/// Longest SPIFFE URI.
const URI_LIMIT: usize = 2048;

/// Why a peer's certificate is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The peer sent no certificate.
    #[error("peer presented no certificate")]
    NoCertificate,
    /// The certificate does not parse.
    #[error("certificate is malformed")]
    Malformed,
    /// A SPIFFE certificate has exactly one URI name.
    #[error("certificate has {0} URI names, must have exactly one")]
    UriCount(usize),
    /// The URI is not a workload identity.
    #[error("certificate URI is not a workload identity: {0}")]
    NotAnIdentity(String),
    /// The identity belongs to another mesh.
    #[error("trust domain {0} is not accepted")]
    TrustDomain(String),
    /// The peer is somebody else.
    #[error("peer identity {found} is not among the expected ones")]
    PeerIdentityMismatch {
        /// Who answered.
        found: Identity,
    },
    /// More intermediates than any honest chain has.
    #[error("chain of {0} intermediates is too long")]
    ChainTooLong(usize),
    /// The certificate may not sign a handshake.
    #[error("certificate key usage does not allow digital signatures")]
    KeyUsage,
    /// Its authority has revoked the certificate, or one that it depends on.
    #[error("certificate was revoked")]
    Revoked,
    /// No valid path to a root: unknown issuer, expired, wrong usage, weak key.
    #[error("certificate chain: {0}")]
    Chain(String),
}

/// The identity that a verified chain names. Fails unless the leaf has exactly one URI name and that is a workload's SPIFFE id.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<Identity, VerifyError> {
    identity_and_end(chain).map(|(identity, _)| identity)
}

/// [`peer_identity`], and when the leaf's validity ends.
pub(crate) fn identity_and_end(chain: &[CertificateDer<'_>]) -> Result<(Identity, SystemTime), VerifyError> {
    let leaf = chain.first().ok_or(VerifyError::NoCertificate)?;
    let (rest, certificate) = X509Certificate::from_der(leaf).map_err(|_| VerifyError::Malformed)?;
    if !rest.is_empty() {
        return Err(VerifyError::Malformed);
    }
    let mut uris = Vec::new();
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                uris.extend(names.general_names.iter().filter_map(|name| match name {
                    GeneralName::URI(uri) => Some(Ok(*uri)),
                    GeneralName::Invalid(..) => Some(Err(VerifyError::Malformed)),
                    _ => None,
                }));
            }
            ParsedExtension::KeyUsage(usage) if !usage.digital_signature() => return Err(VerifyError::KeyUsage),
            ParsedExtension::ParseError { .. } => return Err(VerifyError::Malformed),
            _ => {}
        }
    }
    let uris = uris.into_iter().collect::<Result<Vec<_>, _>>()?;
    let [uri] = uris[..] else { return Err(VerifyError::UriCount(uris.len())) };
    if uri.len() > URI_LIMIT {
        return Err(VerifyError::NotAnIdentity(format!("{} bytes long", uri.len())));
    }
    let identity = Identity::from_str(uri).map_err(|error| VerifyError::NotAnIdentity(error.to_string()))?;
    Ok((identity, timestamp(certificate.validity().not_after.timestamp())))
}

/// A time in a certificate, which may be before 1970.
pub(super) fn timestamp(seconds: i64) -> SystemTime {
    let magnitude = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(magnitude)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(magnitude)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// What the certificate is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Usage {
    Server,
    Client,
}

/// A path from the leaf to a root, valid at `now`, for `usage`.
pub(crate) fn verify_chain(
    roots: &Roots,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    usage: Usage,
    now: SystemTime,
) -> Result<(), VerifyError> {
    if intermediates.len() > INTERMEDIATES {
        return Err(VerifyError::ChainTooLong(intermediates.len()));
    }
    verify_path(roots, leaf, intermediates, usage, now, None).map_err(|error| VerifyError::Chain(error.to_string()))
}

pub(super) fn verify_path(
    roots: &Roots,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    usage: Usage,
    now: SystemTime,
    revocation: Option<webpki::RevocationOptions<'_>>,
) -> Result<(), webpki::Error> {
    let certificate = webpki::EndEntityCert::try_from(leaf)?;
    let at = |time: SystemTime| {
        UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO))
    };
    let verify = |time| {
        let usage = match usage {
            Usage::Server => webpki::KeyUsage::server_auth(),
            Usage::Client => webpki::KeyUsage::client_auth(),
        };
        certificate
            .verify_for_usage(ALGORITHMS.all, roots.anchors(), intermediates, at(time), usage, revocation, None)
            .map(drop)
    };
    match verify(now) {
        // A peer whose clock is a little ahead; an expired certificate gets no such grace.
        Err(webpki::Error::CertNotValidYet { .. }) => verify(now + NOT_BEFORE_TOLERANCE),
        other => other,
    }
}

fn verify_peer(
    roots: &Roots,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    usage: Usage,
    now: UnixTime,
) -> Result<Identity, VerifyError> {
    verify_chain(roots, leaf, intermediates, usage, SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs()))?;
    let identity = peer_identity(std::slice::from_ref(leaf))?;
    if !roots.trust_domains().contains(&identity.trust_domain) {
        return Err(VerifyError::TrustDomain(identity.trust_domain.to_string()));
    }
    Ok(identity)
}

static ALGORITHMS: LazyLock<WebPkiSupportedAlgorithms> = LazyLock::new(|| provider().signature_verification_algorithms);

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites =
        vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384, aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    provider.kx_groups = vec![
        aws_lc_rs::kx_group::X25519MLKEM768,
        aws_lc_rs::kx_group::X25519,
        aws_lc_rs::kx_group::SECP256R1,
        aws_lc_rs::kx_group::SECP384R1,
    ];
    Arc::new(provider)
});

/// The wall clock, as rustls asks for it. Whoever verifies certificates with rustls gives it this one.
#[derive(Debug)]
pub struct WallClock;

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        mesh_runtime::clock::now().duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// The suites and groups that the mesh speaks; the post-quantum hybrid is preferred.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

fn refuse(error: VerifyError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Verifies the server's certificate against the expected identities.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    roots: Arc<Roots>,
    expected: Box<[Identity]>,
}

impl ServerVerifier {
    pub(super) fn new(roots: Arc<Roots>, expected: &[Identity]) -> Self {
        Self { roots, expected: expected.into() }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // An identity that the caller expects is accepted whatever its trust domain: the caller was told to expect it.
        verify_chain(
            &self.roots,
            leaf,
            intermediates,
            Usage::Server,
            SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs()),
        )
        .map_err(refuse)?;
        let found = peer_identity(std::slice::from_ref(leaf)).map_err(refuse)?;
        if !self.expected.contains(&found) {
            return Err(refuse(VerifyError::PeerIdentityMismatch { found }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &ALGORITHMS)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
    }
}

/// Verifies the client's certificate: any identity of an accepted trust domain.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    roots: Arc<Roots>,
}

impl ClientVerifier {
    pub(super) fn new(roots: Arc<Roots>) -> Self {
        Self { roots }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        verify_peer(&self.roots, leaf, intermediates, Usage::Client, now).map_err(refuse)?;
        Ok(ClientCertVerified::assertion())
    }

    /// Of sidecars: tunnels do not offer that version.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signature, &ALGORITHMS)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &ALGORITHMS)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
    }
}

/// The verifier's own error inside a rustls error, when that is why a handshake failed.
pub(crate) fn cause(error: &Error) -> Option<&VerifyError> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref::<VerifyError>(),
        _ => None,
    }
}
