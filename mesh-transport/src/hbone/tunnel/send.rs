//! The sending half of a tunnel: credit, sealing, the queue of what the socket did not take, and whose turn it is.

use super::*;

impl Tunnel {
    /// Asks for credit to send up to `wanted` bytes, at most [`BATCH`]. What is granted must be committed or released.
    pub(in crate::hbone) fn reserve(&self, stream: &Arc<Stream>, wanted: usize, waker: &Waker) -> Credit {
        let mut state = self.state.lock();
        if state.closed.is_some() || stream.send_over() {
            self.wake_next(&mut state);
            return Credit::Closed;
        }
        let own = stream.send_window.load(Relaxed);
        if own <= 0 {
            stream.wait_to_send(waker);
            self.wake_next(&mut state);
            return Credit::Wait;
        }
        if !state.may_send() {
            stream.wait_to_send(waker);
            if !stream.waiting.swap(true, Relaxed) {
                state.waiting.push_back(stream.clone());
            }
            return Credit::Wait;
        }
        let granted = own.min(state.window).min(wanted.min(BATCH) as i64);
        stream.send_window.fetch_sub(granted, Relaxed);
        state.window -= granted;
        state.granted += granted as usize;
        // It has its turn: being woken for it later would take another's.
        if stream.waiting.swap(false, Relaxed) {
            state.waiting.retain(|waiting| waiting.id != stream.id);
        }
        Credit::Granted(granted as usize)
    }

    /// The tunnel's credit, and what of it is granted.
    #[cfg(test)]
    pub(in crate::hbone) fn credit(&self) -> (i64, usize) {
        let state = self.state.lock();
        (state.window, state.granted)
    }

    /// Gives credit back.
    pub(in crate::hbone) fn release(&self, stream: &Stream, granted: usize) {
        let mut state = self.state.lock();
        state.granted -= granted;
        self.refund(&mut state, stream, granted);
        self.wake_next(&mut state);
    }

    pub(super) fn refund(&self, state: &mut State, stream: &Stream, granted: usize) {
        stream.send_window.fetch_add(granted as i64, Relaxed);
        state.window += granted as i64;
    }

    /// Seals and sends `payload` bytes that lie in the slots of `buffer`; `unused` credit is given back, `end` ends this direction.
    pub(in crate::hbone) fn commit(
        &self,
        stream: &Stream,
        mut buffer: Buffer,
        payload: usize,
        unused: usize,
        end: bool,
    ) {
        let mut state = self.state.lock();
        state.granted -= payload + unused;
        if state.closed.is_some() || stream.send_over() {
            // Nothing is sent, so the peer will never give this credit back: it returns to the tunnel, and the turn goes to the next.
            self.refund(&mut state, stream, payload + unused);
            self.wake_next(&mut state);
            return;
        }
        self.refund(&mut state, stream, unused);
        self.refresh_key(&mut state);
        let mut left = payload;
        let mut used = 0;
        loop {
            let length = left.min(PAYLOAD);
            left -= length;
            let last = left == 0;
            let record = &mut buffer[used..used + PAYLOAD_AT + length + TRAILER];
            let head = Head {
                length,
                kind: kind::DATA,
                flags: if last && end { flag::END_STREAM } else { 0 },
                stream: stream.id,
            };
            record[RECORD_HEADER..PAYLOAD_AT].copy_from_slice(&head.bytes());
            state.sealer.seal(CONTENT_DATA, record);
            used += record.len();
            if last {
                break;
            }
        }
        if end {
            stream.send_ended();
        }
        self.enqueue(&mut state, Segment { buffer, start: 0, end: used });
        self.wake_next(&mut state);
        self.transmit(state);
        if end {
            self.settle(stream);
        }
    }

    /// Sends frames that are not DATA.
    pub(in crate::hbone) fn control(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        if state.closed.is_none() {
            self.send(&mut state, write);
            self.transmit(state);
        }
    }

    /// Queues frames that are not DATA; [`Tunnel::transmit`] must follow.
    pub(super) fn send(&self, state: &mut State, write: impl FnOnce(&mut Vec<u8>)) {
        let mut plain = Vec::with_capacity(512);
        write(&mut plain);
        self.refresh_key(state);
        for content in plain.chunks(RECORD_CONTENT) {
            self.send_record(state, CONTENT_DATA, content);
        }
    }

    /// Queues a record, in the last buffer if it has room; [`Tunnel::transmit`] must follow.
    pub(super) fn send_record(&self, state: &mut State, content_type: u8, content: &[u8]) {
        let size = RECORD_HEADER + content.len() + TRAILER;
        if state.pending.back().is_none_or(|last| BUFFER - last.end < size) {
            state.pending.push_back(Segment { buffer: Buffer::take(), start: 0, end: 0 });
        }
        if let Some(Segment { buffer, end, .. }) = state.pending.back_mut() {
            let record = &mut buffer[*end..*end + size];
            record[RECORD_HEADER..RECORD_HEADER + content.len()].copy_from_slice(content);
            state.sealer.seal(content_type, record);
            *end += size;
        }
        self.count_queued(state, size);
    }

    /// After some eight million records the key is changed, as TLS demands.
    pub(super) fn refresh_key(&self, state: &mut State) {
        if state.sealer.wants_update() {
            self.update_key(state, false);
        }
    }

    /// Sends a KeyUpdate because the peer asked for one.
    pub(in crate::hbone) fn answer_key_update(&self) {
        let mut state = self.state.lock();
        self.update_key(&mut state, false);
        self.transmit(state);
    }

    pub(super) fn update_key(&self, state: &mut State, request: bool) {
        self.send_record(state, CONTENT_HANDSHAKE, &[24, 0, 0, 1, u8::from(request)]);
        match self.keys.lock().next_sealer() {
            Ok(sealer) => state.sealer = sealer,
            Err(error) => self.close_locked(state, Closed::Lost(error.to_string().into())),
        }
    }

    pub(in crate::hbone) fn next_opener(&self) -> Result<crate::tls::Opener, crate::tls::HandshakeError> {
        self.keys.lock().next_opener()
    }

    /// Queues a batch; [`Tunnel::transmit`] must follow.
    pub(super) fn enqueue(&self, state: &mut State, segment: Segment) {
        let size = segment.end;
        match state.pending.back_mut() {
            Some(last) if size <= COALESCE && BUFFER - last.end >= size => {
                last.buffer[last.end..last.end + size].copy_from_slice(&segment.buffer[..size]);
                last.end += size;
            }
            _ => state.pending.push_back(segment),
        }
        self.count_queued(state, size);
    }

    fn count_queued(&self, state: &mut State, size: usize) {
        state.pending_bytes += size;
        if state.pending_bytes > PENDING_FATAL {
            self.close_locked(state, Closed::Protocol("peer does not read"));
        }
    }

    /// Writes what is queued, unless somebody is at it: then that one takes it along. The system call is made without the lock, so that nobody
    /// waits for another's, and what gathers meanwhile goes out in one write.
    pub(super) fn transmit(&self, mut state: MutexGuard<'_, State>) {
        if state.writer != Writer::Idle || state.pending.is_empty() {
            return;
        }
        // On an error too: the driver meets the same one and ends the tunnel with it.
        let _ = self.write_queued(&mut state);
        if state.writer == Writer::Driver {
            self.driver.wake();
        }
    }

    /// Whether there are bytes that the driver has to write.
    pub(in crate::hbone) fn is_blocked(&self) -> bool {
        self.state.lock().writer == Writer::Driver
    }

    /// Whether sealed bytes are not with the socket yet.
    pub(in crate::hbone) fn has_pending(&self) -> bool {
        self.state.lock().writer != Writer::Idle
    }

    /// Bytes that the peer's kernel has not taken: queued here, or with our socket.
    pub(in crate::hbone) fn untaken(&self) -> usize {
        // In the order in which they go, so that none is missed.
        let queued = self.state.lock().pending_bytes;
        queued + socket::unacknowledged(&self.socket)
    }

    /// Writes queued bytes until the socket is full.
    pub(in crate::hbone) fn flush(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.writer == Writer::Driver { self.write_queued(&mut state) } else { Ok(()) }
    }

    fn write_queued(&self, state: &mut MutexGuard<'_, State>) -> io::Result<()> {
        let mut result = Ok(());
        state.writer = Writer::Busy;
        for _ in 0..ROUNDS {
            let mut batch = std::mem::take(&mut state.pending);
            let mut written = 0;
            result = MutexGuard::unlocked(state, || self.write_batch(&mut batch, &mut written));
            state.pending_bytes -= written;
            let full = !batch.is_empty();
            // What was queued meanwhile comes after what is left.
            batch.append(&mut state.pending);
            state.pending = batch;
            if full || state.pending.is_empty() {
                break;
            }
        }
        state.writer = if state.pending.is_empty() { Writer::Idle } else { Writer::Driver };
        self.wake_next(state);
        result
    }

    /// Writes until the socket takes no more; counts in `written` and removes what it took.
    fn write_batch(&self, batch: &mut VecDeque<Segment>, written: &mut usize) -> io::Result<()> {
        while !batch.is_empty() {
            let mut slices = [IoSlice::new(&[]); 16];
            let mut count = 0;
            for (slice, segment) in slices.iter_mut().zip(&*batch) {
                *slice = IoSlice::new(&segment.buffer[segment.start..segment.end]);
                count += 1;
            }
            let mut taken = match socket::write_vectored(&self.socket, &slices[..count]) {
                Ok(taken) => taken,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    self.congested_at.store(EPOCH.elapsed().as_nanos() as u64, Relaxed);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            *written += taken;
            while let Some(front) = batch.front_mut() {
                let size = front.end - front.start;
                if taken < size {
                    front.start += taken;
                    break;
                }
                taken -= size;
                batch.pop_front();
            }
        }
        Ok(())
    }

    /// Lets the next waiting stream try. Whatever it does then, send, give back, find no credit of its own or end, leads here again, so nobody is
    /// forgotten.
    pub(super) fn wake_next(&self, state: &mut State) {
        if state.may_send()
            && let Some(next) = state.waiting.pop_front()
        {
            next.waiting.store(false, Relaxed);
            next.wake_writer();
        }
    }

    /// The peer granted credit. False: more than the protocol allows.
    pub(in crate::hbone) fn granted(&self, id: u32, increment: i64) -> bool {
        let mut state = self.state.lock();
        if id == 0 {
            state.window += increment;
            let legal = state.window <= frame::MAX_WINDOW;
            self.wake_next(&mut state);
            return legal;
        }
        let Some(stream) = self.stream(id) else { return true };
        let before = stream.send_window.fetch_add(increment, Relaxed);
        if before <= 0 && before + increment > 0 {
            stream.wake_writer();
        }
        before + increment <= frame::MAX_WINDOW
    }

    /// Sends TLS' goodbye.
    pub(in crate::hbone) fn say_goodbye(&self) {
        let mut state = self.state.lock();
        self.send_record(&mut state, crate::tls::CONTENT_ALERT, &[1, 0]);
        self.transmit(state);
    }

    /// Sends a fatal alert.
    pub(in crate::hbone) fn alert(&self, description: u8) {
        let mut state = self.state.lock();
        self.send_record(&mut state, crate::tls::CONTENT_ALERT, &[2, description]);
        self.transmit(state);
    }
}
