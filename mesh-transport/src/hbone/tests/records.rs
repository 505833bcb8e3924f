//! Peers that seal records of their own, and keys that change early.

use super::*;

#[tokio::test]
async fn records_that_no_peer_may_send_end_the_tunnel() {
    let mut lab = Lab::new().await;
    let update = [24, 0, 0, 1];
    type Records = Vec<(u8, Vec<u8>)>;
    let cases: [(&str, Records, &str); 11] = [
        ("empty handshake record", vec![(CONTENT_HANDSHAKE, vec![])], "bad_record"),
        ("empty alert", vec![(CONTENT_ALERT, vec![])], "bad_record"),
        ("half an alert", vec![(CONTENT_ALERT, vec![1])], "bad_record"),
        ("two alerts in one", vec![(CONTENT_ALERT, vec![1, 0, 1, 0])], "bad_record"),
        ("another type", vec![(20, vec![1])], "bad_record"),
        ("key update of another kind", vec![(CONTENT_HANDSHAKE, [&update[..], &[2]].concat())], "bad_post_handshake"),
        ("key update and more", vec![(CONTENT_HANDSHAKE, [&update[..], &[0, 24]].concat())], "bad_post_handshake"),
        ("ticket from a client", vec![(CONTENT_HANDSHAKE, vec![4, 0, 0, 1, 0])], "bad_post_handshake"),
        ("request for a certificate", vec![(CONTENT_HANDSHAKE, vec![13, 0, 0, 1, 0])], "bad_post_handshake"),
        (
            "data in a handshake message",
            vec![(CONTENT_HANDSHAKE, update.to_vec()), (CONTENT_DATA, vec![]), (CONTENT_HANDSHAKE, vec![0])],
            "interrupted_post_handshake",
        ),
        ("empty records", vec![(CONTENT_DATA, vec![]); 30_000], "flood"),
    ];
    for (name, records, word) in cases {
        let mut hand = Hand::client(&lab).await;
        let sealed: Vec<u8> =
            records.iter().flat_map(|(content_type, content)| hand.seal(*content_type, content)).collect();
        // Whoever has been refused already need not take the rest.
        let _ = hand.tcp.write_all(&sealed).await;
        assert_eq!(soon(name, lab.ends.recv()).await, Some(ServeEnd::Protocol(word)), "{name}");
    }
}

#[tokio::test]
async fn hardening_B21_a_flood_of_key_updates_ends_the_tunnel() {
    let mut lab = Lab::new().await;
    let mut hand = Hand::client(&lab).await;
    for number in 0..32 {
        // Every other one asks for an update of the other side's key.
        hand.send(CONTENT_HANDSHAKE, &[24, 0, 0, 1, number % 2]).await;
        hand.sealer = hand.keys.next_sealer().unwrap();
    }
    let mut ping = Vec::new();
    frame::ping(&mut ping, false, *b"in step?");
    hand.send(CONTENT_DATA, &ping).await;
    assert_eq!(hand.wait(kind::PING).await.flags, frame::flag::ACK, "32 are followed, in both directions");
    // Many more, so that it does not matter if a slow machine has begun another ten seconds.
    for _ in 0..64 {
        hand.send(CONTENT_HANDSHAKE, &[24, 0, 0, 1, 0]).await;
        hand.sealer = hand.keys.next_sealer().unwrap();
    }
    assert_eq!(soon("end", lab.ends.recv()).await, Some(ServeEnd::Protocol("key_update_flood")));
}

/// In unit tests a key serves fifty records instead of eight million: megabytes go through many key updates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_change_while_data_flows() {
    let lab = Lab::new().await;
    let (near, far, _copy) = lab.through().await;
    let total = 20_000_000;
    for (mut from, mut to) in [(near, far)] {
        for _ in 0..2 {
            let sending = tokio::spawn(async move {
                from.write_all(&vec![7; total]).await.unwrap();
                from
            });
            let mut received = vec![0; total];
            soon("bytes", to.read_exact(&mut received)).await.unwrap();
            assert!(received.iter().all(|byte| *byte == 7));
            from = sending.await.unwrap();
            std::mem::swap(&mut from, &mut to);
        }
    }
}

/// And a peer with rustls' own record layer follows ours, and we follow its.
#[tokio::test]
async fn keys_change_with_a_rustls_peer() {
    let lab = Lab::new().await;
    let (chain, key) = lab.ca.sign(Ca::params("spiffe://cluster.local/ns/app/sa/client"));
    let tcp = tokio::net::TcpStream::connect(lab.tunnel_port).await.unwrap();
    let config = client::config(Some((&chain, &key)), &["h2"], &[&rustls::version::TLS13]);
    let mut tls = client::connect(tcp, config).await.unwrap();
    tls.get_mut().1.refresh_traffic_keys().unwrap();
    let (mut send, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    let target = lab.app.local_addr().unwrap().to_string();
    let request = http::Request::builder().method("CONNECT").uri(target).body(()).unwrap();
    let (response, mut body) = send.send_request(request, false).unwrap();
    let (mut far, _) = soon("app", lab.app.accept()).await.unwrap();
    let mut incoming = soon("answer", response).await.unwrap().into_body();
    body.send_data(Bytes::from_static(b"hello"), false).unwrap();
    soon("hello", far.read_exact(&mut [0; 5])).await.unwrap();
    tokio::spawn(async move {
        far.write_all(&vec![7; 5_000_000]).await.unwrap();
        far
    });
    let mut received = 0;
    while received < 5_000_000 {
        let data = soon("data", incoming.data()).await.unwrap().unwrap();
        assert!(data.iter().all(|byte| *byte == 7));
        incoming.flow_control().release_capacity(data.len()).unwrap();
        received += data.len();
    }
}
