//! The parts of the control plane: how each is started, found and ended. Called by `up`, `start`, `stop` and `status`.
use super::Cluster;
use super::plan::Host;
use super::process::{self, Process};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::process::Command;
use std::time::Duration;

/// One part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    Etcd,
    KubeApiserver,
    KubeControllerManager,
    KubeScheduler,
    /// Gives services of type LoadBalancer their addresses.
    Balancer,
}

impl Part {
    /// In the order in which they start.
    pub const ALL: [Part; 5] =
        [Part::Etcd, Part::KubeApiserver, Part::KubeControllerManager, Part::KubeScheduler, Part::Balancer];

    /// What it is called on command lines and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Part::Etcd => "etcd",
            Part::KubeApiserver => "kube-apiserver",
            Part::KubeControllerManager => "kube-controller-manager",
            Part::KubeScheduler => "kube-scheduler",
            Part::Balancer => "balancer",
        }
    }

    fn is(self, process: &Process) -> bool {
        let words: Vec<&str> = process.arguments.iter().map(|word| word.rsplit('/').next().unwrap_or("")).collect();
        match self {
            Part::Balancer => matches!(words[..], [_, "cluster", ..]) && words.contains(&self.name()),
            _ => words.first() == Some(&self.name()),
        }
    }
}

/// The living processes of a part: none or one.
pub fn find(cluster: &Cluster, part: Part) -> Vec<Process> {
    let mut found = process::inside(&cluster.plan.netns(Host::Control));
    found.retain(|process| part.is(process));
    found
}

/// Ends a part as a power cut would.
pub fn stop(cluster: &Cluster, part: Part) -> Result<()> {
    let found = find(cluster, part);
    ensure!(!found.is_empty(), "{} does not run", part.name());
    process::end(&found)
}

/// Starts a part.
pub fn start(cluster: &Cluster, part: Part) -> Result<()> {
    ensure!(find(cluster, part).is_empty(), "{} runs already", part.name());
    let netns = cluster.plan.netns(Host::Control);
    let command = match part {
        Part::Balancer => {
            let mut command = process::within(&netns, std::env::current_exe().context("find own binary")?);
            command.args(["cluster", "--cluster", &cluster.plan.index.to_string(), part.name()]);
            command
        }
        _ => {
            let mut command = process::within(&netns, cluster.programs.join(part.name()));
            arguments(cluster, part, &mut command)?;
            command
        }
    };
    process::background(&command, &cluster.log(part.name()))?;
    process::until(Duration::from_secs(10), || !find(cluster, part).is_empty())
        .with_context(|| format!("{} ended at once, see {}", part.name(), cluster.log(part.name()).display()))
}

/// Waits until the API server serves.
pub fn await_ready(cluster: &Cluster) -> Result<()> {
    let ready = || cluster.kubectl(&["get", "--raw", "/readyz"]).is_ok();
    process::until(Duration::from_secs(120), ready)
        .with_context(|| format!("kube-apiserver is not ready, see {}", cluster.log("kube-apiserver").display()))
}

fn arguments(cluster: &Cluster, part: Part, command: &mut Command) -> Result<()> {
    let mut set = |name: &str, value: &str| {
        command.arg(format!("--{name}={value}"));
    };
    let pki = |name: &str| cluster.pki().join(name).to_string_lossy().into_owned();
    match part {
        Part::Etcd => {
            let data = cluster.folder.join("etcd");
            // Etcd refuses a folder that others may read.
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&data).context("make etcd's folder")?;
            set("data-dir", &data.to_string_lossy());
            for name in ["listen-client-urls", "advertise-client-urls"] {
                set(name, "http://127.0.0.1:2379");
            }
            set("listen-peer-urls", "http://127.0.0.1:2380");
            set("log-level", "warn");
            // The machine's disk is not what is tested; its syncs would be most of the time of every write.
            set("unsafe-no-fsync", "true");
        }
        Part::KubeApiserver => {
            set("etcd-servers", "http://127.0.0.1:2379");
            // Its family must be the first one of the services' ranges.
            set("advertise-address", &cluster.plan.first(&cluster.plan.address(Host::Control)));
            set("bind-address", "::");
            set("secure-port", "6443");
            set("service-cluster-ip-range", &cluster.plan.joined(&cluster.plan.services()));
            set("allow-privileged", "true");
            set("authorization-mode", "Node,RBAC");
            set("enable-admission-plugins", "NodeRestriction");
            set("client-ca-file", &pki("ca.crt"));
            set("tls-cert-file", &pki("apiserver.crt"));
            set("tls-private-key-file", &pki("apiserver.key"));
            set("kubelet-client-certificate", &pki("apiserver-kubelet.crt"));
            set("kubelet-client-key", &pki("apiserver-kubelet.key"));
            set("kubelet-preferred-address-types", "InternalIP");
            set("requestheader-client-ca-file", &pki("ca.crt"));
            set("requestheader-allowed-names", "front-proxy");
            set("requestheader-username-headers", "X-Remote-User");
            set("requestheader-group-headers", "X-Remote-Group");
            set("requestheader-extra-headers-prefix", "X-Remote-Extra-");
            set("proxy-client-cert-file", &pki("front-proxy.crt"));
            set("proxy-client-key-file", &pki("front-proxy.key"));
            set("service-account-key-file", &pki("sa.pub"));
            set("service-account-signing-key-file", &pki("sa.key"));
            set("service-account-issuer", "https://kubernetes.default.svc.cluster.local");
            // Webhooks are called at their pods: the control plane has no kube-proxy that would translate a service's address.
            set("enable-aggregator-routing", "true");
        }
        Part::KubeControllerManager => {
            credentials(cluster, part, &mut set);
            set("service-account-private-key-file", &pki("sa.key"));
            set("root-ca-file", &pki("ca.crt"));
            set("cluster-signing-cert-file", &pki("ca.crt"));
            set("cluster-signing-key-file", &pki("ca.key"));
            set("use-service-account-credentials", "true");
            // A lost node is noticed in seconds instead of most of a minute; the kubelets report every 4 s.
            set("node-monitor-grace-period", "16s");
        }
        Part::KubeScheduler => credentials(cluster, part, &mut set),
        Part::Balancer => {}
    }
    Ok(())
}

/// What controller manager and scheduler share. They are alone, so they need not be elected, and start without the wait for it.
fn credentials(cluster: &Cluster, part: Part, set: &mut impl FnMut(&str, &str)) {
    let path = cluster.kubeconfig(part.name());
    for name in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
        set(name, &path.to_string_lossy());
    }
    set("bind-address", "127.0.0.1");
    set("leader-elect", "false");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_known_by_its_command_line() {
        let process = |line: &str| Process {
            pid: nix::unistd::Pid::this(),
            arguments: line.split(' ').map(str::to_owned).collect(),
        };
        assert!(Part::Etcd.is(&process("/cache/etcd --data-dir=/x")));
        assert!(!Part::Etcd.is(&process("/cache/kubectl get /x/etcd")));
        assert!(Part::Balancer.is(&process("/t/xtask cluster --cluster 3 balancer")));
        assert!(!Part::Balancer.is(&process("/t/xtask cluster --cluster 3 down")));
        assert!(!Part::KubeApiserver.is(&process("nsenter --net=/run/netns/um0-cp -- /cache/kube-apiserver")));
    }
}
