//! Where the keys of tokens are that RequestAuthentications do not bring themselves, and what is known of them. `jwks` fetches them; the joining hands them on.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_core::ArcStr;

use super::routing::telemetry::JwtRule;

/// How long a place may take that no rule says it of, as in Istio.
const USUAL: Duration = Duration::from_secs(5);
/// How long at most: others wait for theirs meanwhile.
pub const LONGEST: Duration = Duration::from_secs(15);

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

/// How long each place may take that these rules name: as long as any of them lets it.
pub fn places<'a>(rules: impl Iterator<Item = &'a JwtRule>) -> BTreeMap<Place, Duration> {
    let mut all = BTreeMap::new();
    for (place, rule) in rules.filter_map(|rule| Some((Place::of(rule)?, rule))) {
        let own = rule.timeout.map_or(USUAL, |span| span.0).min(LONGEST);
        let known = all.entry(place).or_insert(own);
        *known = own.max(*known);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_RA_1_how_long_a_place_of_keys_may_take() {
        let place = |name: &str| Place::Keys(format!("https://{name}.example/keys"));
        let rule = |name: &str, rest: &str| -> JwtRule {
            let text = format!("{{issuer: i, jwksUri: 'https://{name}.example/keys'{rest}}}");
            let tree = crate::yaml::node::parse(&text).unwrap();
            super::super::strict::read(&tree, "", super::super::strict::Unknown::Wrong, &mut Vec::new()).unwrap()
        };
        let seconds = |n: f64| Duration::from_secs_f64(n);
        for (rules, expected) in [
            (vec![rule("a", "")], vec![(place("a"), seconds(5.0))]),
            (vec![rule("a", ", timeout: 500ms")], vec![(place("a"), seconds(0.5))]),
            (vec![rule("a", ", timeout: 8s")], vec![(place("a"), seconds(8.0))]),
            (vec![rule("a", ", timeout: 1h")], vec![(place("a"), LONGEST)]),
            (vec![rule("a", ", timeout: 7s"), rule("a", ", timeout: 1s")], vec![(place("a"), seconds(7.0))]),
            (vec![rule("a", ", timeout: 1s"), rule("a", "")], vec![(place("a"), seconds(5.0))]),
            (
                vec![rule("b", ", timeout: 1s"), rule("a", "")],
                vec![(place("a"), seconds(5.0)), (place("b"), seconds(1.0))],
            ),
        ] {
            assert_eq!(places(rules.iter()).into_iter().collect::<Vec<_>>(), expected, "{rules:?}");
        }
    }
}
