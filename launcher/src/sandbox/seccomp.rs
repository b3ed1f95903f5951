//! Allow-lists of system calls (seccomp(2)). What is on no list kills the process.
//!
//! # Theory of operation
//! The process gets one filter when it enters the sandbox: what any of its threads needs, and how to start a thread.
//! A thread narrows it to [`ThreadRole`]. The kernel remembers which calls are allowed whatever their arguments
//! are and runs no filter for those (since Linux 5.11), so the calls of the packet path have no conditions.
//!
//! Each rule names its caller. "libc" is glibc or musl, whichever the program is built with; "std" is Rust's
//! library. Arguments that are pointers cannot be looked at, so what hides its meaning behind one (clone3) is
//! answered as if the kernel did not have it.

use std::collections::BTreeMap;

use nix::unistd::getpid;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};
use thiserror::Error;

/// Why there is no filter.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FilterError {
    /// The filters are not written for this processor.
    #[error("no filter can be made for this processor")]
    Compile(#[from] BackendError),
    /// The kernel does not take it.
    #[error("seccomp failed")]
    Apply(#[from] seccompiler::Error),
}

/// What a thread of the engine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadRole {
    /// `netstack::Driver`: the TAP and the sockets of flows. It meets the child's packets and the network's.
    Driver,
    /// `forwarder::driver::ForwardDriver`: published ports.
    Forwards,
    /// The control API: clients of a socket that listens already.
    Api,
}

/// Puts the filter of the process on; the process has one thread.
pub(super) fn confine_process() -> Result<(), FilterError> {
    apply_filter(&absent()?)?;
    Ok(apply_filter(&allowed(&[SETUP, COMMON, DRIVER, FORWARDS, API])?)?)
}

/// Narrows the filter of the calling thread.
pub(super) fn confine(role: ThreadRole) -> Result<(), FilterError> {
    let own = match role {
        ThreadRole::Driver => DRIVER,
        ThreadRole::Forwards => FORWARDS,
        ThreadRole::Api => API,
    };
    Ok(apply_filter(&allowed(&[COMMON, own])?)?)
}

/// A call that is allowed: always, or where all conditions of one of the lists hold.
struct Rule {
    call: libc::c_long,
    when: &'static [&'static [Condition]],
}

/// The bits `mask` of the argument are `value`.
struct Condition {
    argument: u8,
    mask: u32,
    value: Value,
}

enum Value {
    Is(u32),
    /// The id of this process.
    OwnPid,
}

const fn always(call: libc::c_long) -> Rule {
    Rule { call, when: &[] }
}

const fn when(call: libc::c_long, when: &'static [&'static [Condition]]) -> Rule {
    Rule { call, when }
}

const fn is(argument: u8, value: i32) -> Condition {
    Condition { argument, mask: u32::MAX, value: Value::Is(value.cast_unsigned()) }
}

const fn masked(argument: u8, mask: i32, value: i32) -> Condition {
    Condition { argument, mask: mask.cast_unsigned(), value: Value::Is(value.cast_unsigned()) }
}

/// Only while threads are started; no role keeps these.
const SETUP: &[Rule] = &[
    // std::thread: threads of this process and nothing else; no new namespaces. libc comes here because clone3 is
    // answered with ENOSYS.
    when(libc::SYS_clone, &[&[masked(0, THREAD | NAMESPACES, THREAD)]]),
    // Confinement::confine.
    when(libc::SYS_seccomp, &[&[is(0, libc::SECCOMP_SET_MODE_FILTER as i32)]]),
    when(libc::SYS_prctl, &[&[is(0, libc::PR_SET_NO_NEW_PRIVS)]]),
];

const THREAD: i32 = libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND;
const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Every thread.
const COMMON: &[Rule] = &[
    // malloc, thread stacks, rings of flows: memory, but none that can be executed.
    always(libc::SYS_brk),
    when(libc::SYS_mmap, &[&[masked(2, libc::PROT_EXEC, 0)]]),
    when(libc::SYS_mprotect, &[&[masked(2, libc::PROT_EXEC, 0)]]),
    always(libc::SYS_munmap),
    always(libc::SYS_mremap),
    always(libc::SYS_madvise),
    // Mutexes, channels and joins of std.
    always(libc::SYS_futex),
    always(libc::SYS_sched_yield),
    // libc at the start and the end of a thread; std names it and gives it a signal stack.
    always(libc::SYS_set_robust_list),
    always(libc::SYS_rseq),
    always(libc::SYS_sigaltstack),
    always(libc::SYS_sched_getaffinity),
    when(libc::SYS_prctl, &[&[is(0, libc::PR_SET_NAME)]]),
    always(libc::SYS_exit),
    always(libc::SYS_exit_group),
    // Signal handlers of std (stack overflow) return; libc blocks signals while it starts or ends threads.
    always(libc::SYS_rt_sigreturn),
    always(libc::SYS_rt_sigprocmask),
    always(libc::SYS_rt_sigaction),
    // poll and futex after SIGSTOP and SIGCONT.
    always(libc::SYS_restart_syscall),
    // abort(3): a fault of ours ends this process and no other.
    always(libc::SYS_getpid),
    always(libc::SYS_gettid),
    when(
        libc::SYS_tgkill,
        &[&[Condition { argument: 0, mask: u32::MAX, value: Value::OwnPid }, is(2, libc::SIGABRT)]],
    ),
    // Clocks, where the vDSO has none; waits with a bound.
    always(libc::SYS_clock_gettime),
    always(libc::SYS_clock_nanosleep),
    // Seeds of hash tables.
    always(libc::SYS_getrandom),
    // The event loops of mio and tokio, and poll of the channel.
    always(libc::SYS_epoll_create1),
    always(libc::SYS_epoll_ctl),
    always(libc::SYS_epoll_pwait),
    always(libc::SYS_ppoll),
    always(libc::SYS_eventfd2),
    // Descriptors: stderr, capture files, inotify, signalfd, wakers, pipes.
    always(libc::SYS_read),
    always(libc::SYS_readv),
    always(libc::SYS_write),
    always(libc::SYS_writev),
    always(libc::SYS_close),
    // Duplicates, non-blocking mode, and the check that std makes before a close when built for debugging. No
    // owner of signals, no leases, no seals.
    when(
        libc::SYS_fcntl,
        &[
            &[is(1, libc::F_GETFD)],
            &[is(1, libc::F_SETFD)],
            &[is(1, libc::F_GETFL)],
            &[is(1, libc::F_SETFL)],
            &[is(1, libc::F_DUPFD_CLOEXEC)],
            &[is(1, libc::F_SETPIPE_SZ)],
            &[is(1, libc::F_GETPIPE_SZ)],
        ],
    ),
    // Bytes that wait; non-blocking mode as std sets it; the index of an interface for a scoped name server. Not
    // the terminal, and not the TAP, which is set up.
    when(
        libc::SYS_ioctl,
        &[&[is(1, FIONREAD)], &[is(1, FIONBIO)], &[is(1, SIOCOUTQ)], &[is(1, SIOCGIFINDEX)]],
    ),
    // std's read of a file; a panic that looks for symbols. Read-only: there is nothing else to open.
    when(libc::SYS_openat, &[&[masked(2, NOT_READ_ONLY, 0)]]),
    always(libc::SYS_fstat),
    always(libc::SYS_newfstatat),
    always(libc::SYS_statx),
    always(libc::SYS_lseek),
    always(libc::SYS_readlinkat),
    always(libc::SYS_getcwd),
    // The same by the names that only x86-64 has.
    #[cfg(target_arch = "x86_64")]
    always(libc::SYS_epoll_wait),
    #[cfg(target_arch = "x86_64")]
    always(libc::SYS_poll),
    #[cfg(target_arch = "x86_64")]
    always(libc::SYS_readlink),
    #[cfg(target_arch = "x86_64")]
    when(libc::SYS_open, &[&[masked(1, NOT_READ_ONLY, 0)]]),
    // What a socket that is open can do, without a name: it says nothing about where it leads.
    always(libc::SYS_recvfrom),
    always(libc::SYS_recvmsg),
    always(libc::SYS_sendto),
    always(libc::SYS_sendmsg),
    always(libc::SYS_shutdown),
    always(libc::SYS_getsockopt),
    always(libc::SYS_setsockopt),
    always(libc::SYS_getsockname),
    always(libc::SYS_getpeername),
];

const FIONREAD: i32 = libc::FIONREAD as i32;
const FIONBIO: i32 = libc::FIONBIO as i32;
const SIOCOUTQ: i32 = libc::TIOCOUTQ as i32;
const SIOCGIFINDEX: i32 = libc::SIOCGIFINDEX as i32;
const NOT_READ_ONLY: i32 =
    libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND | (libc::O_TMPFILE & !libc::O_DIRECTORY);

/// Sockets of IP: streams and datagrams (ping sockets are such), nothing raw. The bits above the type are flags.
const IP_SOCKETS: &[&[Condition]] = &[
    &[is(0, libc::AF_INET), masked(1, SOCKET_TYPE, libc::SOCK_STREAM)],
    &[is(0, libc::AF_INET), masked(1, SOCKET_TYPE, libc::SOCK_DGRAM)],
    &[is(0, libc::AF_INET6), masked(1, SOCKET_TYPE, libc::SOCK_STREAM)],
    &[is(0, libc::AF_INET6), masked(1, SOCKET_TYPE, libc::SOCK_DGRAM)],
];
const SOCKET_TYPE: i32 = 0xf;

/// [`ThreadRole::Driver`].
const DRIVER: &[Rule] = &[
    // driver::host_sockets, driver::resolver: one socket for each flow, bound where an outbound address is set.
    when(libc::SYS_socket, IP_SOCKETS),
    always(libc::SYS_bind),
    always(libc::SYS_connect),
    // driver::datagrams.
    always(libc::SYS_sendmmsg),
    always(libc::SYS_recvmmsg),
    // driver::resolver: watches move with the links.
    always(libc::SYS_inotify_add_watch),
    always(libc::SYS_inotify_rm_watch),
    // engine::SlowClose: a pair that is connected to itself for good.
    when(libc::SYS_socketpair, &[&[is(0, libc::AF_UNIX), masked(1, SOCKET_TYPE, libc::SOCK_SEQPACKET)]]),
];

/// [`ThreadRole::Forwards`].
const FORWARDS: &[Rule] = &[
    // Listeners and connections of published ports, sessions of datagrams.
    when(libc::SYS_socket, IP_SOCKETS),
    // Who holds a port that is in use: sock_diag(7).
    when(libc::SYS_socket, &[&[is(0, libc::AF_NETLINK), is(2, libc::NETLINK_SOCK_DIAG)]]),
    always(libc::SYS_bind),
    always(libc::SYS_listen),
    always(libc::SYS_accept4),
    always(libc::SYS_connect),
    always(libc::SYS_sendmmsg),
    always(libc::SYS_recvmmsg),
    // The relay: bytes that stay in the kernel.
    always(libc::SYS_splice),
    always(libc::SYS_pipe2),
];

/// [`ThreadRole::Api`].
const API: &[Rule] = &[
    // tokio's listener; hyper reads and writes by the calls of every thread.
    always(libc::SYS_accept4),
];

/// Calls that are answered with ENOSYS, because libc then has another way that can be looked at.
const ABSENT: &[Rule] = &[
    // pthread_create: falls back to clone.
    always(libc::SYS_clone3),
    // if_nametoindex: falls back to a socket of IP. Sockets that lead to other programs of this host (D-Bus,
    // containers' engines) are not for the engine.
    when(libc::SYS_socket, &[&[is(0, libc::AF_UNIX)]]),
];

/// Answers [`ABSENT`].
fn absent() -> Result<BpfProgram, BackendError> {
    compile(&[ABSENT], SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS.cast_unsigned()))
}

/// Allows these tables and kills for the rest.
fn allowed(tables: &[&[Rule]]) -> Result<BpfProgram, BackendError> {
    let tables: Vec<&[Rule]> = tables.iter().copied().chain([ABSENT]).collect();
    compile(&tables, SeccompAction::KillProcess, SeccompAction::Allow)
}

fn compile(
    tables: &[&[Rule]],
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    // `None`: always.
    let mut calls: BTreeMap<libc::c_long, Option<Vec<SeccompRule>>> = BTreeMap::new();
    for rule in tables.iter().copied().flatten() {
        let rules = rule.when.iter().map(|list| conditions(list)).collect::<Result<Vec<_>, _>>()?;
        let known = calls.entry(rule.call).or_insert_with(|| Some(Vec::new()));
        match known {
            Some(known) if !rules.is_empty() => known.extend(rules),
            _ => *known = None,
        }
    }
    let calls = calls.into_iter().map(|(call, rules)| (call, rules.unwrap_or_default()));
    let processor = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(calls.collect(), otherwise, matched, processor)?.try_into()
}

fn conditions(list: &[Condition]) -> Result<SeccompRule, BackendError> {
    let conditions = list.iter().map(|condition| {
        let operator = match condition.mask {
            u32::MAX => SeccompCmpOp::Eq,
            mask => SeccompCmpOp::MaskedEq(mask.into()),
        };
        let value = match condition.value {
            Value::Is(value) => value,
            Value::OwnPid => getpid().as_raw().cast_unsigned(),
        };
        SeccompCondition::new(condition.argument, SeccompCmpArgLen::Dword, operator, value.into())
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}
