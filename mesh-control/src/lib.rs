//! The control plane as a library: the binary and the tests start it from here.
pub mod diagnosis;
/// Manifests.
pub mod manifest {
    pub mod node;
}
