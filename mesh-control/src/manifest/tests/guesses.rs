//! What cannot be told for certain: it holds a start, it takes nothing out of force, and it closes nothing that it only mentions.

use super::folders::{NODE, SERVICE, deny, summary, write};
use super::*;

/// What a scan of a folder with this one file gives, and whether a start waits.
fn start(text: &str) -> (String, bool) {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("a.yaml"), text);
    let seen = Folder::new(root.path()).scan();
    (summary(&seen), !seen.unread.is_empty())
}

fn policy_in(namespace: &str, name: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n{namespace}spec: {{action: DENY, rules: [{{}}]}}\n"
    )
}

#[test]
fn hardening_F12_a_broken_document_takes_no_other_policy_out_of_force() {
    let (a, b) = (policy_in("  namespace: shop\n", "a"), policy_in("  namespace: pay\n", "b"));
    let good = format!("{a}---\n{b}");
    let shifted = good.replace("  namespace: shop", "    namespace: shop");
    for broken in [format!("{a}--\n{b}"), format!("{a}{b}"), shifted, format!("{a}---\n{}", b.replace("{{}}", "[{}"))] {
        let root = tempfile::tempdir().unwrap();
        let mut folder = Folder::new(root.path());
        let file = root.path().join("a.yaml");
        write(&file, &good);
        assert_eq!(summary(&folder.scan()), "nodes[] services[] policies[pay/b,shop/a]");
        write(&file, &broken);
        assert_eq!(summary(&folder.scan()), "nodes[] services[] policies[pay/b,shop/a]", "{broken}");
        write(&file, &b);
        assert_eq!(summary(&folder.scan()), "nodes[] services[] policies[pay/b]");
    }
}

#[test]
fn hardening_F12_a_start_waits_for_what_cannot_be_told() {
    let (a, b) = (policy_in("  namespace: shop\n", "a"), policy_in("  namespace: pay\n", "b"));
    let item = |policy: &str| format!("- {}", policy.trim_end().replace('\n', "\n  "));
    let list = |kind: &str| format!("apiVersion: v1\nitems:\n{}\n{}\nkind: {kind}\n", item(&a), item(&b));
    let nested =
        format!("apiVersion: v1\nkind: List\nitems:\n- kind: List\n  items:\n  {}\n", item(&a).replace('\n', "\n  "));
    for text in [
        format!("{a}--\n{b}"),
        format!("{SERVICE}--\n{a}"),
        format!("{a}{b}"),
        a.replace("  namespace: shop", "    namespace: shop"),
        format!("{}x: [\n", policy_in("", "a")),
        format!("{}x: [\n", policy_in("  namespace: {{ .Values.namespace }}\n", "a")),
        format!("{}x: [\n", policy_in("  namespace: Shop_1\n", "a")),
        format!("{}x: [\n", list("List")),
        format!("{}x: [\n", list("AuthorizationPolicyList")),
        list("List").replace("kind: List\n", "x: [\n"),
        format!("{}\n{}\nx: [\n", item(&a), item(&b)),
        // YAML, and no list of objects.
        nested,
        format!("{}\n{}\n", item(&a), item(&b)),
        "apiVersion: v1\nkind: List\nitems: {a: {apiVersion: security.istio.io/v1, kind: AuthorizationPolicy}}\n"
            .into(),
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicyList\nitems: [[{metadata: {name: a}}]]\n".into(),
        "AuthorizationPolicy for the shop\n".into(),
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicyList\nitems: {metadata: {name: a}}\n".into(),
    ] {
        let (shown, waits) = start(&text);
        assert!(waits, "{text}: {shown}");
    }
    // As an editor of another system saves it, and half of it is not text.
    assert!(start(&format!("{a}--\n{b}\0")).1);
    // What is broken and nothing of the kind holds nobody up.
    for text in [
        "kind: List\nitems: [{kind: List, items: [{kind: Pod}]}]\n".to_owned(),
        "apiVersion: v1\nkind: List\nitems: [{kind: ConfigMap, metadata: {name: other, namespace: undermesh-system}\n"
            .into(),
        "kind: ConfigMap\nmetadata:\n  name: other\ndata: [\n".into(),
        format!("{SERVICE}--\n{SERVICE}"),
        "- a\n- b\n".into(),
        "kind: [\n".into(),
    ] {
        assert_eq!(start(&text), ("nodes[] services[] policies[]".into(), false), "{text}");
    }
    // What is certain is closed, and the rest begins.
    let certain = a.replace("spec: {", "spec: {{");
    assert_eq!(start(&certain), ("nodes[] services[] policies[!shop/a]".into(), false));
}

/// No default stands for what the mesh settings say.
#[test]
fn hardening_F12_a_start_waits_for_what_may_be_the_mesh_settings() {
    let head = "apiVersion: v1\nkind: ConfigMap\n";
    let item = "kind: ConfigMap\n  metadata: {name: undermesh, namespace: undermesh-system}\n  data: {mesh: a";
    for text in [
        format!("{head}metadata: [\n"),
        format!("{head}data: {{mesh: [\n"),
        format!("{head}metadata:\n  name: under[mesh\ndata: [\n"),
        format!("{head}metadata:\n  name: {{{{ .Values.name }}}}\ndata: {{\n"),
        format!("apiVersion: v1\nkind: List\nitems:\n- {item}: [\n"),
        format!("apiVersion: v1\nkind: ConfigMapList\nitems:\n- {item}: [\n"),
        format!("items:\n- {item}: [\n"),
        format!("{SERVICE}--\n{head}metadata: {{name: undermesh}}\n"),
        "apiVersion: v1\nkind: List\nitems: [{kind: ConfigMap\n".into(),
        // YAML, and no list of objects.
        format!("- {item}}}\n"),
        "kind: List\nitems: {a: {kind: ConfigMap, metadata: {name: undermesh}}}\n".into(),
    ] {
        let (shown, waits) = start(&text);
        assert!(waits, "{text}: {shown}");
    }
}

#[test]
fn hardening_F12_a_namespace_is_taken_as_it_is_written() {
    for (written, closed) in [("123", "123"), ("no", "no"), ("on", "on"), ("y", "y"), ("0x1f", "0x1f")] {
        for text in [
            policy_in(&format!("  namespace: {written}\n"), "a"),
            policy_in("", "a").replace("metadata:\n  name: a", &format!("metadata: {{namespace: {written}, name: a}}")),
        ] {
            let (shown, waits) = start(&format!("{NODE}---\n{text}"));
            assert!(shown.contains(&format!("policies[!{closed}/unreadable-")) && !waits, "{text}: {shown}");
        }
    }
    for namespace in ["  namespace: [shop]\n", "  namespace: {a: shop}\n", "  namespace: 1.5\n"] {
        let (shown, waits) = start(&policy_in(namespace, "a"));
        assert_eq!((shown.as_str(), waits), ("nodes[] services[] policies[]", true), "{namespace}");
    }
}

#[test]
fn hardening_F12_what_only_mentions_a_policy_closes_nothing_and_is_not_quoted() {
    let template = "{{- if .Values.on }}\n# the AuthorizationPolicy is elsewhere\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\n  namespace: undermesh-system\n{{- end }}\n";
    let comment = "# AuthorizationPolicy\nvalues: [ # security.istio.io\n";
    for text in [template, comment] {
        assert_eq!(start(text), ("nodes[] services[] policies[]".into(), false), "{text}");
    }
    let values = "metadata:\n  namespace: shop\nwanted: AuthorizationPolicy\npassword: hunter2: [\n";
    assert_eq!(start(values), ("nodes[] services[] policies[]".into(), true));
    let secret = "kind: Secret\nstringData:\n  password: hunter2: [\n";
    for text in [values.to_owned(), format!("{}--\n{secret}", deny("p")), format!("{secret}--\n{}", deny("p"))] {
        let read = read("a.yaml", text.as_bytes());
        assert!(!read.diagnoses.is_empty());
        assert!(!format!("{:?}", read.diagnoses).contains("hunter2"), "{:?}", read.diagnoses);
    }
}

#[test]
fn hardening_F12_a_reader_that_fails_has_read_nothing() {
    let broken = apart("a.yaml", || panic!("on purpose"));
    assert!(broken.failed && broken.unread && broken.unsettled);
    // It fails on one of two versions, once.
    fn flaky(name: &str, bytes: &[u8]) -> FileRead {
        use std::sync::atomic::{AtomicBool, Ordering};
        static FAILED: AtomicBool = AtomicBool::new(false);
        let fails = bytes.starts_with(b"# second") && !FAILED.swap(true, Ordering::Relaxed);
        if fails { apart(name, || panic!("on purpose")) } else { read(name, bytes) }
    }
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    let mut folder = Folder::reading(root.path(), flaky);
    write(&file, &deny("p"));
    assert_eq!(summary(&folder.scan()), "nodes[] services[] policies[shop/p]");
    write(&file, &format!("# second\n{}---\n{}", deny("p"), deny("q")));
    let seen = folder.scan();
    assert_eq!(summary(&seen), "nodes[] services[] policies[shop/p]");
    assert_eq!((seen.unread, seen.again), (vec!["a.yaml".to_owned()], true));
    let seen = folder.scan();
    assert_eq!(summary(&seen), "nodes[] services[] policies[shop/p,shop/q]");
    assert!(seen.unread.is_empty() && !seen.again);
}

#[test]
fn hardening_F12_a_start_waits_for_objects_beyond_the_limit() {
    let list = |count| format!("apiVersion: v1\nkind: PodList\nitems:\n{}", "- metadata: {name: a}\n".repeat(count));
    let read = read("a.yaml", format!("kind: [\n---\n{}---\n{}", list(200_000), deny("p")).as_bytes());
    assert!(read.unread && read.unsettled);
    assert!(read.diagnoses.iter().any(|d| d.message.starts_with("more than 200000 objects")));
}
