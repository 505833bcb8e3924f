//! A node that is cut off (F18): from the control plane, which is the authority as well, from the other node, and from both.
use super::mesh::{Mesh, in_mesh};
use super::objects::{Load, ambient, idle, load_servers, policy};
use anyhow::{Result, ensure};
use mesh_tests::harness::span;
use serde_json::json;
use std::time::{Duration, Instant};

/// Packets of the first node that are dropped, until the end of this.
struct Cut<'a>(&'a Mesh);

impl<'a> Cut<'a> {
    fn new(mesh: &'a Mesh, from_control: bool, from_node: bool) -> Result<Cut<'a>> {
        let control = if from_control { "tcp dport 15012 drop" } else { "" };
        let node = if from_node { "oifname eth0 tcp dport 15008 drop\noifname eth0 tcp sport 15008 drop" } else { "" };
        let chain = |name: &str, hook: &str, rules: &str| {
            format!("chain {name} {{\ntype filter hook {hook} priority 10;\n{rules}\n}}\n")
        };
        let chains = chain("out", "output", control) + &chain("through", "forward", node);
        mesh.run(&["node", "1", "nft", &format!("table inet partition {{\n{chains}}}\n")])?;
        Ok(Cut(mesh))
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        let _ = self.0.run(&["node", "1", "nft", "delete table inet partition"]);
    }
}

#[test]
fn hardening_F18_a_node_that_is_cut_off_serves_what_it_reaches_and_recovers() -> Result<()> {
    in_mesh(|mesh| {
        let namespace = mesh.namespace("apart", ambient())?;
        let server = |name: &str, node: u8| {
            let mut objects = load_servers(namespace.name, name, 1);
            objects[0]["spec"]["template"]["spec"]["nodeName"] = json!(format!("n{node}"));
            objects
        };
        mesh.apply_all(&[server("here", 1), server("there", 2)].concat())?;
        mesh.apply_all(&[idle(namespace.name, "client", 1)])?;
        namespace.becomes_ready(3)?;
        let asks = |service: &str| -> Result<bool> {
            let script = format!("printf Chello | nc -w 3 {service} {} | grep -q hello", super::objects::PORT);
            Ok(namespace.exec("client", &["sh", "-c", &script]).is_ok())
        };
        mesh.eventually("both answer", || {
            ensure!(asks("here")? && asks("there")?);
            Ok(())
        })?;
        for (from_control, from_node) in [(true, false), (false, true), (true, true)] {
            let what = format!("cut from control plane: {from_control}, from the other node: {from_node}");
            let here = Load::start(mesh, &namespace, ("load-here", 1), "here", (20, 5))?;
            let there = Load::start(mesh, &namespace, ("load-there", 1), "there", (20, 5))?;
            let cut = Cut::new(mesh, from_control, from_node)?;
            let time = span(Duration::from_secs(10), Duration::from_secs(300));
            let start = Instant::now();
            while start.elapsed() < time {
                ensure!(asks("here")?, "{what}: what is on the node does not answer");
            }
            ensure!(asks("there")? != from_node, "{what}: what is on the other node");
            drop(cut);
            let healed = Instant::now();
            mesh.eventually(&format!("{what}: the other node again"), || {
                ensure!(asks("there")?);
                Ok(())
            })?;
            println!("{what}: answered {:.1} s after the end", healed.elapsed().as_secs_f32());
            here.end_spotless()?;
            if from_node {
                println!("there: {}", there.end()?);
            } else {
                there.end_spotless()?;
            }
            mesh.kubectl(&format!("delete pod -n {} load-here load-there", namespace.name))?;
        }
        // What is decided afterwards is heard of.
        mesh.apply_all(&[policy(namespace.name, "nobody", json!({}))])?;
        mesh.eventually("a policy counts", || {
            ensure!(!asks("here")?);
            Ok(())
        })
    })
}
