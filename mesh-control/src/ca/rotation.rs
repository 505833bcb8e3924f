//! The stages in which one signer takes another one's place, as a pure function of what is kept, what is wanted, and the time. [`super::turn`] asks.
//!
//! ```text
//! settled  ->  spreading: the new root is trusted, the old signer signs  ->  retiring: the new one signs, the old root is trusted  ->  settled
//!          |   until every certificate in use came with the new root       |   until the last certificate under the old root is over
//!          \_ a new signer under a root that has long been trusted begins at once: hot rotation of an intermediate _/
//! ```
//!
//! Roots that somebody has put into the bundle by hand are trusted until they are taken out by hand, and nobody waits for them: only a root that a
//! signer has needed goes by itself, when none does any more.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Since when a root is trusted that a signer needs or has needed, and until when. Seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// When it was put into the bundle.
    pub since: i64,
    /// When it leaves; without, it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
}

/// Who signs: a name for the certificate with its chain, and the names of the roots that it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    /// Its name.
    pub id: String,
    /// Roots by any of which its certificates are accepted.
    pub anchors: Vec<String>,
}

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Who signs.
    pub active: Signer,
    /// Who will.
    pub next: Option<Signer>,
    /// What is trusted, in order; without times what was put there by hand.
    pub roots: Vec<(String, Option<Trust>)>,
}

/// What is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Who is to sign.
    pub signer: Signer,
    /// What is to be trusted.
    pub roots: Vec<String>,
}

/// How long the stages last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// A root is trusted for so long before anything is signed under it: the lifetime of a certificate, with which agents get the roots.
    pub spread: Duration,
    /// And for so long after the last certificate under it: the same, and some time in which replicas learn of each other.
    pub retire: Duration,
}

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// There is none.
    Settled,
    /// A signer waits until its root is trusted.
    Spreading,
    /// A root waits until its certificates are over.
    Retiring,
}

impl State {
    fn trust(&self, root: &str) -> Option<Option<Trust>> {
        self.roots.iter().find(|(name, _)| name == root).map(|(_, trust)| *trust)
    }

    /// How far the rotation is.
    pub fn stage(&self) -> Stage {
        if self.next.is_some() {
            Stage::Spreading
        } else if self.roots.iter().any(|(_, trust)| trust.is_some_and(|trust| trust.until.is_some())) {
            Stage::Retiring
        } else {
            Stage::Settled
        }
    }

    /// What comes next at `now`. `is_spread` says that whoever reads the roots can read all that are trusted in this state.
    #[must_use]
    pub fn advance(&self, wanted: &Wanted, terms: &Terms, now: i64, is_spread: bool) -> State {
        let after = |duration: Duration| now.saturating_add(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX));
        let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        // What nobody has been told of yet is not trusted yet; what signs now is, and so is what was there from the first.
        let is_trusted = |root: &String| match self.trust(root) {
            Some(None | Some(Trust { since: 0, .. })) => true,
            Some(Some(trust)) => {
                let is_old = is_spread && now.saturating_sub(trust.since) >= seconds(terms.spread);
                is_old || self.active.anchors.contains(root)
            }
            None => false,
        };
        let (active, next) = if wanted.signer.id == self.active.id {
            (self.active.clone(), None)
        } else if wanted.signer.anchors.iter().any(is_trusted) {
            (wanted.signer.clone(), None)
        } else {
            (self.active.clone(), Some(wanted.signer.clone()))
        };
        let is_kept = |root: &String| wanted.roots.contains(root) || active.anchors.contains(root);
        // Once a signer has needed it, it goes when none does.
        let was_needed = |root: &String| wanted.roots.contains(root) || self.active.anchors.contains(root);
        let mut roots: Vec<(String, Option<Trust>)> = Vec::new();
        for (root, trust) in &self.roots {
            let trust = match trust.or_else(|| was_needed(root).then_some(Trust { since: 0, until: None })) {
                None => None,
                Some(trust) if is_kept(root) => Some(Trust { until: None, ..trust }),
                Some(Trust { until: Some(until), .. }) if until <= now => continue,
                Some(Trust { since, until }) => Some(Trust { since, until: until.or(Some(after(terms.retire))) }),
            };
            roots.push((root.clone(), trust));
        }
        for root in &wanted.roots {
            if !roots.iter().any(|(known, _)| known == root) {
                roots.push((root.clone(), Some(Trust { since: now, until: None })));
            }
        }
        State { active, next, roots }
    }
}

/// Whether a root of one's own is to be replaced: a fifth of its life is left.
#[must_use]
pub fn is_due(not_before: i64, not_after: i64, now: i64) -> bool {
    let life = not_after.saturating_sub(not_before).max(0);
    now >= not_after.saturating_sub(life / 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { spread: Duration::from_secs(100), retire: Duration::from_secs(110) };

    fn signer(id: &str, anchors: &[&str]) -> Signer {
        Signer { id: id.into(), anchors: anchors.iter().map(|a| (*a).into()).collect() }
    }

    /// Of the own kind: a signer is its own root.
    fn own(id: &str) -> Signer {
        signer(id, &[id])
    }

    fn wanted(signer: Signer, roots: &[&str]) -> Wanted {
        Wanted { signer, roots: roots.iter().map(|r| (*r).into()).collect() }
    }

    fn by_hand(active: Signer, roots: &[&str]) -> State {
        State { active, next: None, roots: roots.iter().map(|r| ((*r).into(), None)).collect() }
    }

    /// Who signs, who will, and what is trusted: `a` by hand or for good, `a<9` until then.
    fn show(state: &State) -> String {
        let roots: Vec<String> = state
            .roots
            .iter()
            .map(|(name, trust)| match trust {
                Some(Trust { until: Some(until), .. }) => format!("{name}<{until}"),
                _ => name.clone(),
            })
            .collect();
        let next = state.next.as_ref().map(|next| format!(" then {}", next.id)).unwrap_or_default();
        format!("{}{next}, {}", state.active.id, roots.join(" "))
    }

    /// Goes through times and wishes, and shows what comes of each.
    fn goes(mut state: State, steps: &[(i64, bool, &Wanted, &str)]) {
        for (now, is_spread, wanted, expected) in steps {
            let next = state.advance(wanted, &TERMS, *now, *is_spread);
            assert_eq!(show(&next), *expected, "at {now}, from {}", show(&state));
            assert_eq!(next.advance(wanted, &TERMS, *now, false), next, "at {now} there is one step");
            state = next;
        }
    }

    #[test]
    fn hardening_F43_a_new_root_is_trusted_before_it_signs_and_the_old_one_as_long_as_it_has_signed() {
        let begin = by_hand(own("a"), &["a"]);
        // As it is asked for at each stage by whoever keeps roots of its own.
        let (new, done) = (wanted(own("b"), &["a", "b"]), wanted(own("b"), &["b"]));
        assert_eq!(begin.stage(), Stage::Settled);
        goes(
            begin,
            &[
                (1000, true, &new, "a then b, a b"),
                (1050, true, &new, "a then b, a b"),
                (1099, true, &new, "a then b, a b"),
                // Its time has come, and somebody has not been told.
                (1100, false, &new, "a then b, a b"),
                (1101, true, &done, "b, a<1211 b"),
                (1210, true, &done, "b, a<1211 b"),
                (1211, false, &done, "b, b"),
                (9999, true, &done, "b, b"),
            ],
        );
    }

    #[test]
    fn features_CA_5_a_new_intermediate_signs_at_once() {
        let first = wanted(signer("i1", &["r"]), &["r"]);
        let second = wanted(signer("i2", &["r"]), &["r"]);
        let begin = by_hand(signer("i1", &["r"]), &["r"]);
        // Also if a copy is missing somewhere: nothing is new in it.
        goes(begin, &[(1, true, &first, "i1, r"), (2, false, &second, "i2, r"), (3, true, &first, "i1, r")]);
    }

    #[test]
    fn what_is_wished_for_in_between() {
        let plugged = wanted(signer("i", &["r"]), &["r"]);
        let other = wanted(signer("j", &["s"]), &["s"]);
        for (what, begin, steps) in [
            (
                "it is taken back",
                by_hand(own("a"), &["a"]),
                vec![
                    (1000, true, plugged.clone(), "a then i, a r"),
                    (1050, true, wanted(own("a"), &["a"]), "a, a r<1160"),
                    (1060, true, plugged.clone(), "a then i, a r"),
                    // It has been trusted all the time.
                    (1100, true, plugged.clone(), "i, a<1210 r"),
                ],
            ),
            (
                "another one comes before it has begun",
                by_hand(own("a"), &["a"]),
                vec![
                    (1000, true, plugged.clone(), "a then i, a r"),
                    (1050, true, other.clone(), "a then j, a r<1160 s"),
                    (1149, true, other.clone(), "a then j, a r<1160 s"),
                    (1150, true, other.clone(), "j, a<1260 r<1160 s"),
                    (1200, true, other.clone(), "j, a<1260 s"),
                    (1260, true, other.clone(), "j, s"),
                ],
            ),
            (
                "and while the old one is on its way out, back again",
                by_hand(own("a"), &["a"]),
                vec![
                    (1000, true, plugged.clone(), "a then i, a r"),
                    (1100, true, plugged.clone(), "i, a<1210 r"),
                    (1150, true, wanted(own("a"), &["a", "r"]), "a, a r"),
                    (1151, true, wanted(own("a"), &["a"]), "a, a r<1261"),
                ],
            ),
            (
                "the operator adds the new root first, as Istio's manual says",
                by_hand(signer("i", &["r"]), &["r"]),
                vec![
                    (1000, true, wanted(signer("i", &["r"]), &["r", "s"]), "i, r s"),
                    (1200, true, wanted(signer("j", &["s"]), &["r", "s"]), "j, r s"),
                    (1300, true, other.clone(), "j, r<1410 s"),
                ],
            ),
            (
                "a cross-signed one is accepted by the old root",
                by_hand(own("a"), &["a"]),
                vec![(1000, true, wanted(signer("x", &["a", "b"]), &["a", "b"]), "x, a b")],
            ),
            (
                "what was put there by hand stays",
                by_hand(own("a"), &["a", "friend"]),
                vec![
                    (1000, true, plugged.clone(), "a then i, a friend r"),
                    (1100, true, plugged.clone(), "i, a<1210 friend r"),
                    (1210, true, plugged.clone(), "i, friend r"),
                ],
            ),
            (
                "a clock that is set back waits longer",
                by_hand(own("a"), &["a"]),
                vec![
                    (1000, true, plugged.clone(), "a then i, a r"),
                    (10, true, plugged.clone(), "a then i, a r"),
                    (1100, true, plugged.clone(), "i, a<1210 r"),
                    (10, true, plugged.clone(), "i, a<1210 r"),
                ],
            ),
        ] {
            println!("{what}");
            let steps: Vec<_> =
                steps.iter().map(|(now, spread, wanted, show)| (*now, *spread, wanted, *show)).collect();
            goes(begin, &steps);
        }
    }

    #[test]
    fn stages_are_told_apart() {
        let mut state = by_hand(own("a"), &["a", "b"]);
        assert_eq!(state.stage(), Stage::Settled);
        state.roots[1].1 = Some(Trust { since: 1, until: None });
        assert_eq!(state.stage(), Stage::Settled);
        state.roots[0].1 = Some(Trust { since: 1, until: Some(2) });
        assert_eq!(state.stage(), Stage::Retiring);
        state.next = Some(own("c"));
        assert_eq!(state.stage(), Stage::Spreading);
    }

    #[test]
    fn a_root_is_replaced_in_the_last_fifth_of_its_life() {
        for (not_before, not_after, now, due) in [
            (0, 1000, 799, false),
            (0, 1000, 800, true),
            (0, 1000, 5000, true),
            (500, 1500, 0, false),
            (9, 3, 0, false),
            (9, 3, 3, true),
        ] {
            assert_eq!(is_due(not_before, not_after, now), due, "{not_before} {not_after} {now}");
        }
    }
}
