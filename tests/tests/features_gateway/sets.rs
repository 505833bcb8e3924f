//! Listeners that somebody else adds to a gateway: row GA-9.
use crate::stage::{CHANGE, edge, stage};
use anyhow::{Result, ensure};
use mesh_tests::harness::{Need, eventually, in_lab};

const LISTENERS: &str = "[{name: http, port: 80, protocol: HTTP}]";
const SET: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: more, namespace: default}\nspec:\n  parentRef: {name: edge}\n  listeners:\n  - {name: http, port: 8081, protocol: HTTP, hostname: more.example.com}\n  - {name: taken, port: 80, protocol: TCP}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: httpbin, namespace: default}\nspec:\n  parentRefs: [{group: gateway.networking.k8s.io, kind: ListenerSet, name: more}]\n  rules:\n  - backendRefs: [{name: httpbin, port: 8000}]\n";

#[test]
fn features_GA_9_listeners_of_a_set_are_listened_for_where_the_gateway_takes_them() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = stage(LISTENERS)?;
        let visitor = stage.visitor(8081);
        stage.lab.apply("set", SET)?;
        eventually("it is told", CHANGE, || {
            let said = stage.lab.control.log();
            ensure!(said.contains("takes no listeners of default"), "{said}");
            Ok(())
        })?;
        let later = "[{name: http, port: 80, protocol: HTTP}, {name: later, port: 8082, protocol: HTTP}]";
        stage.lab.apply("edge", &edge(later))?;
        eventually("a port of the gateway's own that came later", CHANGE, || stage.visitor(8082).plain())?;
        ensure!(visitor.plain().is_err(), "nobody has allowed it");
        let takes = format!("{}  allowedListeners: {{namespaces: {{from: Same}}}}\n", edge(LISTENERS));
        stage.lab.apply("edge", &takes)?;
        eventually("its port and its route", CHANGE, || {
            let status = visitor.status("more.example.com", "/status/200")?;
            ensure!(status == 200, "{status}");
            Ok(())
        })?;
        ensure!(visitor.status("other.example.com", "/status/200")? == 404);
        // The gateway's own listener has no route of the set's, and keeps its port.
        ensure!(stage.visitor(80).status("more.example.com", "/status/200")? == 404);
        stage.lab.delete("set")?;
        eventually("its port is closed", CHANGE, || {
            ensure!(visitor.plain().is_err());
            Ok(())
        })?;
        ensure!(stage.visitor(80).status("more.example.com", "/status/200")? == 404);
        Ok(())
    })
}
