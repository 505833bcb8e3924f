//! The facade over programs, maps and pins: one per agent process.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use ipnet::IpNet;
use mesh_common::{
    Reason,
    row::{Control, POD_CLOSED, POD_REGISTRY_ONLY, Pod, SOCKET_PUBLISHED, SocketState, maps},
};
use parking_lot::Mutex;

use super::{
    collect::{self, Collector},
    config::{Foreign, InboundMode, KernelConfig, KernelError, PodSpec, Repair, Setting},
    events::Events,
    foreign, inbound,
    kubelet::KubeletHook,
    links::Hooks,
    netns,
    object::{self, Loader, Settings, bpf},
    pins::{self, Pins},
    pods::{self, Enrolled},
    probe::Features,
    registry, rules, sys,
    tables::Tables,
};

/// The loaded programs of one instance. Dropping it leaves everything pinned and working.
#[derive(Debug)]
pub struct Kernel {
    config: KernelConfig,
    pins: Pins,
    settings: Settings,
    tables: Tables,
    hooks: Mutex<Hooks>,
    kubelet: Mutex<KubeletHook>,
    /// Loading takes milliseconds: not under the lock of the pods.
    loader: Mutex<Loader>,
    /// Steps of enrolment, release and changes of rows exclude each other; each is short. One pod is never enrolled and released at once:
    /// the callers see to that.
    pods: Mutex<HashMap<u64, Enrolled>>,
    collector: Mutex<Collector>,
    degradations: Vec<&'static str>,
    repairs: Vec<Repair>,
    /// None once another agent has the instance.
    lock: Mutex<Option<OwnedFd>>,
    given_way: AtomicBool,
}

impl Kernel {
    /// Locks the instance, mounts bpffs if needed, loads the programs or adopts what a dead agent left, tests that they work.
    pub fn start(config: KernelConfig) -> Result<Self, KernelError> {
        check(&config)?;
        let pins = Pins::new(&config);
        pins.prepare(&config)?;
        let lock = pins::lock(&pins.instance, &config.instance)?;
        let features = match config.new_features {
            true => Features::probe()?,
            false => Features { set_retval: false },
        };
        let repairs = object::discard_foreign_maps(&pins, &config.limits)?;
        let cookie = netns::current_cookie().map_err(|source| bpf("ask for the cookie of", "the namespace", source))?;
        let settings = Settings { cookie, have_set_retval: features.set_retval };
        let mut loader = Loader::new(&pins, &config.limits, config.debug_log)?;
        let mut loaded = loader.open(&settings, None)?;
        let tables = Tables::open(&pins, config.limits)?;
        close_unknown_pods(&pins, &tables, config.setting())?;
        apply_setting(&tables, config.setting()).map_err(|source| bpf("write", maps::PODS, source))?;
        collect::settle(&tables).map_err(|source| bpf("write", maps::SLOT_POOL, source))?;
        let hooks = Hooks::attach(&mut loaded, &pins, &config)?;
        let kubelet = KubeletHook::new(&mut loaded)?;
        let kernel = Self {
            config,
            pins,
            settings,
            tables,
            hooks: Mutex::new(hooks),
            kubelet: Mutex::new(kubelet),
            loader: Mutex::new(loader),
            pods: Mutex::default(),
            collector: Mutex::default(),
            degradations: features.degradations(),
            repairs,
            lock: Mutex::new(Some(lock)),
            given_way: AtomicBool::new(false),
        };
        if kernel.config.debug_log {
            super::log::read(&mut loaded)?;
        }
        kernel.heartbeat();
        kernel.discard_other_versions();
        if kernel.config.self_test {
            super::selftest::run(&kernel, &kernel.config)?;
        }
        Ok(kernel)
    }

    /// Leaves the instance to another agent: from now on nothing of it is changed, and what this one has captured is the other's. Connections go on:
    /// where apps wanted to go, and who their clients are, is still read and written.
    pub fn give_way(&self) {
        {
            // Whatever is under way is whole afterwards.
            let _pods = self.pods.lock();
            let _kubelet = self.kubelet.lock();
            self.given_way.store(true, Ordering::Release);
        }
        *self.lock.lock() = None;
    }

    fn has_given_way(&self) -> bool {
        self.given_way.load(Ordering::Acquire)
    }

    /// Missing kernel features by name; empty on a current kernel.
    pub fn degradations(&self) -> &[&'static str] {
        &self.degradations
    }

    /// What had to be put right at start.
    pub fn start_repairs(&self) -> &[Repair] {
        &self.repairs
    }

    /// Captures a pod, or updates a captured one. Idempotent. Blocks for some milliseconds. When it fails, a pod that was captured before
    /// refuses no less than before or than the new mode asks, and of any other nothing is left.
    pub fn enrol(&self, pod: &PodSpec<'_>) -> Result<(), KernelError> {
        if self.has_given_way() {
            return Err(KernelError::Pod { cookie: pod.cookie, reason: "is another agent's now".to_owned() });
        }
        let mut row = pods::row(pod, &self.config.limits)?;
        row.flags = inbound::with_setting(row.flags, self.config.setting());
        let known = self.tables.pods.get(&pod.cookie).map_err(|source| bpf("read", maps::PODS, source))?.is_some();
        let enrolled = self.capture(pod, &row);
        if enrolled.is_err() && !known {
            if let Err(error) = self.remove(pod.cookie) {
                tracing::warn!(%error, cookie = pod.cookie, "cannot clear what is left of a failed enrolment");
            }
            let _ = netns::inside(pod.netns, netns::remove_slot_routes);
        }
        enrolled
    }

    fn capture(&self, pod: &PodSpec<'_>, row: &Pod) -> Result<(), KernelError> {
        let settings = Settings { cookie: pod.cookie, ..self.settings };
        let context = pods::Context { tables: &self.tables, pins: &self.pins, settings };
        pods::add_routes(pod)?;
        let loaded = pods::load(pod, &context, &mut self.loader.lock())?;
        let mut pods = self.pods.lock();
        if self.has_given_way() {
            return Err(KernelError::Pod { cookie: pod.cookie, reason: "is another agent's now".to_owned() });
        }
        let mode = self.within_limits(pod.cookie, pod.inbound)?;
        let pod = &PodSpec { inbound: &mode, ..*pod };
        let failed = |source| bpf("write", maps::PORT_RULES, source);
        let excluded = rules::set(&self.tables, pod.cookie, pod.ips, pod.rules).map_err(failed)?;
        let row = Pod { flags: inbound::with_mode(row.flags, &mode) | excluded, ..*row };
        pods.insert(pod.cookie, Enrolled::enrol(pod, &row, loaded, &context)?);
        Ok(())
    }

    /// Changes what plaintext from the network meets. A closed pod stays as it is. False: there was no room for the modes of the pod's ports, it is left
    /// to the agent; to be tried again later.
    pub fn set_inbound(&self, cookie: u64, mode: &InboundMode) -> Result<bool, KernelError> {
        let _pods = self.pods.lock();
        if self.has_given_way() {
            return Ok(true);
        }
        let failed = |source| bpf("write", maps::PODS, source);
        let row = self.tables.pods.get(&cookie).map_err(failed)?;
        let Some(mut row) = row else {
            return Err(KernelError::Pod { cookie, reason: "is not enrolled".to_owned() });
        };
        if row.flags & POD_CLOSED != 0 {
            return Ok(true);
        }
        let mode = &self.within_limits(cookie, mode)?;
        let whole = matches!(mode, Cow::Borrowed(_));
        let tighten = mode.default_strict || mode.undecided;
        if !tighten {
            inbound::set_ports(&self.tables, cookie, mode)?;
        }
        row.flags = inbound::with_mode(row.flags, mode);
        self.tables.pods.set(&cookie, &row, sys::ANY).map_err(failed)?;
        if tighten {
            inbound::set_ports(&self.tables, cookie, mode)?;
        }
        Ok(whole)
    }

    /// Says whether a pod may reach only what the registry knows. Before the first pod that may not, [`Self::set_registry`] says what that is.
    pub fn set_registry_only(&self, cookie: u64, registry_only: bool) -> Result<(), KernelError> {
        let _pods = self.pods.lock();
        if self.has_given_way() {
            return Ok(());
        }
        let failed = |source| bpf("write", maps::PODS, source);
        let Some(mut row) = self.tables.pods.get(&cookie).map_err(failed)? else {
            return Err(KernelError::Pod { cookie, reason: "is not enrolled".to_owned() });
        };
        let flags = registry::with_outbound(row.flags, registry_only);
        if flags != row.flags {
            row.flags = flags;
            self.tables.pods.set(&cookie, &row, sys::ANY).map_err(failed)?;
        }
        Ok(())
    }

    /// Whether the row of a pod says that it may reach only what the registry knows.
    pub fn is_registry_only(&self, cookie: u64) -> bool {
        matches!(self.tables.pods.get(&cookie), Ok(Some(row)) if row.flags & POD_REGISTRY_ONLY != 0)
    }

    /// What the kernel takes for known of the registry.
    pub fn registry(&self) -> Result<BTreeSet<IpNet>, KernelError> {
        registry::known(&self.tables).map_err(|source| bpf("read", maps::REGISTRY, source))
    }

    /// Changes that. What has no room is returned: pods that may reach only the registry do not reach it.
    pub fn set_registry(&self, add: &[IpNet], remove: &[IpNet]) -> Result<Vec<IpNet>, KernelError> {
        let _pods = self.pods.lock();
        if self.has_given_way() {
            return Ok(Vec::new());
        }
        registry::change(&self.tables, add, remove).map_err(|source| bpf("write", maps::REGISTRY, source))
    }

    /// A pod whose policies name more ports than it may have, or than there is room for, is left to the agent. Called with `pods` locked: nobody
    /// else takes the room.
    fn within_limits<'a>(&self, cookie: u64, mode: &'a InboundMode) -> Result<Cow<'a, InboundMode>, KernelError> {
        let room = inbound::have_room(&self.tables, cookie, mode, &self.config.limits);
        if room.map_err(|source| bpf("read", maps::INBOUND_PORTS, source))? {
            return Ok(Cow::Borrowed(mode));
        }
        tracing::debug!(cookie, ports = mode.ports.len(), "plaintext to the pod is left to the agent to judge");
        Ok(Cow::Owned(InboundMode { undecided: true, ..InboundMode::default() }))
    }

    /// Releases a pod: its sockets are no longer captured. Unknown cookies are fine.
    pub fn remove(&self, cookie: u64) -> Result<(), KernelError> {
        let detached = {
            let mut pods = self.pods.lock();
            if self.has_given_way() {
                return Ok(());
            }
            let enrolled = pods.remove(&cookie);
            pods::detach(cookie, enrolled, &self.tables, &self.pins)
        };
        self.collector.lock().forget(cookie);
        let forgotten = self.tables.forget(cookie).map_err(|source| bpf("clear", maps::PODS, source));
        detached.and(forgotten)
    }

    /// Has every new connection of a captured pod refused until it is enrolled again or removed: for pods that cannot be served now and
    /// must not go unserved. Unknown cookies are fine. Keeps no reference to the pod's namespace.
    pub fn close(&self, cookie: u64) -> Result<(), KernelError> {
        let mut pods = self.pods.lock();
        if self.has_given_way() {
            return Ok(());
        }
        pods.remove(&cookie);
        pods::close(cookie, &self.tables, self.config.setting()).map_err(|source| bpf("write", maps::PODS, source))
    }

    /// Gives tickets to what the processes of this cgroup ask the pods' probes. To be called whenever the kubelet's cgroup may be another one: every
    /// few seconds. True if something changed. It stays as it is after the agent's death; nobody gets tickets when this cgroup is not fit for it.
    pub fn follow_kubelet(&self, cgroup: &Path) -> Result<bool, KernelError> {
        let mut kubelet = self.kubelet.lock();
        if self.has_given_way() { Ok(false) } else { kubelet.follow(cgroup, &self.pins, &self.config) }
    }

    /// Nobody gets tickets any more: nobody says who the kubelet is. True if somebody did, of an earlier agent too.
    pub fn leave_kubelet(&self) -> Result<bool, KernelError> {
        let mut kubelet = self.kubelet.lock();
        if self.has_given_way() { Ok(false) } else { kubelet.leave(&self.pins) }
    }

    /// Cookies of all enrolled pods, also of those that a dead agent left.
    pub fn enrolled(&self) -> Vec<u64> {
        self.tables.pods.keys().unwrap_or_default()
    }

    /// What the app asked for, by the local address of the agent's accepted socket or of a received datagram.
    pub fn original_destination(&self, cookie: u64, local: SocketAddr) -> Option<SocketAddr> {
        self.tables.original_destination(cookie, local)
    }

    /// Makes the app see `client` as its peer. Call it on the agent's socket before it connects to the app, from the agent's cgroup.
    pub fn set_client(&self, agent_socket: BorrowedFd<'_>, client: SocketAddr) -> Result<(), KernelError> {
        self.tables
            .sockets
            .set(&agent_socket.as_raw_fd(), &Tables::client_state(client), sys::ANY)
            .map_err(|source| bpf("write", maps::SOCKETS, source))
    }

    /// True if the app of a connected agent socket sees the client given to [`Self::set_client`]; false if the client map was full,
    /// or the socket was not made in the agent's cgroup.
    pub fn client_shown(&self, agent_socket: BorrowedFd<'_>) -> bool {
        let state: io::Result<Option<SocketState>> = self.tables.sockets.get(&agent_socket.as_raw_fd());
        matches!(state, Ok(Some(state)) if state.kind == SOCKET_PUBLISHED)
    }

    /// A sign of life, to be given every second. DNS goes to the original resolver without it.
    pub fn heartbeat(&self) {
        if self.has_given_way() {
            return;
        }
        let control = Control { heartbeat: monotonic(), stale_after: self.config.heartbeat_stale.as_nanos() as u64 };
        if let Err(error) = self.tables.control.set(&0, &control, sys::ANY) {
            tracing::warn!(%error, "cannot write the heartbeat");
        }
    }

    /// Frees slots that nobody has used for a while; to be called every few seconds. Returns how many.
    pub fn collect_slots(&self) -> usize {
        if self.has_given_way() {
            return 0;
        }
        let freed = self.collector.lock().pass(&self.tables, monotonic(), self.config.slot_hold);
        freed.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the slots");
            0
        })
    }

    /// All counters of the programs, summed over the CPUs.
    pub fn counters(&self) -> Vec<(Reason, u64)> {
        self.tables.counters()
    }

    /// One counter.
    pub fn counter(&self, reason: Reason) -> u64 {
        self.counters().into_iter().find(|(counted, _)| *counted == reason).map_or(0, |(_, count)| count)
    }

    /// Name, used and maximum entries of each map.
    pub fn map_usage(&self) -> Vec<(&'static str, u64, u64)> {
        self.tables.usage()
    }

    /// The reader of events; a ring has one reader. Needs a tokio runtime.
    pub fn events(&self) -> Result<Events, KernelError> {
        let ring = self.tables.events().map_err(|source| bpf("dup", maps::EVENTS, source))?;
        Events::new(ring)
    }

    /// Checks that every program is attached where it belongs and pinned, and puts right what is not. To be called every few seconds.
    pub fn verify(&self) -> Result<Vec<Repair>, KernelError> {
        let mut lock = self.lock.lock();
        let Some(held) = &*lock else { return Ok(Vec::new()) };
        self.pins.prepare(&self.config)?;
        if !pins::is_lock_of(held, &self.pins.instance) {
            // bpffs was mounted anew: what we hold is the folder of the old one.
            *lock = Some(pins::lock(&self.pins.instance, &self.config.instance)?);
        }
        let repinned = self.tables.repin(&self.pins).map_err(|source| bpf("pin", "maps", source))?;
        let mut repairs: Vec<Repair> = repinned
            .into_iter()
            .map(|name| Repair { name: name.to_owned(), what: "was not pinned and is again" })
            .collect();
        repairs.extend(self.hooks.lock().verify()?);
        for pod in self.pods.lock().values_mut() {
            repairs.extend(pod.verify(&self.pins)?);
        }
        Ok(repairs)
    }

    /// Programs of others that run where ours do. They are never touched.
    pub fn foreign(&self) -> Result<Vec<Foreign>, KernelError> {
        if self.has_given_way() {
            return Ok(Vec::new());
        }
        let failed = |source| bpf("ask for programs of", "others", source);
        let mut found = self.hooks.lock().foreign().map_err(failed)?;
        for pod in self.pods.lock().values() {
            let (netns, own) = pod.place();
            found.extend(foreign::find("pod_lookup", netns, pods::SK_LOOKUP, &[own]).map_err(failed)?);
        }
        Ok(found)
    }

    /// Removes every pin and link of an instance; what they captured goes its ordinary way again. From the pods' network namespaces in the folder `held`
    /// the routes of slots go, too.
    pub fn uninstall(config: &KernelConfig, held: Option<&Path>) -> Result<(), KernelError> {
        let pins = Pins::new(config);
        if !pins.instance.exists() {
            return Ok(());
        }
        let _lock = pins::lock(&pins.instance, &config.instance)?;
        // First: the pins say whose namespaces they are, also to whoever has to begin again. Connects of these pods are refused until the end.
        if let Some(held) = held {
            netns::remove_all_slot_routes(held, &pins.pinned_pods())
                .map_err(|source| pins::failed("clear", held, source))?;
        }
        pins::detach_links(&pins.instance);
        pins::remove_tree(&pins.instance).map_err(|source| pins::failed("remove", &pins.instance, source))
    }

    fn discard_other_versions(&self) {
        for version in self.pins.other_versions() {
            // Links of pods stay until the pod is enrolled again and takes them over.
            for folder in [version.join("links"), version.join("maps")] {
                if let Err(error) = pins::remove_tree(&folder) {
                    tracing::warn!(%error, path = %folder.display(), "cannot remove pins of another version");
                }
            }
            let has_pods = !pins::list(&version.join("pods")).is_empty();
            if !has_pods && let Err(error) = pins::remove_tree(&version) {
                tracing::warn!(%error, path = %version.display(), "cannot remove pins of another version");
            }
        }
    }
}

/// What a dead agent left follows the setting of this one from the start.
fn apply_setting(tables: &Tables, setting: Setting) -> io::Result<()> {
    for cookie in tables.pods.keys()? {
        let Some(row) = tables.pods.get(&cookie)? else { continue };
        let flags = inbound::with_setting(row.flags, setting);
        if setting.deny_udp {
            pods::add_peers(tables, cookie)?;
        }
        if flags != row.flags {
            tables.pods.set(&cookie, &Pod { flags, ..row }, sys::EXIST)?;
        }
        if !setting.deny_udp {
            tables.udp_peers.delete(&cookie)?;
        }
    }
    Ok(())
}

/// A pod that has a folder but no row (its rows were of another version, or garbage) is refused until it is enrolled again.
fn close_unknown_pods(pins: &Pins, tables: &Tables, setting: Setting) -> Result<(), KernelError> {
    for cookie in pins.pinned_pods() {
        match tables.pods.set(&cookie, &pods::closed_row(cookie, setting), sys::NOEXIST) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(bpf("write", maps::PODS, error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check(config: &KernelConfig) -> Result<(), KernelError> {
    let name_is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if config.instance.is_empty() || config.instance.len() > 63 || !config.instance.bytes().all(name_is_plain) {
        return Err(KernelError::Config(format!("instance name {:?} is not plain", config.instance)));
    }
    let real = |path: &Path| path.canonicalize().map_err(|source| pins::failed("resolve", path, source));
    let (pods, agent) = (real(&config.pods_cgroup)?, real(&config.agent_cgroup)?);
    pins::cgroup_id(&pods)?;
    pins::cgroup_id(&agent)?;
    if agent.starts_with(&pods) {
        return Err(KernelError::Config(format!(
            "the agent's cgroup {} lies under the pods' {}: its own connections would be captured",
            agent.display(),
            pods.display()
        )));
    }
    Ok(())
}

fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
