//! What gateways show and believe: of each the Secrets that its listeners name ([`Reference`]), as far as they are good. A listener that names one that is not
//! refuses its connections, and whoever wrote it is told which and why. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::listener::{Certificates, Credential};
use mesh_core::{ArcStr, NamespacedName};

use crate::diagnosis::Problem;
use crate::resource::secret::Found;
use crate::resource::{Key, Secrets};

/// A Secret that a listener names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The gateway that listens.
    pub gateway: NamespacedName,
    /// The object that it is written in.
    pub object: Key,
    /// What the object calls the listener.
    pub listener: ArcStr,
    /// Where it stands there.
    pub field: String,
    /// The Secret. Listeners and gateways have it by this name.
    pub secret: NamespacedName,
    /// The one that counts where there is none of that name.
    pub or: Option<NamespacedName>,
    /// What it is for.
    pub part: Part,
}

/// What a Secret is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It is shown.
    Shown,
    /// Clients are believed by it.
    Believed,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Certified {
    /// By gateway.
    pub certificates: BTreeMap<NamespacedName, Arc<Certificates>>,
    /// Why a listener, by its object and name, refuses connections.
    pub unresolved: BTreeMap<(Key, ArcStr), String>,
    /// Nothing was heard yet of something that a listener of these objects names.
    pub undecided: BTreeSet<Key>,
    /// What is to be said.
    pub problems: Vec<(Key, Problem)>,
}

/// The Secrets that are named.
pub fn wanted(references: &[Reference]) -> BTreeSet<NamespacedName> {
    references.iter().flat_map(|one| std::iter::once(&one.secret).chain(&one.or)).cloned().collect()
}

/// Takes of the Secrets what is named and good. What is as `before` is the same.
pub fn index(
    references: &[Reference],
    secrets: &Secrets,
    before: &BTreeMap<NamespacedName, Arc<Certificates>>,
) -> Certified {
    let mut made = Certified::default();
    let mut all: BTreeMap<NamespacedName, BTreeMap<ArcStr, Credential>> = BTreeMap::new();
    for reference in references {
        let own = all.entry(reference.gateway.clone()).or_default();
        match credential(reference, secrets) {
            Ok(credential) => add(own.entry(reference.secret.to_string().into()).or_default(), credential),
            Err(None) => drop(made.undecided.insert(reference.object.clone())),
            Err(Some(why)) => {
                let problem = Problem::error(reference.field.clone(), why.clone());
                let help = "until then the listener refuses connections";
                made.problems.push((reference.object.clone(), problem.help(help)));
                made.unresolved.entry((reference.object.clone(), reference.listener.clone())).or_insert(why);
            }
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

/// What a reference leads to; an error without a text: nobody knows yet.
fn credential(reference: &Reference, secrets: &Secrets) -> Result<Credential, Option<String>> {
    let mut name = &reference.secret;
    if let (Found::Missing, Some(or)) = (secrets.get(name), &reference.or) {
        name = or;
    }
    let secret = match secrets.get(name) {
        Found::Here(secret) => secret,
        Found::Missing => return Err(Some(format!("there is no Secret {}", reference.secret))),
        Found::Failing(why) => return Err(Some(format!("Secret {name} cannot be asked for: {why}"))),
        Found::Unknown => return Err(None),
    };
    let (is_good, whole) = match reference.part {
        Part::Shown => (&secret.shown, &secret.credential),
        Part::Believed => (&secret.believed, &secret.credential),
    };
    if let Err(why) = is_good {
        return Err(Some(format!("Secret {name}: {why}")));
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
    use crate::resource::{Kind, Object, secret};
    use crate::yaml::node::parse;

    fn name(name: &str) -> NamespacedName {
        NamespacedName::new("shop", name)
    }

    fn reference(secret: &str, or: Option<&str>, part: Part) -> Reference {
        Reference {
            gateway: name("edge"),
            object: Key { kind: Kind::Gateway, namespace: "shop".into(), name: "edge".into() },
            listener: "https".into(),
            field: "spec.x".to_owned(),
            secret: name(secret),
            or: or.map(name),
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
            all.insert(name(own), secret);
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
        assert_eq!(wanted(&[shown(), believed()]), [name("c"), name("c-cacert")].into());
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
        asked.fail(&name("c"), "403".into());
        asked.remove(&name("c-cacert"));
        let failing = "Secret shop/c cannot be asked for: 403";
        assert_eq!(said(&asked), (format!("{failing}; {failing}"), 0));
    }
}
