//! A waypoint on a cluster, as its users make one: by `meshctl`, for a namespace of the mesh; a route on a Service acts; and when it is deleted nothing is left.
use super::mesh::{Mesh, Namespace, in_mesh, is_ready, name};
use super::objects::{self, PORT, ambient, idle};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

const MADE: &str = "deployments,services,serviceaccounts";
const OURS: &str = "gateway.istio.io/managed=undermesh.io-gateway-controller";

/// A server that says its name, and its service.
fn server(namespace: &str, name: &str, node: u8) -> [Value; 2] {
    let port = PORT.to_string();
    let mut pod = objects::pod(namespace, name, node, &["/lab", "http", "--port", &port, "--name", name]);
    pod["spec"]["containers"][0]["readinessProbe"] = json!({ "tcpSocket": { "port": PORT }, "periodSeconds": 1 });
    [pod, objects::service(namespace, name, PORT)]
}

/// Who answers when the client asks the service `web`.
fn answered(namespace: &Namespace, header: &str) -> Result<String> {
    let url = format!("http://web:{PORT}/");
    let said = namespace.exec("client", &["/lab", "get", &url, "-H", header])?;
    let answer: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    Ok(answer["server"].as_str().context("no server")?.to_owned())
}

/// What the control plane has made in the namespace, by kind and name.
fn made(mesh: &Mesh, namespace: &Namespace) -> Result<Vec<String>> {
    let list = mesh.object(&format!("{MADE} -n {} -l {OURS}", namespace.name))?;
    let items = list["items"].as_array().context("no list")?;
    Ok(items.iter().map(|one| format!("{} {}", one["kind"].as_str().unwrap_or_default(), name(one))).collect())
}

/// What passes is seen while it passes, in the pod of the waypoint and at the agent of the server's node, by a command in both.
fn tapped(mesh: &Mesh, namespace: &Namespace) -> Result<()> {
    let tap = |line: &str| mesh.meshctl(&format!("tap {line} -n {} --duration 8s -o json", namespace.name));
    let output = std::thread::scope(|scope| {
        let tap = scope.spawn(|| tap("web --from ns/routed"));
        while !tap.is_finished() {
            answered(namespace, "x-to: web")?;
        }
        tap.join().map_err(|_| anyhow::anyhow!("meshctl tap panicked"))?
    })?;
    let (out, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}: {told}", output.status);
    let lines: Vec<Value> = out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).cloned().collect::<Vec<_>>();
    let (begun, requests, ends) = (of("tap"), of("request"), of("end"));
    ensure!(begun.len() == 2 && ends.len() == 2 && told.matches(" is tapped").count() == 2, "{out}{told}");
    ensure!(!requests.is_empty(), "{out}{told}");
    for request in requests {
        let is_it = request["status"] == 200
            && request["destination"]["service"] == "web.routed.svc.cluster.local"
            && request["source"]["pod"] == "client"
            && request["proxy"].as_str().is_some_and(|proxy| proxy.starts_with("routed/wp-"));
        ensure!(is_it, "{request:#}");
    }
    let wrong = tap("nobody")?;
    let told = String::from_utf8_lossy(&wrong.stderr);
    ensure!(wrong.status.code() == Some(1) && told.contains("there is no service routed/nobody"), "{told}");
    Ok(())
}

#[test]
fn features_GA2_CL7_TM16_a_waypoint_is_made_by_meshctl_acts_and_leaves_nothing() -> Result<()> {
    in_mesh(|mesh| {
        mesh.apply(include_str!("gateway-api.yaml"))?;
        let namespace = mesh.namespace("routed", ambient())?;
        let (web, other) = (server(namespace.name, "web", 1), server(namespace.name, "other", 2));
        mesh.apply_all(&[&web[..], &other[..], &[idle(namespace.name, "client", 2)]].concat())?;
        namespace.becomes_ready(3)?;
        namespace.in_mesh_are(&["client", "other", "web"])?;
        mesh.eventually("an answer without a waypoint", || {
            let who = answered(&namespace, "x-to: other")?;
            ensure!(who == "web", "{who}");
            Ok(())
        })?;

        // The kinds have just been made: the control plane looks for them every few seconds.
        mesh.meshctl_json("waypoint apply -n routed --name wp --enroll-namespace --wait --waypoint-timeout 240s", 0)?;
        let expected = ["Deployment wp", "Service wp", "ServiceAccount wp"];
        ensure!(made(mesh, &namespace)? == expected, "{:?}", made(mesh, &namespace)?);
        let gateway = mesh.object("gateways.gateway.networking.k8s.io -n routed wp")?;
        let class = mesh.object("gatewayclasses undermesh-waypoint")?;
        ensure!(class["status"]["conditions"][0]["status"] == "True", "{class:#}");
        ensure!(gateway["status"]["addresses"].as_array().is_some_and(|all| !all.is_empty()), "{gateway:#}");
        let listed = mesh.meshctl_json("waypoint list -A", 0)?;
        ensure!(listed[0]["name"] == "wp" && listed[0]["programmed"] == true, "{listed:#}");
        let pods = mesh.object("pods -n routed -l gateway.networking.k8s.io/gateway-name=wp")?;
        let pods = pods["items"].as_array().context("no pods")?;
        ensure!(pods.len() == 1 && is_ready(&pods[0]) && !super::mesh::is_in_mesh(&pods[0]), "{pods:#?}");

        let route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": { "name": "web", "namespace": namespace.name },
            "spec": {
                "parentRefs": [{ "group": "", "kind": "Service", "name": "web" }],
                "rules": [
                    { "matches": [{ "headers": [{ "name": "x-to", "value": "other" }] }], "backendRefs": [{ "name": "other", "port": PORT }] },
                    { "backendRefs": [{ "name": "web", "port": PORT }] },
                ],
            },
        });
        mesh.apply_all(&[route])?;
        mesh.eventually("the route acts", || {
            let who = [answered(&namespace, "x-to: other")?, answered(&namespace, "x-to: web")?];
            ensure!(who == ["other", "web"], "{who:?}");
            Ok(())
        })?;

        tapped(mesh, &namespace)?;

        // What is undone is done again.
        mesh.kubectl("delete service -n routed wp")?;
        mesh.eventually("the Service again", || {
            ensure!(made(mesh, &namespace)? == expected);
            Ok(())
        })?;
        mesh.meshctl_json("waypoint status -n routed wp --wait --waypoint-timeout 240s", 0)?;

        mesh.meshctl_json("waypoint delete -n routed wp", 0)?;
        mesh.eventually("nothing is left of the waypoint", || {
            let left = made(mesh, &namespace)?;
            ensure!(left.is_empty(), "{left:?}");
            let pods = mesh.kubectl("get pods -n routed -l gateway.networking.k8s.io/gateway-name=wp -o name")?;
            ensure!(pods.is_empty(), "{pods}");
            Ok(())
        })?;
        let owner = mesh.object("namespace routed")?;
        ensure!(owner["metadata"]["labels"]["istio.io/use-waypoint"].is_null(), "{owner:#}");
        mesh.eventually("an answer without a waypoint again", || {
            let who = answered(&namespace, "x-to: other")?;
            ensure!(who == "web", "{who}");
            Ok(())
        })
    })
}
