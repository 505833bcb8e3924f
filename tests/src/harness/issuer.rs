//! Somebody who makes tokens (JWT), and what policies have to know to believe them. For the rows about tokens and the demo.
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// The issuer of Istio's examples.
pub const ISSUER: &str = "testing@secure.istio.io";

/// A key of its own for signatures by ES256.
pub struct Issuer {
    key: KeyPair,
}

impl Issuer {
    /// With a new key.
    pub fn new() -> Result<Issuer> {
        Ok(Issuer { key: KeyPair::generate().context("make a key")? })
    }

    /// A RequestAuthentication of `default` for what `target` names in YAML's flow style, with the key in it.
    pub fn request_authentication(&self, target: &str) -> String {
        // An uncompressed point.
        let point = self.key.public_key_raw();
        let (x, y) = (BASE64.encode(&point[1..33]), BASE64.encode(&point[33..65]));
        let keys = json!({ "keys": [{ "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "one", "x": x, "y": y }] });
        format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: tokens, namespace: default}}\nspec:\n  targetRefs: [{target}]\n  jwtRules:\n  - issuer: {ISSUER}\n    jwks: '{keys}'\n"
        )
    }

    /// A token that is valid for so many seconds from now, or was valid until so many ago, with these claims besides.
    pub fn token(&self, seconds: i64, claims: &Value) -> Result<String> {
        #[expect(clippy::disallowed_methods, reason = "an issuer is none of the mesh")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("a clock before 1970")?.as_secs();
        let mut all = json!({ "iss": ISSUER, "sub": ISSUER, "exp": i64::try_from(now)? + seconds });
        if let (Some(all), Some(claims)) = (all.as_object_mut(), claims.as_object()) {
            all.extend(claims.clone());
        }
        let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::ES256) };
        let key = EncodingKey::from_ec_der(&self.key.serialize_der());
        jsonwebtoken::encode(&header, &all, &key).context("sign a token")
    }
}
