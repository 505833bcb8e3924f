//! Whose token a request has. None is nobody's, and passes; one that is not believed is refused, whatever else is true of the request. What was proved is sent on in
//! headers, which nobody else may write.

use std::sync::Arc;
use std::time::SystemTime;

use http::header::COOKIE;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Uri};
use mesh_core::l7::token::{Found, JwtRule, Location, Token, TokenProblem, Unverified, found};

use crate::downstream::Bound;
use crate::guard::Guard;

/// A token that is believed.
struct Proved {
    token: Token,
    rule: Arc<JwtRule>,
    payload: String,
}

/// Looks for tokens, and leaves of the request what is sent on.
pub fn request(
    bound: &Bound,
    parts: &mut Parts,
    now: impl FnOnce() -> SystemTime,
) -> Result<Option<Token>, TokenProblem> {
    let rules = &bound.applied.rules;
    if rules.is_empty() {
        return Ok(None);
    }
    let now = now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let all = found(rules, &parts.headers, parts.uri.query())?;
    let proved = all.iter().map(|one| prove(&bound.view.guard, rules, one, now));
    let mut proved = proved.collect::<Result<Vec<_>, _>>()?;
    proved.sort_by_key(|one| rules.iter().position(|rule| Arc::ptr_eq(rule, &one.rule)));
    for name in &bound.applied.outputs {
        parts.headers.remove(name);
    }
    for one in &proved {
        if !one.rule.forward {
            one.rule.locations.iter().for_each(|location| take_away(parts, location));
        }
    }
    for one in &proved {
        send_on(&mut parts.headers, one);
    }
    // Of several the first rule's counts.
    Ok(proved.into_iter().next().map(|one| one.token))
}

/// A token must be what one of the rules believes that look for it where it stands.
fn prove(guard: &Guard, rules: &[Arc<JwtRule>], found: &Found<'_>, now: i64) -> Result<Proved, TokenProblem> {
    let read = Unverified::parse(&found.text)?;
    let mut problem = TokenProblem::Issuer;
    let own = found.rules.iter().filter_map(|index| rules.get(*index));
    for rule in own.filter(|rule| read.issuer() == Some(&rule.issuer)) {
        let signed = guard.keys(rule.keys.as_ref()).ok_or(TokenProblem::NoKeys).and_then(|keys| keys.verify(&read));
        match signed.and_then(|()| Token::believed(read.payload.clone(), rule, now)) {
            Ok(token) => {
                return Ok(Proved { token, rule: Arc::clone(rule), payload: read.payload_text.to_owned() });
            }
            Err(why) => problem = why,
        }
    }
    Err(problem)
}

fn send_on(headers: &mut HeaderMap, proved: &Proved) {
    if let Some(name) = &proved.rule.payload_header
        && let Ok(value) = HeaderValue::from_str(&proved.payload)
    {
        _ = headers.try_insert(name.clone(), value);
    }
    for (name, claim) in &proved.rule.claim_headers {
        let value = proved.token.output(claim).and_then(|text| HeaderValue::from_str(&text).ok());
        if let Some(value) = value {
            _ = headers.try_insert(name.clone(), value);
        }
    }
}

/// The application has no use for it.
fn take_away(parts: &mut Parts, location: &Location) {
    let headers = &mut parts.headers;
    match location {
        Location::Bearer => {
            let is_ours = |line: &HeaderValue| {
                line.as_bytes().get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer"))
            };
            if headers.get(http::header::AUTHORIZATION).is_some_and(is_ours) {
                headers.remove(http::header::AUTHORIZATION);
            }
        }
        Location::Header(name, prefix) => {
            if headers.get(name).is_some_and(|line| line.as_bytes().starts_with(prefix.as_bytes())) {
                headers.remove(name);
            }
        }
        Location::Parameter(name) => {
            if let Some(uri) = without(&parts.uri, name) {
                parts.uri = uri;
            }
        }
        Location::Cookie(name) => {
            let is_kept = |pair: &&str| pair.split_once('=').is_none_or(|(key, _)| key.trim() != name);
            let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
            let kept: Vec<_> = lines.flat_map(|line| line.split(';')).filter(is_kept).map(str::trim).collect();
            let kept = HeaderValue::from_str(&kept.join("; "));
            headers.remove(COOKIE);
            if let Ok(kept) = kept
                && !kept.is_empty()
            {
                headers.insert(COOKIE, kept);
            }
        }
    }
}

/// The target without a parameter; `None` if there is nothing to be changed.
fn without(uri: &Uri, name: &str) -> Option<Uri> {
    let query = uri.query()?;
    let is_kept = |pair: &&str| {
        let key = pair.split_once('=').map_or(*pair, |(key, _)| key);
        // As it was found: escapes do not count.
        !mesh_core::l7::token::is_parameter(key, name)
    };
    let kept: Vec<&str> = query.split('&').filter(is_kept).collect();
    if kept.len() == query.split('&').count() {
        return None;
    }
    let target = match kept.is_empty() {
        true => uri.path().to_owned(),
        false => format!("{}?{}", uri.path(), kept.join("&")),
    };
    PathAndQuery::try_from(target).ok().map(Uri::from)
}
