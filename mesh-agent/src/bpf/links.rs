//! Attaches the hooks to cgroups: adopts a pinned link by replacing its program in one step, or makes and pins a new one; checks
//! later that all are still in place.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{CgroupSockAddr, Program, SockOps},
};

use super::{
    config::{Foreign, KernelConfig, KernelError, Repair},
    foreign,
    object::{bpf, missing},
    pins::{Pins, failed},
    sys,
};

/// Pin, program, attach type of the kernel. In the order of attachment: what counts and answers comes before what captures.
const HOOKS: [(&str, &str, u32); 10] = [
    ("tcp_states_agent", "tcp_states", 3),
    ("tcp_states", "tcp_states", 3),
    ("getpeername4", "getpeername4", 29),
    ("getpeername6", "getpeername6", 30),
    ("recvmsg4", "recvmsg4", 19),
    ("recvmsg6", "recvmsg6", 20),
    ("sendmsg4", "sendmsg4", 14),
    ("sendmsg6", "sendmsg6", 15),
    ("connect4", "connect4", 10),
    ("connect6", "connect6", 11),
];

/// A hook in its place.
#[derive(Debug)]
struct Hook {
    pin: PathBuf,
    name: &'static str,
    attach_type: u32,
    program: OwnedFd,
    program_id: u32,
    agents: bool,
    link: OwnedFd,
}

/// All hooks on cgroups.
#[derive(Debug)]
pub struct Hooks {
    hooks: Vec<Hook>,
    pods_cgroup: Target,
    agent_cgroup: Target,
}

#[derive(Debug)]
struct Target {
    path: PathBuf,
    folder: File,
    id: u64,
}

impl Target {
    fn new(path: &Path) -> Result<Self, KernelError> {
        let id = super::pins::cgroup_id(path)?;
        let folder = File::open(path).map_err(|source| failed("open", path, source))?;
        Ok(Self { path: path.to_owned(), folder, id })
    }

    /// Looks again what is at the path: hooks on a cgroup that was removed and made anew meet nobody.
    fn renew(&mut self) -> Result<(), KernelError> {
        if super::pins::cgroup_id(&self.path)? != self.id {
            *self = Self::new(&self.path)?;
        }
        Ok(())
    }
}

impl Hooks {
    /// Loads the programs and puts each into its place.
    pub fn attach(object: &mut Ebpf, pins: &Pins, config: &KernelConfig) -> Result<Self, KernelError> {
        let pods_cgroup = Target::new(&config.pods_cgroup)?;
        let agent_cgroup = Target::new(&config.agent_cgroup)?;
        load(object)?;
        let mut hooks = Vec::new();
        for (pin_name, program_name, attach_type) in HOOKS {
            let agents = pin_name == "tcp_states_agent";
            let place = if agents { &agent_cgroup } else { &pods_cgroup };
            let program = program_fd(object, program_name)?;
            let program_id = sys::program_id(program.as_fd()).map_err(|source| bpf("ask about", pin_name, source))?;
            let pin = pins.links().join(pin_name);
            let link = adopt(pins, Path::new("links"), pin_name, &pin, program.as_fd(), place.id, attach_type)
                .map_or_else(|| create(&pin, program.as_fd(), place.folder.as_fd(), attach_type), Ok)
                .map_err(|source| bpf("attach", pin_name, source))?;
            hooks.push(Hook { pin, name: pin_name, attach_type, program, program_id, agents, link });
        }
        Ok(Self { hooks, pods_cgroup, agent_cgroup })
    }

    /// Puts back what somebody detached, replaced or unpinned.
    pub fn verify(&mut self) -> Result<Vec<Repair>, KernelError> {
        self.pods_cgroup.renew()?;
        self.agent_cgroup.renew()?;
        let mut repairs = Vec::new();
        for hook in &mut self.hooks {
            let place = if hook.agents { &self.agent_cgroup } else { &self.pods_cgroup };
            let info = sys::link_info(hook.link.as_fd()).map_err(|source| bpf("ask about", hook.name, source))?;
            if info.target != place.id {
                hook.link = create(&hook.pin, hook.program.as_fd(), place.folder.as_fd(), hook.attach_type)
                    .map_err(|source| bpf("attach", hook.name, source))?;
                repairs.push(Repair { name: hook.name.to_owned(), what: "was detached and is attached again" });
            } else if info.program != hook.program_id {
                sys::link_update(hook.link.as_fd(), hook.program.as_fd())
                    .map_err(|source| bpf("update", hook.name, source))?;
                repairs.push(Repair { name: hook.name.to_owned(), what: "ran another program and was set back" });
            } else if !is_pin_of(&hook.pin, info.program) {
                replace_pin(&hook.pin, hook.link.as_fd()).map_err(|source| bpf("pin", hook.name, source))?;
                repairs.push(Repair { name: hook.name.to_owned(), what: "was not pinned and is again" });
            }
        }
        Ok(repairs)
    }

    /// What other programs run where ours do, on these cgroups and above them.
    pub fn foreign(&self) -> io::Result<Vec<Foreign>> {
        let mut foreign = Vec::new();
        for hook in &self.hooks {
            let place = if hook.agents { &self.agent_cgroup } else { &self.pods_cgroup };
            let own: Vec<u32> = self.hooks.iter().map(|hook| hook.program_id).collect();
            foreign.extend(foreign::find(hook.name, place.folder.as_fd(), hook.attach_type, &own)?);
        }
        Ok(foreign)
    }
}

/// Takes over a pinned link of this version, or of another one, if it is attached to the right place. `None` means: make a new one.
pub fn adopt(
    pins: &Pins,
    folder: &Path,
    name: &str,
    pin: &Path,
    program: BorrowedFd<'_>,
    target: u64,
    attach_type: u32,
) -> Option<OwnedFd> {
    let others = pins.other_versions().into_iter().map(|version| version.join(folder).join(name));
    for path in std::iter::once(pin.to_owned()).chain(others) {
        let Ok(link) = sys::open_pin(&path) else { continue };
        // The kernel compares neither place nor hook when it updates a link: a pin under a wrong name would end up in the wrong hook.
        let in_place =
            sys::link_info(link.as_fd()).is_ok_and(|info| info.target == target && info.attach_type == attach_type);
        if !in_place || sys::link_update(link.as_fd(), program).is_err() {
            continue;
        }
        if path != pin {
            let _ = fs::remove_file(pin);
            if fs::rename(&path, pin).is_err() {
                continue;
            }
        }
        return Some(link);
    }
    None
}

/// Makes a link and pins it, over whatever the pin was.
pub fn create(pin: &Path, program: BorrowedFd<'_>, target: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let link = sys::link_create(program, target, attach_type)?;
    replace_pin(pin, link.as_fd())?;
    Ok(link)
}

/// Pins an object; an old pin of that name goes.
pub fn replace_pin(pin: &Path, object: BorrowedFd<'_>) -> io::Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    sys::pin(object, pin)
}

/// True if the pin is a link that runs the program.
pub fn is_pin_of(pin: &Path, program: u32) -> bool {
    sys::open_pin(pin).and_then(|link| sys::link_info(link.as_fd())).is_ok_and(|info| info.program == program)
}

fn load(object: &mut Ebpf) -> Result<(), KernelError> {
    for (name, program) in object.programs_mut() {
        let loaded = match program {
            Program::CgroupSockAddr(program) => CgroupSockAddr::load(program),
            Program::SockOps(program) => SockOps::load(program),
            _ => Ok(()),
        };
        loaded.map_err(|source| bpf("load", name, source))?;
    }
    Ok(())
}

/// A descriptor of a program that is loaded.
pub fn program_fd(object: &mut Ebpf, name: &str) -> Result<OwnedFd, KernelError> {
    let program = object.program(name).ok_or_else(|| missing(name))?;
    let fd = program.fd().map_err(|source| bpf("load", name, source))?;
    fd.as_fd().try_clone_to_owned().map_err(|source| bpf("dup", name, source))
}
