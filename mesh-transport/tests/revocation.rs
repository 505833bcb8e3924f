//! Revoked certificates: refused in both directions, cut when they become so, and lists that must not count.
#![allow(clippy::unwrap_used, missing_docs, non_snake_case)]

mod support;

use std::sync::Arc;

use mesh_transport::hbone::{AcceptorConfig, HboneError, PoolConfig, ServeEnd, Stage};
use mesh_transport::tls::{CRL_LIMIT, CrlError, IdentityCertificate, Revocations};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, SigningKey,
};
use rustls::version::TLS13;
use support::port::{CLIENT, Port};
use support::{Ca, Lab, ca_issuer, client, identity, soon, until};
use tokio::io::AsyncReadExt;

const SERVER: &str = "spiffe://cluster.local/ns/app/sa/server";

/// A list of revoked numbers, signed by `issuer`.
fn list(issuer: &Issuer<'_, impl SigningKey>, numbers: &[u64]) -> String {
    let now = time::OffsetDateTime::now_utc();
    let revoked = |number: &u64| RevokedCertParams {
        serial_number: SerialNumber::from(*number),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: now - time::Duration::minutes(2),
        next_update: now + time::Duration::hours(1),
        crl_number: SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: numbers.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).unwrap().pem().unwrap()
}

fn numbered(uri: &str, number: u64) -> CertificateParams {
    let mut params = Ca::params(uri);
    params.serial_number = Some(SerialNumber::from(number));
    params
}

/// A lab whose client has number 7 and whose server has number 8; nothing is revoked.
async fn lab() -> (Lab, Arc<Revocations>) {
    let ca = Ca::new();
    let revocations = Revocations::from_pem(list(&ca.issuer, &[99]).as_bytes()).unwrap();
    let server = ca.issue_with(&identity(SERVER), numbered(SERVER, 8), 1);
    let pool = PoolConfig { revocations: Some(revocations.clone()), ..PoolConfig::default() };
    let acceptor = AcceptorConfig { revocations: Some(revocations.clone()), ..AcceptorConfig::default() };
    let mut lab = Lab::of(ca, server, pool, acceptor).await;
    lab.client = lab.ca.issue_with(&identity(CLIENT), numbered(CLIENT, 7), 1);
    (lab, revocations)
}

#[tokio::test]
async fn hardening_B17_a_revoked_client_is_refused() {
    let (lab, revocations) = lab().await;
    revocations.replace(list(&lab.ca.issuer, &[7]).as_bytes()).unwrap();
    let error = soon("refusal", lab.connect()).await.unwrap_err();
    assert_eq!(error.stage(), Stage::Tls, "the client learns why: {error}");
    assert_eq!(revocations.refused(), (0, 1));
    until("nothing is left", || lab.pool.stats().keys == 0).await;
}

#[tokio::test]
async fn hardening_B17_a_revoked_server_is_refused() {
    let (lab, revocations) = lab().await;
    revocations.replace(list(&lab.ca.issuer, &[8]).as_bytes()).unwrap();
    let error = soon("refusal", lab.connect()).await.unwrap_err();
    assert!(matches!(&error, HboneError::Tls(cause) if cause.reason() == "peer_revoked"), "{error}");
    assert_eq!(revocations.refused(), (1, 0));
    assert_eq!(lab.pool.stats().keys, 0);
}

#[tokio::test]
async fn hardening_B17_live_connections_of_a_revoked_peer_are_cut() {
    for (number, refused) in [(7, (0, 1)), (8, (1, 0))] {
        let (mut lab, revocations) = lab().await;
        let (mut near, mut far, _copy) = lab.through().await;
        // Lists about others change nothing.
        assert_eq!(revocations.replace(list(&lab.ca.issuer, &[98, 99]).as_bytes()), Ok(0));
        assert_eq!(revocations.replace(list(&lab.ca.issuer, &[99, number]).as_bytes()), Ok(1));
        for end in [&mut near, &mut far] {
            assert_eq!(soon("reset", end.read_u8()).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        }
        assert_eq!(revocations.refused(), refused);
        assert_eq!(soon("end", lab.ends.recv()).await, Some(ServeEnd::Lost));
        until("nothing is left", || lab.pool.stats().keys == 0).await;
        // What was forgotten is not judged again, and a new connection is refused.
        assert_eq!(revocations.replace(list(&lab.ca.issuer, &[99, number]).as_bytes()), Ok(0));
        assert!(soon("refusal", lab.connect()).await.is_err());
        // A list without the number lets the peer in again.
        revocations.replace(list(&lab.ca.issuer, &[]).as_bytes()).unwrap();
        lab.through().await;
    }
}

/// What a peer can make by itself and add to its chain: authorities of the name of the one that issued its certificate, which webpki tries as well.
fn junk() -> Vec<(&'static str, String)> {
    let day = time::Duration::days(1);
    let now = time::OffsetDateTime::now_utc();
    let authority = |name: &str, from, to| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) = (from, to);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    };
    let valid = authority("root", now - day, now + day);
    vec![
        ("expired", authority("root", now - day * 2, now - day)),
        ("not valid yet", authority("root", now + day, now + day * 2)),
        ("of another key", valid.clone()),
        ("many", valid.repeat(8)),
        ("of another name", authority("other", now - day * 2, now - day)),
    ]
}

#[tokio::test]
async fn hardening_B17_nothing_that_a_revoked_peer_adds_to_its_chain_helps_it() {
    for (name, junk) in junk() {
        for (number, refused) in [(7, (0, 1)), (8, (1, 0))] {
            let ca = Ca::new();
            let issue = |uri: &str, number| {
                let (chain, key) = ca.sign(numbered(uri, number));
                let (chain, roots) = (format!("{chain}{junk}"), ca.roots.clone());
                let now = mesh_runtime::clock::now();
                let own = IdentityCertificate::from_pem(identity(uri), chain.as_bytes(), key.as_bytes(), roots, 1, now);
                Arc::new(own.unwrap())
            };
            let (client, server) = (issue(CLIENT, 7), issue(SERVER, 8));
            let revocations = Revocations::from_pem(list(&ca.issuer, &[99]).as_bytes()).unwrap();
            let pool = PoolConfig { revocations: Some(revocations.clone()), ..PoolConfig::default() };
            let acceptor = AcceptorConfig { revocations: Some(revocations.clone()), ..AcceptorConfig::default() };
            let mut lab = Lab::of(ca, server, pool, acceptor).await;
            lab.client = client;
            let (mut near, _far, _copy) = lab.through().await;
            assert_eq!(revocations.replace(list(&lab.ca.issuer, &[number]).as_bytes()), Ok(1), "{name} {number}");
            assert!(soon("reset", near.read_u8()).await.is_err(), "{name} {number}");
            assert_eq!(revocations.refused(), refused, "{name} {number}");
            assert!(soon("refusal", lab.connect()).await.is_err(), "{name} {number}");
        }
    }
}

#[tokio::test]
async fn hardening_B17_bad_lists_leave_the_last_good_ones_in_use() {
    let (lab, revocations) = lab().await;
    let good = list(&lab.ca.issuer, &[7]);
    revocations.replace(good.as_bytes()).unwrap();
    let own = list(&lab.ca.issuer, &[]);
    let garbage = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    let large = "\n".repeat(CRL_LIMIT + 1);
    let cases: Vec<(&str, String)> = vec![
        ("empty", String::new()),
        ("no PEM", "nothing here".into()),
        ("a certificate", lab.ca.issuer.pem()),
        ("cut off", own[..own.len() / 2].into()),
        ("garbage", garbage.into()),
        ("one of two is bad", format!("{own}{garbage}")),
        ("not base64", own.replace('A', "!")),
        ("too many", own.repeat(257)),
        ("too large", large),
    ];
    for (name, text) in cases {
        assert!(revocations.replace(text.as_bytes()).is_err(), "{name}");
        assert_eq!(revocations.lists(), 1, "{name}");
        assert!(soon(name, lab.connect()).await.is_err(), "{name}: still revoked");
    }
    assert!(matches!(Revocations::from_pem(b""), Err(CrlError::Empty)));
    let both = format!("{good}{}", list(&Ca::new().issuer, &[1]));
    revocations.replace(both.as_bytes()).unwrap();
    assert_eq!(revocations.lists(), 2);
    assert!(soon("both", lab.connect()).await.is_err(), "each list counts");
}

#[tokio::test]
async fn hardening_B17_lists_of_others_do_not_count() {
    let (lab, revocations) = lab().await;
    // Another authority of the same name, so that only the signature tells them apart; and one of another name.
    let forged = list(&Ca::new().issuer, &[7, 8]);
    let foreign = list(&ca_issuer("other"), &[7, 8]);
    for text in [&forged, &foreign, &format!("{forged}{foreign}")] {
        assert_eq!(revocations.replace(text.as_bytes()), Ok(0));
        lab.through().await;
        assert_eq!(revocations.replace(text.as_bytes()), Ok(0), "live connections are not cut either");
    }
    // In front of the real one they do not hide it.
    let all = format!("{forged}{foreign}{}", list(&lab.ca.issuer, &[7]));
    assert!(revocations.replace(all.as_bytes()).unwrap() > 0);
    assert!(soon("refusal", lab.connect()).await.is_err());
}

/// Number 50, which may sign certificates and what else `usages` say.
fn intermediate(ca: &Ca, name: &str, usages: &[KeyUsagePurpose]) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = [&[KeyUsagePurpose::KeyCertSign], usages].concat();
    params.serial_number = Some(SerialNumber::from(50u64));
    CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &ca.issuer).unwrap()
}

/// The chain and the key of a client with number 7 that `intermediate` issued.
fn below(intermediate: &CertifiedIssuer<'static, KeyPair>) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let leaf = numbered(CLIENT, 7).signed_by(&key, intermediate).unwrap();
    (format!("{}{}", leaf.pem(), intermediate.pem()), key.serialize_pem())
}

#[tokio::test]
async fn hardening_B17_a_list_counts_whatever_the_name_or_the_usages_of_the_key_that_signed_it() {
    for (name, usages) in [("intermediate", &[][..]), ("root", &[KeyUsagePurpose::CrlSign])] {
        let mut port = Port::new(AcceptorConfig::default());
        let intermediate = intermediate(&port.ca, name, usages);
        let (chain, key) = below(&intermediate);
        // The same, but willing to sign a list.
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        let signer = Issuer::from_params(&params, intermediate.key());
        let revocations = Revocations::from_pem(list(&signer, &[99]).as_bytes()).unwrap();
        let config = AcceptorConfig { revocations: Some(revocations.clone()), ..AcceptorConfig::default() };
        port.acceptor = mesh_transport::hbone::Acceptor::new(config);
        let judge = || port.judge(client::config(Some((&chain, &key)), &["h2"], &[&TLS13]));
        assert_eq!(judge().await, Ok(CLIENT.into()), "{name}: the list does not name it");
        revocations.replace(list(&signer, &[7]).as_bytes()).unwrap();
        assert!(judge().await.is_err_and(|error| error.starts_with("peer_revoked")), "{name}");
        revocations.replace(list(&port.ca.issuer, &[50]).as_bytes()).unwrap();
        assert!(judge().await.is_err_and(|error| error.starts_with("peer_revoked")), "{name}: the intermediate itself");
    }
}

#[tokio::test]
async fn hardening_B17_a_revoked_intermediate_takes_its_leaves_with_it() {
    let mut port = Port::new(AcceptorConfig::default());
    let intermediate = intermediate(&port.ca, "intermediate", &[KeyUsagePurpose::CrlSign]);
    let (chain, key) = below(&intermediate);
    let root = list(&port.ca.issuer, &[]);
    let revocations = Revocations::from_pem(root.as_bytes()).unwrap();
    let config = AcceptorConfig { revocations: Some(revocations.clone()), ..AcceptorConfig::default() };
    port.acceptor = mesh_transport::hbone::Acceptor::new(config);
    let judge = || port.judge(client::config(Some((&chain, &key)), &["h2"], &[&TLS13]));
    assert_eq!(judge().await, Ok(CLIENT.into()), "no list of the intermediate: its leaves are of unknown status");
    revocations.replace(list(&port.ca.issuer, &[7]).as_bytes()).unwrap();
    assert!(judge().await.is_ok(), "the root's number 7 is another certificate");
    revocations.replace(list(&port.ca.issuer, &[50]).as_bytes()).unwrap();
    assert!(judge().await.is_err_and(|error| error.starts_with("peer_revoked")));
    let both = format!("{root}{}", list(&intermediate, &[7]));
    revocations.replace(both.as_bytes()).unwrap();
    assert!(judge().await.is_err_and(|error| error.starts_with("peer_revoked")));
}
