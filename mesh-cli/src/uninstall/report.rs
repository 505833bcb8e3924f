//! What an uninstallation has done, step by step: a line for people as it happens, and the whole for a program. Pure; `run` tells it.

use serde::Serialize;
use serde_json::{Value, json};

use crate::chart::object::Reference;

/// One thing that was done, or was not.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// It would be removed.
    Planned(Reference),
    /// It is removed.
    Removed(Reference),
    /// It stays, and why.
    Kept(Reference, String),
    /// It stays, and is another than before.
    Changed(Reference, String),
    /// Nothing of ours is left there; or why something may be.
    Node(String, Option<String>),
    /// So many pods have lost what says that they are in the mesh.
    Unmarked(usize),
}

impl Entry {
    /// For people; nothing if it says nothing to them here.
    pub fn line(&self) -> Option<String> {
        Some(match self {
            Entry::Planned(object) => format!("- {object}"),
            Entry::Removed(object) => format!("√ {object} deleted"),
            Entry::Kept(object, why) => format!("‼ {object} stays: {why}"),
            Entry::Changed(object, how) => format!("√ {object} {how}"),
            Entry::Node(node, None) => format!("√ node {node} is clean"),
            // They are told at the end, all together.
            Entry::Node(_, Some(_)) | Entry::Unmarked(_) => return None,
        })
    }
}

/// How far a step has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Running,
    Done,
    Failed,
}

/// A step.
#[derive(Clone, Debug, Serialize)]
struct Step {
    name: &'static str,
    state: State,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    steps: Vec<Step>,
    entries: Vec<Entry>,
    problems: Vec<String>,
}

impl Report {
    /// Another step begins; the one before is done.
    pub fn step(&mut self, name: &'static str) {
        self.end(State::Done);
        self.steps.push(Step { name, state: State::Running });
    }

    /// Something was done.
    pub fn add(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// The step cannot go on.
    pub fn fail(&mut self, why: String) {
        self.end(State::Failed);
        self.problems.push(why);
    }

    /// Whether anything was begun.
    pub fn has_begun(&self) -> bool {
        !self.steps.is_empty()
    }

    fn end(&mut self, state: State) {
        if let Some(step) = self.steps.last_mut().filter(|step| step.state == State::Running) {
            step.state = state;
        }
    }

    /// For a program.
    pub fn json(mut self, is_dry: bool) -> Value {
        self.end(State::Done);
        let object = |reference: &Reference, extra: Option<(&str, &str)>| {
            let mut object = json!(reference);
            if let Some((name, text)) = extra {
                object[name] = json!(text);
            }
            object
        };
        let (mut planned, mut removed, mut kept, mut changed, mut nodes) = (vec![], vec![], vec![], vec![], vec![]);
        let mut unmarked = 0;
        let mut problems = self.problems.clone();
        for entry in &self.entries {
            match entry {
                Entry::Planned(reference) => planned.push(object(reference, None)),
                Entry::Removed(reference) => removed.push(object(reference, None)),
                Entry::Kept(reference, why) => kept.push(object(reference, Some(("why", why)))),
                Entry::Changed(reference, how) => changed.push(object(reference, Some(("how", how)))),
                Entry::Node(node, None) => nodes.push(json!({ "node": node, "clean": true })),
                Entry::Node(node, Some(why)) => {
                    nodes.push(json!({ "node": node, "clean": false, "why": why }));
                    problems.push(format!("node {node}: {why}"));
                }
                Entry::Unmarked(count) => unmarked += count,
            }
        }
        json!({
            "dryRun": is_dry,
            "steps": self.steps,
            "planned": planned,
            "removed": removed,
            "kept": kept,
            "changed": changed,
            "nodes": nodes,
            "podsReleased": unmarked,
            "problems": problems,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(kind: &str, namespace: &str, name: &str) -> Reference {
        let (api_version, kind, namespace) = ("v1".to_owned(), kind.to_owned(), namespace.to_owned());
        Reference { api_version, kind, namespace, name: name.to_owned() }
    }

    #[test]
    fn a_program_is_told_what_was_done_and_not_in_sentences() {
        let mut report = Report::default();
        assert!(!report.has_begun());
        report.step("webhooks");
        report.add(Entry::Removed(reference("Service", "u", "mesh-control")));
        report.step("nodes");
        report.add(Entry::Node("n1".into(), None));
        report.add(Entry::Node("n2".into(), Some("it is away".into())));
        report.add(Entry::Kept(reference("Namespace", "", "u"), "it holds secrets/cacerts".into()));
        report.add(Entry::Changed(reference("Namespace", "", "u"), "has lost its labels".into()));
        report.add(Entry::Unmarked(2));
        report.fail("no answer".into());
        let expected = json!({
            "dryRun": false,
            "steps": [{ "name": "webhooks", "state": "done" }, { "name": "nodes", "state": "failed" }],
            "planned": [],
            "removed": [{ "apiVersion": "v1", "kind": "Service", "namespace": "u", "name": "mesh-control" }],
            "kept": [{ "apiVersion": "v1", "kind": "Namespace", "name": "u", "why": "it holds secrets/cacerts" }],
            "changed": [{ "apiVersion": "v1", "kind": "Namespace", "name": "u", "how": "has lost its labels" }],
            "nodes": [{ "node": "n1", "clean": true }, { "node": "n2", "clean": false, "why": "it is away" }],
            "podsReleased": 2,
            "problems": ["no answer", "node n2: it is away"],
        });
        assert_eq!(report.json(false), expected);
        let mut dry = Report::default();
        dry.add(Entry::Planned(reference("Service", "u", "mesh-control")));
        assert_eq!(
            (dry.clone().json(true)["planned"][0]["name"].as_str(), dry.json(true)["dryRun"].as_bool()),
            (Some("mesh-control"), Some(true))
        );
    }
}
