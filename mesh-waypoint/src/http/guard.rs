//! A second, stricter reader of HTTP/1.1 in front of hyper's: it looks at the bytes that a client sends, where they lie, and says where they stop being one
//! request after another beyond doubt. What two programs may read in two ways, such as two lengths of one body or a line that ends in a bare line feed, lets
//! one request hide in another. Called by `io`, which lets hyper see nothing that comes after.

/// The longest name that is looked for: `transfer-encoding`.
const NAME: usize = 17;
/// The longest value of a length or a coding, without the blanks around it.
const VALUE: usize = 40;
/// Digits of the size of a chunk: no more fit.
const SIZE: u8 = 16;
/// Bytes that a client may put behind the sizes of the chunks of one body, where nobody looks.
const EXTENSIONS: u32 = 4 * 1024;

/// Why a client's bytes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Bad {
    /// A line feed alone, or a carriage return without one.
    #[error("a line does not end in CR LF")]
    LineEnd,
    /// A line that begins with a blank goes on where the former ended: some read it so, others do not.
    #[error("a folded line")]
    Folded,
    /// No name, or a blank in it or after it.
    #[error("a field without a name that can be one")]
    Name,
    /// A `#` in the target: what follows it some cut off, and some do not.
    #[error("a fragment in the target")]
    Fragment,
    /// `Content-Length` twice, with `Transfer-Encoding`, or not only digits.
    #[error("the length of the body can be read in two ways")]
    Length,
    /// `Transfer-Encoding` other than once `chunked`.
    #[error("a transfer coding other than chunked")]
    Coding,
    /// The size of a chunk is none, or what is around its bytes.
    #[error("a chunk that is none")]
    Chunk,
    /// Fields that belong in front of a body.
    #[error("a field after the body that belongs before it")]
    Trailer,
    /// A body before the protocol changes.
    #[error("a body in a request for another protocol")]
    UpgradeBody,
}

/// Where the bytes are bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// So many bytes of the piece are good.
    pub good: usize,
    /// What comes then.
    pub bad: Bad,
    /// It is in the head of a request: an answer can still be given in its place.
    pub head: bool,
}

/// Where the reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Between requests: an empty line may come.
    Start,
    /// After the CR of an empty line between requests.
    StartLf,
    /// In the first line.
    First,
    /// In a name, of which so many bytes have come.
    Name,
    /// In a value.
    Value,
    /// After the CR of a line.
    LineLf,
    /// A line begins.
    Line,
    /// After the CR of the line that ends head or trailers.
    EndLf,
    /// In a body, with so many bytes to come.
    Body(u64),
    /// In the size of a chunk, after so many digits.
    Size(u64, u8),
    /// Behind the size.
    Extension(u64),
    /// After its CR.
    SizeLf(u64),
    /// In a chunk.
    Chunk(u64),
    /// Behind a chunk.
    ChunkCr,
    ChunkLf,
    /// Another protocol is spoken, if the server agrees.
    Through,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Other,
    Length,
    Coding,
    Upgrade,
    Host,
}

/// Follows one connection. A few words of memory, whatever is sent.
#[derive(Clone, Debug)]
pub struct Guard {
    at: At,
    /// Fields come after a body.
    trailers: bool,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    extensions: u32,
    field: Field,
    name: [u8; NAME],
    named: usize,
    value: [u8; VALUE],
    valued: usize,
    /// Blanks after what there is of the value: they are part of it only if more comes.
    blanks: usize,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            at: At::Start,
            trailers: false,
            length: None,
            chunked: false,
            upgrade: false,
            extensions: 0,
            field: Field::Other,
            name: [0; NAME],
            named: 0,
            value: [0; VALUE],
            valued: 0,
            blanks: 0,
        }
    }
}

impl Guard {
    /// Looks at the next bytes of the connection.
    pub fn look(&mut self, bytes: &[u8]) -> Result<(), Verdict> {
        let mut from = 0;
        while from < bytes.len() {
            match self.step(&bytes[from..]) {
                Ok(read) => from += read,
                Err((read, bad)) => return Err(Verdict { good: from + read, bad, head: self.in_head() }),
            }
        }
        Ok(())
    }

    /// Whether the body of a request is not all here.
    #[must_use]
    pub fn in_body(&self) -> bool {
        !matches!(self.at, At::Start | At::StartLf | At::Through) && !self.in_head()
    }

    /// Whether a request may begin.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.at == At::Start
    }

    /// Whether the head of a request is not all here.
    #[must_use]
    pub fn is_in_head(&self) -> bool {
        self.in_head() && !matches!(self.at, At::Start | At::StartLf)
    }

    fn in_head(&self) -> bool {
        let head = [At::Start, At::StartLf, At::First, At::Name, At::Value, At::LineLf, At::Line, At::EndLf];
        head.contains(&self.at) && !self.trailers
    }

    /// Reads some bytes, at least one. An error says how many of them are good.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, (usize, Bad)> {
        let first = bytes[0];
        let only = |byte: u8, bad: Bad| if first == byte { Ok(()) } else { Err((0, bad)) };
        match self.at {
            At::Start => match first {
                b'\r' => self.at = At::StartLf,
                b'\n' => return Err((0, Bad::LineEnd)),
                _ => {
                    *self = Self { at: At::First, ..Self::default() };
                    return self.first(bytes);
                }
            },
            At::StartLf => {
                only(b'\n', Bad::LineEnd)?;
                self.at = At::Start;
            }
            At::First => return self.first(bytes),
            At::Line => match first {
                b'\r' => self.at = At::EndLf,
                b'\n' => return Err((0, Bad::LineEnd)),
                b' ' | b'\t' => return Err((0, Bad::Folded)),
                b':' => return Err((0, Bad::Name)),
                _ => {
                    (self.named, self.valued, self.blanks, self.at) = (0, 0, 0, At::Name);
                    return self.name(bytes);
                }
            },
            At::Name => return self.name(bytes),
            At::Value => return self.value(bytes),
            At::LineLf => {
                only(b'\n', Bad::LineEnd)?;
                self.at = At::Line;
            }
            At::EndLf => {
                only(b'\n', Bad::LineEnd)?;
                self.end().map_err(|bad| (0, bad))?;
            }
            At::Body(left) => return Ok(self.pass(bytes, left, At::Start, At::Body)),
            At::Chunk(left) => return Ok(self.pass(bytes, left, At::ChunkCr, At::Chunk)),
            At::ChunkCr => {
                only(b'\r', Bad::Chunk)?;
                self.at = At::ChunkLf;
            }
            At::ChunkLf => {
                only(b'\n', Bad::Chunk)?;
                self.at = At::Size(0, 0);
            }
            At::Size(size, digits) => self.size(first, size, digits).map_err(|bad| (0, bad))?,
            At::Extension(size) => match first {
                b'\r' => self.at = At::SizeLf(size),
                b'\n' | 0 => return Err((0, Bad::Chunk)),
                _ => {
                    self.extensions += 1;
                    if self.extensions > EXTENSIONS {
                        return Err((0, Bad::Chunk));
                    }
                }
            },
            At::SizeLf(size) => {
                only(b'\n', Bad::Chunk)?;
                self.trailers = size == 0;
                self.at = if size == 0 { At::Line } else { At::Chunk(size) };
            }
            At::Through => return Ok(bytes.len()),
        }
        Ok(1)
    }

    /// The first line: what else it says is hyper's to judge.
    fn first(&mut self, bytes: &[u8]) -> Result<usize, (usize, Bad)> {
        match memchr::memchr3(b'\r', b'\n', b'#', bytes) {
            None => Ok(bytes.len()),
            Some(at) if bytes[at] == b'\n' => Err((at, Bad::LineEnd)),
            Some(at) if bytes[at] == b'#' => Err((at, Bad::Fragment)),
            Some(at) => {
                self.at = At::LineLf;
                Ok(at + 1)
            }
        }
    }

    fn name(&mut self, bytes: &[u8]) -> Result<usize, (usize, Bad)> {
        let end = memchr::memchr3(b':', b'\r', b'\n', bytes);
        let name = &bytes[..end.unwrap_or(bytes.len())];
        if let Some(blank) = memchr::memchr2(b' ', b'\t', name) {
            return Err((blank, Bad::Name));
        }
        // Longer names are nobody's.
        for byte in name {
            if self.named < NAME {
                self.name[self.named] = byte.to_ascii_lowercase();
            }
            self.named = (self.named + 1).min(NAME + 1);
        }
        let Some(end) = end else { return Ok(bytes.len()) };
        if bytes[end] != b':' {
            return Err((end, Bad::Name));
        }
        self.field = match self.name.get(..self.named) {
            Some(b"content-length") => Field::Length,
            Some(b"transfer-encoding") => Field::Coding,
            Some(b"upgrade") => Field::Upgrade,
            Some(b"host") => Field::Host,
            _ => Field::Other,
        };
        if self.trailers && matches!(self.field, Field::Length | Field::Coding | Field::Host) {
            return Err((end, Bad::Trailer));
        }
        self.at = At::Value;
        Ok(end + 1)
    }

    fn value(&mut self, bytes: &[u8]) -> Result<usize, (usize, Bad)> {
        let end = memchr::memchr2(b'\r', b'\n', bytes);
        let value = &bytes[..end.unwrap_or(bytes.len())];
        if self.field != Field::Other {
            for byte in value {
                self.keep(*byte);
            }
        }
        let Some(end) = end else { return Ok(bytes.len()) };
        if bytes[end] == b'\n' {
            return Err((end, Bad::LineEnd));
        }
        if !self.trailers {
            self.said().map_err(|bad| (end, bad))?;
        }
        self.at = At::LineLf;
        Ok(end + 1)
    }

    /// One more byte of a value. Blanks around it are not of it, however many: whoever reads it after us does not see them, and must not see another value.
    fn keep(&mut self, byte: u8) {
        if matches!(byte, b' ' | b'\t') {
            self.blanks = (self.blanks + usize::from(self.valued > 0)).min(VALUE);
            return;
        }
        for byte in std::iter::repeat_n(b' ', std::mem::take(&mut self.blanks)).chain([byte.to_ascii_lowercase()]) {
            if self.valued < VALUE {
                self.value[self.valued] = byte;
            }
            self.valued = (self.valued + 1).min(VALUE + 1);
        }
    }

    /// What a field of the head says of the body.
    fn said(&mut self) -> Result<(), Bad> {
        let value = self.value.get(..self.valued);
        match self.field {
            Field::Other | Field::Host => {}
            Field::Upgrade => self.upgrade |= value.is_some_and(is_websocket),
            Field::Coding => {
                if self.chunked || value != Some(b"chunked") {
                    return Err(Bad::Coding);
                }
                self.chunked = true;
            }
            Field::Length => {
                let digits = value.filter(|value| !value.is_empty() && value.iter().all(u8::is_ascii_digit));
                let length = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u64>().ok());
                if self.length.is_some() || length.is_none() {
                    return Err(Bad::Length);
                }
                self.length = length;
            }
        }
        Ok(())
    }

    /// The end of a head, or of trailers.
    fn end(&mut self) -> Result<(), Bad> {
        if self.trailers {
            *self = Self::default();
            return Ok(());
        }
        self.at = match (self.chunked, self.length) {
            (true, Some(_)) => return Err(Bad::Length),
            (true, _) | (_, Some(1..)) if self.upgrade => return Err(Bad::UpgradeBody),
            _ if self.upgrade => At::Through,
            (true, None) => At::Size(0, 0),
            (false, Some(length @ 1..)) => At::Body(length),
            (false, _) => At::Start,
        };
        Ok(())
    }

    fn size(&mut self, byte: u8, size: u64, digits: u8) -> Result<(), Bad> {
        self.at = match (byte, char::from(byte).to_digit(16)) {
            (_, Some(digit)) if digits < SIZE => At::Size(size << 4 | u64::from(digit), digits + 1),
            (b'\r', _) if digits > 0 => At::SizeLf(size),
            (b';', _) if digits > 0 => At::Extension(size),
            _ => return Err(Bad::Chunk),
        };
        Ok(())
    }

    fn pass(&mut self, bytes: &[u8], left: u64, then: At, same: impl Fn(u64) -> At) -> usize {
        let read = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        self.at = if left == read as u64 { then } else { same(left - read as u64) };
        read
    }
}

/// Whether what `Upgrade` says is a WebSocket, as Envoy in Istio has it. Nothing else goes on to an endpoint that might agree to it: behind `h2c`, `TLS/1.0` or a protocol of the
/// application's own come requests again, which nobody would hold against policies. Whoever asks for one is answered in HTTP/1.1, and so is his next request.
#[must_use]
pub fn is_websocket(value: &[u8]) -> bool {
    value.trim_ascii().eq_ignore_ascii_case(b"websocket")
}

#[cfg(test)]
mod tests;
