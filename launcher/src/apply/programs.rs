//! Finds programs and asks them for their versions.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::unistd::{AccessFlags, access};

use crate::apply::command::Running;
use crate::components::programs::{Program, SearchPath, Version};

/// How long programs may take to tell their versions, all of them at once; on an emulated processor a large one alone needs most of a
/// minute.
const PATIENCE: Duration = Duration::from_secs(300);

/// A program that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Its file.
    pub path: PathBuf,
    /// What it says of itself.
    pub answer: Answer,
}

/// What a program says when it is asked for its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This version.
    Version(Version),
    /// It does not know, or has no way to tell.
    Unknown,
    /// It cannot be run, or does not end; why.
    Failed(String),
}

impl Installed {
    /// Its version, if it is known.
    pub fn version(&self) -> Option<Version> {
        match self.answer {
            Answer::Version(version) => Some(version),
            Answer::Unknown | Answer::Failed(_) => None,
        }
    }
}

/// The first file of `search` that is this program and can be executed.
pub fn find(program: Program, search: &SearchPath) -> Option<PathBuf> {
    search.candidates(program).find(|file| file.is_file() && access(file, AccessFlags::X_OK).is_ok())
}

/// Finds these programs and asks all of them at once. What is not in the map is not there.
pub fn survey(programs: &[Program], search: &SearchPath) -> BTreeMap<Program, Installed> {
    let found = programs.iter().filter_map(|&program| Some((program, find(program, search)?)));
    // Collected in between, so that all run before the first is listened to.
    let asked: Vec<_> = found.map(|(program, path)| (program, ask(program, &path), path)).collect();
    let deadline = Instant::now() + PATIENCE;
    let answered = asked.into_iter().map(|(program, asked, path)| {
        let answer = asked.map_or(Answer::Unknown, |asked| answer(program, asked, deadline));
        (program, Installed { path, answer })
    });
    answered.collect()
}

/// Finds one program and asks it.
pub fn look_up(program: Program, search: &SearchPath) -> Option<Installed> {
    survey(&[program], search).remove(&program)
}

fn ask(program: Program, path: &Path) -> Option<io::Result<Running>> {
    let arguments = program.version_arguments()?;
    Some(Running::start(Command::new(path).args(arguments).env_remove("CNI_COMMAND")))
}

fn answer(program: Program, asked: io::Result<Running>, deadline: Instant) -> Answer {
    let said = match asked.and_then(|asked| asked.listen(deadline)) {
        Ok(said) => said,
        Err(error) => return Answer::Failed(error.to_string()),
    };
    match program.parse_version(&said.text) {
        Some(version) => Answer::Version(version),
        // The loader's complaint about a library, for example. CNI plugins always complain.
        None if !said.status.success() && !program.is_cni() => Answer::Failed(match said.first_line() {
            "" => said.status.to_string(),
            line => line.to_owned(),
        }),
        None => Answer::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A directory of scripts that are called like programs.
    fn directory(name: &str, scripts: &[(&str, &str)]) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("programs-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        for (file, script) in scripts {
            let file = directory.join(file);
            // Another process writes it: what is open for writing in any copy of ours cannot be executed.
            let write = "printf '#!/bin/sh\\n%s\\n' \"$2\" > \"$1\"; chmod 755 \"$1\"";
            let mut shell = Command::new("sh");
            shell.args(["-c", write, "sh"]).arg(&file).arg(script);
            assert!(shell.status().unwrap().success());
        }
        directory
    }

    #[test]
    fn programs_are_found_and_asked() {
        let scripts = [
            ("runc", "echo runc version 1.1.15; echo spec: 1.0.0"),
            ("crun", "echo 'crun: cannot load libyajl.so.2' >&2; exit 127"),
            ("bridge", "[ -z \"$CNI_COMMAND\" ] && echo CNI bridge plugin v1.1.1 >&2; exit 1"),
            ("flanneld", "echo dev"),
        ];
        let directory = directory("asked", &scripts);
        fs::write(directory.join("kubelet"), "not executable").unwrap();
        let search = SearchPath { bin_dirs: vec![directory.clone()], ..SearchPath::default() };
        let programs =
            [Program::Runc, Program::Crun, Program::CniBridge, Program::Flanneld, Program::Kubelet];
        let found = survey(&programs, &search);
        let answer = |program| found.get(&program).map(|installed| installed.answer.clone());
        assert_eq!(answer(Program::Runc), Some(Answer::Version(Version::new(1, 1, 15))));
        let complaint = "crun: cannot load libyajl.so.2".to_owned();
        assert_eq!(answer(Program::Crun), Some(Answer::Failed(complaint)));
        assert_eq!(answer(Program::CniBridge), Some(Answer::Version(Version::new(1, 1, 1))));
        assert_eq!(answer(Program::Flanneld), Some(Answer::Unknown));
        assert_eq!(
            answer(Program::Kubelet).map(drop),
            find(Program::Kubelet, &SearchPath::default()).map(drop)
        );
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn endless_output_is_cut() {
        let directory = directory("endless", &[("runc", "exec yes")]);
        let search = SearchPath { bin_dirs: vec![directory.clone()], ..SearchPath::default() };
        let answer = look_up(Program::Runc, &search).map(|installed| installed.answer);
        assert!(matches!(answer, Some(Answer::Unknown | Answer::Failed(_))), "{answer:?}");
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        let directory = directory("silent", &[("runc", "exec tail -f /dev/null")]);
        let asked = ask(Program::Runc, &directory.join("runc")).unwrap();
        assert!(matches!(answer(Program::Runc, asked, Instant::now()), Answer::Failed(_)));
        fs::remove_dir_all(directory).unwrap();
    }
}
