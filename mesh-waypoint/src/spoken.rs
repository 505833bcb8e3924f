//! What rustls is told of [`Spoken`]: versions, suites and groups, for those who end TLS (`entry`) and for those who begin it (`origination`).

use std::sync::Arc;

use mesh_core::spoken::{Spoken, TlsVersion};
use rustls::SupportedProtocolVersion;
use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// The versions that are spoken.
#[must_use]
pub fn versions(spoken: &Spoken) -> Vec<&'static SupportedProtocolVersion> {
    [(TlsVersion::V1_2, &rustls::version::TLS12), (TlsVersion::V1_3, &rustls::version::TLS13)]
        .into_iter()
        .filter(|(version, _)| (spoken.oldest..=spoken.newest).contains(version))
        .map(|(_, version)| version)
        .collect()
}

/// With these suites of TLS 1.2 only, if any are named, and these groups.
pub fn provider(spoken: &Spoken) -> Result<Arc<CryptoProvider>, String> {
    let mut provider = aws_lc_rs::default_provider();
    if !spoken.suites.is_empty() {
        let named = |suite: &rustls::SupportedCipherSuite| {
            let name = suite.suite().as_str().unwrap_or_default();
            suite.tls13().is_some() || spoken.suites.iter().any(|known| known == name)
        };
        provider.cipher_suites.retain(named);
    }
    if !spoken.groups.is_empty() {
        let group = |name: &mesh_core::ArcStr| {
            let is_it = |group: &&&dyn rustls::crypto::SupportedKxGroup| group.name().as_str() == Some(name.as_str());
            let found = provider.kx_groups.iter().find(is_it).copied();
            found.ok_or_else(|| format!("nobody here knows the group {name}"))
        };
        provider.kx_groups = spoken.groups.iter().map(group).collect::<Result<_, _>>()?;
    }
    Ok(Arc::new(provider))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_EX_5_versions_suites_and_groups_are_those_that_are_named() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).into()).collect::<Vec<mesh_core::ArcStr>>();
        let groups = |spoken: &Spoken| {
            let provider = provider(spoken).unwrap();
            provider.kx_groups.iter().filter_map(|group| group.name().as_str()).collect::<Vec<_>>()
        };
        let usual = Spoken::default();
        assert!(groups(&usual).len() > 2 && versions(&usual).len() == 2);
        // Their order is what is liked best.
        let few = Spoken { groups: names(&["secp384r1", "X25519"]), oldest: TlsVersion::V1_3, ..usual.clone() };
        assert_eq!(groups(&few), ["secp384r1", "X25519"]);
        assert_eq!(versions(&few), [&rustls::version::TLS13]);
        let unknown = provider(&Spoken { groups: names(&["X448"]), ..usual.clone() });
        assert_eq!(unknown.err().as_deref(), Some("nobody here knows the group X448"));
        let one = Spoken { suites: names(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]), ..usual };
        let all = provider(&one).unwrap();
        let old = all.cipher_suites.iter().filter(|suite| suite.tls13().is_none());
        assert_eq!(
            old.filter_map(|suite| suite.suite().as_str()).collect::<Vec<_>>(),
            ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]
        );
    }
}
