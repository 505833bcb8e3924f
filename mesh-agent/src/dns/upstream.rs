//! Asks a pod's own nameserver, from the pod's network namespace.
//!
//! A query has a socket of its own (random port, connected, so that only the nameserver's address is heard) and a random id; what does not
//! match is ignored and the wait goes on. A datagram is sent again twice within the deadline. A truncated answer is asked for again over
//! TCP in the same deadline. Called by `server`.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::environment::Environment;
use super::wire::{self, Answer, MAX_DATAGRAM, Query};
use crate::telemetry::DnsProtocol;

/// How long a nameserver may take in all; then the client is told.
pub(crate) const DEADLINE: Duration = Duration::from_secs(2);
/// How long a datagram is waited for before it is sent again.
const RESEND: Duration = Duration::from_millis(700);
/// Datagrams larger than we asked for are read whole, so that they can be told from cut ones.
const BUFFER: usize = 4 * MAX_DATAGRAM as usize;

/// The checked answer of a nameserver.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] after [`DEADLINE`], or what the sockets say.
pub(crate) async fn ask<E: Environment>(
    environment: &E,
    nameserver: SocketAddr,
    query: &Query<'_>,
    protocol: DnsProtocol,
) -> io::Result<Answer> {
    let deadline = Instant::now() + DEADLINE;
    let asked = async {
        if protocol == DnsProtocol::Tcp {
            return stream(environment, nameserver, query).await;
        }
        let answer = datagram(environment, nameserver, query).await?;
        if !answer.truncated {
            return Ok(answer);
        }
        // A nameserver without TCP: the client gets the truncated answer and may try its luck.
        match timeout_at(deadline, stream(environment, nameserver, query)).await {
            Ok(Ok(whole)) => Ok(whole),
            Ok(Err(_)) | Err(_) => Ok(answer),
        }
    };
    // The inner timeout ends first, so a truncated answer is not lost to the outer one.
    timeout_at(deadline + Duration::from_millis(50), asked)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn datagram<E: Environment>(environment: &E, nameserver: SocketAddr, query: &Query<'_>) -> io::Result<Answer> {
    let deadline = Instant::now() + DEADLINE;
    let socket = environment.udp(nameserver).await?;
    socket.connect(nameserver).await?;
    let id = rand::random();
    let message = query.forwarded(id);
    let mut buffer = vec![0; BUFFER];
    loop {
        socket.send(&message).await?;
        let resend = (Instant::now() + RESEND).min(deadline);
        loop {
            let Ok(received) = timeout_at(resend, socket.recv(&mut buffer)).await else { break };
            if let Some(answer) = wire::answer(query, id, buffer[..received?].to_vec()) {
                return Ok(answer);
            }
        }
        if resend >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

async fn stream<E: Environment>(environment: &E, nameserver: SocketAddr, query: &Query<'_>) -> io::Result<Answer> {
    let mut stream = environment.tcp(nameserver).await?.connect(nameserver).await?;
    let id = rand::random();
    let message = query.forwarded(id);
    let mut framed = (message.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(&message);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    // One message is read and the connection closed, however much more the peer would send.
    wire::answer(query, id, bytes)
        .filter(|answer| !answer.truncated)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the nameserver answered something else"))
}
