//! Whose a token is. What follows from it is in [`super::rights`].

use mesh_core::{ArcStr, NamespacedName};

/// Whose token it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// The agent of a node.
    Node {
        /// The node.
        name: ArcStr,
        /// Its `metadata.uid`, if the token names one.
        uid: Option<String>,
    },
    /// The waypoint of a Gateway.
    Waypoint {
        /// The Gateway.
        gateway: NamespacedName,
        /// The pod that the token was made for, with its uid; none if it was made for all of them.
        pod: Option<(NamespacedName, ArcStr)>,
    },
}

impl Who {
    /// A name for logs, limits and lists, which nobody else has: names of nodes hold no `/`.
    pub fn name(&self) -> ArcStr {
        match self {
            Who::Node { name, .. } => name.clone(),
            Who::Waypoint { gateway, pod: None } => format!("waypoint/{gateway}").into(),
            Who::Waypoint { gateway, pod: Some((pod, _)) } => format!("waypoint/{gateway}/{}", pod.name).into(),
        }
    }

    /// The file of its token: what has no `_` is a node's.
    pub fn file(&self) -> String {
        match self {
            Who::Node { name, .. } => name.to_string(),
            Who::Waypoint { gateway, .. } => format!("waypoint-{}_{}", gateway.namespace, gateway.name),
        }
    }

    /// How many streams it may have at once: one for each process that has the token, for a moment two.
    pub fn streams(&self) -> usize {
        match self {
            Who::Node { .. } | Who::Waypoint { pod: Some(_), .. } => 4,
            Who::Waypoint { pod: None, .. } => 64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_the_name_or_the_file_of_another() {
        let of =
            |namespace: &str, name: &str| Who::Waypoint { gateway: NamespacedName::new(namespace, name), pod: None };
        let pod = Some((NamespacedName::new("shop", "a"), "u".into()));
        let all = [
            Who::Node { name: "waypoint-a-b".into(), uid: None },
            of("a-b", "c"),
            of("a", "b-c"),
            Who::Waypoint { gateway: NamespacedName::new("shop", "wp"), pod },
        ];
        let names: Vec<_> = all.iter().map(|who| who.name().to_string()).collect();
        assert_eq!(names, ["waypoint-a-b", "waypoint/a-b/c", "waypoint/a/b-c", "waypoint/shop/wp/a"]);
        let files: Vec<_> = all[..3].iter().map(Who::file).collect();
        assert_eq!(files, ["waypoint-a-b", "waypoint-a-b_c", "waypoint-a_b-c"]);
    }
}
