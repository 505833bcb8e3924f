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

/// Why nothing comes of one. What could come of it, and is not there, is not built yet.
pub fn why(name: &str) -> String {
    const SIDECARS: &str =
        "it is about ports and proxies in pods, and there are none: agents capture connections in the kernel";
    const ENVOY: &str = "it is about Envoy, which is not here";
    const INGRESS: &str = "no Ingress of Kubernetes is read: gateways have Gateways of both APIs";
    let why = match name {
        "ca" => "the control plane signs certificates itself, with `cacerts` if that is there",
        "caCertificates" => "members believe in the roots of the control plane alone, of which `cacerts` may be one",
        "certificates" => "no certificates are made for names outside of the mesh",
        "configSources" => "objects come from the cluster, or from the folder that a flag names",
        "disableEnvoyListenerLog"
        | "enableEnvoyAccessLogService"
        | "inboundClusterStatName"
        | "outboundClusterStatName" => ENVOY,
        "enablePrometheusMerge" => {
            "applications are scraped at their own ports: no proxy of a pod puts its metrics among theirs"
        }
        "hboneIdleTimeout" => {
            "agents and waypoints close a tunnel in which nothing has been open for 5 minutes, and no flag of theirs changes that"
        }
        "inboundTrafficPolicy" | "proxyHttpPort" | "proxyInboundListenPort" | "proxyListenPort" => SIDECARS,
        "ingressClass" | "ingressControllerMode" | "ingressSelector" | "ingressService" => INGRESS,
        "serviceScopeConfigs" | "serviceSettings" => {
            "it is about services of several clusters, and a mesh is one cluster here"
        }
        "thriftConfig" => "nothing of Thrift is read: it is passed on as bytes",
        "verifyCertificateAtClient" => {
            "certificates of servers are verified unless a DestinationRule has `insecureSkipVerify`"
        }
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
        // The others could be done here.
        let not_built: Vec<&str> =
            UNHEEDED.into_iter().filter(|name| why(name).ends_with("not built yet: it has no effect")).collect();
        assert_eq!(not_built, ["h2UpgradePolicy", "protocolDetectionTimeout", "sameNode", "tcpKeepalive", "udp"]);
        assert!(UNHEEDED.is_sorted(), "so that nobody looks for one in vain");
        // What the text says of tunnels.
        assert_eq!(mesh_transport::hbone::PoolConfig::default().idle_timeout.as_secs(), 5 * 60);
    }
}
