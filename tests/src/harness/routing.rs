//! Routes as text, the way users write them: the frame of each kind around rules in YAML's flow style.

/// A VirtualService of `default` for one host of it.
pub fn virtual_service(host: &str, rules: &[&str]) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: {host}\n  namespace: default\nspec:\n  hosts:\n  - {host}\n  http:\n{}",
        list(rules)
    )
}

/// An HTTPRoute of `default` whose parent is the Service `service` of it.
pub fn http_route(service: &str, rules: &[&str]) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: {service}\n  namespace: default\nspec:\n  parentRefs:\n  - {{group: \"\", kind: Service, name: {service}, port: 9080}}\n  rules:\n{}",
        list(rules)
    )
}

/// A VirtualService of `default` with that field of its spec for these hosts.
pub fn connections_of(hosts: &[&str], field: &str, rules: &[&str]) -> String {
    let (name, hosts) = (hosts[0], hosts.join(", "));
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: {name}\n  namespace: default\nspec:\n  hosts: [{hosts}]\n  {field}:\n{}",
        list(rules)
    )
}

/// A TCPRoute, or with `hostnames` a TLSRoute, of `default` whose parent is the Service `service` of it.
pub fn connection_route(service: &str, hostnames: &[&str], rules: &[&str]) -> String {
    let (kind, hostnames) = match hostnames {
        [] => ("TCPRoute", String::new()),
        names => ("TLSRoute", format!("  hostnames: [{}]\n", names.join(", "))),
    };
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata:\n  name: {service}\n  namespace: default\nspec:\n  parentRefs:\n  - {{group: \"\", kind: Service, name: {service}}}\n{hostnames}  rules:\n{}",
        list(rules)
    )
}

fn list(rules: &[&str]) -> String {
    rules.iter().map(|rule| format!("  - {rule}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_read_like_hand_written_ones() {
        let text = virtual_service("reviews", &["{route: [{destination: {host: reviews-v1}}]}"]);
        assert!(text.ends_with("  http:\n  - {route: [{destination: {host: reviews-v1}}]}\n"), "{text}");
        let text = http_route("reviews", &["{backendRefs: [{name: reviews-v1, port: 9080}]}"]);
        assert!(text.ends_with("  rules:\n  - {backendRefs: [{name: reviews-v1, port: 9080}]}\n"), "{text}");
    }
}
