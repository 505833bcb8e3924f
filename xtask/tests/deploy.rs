//! The chart on a cluster: what it installs becomes ready, with the product's own images; the CRDs take what Istio's users write and refuse what is
//! wrong; Bookinfo runs, and is in the mesh when its namespace is labelled. Needs what a cluster needs, Helm's engine, and the binaries built.

#[path = "support/cluster.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::{Cluster, XTASK, can_run, skip};

/// Runs xtask, which must succeed, and returns what it printed.
fn xtask(arguments: &[&str]) -> String {
    let output = Command::new(XTASK).args(arguments).stdin(Stdio::null()).output().expect("xtask starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a root").to_path_buf()
}

fn has_engine(test: &str) -> bool {
    let output = Command::new(XTASK).args(["chart", "--values", "/dev/null"]).output().expect("xtask starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || said.contains("missing: "), "{said}");
    output.status.success() || skip(test, said.trim().trim_start_matches("error: "))
}

/// Whether the agent that was built knows a flag.
fn agent_knows(flag: &str) -> bool {
    let agent = Path::new(XTASK).with_file_name("mesh-agent");
    let help = Command::new(agent).arg("--help").output().expect("the agent starts");
    String::from_utf8_lossy(&help.stdout).contains(&format!("--{flag} "))
}

struct Kubectl<'a>(&'a Cluster);

impl Kubectl<'_> {
    /// What it prints; nothing if that cannot be had now.
    fn says(&self, line: &str) -> String {
        let output = self.0.verb(&[&["kubectl"], &line.split(' ').collect::<Vec<_>>()[..]].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs what must succeed.
    fn does(&self, line: &str) {
        self.0.run(&[&["kubectl"], &line.split(' ').collect::<Vec<_>>()[..]].concat());
    }

    /// What it complains about; empty if it does not.
    fn refuses(&self, object: &str) -> String {
        let file = std::env::temp_dir().join(format!("undermesh-object-{}.yaml", self.0.index));
        fs::write(&file, object).expect("written");
        let output = self.0.verb(&["kubectl", "create", "--dry-run=server", "-f", &file.to_string_lossy()]);
        fs::remove_file(&file).expect("removed");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.success(), said.is_empty(), "{said}");
        said
    }
}

/// What users of Istio write, and what is wrong with some of it.
const OBJECTS: [(&str, &str); 9] = [
    (
        "",
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a}, spec: {selector: {matchLabels: {app: ratings}}, \
         action: DENY, rules: [{from: [{source: {notPrincipals: [cluster.local/ns/default/sa/x]}}], to: [{operation: {ports: ['9080']}}]}]}}",
    ),
    (
        "",
        "{apiVersion: security.istio.io/v1beta1, kind: PeerAuthentication, metadata: {name: a}, spec: {mtls: {mode: STRICT}}}",
    ),
    // Kept for the control plane to refuse: without the misspelt part it would allow everybody.
    (
        "",
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a}, spec: {rules: [{form: [{source: {namespaces: [a]}}]}]}}",
    ),
    (
        "Unsupported value: \"STRICKT\"",
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: a}, spec: {mtls: {mode: STRICKT}}}",
    ),
    (
        "portLevelMtls needs a selector",
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: a}, spec: {portLevelMtls: {'80': {mode: DISABLE}}}}",
    ),
    (
        "only one of selector, targetRef and targetRefs",
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a}, spec: {selector: {matchLabels: {a: b}}, \
         targetRefs: [{kind: Service, group: '', name: b}]}}",
    ),
    (
        "",
        "{apiVersion: networking.istio.io/v1alpha3, kind: VirtualService, metadata: {name: a}, spec: {hosts: [reviews], http: [{match: [{headers: \
         {end-user: {exact: jason}}}], fault: {delay: {percentage: {value: 100}, fixedDelay: 7s}}, route: [{destination: {host: reviews, \
         subset: v2}}]}, {route: [{destination: {host: reviews, subset: v1}, weight: 100}], timeout: 0.5s, retries: {attempts: 2}}]}}",
    ),
    (
        "",
        "{apiVersion: networking.istio.io/v1beta1, kind: DestinationRule, metadata: {name: a}, spec: {host: reviews, trafficPolicy: {connectionPool: \
         {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}, outlierDetection: {consecutive5xxErrors: 1, interval: 1s}}, subsets: \
         [{name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}]}}",
    ),
    (
        "unknown field \"spec.retry\"",
        "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: a}, spec: {hosts: [a], retry: {attempts: 1}}}",
    ),
];

#[test]
fn the_chart_runs_on_a_cluster_and_bookinfo_in_the_mesh() {
    if !can_run("deploy") || !has_engine("deploy") {
        return;
    }
    let with_agents = agent_knows("kube") || skip("deploy: agents", "this mesh-agent has no --kube");
    let cluster = Cluster::up(&[]);
    let kubectl = Kubectl(&cluster);
    let folder = std::env::temp_dir().join(format!("undermesh-deploy-{}", cluster.index));
    let out = folder.to_string_lossy().into_owned();
    let images = |arguments: &[&str]| -> Vec<String> {
        let said = xtask(&[&["image", "--no-build", "--out", &out], arguments].concat());
        said.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    };
    for archive in [images(&[]), images(&["--bookinfo"])].concat() {
        cluster.run(&["load", &archive]);
    }

    // The CRDs, as Istio's users know them.
    let crds = root().join("deploy/rendered/crds.yaml");
    cluster.run(&["kubectl", "apply", "--server-side", "-f", &crds.to_string_lossy()]);
    kubectl.does("wait --for=condition=Established crd --all --timeout=60s");
    for (complaint, object) in OBJECTS {
        let said = kubectl.refuses(object);
        assert!(said.contains(complaint) && said.is_empty() == complaint.is_empty(), "{object}: {said:?}");
    }

    // All else, with what is particular to this cluster.
    let values = folder.join("values.yaml");
    let mut of_cluster: serde_json::Value = serde_json::from_str(&cluster.run(&["values"])).expect("values");
    if !(agent_knows("cni") || skip("deploy: new pods", "this mesh-agent has no --cni")) {
        of_cluster["agent"] = serde_json::json!({ "cni": { "enabled": false } });
    }
    fs::write(&values, of_cluster.to_string()).expect("written");
    let helm = |what: &str| cluster.run(&["helm", what, "--values", &values.to_string_lossy()]);
    if with_agents {
        // Helm waits until all is ready.
        helm("install");
    } else {
        kubectl.does("create namespace undermesh-system");
        cluster.apply(&xtask(&["chart", "--values", &values.to_string_lossy()]));
    }
    cluster.eventually("two control planes", || {
        kubectl.says("-n undermesh-system get deploy mesh-control -o jsonpath={.status.readyReplicas}") == "2"
    });
    cluster.apply(&fs::read_to_string(root().join("deploy/bookinfo/bookinfo.yaml")).expect("Bookinfo's manifests"));
    for workload in ["productpage-v1", "details-v1", "reviews-v1", "reviews-v2", "reviews-v3", "ratings-v1"] {
        kubectl.does(&format!("rollout status deploy/{workload} --timeout=240s"));
    }
    kubectl.does(
        "run client --image=docker.io/curlimages/curl:latest --image-pull-policy=IfNotPresent --command -- sleep 3600",
    );
    kubectl.does("wait --for=condition=Ready pod/client --timeout=120s");
    let page = || kubectl.says("exec client -- curl -sS --max-time 10 http://productpage:9080/productpage");
    let whole =
        |page: &str| page.contains("ISBN-13") && page.contains("Reviews served by") && !page.contains("unavailable");
    cluster.eventually("a page", || whole(&page()));

    if with_agents {
        let of_pods =
            |path: &str| kubectl.says(&format!("get pods -l run!=client -o jsonpath={{.items[*].metadata.{path}}}"));
        let redirected = || of_pods(r"annotations.ambient\.istio\.io/redirection");
        cluster.eventually("two agents", || {
            kubectl.says("-n undermesh-system get ds mesh-agent -o jsonpath={.status.numberReady}") == "2"
        });
        let before = of_pods("uid");
        assert_eq!((before.split(' ').count(), redirected()), (6, String::new()));
        kubectl.does("label namespace default istio.io/dataplane-mode=ambient");
        cluster.eventually("six pods in the mesh", || redirected() == ["enabled"; 6].join(" "));
        assert_eq!(of_pods("uid"), before, "the same pods, not new ones");
        let pages: Vec<String> = (0..10).map(|_| page()).collect();
        assert!(pages.iter().all(|page| whole(page)), "{}", pages.join("\n"));
        kubectl.does("label namespace default istio.io/dataplane-mode-");
        cluster.eventually("no pod in the mesh", || redirected().is_empty());
        assert!(whole(&page()));

        // What mesh-control changed of its webhook, if it has one, is not in the way.
        helm("upgrade");
        helm("uninstall");
        let ours = "serviceaccounts,roles,clusterroles,validatingwebhookconfigurations,all";
        let list = format!("kubectl get {ours} -A -o name -l app.kubernetes.io/part-of=undermesh");
        // Helm does not wait for the last pods. An answer that cannot be had is not an empty one.
        cluster.eventually("nothing of it", || {
            let output = cluster.verb(&list.split(' ').collect::<Vec<_>>());
            output.status.success() && output.stdout.is_empty()
        });
        assert!(kubectl.says("get crd -o name").contains("authorizationpolicies.security.istio.io"), "policies stay");
    }
    fs::remove_dir_all(&folder).expect("removed");
    cluster.leaves_nothing();
}
