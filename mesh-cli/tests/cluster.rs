//! Installs, checks, shows and uninstalls on a real Kubernetes. The images are stand-ins: what is tested is `meshctl`, its chart and the order of things,
//! not the mesh. Needs what `cargo xtask cluster` needs, and its programs built; else it says that it was skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

const MESHCTL: &str = env!("CARGO_BIN_EXE_meshctl");

/// Stands in for both programs: serves what probes ask for, when no other on its node does, and cleans by leaving a file.
const STAND_IN: &str = r#"#!/bin/sh
if [ "$1" = cleanup ]; then
  echo cleaned > /run/undermesh/cleaned
  exit 0
fi
[ "$1" = in-charge ] && exit 0
trap 'kill $!; exit 0' TERM
while :; do
  httpd -f -p PORT -h /www 2>/dev/null & wait $!
  sleep 1 & wait $!
done
"#;
/// The pages that it serves.
const PAGES: [(&str, &str); 3] = [
    ("ready", "ready"),
    ("healthz/ready", "ready"),
    (
        "debug/diagnoses",
        r#"[{"severity": "error", "object": "AuthorizationPolicy shop/deny", "field": "spec.rules", "message": "no such field"}]"#,
    ),
];

/// A namespace whose label is misspelt, and a pod that cannot be in the mesh.
const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambiant}}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: shop, labels: {istio.io/dataplane-mode: ambient}, annotations: {ambient.istio.io/redirection: enabled}}
spec:
  hostNetwork: true
  containers: [{name: c, image: docker.io/library/busybox:latest, imagePullPolicy: IfNotPresent, command: [sleep, "3600"]}]
"#;

struct Cluster {
    index: String,
    xtask: PathBuf,
    folder: PathBuf,
    janitor: Child,
}

impl Cluster {
    /// A cluster of our own, or why there is none.
    fn up() -> Result<Cluster, String> {
        let target = Path::new(MESHCTL).parent().expect("a folder");
        let xtask = target.join("xtask");
        if !xtask.exists() {
            return Err("xtask is not built: `cargo build -p xtask`".into());
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let user = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        if user.split_whitespace().nth(1) != Some("0") {
            return Err("needs root".into());
        }
        let check = Command::new(&xtask).args(["cluster", "build", "--check"]).output().expect("xtask starts");
        if !check.status.success() {
            return Err(String::from_utf8_lossy(&check.stderr).lines().last().unwrap_or("programs are missing").into());
        }
        for index in (1..8).rev().map(|index| index.to_string()) {
            let line = format!("read -r _; exec '{}' cluster --cluster {index} down", xtask.display());
            // It waits for our end, which it notices by the end of its input, also when we are killed.
            let mut janitor = Command::new("sh").args(["-c", &line]).stdin(Stdio::piped()).spawn().expect("a janitor");
            let up = Command::new(&xtask).args(["cluster", "--cluster", &index, "up"]).output().expect("xtask starts");
            if up.status.success() {
                let folder = target.parent().expect("a target folder").join(format!("cluster{index}"));
                return Ok(Cluster { index, xtask, folder, janitor });
            }
            // Somebody else's is not ours to end.
            janitor.kill().and_then(|()| janitor.wait()).expect("killed");
            let said = String::from_utf8_lossy(&up.stderr).into_owned();
            if !said.contains("is there already") {
                let _ = Command::new(&xtask).args(["cluster", "--cluster", &index, "down"]).status();
                panic!("{said}");
            }
        }
        panic!("all clusters of this machine are in use");
    }

    fn verb(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.xtask).args(["cluster", "--cluster", &self.index]).args(arguments).output();
        let output = output.expect("xtask starts");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn kubectl(&self, line: &str) -> String {
        self.verb(&[&["kubectl"], line.split(' ').collect::<Vec<_>>().as_slice()].concat())
    }

    fn meshctl(&self, line: &str) -> Output {
        let kubeconfig = self.folder.join("admin.kubeconfig");
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/um{}-cp", self.index))
            .args(["--", MESHCTL, "--kubeconfig"])
            .arg(kubeconfig);
        command.args(line.split(' ')).stdin(Stdio::null()).output().expect("meshctl starts")
    }

    /// Runs it to its end with a code, and gives what it said as JSON.
    fn json(&self, line: &str, code: i32) -> Value {
        let output = self.meshctl(&format!("{line} -o json"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{line}: {said}\n{}", self.kubectl("get pods -A -o wide"));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{line}: {error}\n{said}"))
    }

    /// Both images, made of a shell script.
    fn images(&self) {
        let folder = self.folder.join("stand-in");
        fs::create_dir_all(&folder).expect("a folder");
        for (name, port) in [("mesh-control", 15014), ("mesh-agent", 15021)] {
            let script = folder.join(name);
            fs::write(&script, STAND_IN.replace("PORT", &port.to_string())).expect("written");
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("a mode");
            let archive = folder.join(format!("{name}.tar"));
            let (image, archive) = (format!("registry.example/undermesh/{name}:0.1.0"), archive.display().to_string());
            let mut arguments = vec!["image".to_owned(), image, archive.clone(), "--busybox".to_owned()];
            arguments.extend(["--file".to_owned(), format!("{}:/{name}", script.display())]);
            for (page, text) in PAGES {
                let file = folder.join(page.replace('/', "-"));
                fs::write(&file, text).expect("written");
                arguments.extend(["--file".to_owned(), format!("{}:/www/{page}", file.display())]);
            }
            arguments.extend(["--entrypoint".to_owned(), "/bin/sh".to_owned(), format!("/{name}")]);
            self.verb(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
            self.verb(&["load", &archive]);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

fn errors(report: &Value) -> Vec<&str> {
    let checks = report["checks"].as_array().expect("checks").iter();
    checks.filter(|check| check["result"] == "error").filter_map(|check| check["id"].as_str()).collect()
}

#[test]
fn a_mesh_comes_and_goes() {
    let cluster = match Cluster::up() {
        Ok(cluster) => cluster,
        Err(why) => return println!("SKIPPED: meshctl on a real cluster: {why}"),
    };
    assert_eq!(errors(&cluster.json("check --pre", 0)), [""; 0]);
    cluster.images();
    let values = cluster.folder.join("values.yaml");
    // A stand-in makes no root certificate.
    fs::write(&values, "image: {hub: registry.example/undermesh}\n").expect("written");
    cluster.kubectl("create namespace undermesh-system");
    cluster.kubectl("create configmap undermesh-root-cert -n undermesh-system --from-literal=root-cert.pem=none");

    let install = format!("install -f {} --set control.replicas=2 --timeout 3m", values.display());
    let installed = cluster.json(&install, 0);
    assert_eq!(installed["ready"], true);
    assert!(installed["objects"].as_array().is_some_and(|all| all.iter().any(|one| one["result"] == "created")));

    // The same again changes nothing: the objects keep their generation.
    let generation = "get daemonset,deployment -n undermesh-system -o jsonpath={.items[*].metadata.generation}";
    let before = cluster.kubectl(generation);
    cluster.json(&format!("{install} --reuse-values"), 0);
    assert_eq!(cluster.kubectl(generation), before);

    let status = cluster.json("status", 0);
    assert_eq!(status["diagnoses"][0]["object"], "AuthorizationPolicy shop/deny");
    assert!(
        status["nodes"].as_array().is_some_and(|nodes| nodes.len() == 2 && nodes.iter().all(|n| n["ready"] == true))
    );
    assert_eq!(cluster.json("version", 0)["agents"][0], "0.1.0 (2)");

    let shop = cluster.folder.join("shop.yaml");
    fs::write(&shop, SHOP).expect("written");
    cluster.kubectl(&format!("apply -f {}", shop.display()));
    let report = cluster.json("check", 79);
    assert_eq!(errors(&report), ["root", "labels", "policies"], "{report:#}");

    // With nobody there to answer, edits are let through, and held again later.
    let policies = "get validatingwebhookconfiguration undermesh-validation -o jsonpath={.webhooks[*].failurePolicy}";
    let fail = r#"[{"op":"replace","path":"/webhooks/0/failurePolicy","value":"Fail"}]"#;
    cluster.kubectl(&format!("patch validatingwebhookconfiguration undermesh-validation --type=json -p={fail}"));
    assert_eq!(cluster.kubectl(policies), "Fail Ignore Ignore");
    assert_eq!(cluster.json("webhook pause", 0)["changed"], true);
    assert_eq!(cluster.kubectl(policies), "Ignore Ignore Ignore");
    assert_eq!(cluster.json("webhook pause", 0)["changed"], false);
    let paused = cluster.json("check", 79);
    let is_told = |one: &Value| one["fix"] == "meshctl webhook resume";
    let mut findings = paused["checks"].as_array().expect("checks").iter().filter_map(|one| one["findings"].as_array());
    assert!(findings.any(|found| found.iter().any(is_told)), "{paused:#}");
    assert_eq!(cluster.json("webhook resume", 0)["changed"], true);
    let mark = r"get validatingwebhookconfiguration undermesh-validation -o jsonpath={.metadata.annotations.undermesh\.io/paused}";
    assert_eq!(cluster.kubectl(mark), "");

    // An image that is not there is named while it is waited for, and at the end.
    let late = cluster.meshctl("install --reuse-values --set image.tag=0.0.0 --timeout 20s");
    let said = String::from_utf8_lossy(&late.stderr).into_owned();
    assert_eq!(late.status.code(), Some(1), "{said}");
    assert!(
        said.contains("not done after") && (said.contains("ErrImagePull") || said.contains("ImagePullBackOff")),
        "{said}"
    );
    cluster.json(&install, 0);

    // A question that nobody can answer is no yes.
    assert_eq!(cluster.meshctl("uninstall").status.code(), Some(64));
    let gone = cluster.json("uninstall --yes", 0);
    let clean = |node: &serde_json::Value| node["clean"] == true;
    assert!(gone["nodes"].as_array().is_some_and(|nodes| nodes.len() == 2 && nodes.iter().all(clean)), "{gone:#}");
    for node in ["1", "2"] {
        assert_eq!(cluster.verb(&["node", node, "cat", "/run/undermesh/cleaned"]).trim(), "cleaned");
    }
    // The namespace was there before, and definitions stay.
    let left = cluster.kubectl(
        "get all,serviceaccounts,roles,rolebindings,poddisruptionbudgets,networkpolicies -n undermesh-system -o name",
    );
    assert_eq!(left.lines().filter(|line| line.contains("mesh")).collect::<Vec<_>>(), [""; 0]);
    assert_eq!(
        cluster.kubectl("get clusterrole,clusterrolebinding -l app.kubernetes.io/part-of=undermesh -o name"),
        ""
    );
    let mark = r"get pod host -n shop -o jsonpath={.metadata.annotations.ambient\.istio\.io/redirection}";
    assert_eq!(cluster.kubectl(mark), "");
    assert!(cluster.kubectl("get crd -o name").contains("authorizationpolicies.security.istio.io"));
    cluster.json("uninstall --yes --purge-crds", 0);
    assert_eq!(cluster.kubectl("get crd -o name"), "");
}
