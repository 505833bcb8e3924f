//! Requests of a stream as they come: frames of gRPC, each read whole and then let go. The first ones list all that a client has, and a stream that
//! keeps room for them holds a thousand times what it needs from then on.

use std::pin::Pin;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;
use tonic::Status;

use super::versions::Request;

/// The names and versions that a client lists when it comes back: three hundred thousand of them fit.
pub(super) const MAX_REQUEST: usize = 32 << 20;
/// Before each message: whether it is compressed, and how long it is.
const HEAD: usize = 5;

/// What a client sends.
pub struct Requests {
    body: Pin<Box<dyn Body<Data = Bytes, Error = Status> + Send>>,
    /// What has come of the next message.
    buffer: BytesMut,
}

impl Requests {
    /// Those in a body.
    pub fn new<B>(body: B) -> Self
    where
        B: Body + Send + 'static,
        B::Error: std::fmt::Display,
    {
        let body = body.map_frame(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining())));
        let body = body.map_err(|error| Status::cancelled(format!("the client is gone: {error}")));
        Self { body: Box::pin(body), buffer: BytesMut::new() }
    }

    /// The next one; `None` when the client has said everything. Whoever stops waiting loses nothing.
    pub async fn next(&mut self) -> Result<Option<Request>, Status> {
        loop {
            if let Some(message) = self.whole()? {
                let request = Request::read(message.freeze());
                return request.map(Some).ok_or_else(|| Status::internal("the request cannot be read"));
            }
            match self.body.frame().await {
                Some(frame) => self.buffer.extend(frame?.into_data().ok()),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Status::internal("half a request")),
            }
        }
    }

    fn whole(&mut self) -> Result<Option<BytesMut>, Status> {
        let Some((head, rest)) = self.buffer.split_at_checked(HEAD) else { return Ok(None) };
        if head[0] != 0 {
            return Err(Status::unimplemented("requests are not to be compressed"));
        }
        let length = head[1..].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        if length > MAX_REQUEST {
            return Err(Status::out_of_range(format!("the request is longer than {MAX_REQUEST} bytes")));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let left = BytesMut::from(&rest[length..]);
        let mut message = std::mem::replace(&mut self.buffer, left);
        message.truncate(HEAD + length);
        message.advance(HEAD);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use mesh_proto::discovery::DeltaDiscoveryRequest;
    use prost::Message;

    fn requests(chunks: Vec<Vec<u8>>) -> Requests {
        let frames = chunks.into_iter().map(|chunk| Ok::<_, Status>(Frame::data(Bytes::from(chunk))));
        Requests::new(StreamBody::new(tokio_stream::iter(frames)))
    }

    fn frame(url: &str) -> Vec<u8> {
        let message = DeltaDiscoveryRequest { type_url: url.into(), ..Default::default() }.encode_to_vec();
        [[0].as_slice(), &(message.len() as u32).to_be_bytes(), &message].concat()
    }

    #[tokio::test]
    async fn however_they_are_cut_requests_are_whole_and_leave_nothing_behind() {
        let all = [frame("a"), frame(&"b".repeat(100_000)), frame("")].concat();
        for size in [1, 3, 5, 1000, all.len()] {
            let mut requests = requests(all.chunks(size).map(<[u8]>::to_vec).collect());
            for wanted in [1, 100_000, 0] {
                assert_eq!(requests.next().await.unwrap().unwrap().message.type_url.len(), wanted, "{size}");
            }
            assert_eq!(requests.next().await.unwrap(), None);
            assert!(requests.buffer.capacity() < 1000, "{size}: {}", requests.buffer.capacity());
        }
    }

    #[tokio::test]
    async fn hardening_B94_what_is_no_request_is_refused() {
        let long = [[0].as_slice(), &((MAX_REQUEST + 1) as u32).to_be_bytes()].concat();
        for (bytes, code) in [
            (long, tonic::Code::OutOfRange),
            (vec![1, 0, 0, 0, 0], tonic::Code::Unimplemented),
            (vec![0, 0, 0, 0, 1, 0xff], tonic::Code::Internal),
            (vec![0, 0, 0, 0, 1], tonic::Code::Internal),
            (vec![0, 0], tonic::Code::Internal),
        ] {
            assert_eq!(requests(vec![bytes.clone()]).next().await.unwrap_err().code(), code, "{bytes:?}");
        }
    }
}
