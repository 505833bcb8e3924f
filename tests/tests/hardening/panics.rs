//! The agent panics (row F6): at each stage of a connection, which costs that connection and no other, and in tasks that it cannot do without,
//! which costs the worker.
use crate::pair::{Pair, SOON, TOKEN};
use anyhow::{Result, bail, ensure};
use mesh_tests::harness::policy::Authorization;
use mesh_tests::harness::{Capture, LabConfig, Need, Node, Pod, PodSpec, Process, eventually, in_lab, until};

/// What an exchange ended with: curl's codes.
const RESET: i32 = 56;

fn pair() -> Result<Pair> {
    Pair::start(LabConfig { fail_points: true, ..LabConfig::default() })
}

fn panics(node: &Node) -> Result<f64> {
    Ok(node.agent()?.metrics()?.sum("panics_total", &[]))
}

fn spent(node: &Node) -> Result<()> {
    let left = std::fs::read_to_string(node.fail_points())?;
    ensure!(left.is_empty(), "nobody came by {left}");
    Ok(())
}

/// A connection from `from` that is not carried by a tunnel and on its way when others panic.
fn witness(from: &Pod, to: &Pod) -> Result<Process> {
    let witness = from.start("witness", "lab", ["hold", &to.address.v4.to_string(), "8080", "--timeout", "60"])?;
    witness.wait_for("open", SOON)?;
    Ok(witness)
}

fn open_connections(pair: &Pair) -> Result<usize> {
    let count =
        |node: &std::sync::Arc<Node>| Ok(node.agent()?.admin("/connections")?.body.matches("\"source\"").count());
    pair.lab.nodes.iter().map(count).sum()
}

/// Has the tunnel of an exchange panic. Idle ones ask now and then whether their peers live, and one of them may come by first; so there are more attempts,
/// but fewer than end a worker.
fn cut_tunnel(node: &Node, hold: &Process) -> Result<String> {
    for _ in 0..3 {
        node.fail_at(&["tunnel"])?;
        if let Ok(line) = hold.wait_for("cut", SOON) {
            node.fail_at(&[])?;
            return Ok(line);
        }
        spent(node)?;
    }
    bail!("only idle tunnels came by")
}

#[test]
fn hardening_F6_a_panic_at_any_stage_costs_that_connection_only() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = pair()?;
        let lab = &pair.lab;
        lab.namespace("outer", &[])?;
        let outer = lab.add_pod(PodSpec::new("outer").namespace("outer"))?;
        let _outer = outer.serve(["load", "serve"])?;
        let witnesses = [witness(&pair.client, &outer)?, witness(&outer, &pair.server)?];
        pair.serves()?;
        let (workers, open) = (workers(&pair)?, open_connections(&pair)?);
        ensure!(open >= 2, "the agents know of {open} connections");
        // Whoever calls for the first time has no tunnel yet.
        let newcomer = |name: &str| -> Result<std::sync::Arc<Pod>> {
            let pod = lab.add_pod(PodSpec::new(name).service_account(name))?;
            lab.enrol(&pod)?;
            lab.wait_hbone(&[&pod])?;
            Ok(pod)
        };
        let (first, second) = (newcomer("first")?, newcomer("second")?);
        let stages = [
            (1, "outbound", &pair.client),
            (1, "copy", &pair.client),
            (2, "inbound", &pair.client),
            (2, "deliver", &pair.client),
            (2, "copy", &pair.client),
            (1, "dial", &first),
            (2, "handshake", &second),
            (2, "plaintext", &outer),
        ];
        for (number, point, from) in stages {
            let node = lab.node(number);
            let before = panics(node)?;
            node.fail_at(&[point])?;
            let code = pair.send_from(from, "10")?;
            ensure!(code == RESET, "{point}: whoever was connected saw code {code}");
            spent(node)?;
            ensure!(panics(node)? == before + 1.0, "{point} is not counted");
            let code = pair.send_from(from, "10")?;
            ensure!(code == 0, "after {point} the next exchange ended with code {code}");
        }
        // A tunnel takes its streams along, at either end of it. It may be looked at before the exchange has come to it.
        for number in [1, 2] {
            let hold = pair.hold()?;
            let line = cut_tunnel(lab.node(number), &hold)?;
            ensure!(line.contains("cut reset"), "{line}");
            pair.serves()?;
        }
        // A name that was asked for in vain is asked for again.
        lab.node(1).fail_at(&["dns", "dns-query"])?;
        let resolved = pair.client.lab(["resolve", "nowhere.example"])?;
        ensure!(resolved.code != 28, "{resolved:?}");
        spent(lab.node(1))?;

        for (witness, node) in witnesses.iter().zip(&lab.nodes) {
            ensure!(witness.running(), "{}: {}", node.name, witness.stdout());
            witness.close_stdin();
            witness.wait_for("done", SOON)?;
        }
        ensure!(self::workers(&pair)? == workers, "a worker ended");
        eventually("nothing is left of the connections", SOON, || {
            let now = open_connections(&pair)?;
            ensure!(now == open - witnesses.len(), "{open} connections before, {now} now");
            Ok(())
        })
    })
}

#[test]
fn hardening_F6_a_panic_where_all_depend_on_costs_the_worker() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = pair()?;
        let capture = Capture::start(&pair.lab.fabric, &[TOKEN])?;
        // Who cuts connections that a policy denies, and who hears of policies.
        for (number, point) in [(2, "recheck"), (1, "xds")] {
            let agent = pair.lab.node(number).agent()?;
            let (old, hold) = (agent.worker()?, pair.hold()?);
            pair.lab.node(number).fail_at(&[point])?;
            pair.lab.apply("policy", &Authorization::deny("nobody", "server").from("default", "client").yaml())?;
            until("a new worker", SOON, || agent.worker().is_ok_and(|pid| pid != old))?;
            spent(pair.lab.node(number))?;
            hold.wait_for("cut", SOON)?;
            agent.wait_ready(SOON)?;
            eventually("the policy holds", SOON, || {
                let code = pair.send()?;
                ensure!(code == RESET, "an exchange ended with code {code}");
                Ok(())
            })?;
            pair.lab.delete("policy")?;
            eventually("service", SOON, || pair.serves())?;
        }
        ensure!(capture.seen().sightings.is_empty(), "plaintext: {:?}", capture.seen().sightings);
        Ok(())
    })
}

fn workers(pair: &Pair) -> Result<Vec<i32>> {
    pair.lab.nodes.iter().map(|node| node.agent()?.worker()).collect()
}
