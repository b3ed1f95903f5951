//! A test that cannot run here says so in a form that `.ci/run` counts.

use std::io::Write;

/// Proof that the reason was printed.
#[derive(Debug)]
#[must_use = "return from the test"]
pub struct Skipped(());

impl Skipped {
    /// Prints `SKIPPED name: reason`, past the capture of the test harness, `name` being that of the running test.
    ///
    /// Only for what the kernel or the configuration cannot do. A program that `.ci/setup.sh` installs and that is missing
    /// is a failure: see [`crate::locate::program`].
    pub fn because(reason: &str) -> Self {
        let thread = std::thread::current();
        let line = format!("SKIPPED {}: {reason}\n", thread.name().unwrap_or("unnamed"));
        std::io::stderr().write_all(line.as_bytes()).expect("standard error is writable");
        Self(())
    }
}
