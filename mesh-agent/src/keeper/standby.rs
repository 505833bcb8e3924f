//! A keeper that waits for its turn: it has copies of all that the leader holds, and takes the lead when that one gives it away or dies. Used by
//! [`super::process`].

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::signalfd::SignalFd;

use super::heirs;
use super::lead::Inheritance;
use super::lock::{self, InstanceLock, LockError};
use super::packet::{self, Packet};
use super::process::{self, Leaving, Line};
use super::store::{Held, Message, Store};
use super::supervisor::HOLD;

/// How often to look for a leader, or for its lock.
const LOOK: Duration = Duration::from_millis(20);
/// Heirs of another pod leave those of the dead leader's own this much of a start.
const COURTESY: Duration = Duration::from_millis(300);
/// How long clients may wait for the worker of a keeper that was given the lead: until then the one before serves them.
const GIVEN: Duration = Duration::from_secs(15);
/// How long whoever asks who leads waits for the answer.
const ANSWER: Duration = Duration::from_secs(1);

/// What the wait ends with.
#[derive(Debug)]
pub enum Turn {
    /// This keeper leads.
    Lead(Inheritance),
    /// It was told to stop.
    Exit,
}

/// What is known of the leader.
#[derive(Debug, Default)]
struct Mirror {
    store: Store,
    /// Comes in while `store` is still that of the leader before.
    incoming: Option<Store>,
    pod: Option<String>,
    past: BTreeSet<String>,
}

enum Heard {
    /// More may come.
    Nothing,
    /// The lead is ours.
    Take(OwnedFd),
}

/// Waits for the lead.
pub fn wait(line: &Line, signals: &SignalFd, leaving: &mut Leaving) -> io::Result<Turn> {
    let mut copy = Mirror::default();
    let mut gone_since = Instant::now();
    loop {
        if gone_since.elapsed() >= courtesy(copy.pod.as_deref(), &line.pod) {
            match lock::acquire(&line.run_dir) {
                Ok(lock) => {
                    if copy.pod.is_some() {
                        tracing::warn!("the agent that led is gone: following it");
                    }
                    let hold = Some(HOLD.saturating_sub(gone_since.elapsed()));
                    let Mirror { store, past, .. } = copy;
                    return Ok(Turn::Lead(Inheritance { lock, store, past, offered_by: None, hold }));
                }
                Err(LockError::Taken { .. }) => {}
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        if gone_since.elapsed() >= HOLD {
            copy.store.perish();
        }
        // One that cannot be followed must not be asked as fast as it goes.
        let again = copy.pod.is_some() && gone_since.elapsed() < LOOK;
        if !again && let Ok(link) = heirs::dial(&line.run_dir) {
            match follow(line, link, signals, leaving, &mut copy)? {
                Some(turn) => return Ok(turn),
                None => gone_since = Instant::now(),
            }
            continue;
        }
        process::wait_for(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], Some(LOOK))?;
        leaving.look();
        if !process::asked(signals)?.is_empty() {
            return Ok(Turn::Exit);
        }
    }
}

/// Who never had a leader is in nobody's way.
fn courtesy(leader: Option<&str>, own: &str) -> Duration {
    if leader.is_none_or(|leader| leader == own) { Duration::ZERO } else { COURTESY }
}

/// Keeps the copy in step until the leader is gone.
fn follow(
    line: &Line,
    link: OwnedFd,
    signals: &SignalFd,
    leaving: &mut Leaving,
    copy: &mut Mirror,
) -> io::Result<Option<Turn>> {
    if heirs::send(&link, &Message::Hello { pod: line.pod.clone() }, &[]).is_err() {
        return Ok(None);
    }
    loop {
        match receive(&link) {
            Ok(Some(packet)) => match copy.hear(packet) {
                Ok(Heard::Nothing) => continue,
                Ok(Heard::Take(lock)) => {
                    tracing::info!("following the agent that led");
                    let lock = InstanceLock::inherited(lock)?;
                    let Mirror { store, past, .. } = std::mem::take(copy);
                    let hold = Some(GIVEN);
                    return Ok(Some(Turn::Lead(Inheritance { lock, store, past, offered_by: Some(link), hold })));
                }
                Err(error) => {
                    tracing::error!(%error, "cannot follow what the leading agent holds");
                    return Ok(None);
                }
            },
            Ok(None) => {}
            Err(_) => return Ok(None),
        }
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(link.as_fd(), PollFlags::POLLIN)];
        process::wait_for(&mut fds, leaving.next_due())?;
        leaving.look();
        if !process::asked(signals)?.is_empty() {
            return Ok(Some(Turn::Exit));
        }
    }
}

/// The next packet, if one is there.
fn receive(link: &OwnedFd) -> io::Result<Option<Packet>> {
    match packet::receive(link.as_fd()) {
        Ok(Some(packet)) => Ok(Some(packet)),
        Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

impl Mirror {
    fn hear(&mut self, packet: Packet) -> io::Result<Heard> {
        if packet.truncated {
            return Err(io::Error::other("a packet was cut: too few free descriptors"));
        }
        let store = self.incoming.as_mut().unwrap_or(&mut self.store);
        match Message::decode(&packet.bytes)? {
            Message::Welcome { pod, past } => {
                (self.pod, self.past) = (Some(pod), past.into_iter().collect());
                self.incoming = Some(Store::default());
            }
            Message::Put { key, lasting, meta } => {
                store.put(key, Held::new(meta, lasting, packet.fds)).map_err(io::Error::other)?;
            }
            Message::Remove { key } => store.remove(&key),
            Message::Perish => drop(store.perish()),
            Message::Done => {
                if let Some(whole) = self.incoming.take() {
                    self.store = whole;
                }
            }
            Message::Take { past } => {
                self.past = past.into_iter().collect();
                let lock = packet.fds.into_iter().next();
                return lock.map(Heard::Take).ok_or_else(|| io::Error::other("the lead came without its lock"));
            }
            other => return Err(io::Error::other(format!("a packet out of place: {other:?}"))),
        }
        Ok(Heard::Nothing)
    }
}

/// The pod of the keeper that leads.
pub fn who_leads(run_dir: &Path) -> io::Result<String> {
    let link = heirs::dial(run_dir)?;
    heirs::send(&link, &Message::Ask, &[])?;
    process::wait_for(&mut [PollFd::new(link.as_fd(), PollFlags::POLLIN)], Some(ANSWER))?;
    let packet = receive(&link)?.ok_or(io::ErrorKind::TimedOut)?;
    match Message::decode(&packet.bytes)? {
        Message::Welcome { pod, .. } => Ok(pod),
        other => Err(io::Error::other(format!("a packet out of place: {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(message: &Message, files: usize) -> Packet {
        let fds = (0..files).map(|_| tempfile::tempfile().unwrap().into()).collect();
        Packet { bytes: message.encode(), fds, truncated: false }
    }

    fn put(key: &str) -> Message {
        Message::Put { key: key.into(), lasting: 1, meta: vec![] }
    }

    fn keys(copy: &Mirror) -> Vec<String> {
        copy.store.entries().map(|(key, _)| key.to_owned()).collect()
    }

    #[test]
    fn what_an_earlier_leader_held_counts_until_the_next_has_said_all() {
        let mut copy = Mirror::default();
        let mut hear = |message: &Message, files| copy.hear(packet(message, files)).map(|_| keys(&copy));
        let welcome = |pod: &str| Message::Welcome { pod: pod.into(), past: vec![pod.into()] };
        for (message, files, expected) in [
            (welcome("one"), 0, vec![]),
            (put("a"), 2, vec![]),
            (Message::Done, 0, vec!["a"]),
            (put("b"), 2, vec!["a", "b"]),
            (Message::Remove { key: "a".into() }, 0, vec!["b"]),
            (welcome("two"), 0, vec!["b"]),
            (put("c"), 2, vec!["b"]),
            (Message::Done, 0, vec!["c"]),
        ] {
            assert_eq!(hear(&message, files).unwrap(), expected, "{message:?}");
        }
        assert!(hear(&Message::Take { past: vec![] }, 0).is_err(), "without a lock");
        assert!(hear(&Message::List, 0).is_err());
        assert!(copy.hear(Packet { truncated: true, ..packet(&put("d"), 1) }).is_err());
        let take = Message::Take { past: vec!["two".into(), "one".into()] };
        assert!(matches!(copy.hear(packet(&take, 1)), Ok(Heard::Take(_))));
        assert_eq!((copy.past.len(), copy.store.has_perishable()), (2, true));
        copy.hear(packet(&Message::Perish, 0)).unwrap();
        assert!(!copy.store.has_perishable());
    }

    #[test]
    fn those_of_the_leaders_own_pod_come_first() {
        for (leader, expected) in [(None, Duration::ZERO), (Some("own"), Duration::ZERO), (Some("other"), COURTESY)] {
            assert_eq!(courtesy(leader, "own"), expected, "{leader:?}");
        }
    }
}
