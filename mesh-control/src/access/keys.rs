//! Tokens of service accounts, checked without the API server: by the keys that it has published, and by what is known of the pod that the token was
//! made for. Pure. The reviewer asks when no review can be had; [`super::discovery`] keeps the keys.
//!
//! Nothing of a token chooses how it is checked: the key says which algorithm it is for, and what a header offers as keys or as places of keys is
//! not read.

use std::collections::BTreeMap;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use mesh_core::ArcStr;
use serde::Deserialize;
use serde_json::Value as Json;

use super::rights::{self, Bearer};
use super::token::{Caller, TokenError};
use super::who::Who;
use crate::clock::unix;
use crate::index::{AgentPod, View};

/// Bytes of a key set, and of what says who issues.
pub const MAX_SET_BYTES: usize = 256 << 10;
/// Keys of a set.
const MAX_KEYS: usize = 64;
/// Longer than any name of a key.
const MAX_KEY_ID: usize = 256;
/// How far the issuer's clock may be ahead. What is over is over.
const LEEWAY_SECONDS: i64 = 60;

/// Keys by which the API server signs.
#[derive(Clone, Debug)]
pub struct KeySet {
    issuer: String,
    keys: BTreeMap<String, (Algorithm, DecodingKey)>,
}

/// A token that the key set vouches for, and the pod that it was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vouched {
    /// Whom it was made for.
    pub bearer: Bearer,
    /// When it ends.
    pub expires: i64,
    /// The pod's uid.
    pub uid: ArcStr,
    /// What it says of the pod.
    pub pod: AgentPod,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Json>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: String,
    alg: Option<String>,
    r#use: Option<String>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    /// Private: who has published it signs for everybody.
    d: Option<Json>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood; none is.
    crit: Option<Json>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Vec<String>,
    exp: i64,
    nbf: i64,
    iat: i64,
    #[serde(rename = "kubernetes.io")]
    bound: Bound,
}

/// What a token is bound to.
#[derive(Deserialize)]
struct Bound {
    namespace: String,
    serviceaccount: Named,
    pod: Option<Named>,
    node: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    uid: Option<String>,
}

impl KeySet {
    /// Reads what the API server says of itself: who issues, and by which keys. Keys that are for something else are left out; a set that is none
    /// is refused as a whole.
    pub fn read(discovery: &[u8], set: &[u8]) -> Result<Self, &'static str> {
        let discovery: Discovery = serde_json::from_slice(discovery).map_err(|_| "it does not say who issues")?;
        if discovery.issuer.is_empty() {
            return Err("the issuer has no name");
        }
        let set: Set = serde_json::from_slice(set).map_err(|_| "it is no set of keys")?;
        if set.keys.len() > MAX_KEYS {
            return Err("there are too many keys");
        }
        let mut keys: BTreeMap<String, Option<(Algorithm, DecodingKey)>> = BTreeMap::new();
        for key in set.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok()) {
            // Of two with one name, nobody can say which is meant.
            let usable = if keys.contains_key(&key.kid) { None } else { key.usable() };
            keys.insert(key.kid, usable);
        }
        let keys: BTreeMap<_, _> = keys.into_iter().filter_map(|(id, key)| Some((id, key?))).collect();
        if keys.is_empty() {
            return Err("it holds no key that tokens can be checked by");
        }
        Ok(Self { issuer: discovery.issuer, keys })
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Never true for a set that was read.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Checks a token for one of `audiences`. The signature comes first: of what is not signed nothing else is read.
    pub fn vouch(&self, token: &str, audiences: &[String], now: SystemTime) -> Result<Vouched, TokenError> {
        let parts: Vec<&str> = token.split('.').take(4).collect();
        let [header, claims, signature] = parts[..] else { return Err(TokenError::Malformed) };
        let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
        let header: Header = serde_json::from_slice(&decoded(header)?).map_err(|_| TokenError::Malformed)?;
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        let id = header.kid.filter(|id| id.len() <= MAX_KEY_ID).ok_or(TokenError::Key)?;
        let (algorithm, key) = self.keys.get(&id).ok_or(TokenError::Key)?;
        if header.alg != name(*algorithm) {
            return Err(TokenError::Key);
        }
        let signed = &token[..token.len() - signature.len() - 1];
        match crypto::verify(signature, signed.as_bytes(), key, *algorithm) {
            Ok(true) => {}
            _ => return Err(TokenError::Signature),
        }
        let claims: Claims = serde_json::from_slice(&decoded(claims)?).map_err(|_| TokenError::Malformed)?;
        self.judge(claims, audiences, unix(now))
    }

    fn judge(&self, claims: Claims, audiences: &[String], now: i64) -> Result<Vouched, TokenError> {
        if claims.iss != self.issuer {
            return Err(TokenError::Issuer);
        }
        if !claims.aud.iter().any(|audience| audiences.contains(audience)) {
            return Err(TokenError::Audience);
        }
        let latest = now.saturating_add(LEEWAY_SECONDS);
        if now >= claims.exp || claims.nbf > latest || claims.iat > latest {
            return Err(TokenError::Expired);
        }
        let Bound { namespace, serviceaccount, pod, node } = claims.bound;
        if claims.sub != format!("system:serviceaccount:{namespace}:{}", serviceaccount.name) {
            return Err(TokenError::Account);
        }
        let (Some(pod), Some(node)) = (pod, node) else { return Err(TokenError::Unbound) };
        let uid = pod.uid.filter(|uid| !uid.is_empty()).ok_or(TokenError::Unbound)?;
        let node_name = ArcStr::from(node.name);
        let (uid, namespace): (ArcStr, ArcStr) = (uid.into(), namespace.into());
        let (name, account): (ArcStr, ArcStr) = (pod.name.into(), serviceaccount.name.into());
        let bearer = Bearer {
            namespace: namespace.clone(),
            account: account.clone(),
            pod: Some(name.clone()),
            uid: Some(uid.clone()),
            node: Some((node_name.clone(), node.uid)),
        };
        let pod = AgentPod { namespace, name, account, node: node_name };
        Ok(Vouched { bearer, expires: claims.exp, uid, pod })
    }
}

impl Vouched {
    /// Who calls, if the pod of the token is there, and what the token says it is; `agents` are the service accounts of agents.
    pub fn caller(self, agents: &[(ArcStr, ArcStr)], view: &View) -> Result<Caller, TokenError> {
        let who = rights::bearer(self.bearer, agents, view).map_err(|_| TokenError::Pod)?;
        let is_there = match &who {
            Who::Node { .. } => view.has_agent(&self.uid, &self.pod),
            Who::Waypoint { .. } => who.stands(view),
        };
        if is_there { Ok(Caller::new(who, self.expires)) } else { Err(TokenError::Pod) }
    }
}

impl Jwk {
    fn usable(&self) -> Option<(Algorithm, DecodingKey)> {
        if self.d.is_some() || self.r#use.as_deref().is_some_and(|r#use| r#use != "sig") || self.kid.len() > MAX_KEY_ID
        {
            return None;
        }
        let (algorithm, key) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", None) => {
                let algorithm = match self.alg.as_deref() {
                    None | Some("RS256") => Algorithm::RS256,
                    Some("RS384") => Algorithm::RS384,
                    Some("RS512") => Algorithm::RS512,
                    Some(_) => return None,
                };
                (algorithm, DecodingKey::from_rsa_components(self.n.as_ref()?, self.e.as_ref()?))
            }
            ("EC", Some(curve)) => {
                let algorithm = match curve {
                    "P-256" => Algorithm::ES256,
                    "P-384" => Algorithm::ES384,
                    _ => return None,
                };
                (algorithm, DecodingKey::from_ec_components(self.x.as_ref()?, self.y.as_ref()?))
            }
            _ => return None,
        };
        let agrees = self.alg.as_deref().is_none_or(|alg| alg == name(algorithm));
        Some((algorithm, key.ok().filter(|_| agrees)?))
    }
}

/// As headers and keys write it; nothing else is ever made of a key.
fn name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::RS256 => "RS256",
        Algorithm::RS384 => "RS384",
        Algorithm::RS512 => "RS512",
        Algorithm::ES256 => "ES256",
        Algorithm::ES384 => "ES384",
        _ => "",
    }
}
