//! Which pods of a node are in the mesh, as a file that outlives the agent and the node's power: the agent keeps it, and the CNI plugin decides
//! by it while the agent is away. Pure: neither reading nor writing of files happens here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The only version of the file.
pub const SCOPE_VERSION: u32 = 1;
/// Longer files are not read: ten thousand namespaces have some 400 KiB.
pub const MAX_SCOPE_BYTES: u64 = 16 << 20;

/// What the agent knew last.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// [`SCOPE_VERSION`].
    pub version: u32,
    /// Every namespace of the cluster.
    pub namespaces: BTreeMap<String, NamespaceScope>,
    /// Pods of this node, by the UID under which the kubelet runs them, and whether they are in the mesh. Their labels stay what they are over a
    /// reboot, after which they get new sandboxes.
    pub pods: BTreeMap<String, bool>,
}

/// What is known of the pods of a namespace.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceScope {
    /// The namespace has the label: its pods are in the mesh unless they opt out, which a new pod's name does not tell.
    In,
    /// It does not have it, but pods of it have it themselves, here or on other nodes: of a new one it is not known.
    Some,
    /// It does not have it, and no pod of the mesh is known that does: a new one goes on. Its own label the plugin is not told; for one that is the first
    /// of its namespace to have it, all pods of the cluster would have to wait for an agent that is away.
    Out,
}

/// Whether a pod is in the mesh, by the file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Member {
    /// It is, or may be: it waits for the agent.
    In,
    /// It is not.
    Out,
    /// The file does not say.
    Unknown(String),
}

impl Scope {
    /// An empty one.
    #[must_use]
    pub fn new() -> Scope {
        Scope { version: SCOPE_VERSION, namespaces: BTreeMap::new(), pods: BTreeMap::new() }
    }

    /// Reads a file's bytes.
    pub fn read(bytes: &[u8]) -> Result<Scope, String> {
        let scope: Scope = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        match scope.version {
            SCOPE_VERSION => Ok(scope),
            other => Err(format!("version {other} is not supported, {SCOPE_VERSION} is")),
        }
    }

    /// The file's bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        // Maps with text keys and plain values always have a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Whether a pod is in the mesh; without a UID, by its namespace alone.
    #[must_use]
    pub fn member(&self, namespace: &str, uid: Option<&str>) -> Member {
        match uid.and_then(|uid| self.pods.get(uid)) {
            Some(true) => return Member::In,
            Some(false) => return Member::Out,
            None => {}
        }
        match self.namespaces.get(namespace) {
            Some(NamespaceScope::In | NamespaceScope::Some) => Member::In,
            Some(NamespaceScope::Out) => Member::Out,
            None => Member::Unknown(format!("the namespace {namespace} is newer than what the agent left behind")),
        }
    }
}

impl Default for Scope {
    fn default() -> Self {
        Scope::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> Scope {
        let namespaces =
            [("shop", NamespaceScope::In), ("tools", NamespaceScope::Some), ("plain", NamespaceScope::Out)];
        Scope {
            namespaces: namespaces.map(|(name, scope)| (name.to_owned(), scope)).into(),
            pods: [("in", true), ("out", false)].map(|(uid, is)| (uid.to_owned(), is)).into(),
            ..Scope::new()
        }
    }

    #[test]
    fn hardening_F45_who_waits_for_an_agent_that_is_away() {
        let unknown = || Member::Unknown("the namespace new is newer than what the agent left behind".to_owned());
        let rows = [
            ("shop", Some("other"), Member::In),
            ("shop", None, Member::In),
            ("shop", Some("out"), Member::Out),
            ("tools", Some("other"), Member::In),
            ("tools", Some("out"), Member::Out),
            ("plain", Some("other"), Member::Out),
            ("plain", None, Member::Out),
            ("plain", Some("in"), Member::In),
            ("new", Some("other"), unknown()),
            ("new", None, unknown()),
            ("new", Some("in"), Member::In),
        ];
        for (namespace, uid, expected) in rows {
            assert_eq!(scope().member(namespace, uid), expected, "{namespace} {uid:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_and_anything_else_is_not() {
        assert_eq!(Scope::read(&scope().bytes()), Ok(scope()));
        let rows: [&[u8]; 6] = [
            b"",
            b"{",
            br#"{"version":2,"namespaces":{},"pods":{}}"#,
            br#"{"version":1,"namespaces":{}}"#,
            br#"{"version":1,"namespaces":{"a":"maybe"},"pods":{}}"#,
            br#"{"version":1,"namespaces":{},"pods":{},"more":1}"#,
        ];
        for bytes in rows {
            assert!(Scope::read(bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
    }
}
