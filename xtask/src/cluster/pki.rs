//! The cluster's certificate authority, the certificates it signs, and the kubeconfigs that carry them. Called by `up`.
//!
//! `openssl` makes them: xtask is what every newcomer builds first, and a TLS library would be most of that build.
use super::Cluster;
use super::plan::Host;
use super::process;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

const ADMINS: &str = "system:masters";

/// Makes everything that the control plane needs. The certificates of nodes follow one by one.
pub fn create(cluster: &Cluster) -> Result<()> {
    let pki = cluster.pki();
    fs::create_dir_all(&pki).with_context(|| format!("make {}", pki.display()))?;
    authority(&pki)?;
    openssl(&pki, "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out sa.key", &[])?;
    openssl(&pki, "pkey -in sa.key -pubout -out sa.pub", &[])?;

    let plan = cluster.plan;
    let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];
    let mut reached: Vec<String> = names.map(|name| format!("DNS:{name}")).into();
    for dual in [plan.address(Host::Control), plan.service(1)] {
        reached.extend([format!("IP:{}", dual.v4), format!("IP:{}", dual.v6)]);
    }
    reached.extend(["IP:127.0.0.1".to_owned(), "IP:::1".to_owned()]);
    sign(&pki, "apiserver", "/CN=kube-apiserver", &reached)?;
    sign(&pki, "apiserver-kubelet", &format!("/O={ADMINS}/CN=apiserver-kubelet"), &[])?;
    sign(&pki, "front-proxy", "/CN=front-proxy", &[])?;
    sign(&pki, "admin", &format!("/O={ADMINS}/CN=admin"), &[])?;
    for name in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
        sign(&pki, name, &format!("/CN=system:{name}"), &[])?;
        kubeconfig(cluster, name)?;
    }
    kubeconfig(cluster, "admin")
}

/// The certificate that a node's kubelet shows to the API server, and to its clients, and the kubeconfig with it.
pub fn node(cluster: &Cluster, node: u8) -> Result<()> {
    let name = Host::Node(node).to_string();
    let address = cluster.plan.address(Host::Node(node));
    let reached = [format!("DNS:{name}"), format!("IP:{}", address.v4), format!("IP:{}", address.v6)];
    sign(&cluster.pki(), &name, &format!("/O=system:nodes/CN=system:node:{name}"), &reached)?;
    kubeconfig(cluster, &name)
}

/// A new key, and a certificate for it that outlasts every cluster.
const REQUEST: &str = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650";

fn authority(pki: &Path) -> Result<()> {
    let usage = "keyUsage=critical,keyCertSign,cRLSign,digitalSignature";
    let line = format!("{REQUEST} -keyout ca.key -out ca.crt -subj /CN=undermesh-cluster-ca");
    openssl(pki, &line, &["-addext", usage])
}

fn sign(pki: &Path, file: &str, subject: &str, reached: &[String]) -> Result<()> {
    let line = format!("{REQUEST} -CA ca.crt -CAkey ca.key -keyout {file}.key -out {file}.crt");
    let names = format!("subjectAltName={}", reached.join(","));
    let mut extensions = vec![
        "-subj",
        subject,
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-addext",
        "keyUsage=digitalSignature",
        "-addext",
        "extendedKeyUsage=clientAuth,serverAuth",
    ];
    if !reached.is_empty() {
        extensions.extend(["-addext", &names]);
    }
    openssl(pki, &line, &extensions).with_context(|| format!("certificate of {subject}"))
}

fn openssl(pki: &Path, line: &str, more: &[&str]) -> Result<()> {
    let mut command = Command::new("openssl");
    process::output(command.current_dir(pki).args(line.split(' ')).args(more)).map(drop)
}

fn kubeconfig(cluster: &Cluster, name: &str) -> Result<()> {
    let (pki, server) = (cluster.pki(), cluster.plan.api_server());
    let pki = pki.display();
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: cluster\n\
         clusters: [{{name: cluster, cluster: {{server: \"{server}\", certificate-authority: \"{pki}/ca.crt\"}}}}]\n\
         users: [{{name: {name}, user: {{client-certificate: \"{pki}/{name}.crt\", client-key: \"{pki}/{name}.key\"}}}}]\n\
         contexts: [{{name: cluster, context: {{cluster: cluster, user: {name}}}}}]\n"
    );
    let path = cluster.kubeconfig(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}
