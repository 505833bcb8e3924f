//! Names that are unique in a namespace: of policies (`namespace/name`) and of services (`namespace/hostname`).

use std::{fmt, str::FromStr};

use arcstr::ArcStr;
use serde::{Serialize, Serializer};

/// `namespace/name`; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedName {
    /// The namespace, never empty for what comes from the wire.
    pub namespace: ArcStr,
    /// The policy's name or the service's hostname.
    pub name: ArcStr,
}

impl NamespacedName {
    /// Joins the two parts without checking them.
    pub fn new(namespace: impl Into<ArcStr>, name: impl Into<ArcStr>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Serialize for NamespacedName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The text is not `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not of the form namespace/name: {0:?}")]
pub struct NameError(pub String);

impl FromStr for NamespacedName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::new(namespace, name))
            }
            _ => Err(NameError(text.chars().take(200).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints_what_has_exactly_two_parts() {
        for (text, ok) in [
            ("a/b", true),
            ("bookinfo/reviews.bookinfo.svc.cluster.local", true),
            ("", false),
            ("a", false),
            ("/b", false),
            ("a/", false),
            ("a/b/c", false),
        ] {
            let parsed = text.parse::<NamespacedName>();
            assert_eq!(parsed.is_ok(), ok, "{text}");
            if let Ok(name) = parsed {
                assert_eq!(name.to_string(), text);
            }
        }
    }
}
