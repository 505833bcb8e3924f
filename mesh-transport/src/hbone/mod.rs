//! HBONE: HTTP/2 CONNECT over mutual TLS, between the agents of two pods.
//!
//! [`Pool`] opens streams as a client, [`Acceptor`] takes tunnels as a server; both give [`HboneStream`]s.

mod driver;
mod error;
mod frame;
mod headers;
mod hpack;
mod huffman;
mod pool;
mod queue;
mod request;
mod server;
mod stream;
mod tunnel;

pub use error::{HboneError, Stage};
pub(crate) use headers::fuzz_request;
pub use pool::{Pool, PoolConfig, PoolStats, TunnelKey};
pub(crate) use request::fuzz_values;
pub use request::{
    Authority, AuthorityProblem, Baggage, ConnectRequest, ConnectResponse, Forwarded, TraceParent, WorkloadKind,
};
pub use server::{AcceptError, Acceptor, AcceptorConfig, InboundRequest, InboundTunnel, Refusals, ServeEnd, refusals};
pub use stream::HboneStream;
pub(crate) use stream::{Received, Sent};

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use crate::support::{Ca, Lab, client, soon};

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
}
