//! The process: command line in, exit code out. Everything else is in the library.

use std::io::Write;
use std::process::ExitCode;

use mesh_cli::cli::{self, Verb};
use mesh_cli::output::printable;
use mesh_cli::stop::{FAILED, Stop};
use mesh_cli::{check, install, status, tap, uninstall, version, wait, waypoint, webhook};

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err((error, code)) => {
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return end(Err(Stop::new(FAILED, format!("start: {error}")))),
    };
    let context = cli.context();
    let result = runtime.block_on(wait::or_interrupted(cli.verb.changes(), async {
        match &cli.verb {
            Verb::Install(options) => install::run(options, &context).await,
            Verb::Uninstall(options) => uninstall::run(options, &context).await,
            Verb::Check(options) => check::run(options, &context).await,
            Verb::Status(options) => status::run(options, &context).await,
            Verb::Tap(options) => tap::run(options, &context).await,
            Verb::Waypoint(options) => waypoint::run(options, &context).await,
            Verb::Webhook(options) => webhook::run(options, &context).await,
            Verb::Version(options) => version::run(*options, &context).await,
        }
    }));
    // A question that nobody has answered is not waited for.
    runtime.shutdown_background();
    end(result)
}

fn end(result: Result<u8, Stop>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(stop) => {
            let _ = writeln!(std::io::stderr(), "meshctl: {}", printable(&stop.message));
            ExitCode::from(stop.code)
        }
    }
}
