//! What was unusual about a request, in Envoy's short words and Envoy's order: `DI,FI`. One request may have several.

use std::fmt;

/// Envoy's words, in the order in which Envoy writes them.
pub(super) const WORDS: [&str; 28] = [
    "LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "RLSE", "DC", "URX", "SI", "IH",
    "DPE", "UMSDR", "RFCF", "NFCF", "DT", "UPE", "NC", "OM", "DF", "DO",
];

/// Any number of [`WORDS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flags(u32);

impl Flags {
    /// The flag of that word; a word that Envoy does not have says nothing.
    #[must_use]
    pub fn of(word: &str) -> Self {
        Self(WORDS.iter().position(|known| *known == word).map_or(0, |index| 1 << index))
    }

    /// These too.
    pub fn add(&mut self, more: Self) {
        self.0 |= more.0;
    }

    /// None.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the flags of `other` are among these.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// As a number, for the table that a request's labels are found by.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        let words = WORDS.iter().enumerate().filter(|(index, _)| self.0 & (1 << index) != 0);
        for (index, (_, word)) in words.enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(word)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_flags_are_written_in_envoys_order() {
        for (words, expected) in [
            (&[][..], "-"),
            (&["-"], "-"),
            (&["nonsense"], "-"),
            (&["URX", "UF"], "UF,URX"),
            (&["FI", "DI"], "DI,FI"),
            (&["UAEX"], "UAEX"),
            (&["DO", "LH"], "LH,DO"),
        ] {
            let mut flags = Flags::default();
            words.iter().for_each(|word| flags.add(Flags::of(word)));
            assert_eq!(flags.to_string(), expected, "{words:?}");
        }
    }
}
