//! How documents come: alone, in lists, several in a file, and of kinds that are not read.

use super::*;

#[test]
fn lists_and_other_kinds() {
    let text = "\
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: n1}}
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: e}}
- {apiVersion: v1, kind: Node, metadata: {name: N1}}
---
{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"shop\"}}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: x}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: x}
---
apiVersion: security.istio.io/v1
kind: AuthorisationPolicy
metadata: {name: x}
";
    let read = read("a.yaml", text.as_bytes());
    let keys: Vec<String> = read.found.iter().map(|(f, line)| format!("{}@{line}", f.key)).collect();
    assert_eq!(keys, ["Node n1@4", "Namespace shop@9", "AuthorizationPolicy default/x@19"]);
    check(
        text,
        &[
            "error 7 metadata.name: \"N1\" is not a valid name: it must begin and end with a lower-case letter or digit",
            "warning 16 kind: NetworkPolicy is not supported, it has no effect on the mesh",
            "error 20 kind: there is no kind AuthorisationPolicy",
            "note 5 : kind Deployment is not read (2 objects)",
            "note 12 : kind Service is not read",
        ],
    );
}

#[test]
fn lists_of_every_form() {
    let keys = |text: &str| {
        let read = read("a.yaml", text.as_bytes());
        (read.found.iter().map(|(f, _)| f.key.to_string()).collect::<Vec<_>>(), read.unsettled)
    };
    // As the API server answers: what a typed list holds, it says once.
    let pods = "apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: a}\n- metadata: {name: b, namespace: c}\n";
    assert_eq!(keys(pods), (vec!["Pod default/a".into(), "Pod c/b".into()], false));
    let policies =
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicyList\nitems: [{metadata: {name: a}, spec: {}}]\n";
    assert_eq!(keys(policies), (vec!["AuthorizationPolicy default/a".into()], false));
    check("apiVersion: v1\nkind: List\nitems: [{metadata: {name: a}}]\n", &["error 3 kind: the kind is missing"]);
    for empty in ["items: []", "items:", "metadata: {}"] {
        assert_eq!(keys(&format!("apiVersion: v1\nkind: List\n{empty}\n")), (vec![], false), "{empty}");
    }
    // What cannot be right keeps what the file gave before.
    let nested = "apiVersion: v1\nkind: List\nitems:\n- {kind: List, items: [{apiVersion: v1, kind: Node, metadata: {name: x}}]}\n";
    for (text, problem) in [
        (nested, "error 4 kind: a list within a list is not read"),
        ("kind: List\nitems: {a: b}\n", "error 2 items: expected a list, found a mapping"),
    ] {
        check(text, &[problem]);
        assert_eq!(keys(text), (vec![], true), "{text}");
    }
}

#[test]
fn documents_are_cut_however_they_are_written() {
    let names = |text: &str| -> Vec<String> {
        let read = read("a.yaml", text.as_bytes());
        assert_eq!(read.diagnoses, [], "{text:?}");
        read.found.iter().map(|(f, line)| format!("{}@{line}", f.key.name)).collect()
    };
    let node = |name: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
    let (a, b) = (node("a"), node("b"));
    for (text, expected) in [
        (format!("{a}---\n{b}"), ["a@1", "b@5"]),
        (format!("---\n{a}---   # two\n{b}...\n"), ["a@2", "b@6"]),
        (format!("{a}---\n{b}").replace('\n', "\r\n"), ["a@1", "b@5"]),
        (format!("\u{feff}{a}---\n\u{feff}{b}"), ["a@1", "b@5"]),
        (format!("%YAML 1.2\n---\n{a}...\n---\n\n\n---\n{b}---\n"), ["a@3", "b@11"]),
        (format!("# comment\n{a}\n---\t\n# comment\n{b}"), ["a@2", "b@8"]),
        (
            format!("{{\"apiVersion\": \"v1\", \"kind\": \"Node\", \"metadata\": {{\"name\": \"a\"}}}}\n---\n{b}"),
            ["a@1", "b@3"],
        ),
    ] {
        assert_eq!(names(&text), expected, "{text:?}");
    }
    // Merge keys and aliases are YAML that people write.
    let merged =
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels: &l {app: a}\n  annotations: {<<: *l, x: y1}\n";
    assert_eq!(names(merged), ["a@1"]);
}
