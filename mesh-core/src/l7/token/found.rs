//! Where tokens stand in a request.

use std::borrow::Cow;
use std::sync::Arc;

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE};

use super::{JwtRule, Location, TokenProblem};
use crate::l7::query;

/// A token, and which rules look for one where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// The token.
    pub text: Cow<'a, str>,
    /// The rules, by their places.
    pub rules: Vec<usize>,
}

/// The tokens of a request, each once. Of one rule there may be no more than one, wherever it looks.
pub fn found<'a>(
    rules: &[Arc<JwtRule>],
    headers: &'a HeaderMap,
    query: Option<&'a str>,
) -> Result<Vec<Found<'a>>, TokenProblem> {
    let mut all: Vec<Found<'a>> = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let mut own: Option<Cow<'a, str>> = None;
        for location in &rule.locations {
            let token = at(location, headers, query)?;
            if token.is_some() && std::mem::replace(&mut own, token).is_some() {
                return Err(TokenProblem::Several);
            }
        }
        let Some(text) = own else { continue };
        match all.iter_mut().find(|found| found.text == text) {
            Some(found) => found.rules.push(index),
            None => all.push(Found { text, rules: vec![index] }),
        }
    }
    Ok(all)
}

/// Whether a name in a query, with its escapes, is this one.
#[must_use]
pub fn is_parameter(written: &str, name: &str) -> bool {
    query::all(written, name).next().is_some()
}

/// The token at one place.
fn at<'a>(
    location: &Location,
    headers: &'a HeaderMap,
    query: Option<&'a str>,
) -> Result<Option<Cow<'a, str>>, TokenProblem> {
    let mut values: Vec<Cow<'a, str>> = Vec::new();
    let mut lines = 1;
    // What is no text is no token, and whoever sends it means one.
    let text = |line: &'a http::HeaderValue| line.to_str().map_err(|_| TokenProblem::Form);
    match location {
        Location::Bearer => {
            lines = headers.get_all(AUTHORIZATION).iter().count();
            for line in headers.get_all(AUTHORIZATION) {
                let begins = line.as_bytes().get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer"));
                if begins && let Some(rest) = text(line)?.get(6..) {
                    match rest.trim_start_matches([' ', '\t']) {
                        token if token.len() < rest.len() || token.is_empty() => values.push(token.into()),
                        // Another scheme, that begins with the same letters.
                        _ => {}
                    }
                }
            }
        }
        Location::Header(name, prefix) => {
            lines = headers.get_all(name).iter().count();
            for line in headers.get_all(name) {
                if let Some(rest) = line.as_bytes().strip_prefix(prefix.as_bytes()) {
                    std::str::from_utf8(rest).map_err(|_| TokenProblem::Form)?;
                    values.push(text(line)?[prefix.len()..].trim().into());
                }
            }
        }
        Location::Parameter(name) => {
            for value in query::all(query.unwrap_or_default(), name) {
                values.push(match value.plain() {
                    Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map_err(|_| TokenProblem::Form)?.into(),
                    Cow::Owned(bytes) => String::from_utf8(bytes).map_err(|_| TokenProblem::Form)?.into(),
                });
            }
        }
        Location::Cookie(name) => {
            for line in headers.get_all(COOKIE) {
                let Ok(line) = line.to_str() else { continue };
                let pairs = line.split(';').filter_map(|pair| pair.split_once('='));
                values.extend(pairs.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().into()));
            }
        }
    }
    match values.len() {
        0 => Ok(None),
        1 if lines == 1 => Ok(values.pop()),
        _ => Err(TokenProblem::Several),
    }
}
