//! Where the programs are. Nothing here depends on where the sources were at build time.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

static PROBE: OnceLock<(PathBuf, Vec<String>)> = OnceLock::new();

/// Makes `program args..` the probe, for binaries that contain it (the benches) instead of having it beside them.
pub fn use_as_probe(program: PathBuf, args: &[&str]) {
    PROBE.set((program, args.iter().map(ToString::to_string).collect())).expect("set once, before use");
}

/// A command line that starts the probe with these arguments.
#[must_use]
pub fn probe_argv(args: &[&str]) -> Vec<String> {
    let (program, first) = PROBE.get_or_init(|| (beside_us("probe"), Vec::new()));
    let program = program.to_str().expect("paths are UTF-8").to_owned();
    std::iter::once(program)
        .chain(first.iter().cloned())
        .chain(args.iter().map(ToString::to_string))
        .collect()
}

/// [`probe_argv`] as a [`Command`].
#[must_use]
pub fn probe(args: &[&str]) -> Command {
    let argv = probe_argv(args);
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]);
    command
}

/// The program under test: `$ROOTLESS_LAUNCH`, else `rootless-launch` in the directory the caller was built into, else in its
/// sibling `release`. `None` when there is none.
#[must_use]
pub fn rootless_launch() -> Option<PathBuf> {
    if let Some(path) = env::var_os("ROOTLESS_LAUNCH") {
        return Some(path.into());
    }
    let beside = beside_us("rootless-launch");
    let release = beside.parent()?.parent()?.join("release/rootless-launch");
    // The release build is the one that users run: prefer it.
    [release, beside].into_iter().find(|path| path.exists())
}

/// The full path of a foreign program.
///
/// # Panics
/// When it is not there: `.ci/setup.sh` should have installed it.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    find_program(name).unwrap_or_else(|| panic!("{name} is not installed: run .ci/setup.sh"))
}

/// The full path of a foreign program, if it is there.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/lib/rltest"].map(PathBuf::from);
    env::split_paths(&path).chain(sbin).map(|dir| dir.join(name)).find(|path| path.is_file())
}

fn beside_us(name: &str) -> PathBuf {
    let exe = env::current_exe().expect("/proc is mounted");
    let dir = exe.parent().expect("a file has a directory");
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(Path::new("/")) } else { dir };
    dir.join(name)
}
