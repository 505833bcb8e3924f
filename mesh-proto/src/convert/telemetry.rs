//! What is measured, logged and traced, both ways. What this version does not understand refuses all of it, and the last good form stays: nothing of it decides
//! who gets in, and half of it would be numbers and logs that nobody has asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::ArcStr;
use mesh_core::l7::Share;
use mesh_core::telemetry::{
    AccessLog, Collector, CollectorKind, LogFormat, MOST_LOGS, MOST_TAGS, Metric, MetricRule, Scopes, SpanTag,
    Telemetry, Tracing,
};
use prost::Message;

use super::{ConvertError, field};
use crate::wire::l7 as wire;

/// Services with something of their own.
const MOST_SERVICES: usize = 100_000;
/// Headers of a collector, keys of a log.
const MOST_PAIRS: usize = 256;
/// Longest text: a format of a log.
const LONGEST: usize = 16 * 1024;

/// Reads one `undermesh.l7.v1.Telemetry`: the name of its waypoint, and what it says.
pub fn telemetry(bytes: &[u8]) -> Result<(ArcStr, Scopes), ConvertError> {
    let message = wire::Telemetry::decode(bytes).map_err(ConvertError::decode)?;
    if message.encoded_len() != bytes.len() {
        return Err(ConvertError::UnknownFields);
    }
    few("services", message.services.len(), MOST_SERVICES)?;
    let name = field::text("name", message.name)?;
    let waypoint = Arc::new(read_scope(message.waypoint.unwrap_or_default())?);
    let mut services = BTreeMap::new();
    for (key, scope) in message.services {
        services.insert(field::key("services", &key)?, Arc::new(read_scope(scope)?));
    }
    Ok((name, Scopes { waypoint, services }))
}

/// The bytes of an `undermesh.l7.v1.Telemetry`. The same always gives the same bytes.
#[must_use]
pub fn encode_telemetry(name: &str, scopes: &Scopes) -> Vec<u8> {
    let services = scopes.services.iter().map(|(name, scope)| (name.to_string(), write_scope(scope))).collect();
    let waypoint = Some(write_scope(&scopes.waypoint));
    wire::Telemetry { name: name.to_owned(), waypoint, services }.encode_to_vec()
}

fn few(field: &'static str, count: usize, most: usize) -> Result<(), ConvertError> {
    match count > most {
        true => Err(ConvertError::invalid(field, format!("{count}, the limit is {most}"))),
        false => Ok(()),
    }
}

/// A text that may have line ends in it.
fn text(field: &'static str, value: &str) -> Result<ArcStr, ConvertError> {
    few(field, value.len(), LONGEST)?;
    Ok(value.into())
}

fn read_scope(message: wire::TelemetryScope) -> Result<Telemetry, ConvertError> {
    few("logs", message.logs.len(), MOST_LOGS)?;
    let mut metrics = BTreeMap::new();
    for rule in &message.metrics {
        let number = usize::try_from(rule.metric).ok().and_then(|number| number.checked_sub(1));
        let unknown = || ConvertError::invalid("metrics.metric", format!("{} is none that is known", rule.metric));
        let metric = *number.and_then(|number| Metric::ALL.get(number)).ok_or_else(unknown)?;
        few("metrics.tags", rule.tags.len(), MOST_TAGS)?;
        let tag = |(name, tag): (&String, &wire::MetricTag)| -> Result<(ArcStr, Option<ArcStr>), ConvertError> {
            let expression = tag.expression.as_deref().map(|value| text("metrics.tags", value)).transpose()?;
            Ok((text("metrics.tags", name)?, expression))
        };
        let tags = rule.tags.iter().map(tag).collect::<Result<_, _>>()?;
        metrics.insert(metric, MetricRule { disabled: rule.disabled, tags });
    }
    let logs = message.logs.into_iter().map(read_log).collect::<Result<_, _>>()?;
    let tracing = message.tracing.map(read_tracing).transpose()?;
    Ok(Telemetry { metrics, logs, tracing })
}

fn read_log(message: wire::AccessLog) -> Result<AccessLog, ConvertError> {
    use wire::access_log::Format;
    let format = match message.format.ok_or(ConvertError::Missing { field: "logs.format" })? {
        Format::Text(format) => LogFormat::Text(text("logs.text", &format)?),
        Format::Json(json) => LogFormat::Json(pairs("logs.json", &json.keys)?),
    };
    let filter = message.filter.as_deref().map(|filter| text("logs.filter", filter)).transpose()?;
    Ok(AccessLog { path: text("logs.path", &message.path)?, format, filter })
}

fn pairs(field: &'static str, pairs: &[wire::TextPair]) -> Result<Vec<(ArcStr, ArcStr)>, ConvertError> {
    few(field, pairs.len(), MOST_PAIRS)?;
    pairs.iter().map(|pair| Ok((text(field, &pair.key)?, text(field, &pair.value)?))).collect()
}

fn read_tracing(message: wire::Tracing) -> Result<Tracing, ConvertError> {
    few("tracing.tags", message.tags.len(), MOST_TAGS)?;
    let share = Share::millionths(message.share);
    let too_many = || ConvertError::invalid("tracing.share", format!("{} millionths are more than all", message.share));
    let mut tags = BTreeMap::new();
    for (name, tag) in &message.tags {
        tags.insert(text("tracing.tags", name)?, read_tag(tag)?);
    }
    Ok(Tracing {
        collector: message.collector.as_ref().map(read_collector).transpose()?,
        share: share.ok_or_else(too_many)?,
        by_request_id: message.by_request_id,
        propagate: message.propagate,
        istio_tags: message.istio_tags,
        tags,
        tag_length: message.tag_length,
    })
}

fn read_collector(message: &wire::SpanCollector) -> Result<Collector, ConvertError> {
    use wire::span_collector::Kind;
    let kind = match message.kind() {
        Kind::OtlpGrpc => CollectorKind::OtlpGrpc,
        Kind::OtlpHttp => CollectorKind::OtlpHttp,
        Kind::Zipkin => CollectorKind::Zipkin,
        Kind::Unknown => {
            return Err(ConvertError::invalid("collector.kind", format!("{} is none that is known", message.kind)));
        }
    };
    Ok(Collector {
        kind,
        host: field::name("collector.host", message.host.clone())?,
        port: field::port("collector.port", message.port)?,
        path: text("collector.path", &message.path)?,
        headers: pairs("collector.headers", &message.headers)?,
    })
}

fn read_tag(message: &wire::SpanTag) -> Result<SpanTag, ConvertError> {
    use wire::span_tag::Value;
    let lookup = |lookup: &wire::SpanLookup| -> Result<(ArcStr, Option<ArcStr>), ConvertError> {
        let fallback = lookup.fallback.as_deref().map(|value| text("tracing.tags", value)).transpose()?;
        Ok((text("tracing.tags", &lookup.name)?, fallback))
    };
    Ok(match message.value.as_ref().ok_or(ConvertError::Missing { field: "tracing.tags.value" })? {
        Value::Literal(literal) => SpanTag::Literal(text("tracing.tags", literal)?),
        Value::Formatter(formatter) => SpanTag::Formatter(text("tracing.tags", formatter)?),
        Value::Environment(variable) => {
            let (name, fallback) = lookup(variable)?;
            SpanTag::Environment(name, fallback)
        }
        Value::Header(header) => {
            let (name, fallback) = lookup(header)?;
            SpanTag::Header(name, fallback)
        }
    })
}

fn write_scope(telemetry: &Telemetry) -> wire::TelemetryScope {
    let tag = |(name, expression): (&ArcStr, &Option<ArcStr>)| {
        (name.to_string(), wire::MetricTag { expression: expression.as_ref().map(ToString::to_string) })
    };
    let number = |metric| Metric::ALL.iter().position(|known| *known == metric).map_or(0, |index| index + 1);
    let rule = |(metric, rule): (&Metric, &MetricRule)| wire::MetricRule {
        metric: i32::try_from(number(*metric)).unwrap_or_default(),
        disabled: rule.disabled,
        tags: rule.tags.iter().map(tag).collect(),
    };
    wire::TelemetryScope {
        metrics: telemetry.metrics.iter().map(rule).collect(),
        logs: telemetry.logs.iter().map(write_log).collect(),
        tracing: telemetry.tracing.as_ref().map(write_tracing),
    }
}

fn write_log(log: &AccessLog) -> wire::AccessLog {
    use wire::access_log::Format;
    let format = match &log.format {
        LogFormat::Text(text) => Format::Text(text.to_string()),
        LogFormat::Json(keys) => Format::Json(wire::LogKeys { keys: write_pairs(keys) }),
    };
    let filter = log.filter.as_ref().map(ToString::to_string);
    wire::AccessLog { path: log.path.to_string(), format: Some(format), filter }
}

fn write_pairs(pairs: &[(ArcStr, ArcStr)]) -> Vec<wire::TextPair> {
    pairs.iter().map(|(key, value)| wire::TextPair { key: key.to_string(), value: value.to_string() }).collect()
}

fn write_tracing(tracing: &Tracing) -> wire::Tracing {
    use wire::span_collector::Kind;
    let collector = |collector: &Collector| wire::SpanCollector {
        kind: match collector.kind {
            CollectorKind::OtlpGrpc => Kind::OtlpGrpc.into(),
            CollectorKind::OtlpHttp => Kind::OtlpHttp.into(),
            CollectorKind::Zipkin => Kind::Zipkin.into(),
        },
        host: collector.host.to_string(),
        port: collector.port.into(),
        path: collector.path.to_string(),
        headers: write_pairs(&collector.headers),
    };
    wire::Tracing {
        collector: tracing.collector.as_ref().map(collector),
        share: tracing.share.parts(),
        by_request_id: tracing.by_request_id,
        propagate: tracing.propagate,
        istio_tags: tracing.istio_tags,
        tags: tracing.tags.iter().map(|(name, tag)| (name.to_string(), write_tag(tag))).collect(),
        tag_length: tracing.tag_length,
    }
}

fn write_tag(tag: &SpanTag) -> wire::SpanTag {
    use wire::span_tag::Value;
    let lookup = |name: &ArcStr, fallback: &Option<ArcStr>| wire::SpanLookup {
        name: name.to_string(),
        fallback: fallback.as_ref().map(ToString::to_string),
    };
    let value = match tag {
        SpanTag::Literal(text) => Value::Literal(text.to_string()),
        SpanTag::Environment(name, fallback) => Value::Environment(lookup(name, fallback)),
        SpanTag::Header(name, fallback) => Value::Header(lookup(name, fallback)),
        SpanTag::Formatter(text) => Value::Formatter(text.to_string()),
    };
    wire::SpanTag { value: Some(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Scopes {
        let tag = |text: &str| (ArcStr::from(text), Some(ArcStr::from("request.host")));
        let rule = MetricRule { disabled: true, tags: [tag("host"), ("source_principal".into(), None)].into() };
        let log =
            |format| AccessLog { path: "/dev/stdout".into(), format, filter: Some("response.code >= 400".into()) };
        let collector = Collector {
            kind: CollectorKind::OtlpHttp,
            host: "otel.example".into(),
            port: 4318,
            path: "/v1/traces".into(),
            headers: vec![("x-token".into(), "t".into())],
        };
        let tags = [
            ("a".into(), SpanTag::Literal("l".into())),
            ("b".into(), SpanTag::Environment("HOME".into(), None)),
            ("c".into(), SpanTag::Header("x-user".into(), Some("nobody".into()))),
            ("d".into(), SpanTag::Formatter("%ROUTE_NAME%\n".into())),
        ];
        let tracing = Tracing { collector: Some(collector), tags: tags.into(), propagate: false, ..Tracing::default() };
        let all = Telemetry {
            metrics: Metric::ALL.into_iter().map(|metric| (metric, rule.clone())).collect(),
            logs: vec![log(LogFormat::default()), log(LogFormat::Json(vec![("a".into(), "%PROTOCOL%".into())]))],
            tracing: Some(tracing),
        };
        let services = [("shop/web.shop.svc.cluster.local".parse().unwrap(), Arc::new(Telemetry::default()))].into();
        Scopes { waypoint: Arc::new(all), services }
    }

    #[test]
    fn what_is_written_is_read() {
        for scopes in [Scopes::default(), full()] {
            let bytes = encode_telemetry("shop/waypoint", &scopes);
            assert_eq!(bytes, encode_telemetry("shop/waypoint", &scopes.clone()));
            assert_eq!(telemetry(&bytes).unwrap(), ("shop/waypoint".into(), scopes));
        }
    }

    #[test]
    fn what_is_not_understood_refuses_all_of_it() {
        let good = || wire::Telemetry::decode(&*encode_telemetry("shop/waypoint", &full())).unwrap();
        type Change = fn(&mut wire::TelemetryScope);
        let changes: [(&str, Change); 8] = [
            ("metrics.metric", |scope| scope.metrics[0].metric = 11),
            ("metrics.metric", |scope| scope.metrics[0].metric = -1),
            ("logs.format", |scope| scope.logs[0].format = None),
            ("logs", |scope| scope.logs = vec![scope.logs[0].clone(); MOST_LOGS + 1]),
            ("tracing.share", |scope| scope.tracing.as_mut().unwrap().share = 1_000_001),
            ("collector.kind", |scope| scope.tracing.as_mut().unwrap().collector.as_mut().unwrap().kind = 9),
            ("collector.port", |scope| scope.tracing.as_mut().unwrap().collector.as_mut().unwrap().port = 70_000),
            ("tracing.tags.value", |scope| {
                scope.tracing.as_mut().unwrap().tags.insert("x".to_owned(), wire::SpanTag { value: None });
            }),
        ];
        for (field, change) in changes {
            let mut message = good();
            change(message.waypoint.as_mut().unwrap());
            let error = telemetry(&message.encode_to_vec()).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
        let mut later = encode_telemetry("shop/waypoint", &full());
        later.extend([0xf8, 0x07, 1]);
        assert!(matches!(telemetry(&later), Err(ConvertError::UnknownFields)));
    }
}
