//! The `baggage` header: labels of a workload, bounded, for telemetry only.

use std::fmt;

use arcstr::ArcStr;

/// Longest baggage value that is read; a longer one is dropped whole.
const BAGGAGE_LIMIT: usize = 4096;
/// Most members of a baggage value.
const BAGGAGE_MEMBERS: usize = 64;
/// Longest value of one baggage member: these become metric labels.
const BAGGAGE_VALUE_LIMIT: usize = 253;

/// Labels of a workload that travel with a request or its answer, for telemetry only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`
    pub cluster: Option<ArcStr>,
    /// `k8s.namespace.name`
    pub namespace: Option<ArcStr>,
    /// The kind that the workload's name was given under.
    pub workload_kind: WorkloadKind,
    /// `k8s.{deployment,cronjob,pod,job}.name`
    pub workload: Option<ArcStr>,
    /// `service.name`: the canonical service.
    pub service: Option<ArcStr>,
    /// `service.version`: the canonical revision.
    pub version: Option<ArcStr>,
    /// `cloud.region`
    pub region: Option<ArcStr>,
    /// `cloud.availability_zone`
    pub zone: Option<ArcStr>,
}

/// The kinds of workload that baggage knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WorkloadKind {
    /// A Deployment.
    #[default]
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare Pod.
    Pod,
    /// A Job.
    Job,
}

impl WorkloadKind {
    /// The word used in the baggage key.
    pub fn word(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

impl Baggage {
    /// Reads a header value. Unknown and malformed members are ignored, values are bounded; a value past [`BAGGAGE_LIMIT`] reads as empty.
    pub fn parse(value: &[u8]) -> Self {
        let mut baggage = Self::default();
        let Ok(value) = std::str::from_utf8(value) else { return baggage };
        if value.len() > BAGGAGE_LIMIT {
            return baggage;
        }
        for member in value.split(',').take(BAGGAGE_MEMBERS) {
            let member = member.split(';').next().unwrap_or_default();
            let Some((key, value)) = member.split_once('=') else { continue };
            let value = value.trim();
            if value.is_empty()
                || value.len() > BAGGAGE_VALUE_LIMIT
                || !value.bytes().all(|byte| byte.is_ascii_graphic())
            {
                continue;
            }
            let mut workload = |kind| {
                baggage.workload_kind = kind;
                baggage.workload = Some(value.into());
            };
            match key.trim() {
                "k8s.deployment.name" => workload(WorkloadKind::Deployment),
                "k8s.cronjob.name" => workload(WorkloadKind::CronJob),
                "k8s.pod.name" => workload(WorkloadKind::Pod),
                "k8s.job.name" => workload(WorkloadKind::Job),
                "k8s.cluster.name" => baggage.cluster = Some(value.into()),
                "k8s.namespace.name" => baggage.namespace = Some(value.into()),
                "service.name" => baggage.service = Some(value.into()),
                "service.version" => baggage.version = Some(value.into()),
                "cloud.region" => baggage.region = Some(value.into()),
                "cloud.availability_zone" => baggage.zone = Some(value.into()),
                _ => {}
            }
        }
        baggage
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        *self == Self { workload_kind: self.workload_kind, ..Self::default() }
    }
}

/// The header value: a comma list without empty members, in ztunnel's order.
impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.workload_kind {
            WorkloadKind::Deployment => "k8s.deployment.name",
            WorkloadKind::CronJob => "k8s.cronjob.name",
            WorkloadKind::Pod => "k8s.pod.name",
            WorkloadKind::Job => "k8s.job.name",
        };
        let members = [
            ("k8s.cluster.name", &self.cluster),
            ("k8s.namespace.name", &self.namespace),
            (kind, &self.workload),
            ("service.name", &self.service),
            ("service.version", &self.version),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ];
        let mut separator = "";
        for (key, value) in members {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                write!(f, "{separator}{key}={value}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

impl Baggage {
    /// Without a kind where there is no workload to be of that kind.
    pub(super) fn normal(mut self) -> Self {
        if self.workload.is_none() {
            self.workload_kind = WorkloadKind::default();
        }
        self
    }
}

#[cfg(test)]
#[allow(non_snake_case)]
mod tests {
    use super::*;

    #[test]
    fn hardening_B36_baggage_is_bounded() {
        let full = "k8s.cluster.name=Kubernetes,k8s.namespace.name=app,k8s.job.name=import,service.name=web,service.version=v1,cloud.region=r,cloud.availability_zone=z";
        assert_eq!(Baggage::parse(full.as_bytes()).to_string(), full);
        let empty = Baggage::default();
        assert_eq!(empty.to_string(), "");
        for (value, expect) in [
            ("", &empty),
            ("k8s.namespace.name", &empty),
            ("k8s.namespace.name=", &empty),
            ("other=x,=y,==", &empty),
            ("k8s.namespace.name=a b", &empty),
            ("k8s.namespace.name=\u{f6}", &empty),
            (&format!("k8s.namespace.name={}", "x".repeat(254)), &empty),
            (&format!("k8s.namespace.name=a{}", " ".repeat(5000)), &empty),
            (&format!("{}k8s.namespace.name=a", "k=v,".repeat(64)), &empty),
            (" k8s.namespace.name = app ;prop=1", &Baggage { namespace: Some("app".into()), ..Baggage::default() }),
            ("service.name=%zz", &Baggage { service: Some("%zz".into()), ..Baggage::default() }),
        ] {
            assert_eq!(&Baggage::parse(value.as_bytes()), expect, "{value}");
        }
    }
}
