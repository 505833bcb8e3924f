//! What the process holds for applications that do not read is bounded in all, by offering less to streams; those that are read go on.

use super::*;
use crate::hbone::Baggage;
use crate::hbone::queue::queued_in_all;
use crate::hbone::stream::{Stream, Unwelcome};
use crate::hbone::tunnel::{QUEUED_LIMIT, SMALL_WINDOW, STREAM_WINDOW};

/// The limit is one of the process: only one of these tests at a time may come near it.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A server that keeps what is opened and reads nothing, and its client.
struct Scene {
    lab: Lab,
    key: TunnelKey,
    served: tokio::sync::mpsc::UnboundedReceiver<HboneStream>,
}

impl Scene {
    async fn new() -> Self {
        let lab = Lab::new().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = key_to(&lab, &listener);
        let (sender, served) = tokio::sync::mpsc::unbounded_channel();
        let (acceptor, certificate) = (lab.acceptor.clone(), lab.server.clone());
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let tunnel = acceptor.accept(tcp, &certificate).await.unwrap();
                let sender = sender.clone();
                let keep = move |request: crate::hbone::InboundRequest| {
                    let _ = sender.send(request.accept(&Baggage::default()).unwrap());
                };
                tokio::spawn(tunnel.serve(Default::default(), keep));
            }
        });
        Self { lab, key, served }
    }

    /// The two ends of a stream.
    async fn open(&mut self) -> (HboneStream, HboneStream) {
        let near = connect(&self.lab, &self.key).await.unwrap();
        (near, soon("served", self.served.recv()).await.unwrap())
    }
}

/// Writes all that may be written to an end that does not read. Returns how much that was.
async fn fill_window(near: &mut HboneStream) -> i64 {
    let blob = [7; 64 * 1024];
    let mut filled = 0;
    std::future::poll_fn(|cx| {
        loop {
            match Pin::new(&mut *near).poll_write(cx, &blob) {
                Poll::Ready(count) => filled += count.unwrap() as i64,
                Poll::Pending if near.send_window() <= 0 => return Poll::Ready(filled),
                // It only waits for the tunnel's socket.
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hardening_B47_what_is_held_for_all_applications_that_do_not_read_is_bounded() {
    let _turn = TURN.lock().await;
    until("nothing is held", || queued_in_all() < QUEUED_LIMIT / 2).await;
    let mut scene = Scene::new().await;
    let (mut idle, idle_served) = scene.open().await;
    // Not yet so much that the window is filled up again.
    let (mut used, mut used_served) = scene.open().await;
    let part = STREAM_WINDOW as usize * 2 / 5;
    let (blob, mut taken) = (vec![7; part], vec![0; part]);
    let (written, read) =
        soon("part", async { tokio::join!(used.write_all(&blob), used_served.read_exact(&mut taken)) }).await;
    assert!(written.is_ok() && read.is_ok());
    let (mut filled, mut held) = (0, Vec::new());
    let mut windows = Vec::new();
    for _ in 0..90 {
        let (mut near, far) = scene.open().await;
        windows.push(soon("window", fill_window(&mut near)).await);
        filled += windows[windows.len() - 1];
        held.push((near, far));
    }
    // At first everybody gets a whole window; what was under way when the limit was passed comes on top of it.
    assert_eq!(windows[89], SMALL_WINDOW);
    let bound = QUEUED_LIMIT as i64 + 90 * SMALL_WINDOW + 16 * STREAM_WINDOW;
    assert!(filled < bound, "{filled} bytes are held, whole windows are {}", 90 * STREAM_WINDOW);
    assert_eq!(scene.lab.pool.stats().tunnels, 1);
    // A window that was promised before and not used is taken back.
    assert_eq!(soon("window", fill_window(&mut idle)).await, SMALL_WINDOW);
    // One of which more was used than is left now is filled up, as nothing else would ever cause that.
    assert_ne!(used.send_window(), STREAM_WINDOW - part as i64, "taken back");
    until("filled up", || used.send_window() > 0).await;

    // Who is read goes on, with much more than any window.
    let (mut near, mut far) = scene.open().await;
    let total = 3_000_000;
    let sending = async {
        near.write_all(&vec![7; total]).await.unwrap();
        near.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let (_, read) = soon("healthy stream", async { tokio::join!(sending, far.read_to_end(&mut received)) }).await;
    assert_eq!(read.unwrap(), total);

    // And so does who begins to read late: whole, and in order.
    let (mut near, mut far) = held.swap_remove(0);
    near.shutdown().await.unwrap();
    let mut late = Vec::new();
    soon("late reader", far.read_to_end(&mut late)).await.unwrap();
    assert_eq!(late.len() as i64, windows[0]);

    // When nothing is held any more, streams get whole windows again, from the next bytes on.
    drop((held, idle_served));
    until("nothing is held", || queued_in_all() < QUEUED_LIMIT / 2).await;
    soon("whole windows", async {
        loop {
            let (mut near, _far) = scene.open().await;
            if fill_window(&mut near).await == STREAM_WINDOW {
                return;
            }
        }
    })
    .await;
    drop(idle);
}

/// To an h2 peer, which is what ztunnel is, the window shrinks in the middle of what it sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_h2_peer_follows_a_window_that_shrinks() {
    let _turn = TURN.lock().await;
    until("nothing is held", || queued_in_all() < QUEUED_LIMIT / 2).await;
    let mut scene = Scene::new().await;
    let mut held = Vec::new();
    while queued_in_all() <= QUEUED_LIMIT {
        let (mut near, far) = scene.open().await;
        soon("window", fill_window(&mut near)).await;
        held.push((near, far));
    }
    let lab = &scene.lab;
    let (chain, key) = lab.ca.sign(Ca::params("spiffe://cluster.local/ns/app/sa/client"));
    let tcp = TcpStream::connect(lab.tunnel_port).await.unwrap();
    let tls = client::connect(tcp, client::config(Some((&chain, &key)), &["h2"], &[&rustls::version::TLS13])).await;
    let (mut send, connection) = h2::client::handshake(tls.unwrap()).await.unwrap();
    tokio::spawn(connection);
    let target = lab.app.local_addr().unwrap().to_string();
    let request = http::Request::builder().method("CONNECT").uri(target).body(()).unwrap();
    let (response, mut body) = send.send_request(request, false).unwrap();
    let (mut far, _) = soon("app", lab.app.accept()).await.unwrap();
    soon("answer", response).await.unwrap();
    let total = 3_000_000;
    body.send_data(vec![7; total].into(), true).unwrap();
    let mut received = Vec::new();
    soon("all", far.read_to_end(&mut received)).await.unwrap();
    assert!(received.len() == total && received.iter().all(|byte| *byte == 7));
    drop(held);
}

/// The sending half of a tunnel, without a driver.
async fn server_half(lab: &Lab) -> Tunnel {
    let tcp = TcpStream::connect(lab.tunnel_port).await.unwrap();
    let config = lab.client.client_config(std::slice::from_ref(&lab.server.identity));
    let TlsStream { tcp, peer, sealer, keys, unsent, .. } = tls::connect(tcp, config).await.unwrap();
    let parts = Parts { socket: tcp, peer, generation: 1, sealer, keys, unsent };
    Tunnel::new(Role::Server, parts, 100).unwrap()
}

/// The window of a stream that is open shrinks when the peer has said that it knows, and not before; a stream that has used it up may still end.
#[tokio::test]
async fn a_smaller_window_counts_from_its_acknowledgement_on() {
    let lab = Lab::new().await;
    let tunnel = server_half(&lab).await;
    let blob = vec![7; STREAM_WINDOW as usize];
    // Bytes arrive and are not taken.
    let arrive = |stream: &Stream, length: i64| {
        stream.count_received(length, Role::Server).inspect(|()| {
            assert_eq!(stream.deliver(&tunnel, &blob, std::slice::from_ref(&(0..length as usize))), 0, "granted");
        })
    };
    let before = tunnel.opened_by_peer(1).unwrap();
    assert!(tunnel.offer(SMALL_WINDOW));
    let between = tunnel.opened_by_peer(3).unwrap();
    for stream in [&before, &between] {
        assert_eq!(arrive(stream, STREAM_WINDOW - 10), Ok(()));
    }
    tunnel.acknowledged();
    let after = tunnel.opened_by_peer(5).unwrap();
    assert_eq!(arrive(&after, SMALL_WINDOW), Ok(()));
    for stream in [&before, &between, &after] {
        assert_eq!(arrive(stream, 0), Ok(()), "an end without bytes");
        assert_eq!(arrive(stream, 1), Err(Unwelcome::Window));
    }
    // A larger one counts at once: the peer may use it before we hear that it does.
    let last = tunnel.opened_by_peer(7).unwrap();
    assert!(tunnel.offer(STREAM_WINDOW));
    assert_eq!(arrive(&last, STREAM_WINDOW), Ok(()));
    tunnel.acknowledged();
    assert_eq!(arrive(&last, 1), Err(Unwelcome::Window));
}

/// Windows that grew and are not used do not keep others from growing: all of them together may only grow so far.
#[tokio::test]
async fn hardening_B47_streams_that_stall_rest_or_end_give_up_what_they_have_grown() {
    #[derive(PartialEq)]
    enum Then {
        Stall,
        Rest,
        /// The peer's half only: the stream itself stays for as long as the answer takes.
        End,
    }
    const STEP: i64 = SMALL_WINDOW / 2;
    let _turn = TURN.lock().await;
    let lab = Lab::new().await;
    let blob = vec![7; STEP as usize];
    let piece = 0..blob.len();
    for then in [Then::Stall, Then::Rest, Then::End] {
        let tunnel = server_half(&lab).await;
        // Whatever is taken is taken in time.
        tunnel.round_trip.store(3_600_000_000_000, Relaxed);
        let mut next_id = 1;
        let mut open = || {
            next_id += 2;
            tunnel.opened_by_peer(next_id).unwrap()
        };
        let take = |stream: &Stream| {
            stream.count_received(STEP, Role::Server).unwrap();
            i64::from(stream.consume_padding(&tunnel))
        };
        // A grant beyond what was used is growth.
        let grows = |stream: &Stream| {
            let mut used = 0;
            loop {
                used += STEP;
                match take(stream) {
                    0 => {}
                    granted => return granted > used,
                }
            }
        };
        let grown: Vec<_> = (0..8).map(|_| open()).inspect(|stream| while grows(stream) {}).collect();
        for stream in &grown {
            match then {
                Then::Stall => {
                    while stream.count_received(STEP, Role::Server).is_ok() {
                        assert_eq!(stream.deliver(&tunnel, &blob, std::slice::from_ref(&piece)), 0, "granted");
                    }
                }
                Then::Rest => {
                    // Used as far as it goes without another grant.
                    while let (window, target) = stream.window()
                        && window - STEP > target / 2
                    {
                        assert_eq!(take(stream), 0);
                    }
                    stream.rest();
                }
                Then::End => stream.end(),
            }
        }
        if then == Then::Rest {
            assert!(tunnel.offer(SMALL_WINDOW));
            tunnel.acknowledged();
        }
        let fresh = open();
        until("room", || grows(&fresh)).await;
    }
}
