//! Certificates with their keys, as they are given to a gateway. They come apart from its listeners, so that one that is replaced moves nothing else. What is
//! secret has no text: neither logs nor dumps can show it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arcstr::ArcStr;
use bytes::Bytes;

/// What one gateway may show and believe, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificates {
    /// Whose they are.
    pub name: ArcStr,
    /// By the names that listeners use, as `shop/web-cert`.
    pub all: BTreeMap<ArcStr, Arc<Credential>>,
}

/// One of them. What is not there is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credential {
    /// The certificate that is shown, with those between it and a root; PEM.
    pub chain: Bytes,
    /// Its key; PEM.
    pub key: Secret,
    /// Roots that clients are believed by; PEM.
    pub roots: Bytes,
    /// What is revoked of them; PEM.
    pub revoked: Bytes,
    /// What the authority says of the certificate, to be shown with it; DER.
    pub staple: Bytes,
}

/// Bytes that are never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Bytes);

impl Secret {
    /// Keeps them.
    #[must_use]
    pub fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// For whoever uses them.
    #[must_use]
    pub fn expose(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "(secret)" })
    }
}
