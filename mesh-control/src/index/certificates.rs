//! What gateways and waypoints show and believe: of each the Secrets and ConfigMaps that are named for it ([`Reference`]), as far as they are good. What names one that is
//! not is closed, and whoever wrote it is told which and why. Pure.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use mesh_core::listener::{Certificates, Credential};
use mesh_core::{ArcStr, NamespacedName};

use crate::diagnosis::Problem;
use crate::resource::secret::{Found, named};
use crate::resource::{Key, Kind, Secrets};

/// A Secret or ConfigMap that an object names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The gateway or waypoint that it is for.
    pub gateway: NamespacedName,
    /// The object that it is written in.
    pub object: Key,
    /// What the object calls the listener that it is for; empty of what is for no listener.
    pub listener: ArcStr,
    /// Where it stands there.
    pub field: String,
    /// The Secret or ConfigMap. The gateway has it by what [`named`] calls this.
    pub holder: Key,
    /// The one that counts where there is none of that name.
    pub or: Option<Key>,
    /// What it is for.
    pub part: Part,
}

/// What a Secret is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// It is shown.
    Shown,
    /// Others are believed by it.
    Believed,
}

/// A reference that leads to nothing good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// As in [`Reference`].
    pub object: Key,
    /// As in [`Reference`].
    pub listener: ArcStr,
    /// As in [`Reference`].
    pub field: String,
    /// As in [`Reference`].
    pub part: Part,
    /// For people.
    pub why: String,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Certified {
    /// By gateway.
    pub certificates: BTreeMap<NamespacedName, Arc<Certificates>>,
    /// What is not there, or not good: each place once.
    pub unresolved: Vec<Unresolved>,
    /// Nothing was heard yet of something that these objects name.
    pub undecided: BTreeSet<Key>,
    /// What is to be said.
    pub problems: Vec<(Key, Problem)>,
}

/// The Secrets and ConfigMaps that are named.
pub fn wanted(references: &[Reference]) -> BTreeSet<Key> {
    references.iter().flat_map(|one| std::iter::once(&one.holder).chain(&one.or)).cloned().collect()
}

/// Takes of the Secrets and ConfigMaps what is named and good. What is as `before` is the same.
pub fn index(
    references: &[Reference],
    secrets: &Secrets,
    before: &BTreeMap<NamespacedName, Arc<Certificates>>,
) -> Certified {
    let mut made = Certified::default();
    let mut told: BTreeSet<(&Key, &str, &str, Part)> = BTreeSet::new();
    let mut said = HashSet::new();
    let mut all: BTreeMap<NamespacedName, BTreeMap<ArcStr, Credential>> = BTreeMap::new();
    for reference in references {
        let own = all.entry(reference.gateway.clone()).or_default();
        match credential(reference, secrets) {
            Ok(credential) => add(own.entry(named(&reference.holder)).or_default(), credential),
            Err(None) => drop(made.undecided.insert(reference.object.clone())),
            // What several gateways need is told once.
            Err(Some(why)) if told.insert(place(reference)) => {
                made.unresolve(reference, why, &mut said);
            }
            Err(Some(_)) => {}
        }
    }
    made.certificates = all
        .into_iter()
        .map(|(gateway, own)| {
            let all = own.into_iter().map(|(name, credential)| (name, Arc::new(credential))).collect();
            let now = Certificates { name: gateway.to_string().into(), all };
            let same = before.get(&gateway).filter(|before| ***before == now).cloned();
            (gateway, same.unwrap_or_else(|| Arc::new(now)))
        })
        .collect();
    made
}

impl Certified {
    fn unresolve(&mut self, reference: &Reference, why: String, said: &mut HashSet<(Key, Problem)>) {
        let Reference { object, listener, field, part, .. } = reference;
        let help = match (object.kind, listener.is_empty()) {
            (_, false) => "until then the listener refuses connections",
            (Kind::Gateway, true) => "until then backends that are reached with TLS answer with 500",
            (_, true) => "until then nothing is reached by it: requests are answered with 500",
        };
        let problem = (object.clone(), Problem::error(field.clone(), why.clone()).help(help));
        // Of one field for several listeners it is the same.
        if said.insert(problem.clone()) {
            self.problems.push(problem);
        }
        let (object, listener, field) = (object.clone(), listener.clone(), field.clone());
        self.unresolved.push(Unresolved { object, listener, field, part: *part, why });
    }
}

fn place(reference: &Reference) -> (&Key, &str, &str, Part) {
    (&reference.object, &reference.listener, &reference.field, reference.part)
}

/// What a reference leads to; an error without a text: nobody knows yet.
fn credential(reference: &Reference, secrets: &Secrets) -> Result<Credential, Option<String>> {
    let mut holder = &reference.holder;
    if let (Found::Missing, Some(or)) = (secrets.get(holder), &reference.or) {
        holder = or;
    }
    let found = match secrets.get(holder) {
        Found::Here(found) => found,
        Found::Missing => return Err(Some(format!("there is no {}", reference.holder))),
        Found::Failing(why) => return Err(Some(format!("{holder} cannot be asked for: {why}"))),
        Found::Unknown => return Err(None),
    };
    let (is_good, whole) = match reference.part {
        Part::Shown => (&found.shown, &found.credential),
        Part::Believed => (&found.believed, &found.credential),
    };
    if let Err(why) = is_good {
        return Err(Some(format!("{holder}: {why}")));
    }
    // No more than it is for.
    Ok(match reference.part {
        Part::Shown => Credential {
            chain: whole.chain.clone(),
            key: whole.key.clone(),
            staple: whole.staple.clone(),
            ..Credential::default()
        },
        Part::Believed => {
            Credential { roots: whole.roots.clone(), revoked: whole.revoked.clone(), ..Credential::default() }
        }
    })
}

fn add(to: &mut Credential, one: Credential) {
    if one.chain.is_empty() {
        (to.roots, to.revoked) = (one.roots, one.revoked);
    } else {
        (to.chain, to.key, to.staple) = (one.chain, one.key, one.staple);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{Object, secret};
    use crate::yaml::node::parse;

    fn name(name: &str) -> NamespacedName {
        NamespacedName::new("shop", name)
    }

    fn holder(name: &str) -> Key {
        Key { kind: Kind::Secret, namespace: "shop".into(), name: name.into() }
    }

    fn reference(secret: &str, or: Option<&str>, part: Part) -> Reference {
        Reference {
            gateway: name("edge"),
            object: Key { kind: Kind::Gateway, namespace: "shop".into(), name: "edge".into() },
            listener: "https".into(),
            field: "spec.x".to_owned(),
            holder: holder(secret),
            or: or.map(holder),
            part,
        }
    }

    /// Secrets by name, with what is in each: a certificate with its key, and roots.
    fn secrets(mut all: Secrets, named: &[(&str, bool, bool)]) -> Secrets {
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        for (own, has_pair, has_roots) in named {
            let pair = if *has_pair { format!("tls.crt: {cert:?}, tls.key: {key:?}, ") } else { String::new() };
            let roots = if *has_roots { format!("ca.crt: {cert:?}") } else { String::new() };
            let read = secret::read(&parse(&format!("stringData: {{{pair}{roots}}}")).unwrap());
            let Ok(Object::Secret(secret)) = read.outcome else { panic!("{own}") };
            all.insert(holder(own), secret);
        }
        all
    }

    /// What a gateway gets: of each name whether there is a chain, a key, roots.
    fn given(made: &Certified) -> Vec<String> {
        let all = made.certificates.values().flat_map(|all| all.all.iter());
        all.map(|(name, one)| {
            let has = [!one.chain.is_empty(), !one.key.expose().is_empty(), !one.roots.is_empty()];
            format!("{name} {}", has.map(|has| if has { "+" } else { "-" }).concat())
        })
        .collect()
    }

    #[test]
    fn a_gateway_gets_of_each_secret_what_it_is_named_for_and_no_more() {
        let shown = || reference("c", None, Part::Shown);
        let believed = || reference("c-cacert", Some("c"), Part::Believed);
        for (references, secrets_there, expected) in [
            (vec![shown()], &[("c", true, true), ("other", true, true)][..], vec!["shop/c ++-"]),
            (vec![shown(), believed()], &[("c", true, true)], vec!["shop/c ++-", "shop/c-cacert --+"]),
            (vec![believed()], &[("c", true, false), ("c-cacert", true, true)], vec!["shop/c-cacert --+"]),
            (vec![shown(), reference("c", None, Part::Believed)], &[("c", true, true)], vec!["shop/c +++"]),
        ] {
            let made = index(&references, &secrets(Secrets::default(), secrets_there), &BTreeMap::new());
            assert_eq!(given(&made), expected, "{references:?}");
            assert!(made.problems.is_empty() && made.undecided.is_empty(), "{:?}", made.problems);
            let again = index(&references, &secrets(Secrets::default(), &[]), &made.certificates);
            assert!(given(&again).is_empty(), "gone with its Secret");
        }
        assert_eq!(wanted(&[shown(), believed()]), [holder("c"), holder("c-cacert")].into());
    }

    #[test]
    fn what_is_as_before_is_the_same() {
        let (references, all) =
            ([reference("c", None, Part::Shown)], secrets(Secrets::default(), &[("c", true, false)]));
        let first = index(&references, &all, &BTreeMap::new()).certificates;
        let second = index(&references, &all, &first).certificates;
        assert!(Arc::ptr_eq(&first[&name("edge")], &second[&name("edge")]));
    }

    #[test]
    fn what_is_missing_is_told_and_what_is_not_heard_of_is_not() {
        let references = [reference("c", None, Part::Shown), reference("c-cacert", Some("c"), Part::Believed)];
        let said = |secrets: &Secrets| {
            let made = index(&references, secrets, &BTreeMap::new());
            let said: Vec<String> = made.problems.iter().map(|(_, problem)| problem.message.clone()).collect();
            assert_eq!(made.unresolved.is_empty(), said.is_empty());
            (said.join("; "), made.undecided.len())
        };
        assert_eq!(
            said(&Secrets::default()),
            ("there is no Secret shop/c; there is no Secret shop/c-cacert".to_owned(), 0)
        );
        let without_roots = secrets(Secrets::default(), &[("c", true, false)]);
        assert_eq!(said(&without_roots), ("Secret shop/c: it has no ca.crt".to_owned(), 0));
        let mut asked = Secrets::asked();
        assert_eq!(said(&asked), (String::new(), 1));
        asked.fail(&holder("c"), "403".into());
        asked.remove(&holder("c-cacert"));
        let failing = "Secret shop/c cannot be asked for: 403";
        assert_eq!(said(&asked), (failing.to_owned(), 0), "once");
    }
}
