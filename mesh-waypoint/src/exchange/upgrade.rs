//! A connection that stops being HTTP, as WebSockets do: both ends have agreed, and bytes are copied until both directions ended.

use http::{HeaderName, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mesh_runtime::{DrainToken, task};
use tokio::io::AsyncWriteExt;

use crate::http::{Fields, ResponseBody, hop};
use crate::upstream::Endpoint;

/// The answer to a key that the client of HTTP/2 does not have.
const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// Passes the agreement on, which has these fields, and copies what follows it. `socket`: in HTTP/2 it has no fields of its own, and its status is 200.
pub fn switch(
    drain: &DrainToken,
    client: OnUpgrade,
    (mut response, has): (Response<Incoming>, Fields),
    endpoint: Endpoint,
    socket: bool,
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
    let said = hop::strip(response.headers_mut(), has);
    if socket {
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().remove(ACCEPT);
        response.headers_mut().remove(http::header::CONTENT_LENGTH);
    } else {
        hop::restore(response.headers_mut(), &said, http::Version::HTTP_11);
    }
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
