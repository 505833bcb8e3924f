//! Why a call failed, in the form that the CNI specification gives it. Made by every module, printed by `main`.

use serde_json::json;

/// The specification's codes; from 100 on a plugin's own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Code {
    /// A version that we do not speak.
    Version = 1,
    /// The environment is not what the specification says.
    Environment = 4,
    /// Reading failed.
    Io = 5,
    /// What was read is not JSON of the right form.
    Decode = 6,
    /// The configuration cannot be right.
    Config = 7,
    /// Another try may succeed.
    TryAgain = 11,
    /// The pod cannot be in the mesh, though it is to be.
    Refused = 100,
}

/// A failure for the runtime, which shows it to people as an event of the pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// What kind it is.
    pub code: Code,
    /// What failed and what to do.
    pub message: String,
}

impl Refusal {
    /// A failure.
    pub fn new(code: Code, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }

    /// As printed.
    pub fn json(&self, version: &str) -> String {
        json!({ "cniVersion": version, "code": self.code as u32, "msg": format!("undermesh: {}", self.message) })
            .to_string()
    }
}
