//! Runs each example as it is, against a server in namespaces of the test's own.
//!
//! Without the usual harness: only a process with one thread may make a user namespace.

use std::env;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use examples::{AnyError, become_namespace_root, ip};
use nix::sched::{CloneFlags, unshare};

/// Seconds after which an example is killed.
const PATIENCE: &str = "30";
const URL: &str = "http://192.0.2.1:8080/";
const BODY: &str = "served outside";

struct Case {
    example: &'static str,
    args: &'static [&'static str],
    /// In its standard output and then its standard error, in this order.
    expected: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case { example: "embed_driver", args: &["curl", "-sS", URL], expected: &[BODY] },
    Case {
        example: "embed_own_loop",
        args: &["busybox", "udhcpc", "-i", "tap0", "-f", "-q", "-n", "-s", "/bin/true"],
        expected: &["packets_to_child", "10.0.42.100 obtained"],
    },
    Case {
        example: "embed_own_loop",
        args: &["ping", "-c", "2", "-i", "0.1", "10.0.42.2"],
        expected: &["2 received"],
    },
    Case {
        example: "embed_own_loop",
        args: &["getent", "ahostsv4", "host.internal"],
        expected: &["10.0.42.2"],
    },
    Case {
        example: "embed_own_loop",
        args: &["sh", "-c", "! curl -sS http://192.0.2.1:8080/"],
        expected: &["packets_to_child", "Failed to connect"],
    },
    Case {
        example: "tcpdump",
        args: &["FILE", "curl", "-sS", URL],
        expected: &[BODY, "> 10.0.42.100 > 192.0.2.1 TCP", "SYN", "< 192.0.2.1 > 10.0.42.100 TCP 8080"],
    },
    Case {
        example: "two_children",
        args: &["curl", "-sS", URL],
        expected: &[BODY, BODY, "child 0: 1 TCP", "child 1: 1 TCP"],
    },
    Case {
        example: "static_dns",
        args: &["curl", "-4sS", "http://registry.example:8080/"],
        expected: &[BODY, "queries were answered here"],
    },
    #[cfg(feature = "tun-tap")]
    Case { example: "tun_tap", args: &["curl", "-sS", URL], expected: &[BODY] },
];

fn main() -> Result<ExitCode, AnyError> {
    // Some machines let a user make the user namespace but do nothing in it.
    let namespaces = become_namespace_root().and_then(|()| Ok(unshare(CloneFlags::CLONE_NEWNET)?));
    if let Err(error) = namespaces {
        println!("SKIPPED examples_run: this user may not make user and network namespaces here: {error}");
        return Ok(ExitCode::SUCCESS);
    }
    ip("link set lo up\naddr add 192.0.2.1/24 dev lo\n")?;
    serve(TcpListener::bind("192.0.2.1:8080")?);
    let mut code = ExitCode::SUCCESS;
    for case in CASES {
        let name = format!("{} {}", case.example, case.args.join(" "));
        match missing_program(case) {
            Some(program) => println!("SKIPPED {name}: no {program} on this machine"),
            None => match run(case) {
                Ok(()) => println!("ok {name}"),
                Err(error) => {
                    println!("FAILED {name}: {error}");
                    code = ExitCode::FAILURE;
                }
            },
        }
    }
    Ok(code)
}

/// Answers each connection with [`BODY`].
fn serve(listener: TcpListener) {
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            // A client that gives up fails in its own example.
            let _ = connection.read(&mut [0; 4096]);
            let _ = write!(connection, "HTTP/1.0 200 OK\r\n\r\n{BODY}\n");
        }
    });
}

fn run(case: &Case) -> Result<(), AnyError> {
    let capture = env::temp_dir().join(format!("examples_run.{}.pcap", std::process::id()));
    let args = case.args.iter().map(|&arg| if arg == "FILE" { capture.as_os_str() } else { arg.as_ref() });
    let output = Command::new("timeout").arg(PATIENCE).arg(binary(case.example)?).args(args).output()?;
    // Only one of the examples writes it.
    let _ = std::fs::remove_file(&capture);
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return Err(format!("{}\n{text}", output.status).into());
    }
    let mut rest = text.as_str();
    for expected in case.expected {
        let Some((_, after)) = rest.split_once(expected) else {
            return Err(format!("{expected:?} is not in\n{text}").into());
        };
        rest = after;
    }
    Ok(())
}

/// Beside the directory of this test's own binary.
fn binary(example: &str) -> Result<PathBuf, AnyError> {
    let this = env::current_exe()?;
    let target = this.parent().and_then(Path::parent).ok_or("the test is not in a target directory")?;
    Ok(target.join("examples").join(example))
}

fn missing_program(case: &Case) -> Option<&'static str> {
    let path = env::var_os("PATH")?;
    let wanted = case.args.iter().copied().find(|&arg| arg != "FILE")?;
    env::split_paths(&path).all(|directory| !directory.join(wanted).exists()).then_some(wanted)
}
