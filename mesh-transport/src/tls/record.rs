//! The TLS 1.3 record layer of tunnels: sealing and opening in place.
//!
//! rustls shakes hands and keeps the key schedule; after that this module encrypts and decrypts, so that a record is made in the buffer the
//! application's bytes were read into and opened in the buffer it arrived in. Sealing and opening are independent: the two directions of a
//! tunnel share no lock.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

/// Bytes before the content of a record.
pub(crate) const RECORD_HEADER: usize = 5;
/// Bytes after the content: its type and the tag.
pub(crate) const TRAILER: usize = 1 + TAG;
/// Largest content of a record.
pub(crate) const RECORD_CONTENT: usize = 16_384;
const TAG: usize = 16;
/// Largest encrypted part of a record that a peer may send (RFC 8446 5.2).
const CIPHERTEXT_LIMIT: usize = RECORD_CONTENT + 256;
/// Records under one key. AES-GCM's bound is 2^24.5 full records; a key update well before costs nothing.
const RECORDS_PER_KEY: u64 = if cfg!(test) { 50 } else { 1 << 23 };

pub(crate) const CONTENT_ALERT: u8 = 21;
pub(crate) const CONTENT_HANDSHAKE: u8 = 22;
pub(crate) const CONTENT_DATA: u8 = 23;
const CONTENT_CHANGE_CIPHER_SPEC: u8 = 20;

/// Why a record cannot be opened. All are fatal for the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("record has type {0}")]
    Type(u8),
    #[error("record of {0} bytes")]
    Length(usize),
    #[error("record does not authenticate")]
    Forged,
    #[error("cipher suite is not one of ours")]
    Suite,
}

struct Key {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl Key {
    fn new(sequence: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, RecordError> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            _ => return Err(RecordError::Suite),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| RecordError::Suite)?;
        let iv = iv.as_ref().try_into().map_err(|_| RecordError::Suite)?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence })
    }

    /// The nonce of the next record (RFC 8446 5.3). Each sequence number is used once: the counter only grows, and a key update comes long before it wraps.
    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, sequence) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= sequence;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Encrypts the records of one direction.
pub(crate) struct Sealer(Key);

impl Sealer {
    pub(crate) fn new(sequence: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, RecordError> {
        Key::new(sequence, secrets).map(Self)
    }

    /// Whether the key has served long enough; the caller sends a KeyUpdate and makes a new sealer.
    pub(crate) fn wants_update(&self) -> bool {
        self.0.sequence >= RECORDS_PER_KEY
    }

    /// Makes a record in place. `record` has room for [`RECORD_HEADER`] bytes, then the content, then [`TRAILER`] bytes.
    pub(crate) fn seal(&mut self, content_type: u8, record: &mut [u8]) {
        let content = record.len() - RECORD_HEADER - TRAILER;
        debug_assert!(content <= RECORD_CONTENT, "content of {content} bytes");
        let (header, body) = record.split_at_mut(RECORD_HEADER);
        header.copy_from_slice(&header_bytes(content + TRAILER));
        let (plain, tag) = body.split_at_mut(content + 1);
        plain[content] = content_type;
        let nonce = self.0.next_nonce();
        let sealed = self
            .0
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(&*header), plain)
            .expect("a record is far shorter than AES-GCM's limit");
        tag.copy_from_slice(sealed.as_ref());
    }
}

fn header_bytes(length: usize) -> [u8; RECORD_HEADER] {
    let [high, low] = u16::try_from(length).expect("a record is shorter than 64 KiB").to_be_bytes();
    [CONTENT_DATA, 3, 3, high, low]
}

/// What is at the front of received bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// Not a whole record yet; this many bytes of the buffer will hold it.
    Incomplete(usize),
    /// A whole record, this long.
    Record(usize),
}

/// Decrypts the records of one direction.
pub(crate) struct Opener(Key);

impl Opener {
    pub(crate) fn new(sequence: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, RecordError> {
        Key::new(sequence, secrets).map(Self)
    }

    /// Judges the front of `received` by its header.
    pub(crate) fn front(received: &[u8]) -> Result<Front, RecordError> {
        let Some(header) = received.first_chunk::<RECORD_HEADER>() else { return Ok(Front::Incomplete(RECORD_HEADER)) };
        if header[0] != CONTENT_DATA {
            return Err(RecordError::Type(header[0]));
        }
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if !(TRAILER..=CIPHERTEXT_LIMIT).contains(&length) {
            return Err(RecordError::Length(length));
        }
        let whole = RECORD_HEADER + length;
        Ok(if received.len() < whole { Front::Incomplete(whole) } else { Front::Record(whole) })
    }

    /// Opens a whole record in place: its content type and where in `record` the content is.
    pub(crate) fn open(&mut self, record: &mut [u8]) -> Result<(u8, std::ops::Range<usize>), RecordError> {
        let (header, body) = record.split_at_mut(RECORD_HEADER);
        let nonce = self.0.next_nonce();
        let plain = self.0.key.open_in_place(nonce, Aad::from(&*header), body).map_err(|_| RecordError::Forged)?;
        // The content type is the last byte that is not padding.
        let last = plain.iter().rposition(|byte| *byte != 0).ok_or(RecordError::Forged)?;
        if last > RECORD_CONTENT {
            return Err(RecordError::Length(last));
        }
        let content_type = plain[last];
        if content_type == CONTENT_CHANGE_CIPHER_SPEC {
            return Err(RecordError::Type(content_type));
        }
        Ok((content_type, RECORD_HEADER..RECORD_HEADER + last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> (Sealer, Opener) {
        let key = || Key {
            key: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap()),
            iv: [9; NONCE_LEN],
            sequence: 0,
        };
        (Sealer(key()), Opener(key()))
    }

    fn record(sealer: &mut Sealer, content: &[u8]) -> Vec<u8> {
        let mut record = vec![0; RECORD_HEADER + content.len() + TRAILER];
        record[RECORD_HEADER..RECORD_HEADER + content.len()].copy_from_slice(content);
        sealer.seal(CONTENT_DATA, &mut record);
        record
    }

    #[test]
    fn opens_what_it_sealed_in_order() {
        let (mut sealer, mut opener) = keys();
        for length in [0, 1, 100, RECORD_CONTENT] {
            let content = vec![5; length];
            let mut record = record(&mut sealer, &content);
            assert_eq!(Opener::front(&record), Ok(Front::Record(record.len())));
            assert_eq!(Opener::front(&record[..record.len() - 1]), Ok(Front::Incomplete(record.len())));
            let (content_type, range) = opener.open(&mut record).unwrap();
            assert_eq!((content_type, &record[range]), (CONTENT_DATA, &content[..]));
        }
    }

    #[test]
    fn refuses_what_was_changed_repeated_or_left_out() {
        let (mut sealer, _) = keys();
        let (first, second) = (record(&mut sealer, b"first"), record(&mut sealer, b"second"));
        for place in 0..first.len() {
            // The version in a header is not checked, but authenticated like all of it.
            let mut changed = first.clone();
            changed[place] ^= 1;
            if let Ok(Front::Record(length)) = Opener::front(&changed) {
                assert!(keys().1.open(&mut changed[..length]).is_err(), "byte {place}");
            }
        }
        assert_eq!(keys().1.open(&mut second.clone()), Err(RecordError::Forged));
        let mut opener = keys().1;
        opener.open(&mut first.clone()).unwrap();
        assert_eq!(opener.open(&mut first.clone()), Err(RecordError::Forged));
    }

    #[test]
    fn refuses_headers_that_are_not_of_a_record() {
        for (header, expect) in [
            ([22, 3, 3, 0, 50], RecordError::Type(22)),
            ([21, 3, 3, 0, 2], RecordError::Type(21)),
            ([20, 3, 3, 0, 1], RecordError::Type(20)),
            ([23, 3, 3, 0xff, 0xff], RecordError::Length(0xffff)),
            ([23, 3, 3, 0, 16], RecordError::Length(16)),
        ] {
            assert_eq!(Opener::front(&header), Err(expect));
        }
        assert_eq!(Opener::front(&[23, 3, 3]), Ok(Front::Incomplete(RECORD_HEADER)));
    }
}
