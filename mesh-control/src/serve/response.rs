//! A response as it goes over the wire: a frame of gRPC whose resources are the bytes that the world has of them, shared by all streams. No stream has a
//! copy of what it is sent; one that reads slowly holds the pieces that it has not read, and they are everybody's.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;
use hyper::body::{Body, Frame};
use mesh_proto::discovery as wire;
use prost::Message;
use tokio::sync::mpsc;
use tonic::Status;

/// Smaller pieces are copied together: each one is a frame of HTTP/2.
const PIECE: usize = 16 << 10;

/// One response.
#[derive(Debug, Default)]
pub struct Response {
    /// Everything but the resources.
    pub head: wire::DeltaDiscoveryResponse,
    /// Resources as the world has them, each part whole fields of the message.
    pub parts: Vec<Bytes>,
    /// How many resources there are.
    pub count: usize,
}

impl Response {
    /// Bytes of the message.
    pub fn size(&self) -> usize {
        self.head.encoded_len() + self.parts.iter().map(Bytes::len).sum::<usize>()
    }

    /// The frame, in pieces.
    fn pieces(self) -> VecDeque<Bytes> {
        let mut pieces = VecDeque::new();
        let mut current = BytesMut::with_capacity(PIECE + 5);
        // Not compressed. A message longer than the field can say is far longer than any that is made.
        current.put_u8(0);
        current.put_u32(u32::try_from(self.size()).unwrap_or(u32::MAX));
        current.put_slice(&self.head.encode_to_vec());
        for part in self.parts {
            if current.len() + part.len() <= PIECE {
                current.put_slice(&part);
                continue;
            }
            if !current.is_empty() {
                pieces.push_back(current.split().freeze());
            }
            if part.len() < PIECE {
                current.put_slice(&part);
            } else {
                pieces.push_back(part);
            }
        }
        if !current.is_empty() {
            pieces.push_back(current.freeze());
        }
        pieces
    }

    /// The message, as a client reads it.
    #[cfg(test)]
    pub fn message(&self) -> wire::DeltaDiscoveryResponse {
        let mut message = self.head.clone();
        let bytes: Vec<u8> = self.parts.iter().flatten().copied().collect();
        message.merge(&*bytes).expect("whole fields");
        assert_eq!((message.encoded_len(), message.resources.len()), (self.size(), self.count));
        message
    }
}

/// What a stream sends: responses, and in the end a status.
#[derive(Debug)]
pub struct Responses {
    receiver: mpsc::Receiver<Result<Response, Status>>,
    /// Of the response that is being sent.
    pieces: VecDeque<Bytes>,
    is_over: bool,
}

impl Responses {
    /// Sends what is received.
    pub fn new(receiver: mpsc::Receiver<Result<Response, Status>>) -> Self {
        Self { receiver, pieces: VecDeque::new(), is_over: false }
    }
}

impl Body for Responses {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            let status = match std::task::ready!(self.receiver.poll_recv(cx)) {
                Some(Ok(response)) => {
                    self.pieces = response.pieces();
                    continue;
                }
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            self.is_over = true;
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers)?;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn pieces_are_one_frame_and_large_ones_are_not_copied() {
        for sizes in [vec![], vec![3], vec![PIECE], vec![10, 20, PIECE + 1, 5], vec![PIECE - 1; 4]] {
            let (sender, receiver) = mpsc::channel(2);
            let parts: Vec<Bytes> = sizes.iter().map(|size| vec![7; *size].into()).collect();
            let large: Vec<*const u8> = parts.iter().filter(|p| p.len() >= PIECE).map(|p| p.as_ptr()).collect();
            let head = wire::DeltaDiscoveryResponse { nonce: "n".into(), ..Default::default() };
            let response = Response { head: head.clone(), parts: parts.clone(), count: 0 };
            let length = response.size();
            sender.send(Ok(response)).await.unwrap();
            sender.send(Err(Status::unavailable("later"))).await.unwrap();
            drop(sender);
            let (mut responses, mut bytes, mut kept) = (Responses::new(receiver), Vec::new(), Vec::new());
            let mut trailers = None;
            while let Some(frame) = responses.frame().await {
                match frame.unwrap().into_data() {
                    Ok(data) => {
                        kept.push(data.as_ptr());
                        bytes.extend_from_slice(&data);
                    }
                    Err(frame) => trailers = frame.into_trailers().ok(),
                }
            }
            let mut wanted = vec![0];
            wanted.extend((length as u32).to_be_bytes());
            wanted.extend(head.encode_to_vec());
            wanted.extend(parts.iter().flatten());
            assert_eq!(bytes, wanted, "{sizes:?}");
            assert!(large.iter().all(|part| kept.contains(part)), "{sizes:?}");
            assert_eq!(trailers.unwrap()["grpc-status"], "14");
        }
    }
}
