//! The server side of the load tool: two single-threaded loops that share a port.
use crate::apps::servers::listen;
use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Serves forever.
pub fn run(port: u16) -> Result<()> {
    let threads: Vec<_> = (0..2)
        .map(|_| listen(port, true))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .map(|listener| std::thread::spawn(move || serve(listener)))
        .collect();
    println!("ready");
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("server thread panicked"))??;
    }
    Ok(())
}

fn serve(listener: std::net::TcpListener) -> Result<()> {
    listener.set_nonblocking(true).context("set non-blocking")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start runtime")?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).context("adopt listener")?;
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(async move {
                    let _ = talk(stream).await;
                });
            }
        }
    })
}

async fn talk(mut stream: TcpStream) -> std::io::Result<()> {
    let mut first = [0; 512];
    let mut n = stream.read(&mut first).await?;
    if n == 0 {
        return Ok(());
    }
    let mode = first[0];
    if n == 1 && matches!(mode, b'C' | b'R') {
        n += stream.read(&mut first[1..]).await?;
    }
    let rest = &first[1..n];
    match mode {
        b'C' => stream.write_all(rest).await,
        b'R' => {
            socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))?;
            Ok(())
        }
        b'S' => {
            let mut total = rest.len() as u64;
            let mut buffer = vec![0; 256 << 10];
            loop {
                match stream.read(&mut buffer).await? {
                    0 => break,
                    n => total += n as u64,
                }
            }
            stream.write_all(&total.to_le_bytes()).await
        }
        _ => {
            stream.write_all(rest).await?;
            // Small at first: ten thousand idle connections must not cost a big buffer each.
            let mut buffer = vec![0; 512];
            loop {
                let n = stream.read(&mut buffer).await?;
                if n == 0 {
                    return Ok(());
                }
                stream.write_all(&buffer[..n]).await?;
                if n == buffer.len() && n < 64 << 10 {
                    buffer.resize(64 << 10, 0);
                }
            }
        }
    }
}
