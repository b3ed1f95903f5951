//! What a node does inside its namespaces, in namespaces that are thrown away.

use std::env;
use std::fs;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;

use super::super::facts::{DataDirectory, Inside, Outcome};
use super::host::existing;
use super::thrown::{Ids, throw_away};
use super::{NODE, nftables};
use crate::apply::command::ask;
use crate::apply::programs::Installed;
use crate::error::{Failure, Step};
use crate::netlink::message::Batch;
use crate::netlink::socket::Socket;
use crate::plan::facts::HostFacts;

/// How long one rule may take.
const PATIENCE: Duration = Duration::from_secs(20);
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_PORT: u16 = 15;
/// flannel's, in network order.
const VXLAN_PORT: [u8; 2] = 8472_u16.to_be_bytes();

/// Each match and target in a rule as CNI plugins and kube-proxy make them.
const RULES: [(&str, &str); 9] = [
    ("comment", "-t filter -A FORWARD -m comment --comment check -j ACCEPT"),
    ("mark", "-t nat -A POSTROUTING -m mark --mark 0x2000/0x2000 -j RETURN"),
    ("multiport", "-t nat -A PREROUTING -p tcp -m multiport --dports 80,443 -j RETURN"),
    ("addrtype", "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j RETURN"),
    ("MASQUERADE", "-t nat -A POSTROUTING ! -d 224.0.0.0/4 -j MASQUERADE"),
    ("DNAT", "-t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 192.0.2.1:80"),
    ("conntrack", "-t filter -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
    ("statistic", "-t nat -A PREROUTING -m statistic --mode random --probability 0.5 -j RETURN"),
    ("REDIRECT", "-t nat -A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 8080"),
];

/// Tries it all.
///
/// # Errors
/// The namespaces cannot be made.
pub(super) fn try_all(
    host: &HostFacts,
    data: &DataDirectory,
    iptables: Option<&Installed>,
) -> Result<Inside, Failure> {
    let scratch = Scratch::beside(&data.path);
    throw_away(NODE, Ids::Root(host), || Inside {
        file_systems: file_systems(),
        overlay: overlay(&scratch),
        devices: devices(),
        expressions: nftables::try_all(),
        // Last: it covers /run.
        iptables: iptables.map(|program| rules(&program.path)).unwrap_or_default(),
    })
}

/// Tries only the overlay.
pub(super) fn try_overlay(host: &HostFacts, data: &Path) -> Outcome {
    let scratch = Scratch::beside(data);
    throw_away(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS, Ids::Root(host), || overlay(&scratch))?
}

/// Mounted one after the other on /proc, /sys and /sys/fs/cgroup of these namespaces.
fn file_systems() -> Vec<(String, Outcome)> {
    let private = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let places = [("proc", "/proc"), ("sysfs", "/sys"), ("cgroup2", "/sys/fs/cgroup")];
    let tried = places.map(|(kind, place)| {
        let mounted = private.and_then(|()| mount(Some(kind), place, Some(kind), flags, None::<&str>));
        (kind.to_owned(), mounted.map_err(|error| Failure::new(Step::Mount, kind, error)))
    });
    tried.into()
}

fn devices() -> Vec<(String, Outcome)> {
    let vxlan: &[(u16, &[u8])] = &[(IFLA_VXLAN_ID, &1_u32.to_ne_bytes()), (IFLA_VXLAN_PORT, &VXLAN_PORT)];
    let tried = [("bridge", &[][..]), ("veth", &[]), ("vxlan", vxlan)].map(|(kind, settings)| {
        let mut batch = Batch::new();
        batch.add_link(&format!("check-{kind}"), kind, settings);
        let made = Socket::open().and_then(|socket| socket.perform(&batch).map_err(|refused| refused.error));
        (kind.to_owned(), made.map_err(|error| Failure::new(Step::Network, kind, error)))
    });
    tried.into()
}

/// By the program itself, which has matches and targets of its own.
fn rules(program: &Path) -> Vec<(String, Result<(), String>)> {
    // For xtables.lock, which only iptables-legacy wants.
    let _ = mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>);
    let tried = RULES.map(|(name, rule)| {
        let mut command = Command::new(program);
        command.args(rule.split(' '));
        let made = match ask(&mut command, Instant::now() + PATIENCE) {
            Ok(said) if said.status.success() => Ok(()),
            Ok(said) => Err(said.first_line().to_owned()),
            Err(error) => Err(error.to_string()),
        };
        (name.to_owned(), made)
    });
    tried.into()
}

/// A directory on the file system of a node's data, which goes with this.
struct Scratch(io::Result<PathBuf>);

impl Scratch {
    fn beside(data: &Path) -> Self {
        let name = format!(".rootless-launch-check-{}", std::process::id());
        let parent = existing(data).ok_or_else(|| io::ErrorKind::NotFound.into());
        Scratch(parent.and_then(|parent| {
            let path = parent.join(name);
            fs::create_dir(&path).map(|()| path)
        }))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Ok(path) = &self.0 {
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// An overlay as container runtimes mount it, and what a container does there: some kernels mount what they cannot
/// write to.
fn overlay(scratch: &Scratch) -> Outcome {
    let tried = match &scratch.0 {
        Ok(path) => overlay_in(path),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    };
    tried.map_err(|error| Failure::new(Step::Mount, "an overlay", error))
}

fn overlay_in(path: &Path) -> io::Result<()> {
    // From there, so that no character of the path has a meaning among the options.
    env::set_current_dir(path)?;
    for directory in ["lower", "lower/directory", "upper", "work", "merged"] {
        fs::create_dir(directory)?;
    }
    fs::write("lower/changed", "old")?;
    fs::write("lower/deleted", "old")?;
    // In a user namespace the kernel keeps its notes in extended attributes that users may set (Linux 5.11).
    let options = "lowerdir=lower,upperdir=upper,workdir=work,userxattr";
    mount(Some("overlay"), "merged", Some("overlay"), MsFlags::empty(), Some(options))?;
    let used = use_overlay(Path::new("merged"));
    let unmounted = umount2("merged", MntFlags::MNT_DETACH);
    // Here, where we are root: the kernel leaves a directory that nobody may read.
    let _ = fs::remove_dir_all("work");
    used.and(unmounted.map_err(io::Error::from))
}

fn use_overlay(merged: &Path) -> io::Result<()> {
    let mut file = fs::File::options().read(true).write(true).open(merged.join("changed"))?;
    file.write_all(b"new")?;
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    fs::remove_file(merged.join("deleted"))?;
    fs::remove_dir(merged.join("directory"))?;
    // Over what was deleted: opaque, which takes an extended attribute.
    fs::create_dir(merged.join("directory"))?;
    fs::rename(merged.join("changed"), merged.join("renamed"))?;
    match (text.as_str(), merged.join("deleted").exists()) {
        ("new", false) => Ok(()),
        _ => Err(io::Error::other("what was written is not what is read")),
    }
}
