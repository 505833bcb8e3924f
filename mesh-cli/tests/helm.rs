//! The chart gives the same objects here and in Helm. Helm's engine is the Python package `helm-python-sdk`, installed anywhere where `python3` finds it, or
//! by `cargo xtask chart`; without it the test says that it was skipped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use mesh_cli::chart::embed;
use mesh_cli::chart::object::Reference;
use mesh_cli::chart::render::{self, Release, render};
use mesh_cli::chart::values::{Typing, overlay, read, set};
use serde_json::{Value, json};

/// Values with which both render. Together they take every branch of the chart.
const VALUES: &[&str] = &[
    "",
    "namespace.create=true",
    "platform=gke,image.hub=registry.example:5000/m,image.tag=9.9.9,image.pullPolicy=Always,image.pullSecrets[0].name=pull",
    "platform=openshift,agent.extraArgs={--a,--b=c},control.extraArgs={--x}",
    "platform=k3s,network=blue,meshRanges={10.244.0.0/16,fd00::/64},agent.workers=3",
    "platform=k3d",
    "platform=microk8s",
    "control.webhook.enabled=false,agent.cni.enabled=false",
    "agent.cni.ownFile=false",
    "profile=demo",
    "gateways.ingress.enabled=true,gateways.ingress.serviceType=NodePort,gateways.ingress.annotations.a=b,commonLabels.team=c",
    "agent.udp=deny,log.level=debug,log.format=json",
    "platform=minikube,agent.cgroups.pods=/sys/fs/cgroup/pods,agent.cgroups.own=/sys/fs/cgroup/x",
    "agent.cniBinDir=/a,agent.cniConfDir=/b,agent.netnsDir=/c",
    "control.replicas=1,control.podDisruptionBudget.enabled=false,networkPolicy.enabled=false,metrics.scrapeAnnotations=false",
    "metrics.serviceMonitor.enabled=true,metrics.serviceMonitor.labels.release=prom,metrics.podMonitor.enabled=true",
    "commonLabels.team=a,agent.podAnnotations.note=some text: quoted,agent.podLabels.x=y,control.podAnnotations.k=v,control.serviceAnnotations.s=t",
    "control.audiences={a,b},control.san={mesh.example,10.0.0.1},resourceQuota.enabled=true",
    "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring,control.tolerations[0].operator=Exists",
    "meshConfig.trustDomain=example.org,meshConfig.defaultConfig.on=yes,meshConfig.list={a,b}",
    "image.tag=1.2.3,image.digests.control=sha256:1111111111111111111111111111111111111111111111111111111111111111",
    "image.digests.agent=sha256:2222222222222222222222222222222222222222222222222222222222222222",
    "agent.seLinuxOptions.type=spc_t,agent.extraCapabilities={SYS_RESOURCE},control.nodeSelector.zone=a",
];

/// What is read of values: expressions of `--set`, and files. Not the same are names that YAML 1.1 takes for booleans, which Helm calls `true` and `false`
/// and no chart has, and two entries with one name, which are refused here.
const EXPRESSIONS: &[&str] = &[
    "a={}",
    "a={,}",
    "a={x,}",
    "a={null,1,true}",
    "a={}b=c",
    "a={x},b=y",
    "a={",
    "a={x}y",
    "a=[]",
    "a={[]}",
    "a=null,b.c=null",
    "a=",
    "a=yes,b=on,c=off",
    "a=1.5,b=1e3,c=010,d=0x1F,e=-5,f=+5,g=~,h=TRUE,i=Null",
    "a[0]=x,a[1]=y",
    "a[1]=z",
    "a,b=c",
    "a=1,a=2",
    "a.b=1,a.c=2",
    r"a\.b=x\,y",
];
const FILES: &[&str] = &[
    "a: yes",
    "a: [y, n, on, off, Yes, NO, TRUE]",
    "a: 'yes'",
    "a: \"no\"",
    "a: 010",
    "a: 0x1F",
    "a: 1e3",
    "a: 1.0",
    "a: 0.1",
    "a: +5",
    "a: -0",
    "a: ~\nb: null\nc:",
    "a: {b: null}",
    "a: 2020-01-01",
    "a: 12:30:45",
    "a: !!str yes",
    "1: 2",
    "a: &x {b: 1}\nc: {<<: *x, e: 2}",
    "a: |\n  x\n  y\n",
    "a: >-\n  x\n  y\n",
    "",
    "# nothing",
    "a: [",
    "- a",
    "a: {b: [null, {c: null}]}",
];
/// Laid over what the chart has.
const OVER: &[&str] = &[
    r#"{"agent": {"x": null}}"#,
    r#"{"agent": null}"#,
    r#"{"agent": {"nodeSelector": null}}"#,
    r#"{"agent": {"resources": {"requests": {"cpu": null, "q": null}}}}"#,
    r#"{"agent": {"resources": {"limits": {"cpu": null}}}}"#,
    r#"{"agent": {"tolerations": [null, {"a": null}]}}"#,
    r#"{"meshConfig": {"a": {"b": null}, "c": null}}"#,
    r#"{"zz": null, "log": {"level": null}}"#,
    r#"{"meshRanges": []}"#,
    r#"{"meshRanges": [""]}"#,
];

const READER: &str = r#"
import json, sys
import helm_python
request = json.load(sys.stdin)
def read(read, text):
    try:
        return {"is": read(text)}
    except Exception as why:
        return {"fails": str(why)}
answer = {
    "set": [read(helm_python.parse_set_string, text) for text in request["set"]],
    "string": [read(helm_python.parse_set_string_values, text) for text in request["set"]],
    "files": [read(helm_python.values_from_yaml, text) for text in request["files"]],
}
with helm_python.Chart.load(request["chart"]) as chart:
    answer["over"] = [read(chart.merge_values, json.loads(text)) for text in request["over"]]
json.dump(answer, sys.stdout)
"#;

const SCRIPT: &str = r#"
import json, sys
from helm_python import Chart
request = json.load(sys.stdin)
rendered = []
with Chart.load(request["chart"]) as chart:
    for values in request["values"]:
        chart.validate_schema(values)
        rendered.append(chart.render(values=values, name="undermesh", namespace="mesh"))
json.dump(rendered, sys.stdout)
"#;

/// Texts that a reader of YAML takes for something else, or that are hard to indent.
const TEXTS: &[&str] = &[
    "a\n\n",
    " lead",
    "trail ",
    "x: y",
    "#c",
    "a #b",
    "0x1F",
    "1e3",
    "12:30:45",
    "~",
    "- x",
    "? q",
    "!t",
    "{a}",
    "\ttab",
    "a\tb",
    "multi\n  indent\n",
    "|",
    "null",
    "2020-01-01T00:00:00Z",
    "a\\b\"c'",
    "one\n\n\n",
    "%x",
    "...",
    "---",
    "= ",
    "=",
    "true",
    "No",
    "010",
    "1_000",
    ".inf",
    "",
    "a\n\nb",
    "end \nof",
    "*a",
    "&a",
    "@x",
    "a:",
];

fn nasty() -> Vec<(String, Value)> {
    let map = |texts: &[&str]| -> Value {
        texts.iter().enumerate().map(|(n, text)| (format!("k{n}"), json!(text))).collect()
    };
    let sets = [
        json!({"meshConfig": {"n": 1000000, "f": 0.1, "neg": -5, "list": [[1, [2, {}]], [], "x", {"a": [], "b": {"c": ["d"]}}], "e": {}}}),
        json!({"meshConfig": {"all": TEXTS, "by": map(TEXTS)}}),
        json!({"agent": {"podAnnotations": map(TEXTS)}, "control": {"serviceAnnotations": map(TEXTS)}}),
        json!({"agent": {"extraArgs": TEXTS}, "control": {"extraArgs": TEXTS}}),
        json!({"agent": {"affinity": {"a": {"b": TEXTS}}, "resources": {"limits": {"cpu": 0.5, "memory": "1Gi"}}, "tolerations": [{"key": "a", "value": "yes"}]}}),
        json!({"control": {"enabled": false}, "agent": {"controlPlane": {"address": "istiod.istio-system.svc:15012"}, "istioCni": {"enabled": true}}}),
        // What the chart sets itself.
        json!({"agent": {"podAnnotations": {"prometheus.io/port": "1"}}}),
        json!({"agent": {"podLabels": {"istio.io/dataplane-mode": "x"}}}),
        json!({"commonLabels": {"helm.sh/chart": "x"}}),
        json!({"control": {"podDisruptionBudget": {"maxUnavailable": "50%"}}}),
        json!({"agent": {"tolerations": [], "updateStrategy": {}, "nodeSelector": null, "resources": {}, "seccompProfile": null}}),
    ];
    sets.into_iter().map(|set| (set.to_string(), set)).collect()
}

#[test]
fn helm_and_meshctl_make_the_same_objects() {
    let lines = VALUES.iter().map(|line| ((*line).to_owned(), values(line)));
    same(lines.collect());
}

#[test]
fn texts_and_numbers_come_through_as_they_are() {
    same(nasty());
}

#[test]
fn values_are_read_as_helm_reads_them() {
    let request = json!({"chart": chart(), "set": EXPRESSIONS, "files": FILES, "over": OVER});
    let Some(answer) = python(READER, &request) else { return };
    let defaults = read(embed::files().get("values.yaml").expect("values")).expect("values");
    let mut wrong = Vec::new();
    let mut compare = |how: &str, text: &str, ours: Result<Value, String>, theirs: &Value| {
        let theirs = theirs.get("is").cloned().map(numbers);
        let ours = ours.map(numbers);
        if ours.clone().ok() != theirs {
            wrong.push(format!("{how} {text:?}: {ours:?}, and Helm {theirs:?}"));
        }
    };
    for (how, typing) in [("set", Typing::Guess), ("string", Typing::Text)] {
        for (text, theirs) in EXPRESSIONS.iter().zip(answer[how].as_array().expect("a list")) {
            let mut values = json!({});
            let outcome = set(&mut values, text, typing).map(|()| values);
            compare(how, text, outcome, theirs);
        }
    }
    for (text, theirs) in FILES.iter().zip(answer["files"].as_array().expect("a list")) {
        compare("file", text, read(text), theirs);
    }
    for (text, theirs) in OVER.iter().zip(answer["over"].as_array().expect("a list")) {
        let mut values = defaults.clone();
        overlay(&mut values, serde_json::from_str(text).expect("JSON"));
        compare("over", text, Ok(values), theirs);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Numbers as they are on the way through JSON: 1.0 is 1.
fn numbers(value: Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(items) => items.into_iter().map(numbers).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, numbers(value))).collect(),
        other => other,
    }
}

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/charts/undermesh")
}

fn same(sets: Vec<(String, Value)>) {
    let values: Vec<Value> = sets.iter().map(|(_, values)| values.clone()).collect();
    let Some(manifests) = helm(&values) else { return };
    let release = Release { name: "undermesh".into(), namespace: "mesh".into() };
    for ((line, values), files) in sets.into_iter().zip(manifests) {
        let rendered = render(&embed::files(), &release, values).unwrap_or_else(|why| panic!("{line}: {why}"));
        let ours = by_reference(rendered.objects);
        let notes = files.iter().find(|(path, _)| path.ends_with("NOTES.txt"));
        assert_eq!(Some(&rendered.notes), notes.map(|(_, text)| text), "{line}");
        let documents =
            files.iter().filter(|(path, _)| path.ends_with(".yaml")).flat_map(|(_, text)| text.split("\n---"));
        let theirs = by_reference(documents.filter_map(object).collect());
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{line}");
        for (reference, object) in ours {
            assert_eq!(settled(object), settled(theirs[&reference].clone()), "{line}: {reference}");
        }
    }
}

/// With the settings of the mesh as what they say: which quotes a text is in does not matter.
fn settled(mut object: Value) -> Value {
    if let Some(text) = object.pointer("/data/mesh").and_then(Value::as_str) {
        object["data"]["mesh"] = read(text).unwrap_or_else(|why| panic!("{why}\n{text}"));
    }
    object
}

fn values(line: &str) -> Value {
    let mut values = json!({});
    if !line.is_empty() {
        set(&mut values, line, Typing::Guess).expect("values");
    }
    values
}

fn object(document: &str) -> Option<Value> {
    let value = render::object(document.trim_start_matches("---")).unwrap_or_else(|why| panic!("{why}\n{document}"));
    value.get("kind").is_some().then_some(value)
}

fn by_reference(objects: Vec<Value>) -> BTreeMap<Reference, Value> {
    objects.into_iter().map(|object| (Reference::of(&object).expect("a name"), object)).collect()
}

/// What Helm makes of each file of the chart with each of some values; nothing where Helm's engine is not installed.
fn helm(values: &[Value]) -> Option<Vec<BTreeMap<String, String>>> {
    let answer = python(SCRIPT, &json!({"chart": chart(), "values": values}))?;
    Some(serde_json::from_value(answer).expect("files"))
}

/// What a program with Helm's engine answers; nothing where that is not installed.
fn python(script: &str, request: &Value) -> Option<Value> {
    use std::io::Write;
    use std::process::Stdio;
    let python = || {
        let mut python = Command::new("python3");
        if let Some(folder) = installed() {
            python.env("PYTHONPATH", folder);
        }
        python
    };
    let has = python().args(["-c", "import helm_python"]).output().is_ok_and(|output| output.status.success());
    if !has {
        println!("SKIPPED: Helm's engine is not installed (`cargo xtask chart` does it): nothing was compared with it");
        return None;
    }
    let mut child =
        python().args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python starts");
    child.stdin.take().expect("piped").write_all(request.to_string().as_bytes()).expect("python reads");
    let output = child.wait_with_output().expect("python ends");
    assert!(output.status.success(), "Helm refuses what is said above");
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// Where `cargo xtask chart` has put it.
fn installed() -> Option<PathBuf> {
    let given = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = given("XDG_CACHE_HOME").or_else(|| given("HOME").map(|home| home.join(".cache")))?;
    let entries = std::fs::read_dir(cache.join("undermesh")).ok()?.flatten();
    entries.map(|entry| entry.path()).find(|path| path.join("helm_python").is_dir())
}
