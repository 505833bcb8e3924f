//! `--keep`: everything is enrolled again, and what can be tried is told.
use super::report::{Report, say};
use super::tour::PAGE;
use crate::harness::policy::Authorization;
use crate::harness::process::binary_path;
use crate::harness::{Bookinfo, Lab};
use anyhow::{Context, Result};

/// Enrols everything and prints commands to try; the caller waits.
pub fn keep(report: &Report, lab: &Lab, bookinfo: &Bookinfo) -> Result<()> {
    lab.enrol_namespace("default")?;
    lab.wait_hbone(&bookinfo.everyone())?;
    let own = binary_path("lab")?.display().to_string();
    let manifests = lab.manifests.dir().display();
    // The client pod needs a process to enter it by.
    let anchor = bookinfo.client.start("anchor", "lab", ["http", "--port", "80"])?;
    let client = format!("{own} enter {}", anchor.pid());
    std::mem::forget(anchor);
    let policy = lab.dir.join("no-sleep.yaml");
    std::fs::write(&policy, Authorization::deny("no-sleep", "productpage").from("default", "sleep").yaml())
        .context("write the example policy")?;
    let (policy, node) = (policy.display(), lab.node(1));
    let (agent, socket) = (node.agent()?.worker()?, node.run_dir.join("admin.sock"));
    let socket = socket.display();

    say(&format!(
        "\n{}",
        report.paint("1;36", "The lab is running, with everything in the mesh. As root, in another terminal:")
    ));
    let groups: [(&str, Vec<String>); 5] = [
        ("be the client pod", vec![format!("{client} {own} get {PAGE}"), format!("{client} bash")]),
        (
            "forbid it the page, and allow it again (the manifests are read live; so are your own edits)",
            vec![
                format!("cp {policy} {manifests}/"),
                format!("rm {manifests}/no-sleep.yaml"),
                format!("ls {manifests}"),
            ],
        ),
        (
            "see what the agent of node1 knows, carries and counts",
            vec![
                format!("curl -s --unix-socket {socket} http://localhost/config_dump"),
                format!("curl -s --unix-socket {socket} http://localhost/connections"),
                format!("nsenter -t {agent} -n curl -s http://localhost:15020/metrics | grep istio_tcp"),
                format!("tail -f {}/logs/agent-node1.out", lab.dir.display()),
            ],
        ),
        ("kill it, and load the page at once", vec![format!("kill -9 {agent}")]),
        (
            "see what is wrong with the manifests, after you broke one",
            vec![format!("nsenter -t {} -n curl -s http://198.18.0.100:15014/debug/diagnoses", lab.control.pid()?)],
        ),
    ];
    for (what, commands) in groups {
        say(&format!("\n   {}", report.paint("2", what)));
        for command in commands {
            say(&format!("   {command}"));
        }
    }
    say("\nCtrl-C here ends it and removes everything.");
    Ok(())
}
