//! `check`: what this machine lacks. Everything is tried for real, in processes that are thrown away.
//!
//! | module | |
//! |---|---|
//! | [`facts`] | what was tried, and how it went |
//! | [`judge`] | what that means: pure |
//! | [`finding`], [`report`] | how bad it is for what, and what root does about it: pure |
//! | `trials` | the trying |

pub mod facts;
pub mod finding;
pub mod judge;
pub mod report;
mod trials;

pub(crate) use self::trials::overlay;

use std::io::{self, Write as _};
use std::process::ExitCode;

use self::finding::Purpose;
use crate::cli::CheckArgs;

/// Tries everything and prints the report; exit status 0 if what is asked for works, else 1.
pub fn run(args: &CheckArgs) -> ExitCode {
    let mut findings = judge::findings(&trials::collect(args));
    findings.retain(|finding| args.purpose.is_none_or(|purpose| finding.group <= purpose));
    let text = if args.json {
        report::json(&findings, args.purpose)
    } else if args.commands {
        report::mending(&findings, args.purpose).iter().map(|command| format!("{command}\n")).collect()
    } else {
        report::plain(&findings, args.purpose)
    };
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that does not want the rest is no failure of the machine.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            log::error!("cannot write to standard output: {error}");
            return ExitCode::FAILURE;
        }
        _ => {}
    }
    match report::lacks(&findings, args.purpose.unwrap_or(Purpose::Launch)).next() {
        Some(_) => ExitCode::FAILURE,
        None => ExitCode::SUCCESS,
    }
}
