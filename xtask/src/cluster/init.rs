//! The first process of a node. It runs in namespaces of its own (network, mounts, processes, name), gives the node its disks and cgroups,
//! starts containerd, the kubelet and kube-proxy, starts them again when they end, and reaps whatever else ends. Started by `node::power_on`.
use super::plan::Host;
use super::{Cluster, cgroup, node, process};
use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// Becomes the node.
pub fn run(cluster: &Cluster, node: u8) -> Result<()> {
    let name = Host::Node(node).to_string();
    file_systems(&node::disk(cluster, node)).context("mount the node's file systems")?;
    // The name is this namespace's only.
    fs::write("/proc/sys/kernel/hostname", &name).context("set the name")?;
    cgroup::enter(&cluster.plan.cgroup(node))?;

    let daemons = daemons(cluster, node);
    let mut running: Vec<Pid> = Vec::new();
    for (daemon, command) in &daemons {
        running.push(start(cluster, &name, daemon, command)?);
        if *daemon == "containerd" {
            // A kubelet that finds none ends, and every start of it costs a second of the machine.
            let _ = process::until(Duration::from_secs(30), || Path::new("/run/containerd/containerd.sock").exists());
        }
    }
    loop {
        let ended = match waitpid(None::<Pid>, None).context("wait for children")? {
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _) => pid,
            _ => continue,
        };
        if let Some(at) = running.iter().position(|pid| *pid == ended) {
            // One that cannot start must not take the machine.
            thread::sleep(Duration::from_millis(200));
            running[at] = start(cluster, &name, daemons[at].0, &daemons[at].1)?;
        }
    }
}

fn start(cluster: &Cluster, node: &str, daemon: &str, line: &[String]) -> Result<Pid> {
    let log = cluster.log(&format!("{node}-{daemon}"));
    let out =
        File::options().create(true).append(true).open(&log).with_context(|| format!("open {}", log.display()))?;
    let [program, arguments @ ..] = line else { bail!("{daemon} has no command line") };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let child = command.spawn().with_context(|| format!("start {daemon}"))?;
    Ok(Pid::from_raw(i32::try_from(child.id()).context("a process number")?))
}

fn daemons(cluster: &Cluster, node: u8) -> [(&'static str, Vec<String>); 3] {
    let (plan, name) = (cluster.plan, Host::Node(node).to_string());
    let program = |name: &str| cluster.programs.join(name).to_string_lossy().into_owned();
    let kubeconfig = |name: &str| format!("--kubeconfig={}", cluster.kubeconfig(name).display());
    [
        ("containerd", vec!["containerd".into(), "--config=/etc/containerd/config.toml".into()]),
        (
            "kubelet",
            vec![
                program("kubelet"),
                "--config=/etc/kubernetes/kubelet.yaml".into(),
                kubeconfig(&name),
                format!("--hostname-override={name}"),
                format!("--node-ip={}", plan.joined(&plan.address(Host::Node(node)))),
                "--root-dir=/var/lib/kubelet".into(),
                "--v=2".into(),
            ],
        ),
        (
            "kube-proxy",
            vec![
                program("kube-proxy"),
                kubeconfig("kube-proxy"),
                format!("--hostname-override={name}"),
                "--proxy-mode=nftables".into(),
                // Each time that it writes its rules.
                "--v=2".into(),
                format!("--cluster-cidr={}", plan.joined(&plan.all_pods())),
                // These settings are the machine's, not of the namespace: they cannot be written, and kube-proxy would end.
                "--conntrack-max-per-core=0".into(),
                "--conntrack-tcp-timeout-established=0s".into(),
                "--conntrack-tcp-timeout-close-wait=0s".into(),
            ],
        ),
    ]
}

/// The machine's files, with those that a node has for itself in their place.
fn file_systems(disk: &Path) -> Result<()> {
    mount_none("/", MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    // Our copies of the machine's handles would keep namespaces of other nodes alive after these were lost.
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with("/run/")) {
        let _ = umount2(point, MntFlags::MNT_DETACH);
    }
    fresh("proc", "/proc")?;
    // A new sysfs shows this network's devices, but hides the cgroups: they are carried over it.
    let cgroups = disk.join("cgroup");
    fs::create_dir_all(&cgroups)?;
    bind(Path::new("/sys/fs/cgroup"), &cgroups)?;
    fresh("sysfs", "/sys")?;
    bind(&cgroups, Path::new("/sys/fs/cgroup"))?;
    umount2(&cgroups, MntFlags::MNT_DETACH).context("let go of the cgroups")?;
    fresh("bpf", "/sys/fs/bpf")?;
    fresh("tmpfs", "/run")?;
    // What is written to /etc and /opt (CNI, above all) stays the node's own, and on its disk.
    for name in ["etc", "opt"] {
        let (upper, work) = (disk.join(name), disk.join(format!("work-{name}")));
        let options = format!("lowerdir=/{name},upperdir={},workdir={}", upper.display(), work.display());
        mount(Some("overlay"), &Path::new("/").join(name), Some("overlay"), MsFlags::empty(), Some(&options[..]))
            .with_context(|| format!("mount /{name}"))?;
    }
    bind(&disk.join("var-lib"), Path::new("/var/lib"))?;
    bind(&disk.join("var-log"), Path::new("/var/log"))?;
    // Pods may ask for mounts that are seen in both directions, which only shared ones are.
    mount_none("/", MsFlags::MS_REC | MsFlags::MS_SHARED)
}

fn mount_none(target: &str, flags: MsFlags) -> Result<()> {
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>).with_context(|| format!("change {target}"))
}

fn fresh(kind: &str, target: &str) -> Result<()> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>).with_context(|| format!("mount {target}"))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("show {} at {}", from.display(), to.display()))
}
