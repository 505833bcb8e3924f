//! Sockets inside a pod's network namespace, made by one thread of the process that does nothing else.
//!
//! `setns` changes a whole thread, so it never runs on an async worker; and it costs, so it never runs per connection: the thread fills a stock of
//! unconnected sockets per pod and family. A thread whose `setns` failed is in an unknown place: it ends, and the next job gets a new one.
//!
//! ```text
//!   tcp_socket -> stock --empty--> job queue -> thread: setns, socket x n -> stock
//!                    `--low------>    (does not wait)
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use nix::sys::socket::{setsockopt, sockopt};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpSocket;
use tokio::sync::oneshot;

use crate::socket::arm;

/// Sockets per family that an idle pod keeps ready.
const STOCK_MIN: usize = 2;
/// Sockets per family that a busy pod keeps ready.
const STOCK_MAX: usize = 64;
/// A stock that runs low again within this time is too small; one that lasts [`SLOW`] as long as this is too large.
const SOON: Duration = Duration::from_secs(1);
const SLOW: u32 = 30;
/// Jobs that may wait for the thread; more means that something is badly wrong, and is an error.
const QUEUE: usize = 4096;
/// How long the thread stays in a pod's namespace without work there.
const STAY: Duration = Duration::from_millis(100);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn domain(self) -> Domain {
        match self {
            Self::V4 => Domain::IPV4,
            Self::V6 => Domain::IPV6,
        }
    }
}

/// Makes sockets of one pod. Clones share the stock.
#[derive(Debug, Clone)]
pub struct NetnsSockets {
    pod: Arc<Pod>,
}

#[derive(Debug)]
struct Pod {
    netns: OwnedFd,
    ips: Vec<IpAddr>,
    /// On what is sent.
    mark: Option<u32>,
    /// One per family. Locked to push or pop.
    stock: [Mutex<Stock>; 2],
}

#[derive(Debug)]
struct Stock {
    ready: VecDeque<Socket>,
    /// How many to keep ready.
    target: usize,
    refilled: Instant,
    /// A job to refill it is under way.
    refilling: bool,
}

impl NetnsSockets {
    /// Sockets of the namespace behind `netns`; `ips` are the pod's addresses and decide which families are prepared. Those that begin a conversation
    /// carry the `mark`, by which packet filters in the namespace know them.
    pub fn new(netns: OwnedFd, ips: &[IpAddr], mark: Option<u32>) -> io::Result<Self> {
        let stock = || {
            Mutex::new(Stock { ready: VecDeque::new(), target: STOCK_MIN, refilled: Instant::now(), refilling: false })
        };
        let sockets = Self { pod: Arc::new(Pod { netns, ips: ips.to_vec(), mark, stock: [stock(), stock()] }) };
        for family in [Family::V4, Family::V6] {
            if ips.iter().any(|ip| Family::of(ip) == family) {
                sockets.refill(family);
            }
        }
        Ok(sockets)
    }

    /// The pod's addresses.
    pub fn ips(&self) -> &[IpAddr] {
        &self.pod.ips
    }

    /// An unconnected TCP socket: non-blocking, no delay.
    pub async fn tcp_socket(&self, family: Family) -> io::Result<TcpSocket> {
        let (socket, low) = {
            let mut stock = self.pod.stock[family as usize].lock();
            (stock.ready.pop_front(), stock.ready.len() <= stock.target / 2)
        };
        if low {
            self.refill(family);
        }
        let socket = match socket {
            Some(socket) => socket,
            None => {
                let mark = self.pod.mark;
                self.run(move || unconnected(family, mark)).await?
            }
        };
        Ok(TcpSocket::from_std_stream(socket.into()))
    }

    /// The same, bound to an address. The choice of the port is left to `connect`, which can then share ports among destinations.
    pub async fn tcp_socket_from(&self, source: IpAddr) -> io::Result<TcpSocket> {
        let socket = self.tcp_socket(Family::of(&source)).await?;
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(SocketAddr::new(source, 0))?;
        Ok(socket)
    }

    /// A listener, not yet registered with a runtime. IPv6 listeners take IPv6 only.
    pub async fn listen_tcp(&self, address: SocketAddr) -> io::Result<std::net::TcpListener> {
        self.run(move || {
            let socket =
                Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            arm(&socket)?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .await
    }

    /// A bound UDP socket, not yet registered with a runtime.
    pub async fn udp(&self, address: SocketAddr) -> io::Result<std::net::UdpSocket> {
        let mark = self.pod.mark;
        self.run(move || {
            let socket =
                Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
            set_mark(&socket, mark)?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.bind(&address.into())?;
            Ok(socket.into())
        })
        .await
    }

    /// Runs `make` in the pod's namespace, for sockets of other kinds. It must not block.
    pub async fn run<T: Send + 'static>(&self, make: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let (reply, answer) = oneshot::channel();
        let job = move |entered: io::Result<()>| {
            // Whoever asked may have gone; the socket is then closed.
            let _ = reply.send(entered.and_then(|()| make()));
        };
        submit(Job { pod: self.pod.clone(), run: Box::new(job) })?;
        answer.await.map_err(|_| io::Error::other("the socket thread ended"))?
    }

    fn refill(&self, family: Family) {
        let pod = self.pod.clone();
        let stock = &self.pod.stock[family as usize];
        if !stock.lock().begin_refill(Instant::now()) {
            return;
        }
        let owner = self.pod.clone();
        let refilling = Refilling(self.pod.clone(), family);
        let job = move |entered: io::Result<()>| {
            let stock = &pod.stock[family as usize];
            let missing = {
                let stock = stock.lock();
                stock.target.saturating_sub(stock.ready.len())
            };
            let mut made = entered.and_then(|()| {
                (0..missing).map(|_| unconnected(family, pod.mark)).collect::<io::Result<VecDeque<_>>>()
            });
            match &mut made {
                Ok(made) => stock.lock().ready.append(made),
                // The next connection asks for itself and gets the error.
                Err(error) => tracing::warn!(%error, "could not prepare sockets in a pod"),
            }
            drop(refilling);
        };
        // A job that is not taken is dropped, which ends the refill too.
        let _ = submit(Job { pod: owner, run: Box::new(job) });
    }
}

/// A refill under way; over however its job ends, run or not.
struct Refilling(Arc<Pod>, Family);

impl Drop for Refilling {
    fn drop(&mut self) {
        self.0.stock[self.1 as usize].lock().refilling = false;
    }
}

impl Stock {
    /// Whether the caller has to refill. The size follows the rate of connections, so that a busy pod wakes the thread once for many.
    fn begin_refill(&mut self, now: Instant) -> bool {
        if std::mem::replace(&mut self.refilling, true) {
            return false;
        }
        let lasted = now.saturating_duration_since(std::mem::replace(&mut self.refilled, now));
        if lasted < SOON {
            self.target = (self.target * 2).min(STOCK_MAX);
        } else if lasted > SOON * SLOW {
            self.target = (self.target / 2).max(STOCK_MIN);
        }
        true
    }
}

fn set_mark(socket: &Socket, mark: Option<u32>) -> io::Result<()> {
    mark.map_or(Ok(()), |mark| socket.set_mark(mark))
}

fn unconnected(family: Family, mark: Option<u32>) -> io::Result<Socket> {
    let socket = Socket::new(family.domain(), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    set_mark(&socket, mark)?;
    Ok(socket)
}

/// Work for the thread. `run` is told whether the namespace was entered.
struct Job {
    pod: Arc<Pod>,
    run: Box<dyn FnOnce(io::Result<()>) + Send>,
}

/// The way to the current thread; none before the first job and after a failure.
static THREAD: Mutex<Option<mpsc::SyncSender<Job>>> = Mutex::new(None);

fn submit(mut job: Job) -> io::Result<()> {
    // Two tries: the first may find a thread that has just ended.
    for _ in 0..2 {
        let mut thread = THREAD.lock();
        let sender = match &*thread {
            Some(sender) => sender.clone(),
            None => {
                let (sender, jobs) = mpsc::sync_channel(QUEUE);
                std::thread::Builder::new()
                    .name("netns-sockets".into())
                    .stack_size(256 * 1024)
                    .spawn(move || work(&jobs))?;
                thread.insert(sender).clone()
            }
        };
        drop(thread);
        match sender.try_send(job) {
            Ok(()) => return Ok(()),
            Err(mpsc::TrySendError::Full(_)) => return Err(io::Error::other("too many sockets are asked for at once")),
            Err(mpsc::TrySendError::Disconnected(returned)) => {
                job = returned;
                *THREAD.lock() = None;
            }
        }
    }
    Err(io::Error::other("the socket thread does not start"))
}

/// The thread: enters the pod's namespace unless it is there already, and runs the job. It ends after a namespace it could not enter; jobs that still wait are
/// handed to its successor.
fn work(jobs: &mpsc::Receiver<Job>) {
    // Where the process lives: an idle thread must not keep a pod's namespace alive.
    let Ok(home) = File::open("/proc/thread-self/ns/net") else { return };
    let mut place: Option<Arc<Pod>> = None;
    loop {
        let Job { pod, run } = match jobs.recv_timeout(if place.is_some() { STAY } else { Duration::MAX }) {
            Ok(job) => job,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                place = None;
                if nix::sched::setns(home.as_fd(), CloneFlags::CLONE_NEWNET).is_err() {
                    *THREAD.lock() = None;
                    return;
                }
                continue;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        };
        let there = place.as_ref().is_some_and(|place| Arc::ptr_eq(place, &pod));
        let entered = if there { Ok(()) } else { enter(&pod) };
        let failed = entered.is_err();
        if !failed && !there {
            place = Some(pod);
        }
        run(entered);
        if failed {
            *THREAD.lock() = None;
            while let Ok(job) = jobs.try_recv() {
                // A job that cannot be handed on is dropped, which its owner sees as an error.
                let _ = submit(job);
            }
            return;
        }
    }
}

fn enter(pod: &Pod) -> io::Result<()> {
    nix::sched::setns(pod.netns.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

#[cfg(test)]
#[allow(non_snake_case)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn own_netns() -> OwnedFd {
        File::open("/proc/self/ns/net").unwrap().into()
    }

    /// Entering even one's own namespace needs CAP_SYS_ADMIN.
    fn may_setns() -> bool {
        std::thread::spawn(|| nix::sched::setns(own_netns(), CloneFlags::CLONE_NEWNET).is_ok()).join().unwrap()
    }

    #[tokio::test]
    async fn sockets_come_from_the_pod_namespace() {
        if !may_setns() {
            println!("SKIPPED: setns needs CAP_SYS_ADMIN");
            return;
        }
        // A namespace of its own, held open by its descriptor: its loopback is down, so nothing can be reached in it.
        let netns = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
            OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
        })
        .join()
        .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ips = [IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1))];
        let inside = NetnsSockets::new(netns, &ips, Some(0x539)).unwrap();
        let outside = NetnsSockets::new(own_netns(), &ips, None).unwrap();
        for _ in 0..2 * STOCK_MAX {
            let socket = inside.tcp_socket(Family::V4).await.unwrap();
            assert_eq!(socket2::SockRef::from(&socket).mark().unwrap(), 0x539);
            assert!(socket.connect(address).await.is_err());
            let socket = outside.tcp_socket_from([127, 0, 0, 2].into()).await.unwrap();
            assert_eq!(socket.local_addr().unwrap().port(), 0, "left to connect");
            let stream = socket.connect(address).await.unwrap();
            assert_eq!(stream.local_addr().unwrap().ip(), IpAddr::from([127, 0, 0, 2]));
        }
        // The port is free in there whatever listens out here.
        let datagrams = inside.udp(address).await.unwrap();
        assert_eq!(socket2::SockRef::from(&datagrams).mark().unwrap(), 0x539);
        let listener = inside.listen_tcp("127.0.0.1:15001".parse().unwrap()).await.unwrap();
        assert_eq!(
            socket2::SockRef::from(&listener).linger().unwrap(),
            Some(Duration::ZERO),
            "armed before it listened"
        );
        inside.tcp_socket(Family::V6).await.unwrap();
    }

    #[test]
    fn the_stock_follows_the_rate_of_connections() {
        let start = Instant::now();
        let mut stock = Stock { ready: VecDeque::new(), target: STOCK_MIN, refilled: start, refilling: false };
        assert!(stock.begin_refill(start + SOON / 2) && stock.target == 2 * STOCK_MIN);
        assert!(!stock.begin_refill(start + SOON / 2), "one at a time");
        for _ in 0..10 {
            stock.refilling = false;
            assert!(stock.begin_refill(start + SOON / 2));
        }
        assert_eq!(stock.target, STOCK_MAX);
        stock.refilling = false;
        assert!(stock.begin_refill(start + SOON * 2) && stock.target == STOCK_MAX);
        stock.refilling = false;
        assert!(stock.begin_refill(start + SOON * 2 * (SLOW + 1)) && stock.target == STOCK_MAX / 2);
    }

    #[tokio::test]
    async fn hardening_F23_a_namespace_that_cannot_be_entered_harms_nobody_else() {
        if !may_setns() {
            println!("SKIPPED: setns needs CAP_SYS_ADMIN");
            return;
        }
        let broken = NetnsSockets::new(File::open("/dev/null").unwrap().into(), &[], None).unwrap();
        let good = NetnsSockets::new(own_netns(), &[], None).unwrap();
        let (mut failures, mut successes) = (0, 0);
        for _ in 0..50 {
            let (bad, fine) = tokio::join!(broken.tcp_socket(Family::V4), good.tcp_socket(Family::V4));
            failures += usize::from(bad.is_err());
            successes += usize::from(fine.is_ok());
        }
        assert_eq!((failures, successes), (50, 50));
    }
}
