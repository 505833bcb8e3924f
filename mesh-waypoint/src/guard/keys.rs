//! Keys that tokens are signed with. The key says which algorithms it is for; a token that names another is refused, and so is one that no single key is meant by.

use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use mesh_core::l7::token::{LONGEST_KEY_NAME, TokenProblem, Unverified};
use serde::Deserialize;
use serde_json::Value;

/// Keys of a set.
const MOST: usize = 100;

/// A set of keys.
#[derive(Debug, Default)]
pub struct KeySet(Vec<Key>);

#[derive(Debug)]
struct Key {
    /// Its name, if it has one.
    name: Option<String>,
    algorithms: Vec<(Algorithm, &'static str)>,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    r#use: Option<String>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    /// Private: who has published it signs for everybody.
    d: Option<Value>,
}

const RSA: [(Algorithm, &str); 6] = [
    (Algorithm::RS256, "RS256"),
    (Algorithm::RS384, "RS384"),
    (Algorithm::RS512, "RS512"),
    (Algorithm::PS256, "PS256"),
    (Algorithm::PS384, "PS384"),
    (Algorithm::PS512, "PS512"),
];

impl KeySet {
    /// Reads a set as RFC 7517 has it. Keys that are for something else are left out; symmetric ones are, too: whoever can read a policy could sign.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let Ok(set) = serde_json::from_str::<Set>(text) else { return Self::default() };
        if set.keys.len() > MOST {
            return Self::default();
        }
        let keys = set.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
        let keys: Vec<Key> = keys.filter_map(Jwk::usable).collect();
        // Of two with one name nobody can say which is meant.
        let is_single = |name: &Option<String>| keys.iter().filter(|key| key.name == *name).count() == 1;
        let single: Vec<bool> = keys.iter().map(|key| key.name.is_none() || is_single(&key.name)).collect();
        Self(keys.into_iter().zip(single).filter_map(|(key, single)| single.then_some(key)).collect())
    }

    /// Whether a key of the set has signed the token.
    pub fn verify(&self, token: &Unverified<'_>) -> Result<(), TokenProblem> {
        let key = self.meant(token.key.as_deref()).ok_or(match self.0.is_empty() {
            true => TokenProblem::NoKeys,
            false => TokenProblem::NoKey,
        })?;
        let algorithm = key.algorithms.iter().find(|(_, name)| *name == token.algorithm);
        let (algorithm, _) = algorithm.ok_or(TokenProblem::NoKey)?;
        match crypto::verify(token.signature, token.signed.as_bytes(), &key.key, *algorithm) {
            Ok(true) => Ok(()),
            _ => Err(TokenProblem::Forged),
        }
    }

    /// The key of that name; without a name, or of keys without one, the only one there is.
    fn meant(&self, name: Option<&str>) -> Option<&Key> {
        let named = name.and_then(|name| self.0.iter().find(|key| key.name.as_deref() == Some(name)));
        named.or_else(|| match &*self.0 {
            [only] if name.is_none() || only.name.is_none() => Some(only),
            _ => None,
        })
    }
}

impl Jwk {
    fn usable(self) -> Option<Key> {
        let is_long = self.kid.as_ref().is_some_and(|name| name.len() > LONGEST_KEY_NAME);
        if is_long || self.d.is_some() || self.r#use.as_deref().is_some_and(|r#use| r#use != "sig") {
            return None;
        }
        let (all, key): (&[(Algorithm, &'static str)], _) = match (&*self.kty, self.crv.as_deref()) {
            ("RSA", None) => (&RSA, DecodingKey::from_rsa_components(self.n.as_ref()?, self.e.as_ref()?)),
            ("EC", Some(curve)) => {
                let algorithm: &[_] = match curve {
                    "P-256" => &[(Algorithm::ES256, "ES256")],
                    "P-384" => &[(Algorithm::ES384, "ES384")],
                    _ => return None,
                };
                (algorithm, DecodingKey::from_ec_components(self.x.as_ref()?, self.y.as_ref()?))
            }
            ("OKP", Some("Ed25519")) => {
                (&[(Algorithm::EdDSA, "EdDSA")], DecodingKey::from_ed_components(self.x.as_ref()?))
            }
            _ => return None,
        };
        let is_meant = |name: &str| self.alg.as_deref().is_none_or(|alg| alg == name);
        let algorithms: Vec<_> = all.iter().filter(|(_, name)| is_meant(name)).copied().collect();
        let key = key.ok().filter(|_| !algorithms.is_empty())?;
        Some(Key { name: self.kid, algorithms, key })
    }
}
