//! The webhook fails in every way (hardening 5.10): a wrong CA, one that is slow, nobody there. Only policies wait for it, and never for long.
use super::mesh::{Mesh, NODES, Namespace, in_mesh};
use super::objects::{Load, ambient, idle, load_servers, policy};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};

const NAME: &str = "validatingwebhookconfiguration undermesh-validation";

fn failure_policies(mesh: &Mesh) -> Result<Vec<String>> {
    let config = mesh.object(NAME)?;
    let hooks = config["webhooks"].as_array().context("no webhooks")?;
    Ok(hooks.iter().filter_map(|hook| hook["failurePolicy"].as_str()).map(str::to_owned).collect())
}

fn becomes(mesh: &Mesh, wanted: &str) -> Result<()> {
    mesh.eventually(&format!("failurePolicy {wanted}"), || {
        let found = failure_policies(mesh)?;
        ensure!(found.iter().all(|policy| policy == wanted), "{found:?}");
        Ok(())
    })
}

fn good(namespace: &Namespace, name: &str) -> Value {
    policy(
        namespace.name,
        name,
        json!({ "action": "DENY", "rules": [{ "from": [{ "source": { "namespaces": ["nobody"] } }] }] }),
    )
}

/// It works: what is wrong is refused, with the reason.
fn refuses_what_is_wrong(mesh: &Mesh, namespace: &Namespace) -> Result<()> {
    let wrong = policy(namespace.name, "wrong", json!({ "action": "DENY", "rulez": [] }));
    mesh.eventually("a wrong policy is refused", || match mesh.apply(&wrong.to_string()) {
        Err(error) if format!("{error:#}").contains("did you mean `rules`?") => Ok(()),
        Err(error) => Err(error),
        Ok(_) => {
            mesh.kubectl(&format!("delete authorizationpolicy -n {} wrong", namespace.name))?;
            bail!("it was let in")
        }
    })
}

/// Refused within the time that the API server gives a webhook, by the webhook's name; whatever is no policy is let in.
fn fails_closed(mesh: &Mesh, namespace: &Namespace, what: &str) -> Result<()> {
    let start = Instant::now();
    let refusal = mesh.apply_all(&[good(namespace, "late")]).err().with_context(|| format!("{what}: it was let in"))?;
    let took = start.elapsed();
    println!("{what}: refused after {:.1} s: {refusal:#}", took.as_secs_f32());
    ensure!(format!("{refusal:#}").contains("policies.undermesh.io"), "{what}: {refusal:#}");
    ensure!(took < Duration::from_secs(30), "{what}: after {took:?}");
    mesh.apply_all(&[
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "any", "namespace": namespace.name } }),
    ])?;
    mesh.apply_all(&[idle(namespace.name, "any", 1)])?;
    mesh.kubectl(&format!("delete pod -n {} any", namespace.name)).map(drop)
}

/// Sets a field of both webhooks.
fn replace(mesh: &Mesh, field: &str, value: &str) -> Result<()> {
    let change = |i: u8| json!({ "op": "replace", "path": format!("/webhooks/{i}/{field}"), "value": value });
    let patch = json!([change(0), change(1)]).to_string();
    let name: Vec<&str> = NAME.split(' ').collect();
    mesh.run(&[&["kubectl", "patch"], &name[..], &["--type=json", "-p", &patch]].concat()).map(drop)
}

/// Sends a signal to the control planes of all nodes.
fn signal(mesh: &Mesh, signal: &str) -> Result<()> {
    for node in NODES {
        let script = format!("for p in $(pgrep -x mesh-control); do kill -{signal} $p; done");
        mesh.on_node(node, &script)?;
    }
    Ok(())
}

#[test]
fn hardening_F10_the_webhook_with_a_wrong_ca_hanging_or_away_holds_up_policies_alone() -> Result<()> {
    in_mesh(|mesh| {
        let namespace = mesh.namespace("hooked", ambient())?;
        mesh.apply_all(&load_servers(namespace.name, "server", 2))?;
        namespace.becomes_ready(2)?;
        becomes(mesh, "Fail")?;
        refuses_what_is_wrong(mesh, &namespace)?;
        let load = Load::start(mesh, &namespace, ("load", 1), "server", (30, 10))?;

        // Of somebody else: the root of the cluster itself.
        let root = mesh.folder()?.join("pki/ca.crt");
        let other = Command::new("base64").arg("--wrap=0").arg(root).output()?;
        let other = String::from_utf8(other.stdout)?;
        let before = mesh.object(NAME)?["webhooks"][0]["clientConfig"]["caBundle"].clone();
        replace(mesh, "clientConfig/caBundle", &other)?;
        mesh.eventually("the right CA again", || {
            ensure!(mesh.object(NAME)?["webhooks"][0]["clientConfig"]["caBundle"] == before);
            Ok(())
        })?;
        becomes(mesh, "Fail")?;
        refuses_what_is_wrong(mesh, &namespace)?;

        // Both hang.
        signal(mesh, "STOP")?;
        let hangs = fails_closed(mesh, &namespace, "both hang");
        signal(mesh, "CONT")?;
        hangs?;
        mesh.control_becomes(2)?;
        becomes(mesh, "Fail")?;

        mesh.control_becomes(0)?;
        fails_closed(mesh, &namespace, "both are away")?;
        // As the README says.
        replace(mesh, "failurePolicy", "Ignore")?;
        mesh.eventually("a policy is let in", || mesh.apply_all(&[good(&namespace, "late")]).map(drop))?;
        mesh.control_becomes(2)?;
        becomes(mesh, "Fail")?;
        refuses_what_is_wrong(mesh, &namespace)?;
        load.end_spotless()?;
        Ok(())
    })
}
