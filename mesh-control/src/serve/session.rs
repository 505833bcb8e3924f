//! One client's stream, as a state machine without I/O: requests and worlds go in, responses come out.
//!
//! What a request or a world leads to is built by [`Session::send`] and not before: a stream that waits for its turn holds nothing large.
//! Of each kind at most one response is under way; whatever changes meanwhile is sent, merged, after its ACK. So a slow client costs no
//! memory but the names it holds, and always gets the latest state. Policies are sent before the workloads that list them, and removed after:
//!
//! ```text
//! new world:  policies added or changed  ->  addresses  ->  policies removed
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::ArcStr;
use mesh_proto::discovery as wire;

use crate::world::{Kind, Resource, World};

/// Names that a client may ask for by itself.
const MAX_NAMES: usize = 10_000;
/// Resources that a client may say it has. Each costs memory before it is known whether it exists.
pub const MAX_VERSIONS: usize = 400_000;
/// How often a client may subscribe to everything: each time all of it is looked at.
const MAX_WILDCARDS: u32 = 16;
/// Longer than any name.
const MAX_NAME_BYTES: usize = 1024;
/// Bytes of resources in one response. Far below what clients accept, far above the state of most meshes: a client takes the first
/// response for the whole.
const MAX_RESPONSE_BYTES: usize = 48 << 20;
/// Types that are not served: a client gets one empty answer for each.
const MAX_UNKNOWN_TYPES: usize = 16;

/// What a request led to.
#[derive(Debug)]
pub enum Action {
    /// Send this.
    Send(Box<wire::DeltaDiscoveryResponse>),
    /// The client refused something.
    Nack {
        /// Of which kind.
        kind: Kind,
        /// What it says about it.
        message: String,
    },
    /// The client breaks the rules: end the stream.
    Close(&'static str),
}

/// What is known of a client.
#[derive(Debug, Default)]
pub struct Session {
    world: Arc<World>,
    kinds: BTreeMap<Kind, Subscription>,
    unknown: BTreeSet<String>,
    nonces: u64,
}

#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    /// How often it has become one.
    wildcards: u32,
    /// Names asked for one by one, as they were asked for.
    names: BTreeSet<String>,
    /// What the client has, by version.
    held: BTreeMap<ArcStr, u64>,
    /// The nonce of the response under way.
    pending: Option<String>,
    /// Up to which world the client has been served.
    generation: u64,
    /// Names to send even if the client has them, and requested names that do not exist.
    asked: BTreeSet<ArcStr>,
    absent: BTreeSet<String>,
    /// The client waits for an answer, even an empty one.
    must_answer: bool,
    /// It did not all fit in one response, or removals were held back.
    unfinished: bool,
    nacks: u64,
    sent: u64,
}

/// What is shown of a session in the status.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Progress {
    /// Resources that the client has.
    pub held: usize,
    /// Responses sent.
    pub sent: u64,
    /// Responses refused.
    pub nacks: u64,
    /// An acknowledgement is awaited.
    pub waiting: bool,
    /// The client has everything.
    pub synced: bool,
}

impl Session {
    /// A new stream.
    pub fn new(world: Arc<World>) -> Self {
        Self { world, ..Self::default() }
    }

    /// A request of the client. What it asks for comes with [`Session::send`].
    pub fn request(&mut self, request: wire::DeltaDiscoveryRequest) -> Vec<Action> {
        let Some(kind) = Kind::of_url(&request.type_url) else { return self.unknown(&request.type_url) };
        let names = request.resource_names_subscribe.len() + request.resource_names_unsubscribe.len();
        let long = |n: &String| n.len() > MAX_NAME_BYTES;
        if names > MAX_NAMES || request.resource_names_subscribe.iter().any(long) {
            return vec![Action::Close("too many or too long resource names")];
        }
        if request.initial_resource_versions.len() > MAX_VERSIONS {
            return vec![Action::Close("too many resource versions")];
        }
        let mut actions = Vec::new();
        let world = self.world.clone();
        let is_first = !self.kinds.contains_key(&kind);
        let subscription = self.kinds.entry(kind).or_default();
        if is_first {
            let unsubscribes_all = request.resource_names_unsubscribe.iter().any(|n| n == "*");
            subscription.wildcard = request.resource_names_subscribe.is_empty() && !unsubscribes_all;
            subscription.must_answer = true;
            subscription.resume(&world, kind, &request.initial_resource_versions);
        } else if !request.response_nonce.is_empty() {
            // Any other nonce is of a response that has been replaced: it says nothing any more.
            if subscription.pending.as_deref() == Some(request.response_nonce.as_str()) {
                subscription.pending = None;
                if let Some(detail) = request.error_detail {
                    subscription.nacks += 1;
                    actions.push(Action::Nack { kind, message: detail.message });
                }
            }
        }
        if !subscription.subscribe(&world, kind, &request.resource_names_subscribe) {
            return vec![Action::Close("too many resource names")];
        }
        subscription.unsubscribe(&world, kind, &request.resource_names_unsubscribe);
        actions
    }

    /// There is a new world.
    pub fn world(&mut self, world: Arc<World>) {
        self.world = world;
    }

    /// Whether the client has yet to acknowledge something.
    pub fn is_waiting(&self) -> bool {
        self.kinds.values().any(|s| s.pending.is_some())
    }

    /// The oldest response that the client has yet to acknowledge.
    pub fn oldest_pending(&self) -> Option<u64> {
        self.kinds.values().filter_map(|s| s.pending.as_ref()?.parse().ok()).min()
    }

    /// About how many bytes [`Session::send`] would make now.
    pub fn unsent(&self) -> usize {
        let is_free = |kind: &Kind| self.kinds.get(kind).is_some_and(|s| s.pending.is_none());
        let policies_wait = self.is_behind(Kind::Authorization) && !is_free(&Kind::Authorization);
        let next = Kind::ALL.iter().filter(|k| is_free(k) && !(**k == Kind::Address && policies_wait));
        next.filter_map(|k| Some(self.kinds.get(k)?.unsent(&self.world, *k))).sum()
    }

    /// How far the client is, by kind.
    pub fn progress(&self) -> BTreeMap<&'static str, Progress> {
        let progress = |s: &Subscription| Progress {
            held: s.held.len(),
            sent: s.sent,
            nacks: s.nacks,
            waiting: s.pending.is_some(),
            synced: s.pending.is_none() && s.generation == self.world.generation && !s.unfinished && !s.must_answer,
        };
        self.kinds.iter().map(|(kind, s)| (kind.short(), progress(s))).collect()
    }

    fn unknown(&mut self, url: &str) -> Vec<Action> {
        // The answer to an answer, and the same question again, need none.
        if self.unknown.contains(url) || url.len() > MAX_NAME_BYTES {
            return Vec::new();
        }
        if self.unknown.len() >= MAX_UNKNOWN_TYPES {
            return vec![Action::Close("too many types that are not served")];
        }
        self.unknown.insert(url.to_owned());
        self.nonces += 1;
        vec![Action::Send(Box::new(wire::DeltaDiscoveryResponse {
            type_url: url.to_owned(),
            nonce: format!("{}", self.nonces),
            system_version_info: String::new(),
            resources: Vec::new(),
            removed_resources: Vec::new(),
        }))]
    }

    /// Sends what can be sent now.
    pub fn send(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        // Two rounds: removals of policies become possible once the addresses of the same world have gone out.
        for _ in 0..2 {
            for kind in Kind::ALL {
                let addresses_behind = self.is_behind(Kind::Address);
                let policies_behind = self.is_behind(Kind::Authorization);
                let world = self.world.clone();
                let Some(subscription) = self.kinds.get_mut(&kind) else { continue };
                if subscription.pending.is_some() || (kind == Kind::Address && policies_behind) {
                    continue;
                }
                let hold_removals = kind == Kind::Authorization && addresses_behind;
                if let Some(mut response) = subscription.respond(&world, kind, hold_removals) {
                    self.nonces += 1;
                    response.nonce = format!("{}", self.nonces);
                    subscription.pending = Some(response.nonce.clone());
                    actions.push(Action::Send(Box::new(response)));
                }
            }
        }
        actions
    }

    /// Whether the client wants this kind and has not been sent what the world holds of it. Removals held back do not count.
    fn is_behind(&self, kind: Kind) -> bool {
        self.kinds.get(&kind).is_some_and(|s| s.generation != self.world.generation)
    }
}

impl Subscription {
    /// Takes over what the client still has from an earlier stream.
    fn resume(&mut self, world: &World, kind: Kind, versions: &std::collections::HashMap<String, String>) {
        let table = world.table(kind);
        for (name, version) in versions {
            let held = u64::from_str_radix(version, 16).ok();
            let known = table.get(name).map(|r| r.name.clone());
            // What does not exist any more is held in some version, so that its removal is sent.
            self.held.insert(known.unwrap_or_else(|| name.as_str().into()), held.unwrap_or(0));
        }
    }

    fn subscribe(&mut self, world: &World, kind: Kind, names: &[String]) -> bool {
        for name in names {
            if name == "*" {
                self.must_answer = true;
                if !self.wildcard {
                    self.wildcard = true;
                    self.generation = 0;
                    self.wildcards += 1;
                }
                if self.wildcards > MAX_WILDCARDS {
                    return false;
                }
                continue;
            }
            if self.names.len() >= MAX_NAMES {
                return false;
            }
            self.names.insert(name.clone());
            let found = world.lookup(kind, name);
            if found.is_empty() {
                self.absent.insert(name.clone());
            }
            self.asked.extend(found);
            self.must_answer = true;
        }
        true
    }

    fn unsubscribe(&mut self, world: &World, kind: Kind, names: &[String]) {
        for name in names {
            if name == "*" {
                self.wildcard = false;
            } else {
                self.names.remove(name);
                self.absent.remove(name);
            }
        }
        if !names.is_empty() && !self.wildcard {
            let wanted = self.wanted(world, kind);
            self.held.retain(|name, _| wanted.contains(name));
        }
    }

    /// The names that a client without wildcard is to have.
    fn wanted(&self, world: &World, kind: Kind) -> BTreeSet<ArcStr> {
        self.names.iter().flat_map(|n| world.lookup(kind, n)).collect()
    }

    /// The next response, if there is anything to say.
    fn respond(&mut self, world: &World, kind: Kind, hold_removals: bool) -> Option<wire::DeltaDiscoveryResponse> {
        if !self.has_news(world) {
            return None;
        }
        let (mut upserts, mut removals) = self.difference(world, kind);
        upserts.extend(std::mem::take(&mut self.asked));
        let mut resources = Vec::new();
        let mut size = 0;
        let mut complete = true;
        for name in upserts {
            let Some(resource) = world.table(kind).get(&name) else { continue };
            if size > 0 && size + resource.bytes.len() > MAX_RESPONSE_BYTES {
                complete = false;
                break;
            }
            size += weight(resource);
            self.held.insert(name, resource.version);
            resources.push(wire::Resource {
                version: resource.version_text(),
                resource: Some(wire::Any { type_url: kind.url().to_owned(), value: resource.bytes.clone() }),
                name: resource.name.to_string(),
                aliases: resource.aliases.clone(),
                ttl: None,
                cache_control: None,
            });
        }
        let held_back = !removals.is_empty() && (hold_removals || !complete);
        if held_back {
            removals.clear();
        }
        for name in &removals {
            self.held.remove(name);
        }
        let mut removed: Vec<String> = removals.iter().map(ToString::to_string).collect();
        if complete {
            removed.extend(std::mem::take(&mut self.absent));
            self.generation = world.generation;
        }
        self.unfinished = held_back || !complete;
        if resources.is_empty() && removed.is_empty() && !self.must_answer {
            return None;
        }
        self.must_answer = false;
        self.sent += 1;
        Some(wire::DeltaDiscoveryResponse {
            system_version_info: world.generation.to_string(),
            resources,
            type_url: kind.url().to_owned(),
            nonce: String::new(),
            removed_resources: removed,
        })
    }

    fn has_news(&self, world: &World) -> bool {
        self.generation != world.generation || self.must_answer || self.unfinished
    }

    /// How large the next response will be, at most.
    fn unsent(&self, world: &World, kind: Kind) -> usize {
        if !self.has_news(world) {
            return 0;
        }
        let (mut upserts, removals) = self.difference(world, kind);
        upserts.extend(self.asked.iter().cloned());
        let upserts = upserts.iter().filter_map(|name| world.table(kind).get(name)).map(|r| weight(r));
        upserts.chain(removals.iter().map(|name| name.len())).sum()
    }

    /// What the client lacks or has in another version, and what it has that is gone.
    fn difference(&self, world: &World, kind: Kind) -> (BTreeSet<ArcStr>, Vec<ArcStr>) {
        let table = world.table(kind);
        let differs = |name: &ArcStr| table.get(name).is_some_and(|r| self.held.get(name) != Some(&r.version));
        let gone = |name: &ArcStr| table.get(name).is_none() && self.held.contains_key(name);
        if !self.wildcard {
            let wanted = self.wanted(world, kind);
            let removals = self.held.keys().filter(|n| !wanted.contains(*n)).cloned().collect();
            return (wanted.into_iter().filter(differs).collect(), removals);
        }
        let recent = (self.generation > 0 && !self.unfinished).then(|| table.changed_since(self.generation)).flatten();
        match recent {
            Some(changed) => {
                let removals = changed.iter().filter(|n| gone(n)).cloned().collect();
                (changed.into_iter().filter(differs).collect(), removals)
            }
            None => {
                let removals = self.held.keys().filter(|n| gone(n)).cloned().collect();
                (table.iter().map(|(n, _)| n).filter(|n| differs(n)).cloned().collect(), removals)
            }
        }
    }
}

/// Bytes of a resource in a response: names and versions weigh as much as small resources.
fn weight(resource: &Resource) -> usize {
    resource.bytes.len() + 2 * resource.name.len() + 64
}
