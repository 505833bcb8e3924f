//! How many pods serve a Gateway, where users leave that to Kubernetes: a HorizontalPodAutoscaler and a PodDisruptionBudget, each only if the ConfigMap of the
//! Gateway or of its class names it, as in Istio. Which pods they are about is ours to say. Pure; [`super::objects`] puts them beside the others.

use serde_json::{Value as Json, json};

use super::objects::{head, laid, selector};
use super::overlay::Overlay;
use super::plan::Asked;

/// What scales the Deployment. Without a word of `maxReplicas` it is one pod, as Istio has it.
pub fn autoscaler(asked: &Asked, over: &Overlay) -> Option<Json> {
    let mut object = head("autoscaling/v2", "HorizontalPodAutoscaler", &asked.deployed, asked);
    object["spec"] = json!({
        "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": asked.deployed.as_str() },
        "maxReplicas": 1,
    });
    (!over.autoscaler.is_empty()).then(|| laid(object, &over.autoscaler, asked))
}

/// How many of the pods may be evicted at a time.
pub fn budget(asked: &Asked, over: &Overlay) -> Option<Json> {
    let mut object = head("policy/v1", "PodDisruptionBudget", &asked.deployed, asked);
    object["spec"] = json!({ "selector": { "matchLabels": selector(asked) } });
    (!over.budget.is_empty()).then(|| laid(object, &over.budget, asked))
}
