//! What the mesh settings say of TLS: `tlsDefaults` of that with the world, `meshMTLS` of that between members. Read by `mesh_defaults`.

use mesh_core::ArcStr;
use mesh_core::spoken::{Spoken, TlsVersion};
use serde::Deserialize;

use super::strict::{self, Unknown};
use super::tls_names::{self, GROUPS, SUITES};
use crate::diagnosis::Problem;
use crate::yaml::node::Node as Tree;

/// What is spoken of TLS with the world where no object says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsDefaults {
    /// The oldest version.
    oldest: Option<TlsVersion>,
    /// Of TLS 1.2, as [`Spoken::suites`].
    suites: Vec<ArcStr>,
    /// Suites are written, and none of them is spoken: no list says that, for an empty one means all.
    without_suites: bool,
    /// As [`Spoken::groups`].
    groups: Vec<ArcStr>,
}

impl TlsDefaults {
    /// As those are told who speak.
    pub fn spoken(&self) -> Spoken {
        let usual = Spoken::default();
        let oldest = self.oldest.unwrap_or(usual.oldest);
        Spoken { oldest, suites: self.suites.clone(), groups: self.groups.clone(), ..usual }
    }

    /// Whether no suite of TLS 1.2 is left: who has none of his own does not speak it, whatever versions he asks for.
    pub fn is_without_suites(&self) -> bool {
        self.without_suites
    }

    /// Of the mesh settings, which stand at `at`. What is wrong with them is told.
    pub fn read(tree: &Tree, at: &str, problems: &mut Vec<Problem>) -> Self {
        between_members(tree, &format!("{at}.meshMTLS"), problems);
        let field = format!("{at}.tlsDefaults");
        let Some(read) = written(tree, "tlsDefaults", &field, problems) else { return Self::default() };
        let suites = tls_names::spoken(&read.cipher_suites, SUITES, &format!("{field}.cipherSuites"), problems);
        let groups = tls_names::spoken(&read.ecdh_curves, GROUPS, &format!("{field}.ecdhCurves"), problems);
        if groups.is_empty() && !read.ecdh_curves.is_empty() {
            let message = "none of them is spoken: no keys could be agreed on";
            let problem = Problem::error(format!("{field}.ecdhCurves"), message);
            problems.push(problem.help("add one that is, or delete the field"));
        }
        let without_suites = suites.is_empty() && !read.cipher_suites.is_empty();
        let oldest = match read.min_protocol_version {
            Some(Version::V1_3) => Some(TlsVersion::V1_3),
            // Where none of the suites that are written is spoken, TLS 1.2 is not either.
            _ if without_suites => Some(TlsVersion::V1_3),
            None | Some(Version::Auto | Version::V1_2) => None,
        };
        Self { oldest, suites, without_suites, groups }
    }
}

/// As it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    min_protocol_version: Option<Version>,
    cipher_suites: Vec<String>,
    ecdh_curves: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Version {
    #[serde(rename = "TLS_AUTO")]
    Auto,
    #[serde(rename = "TLSV1_2")]
    V1_2,
    #[serde(rename = "TLSV1_3")]
    V1_3,
}

fn written(tree: &Tree, name: &str, field: &str, problems: &mut Vec<Problem>) -> Option<Written> {
    strict::read(tree.get(name)?, field, Unknown::Either, problems)
}

/// Members speak TLS 1.3 with each other and nothing older, whose suites and groups are all good: any version that can be written is fine.
fn between_members(tree: &Tree, field: &str, problems: &mut Vec<Problem>) {
    let Some(read) = written(tree, "meshMTLS", field, problems) else { return };
    for (name, is_said) in [("cipherSuites", &read.cipher_suites), ("ecdhCurves", &read.ecdh_curves)] {
        if !is_said.is_empty() {
            let message = "members of the mesh speak TLS 1.3 with each other, which chooses by itself";
            problems.push(Problem::warning(format!("{field}.{name}"), format!("{message}: it has no effect")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::node;

    fn read(text: &str) -> (Spoken, Vec<String>) {
        let mut problems = Vec::new();
        let read = TlsDefaults::read(&node::parse(text).unwrap(), "m", &mut problems);
        (read.spoken(), problems.iter().map(|p| format!("{} {}: {}", p.severity, p.field, p.message)).collect())
    }

    #[test]
    fn features_EX_5_what_is_spoken_with_the_world() {
        let usual = Spoken::default();
        let names = |names: &[&str]| names.iter().map(|name| (*name).into()).collect::<Vec<ArcStr>>();
        let newest = Spoken { oldest: TlsVersion::V1_3, ..usual.clone() };
        for (text, expected) in [
            ("{}", usual.clone()),
            ("tlsDefaults: {}", usual.clone()),
            ("tlsDefaults: {minProtocolVersion: TLS_AUTO}", usual.clone()),
            ("tlsDefaults: {minProtocolVersion: TLSV1_2}", usual.clone()),
            ("tlsDefaults: {minProtocolVersion: TLSV1_3}", newest.clone()),
            (
                "tlsDefaults: {cipherSuites: [ECDHE-RSA-AES256-GCM-SHA384]}",
                Spoken { suites: names(&["TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"]), ..usual.clone() },
            ),
            // The order is what is liked best.
            (
                "tlsDefaults: {ecdhCurves: [P-384, X25519, P-384]}",
                Spoken { groups: names(&["secp384r1", "X25519"]), ..usual.clone() },
            ),
            ("meshMTLS: {minProtocolVersion: TLSV1_3}", usual.clone()),
        ] {
            assert_eq!(read(text), (expected, vec![]), "{text}");
        }
        let not_spoken = "warning m.tlsDefaults.cipherSuites[0]: \"AES128-SHA\" is not spoken".to_owned();
        assert_eq!(read("tlsDefaults: {cipherSuites: [AES128-SHA]}"), (newest, vec![not_spoken]));
    }

    #[test]
    fn features_EX_5_what_is_wrong_with_tls_is_told() {
        let none = "error m.tlsDefaults.ecdhCurves: none of them is spoken: no keys could be agreed on";
        let by_itself = "members of the mesh speak TLS 1.3 with each other, which chooses by itself: it has no effect";
        for (text, expected) in [
            ("tlsDefaults: {minProtocolVersion: TLSV1_1}", &["error m.tlsDefaults.minProtocolVersion: "][..]),
            ("tlsDefaults: {ecdhCurve: [X25519]}", &["error m.tlsDefaults.ecdhCurve!: "]),
            (
                "tlsDefaults: {ecdhCurves: [P-521, X25519]}",
                &["warning m.tlsDefaults.ecdhCurves[0]: \"P-521\" is not spoken"],
            ),
            (
                "tlsDefaults: {ecdhCurves: [P-521]}",
                &["warning m.tlsDefaults.ecdhCurves[0]: \"P-521\" is not spoken", none],
            ),
            ("meshMTLS: {minProtocolVersion: TLSV1_1}", &["error m.meshMTLS.minProtocolVersion: "]),
            ("meshMTLS: {ecdhCurves: [X25519]}", &[&*format!("warning m.meshMTLS.ecdhCurves: {by_itself}")]),
        ] {
            let (_, said) = read(text);
            let is_so = said.len() == expected.len() && said.iter().zip(expected).all(|(a, b)| a.starts_with(b));
            assert!(is_so, "{text}: {said:?}");
        }
    }
}
