//! SPIFFE identities of workloads: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`. Certificates, policies and tunnels compare
//! these values; parsing is strict because a lenient parser is a way to be mistaken for someone else.

use std::{fmt, str::FromStr};

use arcstr::ArcStr;
use serde::{Serialize, Serializer};

/// The longest SPIFFE id that is accepted, as in the SPIFFE standard.
pub const MAX_ID_BYTES: usize = 2048;
const MAX_TRUST_DOMAIN_BYTES: usize = 255;
const SCHEME: &str = "spiffe://";

/// Why a text is not an identity of this mesh's form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// More than [`MAX_ID_BYTES`].
    #[error("identity is {0} bytes long, the limit is {MAX_ID_BYTES}")]
    TooLong(usize),
    /// Another scheme, or none.
    #[error("identity does not start with spiffe://")]
    Scheme,
    /// Empty, too long, or with characters that SPIFFE does not allow.
    #[error("trust domain {0:?} is not 1-255 lowercase letters, digits, dots, dashes and underscores")]
    TrustDomain(String),
    /// The path is not `/ns/<namespace>/sa/<service account>`.
    #[error("identity path is not /ns/<namespace>/sa/<service account>")]
    Path,
    /// A path segment is empty, a dot segment, or has characters that SPIFFE does not allow.
    #[error("identity path segment {0:?} is not letters, digits, dots, dashes and underscores")]
    Segment(String),
}

/// The root of trust that an identity belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct TrustDomain(ArcStr);

impl TrustDomain {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn text(&mut self) -> &mut ArcStr {
        &mut self.0
    }
}

impl Default for TrustDomain {
    /// `cluster.local`
    fn default() -> Self {
        Self(arcstr::literal!("cluster.local"))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > MAX_TRUST_DOMAIN_BYTES || !text.bytes().all(allowed) {
            return Err(IdentityError::TrustDomain(excerpt(text)));
        }
        Ok(Self(text.into()))
    }
}

/// One workload identity; cheap to clone, compare and hash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Compared exactly; there are no aliases here.
    pub trust_domain: TrustDomain,
    /// The Kubernetes namespace.
    pub namespace: ArcStr,
    /// The Kubernetes service account.
    pub service_account: ArcStr,
}

impl Identity {
    /// Checks both segments by SPIFFE's rules.
    pub fn new(trust_domain: TrustDomain, namespace: &str, service_account: &str) -> Result<Self, IdentityError> {
        check_segment(namespace)?;
        check_segment(service_account)?;
        let identity = Self { trust_domain, namespace: namespace.into(), service_account: service_account.into() };
        let length = SCHEME.len() + identity.principal_len();
        if length > MAX_ID_BYTES { Err(IdentityError::TooLong(length)) } else { Ok(identity) }
    }

    /// The identity without `spiffe://`, which is what policies compare principals with.
    #[must_use]
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }

    fn principal_len(&self) -> usize {
        self.trust_domain.as_str().len() + self.namespace.len() + self.service_account.len() + "/ns/".len() * 2
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if text.len() > MAX_ID_BYTES {
            return Err(IdentityError::TooLong(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or(IdentityError::Scheme)?;
        let (trust_domain, path) = rest.split_once('/').ok_or(IdentityError::Path)?;
        let trust_domain = trust_domain.parse()?;
        let mut parts = path.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => {
                Self::new(trust_domain, namespace, account)
            }
            _ => Err(IdentityError::Path),
        }
    }
}

/// Whether SPIFFE allows `text` as one segment of a path.
pub fn check_segment(text: &str) -> Result<(), IdentityError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if text.is_empty() || text == "." || text == ".." || !text.bytes().all(allowed) {
        return Err(IdentityError::Segment(excerpt(text)));
    }
    Ok(())
}

fn excerpt(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_it_parsed() {
        for text in [
            "spiffe://cluster.local/ns/bookinfo/sa/reviews",
            "spiffe://td-1.example_2/ns/a/sa/default",
            "spiffe://cluster.local/ns/ns/sa/sa",
            "spiffe://cluster.local/ns/A.b-c_d/sa/0",
        ] {
            let identity: Identity = text.parse().unwrap();
            assert_eq!(identity.to_string(), text);
            assert_eq!(format!("spiffe://{}", identity.principal()), text);
        }
    }

    #[test]
    fn hardening_B9_trust_domains_are_compared_exactly() {
        let ours: Identity = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        let theirs: Identity = "spiffe://cluster.local.evil/ns/a/sa/b".parse().unwrap();
        assert_ne!(ours, theirs);
        assert!("spiffe://Cluster.Local/ns/a/sa/b".parse::<Identity>().is_err());
    }

    #[test]
    fn hardening_B11_malformed_ids_are_refused() {
        let long = format!("spiffe://cluster.local/ns/a/sa/{}", "x".repeat(2048));
        for text in [
            "",
            "spiffe://",
            "spiffe:///ns/a/sa/b",
            "SPIFFE://cluster.local/ns/a/sa/b",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a\0/sa/b",
            "spiffe://cluster.local/ns/a%2fb/sa/b",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/./sa/b",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local//ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b/",
            "spiffe://cluster.local:443/ns/a/sa/b",
            "spiffe://user@cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b?x=1",
            "spiffe://cluster.local/ns/a/sa/b#f",
            " spiffe://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/ä/sa/b",
            long.as_str(),
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn hardening_B12_other_paths_are_refused() {
        for text in [
            "spiffe://cluster.local",
            "spiffe://cluster.local/",
            "spiffe://cluster.local/ns/a",
            "spiffe://cluster.local/ns/a/sa",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/sa/b/ns/a",
            "spiffe://cluster.local/NS/a/SA/b",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text:?}");
        }
    }
}
