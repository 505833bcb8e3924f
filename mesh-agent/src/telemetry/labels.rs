//! The labels of Istio's TCP metrics: their names, their order, their values, and the bound on each value.
//!
//! Names and order are those that Istio's node proxy prints, so that existing dashboards and Kiali work unchanged. A missing value is
//! the literal `unknown`, never empty. Values come from configuration that other people write, so every one is cut to [`MAX_VALUE`]
//! bytes and freed of control characters before it is kept. Used by `series` (metrics) and `access_log`.

use std::fmt;

use arcstr::ArcStr;
use mesh_core::identity::Identity;
use mesh_core::service::Service;
use mesh_core::workload::Workload;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder};

/// Longest label value in bytes. Kubernetes names and host names end at 253; a SPIFFE id of the longest parts fits too.
pub const MAX_VALUE: usize = 512;

/// What stands for a value that is not known.
pub const UNKNOWN: ArcStr = arcstr::literal!("unknown");

/// What stands for the workloads whose label sets found no room.
pub(crate) const OVERFLOW: ArcStr = arcstr::literal!("overflow");

/// Which end of the connection reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reporter {
    /// The client's agent: the connection left a pod of this node.
    Source,
    /// The server's agent: the connection entered a pod of this node.
    Destination,
}

impl Reporter {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }

    /// The word of the access log's `direction` field.
    pub fn direction(self) -> &'static str {
        match self {
            Self::Source => "outbound",
            Self::Destination => "inbound",
        }
    }
}

/// What was really checked on the flow; never what should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Security {
    /// Both ends proved their identity in the TLS handshake of the tunnel.
    MutualTls,
    /// The kernel of the node that runs both ends told who calls, by its network namespace; nothing was encrypted.
    Kernel,
    /// Plain TCP.
    Unknown,
}

impl Security {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::Kernel => "kernel",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a connection failed, in the words of Istio's `response_flags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResponseFlags {
    /// It did not fail.
    #[default]
    None,
    /// An authorization policy refused it.
    Deny,
    /// The destination could not be reached, or refused the tunnel.
    Connect,
    /// The TLS handshake failed.
    TlsFailure,
    /// The HTTP/2 handshake failed.
    H2HandshakeFailure,
    /// The tunnel port did not answer, as when a network policy drops it.
    NetworkPolicy,
    /// The certificate of this side could not be had.
    IdentityError,
    /// The peer's certificate is revoked.
    CertRevoked,
}

impl ResponseFlags {
    /// Number of variants, for tables indexed by [`ResponseFlags::index`].
    pub(crate) const COUNT: usize = 8;

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }

    pub(crate) const ALL: [Self; Self::COUNT] = [
        Self::None,
        Self::Deny,
        Self::Connect,
        Self::TlsFailure,
        Self::H2HandshakeFailure,
        Self::NetworkPolicy,
        Self::IdentityError,
        Self::CertRevoked,
    ];

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// The labels of one end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerLabels {
    /// Name of the controller that owns the pod (Deployment, StatefulSet, ...).
    pub workload: ArcStr,
    /// `service.istio.io/canonical-name`; also the `app` label.
    pub canonical_service: ArcStr,
    /// `service.istio.io/canonical-revision`; also the `version` label.
    pub canonical_revision: ArcStr,
    /// Namespace of the workload.
    pub namespace: ArcStr,
    /// SPIFFE id, only of an end whose identity belongs to this flow.
    pub principal: ArcStr,
    /// Cluster id.
    pub cluster: ArcStr,
    /// Region of its node.
    pub region: ArcStr,
    /// Zone of its node.
    pub zone: ArcStr,
}

impl Default for PeerLabels {
    fn default() -> Self {
        Self::unknown()
    }
}

impl PeerLabels {
    /// An end nothing is known of.
    pub const fn unknown() -> Self {
        Self {
            workload: UNKNOWN,
            canonical_service: UNKNOWN,
            canonical_revision: UNKNOWN,
            namespace: UNKNOWN,
            principal: UNKNOWN,
            cluster: UNKNOWN,
            region: UNKNOWN,
            zone: UNKNOWN,
        }
    }

    /// What the configuration says of a workload. The principal stays unknown: it is for [`PeerLabels::with_principal`] to say.
    pub fn of(workload: &Workload) -> Self {
        Self {
            workload: bounded(&workload.workload_name),
            canonical_service: bounded(&workload.canonical_name),
            canonical_revision: bounded(&workload.canonical_revision),
            namespace: bounded(&workload.namespace),
            principal: UNKNOWN,
            cluster: bounded(&workload.cluster_id),
            region: bounded(&workload.locality.region),
            zone: bounded(&workload.locality.zone),
        }
    }

    /// Adds the identity that this flow proved or asserts for this end.
    pub fn with_principal(mut self, identity: Option<&Identity>) -> Self {
        self.principal = identity.map_or(UNKNOWN, |identity| bounded(&ArcStr::from(identity.to_string())));
        self
    }
}

/// The labels of the service the client addressed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceLabels {
    /// Host name.
    pub host: ArcStr,
    /// Namespace.
    pub namespace: ArcStr,
    /// Short name.
    pub name: ArcStr,
}

impl ServiceLabels {
    /// A flow that addressed no service.
    pub const fn unknown() -> Self {
        Self { host: UNKNOWN, namespace: UNKNOWN, name: UNKNOWN }
    }

    /// The labels of a known service.
    pub fn of(service: &Service) -> Self {
        Self { host: bounded(&service.hostname), namespace: bounded(&service.namespace), name: bounded(&service.name) }
    }
}

/// All labels of one series but the response flags.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TrafficLabels {
    pub(crate) reporter: Reporter,
    pub(crate) source: PeerLabels,
    pub(crate) service: ServiceLabels,
    pub(crate) destination: PeerLabels,
    pub(crate) security: Security,
}

impl TrafficLabels {
    /// The one label set that takes what does not fit under the cap on series.
    pub(crate) fn overflow(reporter: Reporter, security: Security) -> Self {
        let peer = PeerLabels { workload: OVERFLOW, ..PeerLabels::unknown() };
        Self { reporter, source: peer.clone(), service: ServiceLabels::unknown(), destination: peer, security }
    }
}

/// A label set together with the flags of one family's sample.
pub(crate) struct Flagged<'a>(pub(crate) &'a TrafficLabels, pub(crate) ResponseFlags);

impl EncodeLabelSet for Flagged<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), fmt::Error> {
        let Self(labels, flags) = self;
        let (source, service, destination) = (&labels.source, &labels.service, &labels.destination);
        let row: [(&str, &str); 27] = [
            ("reporter", labels.reporter.as_str()),
            ("source_workload", &source.workload),
            ("source_canonical_service", &source.canonical_service),
            ("source_canonical_revision", &source.canonical_revision),
            ("source_workload_namespace", &source.namespace),
            ("source_principal", &source.principal),
            ("source_app", &source.canonical_service),
            ("source_version", &source.canonical_revision),
            ("source_cluster", &source.cluster),
            ("destination_service", &service.host),
            ("destination_service_namespace", &service.namespace),
            ("destination_service_name", &service.name),
            ("destination_workload", &destination.workload),
            ("destination_canonical_service", &destination.canonical_service),
            ("destination_canonical_revision", &destination.canonical_revision),
            ("destination_workload_namespace", &destination.namespace),
            ("destination_principal", &destination.principal),
            ("destination_app", &destination.canonical_service),
            ("destination_version", &destination.canonical_revision),
            ("destination_cluster", &destination.cluster),
            ("request_protocol", "tcp"),
            ("response_flags", flags.as_str()),
            ("connection_security_policy", labels.security.as_str()),
            ("source_region", &source.region),
            ("source_zone", &source.zone),
            ("destination_region", &destination.region),
            ("destination_zone", &destination.zone),
        ];
        row.iter().try_for_each(|&(key, value)| label(encoder, key, value))
    }
}

/// Labels given as pairs, for the small families.
pub(crate) struct Pairs<'a, const N: usize>(pub(crate) [(&'static str, &'a str); N]);

impl<const N: usize> EncodeLabelSet for Pairs<'_, N> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), fmt::Error> {
        self.0.iter().try_for_each(|&(key, value)| label(encoder, key, value))
    }
}

fn label(encoder: &mut LabelSetEncoder, key: &str, value: &str) -> Result<(), fmt::Error> {
    let mut label = encoder.encode_label();
    let mut key_encoder = label.encode_label_key()?;
    fmt::Write::write_str(&mut key_encoder, key)?;
    let mut value_encoder: LabelValueEncoder = key_encoder.encode_label_value()?;
    value.encode(&mut value_encoder)?;
    value_encoder.finish()
}

/// The value as it is kept: never empty, at most [`MAX_VALUE`] bytes, no control characters. Free for the usual value.
pub fn bounded(value: &ArcStr) -> ArcStr {
    if value.is_empty() {
        return UNKNOWN;
    }
    if value.len() <= MAX_VALUE && !value.chars().any(char::is_control) {
        return value.clone();
    }
    let mut end = value.len().min(MAX_VALUE);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    value[..end].chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).scan(0, fits).collect::<String>().into()
}

/// Ends the text before it grows past the bound: a replacement character is longer than what it replaces.
fn fits(length: &mut usize, c: char) -> Option<char> {
    *length += c.len_utf8();
    (*length <= MAX_VALUE).then_some(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardening_b108_label_values_are_bounded_and_clean() {
        let long = "é".repeat(1 << 19);
        let cases = [
            ("", "unknown".to_owned()),
            ("reviews-v1", "reviews-v1".to_owned()),
            ("a\nb\0c\u{7f}", "a\u{fffd}b\u{fffd}c\u{fffd}".to_owned()),
            ("naïve \u{1f600}", "naïve \u{1f600}".to_owned()),
            (&long, "é".repeat(MAX_VALUE / 2)),
        ];
        for (given, expected) in cases {
            assert_eq!(bounded(&ArcStr::from(given)).as_str(), expected, "{}", &given[..given.len().min(20)]);
        }
        assert!(bounded(&ArcStr::from("\n".repeat(MAX_VALUE))).len() <= MAX_VALUE);
    }
}
