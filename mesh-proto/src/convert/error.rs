//! Why a resource was refused; the text goes into the NACK.

use mesh_core::policy::Scope;

/// What is wrong with a resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// Not a protobuf message of this type.
    #[error("cannot be decoded: {0}")]
    Decode(String),
    /// The message has fields that this version does not know and must not ignore.
    #[error("has fields that are not understood")]
    UnknownFields,
    /// A field is required.
    #[error("{field} is missing")]
    Missing {
        /// Which field.
        field: &'static str,
    },
    /// A field's value is not allowed.
    #[error("{field}: {problem}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl ConvertError {
    pub(super) fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Invalid { field, problem: problem.into() }
    }

    pub(super) fn decode(error: prost::DecodeError) -> Self {
        Self::Decode(error.to_string())
    }
}

/// A policy that cannot be read, with what could be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{source}")]
pub struct PolicyError {
    /// What it would have applied to, if that could be read.
    pub scope: Option<Scope>,
    /// What is wrong.
    pub source: ConvertError,
}
