//! The steps of an uninstallation. Called by `main`. Each can be done again: what is gone already is no error.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::report::{Entry, Report};
use crate::api::Api;
use crate::chart::embed;
use crate::chart::object::Reference;
use crate::chart::render::{Release, render};
use crate::check::facts::REDIRECTION;
use crate::context::Context;
use crate::install::inventory::{self, Deletion, Inventory};
use crate::install::plan::OWNED;
use crate::output::note;
use crate::progress::Progress;
use crate::stop::{OK, Stop};
use crate::view::{Definition, Node, Pod};
use crate::wait::{Look, confirm, until};

/// Options of the verb.
#[derive(Clone, Debug, clap::Args)]
pub struct Uninstall {
    /// Delete the definitions (CRDs) that an installation has made, too, and with them all objects of these kinds
    #[arg(long)]
    purge_crds: bool,
    /// Do not clean the nodes: programs, pins and CNI configuration stay on them
    #[arg(long)]
    skip_nodes: bool,
    /// Image of the pods that clean nodes [default: that of the node's agent]; where agents are gone already, nodes are cleaned only with it
    #[arg(long, value_name = "IMAGE", conflicts_with = "skip_nodes")]
    pub(super) cleanup_image: Option<String>,
    /// File of the values that it was installed with, where nothing on the cluster remembers them; may be repeated, later ones count more
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// How long to wait for each step
    #[arg(long, value_name = "TIME", default_value = "3m", value_parser = crate::wait::duration)]
    timeout: Duration,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

impl Uninstall {
    fn values(&self) -> Result<Value, Stop> {
        let mut values = json!({});
        crate::install::lay_files(&mut values, &self.files)?;
        Ok(values)
    }
}

/// Uninstalls.
pub async fn run(options: &Uninstall, context: &Context) -> Result<u8, Stop> {
    uninstall(&Api::connect(&context.access).await?, options, context).await
}

/// Does it by a connection that is there.
async fn uninstall(api: &Api, options: &Uninstall, context: &Context) -> Result<u8, Stop> {
    let mut work = Work { api, options, context, namespace: &context.namespace, report: Report::default() };
    match steps(&mut work).await {
        Ok(dirty) => work.finish(dirty),
        Err(stop) => {
            if context.is_for_a_program() && work.report.has_begun() {
                work.report.fail(stop.message.clone());
                context.print(&work.report.json(false))?;
            }
            Err(stop)
        }
    }
}

/// All of it, in order. Returns the nodes that are not clean, with the reason.
async fn steps(work: &mut Work<'_>) -> Result<Vec<(String, String)>, Stop> {
    let Work { api, options, context, .. } = *work;
    let inventory = work.inventory().await?;
    let definitions = work.definitions().await?;
    let pods: Vec<Pod> = api.view("/api/v1/pods").await?;
    let enrolled: Vec<&Pod> = pods.iter().filter(|pod| !pod.metadata.annotation(REDIRECTION).is_empty()).collect();
    work.summary(&inventory, &definitions, &enrolled);
    if options.dry_run {
        for object in &inventory.objects {
            work.tell(Entry::Planned(object.clone()));
        }
        return Ok(Vec::new());
    }
    confirm(&format!("uninstall Undermesh from {}?", context.namespace), options.yes).await?;
    let agents = work.agents(&inventory).await?;
    let (webhooks, others): (Vec<_>, Vec<_>) =
        inventory.objects.iter().cloned().partition(|r| r.kind.ends_with("WebhookConfiguration"));
    work.report.step("webhooks");
    for webhook in webhooks {
        work.delete(&webhook).await?;
    }
    let mut dirty = Vec::new();
    if let Some(daemon_set) = agents {
        work.report.step("agents");
        let nodes = work.nodes_of(&daemon_set, &pods).await?;
        work.end_agents(&daemon_set).await?;
        if !options.skip_nodes {
            work.report.step("nodes");
            dirty = work.clean(&daemon_set, &nodes).await?;
        }
    }
    work.report.step("pods");
    work.unmark(&enrolled).await?;
    work.report.step("objects");
    let mut others = others;
    others.sort_by_key(|reference| std::cmp::Reverse((reference.rank(), reference.clone())));
    for object in others.iter().filter(|r| r.kind == "Deployment") {
        work.delete(object).await?;
    }
    work.until_gone("mesh-control").await?;
    for object in others.iter().filter(|r| r.kind != "Deployment") {
        work.delete(object).await?;
    }
    work.what_the_control_plane_made().await?;
    if options.purge_crds {
        work.report.step("definitions");
        work.end_definitions(&definitions).await?;
    }
    // What is to be done again needs to know where.
    if dirty.is_empty() {
        work.report.step("namespace");
        let record = work.reference("v1", "ConfigMap", work.namespace, "meshctl-install");
        work.delete_path(record, &inventory::path(&context.namespace)).await?;
        if inventory.made_namespace {
            work.end_namespace().await?;
        } else {
            work.unlabel_namespace().await?;
        }
    }
    Ok(dirty)
}

pub(super) struct Work<'a> {
    pub(super) api: &'a Api,
    pub(super) options: &'a Uninstall,
    context: &'a Context,
    pub(super) namespace: &'a str,
    pub(super) report: Report,
}

impl Work<'_> {
    /// Tells of something when it is done.
    pub(super) fn tell(&mut self, entry: Entry) {
        if let Some(line) = entry.line().filter(|_| !self.context.is_for_a_program()) {
            note(&line);
        }
        self.report.add(entry);
    }

    /// An object by its name.
    pub(super) fn reference(&self, version: &str, kind: &str, namespace: &str, name: &str) -> Reference {
        let (api_version, kind) = (version.to_owned(), kind.to_owned());
        Reference { api_version, kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub(super) fn progress(&self) -> Progress {
        Progress::new(self.context.is_for_a_program(), self.options.timeout)
    }

    /// What was installed. Without a record of it: what this program would install.
    async fn inventory(&self) -> Result<Inventory, Stop> {
        if let Some(found) = inventory::read(self.api, self.namespace).await? {
            return Ok(found);
        }
        let release = Release { name: "undermesh".into(), namespace: self.namespace.to_owned() };
        let values = self.options.values()?;
        let rendered = render(&embed::files(), &release, values.clone()).map_err(Stop::failed)?;
        let objects = rendered.objects.iter().filter_map(|object| Reference::of(object).ok());
        let objects = objects.filter(|r| r.kind != "Namespace").collect();
        let mut found = Inventory { objects, values, ..Inventory::default() };
        let mut by_helm = None;
        let (mut is_any, mut is_here) = (false, false);
        for reference in &found.objects {
            let path = match self.api.path_of(reference).await {
                Err(failure) if failure.code == 404 => continue,
                path => path?,
            };
            let Some(object) = self.api.find(&path).await? else { continue };
            is_any = true;
            is_here |= reference.namespace == self.namespace;
            let annotations = object.pointer("/metadata/annotations");
            let release = annotations.and_then(|a| a.get("meta.helm.sh/release-name")).and_then(Value::as_str);
            by_helm = by_helm.or(release.map(str::to_owned));
        }
        // What has no namespace is that of whoever is somewhere, as are its nodes and its pods.
        let elsewhere = if is_here { Vec::new() } else { inventory::elsewhere(self.api, self.namespace).await? };
        if !elsewhere.is_empty() {
            let why = format!("Undermesh is not installed in {}, but in {}", self.namespace, elsewhere.join(", "));
            return Err(Stop::failed(format!("{why}: say -n {}", elsewhere[0])));
        }
        if let Some(release) = by_helm {
            note(&format!(
                "this was installed by Helm: run `helm uninstall {release} -n {}` afterwards, for Helm's own record",
                self.namespace
            ));
        }
        if !is_any {
            note(&format!("there is no installation in {}: only what it may have left is looked for", self.namespace));
            let namespace = format!("/api/v1/namespaces/{}", self.namespace);
            match &self.options.cleanup_image {
                // Helm has taken the agents away and left the nodes.
                Some(_) if self.api.find(&namespace).await?.is_some() => {
                    found.objects.retain(|reference| reference.kind == "DaemonSet");
                }
                _ => {
                    note("nodes are not looked at; with --cleanup-image IMAGE (that of mesh-agent) they are cleaned");
                    found.objects.clear();
                }
            }
        }
        Ok(found)
    }

    /// Definitions that are ours.
    async fn definitions(&self) -> Result<Vec<Definition>, Stop> {
        let selector = "?labelSelector=undermesh.io%2Fowned%3Dtrue";
        debug_assert_eq!(OWNED, "undermesh.io/owned", "the selector names it");
        Ok(self.api.view(&format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions{selector}")).await?)
    }

    fn summary(&mut self, inventory: &Inventory, definitions: &[Definition], enrolled: &[&Pod]) {
        let mut namespaces: Vec<&str> = enrolled.iter().map(|pod| pod.metadata.namespace.as_str()).collect();
        namespaces.dedup();
        let crds = match (definitions.len(), self.options.purge_crds) {
            (0, _) => "no definitions (CRDs) of ours".to_owned(),
            (n, true) => format!("{n} definitions (CRDs) with ALL objects of these kinds"),
            (n, false) => format!("not the {n} definitions (CRDs), nor users' policies (--purge-crds)"),
        };
        let namespace =
            if inventory.made_namespace { format!(", the namespace {}", self.namespace) } else { String::new() };
        if !self.context.is_for_a_program() {
            note(&format!("to be removed: {} objects{namespace}; {crds}", inventory.objects.len()));
            note(&format!(
                "{} pods in {} namespaces lose encryption and policy; their connections are cut once",
                enrolled.len(),
                namespaces.len()
            ));
        }
    }

    /// The DaemonSet: as it is, or as it was made.
    async fn agents(&self, inventory: &Inventory) -> Result<Option<Value>, Stop> {
        let Some(reference) = inventory.objects.iter().find(|r| r.kind == "DaemonSet") else { return Ok(None) };
        if let Some(found) = self.api.find(&self.api.path_of(reference).await?).await? {
            return Ok(Some(found));
        }
        let release = Release { name: "undermesh".into(), namespace: self.namespace.to_owned() };
        let rendered = render(&embed::files(), &release, inventory.values.clone()).map_err(Stop::data)?;
        Ok(rendered.objects.into_iter().find(|object| object["kind"] == "DaemonSet"))
    }

    async fn end_agents(&mut self, daemon_set: &Value) -> Result<(), Stop> {
        let reference = Reference::of(daemon_set).map_err(Stop::failed)?;
        self.delete(&reference).await?;
        self.until_gone("mesh-agent").await
    }

    /// Waits until no pod with this label is left.
    async fn until_gone(&self, app: &str) -> Result<(), Stop> {
        let path = format!("/api/v1/namespaces/{}/pods?labelSelector=app%3D{app}", self.namespace);
        until(&format!("end of {app}"), self.progress(), || async {
            let left: Vec<Pod> = self.api.view(&path).await?;
            // A pod of a node that is away stays until somebody forces it: it cannot be waited for.
            let nodes: Vec<Node> = if left.is_empty() { Vec::new() } else { self.api.view("/api/v1/nodes").await? };
            let is_up = |name: &str| nodes.iter().any(|node| node.metadata.name == name && node.is_ready());
            let left: Vec<_> = left.iter().filter(|pod| is_up(&pod.spec.node_name)).collect();
            let lines = left.iter().map(|pod| format!("{}: {} ends", pod.spec.node_name, pod.metadata.name)).collect();
            Ok(Look { lines, is_done: left.is_empty(), value: () })
        })
        .await
    }

    /// Takes from pods what says that they are in the mesh, unless it is another mesh's word.
    async fn unmark(&mut self, enrolled: &[&Pod]) -> Result<(), Stop> {
        let others: Vec<crate::view::Workload> = self.api.view("/apis/apps/v1/daemonsets").await?;
        if others.iter().any(|set| matches!(set.metadata.name.as_str(), "ztunnel" | "istio-cni-node")) {
            note("pods keep the annotation ambient.istio.io/redirection: an Istio is here, too");
            return Ok(());
        }
        for pod in enrolled {
            let path = format!("/api/v1/namespaces/{}/pods/{}", pod.metadata.namespace, pod.metadata.name);
            let change = json!({"metadata": {"uid": pod.metadata.uid, "annotations": {REDIRECTION: null}}});
            match self.api.merge(&path, &change).await {
                Ok(()) => self.report.add(Entry::Unmarked(1)),
                // It is gone, or another pod has its name.
                Err(failure) if matches!(failure.code, 404 | 409 | 422) => {}
                Err(failure) => return Err(Stop::from(failure).during(format!("pod {}", pod.metadata.full_name()))),
            }
        }
        Ok(())
    }

    async fn delete(&mut self, reference: &Reference) -> Result<(), Stop> {
        let failed = |failure| Stop::from(failure).during(format!("delete {reference}"));
        match inventory::delete(self.api, reference).await.map_err(failed)? {
            Deletion::Done => self.tell(Entry::Removed(reference.clone())),
            Deletion::NotOurs => {
                self.tell(Entry::Kept(reference.clone(), "it has not the label of Undermesh's objects".into()));
            }
            Deletion::Absent => {}
        }
        Ok(())
    }

    pub(super) async fn delete_path(&mut self, what: Reference, path: &str) -> Result<(), Stop> {
        let is_gone =
            self.api.delete(path).await.map_err(|failure| Stop::from(failure).during(format!("delete {what}")))?;
        if is_gone {
            self.tell(Entry::Removed(what));
        }
        Ok(())
    }

    /// Root certificates in all namespaces, the root's key, leases, what serves Gateways: what no chart knows of.
    async fn what_the_control_plane_made(&mut self) -> Result<(), Stop> {
        let selector = "labelSelector=app.kubernetes.io%2Fmanaged-by%3Dmesh-control";
        let namespace = self.namespace;
        // By name, too: a label is soon copied.
        let maps = |name: &str| {
            let list = format!("/api/v1/configmaps?{selector}&fieldSelector=metadata.name%3D{name}");
            ("ConfigMap", "/api/v1".to_owned(), "configmaps", list)
        };
        let gateways = "labelSelector=gateway.istio.io%2Fmanaged%3Dundermesh.io-gateway-controller";
        let made = |kind: &'static str, base: &str, plural: &'static str| {
            (kind, base.to_owned(), plural, format!("{base}/{plural}?{gateways}"))
        };
        let (classes, meshes) = ("/apis/gateway.networking.k8s.io/v1", "/apis/gateway.networking.x-k8s.io/v1alpha1");
        let places = [
            made("HorizontalPodAutoscaler", "/apis/autoscaling/v2", "horizontalpodautoscalers"),
            made("PodDisruptionBudget", "/apis/policy/v1", "poddisruptionbudgets"),
            made("Deployment", "/apis/apps/v1", "deployments"),
            made("Service", "/api/v1", "services"),
            made("ServiceAccount", "/api/v1", "serviceaccounts"),
            ("GatewayClass", classes.to_owned(), "gatewayclasses", format!("{classes}/gatewayclasses?{selector}")),
            ("XMesh", meshes.to_owned(), "xmeshes", format!("{meshes}/xmeshes?{selector}")),
            maps("undermesh-root-cert"),
            maps("istio-ca-root-cert"),
            ("Secret", "/api/v1".to_owned(), "secrets", format!("/api/v1/namespaces/{namespace}/secrets?{selector}")),
            (
                "Lease",
                "/apis/coordination.k8s.io/v1".to_owned(),
                "leases",
                format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases?{selector}"),
            ),
        ];
        for (kind, base, plural, list) in places {
            let found = match self.api.list(&list).await {
                Err(failure) if failure.code == 404 => Vec::new(),
                found => found?,
            };
            let mut count = 0;
            for object in found.iter().filter(|object| is_made(kind, object)) {
                let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
                let path = match text("namespace") {
                    "" => format!("{base}/{plural}/{}", text("name")),
                    namespace => format!("{base}/namespaces/{namespace}/{plural}/{}", text("name")),
                };
                if self.api.delete(&path).await? {
                    count += 1;
                    let version = base.trim_start_matches("/apis/").trim_start_matches("/api/");
                    let removed = self.reference(version, kind, text("namespace"), text("name"));
                    self.report.add(Entry::Removed(removed));
                }
            }
            // For people one line: there is one in every namespace.
            if count > 0 && !self.context.is_for_a_program() {
                note(&format!("√ {count} of kind {kind} deleted that the control plane had made"));
            }
        }
        Ok(())
    }

    /// Deletes definitions and waits for their end: the objects of their kinds go first, and an installation in between would meet half of it.
    async fn end_definitions(&mut self, definitions: &[Definition]) -> Result<(), Stop> {
        const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        for definition in definitions {
            let name = &definition.metadata.name;
            let definition = self.reference("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", name);
            self.delete_path(definition, &format!("{PATH}/{name}")).await?;
        }
        until("end of definitions", self.progress(), || async {
            let left: Vec<Definition> = self.definitions().await?;
            let lines = left.iter().map(|definition| format!("{} ends", definition.metadata.name)).collect();
            Ok(Look { lines, is_done: left.is_empty(), value: () })
        })
        .await
    }

    fn finish(self, dirty: Vec<(String, String)>) -> Result<u8, Stop> {
        let is_dry = self.options.dry_run;
        if self.context.is_for_a_program() {
            self.context.print(&self.report.json(is_dry))?;
        }
        if dirty.is_empty() {
            if !is_dry && !self.context.is_for_a_program() {
                note("Undermesh is uninstalled");
            }
            return Ok(OK);
        }
        let nodes: Vec<_> = dirty.iter().map(|(node, why)| format!("  {node}: {why}")).collect();
        let what =
            "programs, pins or the CNI configuration may be left on these nodes; `meshctl uninstall` again cleans them";
        Err(Stop::failed(format!("{what}\n{}", nodes.join("\n"))))
    }
}

/// Whether the control plane has made an object that has its label: a label is soon copied.
fn is_made(kind: &str, object: &Value) -> bool {
    let owners = || object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    match kind {
        "Deployment" | "Service" | "ServiceAccount" | "HorizontalPodAutoscaler" | "PodDisruptionBudget" => {
            owners().any(|owner| owner["kind"] == "Gateway")
        }
        "GatewayClass" | "XMesh" => object["spec"]["controllerName"] == "undermesh.io/gateway-controller",
        _ => true,
    }
}
