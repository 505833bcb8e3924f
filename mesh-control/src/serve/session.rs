//! One client's stream, as a state machine without I/O: requests and worlds go in, responses come out.
//!
//! What a request or a world leads to is built by [`Session::send`] and not before: a stream that waits for its turn holds nothing large.
//! Of each kind at most one response is under way; whatever changes meanwhile is sent, merged, after its ACK. What a client holds of everything is a table,
//! mostly one that a world has anyway: so neither many clients nor slow ones cost memory, and each always gets the latest state. Policies are sent before the
//! workloads that list them, and removed after; what a waypoint has of its own comes after the addresses that it names:
//!
//! ```text
//! new world:  policies added or changed  ->  addresses  ->  policies removed, labels  ->  clusters  ->  routes
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::ArcStr;
use mesh_proto::discovery as wire;

use super::response::Response;
use super::versions::{Request, Versions};
use crate::world::{Audience, Kind, Step, Table, World};

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
    Send(Box<Response>),
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
#[derive(Debug)]
pub struct Session {
    world: Arc<World>,
    audience: Audience,
    kinds: BTreeMap<Kind, Subscription>,
    unknown: BTreeSet<String>,
    nonces: u64,
}

/// What a client has.
#[derive(Debug)]
enum Held {
    /// Of what it has asked for one by one, by version.
    Some(BTreeMap<ArcStr, u64>),
    /// Of everything.
    All(Table),
}

impl Default for Held {
    fn default() -> Self {
        Held::Some(BTreeMap::new())
    }
}

#[derive(Debug, Default)]
struct Subscription {
    /// How often it has become one.
    wildcards: u32,
    /// Names asked for one by one, as they were asked for.
    names: BTreeSet<String>,
    held: Held,
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
    /// A new stream of somebody.
    pub fn new(world: Arc<World>, audience: Audience) -> Self {
        Self { world, audience, kinds: BTreeMap::new(), unknown: BTreeSet::new(), nonces: 0 }
    }

    /// A request of the client. What it asks for comes with [`Session::send`].
    pub fn request(&mut self, request: Request) -> Vec<Action> {
        let Request { message: request, versions } = request;
        let Some(kind) = self.audience.kind(&request.type_url) else { return self.unknown(&request.type_url) };
        let names = request.resource_names_subscribe.len() + request.resource_names_unsubscribe.len();
        let long = |n: &String| n.len() > MAX_NAME_BYTES;
        if names > MAX_NAMES || request.resource_names_subscribe.iter().any(long) {
            return vec![Action::Close("too many or too long resource names")];
        }
        if versions.count() > MAX_VERSIONS {
            return vec![Action::Close("too many resource versions")];
        }
        let mut actions = Vec::new();
        let sight = self.sight(kind);
        let is_first = !self.kinds.contains_key(&kind);
        let subscription = self.kinds.entry(kind).or_default();
        if is_first {
            let unsubscribes_all = request.resource_names_unsubscribe.iter().any(|n| n == "*");
            let wildcard = request.resource_names_subscribe.is_empty() && !unsubscribes_all;
            subscription.must_answer = true;
            subscription.resume(&sight, wildcard, &versions);
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
        if !subscription.subscribe(&sight, &request.resource_names_subscribe) {
            return vec![Action::Close("too many resource names")];
        }
        subscription.unsubscribe(&sight, &request.resource_names_unsubscribe);
        actions
    }

    /// Of the world that it is at.
    pub fn generation(&self) -> u64 {
        self.world.generation
    }

    /// There is a new world.
    pub fn world(&mut self, world: Arc<World>) {
        self.world = world;
    }

    /// Whether the client has subscribed to every kind. Agents that are not ours know two only.
    pub fn knows_all(&self) -> bool {
        let kinds = match self.audience {
            Audience::Agent => &[Kind::Authorization, Kind::Address],
            Audience::Waypoint(_) => self.audience.kinds(),
        };
        kinds
            .iter()
            .filter(|kind| !matches!(kind, Kind::Connections | Kind::Outbound))
            .all(|kind| self.kinds.contains_key(kind))
    }

    /// Whether the client has yet to acknowledge something.
    pub fn is_waiting(&self) -> bool {
        self.kinds.values().any(|s| s.pending.is_some())
    }

    /// The oldest response that the client has yet to acknowledge.
    pub fn oldest_pending(&self) -> Option<u64> {
        self.kinds.values().filter_map(|s| s.pending.as_ref()?.parse().ok()).min()
    }

    /// The number of the last response; 0 before the first.
    pub fn last_response(&self) -> u64 {
        self.nonces
    }

    /// About how many bytes [`Session::send`] would make now.
    pub fn unsent(&self) -> usize {
        let is_free = |kind: &Kind| self.kinds.get(kind).is_some_and(|s| s.pending.is_none());
        let policies_wait = self.is_behind(Kind::Authorization) && !is_free(&Kind::Authorization);
        let next = Kind::ALL.iter().filter(|k| is_free(k) && !(**k == Kind::Address && policies_wait));
        next.filter_map(|k| Some(self.kinds.get(k)?.unsent(&self.sight(*k)))).sum()
    }

    /// How far the client is, by kind.
    pub fn progress(&self) -> BTreeMap<&'static str, Progress> {
        let progress = |s: &Subscription| Progress {
            held: s.held(),
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
        let (type_url, nonce) = (url.to_owned(), self.nonces.to_string());
        let head = wire::DeltaDiscoveryResponse { type_url, nonce, ..Default::default() };
        vec![Action::Send(Box::new(Response { head, ..Response::default() }))]
    }

    /// Sends what can be sent now.
    pub fn send(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        // Two rounds: removals of policies become possible once the addresses of the same world have gone out.
        for _ in 0..2 {
            for kind in Kind::ALL {
                let addresses_behind = self.is_behind(Kind::Address);
                // What a resource names is there before it: policies of workloads, services and places of routes.
                let must_wait = Kind::ALL.into_iter().take_while(|before| *before < kind).any(|k| self.is_behind(k));
                let sight = self.sight(kind);
                let Some(subscription) = self.kinds.get_mut(&kind) else { continue };
                if subscription.pending.is_some() || must_wait {
                    continue;
                }
                let hold_removals = kind == Kind::Authorization && addresses_behind;
                if let Some(mut response) = subscription.respond(&sight, hold_removals) {
                    self.nonces += 1;
                    response.head.nonce = self.nonces.to_string();
                    subscription.pending = Some(response.head.nonce.clone());
                    actions.push(Action::Send(Box::new(response)));
                }
            }
        }
        actions
    }

    /// Whether the client has been sent all that it wants of the world. Removals held back do not count.
    pub fn has_sent_all(&self) -> bool {
        self.kinds.values().all(|s| s.generation == self.world.generation)
    }

    /// What the client may see of a kind.
    fn sight(&self, kind: Kind) -> Sight {
        Sight { world: self.world.clone(), kind, audience: self.audience.clone() }
    }

    /// Whether the client wants this kind and has not been sent what the world holds of it. Removals held back do not count.
    fn is_behind(&self, kind: Kind) -> bool {
        self.kinds.get(&kind).is_some_and(|s| s.generation != self.world.generation)
    }
}

/// A kind of a world, as one client may see it.
struct Sight {
    world: Arc<World>,
    kind: Kind,
    audience: Audience,
}

impl Sight {
    fn table(&self) -> &Table {
        self.world.table(self.kind, &self.audience)
    }

    fn lookup(&self, key: &str) -> Vec<ArcStr> {
        self.world.lookup(self.kind, &self.audience, key)
    }

    fn since(&self, held: &Table, with_gone: bool) -> Arc<Step> {
        self.world.since(self.kind, &self.audience, held, MAX_RESPONSE_BYTES, with_gone)
    }
}

impl Subscription {
    /// Takes over what the client still has from an earlier stream. What does not exist any more is held, too, so that its removal is sent.
    fn resume(&mut self, sight: &Sight, wildcard: bool, versions: &Versions) {
        let table = sight.table();
        let name = |name: &str| table.get(name).map_or_else(|| name.into(), |entry| entry.name.clone());
        self.held = match wildcard {
            true => Held::All(table.claimed(versions.iter())),
            false => Held::Some(versions.iter().map(|(n, version)| (name(n), version)).collect()),
        };
    }

    /// How many resources the client has.
    fn held(&self) -> usize {
        match &self.held {
            Held::Some(held) => held.len(),
            Held::All(table) => table.len(),
        }
    }

    fn is_wildcard(&self) -> bool {
        matches!(self.held, Held::All(_))
    }

    fn subscribe(&mut self, sight: &Sight, names: &[String]) -> bool {
        for name in names {
            if name == "*" {
                self.must_answer = true;
                if let Held::Some(held) = &self.held {
                    let held = held.iter().map(|(name, version)| (name.as_str(), *version));
                    self.held = Held::All(sight.table().claimed(held));
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
            let found = sight.lookup(name);
            if found.is_empty() {
                self.absent.insert(name.clone());
            }
            self.asked.extend(found);
            self.must_answer = true;
        }
        true
    }

    fn unsubscribe(&mut self, sight: &Sight, names: &[String]) {
        let mut is_some = false;
        for name in names {
            if name == "*" {
                is_some = true;
            } else {
                self.names.remove(name);
                self.absent.remove(name);
            }
        }
        if names.is_empty() || (self.is_wildcard() && !is_some) {
            return;
        }
        let wanted = self.wanted(sight);
        match &mut self.held {
            Held::Some(held) => held.retain(|name, _| wanted.contains(name)),
            Held::All(table) => {
                let held = wanted.into_iter().filter_map(|name| table.get(&name).map(|e| e.version).map(|v| (name, v)));
                self.held = Held::Some(held.collect());
            }
        }
    }

    /// The names that a client without wildcard is to have.
    fn wanted(&self, sight: &Sight) -> BTreeSet<ArcStr> {
        self.names.iter().flat_map(|n| sight.lookup(n)).collect()
    }

    /// The next response, if there is anything to say.
    fn respond(&mut self, sight: &Sight, hold_removals: bool) -> Option<Response> {
        if !self.has_news(&sight.world) {
            return None;
        }
        let mut response = Response::default();
        let asked = std::mem::take(&mut self.asked);
        let (gone, is_complete, is_whole) = match &mut self.held {
            Held::All(held) => everything(sight, held, asked, hold_removals, &mut response),
            Held::Some(_) => self.wanted_only(sight, asked, hold_removals, &mut response),
        };
        let mut removed: Vec<String> = gone.iter().map(ToString::to_string).collect();
        if is_complete {
            removed.extend(std::mem::take(&mut self.absent));
            self.generation = sight.world.generation;
        }
        self.unfinished = !is_whole;
        if response.count == 0 && removed.is_empty() && !self.must_answer {
            return None;
        }
        self.must_answer = false;
        self.sent += 1;
        response.head.system_version_info = sight.world.generation.to_string();
        response.head.type_url = sight.kind.url().to_owned();
        response.head.removed_resources = removed;
        Some(response)
    }

    /// Of those names that a client has asked for. What is gone; whether all that is lacking is in the response, and whether that is all.
    fn wanted_only(
        &mut self,
        sight: &Sight,
        asked: BTreeSet<ArcStr>,
        hold_removals: bool,
        response: &mut Response,
    ) -> (Vec<ArcStr>, bool, bool) {
        let wanted = self.wanted(sight);
        let table = sight.table();
        let Held::Some(held) = &mut self.held else { return (Vec::new(), true, true) };
        let (mut size, mut is_complete) = (0, true);
        for name in wanted.union(&asked) {
            let Some(entry) = table.get(name) else { continue };
            if held.get(name) == Some(&entry.version) && !asked.contains(name) {
                continue;
            }
            let Some(part) = table.part(name) else { continue };
            if size > 0 && size + part.len() > MAX_RESPONSE_BYTES {
                is_complete = false;
                break;
            }
            size += part.len();
            held.insert(name.clone(), entry.version);
            response.parts.push(part);
            response.count += 1;
        }
        let gone: Vec<ArcStr> = held.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
        if !gone.is_empty() && (hold_removals || !is_complete) {
            return (Vec::new(), is_complete, false);
        }
        for name in &gone {
            held.remove(name);
        }
        (gone, is_complete, is_complete)
    }

    fn has_news(&self, world: &World) -> bool {
        self.generation != world.generation || self.must_answer || self.unfinished
    }

    /// How large the next response will be, at most.
    fn unsent(&self, sight: &Sight) -> usize {
        if !self.has_news(&sight.world) {
            return 0;
        }
        let size = |name: &ArcStr| sight.table().part(name).map_or(0, |part| part.len());
        let asked = self.asked.iter().map(size).sum::<usize>();
        asked
            + match &self.held {
                // Found out once for everybody who has the same, and most likely what is sent then.
                Held::All(held) => sight.since(held, true).size,
                Held::Some(_) => self.wanted(sight).iter().map(size).sum(),
            }
    }
}

/// Of everything. What is gone; whether all that is lacking is in the response, and whether that is all.
fn everything(
    sight: &Sight,
    held: &mut Table,
    asked: BTreeSet<ArcStr>,
    hold_removals: bool,
    response: &mut Response,
) -> (Vec<ArcStr>, bool, bool) {
    let table = sight.table();
    let step = sight.since(held, !hold_removals);
    response.parts.clone_from(&step.parts);
    response.count = step.count;
    let version = |table: &Table, name: &ArcStr| table.get(name).map(|entry| entry.version);
    // What was asked for is sent also to whoever has it.
    for name in asked.iter().filter(|name| version(table, name) == version(held, name)) {
        if let Some(part) = table.part(name) {
            response.parts.push(part);
            response.count += 1;
        }
    }
    *held = step.next.clone();
    (step.gone.clone(), step.is_complete, step.is_whole)
}
