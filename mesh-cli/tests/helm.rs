//! The chart gives the same objects here and in Helm. Helm's engine is the Python package `helm-python-sdk`, installed anywhere where `python3` finds it, or
//! by `cargo xtask chart`; without it the test says that it was skipped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use mesh_cli::chart::embed;
use mesh_cli::chart::object::Reference;
use mesh_cli::chart::render::{Release, render};
use mesh_cli::chart::values::{Typing, read, set};
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
    "agent.udp=deny,log.level=debug,log.format=json",
    "platform=minikube,agent.cgroups.pods=/sys/fs/cgroup/pods,agent.cgroups.own=/sys/fs/cgroup/x",
    "agent.cniBinDir=/a,agent.cniConfDir=/b,agent.netnsDir=/c",
    "control.replicas=1,control.podDisruptionBudget.enabled=false,networkPolicy.enabled=false,metrics.scrapeAnnotations=false",
    "metrics.serviceMonitor.enabled=true,metrics.serviceMonitor.labels.release=prom,metrics.podMonitor.enabled=true",
    "commonLabels.team=a,agent.podAnnotations.note=some text: quoted,agent.podLabels.x=y,control.podAnnotations.k=v,control.serviceAnnotations.s=t",
    "control.audiences={a,b},control.san={mesh.example,10.0.0.1},resourceQuota.enabled=true",
    "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring,control.tolerations[0].operator=Exists",
    "meshConfig.trustDomain=example.org,meshConfig.defaultConfig.on=yes,meshConfig.list={a,b}",
    "agent.seLinuxOptions.type=spc_t,agent.extraCapabilities={SYS_RESOURCE},control.nodeSelector.zone=a",
];

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

#[test]
fn helm_and_meshctl_make_the_same_objects() {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/charts/undermesh");
    let values: Vec<Value> = VALUES.iter().map(|line| values(line)).collect();
    let Some(manifests) = helm(&chart, &values) else { return };
    let release = Release { name: "undermesh".into(), namespace: "mesh".into() };
    for ((line, values), files) in VALUES.iter().zip(values).zip(manifests) {
        let rendered = render(&embed::files(), &release, values).unwrap_or_else(|why| panic!("{line}: {why}"));
        let ours = by_reference(rendered.objects);
        let notes = files.iter().find(|(path, _)| path.ends_with("NOTES.txt"));
        assert_eq!(Some(&rendered.notes), notes.map(|(_, text)| text), "{line}");
        let documents =
            files.iter().filter(|(path, _)| path.ends_with(".yaml")).flat_map(|(_, text)| text.split("\n---"));
        let theirs = by_reference(documents.filter_map(object).collect());
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{line}");
        for (reference, object) in ours {
            assert_eq!(object, theirs[&reference], "{line}: {reference}");
        }
    }
}

fn values(line: &str) -> Value {
    let mut values = json!({});
    if !line.is_empty() {
        set(&mut values, line, Typing::Guess).expect("values");
    }
    values
}

fn object(document: &str) -> Option<Value> {
    let value = read(document.trim_start_matches("---")).unwrap_or_else(|why| panic!("{why}\n{document}"));
    value.get("kind").is_some().then_some(value)
}

fn by_reference(objects: Vec<Value>) -> BTreeMap<Reference, Value> {
    objects.into_iter().map(|object| (Reference::of(&object).expect("a name"), object)).collect()
}

/// What Helm makes of each file of the chart with each of some values; nothing where Helm's engine is not installed.
fn helm(chart: &Path, values: &[Value]) -> Option<Vec<BTreeMap<String, String>>> {
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
        python().args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python starts");
    let request = json!({"chart": chart, "values": values}).to_string();
    child.stdin.take().expect("piped").write_all(request.as_bytes()).expect("python reads");
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
