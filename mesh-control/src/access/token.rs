//! Bearer tokens of nodes and waypoints, for control planes without a cluster. A token is a JWT (EdDSA) that says which node or waypoint of which cluster it is for, for whom it is meant,
//! and until when.
//! The key is the control plane's own; nobody else needs to verify.

use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_core::ArcStr;
use rcgen::{KeyPair, SigningKey};
use rustls_pki_types::{SignatureVerificationAlgorithm, alg_id};
use serde::{Deserialize, Serialize};

use super::who::Who;
use crate::clock::unix;
use crate::state::{self, StateError};

/// For whom the tokens are: the audience that agents of Istio have, too.
pub const AUDIENCE: &str = "istio-ca";
/// File of the key.
pub const KEY_FILE: &str = "token-key.pem";
/// Longer than any token of ours.
const MAX_TOKEN_BYTES: usize = 4096;
/// How subjects begin.
const NODE: &str = "node:";
const WAYPOINT: &str = "waypoint:";
/// How far clocks may differ; token and check are of one machine, so only steps of its clock matter.
const LEEWAY_SECONDS: i64 = 30;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeyError {
    /// The state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// The file does not hold a key.
    #[error("{KEY_FILE}: {0}; remove the file to begin with a new key")]
    Key(#[from] rcgen::Error),
    /// The key is of another kind.
    #[error("{KEY_FILE}: not an Ed25519 key; remove the file to begin with a new key")]
    Kind,
}

/// Why a token is not accepted. Callers are told none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is none.
    #[error("no token")]
    Missing,
    /// It is not a token of ours.
    #[error("malformed")]
    Malformed,
    /// It was not signed by us.
    #[error("bad signature")]
    Signature,
    /// It is meant for somebody else.
    #[error("wrong audience")]
    Audience,
    /// It is of another cluster.
    #[error("other cluster")]
    Cluster,
    /// Its time has passed, or has not come.
    #[error("expired")]
    Expired,
    /// The node is gone, or is another one of the same name; or the waypoint is.
    #[error("the node or waypoint is not known")]
    Gone,
    /// It is of a service account that may not call.
    #[error("service account may not call")]
    Account,
    /// It was not made for a pod on a node.
    #[error("not bound to a node")]
    Unbound,
    /// It is signed by a key that the API server's key set does not hold, or not for that.
    #[error("signed by a key that is not known")]
    Key,
    /// It was issued by somebody else.
    #[error("other issuer")]
    Issuer,
    /// The pod that it was made for is gone, is another one, or is elsewhere.
    #[error("the pod it was made for is not known")]
    Pod,
    /// The API server is away, and has not seen it before.
    #[error("the API server cannot be asked")]
    Unreviewed,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    aud: String,
    sub: String,
    cluster: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    iat: i64,
    exp: i64,
}

/// Who calls: proof that a valid token was shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Who it is, for logs and limits.
    pub name: ArcStr,
    /// Whose token it was.
    pub who: Who,
    expires: i64,
}

impl Caller {
    /// Whoever has shown a valid token.
    pub(super) fn new(who: Who, expires: i64) -> Self {
        Self { name: who.name(), who, expires }
    }

    /// For how long the token is good.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        Duration::from_secs(u64::try_from(self.expires.saturating_sub(unix(now))).unwrap_or(0))
    }
}

/// Signs and verifies.
pub struct Tokens {
    key: KeyPair,
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    cluster: ArcStr,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

const HEADER: &str = r#"{"alg":"EdDSA","typ":"JWT"}"#;

impl Tokens {
    /// Reads the key from the state folder, or makes one there.
    pub fn open(folder: &Path, cluster: ArcStr) -> Result<Self, TokenKeyError> {
        let path = folder.join(KEY_FILE);
        let key = match state::read_secret(&path)? {
            Some(text) => KeyPair::from_pem(&text)?,
            None => {
                let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
                state::write(&path, &key.serialize_pem(), 0o600)?;
                key
            }
        };
        if key.algorithm() != &rcgen::PKCS_ED25519 {
            return Err(TokenKeyError::Kind);
        }
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        let algorithm = algorithms.all.iter().copied().find(|a| a.signature_alg_id() == alg_id::ED25519);
        Ok(Self { key, algorithm: algorithm.ok_or(TokenKeyError::Kind)?, cluster })
    }

    /// A token for somebody.
    pub fn issue(&self, who: &Who, lifetime: Duration, now: SystemTime) -> Result<String, rcgen::Error> {
        let (sub, uid) = match who {
            Who::Node { name, uid } => (format!("{NODE}{name}"), uid.clone()),
            Who::Waypoint { gateway, uid, .. } => (format!("{WAYPOINT}{gateway}"), uid.as_deref().map(str::to_owned)),
        };
        let claims = Claims {
            aud: AUDIENCE.into(),
            sub,
            cluster: self.cluster.to_string(),
            uid,
            iat: unix(now),
            exp: unix(now + lifetime),
        };
        let claims = serde_json::to_vec(&claims).unwrap_or_default();
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.key.sign(signed.as_bytes())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Checks a token; `stands` says whether that one is there. Whatever is wrong, the same work is done.
    pub fn verify(
        &self,
        token: Option<&str>,
        now: SystemTime,
        stands: impl FnOnce(&Who) -> bool,
    ) -> Result<Caller, TokenError> {
        let given = token.filter(|t| !t.is_empty() && t.len() <= MAX_TOKEN_BYTES);
        let (signed, signature) = given.and_then(|t| t.rsplit_once('.')).unwrap_or(("", ""));
        // A signature of the right length keeps the verification from ending early.
        let decoded = URL_SAFE_NO_PAD.decode(signature).ok().filter(|s| s.len() == 64);
        let is_whole = decoded.is_some();
        let signature = decoded.unwrap_or_else(|| vec![0; 64]);
        let verified =
            self.algorithm.verify_signature(self.key.public_key_raw(), signed.as_bytes(), &signature).is_ok();
        let claims = signed
            .split_once('.')
            .filter(|(header, _)| *header == URL_SAFE_NO_PAD.encode(HEADER))
            .and_then(|(_, claims)| URL_SAFE_NO_PAD.decode(claims).ok())
            .and_then(|claims| serde_json::from_slice::<Claims>(&claims).ok());
        if token.is_none_or(str::is_empty) {
            return Err(TokenError::Missing);
        }
        let claims = claims.filter(|_| is_whole).ok_or(TokenError::Malformed)?;
        let who = subject(&claims).ok_or(TokenError::Malformed)?;
        let now = unix(now);
        if !verified {
            Err(TokenError::Signature)
        } else if claims.aud != AUDIENCE {
            Err(TokenError::Audience)
        } else if claims.cluster != self.cluster.as_str() {
            Err(TokenError::Cluster)
        } else if now >= claims.exp || now < claims.iat - LEEWAY_SECONDS {
            Err(TokenError::Expired)
        } else if !stands(&who) {
            Err(TokenError::Gone)
        } else {
            Ok(Caller::new(who, claims.exp))
        }
    }
}

/// Whose the token says it is.
fn subject(claims: &Claims) -> Option<Who> {
    if let Some(name) = claims.sub.strip_prefix(NODE) {
        return Some(Who::Node { name: name.into(), uid: claims.uid.clone() });
    }
    let gateway = claims.sub.strip_prefix(WAYPOINT)?.parse().ok()?;
    Some(Who::Waypoint { gateway, uid: claims.uid.as_deref().map(ArcStr::from), pod: None })
}
