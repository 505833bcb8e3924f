//! The sessions of one UDP port on one lane: who has one, whether there is room for one more, which one makes room, and how long one lasts. Pure: sessions are
//! whatever the caller keeps, time is an argument.
//!
//! Who sends datagrams need not be where he says, so the table can be filled by one sender. Then a session in which nobody has said a second word makes room,
//! the oldest first. Who is not where he says can say a second word as well, so where all talk the one makes room whose client was silent longest: who goes on
//! talking stays.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hashbrown::HashMap;

use crate::sources::group;

/// Whose a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// Where datagrams come from.
    pub from: SocketAddr,
    /// The address of ours that they come to, and are answered from.
    pub to: IpAddr,
}

/// How many sessions there may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Together.
    pub all: usize,
    /// Of one client.
    pub of_client: usize,
}

/// How long sessions last in which nobody says anything.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// Of one that talks, or is not answered yet.
    pub usual: Duration,
    /// Of one that was asked and answered once.
    pub answered: Duration,
    /// At most, once the process is to stop.
    pub draining: Option<Duration>,
}

/// What has been said in a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Datagrams of the client.
    pub asked: u64,
    /// Datagrams of the endpoint.
    pub answered: u64,
}

impl Said {
    /// Whether both know of each other: the client went on after it had an answer, so its address is its own.
    #[must_use]
    pub fn talks(self) -> bool {
        self.asked > 1 && self.answered > 0
    }

    /// How long a session lasts of which this was the last.
    #[must_use]
    pub fn lasts(self, idle: &Idle) -> Duration {
        let usual = if self.asked == 1 && self.answered > 0 { idle.answered } else { idle.usual };
        idle.draining.map_or(usual, |most| most.min(usual))
    }
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// There may be none.
    All,
    /// The client has as many as one may have.
    Client,
}

/// All sessions.
#[derive(Debug)]
pub struct Table<T> {
    limits: Limits,
    sessions: HashMap<Client, Entry<T>>,
    by_client: HashMap<IpAddr, usize>,
    /// Those that may not talk, in the order in which they were begun; some are over, or talk by now.
    young: VecDeque<(Client, u64)>,
    /// Those that talk, the client first that was silent longest.
    talking: BTreeMap<u64, Client>,
    next: u64,
}

#[derive(Debug)]
struct Entry<T> {
    id: u64,
    /// If it talks, its place in the order in which clients did.
    talked: Option<u64>,
    session: T,
}

impl<T> Table<T> {
    /// An empty one.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            sessions: HashMap::new(),
            by_client: HashMap::new(),
            young: VecDeque::new(),
            talking: BTreeMap::new(),
            next: 0,
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// The session of a client.
    #[must_use]
    pub fn find(&self, client: &Client) -> Option<&T> {
        self.sessions.get(client).map(|entry| &entry.session)
    }

    /// Whether there is room for a session of a client that has none, or will be once another one has made it.
    pub fn admits(&self, client: &Client) -> Result<(), Full> {
        if self.limits.all == 0 {
            return Err(Full::All);
        }
        match self.by_client.get(&group(client.from.ip())) {
            Some(own) if *own >= self.limits.of_client => Err(Full::Client),
            _ => Ok(()),
        }
    }

    /// Makes room for one more session. What is given back has made room and is over.
    pub fn make_room(&mut self) -> Option<T> {
        if self.sessions.len() < self.limits.all {
            return None;
        }
        if let Some(silent) = self.displace_silent() {
            return Some(silent);
        }
        let client = *self.talking.first_key_value()?.1;
        let id = self.sessions.get(&client)?.id;
        self.remove(&client, id)
    }

    /// Forgets the oldest session that does not talk.
    pub fn displace_silent(&mut self) -> Option<T> {
        while let Some((client, id)) = self.young.pop_front() {
            if self.sessions.get(&client).is_some_and(|entry| entry.id == id && entry.talked.is_none()) {
                return self.remove(&client, id);
            }
        }
        None
    }

    /// Keeps a session for which there is room. `make` is told its number.
    pub fn begin(&mut self, client: Client, make: impl FnOnce(u64) -> T) -> &T {
        let id = self.next;
        self.next += 1;
        *self.by_client.entry(group(client.from.ip())).or_default() += 1;
        self.young.push_back((client, id));
        if self.young.len() > 2 * self.limits.all.max(8) {
            let sessions = &self.sessions;
            let is_young = |(client, id): &(Client, u64)| {
                sessions.get(client).is_some_and(|entry| entry.id == *id && entry.talked.is_none())
            };
            self.young.retain(|one| one.1 == id || is_young(one));
        }
        let entry = Entry { id, talked: None, session: make(id) };
        &self.sessions.entry(client).insert(entry).into_mut().session
    }

    /// The client of a session that talks has said something: all others make room before it.
    pub fn talks(&mut self, client: &Client) {
        let Some(entry) = self.sessions.get_mut(client) else { return };
        let last = self.talking.last_key_value().map(|(place, _)| *place);
        if entry.talked.is_some() && entry.talked == last {
            return;
        }
        if let Some(before) = entry.talked {
            self.talking.remove(&before);
        }
        let place = last.map_or(0, |last| last + 1);
        entry.talked = Some(place);
        self.talking.insert(place, *client);
    }

    /// Forgets a session, if it is still the client's.
    pub fn remove(&mut self, client: &Client, id: u64) -> Option<T> {
        if self.sessions.get(client)?.id != id {
            return None;
        }
        let group = group(client.from.ip());
        if let Some(own) = self.by_client.get_mut(&group) {
            *own -= 1;
            if *own == 0 {
                self.by_client.remove(&group);
            }
        }
        let entry = self.sessions.remove(client)?;
        if let Some(place) = entry.talked {
            self.talking.remove(&place);
        }
        Some(entry.session)
    }

    /// Forgets all of them.
    pub fn clear(&mut self) -> Vec<T> {
        self.by_client.clear();
        self.young.clear();
        self.talking.clear();
        self.sessions.drain().map(|(_, entry)| entry.session).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(from: &str) -> Client {
        Client { from: from.parse().unwrap(), to: "198.18.0.1".parse().unwrap() }
    }

    fn table(all: usize, of_client: usize) -> Table<u64> {
        Table::new(Limits { all, of_client })
    }

    /// Begins one if there is room: its number, and who made room; or why there is none.
    fn begin(table: &mut Table<u64>, from: &str) -> Result<(u64, Option<u64>), Full> {
        let client = client(from);
        assert!(table.find(&client).is_none());
        table.admits(&client)?;
        let displaced = table.make_room();
        Ok((*table.begin(client, |id| id), displaced))
    }

    #[test]
    fn a_session_is_of_an_address_and_port_of_both_sides() {
        let mut table = table(10, 10);
        assert_eq!(begin(&mut table, "198.18.1.1:5"), Ok((0, None)));
        let other = Client { to: "198.18.0.2".parse().unwrap(), ..client("198.18.1.1:5") };
        for (client, expected) in [
            (client("198.18.1.1:5"), Some(0)),
            (client("198.18.1.1:6"), None),
            (client("198.18.1.2:5"), None),
            (other, None),
        ] {
            assert_eq!(table.find(&client).copied(), expected, "{client:?}");
        }
        assert_eq!(table.remove(&client("198.18.1.1:5"), 7), None, "another one of the same client");
        assert_eq!(table.remove(&client("198.18.1.1:5"), 0), Some(0));
        assert_eq!((table.remove(&client("198.18.1.1:5"), 0), table.is_empty()), (None, true));
    }

    #[test]
    fn who_does_not_talk_makes_room_first_and_then_who_was_silent_longest() {
        let mut table = table(3, 10);
        for (from, expected) in [("198.18.1.1:1", 0), ("198.18.1.2:1", 1), ("198.18.1.3:1", 2)] {
            assert_eq!(begin(&mut table, from), Ok((expected, None)));
        }
        table.talks(&client("198.18.1.1:1"));
        assert_eq!(begin(&mut table, "198.18.1.4:1"), Ok((3, Some(1))), "the oldest that does not talk");
        table.talks(&client("198.18.1.4:1"));
        table.talks(&client("198.18.1.3:1"));
        table.talks(&client("198.18.1.1:1"));
        table.talks(&client("198.18.1.4:1"));
        assert_eq!(begin(&mut table, "198.18.1.5:1"), Ok((4, Some(2))), "the one whose client was silent longest");
        assert_eq!(begin(&mut table, "198.18.1.6:1"), Ok((5, Some(4))));
        table.remove(&client("198.18.1.6:1"), 5);
        assert_eq!(begin(&mut table, "198.18.1.7:1"), Ok((6, None)));
        // A flood takes nobody's place who talks, and what is remembered of it stays small.
        for number in 0..10_000_u32 {
            let from = format!("198.19.{}.{}:9", number / 250, number % 250);
            assert!(begin(&mut table, &from).is_ok(), "{from}");
        }
        assert!(table.find(&client("198.18.1.1:1")).is_some() && table.find(&client("198.18.1.4:1")).is_some());
        assert!(table.len() == 3 && table.by_client.len() == 3 && table.young.len() <= 17, "{table:?}");
        // Nor does one whose clients say two words each the place of one who goes on; who says no more than they makes room.
        for number in 0..1_000_u32 {
            let from = format!("198.19.{}.{}:9", number / 250, number % 250);
            assert!(begin(&mut table, &from).is_ok(), "{from}");
            table.talks(&client(&from));
            table.talks(&client("198.18.1.1:1"));
        }
        assert!(table.find(&client("198.18.1.1:1")).is_some() && table.find(&client("198.18.1.4:1")).is_none());
        assert!(table.len() == 3 && table.talking.len() == 3 && table.young.len() <= 17, "{table:?}");
        table.clear();
        assert!(table.talking.is_empty() && begin(&mut table, "198.18.1.1:1").is_ok());
    }

    #[test]
    fn where_there_may_be_none_there_is_none() {
        assert_eq!(begin(&mut table(0, 10), "198.18.1.1:1"), Err(Full::All));
    }

    #[test]
    fn one_client_has_its_share_and_a_network_of_ipv6_is_one() {
        let mut table = table(100, 2);
        for (from, expected) in [
            ("198.18.1.1:1", Ok((0, None))),
            ("198.18.1.1:2", Ok((1, None))),
            ("198.18.1.1:3", Err(Full::Client)),
            ("[::ffff:198.18.1.1]:3", Err(Full::Client)),
            ("198.18.1.2:1", Ok((2, None))),
            ("[fd00:198::1]:1", Ok((3, None))),
            ("[fd00:198::2]:1", Ok((4, None))),
            ("[fd00:198::3]:1", Err(Full::Client)),
            ("[fd00:198:0:1::3]:1", Ok((5, None))),
        ] {
            assert_eq!(begin(&mut table, from), expected, "{from}");
        }
        table.remove(&client("198.18.1.1:1"), 0);
        assert_eq!(begin(&mut table, "198.18.1.1:3"), Ok((6, None)));
        assert_eq!(table.clear().len(), 6);
        assert_eq!(begin(&mut table, "198.18.1.1:3"), Ok((7, None)));
    }

    #[test]
    fn one_question_with_its_answer_is_soon_forgotten() {
        let (usual, answered) = (Duration::from_secs(60), Duration::from_secs(5));
        let drain = Duration::from_secs(2);
        for (asked, answers, lasts, draining, talks) in [
            (1, 0, usual, drain, false),
            (1, 1, answered, drain, false),
            (1, 9, answered, drain, false),
            (2, 0, usual, drain, false),
            (2, 1, usual, drain, true),
            (9, 9, usual, drain, true),
        ] {
            let said = Said { asked, answered: answers };
            let idle = Idle { usual, answered, draining: None };
            let stops = Idle { draining: Some(drain), ..idle };
            assert_eq!((said.lasts(&idle), said.lasts(&stops), said.talks()), (lasts, draining, talks), "{said:?}");
        }
        let idle = Idle { usual, answered, draining: Some(Duration::from_secs(9)) };
        assert_eq!(Said { asked: 1, answered: 1 }.lasts(&idle), answered);
    }
}
