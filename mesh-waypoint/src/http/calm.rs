//! What a client of HTTP/2 sends beside requests and their bodies: frames that cost us something and ask for nothing. hyper answers or skips each of them for ever,
//! so they are counted where the bytes come in, and one that sends far more of them than anybody needs is shown to hyper as one that cannot count: it is told to go
//! away (GOAWAY), and the connection ends.

/// Frames of this kind that may come at once.
const MOST: u64 = 20_000;
/// How many more may come in each millisecond: what pings as often as its messages go round still has room.
const EACH_MS: u64 = 10;
/// Of one that is longer each piece of so many bytes counts.
const PIECE: u64 = 256;
/// Bytes that we send for which one more may come: their receiver says that it has room again.
const SENT: u64 = 64;
/// What a frame that asks for something is worth.
const WORTH: u64 = 4;

const PREFACE: u32 = 24;
const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;

/// What hyper reads in place of more: settings that are too short, which every receiver must call an error of the connection.
pub const TOO_MANY: [u8; 10] = [0, 0, 1, 4, 0, 0, 0, 0, 0, 0];

/// What has come through one connection.
#[derive(Debug)]
pub struct Calm {
    head: [u8; HEAD],
    /// Bytes of it that are here.
    have: usize,
    /// Bytes until the next head, of the preface first.
    skip: u32,
    /// A padded frame of DATA whose first byte says how much of it is padding: its length.
    padded: Option<u32>,
    /// Frames that may still come.
    left: u64,
    since_ms: u64,
    sent: u64,
}

impl Calm {
    /// A connection that begins.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        let head = [0; HEAD];
        Self { head, have: 0, skip: PREFACE, padded: None, left: MOST, since_ms: now_ms, sent: 0 }
    }

    /// So many bytes went to the client.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// What came next. An error: how many bytes of it are good, up to the end of a frame.
    pub fn look(&mut self, bytes: &[u8], now_ms: impl Fn() -> u64) -> Result<(), usize> {
        let mut at = 0;
        while at < bytes.len() {
            if let Some(length) = self.padded.take() {
                let padding = u32::from(bytes[at]);
                let cost = if padding + 1 >= length { cost(length) } else { 0 };
                self.spend(cost, &now_ms).map_err(|()| at)?;
            }
            if self.skip > 0 {
                let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len() - at);
                self.skip -= u32::try_from(skipped).unwrap_or(self.skip);
                at += skipped;
                continue;
            }
            let taken = (HEAD - self.have).min(bytes.len() - at);
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[at..at + taken]);
            self.have += taken;
            at += taken;
            if self.have == HEAD {
                // A head that came in pieces has been read in part: what follows it is no frame then, which ends the connection, too.
                let begin = at.saturating_sub(HEAD);
                self.have = 0;
                let cost = self.frame();
                self.spend(cost, &now_ms).map_err(|()| begin)?;
            }
        }
        Ok(())
    }

    /// What the frame costs that begins with this head.
    fn frame(&mut self) -> u64 {
        let [a, b, c, kind, flags, ..] = self.head;
        let length = u32::from_be_bytes([0, a, b, c]);
        self.skip = length;
        match kind {
            // What ends a body is worth something, also without a byte.
            DATA if flags & PADDED != 0 && flags & END_STREAM == 0 && length > 0 => {
                self.padded = Some(length);
                0
            }
            DATA if length > 0 || flags & END_STREAM != 0 => self.earn(),
            HEADERS => self.earn(),
            // One follows a request that has paid for it; of streams that are over h2 counts none. CONTINUATION h2 counts itself.
            CONTINUATION => 0,
            _ => cost(length),
        }
    }

    fn earn(&mut self) -> u64 {
        self.left = (self.left + WORTH).min(MOST);
        0
    }

    fn spend(&mut self, cost: u64, now_ms: &impl Fn() -> u64) -> Result<(), ()> {
        if self.left < cost {
            let now = now_ms();
            let more = now.saturating_sub(self.since_ms).saturating_mul(EACH_MS) + self.sent / SENT;
            (self.since_ms, self.sent) = (now, 0);
            self.left = self.left.saturating_add(more).min(MOST);
        }
        self.left = self.left.checked_sub(cost).ok_or(())?;
        Ok(())
    }
}

fn cost(length: u32) -> u64 {
    1 + u64::from(length) / PIECE
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: u8 = 6;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn begun() -> Calm {
        let mut calm = Calm::new(0);
        calm.look(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", || 0).unwrap();
        calm
    }

    /// How many of these may come at once, of a million.
    fn most(frame: &[u8]) -> Option<u64> {
        let mut calm = begun();
        (0..1_000_000).find(|_| calm.look(frame, || 0).is_err())
    }

    #[test]
    fn hardening_B171_what_asks_for_nothing_ends_and_what_asks_for_something_does_not() {
        let padding = |text: &[u8]| [&[10][..], text, &[0; 10]].concat();
        for (what, frame, expected) in [
            ("ping", frame(PING, 0, &[0; 8]), Some(MOST)),
            ("settings", frame(4, 0, &[0; 6]), Some(MOST)),
            ("priority", frame(2, 0, &[0; 5]), Some(MOST)),
            ("window", frame(8, 0, &[0; 4]), Some(MOST)),
            ("empty data", frame(DATA, 0, &[]), Some(MOST)),
            ("padding", frame(DATA, PADDED, &padding(b"")), Some(MOST)),
            ("reset", frame(3, 0, &[0; 4]), Some(MOST)),
            ("unknown", frame(0xbe, 0, &[0; 1024]), Some(MOST / 5)),
            ("padded data", frame(DATA, PADDED, &padding(b"x")), None),
            ("data", frame(DATA, 0, b"x"), None),
            ("the end", frame(DATA, END_STREAM, b""), None),
            ("a request", frame(HEADERS, 5, b"x"), None),
        ] {
            assert_eq!(most(&frame), expected, "{what}");
        }
    }

    #[test]
    fn what_is_sent_and_time_buy_more() {
        let (mut calm, ping) = (begun(), frame(PING, 0, &[0; 8]));
        let mut now = 0;
        for _ in 0..1_000_000 {
            // One for each message of 55 bytes that we send.
            calm.sent(SENT as usize);
            calm.look(&ping, || 0).unwrap();
        }
        let mut calm = begun();
        for round in 0..1_000_000 {
            now += u64::from(round % EACH_MS == 0);
            calm.look(&ping, || now).unwrap();
        }
    }

    #[test]
    fn frames_are_found_wherever_they_are_cut() {
        let ping = frame(PING, 0, &[0; 8]);
        let all = [frame(HEADERS, 5, &[0; 300]), frame(DATA, PADDED, &[0, 1]), ping.repeat(3)].concat();
        for size in 1..all.len() {
            let mut calm = begun();
            calm.left = 2;
            let mut good = 0;
            for piece in all.chunks(size) {
                // The request and the data buy eight, and three are spent.
                calm.left = calm.left.min(2);
                match calm.look(piece, || 0) {
                    Ok(()) => good += piece.len(),
                    Err(more) => {
                        good += more;
                        break;
                    }
                }
            }
            assert!(good <= all.len() && good + 17 + HEAD >= all.len(), "{size}: {good}");
        }
    }
}
