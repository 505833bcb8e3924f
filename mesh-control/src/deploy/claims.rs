//! Which Gateway has what is called so, where several want one name: the round asks before it makes anything. Pure.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::NamespacedName;
use serde_json::Value as Json;

use super::live::{is_ours, owner};
use super::plan::{Asked, Plan, Refusal};
use super::round::{Known, What};
use crate::resource::waypoint::NAME_OVERRIDE;

/// What Gateways want to be served by.
pub(super) struct Claims {
    /// By the name of Deployment and Service the Gateway that has them, and its uid: whose Deployment it is, else the oldest.
    holders: BTreeMap<NamespacedName, (NamespacedName, String)>,
    /// Service accounts, each with the uid of one that names it.
    accounts: BTreeSet<(NamespacedName, String)>,
}

impl Claims {
    /// Those of all Gateways of ours.
    pub fn of(known: &Known, plans: &BTreeMap<NamespacedName, Plan>) -> Self {
        let (mut all, mut accounts) = (BTreeMap::<_, Vec<(&str, &Asked)>>::new(), BTreeSet::new());
        for (name, plan) in plans {
            let Plan::Deploy(asked, _) = plan else { continue };
            let made = known.get(What::Gateway, name).and_then(|object| object.pointer("/metadata/creationTimestamp"));
            all.entry(deployed(asked)).or_default().push((made.and_then(Json::as_str).unwrap_or_default(), asked));
            let account = NamespacedName::new(name.namespace.clone(), asked.account.clone());
            accounts.insert((account, asked.uid.clone()));
        }
        let holder = |(deployed, mut wanting): (NamespacedName, Vec<(&str, &Asked)>)| {
            wanting.sort_by_key(|(made, asked)| (*made, &asked.name));
            let live = known.get(What::Deployment, &deployed).filter(|live| is_ours(live)).and_then(owner);
            let has = wanting.iter().find(|(_, asked)| live.is_some_and(|(_, uid)| uid == asked.uid));
            let (_, asked) = has.or(wanting.first())?;
            let holder = (asked.name.clone(), asked.uid.clone());
            Some((deployed, holder))
        };
        Self { holders: all.into_iter().filter_map(holder).collect(), accounts }
    }

    /// The plan of a Gateway, unless another one has what it wants to be served by.
    pub fn judged(&self, plan: Plan) -> Plan {
        let Plan::Deploy(asked, _) = &plan else { return plan };
        match self.holders.get(&deployed(asked)) {
            Some((holder, uid)) if *uid != asked.uid => {
                let name = &asked.deployed;
                let message = format!(
                    "Deployment and Service {name} are what serves Gateway {holder}: give one of the two another name, or the annotation `{NAME_OVERRIDE}` with one"
                );
                Plan::Refuse(Refusal { reason: "Invalid", message })
            }
            _ => plan,
        }
    }

    /// Whether another Gateway has made a service account, and still names it.
    pub fn shares(&self, known: &Known, account: &NamespacedName, own: &str) -> bool {
        let live = known.get(What::Account, account).filter(|live| is_ours(live)).and_then(owner);
        live.is_some_and(|(_, uid)| uid != own && self.accounts.contains(&(account.clone(), uid.to_owned())))
    }
}

fn deployed(asked: &Asked) -> NamespacedName {
    NamespacedName::new(asked.name.namespace.clone(), asked.deployed.clone())
}
