//! The operator's file of revoked certificates: read at start, where it has to be good, and followed while the agent runs, where a bad one leaves
//! the last good one in use and is told. `worker.rs` starts it; the pool and the acceptor of the proxy ask what it keeps.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use mesh_transport::tls::{CRL_LIMIT, Revocations};

use super::{EXIT_CONFIG, Refusal};

/// How often the file is looked at. A revoked peer is to be cut within five seconds.
const LOOK: Duration = Duration::from_secs(2);

/// The file and what was last read from it.
pub struct CrlFile {
    path: PathBuf,
    revocations: Arc<Revocations>,
    /// Of the content, good or bad; `None` when it could not be read.
    seen: Option<u64>,
    failures: Arc<AtomicU64>,
}

impl CrlFile {
    /// Reads it for the first time.
    pub fn open(path: &Path) -> Result<CrlFile, Refusal> {
        let what = format!("--crl {}", path.display());
        let content = read(path).map_err(|error| Refusal::new(EXIT_CONFIG, &what, &error))?;
        let revocations = Revocations::from_pem(&content).map_err(|error| Refusal::new(EXIT_CONFIG, &what, &error))?;
        tracing::info!(lists = revocations.lists(), "revoked certificates are refused");
        Ok(CrlFile { path: path.to_owned(), revocations, seen: Some(digest(&content)), failures: Arc::default() })
    }

    /// What to ask.
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// Counts the attempts to read it that failed.
    pub fn failures(&self) -> Arc<AtomicU64> {
        self.failures.clone()
    }

    /// Looks at the file now and then, for ever. Verifying is work, so it is done on a thread that may block.
    pub async fn follow(mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let Ok(file) = tokio::task::spawn_blocking(move || {
                self.look();
                self
            })
            .await
            else {
                return tracing::error!("the file of revoked certificates is no longer followed");
            };
            self = file;
        }
    }

    /// Takes over what is new. What was seen before is not reported again.
    fn look(&mut self) {
        let content = read(&self.path);
        let seen = content.as_deref().ok().map(digest);
        if std::mem::replace(&mut self.seen, seen) == seen {
            return;
        }
        match content.map(|content| self.revocations.replace(&content)) {
            Ok(Ok(cut)) => tracing::info!(lists = self.revocations.lists(), cut, "revoked certificates read again"),
            Ok(Err(error)) => self.failed(&error),
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&self, error: &dyn std::error::Error) {
        self.failures.fetch_add(1, Relaxed);
        tracing::error!(%error, path = %self.path.display(), "the file of revoked certificates is bad; what was read before stays in use");
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // One byte more than allowed tells that it is too large.
    File::open(path)?.take(CRL_LIMIT as u64 + 1).read_to_end(&mut content)?;
    Ok(content)
}

fn digest(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    hasher.finish()
}

#[cfg(test)]
#[expect(non_snake_case, reason = "tests carry the ids of their rows")]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyIdMethod,
        KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
    };

    use super::*;

    fn list(number: u64) -> String {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2124, 1, 1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&issuer).unwrap().pem().unwrap()
    }

    #[test]
    fn hardening_B17_a_bad_file_is_told_once_and_the_last_good_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("crl.pem");
        assert_eq!(CrlFile::open(&path).err().unwrap().status, EXIT_CONFIG, "missing at the start");
        std::fs::write(&path, "nothing").unwrap();
        assert_eq!(CrlFile::open(&path).err().unwrap().status, EXIT_CONFIG, "bad at the start");

        let two = format!("{}{}", list(1), list(2));
        std::fs::write(&path, &two).unwrap();
        let mut file = CrlFile::open(&path).ok().unwrap();
        let (revocations, failures) = (file.revocations().clone(), file.failures());
        let mut look = |lists, failed, what: &str| {
            file.look();
            file.look();
            assert_eq!((revocations.lists(), failures.load(Relaxed)), (lists, failed), "{what}");
        };
        look(2, 0, "unchanged");
        std::fs::write(&path, &two[..two.len() - 40]).unwrap();
        look(2, 1, "cut off");
        std::fs::write(&path, "").unwrap();
        look(2, 2, "empty");
        std::fs::remove_file(&path).unwrap();
        look(2, 3, "gone");
        // As Kubernetes replaces a mounted file: by a link to another one.
        let next = folder.path().join("..data");
        std::fs::write(&next, list(3)).unwrap();
        std::os::unix::fs::symlink(&next, &path).unwrap();
        look(1, 3, "a new one");
        let huge = File::create(&next).unwrap();
        huge.set_len(1 << 40).unwrap();
        look(1, 4, "a terabyte");
    }
}
