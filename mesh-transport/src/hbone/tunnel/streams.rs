//! The streams of a tunnel: opened, answered, reset, removed; and the windows and limits that the SETTINGS of both ends give them.

use super::*;

impl Tunnel {
    /// Opens a stream and sends its request. `None`: the tunnel takes no more streams.
    pub(in crate::hbone) fn open(self: &Arc<Self>, request: &ConnectRequest) -> Option<Arc<Stream>> {
        let block = request_block(request);
        let mut state = self.state.lock();
        if !state.has_room(self.max_streams) {
            return None;
        }
        let id = state.next_id;
        state.next_id += 2;
        let stream = Arc::new(Stream::new(id, state.initial_window, state.offered, false));
        self.streams.lock().insert(id, stream.clone());
        state.active += 1;
        state.idle_since = None;
        self.send(&mut state, |out| frame::headers(out, id, false, &block));
        self.transmit(state);
        Some(stream)
    }

    /// Registers a stream that the peer opened. `None`: there are too many.
    pub(in crate::hbone) fn opened_by_peer(&self, id: u32) -> Option<Arc<Stream>> {
        let mut state = self.state.lock();
        if state.active >= self.max_streams {
            return None;
        }
        let stream = Arc::new(Stream::new(id, state.initial_window, state.taken_on, true));
        self.streams.lock().insert(id, stream.clone());
        state.active += 1;
        state.idle_since = None;
        Some(stream)
    }

    /// Answers a request. `end` closes the stream at once.
    pub(in crate::hbone) fn answer(
        &self,
        stream: &Stream,
        status: StatusCode,
        baggage: &Baggage,
    ) -> Result<(), HboneError> {
        let block = answer_block(status, baggage);
        let refused = status != StatusCode::OK;
        let mut state = self.state.lock();
        if let Some(closed) = &state.closed {
            return Err(closed.error(true));
        }
        if let Some(code) = stream.answered(refused) {
            drop(state);
            self.settle(stream);
            return Err(HboneError::Reset(code));
        }
        self.send(&mut state, |out| {
            frame::headers(out, stream.id, refused, &block);
            if refused {
                // The answer is complete; the peer need not end its half first.
                frame::rst_stream(out, stream.id, code::NO_ERROR);
            }
        });
        self.transmit(state);
        self.settle(stream);
        Ok(())
    }

    /// Aborts a stream.
    pub(in crate::hbone) fn reset(&self, stream: &Stream, code: u32) {
        let mut state = self.state.lock();
        if stream.abort() && state.closed.is_none() {
            self.send(&mut state, |out| frame::rst_stream(out, stream.id, code));
        }
        if stream.waiting.swap(false, Relaxed) {
            state.waiting.retain(|waiting| waiting.id != stream.id);
        }
        // Even if it is not in the list: it may be the one whose turn it was.
        self.wake_next(&mut state);
        self.transmit(state);
        self.settle(stream);
    }

    /// Removes a stream from the table when both of its directions are over.
    pub(in crate::hbone) fn settle(&self, stream: &Stream) {
        if !stream.take_over() {
            return;
        }
        self.streams.lock().remove(&stream.id);
        let mut state = self.state.lock();
        // A tunnel that closed between the two locks has already counted its streams out.
        if state.closed.is_none() {
            state.active -= 1;
        }
        if stream.waiting.swap(false, Relaxed) {
            state.waiting.retain(|waiting| waiting.id != stream.id);
            self.wake_next(&mut state);
        }
        if state.active == 0 {
            state.idle_since = Some(Instant::now());
            if state.draining {
                self.driver.wake();
            }
        }
    }

    pub(in crate::hbone) fn stream(&self, id: u32) -> Option<Arc<Stream>> {
        self.streams.lock().get(&id).cloned()
    }

    /// The peer's SETTINGS. False: a window would overflow.
    pub(in crate::hbone) fn configured(&self, initial_window: Option<i64>, max_streams: Option<u32>) -> bool {
        let mut state = self.state.lock();
        state.settled = true;
        if let Some(limit) = max_streams {
            state.peer_max_streams = limit;
        }
        let Some(window) = initial_window else { return true };
        let change = window - state.initial_window;
        state.initial_window = window;
        self.streams.lock().values().all(|stream| {
            let now = stream.send_window.fetch_add(change, Relaxed) + change;
            if now > 0 {
                stream.wake_writer();
            }
            now <= frame::MAX_WINDOW
        })
    }

    /// Gives streams another receive window. A larger one counts from now on, as nobody knows when the peer begins to use it, a smaller one when the
    /// peer has acknowledged it, except for streams that we open, since it hears of them later. Returns whether there is anything to acknowledge.
    pub(in crate::hbone) fn offer(&self, window: i64) -> bool {
        let mut state = self.state.lock();
        if state.closed.is_some() || state.offered == window {
            return false;
        }
        state.offered = window;
        if window > state.taken_on {
            self.take_on(&mut state);
        }
        self.send(&mut state, |out| frame::settings(out, &[(frame::setting::INITIAL_WINDOW_SIZE, window as u32)]));
        self.transmit(state);
        true
    }

    /// The peer has acknowledged our SETTINGS.
    pub(in crate::hbone) fn acknowledged(&self) {
        let mut state = self.state.lock();
        self.take_on(&mut state);
        self.transmit(state);
    }

    /// Queues what is granted with it; [`Tunnel::transmit`] must follow.
    fn take_on(&self, state: &mut State) {
        if state.taken_on == state.offered {
            return;
        }
        state.taken_on = state.offered;
        let mut grants = Vec::new();
        for stream in self.streams.lock().values() {
            let grant = stream.set_first_window(self, state.offered);
            if grant > 0 {
                frame::window_update(&mut grants, stream.id, grant);
            }
        }
        if !grants.is_empty() {
            self.send(state, |out| out.extend(grants));
        }
    }

    /// The peer takes no more streams and has not seen those above `last`.
    pub(in crate::hbone) fn gone_away(&self, last: u32) {
        self.state.lock().draining = true;
        let unseen: Vec<_> = self.streams.lock().values().filter(|stream| stream.id > last).cloned().collect();
        if self.role == Role::Client {
            for stream in unseen {
                stream.peer_reset(code::REFUSED_STREAM);
                self.settle(&stream);
            }
        }
    }
}

fn request_block(request: &ConnectRequest) -> Vec<u8> {
    let mut block = Vec::with_capacity(384);
    hpack::literal(&mut block, ":method", "CONNECT");
    let authority = &request.authority;
    hpack::literal(&mut block, ":authority", &authority.to_string());
    if !request.baggage.is_empty() {
        hpack::literal(&mut block, "baggage", &request.baggage.to_string());
    }
    if let Some(forwarded) = &request.forwarded {
        hpack::literal(&mut block, "forwarded", &forwarded.to_string());
    }
    let traceparent = request.traceparent.unwrap_or_else(|| TraceParent::random(&mut rand::rng()));
    hpack::literal(&mut block, "traceparent", &traceparent.to_string());
    if request.hops > 0 {
        hpack::literal(&mut block, "x-mesh-hops", &request.hops.to_string());
    }
    if let Authority::Host(..) = authority {
        debug_assert!(block.len() < 16_000, "a request block is far below the frame limit");
    }
    block
}

fn answer_block(status: StatusCode, baggage: &Baggage) -> Vec<u8> {
    let mut block = Vec::with_capacity(256);
    hpack::status(&mut block, status);
    if !baggage.is_empty() {
        hpack::literal(&mut block, "baggage", &baggage.to_string());
    }
    block
}
