//! How much may be on its way to us over HTTP/2 that nobody has taken yet. hyper gives room back only for what is taken, so a body that nobody reads keeps its
//! stream's window, and its part of the connection's.

/// Of a stream: what it may make us hold, and with the way there and back how fast it can be.
pub const STREAM_WINDOW: u32 = 256 * 1024;

/// Of a client's own connection. Bodies that their endpoints do not read hold up what else comes through it, which is the client's; it may have many connections,
/// and room for all streams of each would be memory for whoever asks.
pub const CLIENT_WINDOW: u32 = 1024 * 1024;

/// Of a connection that many share, to an endpoint or of another proxy of the mesh: room for each of its streams, or a few that nobody reads hold up all others. This is also
/// the most that its other end can make us hold: with a hundred streams 25 MiB.
#[must_use]
pub fn connection_window(streams: u32) -> u32 {
    // More than that HTTP/2 does not know.
    const MOST: u32 = (1 << 31) - 1;
    streams.saturating_mul(STREAM_WINDOW).clamp(1024 * 1024, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardening_F34_all_streams_of_a_connection_have_room() {
        for (streams, expected) in [(1, 1 << 20), (4, 1 << 20), (100, 100 << 18), (u32::MAX, (1 << 31) - 1)] {
            assert_eq!(connection_window(streams), expected, "{streams}");
        }
    }
}
