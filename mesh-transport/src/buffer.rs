//! Large buffers shared by everything that moves bytes: taken for one read or one batch, given back at once, so that idle connections own none.

use parking_lot::Mutex;

/// Capacity of a buffer: sixteen full TLS records with their overhead, rounded up to pages.
pub(crate) const BUFFER: usize = 65 * 4096;
/// Buffers kept for reuse; more are returned to the allocator.
const KEPT: usize = 64;

/// Held for a push or a pop.
static POOL: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// A buffer of [`BUFFER`] initialised bytes; its content is whatever the last user left. It returns to the pool when dropped.
pub(crate) struct Buffer(Option<Box<[u8]>>);

impl Buffer {
    /// Takes a buffer, or makes one.
    pub(crate) fn take() -> Self {
        let pooled = POOL.lock().pop();
        Self(Some(pooled.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(buffer) = self.0.take() {
            let mut pool = POOL.lock();
            if pool.len() < KEPT {
                pool.push(buffer);
            }
        }
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}
