//! Programs of others in the hooks that ours use. They may change what ours decided, or decide before them; which it is, and whether that
//! matters, only the operator can tell. So they are found and named, and never detached or replaced.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use super::{config::Foreign, sys};

/// The programs in effect in a hook of a cgroup or a network namespace that are none of `own`.
pub fn find(
    hook: &'static str,
    place: BorrowedFd<'_>,
    attach_type: u32,
    own: &[u32],
) -> io::Result<impl Iterator<Item = Foreign>> {
    let programs = sys::programs_in_effect(place, attach_type)?;
    let others: Vec<u32> = programs.into_iter().filter(|program| !own.contains(program)).collect();
    // One that is gone meanwhile is no concern.
    Ok(others.into_iter().filter_map(move |program| {
        let opened = sys::open_program(program).ok()?;
        Some(Foreign { hook, program, name: sys::program_name(opened.as_fd()).ok()? })
    }))
}
