//! Revoked certificates: the lists in use, and the tunnels to cut when a new list names their peer.
//!
//! Shared by the pool and the acceptor, which ask about every peer after its chain was verified; whoever follows the operator's file calls
//! [`Revocations::replace`]. A list that names a certificate counts unless another key has signed it. A certificate that no list names is
//! accepted, and so is one whose list is past its next update: what was revoked stays so, and an authority that is late must not stop the mesh.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use webpki::{
    CertRevocationList, EndEntityCert, OwnedCertRevocationList, RevocationCheckDepth, RevocationOptionsBuilder,
    UnknownStatusPolicy,
};

use super::certificate::Roots;
use super::verify::{self, Usage, VerifyError};

/// Largest file of lists.
pub const CRL_LIMIT: usize = 16 * 1024 * 1024;
/// Most lists in a file: one per authority, or several of one that splits its list.
const LISTS: usize = 256;

/// Why lists are not taken over; those in use stay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// Larger than any honest file.
    #[error("revocation lists of {0} bytes are larger than {CRL_LIMIT}")]
    TooLarge(usize),
    /// Not PEM, or cut off.
    #[error("revocation lists are not readable PEM: {0}")]
    Pem(String),
    /// Nothing is revoked by a list without entries, not by a file without lists.
    #[error("no revocation list found")]
    Empty,
    /// More lists than authorities could have.
    #[error("{0} revocation lists are more than {LISTS}")]
    TooMany(usize),
    /// One of them is not a list that we can use.
    #[error("revocation list {number}: {detail}")]
    List {
        /// Which, from 1.
        number: usize,
        /// What the parser said.
        detail: String,
    },
}

/// What a peer has shown, kept to be judged again.
pub(crate) struct Proof {
    /// Leaf first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// What it was verified with, what as, and when.
    pub(crate) roots: Arc<Roots>,
    pub(crate) usage: Usage,
    pub(crate) at: SystemTime,
}

type Lists = Arc<[CertRevocationList<'static>]>;

struct Watched {
    proof: Arc<Proof>,
    cut: Box<dyn FnOnce() + Send>,
}

struct State {
    lists: Lists,
    /// Counts replacements.
    edition: u64,
    next: u64,
    watched: HashMap<u64, Watched>,
}

/// The lists in use. Nothing is revoked until they are read.
pub struct Revocations {
    /// Locked to look up, insert and remove; never while a certificate is verified.
    state: Mutex<State>,
    refused_servers: AtomicU64,
    refused_clients: AtomicU64,
}

/// A peer that is not revoked; while this lives, its tunnel is cut if it becomes so.
#[derive(Debug)]
pub(crate) struct Admission {
    revocations: Arc<Revocations>,
    id: u64,
}

impl Revocations {
    /// Reads the first lists, PEM.
    pub fn from_pem(pem: &[u8]) -> Result<Arc<Self>, CrlError> {
        let state = State { lists: read(pem)?, edition: 0, next: 0, watched: HashMap::new() };
        Ok(Arc::new(Self {
            state: Mutex::new(state),
            refused_servers: AtomicU64::new(0),
            refused_clients: AtomicU64::new(0),
        }))
    }

    /// Takes over new lists, all or none, and cuts the tunnels whose peers they name. Returns how many were cut. Takes a while with many tunnels.
    pub fn replace(&self, pem: &[u8]) -> Result<usize, CrlError> {
        let lists = read(pem)?;
        let mut state = self.state.lock();
        state.lists = lists.clone();
        state.edition += 1;
        let watched: Vec<_> = state.watched.iter().map(|(id, watched)| (*id, watched.proof.clone())).collect();
        drop(state);
        let mut cut = 0;
        for (id, _) in watched.iter().filter(|(_, proof)| proof.is_revoked(&lists)) {
            let watched = self.state.lock().watched.remove(id);
            if let Some(watched) = watched {
                self.count(watched.proof.usage);
                (watched.cut)();
                cut += 1;
            }
        }
        Ok(cut)
    }

    /// How many lists are in use.
    pub fn lists(&self) -> usize {
        self.state.lock().lists.len()
    }

    /// Peers refused or cut so far because they are revoked: those that we dialled, and those that dialled us.
    pub fn refused(&self) -> (u64, u64) {
        (self.refused_servers.load(Relaxed), self.refused_clients.load(Relaxed))
    }

    /// Judges a peer. `cut` is called, once, when it is revoked later on.
    pub(crate) fn admit(
        self: &Arc<Self>,
        proof: Proof,
        cut: impl FnOnce() + Send + 'static,
    ) -> Result<Admission, VerifyError> {
        let proof = Arc::new(proof);
        loop {
            let (lists, edition) = {
                let state = self.state.lock();
                (state.lists.clone(), state.edition)
            };
            if proof.is_revoked(&lists) {
                self.count(proof.usage);
                return Err(VerifyError::Revoked);
            }
            let mut state = self.state.lock();
            if state.edition == edition {
                let id = state.next;
                state.next += 1;
                state.watched.insert(id, Watched { proof, cut: Box::new(cut) });
                return Ok(Admission { revocations: self.clone(), id });
            }
        }
    }

    fn count(&self, usage: Usage) {
        match usage {
            Usage::Server => &self.refused_servers,
            Usage::Client => &self.refused_clients,
        }
        .fetch_add(1, Relaxed);
    }
}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocations").field("lists", &self.lists()).field("refused", &self.refused()).finish()
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let watched = self.revocations.state.lock().watched.remove(&self.id);
        drop(watched);
    }
}

impl Proof {
    fn is_revoked(&self, lists: &Lists) -> bool {
        let Some((leaf, intermediates)) = self.chain.split_first() else { return false };
        // Cheap, and nearly always the end of it: no list of the issuer has the number.
        let names = |list: &CertRevocationList<'_>| {
            self.chain.iter().any(|certificate| {
                EndEntityCert::try_from(certificate).is_ok_and(|certificate| {
                    certificate.issuer() == list.issuer()
                        && matches!(list.find_serial(certificate.serial()), Ok(Some(_)))
                })
            })
        };
        // Now the signatures: whoever can put a list into the file cannot revoke what another authority issued. The leaf also by itself: with an
        // intermediate of its issuer's name, only one of the two can have the key that signed the list.
        lists.iter().filter(|list| names(list)).any(|list| {
            [RevocationCheckDepth::EndEntity, RevocationCheckDepth::Chain].into_iter().any(|depth| {
                let list = [list];
                RevocationOptionsBuilder::new(&list).is_ok_and(|options| {
                    let options = options.with_depth(depth).with_status_policy(UnknownStatusPolicy::Allow).build();
                    !clears(verify::verify_path(&self.roots, leaf, intermediates, self.usage, self.at, Some(options)))
                })
            })
        })
    }
}

/// Whether a peer that a list names is not revoked by it: another path avoids what is, or another key has signed the list. Nothing else will do, for
/// of all that is wrong with the paths that webpki tries it reports what ranks highest, and the peer can have it try more: an expired certificate of
/// the issuer's name ranks above a revoked one. These two rank below that. An issuer that may not sign lists or an unknown algorithm proves nothing.
fn clears(verified: Result<(), webpki::Error>) -> bool {
    use webpki::Error::{InvalidCrlSignatureForPublicKey, InvalidSignatureForPublicKey};
    matches!(verified, Ok(()) | Err(InvalidCrlSignatureForPublicKey | InvalidSignatureForPublicKey))
}

fn read(pem: &[u8]) -> Result<Lists, CrlError> {
    if pem.len() > CRL_LIMIT {
        return Err(CrlError::TooLarge(pem.len()));
    }
    let found = CertificateRevocationListDer::pem_slice_iter(pem)
        .take(LISTS + 1)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| CrlError::Pem(error.to_string()))?;
    match found.len() {
        0 => return Err(CrlError::Empty),
        count if count > LISTS => return Err(CrlError::TooMany(count)),
        _ => {}
    }
    let list = |(index, der): (usize, &CertificateRevocationListDer<'_>)| {
        OwnedCertRevocationList::from_der(der)
            .map(CertRevocationList::from)
            .map_err(|error| CrlError::List { number: index + 1, detail: error.to_string() })
    };
    found.iter().enumerate().map(list).collect()
}
