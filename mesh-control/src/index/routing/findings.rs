//! What comes of looking at objects beside each other: what does not fit, and what nobody can know yet. What is said to be missing must have been looked for
//! where it would be: of a kind that has never been heard of (`Objects::unheard`), nothing is missing.

use std::collections::BTreeSet;

use super::Problems;
use crate::diagnosis::Problem;
use crate::resource::Key;

/// What there is to say of a part of an object.
#[derive(Debug)]
pub enum Flaw {
    /// It does not fit.
    Wrong(Problem),
    /// Whether it fits depends on a kind that has never been heard of.
    Unknown,
}

impl From<Problem> for Flaw {
    fn from(problem: Problem) -> Self {
        Flaw::Wrong(problem)
    }
}

/// Of all objects.
#[derive(Debug, Default)]
pub struct Findings {
    /// What is to be said.
    pub problems: Problems,
    /// Objects of which some part is not known: nothing is to be said of them yet.
    pub unknown: BTreeSet<Key>,
}

impl Findings {
    /// Something of an object.
    pub fn add(&mut self, key: &Key, flaw: impl Into<Flaw>) {
        match flaw.into() {
            Flaw::Wrong(problem) => self.problems.push((key.clone(), problem)),
            Flaw::Unknown => drop(self.unknown.insert(key.clone())),
        }
    }
}
