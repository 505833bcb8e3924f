//! Event records of the ring buffer: one fixed row, parsed with care because bytes from a ring are input.

use crate::{Address, Reason};

/// A denial or another thing worth telling, as the kernel wrote it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EventRow {
    /// Monotonic nanoseconds.
    pub time: u64,
    /// The pod's netns cookie.
    pub cookie: u64,
    /// A number of [`Reason`].
    pub reason: u32,
    /// IP protocol.
    pub protocol: u32,
    /// Who connects, if known.
    pub source: Address,
    /// Whom it wanted to reach.
    pub destination: Address,
    /// Host byte order.
    pub source_port: u16,
    /// Host byte order.
    pub destination_port: u16,
    /// Explicit padding.
    pub reserved: u32,
}
/// Bytes of one record.
pub const EVENT_SIZE: usize = 64;
const _: () = assert!(size_of::<EventRow>() == EVENT_SIZE);

/// A parsed record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Monotonic nanoseconds.
    pub time: u64,
    /// The pod's netns cookie.
    pub cookie: u64,
    /// What happened.
    pub reason: Reason,
    /// IP protocol.
    pub protocol: u8,
    /// Who connects, unspecified if unknown.
    pub source: Address,
    /// Whom it wanted to reach.
    pub destination: Address,
    /// Host byte order.
    pub source_port: u16,
    /// Host byte order.
    pub destination_port: u16,
}

/// Why a record cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventError {
    /// Not the size of a record.
    Size(usize),
    /// A reason that this build does not know.
    Reason(u32),
    /// A protocol above 255.
    Protocol(u32),
}

impl Event {
    /// Reads one record of the ring buffer.
    pub fn parse(bytes: &[u8]) -> Result<Self, EventError> {
        let bytes: &[u8; EVENT_SIZE] = bytes.try_into().map_err(|_| EventError::Size(bytes.len()))?;
        let reason = word(bytes, 16);
        let protocol = word(bytes, 20);
        Ok(Self {
            time: long(bytes, 0),
            cookie: long(bytes, 8),
            reason: Reason::from_number(reason).ok_or(EventError::Reason(reason))?,
            protocol: u8::try_from(protocol).map_err(|_| EventError::Protocol(protocol))?,
            source: address(bytes, 24),
            destination: address(bytes, 40),
            source_port: u16::from_ne_bytes([bytes[56], bytes[57]]),
            destination_port: u16::from_ne_bytes([bytes[58], bytes[59]]),
        })
    }
}

fn word(bytes: &[u8; EVENT_SIZE], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8; EVENT_SIZE], at: usize) -> u64 {
    let mut octets = [0; 8];
    octets.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(octets)
}

fn address(bytes: &[u8; EVENT_SIZE], at: usize) -> Address {
    Address { words: [word(bytes, at), word(bytes, at + 4), word(bytes, at + 8), word(bytes, at + 12)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_record() {
        assert_eq!(Event::parse(&[0; 63]), Err(EventError::Size(63)));
        let mut bytes = [0; EVENT_SIZE];
        assert_eq!(Event::parse(&bytes).map(|event| event.reason), Ok(Reason::Captured));
        bytes[16..20].copy_from_slice(&Reason::COUNT.to_ne_bytes());
        assert_eq!(Event::parse(&bytes), Err(EventError::Reason(Reason::COUNT)));
        bytes[16..20].copy_from_slice(&0u32.to_ne_bytes());
        bytes[20..24].copy_from_slice(&256u32.to_ne_bytes());
        assert_eq!(Event::parse(&bytes), Err(EventError::Protocol(256)));
    }
}
