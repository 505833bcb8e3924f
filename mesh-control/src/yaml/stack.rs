//! Room for the parser, which recurses: at its limit of nesting it needs more stack than a thread has by default. Whoever parses what others wrote
//! does it in here.

const STACK: usize = 16 << 20;

/// Runs `work` on a thread with a large stack. The error says why there is no result; a panic in there is one.
pub fn with_room<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, &'static str> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("manifests".into()).stack_size(STACK);
        match thread.spawn_scoped(scope, work).map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err("the reader failed on it"),
            Err(_) => Err("there is no thread to read it"),
        }
    })
}
