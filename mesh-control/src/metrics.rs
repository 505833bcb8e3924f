//! Counters of the control plane, with the names that dashboards for istiod know: those counters have no `_total` at the end ([`Named`]).

use std::fmt;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

use crate::world::Kind;

/// `type="address"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TypeLabel {
    r#type: &'static str,
}

/// `severity="error"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SeverityLabel {
    severity: &'static str,
}

/// `component="pilot"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabel {
    component: &'static str,
    tag: &'static str,
}

/// A counter that is called just as it is registered. OpenMetrics would have what it knows as a counter end with `_total`, so it says nothing of its type.
#[derive(Clone, Debug, Default)]
pub struct Named(Counter);

impl Named {
    /// One more.
    pub fn inc(&self) {
        self.0.inc();
    }
}

impl EncodeMetric for Named {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.encode_gauge(&i64::try_from(self.0.get()).unwrap_or(i64::MAX))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Unknown
    }
}

impl TypedMetric for Named {
    const TYPE: MetricType = MetricType::Unknown;
}

/// Seconds, as Istio has them.
const CONVERGENCE: [f64; 8] = [0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];

/// From a change to its being sent to a client.
#[derive(Clone, Debug)]
pub struct Convergence(Histogram);

impl Default for Convergence {
    fn default() -> Self {
        Self(Histogram::new(CONVERGENCE))
    }
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Open xDS streams.
    pub streams: Gauge,
    pushes: Family<TypeLabel, Named>,
    convergence: Convergence,
    resources: Family<TypeLabel, Counter>,
    rejects: Family<TypeLabel, Named>,
    /// Calls without a valid token, and clients that claim to be another node.
    pub authentication_failures: Named,
    /// Keys by which tokens can be checked while the API server is away.
    pub token_keys: Gauge,
    /// Tokens that were accepted by those keys.
    pub vouched: Counter,
    /// Services known.
    pub services: Gauge,
    /// Workloads known.
    pub workloads: Gauge,
    /// Policies known.
    pub policies: Gauge,
    /// States of the source taken over.
    pub updates: Named,
    /// Diagnoses in force.
    pub diagnoses: Family<SeverityLabel, Gauge>,
    /// Certificate requests.
    pub csrs: Named,
    /// Certificates made.
    pub issued: Named,
    /// Certificate requests refused for what they ask.
    pub refused: Named,
    /// Certificate requests refused for how many there are.
    pub limited: Counter,
    /// When the root ends.
    pub root_expiry: Gauge,
    /// When what signs ends.
    pub chain_expiry: Gauge,
    /// Roots that are trusted.
    pub roots: Gauge,
    /// How far a rotation is.
    pub rotation: Gauge,
    /// Things wrong with what signs, or is to sign.
    pub authority_problems: Gauge,
    /// Objects that the webhook has let in.
    pub validated: Named,
    /// Objects that it has refused.
    pub invalidated: Named,
}

impl Metrics {
    /// Registers everything.
    pub fn register(&self, registry: &mut Registry) {
        let build: Family<BuildLabel, Gauge> = Family::default();
        build.get_or_create(&BuildLabel { component: "pilot", tag: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("istio_build", "Version of this component", build);
        registry.register("pilot_xds", "Open xDS streams", self.streams.clone());
        registry.register("pilot_xds_pushes", "xDS responses sent", self.pushes.clone());
        registry.register(
            "pilot_proxy_convergence_time",
            "Seconds from a change until a client has acknowledged it",
            self.convergence.0.clone(),
        );
        registry.register("mesh_control_xds_resources", "Resources sent or removed", self.resources.clone());
        registry.register("pilot_total_xds_rejects", "xDS responses refused by clients", self.rejects.clone());
        registry.register("pilot_services", "Services known", self.services.clone());
        registry.register("mesh_control_workloads", "Workloads known", self.workloads.clone());
        registry.register("mesh_control_policies", "Policies known", self.policies.clone());
        registry.register("pilot_k8s_cfg_events", "States of the source taken over", self.updates.clone());
        registry.register("mesh_control_diagnoses", "Things wrong with the configuration", self.diagnoses.clone());
        registry.register("citadel_server_csr_count", "Certificate requests", self.csrs.clone());
        registry.register("citadel_server_success_cert_issuance_count", "Certificates made", self.issued.clone());
        registry.register("citadel_server_csr_sign_err_count", "Certificate requests refused", self.refused.clone());
        registry.register(
            "mesh_control_csr_limited",
            "Certificate requests over the rate of a node",
            self.limited.clone(),
        );
        registry.register(
            "citadel_server_authentication_failure_count",
            "Calls without a valid token",
            self.authentication_failures.clone(),
        );
        registry.register(
            "mesh_control_token_keys",
            "Keys by which tokens can be checked while the API server is away",
            self.token_keys.clone(),
        );
        registry.register(
            "mesh_control_tokens_vouched",
            "Tokens accepted by the API server's keys because it could not be asked",
            self.vouched.clone(),
        );
        registry.register("galley_validation_passed", "Objects that the webhook has let in", self.validated.clone());
        registry.register("galley_validation_failed", "Objects that the webhook has refused", self.invalidated.clone());
        registry.register(
            "citadel_server_root_cert_expiry_timestamp",
            "When the root ends, seconds since 1970",
            self.root_expiry.clone(),
        );
        registry.register(
            "citadel_server_cert_chain_expiry_timestamp",
            "When the first of the certificates between a leaf and a root ends, seconds since 1970",
            self.chain_expiry.clone(),
        );
        registry.register("mesh_control_trusted_roots", "Roots that are trusted", self.roots.clone());
        registry.register(
            "mesh_control_root_rotation",
            "How far a rotation of the root is: 0 none, 1 the new root is made known, 2 the old one is on its way out",
            self.rotation.clone(),
        );
        registry.register(
            "mesh_control_authority_problems",
            "Things wrong with what signs certificates, or is to sign them",
            self.authority_problems.clone(),
        );
    }

    /// A response goes out.
    pub fn pushed(&self, url: &str, resources: usize, removed: usize) {
        let label = TypeLabel { r#type: Kind::of_url(url).map_or("other", Kind::short) };
        self.pushes.get_or_create(&label).inc();
        self.resources.get_or_create(&label).inc_by((resources + removed) as u64);
    }

    /// A client has acknowledged what has changed.
    pub fn converged(&self, took: Duration) {
        self.convergence.0.observe(took.as_secs_f64());
    }

    /// A client refused something.
    pub fn nacked(&self, kind: Kind) {
        self.rejects.get_or_create(&TypeLabel { r#type: kind.short() }).inc();
    }

    /// How many diagnoses there are of a severity.
    pub fn diagnosed(&self, severity: &'static str, count: usize) {
        self.diagnoses.get_or_create(&SeverityLabel { severity }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// When the root and what signs under it end, and how many roots are trusted.
    pub fn set_authority(&self, root_ends: SystemTime, signer_ends: SystemTime, roots: usize) {
        let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        self.root_expiry.set(i64::try_from(seconds(root_ends)).unwrap_or(i64::MAX));
        self.chain_expiry.set(i64::try_from(seconds(signer_ends)).unwrap_or(i64::MAX));
        self.roots.set(i64::try_from(roots).unwrap_or(i64::MAX));
    }
}
