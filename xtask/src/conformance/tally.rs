//! What came of each test, of what `go test -v` prints. Pure; called by [`super`].
use std::fmt;

/// Names of tests, each once.
#[derive(Debug, Default, PartialEq)]
pub struct Tally {
    /// Those that passed.
    pub passed: Vec<String>,
    /// Those that failed.
    pub failed: Vec<String>,
    /// Those that were not run.
    pub skipped: Vec<String>,
}

impl Tally {
    /// Takes a line. Says whether it tells what came of a test that was run, and not of a part of one.
    pub fn take(&mut self, line: &str) -> bool {
        let Some((result, rest)) = line.trim_start().strip_prefix("--- ").and_then(|rest| rest.split_once(": ")) else {
            return false;
        };
        let name = rest.split(' ').next().unwrap_or_default();
        let Some(test) = name.strip_prefix("TestConformance/").filter(|test| !test.contains('/')) else { return false };
        let list = match result {
            "PASS" => &mut self.passed,
            "FAIL" => &mut self.failed,
            "SKIP" => &mut self.skipped,
            _ => return false,
        };
        list.push(test.to_owned());
        result != "SKIP"
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (passed, failed, skipped) = (self.passed.len(), self.failed.len(), self.skipped.len());
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")?;
        if failed > 0 {
            write!(f, "; failed: {}", self.failed.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_counted_and_their_parts_are_not() {
        let mut tally = Tally::default();
        let lines = [
            ("=== RUN   TestConformance/MeshBasic", false),
            ("--- FAIL: TestConformance (9.00s)", false),
            ("    --- PASS: TestConformance/MeshBasic (1.20s)", true),
            ("        --- PASS: TestConformance/MeshBasic/Simple_request (1.00s)", false),
            ("    --- FAIL: TestConformance/MeshPorts (2.00s)", true),
            ("    --- SKIP: TestConformance/GatewayInfrastructure (0.00s)", false),
            ("    conformance.go:1: --- nothing", false),
        ];
        for (line, told) in lines {
            assert_eq!(tally.take(line), told, "{line}");
        }
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 1 skipped; failed: MeshPorts");
    }
}
