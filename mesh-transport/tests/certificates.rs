//! Which certificates open a tunnel, and which are never installed.
#![allow(clippy::unwrap_used, missing_docs, non_snake_case)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::identity::TrustDomain;
use mesh_transport::hbone::{Acceptor, AcceptorConfig};
use mesh_transport::tls::{CertificateError, IdentityCertificate, Roots};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use rustls::version::TLS13;
use support::port::{CLIENT, Port};
use support::{Ca, ca_issuer, client, identity};

#[tokio::test]
async fn hardening_F43_two_roots_overlap_and_a_removed_one_is_refused() {
    let (old, new) = (Ca::new(), Ca::new());
    let both = format!("{}{}", old.issuer.pem(), new.issuer.pem());
    let roots = |pem: &str| Arc::new(Roots::from_pem(pem.as_bytes(), vec![TrustDomain::default()]).unwrap());
    let issue = |ca: &Ca, roots: &Arc<Roots>| {
        let (chain, key) = ca.sign(Ca::params("spiffe://cluster.local/ns/app/sa/server"));
        let id = identity("spiffe://cluster.local/ns/app/sa/server");
        Arc::new(
            IdentityCertificate::from_pem(
                id,
                chain.as_bytes(),
                key.as_bytes(),
                roots.clone(),
                1,
                mesh_runtime::clock::now(),
            )
            .unwrap(),
        )
    };
    let overlap = roots(&both);
    assert_eq!(overlap.len(), 2);
    let mut port =
        Port { certificate: issue(&old, &overlap), ca: new, acceptor: Acceptor::new(AcceptorConfig::default()) };
    assert!(port.judge_params(Ca::params(CLIENT)).await.is_ok(), "new peer, old server");
    let new_only = roots(&port.ca.issuer.pem());
    port.certificate = issue(&port.ca, &new_only);
    assert!(port.judge_params(Ca::params(CLIENT)).await.is_ok(), "new peer, new server");
    let (chain, key) = old.sign(Ca::params(CLIENT));
    let judged = port.judge(client::config(Some((&chain, &key)), &["h2"], &[&TLS13])).await;
    assert!(judged.is_err(), "old peer after its root is gone: {judged:?}");
}

#[test]
fn hardening_F42_lies_of_an_authority_are_never_installed() {
    let ca = Ca::new();
    let id = identity(CLIENT);
    let adopt = |id: &mesh_core::Identity, chain: &str, key: &str| {
        IdentityCertificate::from_pem(
            id.clone(),
            chain.as_bytes(),
            key.as_bytes(),
            ca.roots.clone(),
            1,
            mesh_runtime::clock::now(),
        )
    };
    let (chain, key) = ca.sign(Ca::params(CLIENT));
    let good = adopt(&id, &chain, &key).unwrap();
    assert!(
        good.not_before < mesh_runtime::clock::now()
            && good.not_after > mesh_runtime::clock::now()
            && !good.serial.is_empty()
    );
    assert!(
        Arc::ptr_eq(&good.client_config(std::slice::from_ref(&id)), &good.client_config(std::slice::from_ref(&id))),
        "configurations are made once"
    );

    let (_, other_key) = ca.sign(Ca::params(CLIENT));
    let changed = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = Ca::params(CLIENT);
        change(&mut params);
        ca.sign(params)
    };
    let now = time::OffsetDateTime::now_utc();
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let foreign = Ca::new().sign(Ca::params(CLIENT));
    let lies: Vec<(&str, (String, String))> = vec![
        ("wrong key", (chain.clone(), other_key)),
        ("no key", (chain.clone(), String::new())),
        ("certificate for key", (chain.clone(), chain.clone())),
        ("empty chain", (String::new(), key.clone())),
        ("garbage", ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(), key.clone())),
        ("truncated", (chain[..chain.len() / 2].into(), key.clone())),
        (
            "other identity",
            changed(&|params| params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/app/sa/admin")]),
        ),
        (
            "other trust domain",
            changed(&|params| params.subject_alt_names = vec![uri("spiffe://evil.local/ns/app/sa/client")]),
        ),
        (
            "two identities",
            changed(&|params| params.subject_alt_names.push(uri("spiffe://cluster.local/ns/app/sa/admin"))),
        ),
        ("no identity", changed(&|params| params.subject_alt_names.clear())),
        (
            "DNS only",
            changed(&|params| params.subject_alt_names = vec![SanType::DnsName("client".try_into().unwrap())]),
        ),
        ("expired", changed(&|params| params.not_after = now - time::Duration::seconds(2))),
        ("future", changed(&|params| params.not_before = now + time::Duration::hours(1))),
        ("an authority", changed(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("no client use", changed(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])),
        ("no server use", changed(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth])),
        ("no signatures", changed(&|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment])),
        ("foreign root", foreign),
        ("root instead of leaf", (ca.issuer.pem(), key.clone())),
        ("leaf not first", (format!("{}{chain}", ca.issuer.pem()), key.clone())),
    ];
    for (name, (chain, key)) in &lies {
        assert!(adopt(&id, chain, key).is_err(), "{name}");
    }
    let huge = chain.repeat(40);
    assert!(matches!(adopt(&id, &huge, &key), Err(CertificateError::TooLarge { .. })));
    let ten_mib = "x".repeat(10 << 20);
    assert!(matches!(adopt(&id, &ten_mib, &key), Err(CertificateError::TooLarge { .. })));
    assert!(Roots::from_pem(b"", vec![]).is_err(), "an empty trust store never replaces a good one");
    let partly = format!("{}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", ca.issuer.pem());
    assert_eq!(Roots::from_pem(partly.as_bytes(), vec![]).unwrap().len(), 1);
}

#[tokio::test]
async fn hardening_B9_only_accepted_trust_domains() {
    let mut port = Port::new(AcceptorConfig::default());
    let domain = |domain: &str| Ca::params(&format!("spiffe://{domain}/ns/app/sa/client"));
    for other in ["other.local", "alias.local", "Cluster.Local", "cluster.local.evil", "cluster.loca", "cluster.local."]
    {
        let judged = port.judge_params(domain(other)).await;
        assert!(judged.as_ref().is_err_and(|error| error.starts_with("peer_refused")), "{other}: {judged:?}");
    }
    let domains = vec![TrustDomain::default(), "alias.local".parse().unwrap()];
    let roots = Arc::new(Roots::from_pem(port.ca.issuer.pem().as_bytes(), domains).unwrap());
    port.ca.roots = roots;
    port.certificate = port.ca.issue(&identity("spiffe://cluster.local/ns/app/sa/server"));
    assert!(port.judge_params(domain("alias.local")).await.is_ok());
    assert!(port.judge_params(domain("other.local")).await.is_err());
}

#[tokio::test]
async fn hardening_B10_B11_B12_exactly_one_strict_spiffe_uri() {
    let port = Port::new(AcceptorConfig::default());
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let lists: Vec<Vec<SanType>> = vec![
        vec![],
        vec![uri(CLIENT), uri("spiffe://cluster.local/ns/app/sa/admin")],
        vec![uri(CLIENT), uri(CLIENT)],
        vec![uri(CLIENT), uri("https://example.com")],
        (0..100).map(|number| uri(&format!("{CLIENT}{number}"))).collect(),
        vec![SanType::DnsName("client.app.svc".try_into().unwrap())],
    ];
    for names in lists {
        let mut params = Ca::params(CLIENT);
        let count = names.len();
        params.subject_alt_names = names;
        let judged = port.judge_params(params).await;
        assert!(judged.as_ref().is_err_and(|error| error.starts_with("peer_refused")), "{count} names: {judged:?}");
    }
    let mut params = Ca::params(CLIENT);
    params.subject_alt_names.push(SanType::DnsName("client.app.svc".try_into().unwrap()));
    assert_eq!(port.judge_params(params).await, Ok(CLIENT.into()), "DNS names are ignored");

    let long = format!("spiffe://cluster.local/ns/app/sa/{}", "a".repeat(2048));
    for text in [
        "spiffe://cluster.local/ns/app/sa/client\0",
        "spiffe://cluster.local/ns/app/sa/cl\0ient",
        "spiffe://cluster.local/ns/app%2fsa/sa/client",
        "spiffe://cluster.local/ns/../sa/client",
        "spiffe://cluster.local/ns/./sa/client",
        "spiffe://cluster.local/ns//sa/client",
        "spiffe://cluster.local/ns/app/sa/client/",
        "spiffe://cluster.local:443/ns/app/sa/client",
        "spiffe://user@cluster.local/ns/app/sa/client",
        "spiffe://cluster.local/ns/app/sa/client?x=y",
        "spiffe://cluster.local/ns/app/sa/client#x",
        "SPIFFE://cluster.local/ns/app/sa/client",
        "https://cluster.local/ns/app/sa/client",
        "spiffe://cluster.local/ns/app",
        "spiffe://cluster.local/sa/client/ns/app",
        "spiffe://cluster.local/ns/app/sa/client/x/y",
        "spiffe://cluster.local",
        "spiffe:///ns/app/sa/client",
        &long,
    ] {
        let judged = port.judge_params(Ca::params(text)).await;
        assert!(judged.is_err(), "{text:?}: {judged:?}");
    }
}

#[tokio::test]
async fn hardening_B13_B14_usages_and_dates() {
    let port = Port::new(AcceptorConfig::default());
    let params = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = Ca::params(CLIENT);
        change(&mut params);
        params
    };
    let now = time::OffsetDateTime::now_utc();
    let (second, minute) = (time::Duration::seconds(1), time::Duration::minutes(1));
    let refused: [(&str, CertificateParams); 7] = [
        ("server only", params(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])),
        ("CA", params(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("no signature", params(&|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment])),
        ("expired", params(&|params| params.not_after = now - second)),
        ("far future", params(&|params| params.not_before = now + minute * 3)),
        ("backwards", params(&|params| params.not_after = params.not_before - minute)),
        (
            "long over",
            params(&|params| {
                params.not_before = now - minute * 100;
                params.not_after = now - minute * 90;
            }),
        ),
    ];
    for (name, params) in refused {
        let judged = port.judge_params(params).await;
        assert!(judged.is_err(), "{name}: {judged:?}");
    }
    for (name, params) in [
        ("clock ahead", params(&|params| params.not_before = now + second * 50)),
        ("for ever", params(&|params| params.not_after = rcgen::date_time_ymd(9999, 12, 31))),
        ("no usages", params(&|params| params.extended_key_usages.clear())),
    ] {
        let judged = port.judge_params(params).await;
        assert!(judged.is_ok(), "{name}: {judged:?}");
    }
}

#[tokio::test]
async fn hardening_B15_long_chains_cost_little() {
    let port = Port::new(AcceptorConfig::default());
    // Sixty-four authorities with one name, each of which could have signed each.
    let (leaf, key) = Ca::new().sign(Ca::params(CLIENT));
    let padding: String = (0..64).map(|_| ca_issuer("root").pem()).collect();
    let start = Instant::now();
    let judged = port.judge(client::config(Some((&(leaf + &padding), &key)), &["h2"], &[&TLS13])).await;
    assert!(judged.is_err(), "{judged:?}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}
