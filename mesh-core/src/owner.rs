//! Which name a pod's workload has: the one source of it. The control plane writes it into workloads, and so into telemetry; `meshctl tap` names by it
//! what proxies are to select.

use std::collections::BTreeMap;

use crate::workload::WorkloadType;

/// On a pod: what its workload is called, whoever has made it.
const NAME: &str = "service.istio.io/workload-name";
/// On a pod of a Deployment: what follows its name in that of the ReplicaSet.
const HASH: &str = "pod-template-hash";

/// Name and kind of what made a pod, as telemetry shows it. `controller` is kind and name of the owner that controls it. Of whatever is none of Deployment, Job and
/// CronJob (a StatefulSet, a DaemonSet) each pod is a workload of its own name.
#[must_use]
pub fn workload<'a>(
    pod: &'a str,
    labels: &'a BTreeMap<String, String>,
    controller: Option<(&str, &'a str)>,
) -> (&'a str, WorkloadType) {
    let hash = labels.get(HASH).map(String::as_str);
    let (name, kind) = match controller {
        Some(("ReplicaSet", set)) => match deployment(set, labels) {
            Some(deployment) => (deployment, WorkloadType::Deployment),
            None => (pod, WorkloadType::Pod),
        },
        Some(("Job", job)) => match scheduled(job) {
            Some(cron) => (cron, WorkloadType::CronJob),
            None => (job, WorkloadType::Job),
        },
        Some(("CronJob", name)) => (name, WorkloadType::CronJob),
        Some(("Deployment", name)) => (name, WorkloadType::Deployment),
        Some(_) => (pod, WorkloadType::Pod),
        // Hand-written pods keep the names that a Deployment gave them.
        None => match hash.and_then(|hash| pod.split_once(&format!("-{hash}-"))).filter(|(name, _)| !name.is_empty()) {
            Some((deployment, _)) => (deployment, WorkloadType::Deployment),
            None => (pod, WorkloadType::Pod),
        },
    };
    match labels.get(NAME).filter(|name| !name.is_empty()) {
        Some(name) => (name, kind),
        None => (name, kind),
    }
}

/// The Deployment of a ReplicaSet, by the labels of a pod of it.
#[must_use]
pub fn deployment<'a>(set: &'a str, labels: &BTreeMap<String, String>) -> Option<&'a str> {
    set.strip_suffix(labels.get(HASH)?.as_str())?.strip_suffix('-')
}

/// The CronJob that a Job called `name-<8 to 10 digits>` belongs to.
fn scheduled(job: &str) -> Option<&str> {
    let (cron, time) = job.rsplit_once('-')?;
    let is_time = (8..=10).contains(&time.len()) && time.bytes().all(|b| b.is_ascii_digit());
    (is_time && !cron.is_empty()).then_some(cron)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_has_its_makers_name_or_its_pods() {
        let hash = [(HASH, "abc")];
        let named = [(NAME, "w"), (HASH, "abc")];
        let unnamed = [(NAME, "")];
        for (pod, labels, controller, expected) in [
            ("web-abc-x", &hash[..], Some(("ReplicaSet", "web-abc")), ("web", WorkloadType::Deployment)),
            ("web-abc-x", &[], Some(("ReplicaSet", "web-abc")), ("web-abc-x", WorkloadType::Pod)),
            ("web-abc-x", &named, Some(("ReplicaSet", "web-abc")), ("w", WorkloadType::Deployment)),
            ("my-web-abc-x7", &hash, None, ("my-web", WorkloadType::Deployment)),
            ("-abc-x7", &hash, None, ("-abc-x7", WorkloadType::Pod)),
            ("b-28812345-q", &[], Some(("Job", "b-28812345")), ("b", WorkloadType::CronJob)),
            ("b-2881234-q", &[], Some(("Job", "b-2881234")), ("b-2881234", WorkloadType::Job)),
            ("b-q", &[], Some(("CronJob", "b")), ("b", WorkloadType::CronJob)),
            ("web-x", &[], Some(("Deployment", "web")), ("web", WorkloadType::Deployment)),
            ("db-0", &[], Some(("StatefulSet", "db")), ("db-0", WorkloadType::Pod)),
            ("log-x7", &[], Some(("DaemonSet", "log")), ("log-x7", WorkloadType::Pod)),
            ("p", &unnamed, None, ("p", WorkloadType::Pod)),
        ] {
            let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            assert_eq!(workload(pod, &labels, controller), expected, "{pod} {controller:?}");
        }
    }
}
