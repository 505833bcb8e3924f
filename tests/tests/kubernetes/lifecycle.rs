//! `meshctl` on its own installation: what it says of one that is well, and that nothing is left of one that was taken away.
use super::bookinfo::residue;
use super::mesh::{Mesh, NODES, SYSTEM, in_mesh};
use super::objects::{ambient, idle, load_servers};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What the mesh may leave on a node: pins, files, the plugin and its entry, cgroups, processes. Folders that a pod mounts are there as long as the pod.
const LEFT: &str = "ls -A /sys/fs/bpf | grep -v '[.]debug$'; find /run/undermesh /var/lib/undermesh -mindepth 1 2>/dev/null; ls /opt/cni/bin | grep undermesh; \
    grep -l undermesh /etc/cni/net.d/* 2>/dev/null; ls -A /etc/cni/net.d | grep -v '^10-bridge.conflist$'; \
    for f in $(ls -d /var/lib/cni/results/* 2>/dev/null); do sed -nE 's/.*\"config\": *\"([^\"]*)\".*/\\1/p' $f | base64 -d | grep -q undermesh && echo $f; done; \
    find /sys/fs/cgroup -name '*undermesh*' 2>/dev/null | grep \"/PREFIX$(cat /proc/sys/kernel/hostname)/\"; ps -eo args | grep '^/mesh-[ac]'; true";

/// By what an uninstallation says, and by what is found there.
fn both_are_clean(mesh: &Mesh, gone: &Value) -> Result<()> {
    let nodes = gone["nodes"].as_array().context("nodes")?;
    ensure!(nodes.len() == 2 && nodes.iter().all(|node| node["clean"] == true), "{gone:#}");
    mesh.eventually("nothing is left on the nodes", || {
        let found = left(mesh)?;
        ensure!(found.is_empty(), "{found:#?}");
        Ok(())
    })
}

fn left(mesh: &Mesh) -> Result<Vec<String>> {
    let mut found = residue(mesh)?;
    for node in NODES {
        found.extend(
            mesh.on_node(node, &LEFT.replace("PREFIX", &mesh.prefix()))?.lines().map(|line| format!("n{node}: {line}")),
        );
    }
    Ok(found)
}

/// Every object of the cluster that names the mesh, but for definitions.
fn objects(mesh: &Mesh) -> Result<Vec<String>> {
    let kinds = mesh.kubectl("api-resources --verbs=list -o name")?;
    let kinds: Vec<&str> =
        kinds.lines().filter(|kind| !kind.starts_with("events") && !kind.contains("istio.io")).collect();
    let found = mesh.kubectl(&format!("get {} -A -o name --ignore-not-found", kinds.join(",")))?;
    let ours = |line: &&str| {
        line.contains("mesh") && !line.starts_with("customresourcedefinition") || line.contains("istio-ca-root-cert")
    };
    Ok(found.lines().filter(ours).map(str::to_owned).collect())
}

fn results<'a>(report: &'a Value, result: &str) -> Vec<&'a Value> {
    report["checks"].as_array().into_iter().flatten().filter(|check| check["result"] == result).collect()
}

#[test]
fn meshctl_finds_its_installation_well_and_leaves_nothing_of_it() -> Result<()> {
    in_mesh(|mesh| {
        let namespace = mesh.namespace("stays", ambient())?;
        mesh.apply_all(&load_servers(namespace.name, "server", 2))?;
        mesh.apply_all(&[idle(namespace.name, "client", 1)])?;
        namespace.becomes_ready(3)?;
        mesh.eventually("three pods in the mesh", || {
            let pods = namespace.pods()?;
            ensure!(pods.iter().filter(|pod| super::mesh::is_in_mesh(pod)).count() == 3);
            Ok(())
        })?;
        let life = namespace.life()?;

        let report = mesh.meshctl_json("check", 0)?;
        ensure!(results(&report, "error").is_empty() && results(&report, "warning").is_empty(), "{report:#}");
        let status = mesh.meshctl_json("status --wait", 0)?;
        let nodes = status["nodes"].as_array().context("no nodes")?;
        ensure!(nodes.len() == 2 && nodes.iter().all(|node| node["ready"] == true), "{status:#}");
        let row = status["namespaces"].as_array().into_iter().flatten().find(|row| row["namespace"] == namespace.name);
        ensure!(row.is_some_and(|row| row["enrolled"] == 3 && row["wanted"] == 3), "{status:#}");
        let version = mesh.meshctl_json("version", 0)?;
        let own = env!("CARGO_PKG_VERSION");
        ensure!(version["agents"][0] == format!("{own} (2)"), "{version:#}");
        ensure!(!objects(mesh)?.is_empty() && !left(mesh)?.is_empty(), "what is looked for later is not there now");

        // The same again changes nothing.
        let generation = format!("get daemonset,deployment -n {SYSTEM} -o jsonpath={{.items[*].metadata.generation}}");
        let before = mesh.kubectl(&generation)?;
        mesh.meshctl_json(&format!("install -f {}", mesh.values), 0)?;
        ensure!(mesh.kubectl(&generation)? == before);

        let dry = mesh.meshctl_json("uninstall --dry-run", 0)?;
        ensure!(dry["dryRun"] == true && !objects(mesh)?.is_empty(), "{dry:#}");
        let gone = mesh.meshctl_json("uninstall --yes --purge-crds", 0)?;
        both_are_clean(mesh, &gone)?;
        ensure!(objects(mesh)?.is_empty(), "{:#?}", objects(mesh)?);
        // The Gateway API's are never the mesh's.
        let kinds = mesh.kubectl("get crd -o name")?;
        ensure!(kinds.lines().all(|kind| kind.ends_with(".gateway.networking.k8s.io")), "{kinds}");
        // The pods go on, and new ones come, as if there never had been a mesh.
        ensure!(namespace.life()? == life, "before {life:#?}, now {:#?}", namespace.life()?);
        namespace.in_mesh_are(&[])?;
        let client = namespace.exec("client", &["sh", "-c", &super::membership::first_connect(mesh)])?;
        ensure!(client.trim() == "direct", "{client}");
        mesh.apply_all(&[idle(namespace.name, "late", 2)])?;
        namespace.becomes_ready(4)?;
        // One that was in the mesh ends without the plugin.
        mesh.kubectl(&format!("delete pod -n {} client --timeout=60s", namespace.name))?;
        mesh.apply_all(&[idle(namespace.name, "client", 1)])?;
        namespace.becomes_ready(4)?;

        mesh.meshctl_json(&format!("install -f {}", mesh.values), 0)?;
        mesh.eventually("four pods in the mesh again", || {
            let pods = namespace.pods()?;
            ensure!(pods.iter().filter(|pod| super::mesh::is_in_mesh(pod)).count() == 4);
            Ok(())
        })?;

        // `helm uninstall` takes the objects away and knows nothing of the nodes.
        let label = "-l app.kubernetes.io/part-of=undermesh --timeout=120s";
        mesh.kubectl(&format!("delete validatingwebhookconfigurations,clusterroles,clusterrolebindings {label}"))?;
        mesh.kubectl(&format!(
            "delete daemonsets,deployments,services,roles,rolebindings,configmaps,serviceaccounts -n {SYSTEM} {label}"
        ))?;
        mesh.eventually("the end of the agents", || {
            let pods = mesh.kubectl(&format!("get pods -n {SYSTEM} -l app=mesh-agent -o name"))?;
            ensure!(pods.is_empty(), "{pods}");
            Ok(())
        })?;
        ensure!(left(mesh)?.iter().any(|line| line.contains("undermesh-cni")), "{:#?}", left(mesh)?);
        let image = format!("undermesh/mesh-agent:{own}");
        let gone = mesh.meshctl_json(&format!("uninstall --yes --cleanup-image {image} -f {}", mesh.values), 0)?;
        both_are_clean(mesh, &gone)?;
        mesh.kubectl(&format!("delete namespace {SYSTEM} --timeout=120s"))?;
        mesh.meshctl_json(&format!("install -f {}", mesh.values), 0)?;
        Ok(())
    })
}
