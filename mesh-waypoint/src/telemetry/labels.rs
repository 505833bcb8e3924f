//! The labels of Istio's metrics of requests, in Istio's order. What is not known is `unknown`, never empty; every value is cut to a bound, because other
//! people write them.

use arcstr::ArcStr;
use mesh_core::Workload;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::{Measured, Protocol, Who};

/// Longest value in bytes.
const LONGEST: usize = 512;
const UNKNOWN: ArcStr = arcstr::literal!("unknown");

/// One label set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Labels(Vec<(&'static str, ArcStr)>);

impl Labels {
    pub(super) fn new(who: &Who<'_>, measured: &Measured) -> Self {
        let source = Side::of(who.client.map(|client| &**client));
        let destination = Side::of(who.endpoint.map(|endpoint| &**endpoint));
        let namespace = who.client.map(|client| &client.namespace).unwrap_or(&who.peer.identity.namespace);
        let principal = |identity: &mesh_core::Identity| ArcStr::from(identity.to_string());
        let (host, name, service_namespace) = match (who.service, who.asked) {
            (Some(service), _) => (known(&service.hostname), known(&service.name), known(&service.namespace)),
            (None, Some(asked)) => {
                let short = asked.name.split('.').next().unwrap_or_default();
                (known(&asked.name), known(&short.into()), known(&asked.namespace))
            }
            (None, None) => (UNKNOWN, UNKNOWN, UNKNOWN),
        };
        let mut labels = vec![
            ("reporter", arcstr::literal!("waypoint")),
            ("source_workload", source.workload),
            ("source_canonical_service", source.service.clone()),
            ("source_canonical_revision", source.revision.clone()),
            ("source_workload_namespace", known(namespace)),
            ("source_principal", cut(principal(&who.peer.identity))),
            ("source_app", source.service),
            ("source_version", source.revision),
            ("source_cluster", source.cluster),
            ("destination_service", host),
            ("destination_service_namespace", service_namespace),
            ("destination_service_name", name),
            ("destination_workload", destination.workload),
            ("destination_canonical_service", destination.service.clone()),
            ("destination_canonical_revision", destination.revision.clone()),
            ("destination_workload_namespace", destination.namespace),
            ("destination_principal", cut(who.endpoint.map_or(UNKNOWN, |endpoint| principal(&endpoint.identity())))),
            ("destination_app", destination.service),
            ("destination_version", destination.revision),
            ("destination_cluster", destination.cluster),
            (
                "request_protocol",
                match measured.protocol {
                    Protocol::Http => arcstr::literal!("http"),
                    Protocol::Grpc => arcstr::literal!("grpc"),
                },
            ),
            ("response_code", ArcStr::from(measured.status.to_string())),
        ];
        if measured.protocol == Protocol::Grpc {
            let status = measured.grpc_status.map_or_else(ArcStr::new, |status| status.to_string().into());
            labels.push(("grpc_response_status", status));
        }
        labels.push(("response_flags", measured.flag.into()));
        labels.push(("connection_security_policy", arcstr::literal!("mutual_tls")));
        Self(labels)
    }
}

/// One end of a request.
struct Side {
    workload: ArcStr,
    namespace: ArcStr,
    service: ArcStr,
    revision: ArcStr,
    cluster: ArcStr,
}

impl Side {
    fn of(workload: Option<&Workload>) -> Self {
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

fn known(value: &ArcStr) -> ArcStr {
    if value.is_empty() { UNKNOWN } else { cut(value.clone()) }
}

fn cut(value: ArcStr) -> ArcStr {
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

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|(name, value)| (*name, value.as_str()).encode(encoder.encode_label()))
    }
}
