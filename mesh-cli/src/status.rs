//! `meshctl status`: what is installed and how it fares, in one page. Reads the same picture as `check`; `summary` is pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::api::Api;
use crate::check::facts::{AGENT, CONTROL, Diagnosis, REDIRECTION, Snapshot, tag};
use crate::check::{collect, needs};
use crate::context::Context;
use crate::health::{self, Progress};
use crate::install::rollout;
use crate::output::{Format, Mark, Paint, data, printable, table};
use crate::stop::{FAILED, OK, Stop, UNAVAILABLE};

/// Without these a page would say that nothing is there.
const SHOWN: [&str; 5] = [needs::DEPLOYMENTS, needs::DAEMON_SETS, "pods", "nodes", "namespaces"];

/// Options of the verb.
#[derive(Clone, Debug, clap::Args)]
pub struct Status {
    /// Wait until everything is ready
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = crate::wait::duration)]
    wait_duration: Duration,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Namespace of the mesh.
    pub namespace: String,
    /// Everything that is installed is ready.
    pub ready: bool,
    /// Deployment and DaemonSet.
    pub components: Vec<Progress>,
    /// One row for each node.
    pub nodes: Vec<NodeRow>,
    /// One row for each namespace with pods in the mesh, or that should be.
    pub namespaces: Vec<NamespaceRow>,
    /// What the control plane says is wrong; nothing if it cannot be asked.
    pub diagnoses: Option<Vec<Diagnosis>>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRow {
    /// Its name.
    pub node: String,
    /// Name of its agent's pod.
    pub agent: Option<String>,
    /// The agent serves.
    pub ready: bool,
    /// The agent's version.
    pub version: String,
    /// Pods in the mesh.
    pub enrolled: usize,
    /// Pods that should be.
    pub wanted: usize,
    /// What keeps the agent from being ready.
    pub why: String,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceRow {
    /// Its name.
    pub namespace: String,
    /// Pods in the mesh.
    pub enrolled: usize,
    /// Pods that should be.
    pub wanted: usize,
}

/// What an installation consists of: agents alone, where they have another control plane.
fn parts(snapshot: &Snapshot) -> &'static [(&'static str, &'static str)] {
    let all = &[("Deployment", CONTROL), ("DaemonSet", AGENT)];
    if snapshot.foreign_control().is_some() { &all[1..] } else { all }
}

/// Counts.
pub fn summary(snapshot: &Snapshot) -> Summary {
    let control = snapshot.control().map(|control| health::deployment(control, &snapshot.pods));
    let agents = snapshot.agent().map(|agents| health::daemon_set(agents, &snapshot.pods));
    let components: Vec<Progress> = control.into_iter().chain(agents).collect();
    let is_enrolled = |pod: &&crate::view::Pod| pod.metadata.annotation(REDIRECTION) == "enabled" && !pod.is_finished();
    let nodes = snapshot.nodes.iter().map(|node| {
        let name = node.metadata.name.clone();
        let agent = snapshot.agent_on(&name);
        let here = || snapshot.pods.iter().filter(|pod| pod.spec.node_name == name);
        NodeRow {
            agent: agent.map(|pod| pod.metadata.name.clone()),
            ready: agent.is_some_and(crate::view::Pod::is_ready),
            version: agent
                .and_then(|pod| pod.spec.containers.first())
                .map(|c| tag(&c.image).to_owned())
                .unwrap_or_default(),
            enrolled: here().filter(is_enrolled).count(),
            wanted: snapshot.wanted().filter(|pod| pod.spec.node_name == name).count(),
            why: match agent {
                Some(pod) => health::problem(pod).unwrap_or_default(),
                None => "no agent; `meshctl check` says why".to_owned(),
            },
            node: name,
        }
    });
    let nodes: Vec<NodeRow> = if snapshot.is_installed() { nodes.collect() } else { Vec::new() };
    let mut namespaces: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for pod in snapshot.pods.iter().filter(is_enrolled) {
        namespaces.entry(&pod.metadata.namespace).or_default().0 += 1;
    }
    for pod in snapshot.wanted() {
        namespaces.entry(&pod.metadata.namespace).or_default().1 += 1;
    }
    let namespaces = namespaces.into_iter().map(|(namespace, (enrolled, wanted))| NamespaceRow {
        namespace: namespace.to_owned(),
        enrolled,
        wanted,
    });
    let ready = components.len() >= parts(snapshot).len() && components.iter().all(|c| c.done);
    Summary {
        namespace: snapshot.namespace.clone(),
        ready,
        components,
        nodes,
        namespaces: namespaces.collect(),
        diagnoses: snapshot.diagnoses.clone(),
    }
}

impl Summary {
    /// For people.
    pub fn text(&self, snapshot: &Snapshot, paint: Paint) -> String {
        if self.components.is_empty() {
            return format!("Undermesh is not installed in {}: `meshctl install`\n", self.namespace);
        }
        let mut out = String::new();
        for component in &self.components {
            let mark = if component.done { Mark::Good } else { Mark::Bad };
            out.push_str(&format!("{} {}\n", paint.mark(mark), printable(&component.line())));
        }
        for (name, app) in [("control plane", CONTROL), ("agents", AGENT)] {
            let of = match snapshot.foreign_control().filter(|_| app == CONTROL) {
                Some(address) => address.to_owned(),
                None => versions(snapshot, app).join(", "),
            };
            out.push_str(&format!("  {name}: {}\n", printable(&of)));
        }
        let rows = self.nodes.iter().map(|row| {
            let ready = if row.ready { "yes" } else { "NO" };
            let pods = format!("{}/{}", row.enrolled, row.wanted);
            vec![row.node.clone(), ready.into(), row.version.clone(), pods, row.why.clone()]
        });
        out.push_str(&format!(
            "\n{}",
            table(&["NODE", "AGENT READY", "VERSION", "PODS IN MESH", "WHY"], &rows.collect::<Vec<_>>())
        ));
        let rows: Vec<_> = self
            .namespaces
            .iter()
            .map(|row| vec![row.namespace.clone(), row.enrolled.to_string(), row.wanted.to_string()])
            .collect();
        match rows.is_empty() {
            true => out.push_str(
                "\nno namespace is in the mesh: kubectl label namespace NAME istio.io/dataplane-mode=ambient\n",
            ),
            false => out.push_str(&format!("\n{}", table(&["NAMESPACE", "IN MESH", "LABELLED"], &rows))),
        }
        out.push_str(&self.configuration(paint));
        out
    }

    fn configuration(&self, paint: Paint) -> String {
        let Some(diagnoses) = &self.diagnoses else {
            return format!("\n{} configuration: the control plane cannot be asked\n", paint.mark(Mark::Warning));
        };
        let worth: Vec<_> = diagnoses.iter().filter(|d| d.severity != "note").collect();
        if worth.is_empty() {
            return format!("\n{} configuration: nothing is wrong with it\n", paint.mark(Mark::Good));
        }
        let mut out = String::from("\n");
        for diagnosis in worth {
            let mark = if diagnosis.severity == "error" { Mark::Bad } else { Mark::Warning };
            let text = format!("{} {} {}", diagnosis.object, diagnosis.field, diagnosis.message);
            out.push_str(&format!("{} {}\n", paint.mark(mark), printable(text.trim())));
        }
        out
    }
}

/// Versions of the pods of a part, with how many have each.
pub fn versions(snapshot: &Snapshot, app: &str) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in snapshot.pods_of(app) {
        *counts.entry(pod.spec.containers.first().map_or("unknown", |c| tag(&c.image))).or_default() += 1;
    }
    match counts.is_empty() {
        true => vec!["none".to_owned()],
        false => counts.into_iter().map(|(version, count)| format!("{version} ({count})")).collect(),
    }
}

/// Shows.
pub async fn run(options: &Status, context: &Context) -> Result<u8, Stop> {
    let api = Api::connect(&context.access).await?;
    if options.wait {
        let namespace = &context.namespace;
        let of = |kind: &str, name: &str| crate::chart::object::Reference {
            api_version: "apps/v1".into(),
            kind: kind.into(),
            namespace: namespace.clone(),
            name: name.into(),
        };
        let parts = parts(&collect::snapshot(&api, namespace, false).await?);
        let components: Vec<_> = parts.iter().map(|(kind, name)| of(kind, name)).collect();
        rollout::wait(&api, &components, options.wait_duration, context.is_for_a_program()).await?;
    }
    let snapshot = collect::snapshot(&api, &context.namespace, false).await?;
    // Nothing seen is not nothing there.
    if let Some((what, why)) = snapshot.unread.iter().find(|(what, _)| SHOWN.contains(&what.as_str())) {
        return Err(Stop::new(UNAVAILABLE, format!("{what} cannot be read: {why}")));
    }
    let summary = summary(&snapshot);
    match context.format {
        Format::Text => data(&summary.text(&snapshot, context.paint())).map_err(Stop::failed)?,
        Format::Json | Format::Yaml => context.print(&summary)?,
    }
    Ok(if summary.ready { OK } else { FAILED })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::facts::CONTROL_PLANE;
    use serde_json::json;

    fn snapshot() -> Snapshot {
        let list = |value: serde_json::Value| value.to_string();
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let pod = |namespace: &str, name: &str, app: &str, node: &str, enrolled: bool| {
            let annotations = if enrolled { json!({REDIRECTION: "enabled"}) } else { json!({}) };
            json!({
                "metadata": {"namespace": namespace, "name": name, "labels": {"app": app}, "annotations": annotations},
                "spec": {"nodeName": node, "containers": [{"image": format!("undermesh/{app}:0.1.0")}]},
                "status": {"phase": "Running", "conditions": ready},
            })
        };
        let workload = |name: &str, status: serde_json::Value| json!([{"metadata": {"namespace": "u", "name": name}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": name}}}, "status": status}]);
        Snapshot {
            namespace: "u".into(),
            nodes: serde_json::from_str(&list(json!([{"metadata": {"name": "n1"}}, {"metadata": {"name": "n2"}}])))
                .unwrap(),
            namespaces: serde_json::from_str(&list(
                json!([{"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}}]),
            ))
            .unwrap(),
            pods: serde_json::from_str(&list(json!([
                pod("u", "c", "mesh-control", "n1", false),
                pod("u", "a1", "mesh-agent", "n1", false),
                pod("shop", "web", "web", "n1", true),
                pod("shop", "db", "db", "n2", false),
                pod("other", "x", "x", "n1", false),
            ])))
            .unwrap(),
            deployments: serde_json::from_str(&list(workload(
                "mesh-control",
                json!({"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}),
            )))
            .unwrap(),
            daemon_sets: serde_json::from_str(&list(workload(
                "mesh-agent",
                json!({"desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 1}),
            )))
            .unwrap(),
            diagnoses: Some(vec![Diagnosis {
                severity: "error".into(),
                object: "AuthorizationPolicy shop/deny".into(),
                field: "spec.rules".into(),
                message: "no such field".into(),
                help: None,
            }]),
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_summary_counts_pods_by_node_and_namespace() {
        let found = summary(&snapshot());
        assert!(!found.ready);
        let nodes: Vec<_> = found.nodes.iter().map(|n| (n.node.as_str(), n.ready, n.enrolled, n.wanted)).collect();
        assert_eq!(nodes, [("n1", true, 1, 1), ("n2", false, 0, 1)]);
        assert_eq!(found.namespaces, [NamespaceRow { namespace: "shop".into(), enrolled: 1, wanted: 2 }]);
    }

    #[test]
    fn agents_of_an_istiod_are_all_there_is() {
        let mut snapshot = snapshot();
        snapshot.deployments.clear();
        snapshot.daemon_sets[0].status.number_available = 2;
        assert!(!summary(&snapshot).ready);
        let annotations = &mut snapshot.daemon_sets[0].metadata.annotations;
        annotations.insert(CONTROL_PLANE.into(), "istiod.istio-system.svc:15012".into());
        let found = summary(&snapshot);
        assert!(found.ready);
        let text = found.text(&snapshot, Paint::plain());
        assert!(text.contains("  control plane: istiod.istio-system.svc:15012\n"), "{text}");
    }

    #[test]
    fn a_page_says_what_is_wrong() {
        let snapshot = snapshot();
        let expected = "\
√ Deployment mesh-control: 1/1 ready
× DaemonSet mesh-agent: 1/2 ready
  control plane: 0.1.0 (1)
  agents: 0.1.0 (1)

NODE   AGENT READY   VERSION   PODS IN MESH   WHY
n1     yes           0.1.0     1/1
n2     NO                      0/1            no agent; `meshctl check` says why

NAMESPACE   IN MESH   LABELLED
shop        1         2

× AuthorizationPolicy shop/deny spec.rules no such field
";
        assert_eq!(summary(&snapshot).text(&snapshot, Paint::plain()), expected);
        let nothing = Snapshot { namespace: "u".into(), ..Snapshot::default() };
        assert!(summary(&nothing).text(&nothing, Paint::plain()).starts_with("Undermesh is not installed in u"));
    }
}
