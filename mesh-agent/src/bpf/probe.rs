//! What the kernel can do, asked by loading programs of a few instructions: version numbers lie where vendors carry features back.
//!
//! Nothing works without a [`Required`] feature, and the agent ends with its name. Without an [`Optional`] one something works less well,
//! and says so.

use std::io;

use super::{config::KernelError, forbidden::Places, sys};

const SOCK_OPS: u32 = 13;
const CGROUP_SOCK_ADDR: u32 = 18;
const SK_LOOKUP: u32 = 30;
const CONNECT4: u32 = 10;
const SOCK_OPS_HOOK: u32 = 3;
const GETPEERNAME4: u32 = 29;
const SK_LOOKUP_HOOK: u32 = 36;
const NETNS_COOKIE: i32 = 122;
const SET_RETVAL: i32 = 187;
const RINGBUF: u32 = 27;

/// What there must be, oldest first.
const REQUIRED: [(&str, Probe); 5] = [
    ("netns cookies in connect hooks (Linux 5.7)", Probe::Helper(CGROUP_SOCK_ADDR, CONNECT4, NETNS_COOKIE)),
    ("getpeername hooks of cgroups (Linux 5.8)", Probe::Hook(CGROUP_SOCK_ADDR, GETPEERNAME4)),
    ("ring buffers (Linux 5.8)", Probe::Map(RINGBUF)),
    ("sk_lookup programs (Linux 5.9)", Probe::Hook(SK_LOOKUP, SK_LOOKUP_HOOK)),
    ("netns cookies in sock_ops (Linux 5.15)", Probe::Helper(SOCK_OPS, SOCK_OPS_HOOK, NETNS_COOKIE)),
];

/// One question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Probe {
    /// A program of this type for this hook.
    Hook(u32, u32),
    /// The same, with a helper that takes the context or nothing.
    Helper(u32, u32, i32),
    /// A map of this type.
    Map(u32),
}

/// What the kernel can do of what not all can.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// sock_addr hooks may choose the errno of a refusal.
    pub set_retval: bool,
}

impl Features {
    /// Asks the kernel. Fails with the names of all that is missing and must not be.
    pub fn probe() -> Result<Self, KernelError> {
        Self::from(ask)
    }

    /// Names of what is missing, and what that means.
    pub fn degradations(&self) -> Vec<&'static str> {
        let missing = "set_retval (Linux 6.1): refusals are answered by a reset instead of an errno, and those of sockets bound to a device by a timeout";
        if self.set_retval { Vec::new() } else { vec![missing] }
    }

    fn from(ask: impl Fn(Probe) -> io::Result<bool>) -> Result<Self, KernelError> {
        let answer = |name: &str, probe| {
            ask(probe).map_err(|source| match source.raw_os_error() {
                Some(libc::EPERM) => KernelError::Forbidden(Places::default().why()),
                _ => super::object::bpf("ask for", name, source),
            })
        };
        let mut missing = Vec::new();
        for (name, probe) in REQUIRED {
            if !answer(name, probe)? {
                missing.push(name);
            }
        }
        if !missing.is_empty() {
            return Err(KernelError::Missing(missing.join(", ")));
        }
        let set_retval = answer("set_retval", Probe::Helper(CGROUP_SOCK_ADDR, CONNECT4, SET_RETVAL))?;
        Ok(Self { set_retval })
    }
}

/// True if the kernel has it; an error if it would not say, for want of privilege or memory.
fn ask(probe: Probe) -> io::Result<bool> {
    let asked = match probe {
        Probe::Hook(kind, hook) => sys::load_probe(kind, hook, None),
        Probe::Helper(kind, hook, helper) => sys::load_probe(kind, hook, Some(helper)),
        Probe::Map(kind) => sys::create_map(kind, 0, 0, 4096),
    };
    match asked {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES | libc::E2BIG)) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardening_f28_every_missing_feature_has_a_name() {
        let new = Features::from(|_| Ok(true)).unwrap();
        assert!(new.set_retval && new.degradations().is_empty());
        let linux_5_15 = Features::from(|probe| Ok(probe != Probe::Helper(CGROUP_SOCK_ADDR, CONNECT4, SET_RETVAL)));
        let degradations = linux_5_15.unwrap().degradations();
        assert!(degradations.len() == 1 && degradations[0].contains("set_retval (Linux 6.1)"), "{degradations:?}");
        let linux_5_10 = Features::from(|probe| Ok(!matches!(probe, Probe::Helper(SOCK_OPS | CGROUP_SOCK_ADDR, _, _))));
        let refused = linux_5_10.unwrap_err().to_string();
        assert_eq!(
            refused,
            "the kernel lacks netns cookies in connect hooks (Linux 5.7), netns cookies in sock_ops (Linux 5.15)"
        );
        let nothing = Features::from(|_| Ok(false)).unwrap_err().to_string();
        assert!(REQUIRED.iter().all(|(name, _)| nothing.contains(name)), "{nothing}");
        let forbidden = Features::from(|_| Err(io::Error::from_raw_os_error(libc::EPERM)));
        assert!(matches!(forbidden, Err(KernelError::Forbidden(_))));
        let out_of_memory = Features::from(|_| Err(io::Error::from_raw_os_error(libc::ENOMEM)));
        assert!(matches!(out_of_memory, Err(KernelError::Bpf { action: "ask for", .. })));
    }
}
