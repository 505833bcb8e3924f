//! The process: command line in, exit code out. Everything else is in the library.

use std::io::Write;
use std::process::ExitCode;

use mesh_control::app::App;
use mesh_control::config::{self, Config, EXIT_CONFIG};
use mesh_runtime::signal::Shutdown;

/// What a large configuration leaves free when it changes is given back to the system.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let args = match config::parse(std::env::args_os()) {
        Ok(args) => args,
        Err((error, code)) => {
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let config = match args.check() {
        Ok(config) => config,
        Err(problems) => {
            problems.iter().for_each(complain);
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format_args!("{error:#}"));
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

/// One line on standard error, if anybody reads it.
fn complain(problem: &impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "mesh-control: {problem}");
}

fn run(config: Config) -> anyhow::Result<()> {
    mesh_runtime::logging::init(config.log_format, config.log_filter.clone())?;
    if mesh_runtime::fds::raise_limit().is_ok_and(|limit| limit < 4 * mesh_runtime::fds::RESERVE) {
        tracing::warn!(
            limit = mesh_runtime::fds::limit(),
            "few file descriptors are allowed: few agents can be served"
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.threads)
        .thread_name("control")
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut shutdown = Shutdown::install()?;
        let app = tokio::select! {
            app = App::start(config) => app?,
            signal = shutdown.requested() => {
                tracing::info!(signal, "stopped before it was ready");
                return Ok(());
            }
        };
        let signal = shutdown.requested().await;
        tracing::info!(signal, "stopping");
        app.stop().await;
        Ok(())
    })
}
