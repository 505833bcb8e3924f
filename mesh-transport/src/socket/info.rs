//! What the kernel knows of a TCP connection (`TCP_INFO`), and what has happened between two looks at it. Read by `path`.
//!
//! Only what the kernel counts for good is taken: `tcpi_lost` is what it thinks lost at the moment, so losses are what was sent again less what the receiver
//! has told to have had twice (DSACK, RFC 2883).

use std::mem::size_of_val;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mesh_runtime::paths::Progress;

/// Where the fields are in `struct tcp_info` (linux/tcp.h), which only ever grows at its end.
const ROUND_TRIP: usize = 68;
const TOTAL_RETRANS: usize = 100;
const BYTES_ACKED: usize = 120;
const DATA_SEGS_OUT: usize = 156;
const DSACK_DUPS: usize = 216;

/// One look at a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpInfo {
    /// Smoothed round trip in microseconds; 0 if none was measured.
    pub round_trip: u32,
    /// Bytes that the peer has acknowledged: whether there was anything to measure.
    pub acknowledged: u64,
    /// Segments with data that were sent, those that were sent again among them.
    pub sent: u32,
    /// Segments that were sent again.
    pub retransmitted: u32,
    /// Segments that the receiver has told to have had twice.
    pub duplicates: u32,
}

impl TcpInfo {
    /// What the kernel knows of `socket`; none if it does not tell all of it.
    pub fn of(socket: impl AsFd) -> Option<TcpInfo> {
        let mut bytes = [0_u8; 256];
        let mut length = size_of_val(&bytes) as libc::socklen_t;
        // SAFETY: the descriptor is open, and the call writes at most `length` bytes into the array, and how many these were into `length`.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                bytes.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result == 0 { Self::parse(bytes.get(..length as usize)?) } else { None }
    }

    /// From what the kernel wrote; none if that is too short, as before Linux 4.19 and where something else plays Linux.
    fn parse(bytes: &[u8]) -> Option<TcpInfo> {
        let number = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(TcpInfo {
            round_trip: number(ROUND_TRIP)?,
            acknowledged: u64::from_ne_bytes(bytes.get(BYTES_ACKED..BYTES_ACKED + 8)?.try_into().ok()?),
            sent: number(DATA_SEGS_OUT)?,
            retransmitted: number(TOTAL_RETRANS)?,
            duplicates: number(DSACK_DUPS)?,
        })
    }

    /// What has happened since `before`; since the connection began, if nobody has looked yet.
    pub fn since(&self, before: Option<&TcpInfo>) -> Progress {
        let count = |now: u32, field: fn(&TcpInfo) -> u32| now.wrapping_sub(before.map_or(0, field));
        // An old measurement says nothing of the time since: a connection that is quiet must not outweigh those that are not.
        let is_measured = self.round_trip > 0 && before.is_none_or(|before| before.acknowledged != self.acknowledged);
        Progress {
            round_trip: is_measured.then(|| Duration::from_micros(self.round_trip.into())),
            sent: count(self.sent, |info| info.sent),
            retransmitted: count(self.retransmitted, |info| info.retransmitted),
            duplicates: count(self.duplicates, |info| info.duplicates),
        }
    }
}

#[cfg(test)]
#[expect(non_snake_case, reason = "tests carry the ids of their rows")]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn info(round_trip: u32, acknowledged: u64, sent: u32, retransmitted: u32, duplicates: u32) -> TcpInfo {
        TcpInfo { round_trip, acknowledged, sent, retransmitted, duplicates }
    }

    #[test]
    fn features_TM_13_of_two_looks_only_what_is_new_counts() {
        let micros = |micros| Some(Duration::from_micros(micros));
        let progress =
            |round_trip, sent, retransmitted, duplicates| Progress { round_trip, sent, retransmitted, duplicates };
        let before = info(500, 4000, 10, 2, 1);
        for (what, before, now, expected) in [
            ("all of the first look is new", None, info(250, 1, 3, 1, 0), progress(micros(250), 3, 1, 0)),
            ("without a measurement there is none", None, info(0, 0, 0, 3, 0), progress(None, 0, 3, 0)),
            ("nothing happened", Some(before), before, progress(None, 0, 0, 0)),
            (
                "what was acknowledged was measured",
                Some(before),
                info(700, 4001, 11, 2, 1),
                progress(micros(700), 1, 0, 0),
            ),
            ("what is lost is not", Some(before), info(500, 4000, 13, 5, 1), progress(None, 3, 3, 0)),
            ("duplicates are told later", Some(before), info(510, 5000, 10, 2, 3), progress(micros(510), 0, 0, 2)),
            (
                "counters go around",
                Some(info(1, 9, u32::MAX, u32::MAX - 1, u32::MAX)),
                info(1, 10, 4, 1, 0),
                progress(micros(1), 5, 3, 1),
            ),
        ] {
            assert_eq!(now.since(before.as_ref()), expected, "{what}");
        }
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_not_known() {
        let mut bytes = [0; 232];
        for (at, value) in
            [(ROUND_TRIP, 1_u8), (BYTES_ACKED, 2), (DATA_SEGS_OUT, 3), (TOTAL_RETRANS, 4), (DSACK_DUPS, 5)]
        {
            let at = if cfg!(target_endian = "little") { at } else { at + if at == BYTES_ACKED { 7 } else { 3 } };
            bytes[at] = value;
        }
        assert_eq!(TcpInfo::parse(&bytes), Some(info(1, 2, 3, 4, 5)));
        assert_eq!(TcpInfo::parse(&bytes[..DSACK_DUPS + 4]), Some(info(1, 2, 3, 4, 5)));
        // The structure of Linux 4.15, and of none.
        for short in [192, DSACK_DUPS + 3, 0] {
            assert_eq!(TcpInfo::parse(&bytes[..short]), None, "{short}");
        }
    }

    #[test]
    fn a_connection_of_this_kernel_is_measured() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let before = TcpInfo::of(&client).unwrap();
        assert!(before.sent == 0 && before.retransmitted == 0, "{before:?}");
        client.write_all(&[7; 1000]).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
        // The answer acknowledges what it answers.
        server.write_all(&[7; 10]).unwrap();
        client.read_exact(&mut [0; 10]).unwrap();
        let after = TcpInfo::of(&client).unwrap();
        assert!(after.acknowledged >= 1000 && after.sent >= 1, "{after:?}");
        let progress = after.since(Some(&before));
        assert!(progress.round_trip.is_some_and(|round_trip| round_trip < Duration::from_secs(10)), "{progress:?}");
        assert_eq!(TcpInfo::of(std::fs::File::open("/dev/null").unwrap()), None, "no socket");
        // A connection that was reset still tells what it was.
        drop(client);
        let _ = server.write_all(&[7; 10]);
        assert!(TcpInfo::of(&server).is_some_and(|info| info.sent >= 1));
    }
}
