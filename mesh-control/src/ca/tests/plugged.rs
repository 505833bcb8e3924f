//! What is plugged in: every form in which it comes, and everything that may be wrong with it.

use std::collections::BTreeMap;
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::super::plugged::{self, Plugged, Purpose};
use super::super::turn;
use super::{DAY, csr, identity, now, sign};
use crate::ca::authority::offset;

/// A certificate authority of a test.
pub struct Ca {
    pub key: KeyPair,
    params: CertificateParams,
    pub pem: String,
}

/// What a certificate authority is in order.
fn usual(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Istio");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = offset(now() - DAY);
    params.not_after = offset(now() + 365 * DAY);
    params
}

impl Ca {
    pub fn root(name: &str) -> Ca {
        Self::root_of(KeyPair::generate().unwrap(), name, |_| {})
    }

    pub fn root_of(key: KeyPair, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Ca {
        let mut params = usual(name);
        change(&mut params);
        let pem = params.self_signed(&key).unwrap().pem();
        Ca { key, params, pem }
    }

    pub fn below(&self, name: &str) -> Ca {
        self.below_of(KeyPair::generate().unwrap(), name, |_| {})
    }

    pub fn below_of(&self, key: KeyPair, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Ca {
        let mut params = usual(name);
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let pem = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap().pem();
        Ca { key, params, pem }
    }
}

pub fn parts(parts: &[(&str, &str)]) -> BTreeMap<String, String> {
    parts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

/// As Istio's manual makes it.
pub fn istio(signer: &Ca, root: &Ca) -> BTreeMap<String, String> {
    let chain = format!("{}{}", signer.pem, root.pem);
    parts(&[
        ("ca-cert.pem", &signer.pem),
        ("ca-key.pem", &signer.key.serialize_pem()),
        ("cert-chain.pem", &chain),
        ("root-cert.pem", &root.pem),
    ])
}

pub fn read(parts: &BTreeMap<String, String>) -> Result<Plugged, String> {
    read_at(parts, now())
}

fn read_at(parts: &BTreeMap<String, String>, now: SystemTime) -> Result<Plugged, String> {
    let purpose =
        Purpose { domain: "mesh.example".parse().unwrap(), host: "mesh-control.undermesh-system.svc".to_owned() };
    plugged::read(parts, "Secret undermesh-system/cacerts", &purpose, now)
}

#[test]
fn features_CA_5_every_form_of_a_signer_is_taken() {
    let root = Ca::root("root");
    let signer = root.below("intermediate");
    let (top, middle) = (root.below("top"), Ca::root("x"));
    let low = top.below("low");
    let good = istio(&signer, &root);
    let with = |name: &str, text: &str| {
        let mut parts = good.clone();
        parts.insert(name.to_owned(), text.to_owned());
        parts
    };
    let without = |name: &str| {
        let mut parts = good.clone();
        parts.remove(name);
        parts
    };
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let rsa_root = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let rsa_root = Ca::root_of(rsa_root, "RSA root", |_| {});
    let rsa = rsa_root.below_of(rsa, "RSA", |_| {});
    let short =
        root.below_of(KeyPair::generate().unwrap(), "last", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let bound = root.below_of(KeyPair::generate().unwrap(), "bound", |p| {
        p.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("svc".into())],
            excluded_subtrees: vec![GeneralSubtree::DnsName("example.com".into())],
        });
    });
    let two = format!("{}{}", root.pem, middle.pem);
    let low_parts = parts(&[
        ("ca-cert.pem", &low.pem),
        ("ca-key.pem", &low.key.serialize_pem()),
        ("cert-chain.pem", &format!("{}{}", low.pem, top.pem)),
        ("root-cert.pem", &root.pem),
    ]);
    let tls = parts(&[
        ("tls.crt", &format!("{}{}", low.pem, top.pem)),
        ("tls.key", &low.key.serialize_pem()),
        ("ca.crt", &root.pem),
    ]);
    // How many certificates are between a leaf and a root, and how many roots there are.
    for (what, parts, between, roots) in [
        ("Istio's", good.clone(), 1, 1),
        ("without a chain", without("cert-chain.pem"), 1, 1),
        ("an empty chain", with("cert-chain.pem", ""), 1, 1),
        ("the root is among it", with("cert-chain.pem", &root.pem), 1, 1),
        ("the root twice in the bundle and another one", with("root-cert.pem", &two), 1, 2),
        ("two above each other", low_parts, 2, 1),
        ("cert-manager's", tls, 2, 1),
        ("a root itself", istio(&root, &root), 0, 1),
        ("RSA", istio(&rsa, &rsa_root), 1, 1),
        ("no authority below it", istio(&short, &root), 1, 1),
        ("with constraints that allow us", istio(&bound, &root), 1, 1),
        ("words around it", with("ca-cert.pem", &format!("subject=/O=Istio\n{}\nbye", signer.pem)), 1, 1),
    ] {
        let plugged = read(&parts).unwrap_or_else(|why| panic!("{what}: {why}"));
        let texts = turn::first(Some(&plugged), &"mesh.example".parse().unwrap(), now()).unwrap();
        let authority = turn::authority(&texts, "kept ", now()).unwrap();
        assert_eq!((authority.chain().len(), authority.roots().len()), (between, roots), "{what}");
        let key = sign::check(&csr(&KeyPair::generate().unwrap())).unwrap();
        let signed = sign::sign(&authority, &key, &identity(), DAY, now()).unwrap();
        assert_eq!(signed.chain.len(), 2 + between, "{what}: leaf, what is between, roots");
        let last = signed.chain.last().unwrap();
        assert_eq!(CertificateDer::pem_slice_iter(last.as_bytes()).count(), roots, "{what}");
        assert!(!format!("{plugged:?}{texts:?}").contains("PRIVATE"));
    }
}

#[test]
fn hardening_B119_a_signer_that_agents_would_not_accept_is_not_taken() {
    let root = Ca::root("root");
    let signer = root.below("intermediate");
    let stranger = Ca::root("stranger");
    let good = istio(&signer, &root);
    let with = |name: &str, text: &str| {
        let mut parts = good.clone();
        parts.insert(name.to_owned(), text.to_owned());
        parts
    };
    let without = |name: &str| {
        let mut parts = good.clone();
        parts.remove(name);
        parts
    };
    let of = |change: &dyn Fn(&mut CertificateParams)| {
        istio(&root.below_of(KeyPair::generate().unwrap(), "other", |params| change(params)), &root)
    };
    let strict = root.below_of(KeyPair::generate().unwrap(), "strict", |p| {
        p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let deep = strict.below("one");
    let too_deep = parts(&[
        ("ca-cert.pem", &deep.pem),
        ("ca-key.pem", &deep.key.serialize_pem()),
        ("cert-chain.pem", &strict.pem),
        ("root-cert.pem", &root.pem),
    ]);
    let over = Ca::root_of(KeyPair::generate().unwrap(), "over", |p| p.not_after = offset(now() - DAY / 2));
    let many = (0..17).map(|n| Ca::root(&format!("r{n}")).pem).collect::<String>();
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    for (what, parts, message) in [
        ("nothing", BTreeMap::new(), "ca-cert.pem is missing or empty"),
        ("no key", without("ca-key.pem"), "ca-key.pem is missing or empty"),
        ("no root", without("root-cert.pem"), "root-cert.pem is missing or empty"),
        ("an empty certificate", with("ca-cert.pem", " \n"), "ca-cert.pem is missing or empty"),
        ("no certificate in it", with("ca-cert.pem", "hello"), "there is no certificate in it"),
        ("a key that is none", with("ca-key.pem", "hello"), "no private key"),
        ("an encrypted key", with("ca-key.pem", encrypted), "not encrypted"),
        ("another key", with("ca-key.pem", &stranger.key.serialize_pem()), "is for another key"),
        ("another root", with("root-cert.pem", &stranger.pem), "vouches for the certificate"),
        ("a chain that leads nowhere", istio(&stranger.below("a").below("b"), &root), "vouches for the certificate"),
        (
            "garbage in the chain",
            with("cert-chain.pem", "-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----"),
            "not PEM",
        ),
        ("too many roots", with("root-cert.pem", &many), "wanted 1 to 16"),
        ("large", with("cert-chain.pem", &"x".repeat(1 << 20)), "larger than"),
        ("no authority", of(&|p| p.is_ca = IsCa::ExplicitNoCa), "CA:TRUE is missing"),
        ("may not sign", of(&|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]), "may not sign"),
        ("over", of(&|p| p.not_after = offset(now() - DAY / 2)), "not valid now"),
        ("not yet", of(&|p| p.not_before = offset(now() + DAY)), "not valid now"),
        ("a root that is over", istio(&over.below("x"), &over), "not valid any more"),
        ("an authority too many", too_deep, "would not accept a workload"),
        (
            "a name that it may not sign",
            of(&|p| {
                let permitted_subtrees = vec![GeneralSubtree::DnsName("example.com".into())];
                p.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: vec![] });
            }),
            "would not accept the control plane mesh-control.undermesh-system.svc",
        ),
    ] {
        let error = read(&parts).map(drop).expect_err(what);
        assert!(error.contains(message) && error.contains("Secret undermesh-system/cacerts"), "{what}: {error}");
        assert!(!error.contains("BEGIN"), "{what}: {error}");
    }
    // It was good, and its time is over.
    read(&good).unwrap();
    assert!(read_at(&good, now() + 400 * DAY).unwrap_err().contains("not valid now"));
}
