//! The programs' own log (aya-log), for debugging: only in an agent built with the feature `bpf-log`, from an object built with
//! `UNDERMESH_EBPF_LOG=1 cargo xtask ebpf` and named in `UNDERMESH_LOG_OBJECT`. The kept object has none.

use std::borrow::Cow;

use aya::Ebpf;

use super::config::KernelError;

/// The ring that the programs log to.
pub const RING: &str = "AYA_LOGS";

/// The object with the log.
#[cfg(feature = "bpf-log")]
pub fn object() -> Result<Cow<'static, [u8]>, KernelError> {
    let path = std::env::var_os("UNDERMESH_LOG_OBJECT")
        .ok_or_else(|| KernelError::Config("UNDERMESH_LOG_OBJECT does not name an object with a log".to_owned()))?;
    let path = std::path::PathBuf::from(path);
    std::fs::read(&path).map(Cow::Owned).map_err(|source| super::pins::failed("read", &path, source))
}

/// Says why there is none.
#[cfg(not(feature = "bpf-log"))]
pub fn object() -> Result<Cow<'static, [u8]>, KernelError> {
    Err(KernelError::Config("this agent was built without the feature bpf-log".to_owned()))
}

/// Reads the log until the process ends; lines go to the log of the agent. Needs a tokio runtime.
#[cfg(feature = "bpf-log")]
pub fn read(object: &mut Ebpf) -> Result<(), KernelError> {
    let failed = |source| super::object::bpf("read", RING, source);
    let logger = aya_log::EbpfLogger::init_with_logger(object, Lines).map_err(failed)?;
    let interest = tokio::io::Interest::READABLE;
    // SAFETY: the logger owns the ring's descriptor and gives the same one as long as it lives.
    let mut logger = unsafe { tokio::io::unix::AsyncFd::register_with_interest(logger, interest) }
        .map_err(|source| super::object::bpf("poll", RING, source))?;
    tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(())
}

/// Nothing to read.
#[cfg(not(feature = "bpf-log"))]
pub fn read(_object: &mut Ebpf) -> Result<(), KernelError> {
    Ok(())
}

/// Hands the lines of the programs to the agent's own log.
#[cfg(feature = "bpf-log")]
struct Lines;

#[cfg(feature = "bpf-log")]
impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::debug!(target: "undermesh::ebpf", "{}", record.args());
    }

    fn flush(&self) {}
}
