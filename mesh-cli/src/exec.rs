//! A command in a container, through the API server, as `kubectl exec` runs one: a WebSocket whose messages begin with the number of a stream. Only what the command
//! says is read; it is told nothing. Called by `tap`.
//!
//! ```text
//! GET pods/NAME/exec ── 101 ── frames ── messages: 1 standard output, 2 standard error, 3 how it has ended
//! ```
//! The few rules of RFC 6455 that a client who only listens needs are here; no crate for it is in the tree.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

use crate::api::{Api, Failure};

/// What the streams of both sides are.
const PROTOCOL: &str = "v4.channel.k8s.io";
/// What RFC 6455 has an answer made of, with the key that was sent.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The largest frame that is read. The API server's have 32 KiB.
const MAX_FRAME: u64 = 1 << 20;

/// What a command has said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Said {
    /// On its standard output.
    Out(Bytes),
    /// On its standard error.
    Err(Bytes),
    /// It has ended, with that status, or was never begun, for that reason.
    Ended(Result<i32, String>),
}

/// A command that runs.
pub struct Exec<S = TokioIo<Upgraded>> {
    stream: BufReader<S>,
    /// Which stream the message is of whose frames come now.
    channel: Option<u8>,
}

impl Exec {
    /// Runs it.
    pub async fn begin(
        api: &Api,
        namespace: &str,
        pod: &str,
        container: &str,
        command: &[String],
    ) -> Result<Exec, Failure> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for word in command {
            query.append_pair("command", word);
        }
        query.append_pair("container", container).append_pair("stdout", "true").append_pair("stderr", "true");
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/exec?{}", query.finish());
        let key = STANDARD.encode(rand::random::<[u8; 16]>());
        let upgraded = api.upgraded(&path, &key, &accept(&key), PROTOCOL).await?;
        Ok(Exec::over(upgraded))
    }
}

/// What a server has to answer to that key.
pub fn accept(key: &str) -> String {
    let text = format!("{key}{GUID}");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    STANDARD.encode(digest)
}

/// A frame.
struct Frame {
    is_last: bool,
    code: u8,
    payload: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Exec<S> {
    /// Over a stream on which frames begin.
    pub fn over(stream: S) -> Self {
        Exec { stream: BufReader::new(stream), channel: None }
    }

    /// What is said next; nothing if the other side has gone without a word about the command.
    pub async fn next(&mut self) -> Result<Option<Said>, String> {
        loop {
            let frame = match self.frame().await? {
                None => return Ok(None),
                Some(frame) => frame,
            };
            match frame.code {
                8 => return Ok(None),
                9 => self.answer(&frame.payload).await?,
                10 => {}
                0..=2 => {
                    if let Some(said) = self.part(&frame) {
                        return Ok(Some(said));
                    }
                }
                code => {
                    return Err(format!("the API server sent a frame of kind {code}, which RFC 6455 does not have"));
                }
            }
        }
    }

    /// A frame of a message. What ends a command comes whole.
    fn part(&mut self, frame: &Frame) -> Option<Said> {
        let mut payload = frame.payload.clone();
        if frame.code != 0 || self.channel.is_none() {
            self.channel = None;
            if !payload.is_empty() {
                self.channel = Some(payload.split_to(1)[0]);
            }
        }
        let channel = self.channel;
        if frame.is_last {
            self.channel = None;
        }
        match channel? {
            _ if payload.is_empty() => None,
            1 => Some(Said::Out(payload)),
            2 => Some(Said::Err(payload)),
            3 => Some(Said::Ended(ended(&payload))),
            _ => None,
        }
    }

    async fn frame(&mut self) -> Result<Option<Frame>, String> {
        let broken = |error: std::io::Error| format!("the connection to the pod is lost: {error}");
        let Ok(first) = self.stream.read_u8().await else { return Ok(None) };
        let second = self.stream.read_u8().await.map_err(broken)?;
        let length = match second & 0x7f {
            126 => self.stream.read_u16().await.map_err(broken)?.into(),
            127 => self.stream.read_u64().await.map_err(broken)?,
            length => u64::from(length),
        };
        if second & 0x80 != 0 || length > MAX_FRAME || first & 0x70 != 0 {
            return Err("the API server sent a frame that cannot be read".into());
        }
        let mut payload = vec![0; usize::try_from(length).unwrap_or(0)];
        self.stream.read_exact(&mut payload).await.map_err(broken)?;
        Ok(Some(Frame { is_last: first & 0x80 != 0, code: first & 0xf, payload: payload.into() }))
    }

    /// Says that we are here. A client's frames are masked.
    async fn answer(&mut self, payload: &[u8]) -> Result<(), String> {
        let payload = &payload[..payload.len().min(125)];
        let mask: [u8; 4] = rand::random();
        let mut frame = vec![0x80 | 10, 0x80 | u8::try_from(payload.len()).unwrap_or(0)];
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.stream.write_all(&frame).await.map_err(|error| format!("the connection to the pod is lost: {error}"))
    }
}

/// What the API server says of a command that has ended.
fn ended(status: &[u8]) -> Result<i32, String> {
    let status: Value =
        serde_json::from_slice(status).map_err(|_| "nobody says how the command has ended".to_owned())?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let mut causes = status["details"]["causes"].as_array().into_iter().flatten();
    let code =
        causes.find(|cause| cause["reason"] == "ExitCode").and_then(|cause| cause["message"].as_str()?.parse().ok());
    code.ok_or_else(|| {
        status["message"].as_str().unwrap_or("the command was not run, and no reason is given").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is heard of these bytes, and what is answered to them.
    async fn heard(bytes: &[u8]) -> (Vec<Said>, Option<String>, Vec<u8>) {
        let (ours, mut theirs) = tokio::io::duplex(1 << 18);
        theirs.write_all(bytes).await.unwrap();
        let mut exec = Exec::over(ours);
        let (mut said, mut problem) = (Vec::new(), None);
        // What is not whole is cut.
        let reader = async {
            loop {
                match exec.next().await {
                    Ok(Some(one)) => said.push(one),
                    Ok(None) => break,
                    Err(why) => {
                        problem = Some(why);
                        break;
                    }
                }
            }
        };
        let mut answered = Vec::new();
        let peer = async {
            theirs.shutdown().await.unwrap();
        };
        tokio::join!(reader, peer);
        drop(exec);
        theirs.read_to_end(&mut answered).await.unwrap();
        (said, problem, answered)
    }

    fn out(text: &'static [u8]) -> Said {
        Said::Out(Bytes::from_static(text))
    }

    #[tokio::test]
    async fn frames_are_read_as_rfc_6455_has_them() {
        let status =
            br#"{"status":"Failure","message":"m","details":{"causes":[{"reason":"ExitCode","message":"65"}]}}"#;
        let mut end = vec![0x82, 126, 0, u8::try_from(status.len() + 1).unwrap(), 3];
        end.extend(status);
        let long = [&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 1, 1][..], &[b'x'; 65536]].concat();
        let rows: Vec<(Vec<u8>, Vec<Said>)> = vec![
            (vec![0x82, 4, 1, b'a', b'b', b'c'], vec![out(b"abc")]),
            // A message in three frames, with a ping in between; the first one has only the number.
            (
                vec![0x02, 1, 1, 0x00, 1, b'a', 0x89, 0, 0x80, 1, b'b', 0x82, 2, 2, b'c'],
                vec![out(b"a"), out(b"b"), Said::Err(Bytes::from_static(b"c"))],
            ),
            // The API server opens its streams with empty messages.
            (vec![0x82, 1, 1, 0x82, 1, 2, 0x82, 0, 0x82, 2, 1, b'z'], vec![out(b"z")]),
            (end, vec![Said::Ended(Ok(65))]),
            (vec![0x88, 0, 0x82, 2, 1, b'a'], vec![]),
            (long, vec![Said::Out(vec![b'x'; 65536].into())]),
        ];
        for (bytes, expected) in rows {
            let (said, problem, _) = heard(&bytes).await;
            assert_eq!((said, problem), (expected, None), "{:?}", &bytes[..bytes.len().min(20)]);
        }
        for bytes in [
            &[0x82, 0x81, 0, 0, 0, 0, 1][..],
            &[0xc2, 1, 1],
            &[0x83, 0],
            &[0x82, 127, 0, 0, 1, 0, 0, 0, 0, 0],
            &[0x82, 5, 1],
        ] {
            assert!(heard(bytes).await.1.is_some(), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn a_ping_is_answered_with_a_mask() {
        let (_, _, answer) = heard(&[0x89, 2, b'h', b'i']).await;
        assert_eq!((answer[0], answer[1], answer.len()), (0x8a, 0x82, 8));
        assert_eq!([answer[6] ^ answer[2], answer[7] ^ answer[3]], *b"hi");
    }

    #[test]
    fn how_a_command_ended_is_told() {
        // The example of RFC 6455.
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        for (status, expected) in [
            (r#"{"status":"Success"}"#, Ok(0)),
            (r#"{"status":"Failure","details":{"causes":[{"reason":"ExitCode","message":"64"}]}}"#, Ok(64)),
            (r#"{"status":"Failure","message":"container not found"}"#, Err("container not found")),
            ("nonsense", Err("nobody says how the command has ended")),
        ] {
            assert_eq!(ended(status.as_bytes()), expected.map_err(str::to_owned), "{status}");
        }
    }
}
