//! Puts the agent together: reads the configuration, becomes keeper or worker, and starts the parts in order.

use mesh_runtime::logging;

use crate::config::{Cli, Config, EXIT_CONFIG, Role};
use crate::keeper::{lock, process};

/// Exit status when another agent holds the instance (EX_UNAVAILABLE).
pub const EXIT_UNAVAILABLE: i32 = 69;

/// Runs the role that the command line asks for; returns the exit status.
pub fn main(cli: &Cli) -> i32 {
    let config = match cli.config() {
        Ok(config) => config,
        Err(problems) => {
            for line in &problems.lines {
                eprintln!("mesh-agent: {line}");
            }
            return problems.status;
        }
    };
    match cli.role {
        None => keeper(&config),
        Some(Role::Worker(_)) => worker(config),
    }
}

fn keeper(config: &Config) -> i32 {
    if let Err(error) = logging::init(config.log_format, config.log_level.clone()) {
        eprintln!("mesh-agent: {error}");
        return EXIT_CONFIG;
    }
    let _lock = match lock::acquire(&config.run_dir) {
        Ok(lock) => lock,
        Err(error) => return refuse(&error),
    };
    if let Err(error) = lock::join_cgroup(&config.agent_cgroup) {
        return refuse(&error);
    }
    let _ = mesh_runtime::fds::raise_limit();
    let grace = config.drain + std::time::Duration::from_secs(5);
    process::run(&process::WorkerCommand::same_program(grace)).unwrap_or_else(|error| refuse(&error))
}

fn worker(_config: Config) -> i32 {
    0
}

/// One line on standard error with the whole chain of causes.
fn refuse(error: &dyn std::error::Error) -> i32 {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(&format!(": {error}"));
        cause = error.source();
    }
    eprintln!("mesh-agent: {line}");
    EXIT_UNAVAILABLE
}
