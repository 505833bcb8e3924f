//! Turns: what is kept after each, with real keys. [`super::super::rotation`] has the table of the stages.

use std::time::{Duration, SystemTime};

use mesh_core::TrustDomain;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::super::plugged::Plugged;
use super::super::rotation::{Stage, Terms};
use super::super::turn::{self, Moment, Texts, Turn};
use super::plugged::{Ca, istio, read};
use super::{DAY, now};

const TERMS: Terms = Terms { spread: Duration::from_secs(100), retire: Duration::from_secs(110) };

fn second(n: u64) -> SystemTime {
    now() + Duration::from_secs(n)
}

/// What is kept, through turns.
struct Kept {
    texts: Texts,
    begin: SystemTime,
}

impl Kept {
    fn new(plugged: Option<&Plugged>) -> Self {
        let texts = turn::first(plugged, &TrustDomain::default(), now()).unwrap();
        Self { texts, begin: second(0) }
    }

    fn moment<'a>(&self, at: u64, plugged: Option<&'a Plugged>, asked: &'a str, domain: &'a TrustDomain) -> Moment<'a> {
        let now = self.begin + Duration::from_secs(at);
        Moment { plugged, asked, is_spread: true, terms: TERMS, domain, now }
    }

    /// Takes a turn; who signs after it (the n-th of the roots), how many roots there are, and how far it is.
    fn turn(&mut self, at: u64, plugged: Option<&Plugged>, asked: &str) -> (usize, usize, Stage) {
        let domain = TrustDomain::default();
        let turn = turn::turn(&self.texts, "kept ", &self.moment(at, plugged, asked, &domain)).unwrap();
        if let Some(texts) = turn.texts {
            self.texts = texts;
            let again = turn::turn(&self.texts, "kept ", &self.moment(at, plugged, asked, &domain)).unwrap();
            assert!(matches!(again, Turn { texts: None, stage } if stage == turn.stage), "one step at {at}");
        }
        let authority = turn::authority(&self.texts, "kept ", self.begin + Duration::from_secs(at)).unwrap();
        let anchor = authority.anchors().next().unwrap();
        let index = authority.roots().iter().position(|root| root == anchor).unwrap();
        (index, authority.roots().len(), turn.stage)
    }

    fn root(&self, index: usize) -> CertificateDer<'static> {
        CertificateDer::pem_slice_iter(self.texts.roots.as_bytes()).nth(index).unwrap().unwrap()
    }
}

#[test]
fn features_CA_4_a_root_of_our_own_is_replaced_when_it_is_asked_for_and_when_it_is_old() {
    let mut kept = Kept::new(None);
    let first = kept.root(0);
    assert_eq!(kept.turn(0, None, ""), (0, 1, Stage::Settled));
    assert_eq!(kept.turn(10, None, "please"), (0, 2, Stage::Spreading));
    assert_eq!(kept.turn(109, None, "please"), (0, 2, Stage::Spreading));
    assert_eq!(kept.turn(110, None, "please"), (1, 2, Stage::Retiring));
    assert_eq!(kept.turn(219, None, "please"), (1, 2, Stage::Retiring));
    assert_eq!(kept.turn(220, None, "please"), (0, 1, Stage::Settled));
    let second = kept.root(0);
    assert_ne!(first, second);
    // It was asked for once.
    assert_eq!(kept.turn(500, None, "please"), (0, 1, Stage::Settled));
    // Ten years, of which the last fifth begins.
    let years = |n: u64| n * 365 * DAY.as_secs();
    assert_eq!(kept.turn(years(8) - 3700, None, "please"), (0, 1, Stage::Settled));
    assert_eq!(kept.turn(years(8), None, "please"), (0, 2, Stage::Spreading));
    assert_eq!(kept.turn(years(8) + 100, None, "please"), (1, 2, Stage::Retiring));
    assert_eq!(kept.turn(years(8) + 210, None, "please"), (0, 1, Stage::Settled));
    assert_eq!(kept.turn(years(10) + 1000, None, "please"), (0, 1, Stage::Settled));
}

#[test]
fn features_CA_5_what_is_plugged_in_takes_over_and_stays() {
    let (root, other) = (Ca::root("root"), Ca::root("other"));
    let mut kept = Kept::new(None);
    let own = kept.root(0);
    let plugged = |signer: &Ca, root: &Ca| read(&istio(signer, root)).unwrap();
    let one = plugged(&root.below("one"), &root);
    assert_eq!(kept.turn(0, Some(&one), ""), (0, 2, Stage::Spreading));
    assert_eq!(kept.turn(100, Some(&one), ""), (1, 2, Stage::Retiring));
    assert_eq!(kept.root(0), own);
    assert_eq!(kept.texts.key, one.key);
    assert_eq!(kept.turn(210, Some(&one), ""), (0, 1, Stage::Settled));
    // Another intermediate of the same root begins at once.
    let two = plugged(&root.below("two"), &root);
    assert_eq!(kept.turn(211, Some(&two), ""), (0, 1, Stage::Settled));
    assert_eq!(kept.texts.key, two.key);
    // Another root.
    let three = plugged(&other.below("three"), &other);
    assert_eq!(kept.turn(300, Some(&three), ""), (0, 2, Stage::Spreading));
    // It is taken away before it has begun: what signs is not plugged in, and stays.
    assert_eq!(kept.turn(350, None, ""), (0, 2, Stage::Spreading));
    assert_eq!(kept.turn(400, None, ""), (1, 2, Stage::Retiring));
    assert_eq!(kept.texts.key, three.key);
    assert_eq!(kept.turn(510, None, ""), (0, 1, Stage::Settled));
    // While something is plugged in nobody makes another root.
    assert_eq!(kept.turn(600, Some(&three), "please"), (0, 1, Stage::Settled));
    assert_eq!(kept.turn(601, None, "please"), (0, 1, Stage::Settled));
    assert_eq!(kept.turn(602, None, "please!"), (0, 2, Stage::Spreading));
}

#[test]
fn the_first_is_what_is_plugged_in() {
    let root = Ca::root("root");
    let plugged = read(&istio(&root.below("one"), &root)).unwrap();
    let mut kept = Kept::new(Some(&plugged));
    let first = kept.texts.clone();
    assert_eq!(kept.turn(0, Some(&plugged), ""), (0, 1, Stage::Settled));
    assert_eq!(kept.texts, first, "there is nothing to write");
    // The operator distributes another root first, changes the signer, and takes the old root out, as Istio's manual says.
    let other = Ca::root("other");
    let both = |signer: &Ca| {
        let mut parts = istio(signer, &root);
        let roots = format!("{}{}", root.pem, other.pem);
        parts.insert("root-cert.pem".into(), roots.clone());
        parts.insert("cert-chain.pem".into(), signer.pem.clone());
        read(&parts).unwrap()
    };
    let (old, new) = (root.below("one more"), other.below("new"));
    assert_eq!(kept.turn(1, Some(&both(&old)), ""), (0, 2, Stage::Settled));
    assert_eq!(kept.turn(200, Some(&both(&new)), ""), (1, 2, Stage::Settled));
    let done = read(&istio(&new, &other)).unwrap();
    assert_eq!(kept.turn(300, Some(&done), ""), (1, 2, Stage::Retiring));
    assert_eq!(kept.turn(410, Some(&done), ""), (0, 1, Stage::Settled));
}

#[test]
fn what_was_changed_by_hand_is_heeded() {
    let mut kept = Kept::new(None);
    let friend = Ca::root("friend");
    // A root of somebody else's, for good.
    kept.texts.roots.push_str(&friend.pem);
    assert_eq!(kept.turn(0, None, ""), (0, 2, Stage::Settled));
    assert_eq!(kept.turn(10, None, "please"), (0, 3, Stage::Spreading));
    assert_eq!(kept.turn(110, None, "please"), (2, 3, Stage::Retiring));
    assert_eq!(kept.turn(220, None, "please"), (1, 2, Stage::Settled));
    // A next signer that cannot be read has signed nothing, and times that cannot be read are none.
    kept.texts.next = "garbage".into();
    assert_eq!(kept.turn(300, None, "please"), (1, 2, Stage::Settled));
    assert_eq!(kept.texts.next, "");
    kept.texts.rotation = "garbage".into();
    assert_eq!(kept.turn(300, None, ""), (1, 2, Stage::Settled));
}

#[test]
fn what_is_kept_and_signs_no_more_gives_way_to_what_is_plugged_in_alone() {
    let root = Ca::root("root");
    let plugged = read(&istio(&root.below("one"), &root)).unwrap();
    let mut kept = Kept::new(None);
    kept.texts.key = "garbage".into();
    let domain = TrustDomain::default();
    assert!(turn::turn(&kept.texts, "kept ", &kept.moment(0, None, "", &domain)).is_err());
    assert_eq!(kept.turn(0, Some(&plugged), ""), (0, 1, Stage::Settled));
}

#[test]
fn roots_are_not_heaped_up() {
    let mut kept = Kept::new(None);
    let roots: String = (0..15).map(|n| Ca::root(&format!("r{n}")).pem).collect();
    kept.texts.roots.push_str(&roots);
    let domain = TrustDomain::default();
    let turn = |texts: &Texts, asked| turn::turn(texts, "kept ", &kept.moment(0, None, asked, &domain));
    assert_eq!(turn(&kept.texts, "").unwrap().stage, Stage::Settled);
    assert!(turn(&kept.texts, "please").unwrap_err().to_string().contains("17 roots would be trusted at once"));
}
