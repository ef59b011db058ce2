//! What libbpf-rs has no safe call for: maps and ring buffers that came as descriptors from another process, and the cost of programs.
#![allow(unsafe_code, reason = "calls of libbpf with pointers and plain numbers")]

use std::ffi::{c_int, c_ulong, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr::NonNull;
use std::slice;

/// A map with keys of `KEY` bytes and values of `VALUE` bytes.
#[derive(Debug)]
pub struct Table<const KEY: usize, const VALUE: usize>(OwnedFd);

impl<const KEY: usize, const VALUE: usize> Table<KEY, VALUE> {
    /// # Errors
    /// When it is no map, one of another kind, or one of other sizes.
    pub fn new(map: OwnedFd) -> io::Result<Self> {
        let info = info(map.as_fd())?;
        // In those of other kinds the kernel may have a value for each CPU.
        let kinds = [libbpf_sys::BPF_MAP_TYPE_HASH, libbpf_sys::BPF_MAP_TYPE_ARRAY];
        if !kinds.contains(&info.type_) {
            let found = info.type_;
            return Err(io::Error::other(format!("expected a table, found a map of type {found}")));
        }
        let sizes = (info.key_size as usize, info.value_size as usize);
        if sizes != (KEY, VALUE) {
            let expected = (KEY, VALUE);
            let why = format!(
                "expected a map with keys and values of {expected:?} bytes, found {sizes:?}"
            );
            return Err(io::Error::other(why));
        }
        Ok(Self(map))
    }

    /// Sets `key` to `value`.
    ///
    /// # Errors
    /// When the map has no room for more.
    pub fn set(&self, key: [u8; KEY], value: [u8; VALUE]) -> io::Result<()> {
        let (key, value) = (key.as_ptr().cast(), value.as_ptr().cast());
        // SAFETY: they have as many bytes as the map's keys and values: sizes and kind of the map were looked at.
        check(unsafe { libbpf_sys::bpf_map_update_elem(self.0.as_raw_fd(), key, value, 0) })
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// When it has none.
    pub fn get(&self, key: [u8; KEY]) -> io::Result<[u8; VALUE]> {
        let mut value = [0; VALUE];
        let (key, to) = (key.as_ptr().cast(), value.as_mut_ptr().cast());
        // SAFETY: as in `set`.
        check(unsafe { libbpf_sys::bpf_map_lookup_elem(self.0.as_raw_fd(), key, to) })?;
        Ok(value)
    }

    /// Removes `key`.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove(&self, key: [u8; KEY]) -> io::Result<()> {
        // SAFETY: as in `set`.
        check(unsafe { libbpf_sys::bpf_map_delete_elem(self.0.as_raw_fd(), key.as_ptr().cast()) })
    }

    /// Another descriptor of the map.
    ///
    /// # Errors
    /// When this process has none left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl<const KEY: usize, const VALUE: usize> AsFd for Table<KEY, VALUE> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Longest record that is read, bytes: longer than any that the programs write.
const RECORD_MAX: usize = 128;

type Each<'e> = Box<dyn FnMut(&[u8]) + 'e>;

/// Ring buffers that are read together.
#[derive(Debug)]
pub struct Rings<'e> {
    rings: NonNull<libbpf_sys::ring_buffer>,
    each: NonNull<Each<'e>>,
}

impl<'e> Rings<'e> {
    /// Reads ring buffers, and passes each of their records to `each`.
    ///
    /// # Errors
    /// When one is no ring buffer, or cannot be mapped.
    pub fn open(
        first: BorrowedFd<'_>,
        others: &[BorrowedFd<'_>],
        each: impl FnMut(&[u8]) + 'e,
    ) -> io::Result<Self> {
        let each: Each<'e> = Box::new(each);
        let each = NonNull::from(Box::leak(Box::new(each)));
        let context = each.as_ptr().cast();
        // SAFETY: `pass` gets the context of its type, which lives until `drop`. The descriptor is open.
        let rings = unsafe {
            libbpf_sys::ring_buffer__new(first.as_raw_fd(), Some(pass), context, std::ptr::null())
        };
        let Some(rings) = NonNull::new(rings) else {
            let error = io::Error::last_os_error();
            // SAFETY: it was made above, and nobody has it.
            drop(unsafe { Box::from_raw(each.as_ptr()) });
            return Err(error);
        };
        let new = Self { rings, each };
        for ring in others {
            // SAFETY: as above.
            check(unsafe {
                libbpf_sys::ring_buffer__add(
                    new.rings.as_ptr(),
                    ring.as_raw_fd(),
                    Some(pass),
                    context,
                )
            })?;
        }
        Ok(new)
    }

    /// A descriptor that is readable when one holds records.
    pub fn readable(&self) -> BorrowedFd<'_> {
        // SAFETY: this is their own epoll instance. It stays open until they are freed, and the result borrows them.
        unsafe { BorrowedFd::borrow_raw(libbpf_sys::ring_buffer__epoll_fd(self.rings.as_ptr())) }
    }

    /// Reads all records that are there.
    ///
    /// # Errors
    /// What libbpf answers.
    pub fn consume(&mut self) -> io::Result<()> {
        // SAFETY: they are not freed yet, and nobody else reads them.
        check(unsafe { libbpf_sys::ring_buffer__consume(self.rings.as_ptr()) })
    }
}

impl Drop for Rings<'_> {
    fn drop(&mut self) {
        // SAFETY: both were made by `open`, and are freed once. `pass` is not called any more.
        unsafe {
            libbpf_sys::ring_buffer__free(self.rings.as_ptr());
            drop(Box::from_raw(self.each.as_ptr()));
        }
    }
}

unsafe extern "C" fn pass(each: *mut c_void, record: *mut c_void, len: c_ulong) -> c_int {
    let len = RECORD_MAX.min(len as usize);
    // SAFETY: `each` is what `open` gave, and is used by nobody else while records are read. The record stays while it is passed; what
    // libbpf has mapped goes on behind its ring for as much as a ring again, so also for this many bytes.
    let (each, record) =
        unsafe { (&mut *each.cast::<Each<'_>>(), slice::from_raw_parts(record.cast(), len)) };
    each(record);
    0
}

/// The same map, if it is a ring buffer.
///
/// # Errors
/// When it is something else.
pub fn ring_buffer(map: OwnedFd) -> io::Result<OwnedFd> {
    match info(map.as_fd())?.type_ {
        libbpf_sys::BPF_MAP_TYPE_RINGBUF => Ok(map),
        other => {
            Err(io::Error::other(format!("expected a ring buffer, found a map of type {other}")))
        }
    }
}

/// Whether this is a link of a program.
pub fn is_link(link: BorrowedFd<'_>) -> bool {
    let mut info = libbpf_sys::bpf_link_info::default();
    let mut len = size_of_val(&info) as u32;
    // SAFETY: both point to values of their types, and the second says how long the first is.
    let status = unsafe {
        libbpf_sys::bpf_link_get_info_by_fd(link.as_raw_fd(), &raw mut info, &raw mut len)
    };
    let kinds = [
        libbpf_sys::BPF_LINK_TYPE_TRACING,
        libbpf_sys::BPF_LINK_TYPE_RAW_TRACEPOINT,
        libbpf_sys::BPF_LINK_TYPE_PERF_EVENT,
    ];
    status == 0 && kinds.contains(&info.type_)
}

fn info(map: BorrowedFd<'_>) -> io::Result<libbpf_sys::bpf_map_info> {
    let mut info = libbpf_sys::bpf_map_info::default();
    let mut len = size_of_val(&info) as u32;
    // SAFETY: both point to values of their types, and the second says how long the first is.
    check(unsafe {
        libbpf_sys::bpf_map_get_info_by_fd(map.as_raw_fd(), &raw mut info, &raw mut len)
    })?;
    Ok(info)
}

/// Makes the kernel count the runs and the run time of every program until the result is dropped
/// (`BPF_ENABLE_STATS`).
pub fn count_runs() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) };
    check(fd)?;
    // SAFETY: the descriptor is new, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// libbpf answers an error by its negative number.
fn check(status: c_int) -> io::Result<()> {
    if status < 0 { Err(io::Error::from_raw_os_error(-status)) } else { Ok(()) }
}
