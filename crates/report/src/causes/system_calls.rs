//! The names of the system calls in which workers and front ends may wait, by their numbers on this kind of CPU.

/// Pairs of number and name.
macro_rules! numbered {
    ($($name:ident)*) => { &[$((libc::$name, stringify!($name))),*] };
}

const EVERYWHERE: &[(libc::c_long, &str)] = numbered![
    SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_preadv SYS_pwritev SYS_preadv2 SYS_pwritev2
    SYS_recvfrom SYS_recvmsg SYS_recvmmsg SYS_sendto SYS_sendmsg SYS_sendmmsg SYS_connect SYS_accept4 SYS_openat SYS_close
    SYS_epoll_pwait SYS_epoll_pwait2 SYS_ppoll SYS_pselect6 SYS_futex SYS_ioctl SYS_io_uring_enter SYS_io_submit
    SYS_io_getevents SYS_fsync SYS_fdatasync SYS_fallocate SYS_ftruncate SYS_fcntl SYS_flock SYS_splice
    SYS_mmap SYS_munmap SYS_mprotect SYS_madvise SYS_mremap SYS_msync SYS_mlock SYS_mbind SYS_brk
    SYS_nanosleep SYS_clock_nanosleep SYS_rt_sigtimedwait SYS_rt_sigsuspend SYS_wait4 SYS_waitid SYS_ptrace
    SYS_sched_yield SYS_membarrier SYS_bpf SYS_clone SYS_clone3 SYS_execve SYS_exit_group
];

/// Those that newer kinds of CPUs do without.
#[cfg(target_arch = "x86_64")]
const HERE: &[(libc::c_long, &str)] =
    numbered![SYS_open SYS_poll SYS_select SYS_pause SYS_epoll_wait];
#[cfg(not(target_arch = "x86_64"))]
const HERE: &[(libc::c_long, &str)] = &[];

/// The name of a system call, or `system call N`.
#[must_use]
pub fn system_call(number: u32) -> String {
    let mut all = EVERYWHERE.iter().chain(HERE);
    let found = all.find(|(its, _)| *its == libc::c_long::from(number));
    found.map_or_else(
        || format!("system call {number}"),
        |(_, name)| name.trim_start_matches("SYS_").to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_calls_have_names_and_unknown_ones_a_number() {
        let number = |number: libc::c_long| u32::try_from(number).unwrap();
        assert_eq!(system_call(number(libc::SYS_writev)), "writev");
        assert_eq!(system_call(number(libc::SYS_ppoll)), "ppoll");
        assert_eq!(system_call(u32::MAX), "system call 4294967295");
    }
}
