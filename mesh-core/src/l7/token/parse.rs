//! A token taken apart. Nothing of it is believed yet.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{LONGEST, LONGEST_KEY_NAME, TokenProblem};

/// What a token says, and what it is signed with.
#[derive(Clone, Debug, PartialEq)]
pub struct Unverified<'a> {
    /// The algorithm that it says.
    pub algorithm: String,
    /// The name of the key that it says.
    pub key: Option<String>,
    /// What it says.
    pub payload: Map<String, Value>,
    /// What is signed.
    pub signed: &'a str,
    /// The signature, as it is written.
    pub signature: &'a str,
    /// What it says, as it is written.
    pub payload_text: &'a str,
}

impl<'a> Unverified<'a> {
    /// Takes it apart.
    pub fn parse(text: &'a str) -> Result<Self, TokenProblem> {
        if text.len() > LONGEST {
            return Err(TokenProblem::TooLong);
        }
        let mut parts = text.split('.');
        let (Some(header), Some(payload_text), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenProblem::Form);
        };
        let signed = &text[..header.len() + 1 + payload_text.len()];
        let header = object(header).ok_or(TokenProblem::Header)?;
        let payload = object(payload_text).ok_or(TokenProblem::Payload)?;
        if signature.is_empty() || URL_SAFE_NO_PAD.decode(signature).is_err() {
            return Err(TokenProblem::Signature);
        }
        if header.contains_key("crit") {
            return Err(TokenProblem::Critical);
        }
        let Some(Value::String(algorithm)) = header.get("alg") else { return Err(TokenProblem::Header) };
        let key = match header.get("kid") {
            None => None,
            Some(Value::String(key)) if key.len() <= LONGEST_KEY_NAME => Some(key.clone()),
            Some(_) => return Err(TokenProblem::NoKey),
        };
        Ok(Self { algorithm: algorithm.clone(), key, payload, signed, signature, payload_text })
    }

    /// Who it says has made it.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        self.payload.get("iss")?.as_str()
    }
}

fn object(part: &str) -> Option<Map<String, Value>> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    match serde_json::from_slice::<Unique>(&bytes).ok()?.0 {
        Value::Object(map) => Some(map),
        _ => None,
    }
}

/// JSON of which no object has a key twice: readers differ in which of them counts.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OfUnique).map(Self)
    }
}

struct OfUnique;

impl<'de> Visitor<'de> for OfUnique {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without a key twice in an object")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Unique(value)) = list.next_element()? {
            all.push(value);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some((key, Unique(value))) = entries.next_entry::<String, Unique>()? {
            if all.insert(key, value).is_some() {
                return Err(serde::de::Error::custom("a key is there twice"));
            }
        }
        Ok(Value::Object(all))
    }
}
