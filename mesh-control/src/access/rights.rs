//! Who may have what. Pure tables over a view: whether whose token it is ([`Who`]) is still there, what it is sent, and for which identity
//! certificates are signed. Whatever is not named here is refused.
//!
//! | who | is there while | is sent | signed |
//! |---|---|---|---|
//! | the agent of a node | the node exists, with its uid | policies, addresses | identities of pods on the node, but of no waypoint |
//! | a waypoint, by its Gateway's token | the Gateway, with its uid, is a waypoint of ours | these, and its own table | its own identity, if a pod of it is there |
//! | a waypoint, by its pod's token | that very pod serves it | the same | the same |

use mesh_core::{ArcStr, Identity, NamespacedName};

use super::token::TokenError;
use super::who::Who;
use crate::index::{View, WaypointPod};
use crate::world::Audience;

/// What a token of a service account says that is believed, of what it was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// Its namespace.
    pub namespace: ArcStr,
    /// The service account.
    pub account: ArcStr,
    /// The pod.
    pub pod: Option<ArcStr>,
    /// The pod's uid.
    pub uid: Option<ArcStr>,
    /// The node, with its uid.
    pub node: Option<(ArcStr, Option<String>)>,
}

impl Who {
    /// What it is sent.
    pub fn audience(&self) -> Audience {
        match self {
            Who::Node { .. } => Audience::Agent,
            Who::Waypoint { gateway, .. } => Audience::Waypoint(gateway.to_string().into()),
        }
    }

    /// Whether it is there.
    pub fn stands(&self, view: &View) -> bool {
        match self {
            Who::Node { name, uid } => view.has_node(name, uid.as_deref()),
            Who::Waypoint { gateway, uid, pod: None } => {
                view.waypoints.get(gateway).is_some_and(|waypoint| waypoint.uid == *uid)
            }
            Who::Waypoint { gateway, pod: Some((name, uid)), .. } => {
                view.waypoint_pods.get(name).is_some_and(|pod| pod.gateway == *gateway && pod.uid.as_ref() == Some(uid))
            }
        }
    }

    /// Whether a certificate for `identity` may be signed for it.
    pub fn may_be(&self, identity: &Identity, view: &View) -> bool {
        if identity.trust_domain != view.settings.trust_domain || !self.stands(view) {
            return false;
        }
        let Identity { namespace, service_account, .. } = identity;
        let is_it =
            |name: &NamespacedName, pod: &WaypointPod| name.namespace == *namespace && pod.account == *service_account;
        match self {
            Who::Node { name, .. } => view.placements.contains(name, namespace, service_account),
            Who::Waypoint { pod: Some((name, _)), .. } => {
                view.waypoint_pods.get(name).is_some_and(|pod| is_it(name, pod))
            }
            Who::Waypoint { gateway, pod: None, .. } => {
                view.waypoint_pods.iter().any(|(name, pod)| pod.gateway == *gateway && is_it(name, pod))
            }
        }
    }
}

/// Whether tokens of a service account can be anybody's: an agent's, or of a pod that serves a waypoint. It saves the API server questions.
pub fn is_known(agents: &[(ArcStr, ArcStr)], namespace: &str, account: &str, view: &View) -> bool {
    let is_agent = agents.iter().any(|(ns, name)| ns == namespace && name == account);
    is_agent || view.waypoint_pods.iter().any(|(name, pod)| name.namespace == namespace && pod.account == account)
}

/// Whose a token of a service account is that was found good. An agent's is for its node; any other is for a pod that serves a waypoint, which must be
/// just that pod.
pub fn bearer(bearer: Bearer, agents: &[(ArcStr, ArcStr)], view: &View) -> Result<Who, TokenError> {
    let Bearer { namespace, account, pod, uid, node } = bearer;
    if agents.iter().any(|(ns, name)| *ns == namespace && *name == account) {
        // A token that was not made for a pod on a node is good for no node.
        let (name, uid) = node.ok_or(TokenError::Unbound)?;
        return Ok(Who::Node { name, uid });
    }
    if !is_known(agents, &namespace, &account, view) {
        return Err(TokenError::Account);
    }
    let (Some(pod), Some(uid)) = (pod, uid) else { return Err(TokenError::Unbound) };
    let name = NamespacedName::new(namespace, pod);
    let served = view.waypoint_pods.get(&name).filter(|served| served.uid.as_ref() == Some(&uid));
    let served = served.filter(|served| served.account == account).ok_or(TokenError::Pod)?;
    if node.is_some_and(|(node, _)| node != served.node) {
        return Err(TokenError::Pod);
    }
    Ok(Who::Waypoint { gateway: served.gateway.clone(), uid: None, pod: Some((name, uid)) })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::index::WaypointGateway;

    fn name(namespace: &str, name: &str) -> NamespacedName {
        NamespacedName::new(namespace, name)
    }

    /// Node n1 (uid u1) with a pod of shop/web; waypoints shop/wp and infra/wp with a pod each, shop/idle without.
    fn view() -> View {
        let nodes = [("n1".into(), Some("u1".to_owned())), ("n2".into(), None)].into();
        let mut view = View { nodes, ..View::default() };
        view.placements.add("shop".into(), Arc::new(BTreeSet::from([("n1".into(), "web".into())])));
        view.waypoints = [("shop", "wp", None), ("infra", "wp", Some("g1")), ("shop", "idle", None)]
            .map(|(ns, n, uid)| {
                let waypoint = WaypointGateway { uid: uid.map(ArcStr::from), account: n.into() };
                (name(ns, n), waypoint)
            })
            .into();
        let pod = |namespace: &str, uid: &str| {
            let gateway = name(namespace, "wp");
            let pod = WaypointPod { gateway, uid: Some(uid.into()), account: "wp".into(), node: "n1".into() };
            (name(namespace, "wp-1"), pod)
        };
        view.waypoint_pods = [pod("shop", "p1"), pod("infra", "p2")].into();
        view
    }

    fn node(name: &str, uid: Option<&str>) -> Who {
        Who::Node { name: name.into(), uid: uid.map(str::to_owned) }
    }

    fn of_gateway(namespace: &str, gateway: &str) -> Who {
        Who::Waypoint { gateway: name(namespace, gateway), uid: None, pod: None }
    }

    fn of_infra(uid: &str) -> Who {
        Who::Waypoint { gateway: name("infra", "wp"), uid: Some(uid.into()), pod: None }
    }

    fn of_pod(gateway: (&str, &str), pod: (&str, &str), uid: &str) -> Who {
        let pod = Some((name(pod.0, pod.1), uid.into()));
        Who::Waypoint { gateway: name(gateway.0, gateway.1), uid: None, pod }
    }

    #[test]
    fn who_is_there_and_who_may_be_whom() {
        let (view, wp, own) = (view(), ("shop", "wp"), ("shop", "wp-1"));
        let identities = ["shop/web", "shop/wp", "infra/wp", "shop/idle", "shop/default"];
        for (who, stands, may) in [
            (node("n1", Some("u1")), true, &["shop/web"][..]),
            (node("n1", Some("u2")), false, &[]),
            (node("n1", None), false, &[]),
            (node("n2", None), true, &[]),
            (node("n3", None), false, &[]),
            (of_gateway("shop", "wp"), true, &["shop/wp"]),
            (of_infra("g1"), true, &["infra/wp"]),
            // Of a Gateway that was made again under its name, the token is another one.
            (of_infra("g0"), false, &[]),
            (of_gateway("infra", "wp"), false, &[]),
            // Its configuration it gets; nobody's certificate before there is a pod.
            (of_gateway("shop", "idle"), true, &[]),
            (of_gateway("shop", "gone"), false, &[]),
            (of_pod(wp, own, "p1"), true, &["shop/wp"]),
            (of_pod(wp, own, "p2"), false, &[]),
            (of_pod(("infra", "wp"), own, "p1"), false, &[]),
            (of_pod(wp, ("infra", "wp-1"), "p2"), false, &[]),
            (of_pod(wp, ("shop", "gone"), "p1"), false, &[]),
        ] {
            assert_eq!(who.stands(&view), stands, "{who:?}");
            let identity =
                |text: &&str| format!("spiffe://cluster.local/ns/{}", text.replace('/', "/sa/")).parse().unwrap();
            let has: Vec<&str> = identities.into_iter().filter(|text| who.may_be(&identity(text), &view)).collect();
            assert_eq!(has, may, "{who:?}");
            let elsewhere: Identity = "spiffe://else/ns/shop/sa/web".parse().unwrap();
            assert!(!who.may_be(&elsewhere, &view));
        }
    }

    #[test]
    fn what_each_is_sent() {
        let all = [node("n1", None), of_gateway("shop", "wp"), of_pod(("shop", "wp"), ("shop", "a"), "u")];
        let audiences: Vec<_> = all.iter().map(Who::audience).collect();
        let own = || Audience::Waypoint("shop/wp".into());
        assert_eq!(audiences, [Audience::Agent, own(), own()]);
    }

    #[test]
    fn whose_a_token_of_a_service_account_is() {
        let (view, agents) = (view(), [(ArcStr::from("undermesh-system"), ArcStr::from("mesh-agent"))]);
        let some = |text: &str| Some(text).filter(|text| !text.is_empty()).map(ArcStr::from);
        let wp = || Ok(of_pod(("shop", "wp"), ("shop", "wp-1"), "p1"));
        for (account, pod, uid, on, expected) in [
            ("undermesh-system/mesh-agent", "a", "x", "n1", Ok(node("n1", Some("u1")))),
            // It stands for a node, whoever the pod is: the token says which.
            ("undermesh-system/mesh-agent", "", "", "n1", Ok(node("n1", Some("u1")))),
            ("undermesh-system/mesh-agent", "a", "x", "", Err(TokenError::Unbound)),
            ("shop/mesh-agent", "a", "x", "n1", Err(TokenError::Account)),
            ("shop/wp", "wp-1", "p1", "n1", wp()),
            ("shop/wp", "wp-1", "p1", "", wp()),
            ("shop/wp", "wp-1", "p1", "n2", Err(TokenError::Pod)),
            ("shop/wp", "wp-1", "p2", "n1", Err(TokenError::Pod)),
            ("shop/wp", "wp-2", "p1", "n1", Err(TokenError::Pod)),
            ("shop/wp", "", "p1", "n1", Err(TokenError::Unbound)),
            ("shop/wp", "wp-1", "", "n1", Err(TokenError::Unbound)),
            ("shop/web", "wp-1", "p1", "n1", Err(TokenError::Account)),
            ("shop/idle", "wp-1", "p1", "n1", Err(TokenError::Account)),
        ] {
            let (namespace, name) = account.split_once('/').unwrap();
            let given = Bearer {
                namespace: namespace.into(),
                account: name.into(),
                pod: some(pod),
                uid: some(uid),
                node: some(on).map(|node| (node, Some("u1".to_owned()))),
            };
            assert_eq!(bearer(given, &agents, &view), expected, "{account} {pod} {uid} {on}");
        }
    }
}
