//! Istio's Gateway: what the proxies that it selects listen for, and with which certificates.

use serde::Deserialize;

use super::service_entry::port_protocol;
use super::values::{host_pattern, protocol};
use super::{Check, Spec};
use crate::resource::{Labels, meta};

/// Hosts of a server, names of clients: as many as others read of a listener, and more than anybody writes.
const MOST: usize = 1000;

/// What a Gateway asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct IstioGateway {
    /// Labels of the proxies, of any namespace.
    pub selector: Labels,
    /// What they listen for.
    pub servers: Vec<Server>,
}

/// What is listened for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    /// For logs.
    pub name: Option<String>,
    /// The address; all if it is not said.
    pub bind: Option<String>,
    /// Nobody has ever done this at a gateway.
    pub default_endpoint: Option<String>,
    /// `namespace/host`, or a host alone, with wildcards.
    pub hosts: Vec<String>,
    /// The port.
    pub port: ServerPort,
    /// With which certificates.
    pub tls: Option<ServerTls>,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerPort {
    /// Its number.
    pub number: u16,
    /// What is spoken.
    pub protocol: String,
    /// No other server of the object has it.
    pub name: String,
    /// In an older form.
    pub target_port: Option<u16>,
}

/// With which certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerTls {
    /// Plain HTTP is sent here.
    pub https_redirect: Option<bool>,
    /// What is done with TLS; none is PASSTHROUGH.
    pub mode: Option<ServerMode>,
    /// A file of the proxy.
    pub server_certificate: Option<String>,
    /// A file of the proxy.
    pub private_key: Option<String>,
    /// A file of the proxy.
    pub ca_certificates: Option<String>,
    /// A file of the proxy.
    pub ca_crl: Option<String>,
    /// A Secret.
    pub credential_name: Option<String>,
    /// Two of them, with keys of two kinds.
    pub credential_names: Vec<String>,
    /// Who clients are believed by.
    pub ca_cert_credential_name: Option<String>,
    /// Files of the proxy.
    pub tls_certificates: Vec<CertificateFiles>,
    /// Who clients may be.
    pub subject_alt_names: Vec<String>,
    /// Hashes of clients' keys.
    pub verify_certificate_spki: Vec<String>,
    /// Hashes of clients' certificates.
    pub verify_certificate_hash: Vec<String>,
    /// 1.2 if it is not said.
    pub min_protocol_version: Option<TlsVersion>,
    /// 1.3 if it is not said.
    pub max_protocol_version: Option<TlsVersion>,
    /// Of TLS 1.2.
    pub cipher_suites: Vec<String>,
}

/// Files of the proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificateFiles {
    /// The certificate.
    pub server_certificate: Option<String>,
    /// Its key.
    pub private_key: Option<String>,
    /// Who clients are believed by.
    pub ca_certificates: Option<String>,
}

/// What is done with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum ServerMode {
    Passthrough,
    Simple,
    Mutual,
    AutoPassthrough,
    IstioMutual,
    OptionalMutual,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum TlsVersion {
    #[serde(rename = "TLS_AUTO")]
    Auto,
    #[serde(rename = "TLSV1_0")]
    V1_0,
    #[serde(rename = "TLSV1_1")]
    V1_1,
    #[serde(rename = "TLSV1_2")]
    V1_2,
    #[serde(rename = "TLSV1_3")]
    V1_3,
}

impl Spec for IstioGateway {
    fn check(&self, check: &mut Check<'_>) {
        if self.servers.is_empty() {
            check.error("spec.servers", "it listens for nothing", "add a server with `port` and `hosts`");
        }
        if self.selector.is_empty() {
            check.warning(
                "spec.selector",
                "it selects every proxy",
                "write the labels of the gateway's pods, as `istio: ingressgateway`",
            );
        }
        let servers = self.servers.iter().enumerate();
        check.once(servers.clone().map(|(i, server)| (format!("spec.servers[{i}].port.name"), &server.port.name)));
        for (index, server) in servers {
            let field = format!("spec.servers[{index}]");
            server.check(&field, check);
            let number = server.port.number;
            let family = |server: &Server| {
                protocol(&server.port.protocol).map(|p| (p == "HTTP") || (p == "HTTP2") || p.starts_with("GRPC"))
            };
            let other = self.servers[..index].iter().find(|other| {
                other.port.number == number && other.bind == server.bind && family(other) != family(server)
            });
            if let Some(other) = other {
                let message = format!("port {number} speaks {} and {}", other.port.protocol, server.port.protocol);
                check.error(format!("{field}.port.protocol"), message, "use two ports");
            }
        }
    }
}

impl Server {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        check.port(format!("{field}.port.number"), self.port.number);
        if self.port.protocol.is_empty() {
            check.error(format!("{field}.port.protocol"), "the protocol is empty", "write HTTP, HTTPS, TLS or TCP");
        }
        port_protocol(&format!("{field}.port"), Some(&self.port.protocol), check);
        if self.port.name.is_empty() {
            check.error(format!("{field}.port.name"), "the name is empty", "");
        }
        if self.hosts.is_empty() {
            check.error(format!("{field}.hosts"), "no host", "write \"*\" for all");
        }
        check.few(format!("{field}.hosts"), self.hosts.len(), MOST);
        check.each(&format!("{field}.hosts"), &self.hosts, |text| {
            let (namespace, host) = text.split_once('/').map_or((None, text), |(n, h)| (Some(n), h));
            match namespace.is_none_or(|n| [".", "*"].contains(&n) || meta::label(n).is_ok()) {
                true => host_pattern(host),
                false => Err(format!("{text:?}: before the `/` stands a namespace, `.` or `*`")),
            }
        });
        if let Some(address) = self.bind.as_ref().filter(|bind| bind.parse::<std::net::IpAddr>().is_err()) {
            check.error(format!("{field}.bind"), format!("{address:?} is not an address"), "");
        }
        if self.default_endpoint.is_some() {
            check.warning(format!("{field}.defaultEndpoint"), "a gateway has none, it has no effect", "");
        }
        let spoken = protocol(&self.port.protocol);
        let secret = matches!(spoken, Some("HTTPS" | "TLS"));
        match &self.tls {
            None if secret => {
                check.error(
                    field,
                    format!("{} needs certificates", self.port.protocol),
                    "add `tls`, with `mode: SIMPLE` and `credentialName`, or `mode: PASSTHROUGH`",
                );
            }
            None => {}
            Some(tls) => {
                let plain = matches!(spoken, Some("HTTP" | "HTTP2" | "GRPC"));
                let only_redirects = ServerTls { https_redirect: tls.https_redirect, ..ServerTls::default() } == *tls;
                if plain && !only_redirects {
                    check.error(
                        format!("{field}.tls"),
                        format!("{} is spoken without TLS", self.port.protocol),
                        "write `protocol: HTTPS`, or of `tls` httpsRedirect only",
                    );
                } else if !plain {
                    tls.check(&format!("{field}.tls"), check);
                }
            }
        }
    }
}

impl ServerTls {
    /// What must hold of it, also where a Sidecar has it.
    pub(super) fn check(&self, field: &str, check: &mut Check<'_>) {
        let mode = self.mode.unwrap_or(ServerMode::Passthrough);
        let secrets = [
            ("credentialName", self.credential_name.is_some()),
            ("credentialNames", !self.credential_names.is_empty()),
        ];
        let has_secret = check.one_of(field, &secrets) > 0;
        let files = self.server_certificate.is_some() || self.private_key.is_some();
        match mode {
            ServerMode::Simple | ServerMode::Mutual | ServerMode::OptionalMutual => {
                let whole = self.server_certificate.is_some() && self.private_key.is_some();
                if !has_secret && !whole && self.tls_certificates.is_empty() {
                    check.error(
                        field,
                        "there is no certificate to show",
                        "add `credentialName`, the name of a Secret of type kubernetes.io/tls",
                    );
                }
                if has_secret && (files || !self.tls_certificates.is_empty()) {
                    check.error(field, "a Secret and files exclude each other", "keep one of them");
                }
                let is_mutual = mode != ServerMode::Simple;
                if is_mutual
                    && !has_secret
                    && self.ca_certificates.is_none()
                    && self.tls_certificates.iter().all(|f| f.ca_certificates.is_none())
                {
                    check.error(field, "nobody is known by whom clients are believed", "add `caCertificates`");
                }
            }
            ServerMode::IstioMutual if has_secret || files => {
                check.error(field, "ISTIO_MUTUAL uses the mesh's certificates", "delete credentialName and the files");
            }
            ServerMode::Passthrough | ServerMode::AutoPassthrough if has_secret || files => {
                check.warning(field, "TLS is passed on: the certificate is never shown", "write `mode: SIMPLE`");
            }
            _ => {}
        }
        if self.credential_names.len() > 2 {
            check.error(format!("{field}.credentialNames"), "more than two", "");
        }
        check.few(format!("{field}.subjectAltNames"), self.subject_alt_names.len(), MOST);
        check.each(&format!("{field}.subjectAltNames"), &self.subject_alt_names, meta::told);
        let (least, most) = (self.min_protocol_version, self.max_protocol_version.filter(|v| *v != TlsVersion::Auto));
        if let (Some(least), Some(most)) = (least, most)
            && least > most
        {
            check.error(format!("{field}.minProtocolVersion"), "later than maxProtocolVersion", "");
        }
        for (name, version) in [("minProtocolVersion", least), ("maxProtocolVersion", most)] {
            if matches!(version, Some(TlsVersion::V1_0 | TlsVersion::V1_1)) {
                check.warning(format!("{field}.{name}"), "nothing before TLS 1.2 is spoken here", "write TLSV1_2");
            }
        }
    }
}
