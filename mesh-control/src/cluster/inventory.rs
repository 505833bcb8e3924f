//! What the API server has, as far as it has been heard: one table for each kind. A list replaces a table as a whole, once it has arrived whole,
//! so that a list that is read again takes nothing away meanwhile, and what was deleted in between is noticed. Pure; the source drives it.

use std::collections::BTreeMap;

use super::decode::Item;
use super::watch::Event;
use crate::diagnosis::{Diagnosis, Problem};
use crate::manifest::file::diagnosis;
use crate::resource::catalog::{Kept, Live};
use crate::resource::{Key, Kind};
use crate::source::Update;

/// Diagnoses at once; with more there is no reader for them.
const MAX_DIAGNOSES: usize = 10_000;

#[derive(Debug, Default)]
struct Table {
    items: BTreeMap<Key, Item>,
    /// It has been listed once, or there is no such kind.
    is_known: bool,
    /// Why nothing is heard now.
    failing: Option<String>,
}

/// Everything that was heard.
#[derive(Debug, Default)]
pub struct Inventory {
    tables: BTreeMap<Kind, Table>,
    live: Live,
    /// What was said of what is kept.
    told: Kept,
}

impl Inventory {
    /// Takes an event over. Returns whether it changed anything.
    pub fn take(&mut self, kind: Kind, event: Event<Item>) -> bool {
        let Self { tables, live, .. } = self;
        let table = tables.entry(kind).or_default();
        match event {
            Event::Listed(items) => {
                let old = std::mem::take(&mut table.items);
                table.items = items.into_iter().map(|item| (item.key.clone(), item)).collect();
                for (key, item) in &old {
                    if table.items.get(key).is_none_or(|new| new.uid != item.uid) {
                        live.remove(key);
                    }
                }
                table.items.iter().for_each(|(key, item)| live.put(key, &item.outcome));
                let same = old.len() == table.items.len() && old.values().zip(table.items.values()).all(is_same);
                !std::mem::replace(&mut table.is_known, true) | table.failing.take().is_some() | !same
            }
            Event::Applied(item) => {
                let old = table.items.insert(item.key.clone(), item.clone());
                if old.as_ref().is_some_and(|old| old.uid != item.uid) {
                    live.remove(&item.key);
                }
                live.put(&item.key, &item.outcome);
                table.failing.take().is_some() | !old.is_some_and(|old| old.is_like(&item))
            }
            Event::Deleted(item) => {
                // What comes next under this name is another object, and has no good form yet.
                live.remove(&item.key);
                table.failing.take().is_some() | table.items.remove(&item.key).is_some()
            }
            Event::Absent => {
                table.items.keys().for_each(|key| live.remove(key));
                let had = !std::mem::take(&mut table.items).is_empty();
                !std::mem::replace(&mut table.is_known, true) | table.failing.take().is_some() | had
            }
            Event::Heard => table.failing.take().is_some(),
            Event::Failing(why) => table.failing.replace(why.clone()) != Some(why),
        }
    }

    /// The kinds that have not been heard of yet, with the reason if there is one.
    pub fn waiting(&self, kinds: &[Kind]) -> Vec<String> {
        let of = |kind: &Kind| {
            let table = self.tables.get(kind);
            let why = table.and_then(|t| t.failing.as_deref()).map(|why| format!(" ({why})")).unwrap_or_default();
            // What only says where requests go holds nothing up that cannot be had.
            let is_due = table.is_none_or(|t| !(t.is_known || kind.is_routing() && t.failing.is_some()));
            is_due.then(|| format!("{}{why}", kind.title()))
        };
        kinds.iter().filter_map(of).collect()
    }

    /// What is in force now.
    pub fn update(&mut self) -> Update {
        let mut diagnoses = Vec::new();
        let mut marks = BTreeMap::new();
        for (kind, table) in &self.tables {
            diagnoses.extend(table.failing.as_ref().map(|why| unheard(*kind, why)));
            for (key, item) in &table.items {
                marks.extend(item.mark().map(|mark| (key.clone(), mark)));
                if diagnoses.len() < MAX_DIAGNOSES {
                    diagnoses.extend(item.diagnoses.iter().cloned());
                }
            }
        }
        let (mut objects, kept) = self.live.objects();
        let is_heard = |kind: &Kind| self.tables.get(kind).is_some_and(|table| table.is_known);
        objects.unheard = Kind::ALL.into_iter().filter(|kind| kind.is_followed() && !is_heard(kind)).collect();
        kept.tell(&mut self.told);
        Update { objects, diagnoses, places: BTreeMap::new(), unread: Vec::new(), marks, since: None }
    }
}

fn is_same((old, new): (&Item, &Item)) -> bool {
    old.key == new.key && old.is_like(new)
}

fn unheard(kind: Kind, why: &str) -> Diagnosis {
    let message = format!("objects of kind {} cannot be followed, they stay as they were: {why}", kind.title());
    diagnosis(None, Problem::error("", message).help("the control plane goes on trying"), None)
}
