//! What is different with metrics: which are not made, and which labels they have.

use mesh_core::ArcStr;
use mesh_core::telemetry::expression::Expression;
use mesh_core::telemetry::{MOST_TAGS, Metric as CoreMetric, Telemetry as Core};

use super::{Object, Problems, Stands, key};
use crate::diagnosis::Problem;
use crate::resource::routing::telemetry::{Metric, Metrics, Override, TagOperation};

/// Puts in force what is different with metrics.
pub(super) fn overrides(
    core: &mut Core,
    object: &Object,
    (metrics, stands): (&Metrics, Stands),
    field: &str,
    problems: &mut Problems,
) {
    for (index, one) in metrics.overrides.iter().enumerate() {
        let field = format!("{field}.overrides[{index}]");
        if !stands.is_meant(one.matches.as_ref().and_then(|which| which.mode)) {
            continue;
        }
        if one.matches.as_ref().is_some_and(|which| which.custom_metric.is_some()) {
            let message = "a waypoint makes Istio's metrics only: it has no effect";
            problems.push((key(object), Problem::warning(format!("{field}.match.customMetric"), message)));
            continue;
        }
        let changes = changes(object, one, &field, problems);
        for metric in which(one.matches.as_ref().and_then(|which| which.metric)) {
            let rule = core.metrics.entry(metric).or_default();
            rule.disabled = one.disabled.unwrap_or(rule.disabled);
            for (tag, value) in &changes {
                if rule.tags.len() < MOST_TAGS || rule.tags.contains_key(tag) {
                    rule.tags.insert(tag.clone(), value.clone());
                }
            }
        }
    }
}

/// What happens to labels; an expression that is none changes nothing.
fn changes(object: &Object, one: &Override, field: &str, problems: &mut Problems) -> Vec<(ArcStr, Option<ArcStr>)> {
    let mut changes = Vec::new();
    for (tag, change) in &one.tag_overrides {
        let field = crate::yaml::node::join(&format!("{field}.tagOverrides"), tag);
        let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let is_taken = tag.starts_with("__") || tag == "le";
        if tag.is_empty() || is_taken || !tag.chars().all(good) || tag.starts_with(|c: char| c.is_ascii_digit()) {
            let message = format!("{tag:?} is not the name of a label, or one that Prometheus uses itself");
            problems.push((key(object), Problem::error(field, message)));
            continue;
        }
        match (change.operation, &change.value) {
            (Some(TagOperation::Remove), _) => changes.push((tag.as_str().into(), None)),
            (_, None) => {}
            (_, Some(value)) => match Expression::compile(value) {
                Ok(_) => changes.push((tag.as_str().into(), Some(value.as_str().into()))),
                Err(error) => {
                    let problem = Problem::error(format!("{field}.value"), error.to_string());
                    problems.push((key(object), problem.help("until it is, the label is as it was")));
                }
            },
        }
    }
    changes
}

fn which(metric: Option<Metric>) -> Vec<CoreMetric> {
    let one = match metric {
        None | Some(Metric::AllMetrics) => return CoreMetric::ALL.to_vec(),
        Some(Metric::RequestCount) => CoreMetric::RequestCount,
        Some(Metric::RequestDuration) => CoreMetric::RequestDuration,
        Some(Metric::RequestSize) => CoreMetric::RequestSize,
        Some(Metric::ResponseSize) => CoreMetric::ResponseSize,
        Some(Metric::TcpOpenedConnections) => CoreMetric::TcpOpenedConnections,
        Some(Metric::TcpClosedConnections) => CoreMetric::TcpClosedConnections,
        Some(Metric::TcpSentBytes) => CoreMetric::TcpSentBytes,
        Some(Metric::TcpReceivedBytes) => CoreMetric::TcpReceivedBytes,
        Some(Metric::GrpcRequestMessages) => CoreMetric::GrpcRequestMessages,
        Some(Metric::GrpcResponseMessages) => CoreMetric::GrpcResponseMessages,
    };
    vec![one]
}
