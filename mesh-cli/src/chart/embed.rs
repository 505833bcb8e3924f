//! The chart's files, as they were when the program was built. `render` reads them; tests read others.

use std::collections::BTreeMap;

/// Path in the chart's folder, and text.
static EMBEDDED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/chart.rs"));

/// A chart's files by path.
pub type Files = BTreeMap<String, String>;

/// The chart of this program.
pub fn files() -> Files {
    EMBEDDED.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}
