//! The authority: its files, its tokens, and what it signs, with the rows of the bad-input catalogue that concern them.

mod plugged;
mod turns;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_core::{Identity, NamespacedName, TrustDomain};
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, IsCa, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::authority::{self, Authority, AuthorityError, KEY_FILE, ROOTS_FILE};
use super::ledger::{Keys, Rates};
use super::sign::{self, SignError};
use crate::access::token::{TokenError, Tokens};
use crate::access::who::{Share, Who};
use crate::state::{self, StateError};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn now() -> SystemTime {
    // Certificates count whole seconds.
    let seconds = mesh_runtime::clock::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn folder() -> (tempfile::TempDir, std::path::PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("state");
    (parent, path)
}

fn authority(path: &Path) -> Authority {
    Authority::open(path, &TrustDomain::default(), now()).unwrap()
}

fn identity() -> Identity {
    "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()
}

fn csr(key: &KeyPair) -> String {
    csr_of(key, |_| {})
}

fn csr_of(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    change(&mut params);
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Uses the leaf of a chain.
fn leaf<T>(chain: &[String], use_it: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
    let der = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
    use_it(&X509Certificate::from_der(&der).unwrap().1)
}

#[test]
fn the_root_is_made_once_and_kept() {
    let (_parent, path) = folder();
    let first = authority(&path).bundle().to_owned();
    assert_eq!((mode(&path), mode(&path.join(KEY_FILE))), (0o700, 0o600));
    assert_eq!(authority(&path).bundle(), first);
    assert_eq!(fs::read_to_string(path.join(ROOTS_FILE)).unwrap(), first);
    assert!(!first.contains("PRIVATE"));
}

#[test]
fn hardening_B119_a_root_that_cannot_be_right_is_refused() {
    type Break = fn(&Path);
    let cases: &[(&str, Break, &str)] = &[
        ("empty key", |p| fs::write(p.join(KEY_FILE), "").unwrap(), "not a private key"),
        ("no key", |p| fs::remove_file(p.join(KEY_FILE)).unwrap(), "is not: restore it"),
        ("no certificate", |p| fs::remove_file(p.join(ROOTS_FILE)).unwrap(), "is not: restore it"),
        ("empty certificate", |p| fs::write(p.join(ROOTS_FILE), "").unwrap(), "it holds 0 certificates"),
        (
            "garbage certificate",
            |p| {
                fs::write(p.join(ROOTS_FILE), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap()
            },
            "cannot be read",
        ),
        (
            "swapped",
            |p| {
                let (key, roots) = (fs::read(p.join(KEY_FILE)).unwrap(), fs::read(p.join(ROOTS_FILE)).unwrap());
                fs::write(p.join(KEY_FILE), roots).unwrap();
                fs::write(p.join(ROOTS_FILE), key).unwrap();
            },
            "not a private key",
        ),
        (
            "other key",
            |p| {
                let (key, _) = authority::make(&TrustDomain::default(), now()).unwrap();
                fs::write(p.join(KEY_FILE), key).unwrap();
            },
            "no certificate in",
        ),
        (
            "no CA",
            |p| {
                let key = KeyPair::generate().unwrap();
                let certificate = CertificateParams::default().self_signed(&key).unwrap();
                fs::write(p.join(KEY_FILE), key.serialize_pem()).unwrap();
                fs::write(p.join(ROOTS_FILE), certificate.pem()).unwrap();
            },
            "CA:TRUE is missing",
        ),
        (
            "expired",
            |p| {
                let key = KeyPair::generate().unwrap();
                let mut params = CertificateParams::default();
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params.not_after = rcgen::date_time_ymd(2020, 1, 1);
                fs::write(p.join(ROOTS_FILE), params.self_signed(&key).unwrap().pem()).unwrap();
                fs::write(p.join(KEY_FILE), key.serialize_pem()).unwrap();
            },
            "not valid now",
        ),
        ("key for all", |p| chmod(&p.join(KEY_FILE), 0o644), "has mode 0644"),
        ("key for the group", |p| chmod(&p.join(KEY_FILE), 0o640), "has mode 0640"),
        ("folder for all", |p| chmod(p, 0o755), "has mode 0755"),
        (
            "key is a link",
            |p| {
                fs::rename(p.join(KEY_FILE), p.join("elsewhere")).unwrap();
                std::os::unix::fs::symlink("elsewhere", p.join(KEY_FILE)).unwrap();
            },
            "is not a file",
        ),
    ];
    for (name, break_it, message) in cases {
        let (_parent, path) = folder();
        let running = authority(&path);
        break_it(&path);
        let error = Authority::open(&path, &TrustDomain::default(), now()).unwrap_err().to_string();
        assert!(error.contains(message), "{name}: {error}");
        if *name != "folder for all" {
            assert!(running.reload(&path, now()).is_err(), "{name}: what runs keeps the old root");
        }
    }
}

#[test]
fn an_empty_folder_is_closed_and_a_file_in_its_place_refused() {
    let (_parent, path) = folder();
    fs::create_dir(&path).unwrap();
    chmod(&path, 0o755);
    authority(&path);
    assert_eq!(mode(&path), 0o700);
    let file = path.join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(state::folder(&file), Err(StateError::Type { .. })));
}

#[test]
fn hardening_B119_what_is_no_small_file_is_refused_and_not_waited_for() {
    let (_parent, path) = folder();
    let running = authority(&path);
    let roots = path.join(ROOTS_FILE);
    fs::remove_file(&roots).unwrap();
    nix::unistd::mkfifo(&roots, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(matches!(running.reload(&path, now()), Err(AuthorityError::State(StateError::Type { .. }))));
    fs::remove_file(&roots).unwrap();
    fs::File::create(&roots).unwrap().set_len(2 << 20).unwrap();
    assert!(running.reload(&path, now()).unwrap_err().to_string().contains("larger than 1 MiB"));
}

#[test]
fn files_are_replaced_whole_and_closed() {
    let (_parent, path) = folder();
    state::folder(&path).unwrap();
    let file = path.join("token");
    fs::write(path.join(".token.new"), "left over").unwrap();
    state::write(&file, "one", 0o600).unwrap();
    state::write(&file, "two", 0o600).unwrap();
    assert_eq!((fs::read_to_string(&file).unwrap().as_str(), mode(&file)), ("two", 0o600));
    assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
}

#[test]
fn a_certificate_says_what_the_authority_decides() {
    let (_parent, path) = folder();
    let authority = authority(&path);
    let key = KeyPair::generate().unwrap();
    let now = now();
    let signed = sign::sign(&authority, &sign::check(&csr(&key)).unwrap(), &identity(), DAY, now).unwrap();
    assert_eq!(signed.chain.len(), 2);
    assert_eq!(signed.chain[1], authority.bundle());
    leaf(&signed.chain, |certificate| {
        assert_eq!(certificate.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&key).as_slice());
        let seconds =
            |t: x509_parser::time::ASN1Time| UNIX_EPOCH + Duration::from_secs(t.timestamp().try_into().unwrap());
        assert_eq!(seconds(certificate.validity().not_before), now - Duration::from_secs(120));
        assert_eq!(seconds(certificate.validity().not_after), now + DAY);
        assert!(!certificate.is_ca());
        assert!(certificate.subject().as_raw().len() <= 2, "no subject");
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert!(names.critical, "without a subject the name is critical");
        assert!(matches!(&names.value.general_names[..], [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]));
        let usage = certificate.extended_key_usage().unwrap().unwrap();
        assert!(usage.value.client_auth && usage.value.server_auth);
        assert!(certificate.key_usage().unwrap().unwrap().value.digital_signature());
        let root = X509Certificate::from_der(&authority.roots()[0]).unwrap().1;
        certificate.verify_signature(Some(root.public_key())).unwrap();
    });
}

#[test]
fn hardening_B113_requests_that_are_none() {
    let key = KeyPair::generate().unwrap();
    let good = csr(&key);
    let mut forged = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let mut longer = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
    longer.push(0);
    let pem = |der: &[u8]| authority::pem("CERTIFICATE REQUEST", der);
    let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    let cases: Vec<(&str, String, SignError)> = vec![
        ("empty", String::new(), SignError::Unreadable("it is not PEM with a CERTIFICATE REQUEST")),
        ("not PEM", "x".repeat(1000), SignError::Unreadable("it is not PEM with a CERTIFICATE REQUEST")),
        ("a key", key.serialize_pem(), SignError::Unreadable("it is not PEM with a CERTIFICATE REQUEST")),
        ("garbage", pem(&[0x30, 0x80, 1, 2, 3]), SignError::Unreadable("it is not PKCS#10")),
        ("forged", pem(&forged), SignError::Signature),
        ("longer", pem(&longer), SignError::Unreadable("there is something behind it")),
        ("1 MiB", "x".repeat(1 << 20), SignError::Unreadable("it is too large")),
        ("P-521", csr(&p521), SignError::Key("of elliptic curves only P-256 and P-384")),
    ];
    for (name, text, expected) in cases {
        assert_eq!(sign::check(&text).unwrap_err(), expected, "{name}");
    }
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        assert!(sign::check(&csr(&KeyPair::generate_for(algorithm).unwrap())).is_ok(), "{algorithm:?}");
    }
}

#[test]
fn hardening_B113_rsa_keys_have_2048_bits() {
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    assert!(sign::check(&csr(&key)).is_ok());
    // 1024 bits, made with openssl: no library here makes such a key any more.
    let small = include_str!("../testdata/rsa1024.csr");
    assert_eq!(sign::check(small).unwrap_err(), SignError::Key("of RSA only 2048 to 4096 bits"));
}

#[test]
fn hardening_B114_what_a_request_asks_for_is_ignored() {
    let (_parent, path) = folder();
    let authority = authority(&path);
    let key = KeyPair::generate().unwrap();
    let text = csr_of(&key, |params| {
        params.subject_alt_names = vec![
            SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap()),
            SanType::DnsName("istiod.istio-system.svc".try_into().unwrap()),
        ];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning];
        params.distinguished_name.push(rcgen::DnType::CommonName, "admin");
        for n in 0..100u64 {
            params.custom_extensions.push(CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, n], vec![5, 0]));
        }
    });
    let signed = sign::sign(&authority, &sign::check(&text).unwrap(), &identity(), DAY, now()).unwrap();
    leaf(&signed.chain, |certificate| {
        assert!(!certificate.is_ca());
        assert!(certificate.extensions().len() <= 7);
        assert!(!format!("{certificate:?}").contains("admin"));
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 1);
    });
}

#[test]
fn hardening_B115_lifetimes_are_clamped() {
    let seconds = |asked, longest| sign::lifetime(asked, Duration::from_secs(longest)).as_secs();
    for (asked, longest, granted) in [
        (0, 86400, 600),
        (-1, 86400, 600),
        (i64::MIN, 86400, 600),
        (599, 86400, 600),
        (3600, 86400, 3600),
        (86400, 86400, 86400),
        (100 * 365 * 86400, 86400, 86400),
        (i64::MAX, 86400, 86400),
        // An operator's shorter maximum is also the minimum.
        (3600, 60, 60),
        (0, 60, 60),
    ] {
        assert_eq!(seconds(asked, longest), granted, "{asked} of {longest}");
    }
    // No leaf outlives the root.
    let (_parent, path) = folder();
    let authority = authority(&path);
    let key = sign::check(&csr(&KeyPair::generate().unwrap())).unwrap();
    let late = authority.not_after() - Duration::from_secs(300);
    let signed = sign::sign(&authority, &key, &identity(), DAY, late).unwrap();
    assert_eq!(signed.not_after, authority.not_after());
    leaf(&signed.chain, |c| {
        assert_eq!(
            u64::try_from(c.validity().not_after.timestamp()).unwrap(),
            authority.not_after().duration_since(UNIX_EPOCH).unwrap().as_secs()
        )
    });
    assert_eq!(
        sign::sign(&authority, &key, &identity(), DAY, authority.not_after()).unwrap_err(),
        SignError::RootExpired
    );
}

#[test]
fn hardening_B116_a_key_belongs_to_one_identity() {
    let mut keys = Keys::default();
    let other: Identity = "spiffe://cluster.local/ns/shop/sa/db".parse().unwrap();
    let (now, later) = (now(), now() + DAY);
    let (of_node, of_waypoint) = (Share::Node("n1".into()), Share::Waypoints("shop".into()));
    assert!(keys.claim(b"key", &identity(), &of_node, later, now));
    assert!(keys.claim(b"key", &identity(), &of_node, later, now), "renewal with the same key");
    assert!(!keys.claim(b"key", &other, &of_node, later, now));
    assert!(keys.claim(b"another", &other, &of_node, later, now));
    assert!(keys.claim(b"key", &other, &of_node, later + DAY, later), "free once its certificate has ended");
    // Waypoints make the authority forget no key of a node, and have none of a node's.
    for n in 0..30_000_u32 {
        assert!(keys.claim(&n.to_be_bytes(), &identity(), &of_waypoint, later + DAY, later));
    }
    assert!(!keys.claim(b"key", &identity(), &of_waypoint, later + DAY, later));
}

#[test]
fn hardening_B117_a_node_has_a_rate() {
    let mut rates = Rates::default();
    let node = |name: &str| Share::Node(name.into());
    let start = Instant::now();
    let admitted = (0..10_000).filter(|_| rates.admit(&node("n1"), start)).count();
    assert_eq!(admitted, 500);
    assert!(rates.admit(&node("n2"), start), "of its own");
    let next = start + Duration::from_secs(2);
    assert_eq!((0..10_000).filter(|_| rates.admit(&node("n1"), next)).count(), 100);
    // The waypoints of a namespace have one together, and take nothing of a node that is called as the namespace.
    let of = |namespace: String| Share::Waypoints(namespace.into());
    assert_eq!((0..10_000).filter(|_| rates.admit(&of("n3".into()), start)).count(), 100);
    assert_eq!((0..20_000).filter(|n| rates.admit(&of(format!("ns{n}")), start)).count(), 9_999);
    assert_eq!((0..10_000).filter(|_| rates.admit(&node("n3"), start)).count(), 500);
}

#[test]
fn features_CA_4_a_bundle_of_two_roots_and_the_change_of_the_signer() {
    let (_parent, path) = folder();
    let old = authority(&path);
    let (old_key, old_root) = (fs::read_to_string(path.join(KEY_FILE)).unwrap(), old.bundle().to_owned());
    assert!(old.reload(&path, now()).unwrap().is_none(), "nothing changed");
    let (new_key, new_root) = authority::make(&"cluster.local".parse().unwrap(), now()).unwrap();

    // Both are trusted, the old one signs.
    state::write(&path.join(ROOTS_FILE), &format!("{old_root}{new_root}"), 0o644).unwrap();
    let both = old.reload(&path, now()).unwrap().unwrap();
    assert_eq!(both.roots().len(), 2);
    let key = sign::check(&csr(&KeyPair::generate().unwrap())).unwrap();
    let issuer = |authority: &Authority, root: usize| {
        let signed = sign::sign(authority, &key, &identity(), DAY, now()).unwrap();
        assert_eq!(signed.chain.last().unwrap(), authority.bundle());
        let root = X509Certificate::from_der(&authority.roots()[root]).unwrap().1;
        leaf(&signed.chain, |c| c.verify_signature(Some(root.public_key())).is_ok())
    };
    assert!(issuer(&both, 0) && !issuer(&both, 1));

    // Both are trusted, the new one signs; then the old one is gone.
    state::write(&path.join(KEY_FILE), &new_key, 0o600).unwrap();
    let swapped = both.reload(&path, now()).unwrap().unwrap();
    assert!(!issuer(&swapped, 0) && issuer(&swapped, 1));
    state::write(&path.join(ROOTS_FILE), &new_root, 0o644).unwrap();
    assert_eq!(swapped.reload(&path, now()).unwrap().unwrap().roots().len(), 1);
    // The old key with the new root alone is a mistake.
    state::write(&path.join(KEY_FILE), &old_key, 0o600).unwrap();
    assert!(matches!(swapped.reload(&path, now()), Err(AuthorityError::Content { .. })));
}

fn node(name: &str, uid: Option<&str>) -> Who {
    Who::Node { name: name.into(), uid: uid.map(str::to_owned) }
}

#[test]
fn hardening_B110_tokens() {
    let (_parent, path) = folder();
    state::folder(&path).unwrap();
    let tokens = Tokens::open(&path, "Kubernetes".into()).unwrap();
    let now = now();
    let gate = Who::Waypoint { gateway: NamespacedName::new("shop", "wp"), uid: None, pod: None };
    let good = tokens.issue(&node("n1", None), DAY, now).unwrap();
    let known = |who: &Who| *who == node("n1", None) || *who == gate;
    let verify = |token: &str, at| tokens.verify(Some(token), at, known).map(|c| c.name.to_string());
    assert_eq!(verify(&good, now), Ok("n1".into()));
    let of_gate = tokens.issue(&gate, DAY, now).unwrap();
    assert_eq!(verify(&of_gate, now), Ok("waypoint/shop/wp".into()));
    assert_eq!(verify(&good, now + DAY - Duration::from_secs(1)), Ok("n1".into()));

    let with_uid = tokens.issue(&node("n1", Some("u")), DAY, now).unwrap();
    let other_node = tokens.issue(&node("n2", None), DAY, now).unwrap();
    let (_other_parent, other_path) = folder();
    state::folder(&other_path).unwrap();
    let other_key = Tokens::open(&other_path, "Kubernetes".into()).unwrap().issue(&node("n1", None), DAY, now).unwrap();
    let other_cluster = Tokens::open(&path, "Other".into()).unwrap().issue(&node("n1", None), DAY, now).unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    let swapped = format!("{}.{}.{}", parts[0], other_node.split('.').nth(1).unwrap(), parts[2]);
    let none = "eyJhbGciOiJub25lIn0";
    for (name, token, error) in [
        ("empty", String::new(), TokenError::Missing),
        ("garbage", "garbage".into(), TokenError::Malformed),
        ("dots", "a.b.c".into(), TokenError::Malformed),
        ("long", "x".repeat(100_000), TokenError::Malformed),
        ("alg none", format!("{none}.{}.", parts[1]), TokenError::Malformed),
        ("no signature", format!("{}.{}.", parts[0], parts[1]), TokenError::Malformed),
        ("other header", format!("{none}.{}.{}", parts[1], parts[2]), TokenError::Malformed),
        ("other claims", swapped, TokenError::Signature),
        ("other key", other_key, TokenError::Signature),
        ("other cluster", other_cluster, TokenError::Cluster),
        ("unknown node", other_node, TokenError::Gone),
        ("unknown uid", with_uid, TokenError::Gone),
    ] {
        assert_eq!(verify(&token, now), Err(error), "{name}");
    }
    assert_eq!(verify(&good, now + DAY), Err(TokenError::Expired));
    assert_eq!(verify(&good, now - Duration::from_secs(3600)), Err(TokenError::Expired));
    assert_eq!(tokens.verify(None, now, known).unwrap_err(), TokenError::Missing);
    assert!(!format!("{tokens:?}").contains("PRIVATE"));
    // The key stays, and so do tokens over a restart.
    assert!(Tokens::open(&path, "Kubernetes".into()).unwrap().verify(Some(&good), now, known).is_ok());
    chmod(&path.join(crate::access::token::KEY_FILE), 0o644);
    assert!(Tokens::open(&path, "Kubernetes".into()).is_err());
}

#[test]
fn hardening_B110_a_token_for_another_audience() {
    // Signed with the right key, as a service account token of the same issuer would be.
    let (_parent, path) = folder();
    state::folder(&path).unwrap();
    let tokens = Tokens::open(&path, "Kubernetes".into()).unwrap();
    let key = KeyPair::from_pem(&fs::read_to_string(path.join(crate::access::token::KEY_FILE)).unwrap()).unwrap();
    let sign = |claims: &str| {
        use base64::Engine;
        let encode = |b: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(b);
        let signed = format!("{}.{}", encode(br#"{"alg":"EdDSA","typ":"JWT"}"#), encode(claims.as_bytes()));
        let signature = rcgen::SigningKey::sign(&key, signed.as_bytes()).unwrap();
        format!("{signed}.{}", encode(&signature))
    };
    let verify = |claims: &str| tokens.verify(Some(&sign(claims)), now(), |_| true).map(|c| c.name.to_string());
    let claims = |aud: &str, sub: &str| {
        format!(r#"{{"aud":"{aud}","sub":"{sub}","cluster":"Kubernetes","iat":0,"exp":99999999999}}"#)
    };
    assert_eq!(verify(&claims("istio-ca", "node:n1")), Ok("n1".into()));
    assert_eq!(verify(&claims("istio-ca", "waypoint:a/b")), Ok("waypoint/a/b".into()));
    for bad in ["waypoint:", "waypoint:a", "waypoint:a/", "waypoint:/b", "waypoint:a/b/c"] {
        assert_eq!(verify(&claims("istio-ca", bad)), Err(TokenError::Malformed), "{bad}");
    }
    assert_eq!(verify(&claims("vault", "node:n1")), Err(TokenError::Audience));
    assert_eq!(verify(&claims("istio-ca", "system:serviceaccount:shop:web")), Err(TokenError::Malformed));
    assert_eq!(verify(r#"{"aud":["istio-ca"]}"#), Err(TokenError::Malformed));
}
