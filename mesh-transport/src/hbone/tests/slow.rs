//! Peers that take bytes, but slowly.

use std::time::Instant;

use socket2::SockRef;

use super::*;

/// A drained tunnel may have much queued in front of a slow link: it is sent for as long as the peer takes some of it, not only for the time in which a
/// peer must take something.
#[tokio::test]
async fn a_drained_tunnel_sends_what_is_queued_while_its_peer_takes_some() {
    const PATIENCE: Duration = Duration::from_secs(2);
    const BYTES: usize = 3_000_000;
    let lab = Lab::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    SockRef::from(&listener).set_recv_buffer_size(64 * 1024).unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    SockRef::from(&tcp).set_send_buffer_size(64 * 1024).unwrap();
    let config = lab.client.client_config(std::slice::from_ref(&lab.server.identity));
    let client = async {
        let mut stream = tls::connect(tcp, config).await.unwrap();
        stream.tcp.write_all(&std::mem::take(&mut stream.unsent)).await.unwrap();
        stream
    };
    let (stream, mut hand) = tokio::join!(client, Hand::accept(&lab.server, &listener));
    let TlsStream { tcp: socket, peer, sealer, opener, keys, received, opened, unsent, .. } = stream;
    let parts = Parts { socket, peer, generation: 1, sealer, keys, unsent };
    let tunnel = Arc::new(Tunnel::new(Role::Client, parts, 1).unwrap());
    let timers = Timers { preface: PATIENCE, ping_interval: PATIENCE, ping_timeout: PATIENCE, idle: None };
    let driver = Driver::new(tunnel.clone(), opener, &received, opened, 1, timers, |_| {});
    tunnel.control(|out| {
        while out.len() < BYTES {
            frame::ping(out, false, [0; 8]);
        }
    });
    tunnel.drain();
    let end = tokio::spawn(driver.run());

    let (start, mut taken, mut sink) = (Instant::now(), 0, vec![0; 8 * 1024]);
    while let count @ 1.. = soon("bytes", hand.tcp.read(&mut sink)).await.unwrap() {
        taken += count;
        if start.elapsed() < PATIENCE * 3 / 2 {
            assert!(taken < BYTES / 2, "it was not slow");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
    assert!(taken > BYTES, "{taken} bytes came through");
    drop(hand);
    assert_eq!(soon("end", end).await.unwrap(), ServeEnd::Closed);
}
