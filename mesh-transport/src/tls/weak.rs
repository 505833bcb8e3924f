//! Weak algorithms are refused: in the chain of a certificate, and in the signature by which a peer proves that a certificate is its own.
//!
//! The fixtures were made with OpenSSL, because what makes our other test certificates cannot make weak ones. Each `.pem` is a leaf and its
//! root, each `.sig` a signature of [`MESSAGE`].
#![allow(non_snake_case)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::identity::TrustDomain;
use rustls::DigitallySignedStruct;
use rustls::internal::msgs::codec::{Codec, Reader};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::danger::ClientCertVerifier;

use super::certificate::Roots;
use super::verify::{ClientVerifier, Usage, verify_chain};

const MESSAGE: &[u8] = b"what both sides have said so far";

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../../tests/fixtures/weak/", $name)).as_slice()
    };
}

/// The fixtures begin in November 2026 and end a hundred years later.
fn when() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// The leaf, and the root as the only anchor.
fn leaf_and_roots(pem: &[u8]) -> (CertificateDer<'static>, Arc<Roots>) {
    let (_, root) = std::str::from_utf8(pem).unwrap().rsplit_once("-----BEGIN").unwrap();
    let roots = Roots::from_pem(format!("-----BEGIN{root}").as_bytes(), vec![TrustDomain::default()]).unwrap();
    (CertificateDer::from_pem_slice(pem).unwrap(), Arc::new(roots))
}

fn verify(pem: &[u8]) -> Result<(), String> {
    let (leaf, roots) = leaf_and_roots(pem);
    verify_chain(&roots, &leaf, &[], Usage::Client, when()).map_err(|error| error.to_string())
}

/// Whether a handshake that the leaf's key signed is accepted; the signature is in hexadecimal.
fn verify_signature(pem: &[u8], scheme: u16, signature: &[u8]) -> Result<(), String> {
    let (leaf, roots) = leaf_and_roots(pem);
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap() as u8;
    let signature: Vec<u8> = signature.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect();
    let length = u16::try_from(signature.len()).unwrap();
    let encoded = [&scheme.to_be_bytes()[..], &length.to_be_bytes(), &signature].concat();
    let signed = DigitallySignedStruct::read(&mut Reader::init(&encoded)).unwrap();
    let verifier = ClientVerifier::new(roots);
    verifier.verify_tls13_signature(MESSAGE, &leaf, &signed).map(drop).map_err(|error| error.to_string())
}

#[test]
fn hardening_B16_weak_signatures_in_a_chain_are_refused() {
    for (name, pem) in [("RSA-2048", fixture!("rsa-2048.pem")), ("P-256", fixture!("ecdsa-p256.pem"))] {
        assert_eq!(verify(pem), Ok(()), "{name}");
    }
    for (name, pem) in [
        ("RSA-1024", fixture!("rsa-1024.pem")),
        ("RSA with SHA-1", fixture!("rsa-sha1.pem")),
        ("ECDSA with SHA-1", fixture!("ecdsa-sha1.pem")),
        ("P-224", fixture!("p-224.pem")),
        ("Ed448", fixture!("ed448.pem")),
    ] {
        let refused = verify(pem).unwrap_err();
        // Not for its dates, nor its names.
        assert!(refused.contains("ignature"), "{name}: {refused}");
    }
}

#[test]
fn hardening_B16_weak_keys_prove_nothing_in_a_handshake() {
    const RSA_PKCS1_SHA1: u16 = 0x0201;
    const ECDSA_P256_SHA256: u16 = 0x0403;
    const RSA_PSS_SHA256: u16 = 0x0804;
    const ED448: u16 = 0x0808;
    let (rsa, p256) = (fixture!("ecdsa-p256.pem"), fixture!("rsa-2048.pem"));
    assert_eq!(verify_signature(rsa, RSA_PSS_SHA256, fixture!("rsa-2048.sig")), Ok(()));
    assert_eq!(verify_signature(p256, ECDSA_P256_SHA256, fixture!("p-256.sig")), Ok(()));
    for (name, pem, scheme, signature) in [
        ("RSA-1024", fixture!("leaf-rsa-1024.pem"), RSA_PSS_SHA256, fixture!("rsa-1024.sig")),
        ("SHA-1", rsa, RSA_PKCS1_SHA1, fixture!("rsa-sha1.sig")),
        ("P-224", fixture!("leaf-p-224.pem"), ECDSA_P256_SHA256, fixture!("p-224.sig")),
        ("Ed448", fixture!("leaf-ed448.pem"), ED448, fixture!("ed448.sig")),
    ] {
        assert!(verify_signature(pem, scheme, signature).is_err(), "{name}");
    }
    let offered = ClientVerifier::new(leaf_and_roots(rsa).1).supported_verify_schemes();
    for weak in [RSA_PKCS1_SHA1, 0x0203, ED448] {
        assert!(!offered.contains(&weak.into()), "{weak:04x} is not even offered");
    }
}
