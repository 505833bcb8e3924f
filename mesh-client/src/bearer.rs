//! Whose token we bear. Kubernetes writes into a token of a service account which pod it was made for; control planes believe what a node says of itself
//! only if it agrees with that, so it is said in the token's words. Nothing is verified here: it is our own, and its reader verifies it.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

/// Longest name of Kubernetes.
const LONGEST: usize = 253;

/// For whom a token was made.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Bearer {
    /// Namespace of the service account.
    pub(crate) namespace: Option<String>,
    /// The pod, if it is bound to one.
    pub(crate) pod: Option<String>,
}

impl Bearer {
    /// Reads the file; what cannot be read says nothing.
    pub(crate) fn of(token: &Path) -> Bearer {
        Self::read(&std::fs::read_to_string(token).unwrap_or_default())
    }

    /// Reads a JWT. Other tokens, our own control plane's without Kubernetes for one, say nothing.
    fn read(token: &str) -> Bearer {
        let payload = token.trim().split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let claims: Value = payload.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let claims = &claims["kubernetes.io"];
        let name = |value: &Value| value.as_str().filter(|name| is_name(name)).map(str::to_owned);
        Bearer { namespace: name(&claims["namespace"]), pod: name(&claims["pod"]["name"]) }
    }
}

fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    !text.is_empty() && text.len() <= LONGEST && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tokens_say_of_their_bearer() {
        let jwt = |claims: &str| format!("e30.{}.c2ln\n", URL_SAFE_NO_PAD.encode(claims));
        let some = |namespace: &str, pod: &str| Bearer {
            namespace: Some(namespace.to_owned()).filter(|name| !name.is_empty()),
            pod: Some(pod.to_owned()).filter(|name| !name.is_empty()),
        };
        let bound = r#"{"aud":["istio-ca"],"kubernetes.io":{"namespace":"istio-system","node":{"name":"n1"},
            "pod":{"name":"ztunnel-x7k","uid":"u"},"serviceaccount":{"name":"ztunnel","uid":"v"}}}"#;
        let rows = [
            (jwt(bound), some("istio-system", "ztunnel-x7k")),
            (jwt(r#"{"kubernetes.io":{"namespace":"mesh"}}"#), some("mesh", "")),
            (jwt(r#"{"kubernetes.io":{"namespace":"a~b","pod":{"name":"x\u0000"}}}"#), Bearer::default()),
            (jwt(r#"{"kubernetes.io":[]}"#), Bearer::default()),
            (jwt("[]"), Bearer::default()),
            (jwt("not json"), Bearer::default()),
            ("opaque".into(), Bearer::default()),
            ("a.%%%.b".into(), Bearer::default()),
            (String::new(), Bearer::default()),
            (jwt(&format!(r#"{{"kubernetes.io":{{"namespace":"{}"}}}}"#, "n".repeat(300))), Bearer::default()),
        ];
        for (token, expected) in rows {
            assert_eq!(Bearer::read(&token), expected, "{token}");
        }
    }
}
