//! Who is in the mesh and who is not (EN-1 to EN-4), and that no process of a new pod runs outside of it (EN-5).
use super::mesh::{Mesh, Namespace, in_mesh};
use super::objects::{ambient, container, idle, pod};
use anyhow::{Result, ensure};
use serde_json::json;

/// Says with its first connect whether it is captured.
pub fn first_connect(mesh: &Mesh) -> String {
    let said = format!("$(nc {} < /dev/null 2>&1)", mesh.nobody());
    format!("case \"{said}\" in *\"can't connect\"*) echo direct;; *) echo captured;; esac")
}

/// Whether a process of the pod is captured now.
fn is_captured(mesh: &Mesh, namespace: &Namespace, pod: &str) -> Result<bool> {
    Ok(namespace.exec(pod, &["sh", "-c", &first_connect(mesh)])?.trim() == "captured")
}

#[test]
fn features_EN1_EN2_EN3_EN4_labels_decide_who_is_in_the_mesh_and_nobody_restarts() -> Result<()> {
    in_mesh(|mesh| {
        let namespace = mesh.namespace("shop", json!({}))?;
        let name = namespace.name;
        let with = |pod: &str, labels: serde_json::Value| {
            let mut object = idle(name, pod, 1);
            object["metadata"]["labels"] = labels;
            object
        };
        let none = json!({ "istio.io/dataplane-mode": "none" });
        let mut host = with("host", ambient());
        host["spec"]["hostNetwork"] = json!(true);
        let mut sidecar = with("sidecar", ambient());
        sidecar["metadata"]["annotations"] = json!({ "sidecar.istio.io/status": "{}" });
        let mut done = pod(name, "done", 1, &["true"]);
        done["spec"]["restartPolicy"] = json!("Never");
        let system = {
            let mut object = with("labelled", ambient());
            object["metadata"]["namespace"] = json!("kube-system");
            object
        };
        mesh.apply_all(&[
            with("plain", json!({})),
            with("joins", ambient()),
            with("out", none.clone()),
            host,
            sidecar,
            done,
            system,
        ])?;
        mesh.eventually("six pods that run and one that is done", || {
            let pods = namespace.pods()?;
            let phases: Vec<&str> = pods.iter().filter_map(|pod| pod["status"]["phase"].as_str()).collect();
            ensure!(phases.iter().filter(|phase| **phase == "Running").count() == 5, "{phases:?}");
            ensure!(phases.contains(&"Succeeded"), "{phases:?}");
            Ok(())
        })?;
        let life = namespace.life()?;

        namespace.in_mesh_are(&["joins"])?;
        mesh.kubectl(&format!("label namespace {name} istio.io/dataplane-mode=ambient"))?;
        namespace.in_mesh_are(&["joins", "plain"])?;
        for (pod, expected) in [("joins", true), ("plain", true), ("out", false), ("host", false), ("sidecar", false)] {
            ensure!(is_captured(mesh, &namespace, pod)? == expected, "{pod}");
        }
        mesh.kubectl(&format!("label namespace {name} --overwrite istio.io/dataplane-mode=none"))?;
        namespace.in_mesh_are(&["joins"])?;
        mesh.kubectl(&format!("label namespace {name} --overwrite istio.io/dataplane-mode=ambient"))?;
        mesh.kubectl(&format!("label pod -n {name} out istio.io/dataplane-mode-"))?;
        mesh.kubectl(&format!("label pod -n {name} --overwrite joins istio.io/dataplane-mode=none"))?;
        namespace.in_mesh_are(&["out", "plain"])?;
        for (pod, expected) in [("joins", false), ("plain", true), ("out", true)] {
            // One that leaves is served until the other agents have heard of it.
            mesh.eventually("what the labels say", || {
                ensure!(is_captured(mesh, &namespace, pod)? == expected, "{pod}");
                Ok(())
            })?;
        }
        ensure!(namespace.life()? == life, "before {life:#?}, now {:#?}", namespace.life()?);
        let of_system = mesh.object("pod -n kube-system labelled")?;
        ensure!(!super::mesh::is_in_mesh(&of_system), "{of_system}");
        mesh.kubectl("delete pod -n kube-system labelled --wait=false")?;
        Ok(())
    })
}

#[test]
fn features_EN5_no_process_of_a_new_pod_runs_before_it_is_captured() -> Result<()> {
    in_mesh(|mesh| {
        let inside = mesh.namespace("inside", ambient())?;
        let outside = mesh.namespace("outside", json!({}))?;
        let script = first_connect(mesh);
        for namespace in [&inside, &outside] {
            let pods: Vec<_> = (0..6)
                .map(|i| {
                    let node = i % 2 + 1;
                    let script = format!("{script}; exec sleep 1000000");
                    let mut pod = pod(namespace.name, &format!("new{i}"), node, &["sh", "-c", &script]);
                    pod["spec"]["initContainers"] = json!([container("init", &["sh", "-c", &first_connect(mesh)])]);
                    pod
                })
                .collect();
            mesh.apply_all(&pods)?;
        }
        for (namespace, expected) in [(&inside, "captured"), (&outside, "direct")] {
            namespace.becomes_ready(6)?;
            for i in 0..6 {
                for container in ["init", "app"] {
                    let line = format!("logs -n {} new{i} -c {container}", namespace.name);
                    let said = mesh.eventually(&line, || {
                        let said = mesh.kubectl(&line)?;
                        ensure!(!said.is_empty());
                        Ok(said)
                    })?;
                    ensure!(said.trim() == expected, "{}/new{i} {container}: {said}", namespace.name);
                }
            }
        }
        Ok(())
    })
}

#[test]
fn hardening_F9_a_pod_that_is_deleted_by_force_has_its_policies_until_its_processes_are_gone() -> Result<()> {
    in_mesh(|mesh| {
        let inside = mesh.namespace("forced", ambient())?;
        let outside = mesh.namespace("callers", json!({}))?;
        // It does not heed SIGTERM.
        let script = "trap '' TERM; while :; do echo words | nc -l -p 18081; done";
        let mut server = pod(inside.name, "server", 1, &["sh", "-c", script]);
        server["spec"]["terminationGracePeriodSeconds"] = json!(12);
        let strict = json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": { "name": "strict", "namespace": inside.name }, "spec": { "mtls": { "mode": "STRICT" } },
        });
        mesh.apply_all(&[server, idle(outside.name, "caller", 2)])?;
        inside.becomes_ready(1)?;
        outside.becomes_ready(1)?;
        inside.in_mesh_are(&["server"])?;
        let server = mesh.object(&format!("pod -n {} server", inside.name))?;
        let address = server["status"]["podIP"].as_str().unwrap_or_default().to_owned();
        let call = format!("nc -w 1 {address} 18081 < /dev/null 2>&1 | grep -q words && echo reached || echo refused");
        let call = || Ok::<_, anyhow::Error>(outside.exec("caller", &["sh", "-c", &call])?.trim() == "reached");
        mesh.eventually("words without STRICT", || {
            ensure!(call()?);
            Ok(())
        })?;
        mesh.apply_all(&[strict])?;
        mesh.eventually("STRICT", || {
            ensure!(!call()?);
            Ok(())
        })?;
        let runs =
            || Ok::<_, anyhow::Error>(!mesh.on_node(1, "ps -eo args | grep '[n]c -l -p 18081'; true")?.is_empty());
        ensure!(runs()?);
        // The kubelet, which ends the processes, is late.
        let kubelet = |signal: &str| mesh.on_node(1, &format!("kill -{signal} $(pgrep -x kubelet)"));
        kubelet("STOP")?;
        let held = (|| {
            mesh.kubectl(&format!("delete pod -n {} server --force --grace-period=0", inside.name))?;
            for round in 0..5 {
                ensure!(!call()?, "reached in round {round}");
                ensure!(runs()?, "it ended in round {round}");
            }
            Ok(())
        })();
        kubelet("CONT")?;
        held?;
        mesh.eventually("the end of the processes", || {
            ensure!(!runs()?);
            Ok(())
        })?;
        mesh.settled()?;
        Ok(())
    })
}
