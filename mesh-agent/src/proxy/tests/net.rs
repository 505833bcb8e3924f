//! Network namespaces of a test: a hub that forwards between pods, and sockets made inside each of them. Everything goes away with its descriptor, also
//! when a test fails: nothing is named, nothing is pinned.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Protocol, Socket, Type};

/// One network namespace.
pub struct Netns(OwnedFd);

impl Netns {
    /// A new one with its loopback up.
    pub fn new() -> Netns {
        let fd = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare: the tests of the proxy need root");
            ip("link set lo up");
            OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
        });
        Netns(fd.join().unwrap())
    }

    /// Another descriptor of it.
    pub fn descriptor(&self) -> OwnedFd {
        self.0.try_clone().unwrap()
    }

    /// The same namespace again.
    pub fn duplicate(&self) -> Netns {
        Netns(self.descriptor())
    }

    /// Runs `work` inside.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    /// A TCP listener inside.
    pub fn listen(&self, address: SocketAddr) -> std::net::TcpListener {
        self.enter(|| {
            let socket = tcp(address);
            socket.set_reuse_address(true).unwrap();
            if address.is_ipv6() {
                socket.set_only_v6(true).unwrap();
            }
            // A listener that was just closed lives on for a moment in processes that are being started by other tests.
            let started = Instant::now();
            while let Err(error) = socket.bind(&address.into()) {
                assert!(started.elapsed() < Duration::from_secs(5), "bind {address}: {error}");
                std::thread::yield_now();
            }
            socket.listen(128).unwrap();
            socket.into()
        })
    }

    /// An unconnected socket inside, bound to `source`.
    pub fn socket(&self, source: IpAddr) -> tokio::net::TcpSocket {
        let socket = self.enter(|| {
            let socket = tcp(SocketAddr::new(source, 0));
            socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
            socket
        });
        socket.set_nonblocking(true).unwrap();
        tokio::net::TcpSocket::from_std_stream(socket.into())
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// A router: pods hang on it by point-to-point links.
pub struct Hub {
    netns: Netns,
    links: std::sync::atomic::AtomicU32,
}

const GATEWAY4: &str = "198.18.255.254";
const GATEWAY6: &str = "fd00:198::ffff";

impl Hub {
    /// A router without links.
    pub fn new() -> Hub {
        let netns = Netns::new();
        netns.enter(|| {
            // /proc/sys/net shows the namespace of the thread that opens the file.
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        });
        Hub { netns, links: std::sync::atomic::AtomicU32::new(0) }
    }

    /// A namespace with these addresses, reachable from all others of the hub.
    pub fn attach(&self, ips: &[IpAddr]) -> Netns {
        let pod = Netns::new();
        let link = format!("p{}", self.links.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        self.netns.enter(|| {
            ip(&format!("link add {link} type veth peer name eth0 netns {}", pod.path()));
            ip(&format!("addr add {GATEWAY4}/32 dev {link}"));
            ip(&format!("addr add {GATEWAY6}/128 dev {link} nodad"));
            ip(&format!("link set {link} up"));
        });
        pod.enter(|| {
            for address in ips {
                ip(&format!(
                    "addr add {address}/{} dev eth0{}",
                    width(address),
                    if address.is_ipv6() { " nodad" } else { "" }
                ));
            }
            ip("link set eth0 up");
            ip(&format!("route add {GATEWAY4}/32 dev eth0 scope link"));
            ip(&format!("route add default via {GATEWAY4}"));
            ip(&format!("-6 route add {GATEWAY6}/128 dev eth0"));
            ip(&format!("-6 route add default via {GATEWAY6} dev eth0"));
        });
        self.netns.enter(|| {
            for address in ips {
                // Replaced when the address moves from one pod to the next.
                ip(&format!("route replace {address}/{} dev {link}", width(address)));
            }
            until_up(&link);
        });
        pod.enter(|| until_up("eth0"));
        pod
    }
}

impl Hub {
    /// What is sent to this address from now on is lost, as on the way to a machine that has died.
    pub fn lose(&self, address: IpAddr) {
        self.netns.enter(|| drop(ip(&format!("route replace blackhole {address}/{}", width(&address)))));
    }
}

fn width(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn tcp(address: SocketAddr) -> Socket {
    Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap()
}

/// Packets before that are lost, those that look for neighbours too: who asks thrice in vain hears that there is no route.
fn until_up(link: &str) {
    let started = Instant::now();
    while !ip(&format!("-o link show {link}")).contains("state UP") {
        assert!(started.elapsed() < Duration::from_secs(60), "{link} does not come up");
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
