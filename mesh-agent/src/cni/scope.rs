//! Keeps the file by which the plugin decides while the agent is away. What it says is decided by a pure function; the task writes it after each
//! change of what the API has said. Started by the worker.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::ArcStr;
use mesh_core::workload::TunnelProtocol;
use mesh_proto::scope::{MAX_SCOPE_BYTES, NamespaceScope, Scope};
use mesh_runtime::{DrainToken, task};
use tokio::sync::watch;
use tokio::time::timeout;

use super::folder::replace;
use super::install::CniHandle;
use crate::enrol::kube::{Knowledge, Mode, Reason, SYSTEM, Verdict};
use crate::state::StateHandle;

/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_millis(50);
/// How often it is looked where pods of other nodes are in the mesh: of a hundred thousand, which takes some milliseconds.
const AROUND: Duration = Duration::from_secs(10);
/// When a write that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// What the file is to say. A namespace in which pods had the label themselves stays one while it exists: the next such pod may come to this node
/// while the agent is away. So may one of a namespace that is not in the mesh and has pods `abroad`, on other nodes, that are.
pub fn scope(knowledge: &Knowledge, abroad: &BTreeSet<ArcStr>, last: &Scope) -> Scope {
    let labelled: BTreeSet<&str> = knowledge
        .pods
        .iter()
        .filter(|(pod, _)| pod.mode == Some(Mode::InMesh))
        .map(|(pod, _)| pod.namespace.as_str())
        .collect();
    let namespaces = knowledge.namespaces().map(|(name, mode)| {
        let scope = match mode {
            _ if SYSTEM.contains(&name) => NamespaceScope::Out,
            Some(Mode::InMesh) => NamespaceScope::In,
            _ if labelled.contains(name)
                || abroad.contains(name)
                || last.namespaces.get(name) == Some(&NamespaceScope::Some) =>
            {
                NamespaceScope::Some
            }
            Some(Mode::OptedOut) | None => NamespaceScope::Out,
        };
        (name.to_owned(), scope)
    });
    // Whoever may make pods may have one say that it is run under the UID of another.
    let given: BTreeSet<&str> = knowledge.pods.iter().map(|(pod, _)| pod.uid.as_str()).collect();
    let mut pods = BTreeMap::new();
    for (pod, verdict) in &knowledge.pods {
        let is_claimed = pod.cgroup_uid != pod.uid && given.contains(pod.cgroup_uid.as_str());
        // Pods with the node's network have no chain, and finished ones get no network any more.
        if is_claimed || matches!(verdict, Verdict::Leave(Reason::HostNetwork | Reason::Finished)) {
            continue;
        }
        *pods.entry(pod.cgroup_uid.to_string()).or_default() |= *verdict == Verdict::Enrol;
    }
    Scope { namespaces: namespaces.collect(), pods, ..Scope::new() }
}

/// Namespaces with pods in the mesh, wherever they are.
fn abroad(state: &StateHandle) -> BTreeSet<ArcStr> {
    let snapshot = state.snapshot_owned();
    // Waypoints and gateways are enrolled by nobody.
    let inside = snapshot.workloads().filter(|one| one.protocol == TunnelProtocol::Hbone && !one.native_tunnel);
    inside.map(|workload| workload.namespace.clone()).collect()
}

/// Where pods of other nodes may be in the mesh: as what was `left` by an earlier agent has it, until the control plane has said where they are. What it
/// says then replaces that: a namespace does not stay in the file because it was once in it.
fn around(said: Option<BTreeSet<ArcStr>>, left: &Scope) -> BTreeSet<ArcStr> {
    said.unwrap_or_else(|| {
        let some = left.namespaces.iter().filter(|(_, scope)| **scope == NamespaceScope::Some);
        some.map(|(name, _)| name.as_str().into()).collect()
    })
}

/// Starts the task. After an uninstall nothing is written.
pub fn keep(
    path: PathBuf,
    knowledge: watch::Receiver<Knowledge>,
    state: Arc<StateHandle>,
    installer: CniHandle,
    drain: DrainToken,
) {
    task::spawn_vital("CNI scope file", async move {
        tokio::select! {
            () = write(path, knowledge, state, installer) => {}
            () = drain.started() => {}
        }
    });
}

async fn write(
    path: PathBuf,
    mut knowledge: watch::Receiver<Knowledge>,
    state: Arc<StateHandle>,
    installer: CniHandle,
) {
    let left = read(&path);
    let mut last = left.clone();
    // What pods of this node have shown stays while we run. What is abroad may be on its way out, as all is when a namespace loses its label.
    let mut own = Scope::new();
    // What is there is only then as it should be when we have written it.
    let mut written = false;
    loop {
        let known = knowledge.borrow_and_update().clone();
        // Whether or not anything is written now: what has happened already is not waited for.
        let is_synced = state.is_synced();
        let mut wait = None;
        if known.complete && !installer.status().uninstalled {
            own = scope(&known, &BTreeSet::new(), &own);
            let looking = state.clone();
            let said = tokio::task::spawn_blocking(move || is_synced.then(|| abroad(&looking))).await.ok().flatten();
            let next = scope(&known, &around(said, &left), &own);
            if next != last || !written {
                let (to, bytes) = (path.clone(), next.bytes());
                match tokio::task::spawn_blocking(move || put(&to, &bytes)).await {
                    Ok(Ok(())) => (last, written) = (next, true),
                    Ok(Err(error)) => {
                        let path = path.display();
                        tracing::error!(%path, %error, "cannot write who is in the mesh: it is not known while the agent is away");
                        wait = Some(AGAIN);
                    }
                    Err(error) => tracing::error!(%error, "writing who is in the mesh broke off"),
                }
            }
        }
        if wait.is_none() {
            tokio::select! {
                changed = timeout(AROUND, knowledge.changed()) => if matches!(changed, Ok(Err(_))) { return },
                true = state.synced_within(AROUND), if !is_synced => {}
            }
        }
        tokio::time::sleep(wait.unwrap_or(GATHER)).await;
    }
}

fn put(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    replace(path, bytes, 0o600)
}

/// What an earlier agent left; nothing if that cannot be read.
fn read(path: &Path) -> Scope {
    let fits = std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_SCOPE_BYTES);
    let bytes = if fits { std::fs::read(path).unwrap_or_default() } else { Vec::new() };
    Scope::read(&bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use mesh_core::{Change, Workload};
    use mesh_runtime::Drain;
    use serde_json::json;

    use super::*;
    use crate::cni::{Installer, Places, scope_file};
    use crate::enrol::kube::{Facts, wanted};

    type Edit<'a> = &'a dyn Fn(&mut Facts);

    fn knowledge(namespaces: &[(&str, Option<Mode>)], pods: &[(&str, &str, Edit<'_>)]) -> Knowledge {
        let pods = pods.iter().map(|(namespace, name, change)| {
            let object = json!({
                "metadata": { "name": name, "namespace": namespace, "uid": format!("uid-{name}") },
                "spec": { "containers": [] },
            });
            let mut facts = Facts::of(&serde_json::from_value(object).unwrap()).unwrap();
            change(&mut facts);
            let mode = namespaces.iter().find(|(name, _)| name == namespace).and_then(|(_, mode)| *mode);
            let verdict = wanted(mode, &facts);
            (Arc::new(facts), verdict)
        });
        Knowledge::new(namespaces.iter().map(|(name, mode)| ((*name).to_owned(), *mode)), pods.collect())
    }

    /// With nothing in them but the file.
    fn places(folder: &Path) -> Places {
        let within = |name: &str| folder.join(name);
        Places {
            plugin: within("mesh-cni"),
            bin_dir: within("bin"),
            conf_dir: within("net.d"),
            socket: within("cni.sock"),
            scope: scope_file(folder),
            own_file: false,
            cache: within("results"),
        }
    }

    #[tokio::test]
    async fn what_an_earlier_agent_left_of_other_nodes_counts_until_the_control_plane_has_spoken() {
        let folder = tempfile::tempdir().unwrap();
        let path = scope_file(folder.path());
        let some = |name: &str| (name.to_owned(), NamespaceScope::Some);
        let left = Scope { namespaces: ["gone", "stays"].map(some).into(), ..Scope::new() };
        std::fs::write(&path, left.bytes()).unwrap();
        let (_tells, knowledge) = watch::channel(knowledge(&[("gone", None), ("stays", None), ("new", None)], &[]));
        let (state, mut writer, _wanted) = StateHandle::new();
        let (_installer, handle) = Installer::new(places(folder.path()));
        let task = tokio::spawn(write(path.clone(), knowledge, state, handle));
        let until = async |expected: [NamespaceScope; 3]| {
            let names = ["gone", "stays", "new"].map(str::to_owned);
            let expected: BTreeMap<String, NamespaceScope> = names.into_iter().zip(expected).collect();
            let written = async {
                while read(&path).namespaces != expected {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(60), written).await.unwrap_or_else(|_| panic!("{:?}", read(&path).namespaces));
        };
        use NamespaceScope::{Out, Some as Few};
        until([Few, Few, Out]).await;
        let workload = |n: u8, namespace: &str| {
            let workload = Workload::new(format!("cluster//Pod/{namespace}/{n}"), namespace, n.to_string());
            Change::Workload(Workload { protocol: TunnelProtocol::Hbone, ..workload })
        };
        // The pod of a gateway is enrolled by nobody.
        let gateway = Workload::new("cluster//Pod/gone/3", "gone", "3");
        let gateway = Workload { protocol: TunnelProtocol::Hbone, native_tunnel: true, ..gateway };
        writer.apply(vec![workload(1, "stays"), workload(2, "new"), Change::Workload(gateway), Change::Synced]);
        until([Out, Few, Few]).await;
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_control_plane_that_has_spoken_keeps_nobody_busy_who_has_nothing_to_write() {
        let folder = tempfile::tempdir().unwrap();
        for uninstalled in [false, true] {
            let (state, mut writer, _wanted) = StateHandle::new();
            let (installer, handle) = Installer::new(places(folder.path()));
            let drain = Drain::new();
            let mut known = Knowledge::default();
            if uninstalled {
                known = knowledge(&[("shop", None)], &[]);
                installer.spawn_removal(drain.token());
                let taken_off = async {
                    while !handle.status().uninstalled {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                timeout(Duration::from_secs(60), taken_off).await.unwrap();
            }
            assert_eq!(known.complete, uninstalled);
            drain.start();
            let (_tells, knowledge) = watch::channel(known);
            writer.apply(vec![Change::Synced]);
            let mut wakes = 0;
            let mut writing = pin!(write(scope_file(folder.path()), knowledge, state, handle));
            let counted = std::future::poll_fn(|context| {
                wakes += 1;
                writing.as_mut().poll(context)
            });
            assert!(timeout(AROUND * 10, counted).await.is_err());
            assert!(wakes < 100, "{wakes} with uninstalled: {uninstalled}");
        }
    }

    #[test]
    fn what_the_plugin_is_told() {
        use Mode::{InMesh, OptedOut};
        use NamespaceScope::{In, Out, Some as Few};
        let namespaces = [
            ("shop", Some(InMesh)),
            ("plain", None),
            ("tools", None),
            ("left", Some(OptedOut)),
            ("kube-system", Some(InMesh)),
        ];
        let known = knowledge(
            &namespaces,
            &[
                ("shop", "a", &|_| {}),
                ("shop", "b", &|pod| pod.mode = Some(OptedOut)),
                ("shop", "c", &|pod| pod.host_network = true),
                ("shop", "d", &|pod| pod.finished = true),
                ("shop", "e", &|pod| pod.cgroup_uid = "hash".into()),
                ("plain", "f", &|_| {}),
                ("tools", "g", &|pod| pod.mode = Some(InMesh)),
                ("kube-system", "h", &|_| {}),
            ],
        );
        let text =
            |pairs: &[(&str, NamespaceScope)]| pairs.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect();
        let pods =
            [("uid-a", true), ("uid-b", false), ("hash", true), ("uid-f", false), ("uid-g", true), ("uid-h", false)];
        let expected = Scope {
            namespaces: text(&[("shop", In), ("plain", Out), ("tools", Few), ("left", Out), ("kube-system", Out)]),
            pods: pods.map(|(uid, is)| (uid.to_owned(), is)).into(),
            ..Scope::new()
        };
        assert_eq!(scope(&known, &BTreeSet::new(), &Scope::new()), expected);

        // Of pods of other nodes only that they are in the mesh is known: of a namespace that is out of it they have the label themselves.
        let elsewhere = ["shop", "plain", "left", "kube-system", "gone"].map(ArcStr::from).into();
        let wider = text(&[("shop", In), ("plain", Few), ("tools", Few), ("left", Few), ("kube-system", Out)]);
        assert_eq!(scope(&known, &elsewhere, &Scope::new()).namespaces, wider);

        // Of pods that say they are run under one UID, that whose it is counts, or else one that is to be in the mesh.
        for (uid, is) in [("uid-a", true), ("uid-f", false), ("hash", true)] {
            let forged = |pod: &mut Facts| {
                pod.cgroup_uid = uid.into();
                pod.mode = Some(if is { OptedOut } else { InMesh });
            };
            let known = knowledge(
                &namespaces,
                &[
                    ("plain", "0", &forged),
                    ("shop", "a", &|_| {}),
                    ("shop", "e", &|pod| pod.cgroup_uid = "hash".into()),
                    ("plain", "f", &|_| {}),
                    ("plain", "z", &forged),
                ],
            );
            assert_eq!(scope(&known, &BTreeSet::new(), &Scope::new()).pods.get(uid), Some(&is), "{uid}");
        }

        // Without its pods: the namespace stays what it was while it exists.
        let later = scope(&knowledge(&namespaces, &[]), &BTreeSet::new(), &expected);
        assert_eq!(later.namespaces, expected.namespaces);
        let gone = scope(&knowledge(&[("shop", None)], &[]), &BTreeSet::new(), &expected);
        assert_eq!(gone.namespaces, text(&[("shop", Out)]));
    }
}
