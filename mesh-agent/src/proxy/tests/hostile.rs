//! A destination that is authenticated and does not play by the rules. The app must see a reset, quickly, and no byte of it.

use std::net::SocketAddr;

use bytes::Bytes;
use mesh_core::workload::TunnelProtocol;
use mesh_core::{Change, ports};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::mesh::*;
use super::net::Netns;
use crate::proxy::Reason;

/// A workload "evil" whose tunnel port the test itself serves.
struct Evil {
    pair: Pair,
    _netns: Netns,
    listener: tokio::net::TcpListener,
}

impl Evil {
    async fn start() -> Evil {
        let pair = Pair::start().await;
        let netns = pair.hub.attach(&[v4(66)]);
        let listener = netns.listen(SocketAddr::new(v4(66), ports::HBONE));
        listener.set_nonblocking(true).unwrap();
        let mut workload = workload("evil", vec![v4(66)]);
        workload.protocol = TunnelProtocol::Hbone;
        pair.near.apply(vec![Change::Workload(workload)]);
        Evil { pair, _netns: netns, listener: tokio::net::TcpListener::from_std(listener).unwrap() }
    }

    async fn tunnel(&self) -> TlsStream<TcpStream> {
        let certificate = self.pair.authority.issue(&identity("evil"));
        let (tcp, _) = soon(self.listener.accept()).await.unwrap();
        soon(TlsAcceptor::from(certificate.server_config()).accept(tcp)).await.unwrap()
    }

    async fn refused(&self) {
        self.pair.client.expect_refused(SocketAddr::new(v4(66), APP)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B75_only_200_is_success() {
    for status in [201, 204, 302, 404, 500, 503] {
        let evil = Evil::start().await;
        let serving = async {
            let mut h2 = h2::server::handshake(evil.tunnel().await).await.unwrap();
            let (_, mut respond) = soon(h2.accept()).await.unwrap().unwrap();
            let mut body =
                respond.send_response(http::Response::builder().status(status).body(()).unwrap(), false).unwrap();
            let _ = body.send_data(Bytes::from_static(b"not for the app"), false);
            while h2.accept().await.is_some() {}
            std::future::pending().await
        };
        tokio::select! {
            () = serving => {}
            () = evil.refused() => {}
        }
        assert_eq!(evil.pair.near.refused(Reason::Upstream), 1, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B75_a_200_that_ends_at_once_is_an_end_and_no_hang() {
    let evil = Evil::start().await;
    let serving = async {
        let mut h2 = h2::server::handshake(evil.tunnel().await).await.unwrap();
        let (_, mut respond) = soon(h2.accept()).await.unwrap().unwrap();
        respond.send_response(http::Response::new(()), true).unwrap();
        while h2.accept().await.is_some() {}
        std::future::pending().await
    };
    let asking = async {
        let mut app = evil.pair.client.connect(SocketAddr::new(v4(66), APP)).await;
        let mut rest = Vec::new();
        let _ = soon(app.read_to_end(&mut rest)).await;
        assert_eq!(rest, b"");
    };
    tokio::select! {
        () = serving => {}
        () = asking => {}
    }
}

/// An empty SETTINGS frame, then `frame`; the stream is the first that the client opens. Never ends by itself.
async fn raw(evil: &Evil, frame: &[u8]) {
    let mut tls = evil.tunnel().await;
    tls.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
    // The client's preface and its request.
    let mut buffer = vec![0; 16 * 1024];
    let mut got = 0;
    while got < 24 + 9 + 9 {
        got += soon(tls.read(&mut buffer)).await.unwrap();
    }
    tls.write_all(frame).await.unwrap();
    let _ = tls.read_to_end(&mut buffer).await;
    std::future::pending().await
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B76_data_before_headers_is_a_stream_error() {
    let evil = Evil::start().await;
    tokio::select! {
        () = raw(&evil, b"\0\0\x05\0\0\0\0\0\x01early") => {}
        () = evil.refused() => {}
    }
    assert_eq!(evil.pair.near.refused(Reason::Upstream), 1);
}

/// A peer that finishes TLS and then says nothing, or talks nonsense.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_B42_nonsense_instead_of_http2_ends_the_tunnel() {
    for nonsense in [&b"HTTP/1.1 200 OK\r\n\r\n"[..], b"\xff\xff\xff\x04\0\0\0\0\0", b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0"]
    {
        let evil = Evil::start().await;
        tokio::select! {
            () = raw(&evil, nonsense) => {}
            () = evil.refused() => {}
        }
        assert_eq!(evil.pair.near.refused(Reason::Upstream), 1);
        eventually("the tunnel is gone", || evil.pair.near.shared.pool.stats().tunnels == 0).await;
    }
}

/// F35 and B74 of the other side: bytes that are no TLS, and handshakes that never end, on the pod's own tunnel port.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_F35_a_tunnel_port_outlives_noise_and_silence() {
    let pair = Pair::start().await;
    pair.server.echo(APP, "");
    let port = SocketAddr::new(pair.server.ip(), ports::HBONE);
    let mut silent = Vec::new();
    for n in 0..50 {
        let mut stream = soon(pair.client.netns.socket(pair.client.ip()).connect(port)).await.unwrap();
        if n % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut rest = Vec::new();
            let _ = soon(stream.read_to_end(&mut rest)).await;
        } else {
            silent.push(stream);
        }
    }
    eventually("the noise is counted", || pair.far.refused(Reason::Handshake) == 25).await;
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "in spite of it").await;
    // The silent ones are closed by the deadline of the handshake.
    for mut stream in silent {
        let mut rest = Vec::new();
        let _ = soon(stream.read_to_end(&mut rest)).await;
    }
    eventually("the silence is counted", || pair.far.refused(Reason::Handshake) == 50).await;
}
