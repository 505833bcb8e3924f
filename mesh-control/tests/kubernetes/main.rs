//! The control plane on a real API server, with the rights of its service account and no others: what is followed, kept and told there, who may call, and
//! that nothing is lost or taken away by an API server that fails its clients or is not there. Needs what `cargo xtask cluster` needs, built.
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;
#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use mesh_control::app::App;
use mesh_control::config;
use mesh_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use serde_json::Value as Json;
use tonic::{Code, Request};

use cluster::{Cluster, LONG, hindrance};
use support::{Agent, connect, csr, request};

const OBJECTS: &str = include_str!("objects.yaml");
const CRDS: &str = include_str!("crds.yaml");
const WEBHOOK: &str = include_str!("webhook.yaml");

/// How long a fault lasts; `--soak` says how much of ten minutes.
fn span() -> Duration {
    let share: Option<f64> = std::env::var("UNDERMESH_SOAK").ok().and_then(|share| share.parse().ok());
    share.map_or(SHORT, |share| Duration::from_secs(600).mul_f64(share).max(SHORT))
}

const SHORT: Duration = Duration::from_secs(15);

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

const DENY: &str = "{action: DENY, rules: [{from: [{source: {namespaces: [nobody]}}]}]}";

/// A cluster with the control plane's account, and what a test does with them.
struct Scene<'a> {
    cluster: &'a Cluster,
    folder: tempfile::TempDir,
}

impl Scene<'_> {
    async fn replica(&self, webhook: &str) -> App {
        let path = self.folder.path().join("kubeconfig");
        let path = path.display().to_string();
        let fixed = ["mesh-control", "--kube", "--kubeconfig", &path, "--webhook", webhook];
        let places = ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--log-level", "debug"];
        let places = places.into_iter().chain(["--root-overlap", "10s"]);
        let args = config::parse(fixed.into_iter().chain(places)).map_err(|(e, _)| e).unwrap();
        tokio::time::timeout(LONG, App::start(args.check().unwrap())).await.expect("it starts").unwrap()
    }

    /// What the kubelet has given the pod of the first node's agent.
    fn token(&self) -> String {
        tokio::task::block_in_place(|| {
            let token = self.cluster.kubectl("exec -n undermesh-system mesh-agent -- cat /token/token").unwrap();
            token.trim().to_owned()
        })
    }

    fn root(&self) -> String {
        let map = self.object("configmap -n shop undermesh-root-cert").unwrap();
        map["data"]["root-cert.pem"].as_str().unwrap().to_owned()
    }

    fn object(&self, line: &str) -> Option<Json> {
        tokio::task::block_in_place(|| self.cluster.object(line))
    }

    fn apply(&self, objects: &str) {
        tokio::task::block_in_place(|| self.cluster.apply(objects));
    }

    fn try_apply(&self, objects: &str) -> Result<String, String> {
        tokio::task::block_in_place(|| self.cluster.try_apply(objects))
    }

    fn kubectl(&self, line: &str) -> String {
        tokio::task::block_in_place(|| self.cluster.kubectl(line)).unwrap()
    }

    fn verb(&self, words: &[&str]) {
        tokio::task::block_in_place(|| self.cluster.run(words));
    }

    fn leader(&self) -> String {
        let lease = self.object("lease -n undermesh-system mesh-control").unwrap_or_default();
        lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
    }

    /// Status and reason of the condition that was written for the present generation.
    fn condition(&self, name: &str) -> Option<(String, String)> {
        let policy = self.object(&format!("authorizationpolicy -n shop {name}"))?;
        let conditions = policy["status"]["conditions"].as_array()?;
        let condition = conditions.iter().find(|c| c["type"] == "ZtunnelAccepted")?;
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        let generation = policy["metadata"]["generation"].to_string();
        (text("observedGeneration") == generation).then(|| (text("status"), text("reason")))
    }

    async fn condition_becomes(&self, name: &str, status: &str, reason: &str) {
        let wanted = Some((status.to_owned(), reason.to_owned()));
        self.cluster.eventually(&format!("{name}: {status} {reason}"), || self.condition(name) == wanted).await;
    }

    /// An agent's stream to a replica.
    async fn agent(&self, app: &App) -> Agent {
        let channel = connect(app.listen, &self.root(), "127.0.0.1").await.unwrap();
        Agent::open(channel, &self.token(), "n1").await.unwrap()
    }

    async fn certificate(&self, app: &App, token: &str, account: &str) -> Code {
        let mut client =
            IstioCertificateServiceClient::new(connect(app.listen, &self.root(), "127.0.0.1").await.unwrap());
        let mut request =
            Request::new(request(&format!("spiffe://cluster.local/ns/shop/sa/{account}"), &csr().1, 3600));
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        client.create_certificate(request).await.map_or_else(|status| status.code(), |_| Code::Ok)
    }
}

/// What an agent has heard of removed, from here on.
struct Heard {
    agent: Agent,
    removed: Vec<String>,
}

impl Heard {
    /// Takes responses until `done` holds of what the agent has. The agent holds on for as long as it takes.
    async fn until(&mut self, what: &str, done: impl Fn(&Agent) -> bool) {
        let deadline = Instant::now() + LONG;
        while !done(&self.agent) {
            assert!(Instant::now() < deadline, "{what} does not become true: {:?}", self.agent.held.keys());
            if let Ok(response) = tokio::time::timeout(Duration::from_secs(5), self.agent.receive()).await {
                self.removed.extend(response.expect("the stream goes on").removed_resources);
            }
        }
    }

    /// Takes what comes in a time.
    async fn listen(&mut self, time: Duration) {
        let end = tokio::time::Instant::now() + time;
        while let Ok(response) = tokio::time::timeout_at(end, self.agent.receive()).await {
            self.removed.extend(response.expect("the stream goes on").removed_resources);
        }
    }
}

fn has(agent: &Agent, part: &str) -> bool {
    agent.held.keys().any(|name| name.contains(part))
}

#[test]
fn hardening_F16_F17_the_control_plane_on_a_real_cluster() {
    if let Some(reason) = hindrance() {
        // Straight to the descriptor: the test runner hides what a passing test prints.
        let _ = nix::unistd::write(std::io::stderr(), format!("SKIPPED: kubernetes: {reason}\n").as_bytes());
        return;
    }
    let cluster = Cluster::up(&["2"]);
    cluster.apply(OBJECTS);
    let scene = Scene { cluster: &cluster, folder: tempfile::tempdir().unwrap() };
    cluster.kubeconfig("undermesh-system", "mesh-control", &scene.folder.path().join("kubeconfig"));
    cluster.inside(|| play(&scene));
}

async fn play(scene: &Scene<'_>) {
    let start = Instant::now();
    let done = |what: &str| println!("{what}: done after {} s", start.elapsed().as_secs());
    let address = scene.cluster.address("n1");
    let one = scene.replica(&format!("{address}:15017")).await;
    pods_and_tokens(scene, &one).await;
    done("pods and tokens");
    policies(scene, &one).await;
    done("policies");
    settings(scene).await;
    done("settings");
    webhook(scene, &address).await;
    done("webhook");
    let two = replicas(scene, one).await;
    done("replicas");
    faults(scene, &two).await;
    done("faults");
    outage(scene, &two).await;
    done("outage");
    rotation(scene, &two).await;
    done("rotation");
    two.stop().await;
}

/// Root, copies, workloads, and who gets a certificate.
async fn pods_and_tokens(scene: &Scene<'_>, app: &App) {
    for namespace in ["shop", "default", "kube-system"] {
        for name in ["undermesh-root-cert", "istio-ca-root-cert"] {
            let line = format!("configmap -n {namespace} {name}");
            scene.cluster.eventually(&line, || scene.object(&line).is_some()).await;
        }
    }
    assert!(scene.object("secret -n undermesh-system undermesh-ca").unwrap()["data"]["ca-key.pem"].is_string());
    for line in [
        "rollout status -n shop deploy/web --timeout=240s",
        "wait -n shop --for=condition=Ready pod/far --timeout=240s",
        "wait -n undermesh-system --for=condition=Ready pod/mesh-agent --timeout=240s",
    ] {
        scene.kubectl(line);
    }
    let workloads = |agent: &Agent| agent.held.keys().filter(|name| name.contains("/Pod/shop/")).count();
    let mut heard = Heard { agent: scene.agent(app).await, removed: Vec::new() };
    heard.until("three pods and a service", |agent| workloads(agent) == 3 && has(agent, "shop/web.shop.svc")).await;
    scene.kubectl("scale -n shop deploy/web --replicas=1");
    heard.until("a pod less", |agent| workloads(agent) == 2).await;
    scene.kubectl("scale -n shop deploy/web --replicas=2");
    heard.until("a pod more", |agent| workloads(agent) == 3).await;
    drop(heard);

    let token = scene.token();
    assert_eq!(scene.certificate(app, &token, "web").await, Code::Ok);
    // The token is of the first node, where no such pod runs.
    assert_eq!(scene.certificate(app, &token, "far").await, Code::PermissionDenied);
    let other = scene.kubectl("create token mesh-agent -n undermesh-system --audience vault");
    assert_eq!(scene.certificate(app, other.trim(), "web").await, Code::Unauthenticated);
    let unbound = scene.kubectl("create token mesh-agent -n undermesh-system --audience undermesh");
    assert_eq!(scene.certificate(app, unbound.trim(), "web").await, Code::Unauthenticated);
    let foreign = scene.kubectl("create token web -n shop --audience undermesh");
    assert_eq!(scene.certificate(app, foreign.trim(), "web").await, Code::Unauthenticated);
}

/// Kinds that come later, and what is told to their objects.
async fn policies(scene: &Scene<'_>, app: &App) {
    scene.apply(CRDS);
    scene.kubectl("wait --for=condition=Established crd/authorizationpolicies.security.istio.io --timeout=120s");
    scene.apply(&policy("shop", "good", DENY));
    scene.apply(&policy("shop", "bad", "{action: DENY, rulez: []}"));
    let mut heard = Heard { agent: scene.agent(app).await, removed: Vec::new() };
    heard.until("policies", |agent| has(agent, "shop/good") && has(agent, "shop/bad")).await;
    scene.condition_becomes("good", "True", "Accepted").await;
    scene.condition_becomes("bad", "False", "Invalid").await;
    scene.kubectl("wait -n shop --for=condition=ZtunnelAccepted authorizationpolicy/good --timeout=60s");
    scene
        .cluster
        .eventually("an event", || {
            scene.kubectl("get events -n shop --field-selector=involvedObject.name=bad").contains("NotInForce")
        })
        .await;
    scene.kubectl("delete authorizationpolicy -n shop bad");
    heard.until("the bad one is gone", |agent| !has(agent, "shop/bad")).await;
}

fn config_map(mesh: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: undermesh, namespace: undermesh-system}}\ndata: {{mesh: {mesh:?}}}\n"
    )
}

/// Settings are heeded as they change, and a bad edit changes nothing.
async fn settings(scene: &Scene<'_>) {
    let copy = |namespace: &str| scene.object(&format!("configmap -n {namespace} undermesh-root-cert")).is_some();
    scene.apply(&config_map("discoverySelectors: [{matchLabels: {mesh: in}}]"));
    scene.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: probe1, labels: {mesh: in}}");
    scene.cluster.eventually("a copy", || copy("probe1")).await;
    scene.apply(&config_map("discoverySelectorz: []"));
    scene
        .cluster
        .eventually("an event", || {
            scene
                .kubectl("get events -n undermesh-system --field-selector=involvedObject.name=undermesh")
                .contains("NotInForce")
        })
        .await;
    scene.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: out}");
    scene.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: probe2, labels: {mesh: in}}");
    scene.cluster.eventually("a copy", || copy("probe2")).await;
    assert!(!copy("out"));
    // Gone is not empty: they stay for a while.
    scene.kubectl("delete configmap -n undermesh-system undermesh");
    scene.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: probe3, labels: {mesh: in}}");
    scene.cluster.eventually("a copy", || copy("probe3")).await;
    assert!(!copy("out"));
    scene.apply(&config_map(""));
    scene.cluster.eventually("copies everywhere", || copy("out")).await;
}

/// From nobody's concern to one that is waited for, and what it lets in.
async fn webhook(scene: &Scene<'_>, address: &str) {
    scene.apply(&WEBHOOK.replace("ADDRESS", address));
    let policies = |policy: &str| {
        let config = scene.object("validatingwebhookconfiguration undermesh-validation").unwrap();
        config["webhooks"].as_array().unwrap().iter().all(|w| w["failurePolicy"] == policy)
    };
    scene.cluster.eventually("Fail", || policies("Fail")).await;
    let refused = scene.try_apply(&policy("shop", "bad", "{action: DENY, rulez: []}")).unwrap_err();
    assert!(refused.contains("did you mean `rules`?"), "{refused}");
    let warned = scene.try_apply(&policy("shop", "l7", "{rules: [{to: [{operation: {methods: [GET]}}]}]}")).unwrap();
    assert!(warned.contains("Warning: ") && warned.contains("bind the policy to a waypoint"), "{warned}");
    scene.condition_becomes("l7", "True", "UnsupportedValue").await;
    let refused = scene.try_apply(&config_map("trustDomains: [a]")).unwrap_err();
    assert!(refused.contains("did you mean `trustDomain`?"), "{refused}");
    // Held back by hand.
    scene.kubectl("annotate validatingwebhookconfiguration undermesh-validation undermesh.io/paused=true");
    scene.cluster.eventually("Ignore", || policies("Ignore")).await;
    scene.kubectl("delete validatingwebhookconfiguration undermesh-validation");
    scene.kubectl("delete authorizationpolicy -n shop l7");
}

/// Either may die.
async fn replicas(scene: &Scene<'_>, one: App) -> App {
    // What stands before the API server does not touch connections that are idle: whoever begins now has none that pass it by.
    scene.verb(&["fault", "--delay", "0", "--agent", "mesh-control"]);
    let two = scene.replica("127.0.0.1:0").await;
    let leader = scene.leader();
    assert!(!leader.is_empty());
    let mut heard = Heard { agent: scene.agent(&two).await, removed: Vec::new() };
    heard.until("everything", |agent| has(agent, "shop/good") && has(agent, "/Pod/shop/far")).await;
    one.stop().await;
    scene.cluster.eventually("another leader", || ![leader.clone(), String::new()].contains(&scene.leader())).await;
    scene.apply(&policy("shop", "second", DENY));
    scene.condition_becomes("second", "True", "Accepted").await;
    heard.until("the policy", |agent| has(agent, "shop/second")).await;
    assert_eq!(heard.removed, Vec::<String>::new());
    two
}

/// Changes arrive, and nothing else does.
async fn faults(scene: &Scene<'_>, app: &App) {
    let mut heard = Heard { agent: scene.agent(app).await, removed: Vec::new() };
    heard.until("everything", |agent| has(agent, "shop/good") && has(agent, "/Pod/shop/far")).await;
    let every = if span() > SHORT { "5" } else { "2" };
    for (faults, share) in [
        (vec!["--gone", every], 1.0),
        (vec!["--busy", "0.3"], 0.2),
        (vec!["--cut", "3"], 0.5),
        (vec!["--delay", "2"], 0.1),
        (vec!["--gone", "3", "--busy", "0.3", "--cut", "7", "--delay", "0.5"], 0.8),
    ] {
        scene.verb(&[&["fault", "--agent", "mesh-control"], &faults[..]].concat());
        let end = Instant::now() + span().mul_f64(share);
        let mut round = 0;
        while round == 0 || Instant::now() < end {
            round += 1;
            let name = format!("p{round}");
            let expected = [format!("shop/{name}"), format!("shop/{name}.shop.svc.cluster.local")];
            let service = format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{port: 80}}]}}\n"
            );
            scene.apply(&format!("{}---\n{service}", policy("shop", &name, DENY)));
            let held = |agent: &Agent| expected.iter().filter(|name| agent.held.contains_key(*name)).count();
            heard.until(&format!("{faults:?}: {name}"), |agent| held(agent) == 2).await;
            scene.kubectl(&format!("delete -n shop authorizationpolicy/{name} service/{name}"));
            heard.until(&format!("{faults:?}: no {name}"), |agent| held(agent) == 0).await;
            // What was deleted, and nothing else.
            println!(
                "{faults:?}: round {round}, {:.1} s left",
                end.saturating_duration_since(Instant::now()).as_secs_f32()
            );
            heard.removed.sort();
            assert_eq!(std::mem::take(&mut heard.removed), expected, "{faults:?}");
        }
    }
    scene.verb(&["fault"]);
    heard.listen(Duration::from_secs(2)).await;
    assert_eq!(heard.removed, Vec::<String>::new());
}

/// Agents and the authority go on without an API server, and what has changed meanwhile is known when it is back.
async fn outage(scene: &Scene<'_>, app: &App) {
    let (token, root) = (scene.token(), scene.root());
    let mut heard = Heard { agent: scene.agent(app).await, removed: Vec::new() };
    heard.until("everything", |agent| has(agent, "shop/good") && has(agent, "/Pod/shop/far")).await;
    assert_eq!(scene.certificate(app, &token, "web").await, Code::Ok);
    // Made for the agent's pod, and shown to nobody yet.
    let unseen = scene.kubectl(
        "create token mesh-agent -n undermesh-system --audience undermesh --bound-object-kind Pod --bound-object-name mesh-agent",
    );
    let unseen = unseen.trim();
    let (kept, changed) = unseen.split_at(unseen.len() - 20);
    let forged = format!("{kept}{}{}", if changed.starts_with('A') { 'B' } else { 'A' }, &changed[1..]);
    scene.verb(&["stop", "kube-apiserver"]);
    heard.listen(span()).await;
    let mut client = IstioCertificateServiceClient::new(connect(app.listen, &root, "127.0.0.1").await.unwrap());
    let mut renewal = Request::new(request("spiffe://cluster.local/ns/shop/sa/web", &csr().1, 3600));
    renewal.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    client.create_certificate(renewal).await.expect("certificates are renewed");
    for (what, token, account, expected) in [
        ("a token that nobody has seen", unseen, "web", Code::Ok),
        ("of the first node", unseen, "far", Code::PermissionDenied),
        ("not as it was signed", &forged, "web", Code::Unauthenticated),
    ] {
        let mut asks = Request::new(request(&format!("spiffe://cluster.local/ns/shop/sa/{account}"), &csr().1, 3600));
        asks.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let code = client.create_certificate(asks).await.map_or_else(|status| status.code(), |_| Code::Ok);
        assert_eq!(code, expected, "{what}");
    }
    scene.verb(&["start", "kube-apiserver"]);
    scene.cluster.eventually("an API server", || scene.cluster.kubectl("get --raw /readyz").is_ok()).await;
    scene.apply(&policy("shop", "after", DENY));
    let back = Instant::now();
    heard.until("what came after", |agent| has(agent, "shop/after")).await;
    println!("heard of {:.1} s after the API server had it", back.elapsed().as_secs_f32());
    scene.condition_becomes("after", "True", "Accepted").await;
    assert_eq!(heard.removed, Vec::<String>::new());
}

/// The root is replaced because somebody asks for it on the Secret.
async fn rotation(scene: &Scene<'_>, app: &App) {
    let copy = |namespace: &str| {
        let map = scene.object(&format!("configmap -n {namespace} undermesh-root-cert")).unwrap();
        map["data"]["root-cert.pem"].as_str().unwrap().to_owned()
    };
    let count = |bundle: &str| bundle.matches("BEGIN").count();
    let old = copy("shop");
    scene.kubectl("annotate secret -n undermesh-system undermesh-ca undermesh.io/rotate-root=please");
    scene.cluster.eventually("both roots", || ["shop", "kube-system"].iter().all(|ns| count(&copy(ns)) == 2)).await;
    scene.cluster.eventually("the new root alone", || count(&copy("shop")) == 1).await;
    let new = copy("shop");
    assert_ne!(old, new);
    connect(app.listen, &new, "127.0.0.1").await.unwrap();
    assert!(connect(app.listen, &old, "127.0.0.1").await.is_err());
    assert_eq!(scene.certificate(app, &scene.token(), "web").await, Code::Ok);
}
