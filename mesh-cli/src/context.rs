//! What every command knows: how to reach the cluster, where the mesh is, how to answer. Made by `cli` from global options.

use serde::Serialize;

use crate::api::Access;
use crate::output::{Colour, Format, Paint, data};
use crate::stop::Stop;
use crate::template::yaml;

/// Options that hold for all verbs.
#[derive(Clone, Debug)]
pub struct Context {
    /// How to reach the cluster.
    pub access: Access,
    /// Namespace of the mesh.
    pub namespace: String,
    /// The namespace that was named, if any: of what is not the mesh's own, it is whose.
    pub chosen: Option<String>,
    /// How the answer looks.
    pub format: Format,
    /// When colour is used.
    pub colour: Colour,
}

impl Context {
    /// Nobody reads along.
    pub fn is_for_a_program(&self) -> bool {
        self.format != Format::Text
    }

    /// For standard output.
    pub fn paint(&self) -> Paint {
        Paint::of(self.colour)
    }

    /// An answer for a program.
    pub fn print(&self, answer: &impl Serialize) -> Result<(), Stop> {
        let value = serde_json::to_value(answer).map_err(Stop::failed)?;
        let text = match self.format {
            Format::Yaml => yaml::write(&value),
            Format::Text | Format::Json => format!("{value:#}\n"),
        };
        data(&text).map_err(Stop::failed)
    }
}
