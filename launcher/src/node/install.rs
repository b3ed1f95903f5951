//! `node install` and `node uninstall`: a node as a service of the user's systemd, and nothing of it left behind.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Args, Subcommand};
use log::{error, warn};
use nix::unistd::{Pid, User, geteuid};
use thiserror::Error;

use super::service::{Service, unit_name, unit_path};
use crate::cli::parse_directory;
use crate::error::with_causes;
use crate::state_dir::{Instance, InstanceName, Place};

/// Things to do with a node besides running it.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Make the node a service of your systemd, and start it
    Install(InstallArgs),
    /// Stop the service and remove it
    Uninstall(UninstallArgs),
}

/// Options of `node install`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Name of the node
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME)]
    pub name: InstanceName,

    /// Start it at the next login only (with lingering: at the next boot)
    #[arg(long)]
    pub no_start: bool,

    /// Options of node, after --; file names in them have to be absolute
    #[arg(last = true, value_name = "OPTION")]
    pub options: Vec<String>,
}

/// Options of `node uninstall`.
#[derive(Debug, Args)]
pub struct UninstallArgs {
    /// Name of the node
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME)]
    pub name: InstanceName,

    /// Remove all that it has kept too: images, volumes, logs
    #[arg(long)]
    pub purge: bool,

    /// Where it has kept that, if it was told to by --data-dir
    #[arg(long, value_name = "DIR", requires = "purge", value_parser = parse_directory)]
    pub data_dir: Option<PathBuf>,
}

const DEFAULT_NAME: &str = "node";

/// Why a node could not be installed, or not be removed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InstallError {
    /// There is no place for the unit.
    #[error("neither XDG_CONFIG_HOME nor HOME says where units are kept")]
    NoHome,
    /// Our own path.
    #[error("cannot find out where this program is")]
    Program(#[source] io::Error),
    /// The unit.
    #[error("cannot write {path:?}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file or directory that is to go.
    #[error("cannot remove {path:?}")]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// systemctl(1) says no.
    #[error("systemctl --user {arguments}: {reason}{}", without_manager(.reason))]
    Systemctl {
        /// What it was asked.
        arguments: String,
        /// What it said.
        reason: String,
    },
    /// The node runs, and not as that service.
    #[error("node {name:?} runs, started by hand{}; stop it first", launched_by(.pid))]
    Running {
        /// Its name.
        name: String,
        /// Its launcher, if it is known.
        pid: Option<Pid>,
    },
    /// A directory with more in it than the node's.
    #[error("{0:?} is not removed: your home directory is in it")]
    HoldsHome(PathBuf),
    /// What could not be removed.
    #[error("{count} files are left in {path:?}, {first:?} for example")]
    Left {
        /// The directory.
        path: PathBuf,
        /// How many.
        count: usize,
        /// One of them.
        first: PathBuf,
    },
}

fn launched_by(pid: &Option<Pid>) -> String {
    pid.map(|pid| format!(" (its launcher is process {pid})")).unwrap_or_default()
}

/// systemctl's own words for this do not say what to do.
fn without_manager(reason: &str) -> &'static str {
    let is_missing = ["connect to bus", "connect to user scope bus", "No such file or directory (os error"];
    match is_missing.iter().any(|text| reason.contains(text)) {
        true => "; a login by ssh or on a console starts the user's systemd, su and sudo do not",
        false => "",
    }
}

/// Does it; exit status 1 if anything could not be done.
pub fn main(command: &NodeCommand) -> ExitCode {
    let done = match command {
        NodeCommand::Install(args) => install(args).map_err(|error| vec![error]),
        NodeCommand::Uninstall(args) => uninstall(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(errors) => {
            errors.iter().for_each(|error| error!("{}", with_causes(error)));
            ExitCode::FAILURE
        }
    }
}

fn install(args: &InstallArgs) -> Result<(), InstallError> {
    let service = Service {
        name: args.name.clone(),
        program: env::current_exe().map_err(InstallError::Program)?,
        options: args.options.clone(),
        path: env::var("PATH").unwrap_or_default(),
    };
    let path = unit_path(&config_home()?, &args.name);
    let unit = unit_name(&args.name);
    write(&path, &service.text()).map_err(|source| InstallError::Write { path: path.clone(), source })?;
    println!("wrote {}", path.display());
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", &unit])?;
    if !args.no_start {
        systemctl(&["restart", &unit])?;
        println!("started {unit}");
    }
    if let Some(user) = User::from_uid(geteuid()).ok().flatten()
        && !Path::new("/var/lib/systemd/linger").join(&user.name).exists()
    {
        println!(
            "it ends with your last session and does not start at boot; as root: loginctl enable-linger {}",
            user.name
        );
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    // Whole or not at all: a unit that is torn would be started like that.
    let new = path.with_extension("service.new");
    fs::write(&new, text)?;
    fs::rename(&new, path)
}

/// Goes on after a failure, and tells all of them: what is half gone has to go altogether.
fn uninstall(args: &UninstallArgs) -> Result<(), Vec<InstallError>> {
    let mut errors = Vec::new();
    let mut keep = |result: Result<(), InstallError>| {
        if let Err(error) = result {
            errors.push(error);
        }
    };
    let unit = unit_name(&args.name);
    match config_home() {
        Ok(home) => {
            let path = unit_path(&home, &args.name);
            let is_known = systemctl(&["cat", &unit]).is_ok();
            if is_known {
                keep(systemctl(&["disable", "--now", &unit]));
            }
            // What systemctl left, or could not do because the unit is gone and its link is not.
            let link = home.join("systemd/user/default.target.wants").join(&unit);
            for path in [&link, &path] {
                keep(remove_file(path));
            }
            if is_known {
                keep(systemctl(&["daemon-reload"]));
                // Fails for a unit that has not failed.
                let _ = systemctl(&["reset-failed", &unit]);
            }
        }
        Err(error) => keep(Err(error)),
    }
    let state = Place::new(None, Some(&args.name)).path();
    match Instance::at(&state) {
        Some(instance) => {
            keep(Err(InstallError::Running { name: instance.name, pid: instance.launcher }));
        }
        None => {
            for (kind, directory) in kept(args) {
                if !args.purge {
                    if directory.exists() {
                        println!("kept {} ({kind}); node uninstall --purge removes it", directory.display());
                    }
                    continue;
                }
                keep(purge(&directory));
            }
            // The launcher removes it; what is there was left by a power cut.
            keep(purge(&state));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// What outlives the node.
fn kept(args: &UninstallArgs) -> Vec<(&'static str, PathBuf)> {
    let below = |variable: &str, default: &str| {
        home(variable, default).map(|home| home.join("rootless-launch").join(args.name.as_str()))
    };
    let data = args.data_dir.clone().or_else(|| below("XDG_DATA_HOME", ".local/share"));
    let logs = below("XDG_STATE_HOME", ".local/state");
    data.map(|path| ("data", path)).into_iter().chain(logs.map(|path| ("logs", path))).collect()
}

/// Removes a directory with all that is in it, files of the subordinate ids included: inside a user namespace they are root's, and so
/// is everybody there.
fn purge(directory: &Path) -> Result<(), InstallError> {
    if fs::symlink_metadata(directory).is_err() {
        return Ok(());
    }
    if env::var_os("HOME").is_some_and(|home| Path::new(&home).starts_with(directory)) {
        return Err(InstallError::HoldsHome(directory.to_owned()));
    }
    // What is the user's own needs no namespace, and often that is all.
    if fs::remove_dir_all(directory).is_err() {
        let program = env::current_exe().map_err(InstallError::Program)?;
        let mut launch = Command::new(program);
        launch.args(["--net=none", "--surroundings=plain", "--", "rm", "-rf", "--one-file-system", "--"]);
        match launch.arg(directory).status() {
            Ok(status) if status.success() => {}
            // What is left is told below.
            Ok(status) => warn!("rm in a user namespace: {status}"),
            Err(error) => warn!("no user namespace to remove files in: {error}"),
        }
    }
    let mut left = Vec::new();
    list(directory, &mut left);
    match left.first() {
        None => {
            println!("removed {}", directory.display());
            // The last one takes what all of them share; fails while there are others.
            if let Some(shared) = directory.parent().filter(|shared| shared.ends_with("rootless-launch")) {
                let _ = fs::remove_dir(shared);
            }
            Ok(())
        }
        Some(first) => {
            Err(InstallError::Left { path: directory.to_owned(), count: left.len(), first: first.clone() })
        }
    }
}

/// Everything that is there, a directory that cannot be read being one thing.
fn list(path: &Path, into: &mut Vec<PathBuf>) {
    let Ok(metadata) = fs::symlink_metadata(path) else { return };
    match fs::read_dir(path) {
        Ok(entries) if metadata.is_dir() => {
            let before = into.len();
            entries.flatten().for_each(|entry| list(&entry.path(), into));
            if into.len() == before {
                into.push(path.to_owned());
            }
        }
        _ => into.push(path.to_owned()),
    }
}

fn remove_file(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Ok(()) => {
            println!("removed {}", path.display());
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(InstallError::Remove { path: path.to_owned(), source }),
    }
}

fn config_home() -> Result<PathBuf, InstallError> {
    home("XDG_CONFIG_HOME", ".config").ok_or(InstallError::NoHome)
}

/// A directory of the XDG Base Directory Specification.
fn home(variable: &str, default: &str) -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(default)))
}

fn systemctl(arguments: &[&str]) -> Result<(), InstallError> {
    let refused = |reason| InstallError::Systemctl { arguments: arguments.join(" "), reason };
    let output = Command::new("systemctl").arg("--user").args(arguments).output();
    let output = output.map_err(|error| refused(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(refused(text.trim().replace('\n', "; ")))
}
