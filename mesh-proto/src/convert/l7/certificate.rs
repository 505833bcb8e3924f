//! Certificates of gateways, both ways. What is secret is in no text: not in errors either.

use std::{fmt, sync::Arc};

use mesh_core::listener::{Certificates, Credential, Secret};
use prost::Message;

use super::few;
use crate::convert::{ConvertError, field};
use crate::wire::l7 as wire;

/// Credentials of one gateway, and bytes of each part of one: what a Secret of Kubernetes can hold.
const MOST: usize = 10_000;
const LONGEST: usize = 1 << 20;

/// Reads one `undermesh.l7.v1.Certificates`. Whether a certificate is one shows when it is used: the others are not its concern.
pub fn certificates(bytes: &[u8]) -> Result<Certificates, ConvertError> {
    let message = wire::Certificates::decode(bytes).map_err(ConvertError::decode)?;
    if message.encoded_len() != bytes.len() {
        return Err(ConvertError::UnknownFields);
    }
    few("all", message.all.len(), MOST)?;
    let mut read = Certificates { name: field::text("name", message.name)?, ..Certificates::default() };
    for one in message.all {
        let name = field::text("all.name", one.name)?;
        let longest = [&one.chain, &one.key, &one.roots, &one.revoked, &one.staple].map(Vec::len).into_iter().max();
        few("all: bytes", longest.unwrap_or_default(), LONGEST)?;
        let credential = Credential {
            chain: one.chain.into(),
            key: Secret::new(one.key.into()),
            roots: one.roots.into(),
            revoked: one.revoked.into(),
            staple: one.staple.into(),
        };
        read.all.insert(name, Arc::new(credential));
    }
    Ok(read)
}

/// The bytes of an `undermesh.l7.v1.Certificates`. The same value always gives the same bytes. They are secret.
#[must_use]
pub fn encode_certificates(certificates: &Certificates) -> Vec<u8> {
    let one = |(name, credential): (&mesh_core::ArcStr, &Arc<Credential>)| wire::Credential {
        name: name.to_string(),
        chain: credential.chain.to_vec(),
        key: credential.key.expose().to_vec(),
        roots: credential.roots.to_vec(),
        revoked: credential.revoked.to_vec(),
        staple: credential.staple.to_vec(),
    };
    wire::Certificates { name: certificates.name.to_string(), all: certificates.all.iter().map(one).collect() }
        .encode_to_vec()
}

/// The generated one would show the key.
impl fmt::Debug for wire::Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("name", &self.name).finish_non_exhaustive()
    }
}
