//! Kubernetes objects as far as this program looks at them. What is missing has its default, so that nobody asks twice whether it is there.
//! Read by `api`, judged by `health`, `check` and `status`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

macro_rules! views {
    ($($(#[$doc:meta])* $name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty,)* })*) => {
        $($(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        #[allow(missing_docs, reason = "the fields have the names that Kubernetes gives them")]
        pub struct $name { $($(#[$attribute])* pub $field: $type,)* })*
    };
}

/// Labels, annotations and the like.
pub type Map = BTreeMap<String, String>;

views! {
    /// Of every object.
    Meta {
        name: String, namespace: String, uid: String, labels: Map, annotations: Map, generation: i64,
        creation_timestamp: Option<String>, deletion_timestamp: Option<String>, owner_references: Vec<Owner>,
    }
    /// What an object belongs to.
    Owner { kind: String, name: String, controller: bool, }
    /// One fact of a status.
    Condition {
        #[serde(rename = "type")] kind: String,
        status: String, reason: String, message: String, last_transition_time: Option<String>,
    }
    /// Pod.
    Pod { metadata: Meta, spec: PodSpec, status: PodStatus, }
    /// What a pod is to be.
    PodSpec {
        node_name: String, host_network: bool, service_account_name: String, containers: Vec<Container>,
        init_containers: Vec<Container>, node_selector: Map, tolerations: Vec<Toleration>,
    }
    /// Container.
    Container { name: String, image: String, args: Vec<String>, ports: Vec<ContainerPort>, }
    /// Port of a container.
    ContainerPort { name: String, container_port: u16, host_port: u16, }
    /// What a pod puts up with.
    Toleration { key: String, operator: String, value: String, effect: String, }
    /// What a pod is.
    PodStatus {
        phase: String, reason: String, message: String, conditions: Vec<Condition>, host_ip: String,
        #[serde(rename = "podIP")] pod_ip: String,
        container_statuses: Vec<ContainerStatus>, init_container_statuses: Vec<ContainerStatus>,
    }
    /// What a container is.
    ContainerStatus {
        name: String, ready: bool, restart_count: i64, image: String, state: ContainerState, last_state: ContainerState,
    }
    /// One of three.
    ContainerState { waiting: Option<Waiting>, terminated: Option<Terminated>, running: Option<Value>, }
    /// It does not run yet, or not again.
    Waiting { reason: String, message: String, }
    /// It has ended.
    Terminated { exit_code: i64, reason: String, message: String, }
    /// Node.
    Node { metadata: Meta, spec: NodeSpec, status: NodeStatus, }
    /// What a node is to be.
    NodeSpec { unschedulable: bool, taints: Vec<Taint>, }
    /// What keeps pods from a node.
    Taint { key: String, value: String, effect: String, }
    /// What a node is.
    NodeStatus { conditions: Vec<Condition>, node_info: NodeInfo, }
    /// Its software.
    NodeInfo { kernel_version: String, os_image: String, operating_system: String, architecture: String, kubelet_version: String, }
    /// Namespace.
    Namespace { metadata: Meta, }
    /// Service.
    Service { metadata: Meta, spec: ServiceSpec, }
    /// Which pods it has.
    ServiceSpec { selector: Map, }
    /// Deployment or DaemonSet.
    Workload { metadata: Meta, spec: WorkloadSpec, status: WorkloadStatus, }
    /// What a workload is to be.
    WorkloadSpec { replicas: Option<i64>, selector: Selector, template: Template, }
    /// What its pods are.
    Template { metadata: Meta, spec: PodSpec, }
    /// What a workload is.
    WorkloadStatus {
        observed_generation: i64, replicas: i64, updated_replicas: i64, ready_replicas: i64, available_replicas: i64,
        desired_number_scheduled: i64, updated_number_scheduled: i64, number_ready: i64, number_available: i64,
        conditions: Vec<Condition>,
    }
    /// Of labels.
    Selector { match_labels: Map, match_expressions: Vec<Requirement>, }
    /// One requirement.
    Requirement { key: String, operator: String, values: Vec<String>, }
    /// EndpointSlice.
    EndpointSlice { metadata: Meta, endpoints: Vec<Endpoint>, }
    /// One address.
    Endpoint { addresses: Vec<String>, conditions: EndpointConditions, }
    /// Whether it takes connections.
    EndpointConditions { ready: Option<bool>, }
    /// NetworkPolicy.
    NetworkPolicy { metadata: Meta, spec: NetworkPolicySpec, }
    /// What a policy allows.
    NetworkPolicySpec { pod_selector: Selector, ingress: Vec<IngressRule>, policy_types: Vec<String>, }
    /// One thing that is allowed.
    IngressRule { ports: Vec<PolicyPort>, from: Vec<Value>, }
    /// A port: a number, a name or nothing.
    PolicyPort { protocol: String, port: Value, end_port: Option<u16>, }
    /// CustomResourceDefinition.
    Definition { metadata: Meta, spec: DefinitionSpec, status: DefinitionStatus, }
    /// What is defined.
    DefinitionSpec { group: String, names: DefinitionNames, versions: Vec<DefinitionVersion>, }
    /// Its names.
    DefinitionNames { kind: String, plural: String, }
    /// One of its versions.
    DefinitionVersion { name: String, served: bool, storage: bool, }
    /// Whether it is in force.
    DefinitionStatus { conditions: Vec<Condition>, }
    /// ValidatingWebhookConfiguration.
    WebhookConfiguration { metadata: Meta, webhooks: Vec<Webhook>, }
    /// One webhook.
    Webhook { name: String, failure_policy: String, client_config: WebhookClient, }
    /// Where it is.
    WebhookClient { ca_bundle: String, service: WebhookService, }
    /// Its service.
    WebhookService { name: String, namespace: String, }
    /// ConfigMap.
    ConfigMap { metadata: Meta, data: Map, }
    /// Event.
    Event {
        metadata: Meta, #[serde(rename = "type")] kind: String, reason: String, message: String,
        involved_object: Involved, last_timestamp: Option<String>, event_time: Option<String>,
    }
    /// What an event is about.
    Involved { kind: String, namespace: String, name: String, uid: String, }
    /// Lease.
    Lease { metadata: Meta, spec: LeaseSpec, }
    /// Who holds it, since when.
    LeaseSpec { holder_identity: String, renew_time: Option<String>, }
}

/// The status of a condition, if it is told.
pub fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.kind == kind)
}

impl Meta {
    /// `namespace/name`, or the name alone.
    pub fn full_name(&self) -> String {
        match self.namespace.as_str() {
            "" => self.name.clone(),
            namespace => format!("{namespace}/{}", self.name),
        }
    }

    /// A label; empty if it is not there.
    pub fn label(&self, key: &str) -> &str {
        self.labels.get(key).map_or("", String::as_str)
    }

    /// An annotation; empty if it is not there.
    pub fn annotation(&self, key: &str) -> &str {
        self.annotations.get(key).map_or("", String::as_str)
    }
}

impl Pod {
    /// Takes connections.
    pub fn is_ready(&self) -> bool {
        condition(&self.status.conditions, "Ready").is_some_and(|c| c.status == "True")
    }

    /// Its processes have ended.
    pub fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// All containers, those first that start first.
    pub fn container_statuses(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.status.init_container_statuses.iter().chain(&self.status.container_statuses)
    }
}

impl Node {
    /// Takes pods.
    pub fn is_ready(&self) -> bool {
        condition(&self.status.conditions, "Ready").is_some_and(|c| c.status == "True")
    }
}

impl Toleration {
    /// Whether it covers a taint.
    pub fn covers(&self, taint: &Taint) -> bool {
        let effect = self.effect.is_empty() || self.effect == taint.effect;
        let key = match self.operator.as_str() {
            "Exists" => self.key.is_empty() || self.key == taint.key,
            _ => self.key == taint.key && self.value == taint.value,
        };
        effect && key
    }
}

impl Selector {
    /// Whether it selects what has these labels. An empty one selects everything.
    pub fn selects(&self, labels: &Map) -> bool {
        let equal = self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value));
        equal
            && self.match_expressions.iter().all(|rule| {
                let value = labels.get(&rule.key);
                match rule.operator.as_str() {
                    "In" => value.is_some_and(|v| rule.values.contains(v)),
                    "NotIn" => value.is_none_or(|v| !rule.values.contains(v)),
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => false,
                }
            })
    }
}
