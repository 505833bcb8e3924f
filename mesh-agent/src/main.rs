//! `mesh-agent`: the keeper, or with the argument `worker` the agent that it supervises.

use clap::Parser;
use mesh_agent::app;
use mesh_agent::config::{Cli, EXIT_USAGE};

// The data plane allocates per connection on several threads; glibc's arenas would grow and never shrink.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        let _ = error.print();
        // Help and version go to standard output and are no error.
        std::process::exit(if error.use_stderr() { EXIT_USAGE } else { 0 })
    });
    std::process::exit(app::main(&cli));
}
