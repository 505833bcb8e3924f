//! The answer of a check, for people and for programs. Called by `check`.

use serde::Serialize;

use crate::output::{Mark, Paint, printable};

/// One thing that is wrong.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// It keeps something from working; else it is worth a look.
    pub is_error: bool,
    /// Where: a node, a pod, an object.
    pub object: String,
    /// What is wrong, and why that matters.
    pub why: String,
    /// What to do.
    pub fix: String,
}

impl Finding {
    /// Something does not work.
    pub fn error(object: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { is_error: true, object: object.into(), why: why.into(), fix: fix.into() }
    }

    /// Something is worth a look.
    pub fn warning(object: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { is_error: false, ..Finding::error(object, why, fix) }
    }
}

/// What a check was told.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Outcome {
    /// Name that stays the same.
    pub id: &'static str,
    /// Heading under which it stands.
    pub group: &'static str,
    /// What should hold.
    pub title: &'static str,
    /// `ok`, `warning`, `error`, or `skipped`: it was not made.
    pub result: &'static str,
    /// What it needs and could not be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
    /// What does not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// All checks that were made.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Report {
    /// In the order in which they are shown.
    pub checks: Vec<Outcome>,
}

/// How much is shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shown {
    /// Every check.
    All,
    /// Those with findings.
    Problems,
}

/// Findings of one check that are shown; a thousand pods with one fault need no thousand lines.
const MAX_SHOWN: usize = 10;

impl Outcome {
    /// Of what was found.
    pub fn of(id: &'static str, group: &'static str, title: &'static str, findings: Vec<Finding>) -> Outcome {
        let result = match findings.iter().map(|f| f.is_error).max() {
            None => "ok",
            Some(false) => "warning",
            Some(true) => "error",
        };
        Outcome { id, group, title, result, unread: Vec::new(), findings }
    }

    /// One that could not be made.
    pub fn skipped(id: &'static str, group: &'static str, title: &'static str, unread: Vec<String>) -> Outcome {
        Outcome { id, group, title, result: "skipped", unread, findings: Vec::new() }
    }

    fn mark(&self) -> Mark {
        match self.result {
            "ok" => Mark::Good,
            "warning" => Mark::Warning,
            "skipped" => Mark::Unknown,
            _ => Mark::Bad,
        }
    }
}

impl Report {
    /// Something does not work.
    pub fn has_errors(&self) -> bool {
        self.checks.iter().any(|check| check.result == "error")
    }

    /// For people.
    pub fn text(&self, paint: Paint, shown: Shown) -> String {
        let mut out = String::new();
        let mut group = "";
        for check in self.checks.iter().filter(|c| shown == Shown::All || c.result != "ok") {
            if check.group != group {
                let gap = if group.is_empty() { "" } else { "\n" };
                group = check.group;
                out.push_str(&format!("{gap}{group}\n{}\n", "-".repeat(group.chars().count())));
            }
            let unread = match check.unread.as_slice() {
                [] => String::new(),
                unread => format!(" (not looked at: {} cannot be read)", unread.join(", ")),
            };
            out.push_str(&format!("{} {}{unread}\n", paint.mark(check.mark()), check.title));
            for finding in check.findings.iter().take(MAX_SHOWN) {
                let text = |text: &str| printable(text).replace('\n', "\n      ");
                out.push_str(&format!("    {}: {}\n", text(&finding.object), text(&finding.why)));
                out.push_str(&format!("      fix: {}\n", text(&finding.fix)));
            }
            if check.findings.len() > MAX_SHOWN {
                out.push_str(&format!("    and {} more (-o json shows all)\n", check.findings.len() - MAX_SHOWN));
            }
        }
        let count = |result: &str| self.checks.iter().filter(|check| check.result == result).count();
        let gap = if out.is_empty() { "" } else { "\n" };
        let (ok, warnings, errors) = (count("ok"), count("warning"), count("error"));
        let skipped = match count("skipped") {
            0 => String::new(),
            skipped => format!(", {skipped} could not be made"),
        };
        out.push_str(&format!("{gap}{ok} checks are fine, {warnings} warn, {errors} fail{skipped}\n"));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_object_reason_and_fix() {
        let finding = Finding::error("node n2", "runs\x1b Linux 4.19", "update it");
        let report = Report {
            checks: vec![
                Outcome::of("a", "cluster", "nodes are ready", vec![]),
                Outcome::of("b", "cluster", "kernels are new", vec![finding]),
                Outcome::of("c", "agents", "agents run", vec![Finding::warning("x", "y", "z"); 12]),
            ],
        };
        let text = report.text(Paint::plain(), Shown::All);
        let expected = "cluster\n-------\n√ nodes are ready\n× kernels are new\n    node n2: runs\\u{1b} Linux 4.19\n      fix: update it\n\nagents\n------\n‼ agents run\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.ends_with("    and 2 more (-o json shows all)\n\n1 checks are fine, 1 warn, 1 fail\n"), "{text}");
        assert!(report.has_errors());
        let blind = Outcome::skipped("d", "pods", "pods are well", vec!["pods".into(), "events".into()]);
        let text = Report { checks: vec![blind] }.text(Paint::plain(), Shown::Problems);
        let expected = "? pods are well (not looked at: pods, events cannot be read)\n\n0 checks are fine, 0 warn, 0 fail, 1 could not be made\n";
        assert!(text.ends_with(expected), "{text}");
        assert!(!report.text(Paint::plain(), Shown::Problems).contains("nodes are ready"));
    }
}
