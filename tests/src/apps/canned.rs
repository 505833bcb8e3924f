//! A back end for the bench: every HTTP/1.1 request gets the same answer, as cheaply as one thread can, so that what is measured is what stands before it.
use super::servers::listen;
use anyhow::{Context, Result};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The end of a request: those of the bench have no body.
const END: &[u8] = b"\r\n\r\n";

/// Serves until killed, with answers of `bytes` bytes.
pub fn serve(port: u16, bytes: usize) -> Result<()> {
    let listener = listen(port, false)?;
    listener.set_nonblocking(true)?;
    let answer: &'static [u8] = answer(bytes).leak();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        println!("ready");
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            // A client that goes away ends its connection, and nothing else.
            tokio::spawn(async move { drop(respond(stream, answer).await) });
        }
    })
}

fn answer(bytes: usize) -> Vec<u8> {
    let mut all =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {bytes}\r\n\r\n").into_bytes();
    all.resize(all.len() + bytes, b'x');
    all
}

async fn respond(mut stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        let (count, rest) = ends(&buffer[..filled]);
        for _ in 0..count {
            stream.write_all(answer).await?;
        }
        if rest == 0 && filled == buffer.len() {
            return Err(io::Error::other("a request is longer than the buffer"));
        }
        buffer.copy_within(rest..filled, 0);
        filled -= rest;
    }
}

/// How many requests end in the bytes, and where the last of them does.
fn ends(bytes: &[u8]) -> (usize, usize) {
    let ends: Vec<usize> = memchr::memmem::find_iter(bytes, END).collect();
    (ends.len(), ends.last().map_or(0, |end| end + END.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_their_ends() {
        assert_eq!(ends(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /b"), (1, 27));
        assert_eq!(ends(b"GET / HTTP/1.1\r\nhost: a\r\n\r"), (0, 0));
        assert_eq!(ends(b"\r\n\r\n\r\n\r\n"), (2, 8));
    }

    #[test]
    fn an_answer_is_as_long_as_it_says() {
        let answer = answer(3);
        assert!(answer.ends_with(b"content-length: 3\r\n\r\nxxx"));
    }
}
