//! DNS capture: datagrams and connections to the pod's own nameservers, nothing else.

#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "tests panic, and every unsafe block here is one system call"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the fault catalogue")]

mod kernel;

use std::{mem::MaybeUninit, net::SocketAddr, os::fd::AsRawFd, time::Duration};

use kernel::*;
use mesh_common::Reason;
use socket2::{SockAddr, Socket};

const SERVERS: [&str; 2] = ["198.18.53.53", "fd00:198::53"];

fn receive(socket: &Socket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [MaybeUninit::uninit(); 64];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    let bytes = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
    (bytes, from.as_socket().unwrap())
}

/// What the DNS part of the agent does: learn the slot, answer from it.
fn answer(node: &Node, pod: &Pod, v6: bool) -> (SocketAddr, SocketAddr) {
    let socket = &pod.listeners.dns_udp[usize::from(v6)];
    let (query, from, slot) = recv_with_destination(socket);
    let original = node.kernel().original_destination(pod.cookie, SocketAddr::new(slot, 15053)).expect("a slot");
    let mut reply = query;
    reply.extend(b" answered");
    send_from(socket, slot, from, &reply);
    (original, from)
}

fn ask(app: &Socket, to: SocketAddr, connected: bool) {
    if connected {
        connect(app, to).unwrap();
        app.send(b"name").unwrap();
    } else {
        app.send_to(b"name", &SockAddr::from(to)).unwrap();
    }
}

#[test]
fn features_R17_queries_go_to_the_agent_and_answers_come_from_the_nameserver() {
    if !privileged("features_R17_queries_go_to_the_agent_and_answers_come_from_the_nameserver") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    for (server, source) in [(SERVERS[0], POD_V4), (SERVERS[1], POD_V6), ("::ffff:198.18.53.53", POD_V4)] {
        for connected in [false, true] {
            let to = at(server, 53);
            let app = pod.app.udp(to.ip());
            ask(&app, to, connected);
            let v6 = to.ip().to_canonical().is_ipv6();
            let (original, from) = answer(&node, &pod, v6);
            assert_eq!(original, SocketAddr::new(to.ip().to_canonical(), 53), "{server} connected {connected}");
            assert_eq!(from.ip(), ip(source));
            assert_eq!(receive(&app), (b"name answered".to_vec(), to));
            if connected {
                assert_eq!(peer(&app), to);
            }
        }
    }
    // One unconnected socket, two nameservers at once, each answer from its own.
    let app = pod.app.udp(ip("::"));
    let (one, two) = (at("::ffff:198.18.53.53", 53), at(SERVERS[1], 53));
    ask(&app, one, false);
    ask(&app, two, false);
    answer(&node, &pod, true);
    assert_eq!(receive(&app).1, two);
    answer(&node, &pod, false);
    assert_eq!(receive(&app).1, one);
    assert_eq!(node.kernel().counter(Reason::DnsCaptured), 8);
}

#[test]
fn tcp_to_a_nameserver_goes_to_the_dns_listener() {
    if !privileged("tcp_to_a_nameserver_goes_to_the_dns_listener") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    for (index, server) in SERVERS.into_iter().enumerate() {
        let to = at(server, 53);
        let app = pod.app.tcp(to.ip());
        connect(&app, to).unwrap();
        let (agent, _) = accept(&pod.listeners.dns_tcp[index]);
        assert_eq!(node.kernel().original_destination(pod.cookie, local(&agent)), Some(to));
        assert_eq!(peer(&app), to);
        ping(&app, &agent);
    }
}

#[test]
fn only_port_53_of_the_pods_own_nameservers_is_captured() {
    if !privileged("only_port_53_of_the_pods_own_nameservers_is_captured") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    // The host outside plays a resolver that is not the pod's, and another service of UDP.
    for port in [53, 5353] {
        let server = pod.outside.udp_at(at(OUTSIDE_V4, port));
        let app = pod.app.udp(ip(OUTSIDE_V4));
        ask(&app, at(OUTSIDE_V4, port), false);
        let (query, from) = receive(&server);
        assert_eq!((query, from.ip()), (b"name".to_vec(), ip(POD_V4)));
        server.send_to(b"reply", &SockAddr::from(from)).unwrap();
        assert_eq!(receive(&app), (b"reply".to_vec(), at(OUTSIDE_V4, port)));
    }
    assert!(!is_ready(&pod.listeners.dns_udp[0]));
}

#[test]
fn hardening_R17_without_heartbeat_dns_goes_to_the_original_resolver() {
    if !privileged("hardening_R17_without_heartbeat_dns_goes_to_the_original_resolver") {
        return;
    }
    let node = Node::with(|config| config.heartbeat_stale = Duration::from_nanos(1));
    let pod = Pod::enrolled(&node);
    ip_command(std::os::fd::AsFd::as_fd(&pod.outside_netns), "addr add 198.18.53.53/32 dev lo");
    let server = pod.outside.udp_at(at(SERVERS[0], 53));
    for connected in [false, true] {
        let app = pod.app.udp(ip(SERVERS[0]));
        ask(&app, at(SERVERS[0], 53), connected);
        let (query, from) = receive(&server);
        assert_eq!(query, b"name");
        server.send_to(b"reply", &SockAddr::from(from)).unwrap();
        assert_eq!(receive(&app), (b"reply".to_vec(), at(SERVERS[0], 53)));
    }
    assert!(!is_ready(&pod.listeners.dns_udp[0]));
    assert!(node.kernel().counter(Reason::DnsAgentAway) >= 1);
}

fn recv_with_destination(socket: &Socket) -> (Vec<u8>, SocketAddr, std::net::IpAddr) {
    let mut data = [0u8; 64];
    let mut from: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut space = [0u64; 16];
    let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = size_of_val(&from) as _;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = space.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&space) as _;
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    assert!(length >= 0, "{}", std::io::Error::last_os_error());
    let header = unsafe { &*libc::CMSG_FIRSTHDR(&raw const message) };
    let destination = unsafe {
        match (header.cmsg_level, header.cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let info = libc::CMSG_DATA(header).cast::<libc::in_pktinfo>().read_unaligned();
                std::net::IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes())
            }
            _ => std::net::IpAddr::from(
                libc::CMSG_DATA(header).cast::<libc::in6_pktinfo>().read_unaligned().ipi6_addr.s6_addr,
            ),
        }
    };
    let storage = unsafe {
        SockAddr::new(
            std::mem::transmute::<libc::sockaddr_storage, socket2::SockAddrStorage>(from),
            message.msg_namelen,
        )
    };
    (data[..length as usize].to_vec(), storage.as_socket().unwrap(), destination)
}

fn send_from(socket: &Socket, source: std::net::IpAddr, to: SocketAddr, data: &[u8]) {
    let to = SockAddr::from(to);
    let mut space = [0u64; 16];
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = space.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&space) as _;
    unsafe {
        let header = &mut *libc::CMSG_FIRSTHDR(&raw const message);
        let size = match source {
            std::net::IpAddr::V4(source) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(source.octets()) },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                (header.cmsg_level, header.cmsg_type) = (libc::IPPROTO_IP, libc::IP_PKTINFO);
                libc::CMSG_DATA(header).cast::<libc::in_pktinfo>().write_unaligned(info);
                size_of::<libc::in_pktinfo>()
            }
            std::net::IpAddr::V6(source) => {
                let info =
                    libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: source.octets() }, ipi6_ifindex: 0 };
                (header.cmsg_level, header.cmsg_type) = (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO);
                libc::CMSG_DATA(header).cast::<libc::in6_pktinfo>().write_unaligned(info);
                size_of::<libc::in6_pktinfo>()
            }
        };
        header.cmsg_len = libc::CMSG_LEN(size as u32) as _;
        message.msg_controllen = libc::CMSG_SPACE(size as u32) as _;
        let sent = libc::sendmsg(socket.as_raw_fd(), &raw const message, 0);
        assert_eq!(sent, data.len() as isize, "{}", std::io::Error::last_os_error());
    }
}
