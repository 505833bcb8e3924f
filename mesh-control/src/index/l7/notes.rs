//! What of a rule cannot be done. Such a rule is closed: it answers 500, with what is noted first as the reason, and whoever wrote it is told of all.

use mesh_core::ArcStr;

use super::Problems;
use crate::diagnosis::Problem;
use crate::resource::Key;

/// What is said where there is nothing better to say.
const CLOSED: &str = "until then its requests are answered with 500";

/// Notes about one object.
#[derive(Debug)]
pub struct Notes<'a> {
    key: Key,
    problems: &'a mut Problems,
    closed: Option<String>,
}

impl<'a> Notes<'a> {
    /// Notes about the object `key`, which go to `problems`.
    pub fn new(key: Key, problems: &'a mut Problems) -> Self {
        Self { key, problems, closed: None }
    }

    /// As `HTTPRoute shop/cart`.
    pub fn origin(&self) -> ArcStr {
        self.key.to_string().into()
    }

    /// What stands at `field` cannot be done.
    pub fn close(&mut self, field: impl Into<String>, message: impl Into<String>, help: &str) {
        let (field, message) = (field.into(), message.into());
        let help = if help.is_empty() { format!("mend it; {CLOSED}") } else { format!("{help}; {CLOSED}") };
        self.closed_by(&field, &message);
        self.problems.push((self.key.clone(), Problem::error(field, message).help(help)));
    }

    /// It cannot be done, and somebody else tells that.
    pub fn closed_by(&mut self, field: &str, message: &str) {
        self.closed.get_or_insert_with(|| format!("{field}: {message}"));
    }

    /// Why the rule is closed, if it is.
    pub fn closed(&mut self) -> Option<String> {
        self.closed.take()
    }

    /// It is done otherwise than it seems.
    pub fn warn(&mut self, field: impl Into<String>, message: impl Into<String>, help: &str) {
        self.problems.push((self.key.clone(), Problem::warning(field, message).help(help)));
    }

    /// Looks at a part that may be closed by itself; returns why it is.
    pub fn apart<T>(&mut self, look: impl FnOnce(&mut Self) -> T) -> (T, Option<String>) {
        let outer = self.closed.take();
        let found = look(self);
        (found, std::mem::replace(&mut self.closed, outer))
    }
}
