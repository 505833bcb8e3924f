//! Starting, finding and ending processes of a cluster. There are no pid files: a process belongs to a cluster because it is in one of
//! its network namespaces, which holds also after a crash, in another folder, and when the number of a dead process was given to another one.
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Where `ip netns` keeps a namespace.
pub fn netns_path(netns: &str) -> PathBuf {
    Path::new("/run/netns").join(netns)
}

/// A command that runs in a network namespace.
pub fn within(netns: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns_path(netns).display())).arg("--").arg(program);
    command
}

/// Starts a command for good: it outlives us and has no terminal, and writes to `log`.
pub fn background(command: &Command, log: &Path) -> Result<()> {
    let out = File::options().create(true).append(true).open(log).with_context(|| format!("open {}", log.display()))?;
    let mut detached = Command::new("setsid");
    detached.arg("--fork").arg(command.get_program()).args(command.get_args());
    detached.stdin(Stdio::null()).stdout(out.try_clone().context("share the log")?).stderr(out);
    let status = detached.status().context("start setsid")?;
    ensure!(status.success(), "setsid failed");
    Ok(())
}

/// Runs a command to its end and returns what it printed; its complaint becomes the error.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}").replace('"', "");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A living process.
#[derive(Debug)]
pub struct Process {
    pub pid: Pid,
    pub arguments: Vec<String>,
}

/// The processes in a network namespace, of whatever process namespace.
pub fn inside(netns: &str) -> Vec<Process> {
    let Ok(namespace) = fs::metadata(netns_path(netns)) else { return Vec::new() };
    let own = Pid::this();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw) else {
            continue;
        };
        let Ok(theirs) = fs::metadata(entry.path().join("ns/net")) else { continue };
        if pid == own || (theirs.dev(), theirs.ino()) != (namespace.dev(), namespace.ino()) {
            continue;
        }
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments = line.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        found.push(Process { pid, arguments });
    }
    found
}

/// Kills processes and waits until they are gone with all they held. The kernel reports the first process of a process namespace as
/// dead only when all others of that namespace are.
pub fn end(processes: &[Process]) -> Result<()> {
    for process in processes {
        let _ = kill(process.pid, Signal::SIGKILL);
    }
    until(Duration::from_secs(30), || processes.iter().all(|process| is_gone(process.pid)))
        .context("killed processes do not end")
}

/// Ends all processes in a network namespace, those too that another one has started meanwhile.
pub fn end_all(netns: &str) -> Result<()> {
    for _ in 0..10 {
        let processes = inside(netns);
        if processes.is_empty() {
            return Ok(());
        }
        end(&processes)?;
    }
    bail!("processes in {netns} start others as fast as they are ended")
}

/// A zombie counts as gone: whether somebody reaps it is not ours to say.
fn is_gone(pid: Pid) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
}

/// Waits until something is so.
pub fn until(longest: Duration, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + longest;
    while !is_so() {
        ensure!(Instant::now() < deadline, "not so after {} s", longest.as_secs());
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
