//! The simulation of a large cluster in a small form, without times: everybody ends with exactly what there is, a change reaches all, churn loses nothing,
//! and neither a restart nor another replica sends anything again.
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]
use anyhow::{Result, ensure};
use mesh_tests::harness::{rounds, soak};
use mesh_tests::scale::{Options, Size, flaps, run};

#[test]
fn a_cluster_syncs_changes_and_survives_its_control_plane() -> Result<()> {
    let size = Size { agents: 20, services: 200, pods: 2_000 };
    run(Options { size, changes: 3, churn: 50, seconds: 4, program: env!("CARGO_BIN_EXE_scale").into() }).map(drop)
}

/// A thousand times, and with a hundred thousand pods, in a soak.
#[test]
fn hardening_F11_a_control_plane_that_flaps_costs_an_agent_little() -> Result<()> {
    let (services, pods) = if soak().is_some() { (5_000, 100_000) } else { (200, 2_000) };
    let size = Size { agents: 2, services, pods };
    let seen = flaps::run(size, rounds(8, 1000), env!("CARGO_BIN_EXE_scale").into())?;
    println!("{seen:?}");
    ensure!(seen.connections > 0, "it never came back: {seen:?}");
    ensure!(seen.again < seen.everything, "more than everything once again: {seen:?}");
    ensure!(seen.cpu < 0.05, "{:.1} % of a CPU", seen.cpu * 100.0);
    Ok(())
}
