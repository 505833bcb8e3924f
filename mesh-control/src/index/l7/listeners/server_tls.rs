//! How TLS ends at a server of Istio's Gateway: which Secrets it names, who clients have to be, and which versions and suites are spoken. What cannot be honoured
//! closes the server.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mesh_core::ArcStr;
use mesh_core::listener::{Clients, Tls};
use mesh_core::spoken::{Spoken, TlsVersion};

use super::classic::One;
use crate::diagnosis::Problem;
use crate::index::certificates::{Part, Reference};
use crate::resource::routing::istio_gateway::{self as kind, ServerMode, ServerTls};
use crate::resource::secret::named;
use crate::resource::tls_names::{self, SUITES};
use crate::resource::waypoint::{TUNNEL, TUNNEL_HTTP};
use crate::resource::{Key, Kind, meta};

/// The server is closed, and why.
pub(super) struct Refused(pub Problem);

/// How TLS ends, and what of it is otherwise than it is written.
pub(super) struct ReadTls {
    pub tls: Tls,
    pub problems: Vec<Problem>,
}

fn refused<T>(field: String, message: impl Into<String>, help: &str) -> Result<T, Refused> {
    Err(Refused(Problem::error(field, message).help(format!("{help}; until then the server refuses connections"))))
}

/// What a server says of TLS that ends there.
pub(super) fn tls(one: &One<'_>, written: &ServerTls, references: &mut Vec<Reference>) -> Result<ReadTls, Refused> {
    let field = |name: &str| format!("{}.tls.{name}", one.field);
    let is_mutual = match written.mode {
        Some(ServerMode::Simple) => None,
        Some(ServerMode::Mutual) => Some(true),
        Some(ServerMode::OptionalMutual) => Some(false),
        Some(ServerMode::AutoPassthrough) => {
            return refused(field("mode"), "AUTO_PASSTHROUGH is not served", "write PASSTHROUGH, and a VirtualService");
        }
        Some(ServerMode::IstioMutual) => return refused(field("mode"), "TLS is the mesh's own", "write SIMPLE"),
        Some(ServerMode::Passthrough) | None => return refused(field("mode"), "TLS is passed on", "write SIMPLE"),
    };
    let files = written.server_certificate.is_some() || !written.tls_certificates.is_empty();
    if files || written.private_key.is_some() || written.ca_certificates.is_some() || written.ca_crl.is_some() {
        return refused(one.field.clone() + ".tls", "files of the proxy are not read", "write `credentialName`");
    }
    let mut problems = Vec::new();
    let names = written.credential_name.iter().map(|name| ("credentialName".to_owned(), name));
    let many = written.credential_names.iter().enumerate();
    let names: Vec<_> = names.chain(many.map(|(i, name)| (format!("credentialNames[{i}]"), name))).collect();
    let mut certificates: Vec<ArcStr> = Vec::new();
    for (at, name) in &names {
        let secret = secret(one, &field(at), name)?;
        certificates.push(named(&secret));
        references.push(reference(one, field(at), secret, None, Part::Shown));
    }
    let clients = match is_mutual {
        None => None,
        Some(required) => Some(clients(one, written, &names, required, references)?),
    };
    let spoken = spoken(one, written, &mut problems)?;
    Ok(ReadTls { tls: Tls { certificates, clients, spoken }, problems })
}

/// What a server says of TLS that is the mesh's own, as far as it is otherwise than it is written: its clients come in tunnels. What it asks of them besides
/// closes it.
pub(super) fn of_mesh(one: &One<'_>, written: &ServerTls) -> Result<Option<Problem>, Refused> {
    for (name, is_asked) in [
        ("subjectAltNames", !written.subject_alt_names.is_empty()),
        ("verifyCertificateSpki", !written.verify_certificate_spki.is_empty()),
        ("verifyCertificateHash", !written.verify_certificate_hash.is_empty()),
    ] {
        if is_asked {
            let message = "who comes from the mesh is not told apart here";
            let help = "write an AuthorizationPolicy with `source.principals`";
            return refused(format!("{}.tls.{name}", one.field), message, help);
        }
    }
    let says_how = written.min_protocol_version.is_some()
        || written.max_protocol_version.is_some()
        || !written.cipher_suites.is_empty();
    Ok(says_how.then(|| {
        let message = "clients come in tunnels of the mesh, whose versions and suites are the mesh's";
        Problem::warning(format!("{}.tls", one.field), message).help("delete versions and suites")
    }))
}

/// Nobody in the mesh has a tunnel to the pods of the gateway.
pub(super) fn out_of_reach(one: &One<'_>) -> Problem {
    let message = format!("no pod of the gateway {} takes tunnels, and nobody else gets in", one.gateway);
    let help = format!("have its pods labelled {TUNNEL}: {TUNNEL_HTTP}");
    Problem::warning(format!("{}.tls.mode", one.field), message).help(help)
}

/// A Secret is of the namespace of the pods that show it.
fn secret(one: &One<'_>, field: &str, name: &str) -> Result<Key, Refused> {
    let bare = name.strip_prefix("kubernetes://").unwrap_or(name);
    if meta::subdomain(bare).is_err() {
        let message = format!("{name:?} is no name of a Secret of {}", one.gateway.namespace);
        return refused(field.to_owned(), message, "write the name alone");
    }
    Ok(Key { kind: Kind::Secret, namespace: one.gateway.namespace.clone(), name: bare.into() })
}

fn reference(one: &One<'_>, field: String, holder: Key, or: Option<Key>, part: Part) -> Reference {
    Reference {
        gateway: one.gateway.clone(),
        object: one.key(),
        listener: one.server.port.name.as_str().into(),
        field,
        holder,
        or,
        part,
    }
}

/// Who clients have to be. Their roots are in a Secret of their own, or in that with the certificate.
fn clients(
    one: &One<'_>,
    written: &ServerTls,
    names: &[(String, &String)],
    required: bool,
    references: &mut Vec<Reference>,
) -> Result<Clients, Refused> {
    let field = |name: &str| format!("{}.tls.{name}", one.field);
    let (at, secret, or) = match (&written.ca_cert_credential_name, names.first()) {
        (Some(name), _) => (field("caCertCredentialName"), secret(one, &field("caCertCredentialName"), name)?, None),
        (None, Some((at, name))) => {
            let own = secret(one, &field(at), name)?;
            let apart = Key { name: format!("{}-cacert", own.name).into(), ..own.clone() };
            (field(at), apart, Some(own))
        }
        (None, None) => return refused(one.field.clone() + ".tls", "no Secret is named", "write `credentialName`"),
    };
    let roots = vec![named(&secret)];
    references.push(reference(one, at, secret, or, Part::Believed));
    let digests = |name: &str, all: &[String], read: fn(&str) -> Option<Vec<u8>>| {
        let digest = |(index, text): (usize, &String)| {
            let bytes = read(text).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            let field = format!("{}[{index}]", field(name));
            bytes.map_or_else(|| refused(field, "it is no SHA-256", "write one, or delete it"), Ok)
        };
        all.iter().enumerate().map(digest).collect::<Result<Vec<_>, Refused>>()
    };
    Ok(Clients {
        required,
        unverified: false,
        roots,
        names: written.subject_alt_names.iter().map(|name| name.as_str().into()).collect(),
        keys: digests("verifyCertificateSpki", &written.verify_certificate_spki, |text| STANDARD.decode(text).ok())?,
        hashes: digests("verifyCertificateHash", &written.verify_certificate_hash, hex)?,
    })
}

/// Two digits a byte, with or without colons between them.
fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text.chars().filter(|c| *c != ':').map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    let byte = |pair: &[u32]| u8::try_from(pair.first()? * 16 + pair.get(1)?).ok();
    digits.chunks(2).map(byte).collect()
}

/// What is spoken: what the server says, and where it says nothing what the mesh does.
fn spoken(one: &One<'_>, written: &ServerTls, problems: &mut Vec<Problem>) -> Result<Spoken, Refused> {
    let usual = one.around.defaults.tls.spoken();
    let newest = match written.max_protocol_version {
        None | Some(kind::TlsVersion::Auto | kind::TlsVersion::V1_3) => TlsVersion::V1_3,
        Some(kind::TlsVersion::V1_2) => TlsVersion::V1_2,
        Some(kind::TlsVersion::V1_0 | kind::TlsVersion::V1_1) => {
            let field = format!("{}.tls.maxProtocolVersion", one.field);
            return refused(field, "nothing before TLS 1.2 is spoken", "write TLSV1_2 or TLSV1_3");
        }
    };
    let oldest = match written.min_protocol_version {
        Some(kind::TlsVersion::V1_3) => TlsVersion::V1_3,
        // A server that says how new its TLS may be at most is asked by it before the mesh is.
        None | Some(kind::TlsVersion::Auto) => usual.oldest.min(newest),
        Some(kind::TlsVersion::V1_0 | kind::TlsVersion::V1_1 | kind::TlsVersion::V1_2) => TlsVersion::V1_2,
    };
    if written.cipher_suites.is_empty() {
        let is_without = one.around.defaults.tls.is_without_suites() && oldest == TlsVersion::V1_2;
        return if is_without {
            without_suites(one, newest, usual, problems)
        } else {
            Ok(Spoken { oldest, newest, ..usual })
        };
    }
    let field = format!("{}.tls.cipherSuites", one.field);
    let suites = tls_names::spoken(&written.cipher_suites, SUITES, &field, problems);
    // Where none of those that are written is spoken, TLS 1.2 is not either.
    match (suites.is_empty(), newest) {
        (false, _) => Ok(Spoken { oldest, newest, suites, ..usual }),
        (true, TlsVersion::V1_3) => Ok(Spoken { oldest: TlsVersion::V1_3, newest, suites, ..usual }),
        (true, TlsVersion::V1_2) => {
            refused(field, "none of them is spoken, and TLS 1.3 is not wanted", "add one that is")
        }
    }
}

/// A server asks for TLS 1.2, and the mesh leaves no suite of it. A list without any would mean all of them.
fn without_suites(
    one: &One<'_>,
    newest: TlsVersion,
    usual: Spoken,
    problems: &mut Vec<Problem>,
) -> Result<Spoken, Refused> {
    const NONE: &str = "none of the suites of `tlsDefaults.cipherSuites` in the mesh settings is spoken";
    const HELP: &str = "write `cipherSuites` here, or one that is spoken there";
    let field = |name| format!("{}.tls.{name}", one.field);
    if newest == TlsVersion::V1_2 {
        return refused(field("maxProtocolVersion"), format!("{NONE}, and TLS 1.3 is not wanted"), HELP);
    }
    let problem = Problem::warning(field("minProtocolVersion"), format!("{NONE}: it is TLS 1.3 alone"));
    problems.push(problem.help(HELP));
    Ok(Spoken { oldest: TlsVersion::V1_3, newest, ..usual })
}
