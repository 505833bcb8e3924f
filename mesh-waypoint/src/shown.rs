//! What is shown of the places that requests go to: endpoints that are left out, requests that found a limit reached; and of who comes to a gateway and is not let
//! in. Registered by the process.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::refused::Reason;
use crate::shared::Shared;

/// The places of all lanes.
pub struct PlacesShown(pub Arc<Shared>);

type Labels = [(&'static str, String); 4];

impl fmt::Debug for PlacesShown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PlacesShown").finish()
    }
}

impl Collector for PlacesShown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Connections that were closed because who connects may send no PROXY header";
        let refused = encoder.encode_descriptor("undermesh_proxy_protocol_refused", help, None, MetricType::Counter)?;
        ConstCounter::new(self.0.refusals.of(Reason::ProxyUntrusted)).encode(refused)?;
        let help = "Connections that were refused or ended before they had a request, by reason";
        let mut family = encoder.encode_descriptor("undermesh_waypoint_refused", help, None, MetricType::Counter)?;
        for reason in Reason::ALL {
            let labels = [("reason", reason.as_str())];
            ConstCounter::new(self.0.refusals.of(reason)).encode(family.encode_family(&labels)?)?;
        }
        // Of one place for several groups of clients, and for requests and datagrams, the sum.
        let mut sums: BTreeMap<Labels, (u64, u32, u64)> = BTreeMap::new();
        let now = self.0.now_ms();
        let all = self.0.places.shown(now).into_iter().chain(self.0.datagram_places.shown(now));
        for (key, total, out, refused) in all {
            let labels = [
                ("destination_service", key.service.name.to_string()),
                ("destination_service_namespace", key.service.namespace.to_string()),
                ("port", key.port.to_string()),
                ("subset", key.subset.to_string()),
            ];
            let sum = sums.entry(labels).or_default();
            (sum.0, sum.1, sum.2) = (sum.0 + total, sum.1 + out, sum.2 + refused);
        }
        if sums.is_empty() {
            return Ok(());
        }
        let help = "Times that an endpoint was left out because of its answers";
        let mut family = encoder.encode_descriptor("undermesh_outlier_ejections", help, None, MetricType::Counter)?;
        for (labels, (total, ..)) in &sums {
            ConstCounter::new(*total).encode(family.encode_family(labels)?)?;
        }
        let help = "Endpoints that are left out now";
        let mut family = encoder.encode_descriptor("undermesh_outlier_ejected", help, None, MetricType::Gauge)?;
        for (labels, (_, out, _)) in &sums {
            ConstGauge::new(i64::from(*out)).encode(family.encode_family(labels)?)?;
        }
        let help = "Requests that were refused because a limit of connections or requests was reached";
        let mut family = encoder.encode_descriptor("undermesh_upstream_overflow", help, None, MetricType::Counter)?;
        for (labels, (.., refused)) in &sums {
            ConstCounter::new(*refused).encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }
}
