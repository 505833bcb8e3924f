//! Waits until every Deployment and DaemonSet of an installation is rolled out. Called by `install`.

use std::time::Duration;

use serde_json::Value;

use crate::api::Api;
use crate::chart::object::Reference;
use crate::health::{self, Progress};
use crate::progress;
use crate::stop::Stop;
use crate::view::{Pod, Workload};
use crate::wait::{Look, until};

/// What is waited for, of rendered objects.
pub fn components(objects: &[Value]) -> Vec<Reference> {
    let waits = |reference: &Reference| matches!(reference.kind.as_str(), "Deployment" | "DaemonSet");
    objects.iter().filter_map(|object| Reference::of(object).ok()).filter(waits).collect()
}

/// How far the components are.
pub async fn look(api: &Api, components: &[Reference]) -> Result<Vec<Progress>, Stop> {
    let mut found = Vec::new();
    for component in components {
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
