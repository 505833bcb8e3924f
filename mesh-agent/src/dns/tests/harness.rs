//! A server with a fake pod around it, and clients.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType as Kind};
use mesh_core::ArcStr;
use mesh_core::names::{NameAnswer, RecordType};
use mesh_runtime::metrics::Registry;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use crate::dns::{DnsConfig, DnsServer, Environment};
use crate::telemetry::{AccessLog, DnsSource, Telemetry, TelemetryConfig};

pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// Waits, but not for ever.
pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, what).await.expect("within the deadline")
}

pub(super) fn name(text: &str) -> Name {
    Name::from_str(text).unwrap()
}

pub(super) fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(198, 18, 7, last).into()
}

/// A query as clients send it.
pub(super) fn query(host: &str, kind: Kind) -> Message {
    let mut message = Message::new(0x4242, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(host), kind));
    message
}

pub(super) fn with_edns(mut message: Message, payload: u16, version: u8) -> Message {
    let mut edns = Edns::new();
    // Written directly: the setter lifts the size to 512.
    edns.set_max_payload(payload).set_version(version);
    message.set_edns(edns);
    message
}

/// An answer to a query as a nameserver writes it.
pub(super) fn answer_to(query: &[u8], ttl: u32, addresses: &[IpAddr]) -> Vec<u8> {
    let asked = Message::from_vec(query).unwrap();
    let mut reply = Message::response(asked.id, OpCode::Query);
    reply.metadata.recursion_desired = asked.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_query(asked.queries[0].clone());
    for address in addresses {
        let IpAddr::V4(v4) = address else { panic!("IPv4 only") };
        reply.add_answer(Record::from_rdata(asked.queries[0].name().clone(), ttl, RData::A(A(*v4))));
    }
    reply.to_vec().unwrap()
}

pub(super) fn addresses(message: &Message) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = message.answers.iter().filter_map(|record| record.data.ip_addr()).collect();
    found.sort_unstable();
    found
}

/// The pod around the server.
pub(super) struct FakePod {
    pub(super) names: HashMap<&'static str, Vec<IpAddr>>,
    pub(super) nameserver: Option<SocketAddr>,
    pub(super) owned: bool,
    /// Local addresses that queries came to.
    pub(super) locals: Mutex<Vec<SocketAddr>>,
    /// Ports that questions were asked from.
    pub(super) ports: Mutex<Vec<u16>>,
    pub(super) asked: AtomicUsize,
}

impl FakePod {
    pub(super) fn new(nameserver: Option<SocketAddr>) -> Self {
        Self {
            names: HashMap::new(),
            nameserver,
            owned: true,
            locals: Mutex::default(),
            ports: Mutex::default(),
            asked: AtomicUsize::new(0),
        }
    }

    pub(super) fn with(mut self, host: &'static str, addresses: &[IpAddr]) -> Self {
        self.names.insert(host, addresses.to_vec());
        self
    }
}

impl Environment for FakePod {
    fn names(&self, host: &str, asked: RecordType) -> NameAnswer {
        self.asked.fetch_add(1, Relaxed);
        let Some(addresses) = self.names.get(host) else { return NameAnswer::NotMesh };
        let family = |address: &&IpAddr| address.is_ipv4() == (asked == RecordType::A) && asked != RecordType::Other;
        let found: Vec<IpAddr> = addresses.iter().filter(family).copied().collect();
        if found.is_empty() { NameAnswer::NoData } else { NameAnswer::Addresses(found) }
    }

    fn source(&self) -> DnsSource {
        DnsSource::new(&ArcStr::from("curl"), &ArcStr::from("v1"))
    }

    fn owns(&self, _peer: IpAddr) -> bool {
        self.owned
    }

    fn nameserver(&self, local: SocketAddr) -> Option<SocketAddr> {
        self.locals.lock().push(local);
        self.nameserver
    }

    async fn udp(&self, _nameserver: SocketAddr) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        self.ports.lock().push(socket.local_addr()?.port());
        Ok(socket)
    }

    async fn tcp(&self, _nameserver: SocketAddr) -> io::Result<TcpSocket> {
        TcpSocket::new_v4()
    }
}

/// A running server.
pub(super) struct Served {
    pub(super) pod: Arc<FakePod>,
    pub(super) telemetry: Telemetry,
    pub(super) registry: Registry,
    pub(super) port: u16,
    _server: DnsServer,
}

pub(super) fn serve(pod: FakePod) -> Served {
    serve_with(pod, DnsConfig::default())
}

pub(super) fn serve_with(pod: FakePod, config: DnsConfig) -> Served {
    let mut registry = Registry::default();
    let log = AccessLog::to_writer(mesh_runtime::logging::LogFormat::Text, Box::new(io::sink())).unwrap();
    let telemetry = Telemetry::with_log(&mut registry, &TelemetryConfig::default(), log);
    let (udp, tcp) = same_port();
    let port = udp.local_addr().unwrap().port();
    let pod = Arc::new(pod);
    let server = DnsServer::serve(pod.clone(), config, vec![udp], vec![tcp], telemetry.clone()).unwrap();
    Served { pod, telemetry, registry, port, _server: server }
}

/// Both transports on one port of all addresses, as in a pod.
fn same_port() -> (std::net::UdpSocket, std::net::TcpListener) {
    (0..100)
        .find_map(|_| {
            let udp = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
            let tcp = std::net::TcpListener::bind(("0.0.0.0", udp.local_addr().ok()?.port())).ok()?;
            Some((udp, tcp))
        })
        .expect("a port that is free for both")
}

impl Served {
    pub(super) fn slot(&self, last: u8) -> SocketAddr {
        (Ipv4Addr::new(127, 5, 6, last), self.port).into()
    }

    /// A client that hears only the address it asks, as glibc's does.
    pub(super) async fn client(&self) -> UdpSocket {
        self.client_of(self.slot(1)).await
    }

    pub(super) async fn client_of(&self, slot: SocketAddr) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(slot).await.unwrap();
        socket
    }

    /// Sends bytes and waits for the reply.
    pub(super) async fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        exchange(&self.client().await, bytes).await
    }

    pub(super) async fn ask(&self, message: &Message) -> Message {
        Message::from_vec(&self.exchange(&message.to_vec().unwrap()).await).unwrap()
    }

    pub(super) async fn stream(&self) -> TcpStream {
        soon(TcpStream::connect(self.slot(1))).await.unwrap()
    }

    pub(super) async fn ask_tcp(&self, message: &Message) -> Message {
        let mut stream = self.stream().await;
        Message::from_vec(&framed(&mut stream, &message.to_vec().unwrap()).await).unwrap()
    }

    pub(super) fn metrics(&self) -> String {
        mesh_runtime::metrics::encode(&self.registry)
    }
}

pub(super) async fn exchange(client: &UdpSocket, bytes: &[u8]) -> Vec<u8> {
    client.send(bytes).await.unwrap();
    let mut buffer = vec![0; 65536];
    let length = soon(client.recv(&mut buffer)).await.unwrap();
    buffer.truncate(length);
    buffer
}

pub(super) async fn framed(stream: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
    let mut message = u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    message.extend_from_slice(bytes);
    stream.write_all(&message).await.unwrap();
    soon(async {
        let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut reply).await.unwrap();
        reply
    })
    .await
}

/// A nameserver that answers each datagram with what `script` makes of it and its number, and each TCP message with `script_tcp`'s.
pub(super) async fn nameserver(
    script: impl Fn(usize, &[u8]) -> Vec<Vec<u8>> + Send + 'static,
    script_tcp: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
) -> SocketAddr {
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let address = udp.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65536];
        for number in 0.. {
            let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
            for reply in script(number, &buffer[..length]) {
                udp.send_to(&reply, peer).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let Ok(length) = stream.read_u16().await else { continue };
            let mut message = vec![0; usize::from(length)];
            if stream.read_exact(&mut message).await.is_err() {
                continue;
            }
            let Some(reply) = script_tcp(&message) else { continue };
            // What follows a message is never read, so the write may fail.
            let _ = stream.write_all(&u16::try_from(reply.len().min(65535)).unwrap().to_be_bytes()).await;
            let _ = stream.write_all(&reply).await;
        }
    });
    address
}

pub(super) fn no_tcp(_: &[u8]) -> Option<Vec<u8>> {
    None
}
