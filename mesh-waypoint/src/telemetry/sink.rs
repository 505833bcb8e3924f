//! Where lines of the access log go: each lane appends to a buffer of its own, and one thread writes what is in the buffers. A file that takes nothing costs
//! lines, which are counted, and never a lane's time.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, Thread};
use std::time::Duration;

use arcstr::ArcStr;
use parking_lot::Mutex;

/// Bytes that wait in one buffer; lines that find no room are dropped.
const MOST_BYTES: usize = 1024 * 1024;
/// A buffer that has grown beyond this is given back when it was written.
const KEPT_BYTES: usize = 64 * 1024;
/// How long lines are collected before they are written.
const COLLECT: Duration = Duration::from_millis(20);
/// How long an idle thread waits before it looks by itself.
const LOOK: Duration = Duration::from_secs(5);
/// Buffers of one file. Of more lanes, several share one.
const BUFFERS: usize = 64;
/// Files at once; lines for more are dropped.
const MOST_SINKS: usize = 16;
/// How long is waited for the last lines.
const FINISH: Duration = Duration::from_millis(500);

/// One file.
pub struct Sink {
    path: ArcStr,
    buffers: [Mutex<Vec<u8>>; BUFFERS],
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    sinks: Mutex<Vec<Arc<Sink>>>,
    thread: OnceLock<Thread>,
    /// The thread will look without being woken.
    awake: AtomicBool,
    closing: AtomicBool,
    dropped: AtomicU64,
}

/// All files, and the thread that writes them: it starts with the first file and ends with this.
#[derive(Default)]
pub struct Writer {
    shared: Arc<Shared>,
    ended: Mutex<Option<mpsc::Receiver<()>>>,
}

impl Sink {
    /// Appends a line of that lane; it is dropped if there is no room.
    pub fn append(&self, lane: usize, line: &[u8]) {
        {
            let mut buffer = self.buffers[lane % BUFFERS].lock();
            if buffer.len() + line.len() > MOST_BYTES {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            buffer.extend_from_slice(line);
        }
        // One wake-up for many lines.
        if !self.shared.awake.swap(true, Ordering::AcqRel)
            && let Some(thread) = self.shared.thread.get()
        {
            thread.unpark();
        }
    }
}

impl Writer {
    /// The file of that name; an empty one is the standard output. None if there are too many.
    pub fn sink(&self, path: &ArcStr) -> Option<Arc<Sink>> {
        let path = if path.is_empty() { arcstr::literal!("/dev/stdout") } else { path.clone() };
        let mut sinks = self.shared.sinks.lock();
        if let Some(known) = sinks.iter().find(|sink| sink.path == path) {
            return Some(Arc::clone(known));
        }
        // Files that no log names any more make room.
        sinks.retain(|sink| Arc::strong_count(sink) > 1 || sink.buffers.iter().any(|buffer| !buffer.lock().is_empty()));
        if sinks.len() >= MOST_SINKS {
            return None;
        }
        let buffers = std::array::from_fn(|_| Mutex::default());
        let sink = Arc::new(Sink { path, buffers, shared: Arc::clone(&self.shared) });
        sinks.push(Arc::clone(&sink));
        drop(sinks);
        self.start();
        Some(sink)
    }

    /// Lines that were dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Writes what is there and ends the thread; waits for a short while only.
    pub fn finish(&self) {
        let Some(ended) = self.ended.lock().take() else { return };
        self.shared.closing.store(true, Ordering::Release);
        if let Some(thread) = self.shared.thread.get() {
            thread.unpark();
        }
        let _ = ended.recv_timeout(FINISH);
    }

    fn start(&self) {
        let mut ended = self.ended.lock();
        if ended.is_some() {
            return;
        }
        let (alive, receiver) = mpsc::channel();
        let shared = Arc::clone(&self.shared);
        let spawned = thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            run(&shared);
            drop(alive);
        });
        match spawned {
            Ok(handle) => {
                let _ = self.shared.thread.set(handle.thread().clone());
                *ended = Some(receiver);
            }
            Err(error) => tracing::error!(%error, "no thread for the access log: its lines are dropped"),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.finish();
    }
}

/// An open file.
enum Open {
    Stdout,
    Stderr,
    File(File),
    /// It cannot be opened or written to.
    Broken,
}

impl Open {
    fn of(path: &str) -> Self {
        match path {
            "/dev/stdout" => Self::Stdout,
            "/dev/stderr" => Self::Stderr,
            path => match OpenOptions::new().append(true).create(true).open(path) {
                Ok(file) => Self::File(file),
                Err(error) => {
                    tracing::warn!(path, %error, "an access log cannot be opened: its lines are dropped");
                    Self::Broken
                }
            },
        }
    }

    /// Whole lines at once: the process's own log writes to the same place.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            Self::Stderr => io::stderr().lock().write_all(bytes),
            Self::File(file) => file.write_all(bytes),
            Self::Broken => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

fn run(shared: &Shared) {
    let mut open: Vec<(ArcStr, Open)> = Vec::new();
    let mut spare = Vec::new();
    loop {
        let closing = shared.closing.load(Ordering::Acquire);
        if !closing {
            thread::park_timeout(LOOK);
            // Closing does not wait for more lines; all else does.
            if !shared.closing.load(Ordering::Acquire) {
                thread::sleep(COLLECT);
            }
        }
        shared.awake.store(false, Ordering::Release);
        let sinks = shared.sinks.lock().clone();
        open.retain(|(path, _)| sinks.iter().any(|sink| sink.path == *path));
        for sink in sinks {
            let at = open.iter().position(|(path, _)| *path == sink.path).unwrap_or_else(|| {
                open.push((sink.path.clone(), Open::of(&sink.path)));
                open.len() - 1
            });
            for buffer in &sink.buffers {
                std::mem::swap(&mut *buffer.lock(), &mut spare);
                if spare.is_empty() {
                    continue;
                }
                if open[at].1.write(&spare).is_err() {
                    let lines = spare.iter().filter(|byte| **byte == b'\n').count().max(1);
                    shared.dropped.fetch_add(lines as u64, Ordering::Relaxed);
                }
                spare.clear();
                spare.shrink_to(KEPT_BYTES);
            }
        }
        if closing {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_lanes_are_written_when_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path: ArcStr = folder.path().join("log").to_str().unwrap().into();
        let writer = Writer::default();
        let sink = writer.sink(&path).unwrap();
        assert!(Arc::ptr_eq(&sink, &writer.sink(&path).unwrap()));
        for at in 0..1000 {
            sink.append(at % 100, format!("{at}\n").as_bytes());
        }
        writer.finish();
        let mut lines: Vec<usize> =
            std::fs::read_to_string(path.as_str()).unwrap().lines().map(|line| line.parse().unwrap()).collect();
        lines.sort_unstable();
        assert_eq!(lines, (0..1000).collect::<Vec<_>>());
        assert_eq!(writer.dropped(), 0);
    }

    #[test]
    fn a_file_that_takes_nothing_costs_lines_and_no_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Somebody has it open and does not read.
        let _reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let writer = Writer::default();
        let sink = writer.sink(&path.to_str().unwrap().into()).unwrap();
        let line = [b'x'; 1024];
        for _ in 0..4096 {
            sink.append(0, &line);
        }
        assert!(writer.dropped() > 1000, "{}", writer.dropped());
        assert!(sink.buffers[0].lock().len() <= MOST_BYTES);
    }

    #[test]
    fn what_cannot_be_opened_is_counted_and_files_are_few() {
        let writer = Writer::default();
        let sink = writer.sink(&"/nowhere/at/all".into()).unwrap();
        sink.append(0, b"a\nb\n");
        writer.finish();
        assert_eq!(writer.dropped(), 2);
        let writer = Writer::default();
        let held: Vec<_> = (0..MOST_SINKS + 1).map(|at| writer.sink(&format!("/nowhere/{at}").into())).collect();
        assert!(held[..MOST_SINKS].iter().all(Option::is_some) && held[MOST_SINKS].is_none());
        drop(held);
        assert!(writer.sink(&"/nowhere/else".into()).is_some());
    }
}
