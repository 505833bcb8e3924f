//! The namespace: it goes only if an installation has made it and nothing of others is in it. A part of `run`.

use serde_json::json;

use super::cleanup;
use super::report::Entry;
use super::run::Work;
use crate::stop::Stop;
use crate::view::Definition;
use crate::wait::{Look, until};

impl Work<'_> {
    /// Not with what somebody has put there: mesh-wide policies, say, or the key of a CA.
    pub(super) async fn end_namespace(&mut self) -> Result<(), Stop> {
        let path = format!("/api/v1/namespaces/{}", self.namespace);
        let left = self.left_in_the_namespace().await?;
        if !left.is_empty() {
            let shown: Vec<&str> = left.iter().take(10).map(String::as_str).collect();
            let more = if left.len() > shown.len() {
                format!(" and {} more", left.len() - shown.len())
            } else {
                String::new()
            };
            let holds = format!(
                "it holds {}{more}; once nobody needs that: kubectl delete namespace {}",
                shown.join(", "),
                self.namespace
            );
            self.tell(Entry::Kept(self.reference("v1", "Namespace", "", self.namespace), holds));
            return self.unlabel_namespace().await;
        }
        self.delete_path(self.reference("v1", "Namespace", "", self.namespace), &path).await?;
        until("end of the namespace", self.progress(), || async {
            let is_done = self.api.find(&path).await?.is_none();
            Ok(Look { lines: vec![format!("Namespace {} ends", self.namespace)], is_done, value: () })
        })
        .await
    }

    /// What is in the namespace that neither an installation nor Kubernetes itself has put there.
    async fn left_in_the_namespace(&self) -> Result<Vec<String>, Stop> {
        let mut places: Vec<(String, String)> = [
            ("/api/v1", "secrets"),
            ("/api/v1", "configmaps"),
            ("/api/v1", "services"),
            ("/api/v1", "persistentvolumeclaims"),
            ("/api/v1", "pods"),
            ("/apis/apps/v1", "deployments"),
            ("/apis/apps/v1", "daemonsets"),
            ("/apis/apps/v1", "statefulsets"),
        ]
        .map(|(base, plural)| (base.to_owned(), plural.to_owned()))
        .into();
        let definitions: Vec<Definition> =
            self.api.view("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").await?;
        for definition in definitions.iter().filter(|d| d.spec.group.ends_with(".istio.io")) {
            let Some(version) = definition.spec.versions.iter().find(|version| version.served) else { continue };
            places.push((
                format!("/apis/{}/{}", definition.spec.group, version.name),
                definition.spec.names.plural.clone(),
            ));
        }
        let mut left = Vec::new();
        for (base, plural) in places {
            let path = format!("{base}/namespaces/{}/{plural}", self.namespace);
            let found = match self.api.list(&path).await {
                Err(failure) if failure.code == 404 => continue,
                found => found.map_err(|failure| Stop::from(failure).during(format!("look for {plural} of others")))?,
            };
            let others = found.iter().filter(|object| cleanup::is_somebodys(&plural, object));
            left.extend(
                others.map(|object| format!("{plural}/{}", object["metadata"]["name"].as_str().unwrap_or_default())),
            );
        }
        Ok(left)
    }

    /// Takes the labels from the namespace that an installation has given it: by an apply that names none.
    pub(super) async fn unlabel_namespace(&mut self) -> Result<(), Stop> {
        let path = format!("/api/v1/namespaces/{}", self.namespace);
        let Some(live) = self.api.find(&path).await? else { return Ok(()) };
        let mut managers = live["metadata"]["managedFields"].as_array().into_iter().flatten();
        if !managers.any(|entry| entry["manager"] == crate::api::MANAGER && entry["operation"] == "Apply") {
            return Ok(());
        }
        let bare = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}});
        let failed = |failure| Stop::from(failure).during(format!("take our labels from namespace {}", self.namespace));
        self.api.apply(&path, &bare, false).await.map_err(failed)?;
        let namespace = self.reference("v1", "Namespace", "", self.namespace);
        self.tell(Entry::Changed(namespace, "has lost the labels that it was given".into()));
        Ok(())
    }
}
