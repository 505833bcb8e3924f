//! What the keeper holds for its worker: per key some bytes and descriptors, and the messages about it. Pure bookkeeping; the keeper's loop moves
//! the packets.
//!
//! An entry's first `lasting` descriptors stay until the worker removes the entry; the rest, listening sockets, are perishable: while
//! nobody accepts from them clients hang in their backlogs, so they are closed when no worker came back in time.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::packet::MAX_PACKET;

/// Entries the keeper is willing to hold: more than the kernel's table has room for pods.
pub const MAX_ENTRIES: usize = 4096;
/// Longest key.
pub const MAX_KEY: usize = 1024;

/// One held entry.
#[derive(Debug)]
pub struct Held<F = OwnedFd> {
    /// What the worker needs to make sense of the descriptors.
    pub meta: Vec<u8>,
    /// Descriptors that last as long as the entry.
    pub lasting: Vec<F>,
    /// Listening sockets; empty after [`Store::perish`].
    pub perishable: Vec<F>,
}

/// The held entries by key.
#[derive(Debug)]
pub struct Store<F = OwnedFd> {
    entries: BTreeMap<String, Held<F>>,
}

impl<F> Default for Store<F> {
    fn default() -> Self {
        Store { entries: BTreeMap::new() }
    }
}

impl<F> Store<F> {
    /// Holds an entry in place of what was held under its key.
    pub fn put(&mut self, key: String, held: Held<F>) -> Result<(), &'static str> {
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(&key) {
            return Err("the keeper is full");
        }
        self.entries.insert(key, held);
        Ok(())
    }

    /// Closes an entry; unknown keys are fine.
    pub fn remove(&mut self, key: &str) {
        self.entries.remove(key);
    }

    /// Closes all listening sockets and returns how many there were.
    pub fn perish(&mut self) -> usize {
        self.entries.values_mut().map(|held| std::mem::take(&mut held.perishable).len()).sum()
    }

    /// Whether listening sockets are held.
    pub fn has_perishable(&self) -> bool {
        self.entries.values().any(|held| !held.perishable.is_empty())
    }

    /// Everything held, by key.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, &Held<F>)> {
        self.entries.iter().map(|(key, held)| (key.as_str(), held))
    }
}

/// A packet between worker and keeper, or between the keeper that leads and one that waits.
///
/// ```text
/// worker                        keeper          heir                   leader
/// Put{key,meta} + fds   ->                      Hello{pod}     ->
///                       <-      Done | Refused                 <-      Welcome{pod,past}
/// Remove{key}           ->                                     <-      Put + fds, one packet an entry
///                       <-      Done                           <-      Done, then Put, Remove, Perish as it goes
/// List                  ->                                     <-      Take{past} + lock
///                       <-      Held + fds, one packet an entry
///                       <-      Done            Taken          ->
/// Yielded               ->                                     <-      Back, instead: do not take
///                       <-      Done            Ask            ->
///                                                              <-      Welcome{pod,past}
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Message {
    /// Hold this; the first `lasting` descriptors of the packet outlive a missing worker.
    Put {
        /// Names the entry.
        key: String,
        /// How many of the packet's descriptors last.
        lasting: u8,
        /// Kept with them.
        meta: Vec<u8>,
    },
    /// Close this.
    Remove {
        /// Names the entry.
        key: String,
    },
    /// Send what you hold: the worker adopts it now.
    List,
    /// One entry of the answer to `List`.
    Held {
        /// Names the entry.
        key: String,
        /// How many of the packet's descriptors last.
        lasting: u8,
        /// As put.
        meta: Vec<u8>,
    },
    /// The request is done.
    Done,
    /// The request is refused.
    Refused {
        /// Why.
        why: String,
    },
    /// The worker has let go of what only one may have.
    Yielded,
    /// A keeper of this pod waits for its turn.
    Hello {
        /// Its pod.
        pod: String,
    },
    /// Who leads, and who has led before.
    Welcome {
        /// The leader's pod.
        pod: String,
        /// Pods that have led.
        past: Vec<String>,
    },
    /// Lead: the packet has the lock.
    Take {
        /// Pods that have led.
        past: Vec<String>,
    },
    /// The heir's worker accepts.
    Taken,
    /// Do not take: whoever offered goes on.
    Back,
    /// Close the listening sockets: no worker came back in time.
    Perish,
    /// Who leads?
    Ask,
}

impl Message {
    /// Bytes of the packet: kind, lasting, length of the key, key, rest.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, lasting, key, rest): (u8, u8, &str, Vec<u8>) = match self {
            Message::Put { key, lasting, meta } => (1, *lasting, key, meta.clone()),
            Message::Remove { key } => (2, 0, key, Vec::new()),
            Message::List => (3, 0, "", Vec::new()),
            Message::Held { key, lasting, meta } => (4, *lasting, key, meta.clone()),
            Message::Done => (5, 0, "", Vec::new()),
            Message::Refused { why } => (6, 0, "", why.clone().into_bytes()),
            Message::Yielded => (7, 0, "", Vec::new()),
            Message::Hello { pod } => (8, 0, pod, Vec::new()),
            Message::Welcome { pod, past } => (9, 0, pod, past.join("\n").into_bytes()),
            Message::Take { past } => (10, 0, "", past.join("\n").into_bytes()),
            Message::Taken => (11, 0, "", Vec::new()),
            Message::Back => (12, 0, "", Vec::new()),
            Message::Perish => (13, 0, "", Vec::new()),
            Message::Ask => (14, 0, "", Vec::new()),
        };
        let mut bytes = Vec::with_capacity(4 + key.len() + rest.len());
        bytes.extend([kind, lasting]);
        bytes.extend((key.len() as u16).to_le_bytes());
        bytes.extend(key.as_bytes());
        bytes.extend(rest);
        bytes
    }

    /// The message in a packet's bytes.
    pub fn decode(bytes: &[u8]) -> io::Result<Message> {
        let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, format!("keeper packet: {what}"));
        let [kind, lasting, low, high, tail @ ..] = bytes else { return Err(wrong("too short")) };
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let (key, rest) = tail.split_at_checked(length).ok_or_else(|| wrong("cut within its key"))?;
        if key.len() > MAX_KEY || bytes.len() > MAX_PACKET {
            return Err(wrong("too long"));
        }
        let key = String::from_utf8(key.to_vec()).map_err(|_| wrong("key is not text"))?;
        let (lasting, meta) = (*lasting, rest.to_vec());
        let names = || -> Vec<String> {
            let text = String::from_utf8_lossy(rest);
            text.split('\n').filter(|name| !name.is_empty()).map(str::to_owned).collect()
        };
        match kind {
            1 => Ok(Message::Put { key, lasting, meta }),
            2 => Ok(Message::Remove { key }),
            3 => Ok(Message::List),
            4 => Ok(Message::Held { key, lasting, meta }),
            5 => Ok(Message::Done),
            6 => Ok(Message::Refused { why: String::from_utf8_lossy(rest).into_owned() }),
            7 => Ok(Message::Yielded),
            8 => Ok(Message::Hello { pod: key }),
            9 => Ok(Message::Welcome { pod: key, past: names() }),
            10 => Ok(Message::Take { past: names() }),
            11 => Ok(Message::Taken),
            12 => Ok(Message::Back),
            13 => Ok(Message::Perish),
            14 => Ok(Message::Ask),
            _ => Err(wrong("unknown kind")),
        }
    }
}

impl Held<OwnedFd> {
    /// Splits a packet's descriptors.
    pub fn new(meta: Vec<u8>, lasting: u8, mut fds: Vec<OwnedFd>) -> Held<OwnedFd> {
        let perishable = fds.split_off(usize::from(lasting).min(fds.len()));
        Held { meta, lasting: fds, perishable }
    }

    /// The descriptors in the order they were put.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.lasting.iter().chain(&self.perishable).map(|fd| fd.as_fd()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(lasting: &[u32], perishable: &[u32]) -> Held<u32> {
        Held { meta: vec![], lasting: lasting.to_vec(), perishable: perishable.to_vec() }
    }

    #[test]
    fn listening_sockets_perish_and_the_rest_stays() {
        let mut store = Store::default();
        store.put("a".into(), held(&[1], &[2, 3])).unwrap();
        store.put("b".into(), held(&[4], &[5])).unwrap();
        store.put("b".into(), held(&[6], &[7])).unwrap();
        store.remove("unknown");
        assert!(store.has_perishable());
        assert_eq!(store.perish(), 3);
        assert!(!store.has_perishable());
        let left: Vec<_> = store.entries().map(|(key, held)| (key.to_owned(), held.lasting.clone())).collect();
        assert_eq!(left, [("a".to_owned(), vec![1]), ("b".to_owned(), vec![6])]);
    }

    #[test]
    fn a_full_keeper_refuses_new_keys_only() {
        let mut store = Store::default();
        for n in 0..MAX_ENTRIES {
            store.put(n.to_string(), held(&[], &[])).unwrap();
        }
        assert!(store.put("one more".into(), held(&[], &[])).is_err());
        assert!(store.put("7".into(), held(&[], &[])).is_ok());
    }

    #[test]
    fn messages_survive_the_wire_and_garbage_does_not_panic() {
        let messages = [
            Message::Put { key: "uid".into(), lasting: 1, meta: b"{}".to_vec() },
            Message::Remove { key: "uid".into() },
            Message::List,
            Message::Held { key: "uid".into(), lasting: 2, meta: vec![0, 255] },
            Message::Done,
            Message::Refused { why: "full".into() },
            Message::Yielded,
            Message::Hello { pod: "a".into() },
            Message::Welcome { pod: "a".into(), past: vec!["a".into(), "b".into()] },
            Message::Take { past: vec![] },
            Message::Taken,
            Message::Back,
            Message::Perish,
            Message::Ask,
        ];
        for message in messages {
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes).unwrap(), message);
            for cut in 0..bytes.len().min(4) {
                assert!(Message::decode(&bytes[..cut]).is_err());
            }
        }
        for garbage in [&[99, 0, 0, 0][..], &[1, 0, 255, 255, 1], &[2, 0, 1, 0, 0xff]] {
            assert!(Message::decode(garbage).is_err());
        }
    }
}
