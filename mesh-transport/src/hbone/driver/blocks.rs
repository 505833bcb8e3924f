//! Header blocks: requests, answers, trailers.

use super::*;

impl<H: FnMut(InboundRequest)> Driver<H> {
    pub(super) fn on_headers(&mut self, base: &[u8], head: Head, payload: &[u8]) -> Checked {
        if head.stream == 0 || (self.tunnel.role == Role::Server && head.stream.is_multiple_of(2)) {
            return Err(Violation(code::PROTOCOL_ERROR, "headers_on_wrong_stream"));
        }
        let mut fragment = payload;
        let mut padding = 0;
        if head.flags & flag::PADDED != 0 {
            let (&length, rest) = fragment.split_first().ok_or(Violation(code::FRAME_SIZE_ERROR, "bad_padding"))?;
            (padding, fragment) = (usize::from(length), rest);
        }
        if head.flags & flag::PRIORITY != 0 {
            fragment = fragment.get(5..).ok_or(Violation(code::FRAME_SIZE_ERROR, "bad_headers"))?;
        }
        let length = fragment.len().checked_sub(padding).ok_or(Violation(code::PROTOCOL_ERROR, "bad_padding"))?;
        let block = Block {
            stream: head.stream,
            end_stream: head.flags & flag::END_STREAM != 0,
            bytes: fragment[..length].to_vec(),
            continuations: 0,
        };
        if head.flags & flag::END_HEADERS == 0 {
            self.block = Some(block);
            return Ok(());
        }
        self.on_block(base, block)
    }

    pub(super) fn on_continuation(&mut self, base: &[u8], head: Head, payload: &[u8]) -> Checked {
        let Some(mut block) = self.block.take() else {
            return Err(Violation(code::PROTOCOL_ERROR, "continuation_of_nothing"));
        };
        block.bytes.extend_from_slice(payload);
        block.continuations += 1;
        if block.continuations > CONTINUATIONS {
            return Err(Violation(code::ENHANCE_YOUR_CALM, "continuation_flood"));
        }
        if head.flags & flag::END_HEADERS == 0 {
            self.block = Some(block);
            return Ok(());
        }
        self.on_block(base, block)
    }

    pub(super) fn on_block(&mut self, base: &[u8], block: Block) -> Checked {
        let fields = match self.decoder.decode(&block.bytes) {
            Ok(fields) => fields,
            Err(HpackError::Malformed) => return Err(Violation(code::COMPRESSION_ERROR, "bad_hpack")),
            Err(HpackError::TooLarge) => return Err(Violation(code::ENHANCE_YOUR_CALM, "headers_too_large")),
        };
        match self.tunnel.role {
            Role::Server if block.stream > self.last_peer_stream => {
                self.last_peer_stream = block.stream;
                self.on_request(&fields, &block)
            }
            Role::Client if self.is_idle(block.stream) => {
                Err(Violation(code::PROTOCOL_ERROR, "headers_on_idle_stream"))
            }
            _ => {
                let pseudo = fields.iter().any(|field| field.name.starts_with(b":"));
                let Some(stream) = self.tunnel.stream(block.stream) else {
                    // Trailers may still be under way when we have ended a stream, but a request needs a new number.
                    if pseudo && self.tunnel.role == Role::Server {
                        return Err(Violation(code::PROTOCOL_ERROR, "stream_id_not_new"));
                    }
                    return self.pay(1.0);
                };
                if self.tunnel.role == Role::Client {
                    match headers::parse_answer(&fields) {
                        Some((status, _)) if status.is_informational() && !block.end_stream => return self.pay(1.0),
                        Some((status, baggage)) => {
                            if !stream.set_answer(status, baggage) {
                                return self.stream_error(&stream, code::PROTOCOL_ERROR);
                            }
                            if block.end_stream {
                                stream.end();
                                self.tunnel.settle(&stream);
                            }
                            return Ok(());
                        }
                        None => {}
                    }
                }
                // Trailers: their content means nothing to a tunnel, their END_STREAM does.
                if pseudo || !block.end_stream {
                    return self.stream_error(&stream, code::PROTOCOL_ERROR);
                }
                self.pay(1.0)?;
                self.deliver(base);
                stream.end();
                self.tunnel.settle(&stream);
                Ok(())
            }
        }
    }

    /// An error of one stream: counted like a reset by the peer, since the peer caused it.
    pub(super) fn stream_error(&mut self, stream: &Stream, error: u32) -> Checked {
        self.pay(4.0)?;
        frame::rst_stream(&mut self.out, stream.id, error);
        stream.peer_reset(error);
        self.tunnel.settle(stream);
        Ok(())
    }

    pub(super) fn on_request(&mut self, fields: &[Field], block: &Block) -> Checked {
        if self.goaway_sent == Goaway::Final {
            return Ok(());
        }
        let stream = if self.peer_gone { None } else { self.tunnel.opened_by_peer(block.stream) };
        let Some(stream) = stream else {
            self.refused += 1;
            self.pay(1.0)?;
            frame::rst_stream(&mut self.out, block.stream, code::REFUSED_STREAM);
            return Ok(());
        };
        if block.end_stream {
            stream.end();
        }
        match headers::parse_request(fields, (!self.any_address).then(|| self.tunnel.local.ip())) {
            Ok(request) => {
                (self.on_request)(InboundRequest::new(self.tunnel.clone(), stream, request));
                Ok(())
            }
            Err(problem) => {
                tracing::debug!(peer = %self.tunnel.peer, from = %self.tunnel.remote, %problem, "refused a request");
                crate::hbone::server::count(problem);
                let _ = self.tunnel.answer(&stream, StatusCode::BAD_REQUEST, &Baggage::default());
                self.pay(2.0)
            }
        }
    }
}
