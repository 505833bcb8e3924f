//! Which tests of the suite are run: those of some profiles, or a short list that has some of each. Pure; called by [`super`].

/// All profiles.
pub const PROFILES: [&str; 7] =
    ["GATEWAY-HTTP", "GATEWAY-GRPC", "GATEWAY-TLS", "GATEWAY-TCP", "GATEWAY-UDP", "MESH-HTTP", "MESH-GRPC"];

/// A short run: 77 s in a cluster that was up, on a machine of 2 cores where all of the tests needed 263 s. Much of it goes by until the suite's own gateways
/// and servers stand. Of each profile some tests, and those first which need no gateway of their own.
pub const SHORT: [&str; 34] = [
    // GATEWAY-HTTP
    "HTTPRouteSimpleSameNamespace",
    "HTTPRouteCrossNamespace",
    "HTTPRouteMatching",
    "HTTPRouteMatchingAcrossRoutes",
    "HTTPRouteWeight",
    "HTTPRouteReferenceGrant",
    "HTTPRouteInvalidNonExistentBackendRef",
    "HTTPRouteInvalidCrossNamespaceParentRef",
    "HTTPRouteHTTPSListenerDetectMisdirectedRequests",
    "HTTPRouteRedirectPortAndScheme",
    "HTTPRouteRewritePath",
    "HTTPRouteCORS",
    "HTTPRouteRetry",
    "HTTPRouteTimeoutRequest",
    "HTTPRouteRequestMirror",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteServiceTypes",
    "GatewayModifyListeners",
    "GatewayWithAttachedRoutes",
    "GatewayClassObservedGenerationBump",
    "GatewayStaticAddresses",
    "GatewayFrontendClientCertificateValidation",
    "BackendTLSPolicy",
    "ListenerSetHTTPRouting",
    // GATEWAY-GRPC
    "GRPCExactMethodMatching",
    "GRPCRouteListenerHostnameMatching",
    // GATEWAY-TLS
    "TLSRouteSimpleSameNamespace",
    "TLSRouteTerminateSimpleSameNamespace",
    // GATEWAY-TCP
    "TCPRouteReferenceGrant",
    // GATEWAY-UDP
    "UDPRoute",
    // MESH-HTTP
    "MeshTrafficSplit",
    "MeshConsumerRoute",
    "MeshHTTPRouteWeight",
    // MESH-GRPC
    "MeshGRPCRouteWeight",
];

/// What the suite calls the features without which nothing of the other profiles is run: with all features it runs tests of all of them.
pub fn exempt(profiles: &[String]) -> Vec<String> {
    let none = |part: &str, is: fn(&str, &str) -> bool| !profiles.iter().any(|profile| is(profile, part));
    let sides = [("GATEWAY-", "Gateway"), ("MESH-", "Mesh")];
    let sides = sides.iter().filter(|(part, _)| none(part, |profile, part| profile.starts_with(part)));
    let kinds = ["HTTP", "GRPC", "TLS", "TCP", "UDP"];
    let kinds = kinds.iter().filter(|kind| none(kind, |profile, kind| profile.ends_with(kind)));
    sides.map(|(_, feature)| (*feature).to_owned()).chain(kinds.map(|kind| format!("{kind}Route"))).collect()
}

/// What the report of these profiles is called, without its ending.
pub fn report(profiles: &[String]) -> String {
    match PROFILES.iter().all(|one| profiles.iter().any(|profile| profile == one)) {
        true => "all".to_owned(),
        false => profiles.join("_").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profiles(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_belongs_to_no_profile_of_a_run_is_exempt() {
        for (names, expected, called) in [
            (&PROFILES[..], "", "all"),
            (&["MESH-HTTP", "MESH-GRPC"], "Gateway TLSRoute TCPRoute UDPRoute", "mesh-http_mesh-grpc"),
            (&["GATEWAY-HTTP", "GATEWAY-GRPC"], "Mesh TLSRoute TCPRoute UDPRoute", "gateway-http_gateway-grpc"),
            (&["GATEWAY-UDP"], "Mesh HTTPRoute GRPCRoute TLSRoute TCPRoute", "gateway-udp"),
        ] {
            let names = profiles(names);
            assert_eq!((exempt(&names).join(" ").as_str(), report(&names).as_str()), (expected, called));
        }
    }

    #[test]
    fn the_short_list_names_no_test_twice() {
        let mut names = SHORT.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SHORT.len());
    }
}
