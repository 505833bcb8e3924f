//! Takes a picture of a cluster. What cannot be read is noted, and the rest is read all the same: a check that dies of a missing right explains nothing.
//! Called by `check` and `status`.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use http::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::facts::{AGENT, CONTROL, Denial, Diagnosis, ROOT, Snapshot, Words};
use crate::api::{Api, Failure};
use crate::stop::Stop;
use crate::view::{Node, Pod};

/// Lines of a log that are read.
const LOG_LINES: u16 = 40;
/// Agents and kubelets that are asked at a time.
const AT_ONCE: usize = 16;

/// What a person needs who installs: verb, group, resource.
const INSTALLER: [(&str, &str, &str); 8] = [
    ("create", "", "namespaces"),
    ("create", "apiextensions.k8s.io", "customresourcedefinitions"),
    ("create", "rbac.authorization.k8s.io", "clusterroles"),
    ("create", "rbac.authorization.k8s.io", "clusterrolebindings"),
    ("create", "apps", "daemonsets"),
    ("create", "apps", "deployments"),
    ("patch", "", "configmaps"),
    ("create", "admissionregistration.k8s.io", "validatingwebhookconfigurations"),
];
/// What the control plane needs.
const CONTROL_RIGHTS: [(&str, &str, &str); 8] = [
    ("watch", "", "pods"),
    ("watch", "", "services"),
    ("watch", "", "namespaces"),
    ("watch", "discovery.k8s.io", "endpointslices"),
    ("watch", "security.istio.io", "authorizationpolicies"),
    ("create", "authentication.k8s.io", "tokenreviews"),
    ("patch", "", "configmaps"),
    ("get", "apiextensions.k8s.io", "customresourcedefinitions"),
];
/// What agents need.
const AGENT_RIGHTS: [(&str, &str, &str); 2] = [("watch", "", "pods"), ("watch", "", "namespaces")];

/// Reads and notes what cannot be read.
struct Reader<'a> {
    api: &'a Api,
    unread: Vec<(String, String)>,
}

impl Reader<'_> {
    fn note<T: Default>(&mut self, what: &str, result: Result<T, Failure>) -> T {
        result.unwrap_or_else(|failure| {
            self.unread.push((what.to_owned(), failure.why));
            T::default()
        })
    }

    /// What there is of a kind; nothing if the kind is not there.
    async fn list<T: DeserializeOwned>(&mut self, what: &str, path: &str) -> Vec<T> {
        match self.api.view(path).await {
            Err(failure) if failure.code == 404 => Vec::new(),
            result => self.note(what, result),
        }
    }
}

/// Takes it. Fails only if the API server itself cannot be asked.
pub async fn snapshot(api: &Api, namespace: &str, is_before: bool) -> Result<Snapshot, Stop> {
    let version = api.send(Method::GET, "/version", "", Vec::new()).await?;
    let server_time = version.date.as_deref().and_then(http_date);
    let since_epoch = mesh_runtime::clock::now().duration_since(std::time::UNIX_EPOCH);
    let now = i64::try_from(since_epoch.map(|d| d.as_secs()).unwrap_or(0)).unwrap_or(i64::MAX);
    if version.code == 401 {
        return Err(Stop::new(
            crate::stop::UNAVAILABLE,
            "the API server does not know who this is (401): renew the kubeconfig's credentials",
        ));
    }
    let kubernetes: Value = serde_json::from_slice(&version.body).unwrap_or_default();
    let mut reader = Reader { api, unread: Vec::new() };
    let mut snapshot = Snapshot {
        namespace: namespace.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now,
        server_time,
        kubernetes: kubernetes["gitVersion"].as_str().unwrap_or_default().to_owned(),
        nodes: reader.list("nodes", "/api/v1/nodes").await,
        node_leases: reader.list("leases of nodes", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases").await,
        namespaces: reader.list("namespaces", "/api/v1/namespaces").await,
        pods: reader.list("pods", "/api/v1/pods").await,
        endpoints: reader
            .list(
                "endpoints of mesh-control",
                &format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{CONTROL}"),
            )
            .await,
        network_policies: reader.list("network policies", "/apis/networking.k8s.io/v1/networkpolicies").await,
        deployments: reader.list("deployments", "/apis/apps/v1/deployments").await,
        daemon_sets: reader.list("daemonsets", "/apis/apps/v1/daemonsets").await,
        roots: reader.list("root certificates", &format!("/api/v1/configmaps?fieldSelector=metadata.name%3D{}", ROOT.0)).await,
        definitions: reader.list("definitions (CRDs)", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions").await,
        webhooks: reader
            .list("webhooks", "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations")
            .await,
        events: reader.list("events", "/api/v1/events?fieldSelector=type%3DWarning").await,
        ..Snapshot::default()
    };
    snapshot.events.sort_by_key(|event| event.last_timestamp.clone().or_else(|| event.event_time.clone()));
    snapshot.cgroups = cgroups(api, &snapshot.nodes).await;
    snapshot.denied = reader.denied(namespace, is_before || !snapshot.is_installed()).await;
    if !is_before {
        snapshot.agents = agents(api, snapshot.pods_of(AGENT).collect()).await;
        snapshot.diagnoses = diagnoses(api, snapshot.pods_of(CONTROL).collect()).await;
        snapshot.webhook_answer = webhook(api, &snapshot).await;
    }
    snapshot.unread = reader.unread;
    Ok(snapshot)
}

/// The date of an HTTP answer.
fn http_date(text: &str) -> Option<i64> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok().map(jiff::Timestamp::as_second)
}

impl Reader<'_> {
    /// Who may not do what they need.
    async fn denied(&mut self, namespace: &str, is_before: bool) -> Vec<Denial> {
        let mut questions = Vec::new();
        if is_before {
            questions.extend(INSTALLER.map(|right| ("you".to_owned(), right)));
        } else {
            let account = |name: &str| format!("system:serviceaccount:{namespace}:{name}");
            questions.extend(CONTROL_RIGHTS.map(|right| (account(CONTROL), right)));
            questions.extend(AGENT_RIGHTS.map(|right| (account(AGENT), right)));
        }
        let api = self.api;
        let answers = join_all(questions.into_iter().map(|(who, (verb, group, resource))| async move {
            let attributes = json!({"verb": verb, "group": group, "resource": resource});
            let (kind, mut spec) = ("SelfSubjectAccessReview", json!({ "resourceAttributes": attributes }));
            let (kind, plural) = match who.as_str() {
                "you" => (kind, "selfsubjectaccessreviews"),
                user => {
                    spec["user"] = json!(user);
                    // Every account is in these groups, and roles may be bound to them.
                    spec["groups"] = json!([
                        "system:serviceaccounts",
                        format!("system:serviceaccounts:{namespace}"),
                        "system:authenticated"
                    ]);
                    ("SubjectAccessReview", "subjectaccessreviews")
                }
            };
            let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec});
            let answer = api.create(&format!("/apis/authorization.k8s.io/v1/{plural}"), &review).await;
            let what =
                format!("{verb} {resource}{}", if group.is_empty() { String::new() } else { format!(".{group}") });
            (Denial { who: who.rsplit(':').next().unwrap_or(&who).to_owned(), what }, answer)
        }))
        .await;
        let mut denied = Vec::new();
        for (denial, answer) in answers {
            match answer {
                Ok(answer) if answer.pointer("/status/allowed") == Some(&Value::Bool(true)) => {}
                Ok(_) => denied.push(denial),
                Err(failure) => {
                    self.note::<()>("rights of accounts", Err(failure));
                    break;
                }
            }
        }
        denied
    }
}

/// What kubelets say of the cgroups that they use. Who does not say it says nothing.
async fn cgroups(api: &Api, nodes: &[Node]) -> BTreeMap<String, u8> {
    let mut found = BTreeMap::new();
    for part in nodes.chunks(AT_ONCE) {
        let answers = join_all(part.iter().map(|node| async move {
            let path = format!("/api/v1/nodes/{}/proxy/metrics", node.metadata.name);
            let answer = api.send(Method::GET, &path, "", Vec::new()).await.ok()?;
            let version = cgroup_version(&String::from_utf8_lossy(&answer.body))?;
            Some((node.metadata.name.clone(), version))
        }));
        found.extend(answers.await.into_iter().flatten());
    }
    found
}

/// Of a kubelet's metrics.
fn cgroup_version(metrics: &str) -> Option<u8> {
    let line = metrics.lines().find(|line| line.starts_with("kubelet_cgroup_version"))?;
    Some(if line.split_whitespace().next_back()? == "1" { 1 } else { 2 })
}

/// Words of agents that are not ready.
async fn agents(api: &Api, pods: Vec<&Pod>) -> BTreeMap<String, Words> {
    let mut found = BTreeMap::new();
    let unready: Vec<_> = pods.into_iter().filter(|pod| !pod.is_ready()).collect();
    for part in unready.chunks(AT_ONCE) {
        let words = join_all(part.iter().map(|pod| async move {
            let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
            let page = api.page_of_pod(namespace, name, 15021, "/healthz/ready").await.ok();
            // The proxy's own errors are objects; the agent's page is text.
            let readiness =
                page.map(|page| String::from_utf8_lossy(&page.body).into_owned()).filter(|text| !text.starts_with('{'));
            let mut log = String::new();
            for previous in [true, false] {
                let path =
                    format!("/api/v1/namespaces/{namespace}/pods/{name}/log?tailLines={LOG_LINES}&previous={previous}");
                if let Ok(answer) = api.send(Method::GET, &path, "", Vec::new()).await
                    && answer.code == 200
                {
                    log.push_str(&String::from_utf8_lossy(&answer.body));
                }
            }
            (name.clone(), Words { readiness, log })
        }));
        found.extend(words.await);
    }
    found
}

/// What a replica of the control plane says that is wrong.
pub async fn diagnoses(api: &Api, pods: Vec<&Pod>) -> Option<Vec<Diagnosis>> {
    for pod in pods.into_iter().filter(|pod| pod.is_ready()) {
        let page = api.page_of_pod(&pod.metadata.namespace, &pod.metadata.name, 15014, "/debug/diagnoses").await;
        if let Ok(page) = page
            && page.code == 200
            && let Ok(found) = serde_json::from_slice(&page.body)
        {
            return Some(found);
        }
    }
    None
}

/// Has the API server call the webhook with something harmless that is not kept. It speaks of it only where a failure refuses.
async fn webhook(api: &Api, snapshot: &Snapshot) -> Option<String> {
    let has_webhook = snapshot
        .webhooks
        .iter()
        .flat_map(|c| &c.webhooks)
        .any(|w| w.client_config.service.namespace == snapshot.namespace && w.failure_policy == "Fail");
    if !has_webhook {
        return None;
    }
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "meshctl-check", "namespace": snapshot.namespace}, "spec": {},
    });
    let path = format!("/apis/security.istio.io/v1/namespaces/{}/peerauthentications?dryRun=All", snapshot.namespace);
    let failure = api.create(&path, &policy).await.err()?;
    failure.why.contains("failed calling webhook").then_some(failure.why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_write_is_read() {
        assert_eq!(http_date("Sat, 21 Nov 2026 17:00:00 GMT"), Some(1_795_280_400));
        assert_eq!(http_date("yesterday"), None);
        let metrics = "# TYPE kubelet_cgroup_version gauge\nkubelet_cgroup_version 1\nkubelet_x 2\n";
        assert_eq!(cgroup_version(metrics), Some(1));
        assert_eq!(cgroup_version(&metrics.replace("version 1", "version 2")), Some(2));
        assert_eq!(cgroup_version("kubelet_x 2"), None);
    }
}
