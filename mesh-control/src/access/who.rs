//! Whose a token is. What follows from it is in [`super::rights`].

use mesh_core::{ArcStr, NamespacedName};

/// Bytes of a file's name: file systems take 255, and while a file is written its name is a little longer.
const LONGEST_FILE: usize = 240;

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
        /// Its `metadata.uid`, if the token names one: of a token that was made for a pod it is not known.
        uid: Option<ArcStr>,
        /// The pod that the token was made for, with its uid; none if it was made for all of them.
        pod: Option<(NamespacedName, ArcStr)>,
    },
}

/// Out of whose share it is that somebody takes what is limited. A namespace's waypoints share one, however many Gateways and pods it makes, and none of it
/// is the agents'.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Share {
    /// A node's.
    Node(ArcStr),
    /// That of a namespace's waypoints.
    Waypoints(ArcStr),
}

impl Who {
    /// Out of whose share it takes what is limited.
    pub fn share(&self) -> Share {
        match self {
            Who::Node { name, .. } => Share::Node(name.clone()),
            Who::Waypoint { gateway, .. } => Share::Waypoints(gateway.namespace.clone()),
        }
    }

    /// A name for logs, limits and lists, which nobody else has: names of nodes hold no `/`.
    pub fn name(&self) -> ArcStr {
        match self {
            Who::Node { name, .. } => name.clone(),
            Who::Waypoint { gateway, pod: None, .. } => format!("waypoint/{gateway}").into(),
            Who::Waypoint { gateway, pod: Some((pod, _)), .. } => format!("waypoint/{gateway}/{}", pod.name).into(),
        }
    }

    /// The file of its token: what has no `_` is a node's. Two names may be longer together than a file's: then the end of the longer one is its hash, behind
    /// another `_`.
    pub fn file(&self) -> String {
        let Who::Waypoint { gateway, .. } = self else { return self.name().to_string() };
        let NamespacedName { namespace, name } = gateway;
        let file = format!("waypoint-{namespace}_{name}");
        if file.len() <= LONGEST_FILE {
            return file;
        }
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, file.as_bytes());
        let hash: String = digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("{}_{hash}", &file[..file.floor_char_boundary(LONGEST_FILE - 1 - hash.len())])
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
        let of = |namespace: &str, name: &str| Who::Waypoint {
            gateway: NamespacedName::new(namespace, name),
            uid: None,
            pod: None,
        };
        let pod = Some((NamespacedName::new("shop", "a"), "u".into()));
        let all = [
            Who::Node { name: "waypoint-a-b".into(), uid: None },
            of("a-b", "c"),
            of("a", "b-c"),
            Who::Waypoint { gateway: NamespacedName::new("shop", "wp"), uid: None, pod },
        ];
        let names: Vec<_> = all.iter().map(|who| who.name().to_string()).collect();
        assert_eq!(names, ["waypoint-a-b", "waypoint/a-b/c", "waypoint/a/b-c", "waypoint/shop/wp/a"]);
        let files: Vec<_> = all[..3].iter().map(Who::file).collect();
        assert_eq!(files, ["waypoint-a-b", "waypoint-a-b_c", "waypoint-a_b-c"]);
        // The longest names that Kubernetes takes, which differ in their last letter.
        let (namespace, name) = ("n".repeat(63), "g".repeat(252));
        let long = ["a", "b"].map(|end| of(&namespace, &format!("{name}{end}")).file());
        assert_ne!(long[0], long[1]);
        assert!(long.iter().all(|file| file.len() == LONGEST_FILE && file.matches('_').count() == 2), "{long:?}");
        let fits = of("n", &"g".repeat(LONGEST_FILE - "waypoint-n_".len())).file();
        assert!(fits.len() == LONGEST_FILE && fits.ends_with('g'));
    }
}
