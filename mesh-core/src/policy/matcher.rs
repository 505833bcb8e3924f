//! The leaf comparisons of a policy. Values are compared byte by byte: no regular expressions, no patterns inside strings.

use arcstr::ArcStr;
use serde::Serialize;

/// A condition on one string.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum StringMatch {
    /// The same bytes.
    Exact(ArcStr),
    /// Starts with.
    Prefix(ArcStr),
    /// Ends with.
    Suffix(ArcStr),
    /// Anything but empty.
    Presence,
}

impl StringMatch {
    /// Whether `value` satisfies the condition. An absent value is the empty string.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(text) => value == text,
            Self::Prefix(text) => value.starts_with(text.as_str()),
            Self::Suffix(text) => value.ends_with(text.as_str()),
            Self::Presence => !value.is_empty(),
        }
    }
}

/// A service account in any trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ServiceAccountMatch {
    /// Its namespace.
    pub namespace: ArcStr,
    /// Its name.
    pub service_account: ArcStr,
}
