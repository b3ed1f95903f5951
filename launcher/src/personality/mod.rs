//! Other programs' command lines, sockets and address plans, mapped onto our engine; and an OCI runtime.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

pub mod getopt;
pub mod oci_runtime;
pub mod pasta;
pub mod slirp4netns;

/// Another program that this binary can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Personality {
    /// slirp4netns.
    Slirp4netns,
    /// pasta of passt.
    Pasta,
    /// crun or runc for a user namespace.
    OciRuntime,
}

impl Personality {
    /// Which one is asked for, by the name of the program or by its first argument; with the arguments that
    /// are left.
    pub fn of(mut words: impl Iterator<Item = OsString>) -> Option<(Self, Vec<OsString>)> {
        let program = words.next()?;
        if let Some(found) = Self::named(Path::new(&program)) {
            return Some((found, words.collect()));
        }
        let found = Self::named(Path::new(&words.next()?))?;
        Some((found, words.collect()))
    }

    /// Runs it.
    pub fn main(self, args: Vec<OsString>) -> ExitCode {
        match self {
            Personality::Slirp4netns => slirp4netns::main(args),
            Personality::Pasta => pasta::main(args),
            Personality::OciRuntime => oci_runtime::main(args),
        }
    }

    fn named(program: &Path) -> Option<Self> {
        match program.file_name()?.to_str()? {
            "slirp4netns" => Some(Personality::Slirp4netns),
            "pasta" | "pasta.avx2" => Some(Personality::Pasta),
            oci_runtime::NAME => Some(Personality::OciRuntime),
            _ => None,
        }
    }
}

/// To stdout. That nobody reads it is no reason to stop.
fn say(text: impl fmt::Display) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.to_string().as_bytes()).and_then(|()| stdout.flush());
}

/// To stderr.
fn complain(text: impl fmt::Display) {
    let _ = io::stderr().write_all(text.to_string().as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Option<(Personality, usize)> {
        Personality::of(words.iter().map(OsString::from)).map(|(found, args)| (found, args.len()))
    }

    #[test]
    fn the_name_or_the_first_argument_chooses() {
        assert_eq!(of(&["/usr/bin/slirp4netns", "-c", "1"]), Some((Personality::Slirp4netns, 2)));
        assert_eq!(of(&["rootless-launch", "pasta", "--version"]), Some((Personality::Pasta, 1)));
        assert_eq!(
            of(&["rootless-launch", "oci-runtime", "crun", "state"]),
            Some((Personality::OciRuntime, 2))
        );
        assert_eq!(of(&["rootless-launch", "--", "pasta"]), None);
        assert_eq!(of(&["rootless-launch"]), None);
    }
}
