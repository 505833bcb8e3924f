//! Good and bad objects of each kind. Every one of them is read from a manifest and from an API server, and asked of the webhook: all three must say the same.

mod gateways;
mod limits;
mod others;
mod services;
mod virtual_services;

use serde_json::{Value as Json, json};

use crate::cluster::decode::decode;
use crate::diagnosis::{Diagnosis, Severity};
use crate::manifest::file;
use crate::resource::{Kind, Object, Routing};
use crate::webhook::review::review;

/// A diagnosis in one line: `w` for warnings, the field without `spec.`, the message, the help.
fn line(diagnosis: &Diagnosis) -> String {
    let mark = if diagnosis.severity == Severity::Warning { "w " } else { "" };
    let field = diagnosis.field.strip_prefix("spec.").unwrap_or(&diagnosis.field);
    let help = diagnosis.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
    format!("{mark}{field}: {}{help}", diagnosis.message)
}

/// Reads one in every way. What is in force of it, if it can be, and what is said of it.
fn read(kind: Kind, spec: &str) -> (Option<Routing>, Vec<String>) {
    let version = kind.api_versions()[0];
    let spec: Json = serde_saphyr::from_str(spec).unwrap_or_else(|e| panic!("{spec}: {e}"));
    let mut object = json!({ "apiVersion": version, "kind": kind.name(), "metadata": { "name": "o" }, "spec": spec });
    if kind.is_namespaced() {
        object["metadata"]["namespace"] = json!("shop");
    }
    let from_file = file::read("o.yaml", object.to_string().as_bytes());
    let from_server = decode(kind, version, object.clone()).unwrap();
    let lines: Vec<String> = from_server.diagnoses.iter().map(line).collect();
    assert_eq!(from_file.diagnoses.iter().map(line).collect::<Vec<_>>(), lines, "{spec}: both sources say the same");
    assert!(
        from_file.diagnoses.iter().all(|d| d.place.as_ref().is_some_and(|place| place.line > 0)),
        "{spec}: it has a place"
    );
    let [(found, _)] = from_file.found.as_slice() else { panic!("{spec}: {:?}", from_file.diagnoses) };
    let form = |outcome: &Result<Object, _>| match outcome {
        Ok(Object::Routing(object)) => Some(object.clone()),
        _ => None,
    };
    let routing = form(&from_server.outcome);
    assert_eq!(form(&found.outcome), routing, "{spec}: both sources read the same");

    let (group, version) = version.split_once('/').unwrap();
    let request = json!({ "request": { "uid": "u", "operation": "CREATE", "object": object,
        "kind": { "group": group, "version": version, "kind": kind.name() } } });
    let answer = review(request.to_string().as_bytes(), false).unwrap();
    assert_eq!(answer.allowed, routing.is_some(), "{spec}: what is let in can be read");
    (routing, lines)
}

/// Objects that can be in force, with what is said of them.
fn good(kind: Kind, cases: &[(&str, &[&str])]) {
    for (spec, expected) in cases {
        let (object, lines) = read(kind, spec);
        assert!(object.is_some(), "{spec}: {lines:#?}");
        assert_eq!(lines, *expected, "{spec}");
    }
}

/// Objects that never can.
fn bad(kind: Kind, cases: &[(&str, &[&str])]) {
    for (spec, expected) in cases {
        let (object, lines) = read(kind, spec);
        assert_eq!(lines, *expected, "{spec}");
        assert!(object.is_none(), "{spec}");
    }
}

#[test]
fn every_kind_is_told_that_it_is_not_in_force() {
    // Of ServiceEntries it depends on what they say.
    let others = |kind: &Kind| kind.is_routing() && !kind.is_refused() && *kind != Kind::ServiceEntry;
    for kind in Kind::ALL.into_iter().filter(others) {
        assert!(super::inaction(kind).is_some(), "{}", kind.title());
    }
}
