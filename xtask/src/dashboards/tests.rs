//! What no query language is needed for: everything has a place and a name of its own, and tests can find the metrics.
use super::*;
use serde_json::Value;

#[test]
fn the_kept_files_are_what_is_made() {
    let folder = crate::run::root().unwrap().join("deploy/dashboards");
    let kept = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(kept, files().len(), "what else is in {}?", folder.display());
    for (name, text) in files() {
        let kept = std::fs::read_to_string(folder.join(&name)).unwrap();
        assert!(kept == text, "{name} is stale: run `cargo xtask chart`");
    }
}

#[test]
fn panels_do_not_lie_on_each_other() {
    for (name, text) in files() {
        let dashboard: Value = serde_json::from_str(&text).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        let place = |panel: &Value| ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        for (index, panel) in panels.iter().enumerate() {
            let [x, y, w, h] = place(panel);
            assert!(x + w <= 24, "{name}: {}", panel["title"]);
            assert_eq!(panel["id"], index + 1);
            for other in &panels[..index] {
                let [ox, oy, ow, oh] = place(other);
                let apart = x >= ox + ow || ox >= x + w || y >= oy + oh || oy >= y + h;
                assert!(apart, "{name}: {} lies on {}", panel["title"], other["title"]);
            }
        }
    }
}

/// Each name of a metric is followed by `{`, by which the test against real scrapes finds it.
#[test]
fn metrics_can_be_found() {
    for dashboard in all() {
        for panel in dashboard.rows.iter().flat_map(|(_, panels)| panels) {
            for query in panel.queries() {
                let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
                let is_metric = |word: &&str| {
                    ["istio_", "undermesh_", "mesh_", "pilot_", "citadel_", "galley_", "process_"]
                        .iter()
                        .any(|start| word.starts_with(start))
                };
                for metric in words.filter(is_metric) {
                    assert!(query.contains(&format!("{metric}{{")), "{}: {metric} in {query}", dashboard.title);
                }
                let count = |c: char| query.matches(c).count();
                assert_eq!((count('('), count('{')), (count(')'), count('}')), "{query}");
            }
        }
    }
}

#[test]
fn names_are_their_own() {
    let mut names: Vec<_> = all().iter().map(|dashboard| dashboard.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all().len());
}
