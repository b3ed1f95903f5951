//! The sandbox from inside: what is forbidden kills, what is out of sight is not there, what is needed works.
//!
//! A process can enter the sandbox once and with one thread, so every case is a process of its own: this program
//! with the name of the case.
#![expect(unsafe_code, reason = "system calls that no safe wrapper would make")]

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt, parent_id};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Output};
use std::{env, fs, thread};

use launcher::sandbox::{Inspection, Mode, Sandbox, SandboxError, ThreadRole};

fn main() -> ExitCode {
    if let Some(case) = env::args().skip_while(|word| word != CASE).nth(1) {
        inside(&case);
        return ExitCode::SUCCESS;
    }
    if env::args().any(|word| word == "--list") {
        return ExitCode::SUCCESS;
    }
    if !Command::new("unshare").args(["-Urm", "true"]).status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED sandbox: no user and mount namespaces here");
        return ExitCode::SUCCESS;
    }
    forbidden_calls_kill();
    roles_are_narrower_than_the_process();
    ends_with("allowed", |status| status.success());
    ends_with("threads", |status| status.success());
    ends_with("files", |status| status.success());
    ends_with("off", |status| status.success());
    // A fault of ours is told and ends in its own way.
    let output = ends_with("panic", |status| status.code() == Some(101));
    assert!(String::from_utf8_lossy(&output.stderr).contains("panicked"), "{output:?}");
    ends_with("panic of a thread", |status| status.signal() == Some(libc::SIGABRT));
    ends_with("abort", |status| status.signal() == Some(libc::SIGABRT));
    what_is_missing_is_told();
    println!("sandbox: ok");
    ExitCode::SUCCESS
}

const CASE: &str = "--case";

/// Everything that no thread may do, with arguments that would be refused otherwise.
const FORBIDDEN: &[(&str, libc::c_long, [libc::c_long; 6])] = &[
    ("execve", libc::SYS_execve, [0; 6]),
    ("execveat", libc::SYS_execveat, [-1, 0, 0, 0, 0, 0]),
    ("ptrace", libc::SYS_ptrace, [libc::PTRACE_ATTACH as _, 1, 0, 0, 0, 0]),
    ("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0, 0, 0, 0]),
    ("process_vm_writev", libc::SYS_process_vm_writev, [1, 0, 0, 0, 0, 0]),
    ("kill", libc::SYS_kill, [1, 0, 0, 0, 0, 0]),
    ("tkill", libc::SYS_tkill, [1, 0, 0, 0, 0, 0]),
    ("tgkill of another", libc::SYS_tgkill, [1, 1, libc::SIGABRT as _, 0, 0, 0]),
    ("pidfd_open", libc::SYS_pidfd_open, [1, 0, 0, 0, 0, 0]),
    ("pidfd_getfd", libc::SYS_pidfd_getfd, [-1, 0, 0, 0, 0, 0]),
    ("pidfd_send_signal", libc::SYS_pidfd_send_signal, [-1, 0, 0, 0, 0, 0]),
    ("mount", libc::SYS_mount, [0; 6]),
    ("umount2", libc::SYS_umount2, [0; 6]),
    ("pivot_root", libc::SYS_pivot_root, [0; 6]),
    ("chroot", libc::SYS_chroot, [0; 6]),
    ("open_tree", libc::SYS_open_tree, [-1, 0, 0, 0, 0, 0]),
    ("move_mount", libc::SYS_move_mount, [-1, 0, -1, 0, 0, 0]),
    ("fsopen", libc::SYS_fsopen, [0; 6]),
    ("mount_setattr", libc::SYS_mount_setattr, [-1, 0, 0, 0, 0, 0]),
    ("setns", libc::SYS_setns, [-1, 0, 0, 0, 0, 0]),
    ("unshare", libc::SYS_unshare, [0; 6]),
    ("a new process", libc::SYS_clone, [libc::SIGCHLD as _, 0, 0, 0, 0, 0]),
    ("a thread in a namespace", libc::SYS_clone, [(THREAD | libc::CLONE_NEWUSER) as _, 0, 0, 0, 0, 0]),
    ("bpf", libc::SYS_bpf, [-1, 0, 0, 0, 0, 0]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [0; 6]),
    ("userfaultfd", libc::SYS_userfaultfd, [-1, 0, 0, 0, 0, 0]),
    ("perf_event_open", libc::SYS_perf_event_open, [0, 0, 0, -1, -1, 0]),
    ("keyctl", libc::SYS_keyctl, [-1, 0, 0, 0, 0, 0]),
    ("init_module", libc::SYS_init_module, [0; 6]),
    ("kexec_load", libc::SYS_kexec_load, [0, 0, 0, -1, 0, 0]),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, [-1, 0, 0, 0, 0, 0]),
    ("setuid", libc::SYS_setuid, [-1, 0, 0, 0, 0, 0]),
    ("capset", libc::SYS_capset, [0; 6]),
    ("PR_SET_DUMPABLE", libc::SYS_prctl, [libc::PR_SET_DUMPABLE as _, 7, 0, 0, 0, 0]),
    ("open for writing", libc::SYS_openat, [-1, 0, libc::O_WRONLY as _, 0, 0, 0]),
    ("open for reading and writing", libc::SYS_openat, [-1, 0, libc::O_RDWR as _, 0, 0, 0]),
    ("create", libc::SYS_openat, [-1, 0, libc::O_CREAT as _, 0, 0, 0]),
    ("a file without a name", libc::SYS_openat, [-1, 0, libc::O_TMPFILE as _, 0, 0, 0]),
    ("unlinkat", libc::SYS_unlinkat, [-1, 0, 0, 0, 0, 0]),
    ("renameat2", libc::SYS_renameat2, [-1, 0, -1, 0, 0, 0]),
    ("mkdirat", libc::SYS_mkdirat, [-1, 0, 0, 0, 0, 0]),
    ("mknodat", libc::SYS_mknodat, [-1, 0, 0, 0, 0, 0]),
    ("symlinkat", libc::SYS_symlinkat, [0, -1, 0, 0, 0, 0]),
    ("fchmodat", libc::SYS_fchmodat, [-1, 0, 0, 0, 0, 0]),
    ("memory to execute", libc::SYS_mmap, [0, 4096, libc::PROT_EXEC as _, ANONYMOUS, -1, 0]),
    ("memory made executable", libc::SYS_mprotect, [0, 4096, libc::PROT_EXEC as _, 0, 0, 0]),
    ("memfd_create", libc::SYS_memfd_create, [0; 6]),
    ("a raw socket", libc::SYS_socket, [libc::AF_INET as _, libc::SOCK_RAW as _, 0, 0, 0, 0]),
    ("a packet socket", libc::SYS_socket, [libc::AF_PACKET as _, libc::SOCK_DGRAM as _, 0, 0, 0, 0]),
    ("a vsock", libc::SYS_socket, [libc::AF_VSOCK as _, libc::SOCK_STREAM as _, 0, 0, 0, 0]),
    ("a route socket", libc::SYS_socket, [libc::AF_NETLINK as _, libc::SOCK_RAW as _, 0, 0, 0, 0]),
    (
        "a pair of datagram sockets",
        libc::SYS_socketpair,
        [libc::AF_UNIX as _, libc::SOCK_DGRAM as _, 0, 0, 0, 0],
    ),
    ("input for the terminal", libc::SYS_ioctl, [-1, libc::TIOCSTI as _, 0, 0, 0, 0]),
    ("an owner of signals", libc::SYS_fcntl, [-1, libc::F_SETOWN as _, 0, 0, 0, 0]),
    ("no such call", 100_000, [0; 6]),
];

/// What a role may not do though the process may.
const NOT_BY_ROLE: &[(&str, ThreadRole, libc::c_long)] = &[
    ("driver listens", ThreadRole::Driver, libc::SYS_listen),
    ("driver accepts", ThreadRole::Driver, libc::SYS_accept4),
    ("driver splices", ThreadRole::Driver, libc::SYS_splice),
    ("driver starts a thread", ThreadRole::Driver, libc::SYS_clone),
    ("forwards watch files", ThreadRole::Forwards, libc::SYS_inotify_add_watch),
    ("forwards set a filter", ThreadRole::Forwards, libc::SYS_seccomp),
    ("api opens a socket", ThreadRole::Api, libc::SYS_socket),
    ("api connects", ThreadRole::Api, libc::SYS_connect),
    ("api binds", ThreadRole::Api, libc::SYS_bind),
];

const THREAD: libc::c_int = libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND;
const ANONYMOUS: libc::c_long = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as libc::c_long;

fn forbidden_calls_kill() {
    for (name, ..) in FORBIDDEN {
        ends_with(name, is_filtered);
    }
}

fn roles_are_narrower_than_the_process() {
    for (name, ..) in NOT_BY_ROLE {
        ends_with(name, is_filtered);
    }
}

fn is_filtered(status: ExitStatus) -> bool {
    status.signal() == Some(libc::SIGSYS)
}

/// Nobody may make mount namespaces here: the rest of the sandbox holds, or all of it is refused.
fn what_is_missing_is_told() {
    let limited = |case: &str| {
        let program = env::current_exe().expect("/proc is mounted");
        let script = format!(
            "echo 0 > /proc/sys/user/max_mnt_namespaces && exec '{}' {CASE} {case}",
            program.display()
        );
        Command::new("unshare").args(["-Ur", "sh", "-c", &script]).output().expect("unshare runs")
    };
    for case in ["rootless auto", "rootless on"] {
        let output = limited(&format!("'{case}'"));
        assert!(output.status.success(), "{case}: {output:?}");
    }
}

#[track_caller]
fn ends_with(case: &str, expected: impl Fn(ExitStatus) -> bool) -> Output {
    let program = env::current_exe().expect("/proc is mounted");
    let output = Command::new(program).args([CASE, case]).env("RUST_BACKTRACE", "1").output();
    let output = output.expect("this program runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(expected(output.status), "{case}: {}\n{text}", output.status);
    output
}

/// One case, in its process.
fn inside(case: &str) {
    if let Some((_, call, arguments)) = FORBIDDEN.iter().find(|(name, ..)| *name == case) {
        everything().enter().expect("the sandbox of this machine");
        system_call(*call, *arguments);
        return;
    }
    if let Some((_, role, call)) = NOT_BY_ROLE.iter().find(|(name, ..)| *name == case) {
        let confinement = everything().enter().expect("the sandbox of this machine");
        confinement.confine(*role).expect("a second filter");
        system_call(*call, [0; 6]);
        return;
    }
    match case {
        "allowed" => allowed(),
        "threads" => threads(),
        "files" => files(),
        "off" => {
            let confinement = Sandbox::new(Mode::Off).enter().expect("nothing to fail");
            confinement.confine(ThreadRole::Driver).expect("nothing to do");
            assert!(fs::exists("/proc/self/mem").unwrap_or(false));
        }
        "panic" => {
            confine(ThreadRole::Driver);
            panic!("as it should");
        }
        "panic of a thread" => {
            let confinement = everything().enter().expect("a sandbox");
            let thread = confinement.spawn("api", ThreadRole::Api, || panic!("as it should"));
            let _ = thread.expect("a thread").join();
        }
        "abort" => {
            confine(ThreadRole::Driver);
            std::process::abort();
        }
        "rootless auto" => {
            let confinement = Sandbox::new(Mode::Auto).enter().expect("what is missing is no error");
            assert!(matches!(confinement.missing[..], [SandboxError::Root(_), ..]), "{confinement:?}");
            assert!(confinement.seccomp);
            if confinement.landlock.is_some() {
                let error = fs::File::open("/proc/self/status").expect_err("Landlock is on");
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            }
        }
        "rootless on" => {
            assert!(matches!(Sandbox::new(Mode::On).enter(), Err(SandboxError::Root(_))));
        }
        other => panic!("no case {other}"),
    }
}

/// Without Landlock where the kernel has none: no other test needs it.
fn everything() -> Sandbox {
    Sandbox::new(Mode::Auto)
}

fn confine(role: ThreadRole) {
    everything()
        .enter()
        .and_then(|confinement| confinement.confine(role))
        .expect("the sandbox of this machine");
}

fn system_call(call: libc::c_long, [a, b, c, d, e, f]: [libc::c_long; 6]) -> libc::c_long {
    // SAFETY: the arguments are null or refused by the kernel, where the filter would let them pass; those that
    // are valid make a mapping, a socket or a process that is told to be killed by the filter.
    unsafe { libc::syscall(call, a, b, c, d, e, f) }
}

/// What the threads of an engine do.
fn allowed() {
    let resolv_conf = fs::read("/etc/resolv.conf").ok();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    confine(ThreadRole::Driver);
    assert_eq!(fs::read("/etc/resolv.conf").ok(), resolv_conf);
    assert_eq!(nix::net::if_::if_nametoindex("lo"), Ok(1));
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
    client.set_nodelay(true).expect("an option");
    let (one, two) = (UdpSocket::bind("127.0.0.1:0"), UdpSocket::bind("127.0.0.1:0"));
    let (one, two) = (one.expect("a socket"), two.expect("a socket"));
    one.send_to(b"x", two.local_addr().expect("bound")).expect("sent");
    let mut bytes = [0; 8];
    assert_eq!(two.recv(&mut bytes).expect("received"), 1);
    // More than one arena's worth of memory, given back.
    drop(vec![1u8; 64 << 20]);
    assert_eq!(
        UnixStream::connect("/run/socket").map_err(|error| error.raw_os_error()).err(),
        Some(Some(libc::ENOSYS))
    );
}

/// Threads start after the filter is on, each with its own; forwards accept and splice.
fn threads() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("bound");
    let confinement = everything().enter().expect("the sandbox of this machine");
    thread::scope(|scope| {
        let forwards = thread::Builder::new().name("forwards".to_owned()).spawn_scoped(scope, || {
            confinement.confine(ThreadRole::Forwards).expect("a filter");
            let (mut accepted, _) = listener.accept().expect("accepted");
            let mut bytes = Vec::new();
            accepted.read_to_end(&mut bytes).expect("read");
            let (reader, _writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
            nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1 << 16)).expect("its size");
            bytes
        });
        let driver = thread::Builder::new().spawn_scoped(scope, || {
            confinement.confine(ThreadRole::Driver).expect("a filter");
            TcpStream::connect(address).expect("connected").write_all(b"hello").expect("written");
        });
        driver.expect("a thread").join().expect("no panic");
        assert_eq!(forwards.expect("a thread").join().expect("no panic"), b"hello");
        // One that panics does not take the others along.
        let faulty = thread::Builder::new().spawn_scoped(scope, || {
            confinement.confine(ThreadRole::Api).expect("a filter");
            panic!("as it should");
        });
        assert!(faulty.expect("a thread").join().is_err());
    });
}

/// Without the filter of system calls: what is not there cannot be opened, what is there not be written.
fn files() {
    let mut sandbox = everything();
    sandbox.seccomp = false;
    sandbox.inspection = Inspection::Allowed;
    let program = env::current_exe().expect("/proc is mounted");
    let has_runtime_directories = Path::new("/run/user").is_dir();
    let confinement = sandbox.enter().expect("files only");
    assert!(!confinement.seccomp);
    assert!(
        confinement.missing.iter().all(|layer| matches!(layer, SandboxError::Landlock(_))),
        "{confinement:?}"
    );
    for path in ["/proc/self/mem", "/proc/self/status", "/dev/null", "/home", "/usr", "/tmp", "/sys"] {
        assert!(matches!(fs::exists(path), Ok(false)), "{path}");
    }
    assert!(fs::read_dir("/etc").is_ok() && fs::read_dir("/").is_err() == confinement.landlock.is_some());
    if has_runtime_directories {
        assert_eq!(
            fs::read_dir("/run/user").expect("it is there").count(),
            0,
            "credentials of other programs"
        );
    }
    for path in ["/etc/x", "/run/x", "/run/user/x", "/x"] {
        assert!(fs::write(path, "").is_err() && fs::create_dir(path).is_err(), "{path}");
    }
    let error = Command::new(&program).exec();
    assert!(matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EACCES)), "{error}");
    for call in [libc::SYS_mount, libc::SYS_chroot, libc::SYS_sethostname] {
        assert!(system_call(call, [0; 6]) < 0);
    }
    // The namespaces above are out of reach, and with Landlock of 6.12 so are the processes.
    if confinement.landlock.is_some_and(|version| version >= 6) {
        assert!(system_call(libc::SYS_kill, [parent_id().into(), 0, 0, 0, 0, 0]) < 0);
    }
    assert!(Path::new("/etc").is_dir() && nix::unistd::chroot("/etc").is_err());
}
