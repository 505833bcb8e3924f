//! What a token says, once it is known who has signed it.

use std::borrow::Cow;

use arcstr::ArcStr;
use serde_json::{Map, Value};

use super::{JwtRule, TokenProblem};

/// How far clocks may differ.
pub const LEEWAY_SECONDS: i64 = 60;
/// Claims that are lists with blanks between in any case.
const SPACED: [&str; 2] = ["scope", "permission"];

/// What was proved by a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    principal: Option<String>,
    payload: Map<String, Value>,
    spaced: Vec<ArcStr>,
}

impl Token {
    /// Whether what a signed token says is what the rule believes at `now`, in seconds since 1970.
    pub fn believed(payload: Map<String, Value>, rule: &JwtRule, now: i64) -> Result<Self, TokenProblem> {
        if payload.get("iss").and_then(Value::as_str) != Some(&rule.issuer) {
            return Err(TokenProblem::Issuer);
        }
        let time = |name: &str| payload.get(name).map(seconds).transpose();
        time("iat")?;
        let expires = time("exp")?.ok_or(TokenProblem::Time)?;
        if now >= expires.saturating_add(LEEWAY_SECONDS) {
            return Err(TokenProblem::Expired);
        }
        if time("nbf")?.is_some_and(|begins| now < begins.saturating_sub(LEEWAY_SECONDS)) {
            return Err(TokenProblem::Early);
        }
        let principal = match payload.get("sub") {
            Some(Value::String(subject)) => Some(format!("{}/{subject}", rule.issuer)),
            None => None,
            Some(_) => return Err(TokenProblem::Payload),
        };
        let is_list = |value: &Value| match value {
            Value::String(_) => true,
            Value::Array(all) => all.iter().all(Value::is_string),
            _ => false,
        };
        if payload.get("aud").is_some_and(|audience| !is_list(audience)) {
            return Err(TokenProblem::Audience);
        }
        let token = Self { principal, payload, spaced: rule.spaced.clone() };
        // Istio compares them without what Google's tokens have around them.
        let plain = |text: &str| {
            let text = text.strip_prefix("https://").or(text.strip_prefix("http://")).unwrap_or(text);
            text.strip_suffix('/').unwrap_or(text).to_owned()
        };
        let is_for = |wanted: &ArcStr| token.audiences().any(|own| plain(own) == plain(wanted));
        if !rule.audiences.is_empty() && !rule.audiences.iter().any(is_for) {
            return Err(TokenProblem::Audience);
        }
        Ok(token)
    }

    /// `issuer/subject`.
    #[must_use]
    pub fn principal(&self) -> Option<&str> {
        self.principal.as_deref()
    }

    /// Whom it is for.
    pub fn audiences(&self) -> impl Iterator<Item = &str> {
        let (one, several) = match self.payload.get("aud") {
            Some(Value::String(one)) => (Some(one.as_str()), &[][..]),
            Some(Value::Array(several)) => (None, several.as_slice()),
            _ => (None, &[][..]),
        };
        one.into_iter().chain(several.iter().filter_map(Value::as_str))
    }

    /// Who presents it.
    #[must_use]
    pub fn presenter(&self) -> Option<&str> {
        self.payload.get("azp")?.as_str()
    }

    /// Whether a claim has a value that `is` meant: a text, or one of a list of texts. `widely`: or of what is written as another kind of value.
    #[must_use]
    pub fn claim_is(&self, path: &[ArcStr], widely: bool, is: impl Fn(&str) -> bool) -> bool {
        let Some((first, rest)) = path.split_first() else { return false };
        let claim = rest.iter().try_fold(self.payload.get(first.as_str()), |value, name| {
            Some(value.and_then(|value| value.get(name.as_str())))
        });
        let is_spaced = rest.is_empty() && self.is_spaced(first);
        let one = |value: &Value| match value {
            Value::String(text) if is_spaced => text.split(' ').any(|part| !part.is_empty() && is(part)),
            Value::String(text) => is(text),
            Value::Bool(_) | Value::Number(_) if widely => is(&value.to_string()),
            _ => false,
        };
        match claim.flatten() {
            Some(Value::Array(all)) => all.iter().any(one),
            Some(value) => one(value),
            None => false,
        }
    }

    fn is_spaced(&self, name: &ArcStr) -> bool {
        SPACED.contains(&name.as_str()) || self.spaced.contains(name)
    }

    /// A claim as it is sent on in a header: texts, whole numbers and truth values, by a name or names with dots between.
    #[must_use]
    pub fn output(&self, claim: &str) -> Option<Cow<'_, str>> {
        let found = match self.payload.get(claim) {
            Some(value) => value,
            None => {
                let mut names = claim.split('.');
                let first = self.payload.get(names.next()?)?;
                names.try_fold(first, |value, name| value.get(name))?
            }
        };
        match found {
            Value::String(text) => Some(text.as_str().into()),
            Value::Bool(_) => Some(found.to_string().into()),
            Value::Number(number) if !number.is_f64() => Some(found.to_string().into()),
            _ => None,
        }
    }
}

/// Seconds since 1970, whole or with a fraction, that are a time at all.
fn seconds(value: &Value) -> Result<i64, TokenProblem> {
    let Value::Number(number) = value else { return Err(TokenProblem::Time) };
    let whole = number.as_i64().or_else(|| {
        let seconds = number.as_f64()?;
        (seconds.is_finite() && seconds.abs() < 1e15).then_some(seconds as i64)
    });
    whole.filter(|seconds| *seconds >= 0).ok_or(TokenProblem::Time)
}
