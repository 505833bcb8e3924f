//! Dashboards for Grafana, made by `cargo xtask chart` into deploy/dashboards: what is on them is told in `traffic` (by Istio's metrics) and `components` (by
//! those of our processes), what Grafana wants to read of it in `model`.
mod components;
mod model;
mod traffic;

use model::Dashboard;

/// Every dashboard: the name of its file, and what stands in it.
pub fn files() -> Vec<(String, String)> {
    all().iter().map(|dashboard| (format!("{}.json", dashboard.name), dashboard.json())).collect()
}

fn all() -> Vec<Dashboard> {
    vec![
        traffic::mesh(),
        traffic::service(),
        traffic::workload(),
        components::proxies(),
        components::agents(),
        components::control(),
    ]
}

#[cfg(test)]
mod tests;
