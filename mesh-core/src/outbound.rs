//! What happens to connections to addresses that nobody in the mesh is known to have: the mesh settings and Sidecars say it of the whole mesh, of a
//! namespace or of one workload, and the most specific one counts. The control plane works out what each of them says; agents ask [`Snapshot::outbound`].

use arcstr::ArcStr;

use crate::Snapshot;

/// Whose connections are meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Everybody's.
    Mesh,
    /// Those of a namespace.
    Namespace(ArcStr),
    /// Those of pods of a namespace that are not known yet, where one of them may be held to more than the namespace is.
    Newcomers(ArcStr),
    /// Those of the workload with this uid.
    Workload(ArcStr),
}

/// What is said of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outbound {
    /// Only what the registry knows may be reached: services, workloads, hosts of ServiceEntries.
    pub registry_only: bool,
    /// The object that says so, as `Sidecar shop/default`, for logs.
    pub origin: ArcStr,
}

impl Scope {
    /// Reads what [`Scope`] is written as: `mesh`, `namespace/shop`, `newcomers/shop`, `workload/UID`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once('/') {
            None if text == "mesh" => Some(Self::Mesh),
            Some(("namespace", name)) if !name.is_empty() && !name.contains('/') => Some(Self::Namespace(name.into())),
            Some(("newcomers", name)) if !name.is_empty() && !name.contains('/') => Some(Self::Newcomers(name.into())),
            Some(("workload", uid)) if !uid.is_empty() => Some(Self::Workload(uid.into())),
            _ => None,
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mesh => f.write_str("mesh"),
            Self::Namespace(name) => write!(f, "namespace/{name}"),
            Self::Newcomers(name) => write!(f, "newcomers/{name}"),
            Self::Workload(uid) => write!(f, "workload/{uid}"),
        }
    }
}

impl Snapshot {
    /// Whether somebody has told what is said of the outside, were it nothing.
    #[must_use]
    pub fn is_outbound_known(&self) -> bool {
        self.outbound_known
    }

    /// What counts for a workload; `None` if nobody says anything, and then everything may be reached. One that is not known yet may be any of its
    /// namespace, and may reach as little as whoever there may reach least.
    #[must_use]
    pub fn outbound(&self, namespace: &ArcStr, uid: &ArcStr) -> Option<&Outbound> {
        if self.outbound.len() == 0 {
            return None;
        }
        let of = |scope| self.outbound.get(&scope);
        of(Scope::Workload(uid.clone()))
            .or_else(
                || if self.workload_by_uid(uid).is_none() { of(Scope::Newcomers(namespace.clone())) } else { None },
            )
            .or_else(|| of(Scope::Namespace(namespace.clone())))
            .or_else(|| of(Scope::Mesh))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Change, Store, Workload};

    #[test]
    fn a_scope_is_read_as_it_is_written() {
        let scopes = [
            Scope::Mesh,
            Scope::Namespace("shop".into()),
            Scope::Newcomers("shop".into()),
            Scope::Workload("Kubernetes//Pod/shop/cart-1".into()),
        ];
        for scope in scopes {
            assert_eq!(Scope::parse(&scope.to_string()), Some(scope));
        }
        for text in [
            "",
            "mesh/",
            "namespace",
            "namespace/",
            "namespace/a/b",
            "newcomers/",
            "newcomers/a/b",
            "workload/",
            "pod/a",
        ] {
            assert_eq!(Scope::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn features_SB_3_the_most_specific_one_counts() {
        let said = |registry_only, origin: &str| Outbound { registry_only, origin: origin.into() };
        let (shop, other) = (ArcStr::from("shop"), ArcStr::from("other"));
        let mut store = Store::new();
        let mut origin = |change: Change, namespace: &ArcStr, uid: &str| {
            let snapshot = store.apply(vec![change]).snapshot;
            snapshot.outbound(namespace, &uid.into()).map(|said| (said.registry_only, said.origin.to_string()))
        };
        let found = |registry_only, origin: &str| Some((registry_only, origin.to_owned()));
        assert_eq!(origin(Change::Synced, &shop, "a"), None);
        assert_eq!(origin(Change::Outbound(Scope::Mesh, said(true, "mesh")), &shop, "a"), found(true, "mesh"));
        let of_shop = Change::Outbound(Scope::Namespace(shop.clone()), said(false, "shop"));
        assert_eq!(origin(of_shop, &shop, "a"), found(false, "shop"));
        assert_eq!(origin(Change::Synced, &other, "a"), found(true, "mesh"));
        let (a, b) = ("Kubernetes//Pod/shop/a", "Kubernetes//Pod/shop/b");
        let of_a = Change::Outbound(Scope::Workload(a.into()), said(true, "a"));
        assert_eq!(origin(of_a, &shop, a), found(true, "a"));
        assert_eq!(origin(Change::Synced, &shop, b), found(false, "shop"), "one says nothing of another");
        let of_new = Change::Outbound(Scope::Newcomers(shop.clone()), said(true, "new"));
        assert_eq!(origin(of_new, &shop, b), found(true, "new"), "as long as nobody knows which one it is");
        assert_eq!(origin(Change::Synced, &shop, a), found(true, "a"));
        assert_eq!(origin(Change::Synced, &other, b), found(true, "mesh"));
        assert_eq!(origin(Change::Workload(Workload::new(b, "shop", "b")), &shop, b), found(false, "shop"));
        assert_eq!(origin(Change::RemoveOutbound(Scope::Workload(a.into())), &shop, a), found(true, "new"));
        assert_eq!(origin(Change::RemoveOutbound(Scope::Newcomers(shop.clone())), &shop, a), found(false, "shop"));
        assert_eq!(origin(Change::RemoveOutbound(Scope::Namespace(shop.clone())), &shop, "a"), found(true, "mesh"));
        assert_eq!(origin(Change::RemoveOutbound(Scope::Mesh), &shop, "a"), None);
    }
}
