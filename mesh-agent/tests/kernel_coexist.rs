//! Beside others on one machine: programs of other owners in the same hooks, folders that others could write to, cgroups made anew.

#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "tests panic, and every unsafe block here is one system call"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the fault catalogue")]

mod kernel;

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{
            fs::{MetadataExt, PermissionsExt, chown},
            process::ExitStatusExt,
        },
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use kernel::*;
use mesh_agent::bpf::{Foreign, InboundMode, Kernel};

const CONNECT4: u32 = 10;
const SK_LOOKUP: u32 = 36;

/// Somebody else's program that lets everything pass, attached as long as this lives.
fn attach_foreign(kind: u32, hook: u32, place: BorrowedFd<'_>) -> OwnedFd {
    const PROG_LOAD: libc::c_long = 5;
    const LINK_CREATE: libc::c_long = 28;
    // r0 = 1; exit
    let program = [1u64 << 32 | 0xb7, 0x95];
    let mut attr = [0u64; 10];
    attr[0] = u64::from(kind) | 2 << 32;
    attr[1] = program.as_ptr() as u64;
    attr[2] = c"GPL".as_ptr() as u64;
    attr[6] = u64::from_ne_bytes(*b"other\0\0\0");
    attr[8] = u64::from(hook) << 32;
    let bpf = |command: libc::c_long, attr: &mut [u64]| {
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
        assert!(result >= 0, "{}", std::io::Error::last_os_error());
        unsafe { OwnedFd::from_raw_fd(result as i32) }
    };
    let program = bpf(PROG_LOAD, &mut attr);
    let mut attr = [program.as_raw_fd() as u64 | (place.as_raw_fd() as u64) << 32, u64::from(hook)];
    bpf(LINK_CREATE, &mut attr)
}

#[test]
fn features_R23_programs_of_others_are_named_and_left_alone() {
    if !privileged("features_R23_programs_of_others_are_named_and_left_alone") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    assert_eq!(node.kernel().foreign().unwrap(), []);
    let above = File::open(node.pods.0.parent().unwrap()).unwrap();
    let below = File::open(&node.pods.0).unwrap();
    let links = [
        attach_foreign(18, CONNECT4, above.as_fd()),
        attach_foreign(18, CONNECT4, below.as_fd()),
        attach_foreign(30, SK_LOOKUP, pod.netns.as_fd()),
    ];
    let found = node.kernel().foreign().unwrap();
    let mut hooks: Vec<_> = found.iter().map(|Foreign { hook, name, .. }| (*hook, name.as_str())).collect();
    hooks.sort_unstable();
    assert_eq!(hooks, [("connect4", "other"), ("connect4", "other"), ("pod_lookup", "other")]);
    assert!(node.kernel().verify().unwrap().is_empty());
    pod.enrol(&node, &InboundMode::default());
    assert_eq!(node.kernel().foreign().unwrap(), found, "nobody is detached or replaced");
    // Theirs let everything pass; ours decide all the same.
    let to = at("198.18.9.9", 8080);
    let app = pod.app.tcp(to.ip());
    connect(&app, to).unwrap();
    accept(&pod.listeners.outbound[0]);
    let app = pod.app.listen(at(POD_V4, 9000));
    connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, 9000)).unwrap();
    accept(&pod.listeners.plaintext[0]);
    assert!(!is_ready(&app));
    drop(links);
    // What another test forks keeps them for a moment.
    let deadline = Instant::now() + WAIT;
    while !node.kernel().foreign().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "programs that are gone are named");
    }
}

#[test]
fn hardening_F26_a_cgroup_that_is_made_anew_is_hooked_again() {
    if !privileged("hardening_F26_a_cgroup_that_is_made_anew_is_hooked_again") {
        return;
    }
    let node = Node::new();
    fs::remove_dir(&node.pods.0).unwrap();
    assert!(node.kernel().verify().is_err(), "there is nothing to hook");
    fs::create_dir(&node.pods.0).unwrap();
    let repaired: Vec<_> = node.kernel().verify().unwrap().into_iter().map(|repair| repair.name).collect();
    assert_eq!(repaired.len(), 9, "all but the one on the agent's cgroup: {repaired:?}");
    assert!(node.kernel().verify().unwrap().is_empty());
    let pod = Pod::enrolled(&node);
    connect(&pod.app.tcp(ip(POD_V4)), at("198.18.9.9", 80)).unwrap();
    accept(&pod.listeners.outbound[0]);
}

#[test]
fn pins_are_roots_alone_even_where_everybody_may_write() {
    if !privileged("pins_are_roots_alone_even_where_everybody_may_write") {
        return;
    }
    struct Folder(PathBuf);
    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir(&self.0);
        }
    }
    let folder = Folder(format!("/sys/fs/bpf/undermesh-test-{}", std::process::id()).into());
    fs::create_dir(&folder.0).unwrap();
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).unwrap();
    {
        let node = Node::with(|config| config.bpffs = folder.0.clone());
        let _pod = Pod::enrolled(&node);
        let mut looked_at = 0;
        let mut look = |path: &Path| {
            let there = fs::metadata(path).unwrap();
            assert_eq!((there.uid(), there.mode() & 0o077), (0, 0), "{}", path.display());
            looked_at += 1;
        };
        look(&folder.0);
        look(&folder.0.join(&node.config.instance));
        for pin in fs::read_dir(node.maps()).unwrap() {
            look(&pin.unwrap().path());
        }
        assert_eq!(looked_at, 2 + 19);
        // Somebody else who was there first could take the pins away again.
        let mut config = node.config.clone();
        config.instance.push_str("-taken");
        let taken = Folder(folder.0.join(&config.instance));
        fs::create_dir(&taken.0).unwrap();
        chown(&taken.0, Some(65534), None).unwrap();
        let refused = chain(&Kernel::start(config).unwrap_err());
        assert!(refused.contains("must be a folder of user 0 and is one of user 65534"), "{refused}");
    }
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
}

/// A timeout kills a test, and nothing is dropped: neither cgroups nor programs nor processes of the test may outlive it.
#[test]
fn a_test_that_is_killed_leaves_nothing() {
    const KILLED: &str = "UNDERMESH_TEST_KILLED";
    if !privileged("a_test_that_is_killed_leaves_nothing") {
        return;
    }
    if std::env::var_os(KILLED).is_some() {
        let node = Node::new();
        let _pod = Pod::enrolled(&node);
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
    let mut killed = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_test_that_is_killed_leaves_nothing"])
        .env(KILLED, "1")
        .spawn()
        .unwrap();
    let instance = format!("undermesh-test-{}-0", killed.id());
    assert_eq!(killed.wait().unwrap().signal(), Some(libc::SIGKILL));
    let places = [Path::new(V2).join(&instance), Path::new("/sys/fs/bpf/undermesh").join(&instance)];
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Some(left) = places.iter().find(|place| place.exists()) {
        assert!(Instant::now() < deadline, "left behind: {}", left.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}
