//! The steps of an installation. Called by `main`.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::inventory::{self, Deletion, Inventory};
use super::{plan, rollout};
use crate::api::{Api, Failure};
use crate::chart::embed;
use crate::chart::object::Reference;
use crate::chart::render::{Release, Rendered, render};
use crate::chart::values::{self, Typing};
use crate::check;
use crate::context::Context;
use crate::output::{Format, data, note};
use crate::progress::Progress;
use crate::stop::{FINDINGS, Stop, USAGE};
use crate::template::yaml;
use crate::view::{Definition, condition};
use crate::wait::{Look, until};

/// Options of the verb.
#[derive(Clone, Debug, clap::Args)]
pub struct Install {
    /// What is installed besides the mesh itself: default or demo; files and --set count more
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// File of values; may be repeated, later ones count more
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A value, as name=value or a.b[0]=x,c={x,y}; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// The same, and the value is always a string
    #[arg(long, value_name = "NAME=VALUE")]
    set_string: Vec<String>,
    /// Start from the values of the installation that is there
    #[arg(long)]
    reuse_values: bool,
    /// Print what would be applied and change nothing; needs no cluster
    #[arg(long, conflicts_with = "reuse_values")]
    dry_run: bool,
    /// Do not wait until everything is ready
    #[arg(long)]
    no_wait: bool,
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = crate::wait::duration)]
    timeout: Duration,
    /// Take over fields that somebody else has set
    #[arg(long)]
    force_conflicts: bool,
    /// Install although `check --pre` finds errors
    #[arg(long)]
    skip_checks: bool,
}

impl Install {
    /// The values that were given, later ones over earlier ones: what was there, --profile, files, --set, --set-string.
    fn given(&self, before: Value) -> Result<Value, Stop> {
        // The rendered namespace has the labels that the agents need.
        let mut given = json!({ "namespace": { "create": true } });
        merge(&mut given, before);
        if let Some(profile) = &self.profile {
            given["profile"] = json!(profile);
        }
        lay_files(&mut given, &self.files)?;
        for (expressions, typing, flag) in
            [(&self.set, Typing::Guess, "--set"), (&self.set_string, Typing::Text, "--set-string")]
        {
            for expression in expressions {
                let wrong = |why| Stop::new(USAGE, format!("{flag} {why}"));
                values::set(&mut given, expression, typing).map_err(wrong)?;
            }
        }
        Ok(given)
    }
}

/// Lays files of values over what is there, later ones over earlier ones, as Helm's `-f` does.
pub fn lay_files(under: &mut Value, files: &[PathBuf]) -> Result<(), Stop> {
    for file in files {
        let failed = |why: String| Stop::data(format!("{}: {why}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
        merge(under, values::read(&text).map_err(failed)?);
    }
    Ok(())
}

/// As [`values::overlay`], but nothing stays as nothing: it takes a default of the chart away.
fn merge(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                merge(under.entry(key).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over,
    }
}

/// Installs.
pub async fn run(options: &Install, context: &Context) -> Result<u8, Stop> {
    let release = Release { name: "undermesh".into(), namespace: context.namespace.clone() };
    let files = embed::files();
    if options.dry_run {
        let rendered = render(&files, &release, options.given(json!({}))?).map_err(Stop::data)?;
        print_rendered(&rendered, context.format)?;
        return Ok(crate::stop::OK);
    }
    let api = Api::connect(&context.access).await?;
    install(&api, options, context, &files, &release).await
}

async fn install(
    api: &Api,
    options: &Install,
    context: &Context,
    files: &embed::Files,
    release: &Release,
) -> Result<u8, Stop> {
    let namespace = context.namespace.as_str();
    let before = inventory::read(api, namespace).await?;
    if options.reuse_values && before.is_none() {
        let why = format!("there is no record of values in {namespace}: `meshctl install` has not installed this");
        return Err(Stop::data(format!("{why}. Give all values by -f and --set, and leave --reuse-values out")));
    }
    let elsewhere = inventory::elsewhere(api, namespace).await?;
    if !elsewhere.is_empty() {
        let why = format!("Undermesh is installed in {} already, and there can be one only", elsewhere.join(", "));
        return Err(Stop::failed(format!("{why}: say -n, or uninstall that one first")));
    }
    let ours = env!("CARGO_PKG_VERSION");
    if let Some(newer) = before.as_ref().filter(|b| plan::is_newer(&b.version, ours) && !options.skip_checks) {
        let why = format!("version {} is installed, and this is meshctl {ours}", newer.version);
        return Err(Stop::new(FINDINGS, format!("{why}: use that one; --skip-checks installs the older version")));
    }
    let old_values = before.as_ref().filter(|_| options.reuse_values).map_or_else(|| json!({}), |b| b.values.clone());
    let given = options.given(old_values)?;
    let rendered = render(files, release, given.clone()).map_err(Stop::data)?;
    if !options.skip_checks {
        let report = check::pre(api, namespace).await?;
        if report.has_errors() {
            note(&report.text(crate::output::Paint::plain(), check::Shown::Problems));
            return Err(Stop::new(FINDINGS, "nothing was installed; --skip-checks installs in spite of this"));
        }
    }
    let mut steps = Steps { api, is_forced: options.force_conflicts, context, applied: Vec::new() };
    // A kind that is not there is better known before anything is made.
    for reference in rendered.objects.iter().filter_map(|object| Reference::of(object).ok()) {
        let missing = |failure: Failure| {
            match (failure.code, reference.group()) {
            (404, rollout::GATEWAY_API) => Stop::from(failure).during(format!(
                "{reference}: install the definitions (CRDs) of the Gateway API first, or leave the ingress gateway out (--profile default)"
            )),
            _ => Stop::from(failure).during(format!("{reference}")),
        }
        };
        api.path_of(&reference).await.map_err(missing)?;
    }
    let had_namespace = api.find(&format!("/api/v1/namespaces/{namespace}")).await?.is_some();
    let (namespaces, objects): (Vec<_>, Vec<_>) = rendered.objects.iter().partition(|o| o["kind"] == "Namespace");
    for object in namespaces {
        steps.apply(object).await?;
    }
    let references: Vec<Reference> = objects.iter().filter_map(|object| Reference::of(object).ok()).collect();
    let old = before.clone().unwrap_or_default();
    let mut inventory = Inventory {
        version: ours.to_owned(),
        values: given,
        objects: old.obsolete(&references).into_iter().chain(references.iter().cloned()).collect(),
        made_namespace: before.as_ref().map_or(!had_namespace, |b| b.made_namespace),
    };
    let record = inventory::write(api, namespace, &inventory, None).await?;
    let definitions = steps.definitions(&rendered.definitions, options.timeout).await?;
    for object in objects {
        steps.apply(object).await?;
    }
    for gone in old.obsolete(&references) {
        let failed = |failure| Stop::from(failure).during(format!("delete {gone}"));
        match inventory::delete(api, &gone).await.map_err(failed)? {
            Deletion::Done => steps.say(&format!("- {gone} deleted, it is not wanted any more")),
            Deletion::NotOurs => steps.say(&format!("‼ {gone} stays: it has not the label of Undermesh's objects")),
            Deletion::Absent => {}
        }
    }
    inventory.objects = references;
    inventory::write(api, namespace, &inventory, Some(&record)).await?;
    let applied = steps.applied;
    let components = rollout::components(&rendered.objects);
    let progress = match options.no_wait {
        true => Vec::new(),
        false => rollout::wait(api, &components, options.timeout, context.is_for_a_program()).await?,
    };
    if context.is_for_a_program() {
        let report = json!({
            "namespace": namespace, "version": inventory.version, "objects": applied, "definitions": definitions,
            "components": progress, "ready": !options.no_wait,
        });
        context.print(&report)?;
    } else {
        let state = if options.no_wait { "is applied" } else { "is ready" };
        note(&format!("Undermesh {} {state} in {namespace}. Put a namespace into the mesh:", inventory.version));
        note("  kubectl label namespace default istio.io/dataplane-mode=ambient");
    }
    Ok(crate::stop::OK)
}

/// What would be applied, definitions first.
fn print_rendered(rendered: &Rendered, format: Format) -> Result<(), Stop> {
    let objects: Vec<&Value> = rendered.definitions.iter().chain(&rendered.objects).collect();
    let text = match format {
        Format::Json => format!("{:#}\n", json!({"apiVersion": "v1", "kind": "List", "items": objects})),
        Format::Text | Format::Yaml => objects.iter().map(|object| format!("---\n{}", yaml::write(object))).collect(),
    };
    data(&text).map_err(Stop::failed)
}

/// Applies and says so.
struct Steps<'a> {
    api: &'a Api,
    is_forced: bool,
    context: &'a Context,
    applied: Vec<Value>,
}

impl Steps<'_> {
    fn say(&self, line: &str) {
        if !self.context.is_for_a_program() {
            note(line);
        }
    }

    async fn apply(&mut self, object: &Value) -> Result<(), Stop> {
        let reference = Reference::of(object).map_err(Stop::failed)?;
        let failed = |failure: crate::api::Failure| {
            let hint = match failure.code {
                409 => "; --force-conflicts takes the fields over",
                403 => "; `meshctl check --pre` says which rights an installation needs",
                _ => "",
            };
            let stop = Stop::from(failure).during(format!("apply {reference}"));
            Stop { message: format!("{}{hint}", stop.message), ..stop }
        };
        let path = self.api.path_of(&reference).await.map_err(failed)?;
        let is_webhook = reference.kind.ends_with("WebhookConfiguration");
        let live = if is_webhook { self.api.find(&path).await.map_err(failed)? } else { None };
        let object = live.map_or_else(|| object.clone(), |live| plan::with_what_is_the_control_planes(object, &live));
        let is_new = self.api.apply(&path, &object, self.is_forced).await.map_err(failed)?;
        let word = if is_new { "created" } else { "applied" };
        self.say(&format!("√ {reference} {word}"));
        self.applied.push(json!({ "object": reference, "result": word }));
        Ok(())
    }

    /// Makes definitions where there are none, and waits until they are in force.
    async fn definitions(&mut self, definitions: &[Value], timeout: Duration) -> Result<Vec<Value>, Stop> {
        let (mut done, mut names) = (Vec::new(), Vec::new());
        for definition in definitions {
            let reference = Reference::of(definition).map_err(Stop::failed)?;
            let path = self.api.path_of(&reference).await?;
            let live = self.api.find(&path).await?;
            let word = match plan::definition(definition, live.as_ref()) {
                plan::Definition::Keep => "kept, it is not ours",
                plan::Definition::Unusable => {
                    let why = format!(
                        "{reference} is there, not made by Undermesh, and serves no version that is known here"
                    );
                    return Err(Stop::failed(format!("{why}; update it, or delete it if nothing uses it")));
                }
                verb => {
                    let failed = |failure| Stop::from(failure).during(format!("apply {reference}"));
                    self.api.apply(&path, &plan::owned(definition), true).await.map_err(failed)?;
                    names.push(reference.name.clone());
                    if verb == plan::Definition::Make { "created" } else { "applied" }
                }
            };
            self.say(&format!("√ {reference} {word}"));
            done.push(json!({ "object": reference, "result": word }));
        }
        let progress = Progress::new(true, timeout);
        until("definitions", progress, || async {
            let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
            let found: Vec<Definition> = self.api.view(path).await?;
            let is_in_force = |name: &String| {
                let found = found.iter().find(|d| d.metadata.name == *name);
                let established = found.and_then(|d| condition(&d.status.conditions, "Established"));
                established.is_some_and(|c| c.status == "True")
            };
            let left: Vec<String> = names.iter().filter(|name| !is_in_force(name)).cloned().collect();
            Ok(Look { is_done: left.is_empty(), lines: left, value: () })
        })
        .await?;
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_counts_more_than_what_was_and_less_than_what_is_set() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            install: Install,
        }
        let given = |line: &str, before: Value| {
            let line = <Line as clap::Parser>::parse_from(["meshctl"].into_iter().chain(line.split_whitespace()));
            line.install.given(before).unwrap()["profile"].clone()
        };
        for (line, before, expected) in [
            ("", json!({}), Value::Null),
            ("--profile demo", json!({}), json!("demo")),
            ("--profile default", json!({"profile": "demo"}), json!("default")),
            ("", json!({"profile": "demo"}), json!("demo")),
            ("--profile demo --set profile=default", json!({}), json!("default")),
        ] {
            assert_eq!(given(line, before), expected, "{line}");
        }
    }

    #[test]
    fn files_of_values_lie_over_each_other_as_with_helm() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let files = [
            file("a", "agent: {cni: {enabled: true}, x: 1}\nlist: [1]\n"),
            file("b", "agent: {cni: null}\nlist: [2]\n"),
        ];
        let mut values = json!({ "agent": { "y": 2 } });
        lay_files(&mut values, &files).unwrap();
        // Nothing takes a default of the chart away, so it has to stay.
        assert_eq!(values, json!({ "agent": { "cni": null, "x": 1, "y": 2 }, "list": [2] }));
        let wrong = lay_files(&mut values, &[file("c", "- 1\n")]).unwrap_err();
        assert!(wrong.to_string().contains("a file of values is a map"), "{wrong}");
    }
}
