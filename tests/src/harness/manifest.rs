//! The manifests folder: ordinary Kubernetes objects, one file each, replaced atomically, as an operator's tooling would.
use anyhow::{Context, Result};
use base64::Engine;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The annotation by which a pod says that its node's agent has it.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// The opt-in label.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

/// Labels, annotations, selectors.
pub type Map = BTreeMap<String, String>;

/// A folder of manifests.
#[derive(Clone, Debug)]
pub struct Manifests {
    dir: PathBuf,
}

impl Manifests {
    /// Uses `dir`, creating it.
    pub fn open(dir: PathBuf) -> Result<Manifests> {
        std::fs::create_dir_all(&dir).context("create manifests folder")?;
        Ok(Manifests { dir })
    }

    /// Where the files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes one file, atomically.
    pub fn put(&self, file: &str, text: &str) -> Result<()> {
        let partial = self.dir.join(format!(".{file}.partial"));
        std::fs::write(&partial, text).with_context(|| format!("write {file}"))?;
        std::fs::rename(&partial, self.path(file)).with_context(|| format!("replace {file}"))
    }

    /// Removes one file.
    pub fn remove(&self, file: &str) -> Result<()> {
        std::fs::remove_file(self.path(file)).with_context(|| format!("remove {file}"))
    }

    /// The path of a file named without its ending.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(format!("{file}.yaml"))
    }
}

/// A map from pairs.
pub fn map(pairs: &[(&str, &str)]) -> Map {
    pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

/// YAML lines of a string map, indented.
fn lines(map: &Map, indent: usize) -> String {
    map.iter().fold(String::new(), |mut text, (k, v)| {
        let _ = write!(text, "\n{:indent$}{k}: {v:?}", "");
        text
    })
}

fn section(name: &str, map: &Map, indent: usize) -> String {
    if map.is_empty() { String::new() } else { format!("\n{:indent$}{name}:{}", "", lines(map, indent + 2)) }
}

/// A Namespace.
pub fn namespace(name: &str, labels: &Map) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}{}\n", section("labels", labels, 2))
}

/// A Node with its addresses, pod ranges and locality.
pub fn node(name: &str, addresses: &[String], ranges: &[String], labels: &Map) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}{}\nspec:\n  podCIDR: {:?}\n  podCIDRs:",
        section("labels", labels, 2),
        ranges[0]
    );
    for range in ranges {
        let _ = write!(text, "\n  - {range:?}");
    }
    text.push_str("\nstatus:\n  addresses:");
    for address in addresses {
        let _ = write!(text, "\n  - type: InternalIP\n    address: {address:?}");
    }
    text.push('\n');
    text
}

/// A ServiceAccount.
pub fn service_account(namespace: &str, name: &str) -> String {
    format!("apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: {name}\n  namespace: {namespace}\n")
}

/// What a Pod manifest says.
#[derive(Clone, Debug)]
pub struct PodManifest {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Unique id.
    pub uid: String,
    /// Labels.
    pub labels: Map,
    /// Annotations.
    pub annotations: Map,
    /// Service account.
    pub service_account: String,
    /// Node.
    pub node: String,
    /// Node address.
    pub host_ip: String,
    /// Addresses, primary first.
    pub ips: Vec<String>,
    /// Named container ports.
    pub ports: Vec<(String, u16)>,
    /// Whether the pod is Ready.
    pub ready: bool,
}

/// A running Pod with its status.
pub fn pod(p: &PodManifest) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: {}\n  uid: {:?}{}{}\nspec:\n  serviceAccountName: {}\n  nodeName: {}\n  containers:\n  - name: app\n    image: lab",
        p.name,
        p.namespace,
        p.uid,
        section("labels", &p.labels, 2),
        section("annotations", &p.annotations, 2),
        p.service_account,
        p.node
    );
    if !p.ports.is_empty() {
        text.push_str("\n    ports:");
        for (name, port) in &p.ports {
            let _ = write!(text, "\n    - name: {name:?}\n      containerPort: {port}");
        }
    }
    let ready = if p.ready { "True" } else { "False" };
    let _ = write!(
        text,
        "\nstatus:\n  phase: Running\n  hostIP: {:?}\n  podIP: {:?}\n  podIPs:",
        p.host_ip,
        p.ips.first().map(String::as_str).unwrap_or("")
    );
    for ip in &p.ips {
        let _ = write!(text, "\n  - ip: {ip:?}");
    }
    let _ = write!(text, "\n  conditions:\n  - type: Ready\n    status: {ready:?}\n");
    text
}

/// What a Service manifest says.
#[derive(Clone, Debug)]
pub struct ServiceManifest {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Labels.
    pub labels: Map,
    /// Annotations.
    pub annotations: Map,
    /// Pod selector.
    pub selector: Map,
    /// Service addresses; empty for a headless service.
    pub cluster_ips: Vec<String>,
    /// Name, port, target port.
    pub ports: Vec<(String, u16, u16)>,
    /// `spec.trafficDistribution`.
    pub traffic_distribution: Option<String>,
}

/// A Service.
pub fn service(s: &ServiceManifest) -> String {
    let none = vec!["None".to_string()];
    let ips = if s.cluster_ips.is_empty() { &none } else { &s.cluster_ips };
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {}\n  namespace: {}{}{}\nspec:\n  type: ClusterIP{}\n  clusterIP: {:?}\n  clusterIPs:",
        s.name,
        s.namespace,
        section("labels", &s.labels, 2),
        section("annotations", &s.annotations, 2),
        section("selector", &s.selector, 2),
        ips[0]
    );
    for ip in ips {
        let _ = write!(text, "\n  - {ip:?}");
    }
    if ips.len() > 1 {
        text.push_str("\n  ipFamilies:\n  - IPv4\n  - IPv6\n  ipFamilyPolicy: PreferDualStack");
    }
    if let Some(distribution) = &s.traffic_distribution {
        let _ = write!(text, "\n  trafficDistribution: {distribution}");
    }
    text.push_str("\n  ports:");
    for (name, port, target) in &s.ports {
        let _ = write!(text, "\n  - name: {name:?}\n    protocol: TCP\n    port: {port}\n    targetPort: {target}");
    }
    text.push('\n');
    text
}

/// A Secret with these entries.
pub fn secret(namespace: &str, name: &str, entries: &[(&str, &str)]) -> String {
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let data: String = entries.iter().map(|(key, text)| format!("  {key}: {}\n", encode(text))).collect();
    format!("apiVersion: v1\nkind: Secret\nmetadata:\n  name: {name}\n  namespace: {namespace}\ndata:\n{data}")
}

/// A Gateway with the one listener of a waypoint, which takes what is of its own namespace.
pub fn waypoint(namespace: &str, name: &str, class: &str, labels: &Map) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: {name}\n  namespace: {namespace}{}\nspec:\n  gatewayClassName: {class}\n  listeners:\n  - name: mesh\n    port: 15008\n    protocol: HBONE\n",
        section("labels", labels, 2)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_reads_like_what_kubernetes_prints() {
        let text = pod(&PodManifest {
            name: "p".into(),
            namespace: "default".into(),
            uid: "u-1".into(),
            labels: map(&[("app", "p")]),
            annotations: Map::new(),
            service_account: "sa".into(),
            node: "node1".into(),
            host_ip: "198.18.0.1".into(),
            ips: vec!["198.18.1.10".into(), "fd00:198:1::a".into()],
            ports: vec![("http".into(), 9080)],
            ready: true,
        });
        assert!(text.contains("  labels:\n    app: \"p\"\nspec:\n  serviceAccountName: sa\n"), "{text}");
        assert!(text.contains("  podIPs:\n  - ip: \"198.18.1.10\"\n  - ip: \"fd00:198:1::a\"\n"), "{text}");
        assert!(text.ends_with("  - type: Ready\n    status: \"True\"\n"), "{text}");
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let manifests = Manifests::open(dir.path().join("m")).unwrap();
        manifests.put("namespace-a", &namespace("a", &map(&[("x", "y")]))).unwrap();
        let names: Vec<_> = std::fs::read_dir(manifests.dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["namespace-a.yaml"]);
        manifests.remove("namespace-a").unwrap();
        assert!(manifests.remove("namespace-a").is_err());
    }
}
