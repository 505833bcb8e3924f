//! `meshctl check`: looks at a cluster once (`collect` makes `facts`), judges it by pure functions (`cluster`, `mesh`, `workloads`) and says for each
//! whether it holds, why not, and what to do (`report`). A new check is a function and a row of the table below.

pub mod cluster;
pub mod collect;
pub mod facts;
pub mod mesh;
pub mod needs;
pub mod report;
pub mod rights;
pub mod workloads;

#[cfg(test)]
mod tests;

use facts::Snapshot;
use report::{Finding, Outcome, Report};

pub use report::Shown;

use crate::api::Api;
use crate::context::Context;
use crate::output::{Format, data};
use crate::stop::{FINDINGS, OK, Stop};

/// Options of the verb.
#[derive(Clone, Debug, clap::Args)]
pub struct Check {
    /// Only whether the mesh can be installed
    #[arg(long)]
    pre: bool,
    /// Only what is not as it should be
    #[arg(short, long)]
    quiet: bool,
    /// Warnings count as errors
    #[arg(long)]
    strict: bool,
}

/// When a check makes sense.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// Before an installation, and after.
    Before,
    /// After an installation.
    After,
}

type Judge = fn(&Snapshot) -> Vec<Finding>;

/// All checks, in the order in which they are shown: what others depend on comes first.
const CHECKS: [(Phase, &str, &str, &str, Judge); 29] = [
    (Phase::Before, "cluster", "readable", "everything can be looked at", cluster::readable),
    (Phase::Before, "cluster", "kubernetes-version", "Kubernetes is new enough", cluster::kubernetes),
    (Phase::Before, "cluster", "rights", "everybody may do what they have to", cluster::rights),
    (Phase::Before, "cluster", "node-ready", "nodes are ready", cluster::ready),
    (Phase::Before, "cluster", "node-platform", "nodes are of a kind that images are made for", cluster::platform),
    (Phase::Before, "cluster", "kernel-version", "kernels are new enough", cluster::kernel),
    (Phase::Before, "cluster", "cgroup-version", "nodes use cgroup v2", cluster::cgroups),
    (Phase::Before, "cluster", "clocks", "clocks agree", cluster::clocks),
    (Phase::Before, "cluster", "other-meshes", "no other mesh takes the same pods", cluster::other_meshes),
    (Phase::Before, "cluster", "other-hooks", "nothing else rewrites connections", cluster::other_hooks),
    (Phase::Before, "cluster", "cni-exclusive", "nothing takes the CNI plugin's file away", cluster::cni_exclusive),
    (Phase::Before, "cluster", "definitions", "definitions (CRDs) can be read", cluster::definitions),
    (Phase::Before, "cluster", "pod-security", "the namespace allows what agents need", cluster::pod_security),
    (Phase::After, "control plane", "control-ready", "the control plane is ready", mesh::control_ready),
    (Phase::After, "control plane", "control-endpoints", "its service leads to it", mesh::control_endpoints),
    (Phase::After, "control plane", "control-replicas", "one replica may be lost", mesh::control_replicas),
    (Phase::After, "control plane", "root", "the root certificate is where it is looked for", mesh::root),
    (Phase::After, "control plane", "webhook", "the webhook answers", mesh::webhook),
    (Phase::After, "control plane", "versions", "all parts are of one version", mesh::versions),
    (Phase::After, "agents", "agent-nodes", "every node has an agent", mesh::agent_nodes),
    (Phase::After, "agents", "agent-ready", "agents are ready", mesh::agent_ready),
    (Phase::After, "pods", "labels", "labels say what is meant", cluster::labels),
    (Phase::After, "pods", "host-network", "labelled pods have a network of their own", workloads::host_network),
    (Phase::After, "pods", "sidecars", "labelled pods have no sidecar", workloads::sidecars),
    (Phase::After, "pods", "enrolled", "labelled pods are in the mesh", workloads::enrolled),
    (Phase::After, "pods", "held", "no pod waits for the mesh", workloads::held),
    (Phase::After, "pods", "probes", "probes succeed", workloads::probes),
    (Phase::After, "pods", "network-policies", "NetworkPolicies let tunnels in", workloads::network_policies),
    (Phase::After, "policies", "policies", "policies and routes can be honoured", workloads::policies),
];

/// Judges a cluster.
fn judge(snapshot: &Snapshot, is_before: bool) -> Report {
    let wanted = CHECKS.iter().filter(|(phase, ..)| !is_before || *phase == Phase::Before);
    let outcome =
        |(_, group, id, title, judge): &(Phase, &'static str, &'static str, &'static str, Judge)| match needs::unread(
            id, snapshot,
        ) {
            unread if unread.is_empty() => Outcome::of(id, group, title, judge(snapshot)),
            unread => Outcome::skipped(id, group, title, unread),
        };
    Report { checks: wanted.map(outcome).collect() }
}

/// Whether the mesh can be installed.
pub async fn pre(api: &Api, namespace: &str) -> Result<Report, Stop> {
    Ok(judge(&collect::snapshot(api, namespace, true).await?, true))
}

/// Checks.
pub async fn run(options: &Check, context: &Context) -> Result<u8, Stop> {
    let api = Api::connect(&context.access).await?;
    let snapshot = collect::snapshot(&api, &context.namespace, options.pre).await?;
    let is_before = options.pre || !snapshot.may_be_installed();
    let report = judge(&snapshot, is_before);
    match context.format {
        Format::Text => {
            let shown = if options.quiet { Shown::Problems } else { Shown::All };
            let mut text = report.text(context.paint(), shown);
            if is_before && !options.pre {
                text.push_str(&format!(
                    "Undermesh is not installed in {}: only the cluster was checked\n",
                    context.namespace
                ));
            }
            data(&text).map_err(Stop::failed)?;
        }
        Format::Json | Format::Yaml => context.print(&report)?,
    }
    let has_warnings = report.checks.iter().any(|check| check.result == "warning");
    Ok(if report.has_errors() || (options.strict && has_warnings) { FINDINGS } else { OK })
}
