//! `mesh-waypoint`: the L7 proxy; and `mesh-waypoint tap`, by which one that runs is asked what passes.

use std::ffi::OsString;

use clap::Parser;
use mesh_runtime::tap::client;
use mesh_waypoint::app;
use mesh_waypoint::config::{EXIT_USAGE, TapConfig};

// The data plane allocates per request on several threads; glibc's arenas would grow and never shrink.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // Not a subcommand: then the proxy's own arguments could not be required.
    if arguments.get(1).is_some_and(|word| word == "tap") {
        let config: TapConfig = read(&arguments[1..]);
        std::process::exit(client::main(&config.admin, &config.selector));
    }
    std::process::exit(app::main(&read(&arguments)));
}

fn read<C: Parser>(arguments: &[OsString]) -> C {
    C::try_parse_from(arguments).unwrap_or_else(|error| {
        let _ = error.print();
        // Help and version go to standard output and are no error.
        std::process::exit(if error.use_stderr() { EXIT_USAGE } else { 0 })
    })
}
