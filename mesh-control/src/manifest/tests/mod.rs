//! Manifests in, diagnoses and objects out.

mod documents;
mod folders;
mod forms;
mod guesses;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use super::file::{FileRead, apart, read};
use super::folder::{Folder, Seen, read_whole};
use crate::diagnosis::Severity;
use crate::resource::Secured;
use crate::yaml::document::MAX_FILE_BYTES;

/// Severity, line, field and message of each diagnosis.
fn found(text: &str) -> Vec<String> {
    let read = read("a.yaml", text.as_bytes());
    let line = |d: &crate::diagnosis::Diagnosis| d.place.as_ref().map_or(0, |p| p.line);
    read.diagnoses.iter().map(|d| format!("{} {} {}: {}", d.severity, line(d), d.field, d.message)).collect()
}

fn check(text: &str, expected: &[&str]) {
    assert_eq!(found(text), expected, "{text}");
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n{spec}\n"
    )
}
