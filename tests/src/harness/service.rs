//! What a service of the lab should be: enough for its manifest, kube-proxy's part and cluster DNS.
use super::manifest::{Map, ServiceManifest, map};
use super::plan::Dual;

/// A service as the lab knows it: enough for kube-proxy's part and cluster DNS.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) labels: Map,
    pub(super) annotations: Map,
    pub(super) selector: Map,
    pub(super) ports: Vec<(String, u16, u16)>,
    pub(super) headless: bool,
    pub(super) traffic_distribution: Option<String>,
}

impl ServiceSpec {
    /// A service in `default` that selects `app=<name>`.
    pub fn new(name: &str) -> ServiceSpec {
        ServiceSpec {
            name: name.into(),
            namespace: "default".into(),
            labels: Map::new(),
            annotations: Map::new(),
            selector: map(&[("app", name)]),
            ports: Vec::new(),
            headless: false,
            traffic_distribution: None,
        }
    }

    /// In another namespace.
    pub fn namespace(mut self, namespace: &str) -> ServiceSpec {
        self.namespace = namespace.into();
        self
    }

    /// With a label.
    pub fn label(mut self, key: &str, value: &str) -> ServiceSpec {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// With another selector.
    pub fn selector(mut self, selector: &[(&str, &str)]) -> ServiceSpec {
        self.selector = map(selector);
        self
    }

    /// With a port.
    pub fn port(mut self, name: &str, port: u16, target: u16) -> ServiceSpec {
        self.ports.push((name.into(), port, target));
        self
    }

    /// Without an address of its own.
    pub fn headless(mut self) -> ServiceSpec {
        self.headless = true;
        self
    }

    /// With `spec.trafficDistribution`.
    pub fn traffic_distribution(mut self, value: &str) -> ServiceSpec {
        self.traffic_distribution = Some(value.into());
        self
    }

    /// Its manifest with the addresses that the cluster gave it.
    pub(super) fn manifest(&self, address: Option<Dual>) -> ServiceManifest {
        ServiceManifest {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            labels: self.labels.clone(),
            annotations: self.annotations.clone(),
            selector: self.selector.clone(),
            cluster_ips: address.map(|a| vec![a.v4.to_string(), a.v6.to_string()]).unwrap_or_default(),
            ports: self.ports.clone(),
            traffic_distribution: self.traffic_distribution.clone(),
        }
    }
}
