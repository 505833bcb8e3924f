//! Takes a picture of a cluster. What cannot be read is noted, and the rest is read all the same: a check that dies of a missing right explains nothing.
//! Called by `check` and `status`.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use http::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::facts::{AGENT, CONTROL, Denial, Diagnosis, ROOT, Snapshot, Words};
use super::{needs, rights};
use crate::api::{Answer, Api, Failure};
use crate::stop::Stop;
use crate::view::Pod;

/// Lines of a log that are read.
const LOG_LINES: u16 = 40;
/// Agents and kubelets that are asked at a time.
const AT_ONCE: usize = 16;

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
        match self.api.view_all(path).await {
            Err(failure) if failure.code == 404 => Vec::new(),
            Ok((found, 0)) => found,
            Ok((found, strange)) => {
                self.unread.push((what.to_owned(), format!("{strange} of them have a form that is not known here")));
                found
            }
            Err(failure) => self.note(what, Err(failure)),
        }
    }
}

/// Takes it. Fails only if the API server itself cannot be asked.
pub async fn snapshot(api: &Api, namespace: &str, is_before: bool) -> Result<Snapshot, Stop> {
    let version = api.send(Method::GET, "/version", "", Vec::new()).await?;
    let server_time = version.date.as_deref().and_then(http_date);
    let since_epoch = mesh_runtime::clock::now().duration_since(std::time::UNIX_EPOCH);
    let now = i64::try_from(since_epoch.map(|d| d.as_secs()).unwrap_or(0)).unwrap_or(i64::MAX);
    let mut reader = Reader { api, unread: Vec::new() };
    let kubernetes = version_of(&version)?.unwrap_or_else(|| {
        reader.unread.push((needs::VERSION.to_owned(), "the API server answers 403".to_owned()));
        String::new()
    });
    let mut snapshot = Snapshot {
        namespace: namespace.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now,
        server_time,
        kubernetes,
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
        cilium: reader
            .list(
                "configuration of Cilium",
                "/api/v1/namespaces/kube-system/configmaps?fieldSelector=metadata.name%3Dcilium-config",
            )
            .await,
        definitions: reader.list("definitions (CRDs)", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions").await,
        webhooks: reader
            .list("webhooks", "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations")
            .await,
        events: reader.list("events", "/api/v1/events?fieldSelector=type%3DWarning").await,
        ..Snapshot::default()
    };
    snapshot.events.sort_by_key(|event| event.last_timestamp.clone().or_else(|| event.event_time.clone()));
    // What could not be read counts from here on.
    snapshot.unread.clone_from(&reader.unread);
    let unanswered = cgroups(api, &mut snapshot).await;
    reader.unread.extend(unanswered.map(|why| (needs::CGROUPS.to_owned(), why)));
    snapshot.denied = reader.denied(namespace, is_before || !snapshot.may_be_installed()).await;
    if !is_before {
        snapshot.agents = agents(api, snapshot.pods_of(AGENT).collect()).await;
        snapshot.diagnoses = diagnoses(api, snapshot.pods_of(CONTROL).collect()).await;
        let answer = webhook(api, &snapshot).await;
        snapshot.webhook_answer = reader.note(needs::ANSWER, answer);
    }
    snapshot.unread = reader.unread;
    Ok(snapshot)
}

/// The version of Kubernetes; nothing if we may not know. Without an answer to this there is none to anything.
fn version_of(answer: &Answer) -> Result<Option<String>, Stop> {
    let said: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let found = said["gitVersion"].as_str().unwrap_or_default();
    let why = match answer.code {
        200..300 if !found.is_empty() => return Ok(Some(found.to_owned())),
        403 => return Ok(None),
        200..300 => "what answers is no API server: see which `server` the kubeconfig names".to_owned(),
        401 => "the API server does not know who this is (401): renew the kubeconfig's credentials".to_owned(),
        code => format!("the API server answers {code} when asked for its version: try again when it is well"),
    };
    Err(Stop::new(crate::stop::UNAVAILABLE, why))
}

/// The date of an HTTP answer.
fn http_date(text: &str) -> Option<i64> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok().map(jiff::Timestamp::as_second)
}

impl Reader<'_> {
    /// Who may not do what they need.
    async fn denied(&mut self, namespace: &str, is_before: bool) -> Vec<Denial> {
        let questions = if is_before { rights::of_installer(namespace) } else { rights::of_accounts(namespace) };
        let api = self.api;
        let answers = join_all(questions.into_iter().map(|right| async move {
            let (kind, mut spec) = ("SelfSubjectAccessReview", json!({ "resourceAttributes": right.attributes() }));
            let (kind, plural) = match right.account {
                None => (kind, "selfsubjectaccessreviews"),
                Some(account) => {
                    spec["user"] = json!(format!("system:serviceaccount:{namespace}:{account}"));
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
            (Denial { who: right.account.unwrap_or("you").to_owned(), what: right.text() }, answer)
        }))
        .await;
        let mut denied = Vec::new();
        for (denial, answer) in answers {
            match answer {
                Ok(answer) if answer.pointer("/status/allowed") == Some(&Value::Bool(true)) => {}
                Ok(_) => denied.push(denial),
                Err(failure) => {
                    self.note::<()>(needs::RIGHTS, Err(failure));
                    break;
                }
            }
        }
        denied
    }
}

/// What kubelets say of the cgroups that they use. Who does not say it says nothing. Returns why one could not be asked of whom nothing else is known:
/// an agent that serves has found them.
async fn cgroups(api: &Api, snapshot: &mut Snapshot) -> Option<String> {
    let mut unanswered = None;
    for part in snapshot.nodes.chunks(AT_ONCE) {
        let answers = join_all(part.iter().map(|node| async move {
            let path = format!("/api/v1/nodes/{}/proxy/metrics", node.metadata.name);
            (node, api.send(Method::GET, &path, "", Vec::new()).await)
        }));
        for (node, answer) in answers.await {
            let name = &node.metadata.name;
            let why = match answer {
                Ok(answer) if answer.code == 200 => {
                    let version = cgroup_version(&String::from_utf8_lossy(&answer.body));
                    snapshot.cgroups.extend(version.map(|version| (name.clone(), version)));
                    continue;
                }
                Ok(answer) => format!("the API server answers {}", answer.code),
                Err(failure) => failure.why,
            };
            if node.is_ready() && !snapshot.agent_on(name).is_some_and(Pod::is_ready) {
                unanswered.get_or_insert(format!("node {name}, its kubelet's metrics: {why}"));
            }
        }
    }
    unanswered
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

/// Has the API server call the webhook with something harmless that is not kept. It speaks of it only where a failure refuses. The error is that it
/// was not asked.
async fn webhook(api: &Api, snapshot: &Snapshot) -> Result<Option<String>, Failure> {
    let has_webhook = snapshot
        .webhooks
        .iter()
        .flat_map(|c| &c.webhooks)
        .any(|w| w.client_config.service.namespace == snapshot.namespace && w.failure_policy == "Fail");
    if !has_webhook {
        return Ok(None);
    }
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "meshctl-check", "namespace": snapshot.namespace}, "spec": {},
    });
    let path = format!("/apis/security.istio.io/v1/namespaces/{}/peerauthentications?dryRun=All", snapshot.namespace);
    answer_of(api.create(&path, &policy).await.err())
}

/// What a failure says of a webhook. One who may make no policy hears nothing of it, and a kind that is not there has none.
fn answer_of(failure: Option<Failure>) -> Result<Option<String>, Failure> {
    match failure {
        Some(failure) if failure.why.contains("failed calling webhook") => Ok(Some(failure.why)),
        Some(failure) if failure.why.contains("denied the request") || failure.code == 404 => Ok(None),
        Some(failure) => Err(failure),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: u16, why: &str) -> Failure {
        Failure { code, why: why.to_owned() }
    }

    #[test]
    fn no_answer_is_not_a_good_one() {
        let table = [
            (None, Ok(None)),
            (
                Some(failure(500, "failed calling webhook \"x\": refused")),
                Ok(Some("failed calling webhook \"x\": refused")),
            ),
            (Some(failure(403, "admission webhook \"x\" denied the request: no")), Ok(None)),
            (Some(failure(404, "no such kind")), Ok(None)),
            (Some(failure(403, "you may not create peerauthentications")), Err(403)),
            (Some(failure(0, "no answer")), Err(0)),
        ];
        for (said, expected) in table {
            let found = answer_of(said.clone()).map_err(|failure| failure.code);
            assert_eq!(found, expected.map(|text: Option<&str>| text.map(str::to_owned)), "{said:?}");
        }
    }

    #[test]
    fn an_api_server_that_is_not_well_is_no_cluster_without_a_mesh() {
        let read = |code: u16, body: &str| {
            version_of(&Answer { code, date: None, retry_after: None, body: body.as_bytes().to_vec() })
                .map_err(|stop| stop.code)
        };
        assert_eq!(read(200, r#"{"gitVersion": "v1.34.2"}"#), Ok(Some("v1.34.2".to_owned())));
        assert_eq!(read(403, "{}"), Ok(None));
        for (code, body) in [(200, "<html>"), (401, "{}"), (404, ""), (429, "{}"), (503, "no healthy upstream")] {
            assert_eq!(read(code, body), Err(crate::stop::UNAVAILABLE), "{code}");
        }
    }

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
