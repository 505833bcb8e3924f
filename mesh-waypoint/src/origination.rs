//! TLS to endpoints, as a DestinationRule asks for it of those outside of the mesh, and a BackendTLSPolicy of all: which roots are believed, whose names the certificate
//! may have, what is shown of our own. Made once for each place and used by all connections to it. Errors name credentials, never what is in them.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

use mesh_core::ArcStr;
use mesh_core::l7::cluster::{ServerName as Asked, Tls};
use mesh_core::listener::{Certificates, Credential};
use mesh_transport::tls::{WallClock, pem};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::spoken::{provider, versions};

/// What is spoken inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Anything: nothing is said of it.
    Bytes,
}

/// How TLS begins towards one place.
pub struct Origin {
    id: u64,
    /// What is asked for; that of a pattern follows from who is asked ([`Origin::for_name`]).
    name: Option<ServerName<'static>>,
    /// By [`Inside`].
    configs: [Arc<ClientConfig>; 3],
    made_of: Arc<MadeOf>,
}

#[derive(PartialEq)]
struct MadeOf {
    tls: Tls,
    host: ArcStr,
    /// Those of the names of its roots that are known.
    roots: Vec<(ArcStr, Arc<Credential>)>,
    shown: Option<Arc<Credential>>,
}

impl Origin {
    /// As `tls` says it, or why that cannot be. `None`: no TLS of the world is asked for. What says the same as `before` is that, so that connections and sessions
    /// are not lost with each endpoint that comes or goes. `host` is the service's.
    pub fn make(
        tls: &Tls,
        host: &ArcStr,
        certificates: &Certificates,
        before: Option<&Arc<Self>>,
    ) -> Option<Result<Arc<Self>, String>> {
        let asked = tls.server()?;
        // One that is there to be shown alone says of nobody whether to believe him.
        let says = |one: &&Arc<Credential>| !one.roots.is_empty() || !one.revoked.is_empty();
        let known = |name: &ArcStr| Some((name.clone(), certificates.all.get(name).filter(says).cloned()?));
        let made_of = MadeOf {
            tls: tls.clone(),
            host: host.clone(),
            roots: asked.roots.iter().filter_map(known).collect(),
            shown: asked.shown.as_ref().and_then(|name| certificates.all.get(name).cloned()),
        };
        if let Some(same) = before.filter(|before| *before.made_of == made_of) {
            return Some(Ok(Arc::clone(same)));
        }
        Some(Self::compile(asked, matches!(tls, Tls::Mutual(_)), made_of).map(Arc::new))
    }

    fn compile(asked: &Asked, mutual: bool, made_of: MadeOf) -> Result<Self, String> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let sni = asked.sni.as_ref().unwrap_or(&made_of.host);
        let name = match asked.sni.is_none() && sni.starts_with("*.") {
            true => None,
            false => Some(name_of(sni)?),
        };
        let provider = provider(&asked.spoken)?;
        let verifier: Arc<dyn ServerCertVerifier> = match asked.unverified {
            true => Arc::new(Unverified(Arc::clone(&provider))),
            false => Arc::new(Named::new(asked, &made_of.roots, &provider)?),
        };
        let builder = ClientConfig::builder_with_details(Arc::clone(&provider), Arc::new(WallClock))
            .with_protocol_versions(&versions(&asked.spoken))
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match (&asked.shown, &made_of.shown) {
            (None, _) if mutual => return Err("there is no certificate to show".to_owned()),
            (None, _) => builder.with_no_client_auth(),
            (Some(name), None) => return Err(format!("the credential {name} is not known")),
            (Some(name), Some(own)) => {
                let chain = pem::certificates(&own.chain).map_err(|why| format!("{name}: the certificate: {why}"))?;
                let key = PrivateKeyDer::from_pem_slice(own.key.expose());
                let key = key.map_err(|_| format!("{name}: the key is not PEM"))?;
                let other = |_| format!("{name}: the key is not the certificate's");
                builder.with_client_auth_cert(chain, key).map_err(other)?
            }
        };
        let with = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Arc::new(config)
        };
        let configs = [with(&[b"http/1.1"]), with(&[b"h2"]), with(&[])];
        Ok(Self { id: IDS.fetch_add(1, Relaxed), name, configs, made_of: Arc::new(made_of) })
    }

    /// The same towards a host of the pattern, which is asked for by its own name, and has to prove that one: Istio's way. Who has said `sni` has said another.
    pub fn for_name(self: &Arc<Self>, host: &str) -> Result<Arc<Self>, String> {
        if self.name.is_some() {
            return Ok(Arc::clone(self));
        }
        let (configs, made_of) = (self.configs.clone(), Arc::clone(&self.made_of));
        Ok(Arc::new(Self { id: self.id, name: Some(name_of(host)?), configs, made_of }))
    }

    /// Tells apart what connections may not be shared by.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether it begins inside of tunnels, too.
    #[must_use]
    pub fn is_end_to_end(&self) -> bool {
        self.made_of.tls.server().is_some_and(|asked| asked.end_to_end)
    }

    /// Begins TLS in a connection.
    pub async fn begin<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        inside: Inside,
    ) -> io::Result<TlsStream<S>> {
        let config = &self.configs[inside as usize];
        let name =
            self.name.clone().ok_or_else(|| io::Error::other("nobody has said by which name the host is asked"))?;
        TlsConnector::from(Arc::clone(config)).connect(name, stream).await
    }
}

fn name_of(host: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(host.to_owned()).map_err(|_| format!("{host:?} is not a name to ask for: write `sni`"))
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What the system trusts, as it was at the first question.
fn of_the_system() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "some of what the system trusts cannot be read");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        Arc::new(roots)
    });
    match ROOTS.is_empty() {
        true => {
            Err("the system trusts nobody: name a credential with roots, or give the waypoint a bundle (SSL_CERT_FILE)"
                .to_owned())
        }
        false => Ok(Arc::clone(&ROOTS)),
    }
}

/// A name that a certificate may have.
#[derive(Debug)]
enum Name {
    Host(ServerName<'static>),
    Uri(String),
}

/// A path to a root, and the name that is asked for or one of those that are written.
#[derive(Debug)]
struct Named {
    path: Arc<WebPkiServerVerifier>,
    names: Vec<Name>,
}

impl Named {
    fn new(asked: &Asked, known: &[(ArcStr, Arc<Credential>)], provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let (mut believed, mut revoked) = (RootCertStore::empty(), Vec::new());
        for (name, one) in known {
            // A list of what is revoked may stand without the roots that it is about.
            if !one.roots.is_empty() {
                pem::add_roots(&one.roots, &mut believed).map_err(|why| format!("{name}: the roots: {why}"))?;
            }
            revoked.extend(pem::revoked(&one.revoked).map_err(|why| format!("{name}: what is revoked: {why}"))?);
        }
        let roots = match (asked.roots.is_empty(), believed.is_empty()) {
            (true, _) => of_the_system()?,
            (false, false) => Arc::new(believed),
            // Never what the system trusts instead: somebody has said whom to believe.
            (false, true) => return Err(format!("none of the credentials {} is known", asked.roots.join(", "))),
        };
        let lists = !revoked.is_empty();
        let mut builder = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider)).with_crls(revoked);
        if lists {
            // The list is the leaf's issuer's; those between it and a root have lists elsewhere.
            builder = builder.only_check_end_entity_revocation().allow_unknown_revocation_status();
        }
        let name = |name: &ArcStr| match ServerName::try_from(name.to_string()) {
            Ok(host) => Name::Host(host),
            Err(_) => Name::Uri(name.to_string()),
        };
        let names = asked.names.iter().map(name).collect();
        Ok(Self { path: builder.build().map_err(|error| error.to_string())?, names })
    }

    fn has_name(&self, leaf: &CertificateDer<'_>) -> Result<bool, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let written = certificate.subject_alternative_name().ok().flatten();
        let all = written.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let has_uri = |wanted: &str| all.iter().any(|name| matches!(name, GeneralName::URI(uri) if *uri == wanted));
        Ok(self.names.iter().any(|name| match name {
            Name::Host(host) => verify_server_name(&parsed, host).is_ok(),
            Name::Uri(uri) => has_uri(uri),
        }))
    }
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        asked: &ServerName<'_>,
        staple: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if intermediates.len() > pem::INTERMEDIATES {
            return Err(Error::General(format!("a chain of {} certificates is too long", intermediates.len())));
        }
        let verified = self.path.verify_server_cert(leaf, intermediates, asked, staple, now);
        if self.names.is_empty() {
            return verified;
        }
        match verified {
            // The name is looked at last: the path is good.
            Ok(_)
            | Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {}
            Err(error) => return Err(error),
        }
        match self.has_name(leaf)? {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::NotValidForName.into()),
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

/// Takes any certificate whose key the other side has.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
