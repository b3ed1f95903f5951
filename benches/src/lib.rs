//! What the comparisons share: a table of rows and columns that is measured in turn, and bars with pass or fail.
//!
//! Every cell is measured in turn with the others (A B C A B C ..), so that drift of the machine hits all alike; a cell is the median
//! of the runs with the least and the greatest. Everything happens in namespaces of an ordinary user and nothing leaves the machine.

pub mod bars;
pub mod comparison;
pub mod measure;
pub mod report;
pub mod scenarios;
pub mod subject;

use std::process::ExitCode;
use tests::{locate, probe};

/// First thing in `main`: the program is its own probe, and when it was called as that, this is all it does.
///
/// # Panics
/// Without /proc.
#[must_use]
pub fn be_the_probe() -> Option<ExitCode> {
    let me = std::env::current_exe().expect("/proc is mounted");
    locate::use_as_probe(me, &["probe"]);
    let args = std::env::args().collect::<Vec<_>>();
    if args.get(1).is_some_and(|word| word == "probe") {
        return Some(probe::main(args.get(2..).unwrap_or_default().to_vec()));
    }
    probe::raise_descriptor_limit();
    None
}
