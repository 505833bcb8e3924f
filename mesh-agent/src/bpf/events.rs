//! The reader of the programs' typed events. Telemetry owns one and logs what it says.

use std::{io, os::fd::OwnedFd};

use aya::maps::{Map, MapData, RingBuf};
use mesh_common::Event;
use tokio::io::unix::AsyncFd;

use super::{config::KernelError, object::bpf};

/// Reader of the typed events of the programs. There must be one per instance: a ring has one reader.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
    unreadable: u64,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Events").field("unreadable", &self.unreadable).finish_non_exhaustive()
    }
}

impl Events {
    pub(super) fn new(map: OwnedFd) -> Result<Self, KernelError> {
        let name = mesh_common::row::maps::EVENTS;
        let data = MapData::from_fd(map).map_err(|source| bpf("open", name, source))?;
        let map = Map::from_map_data(data).map_err(|source| bpf("open", name, source))?;
        let ring = RingBuf::try_from(map).map_err(|source| bpf("map", name, source))?;
        // SAFETY: the ring owns its descriptor and gives the same one as long as it lives.
        let ring = unsafe { AsyncFd::register(ring) }.map_err(|source| bpf("poll", name, source))?;
        Ok(Self { ring, unreadable: 0 })
    }

    /// The next event. Cancel safe.
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            let mut ready = self.ring.readable_mut().await?;
            let ring = ready.get_inner_mut();
            while let Some(record) = ring.next() {
                match Event::parse(&record) {
                    Ok(event) => return Ok(event),
                    Err(_) => self.unreadable += 1,
                }
            }
            ready.clear_ready();
        }
    }

    /// Records that were not of a kind this build knows.
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }
}
