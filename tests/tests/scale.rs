//! The simulation of a large cluster in a small form, without times: everybody ends with exactly what there is, a change reaches all, churn loses nothing,
//! and neither a restart nor another replica sends anything again.
use anyhow::Result;
use mesh_tests::scale::{Options, Size, run};

#[test]
fn a_cluster_syncs_changes_and_survives_its_control_plane() -> Result<()> {
    let size = Size { agents: 20, services: 200, pods: 2_000 };
    run(Options { size, changes: 3, churn: 50, seconds: 4, program: env!("CARGO_BIN_EXE_scale").into() }).map(drop)
}
