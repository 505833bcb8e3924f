//! Parameters of a query, compared as whoever is asked will read them: without escapes.

use std::borrow::Cow;

/// The value of a parameter, as it is written.
#[derive(Clone, Copy)]
pub(super) struct Value<'a>(&'a [u8]);

/// The first parameter `name` of `query`.
pub(super) fn first<'a>(query: &'a str, name: &str) -> Option<Value<'a>> {
    let mut parameters = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let found = parameters.find(|(key, _)| Value(key.as_bytes()).is(name))?;
    Some(Value(found.1.as_bytes()))
}

/// All values of a parameter.
pub(super) fn all<'a>(query: &'a str, name: &str) -> impl Iterator<Item = Value<'a>> {
    let parameters = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    parameters.filter(move |(key, _)| Value(key.as_bytes()).is(name)).map(|(_, value)| Value(value.as_bytes()))
}

impl<'a> Value<'a> {
    /// Whether it means this.
    pub(super) fn is(self, text: &str) -> bool {
        Plain(self.0).eq(text.bytes())
    }

    /// Whether what it means begins with this.
    pub(super) fn begins(self, text: &str) -> bool {
        let mut found = Plain(self.0);
        text.bytes().all(|byte| found.next() == Some(byte))
    }

    /// What it means, in memory of its own only if there are escapes: patterns want all of it at once.
    pub(super) fn plain(self) -> Cow<'a, [u8]> {
        match self.0.iter().any(|byte| matches!(byte, b'%' | b'+')) {
            true => Plain(self.0).collect(),
            false => Cow::Borrowed(self.0),
        }
    }
}

/// The bytes that an escaped text means. What only looks like an escape means itself.
struct Plain<'a>(&'a [u8]);

impl Iterator for Plain<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (byte, rest) = match *self.0 {
            [] => return None,
            [b'%', high, low, ref rest @ ..] => match (digit(high), digit(low)) {
                (Some(high), Some(low)) => ((high * 16 + low) as u8, rest),
                _ => (b'%', &self.0[1..]),
            },
            [b'+', ref rest @ ..] => (b' ', rest),
            [byte, ref rest @ ..] => (byte, rest),
        };
        self.0 = rest;
        Some(byte)
    }
}
