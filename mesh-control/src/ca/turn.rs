//! What becomes of what is kept: from the texts, what the operator has plugged in, and the time, to the texts that are to be kept from now on. Pure but
//! for the making of keys. [`super::keeper`] asks, and [`super::rotation`] knows the stages.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use mesh_core::TrustDomain;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::authority::{self, Authority, AuthorityError, KEY_FILE, MAX_ROOTS, ROOTS_FILE, pem};
use super::plugged::Plugged;
use super::rotation::{Signer, Stage, State, Terms, Trust, Wanted, is_due};
use crate::clock::unix;

/// The next signer, in the form of the signer's key; empty without one.
pub const NEXT_FILE: &str = "next-ca-key.pem";
/// Times of roots.
pub const ROTATION_FILE: &str = "rotation.json";

/// What is kept.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Texts {
    /// The signer.
    pub key: String,
    /// What is trusted.
    pub roots: String,
    /// Who signs next; empty without.
    pub next: String,
    /// [`Book`] as JSON; may be empty.
    pub rotation: String,
}

impl std::fmt::Debug for Texts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Texts").field("rotation", &self.rotation).finish_non_exhaustive()
    }
}

/// What is remembered of a rotation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Book {
    /// Roots that signers need or have needed, by the hash of the certificate.
    roots: BTreeMap<String, Trust>,
    /// What was asked for last, and has been done.
    asked: String,
}

/// Everything that a turn depends on but what is kept.
#[derive(Clone, Debug)]
pub struct Moment<'a> {
    /// What is plugged in.
    pub plugged: Option<&'a Plugged>,
    /// What the operator asks for: a text that was not there before asks for a new root.
    pub asked: &'a str,
    /// Whether whoever reads the roots can read all that are kept.
    pub is_spread: bool,
    /// How long the stages last.
    pub terms: Terms,
    /// Of a root of one's own.
    pub domain: &'a TrustDomain,
    /// The time.
    pub now: SystemTime,
}

/// What comes of a turn.
#[derive(Clone, Debug)]
pub struct Turn {
    /// What is to be kept; `None` if it is what is kept.
    pub texts: Option<Texts>,
    /// How far the rotation is then.
    pub stage: Stage,
}

/// The first texts: of what is plugged in, or of a new root.
pub fn first(plugged: Option<&Plugged>, domain: &TrustDomain, now: SystemTime) -> Result<Texts, AuthorityError> {
    let (key, roots) = match plugged {
        Some(plugged) => (plugged.key.clone(), plugged.roots.clone()),
        None => authority::make(domain, now)?,
    };
    let trust = Trust { since: 0, until: None };
    let roots_of_it = certificates(&roots).iter().map(|root| (id(root), trust)).collect();
    Ok(Texts { key, roots, next: String::new(), rotation: Book { roots: roots_of_it, ..Book::default() }.text() })
}

impl Book {
    fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Reads the signer that is kept.
pub fn authority(texts: &Texts, place: &str, now: SystemTime) -> Result<Authority, AuthorityError> {
    read(&texts.key, &texts.roots, place, KEY_FILE, now)
}

fn read(key: &str, roots: &str, place: &str, name: &str, now: SystemTime) -> Result<Authority, AuthorityError> {
    let path = |name: &str| PathBuf::from(format!("{place}{name}"));
    Authority::parse(key, roots, now, &path(name), &path(ROOTS_FILE))
}

/// A certificate's name.
fn id(certificate: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn signer(authority: &Authority) -> Signer {
    // The same key with another chain is another signer: agents are to get the new chain.
    let all: Vec<u8> = std::iter::once(authority.signer()).chain(authority.chain()).flat_map(|c| c.to_vec()).collect();
    Signer { id: id(&all), anchors: authority.anchors().map(|root| id(root)).collect() }
}

fn certificates(bundle: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(bundle.as_bytes()).filter_map(Result::ok).collect()
}

/// A candidate for the signer: its text, and as it is with its roots.
struct Candidate {
    key: String,
    signer: Signer,
}

/// One turn. The error leaves everything as it is.
pub fn turn(texts: &Texts, place: &str, moment: &Moment<'_>) -> Result<Turn, AuthorityError> {
    let now = moment.now;
    let mut book: Book = serde_json::from_str(&texts.rotation).unwrap_or_default();
    let current = match (authority(texts, place, now), moment.plugged) {
        (Ok(current), _) => current,
        // It signs nothing any more, so there is nothing to wait for.
        (Err(_), Some(plugged)) => {
            let texts = Some(first(Some(plugged), moment.domain, now)?);
            return Ok(Turn { texts, stage: Stage::Settled });
        }
        (Err(error), None) => return Err(error),
    };
    let active = signer(&current);
    // By their names, in the order in which they are trusted.
    let mut known: BTreeMap<String, CertificateDer<'static>> =
        current.roots().iter().map(|root| (id(root), root.clone())).collect();
    let candidate = |key: &str, roots: &str, name: &str| {
        let read = read(key, roots, place, name, now)?;
        Ok::<_, AuthorityError>(Candidate { key: key.to_owned(), signer: signer(&read) })
    };
    // A next one that cannot be read has signed nothing, and is forgotten.
    let pending = candidate(&texts.next, &texts.roots, NEXT_FILE).ok().filter(|next| next.signer.id != active.id);
    let (wanted, roots) = match moment.plugged {
        Some(plugged) => {
            let wanted = candidate(&plugged.key, &plugged.roots, KEY_FILE)?;
            (Some(wanted), certificates(&plugged.roots))
        }
        None => {
            let is_asked = !moment.asked.is_empty() && moment.asked != book.asked;
            let is_old = is_due(unix(current.not_before()), unix(current.not_after()), unix(now));
            match pending {
                Some(pending) => (Some(pending), Vec::new()),
                None if is_asked || is_old => {
                    let (key, root) = authority::make(moment.domain, now)?;
                    (Some(candidate(&key, &root, NEXT_FILE)?), certificates(&root))
                }
                None => (None, Vec::new()),
            }
        }
    };
    moment.asked.clone_into(&mut book.asked);
    known.extend(roots.iter().map(|root| (id(root), root.clone())));
    let wanted_signer = wanted.as_ref().map_or(&active, |wanted| &wanted.signer);
    let wanted_roots = match moment.plugged {
        Some(_) => roots.iter().map(|root| id(root)).collect(),
        None => wanted_signer.anchors.clone(),
    };
    let state = State {
        active: active.clone(),
        next: None,
        roots: current.roots().iter().map(|root| (id(root), book.roots.get(&id(root)).copied())).collect(),
    };
    let wanted_state = Wanted { signer: wanted_signer.clone(), roots: wanted_roots };
    let next = state.advance(&wanted_state, &moment.terms, unix(now), moment.is_spread);
    let stage = next.stage();
    if next.roots.len() > MAX_ROOTS {
        let why = format!("{} roots would be trusted at once, at most {MAX_ROOTS} can be", next.roots.len());
        return Err(AuthorityError::Content { path: PathBuf::from(format!("{place}{ROOTS_FILE}")), why });
    }
    book.roots = next.roots.iter().filter_map(|(name, trust)| Some((name.clone(), (*trust)?))).collect();
    let key_of = |signer: &Signer| wanted.as_ref().filter(|w| w.signer.id == signer.id).map(|w| w.key.clone());
    let is_same = next.roots.iter().map(|(name, _)| name).eq(state.roots.iter().map(|(name, _)| name));
    let bundle =
        next.roots.iter().filter_map(|(name, _)| known.get(name)).map(|root| pem("CERTIFICATE", root)).collect();
    let result = Texts {
        key: if next.active.id == active.id { texts.key.clone() } else { key_of(&next.active).unwrap_or_default() },
        // Whatever else an operator has written into the bundle stays as long as its certificates do.
        roots: if is_same { texts.roots.clone() } else { bundle },
        next: next.next.as_ref().and_then(key_of).unwrap_or_default(),
        rotation: book.text(),
    };
    // Nothing is kept that could not be read again.
    authority(&result, place, now)?;
    Ok(Turn { texts: Some(result).filter(|result| result != texts), stage })
}
