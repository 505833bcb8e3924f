//! Both ends of a tunnel against the h2 crate, which is what ztunnel speaks with.
#![allow(clippy::unwrap_used, missing_docs, non_snake_case)]

mod support;

use bytes::Bytes;
use mesh_transport::hbone::{ConnectRequest, HboneError};
use support::raw::{Raw, authority};
use support::{Lab, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn an_h2_client_works_with_our_server() {
    let lab = Lab::new().await;
    let raw = Raw::tls(&lab).await;
    let (mut send, connection) = h2::client::Builder::new()
        .initial_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(1 << 20)
        .max_header_list_size(16 << 10)
        .enable_push(false)
        .handshake::<_, Bytes>(raw.tls)
        .await
        .unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let request = http::Request::builder()
            .method("CONNECT")
            .uri(authority(&lab))
            .header("baggage", "k8s.cluster.name=Kubernetes,k8s.namespace.name=app,k8s.deployment.name=client")
            .header("forwarded", "for=\"127.0.0.1:4321\";host=app.svc")
            .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
            .body(())
            .unwrap();
        let (response, mut body) = send.send_request(request, false).unwrap();
        let (mut far, _) = soon("app", lab.app.accept()).await.unwrap();
        let response = soon("answer", response).await.unwrap();
        assert_eq!(response.status(), 200);
        // Three megabytes back and forth.
        let echo = tokio::spawn(async move {
            let (mut read, mut write) = far.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            drop(far);
        });
        let sent: Vec<u8> = (0..3_000_000u32).map(|number| ((number * 7) >> 2) as u8).collect();
        let all = Bytes::from(sent.clone());
        let sending = tokio::spawn(async move {
            let mut rest = all;
            while !rest.is_empty() {
                body.reserve_capacity(rest.len());
                let room = std::future::poll_fn(|cx| body.poll_capacity(cx)).await.unwrap().unwrap();
                body.send_data(rest.split_to(room.min(rest.len())), false).unwrap();
            }
            body.send_data(Bytes::new(), true).unwrap();
        });
        let mut incoming = response.into_body();
        let mut received = Vec::new();
        while let Some(data) = soon("data", incoming.data()).await {
            let data = data.unwrap();
            incoming.flow_control().release_capacity(data.len()).unwrap();
            received.extend_from_slice(&data);
        }
        assert!(received == sent);
        sending.await.unwrap();
        echo.await.unwrap();
    }
    // A refusal: its status arrives although the stream is reset behind it.
    let request = http::Request::builder().method("CONNECT").uri("127.0.0.1:1").body(()).unwrap();
    let (response, _body) = send.send_request(request, false).unwrap();
    assert_eq!(soon("answer", response).await.unwrap().status(), 503);
}

#[tokio::test]
async fn our_client_works_with_an_h2_server() {
    let lab = Lab::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = lab.server.server_config();
    let server = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let tls = tokio_rustls::TlsAcceptor::from(config).accept(tcp).await.unwrap();
        let mut connection = h2::server::Builder::new()
            .initial_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(1 << 20)
            .max_header_list_size(64 << 10)
            .max_concurrent_streams(200)
            .handshake::<_, Bytes>(tls)
            .await
            .unwrap();
        let mut seen = Vec::new();
        while let Some(request) = connection.accept().await {
            let Ok((request, mut respond)) = request else { break };
            let (parts, mut body) = request.into_parts();
            seen.push((parts.method.to_string(), parts.uri.to_string(), parts.headers.get("forwarded").cloned()));
            match parts.uri.port_u16().unwrap() {
                81 => {
                    let refusal = http::Response::builder().status(401).body(()).unwrap();
                    respond.send_response(refusal, true).unwrap();
                }
                82 => respond.send_reset(h2::Reason::REFUSED_STREAM),
                _ => {
                    let answer = http::Response::builder().header("baggage", "service.name=served").body(()).unwrap();
                    let mut send = respond.send_response(answer, false).unwrap();
                    tokio::spawn(async move {
                        while let Some(Ok(data)) = body.data().await {
                            body.flow_control().release_capacity(data.len()).unwrap();
                            send.reserve_capacity(data.len());
                            send.send_data(data, false).unwrap();
                        }
                        send.send_data(Bytes::new(), true).unwrap();
                    });
                }
            }
        }
        seen
    });
    let mut key = lab.key();
    key.destination = address;
    let dial = move || TcpStream::connect(address);
    let mut request = ConnectRequest::to("10.0.0.9:80".parse().unwrap());
    request.forwarded =
        Some(mesh_transport::hbone::Forwarded { client: Some("10.0.0.1:99".parse().unwrap()), ..Default::default() });
    let (stream, response) = soon("answer", lab.pool.connect(&key, lab.client.clone(), dial, request)).await.unwrap();
    assert_eq!(response.baggage.service.as_deref(), Some("served"));
    let sent: Vec<u8> = (0..5_000_000u32).map(|number| ((number * 13) >> 3) as u8).collect();
    let (mut read, mut write) = tokio::io::split(stream);
    let (_, received) = tokio::join!(
        async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        },
        async {
            let mut received = Vec::new();
            soon("echo", read.read_to_end(&mut received)).await.unwrap();
            received
        }
    );
    assert!(received == sent);
    drop((read, write));
    let request = ConnectRequest::to("10.0.0.9:81".parse().unwrap());
    let error = soon("refusal", lab.pool.connect(&key, lab.client.clone(), dial, request)).await.unwrap_err();
    assert!(matches!(error, HboneError::Refused(http::StatusCode::UNAUTHORIZED)), "{error}");
    assert_eq!(error.response_flag(), "DENY");
    assert!(!error.before_first_byte());
    until("streams end", || lab.pool.stats().streams == 0).await;
    lab.pool.drain();
    until("pool empties", || lab.pool.stats().keys == 0).await;
    let seen = soon("server", server).await.unwrap();
    assert_eq!(seen[0].0, "CONNECT");
    assert_eq!(seen[0].1, "10.0.0.9:80");
    assert_eq!(seen[0].2.as_ref().unwrap(), "for=\"10.0.0.1:99\"");
}
