//! The mesh on a cluster while something happens to its agents, by `cargo xtask cluster measure` in a short form: what it says must not depend on how
//! fast the machine is. A reboot is left to the tests of `tests/kubernetes`. Needs what a cluster needs, Helm's engine, and the binaries built.

#[path = "support/cluster.rs"]
mod support;

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{Cluster, XTASK, can_run, skip};

fn xtask(arguments: &[&str]) -> String {
    let output = Command::new(XTASK).args(arguments).stdin(Stdio::null()).output().expect("xtask starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
#[allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]
fn hardening_F2_agents_are_killed_and_rolled_out_under_load() {
    let test = "measure";
    if !can_run(test) {
        return;
    }
    let engine = Command::new(XTASK).args(["chart", "--values", "/dev/null"]).output().expect("xtask starts");
    if !engine.status.success() {
        skip(test, String::from_utf8_lossy(&engine.stderr).trim().trim_start_matches("error: "));
        return;
    }
    let cluster = Cluster::up(&[]);
    let folder = std::env::temp_dir().join(format!("undermesh-measure-{}", cluster.index));
    let out = folder.to_string_lossy().into_owned();
    for line in xtask(&["image", "--no-build", "--out", &out]).lines() {
        cluster.run(&["load", line.split_whitespace().next().expect("an archive")]);
    }
    let values = folder.join("values.yaml");
    let mut of_cluster: Value = serde_json::from_str(&cluster.run(&["values"])).expect("values");
    of_cluster["agent"] = serde_json::json!({ "drain": "3s" });
    fs::write(&values, of_cluster.to_string()).expect("written");
    cluster.run(&["helm", "install", "--values", &values.to_string_lossy()]);

    let options = "--no-build --json --rate 20 --long 5 --before 1 --after 6 --kills 2 --every 6";
    let events = "label deny kill-worker kill rollout";
    let line = format!("measure {events} {options}");
    let said = cluster.run(&line.split(' ').collect::<Vec<_>>());
    let rows: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |event: &str| -> Vec<&Value> {
        let rows: Vec<_> = rows.iter().filter(|row| row["event"].as_str().is_some_and(|is| is == event)).collect();
        assert!(!rows.is_empty(), "no row of {event}:\n{said}");
        rows
    };
    let number = |row: &Value, name: &str| row[name].as_u64().unwrap_or_else(|| panic!("{name} in {row}"));

    for row in of("deny policy") {
        assert_eq!(number(row, "cut"), number(row, "long"), "a denied connection lives: {row}");
    }
    // Whoever waits in a backlog is not refused, and nobody is lost when the lead changes hands in order.
    for row in of("rollout") {
        assert_eq!(number(row, "failed"), 0, "{row}");
    }
    for event in ["kill -9 of the worker", "kill -9 of the container"] {
        for row in of(event) {
            assert_eq!(number(row, "timeout"), 0, "{row}");
            assert!(number(row, "new") > number(row, "failed"), "{row}");
        }
    }
    fs::remove_dir_all(&folder).expect("removed");
    cluster.leaves_nothing();
}
