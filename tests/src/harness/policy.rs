//! Policies as text, the way users write them.
use std::fmt::Write;

/// A PeerAuthentication for a namespace, or for what `selector` (an app label) selects, with modes per port.
pub fn peer_authentication(namespace: &str, mode: &str, selector: Option<&str>, ports: &[(u16, &str)]) -> String {
    let name = selector.unwrap_or("default");
    let mut text = format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n"
    );
    if let Some(app) = selector {
        let _ = writeln!(text, "  selector:\n    matchLabels:\n      app: {app}");
    }
    let _ = writeln!(text, "  mtls:\n    mode: {mode}");
    if !ports.is_empty() {
        text.push_str("  portLevelMtls:\n");
        for (port, mode) in ports {
            let _ = writeln!(text, "    {port}:\n      mode: {mode}");
        }
    }
    text
}

/// An AuthorizationPolicy under construction: one rule.
#[derive(Debug, Clone)]
pub struct Authorization {
    name: String,
    namespace: String,
    app: Option<String>,
    action: &'static str,
    principals: Vec<String>,
    ports: Vec<String>,
    methods: Vec<String>,
    annotations: Vec<(String, String)>,
}

impl Authorization {
    /// ALLOW for an app of `default`.
    pub fn allow(name: &str, app: &str) -> Authorization {
        Authorization {
            name: name.into(),
            namespace: "default".into(),
            app: Some(app.into()),
            action: "ALLOW",
            principals: Vec::new(),
            ports: Vec::new(),
            methods: Vec::new(),
            annotations: Vec::new(),
        }
    }

    /// DENY for an app of `default`.
    pub fn deny(name: &str, app: &str) -> Authorization {
        Authorization { action: "DENY", ..Authorization::allow(name, app) }
    }

    /// In another namespace.
    pub fn namespace(mut self, namespace: &str) -> Authorization {
        self.namespace = namespace.into();
        self
    }

    /// From the service account `name` of `namespace`.
    pub fn from(mut self, namespace: &str, account: &str) -> Authorization {
        self.principals.push(format!("cluster.local/ns/{namespace}/sa/{account}"));
        self
    }

    /// To ports.
    pub fn ports(mut self, ports: &[u16]) -> Authorization {
        self.ports.extend(ports.iter().map(u16::to_string));
        self
    }

    /// With HTTP methods, which L4 cannot see.
    pub fn methods(mut self, methods: &[&str]) -> Authorization {
        self.methods.extend(methods.iter().map(|m| m.to_string()));
        self
    }

    /// Only reported.
    pub fn dry_run(mut self) -> Authorization {
        self.annotations.push(("istio.io/dry-run".into(), "true".into()));
        self
    }

    /// The manifest.
    pub fn yaml(&self) -> String {
        let mut text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {}\n  namespace: {}\n",
            self.name, self.namespace
        );
        if !self.annotations.is_empty() {
            text.push_str("  annotations:\n");
            for (key, value) in &self.annotations {
                let _ = writeln!(text, "    {key}: {value:?}");
            }
        }
        text.push_str("spec:\n");
        if let Some(app) = &self.app {
            let _ = writeln!(text, "  selector:\n    matchLabels:\n      app: {app}");
        }
        let _ = writeln!(text, "  action: {}\n  rules:", self.action);
        let mut lead = "  - ";
        if !self.principals.is_empty() {
            let _ = writeln!(text, "{lead}from:\n    - source:\n        principals: {:?}", self.principals);
            lead = "    ";
        }
        if !self.ports.is_empty() || !self.methods.is_empty() {
            let _ = writeln!(text, "{lead}to:\n    - operation:");
            if !self.ports.is_empty() {
                let _ = writeln!(text, "        ports: {:?}", self.ports);
            }
            if !self.methods.is_empty() {
                let _ = writeln!(text, "        methods: {:?}", self.methods);
            }
        } else if self.principals.is_empty() {
            text.push_str("  - {}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_read_like_hand_written_ones() {
        let text = Authorization::allow("p", "echo").from("default", "a").ports(&[9000]).methods(&["GET"]).yaml();
        let rule = "  - from:\n    - source:\n        principals: [\"cluster.local/ns/default/sa/a\"]\n    to:\n    - operation:\n        ports: [\"9000\"]\n        methods: [\"GET\"]\n";
        assert!(text.ends_with(rule), "{text}");
        assert!(Authorization::deny("p", "echo").ports(&[1]).yaml().contains("  rules:\n  - to:\n    - operation:\n"));
        assert!(Authorization::deny("p", "echo").yaml().ends_with("  rules:\n  - {}\n"));
        let text = peer_authentication("foo", "STRICT", Some("web"), &[(80, "DISABLE")]);
        assert!(
            text.ends_with("  mtls:\n    mode: STRICT\n  portLevelMtls:\n    80:\n      mode: DISABLE\n"),
            "{text}"
        );
    }
}
