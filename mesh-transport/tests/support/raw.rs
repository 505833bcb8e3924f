//! A client that writes frames by hand.

use rustls::version::TLS13;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{Ca, Lab, client, soon};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// A client that writes frames by hand.
pub struct Raw {
    pub tls: TlsStream<TcpStream>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

pub fn header_block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let string = |text: &str, block: &mut Vec<u8>| {
        if text.len() < 127 {
            block.push(text.len() as u8);
        } else {
            block.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                block.push((rest & 127) as u8 | 128);
                rest >>= 7;
            }
            block.push(rest as u8);
        }
        block.extend_from_slice(text.as_bytes());
    };
    for (name, value) in fields {
        block.push(0);
        string(name, &mut block);
        string(value, &mut block);
    }
    block
}

impl Raw {
    /// TLS only.
    pub async fn tls(lab: &Lab) -> Self {
        Self::tls_as(lab, Ca::params("spiffe://cluster.local/ns/app/sa/client")).await
    }

    /// TLS with a certificate of these parameters.
    pub async fn tls_as(lab: &Lab, params: rcgen::CertificateParams) -> Self {
        let (chain, key) = lab.ca.sign(params);
        let tcp = TcpStream::connect(lab.tunnel_port).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        Self { tls: client::connect(tcp, client::config(Some((&chain, &key)), &["h2"], &[&TLS13])).await.unwrap() }
    }

    /// TLS, preface and settings.
    pub async fn connect(lab: &Lab) -> Self {
        let mut raw = Self::tls(lab).await;
        raw.hello().await;
        raw
    }

    /// Preface and settings.
    pub async fn hello(&mut self) {
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        hello.extend(frame(SETTINGS, 0, 0, &[]));
        self.write(&hello).await;
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        self.tls.write_all(bytes).await.unwrap();
        self.tls.flush().await.unwrap();
    }

    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.write(&frame(kind, flags, stream, payload)).await;
    }

    pub async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        soon("frame", self.tls.read_exact(&mut head)).await.ok()?;
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
        soon("payload", self.tls.read_exact(&mut payload)).await.ok()?;
        Some(Frame { kind, flags, stream: u32::from_be_bytes([s0, s1, s2, s3]), payload })
    }

    /// The next frame of this kind.
    pub async fn wait(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("closed before frame {kind}"));
            assert!(frame.kind != GOAWAY || kind == GOAWAY, "{frame:?} {}", String::from_utf8_lossy(&frame.payload));
            if frame.kind == kind {
                return frame;
            }
        }
    }

    pub async fn goaway(&mut self) -> u32 {
        let payload = self.wait(GOAWAY).await.payload;
        u32::from_be_bytes(payload[4..8].try_into().unwrap())
    }

    pub async fn request(&mut self, stream: u32, fields: &[(&str, &str)]) {
        self.send(HEADERS, 0x4, stream, &header_block(fields)).await;
    }

    /// The status of the next answer; 0 for a reset.
    pub async fn status(&mut self, stream: u32) -> u16 {
        loop {
            let frame = self.next().await.expect("an answer");
            match frame.kind {
                HEADERS if frame.stream == stream => {
                    return match frame.payload[0] {
                        0x88 => 200,
                        0x8c => 400,
                        // A literal :status.
                        _ => std::str::from_utf8(&frame.payload[2..5]).unwrap().parse().unwrap(),
                    };
                }
                RST_STREAM if frame.stream == stream => return 0,
                GOAWAY => panic!("{frame:?}"),
                _ => {}
            }
        }
    }
}

pub fn authority(lab: &Lab) -> String {
    lab.app.local_addr().unwrap().to_string()
}

pub async fn connected(lab: &Lab) -> (Raw, TcpStream) {
    let mut raw = Raw::connect(lab).await;
    raw.request(1, &[(":method", "CONNECT"), (":authority", &authority(lab))]).await;
    let (far, _) = soon("app", lab.app.accept()).await.unwrap();
    assert_eq!(raw.status(1).await, 200);
    (raw, far)
}
