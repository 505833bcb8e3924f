//! What load noticed, as rows: read from the programs' JSON, and printed for people or as JSON. Called by [`super`] and its events.
use serde_json::{Value, json};

/// What one path noticed of one event.
#[derive(Debug, Default, PartialEq)]
pub struct Row {
    pub event: String,
    pub path: String,
    pub new: u64,
    pub refused: u64,
    pub reset: u64,
    pub timeout: u64,
    pub other: u64,
    /// Longest time between two new connections that succeeded.
    pub worst_gap_ms: u64,
    /// Slowest of those that succeeded.
    pub slowest_ms: u64,
    /// Longest time from the first failure to the last of those close to each other.
    pub failing_ms: u64,
    pub long: u64,
    pub cut: u64,
    /// When they were cut, by the clock.
    pub cuts_ms: Vec<u64>,
    /// When the last attempt that succeeded began.
    pub last_ok_ms: u64,
    /// What was the matter with some that failed.
    pub errors: Vec<String>,
    /// What is told besides.
    pub note: String,
}

impl Row {
    /// From what the load program printed last.
    pub fn read(event: &str, path: &str, said: &Value) -> Row {
        let number = |name: &str| said[name].as_u64().unwrap_or_default();
        let numbers =
            |list: &Value| list.as_array().into_iter().flatten().filter_map(Value::as_u64).collect::<Vec<_>>();
        let bursts = said["bursts"].as_array().into_iter().flatten().map(numbers);
        let failing = bursts.filter_map(|burst| Some(burst.get(1)?.saturating_sub(*burst.first()?))).max();
        let mut row = Row {
            event: event.to_owned(),
            path: path.to_owned(),
            refused: number("refused"),
            reset: number("reset"),
            timeout: number("timeout"),
            other: number("other"),
            worst_gap_ms: number("worst_gap_ms"),
            slowest_ms: number("slowest_us") / 1000,
            failing_ms: failing.unwrap_or_default(),
            long: number("long"),
            cut: number("cut"),
            cuts_ms: numbers(&said["cuts_ms"]),
            last_ok_ms: number("last_ok_ms"),
            errors: said["errors"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|one| Some(one.as_str()?.to_owned()))
                .collect(),
            ..Row::default()
        };
        row.new = number("ok") + row.failed();
        row
    }

    /// New connections that failed.
    pub fn failed(&self) -> u64 {
        self.refused + self.reset + self.timeout + self.other
    }

    /// The same, saying more.
    pub fn note(self, note: String) -> Row {
        Row { note, ..self }
    }

    fn json(&self) -> Value {
        json!({
            "event": self.event, "path": self.path, "new": self.new, "failed": self.failed(), "refused": self.refused, "reset": self.reset,
            "timeout": self.timeout, "other": self.other, "worst_gap_ms": self.worst_gap_ms, "slowest_ms": self.slowest_ms,
            "failing_ms": self.failing_ms, "long": self.long, "cut": self.cut, "note": self.note, "errors": self.errors,
        })
    }

    fn line(&self) -> String {
        let seconds = |ms: u64| format!("{:.2}", ms as f64 / 1000.0);
        let share = 100.0 * self.failed() as f64 / self.new.max(1) as f64;
        format!(
            "| {} | {} | {} | {} ({share:.2} %) | {} | {} | {} | {} of {} | {} |",
            self.event,
            self.path,
            self.new,
            self.failed(),
            seconds(self.failing_ms),
            seconds(self.worst_gap_ms),
            seconds(self.slowest_ms),
            self.cut,
            self.long,
            self.note
        )
    }
}

const HEAD: &str = "| event | path | new | failed | failing, s | worst gap, s | slowest, s | long cut | |\n|---|---|---:|---:|---:|---:|---:|---:|---|";

/// Prints rows of one event.
pub fn print(rows: &[Row], json: bool) {
    if json {
        rows.iter().for_each(|row| println!("{}", row.json()));
        return;
    }
    println!("{HEAD}");
    rows.iter().for_each(|row| println!("{}", row.line()));
    for row in rows.iter().filter(|row| !row.errors.is_empty()) {
        eprintln!("{}, {}: {}", row.event, row.path, row.errors.join("; "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_the_load_program_said() {
        let said = json!({
            "ok": 97, "refused": 2, "reset": 1, "timeout": 0, "other": 0, "cut": 2, "long": 5, "worst_gap_ms": 1250, "slowest_us": 900_000,
            "last_ok_ms": 77, "bursts": [[1000, 1100, 1], [5000, 5700, 2]], "cuts_ms": [40, 50], "errors": [],
        });
        let row = Row::read("kill", "n1 to n2", &said).note("x".into());
        assert_eq!((row.new, row.failed(), row.failing_ms, row.cuts_ms.len(), row.last_ok_ms), (100, 3, 700, 2, 77));
        assert_eq!(row.line(), "| kill | n1 to n2 | 100 | 3 (3.00 %) | 0.70 | 1.25 | 0.90 | 2 of 5 | x |");
        assert_eq!(Row::read("a", "b", &Value::Null).failed(), 0);
    }
}
