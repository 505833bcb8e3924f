//! `mesh-waypoint`: the L7 proxy.

use clap::Parser;
use mesh_waypoint::app;
use mesh_waypoint::config::{Config, EXIT_USAGE};

// The data plane allocates per request on several threads; glibc's arenas would grow and never shrink.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    let config = Config::try_parse().unwrap_or_else(|error| {
        let _ = error.print();
        // Help and version go to standard output and are no error.
        std::process::exit(if error.use_stderr() { EXIT_USAGE } else { 0 })
    });
    std::process::exit(app::main(&config));
}
