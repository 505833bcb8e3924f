//! A small interpreter of Go templates: what the chart in `deploy` uses of the language, with the meaning that Helm gives it. Called by
//! `chart`. Text is cut into actions (`lexer`), these become a tree (`parser`), and that is run over the values (`eval`); functions are in
//! `functions`, and `yaml` writes values as Helm does.
//!
//! Nothing is guessed: what is not known here is an error with template and line, so that a chart that renders here renders the same in Helm,
//! or not at all. The crate `gtmpl` was looked at instead: its newest release is years old, and it ranges over maps in no order.

mod eval;
mod functions;
mod lexer;
mod parser;
pub mod yaml;

#[cfg(test)]
mod tests;

pub use eval::Engine;

use std::fmt;

/// Why a template cannot be read or run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TemplateError {
    /// Its name: the path in the chart.
    pub template: String,
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.template, self.line, self.message)
    }
}

impl std::error::Error for TemplateError {}
