//! The systemd user unit of a node: its name, its place and its text. Pure.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::state_dir::InstanceName;

/// A node as a service of the user's systemd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Name of the node.
    pub name: InstanceName,
    /// Absolute path of this program.
    pub program: PathBuf,
    /// Options of `node`, besides its name.
    pub options: Vec<String>,
    /// `$PATH`, where newuidmap and the node's programs are looked for; systemd has one of its own.
    pub path: String,
}

/// Name of the unit.
pub fn unit_name(name: &InstanceName) -> String {
    format!("rootless-launch-{}.service", name.as_str())
}

/// Where systemd looks for it: `config_home` is `$XDG_CONFIG_HOME` (systemd.unit(5)).
pub fn unit_path(config_home: &Path, name: &InstanceName) -> PathBuf {
    config_home.join("systemd/user").join(unit_name(name))
}

impl Service {
    /// The unit (systemd.service(5), systemd.resource-control(5)).
    pub fn text(&self) -> String {
        let name = self.name.as_str();
        let mut command = quoted(self.program.as_os_str());
        let fixed = ["node".to_owned(), format!("--name={name}")];
        for word in fixed.iter().chain(&self.options) {
            let _ = write!(command, " {}", quoted(OsStr::new(word)));
        }
        // An assignment knows specifiers, but no variables.
        let path = quoted(OsStr::new(&format!("PATH={}", self.path))).replace("$$", "$");
        format!(
            "\
# Written by rootless-launch node install; node uninstall removes it.
[Unit]
Description=Rootless Kubernetes node {name}

[Service]
Type=notify
NotifyAccess=all
ExecStart={command}
Environment={path}
Delegate=yes
Restart=on-failure
RestartSec=2
KillMode=mixed
TasksMax=infinity
LimitNOFILE=1048576
TimeoutStartSec=30min
TimeoutStopSec=3min

[Install]
WantedBy=default.target
"
        )
    }
}

/// One word of a command line (systemd.syntax(7)): neither specifiers nor variables of it are replaced.
fn quoted(word: &OsStr) -> String {
    let mut text = String::from('"');
    for &byte in word.as_bytes() {
        match byte {
            b'"' | b'\\' => text.extend(['\\', char::from(byte)]),
            b'%' | b'$' => text.extend([char::from(byte); 2]),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(options: &[&str]) -> Service {
        Service {
            name: "east".parse().expect("a name"),
            program: "/home/ann/bin/rootless-launch".into(),
            options: options.iter().map(ToString::to_string).collect(),
            path: "/usr/bin:/opt/50% off $x".into(),
        }
    }

    #[test]
    fn the_unit_starts_the_node_by_its_name_with_the_options() {
        let text = service(&["--config=/home/ann/node.toml"]).text();
        let line = r#"ExecStart="/home/ann/bin/rootless-launch" "node" "--name=east" "--config=/home/ann/node.toml""#;
        assert!(text.contains(line), "{text}");
        for line in
            ["Type=notify", "Delegate=yes", "Restart=on-failure", "KillMode=mixed", "TasksMax=infinity"]
        {
            assert!(text.lines().any(|other| other == line), "{text}");
        }
        assert!(text.contains(r#"Environment="PATH=/usr/bin:/opt/50%% off $x""#), "{text}");
    }

    #[test]
    fn words_reach_the_program_as_they_are() {
        assert_eq!(quoted(OsStr::new("a b")), r#""a b""#);
        assert_eq!(quoted(OsStr::new(r#"say "%h" \ $HOME"#)), r#""say \"%%h\" \\ $$HOME""#);
        assert_eq!(quoted(OsStr::new("a\nb\u{e4}")), r#""a\x0ab\xc3\xa4""#);
        assert_eq!(quoted(OsStr::new("")), r#""""#);
    }

    #[test]
    fn the_unit_is_where_systemd_looks_for_it() {
        let path = unit_path(Path::new("/home/ann/.config"), &"east".parse().expect("a name"));
        assert_eq!(path, Path::new("/home/ann/.config/systemd/user/rootless-launch-east.service"));
    }
}
