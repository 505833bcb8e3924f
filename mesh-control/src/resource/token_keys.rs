//! Where the keys of tokens are that RequestAuthentications do not bring themselves, and what is known of them. `jwks` fetches them; the joining hands them on.

use std::collections::BTreeMap;

use mesh_core::ArcStr;

use super::routing::telemetry::JwtRule;

/// Where keys are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// There.
    Keys(String),
    /// The issuer says where.
    Issuer(String),
}

/// Sets of keys by their places, as RFC 7517 has them.
pub type Keys = BTreeMap<Place, ArcStr>;

impl Place {
    /// Where the keys of a rule are that does not bring them.
    pub fn of(rule: &JwtRule) -> Option<Self> {
        if rule.jwks.is_some() {
            return None;
        }
        let uri = rule.jwks_uri.as_ref().or(rule.jwks_uri_older.as_ref());
        Some(uri.map_or_else(|| Place::Issuer(rule.issuer.clone()), |uri| Place::Keys(uri.clone())))
    }
}
