//! What is said of the node's chain of CNI plugins: one word. Used by [`super`].

/// What an agent does about the node's chain of CNI plugins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Chain {
    /// Nothing: it may be another agent's.
    Alone,
    /// It keeps our plugin in it, and serves it.
    Kept,
    /// It takes out of it what an earlier agent has left there.
    Cleared,
}

impl Chain {
    const WORDS: [(&str, Chain); 3] = [("off", Chain::Alone), ("on", Chain::Kept), ("remove", Chain::Cleared)];

    pub(super) fn read(text: &str) -> Option<Chain> {
        Chain::WORDS.iter().find(|(word, _)| *word == text).map(|(_, chain)| *chain)
    }

    pub(super) fn word(self) -> &'static str {
        Chain::WORDS.iter().find(|(_, chain)| *chain == self).map_or("", |(word, _)| word)
    }
}
