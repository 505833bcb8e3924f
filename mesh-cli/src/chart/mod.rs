//! The chart: the files that are built in (`embed`), the values that a user gives (`values`), what they may be (`schema`), and the objects
//! that come out (`render`). Nothing here talks to a cluster. Called by `install`, `uninstall` and the tests that compare with Helm.

pub mod embed;
pub mod object;
pub mod render;
pub mod schema;
pub mod values;

#[cfg(test)]
mod tests;
