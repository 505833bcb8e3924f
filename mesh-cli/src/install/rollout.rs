//! Waits until every Deployment and DaemonSet of an installation is rolled out, and those that the control plane makes for its Gateways. Called by `install`.

use std::time::Duration;

use serde_json::Value;

use crate::api::Api;
use crate::chart::object::Reference;
use crate::health::{self, Progress};
use crate::progress;
use crate::stop::Stop;
use crate::view::{Pod, Workload};
use crate::wait::{Look, until};

/// Whose kinds a cluster may not have.
pub const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// What is waited for, of rendered objects.
pub fn components(objects: &[Value]) -> Vec<Reference> {
    let waits = |reference: &Reference| match reference.kind.as_str() {
        "Deployment" | "DaemonSet" => true,
        "Gateway" => reference.group() == GATEWAY_API,
        _ => false,
    };
    objects.iter().filter_map(|object| Reference::of(object).ok()).filter(waits).collect()
}

/// How far the components are.
pub async fn look(api: &Api, components: &[Reference]) -> Result<Vec<Progress>, Stop> {
    let mut found = Vec::new();
    for component in components {
        if component.kind == "Gateway" {
            found.push(gateway(api, component).await?);
            continue;
        }
        let pods: Vec<Pod> = api.view(&format!("/api/v1/namespaces/{}/pods", component.namespace)).await?;
        let path = api.path_of(component).await?;
        let workload: Workload = match api.find(&path).await? {
            Some(object) => serde_json::from_value(object).map_err(|e| Stop::failed(format!("{component}: {e}")))?,
            None => return Err(Stop::failed(format!("{component} is gone"))),
        };
        found.push(match component.kind.as_str() {
            "DaemonSet" => health::daemon_set(&workload, &pods),
            _ => health::deployment(&workload, &pods),
        });
    }
    Ok(found)
}

/// A Gateway of the chart: its pods are of a Deployment of its own name. Whether it has an address is the cluster's affair, and not waited for.
async fn gateway(api: &Api, component: &Reference) -> Result<Progress, Stop> {
    let Reference { namespace, name, .. } = component;
    let pods: Vec<Pod> = api.view(&format!("/api/v1/namespaces/{namespace}/pods")).await?;
    let deployment = api.find(&format!("/apis/apps/v1/namespaces/{namespace}/deployments/{name}")).await?;
    let said = match &deployment {
        Some(_) => None,
        None => api.find(&api.path_of(component).await?).await?,
    };
    let deployment: Option<Workload> =
        deployment.map(serde_json::from_value).transpose().map_err(|e| Stop::failed(format!("{component}: {e}")))?;
    Ok(health::gateway(name, deployment.as_ref(), &pods, &said.unwrap_or_default()))
}

/// Waits for all of them.
pub async fn wait(
    api: &Api,
    components: &[Reference],
    timeout: Duration,
    is_silent: bool,
) -> Result<Vec<Progress>, Stop> {
    let progress = progress::Progress::new(is_silent, timeout);
    until("rollout", progress, || async {
        let found = look(api, components).await?;
        let lines = found.iter().map(Progress::line).collect();
        Ok(Look { lines, is_done: found.iter().all(|p| p.done), value: found })
    })
    .await
}
