//! The pure stack makes no system calls but for memory: a thread that may do nothing else drives a transfer.
//!
//! Clocks are read through the vDSO, which no filter sees; `clippy.toml` bans them in the pure modules.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use netstack::testing::link::{Link, LinkConfig, Random};
use netstack::testing::{ALL_OFFLOADS, Harness, NO_OFFLOADS, config};
use netstack::time::Duration;

#[test]
fn a_transfer_needs_nothing_but_memory() {
    if !is_again() {
        let status = again("a_transfer_needs_nothing_but_memory");
        assert!(status.success(), "a call that is not for memory was made: {status}");
        return;
    }
    let done = std::thread::spawn(|| {
        sys::allow_memory_only();
        for capabilities in [ALL_OFFLOADS, NO_OFFLOADS] {
            for remote in ["198.51.100.7:80", "[2001:db8::7]:80"] {
                transfer(Harness::new(config(), capabilities), remote);
            }
        }
    });
    done.join().expect("the transfer is complete");
}

fn transfer(mut h: Harness, remote: &str) {
    h.link = Link::new(LinkConfig {
        delay: Duration::from_millis(1),
        jitter: Duration::from_millis(1),
        loss_per_mille: 10,
        seed: 3,
    });
    h.host.echo = true;
    let socket = h.child.connect(remote.parse().expect("an address"));
    let data = Random::new(3).bytes(300_000);
    let (mut sent, mut got) = (0, Vec::new());
    h.drive_until(|h| {
        sent += h.child.write(socket, &data[sent..]);
        got.extend(h.child.read(socket));
        got.len() == data.len()
    });
    assert!(got == data);
    h.child.close(socket);
    h.drive_until(|h| h.stack.flows().count() == 0);
}

/// The filter itself is tested: the same thread dies of a call that is not on the list.
#[test]
fn another_call_is_deadly() {
    if !is_again() {
        assert_eq!(again("another_call_is_deadly").signal(), Some(libc::SIGSYS));
        return;
    }
    let socket = std::thread::spawn(|| {
        sys::allow_memory_only();
        std::net::UdpSocket::bind("127.0.0.1:0")
    });
    let _ = socket.join();
}

/// Runs a test of this program in a process of its own, which a denied call ends. With one arena glibc's malloc does not
/// read files of /proc to decide about shrinking others.
fn again(test: &str) -> ExitStatus {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test])
        .env("AGAIN", "1")
        .env("MALLOC_ARENA_MAX", "1")
        .status()
        .expect("this program runs again")
}

fn is_again() -> bool {
    std::env::var_os("AGAIN").is_some()
}

#[expect(unsafe_code, reason = "prctl(2) has no safe wrapper")]
mod sys {
    /// Memory, locks, output, and the end of a thread.
    const ALLOWED: [libc::c_long; 19] = [
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_write,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_sched_yield,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigreturn,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_gettid,
        libc::SYS_getpid,
    ];

    /// Denies this thread every system call that is not in [`ALLOWED`], by the death of the process.
    pub(super) fn allow_memory_only() {
        let count = ALLOWED.len();
        let instruction =
            |code: u32, jt: usize, k: u32| libc::sock_filter { code: code as u16, jt: jt as u8, jf: 0, k };
        // seccomp_data begins with the number of the call. The architecture is not looked at: this is our own code.
        let mut program = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
        for (index, &call) in ALLOWED.iter().enumerate() {
            program.push(instruction(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                count - index,
                call as u32,
            ));
        }
        program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_KILL_PROCESS));
        program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW));
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: the kernel reads the program, which lives until both calls have returned; numbers otherwise.
        let result = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
                | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter)
        };
        assert_eq!(result, 0, "seccomp: {}", std::io::Error::last_os_error());
    }
}
