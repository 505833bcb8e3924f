//! Reads Prometheus text: enough to sum a family over some labels.
use std::collections::{BTreeMap, BTreeSet};

/// One line of the exposition.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Metric name with its suffix.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

/// A scrape.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Every sample, in order.
    pub samples: Vec<Sample>,
    /// Families that the scrape declares, as their samples are called: some have none yet.
    pub families: BTreeSet<String>,
}

impl Metrics {
    /// Parses the text; lines that make no sense are left out.
    pub fn parse(text: &str) -> Metrics {
        let samples = text.lines().filter(|l| !l.starts_with('#')).filter_map(sample).collect();
        let declared = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split_once(' '));
        Metrics { samples, families: declared.flat_map(|(name, kind)| sample_names(name, kind)).collect() }
    }

    /// All samples of one name that carry all the given labels.
    pub fn select<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |s| {
            s.name == name && labels.iter().all(|(k, v)| s.labels.get(*k).is_some_and(|have| have == v))
        })
    }

    /// The sum of `select`.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).map(|s| s.value).sum()
    }
}

/// What OpenMetrics calls the samples of a family.
fn sample_names(family: &str, kind: &str) -> Vec<String> {
    let ends: &[&str] = match kind.trim() {
        "counter" => &["_total"],
        "histogram" => &["_bucket", "_sum", "_count"],
        _ => &[""],
    };
    ends.iter().map(|end| format!("{family}{end}")).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = match line.find(['{', ' ']) {
        Some(at) if line.as_bytes()[at] == b'{' => (&line[..at], &line[at + 1..]),
        Some(at) => {
            let value = line[at..].split_whitespace().next()?.parse().ok()?;
            return Some(Sample { name: line[..at].into(), labels: BTreeMap::new(), value });
        }
        None => return None,
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(after) = rest.strip_prefix('}') {
            let value = after.split_whitespace().next()?.parse().ok()?;
            return Some(Sample { name: name.into(), labels, value });
        }
        let (key, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (i, '"') => break i,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, c) => value.push(c),
            }
        };
        labels.insert(key.trim().into(), value);
        rest = &after[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_summed_by_label() {
        let text =
            "# TYPE a counter\na_total{x=\"1\",y=\"q\\\"r\"} 2\na_total{x=\"2\",y=\"z\"} 3 17\nup 1\nbroken{x=\"1\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.samples.len(), 3);
        assert_eq!(metrics.families, ["a_total".to_owned()].into());
        assert_eq!(metrics.sum("a_total", &[]), 5.0);
        assert_eq!(metrics.sum("a_total", &[("x", "1"), ("y", "q\"r")]), 2.0);
        assert_eq!(metrics.sum("up", &[]), 1.0);
    }
}
