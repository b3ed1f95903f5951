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
use seccompiler::{apply_filter, sock_filter};
use thiserror::Error;

/// Why there is no filter.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FilterError {
    /// The filters are not written for this processor.
    #[error("no filter can be made for this processor")]
    Processor,
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
    Ok(apply_filter(&program(&[SETUP, COMMON, DRIVER, FORWARDS, API])?)?)
}

/// Narrows the filter of the calling thread.
pub(super) fn confine(role: ThreadRole) -> Result<(), FilterError> {
    let own = match role {
        ThreadRole::Driver => DRIVER,
        ThreadRole::Forwards => FORWARDS,
        ThreadRole::Api => API,
    };
    Ok(apply_filter(&program(&[COMMON, own])?)?)
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
    always(libc::SYS_timerfd_settime),
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
    // A log file that is full begins anew.
    always(libc::SYS_ftruncate),
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
    // The relay runs beside the sender of a bulk stream: this thread, and no other. libc asks the kernel where it has no vDSO for that.
    when(libc::SYS_sched_setaffinity, &[&[is(0, 0)]]),
    always(libc::SYS_getcpu),
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

/// The program for what is allowed by `tables`; what is in none of them kills the process.
///
/// A search by halves for the number of the call: the kernel runs the program for every call there is when it takes
/// it, and for those with conditions ever after, so that a plain list would cost half a millisecond.
fn program(tables: &[&'static [Rule]]) -> Result<Vec<sock_filter>, FilterError> {
    let mut calls: BTreeMap<u32, Vec<(Alternative, u32)>> = BTreeMap::new();
    let allowed = tables.iter().flat_map(|table| table.iter()).map(|rule| (rule, RETURN_ALLOW));
    for (rule, action) in allowed.chain(ABSENT.iter().map(|rule| (rule, RETURN_ENOSYS))) {
        let alternatives = calls.entry(rule.call as u32).or_default();
        match rule.when {
            [] => alternatives.push((&[], action)),
            when => alternatives.extend(when.iter().map(|list| (*list, action))),
        }
    }
    let blocks: Vec<(u32, Vec<sock_filter>)> =
        calls.into_iter().map(|(call, alternatives)| (call, block(&alternatives))).collect();
    let mut program = vec![
        statement(LOAD, ARCH),
        jump(JUMP_EQUAL, PROCESSOR.ok_or(FilterError::Processor)?, 1, 0),
        statement(RETURN, RETURN_KILL),
        statement(LOAD, NUMBER),
    ];
    program.extend(search(&blocks));
    Ok(program)
}

/// Conditions that have to hold together; none always hold.
type Alternative = &'static [Condition];

/// Finds the block of the call whose number is loaded.
fn search(blocks: &[(u32, Vec<sock_filter>)]) -> Vec<sock_filter> {
    match blocks {
        [] => vec![statement(RETURN, RETURN_KILL)],
        [(call, block)] => {
            let mut program = vec![jump(JUMP_EQUAL, *call, 1, 0), statement(RETURN, RETURN_KILL)];
            program.extend_from_slice(block);
            program
        }
        _ => {
            let (lower, upper) = blocks.split_at(blocks.len() / 2);
            let first = upper.first().map_or(0, |(call, _)| *call);
            let lower = search(lower);
            // The distance may be too long for a conditional jump.
            let mut program = vec![jump(JUMP_AT_LEAST, first, 0, 1), statement(JUMP, lower.len() as u32)];
            program.extend(lower);
            program.extend(search(upper));
            program
        }
    }
}

/// Tries the alternatives of one call in their order.
fn block(alternatives: &[(Alternative, u32)]) -> Vec<sock_filter> {
    let mut program = Vec::new();
    for (conditions, action) in alternatives {
        let steps: Vec<[sock_filter; 3]> = conditions.iter().map(Condition::steps).collect();
        let mut left = 3 * steps.len();
        for [load, mask, mut compare] in steps {
            left -= 3;
            // On a mismatch over the rest of this alternative and its action.
            compare.jf = left as u8 + 1;
            program.extend([load, mask, compare]);
        }
        program.push(statement(RETURN, *action));
    }
    program.push(statement(RETURN, RETURN_KILL));
    program
}

impl Condition {
    fn steps(&self) -> [sock_filter; 3] {
        let value = match self.value {
            Value::Is(value) => value,
            Value::OwnPid => getpid().as_raw().cast_unsigned(),
        };
        // All arguments that are looked at are of 32 bits for the kernel.
        let low_half = ARGUMENTS + 8 * u32::from(self.argument);
        [statement(LOAD, low_half), statement(AND, self.mask), jump(JUMP_EQUAL, value, 0, 0)]
    }
}

const fn statement(code: u32, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

const fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const JUMP_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const JUMP_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

const RETURN_ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const RETURN_KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const RETURN_ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();

/// Offsets in `struct seccomp_data`; of an argument the low half comes first.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `AUDIT_ARCH_…` of linux/audit.h: the ELF machine, 64 bits, little endian.
const PROCESSOR: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(62 | 0xc000_0000)
} else if cfg!(target_arch = "aarch64") {
    Some(183 | 0xc000_0000)
} else {
    None
};

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with a program (Documentation/networking/filter.rst).
    fn run(program: &[sock_filter], call: libc::c_long, arguments: &[(usize, u32)]) -> (u32, usize) {
        let mut data = [0u32; 16];
        data[NUMBER as usize / 4] = call as u32;
        data[ARCH as usize / 4] = PROCESSOR.unwrap();
        for (argument, value) in arguments {
            data[(ARGUMENTS as usize + 8 * argument) / 4] = *value;
        }
        let (mut at, mut accumulator) = (0, 0);
        for steps in 1.. {
            let sock_filter { code, jt, jf, k } = program[at];
            let branch = |taken| usize::from(if taken { jt } else { jf });
            at += 1;
            match u32::from(code) {
                LOAD => accumulator = data[k as usize / 4],
                AND => accumulator &= k,
                JUMP => at += k as usize,
                JUMP_EQUAL => at += branch(accumulator == k),
                JUMP_AT_LEAST => at += branch(accumulator >= k),
                RETURN => return (k, steps),
                other => panic!("instruction {other:#x}"),
            }
        }
        unreachable!()
    }

    fn roles() -> Vec<(Vec<sock_filter>, Vec<&'static [Rule]>)> {
        let process: Vec<&[Rule]> = vec![SETUP, COMMON, DRIVER, FORWARDS, API];
        let roles = [DRIVER, FORWARDS, API].map(|own| vec![COMMON, own]);
        let all = roles.into_iter().chain([process]);
        all.map(|tables| (program(&tables).unwrap(), tables)).collect()
    }

    #[test]
    fn what_is_on_the_lists_is_allowed_and_nothing_else() {
        for (program, tables) in roles() {
            let rules = || tables.iter().flat_map(|table| table.iter());
            for call in -10..1000 {
                let has_rule = rules().chain(ABSENT).any(|rule| rule.call == call);
                let always = rules().any(|rule| rule.call == call && rule.when.is_empty());
                let (action, steps) = run(&program, call, &[]);
                assert!(steps < 60, "{call}: {steps} steps");
                assert!(!always || action == RETURN_ALLOW, "{call}");
                assert!(has_rule || action == RETURN_KILL, "{call}");
                // The numbers of x32 are not ours.
                assert_eq!(run(&program, call | 0x4000_0000, &[]).0, RETURN_KILL);
            }
        }
    }

    #[test]
    fn every_alternative_is_tried_with_all_its_conditions() {
        for (program, tables) in roles() {
            for rule in tables.iter().flat_map(|table| table.iter()) {
                for list in rule.when {
                    let value = |condition: &Condition| match condition.value {
                        Value::Is(value) => value,
                        Value::OwnPid => getpid().as_raw().cast_unsigned(),
                    };
                    let arguments: Vec<(usize, u32)> =
                        list.iter().map(|one| (one.argument.into(), value(one))).collect();
                    assert_eq!(run(&program, rule.call, &arguments).0, RETURN_ALLOW, "{}", rule.call);
                }
            }
        }
    }

    #[test]
    fn conditions_forbid() {
        for (program, _) in roles() {
            let action = |call, arguments: &[(usize, i32)]| {
                let arguments: Vec<(usize, u32)> =
                    arguments.iter().map(|(index, value)| (*index, value.cast_unsigned())).collect();
                run(&program, call, &arguments).0
            };
            let (raw, flags) = (libc::SOCK_RAW, libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
            assert_eq!(action(libc::SYS_socket, &[(0, libc::AF_INET), (1, raw | flags)]), RETURN_KILL);
            assert_eq!(action(libc::SYS_socket, &[(0, libc::AF_UNIX), (1, 1)]), RETURN_ENOSYS);
            assert_eq!(action(libc::SYS_clone3, &[]), RETURN_ENOSYS);
            assert_eq!(action(libc::SYS_mmap, &[(2, libc::PROT_READ | libc::PROT_EXEC)]), RETURN_KILL);
            assert_eq!(action(libc::SYS_mmap, &[(2, libc::PROT_READ | libc::PROT_WRITE)]), RETURN_ALLOW);
            assert_eq!(action(libc::SYS_openat, &[(2, libc::O_CLOEXEC)]), RETURN_ALLOW);
            assert_eq!(action(libc::SYS_openat, &[(2, libc::O_CREAT)]), RETURN_KILL);
            assert_eq!(action(libc::SYS_tgkill, &[(0, 1), (2, libc::SIGABRT)]), RETURN_KILL);
            assert_eq!(action(libc::SYS_ioctl, &[(1, libc::TIOCSTI as i32)]), RETURN_KILL);
        }
    }
}
