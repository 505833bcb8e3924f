//! `cargo xtask chart`: the chart of deploy/charts/undermesh as Helm itself sees it: linted, rendered, and checked against the schemas of
//! Kubernetes. What it renders to with its own values is kept in deploy/rendered, for those who have manifests in a repository and no Helm.
mod engine;

pub use engine::Engine;

use crate::{dashboards, run};
use anyhow::{Context, Result, bail, ensure};
use engine::Moment;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const NAMESPACE: &str = "undermesh-system";
/// The oldest and the newest Kubernetes whose schemas must accept what the chart makes, and that of the tests' cluster.
const VERSIONS: [&str; 3] = ["1.30", "1.34", "1.37"];
/// Helm installs these first; whoever applies a file needs the same order.
const FIRST: [&str; 4] = ["namespace.yaml", "resource-quota.yaml", "mesh-config.yaml", "rbac.yaml"];
const HEAD: &str = "# Made by `cargo xtask chart` from deploy/charts/undermesh: change that one.\n";

/// Options.
#[derive(clap::Args)]
pub struct Args {
    /// Fail if the rendered manifests or the dashboards are stale instead of replacing them.
    #[arg(long)]
    check: bool,
    /// Print what the chart makes of the values in a file (YAML) instead.
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    values: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let engine = Engine::find()?;
    let chart = folder()?;
    if let Some(file) = &args.values {
        print!("{}", render(&engine, &chart, &values(file)?)?);
        return Ok(());
    }
    let complaints = engine.lint(&chart, &json!({}))?;
    ensure!(complaints.is_empty(), "helm lint: {}", complaints.join("; "));
    let manifests = manifests(&engine)?;
    let [definitions, objects] = &manifests;
    let objects = [engine.parse(&definitions.1)?, engine.parse(&objects.1)?].concat();
    for version in VERSIONS {
        let complaints = engine.validate(version, &objects)?;
        ensure!(complaints.is_empty(), "Kubernetes {version}: {}", complaints.join("; "));
        println!("{} objects are valid in Kubernetes {version}", objects.len());
    }
    let folder = run::root()?.join("deploy/dashboards");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let dashboards = dashboards::files().into_iter().map(|(name, text)| (folder.join(name), text));
    for (path, text) in manifests.into_iter().chain(dashboards) {
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            continue;
        }
        if args.check {
            bail!("{} is stale: run `cargo xtask chart`", path.display());
        }
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Does with a cluster what Helm's verb `what` does, and waits until everything is ready.
pub fn release(command: Command, what: &str, kubeconfig: &Path, values: &Value) -> Result<()> {
    let question = json!({ "kubeconfig": kubeconfig, "values": values, "namespace": NAMESPACE, "seconds": 300 });
    Engine::find()?.release(command, what, &question)
}

/// The values in a file.
pub fn values(file: &Path) -> Result<Value> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(Engine::find()?.parse(&text)?.into_iter().next().unwrap_or_else(|| json!({})))
}

/// Where the chart is.
fn folder() -> Result<PathBuf> {
    Ok(run::root()?.join("deploy/charts/undermesh"))
}

/// The manifests as they should be: CRDs, and all else.
fn manifests(engine: &Engine) -> Result<[(PathBuf, String); 2]> {
    let chart = folder()?;
    let folder = run::root()?.join("deploy/rendered");
    let crds = crds(&chart)?.into_iter().map(|(_, text)| text);
    // Nobody else makes the namespace.
    let rendered = render(engine, &chart, &json!({ "namespace": { "create": true } }))?;
    Ok([(folder.join("crds.yaml"), join(crds)), (folder.join("undermesh.yaml"), rendered)])
}

/// As for an installation: whoever applies a file for the first time must be able to edit policies before anybody answers the webhook.
fn render(engine: &Engine, chart: &Path, values: &Value) -> Result<String> {
    let rendered = engine.render(chart, NAMESPACE, values, Moment::Installation)?;
    Ok(join(in_order(rendered).into_iter().map(|(_, text)| text)))
}

fn crds(chart: &Path) -> Result<Vec<(String, String)>> {
    let folder = chart.join("crds");
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?.flatten() {
        let text = fs::read_to_string(entry.path()).with_context(|| format!("read {}", entry.path().display()))?;
        found.push((entry.file_name().to_string_lossy().into_owned(), text));
    }
    found.sort();
    Ok(found)
}

/// What others need comes first.
fn in_order(mut files: Vec<(String, String)>) -> Vec<(String, String)> {
    let rank = |name: &str| FIRST.iter().position(|end| name.ends_with(end)).unwrap_or(FIRST.len());
    files.sort_by_key(|(name, _)| (rank(name), name.clone()));
    files
}

/// One file of all that is not empty.
fn join(texts: impl Iterator<Item = String>) -> String {
    let documents: Vec<String> = texts.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).collect();
    format!("{HEAD}{}\n", documents.join("\n---\n"))
}

#[cfg(test)]
mod tests;
