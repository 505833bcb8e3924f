//! Labels of one's own: which of Istio's metrics are not made, which of their labels are left out, and which say what an expression says. Expressions are asked
//! when a request is over; what a metric then shows is worked out when somebody looks.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use arcstr::ArcStr;
use mesh_core::telemetry::expression::{Attribute, Datum, Expression};
use mesh_core::telemetry::{Metric, MetricRule};

use super::facts::Wanted;
use super::labels::{Pairs, known};

/// What is different with metrics, compiled.
#[derive(Debug)]
pub struct Shape {
    /// Without tags whose expressions are none.
    rules: BTreeMap<Metric, MetricRule>,
    /// Each once, in the order of their texts.
    expressions: Vec<Expression>,
    hash: u64,
}

impl Shape {
    /// `None`: nothing is different. What is no expression changes nothing, and is told.
    #[must_use]
    pub fn compile(rules: &BTreeMap<Metric, MetricRule>, wanted: &mut Wanted) -> Option<Arc<Self>> {
        let mut compiled: BTreeMap<ArcStr, Expression> = BTreeMap::new();
        let mut kept = BTreeMap::new();
        for (metric, rule) in rules {
            let mut rule = rule.clone();
            rule.tags.retain(|name, expression| match expression {
                _ if !is_label(name) => false,
                Some(text) if !compiled.contains_key(text) => match Expression::compile(text) {
                    Ok(expression) => {
                        wanted.expression(&expression);
                        compiled.insert(text.clone(), expression);
                        true
                    }
                    Err(error) => {
                        tracing::warn!(label = %name, %error, "the value of a label is no expression: it is as it was");
                        false
                    }
                },
                _ => true,
            });
            if rule != MetricRule::default() {
                kept.insert(*metric, rule);
            }
        }
        if kept.is_empty() {
            return None;
        }
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(&kept);
        Some(Arc::new(Self { rules: kept, expressions: compiled.into_values().collect(), hash }))
    }

    /// Whether messages are asked for values.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.expressions.iter().any(|expression| expression.literal().is_none())
    }

    fn value<'a>(&self, text: &str, values: &'a [ArcStr]) -> Option<&'a ArcStr> {
        let at = self.expressions.binary_search_by(|expression| expression.written().cmp(text)).ok()?;
        values.get(at)
    }
}

/// Names that Prometheus takes and does not use itself.
fn is_label(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && !name.starts_with("__");
    starts && name.chars().all(good) && name != "le"
}

impl PartialEq for Shape {
    fn eq(&self, other: &Self) -> bool {
        self.rules == other.rules
    }
}

impl Eq for Shape {}

impl PartialOrd for Shape {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Shape {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rules.cmp(&other.rules)
    }
}

impl Hash for Shape {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// What one request has of labels of one's own. The default: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Custom {
    shape: Option<Arc<Shape>>,
    values: Vec<ArcStr>,
}

impl Custom {
    /// Of something of which that is known. What cannot be said is `unknown`.
    #[must_use]
    pub fn of(shape: &Arc<Shape>, datum: impl Fn(Attribute) -> Option<Datum>) -> Self {
        let value = |expression: &Expression| known(&expression.text(&datum).unwrap_or_default().into());
        Self { shape: Some(Arc::clone(shape)), values: shape.expressions.iter().map(value).collect() }
    }

    /// The labels that a metric shows; `None`: it is not made.
    pub(super) fn shown<'a>(&self, metric: Metric, labels: &'a Pairs) -> Option<Cow<'a, Pairs>> {
        let rule = self.shape.as_ref().and_then(|shape| Some((shape, shape.rules.get(&metric)?)));
        let Some((shape, rule)) = rule else { return Some(Cow::Borrowed(labels)) };
        if rule.disabled {
            return None;
        }
        let mut own = labels.clone();
        own.retain(|(name, _)| rule.tags.get(name) != Some(&None));
        for (name, text) in &rule.tags {
            let Some(value) = text.as_ref().and_then(|text| shape.value(text, &self.values)) else { continue };
            match own.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => known.clone_from(value),
                None => own.push((name.clone(), value.clone())),
            }
        }
        Some(Cow::Owned(own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(disabled: bool, tags: &[(&str, Option<&str>)]) -> MetricRule {
        let tags = tags.iter().map(|(name, text)| ((*name).into(), text.map(ArcStr::from))).collect();
        MetricRule { disabled, tags }
    }

    fn datum(attribute: Attribute) -> Option<Datum> {
        (attribute == Attribute::RequestHost).then(|| Datum::Text("shop".to_owned()))
    }

    #[test]
    fn labels_are_changed_added_and_left_out_metric_by_metric() {
        let labels: Pairs = vec![("a".into(), "1".into()), ("b".into(), "2".into())];
        let rules = BTreeMap::from([
            (
                Metric::RequestCount,
                rule(false, &[("a", Some("request.host")), ("b", None), ("c", Some("'x'")), ("d", Some("request.id"))]),
            ),
            (Metric::RequestSize, rule(true, &[])),
            (Metric::ResponseSize, rule(false, &[("a", Some("no(")), ("le", Some("'x'")), ("x-y", Some("'x'"))])),
        ]);
        let shape = Shape::compile(&rules, &mut Wanted::default()).unwrap();
        assert!(shape.asks());
        let custom = Custom::of(&shape, datum);
        let shown = |metric| {
            let shown = custom.shown(metric, &labels);
            shown.map(|labels| {
                labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
            })
        };
        assert_eq!(shown(Metric::RequestCount).as_deref(), Some("a=shop c=x d=unknown"));
        assert_eq!(shown(Metric::RequestSize), None);
        // What is no expression, and what is no name of a label, changes nothing.
        assert_eq!(shown(Metric::ResponseSize).as_deref(), Some("a=1 b=2"));
        assert_eq!(shown(Metric::RequestDuration).as_deref(), Some("a=1 b=2"));
        assert_eq!(Custom::default().shown(Metric::RequestSize, &labels).as_deref(), Some(&labels));
    }

    #[test]
    fn what_says_the_same_is_the_same() {
        let rules = BTreeMap::from([(Metric::RequestCount, rule(false, &[("a", Some("request.host"))]))]);
        let other = BTreeMap::from([(Metric::RequestCount, rule(false, &[("a", Some("request.path"))]))]);
        let of = |rules| Custom::of(&Shape::compile(rules, &mut Wanted::default()).unwrap(), datum);
        assert_eq!(of(&rules), of(&rules));
        assert_ne!(of(&rules), of(&other));
        assert!(Shape::compile(&BTreeMap::new(), &mut Wanted::default()).is_none());
    }
}
