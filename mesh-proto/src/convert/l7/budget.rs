//! What one table may take: rules come from tenants, and a few bytes on the wire may become many in memory.

use std::collections::HashMap;

use mesh_core::l7::{Pattern, PatternError, Replacement};

use super::few;
use crate::convert::ConvertError;

/// Patterns of a table that differ, also those that are refused: each is compiled.
const MOST_PATTERNS: usize = 4096;
/// What all patterns of a table may take together, in bytes.
const PATTERN_BYTES: usize = 32 << 20;
/// Conditions of all rules of a table.
const MOST_CONDITIONS: usize = 200_000;

/// Counts while a table is read, and compiles equal patterns once.
pub(super) struct Budget {
    compiled: usize,
    /// Bytes that are left for patterns.
    room: usize,
    conditions: usize,
    patterns: HashMap<String, Pattern>,
    /// By the pattern and what stands for it.
    replacements: HashMap<(String, String), Replacement>,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            compiled: 0,
            room: PATTERN_BYTES,
            conditions: 0,
            patterns: HashMap::default(),
            replacements: HashMap::default(),
        }
    }
}

impl Budget {
    pub(super) fn pattern(&mut self, field: &'static str, text: String) -> Result<Pattern, ConvertError> {
        if let Some(known) = self.patterns.get(&text) {
            return Ok(known.clone());
        }
        let pattern = self.take(field, || Pattern::new(&*text), Pattern::size)?;
        self.patterns.insert(text, pattern.clone());
        Ok(pattern)
    }

    pub(super) fn replacement(
        &mut self,
        field: &'static str,
        pattern: String,
        substitution: String,
    ) -> Result<Replacement, ConvertError> {
        let key = (pattern, substitution);
        if let Some(known) = self.replacements.get(&key) {
            return Ok(known.clone());
        }
        let replacement = self.take(field, || Replacement::new(&*key.0, &*key.1), Replacement::size)?;
        self.replacements.insert(key, replacement.clone());
        Ok(replacement)
    }

    /// Conditions of one rule more.
    pub(super) fn conditions(&mut self, count: usize) -> Result<(), ConvertError> {
        let all = self.conditions.saturating_add(count);
        few("conditions of all rules", all, MOST_CONDITIONS)?;
        self.conditions = all;
        Ok(())
    }

    fn take<T>(
        &mut self,
        field: &'static str,
        compile: impl FnOnce() -> Result<T, PatternError>,
        size: fn(&T) -> usize,
    ) -> Result<T, ConvertError> {
        let full = || {
            let problem = format!("regular expressions of the table take more than {PATTERN_BYTES} bytes");
            ConvertError::invalid(field, problem)
        };
        few(field, self.compiled + 1, MOST_PATTERNS)?;
        if self.room == 0 {
            return Err(full());
        }
        self.compiled += 1;
        let compiled = compile().map_err(|error| ConvertError::invalid(field, error.to_string()))?;
        let size = size(&compiled);
        let Some(room) = self.room.checked_sub(size) else {
            // What is too large for the rest ends it: the others are not compiled to find that out.
            self.room = 0;
            return Err(full());
        };
        self.room = room;
        Ok(compiled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_have_a_limit_together_and_equal_ones_are_one() {
        let mut budget = Budget { room: 10_000, ..Budget::default() };
        let mut read = Vec::new();
        let problem = loop {
            match budget.pattern("f", format!("a{}", read.len())) {
                Ok(pattern) => read.push(pattern),
                Err(problem) => break problem.to_string(),
            }
        };
        let all: usize = read.iter().map(Pattern::size).sum();
        assert!(all <= 10_000 && read.len() >= 3, "{} of {all} bytes", read.len());
        assert_eq!(problem, format!("f: regular expressions of the table take more than {PATTERN_BYTES} bytes"));
        assert!(budget.pattern("f", "b".into()).is_err());
        assert!(budget.replacement("f", "b".into(), "c".into()).is_err());
        // What is there once costs nothing.
        assert_eq!(budget.pattern("f", "a0".into()).as_ref(), Ok(&read[0]));

        let mut budget = Budget::default();
        for _ in 0..3 {
            budget.pattern("f", "a".into()).unwrap();
            budget.replacement("f", "a".into(), "b".into()).unwrap();
        }
        assert_eq!(budget.compiled, 2);
        assert_eq!(budget.replacement("f", "a".into(), "c".into()).unwrap().apply("a"), "c");
    }

    #[test]
    fn what_is_refused_was_compiled_too() {
        let mut budget = Budget { compiled: MOST_PATTERNS - 1, ..Budget::default() };
        assert!(budget.pattern("f", "[".into()).is_err());
        let problem = budget.pattern("f", "a".into()).unwrap_err().to_string();
        assert_eq!(problem, format!("f: {} of them, the limit is {MOST_PATTERNS}", MOST_PATTERNS + 1));
    }
}
