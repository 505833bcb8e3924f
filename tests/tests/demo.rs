//! The demo as a user runs it: interrupted at any moment it must leave nothing behind and say so by its status.
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{Need, cgroup, eventually, in_lab, process::binary_path, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

/// Folders and cgroups that carry the pid of a lab's process in their name.
fn left_behind(pid: u32) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for dir in [std::env::temp_dir(), cgroup::root()?] {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            let path = entry?.path();
            if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&format!("undermesh-{pid}-"))) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

#[test]
fn demo_interrupted_leaves_nothing_behind() -> Result<()> {
    in_lab(Need::Mesh, || {
        for (signal, line, code) in [
            (Some(Signal::SIGINT), "Bookinfo runs", Some(130)),
            (Some(Signal::SIGTERM), "are ready", Some(130)),
            // Nobody can handle this one: the janitor still cleans up.
            (Some(Signal::SIGKILL), "are ready", None),
            // Nobody reads any more.
            (None, "small cluster", Some(141)),
        ] {
            let mut demo = Command::new(binary_path("demo")?).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
            let mut output = BufReader::new(demo.stdout.take().context("stdout")?).lines();
            let seen = output.by_ref().map_while(|l| l.ok()).any(|l| l.contains(line));
            ensure!(seen, "the demo never said `{line}`");
            until("the lab", SOON, || left_behind(demo.id()).is_ok_and(|found| !found.is_empty()))?;
            match signal {
                Some(signal) => kill(Pid::from_raw(demo.id() as i32), signal)?,
                None => drop(output),
            }
            let status = demo.wait()?;
            ensure!(status.code() == code, "{signal:?}: {status}");
            eventually("an empty machine", Duration::from_secs(15), || {
                let left = left_behind(demo.id())?;
                ensure!(left.is_empty(), "{left:?}");
                Ok(())
            })?;
        }
        Ok(())
    })
}
