//! PeerAuthentication: which workloads refuse plaintext.

use std::collections::BTreeMap;

use mesh_core::ArcStr;

use super::fields::Fields;
use super::{Key, Labels, Object, Read, Unreadable, meta};
use crate::diagnosis::Problem;
use crate::yaml::node::{Node as Tree, Value};

/// What happens to plaintext.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// As the next wider object says.
    #[default]
    Unset,
    /// Accepted. DISABLE means the same for those who accept.
    Permissive,
    /// Refused.
    Strict,
}

/// A peer authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Its namespace.
    pub namespace: ArcStr,
    /// Its name.
    pub name: ArcStr,
    /// Which workloads; empty means the namespace, or the mesh for the root namespace.
    pub selector: Labels,
    /// For all ports.
    pub mode: Mode,
    /// For single ports of the workload.
    pub ports: BTreeMap<u16, Mode>,
    /// When it was made, seconds; of two, the older one wins.
    pub created: Option<i64>,
}

/// Reads a peer authentication.
pub fn read(key: &Key, tree: &Tree) -> Read {
    let mut fields = Fields::default();
    let mut unreadable = Unreadable::default();
    let object = peer_authentication(key, tree, &mut fields, &mut unreadable);
    let outcome = match object {
        Some(object) if !meta::has_error(&fields.problems) => Ok(Object::PeerAuthentication(object.into())),
        _ => Err(unreadable),
    };
    Read { outcome, problems: fields.problems }
}

fn peer_authentication(
    key: &Key,
    tree: &Tree,
    fields: &mut Fields,
    known: &mut Unreadable,
) -> Option<PeerAuthentication> {
    let top = fields.mapping(tree, "", &["apiVersion", "kind", "metadata", "spec", "status"])?;
    let empty = Tree { value: Value::Map(Vec::new()), span: tree.span };
    let spec = fields.mapping(top.get("spec").unwrap_or(&empty), "spec", &["selector", "mtls", "portLevelMtls"])?;
    known.selector = fields.selector(&spec);
    let selector = known.selector.clone()?;
    let mode = match spec.get("mtls") {
        Some(tree) => read_mode(fields, tree, "spec.mtls"),
        None => Mode::Unset,
    };
    let mut ports = BTreeMap::new();
    if let Some(tree) = spec.get("portLevelMtls") {
        let levels = fields.any_mapping(tree, "spec.portLevelMtls")?;
        if selector.is_empty() {
            let problem = Problem::error("spec.portLevelMtls", "ports can be set for selected workloads only");
            fields.problems.push(problem.help("add `selector.matchLabels`"));
        }
        for entry in levels.entries() {
            let path = levels.field(&entry.key);
            match entry.key.parse::<u16>() {
                Ok(port) if port != 0 => {
                    ports.insert(port, read_mode(fields, &entry.node, &path));
                }
                _ => {
                    let problem = Problem::error(format!("{path}!"), format!("{:?} is not a port", entry.key));
                    fields.problems.push(problem.help("write the workload's port, a number from 1 to 65535"));
                }
            }
        }
    }
    let created = tree
        .get("metadata")
        .and_then(|m| m.get("creationTimestamp"))
        .and_then(Tree::as_str)
        .and_then(|t| t.parse::<jiff::Timestamp>().ok())
        .map(|t| t.as_second());
    Some(PeerAuthentication {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        selector,
        mode,
        ports,
        created,
    })
}

fn read_mode(fields: &mut Fields, tree: &Tree, path: &str) -> Mode {
    let Some(mtls) = fields.mapping(tree, path, &["mode"]) else { return Mode::Unset };
    match fields.string(&mtls, "mode") {
        None | Some("UNSET") => Mode::Unset,
        Some("STRICT") => Mode::Strict,
        Some("PERMISSIVE") => Mode::Permissive,
        Some("DISABLE") => {
            let message = "DISABLE means the same as PERMISSIVE here: workloads of the mesh use mutual TLS with each other in any case";
            fields.problems.push(Problem::warning(mtls.field("mode"), message).help("write PERMISSIVE"));
            Mode::Permissive
        }
        Some(other) => {
            let problem = Problem::error(mtls.field("mode"), format!("unknown mode {other:?}"));
            fields.problems.push(problem.help("write STRICT or PERMISSIVE"));
            Mode::Unset
        }
    }
}
