//! `demo`: what `cargo xtask demo` runs. Exit code 0 if every fact shown is true, 1 if one is not, 130 after Ctrl-C.
use clap::Parser;
use mesh_tests::demo::{self, Options, Report};
use mesh_tests::harness::spawner;
use nix::sys::signal::{SigSet, Signal};

#[derive(Parser)]
struct Args {
    /// Leave everything running at the end and show commands to try.
    #[arg(long)]
    keep: bool,
    /// Fewer loads.
    #[arg(long)]
    fast: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Blocked in every thread from here on; one thread waits for them.
    signals.thread_block()?;
    std::thread::spawn(move || {
        let name = signals.wait().map_or("signal", Signal::as_str);
        demo::interrupt(&format!("interrupted ({name}): removing the lab ..."));
        spawner::clean_all();
        std::process::exit(130);
    });
    let mut report = Report::new();
    let lab = demo::run(&mut report, Options { fast: args.fast });
    let all_true = report.finish();
    if args.keep
        && let Some((lab, bookinfo)) = &lab
    {
        demo::keep(&report, lab, bookinfo)?;
        loop {
            std::thread::park();
        }
    }
    drop(lab);
    std::process::exit(if all_true { 0 } else { 1 })
}
