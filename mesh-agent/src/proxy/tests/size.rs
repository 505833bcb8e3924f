//! What an open connection costs in memory: the size of its task is asserted, because it is paid ten thousand times on a busy node.

use std::sync::Arc;

use super::mesh::*;
use crate::proxy::{inbound, outbound, plaintext};

#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_connections_stay_small() {
    let pair = Pair::start().await;
    let context = pair.client.proxy.as_ref().unwrap().context();
    let make = || async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let peer = stream.local_addr().unwrap();
        (mesh_transport::socket::Armed::new(stream), peer)
    };
    let (stream, peer) = make().await;
    let outbound = size_of_val(&outbound::serve(Arc::clone(context), stream, peer));
    let (stream, peer) = make().await;
    let plaintext = size_of_val(&plaintext::serve(Arc::clone(context), stream, peer));
    let (stream, peer) = make().await;
    let tunnel = size_of_val(&inbound::serve(Arc::clone(context), stream, peer));
    println!("outbound {outbound}, plaintext {plaintext}, tunnel {tunnel}");
    assert!(outbound <= 700, "outbound connection: {outbound} bytes");
    assert!(plaintext <= 700, "plaintext connection: {plaintext} bytes");
    assert!(tunnel <= 7_000, "inbound tunnel: {tunnel} bytes");
}
