//! Names that a listener and a route both have.

use mesh_core::l7::HostPattern;

/// The names of `own` that fit a listener for `host`; all that it has if the route names none. Of a wildcard and what it means the narrower one stays.
pub(super) fn shared(host: Option<&str>, own: &[String]) -> Vec<HostPattern> {
    let listener = host.map_or(Some(HostPattern::Any), HostPattern::parse);
    let Some(listener) = listener else { return Vec::new() };
    if own.is_empty() {
        return vec![listener];
    }
    let mut all: Vec<HostPattern> = Vec::new();
    for pattern in own.iter().filter_map(|name| HostPattern::parse(name)) {
        let both = narrower(&listener, &pattern);
        all.extend(both.filter(|both| !all.contains(both)));
    }
    all
}

/// What both patterns mean, which is one of them or nothing.
pub(super) fn narrower(one: &HostPattern, two: &HostPattern) -> Option<HostPattern> {
    let below = |name: &str, parent: &str| name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
    match (one, two) {
        (HostPattern::Any, other) | (other, HostPattern::Any) => Some(other.clone()),
        (HostPattern::Exact(name), other) | (other, HostPattern::Exact(name)) => {
            other.matches(name).then(|| HostPattern::Exact(name.clone()))
        }
        (HostPattern::Below(a), HostPattern::Below(b)) if a == b || below(a, b) => Some(HostPattern::Below(a.clone())),
        (HostPattern::Below(a), HostPattern::Below(b)) if below(b, a) => Some(HostPattern::Below(b.clone())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrower_of_two_names_stays() {
        for (listener, own, expected) in [
            ("", "", "*"),
            ("", "a.com", "a.com"),
            ("", "*.a.com", "*.a.com"),
            ("a.com", "", "a.com"),
            ("a.com", "a.com b.com", "a.com"),
            ("b.a.com", "*.a.com", "b.a.com"),
            ("a.com", "*.a.com", ""),
            ("*.a.com", "a.com b.a.com c.b.a.com", "b.a.com c.b.a.com"),
            ("*.a.com", "*.b.a.com *.com *.xa.com", "*.b.a.com *.a.com"),
            ("*.a.com", "*.com *.a.com", "*.a.com"),
        ] {
            let own: Vec<String> = own.split_whitespace().map(str::to_owned).collect();
            let found = shared(Some(listener).filter(|host| !host.is_empty()), &own);
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found.join(" "), expected, "{listener} {own:?}");
        }
    }
}
