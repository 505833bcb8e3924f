//! Row B32, as far as no Grafana is needed for it: every panel of deploy/dashboards asks for metrics and labels that the parts of a mesh in use do show.
use crate::stage::{SOON, Stage, bookinfo, failed};
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::metrics::{Metrics, Sample};
use mesh_tests::harness::{Need, eventually, in_lab};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Labels that Prometheus adds, and that of buckets, which it takes away.
const ADDED: [&str; 3] = ["pod", "le", "instance"];

/// Shown once something has happened that does not here; that these names are ours is seen in our sources.
const RARE: [&str; 5] = [
    "pilot_total_xds_rejects",
    "istio_tcp_connections_failed_total",
    "istio_dns_upstream_failures_total",
    "undermesh_xds_rejected_total",
    "undermesh_request_policies_total",
];

/// What a query asks of one metric.
#[derive(Debug, PartialEq)]
struct Selector<'a> {
    metric: &'a str,
    /// Label, operator, value.
    wants: Vec<(&'a str, &'a str, &'a str)>,
}

/// The selectors of a query: names with braces after them, as `cargo xtask chart` writes all.
fn selectors(query: &str) -> Vec<Selector<'_>> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    query
        .match_indices('{')
        .map(|(at, _)| {
            let before = &query[..at];
            let start = before.rfind(|c| !is_word(c)).map_or(0, |i| i + 1);
            let inside = query[at + 1..].split('}').next().unwrap_or_default();
            // No value here has a comma in it.
            let wants = inside.split(',').filter_map(|want| {
                let end = want.find(|c| !is_word(c))?;
                let (operator, value) = want[end..].split_once('"')?;
                Some((&want[..end], operator, value.trim_end_matches('"')))
            });
            Selector { metric: &before[start..], wants: wants.collect() }
        })
        .collect()
}

/// The labels that a query tells its rows apart by.
fn told_apart(query: &str) -> impl Iterator<Item = &str> {
    let groups = query.split(" by (").skip(1).filter_map(|after| after.split(')').next());
    groups.flat_map(|labels| labels.split(',').map(str::trim))
}

/// Whether a sample is one that is asked for; a variable of the dashboard may be anything.
fn is_meant(sample: &Sample, selector: &Selector<'_>) -> bool {
    sample.name == selector.metric
        && selector.wants.iter().all(|(label, operator, value)| {
            let have = sample.labels.get(*label).map_or("", String::as_str);
            let is_one = value.split('|').any(|one| match one.strip_suffix("..") {
                Some(start) => have.starts_with(start),
                None => have == one,
            });
            match *operator {
                _ if value.starts_with('$') || ADDED.contains(label) => true,
                "=" | "=~" => is_one,
                _ => !is_one,
            }
        })
}

/// Every query of every dashboard.
fn queries() -> Result<Vec<(String, String)>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/dashboards");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(entry?.path())?)?;
        for panel in dashboard["panels"].as_array().context("no panels")? {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let title = format!("{}: {}", dashboard["title"], panel["title"]);
                all.push((title, target["expr"].as_str().context("no query")?.to_owned()));
            }
        }
    }
    ensure!(all.len() > 50, "{} queries", all.len());
    Ok(all)
}

/// What every part shows.
fn scrape(stage: &Stage) -> Result<Metrics> {
    let mut scrapes = vec![stage.waypoint.metrics()?, stage.lab.control.metrics()?];
    for node in &stage.lab.nodes {
        scrapes.push(node.agent()?.metrics()?);
    }
    let mut all = Metrics::default();
    for scrape in scrapes {
        all.samples.extend(scrape.samples);
        all.families.extend(scrape.families);
    }
    Ok(all)
}

/// What panels ask for and nobody shows.
fn missing(queries: &[(String, String)], metrics: &Metrics) -> BTreeSet<String> {
    let mut missing = BTreeSet::new();
    for (title, query) in queries {
        let selectors = selectors(query);
        let of = |metric: &str| metrics.samples.iter().filter(move |sample| sample.name == metric).collect::<Vec<_>>();
        for selector in &selectors {
            let samples = of(selector.metric);
            // Of what did not happen there are no samples, but the family is told.
            let happened = !selector.wants.iter().any(|(label, ..)| label.starts_with("response"));
            let is_told = metrics.families.contains(selector.metric) || RARE.contains(&selector.metric);
            if samples.is_empty() && !is_told {
                missing.insert(format!("{title}: no {}", selector.metric));
            } else if !samples.is_empty() && happened && !samples.iter().any(|sample| is_meant(sample, selector)) {
                missing.insert(format!("{title}: {selector:?}"));
            }
            for (label, ..) in selector.wants.iter().filter(|(label, ..)| !ADDED.contains(label)) {
                if !samples.is_empty() && !samples.iter().any(|sample| sample.labels.contains_key(*label)) {
                    missing.insert(format!("{title}: {} has no {label}", selector.metric));
                }
            }
        }
        let samples: Vec<&Sample> = selectors.iter().flat_map(|selector| of(selector.metric)).collect();
        for label in told_apart(query).filter(|label| !ADDED.contains(label)) {
            if !samples.is_empty() && !samples.iter().any(|sample| sample.labels.contains_key(label)) {
                missing.insert(format!("{title}: nobody has {label}"));
            }
        }
    }
    missing
}

#[test]
fn features_B32_dashboards_ask_for_what_is_there() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = bookinfo("undermesh-waypoint")?;
        let loads = stage.loads(None, 10)?;
        ensure!(failed(&loads).is_none(), "{:?}", failed(&loads));
        let queries = queries()?;
        eventually("every panel has something to show", SOON, || {
            let missing = missing(&queries, &scrape(&stage)?);
            ensure!(missing.is_empty(), "{missing:#?}");
            Ok(())
        })
    })
}

#[test]
fn what_happens_seldom_is_shown_by_somebody() -> Result<()> {
    let mut sources = String::new();
    let mut folders: Vec<PathBuf> =
        ["agent", "client", "control", "waypoint"].map(|name| format!("../mesh-{name}/src").into()).into();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(&folder))? {
            let path = entry?.path();
            match path.extension().is_some_and(|end| end == "rs") {
                true => sources.push_str(&std::fs::read_to_string(&path)?),
                false if path.is_dir() => folders.push(path),
                false => {}
            }
        }
    }
    for name in RARE {
        let family = name.trim_end_matches("_total");
        ensure!(sources.contains(&format!("\"{family}\"")), "nobody shows {family}");
    }
    Ok(())
}

#[test]
fn what_is_missing_is_found() {
    let query = r#"sum by (source) (rate(a_total{reporter=~"x|y",code=~"5..",pod=~"$pod"}[5m])) / b{}"#;
    let found = selectors(query);
    assert_eq!(found[0].metric, "a_total");
    assert_eq!(found[0].wants, [("reporter", "=~", "x|y"), ("code", "=~", "5.."), ("pod", "=~", "$pod")]);
    assert_eq!(found[1], Selector { metric: "b", wants: vec![] });
    assert_eq!(told_apart(query).collect::<Vec<_>>(), ["source"]);
    let all = |text: &str| missing(&[("t".to_owned(), query.to_owned())], &Metrics::parse(text)).len();
    assert_eq!(all("# TYPE b gauge\nb 1\na_total{reporter=\"y\",code=\"503\",source=\"s\"} 1\n"), 0);
    assert_eq!(all("# TYPE b gauge\na_total{reporter=\"y\",code=\"503\",source=\"s\"} 1\n"), 0, "it has not happened");
    assert_eq!(all("a_total{reporter=\"y\",code=\"503\",source=\"s\"} 1\n"), 1, "no b");
    assert_eq!(all("b 1\na_total{reporter=\"z\",code=\"503\",source=\"s\"} 1\n"), 1, "another reporter");
    assert_eq!(all("b 1\na_total{reporter=\"y\",code=\"503\"} 1\n"), 1, "no source");
}
