//! Tunnels seen from inside: a peer by hand, the order of wake-ups, credit, how tunnels end.
#![allow(non_snake_case)]

mod pressure;
mod records;
mod retry;
mod slow;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::driver::{Driver, Timers};
use super::frame::{self, Head, kind};
use super::tunnel::{Closed, Parts, Role, Tunnel};
use super::{ConnectRequest, HboneError, HboneStream, ServeEnd, TunnelKey};
use crate::support::{Ca, Lab, client, soon, until};
use crate::tls::{
    self, CONTENT_ALERT, CONTENT_DATA, CONTENT_HANDSHAKE, Front, IdentityCertificate, KeySchedule, Opener,
    RECORD_HEADER, Sealer, TRAILER, TlsStream,
};

/// One end of a tunnel that writes whatever records it is told to.
struct Hand {
    tcp: TcpStream,
    sealer: Sealer,
    opener: Opener,
    keys: Box<dyn KeySchedule>,
    sealed: Vec<u8>,
    opened: Vec<u8>,
}

impl Hand {
    async fn of(stream: TlsStream) -> Self {
        let TlsStream { mut tcp, sealer, opener, keys, received, opened, unsent, .. } = stream;
        tcp.write_all(&unsent).await.unwrap();
        Self { tcp, sealer, opener, keys, sealed: received, opened }
    }

    /// A client of the lab's server.
    async fn client(lab: &Lab) -> Self {
        let tcp = TcpStream::connect(lab.tunnel_port).await.unwrap();
        let config = lab.client.client_config(std::slice::from_ref(&lab.server.identity));
        let mut hand = Self::of(tls::connect(tcp, config).await.unwrap()).await;
        let mut hello = frame::PREFACE.to_vec();
        frame::settings(&mut hello, &[]);
        hand.send(CONTENT_DATA, &hello).await;
        hand
    }

    /// A server that grants all the credit there can be.
    async fn server(lab: &Lab, listener: &TcpListener) -> Self {
        Self::accept(&lab.server, listener).await
    }

    async fn accept(certificate: &IdentityCertificate, listener: &TcpListener) -> Self {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut hand = Self::of(tls::accept(tcp, certificate.server_config()).await.unwrap()).await;
        let mut hello = Vec::new();
        frame::settings(&mut hello, &[(frame::setting::INITIAL_WINDOW_SIZE, 0x7fff_ffff)]);
        frame::window_update(&mut hello, 0, 0x4000_0000);
        hand.send(CONTENT_DATA, &hello).await;
        hand
    }

    fn seal(&mut self, content_type: u8, content: &[u8]) -> Vec<u8> {
        let mut record = vec![0; RECORD_HEADER + content.len() + TRAILER];
        record[RECORD_HEADER..RECORD_HEADER + content.len()].copy_from_slice(content);
        self.sealer.seal(content_type, &mut record);
        record
    }

    async fn send(&mut self, content_type: u8, content: &[u8]) {
        let record = self.seal(content_type, content);
        let _ = self.tcp.write_all(&record).await;
    }

    /// The header of the next frame and its payload.
    async fn next(&mut self) -> (Head, Vec<u8>) {
        loop {
            let from = if self.opened.starts_with(frame::PREFACE) { frame::PREFACE.len() } else { 0 };
            if let Some(head) = self.opened[from..].first_chunk() {
                let head = Head::parse(head);
                let start = from + frame::HEADER;
                if self.opened.len() >= start + head.length {
                    let payload = self.opened[start..start + head.length].to_vec();
                    self.opened.drain(..start + head.length);
                    return (head, payload);
                }
            }
            self.read().await;
        }
    }

    async fn wait(&mut self, kind: u8) -> Head {
        loop {
            let (head, _) = soon("frame", self.next()).await;
            if head.kind == kind {
                return head;
            }
        }
    }

    async fn read(&mut self) {
        loop {
            if let Ok(Front::Record(length)) = Opener::front(&self.sealed) {
                let mut record: Vec<u8> = self.sealed.drain(..length).collect();
                let (content_type, range) = self.opener.open(&mut record).unwrap();
                match content_type {
                    CONTENT_DATA => self.opened.extend_from_slice(&record[range]),
                    CONTENT_HANDSHAKE => self.opener = self.keys.next_opener().unwrap(),
                    // The other end has left: whoever waits for more waits for ever.
                    CONTENT_ALERT => std::future::pending().await,
                    other => panic!("record of type {other}"),
                }
                return;
            }
            assert!(self.tcp.read_buf(&mut self.sealed).await.unwrap() > 0, "closed");
        }
    }
}

/// Counts its wake-ups.
#[derive(Default)]
struct Alarm(AtomicUsize);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// The lab's key for a server at another address.
fn key_to(lab: &Lab, listener: &TcpListener) -> TunnelKey {
    TunnelKey { destination: listener.local_addr().unwrap(), ..lab.key() }
}

async fn connect(lab: &Lab, key: &TunnelKey) -> Result<HboneStream, HboneError> {
    let port = key.destination;
    let request = ConnectRequest::to(port);
    soon("answer", lab.pool.connect(key, lab.client.clone(), move || TcpStream::connect(port), request))
        .await
        .map(|(stream, _)| stream)
}

#[tokio::test]
async fn data_in_front_of_the_answer_is_an_error_of_the_stream() {
    let lab = Lab::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let key = key_to(&lab, &listener);
    let server = async {
        let mut hand = Hand::server(&lab, &listener).await;
        let stream = hand.wait(kind::HEADERS).await.stream;
        let mut early = Head { length: 5, kind: kind::DATA, flags: 0, stream }.bytes().to_vec();
        early.extend(b"early");
        frame::headers(&mut early, stream, false, &[0x88]);
        hand.send(CONTENT_DATA, &early).await;
        assert_eq!(hand.wait(kind::RST_STREAM).await.stream, stream);
    };
    let (opened, ()) = tokio::join!(connect(&lab, &key), server);
    assert!(matches!(opened, Err(HboneError::Reset(frame::code::PROTOCOL_ERROR))), "{opened:?}");
}

/// A stream whose turn it is to send, and which ends instead, must not leave those behind it waiting for ever.
#[tokio::test]
async fn a_turn_that_is_not_taken_goes_to_the_next() {
    let lab = Lab::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let key = key_to(&lab, &listener);
    let server = async {
        let mut hand = Hand::server(&lab, &listener).await;
        for _ in 0..2 {
            let mut answer = Vec::new();
            frame::headers(&mut answer, hand.wait(kind::HEADERS).await.stream, false, &[0x88]);
            hand.send(CONTENT_DATA, &answer).await;
        }
        hand
    };
    let clients = async {
        let first = connect(&lab, &key).await.unwrap();
        (first, connect(&lab, &key).await.unwrap())
    };
    let ((mut first, mut second), mut hand) = tokio::join!(clients, server);
    // Nobody reads: the first stream fills the socket and the queue, then both wait.
    let alarms = [Arc::new(Alarm::default()), Arc::new(Alarm::default())];
    let wakers = alarms.clone().map(Waker::from);
    let blob = vec![7; 256 * 1024];
    let write = |stream: &mut HboneStream, waker| {
        Pin::new(stream).poll_write(&mut Context::from_waker(waker), &blob).map(Result::unwrap)
    };
    soon("full", async {
        while write(&mut first, &wakers[0]).is_ready() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(write(&mut second, &wakers[1]), Poll::Pending);
    soon("first turn", async {
        let mut sink = vec![0; 1 << 20];
        while alarms[0].0.load(Relaxed) == 0 {
            assert!(hand.tcp.read(&mut sink).await.unwrap() > 0);
        }
    })
    .await;
    drop(first);
    until("second turn", || alarms[1].0.load(Relaxed) > 0).await;
}

/// A stream that is reset while its next bytes are being read must not keep their credit: the tunnel has only so much of it.
#[tokio::test]
async fn a_reset_between_grant_and_commit_gives_the_credit_back() {
    let lab = Lab::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let key = key_to(&lab, &listener);
    let server = async {
        let mut hand = Hand::server(&lab, &listener).await;
        let mut answer = Vec::new();
        frame::headers(&mut answer, hand.wait(kind::HEADERS).await.stream, false, &[0x88]);
        hand.send(CONTENT_DATA, &answer).await;
        hand
    };
    let (stream, _hand) = tokio::join!(connect(&lab, &key), server);
    stream.unwrap().a_reset_gives_the_credit_back();
}

/// The identity that a server proved is proven for as long as its certificate says, also if the server does not care.
#[tokio::test]
async fn hardening_F41_a_tunnel_to_an_expired_server_takes_no_more_streams() {
    let mut lab = Lab::new().await;
    let id = lab.server.identity.clone();
    lab.server = lab.ca.issue_with(&id, Ca::brief_params(&id.to_string()), 1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let key = key_to(&lab, &listener);
    let dials = Arc::new(AtomicUsize::new(0));
    let server = async {
        let mut hand = Hand::server(&lab, &listener).await;
        loop {
            let (head, _) = hand.next().await;
            if head.kind == kind::HEADERS {
                let mut answer = Vec::new();
                frame::headers(&mut answer, head.stream, false, &[0x88]);
                hand.send(CONTENT_DATA, &answer).await;
            }
        }
    };
    let asking = async {
        while dials.load(Relaxed) < 2 {
            let (dials, port) = (dials.clone(), key.destination);
            let dial = move || {
                dials.fetch_add(1, Relaxed);
                TcpStream::connect(port)
            };
            let request = ConnectRequest::to("10.0.0.9:80".parse().unwrap());
            let answer = lab.pool.connect(&key, lab.client.clone(), dial, request);
            // The second dial is not answered by anybody.
            let _ = tokio::time::timeout(Duration::from_millis(500), answer).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = server => {}
        () = soon("another tunnel", asking) => {}
    }
}

/// Whoever refuses us may be gone before our first frames arrive; then the alert is there to be read, but nothing can be written any more. And what is
/// there to be read the reactor may not have told us yet.
#[tokio::test]
async fn the_last_words_of_a_peer_are_read_although_nothing_can_be_written() {
    for told in [true, false] {
        let lab = Lab::new().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = async {
            let (tcp, _) = listener.accept().await.unwrap();
            Hand::of(tls::accept(tcp, lab.server.server_config()).await.unwrap()).await
        };
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let config = lab.client.client_config(std::slice::from_ref(&lab.server.identity));
        let client = async {
            let mut stream = tls::connect(tcp, config).await.unwrap();
            stream.tcp.write_all(&std::mem::take(&mut stream.unsent)).await.unwrap();
            stream
        };
        let (stream, mut hand) = tokio::join!(client, server);
        let TlsStream { tcp: socket, peer, sealer, opener, keys, received, opened, unsent, .. } = stream;
        // From here on nothing is awaited, so the reactor tells of nothing more.
        let empty = socket.try_read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(empty, Err(std::io::ErrorKind::WouldBlock));
        let words = hand.seal(CONTENT_ALERT, &[2, 44]);
        assert_eq!(hand.tcp.try_write(&words).unwrap(), words.len());
        drop(hand);
        let parts = Parts { socket, peer, generation: 1, sealer, keys, unsent };
        let tunnel = Arc::new(Tunnel::new(Role::Client, parts, 1).unwrap());
        let minute = Duration::from_secs(60);
        let timers = Timers { preface: minute, ping_interval: minute, ping_timeout: minute, idle: None };
        let driver = Driver::new(tunnel.clone(), opener, &received, opened, 1, timers, |_| {});
        let stuck = (0..10_000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            tunnel.control(|out| frame::ping(out, false, [0; 8]));
            tunnel.is_blocked()
        });
        assert!(stuck, "it can be written");
        if told {
            soon("told", tunnel.socket.readable()).await.unwrap();
        }
        soon("end", driver.run()).await;
        assert!(matches!(tunnel.closed(), Some(Closed::Alert(44))), "told: {told}, {:?}", tunnel.closed());
    }
}

#[tokio::test]
async fn an_idle_tunnel_either_ends_or_takes_a_stream() {
    let lab = Lab::new().await;
    let tunnel = || async {
        let tcp = TcpStream::connect(lab.tunnel_port).await.unwrap();
        let config = lab.client.client_config(std::slice::from_ref(&lab.server.identity));
        let TlsStream { tcp, peer, sealer, keys, unsent, .. } = tls::connect(tcp, config).await.unwrap();
        let parts = Parts { socket: tcp, peer, generation: 1, sealer, keys, unsent };
        Arc::new(Tunnel::new(Role::Client, parts, 100).unwrap())
    };
    let request = ConnectRequest::to(lab.app.local_addr().unwrap());
    let used = tunnel().await;
    assert!(used.open(&request).is_some());
    assert!(!used.retire_if_idle(Duration::ZERO));
    let idle = tunnel().await;
    assert!(!idle.retire_if_idle(Duration::from_secs(3600)));
    assert!(idle.retire_if_idle(Duration::ZERO));
    assert!(idle.open(&request).is_none(), "nobody is put into a tunnel that is about to end");
}
