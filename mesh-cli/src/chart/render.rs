//! From chart and values to objects, as Helm would make them. Pure; called by `install`, which applies them, and by the test that compares
//! them with Helm's.

use serde_json::{Value, json};

use super::embed::Files;
use super::object::Reference;
use super::{schema, values};
use crate::template::Engine;

/// What Helm tells templates of an installation.
#[derive(Clone, Debug)]
pub struct Release {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

/// All that comes out of a chart.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// The definitions of the chart's `crds` folder.
    pub definitions: Vec<Value>,
    /// Everything else, in the order in which it is to be made.
    pub objects: Vec<Value>,
    /// The values that it was made with.
    pub values: Value,
    /// `NOTES.txt`.
    pub notes: String,
}

/// Renders. The error is all that is wrong with the values, or the first thing that is wrong with the chart.
pub fn render(files: &Files, release: &Release, given: Value) -> Result<Rendered, String> {
    let chart: Value = document(files, "Chart.yaml")?;
    let mut merged: Value = document(files, "values.yaml")?;
    values::overlay(&mut merged, given);
    if let Some(text) = files.get("values.schema.json") {
        let schema = serde_json::from_str(text).map_err(|error| format!("values.schema.json: {error}"))?;
        let problems = schema::problems(&schema, &merged);
        if !problems.is_empty() {
            return Err(problems.join("\n"));
        }
    }
    let plain: serde_json::Map<String, Value> =
        files.iter().filter(|(path, _)| is_plain_file(path)).map(|(p, t)| (p.clone(), t.as_str().into())).collect();
    let mut engine = Engine::default();
    let templates = files.iter().filter(|(path, _)| path.starts_with("templates/"));
    for (path, text) in templates.clone() {
        engine.add(path, text).map_err(|error| error.to_string())?;
    }
    let chart_name = chart["name"].as_str().unwrap_or_default();
    let mut rendered = Rendered { definitions: Vec::new(), objects: Vec::new(), values: merged, notes: String::new() };
    for (path, _) in templates {
        let file = path.rsplit('/').next().unwrap_or(path);
        if file.starts_with('_') || path.starts_with("templates/tests/") {
            continue;
        }
        let data = json!({
            "Values": rendered.values,
            "Chart": capitalised(&chart),
            "Release": {
                "Name": release.name, "Namespace": release.namespace, "Service": "Helm",
                "IsInstall": true, "IsUpgrade": false, "Revision": 1,
            },
            "Files": plain,
            "Template": { "Name": format!("{chart_name}/{path}"), "BasePath": format!("{chart_name}/templates") },
        });
        let text = engine.render(path, &data).map_err(|error| error.to_string())?;
        if file == "NOTES.txt" {
            rendered.notes = text;
        } else {
            rendered.objects.extend(documents(path, &text)?);
        }
    }
    for (path, text) in files.iter().filter(|(path, _)| path.starts_with("crds/")) {
        rendered.definitions.extend(documents(path, text)?);
    }
    for object in &rendered.objects {
        Reference::of(object).map_err(|why| format!("the chart: {why}"))?;
    }
    rendered.objects.sort_by_cached_key(|object| Reference::of(object).map(|r| (r.rank(), r)).ok());
    Ok(rendered)
}

/// What `.Files` shows.
fn is_plain_file(path: &str) -> bool {
    let special = ["Chart.yaml", "values.yaml", "values.schema.json", ".helmignore"];
    !path.starts_with("templates/") && !path.starts_with("crds/") && !special.contains(&path)
}

/// Templates see `Chart.yaml` with the names of Go's fields.
fn capitalised(chart: &Value) -> Value {
    let entries = chart.as_object().into_iter().flatten().map(|(key, value)| {
        let mut letters = key.chars();
        let first = letters.next().map(|c| c.to_ascii_uppercase());
        let key: String = first.into_iter().chain(letters).collect();
        (if key == "ApiVersion" { "APIVersion".to_owned() } else { key }, value.clone())
    });
    Value::Object(entries.collect())
}

fn document(files: &Files, path: &str) -> Result<Value, String> {
    let text = files.get(path).ok_or_else(|| format!("the chart has no {path}"))?;
    values::read(text).map_err(|why| format!("{path}: {why}"))
}

/// The objects of a file; hooks and documents without content are left out.
fn documents(path: &str, text: &str) -> Result<Vec<Value>, String> {
    let mut found = Vec::new();
    for part in split(text) {
        let value = object(part).map_err(|why| format!("{path}: {why}"))?;
        let is_hook = value.pointer("/metadata/annotations/helm.sh~1hook").is_some();
        if !value.is_null() && !is_hook {
            found.push(value);
        }
    }
    Ok(found)
}

/// What a template makes is read as Helm reads it: of two equal keys the last counts, which is how a value like `agent.podAnnotations` takes the place of an
/// annotation that the chart sets.
pub fn object(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

/// Cuts at lines of three dashes.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut begin, mut at) = (Vec::new(), 0, 0);
    for line in text.split_inclusive('\n') {
        if line.trim_end() == "---" || line.starts_with("--- ") {
            parts.push(&text[begin..at]);
            begin = at + line.len();
        }
        at += line.len();
    }
    parts.push(&text[begin..]);
    let is_content = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    parts.into_iter().filter(|part| part.lines().any(is_content)).collect()
}
