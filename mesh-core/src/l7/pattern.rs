//! Regular expressions of users: RE2's language, held against the whole text, in time linear in it and with a limit on what they may become.
//! Compiled once, when a table is made.

use std::{fmt, hash, sync::Arc};

use arcstr::ArcStr;
use regex_automata::{
    meta::{BuildError, Config, Regex},
    nfa::thompson::WhichCaptures,
    util::syntax,
};

/// Longest text of one pattern, in bytes.
pub const LONGEST: usize = 4096;
/// What a pattern may become, in bytes, in either direction. Classes of Unicode are the largest of what is reasonable.
const COMPILED: usize = 1 << 16;
/// What its automaton may grow to while it is used, in bytes and for each thread.
const AUTOMATON: usize = 1 << 18;
/// Groups in groups.
const NESTED: u32 = 100;

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing is written.
    #[error("an empty regular expression")]
    Empty,
    /// Longer than [`LONGEST`].
    #[error("a regular expression of {0} bytes, the limit is {LONGEST}")]
    TooLong(usize),
    /// Its automaton would be too large.
    #[error("the regular expression is too large: write smaller repetitions")]
    TooLarge,
    /// Not of the language.
    #[error("not a regular expression: {0}")]
    Syntax(String),
    /// Its groups are not those of the pattern.
    #[error("{0:?} names a group that the regular expression does not have: write \\\\ for a backslash")]
    Substitution(String),
}

/// A compiled pattern. Two are equal if their texts are. A clone shares what was compiled.
#[derive(Clone)]
pub struct Pattern {
    text: ArcStr,
    whole: Arc<Regex>,
}

impl Pattern {
    /// Compiles it.
    pub fn new(text: impl Into<ArcStr>) -> Result<Self, PatternError> {
        let text = text.into();
        check_length(&text)?;
        // Alone first: `a)|(?:b` is no pattern, and would be one inside the parentheses.
        compile(&text, WhichCaptures::Implicit)?;
        let whole = compile(&format!(r"\A(?:{text})\z"), WhichCaptures::Implicit)?;
        Ok(Self { text, whole: Arc::new(whole) })
    }

    /// As it was written.
    #[must_use]
    pub fn text(&self) -> &ArcStr {
        &self.text
    }

    /// What it takes, in bytes: its text and what it has become. What its use takes for a while is not in it.
    #[must_use]
    pub fn size(&self) -> usize {
        size_of::<Regex>() + self.whole.memory_usage() + self.text.len()
    }

    /// Whether all of `value` matches.
    #[must_use]
    pub fn matches(&self, value: &[u8]) -> bool {
        self.whole.is_match(value)
    }
}

/// What stands for each part of a text that a pattern finds. A clone shares what was compiled.
#[derive(Clone)]
pub struct Replacement {
    pattern: ArcStr,
    part: Arc<Regex>,
    substitution: ArcStr,
}

impl Replacement {
    /// Compiles it. In `substitution` `\0` to `\9` are groups, and `\\` is a backslash.
    pub fn new(pattern: impl Into<ArcStr>, substitution: impl Into<ArcStr>) -> Result<Self, PatternError> {
        let (pattern, substitution) = (pattern.into(), substitution.into());
        check_length(&pattern)?;
        let part = Arc::new(compile(&pattern, WhichCaptures::All)?);
        let mut bytes = substitution.bytes();
        while let Some(byte) = bytes.next() {
            match (byte == b'\\').then(|| bytes.next()) {
                None | Some(Some(b'\\')) => {}
                Some(Some(digit @ b'0'..=b'9')) if usize::from(digit - b'0') < part.captures_len() => {}
                Some(_) => return Err(PatternError::Substitution(substitution.chars().take(200).collect())),
            }
        }
        Ok(Self { pattern, part, substitution })
    }

    /// What is replaced, as it was written.
    #[must_use]
    pub fn pattern(&self) -> &ArcStr {
        &self.pattern
    }

    /// With what, as it was written.
    #[must_use]
    pub fn substitution(&self) -> &ArcStr {
        &self.substitution
    }

    /// What it takes, in bytes, as [`Pattern::size`] says it.
    #[must_use]
    pub fn size(&self) -> usize {
        size_of::<Regex>() + self.part.memory_usage() + self.pattern.len() + self.substitution.len()
    }

    /// Every part of `value` that matches replaced.
    #[must_use]
    pub fn apply(&self, value: &str) -> String {
        let (mut out, mut rest) = (Vec::with_capacity(value.len() + self.substitution.len()), 0);
        for found in self.part.captures_iter(value.as_bytes()) {
            let Some(all) = found.get_match() else { continue };
            out.extend_from_slice(&value.as_bytes()[rest..all.start()]);
            let mut bytes = self.substitution.bytes();
            while let Some(byte) = bytes.next() {
                match if byte == b'\\' { bytes.next() } else { None } {
                    Some(digit @ b'0'..=b'9') => {
                        let group = found.get_group(usize::from(digit - b'0'));
                        out.extend_from_slice(group.map_or(b"", |group| &value.as_bytes()[group.range()]));
                    }
                    escaped => out.push(escaped.unwrap_or(byte)),
                }
            }
            rest = all.end();
        }
        out.extend_from_slice(&value.as_bytes()[rest..]);
        // Bytes of one character may have been parted.
        String::from_utf8(out).unwrap_or_else(|bytes| String::from_utf8_lossy(bytes.as_bytes()).into_owned())
    }
}

impl PartialEq for Replacement {
    fn eq(&self, other: &Self) -> bool {
        (&self.pattern, &self.substitution) == (&other.pattern, &other.substitution)
    }
}

impl Eq for Replacement {}

impl fmt::Debug for Replacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/{}/", self.pattern, self.substitution)
    }
}

fn check_length(text: &str) -> Result<(), PatternError> {
    match text.len() {
        0 => Err(PatternError::Empty),
        length if length > LONGEST => Err(PatternError::TooLong(length)),
        _ => Ok(()),
    }
}

fn compile(text: &str, groups: WhichCaptures) -> Result<Regex, PatternError> {
    // As in RE2 classes such as \d are of ASCII. Its classes of Unicode, \pL, exist only in the other mode.
    let unicode = text.contains("\\p") || text.contains("\\P");
    let language = syntax::Config::new().unicode(unicode).utf8(false).nest_limit(NESTED);
    // Automata that are built ahead may be many times what they are built of.
    let config = Config::new().utf8_empty(false).which_captures(groups).onepass(false).dfa(false);
    let config = config.nfa_size_limit(Some(COMPILED)).hybrid_cache_capacity(AUTOMATON);
    Regex::builder().syntax(language).configure(config).build(text).map_err(refused)
}

fn refused(error: BuildError) -> PatternError {
    if error.size_limit().is_some() {
        return PatternError::TooLarge;
    }
    let text = error.syntax_error().map_or_else(|| error.to_string(), ToString::to_string);
    let last = text.lines().last().unwrap_or_default();
    PatternError::Syntax(last.strip_prefix("error: ").unwrap_or(last).to_owned())
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl hash::Hash for Pattern {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardening_B146_what_is_too_large_or_no_pattern_is_refused() {
        for (text, expected) in [
            ("", "an empty regular expression"),
            ("(a{1000}){1000}", "the regular expression is too large: write smaller repetitions"),
            ("(a{200}){100}", "the regular expression is too large: write smaller repetitions"),
            ("a)|(?:b", "not a regular expression: unopened group"),
            ("[a", "not a regular expression: unclosed character class"),
            (
                r"a(?=b)",
                "not a regular expression: look-around, including look-ahead and look-behind, is not supported",
            ),
            (r"(a)\1", "not a regular expression: backreferences are not supported"),
        ] {
            assert_eq!(Pattern::new(text).unwrap_err().to_string(), expected, "{text}");
        }
        let long = "a".repeat(1 << 16);
        assert_eq!(Pattern::new(long).unwrap_err(), PatternError::TooLong(1 << 16));
        let slow = Pattern::new(".*.*.*x").unwrap();
        assert!(!slow.matches(&[b'a'; 100_000]));
    }

    #[test]
    fn a_few_bytes_of_text_become_no_more_than_the_limit_says() {
        // What is usual is far from the limit; classes of Unicode and long repetitions are not.
        for (text, most) in [
            ("/api/v[0-9]+/(products|reviews)/.*", 4 << 10),
            ("(?i)(chrome|firefox|safari)/[0-9.]+", 4 << 10),
            (r"\pL+", 64 << 10),
            ("([a-z]{30}){20}", 64 << 10),
        ] {
            let size = Pattern::new(text).unwrap().size();
            assert!(size <= most, "{size} {text}");
        }
        let one = Pattern::new("a.*").unwrap();
        assert!(Arc::ptr_eq(&one.whole, &one.clone().whole));
    }

    #[test]
    fn the_whole_text_is_compared() {
        for (text, value, expected) in [
            ("/v[0-9]+/.*", "/v2/a", true),
            ("/v[0-9]+", "/v2/a", false),
            ("a|ab", "ab", true),
            ("b", "ab", false),
            ("(?i)abc", "aBC", true),
            (r"\d+", "٣", false),
            (r"\pL+", "é", true),
            (".*", "a\nb", false),
        ] {
            assert_eq!(Pattern::new(text).unwrap().matches(value.as_bytes()), expected, "{text} {value}");
        }
    }

    #[test]
    fn a_replacement_names_groups_by_their_numbers() {
        for (text, value, substitution, expected) in [
            ("/service/([^/]+)(/.*)$", "/service/foo/v1/api", r"\2/instance/\1", "/v1/api/instance/foo"),
            ("one", "/xxx/one/yyy/one/zzz", "two", "/xxx/two/yyy/two/zzz"),
            ("(?i)/xxx/", "/aaa/XxX/bbb", "/yyy/", "/aaa/yyy/bbb"),
            ("a", "/b", "c", "/b"),
            ("(a)", "/a", r"\\\1\0", r"/\aa"),
            ("(a)|b", "/b", r"\1c", "/c"),
        ] {
            assert_eq!(Replacement::new(text, substitution).unwrap().apply(value), expected, "{text} {value}");
        }
        for bad in [r"\1", r"\", r"\a", r"a\\\"] {
            assert!(matches!(Replacement::new("a", bad), Err(PatternError::Substitution(_))), "{bad}");
        }
    }
}
