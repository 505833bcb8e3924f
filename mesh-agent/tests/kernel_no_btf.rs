//! A kernel that was built without types of its own (`CONFIG_DEBUG_INFO_BTF`): the programs need none. A file of its own, because the thread that looks at
//! the machine has other mounts than its process.

#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "tests panic, and every unsafe block here is one system call"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod kernel;

use std::path::Path;

use kernel::*;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Where a kernel shows them.
const TYPES: &str = "/sys/kernel/btf";

#[test]
fn hardening_F29_a_kernel_without_types_takes_the_programs() {
    if !privileged("hardening_F29_a_kernel_without_types_takes_the_programs") {
        return;
    }
    let without = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
        if Path::new(TYPES).exists() {
            mount(Some("tmpfs"), TYPES, Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
        }
        assert!(!Path::new(TYPES).join("vmlinux").exists());
        let node = Node::new();
        assert!(node.kernel().degradations().is_empty(), "{:?}", node.kernel().degradations());
        let pod = Pod::enrolled(&node);
        for (index, to) in [at("198.18.9.9", 8080), at("fd00:198:9::9", 8080)].into_iter().enumerate() {
            let app = pod.app.tcp(to.ip());
            connect(&app, to).unwrap();
            let (agent, _) = accept(&pod.listeners.outbound[index]);
            assert_eq!(node.kernel().original_destination(pod.cookie, local(&agent)), Some(to));
        }
    });
    without.join().unwrap();
}
