//! The life of what is pinned: adoption, repair, foreign pins, release, and what must not be possible from inside a pod.

#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "tests panic, and every unsafe block here is one system call"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the fault catalogue")]

mod kernel;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    time::Instant,
};

use kernel::*;
use mesh_agent::bpf::{InboundMode, Kernel, KernelError, PodListenerFds, PodSpec};
use mesh_common::Reason;
use mesh_core::CaptureRules;

fn folder(node: &Node) -> PathBuf {
    node.config.bpffs.join(&node.config.instance).join(format!("v{}", mesh_common::ABI_VERSION))
}

fn assert_captures(node: &Node, pod: &Pod) {
    let to: SocketAddr = at("198.18.9.9", 8080);
    let app = pod.app.tcp(to.ip());
    connect(&app, to).unwrap();
    let (agent, _) = accept(&pod.listeners.outbound[0]);
    assert_eq!(node.kernel().original_destination(pod.cookie, local(&agent)), Some(to));
    assert_eq!(peer(&app), to);
}

#[test]
fn features_R3_what_a_dead_agent_left_works_and_is_adopted() {
    if !privileged("features_R3_what_a_dead_agent_left_works_and_is_adopted") {
        return;
    }
    let mut node = Node::new();
    let pod = Pod::enrolled(&node);
    let to = at("198.18.9.9", 8080);
    let before = pod.app.tcp(to.ip());
    connect(&before, to).unwrap();
    let _agent = accept(&pod.listeners.outbound[0]);
    let links = |node: &Node| {
        let mut ids: Vec<_> =
            fs::read_dir(folder(node).join("links")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        ids.sort();
        ids
    };
    let pinned = links(&node);
    drop(node.kernel.take());

    // The listeners are still open (the keeper holds them): connects wait in the backlog, plaintext from outside too.
    let during = pod.app.tcp(to.ip());
    connect(&during, to).unwrap();
    assert_eq!((peer(&before), peer(&during)), (to, to));

    node.restart();
    assert_eq!(node.kernel().enrolled(), vec![pod.cookie]);
    assert_eq!(links(&node), pinned);
    let (agent, _) = accept(&pod.listeners.outbound[0]);
    assert_eq!(node.kernel().original_destination(pod.cookie, local(&agent)), Some(to));
    pod.enrol(&node, &InboundMode { default_strict: true, ports: vec![], undecided: false });
    assert_captures(&node, &pod);
    assert_eq!(errno(connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, 9000))), libc::ECONNREFUSED);
    assert!(node.kernel().verify().unwrap().is_empty());
}

#[test]
fn an_instance_is_locked() {
    if !privileged("an_instance_is_locked") {
        return;
    }
    let node = Node::new();
    assert!(matches!(Kernel::start(node.config.clone()), Err(KernelError::Locked { .. })));
    assert!(matches!(Kernel::uninstall(&node.config, None), Err(KernelError::Locked { .. })));
}

#[test]
fn hardening_F25_garbage_and_other_versions_are_replaced_and_pods_stay_closed() {
    if !privileged("hardening_F25_garbage_and_other_versions_are_replaced_and_pods_stay_closed") {
        return;
    }
    let mut node = Node::new();
    let pod = Pod::enrolled(&node);
    drop(node.kernel.take());
    let folder = folder(&node);
    // A map of another shape under our name, a link under another name, and a folder of another version.
    fs::remove_file(folder.join("maps/PODS")).unwrap();
    fs::rename(folder.join("maps/CLIENTS"), folder.join("maps/PODS")).unwrap();
    fs::remove_file(folder.join("links/connect4")).unwrap();
    fs::rename(folder.join("links/connect6"), folder.join("links/connect4")).unwrap();
    let other = folder.with_file_name("v0");
    fs::create_dir_all(other.join("links")).unwrap();
    fs::create_dir_all(other.join("pods")).unwrap();
    fs::rename(
        folder.join("pods").join(format!("{:016x}", pod.cookie)),
        other.join("pods").join(format!("{:016x}", pod.cookie)),
    )
    .unwrap();
    fs::rename(folder.join("links/getpeername4"), other.join("links/getpeername4")).unwrap();

    node.restart();
    assert_eq!(node.kernel().start_repairs().iter().map(|repair| repair.name.as_str()).collect::<Vec<_>>(), ["PODS"]);
    assert_eq!(node.kernel().enrolled(), vec![pod.cookie], "the pod is known by its folder");
    let refused = errno(connect(&pod.app.tcp(ip(POD_V4)), at("198.18.9.9", 8080)));
    assert_eq!(refused, libc::ECONNREFUSED, "and closed until it is enrolled again");
    let listener = pod.app.listen(at("127.0.0.1", 9000));
    connect(&pod.app.tcp(ip("127.0.0.1")), at("127.0.0.1", 9000)).unwrap();
    accept(&listener);
    // What comes in still meets the program of before, so the agent's listener and not the app.
    let app = pod.app.listen(at(POD_V4, 9000));
    connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, 9000)).unwrap();
    accept(&pod.listeners.plaintext[0]);
    assert!(!is_ready(&app));

    pod.enrol(&node, &InboundMode::default());
    assert_captures(&node, &pod);
    connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, 9000)).unwrap();
    assert!(node.kernel().verify().unwrap().is_empty());
}

#[test]
fn hardening_F26_what_is_detached_or_unpinned_is_put_back() {
    if !privileged("hardening_F26_what_is_detached_or_unpinned_is_put_back") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    let folder = folder(&node);
    let names = || node.kernel().verify().unwrap().into_iter().map(|repair| repair.name).collect::<Vec<_>>();
    assert!(names().is_empty());
    for pin in ["links/connect4".to_owned(), format!("pods/{:016x}/link", pod.cookie)] {
        detach(&folder.join(&pin));
        assert_eq!(names().len(), 1, "{pin}");
        assert!(names().is_empty());
        assert_captures(&node, &pod);
    }
    fs::remove_file(folder.join("links/sendmsg6")).unwrap();
    fs::remove_file(folder.join("maps/SLOTS")).unwrap();
    assert_eq!(names(), ["SLOTS", "sendmsg6"]);
    assert!(names().is_empty());
}

#[test]
fn removal_leaves_nothing() {
    if !privileged("removal_leaves_nothing") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    assert_captures(&node, &pod);
    node.kernel().remove(pod.cookie).unwrap();
    node.kernel().remove(pod.cookie).unwrap();
    assert!(node.kernel().enrolled().is_empty());
    assert!(node.kernel().map_usage().iter().all(|(_, used, _)| *used == 0), "{:?}", node.kernel().map_usage());
    assert_eq!(fs::read_dir(folder(&node).join("pods")).unwrap().count(), 0);
    // The pod's sockets go their ordinary way again, and so does what comes in.
    let server = pod.outside.listen(at(OUTSIDE_V4, 8080));
    connect(&pod.app.tcp(ip(POD_V4)), at(OUTSIDE_V4, 8080)).unwrap();
    accept(&server);
    let app = pod.app.listen(at(POD_V4, 15001));
    connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, 15001)).unwrap();
    accept(&app);
    pod.enrol(&node, &InboundMode::default());
    assert_captures(&node, &pod);
}

#[test]
fn uninstalling_leaves_no_pins() {
    if !privileged("uninstalling_leaves_no_pins") {
        return;
    }
    let mut node = Node::new();
    let pod = Pod::enrolled(&node);
    drop(node.kernel.take());
    uninstall(&node.config);
    assert!(!node.config.bpffs.join(&node.config.instance).exists());
    let server = pod.outside.listen(at(OUTSIDE_V4, 8080));
    // What another test forks keeps the programs for a moment.
    let deadline = Instant::now() + WAIT;
    while connect(&pod.app.tcp(ip(POD_V4)), at(OUTSIDE_V4, 8080)).is_err() || !is_ready(&server) {
        assert!(Instant::now() < deadline, "connects are still captured");
    }
    accept(&server);
    Kernel::uninstall(&node.config, None).unwrap();
}

#[test]
fn hardening_R5_no_connect_of_a_pod_un_enrols_it() {
    if !privileged("hardening_R5_no_connect_of_a_pod_un_enrols_it") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    // The magic calls of other meshes, marks, and a copy of the agent's ways.
    for to in
        [at("0.0.0.2", 930), at("0.0.0.2", 929), at("0.0.0.1", 930), at("127.0.0.6", 15001), at("127.0.0.6", 15006)]
    {
        let _ = connect(&pod.app.tcp(to.ip()), to);
    }
    while is_ready(&pod.listeners.outbound[0]) {
        accept(&pod.listeners.outbound[0]);
    }
    let to = at("198.18.9.9", 8080);
    let app = pod.app.tcp(to.ip());
    app.set_mark(0x539).unwrap();
    connect(&app, to).unwrap();
    let (agent, _) = accept(&pod.listeners.outbound[0]);
    assert_eq!(node.kernel().original_destination(pod.cookie, local(&agent)), Some(to));
    assert_eq!(node.kernel().enrolled(), vec![pod.cookie]);
}

#[test]
fn features_R6_the_agents_own_connections_are_left_alone() {
    if !privileged("features_R6_the_agents_own_connections_are_left_alone") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    let server = pod.outside.listen(at(OUTSIDE_V4, 8080));
    let agent = pod.agent.tcp(ip(POD_V4));
    connect(&agent, at(OUTSIDE_V4, 8080)).unwrap();
    let (_, from) = accept(&server);
    assert_eq!(from.ip(), ip(POD_V4));
    assert_eq!(node.kernel().counter(Reason::Captured), 0);
}

#[test]
fn bad_configurations_are_refused_with_a_reason() {
    if !privileged("bad_configurations_are_refused_with_a_reason") {
        return;
    }
    let node = Node::new();
    let start = |change: &dyn Fn(&mut mesh_agent::bpf::KernelConfig)| {
        let mut config = node.config.clone();
        change(&mut config);
        match Kernel::start(config) {
            Err(error) => chain(&error),
            Ok(_) => panic!("accepted"),
        }
    };
    assert!(start(&|config| config.pods_cgroup = V2.into()).contains("root cgroup"));
    assert!(start(&|config| config.pods_cgroup = "/tmp".into()).contains("not a version 2 cgroup"));
    assert!(start(&|config| config.agent_cgroup = config.pods_cgroup.clone()).contains("would be captured"));
    assert!(start(&|config| config.instance = "../x".into()).contains("not plain"));
    assert!(start(&|config| config.instance = String::new()).contains("not plain"));
}

#[test]
fn hardening_B129_bad_pods_are_refused_with_a_reason_and_leave_nothing() {
    if !privileged("hardening_B129_bad_pods_are_refused_with_a_reason_and_leave_nothing") {
        return;
    }
    let node = Node::new();
    let (pod, other) = (Pod::new(&node), Pod::new(&node));
    let (own, theirs, none) = (pod.listeners.fds(), other.listeners.fds(), PodListenerFds::default());
    let refused = |cookie, ips: &[&str], nameservers: &[IpAddr], listeners| {
        let ips: Vec<IpAddr> = ips.iter().map(|text| ip(text)).collect();
        let spec = PodSpec {
            cookie,
            netns: pod.netns.as_fd(),
            ips: &ips,
            nameservers,
            listeners,
            inbound: &InboundMode::default(),
            rules: &CaptureRules::default(),
            registry_only: false,
        };
        let reason = chain(&node.kernel().enrol(&spec).unwrap_err());
        assert_eq!(node.kernel().enrolled(), Vec::<u64>::new(), "{reason}");
        assert_eq!(fs::read_dir(folder(&node).join("pods")).unwrap().count(), 0, "{reason}");
        reason
    };
    let five = ["53", "54", "55", "56", "57"].map(|last| ip(&format!("198.18.53.{last}")));
    let rows: [(u64, &[&str], &[IpAddr], _, &str); 6] = [
        (pod.cookie, &[], &[], &own, "addresses"),
        (pod.cookie, &["127.0.0.1"], &[], &own, "cannot be a pod's address"),
        (pod.cookie, &["198.18.77.77"], &[], &own, "routes of slots"),
        (pod.cookie + 1, &[POD_V4], &[], &none, "another cookie"),
        (pod.cookie, &[POD_V4], &[], &theirs, "of another network namespace"),
        (pod.cookie, &[POD_V4], &five, &own, "has 5 nameservers"),
    ];
    for (cookie, ips, nameservers, listeners, expected) in rows {
        let reason = refused(cookie, ips, nameservers, listeners);
        assert!(reason.contains(expected), "{reason}");
    }
    // And what fails late: the program cannot be pinned, because something else is there that is no pin.
    let in_the_way = folder(&node).join("pods").join(format!("{:016x}", pod.cookie)).join("listeners");
    fs::create_dir_all(in_the_way.join("x")).unwrap();
    assert!(refused(pod.cookie, &[POD_V4], &[], &own).contains("listeners"));
    assert!(node.kernel().map_usage().iter().all(|(_, used, _)| *used == 0), "{:?}", node.kernel().map_usage());
    // Nothing of it is left in the pod either: its connects pass, and the slots' routes are gone.
    let server = pod.outside.listen(at(OUTSIDE_V4, 8080));
    connect(&pod.app.tcp(ip(POD_V4)), at(OUTSIDE_V4, 8080)).unwrap();
    accept(&server);
    let probe = pod.app.udp(ip(POD_V4));
    probe.connect(&at("127.128.1.0", 9).into()).unwrap();
    assert_eq!(local(&probe).ip(), ip("127.0.0.1"), "the source of loopback is as without the mesh");
    pod.enrol(&node, &InboundMode::default());
    assert_captures(&node, &pod);
}

#[tokio::test]
async fn denials_are_told_as_events() {
    if !privileged("denials_are_told_as_events") {
        return;
    }
    let node = Node::new();
    let pod = Pod::new(&node);
    pod.enrol(&node, &InboundMode { default_strict: true, ports: vec![], undecided: false });
    let mut events = node.kernel().events().unwrap();
    let client = pod.outside.tcp(ip(POD_V4));
    client.bind(&at(OUTSIDE_V4, 40000).into()).unwrap();
    assert_eq!(errno(connect(&client, at(POD_V4, 9000))), libc::ECONNREFUSED);
    let event = tokio::time::timeout(std::time::Duration::from_secs(3), events.next()).await.unwrap().unwrap();
    assert_eq!((event.reason, event.cookie, event.protocol), (Reason::StrictPlaintext, pod.cookie, 6));
    let end = |address, port| SocketAddr::new(std::net::IpAddr::from(address), port);
    assert_eq!(end(event.source, event.source_port), at(OUTSIDE_V4, 40000));
    assert_eq!(end(event.destination, event.destination_port), at(POD_V4, 9000));
}

#[test]
fn hardening_F24_bpffs_is_mounted_at_start_and_again_when_it_goes() {
    if !privileged("hardening_F24_bpffs_is_mounted_at_start_and_again_when_it_goes") {
        return;
    }
    struct Mount(PathBuf);
    impl Mount {
        fn remove(&self) {
            let path = std::ffi::CString::new(self.0.to_str().unwrap()).unwrap();
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
    }
    impl Drop for Mount {
        fn drop(&mut self) {
            self.remove();
        }
    }
    let scratch = tempfile::tempdir().unwrap();
    let mount = Mount(scratch.path().join("bpf"));
    let node = Node::with(|config| config.bpffs = mount.0.join("undermesh"));
    let pod = Pod::enrolled(&node);
    assert_captures(&node, &pod);
    mount.remove();
    assert!(!folder(&node).exists());
    // The descriptors keep everything at work; the next check mounts and pins again.
    assert_captures(&node, &pod);
    let repaired = node.kernel().verify().unwrap();
    assert!(repaired.len() >= 20, "{repaired:?}");
    assert!(folder(&node).join("links/connect4").exists());
    assert!(folder(&node).join("pods").join(format!("{:016x}", pod.cookie)).join("link").exists());
    assert!(node.kernel().verify().unwrap().is_empty());
    assert_captures(&node, &pod);
    assert!(
        matches!(Kernel::start(node.config.clone()), Err(KernelError::Locked { .. })),
        "the new folder is locked too"
    );
}

#[cfg(feature = "bpf-log")]
#[tokio::test]
async fn a_debug_build_of_the_programs_loads_and_captures() {
    if !privileged("a_debug_build_of_the_programs_loads_and_captures") {
        return;
    }
    if std::env::var_os("UNDERMESH_LOG_OBJECT").is_none() {
        println!("SKIPPED: a_debug_build_of_the_programs_loads_and_captures: UNDERMESH_LOG_OBJECT is not set");
        return;
    }
    let node = Node::with(|config| config.debug_log = true);
    let pod = Pod::enrolled(&node);
    assert_captures(&node, &pod);
}

/// Detaches a pinned link by force, as a hostile or careless tool would.
fn detach(pin: &std::path::Path) {
    const LINK_DETACH: libc::c_long = 34;
    let link = open_pin(pin);
    let mut attr = [link.as_raw_fd() as u32, 0];
    assert_eq!(unsafe { libc::syscall(libc::SYS_bpf, LINK_DETACH, attr.as_mut_ptr(), 4) }, 0);
}
