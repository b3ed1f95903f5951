//! `docs/migration.md`: every command line of ours in it is run, with a stand-in for the program behind `--` that says what it finds;
//! every option of an installed RootlessKit is in its table.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use tests::{
    engine::ours,
    locate,
    process::{Finished, run},
    world::World,
};

static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/migration.md");
    fs::read_to_string(path).expect("the document is part of the tree")
});

/// Programs behind `--` in the document.
const PROGRAMS: [&str; 6] = ["dockerd", "containerd", "buildkitd", "k3s", "sleep", "bash"];

/// What a program finds, as `key=value` words.
const STAND_IN: &str = r#"#!/bin/sh
for kind in net pid ipc uts cgroup; do echo "ns-$kind=$(readlink /proc/self/ns/$kind)"; done
for directory in /etc /run /var/lib /opt; do
    if mkdir $directory/stand-in 2>/dev/null; then echo "writable-$directory=yes"; rmdir $directory/stand-in; fi
done
state=$ROOTLESSKIT_STATE_DIR
echo "uid=$(id -u) euid=$ROOTLESSKIT_PARENT_EUID egid=$ROOTLESSKIT_PARENT_EGID state=$state"
for file in lock api.sock netns; do [ -e "$state/$file" ] && echo "file-$file=yes"; done
if [ -e "$state/netns" ]; then enter="nsenter --net=$state/netns"; else enter=; fi
echo "mtu=$($enter ip -o link show tap0 2>/dev/null | sed 's/.* mtu \([0-9]*\) .*/\1/')"
echo "address=$($enter ip -4 -o address show tap0 2>/dev/null | sed 's/.* inet \([^ ]*\) .*/\1/')"
echo "ports=$(rootless-launch port list --json --state-dir "$state" 2>/dev/null | grep -o parentPort\" | wc -l)"
"#;

/// A world with stand-ins, which come first in PATH.
struct Stage {
    world: World,
    programs: PathBuf,
}

impl Stage {
    fn new() -> Self {
        let world = World::new();
        let programs = world.dir().join("programs");
        fs::create_dir(&programs).expect("a directory of our own");
        let stand_in = world.dir().join("stand-in");
        fs::write(&stand_in, STAND_IN).expect("a file of our own");
        for program in PROGRAMS {
            // sh reads the script: nothing that was open for writing here is executed.
            let script = format!("#!/bin/sh\nexec /bin/sh {}\n", stand_in.display());
            let write = "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"";
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", write, "sh", &script]).arg(programs.join(program));
            assert!(shell.status().expect("a shell").success());
        }
        let launcher = locate::rootless_launch().expect("the program under test");
        std::os::unix::fs::symlink(launcher, programs.join("rootless-launch")).expect("a link of our own");
        Stage { world, programs }
    }

    fn run(&self, line: &str) -> Finished {
        let words = ["/bin/sh", "-ec", line].map(str::to_owned);
        let mut command = self.world.host.command(&words);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}:/usr/sbin:/sbin", self.programs.display()));
        command.env("XDG_RUNTIME_DIR", self.world.dir()).env("HOME", self.world.dir());
        command.env_remove("ROOTLESSKIT_STATE_DIR").env_remove("XDG_DATA_HOME");
        run(command)
    }
}

/// The lines of the document's blocks in sh.
fn lines() -> Vec<&'static str> {
    let blocks = DOCUMENT.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    blocks.flat_map(str::lines).collect()
}

/// The rows of the tables, each as its cells.
fn rows() -> impl Iterator<Item = Vec<&'static str>> {
    let rows = DOCUMENT.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
}

/// The long options in a text.
fn options(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let words = text.split(|c: char| !is_part(c));
    words.filter(|word| word.len() > 3 && word.starts_with("--")).map(str::to_owned).collect()
}

#[test]
fn every_option_of_rootlesskit_has_a_row() {
    let first = rows().filter_map(|row| row.first().copied()).collect::<Vec<_>>().join(" ");
    let known = options(&first);
    let help = run({
        let mut command = Command::new(locate::program("rootlesskit"));
        command.arg("--help");
        command
    });
    let lines = help.stdout.lines().map(str::trim).filter(|line| line.starts_with("--"));
    let offered: BTreeSet<String> =
        lines.filter_map(|line| options(line.split(' ').next().unwrap_or_default()).pop_first()).collect();
    assert!(offered.len() > 20, "{}", help.describe());
    let missing: Vec<_> = offered.difference(&known).collect();
    assert!(missing.is_empty(), "{missing:?} are not in the table");
}

#[test]
fn every_option_of_ours_exists() {
    let Ok(_) = ours() else { return };
    let mut command = Command::new(locate::rootless_launch().expect("the program under test"));
    command.arg("--help");
    let help = options(&run(command).success().stdout);
    let named =
        rows().filter_map(|row| row.get(1).copied()).filter(|cell| !cell.contains("rootless-launch "));
    let named = options(&named.collect::<Vec<_>>().join(" "));
    let unknown: Vec<_> = named.difference(&help).collect();
    assert!(unknown.is_empty(), "{unknown:?} do not exist");
}

#[test]
fn every_command_line_does_what_its_options_say() {
    let Ok(_) = ours() else { return };
    let stage = Stage::new();
    let lines = lines();
    assert!(lines.len() > 10, "{lines:?}");
    let outside = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).expect("ours");
    for line in lines {
        let finished = stage.run(line).success();
        let found = finished.values();
        let value = |key: &str| found.get(key).map(String::as_str).unwrap_or_default();
        let has = |option: &str| line.split(' ').any(|word| word == option);
        let after = |option: &str| {
            line.split(' ').find_map(|word| word.strip_prefix(option)).and_then(|rest| rest.strip_prefix('='))
        };
        // By their options, or by the name behind the dashes.
        let program = line.split(" -- ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        let is_node = match after("--surroundings") {
            Some(kind) => kind == "node",
            None => !["bash", "sleep"].contains(&program),
        };
        let context = || format!("{line}\n{}", finished.describe());

        assert_eq!(value("uid"), "0", "{}", context());
        assert!(!value("euid").is_empty() && !value("egid").is_empty(), "{}", context());
        assert_eq!(value("file-lock"), "yes", "{}", context());
        if let Some(directory) = after("--state-dir") {
            let directory = directory.replace("$XDG_RUNTIME_DIR", &stage.world.dir().display().to_string());
            assert_eq!(value("state"), directory, "{}", context());
        }
        for (kind, option) in
            [("pid", "--pidns"), ("ipc", "--ipcns"), ("uts", "--utsns"), ("cgroup", "--cgroupns")]
        {
            let is_new = value(&format!("ns-{kind}")) != outside(kind).to_string_lossy();
            assert_eq!(is_new, is_node || has(option), "{kind}: {}", context());
        }
        for directory in ["/etc", "/run", "/var/lib", "/opt"] {
            let is_writable = value(&format!("writable-{directory}")) == "yes";
            let copied = has(&format!("--copy-up={directory}"));
            assert_eq!(is_writable, is_node || copied, "{directory}: {}", context());
        }
        if after("--net") == Some("host") {
            assert_eq!(value("address"), "", "{}", context());
            continue;
        }
        assert_eq!(value("file-api.sock"), "yes", "{}", context());
        assert_eq!(value("file-netns") == "yes", has("--detach-netns"), "{}", context());
        assert_eq!(value("mtu"), after("--mtu").unwrap_or("1500"), "{}", context());
        let address = match after("--cidr") {
            Some("10.41.0.0/16") => "10.41.0.100/16",
            _ => "10.0.42.100/24",
        };
        assert_eq!(value("address"), address, "{}", context());
        let published = line.matches(" -p ").count() + usize::from(program == "k3s" && is_node);
        assert_eq!(value("ports"), published.to_string(), "{}", context());
    }
}

#[test]
fn the_client_commands_do_what_rootlessctls_do() {
    let Ok(_) = ours() else { return };
    let stage = Stage::new();
    let directory = stage.world.dir().join("instance");
    let ours = rows().filter_map(|row| row.get(1).copied()).filter(|cell| cell.contains("rootless-launch "));
    let commands = ours.map(|cell| cell.trim_matches('`').replace("DIR", &directory.display().to_string()));
    // Each from inside the instance that it is about.
    let script = commands.collect::<Vec<_>>().join(" < /dev/null\n");
    assert_eq!(script.lines().count(), 5, "{script}");
    let line = format!(
        "rootless-launch --state-dir={} -- /bin/sh -ec '{script} < /dev/null; echo done=yes'",
        directory.display()
    );
    let finished = stage.run(&line).success();
    assert_eq!(finished.value("done"), "yes", "{}", finished.describe());
    assert!(finished.stdout.contains("0.0.0.0:8080:80/tcp"), "{}", finished.describe());
}
