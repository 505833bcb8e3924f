//! The hook on the cgroup of the node's kubelet, by which its probes get tickets. Its place is found by enrolment, which calls
//! [`Kernel::follow_kubelet`](super::Kernel::follow_kubelet) whenever it has looked.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use aya::Ebpf;

use super::{
    config::{KernelConfig, KernelError},
    links,
    object::bpf,
    pins::{Pins, cgroup_id, failed},
    sys,
};

const NAME: &str = "probe_tickets";
/// sock_ops of cgroups, as the kernel numbers it.
const SOCK_OPS: u32 = 3;

/// The program, and where it is attached.
#[derive(Debug)]
pub struct KubeletHook {
    program: OwnedFd,
    program_id: u32,
    link: Option<OwnedFd>,
}

impl KubeletHook {
    /// Takes the program out of an object whose programs are loaded. What an earlier agent attached stays.
    pub fn new(object: &mut Ebpf) -> Result<Self, KernelError> {
        let program = links::program_fd(object, NAME)?;
        let program_id = sys::program_id(program.as_fd()).map_err(|source| bpf("ask about", NAME, source))?;
        Ok(Self { program, program_id, link: None })
    }

    /// Attaches it to the kubelet's cgroup, unless it is there already. True if something changed. It is nowhere if this one is refused: who is in
    /// the former is not the kubelet any more.
    pub fn follow(&mut self, cgroup: &Path, pins: &Pins, config: &KernelConfig) -> Result<bool, KernelError> {
        let id = match check(cgroup, config) {
            Ok(id) => id,
            Err(refused) => {
                self.leave(pins)?;
                return Err(refused);
            }
        };
        let pin = pins.links().join(NAME);
        let in_place = self.link.as_ref().is_some_and(|link| {
            let info = sys::link_info(link.as_fd());
            info.is_ok_and(|info| info.target == id && info.program == self.program_id)
        });
        if in_place && links::is_pin_of(&pin, self.program_id) {
            return Ok(false);
        }
        let folder = File::open(cgroup).map_err(|source| failed("open", cgroup, source))?;
        let program = self.program.as_fd();
        let link = links::adopt(pins, Path::new("links"), NAME, &pin, program, id, SOCK_OPS)
            .map_or_else(|| links::create(&pin, program, folder.as_fd(), SOCK_OPS), Ok)
            .map_err(|source| bpf("attach", NAME, source))?;
        self.link = Some(link);
        Ok(true)
    }

    /// Detaches it, also where an earlier agent attached it. True if it was anywhere.
    pub fn leave(&mut self, pins: &Pins) -> Result<bool, KernelError> {
        let pin = pins.links().join(NAME);
        let pinned = match sys::open_pin(&pin) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            pinned => Some(pinned.map_err(|source| bpf("open the pin of", NAME, source))?),
        };
        let links = [self.link.take(), pinned];
        for link in links.iter().flatten() {
            sys::link_detach(link.as_fd()).map_err(|source| bpf("detach", NAME, source))?;
        }
        match fs::remove_file(&pin) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("unlink", &pin, source)),
            _ => Ok(links.iter().any(Option::is_some)),
        }
    }
}

/// The id of the cgroup. One that holds more than the kubelet and its helpers would make probes of others' connections.
fn check(cgroup: &Path, config: &KernelConfig) -> Result<u64, KernelError> {
    let id = cgroup_id(cgroup)?;
    let real = |path: &Path| path.canonicalize().map_err(|source| failed("resolve", path, source));
    let (kubelet, pods) = (real(cgroup)?, real(&config.pods_cgroup)?);
    if pods.starts_with(&kubelet) || kubelet.starts_with(&pods) {
        return Err(KernelError::Config(format!(
            "the kubelet's cgroup {} and the pods' {} are not beside each other: pods would be taken for it",
            kubelet.display(),
            pods.display()
        )));
    }
    Ok(id)
}
