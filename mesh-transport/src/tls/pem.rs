//! Certificates, roots and lists of what is revoked, as PEM that users write: what gateways and waypoints show and believe, and what the control plane looks at before
//! it gives them that. Both read the same. No error shows what is in it.

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

/// Certificates of one text; more is a mistake, and is not looked at.
const MOST: usize = 1000;
/// The longest chain besides the leaf that a verifier looks at: finding a path in it is exponential in the worst case.
pub const INTERMEDIATES: usize = 8;

/// Why a text is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// A block of it has no end, or is no base64.
    #[error("it is no PEM")]
    Malformed,
    /// It has no block that is asked for, or none that is what it says.
    #[error("there is nothing of that in it")]
    Empty,
}

/// The certificates of a text, at least one.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    some(CertificateDer::pem_slice_iter(pem).take(MOST).collect::<Result<_, _>>())
}

/// Adds the roots of a text, at least one. What is no certificate, whatever its block says, is left out, as other implementations do.
pub fn add_roots(pem: &[u8], roots: &mut RootCertStore) -> Result<(), PemError> {
    match roots.add_parsable_certificates(certificates(pem)?).0 {
        0 => Err(PemError::Empty),
        _ => Ok(()),
    }
}

/// The lists of what is revoked; none only of a text that is empty.
pub fn revoked(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, PemError> {
    if pem.is_empty() {
        return Ok(Vec::new());
    }
    some(CertificateRevocationListDer::pem_slice_iter(pem).take(MOST).collect::<Result<_, _>>())
}

fn some<T, E>(read: Result<Vec<T>, E>) -> Result<Vec<T>, PemError> {
    let all = read.map_err(|_| PemError::Malformed)?;
    if all.is_empty() { Err(PemError::Empty) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROKEN: &str = "-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n";
    const NONE: &str = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";

    #[test]
    fn what_texts_are_good_for() {
        let cert = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap().cert.pem();
        let two = format!("{cert}\nsomething else\n{cert}");
        for (text, count, believed) in [
            (cert.as_str(), Ok(1), Ok(())),
            (&two, Ok(2), Ok(())),
            ("", Err(PemError::Empty), Err(PemError::Empty)),
            ("rubbish", Err(PemError::Empty), Err(PemError::Empty)),
            (BROKEN, Err(PemError::Malformed), Err(PemError::Malformed)),
            (NONE, Ok(1), Err(PemError::Empty)),
        ] {
            assert_eq!(certificates(text.as_bytes()).map(|all| all.len()), count, "{text}");
            assert_eq!(add_roots(text.as_bytes(), &mut RootCertStore::empty()), believed, "{text}");
        }
        for (text, expected) in [
            ("", Ok(0)),
            ("rubbish", Err(PemError::Empty)),
            (cert.as_str(), Err(PemError::Empty)),
            (NONE, Err(PemError::Empty)),
        ] {
            assert_eq!(revoked(text.as_bytes()).map(|all| all.len()), expected, "{text}");
        }
    }
}
