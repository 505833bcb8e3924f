//! Bytes of one stream that its application has not taken yet. Empty queues own nothing; the flow-control window bounds full ones, and what all of them
//! hold bounds that window.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Size at which a new chunk is begun.
const CHUNK: usize = 32 * 1024;

/// Bytes in all queues of the process.
static QUEUED: AtomicUsize = AtomicUsize::new(0);

/// Bytes that the process holds for applications that do not take them.
pub(super) fn queued_in_all() -> usize {
    QUEUED.load(Relaxed)
}

/// A byte queue in chunks.
#[derive(Default)]
pub(super) struct Queue {
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that are taken.
    taken: usize,
    length: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len();
        QUEUED.fetch_add(bytes.len(), Relaxed);
        while !bytes.is_empty() {
            if self.chunks.back().is_none_or(|chunk| chunk.len() >= CHUNK) {
                self.chunks.push_back(Vec::new());
            }
            let Some(chunk) = self.chunks.back_mut() else { return };
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - chunk.len()));
            chunk.extend_from_slice(now);
            bytes = later;
        }
    }

    /// The first bytes, as slices for a vectored write; returns how many slices were set.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        for (slot, (index, chunk)) in slices.iter_mut().zip(self.chunks.iter().enumerate()) {
            *slot = IoSlice::new(if index == 0 { &chunk[self.taken..] } else { chunk });
            count += 1;
        }
        count
    }

    pub(super) fn consume(&mut self, mut count: usize) {
        self.length -= count;
        QUEUED.fetch_sub(count, Relaxed);
        while let Some(chunk) = self.chunks.front() {
            let left = chunk.len() - self.taken;
            if count < left {
                self.taken += count;
                return;
            }
            count -= left;
            self.taken = 0;
            self.chunks.pop_front();
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        QUEUED.fetch_sub(self.length, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_was_pushed() {
        let mut queue = Queue::default();
        let input: Vec<u8> = (0..200_000u32).map(|number| ((number * 31) >> 3) as u8).collect();
        for piece in input.chunks(7001) {
            queue.push(piece);
        }
        assert_eq!(queue.len(), input.len());
        let mut output = Vec::new();
        while !queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); 3];
            let count = queue.slices(&mut slices);
            let mut room = 50_001;
            for slice in &slices[..count] {
                let part = slice.len().min(room);
                output.extend_from_slice(&slice[..part]);
                room -= part;
            }
            queue.consume(50_001 - room);
        }
        assert_eq!(output, input);
        assert!(queue.chunks.is_empty());
    }
}
