//! The token files: one for each node and each waypoint, in the state folder, for whoever starts the node's agent, or the waypoint, to hand over. The process starts it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::token::{TokenKeyError, Tokens};
use super::who::Who;
use crate::clock;
use crate::index::View;
use crate::state::{self, StateError};

/// How often it is looked whether something is to be done. Short, because the clock may have been set meanwhile.
const LOOK: Duration = Duration::from_secs(1);

/// Why tokens could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// The folder could not be listed.
    #[error("list tokens: {0}")]
    List(#[from] std::io::Error),
    /// No token could be made.
    #[error("make a token: {0}")]
    Make(#[from] TokenKeyError),
}

/// Keeps one token file for each node and each waypoint.
#[derive(Debug)]
pub struct TokenWriter {
    tokens: Arc<Tokens>,
    folder: PathBuf,
    lifetime: Duration,
    view: watch::Receiver<Arc<View>>,
    written: BTreeSet<Who>,
    /// When all tokens were last made anew.
    renewed: SystemTime,
}

impl TokenWriter {
    /// Writes the first tokens into `folder` and removes those of who is gone. A file that cannot be written or removed is logged; a token that is missing is
    /// made by [`TokenWriter::follow`]: who may name things must not be able to keep everybody else from being served.
    pub fn start(
        tokens: Arc<Tokens>,
        folder: PathBuf,
        lifetime: Duration,
        view: watch::Receiver<Arc<View>>,
        now: SystemTime,
    ) -> Result<Self, WriteError> {
        state::folder(&folder)?;
        let mut writer = Self { tokens, folder, lifetime, view, written: BTreeSet::new(), renewed: now };
        let files: BTreeSet<String> = bearers(&writer.view.borrow_and_update()).iter().map(Who::file).collect();
        for entry in std::fs::read_dir(&writer.folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !files.contains(&name)
                && let Err(error) = state::remove(&path)
            {
                tracing::error!(%error, "cannot remove the token of who is gone");
            }
        }
        if let Err(error) = writer.write(true, now) {
            tracing::error!(%error, "cannot write tokens, trying again");
        }
        Ok(writer)
    }

    /// Follows the nodes, and renews tokens at half of their life, for ever.
    pub async fn follow(mut self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = self.view.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                _ = look.tick() => {}
            }
            // Each file is on disk before the next is begun, which takes a while with many nodes.
            let step = move || {
                let outcome = self.step(mesh_runtime::clock::now());
                (self, outcome)
            };
            let Ok((writer, outcome)) = tokio::task::spawn_blocking(step).await else { return };
            self = writer;
            if let Err(error) = outcome {
                tracing::error!(%error, "cannot write tokens, trying again");
            }
        }
    }

    /// Does what is due. A token is judged by the wall clock, so it is the wall clock that says when it is old.
    pub fn step(&mut self, now: SystemTime) -> Result<(), WriteError> {
        let all = clock::is_due(self.renewed, self.lifetime, now);
        if all || self.is_behind() { self.write(all, now) } else { Ok(()) }
    }

    /// Others are known than those that have a token.
    fn is_behind(&self) -> bool {
        bearers(&self.view.borrow()) != self.written
    }

    /// Makes what is missing, or everything. A node that fails stops no other, and is tried again.
    fn write(&mut self, all: bool, now: SystemTime) -> Result<(), WriteError> {
        let view = self.view.borrow_and_update().clone();
        let mut outcome = Ok(());
        let mut written = BTreeSet::new();
        let wanted = bearers(&view);
        let files: BTreeSet<String> = wanted.iter().map(Who::file).collect();
        for who in wanted {
            let kept = !all && self.written.contains(&who);
            match if kept { Ok(()) } else { self.make(&who, now) } {
                Ok(()) => drop(written.insert(who)),
                Err(error) => outcome = Err(error),
            }
        }
        // Another node of the same name has its file.
        for who in self.written.iter().filter(|who| !files.contains(&who.file())) {
            if let Err(error) = state::remove(&self.folder.join(who.file())) {
                written.insert(who.clone());
                outcome = Err(error.into());
            }
        }
        if all {
            self.renewed = now;
        }
        self.written = written;
        outcome
    }

    fn make(&self, who: &Who, now: SystemTime) -> Result<(), WriteError> {
        let token = self.tokens.issue(who, self.lifetime, now).map_err(TokenKeyError::from)?;
        Ok(state::write(&self.folder.join(who.file()), &token, 0o600)?)
    }
}

/// Everybody who has a token.
fn bearers(view: &View) -> BTreeSet<Who> {
    let nodes = view.nodes.iter().map(|(name, uid)| Who::Node { name: name.clone(), uid: uid.clone() });
    let waypoints = view.waypoints.iter().map(|(gateway, waypoint)| {
        let uid = waypoint.uid.clone();
        Who::Waypoint { gateway: gateway.clone(), uid, pod: None }
    });
    nodes.chain(waypoints).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::UNIX_EPOCH;

    use mesh_core::{ArcStr, NamespacedName};

    use super::*;
    use crate::index::WaypointGateway;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    struct Nodes {
        folder: tempfile::TempDir,
        view: watch::Sender<Arc<View>>,
        tokens: Arc<Tokens>,
    }

    impl Nodes {
        fn new(names: &[&str]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            state::folder(folder.path()).unwrap();
            let tokens = Arc::new(Tokens::open(folder.path(), "c".into()).unwrap());
            let nodes = Self { folder, view: watch::Sender::new(Arc::default()), tokens };
            nodes.set(names);
            nodes
        }

        fn set(&self, names: &[&str]) {
            let nodes = names.iter().map(|n| (ArcStr::from(*n), None)).collect();
            self.view.send_replace(Arc::new(View { nodes, ..View::default() }));
        }

        fn writer(&self, now: SystemTime) -> TokenWriter {
            let folder = self.folder.path().join("tokens");
            TokenWriter::start(self.tokens.clone(), folder, DAY, self.view.subscribe(), now).unwrap()
        }

        fn path(&self, node: &str) -> PathBuf {
            self.folder.path().join("tokens").join(node)
        }

        /// Whose token the file of `node` is at `now`.
        fn owner(&self, node: &str, now: SystemTime) -> Option<String> {
            let token = fs::read_to_string(self.path(node)).ok()?;
            self.tokens.verify(Some(&token), now, |_| true).ok().map(|caller| caller.name.to_string())
        }
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    #[test]
    fn hardening_F44_a_clock_that_is_set_leaves_no_node_without_a_token() {
        let nodes = Nodes::new(&["n1", "n2"]);
        let mut writer = nodes.writer(now());
        let text = |node: &str| fs::read_to_string(nodes.path(node)).unwrap();
        let first = text("n1");
        writer.step(now() + DAY / 2 - Duration::from_secs(1)).unwrap();
        assert_eq!(text("n1"), first, "not before half of its life");
        for now in [now() + DAY, now() - DAY, now() + DAY * 3650, now()] {
            writer.step(now).unwrap();
            let made = text("n1");
            assert_eq!((nodes.owner("n1", now), nodes.owner("n2", now)), (Some("n1".into()), Some("n2".into())));
            writer.step(now + Duration::from_secs(1)).unwrap();
            assert_eq!(text("n1"), made, "once for each jump");
        }
    }

    #[test]
    fn the_token_of_a_node_is_never_in_the_file_of_another() {
        let nodes = Nodes::new(&["n1.new", "n1"]);
        let mut writer = nodes.writer(now());
        // Only `n1` is written again.
        nodes.set(&["n1.new"]);
        writer.step(now()).unwrap();
        assert!(!nodes.path("n1").exists());
        nodes.set(&["n1.new", "n1"]);
        writer.step(now()).unwrap();
        for node in ["n1", "n1.new"] {
            assert_eq!(nodes.owner(node, now()).as_deref(), Some(node));
        }
        assert_eq!(fs::read_dir(nodes.folder.path().join("tokens")).unwrap().count(), 2);
    }

    #[test]
    fn a_waypoint_has_a_token_while_it_is_there_and_no_node_can_have_its_file() {
        let nodes = Nodes::new(&["n1", "waypoint-shop-wp"]);
        let mut writer = nodes.writer(now());
        let set = |waypoints: &[(&str, &str)]| {
            let named = |(ns, name): &(&str, &str)| (NamespacedName::new(*ns, *name), WaypointGateway::default());
            let waypoints = waypoints.iter().map(named).collect();
            let view = View { waypoints, ..View::clone(&nodes.view.borrow()) };
            nodes.view.send_replace(Arc::new(view));
        };
        set(&[("shop", "wp"), ("shop-wp", "x")]);
        writer.step(now()).unwrap();
        for (file, owner) in [
            ("n1", "n1"),
            ("waypoint-shop-wp", "waypoint-shop-wp"),
            ("waypoint-shop_wp", "waypoint/shop/wp"),
            ("waypoint-shop-wp_x", "waypoint/shop-wp/x"),
        ] {
            assert_eq!(nodes.owner(file, now()).as_deref(), Some(owner));
        }
        set(&[("shop-wp", "x")]);
        writer.step(now()).unwrap();
        assert!(!nodes.path("waypoint-shop_wp").exists() && nodes.path("waypoint-shop-wp_x").exists());
        // What was left behind goes at the next start.
        fs::write(nodes.path("waypoint-shop_wp"), "old").unwrap();
        drop(nodes.writer(now()));
        assert!(!nodes.path("waypoint-shop_wp").exists() && nodes.path("waypoint-shop-wp_x").exists());
    }

    #[test]
    fn a_node_whose_token_cannot_be_written_stops_no_other_and_is_tried_again() {
        let nodes = Nodes::new(&[]);
        let mut writer = nodes.writer(now());
        fs::create_dir(nodes.path("n1")).unwrap();
        nodes.set(&["n1", "n2"]);
        writer.step(now()).unwrap_err();
        assert_eq!(nodes.owner("n2", now()).as_deref(), Some("n2"));
        // Nor does it at a start.
        let mut writer = nodes.writer(now());
        assert_eq!(nodes.owner("n2", now()).as_deref(), Some("n2"));
        fs::remove_dir(nodes.path("n1")).unwrap();
        writer.step(now()).unwrap();
        assert_eq!(nodes.owner("n1", now()).as_deref(), Some("n1"));
    }

    #[test]
    fn the_longest_name_of_a_gateway_has_a_file_and_a_gateway_made_again_another_token() {
        let nodes = Nodes::new(&["n1"]);
        let gateway = NamespacedName::new("n".repeat(63), "g".repeat(253));
        let set = |uid: &str| {
            let waypoint = WaypointGateway { uid: Some(uid.into()), account: "wp".into() };
            let view = View { waypoints: [(gateway.clone(), waypoint)].into(), ..View::clone(&nodes.view.borrow()) };
            nodes.view.send_replace(Arc::new(view));
        };
        set("g1");
        let mut writer = nodes.writer(now());
        let file = Who::Waypoint { gateway: gateway.clone(), uid: None, pod: None }.file();
        let text = || fs::read_to_string(nodes.path(&file)).unwrap();
        let stands = |token: &str| {
            let view = nodes.view.borrow().clone();
            nodes.tokens.verify(Some(token), now(), |who| who.stands(&view)).is_ok()
        };
        let first = text();
        assert!(stands(&first));
        set("g2");
        assert!(!stands(&first));
        writer.step(now()).unwrap();
        assert!(stands(&text()));
    }
}
