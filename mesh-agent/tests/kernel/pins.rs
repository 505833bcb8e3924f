//! Looking at pinned objects from outside, as any other process of root can.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// How many keys a pinned map has.
pub fn entries(pin: &std::path::Path) -> usize {
    const NEXT_KEY: libc::c_long = 4;
    let map = open_pin(pin);
    let mut key: [u8; 64];
    let mut next = [0u8; 64];
    let mut previous = std::ptr::null();
    for count in 0.. {
        let mut attr = [map.as_raw_fd() as u64, previous as u64, next.as_mut_ptr() as u64, 0];
        if unsafe { libc::syscall(libc::SYS_bpf, NEXT_KEY, attr.as_mut_ptr(), size_of_val(&attr)) } != 0 {
            assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::ENOENT));
            return count;
        }
        key = next;
        previous = key.as_ptr();
    }
    0
}

/// The value of a key of a pinned map.
pub fn value<const N: usize>(pin: &std::path::Path, key: u64) -> [u8; N] {
    const LOOKUP: libc::c_long = 1;
    let (map, mut value) = (open_pin(pin), [0; N]);
    let mut attr = [map.as_raw_fd() as u64, (&raw const key) as u64, value.as_mut_ptr() as u64, 0];
    let result = unsafe { libc::syscall(libc::SYS_bpf, LOOKUP, attr.as_mut_ptr(), size_of_val(&attr)) };
    assert_eq!(result, 0, "{}: {}", pin.display(), io::Error::last_os_error());
    value
}

/// Writes a key of a pinned map, or, without a value, deletes it.
pub fn overwrite(pin: &std::path::Path, key: u64, value: Option<&[u8]>) {
    const UPDATE: libc::c_long = 2;
    const DELETE: libc::c_long = 3;
    let map = open_pin(pin);
    let pointer = value.map_or(0, |value| value.as_ptr() as u64);
    let mut attr = [map.as_raw_fd() as u64, (&raw const key) as u64, pointer, 0];
    let command = if value.is_some() { UPDATE } else { DELETE };
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(&attr)) };
    assert_eq!(result, 0, "{}: {}", pin.display(), io::Error::last_os_error());
}

/// Opens a pinned object of the kernel.
pub fn open_pin(pin: &std::path::Path) -> OwnedFd {
    const OBJ_GET: libc::c_long = 7;
    let path = std::ffi::CString::new(pin.to_str().unwrap()).unwrap();
    let mut attr = [path.as_ptr() as u64, 0];
    let object = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, attr.as_mut_ptr(), size_of_val(&attr)) };
    assert!(object >= 0, "{}: {}", pin.display(), io::Error::last_os_error());
    unsafe { OwnedFd::from_raw_fd(object as i32) }
}
