//! The one thread that starts the lab's processes, and the janitor that outlives everything.
//!
//! The thread owns a private mount namespace (with a bpffs of its own, so pinned programs die with it) and a pid namespace whose
//! init is the janitor, `lab init`. The janitor holds one end of a pipe: when the other end closes - the lab was dropped, the test
//! was killed, the machine's Ctrl-C - it kills what is in the lab's cgroup, removes the cgroup and the lab's folder, and ends; the
//! kernel then takes the namespaces, mounts, devices and pinned objects. Nothing survives, whatever happened.
use super::process::{Process, Program, SharedChild, lock, reap};
use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

struct Job {
    program: Program,
    reply: Sender<Result<Process>>,
}

/// Starts processes in the lab's namespaces.
pub struct Spawner {
    jobs: Mutex<Option<Sender<Job>>>,
    janitor: Janitor,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// The janitor process and the pipe that keeps it waiting.
#[derive(Clone)]
struct Janitor {
    pipe: Arc<Mutex<Option<ChildStdin>>>,
    child: Arc<Mutex<Child>>,
    children: Arc<Mutex<Vec<SharedChild>>>,
}

static JANITORS: Mutex<Vec<Janitor>> = Mutex::new(Vec::new());

impl Spawner {
    /// Starts the thread and the janitor. `cgroup` and `dir` are what the janitor removes in the end.
    pub fn start(cgroup: &Path, dir: &Path) -> Result<Spawner> {
        let (jobs, inbox) = channel::<Job>();
        let (ready, started) = channel();
        let init = super::process::binary_path("lab")?;
        let (cgroup, dir) = (cgroup.to_path_buf(), dir.to_path_buf());
        let logs = dir.join("logs");
        std::fs::create_dir_all(&logs).context("create log folder")?;
        let thread = std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                let _ = ready.send(enter(&init, &cgroup, &dir));
                for job in inbox {
                    let _ = job.reply.send(spawn(job.program, &logs));
                }
            })
            .context("start spawner thread")?;
        let mut init = started.recv().context("spawner thread ended")??;
        let pipe = Arc::new(Mutex::new(init.stdin.take()));
        let janitor = Janitor { pipe, child: Arc::new(Mutex::new(init)), children: Arc::default() };
        lock(&JANITORS).push(janitor.clone());
        Ok(Spawner { jobs: Mutex::new(Some(jobs)), janitor, thread: Mutex::new(Some(thread)) })
    }

    /// Starts a program.
    pub fn spawn(&self, program: Program) -> Result<Process> {
        let name = program.name.clone();
        let (reply, answer) = channel();
        let jobs = lock(&self.jobs).clone().context("the lab is shut down")?;
        jobs.send(Job { program, reply }).ok().context("spawner thread ended")?;
        let process = answer.recv().context("spawner thread ended")?.with_context(|| format!("start {name}"))?;
        let mut children = lock(&self.janitor.children);
        children.retain(|child| Arc::strong_count(child) > 1);
        children.push(process.child.clone());
        Ok(process)
    }

    /// Kills and reaps every process, then lets the janitor finish. Idempotent.
    pub fn shutdown(&self) {
        drop(lock(&self.jobs).take());
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
        self.janitor.finish();
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Janitor {
    fn finish(&self) {
        drop(lock(&self.pipe).take());
        let start = Instant::now();
        // The init of a pid namespace ends only when all its processes are reaped, and these are our children.
        while let Ok(None) = lock(&self.child).try_wait() {
            for child in lock(&self.children).drain(..) {
                reap(&child);
            }
            if start.elapsed() > Duration::from_secs(20) {
                eprintln!("the lab's janitor did not finish in 20 s");
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Cleans up every lab of this process; for Ctrl-C, before the process exits.
pub fn clean_all() {
    let janitors: Vec<Janitor> = lock(&JANITORS).drain(..).collect();
    janitors.iter().for_each(Janitor::finish);
}

/// Gives this thread its namespaces and starts the janitor as init of the pid namespace.
fn enter(init: &Path, cgroup: &Path, dir: &Path) -> Result<Child> {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare mount namespace (root is needed)")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("make mounts private")?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), Some("mode=0700")).context("mount a bpffs")?;
    unshare(CloneFlags::CLONE_NEWPID).context("unshare pid namespace")?;
    Command::new(init)
        .arg("init")
        .arg("--cgroup")
        .arg(cgroup)
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {}", init.display()))
}

fn spawn(program: Program, logs: &Path) -> Result<Process> {
    let (out, err) = log_files(&program.name, logs);
    let create = |path: &PathBuf| File::create(path).with_context(|| format!("create {}", path.display()));
    let mut command = Command::new(&program.path);
    command
        .args(&program.args)
        .envs(program.env.iter().map(|(k, v)| (k, v)))
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::piped())
        .stdout(create(&out)?)
        .stderr(create(&err)?)
        .current_dir("/")
        .process_group(0);
    let procs = match &program.cgroup {
        Some(path) => {
            let path = path.join("cgroup.procs");
            Some(File::options().write(true).open(&path).with_context(|| format!("open {}", path.display()))?)
        }
        None => None,
    };
    let netns = program.netns.clone();
    let resolv_conf = match &program.resolv_conf {
        Some(path) => Some(CString::new(path.as_os_str().as_encoded_bytes()).context("path with NUL")?),
        None => None,
    };
    // Not even root may raise the hard limit without CAP_SYS_RESOURCE, so what is wanted is cut to what there is.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("read the limit of open files")?;
    let open_files = program.open_files.map(|wanted| wanted.min(hard));
    // SAFETY: the closure runs between fork and exec and only makes system calls on descriptors and strings prepared above;
    // it takes no lock and does not allocate.
    unsafe {
        command.pre_exec(move || {
            if let Some(procs) = &procs {
                nix::unistd::write(procs.as_fd(), b"0")?;
            }
            if let Some(netns) = &netns {
                setns(netns.fd(), CloneFlags::CLONE_NEWNET)?;
            }
            if let Some(path) = &resolv_conf {
                unshare(CloneFlags::CLONE_NEWNS)?;
                mount(Some(path.as_c_str()), c"/etc/resolv.conf", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            }
            if let Some(limit) = open_files {
                setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?;
            }
            // Whoever has the lab may wait for signals in a thread of its own; what it starts is to hear them.
            SigSet::empty().thread_set_mask()?;
            Ok(())
        });
    }
    let child = command.spawn().with_context(|| format!("run {}", program.path.display()))?;
    Ok(Process { child: Arc::new(Mutex::new(child)), name: program.name, out, err })
}

fn log_files(name: &str, logs: &Path) -> (PathBuf, PathBuf) {
    let mut n = 0;
    loop {
        let stem = if n == 0 { name.to_string() } else { format!("{name}.{n}") };
        let out = logs.join(format!("{stem}.out"));
        if !out.exists() {
            return (out, logs.join(format!("{stem}.err")));
        }
        n += 1;
    }
}
