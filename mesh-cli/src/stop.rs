//! How a command ends: exit codes and the error that carries one. Every module uses it; `main` turns it into the process's status.

use std::fmt;

/// All is well.
pub const OK: u8 = 0;
/// It was tried and failed.
pub const FAILED: u8 = 1;
/// The command line cannot be understood.
pub const USAGE: u8 = 64;
/// A file or a value cannot be used.
pub const DATA: u8 = 65;
/// The cluster cannot be asked: away, or not for us.
pub const UNAVAILABLE: u8 = 69;
/// `check` found errors.
pub const FINDINGS: u8 = 79;
/// Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// Why a command ends before it is done: what failed, where, and what to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stop {
    /// Of the process.
    pub code: u8,
    /// One line or more.
    pub message: String,
}

impl Stop {
    /// With a code.
    pub fn new(code: u8, message: impl fmt::Display) -> Stop {
        Stop { code, message: message.to_string() }
    }

    /// Something that was tried.
    pub fn failed(message: impl fmt::Display) -> Stop {
        Stop::new(FAILED, message)
    }

    /// What a user gave.
    pub fn data(message: impl fmt::Display) -> Stop {
        Stop::new(DATA, message)
    }

    /// The same in a context.
    #[must_use]
    pub fn during(self, what: impl fmt::Display) -> Stop {
        Stop { message: format!("{what}: {}", self.message), ..self }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Stop {}
