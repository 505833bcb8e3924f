//! The bpf(2) calls that aya 0.14 lacks or wraps too tightly: links that are created, updated and adopted by pin, and tables that
//! are read and written through a shared reference. Called by the other files of this module only.

use std::{
    ffi::CString,
    io,
    marker::PhantomData,
    mem::{MaybeUninit, size_of},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const MAP_DELETE: libc::c_long = 3;
const MAP_NEXT_KEY: libc::c_long = 4;
const MAP_CREATE: libc::c_long = 0;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const PROG_BY_ID: libc::c_long = 13;
const OBJ_INFO: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

/// Update whether or not the key exists.
pub const ANY: u64 = 0;
/// Insert only.
pub const NOEXIST: u64 = 1;
/// Replace only.
pub const EXIST: u64 = 2;

/// What the kernel says about a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkInfo {
    /// Program that the link runs.
    pub program: u32,
    /// Cgroup id, or inode of the network namespace; 0 once it is detached.
    pub target: u64,
    /// Number of the hook.
    pub attach_type: u32,
}

/// What the kernel says about a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapInfo {
    /// Number of its type.
    pub kind: u32,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// Entries.
    pub max: u32,
}

/// Attaches a program to a cgroup or a network namespace.
pub fn link_create(program: BorrowedFd<'_>, target: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr = [program.as_raw_fd() as u32, target.as_raw_fd() as u32, attach_type, 0, 0, 0, 0, 0];
    fd(call(LINK_CREATE, &mut attr)?)
}

/// Replaces the program of a link; there is no moment without one.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [link.as_raw_fd() as u32, program.as_raw_fd() as u32, 0, 0];
    call(LINK_UPDATE, &mut attr).map(drop)
}

/// Ends a link now. Removing its last pin would end it too, but some time later.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [link.as_raw_fd() as u32];
    call(LINK_DETACH, &mut attr).map(drop)
}

/// Asks about a link.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // type, id, program, padding, then by type: cgroup id (u64) and attach type, or netns inode (u32) and attach type.
    const CGROUP: u32 = 3;
    const NETNS: u32 = 5;
    let info: [u32; 32] = object_info(link)?;
    let (target, attach_type) = match info[0] {
        CGROUP => (u64::from(info[4]) | u64::from(info[5]) << 32, info[6]),
        NETNS => (u64::from(info[4]), info[5]),
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a link of another kind")),
    };
    Ok(LinkInfo { program: info[2], target, attach_type })
}

/// Asks about a map.
pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let info: [u32; 32] = object_info(map)?;
    Ok(MapInfo { kind: info[0], key: info[2], value: info[3], max: info[4] })
}

/// The id of a program.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let info: [u32; 64] = object_info(program)?;
    Ok(info[1])
}

/// The name of a program.
pub fn program_name(program: BorrowedFd<'_>) -> io::Result<String> {
    let info: [u32; 64] = object_info(program)?;
    let bytes: Vec<u8> =
        info[16..20].iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A loaded program, by its id.
pub fn open_program(id: u32) -> io::Result<OwnedFd> {
    fd(call(PROG_BY_ID, &mut [id, 0])?)
}

/// Ids of the programs that run in a hook of a cgroup, those of its ancestors included, or of a network namespace.
pub fn programs_in_effect(place: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    const EFFECTIVE: u64 = 1;
    const SK_LOOKUP: u32 = 36;
    // Of a cgroup's hook the kernel runs at most 64 per level.
    let mut ids = [0u32; 256];
    let flags = if attach_type == SK_LOOKUP { 0 } else { EFFECTIVE };
    let mut attr = [
        place.as_raw_fd() as u32 as u64 | u64::from(attach_type) << 32,
        flags,
        ids.as_mut_ptr() as u64,
        ids.len() as u64,
    ];
    match call(PROG_QUERY, &mut attr) {
        // More than there is room for: these will do.
        Err(error) if error.raw_os_error() != Some(libc::ENOSPC) => return Err(error),
        _ => {}
    }
    Ok(ids[..(attr[3] as u32 as usize).min(ids.len())].to_vec())
}

/// Loads a program that does nothing, or calls one helper with its context and 0 as arguments, to see whether the kernel takes it.
pub fn load_probe(kind: u32, hook: u32, helper: Option<i32>) -> io::Result<OwnedFd> {
    // Instructions: code, registers and offset, immediate.
    let instruction = |code: u8, immediate: i32| u64::from(code) | u64::from(immediate as u32) << 32;
    const CALL: u8 = 0x85;
    const LOAD_RESULT: u8 = 0xb7;
    const EXIT: u8 = 0x95;
    /// r1 = immediate, instead of the context.
    const LOAD_ARGUMENT: u64 = 0x01b7;
    const SET_RETVAL: i32 = 187;
    let mut program = Vec::new();
    if helper == Some(SET_RETVAL) {
        program.push(LOAD_ARGUMENT);
    }
    program.extend(helper.map(|number| instruction(CALL, number)));
    program.extend([instruction(LOAD_RESULT, 1), instruction(EXIT, 0)]);
    let mut attr = [0u64; 10];
    attr[0] = u64::from(kind) | (program.len() as u64) << 32;
    attr[1] = program.as_ptr() as u64;
    attr[2] = c"GPL v2".as_ptr() as u64;
    // Byte 68 of the attribute; no log, no name.
    attr[8] = u64::from(hook) << 32;
    fd(call(PROG_LOAD, &mut attr)?)
}

/// Makes a map that nobody pins.
pub fn create_map(kind: u32, key: u32, value: u32, max: u32) -> io::Result<OwnedFd> {
    fd(call(MAP_CREATE, &mut [kind, key, value, max, 0, 0])?)
}

/// Pins an object at a path of a bpffs.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = [path.as_ptr() as u64, object.as_raw_fd() as u32 as u64];
    call(OBJ_PIN, &mut attr).map(drop)
}

/// Opens a pinned object of any kind.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = [path.as_ptr() as u64, 0];
    fd(call(OBJ_GET, &mut attr)?)
}

/// A map of fixed rows, usable from several threads at once: each call is one system call.
#[derive(Debug)]
pub struct Table<K, V> {
    map: OwnedFd,
    rows: PhantomData<fn(K) -> V>,
}

impl<K: aya::Pod, V: aya::Pod> Table<K, V> {
    /// Takes over a map, after checking that its rows have the size of ours.
    pub fn new(map: OwnedFd) -> io::Result<Self> {
        let info = map_info(map.as_fd())?;
        if info.key as usize != size_of::<K>() || info.value as usize != size_of::<V>() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "rows of another size"));
        }
        Ok(Self { map, rows: PhantomData })
    }

    /// The map itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::zeroed();
        let found = element(MAP_LOOKUP, self.map.as_fd(), std::ptr::from_ref(key).cast(), value.as_mut_ptr().cast(), 0);
        // SAFETY: `V: Pod`, so zeroed bytes are a value, as is what the kernel wrote.
        absent(found).map(|found| found.then(|| unsafe { value.assume_init() }))
    }

    /// Writes a value.
    pub fn set(&self, key: &K, value: &V, flags: u64) -> io::Result<()> {
        let value = std::ptr::from_ref(value).cast_mut().cast();
        element(MAP_UPDATE, self.map.as_fd(), std::ptr::from_ref(key).cast(), value, flags)
    }

    /// Deletes a key; false if it was not there.
    pub fn delete(&self, key: &K) -> io::Result<bool> {
        absent(element(MAP_DELETE, self.map.as_fd(), std::ptr::from_ref(key).cast(), std::ptr::null_mut(), 0))
    }

    /// All keys, as good as one gets them while others change the map.
    pub fn keys(&self) -> io::Result<Vec<K>> {
        let limit = map_info(self.map.as_fd())?.max as usize;
        let mut keys: Vec<K> = Vec::new();
        while keys.len() <= limit {
            let mut next = MaybeUninit::<K>::zeroed();
            let previous = keys.last().map_or(std::ptr::null(), |key| std::ptr::from_ref(key).cast());
            if !absent(element(MAP_NEXT_KEY, self.map.as_fd(), previous, next.as_mut_ptr().cast(), 0))? {
                break;
            }
            // SAFETY: `K: Pod`, and the kernel wrote a key.
            keys.push(unsafe { next.assume_init() });
        }
        Ok(keys)
    }
}

/// Reads all CPUs' values of one entry of a per-CPU array of u64.
pub fn per_cpu(map: BorrowedFd<'_>, index: u32, cpus: usize) -> io::Result<u64> {
    let mut values = vec![0u64; cpus];
    element(MAP_LOOKUP, map, std::ptr::from_ref(&index).cast(), values.as_mut_ptr().cast(), 0)?;
    Ok(values.iter().sum())
}

fn element(
    command: libc::c_long,
    map: BorrowedFd<'_>,
    key: *const libc::c_void,
    value: *mut libc::c_void,
    flags: u64,
) -> io::Result<()> {
    let mut attr = [map.as_raw_fd() as u32 as u64, key as u64, value as u64, flags];
    call(command, &mut attr).map(drop)
}

fn absent(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn object_info<const N: usize>(object: BorrowedFd<'_>) -> io::Result<[u32; N]> {
    let mut info = [0u32; N];
    let length = size_of::<[u32; N]>() as u64;
    let mut attr = [object.as_raw_fd() as u32 as u64 | length << 32, info.as_mut_ptr() as u64];
    call(OBJ_INFO, &mut attr)?;
    Ok(info)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn fd(number: libc::c_long) -> io::Result<OwnedFd> {
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number as i32) })
}

fn call<T, const N: usize>(command: libc::c_long, attr: &mut [T; N]) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is as long as we say; pointers in it are valid for the call (callers hold what they point to).
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of::<[T; N]>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
