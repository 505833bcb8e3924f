//! Nodes: where agents run, and the pods that clean what they leave there. A part of `run`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::cleanup::{self, State};
use super::report::Entry;
use super::run::Work;
use crate::stop::{FAILED, Stop};
use crate::view::{Node, Pod};
use crate::wait::{Look, until};

impl Work<'_> {
    /// Where agents run, with the image that runs there: that of a rollout that hangs may not exist. Without any left, every node.
    pub(super) async fn nodes_of(
        &self,
        daemon_set: &Value,
        pods: &[Pod],
    ) -> Result<BTreeMap<String, Option<String>>, Stop> {
        let name = daemon_set.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let is_agent = |pod: &&Pod| {
            let owners = &pod.metadata.owner_references;
            pod.metadata.namespace == self.namespace && owners.iter().any(|o| o.kind == "DaemonSet" && o.name == name)
        };
        let mut nodes: BTreeMap<String, Option<String>> = BTreeMap::new();
        for pod in pods.iter().filter(is_agent).filter(|pod| !pod.spec.node_name.is_empty()) {
            let image = nodes.entry(pod.spec.node_name.clone()).or_default();
            if pod.status.container_statuses.iter().any(|c| c.state.waiting.is_none()) {
                *image = pod.spec.containers.first().map(|container| container.image.clone());
            }
        }
        if nodes.is_empty() {
            let all: Vec<Node> = self.api.view("/api/v1/nodes").await?;
            let linux = all.into_iter().filter(|node| node.status.node_info.operating_system != "windows");
            nodes = linux.map(|node| (node.metadata.name, None)).collect();
        }
        // A node with no image of its own has that of its neighbours.
        let some = nodes.values().flatten().next().cloned();
        for image in nodes.values_mut() {
            *image = self.options.cleanup_image.clone().or(image.take()).or(some.clone());
        }
        Ok(nodes)
    }

    /// Cleans nodes. Returns those that are not clean, with the reason.
    pub(super) async fn clean(
        &mut self,
        daemon_set: &Value,
        nodes: &BTreeMap<String, Option<String>>,
    ) -> Result<Vec<(String, String)>, Stop> {
        let pods = format!("/api/v1/namespaces/{}/pods", self.namespace);
        for (node, image) in nodes {
            let pod = cleanup::pod(daemon_set, node, image.as_deref()).map_err(Stop::failed)?;
            // One of an earlier attempt says nothing about now.
            let old = format!("{pods}/{}", cleanup::name(node));
            if self.api.delete(&format!("{old}?gracePeriodSeconds=0")).await? {
                until("an earlier cleanup", self.progress(), || async {
                    let is_done = self.api.find(&old).await?.is_none();
                    Ok(Look { lines: vec![format!("{node}: an earlier cleanup ends")], is_done, value: () })
                })
                .await?;
            }
            let failed = |failure| Stop::from(failure).during(format!("make the pod that cleans {node}"));
            self.api.create(&pods, &pod).await.map_err(failed)?;
        }
        let look = || async {
            let found: Vec<Pod> = self.api.view(&format!("{pods}?labelSelector=app%3D{}", cleanup::APP)).await?;
            let known: Vec<Node> = self.api.view("/api/v1/nodes").await?;
            let states: BTreeMap<String, State> = nodes
                .keys()
                .map(|name| {
                    let node = known.iter().find(|node| node.metadata.name == *name);
                    let pod = found.iter().find(|pod| pod.spec.node_name == *name);
                    (name.clone(), cleanup::state(node, pod))
                })
                .collect();
            let lines = states.iter().map(|(node, state)| match state {
                State::Clean => format!("{node}: clean"),
                State::Working(what) => format!("{node}: {what}"),
                State::Failed(why) => format!("{node}: NOT clean: {why}"),
            });
            let is_done = !states.values().any(|state| matches!(state, State::Working(_)));
            Ok(Look { lines: lines.collect(), is_done, value: states })
        };
        let states = match until("cleaning nodes", self.progress(), look).await {
            Ok(states) => states,
            Err(stop) if stop.code == FAILED => look().await?.value,
            Err(stop) => return Err(stop),
        };
        let mut dirty = Vec::new();
        for (node, state) in states {
            match state {
                State::Clean => self.tell(Entry::Node(node.clone(), None)),
                State::Working(why) | State::Failed(why) => {
                    self.tell(Entry::Node(node.clone(), Some(why.clone())));
                    dirty.push((node.clone(), why));
                }
            }
            self.api.delete(&format!("{pods}/{}", cleanup::name(&node))).await?;
        }
        Ok(dirty)
    }
}
