//! The files that make containerd, the kubelet, the pod network and the first objects of the cluster what they are. Called by `node` and `up`.
use super::Cluster;
use super::plan::{Family, Host};
use super::programs::{COREDNS_IMAGE, PAUSE_IMAGE};
use anyhow::{Context, Result};
use serde_json::json;
use std::fs;
use std::path::Path;

/// Writes what a node reads at its start. `etc` becomes the upper layer of the node's `/etc`: it is a disk, and survives reboots.
pub fn write(cluster: &Cluster, node: u8, etc: &Path) -> Result<()> {
    let files = [
        ("containerd/config.toml", containerd()),
        ("kubernetes/kubelet.yaml", kubelet(cluster, node)),
        ("cni/net.d/10-bridge.conflist", network(cluster, node)),
        // Pods of `dnsPolicy: Default` inherit this: there is no nameserver outside of the cluster.
        ("resolv.conf", "nameserver 127.0.0.1\n".to_owned()),
    ];
    for (name, text) in files {
        let path = etc.join(name);
        fs::create_dir_all(path.parent().context("a file in a folder")?)?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// The first objects: rights of kube-proxy, and the DNS service.
pub fn addons(cluster: &Cluster) -> String {
    include_str!("assets/addons.yaml")
        .replace("@DNS@", &cluster.plan.first(&cluster.plan.service(10)))
        .replace("@COREDNS@", COREDNS_IMAGE)
        .replace("@OUTSIDE@", &cluster.plan.address(Host::Control).v4)
        .replace("@OUTSIDE6@", &cluster.plan.address(Host::Control).v6)
}

/// What the product's chart cannot know of this cluster.
pub fn values(cluster: &Cluster) -> serde_json::Value {
    let ranges = [cluster.plan.all_pods(), cluster.plan.services()].map(|range| cluster.plan.ordered(&range));
    json!({
        "listenAddress": if cluster.plan.primary == Family::V6 { "[::]" } else { "0.0.0.0" },
        "meshRanges": ranges.concat(),
    })
}

fn containerd() -> String {
    format!(
        r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Inside of another container the score may not be lowered, and pods would not start.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#
    )
}

fn network(cluster: &Cluster, node: u8) -> String {
    let ranges: Vec<_> =
        cluster.plan.ordered(&cluster.plan.pods(node)).iter().map(|range| json!([{ "subnet": range }])).collect();
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                // No masquerading: who calls whom is to be seen.
                "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": false, "mtu": 1500,
                "ipam": { "type": "host-local", "ranges": ranges, "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
    .to_string()
}

fn kubelet(cluster: &Cluster, node: u8) -> String {
    let (pki, name) = (cluster.pki(), Host::Node(node).to_string());
    let pki = |file: &str| pki.join(file).to_string_lossy().into_owned();
    // JSON is YAML.
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": { "anonymous": { "enabled": false }, "webhook": { "enabled": true }, "x509": { "clientCAFile": pki("ca.crt") } },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": pki(&format!("{name}.crt")),
        "tlsPrivateKeyFile": pki(&format!("{name}.key")),
        "clusterDomain": "cluster.local",
        "clusterDNS": [cluster.plan.first(&cluster.plan.service(10))],
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", cluster.plan.cgroup(node)),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "resolvConf": "/etc/resolv.conf",
        "failSwapOn": false,
        // The machine may still have cgroup v1, and is not what is tested.
        "failCgroupV1": false,
        "makeIPTablesUtilChains": false,
        // All nodes share one disk: its state would evict the pods of all, and nobody could bring their images back. The kubelet's eviction
        // manager complains in its log that it finds no file system, and evicts nobody.
        "localStorageCapacityIsolation": false,
        "evictionHard": { "memory.available": "50Mi" },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "nodeStatusUpdateFrequency": "4s",
        "syncFrequency": "10s",
    })
    .to_string()
}
