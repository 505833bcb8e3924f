//! Follows what is kept and what is plugged in, and takes the turns that are due: one replica writes, the others read. Renews the listeners'
//! certificates. Whatever is wrong changes nothing that is in use, and is told: in the log, the diagnoses, a metric, and an event.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use mesh_core::TrustDomain;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::authority::Authority;
use super::plugged::{Plugged, Purpose};
use super::rotation::{Stage, Terms};
use super::store::{RootStore, StoreError, Stored};
use super::turn::{self, Moment};
use crate::clock::unix;
use crate::diagnosis::{Diagnosis, Severity};
use crate::metrics::Metrics;

/// Whoever has a certificate of the authority's to renew.
pub trait Renewed: Send + Sync {
    /// Renews it if it is due, or because the authority `is_new`.
    fn renew(&self, authority: &Authority, is_new: bool, now: SystemTime);
}

/// Keeps the authority.
pub struct Keeper {
    /// Where it is kept.
    pub store: RootStore,
    /// Who signs; replaced here and nowhere else.
    pub authority: Arc<ArcSwap<Authority>>,
    /// Certificates that follow it.
    pub renewed: Vec<Arc<dyn Renewed>>,
    /// For whom a signer is to sign that is plugged in.
    pub purpose: Purpose,
    /// How long the stages last.
    pub terms: Terms,
    /// Whether this replica writes.
    pub leads: watch::Receiver<bool>,
    /// The hash of the bundle that everybody can read; without it, as in a folder, whoever can read one can read the next.
    pub spread: Option<watch::Receiver<u64>>,
    /// What is wrong.
    pub problems: Arc<ArcSwap<Vec<Diagnosis>>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// The hash of a bundle.
pub fn hash(bundle: &str) -> u64 {
    xxhash_rust::xxh64::xxh64(bundle.as_bytes(), 0)
}

impl Keeper {
    /// Looks for ever.
    pub async fn run(self) {
        let mut look = tokio::time::interval(self.store.look());
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = String::new();
        let mut was_plugged = false;
        loop {
            look.tick().await;
            let now = mesh_runtime::clock::now();
            let (is_new, found) = self.look(&mut was_plugged, now).await;
            let authority = self.authority.load();
            self.renewed.iter().for_each(|renewed| renewed.renew(&authority, is_new, now));
            drop(authority);
            self.say(found, &mut told).await;
        }
    }

    /// One look: takes over what is kept, and takes the turn that is due. Whether the authority is another one, and what is wrong.
    async fn look(&self, was_plugged: &mut bool, now: SystemTime) -> (bool, Vec<Diagnosis>) {
        let mut problems = Vec::new();
        let stored = match self.read().await {
            Ok(stored) => stored,
            Err(error) => return (false, vec![problem(self.store.place(), error.to_string())]),
        };
        let mut is_new = self.take(&stored, now, &mut problems);
        let plugged = match self.store.plugged(&self.purpose, now).await {
            Ok(plugged) => plugged,
            Err(error) => {
                // Nobody who plugs in a signer wants another one: what is in use stays, and is not replaced by a root of our own.
                problems.push(problem(self.store.plugged_place(), error.to_string()));
                *was_plugged = true;
                return (is_new, problems);
            }
        };
        if *was_plugged && plugged.is_none() {
            tracing::warn!(
                place = self.store.plugged_place(),
                "the signer is not plugged in any more, its copy stays in use"
            );
        }
        *was_plugged = plugged.is_some();
        match self.turn(&stored, plugged.as_ref(), now).await {
            Ok(true) => match self.read().await {
                Ok(stored) => is_new |= self.take(&stored, now, &mut problems),
                Err(error) => problems.push(problem(self.store.place(), error.to_string())),
            },
            Ok(false) => {}
            Err(error) => problems.push(problem(self.store.place(), error.to_string())),
        }
        (is_new, problems)
    }

    async fn read(&self) -> Result<Stored, StoreError> {
        let gone = || StoreError::Plugged(format!("{}it is gone", self.store.place()));
        self.store.read().await?.ok_or_else(gone)
    }

    /// Takes over what is kept, if it is another one.
    fn take(&self, stored: &Stored, now: SystemTime, problems: &mut Vec<Diagnosis>) -> bool {
        if self.authority.load().is_of(&stored.texts.key, &stored.texts.roots) {
            return false;
        }
        match turn::authority(&stored.texts, &self.store.place(), now) {
            Ok(new) => {
                let roots = new.roots().len();
                tracing::info!(
                    roots,
                    "new authority taken over; every node follows within the lifetime of its certificates"
                );
                self.metrics.set_authority(new.root_ends(), new.not_after(), roots);
                self.authority.store(Arc::new(new));
                true
            }
            Err(error) => {
                problems.push(problem(self.store.place(), error.to_string()));
                false
            }
        }
    }

    /// The turn that is due, if this replica takes turns. Whether something else is kept now.
    async fn turn(&self, stored: &Stored, plugged: Option<&Plugged>, now: SystemTime) -> Result<bool, StoreError> {
        let is_spread = match &self.spread {
            None => true,
            Some(spread) => *spread.borrow() == hash(self.authority.load().bundle()),
        };
        let domain: &TrustDomain = &self.purpose.domain;
        let moment = Moment { plugged, asked: &stored.asked, is_spread, terms: self.terms, domain, now };
        let turn = turn::turn(&stored.texts, &self.store.place(), &moment)?;
        let Some(texts) = turn.texts.filter(|_| *self.leads.borrow()) else {
            self.metrics.rotation.set(stage(turn.stage));
            return Ok(false);
        };
        self.store.write(stored, &texts).await?;
        self.metrics.rotation.set(stage(turn.stage));
        match turn.stage {
            Stage::Settled => tracing::info!("the roots are settled"),
            Stage::Spreading => tracing::info!(
                seconds = self.terms.spread.as_secs(),
                "a new root is made known; it signs when every certificate in use came with it"
            ),
            Stage::Retiring => tracing::info!(
                seconds = self.terms.retire.as_secs(),
                "the new signer signs; the old root is trusted until its last certificate is over"
            ),
        }
        Ok(true)
    }

    /// Tells what is wrong, when it is news.
    async fn say(&self, mut found: Vec<Diagnosis>, told: &mut String) {
        let authority = self.authority.load();
        let (begin, end) = (unix(authority.not_before()), unix(authority.not_after()));
        drop(authority);
        if super::rotation::is_due(begin, end, unix(mesh_runtime::clock::now())) {
            let left = end.saturating_sub(unix(mesh_runtime::clock::now())).max(0) / 3600;
            let message = format!("what signs certificates ends in {left} hours, and nothing signs after it");
            let mut warning = problem(self.store.place(), message);
            warning.severity = Severity::Warning;
            found.push(warning);
        }
        let text: String = found.iter().map(|problem| format!("{}\n", problem.message)).collect();
        self.metrics.authority_problems.set(i64::try_from(found.len()).unwrap_or(i64::MAX));
        self.problems.store(Arc::new(found));
        if text == *told {
            return;
        }
        match text.trim() {
            "" => tracing::info!("nothing is wrong with the authority any more"),
            text => tracing::error!(problem = %text, "the authority that is in use stays as it is"),
        }
        if *self.leads.borrow() {
            let message = if text.is_empty() {
                "it is in force, or will be when its root is known everywhere"
            } else {
                text.trim()
            };
            if let Err(error) = self.store.tell(text.is_empty(), message).await {
                tracing::debug!(%error, "cannot make an event");
            }
        }
        *told = text;
    }
}

fn problem(place: String, message: String) -> Diagnosis {
    Diagnosis {
        severity: Severity::Error,
        object: place.trim_end_matches([':', ' ', '/']).to_owned(),
        field: String::new(),
        message,
        help: None,
        place: None,
    }
}

fn stage(stage: Stage) -> i64 {
    match stage {
        Stage::Settled => 0,
        Stage::Spreading => 1,
        Stage::Retiring => 2,
    }
}
