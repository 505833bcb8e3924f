//! Certificate signing requests as Istio's authority expects them: a fresh P-256 key, no subject, one critical URI name.

use mesh_core::Identity;
use rcgen::{CertificateParams, DistinguishedName, Error, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};

/// A request and the key that it proves.
pub(super) struct CertificateRequest {
    /// PKCS#10, PEM.
    pub(super) csr: String,
    /// PKCS#8, PEM. Never logged, never written anywhere.
    pub(super) key: String,
}

pub(super) fn create(identity: &Identity) -> Result<CertificateRequest, Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    let csr = params.serialize_request(&key)?.pem()?;
    Ok(CertificateRequest { csr, key: key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject};
    use x509_parser::{
        certification_request::X509CertificationRequest,
        extensions::{GeneralName, ParsedExtension},
        prelude::FromDer,
    };

    use super::*;

    #[test]
    fn a_request_has_no_subject_and_one_critical_name() {
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let (one, other) = (create(&identity).unwrap(), create(&identity).unwrap());
        assert_ne!(one.key, other.key);
        let der = CertificateSigningRequestDer::from_pem_slice(one.csr.as_bytes()).unwrap();
        let (_, csr) = X509CertificationRequest::from_der(&der).unwrap();
        csr.verify_signature().unwrap();
        let info = &csr.certification_request_info;
        assert_eq!(info.subject.iter().count(), 0);
        assert_eq!(info.subject_pki.algorithm.algorithm.to_id_string(), "1.2.840.10045.2.1");
        let names: Vec<_> = csr
            .requested_extensions()
            .unwrap()
            .map(|extension| match extension {
                ParsedExtension::SubjectAlternativeName(names) => names.general_names.clone(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(names, [vec![GeneralName::URI("spiffe://cluster.local/ns/shop/sa/cart")]]);
        // The extension's critical flag, as DER writes it: the name's object identifier, then TRUE.
        let san = [0x06, 0x03, 0x55, 0x1d, 0x11, 0x01, 0x01, 0xff];
        assert!(der.windows(san.len()).any(|window| window == san));
    }
}
