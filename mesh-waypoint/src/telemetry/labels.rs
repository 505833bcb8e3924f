//! The labels of Istio's metrics, in Istio's order. What is not known is `unknown`, never empty; every value is cut to a bound, because other people write them.

use std::borrow::Cow;
use std::sync::LazyLock;

use arcstr::ArcStr;
use mesh_core::Workload;
use mesh_core::telemetry::Metric;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::shape::Custom;
use super::{Flags, Measured, Protocol, Who};

/// Longest value in bytes.
const LONGEST: usize = 512;
pub(super) const UNKNOWN: ArcStr = arcstr::literal!("unknown");
pub(super) const OVERFLOW: ArcStr = arcstr::literal!("overflow");

/// Labels that a copied connection has too.
const SHARED: [&str; 21] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
];

/// Names and values.
pub(super) type Pairs = Vec<(ArcStr, ArcStr)>;

/// One label set: Istio's labels, and one's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Labels {
    pairs: Pairs,
    custom: Custom,
}

/// What one metric shows of a label set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shown<'a>(Cow<'a, Pairs>);

impl Labels {
    /// Of a request.
    pub(super) fn of_request(who: &Who<'_>, measured: &Measured, custom: &Custom) -> Self {
        let protocol = match measured.protocol {
            Protocol::Http => arcstr::literal!("http"),
            Protocol::Grpc => arcstr::literal!("grpc"),
        };
        let mut labels = ends(who, protocol);
        labels.push((arcstr::literal!("response_code"), ArcStr::from(measured.status.to_string())));
        if measured.protocol == Protocol::Grpc {
            let status = measured.grpc_status.map_or_else(ArcStr::new, |status| status.to_string().into());
            labels.push((arcstr::literal!("grpc_response_status"), status));
        }
        Self::with_flags(labels, measured.flags, security(who), custom)
    }

    /// Of a connection that is copied.
    pub(super) fn of_tcp(who: &Who<'_>, flags: Flags, custom: &Custom) -> Self {
        Self::with_flags(ends(who, arcstr::literal!("tcp")), flags, security(who), custom)
    }

    /// Of datagrams of one client.
    pub(super) fn of_udp(who: &Who<'_>, custom: &Custom) -> Self {
        // Nobody proves anything by them.
        Self::with_flags(ends(who, arcstr::literal!("udp")), Flags::default(), UNKNOWN, custom)
    }

    /// Stands for all requests or connections whose labels found no room.
    pub(super) fn overflow(protocol: &'static str) -> Self {
        let value = |name: &&'static str| match *name {
            "reporter" => arcstr::literal!("waypoint"),
            "source_workload" | "destination_workload" => OVERFLOW,
            "request_protocol" => ArcStr::from(protocol),
            _ => UNKNOWN,
        };
        let mut labels: Pairs = SHARED.iter().map(|name| (ArcStr::from(*name), value(name))).collect();
        if protocol == "http" {
            labels.push((arcstr::literal!("response_code"), UNKNOWN));
        }
        Self::with_flags(labels, Flags::default(), UNKNOWN, &Custom::default())
    }

    fn with_flags(mut pairs: Pairs, flags: Flags, security: ArcStr, custom: &Custom) -> Self {
        pairs.push((arcstr::literal!("response_flags"), ArcStr::from(flags.to_string())));
        pairs.push((arcstr::literal!("connection_security_policy"), security));
        Self { pairs, custom: custom.clone() }
    }

    /// What a metric shows of it; `None`: the metric is not made.
    pub(super) fn shown(&self, metric: Metric) -> Option<Shown<'_>> {
        self.custom.shown(metric, &self.pairs).map(Shown)
    }
}

/// Who comes in a tunnel has proved who it is; who comes from outside of the mesh has not, whatever its TLS is. What a gateway reports is what it asks for itself.
fn security(who: &Who<'_>) -> ArcStr {
    if who.proved().is_some() && !who.outside { arcstr::literal!("mutual_tls") } else { UNKNOWN }
}

/// The shared labels.
fn ends(who: &Who<'_>, protocol: ArcStr) -> Pairs {
    let source = Side::of(who.client.map(|client| &**client));
    let destination = Side::of(who.endpoint.map(|endpoint| &**endpoint));
    // At an edge it is the gateway that asks; for a stranger nobody whom labels could name.
    let proved = who.peer.proved();
    let namespace = who.client.map(|client| &client.namespace).or(proved.map(|identity| &identity.namespace));
    let principal = |identity: &mesh_core::Identity| ArcStr::from(identity.to_string());
    let (host, name, service_namespace) = match (who.service, who.asked) {
        (Some(service), _) => (known(&service.hostname), known(&service.name), known(&service.namespace)),
        (None, Some(asked)) => {
            let short = asked.name.split('.').next().unwrap_or_default();
            (known(&asked.name), known(&short.into()), known(&asked.namespace))
        }
        (None, None) => (UNKNOWN, UNKNOWN, UNKNOWN),
    };
    // A gateway asks for its clients, and reports so, as Istio's.
    let reporter =
        if who.outside && !who.peer.stranger { arcstr::literal!("source") } else { arcstr::literal!("waypoint") };
    let values = [
        reporter,
        source.workload,
        source.service.clone(),
        source.revision.clone(),
        namespace.map_or(UNKNOWN, known),
        cut(proved.map_or(UNKNOWN, principal)),
        source.service,
        source.revision,
        source.cluster,
        host,
        service_namespace,
        name,
        destination.workload,
        destination.service.clone(),
        destination.revision.clone(),
        destination.namespace,
        cut(who.endpoint.map_or(UNKNOWN, |endpoint| principal(&endpoint.identity()))),
        destination.service,
        destination.revision,
        destination.cluster,
        protocol,
    ];
    static NAMES: LazyLock<[ArcStr; 21]> = LazyLock::new(|| SHARED.map(ArcStr::from));
    NAMES.iter().cloned().zip(values).collect()
}

/// One end of a request.
pub(super) struct Side {
    pub(super) workload: ArcStr,
    namespace: ArcStr,
    service: ArcStr,
    revision: ArcStr,
    pub(super) cluster: ArcStr,
}

impl Side {
    pub(super) fn of(workload: Option<&Workload>) -> Self {
        let Some(workload) = workload else {
            return Self {
                workload: UNKNOWN,
                namespace: UNKNOWN,
                service: UNKNOWN,
                revision: UNKNOWN,
                cluster: UNKNOWN,
            };
        };
        Self {
            workload: known(&workload.workload_name),
            namespace: known(&workload.namespace),
            service: known(&workload.canonical_name),
            revision: known(&workload.canonical_revision),
            cluster: known(&workload.cluster_id),
        }
    }
}

/// What is said of a value that may not be known.
pub(super) fn known(value: &ArcStr) -> ArcStr {
    if value.is_empty() { UNKNOWN } else { cut(value.clone()) }
}

pub(super) fn cut(value: ArcStr) -> ArcStr {
    if value.len() <= LONGEST && !value.chars().any(char::is_control) {
        return value;
    }
    let clean = value.chars().map(|c| if c.is_control() { '_' } else { c });
    let mut kept = String::new();
    for c in clean {
        if kept.len() + c.len_utf8() > LONGEST {
            break;
        }
        kept.push(c);
    }
    kept.into()
}

impl EncodeLabelSet for Shown<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|(name, value)| (name.as_str(), value.as_str()).encode(encoder.encode_label()))
    }
}
