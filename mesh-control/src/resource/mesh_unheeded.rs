//! Fields of Istio's MeshConfig that nobody heeds here: none is taken for a mistake, and who writes one is told why nothing comes of it.

/// They, by their names.
pub const UNHEEDED: [&str; 27] = [
    "ca",
    "caCertificates",
    "certificates",
    "configSources",
    "disableEnvoyListenerLog",
    "enableEnvoyAccessLogService",
    "enablePrometheusMerge",
    "h2UpgradePolicy",
    "hboneIdleTimeout",
    "inboundClusterStatName",
    "inboundTrafficPolicy",
    "ingressClass",
    "ingressControllerMode",
    "ingressSelector",
    "ingressService",
    "outboundClusterStatName",
    "protocolDetectionTimeout",
    "proxyHttpPort",
    "proxyInboundListenPort",
    "proxyListenPort",
    "sameNode",
    "serviceScopeConfigs",
    "serviceSettings",
    "tcpKeepalive",
    "thriftConfig",
    "udp",
    "verifyCertificateAtClient",
];

/// Why nothing comes of one.
pub fn why(name: &str) -> String {
    let why = match name {
        "hboneIdleTimeout" => {
            "agents and waypoints close a tunnel in which nothing has been open for 5 minutes, and no flag of theirs changes that"
        }
        "serviceScopeConfigs" => "it is about services of several clusters, and a mesh is one cluster here",
        other => return format!("{other} is known, but not built yet: it has no effect"),
    };
    format!("{why}: it has no effect")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_EX_5_why_nothing_comes_of_a_setting() {
        for (name, expected) in [
            ("udp", "udp is known, but not built yet: it has no effect"),
            (
                "serviceScopeConfigs",
                "it is about services of several clusters, and a mesh is one cluster here: it has no effect",
            ),
            (
                "hboneIdleTimeout",
                "agents and waypoints close a tunnel in which nothing has been open for 5 minutes, and no flag of theirs changes that: it has no effect",
            ),
        ] {
            assert!(UNHEEDED.contains(&name));
            assert_eq!(why(name), expected);
        }
        assert!(UNHEEDED.is_sorted(), "so that nobody looks for one in vain");
        // What the text says of tunnels.
        assert_eq!(mesh_transport::hbone::PoolConfig::default().idle_timeout.as_secs(), 5 * 60);
    }
}
