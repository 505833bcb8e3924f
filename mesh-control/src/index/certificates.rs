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
