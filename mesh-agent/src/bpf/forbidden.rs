//! Why a kernel that could does not let the agent load programs: what the process may, what the kernel is set to, and what it is locked down to.
//! `probe` asks when a question is answered with EPERM.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the kernel says what it allows.
#[derive(Debug)]
pub struct Places {
    /// Of this process.
    status: PathBuf,
    unprivileged: PathBuf,
    lockdown: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

/// Capabilities that programs of ours need, with their numbers.
const NEEDED: [(&str, u32); 2] = [("CAP_BPF", 39), ("CAP_NET_ADMIN", 12)];
/// The one that stands for the first.
const SYS_ADMIN: u32 = 21;

impl Places {
    fn below(root: &Path) -> Self {
        Self {
            status: root.join("proc/self/status"),
            unprivileged: root.join("proc/sys/kernel/unprivileged_bpf_disabled"),
            lockdown: root.join("sys/kernel/security/lockdown"),
        }
    }

    /// In one sentence, with what to do.
    pub fn why(&self) -> String {
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let status = read(&self.status);
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        let has = |number: u32| effective.is_none_or(|mask| mask >> number & 1 == 1);
        let missing: Vec<&str> = NEEDED
            .iter()
            .filter(|(name, number)| !(has(*number) || *name == "CAP_BPF" && has(SYS_ADMIN)))
            .map(|(name, _)| *name)
            .collect();
        let mut reasons = Vec::new();
        if !missing.is_empty() {
            let setting = match read(&self.unprivileged).trim() {
                // It is not for this kind of programs, but it is what people find.
                "1" | "2" => " (kernel.unprivileged_bpf_disabled may stay as it is)",
                _ => "",
            };
            reasons.push(format!("the agent needs the capabilities {}{setting}", missing.join(" and ")));
        }
        // The words that are not chosen are there, too: `none [integrity] confidentiality`.
        let lockdown = read(&self.lockdown);
        let chosen = lockdown.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(word, _)| word);
        match chosen {
            Some(word) if word != "none" => reasons.push(format!(
                "the kernel is locked down to {word:?} (/sys/kernel/security/lockdown): with it or with Secure Boot vendors may forbid bpf(); ask for `integrity` at most"
            )),
            _ => {}
        }
        // A kernel that is locked down to `integrity` loads programs as it comes from kernel.org: it need not be the reason.
        if missing.is_empty() {
            reasons.push("a seccomp profile or a security module (SELinux, AppArmor) forbids bpf(): look into the node's audit log".to_owned());
        }
        reasons.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardening_f29_a_kernel_that_forbids_it_says_why() {
        let capabilities = "the agent needs the capabilities CAP_BPF and CAP_NET_ADMIN";
        let setting = " (kernel.unprivileged_bpf_disabled may stay as it is)";
        let lock = |word: &str| {
            format!(
                "the kernel is locked down to {word:?} (/sys/kernel/security/lockdown): with it or with Secure Boot vendors may forbid bpf(); ask for `integrity` at most"
            )
        };
        let module =
            "a seccomp profile or a security module (SELinux, AppArmor) forbids bpf(): look into the node's audit log";
        let (none, bpf_only, admin, all) = (0u64, 1 << 39, 1 << 21 | 1 << 12, 1 << 39 | 1 << 12);
        for (what, mask, unprivileged, lockdown, expected) in [
            ("nothing", none, "2\n", "", format!("{capabilities}{setting}")),
            ("and it is not forbidden to all", none, "0\n", "", capabilities.to_owned()),
            ("not enough", bpf_only, "2\n", "", format!("the agent needs the capabilities CAP_NET_ADMIN{setting}")),
            ("an older name for it", admin, "2\n", "", module.to_owned()),
            ("no lockdown", all, "2\n", "[none] integrity confidentiality\n", module.to_owned()),
            ("integrity", all, "2\n", "none [integrity] confidentiality\n", format!("{}; {module}", lock("integrity"))),
            (
                "confidentiality",
                all,
                "1\n",
                "none integrity [confidentiality]\n",
                format!("{}; {module}", lock("confidentiality")),
            ),
            (
                "both",
                none,
                "1\n",
                "none [integrity] confidentiality\n",
                format!("{capabilities}{setting}; {}", lock("integrity")),
            ),
        ] {
            let root = tempfile::tempdir().unwrap();
            let places = Places::below(root.path());
            for (path, text) in [
                (&places.status, format!("Name:\tx\nCapEff:\t{mask:016x}\n")),
                (&places.unprivileged, unprivileged.to_owned()),
                (&places.lockdown, lockdown.to_owned()),
            ] {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            assert_eq!(places.why(), expected, "{what}");
        }
        // A machine that shows none of it.
        assert_eq!(Places::below(Path::new("/nonexistent")).why(), module);
    }
}
