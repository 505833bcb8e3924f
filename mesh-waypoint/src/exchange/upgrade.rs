//! A connection that stops being HTTP, as WebSockets do: both ends have agreed, and bytes are copied until both directions ended.

use http::Response;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mesh_runtime::{DrainToken, task};
use tokio::io::AsyncWriteExt;

use crate::http::{ResponseBody, hop};
use crate::upstream::Endpoint;

/// Passes the agreement on and copies what follows it.
pub fn switch(
    drain: &DrainToken,
    client: OnUpgrade,
    mut response: Response<Incoming>,
    endpoint: Endpoint,
) -> Response<ResponseBody> {
    let server = hyper::upgrade::on(&mut response);
    let drain = drain.clone();
    task::spawn("upgraded connection", async move {
        let copied = async {
            let (client, server) = tokio::try_join!(client, server).ok()?;
            tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server)).await.ok()
        };
        tokio::select! {
            () = drain.forced() => {}
            _ = copied => {}
        }
        drop(endpoint);
    });
    let said = hop::strip(response.headers_mut());
    hop::restore(response.headers_mut(), &said, http::Version::HTTP_11);
    response.map(|_| ResponseBody::whole(bytes::Bytes::new()))
}

/// Nothing comes of it. hyper gives the connection away all the same when it ends; left alone it would be reset, and the answer perhaps not read.
pub fn decline(client: OnUpgrade) {
    task::spawn("declined upgrade", async move {
        if let Ok(connection) = client.await {
            let _ = TokioIo::new(connection).shutdown().await;
        }
    });
}
