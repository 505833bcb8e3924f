//! A process of the lab: started by the `Spawner`, output in files, killed and reaped with its handle.
use super::clock::Clock;
use super::netns::Netns;
use super::wait::eventually;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What to start and where.
#[derive(Clone, Debug)]
pub struct Program {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) args: Vec<OsString>,
    pub(super) env: Vec<(String, String)>,
    pub(super) netns: Option<Netns>,
    pub(super) cgroup: Option<PathBuf>,
    pub(super) resolv_conf: Option<PathBuf>,
    pub(super) open_files: Option<u64>,
}

impl Program {
    /// `name` is for messages and log files.
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> Program {
        Program {
            name: name.into(),
            path: path.into(),
            args: Vec::new(),
            env: Vec::new(),
            netns: None,
            cgroup: None,
            resolv_conf: None,
            open_files: None,
        }
    }

    /// One of the lab's own or the product's binaries, found beside the running one.
    pub fn ours(name: impl Into<String>, binary: &str) -> Result<Program> {
        Ok(Program::new(name, binary_path(binary)?))
    }

    /// Appends an argument.
    pub fn arg(mut self, value: impl Into<OsString>) -> Program {
        self.args.push(value.into());
        self
    }

    /// Appends arguments.
    pub fn args<T: Into<OsString>>(mut self, values: impl IntoIterator<Item = T>) -> Program {
        self.args.extend(values.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: &str, value: impl Into<String>) -> Program {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Reads the wall clock there.
    pub fn clock(self, clock: &Clock) -> Program {
        let (key, value) = clock.variable();
        self.env(key, value)
    }

    /// Runs inside a network namespace.
    pub fn netns(mut self, netns: &Netns) -> Program {
        self.netns = Some(netns.clone());
        self
    }

    /// Joins a cgroup before it runs.
    pub fn cgroup(mut self, path: impl Into<PathBuf>) -> Program {
        self.cgroup = Some(path.into());
        self
    }

    /// Sees this file as `/etc/resolv.conf`.
    pub fn resolv_conf(mut self, path: impl Into<PathBuf>) -> Program {
        self.resolv_conf = Some(path.into());
        self
    }

    /// Limits its open files (soft and hard).
    pub fn open_files(mut self, limit: u64) -> Program {
        self.open_files = Some(limit);
        self
    }
}

/// The directory of the running binary's siblings: `target/<profile>`.
pub fn binary_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("UNDERMESH_BIN_DIR") {
        return Ok(dir.into());
    }
    let own = std::env::current_exe().context("find own binary")?;
    let dir = own.parent().context("own binary has no folder")?;
    let dir = if dir.ends_with("deps") { dir.parent().context("deps folder has no parent")? } else { dir };
    Ok(dir.to_path_buf())
}

/// The path of a built binary, with a hint when it is missing.
pub fn binary_path(name: &str) -> Result<PathBuf> {
    let path = binary_dir()?.join(name);
    if !path.exists() {
        bail!("{} is not built: run `cargo build --workspace --bins`, or let `cargo xtask test` do it", path.display());
    }
    Ok(path)
}

pub(super) type SharedChild = Arc<Mutex<Child>>;

/// A running or ended process.
#[derive(Debug)]
pub struct Process {
    pub(super) child: SharedChild,
    pub(super) name: String,
    pub(super) out: PathBuf,
    pub(super) err: PathBuf,
}

/// A process that has ended, with all it wrote.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Exit code; 128 + signal if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// The output, or an error if the process failed.
    pub fn success(self) -> Result<Finished> {
        if self.code != 0 {
            bail!("exit code {}: {} {}", self.code, self.stdout.trim(), self.stderr.trim());
        }
        Ok(self)
    }
}

impl Process {
    /// Its pid as this process sees it.
    pub fn pid(&self) -> i32 {
        lock(&self.child).id() as i32
    }

    /// Its name in the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends a signal, if it has not been reaped yet.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let mut child = lock(&self.child);
        if child.try_wait().context("ask for exit")?.is_none() {
            kill(Pid::from_raw(child.id() as i32), signal).with_context(|| format!("signal {}", self.name))?;
        }
        Ok(())
    }

    /// Closes its standard input, which ends programs that run until then.
    pub fn close_stdin(&self) {
        drop(lock(&self.child).stdin.take());
    }

    /// Whether it still runs.
    pub fn running(&self) -> bool {
        matches!(lock(&self.child).try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub fn wait(&self, limit: Duration) -> Result<Finished> {
        let status = eventually(&format!("end of {}", self.name), limit, || {
            lock(&self.child).try_wait().context("wait for child")?.context("still running")
        })?;
        Ok(Finished { code: code(status), stdout: self.stdout(), stderr: self.stderr() })
    }

    /// Kills it at once and waits for its end.
    pub fn kill(&self) {
        reap(&self.child);
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.out)
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.err)
    }

    /// Both outputs so far.
    pub fn log(&self) -> String {
        let (mut out, err) = (self.stdout(), self.stderr());
        out.push_str(&err);
        out
    }

    /// Waits until a line of its output contains `text` and returns that line; fails early if it ends before.
    pub fn wait_for(&self, text: &str, limit: Duration) -> Result<String> {
        let what = format!("`{text}` in the output of {}", self.name);
        let found = eventually(&what, limit, || {
            let running = self.running();
            let log = self.log();
            match log.lines().find(|line| line.contains(text)) {
                Some(line) => Ok(Some(line.to_string())),
                None if !running => Ok(None),
                None => bail!("last output: {}", last_lines(&log, 5)),
            }
        })?;
        found.with_context(|| format!("{} ended without `{text}`: {}", self.name, last_lines(&self.log(), 20)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        reap(&self.child);
    }
}

pub(super) fn reap(child: &SharedChild) {
    let mut child = lock(child);
    if let Ok(None) = child.try_wait() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last `n` lines of a text.
pub fn last_lines(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
