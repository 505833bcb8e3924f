//! Into the mesh and out of it, as the label on a namespace asks: told to the node's agent, then announced to everybody.
use super::lab::Lab;
use super::manifest::{DATAPLANE_MODE, REDIRECTION};
use super::pod::Pod;
use super::process::lock;
use super::wait;
use anyhow::{Context, Result};
use std::sync::Arc;
use std::time::Duration;

impl Lab {
    /// Labels a namespace into the mesh and enrols each of its pods that does not say that it stays out.
    pub fn enrol_namespace(&self, namespace: &str) -> Result<()> {
        self.enrol_namespace_with(namespace, &[])
    }

    /// `enrol_namespace` with more labels on the namespace.
    pub fn enrol_namespace_with(&self, namespace: &str, labels: &[(&str, &str)]) -> Result<()> {
        self.namespace(namespace, &[&[(DATAPLANE_MODE, "ambient")], labels].concat())?;
        let stays_out = |pod: &Arc<Pod>| pod.labels().get(DATAPLANE_MODE).is_some_and(|mode| mode == "none");
        for pod in self.pods(namespace).iter().filter(|pod| !stays_out(pod)) {
            self.enrol(pod)?;
        }
        Ok(())
    }

    /// Takes the label away and every pod out.
    pub fn unenrol_namespace(&self, namespace: &str) -> Result<()> {
        self.namespace(namespace, &[])?;
        let pods: Vec<_> = self.pods(namespace).into_iter().filter(|pod| pod.annotated()).collect();
        self.leave(&pods.iter().map(AsRef::as_ref).collect::<Vec<_>>())
    }

    /// Enrols one pod: told to the agent, acknowledged, then annotated.
    pub fn enrol(&self, pod: &Pod) -> Result<()> {
        pod.node.kubelet.add(pod.enrolment())?;
        self.announce(pod)
    }

    /// Sets the annotation that says that a pod's node has it in the mesh, whoever does the node's part.
    pub fn announce(&self, pod: &Pod) -> Result<()> {
        lock(&pod.manifest).annotations.insert(REDIRECTION.into(), "enabled".into());
        self.write_pod(pod)
    }

    /// The annotations go first, and the pods are taken out when the peers have heard: none calls them by HBONE any more.
    fn leave(&self, pods: &[&Pod]) -> Result<()> {
        for pod in pods {
            lock(&pod.manifest).annotations.remove(REDIRECTION);
            self.write_pod(pod)?;
        }
        self.wait_announced(pods, false)?;
        pods.iter().try_for_each(|pod| pod.node.kubelet.del(&pod.uid))
    }

    /// Waits until every agent knows these pods by HBONE, so that what follows is the mesh's steady state.
    pub fn wait_hbone(&self, pods: &[&Pod]) -> Result<()> {
        self.wait_announced(pods, true)
    }

    fn wait_announced(&self, pods: &[&Pod], hbone: bool) -> Result<()> {
        for node in &self.nodes {
            let agent = node.agent()?;
            wait::eventually(&format!("{} to know the pods", node.name), Duration::from_secs(15), || {
                let dump = agent.admin("/config_dump")?.body;
                let value: serde_json::Value = serde_json::from_str(&dump).context("config dump is JSON")?;
                for pod in pods {
                    if knows_hbone(&value, pod) != hbone {
                        anyhow::bail!("{} is HBONE there: {}", pod.name, !hbone);
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Whether a config dump shows the pod as reachable by HBONE, wherever in the document its workload is.
fn knows_hbone(value: &serde_json::Value, pod: &Pod) -> bool {
    match value {
        serde_json::Value::Object(object) => {
            let text = |key: &str| object.get(key).and_then(|v| v.as_str()).unwrap_or("");
            (text("name") == pod.name
                && text("namespace") == pod.namespace
                && text("protocol").eq_ignore_ascii_case("hbone"))
                || object.values().any(|v| knows_hbone(v, pod))
        }
        serde_json::Value::Array(list) => list.iter().any(|v| knows_hbone(v, pod)),
        _ => false,
    }
}
