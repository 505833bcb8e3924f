//! The source that reads a folder of manifests: bytes to documents, documents to trees, trees to objects, with diagnoses that name file,
//! line, column and field. Nothing here knows what the objects mean together.

pub mod file;
pub mod folder;
mod guess;
pub mod watch;

#[cfg(test)]
mod tests;
