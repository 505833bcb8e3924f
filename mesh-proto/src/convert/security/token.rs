//! Whose tokens are believed, both ways.

use std::sync::Arc;

use http::HeaderName;
use mesh_core::ArcStr;
use mesh_core::l7::headers::is_changeable;
use mesh_core::l7::token::{JwtRule, Location};
use prost::Message;

use super::few;
use crate::convert::{ConvertError, field};
use crate::wire::l7::{self as wire, token_location::Kind};

/// Rules of one object, and values of a list.
const MOST: usize = 1_000;
/// Bytes of a set of keys.
const LONGEST_KEYS: usize = 256 << 10;
/// Bytes of another value.
const LONGEST: usize = 2048;

type Read<T> = Result<T, ConvertError>;

pub(super) fn read(bytes: &[u8]) -> Read<Vec<Arc<JwtRule>>> {
    let message = wire::TokenRules::decode(bytes).map_err(ConvertError::decode)?;
    if message.encoded_len() != bytes.len() {
        return Err(ConvertError::UnknownFields);
    }
    few("rules", message.rules.len(), MOST)?;
    message.rules.into_iter().map(|one| rule(one).map(Arc::new)).collect()
}

fn rule(message: wire::TokenRule) -> Read<JwtRule> {
    for count in [message.audiences.len(), message.locations.len(), message.claim_headers.len(), message.spaced.len()] {
        few("rules.values", count, MOST)?;
    }
    if message.keys.len() > LONGEST_KEYS {
        return Err(ConvertError::invalid(
            "keys",
            format!("{} bytes, the limit is {LONGEST_KEYS}", message.keys.len()),
        ));
    }
    // Else nobody's tokens would be looked for.
    if message.locations.is_empty() {
        return Err(ConvertError::Missing { field: "locations" });
    }
    let payload = Some(message.payload_header).filter(|name| !name.is_empty());
    let claim = |one: wire::ClaimHeader| Ok((output("claim_headers", one.header)?, text("claim_headers", one.claim)?));
    Ok(JwtRule {
        issuer: text("issuer", message.issuer)?,
        audiences: texts("audiences", message.audiences)?,
        keys: Some(ArcStr::from(message.keys)).filter(|keys| !keys.is_empty()),
        locations: message.locations.into_iter().map(location).collect::<Read<_>>()?,
        forward: message.forward,
        payload_header: payload.map(|name| output("payload_header", name)).transpose()?,
        claim_headers: message.claim_headers.into_iter().map(claim).collect::<Read<_>>()?,
        spaced: texts("spaced", message.spaced)?,
    })
}

fn text(field: &'static str, value: String) -> Read<ArcStr> {
    if value.is_empty() {
        return Err(ConvertError::Missing { field });
    }
    field::bounded(field, value, LONGEST)
}

fn texts(field: &'static str, values: Vec<String>) -> Read<Vec<ArcStr>> {
    values.into_iter().map(|value| text(field, value)).collect()
}

fn header(field: &'static str, name: String) -> Read<HeaderName> {
    HeaderName::try_from(name).map_err(|_| ConvertError::invalid(field, "not the name of a header"))
}

fn output(field: &'static str, name: String) -> Read<HeaderName> {
    let name = header(field, name)?;
    if !is_changeable(&name) {
        return Err(ConvertError::invalid(field, format!("{name} may not be written")));
    }
    Ok(name)
}

fn location(message: wire::TokenLocation) -> Read<Location> {
    Ok(match message.kind {
        Some(Kind::Bearer(())) => Location::Bearer,
        Some(Kind::Header(at)) => {
            Location::Header(header("locations", at.name)?, field::bounded("locations", at.prefix, LONGEST)?)
        }
        Some(Kind::Parameter(name)) => Location::Parameter(text("locations", name)?),
        Some(Kind::Cookie(name)) => Location::Cookie(text("locations", name)?),
        None => return Err(ConvertError::Missing { field: "locations.kind" }),
    })
}

pub(super) fn write(rules: &[Arc<JwtRule>]) -> Vec<u8> {
    wire::TokenRules { rules: rules.iter().map(|rule| write_rule(rule)).collect() }.encode_to_vec()
}

fn write_rule(rule: &JwtRule) -> wire::TokenRule {
    let texts = |values: &[ArcStr]| values.iter().map(ToString::to_string).collect();
    let location = |location: &Location| {
        let kind = match location {
            Location::Bearer => Kind::Bearer(()),
            Location::Header(name, prefix) => {
                Kind::Header(wire::TokenHeader { name: name.to_string(), prefix: prefix.to_string() })
            }
            Location::Parameter(name) => Kind::Parameter(name.to_string()),
            Location::Cookie(name) => Kind::Cookie(name.to_string()),
        };
        wire::TokenLocation { kind: Some(kind) }
    };
    let claim = |(header, claim): &(HeaderName, ArcStr)| wire::ClaimHeader {
        header: header.to_string(),
        claim: claim.to_string(),
    };
    wire::TokenRule {
        issuer: rule.issuer.to_string(),
        audiences: texts(&rule.audiences),
        keys: rule.keys.as_ref().map(ToString::to_string).unwrap_or_default(),
        locations: rule.locations.iter().map(location).collect(),
        forward: rule.forward,
        payload_header: rule.payload_header.as_ref().map(ToString::to_string).unwrap_or_default(),
        claim_headers: rule.claim_headers.iter().map(claim).collect(),
        spaced: texts(&rule.spaced),
    }
}
