//! Nodes of the program under test with real components, each in a world's host and with directories of its own.

use crate::{
    components::Components,
    locate,
    process::{DEADLINE, Finished, Process, run},
    world::{Netns, SERVICE4, World},
};
use nix::unistd::Pid;
use std::{
    fs,
    io::Read,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// The image of busybox.
pub const BUSYBOX: &str = "rootless-launch.test/busybox:1";
/// The image of pause.
pub const PAUSE: &str = "rootless-launch.test/pause:1";

/// Where nodes of a world run, and what they keep.
#[derive(Debug)]
pub struct Site<'a> {
    /// The world.
    pub world: &'a World,
    /// The programs.
    pub components: Components,
    /// Whose node it is.
    host: &'a Netns,
    /// The node's name in its cluster.
    name: &'a str,
    home: PathBuf,
}

impl<'a> Site<'a> {
    /// A home in the world's directory.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(world: &'a World, components: Components) -> Self {
        Self::on(world, &world.host, "lab", components)
    }

    /// The same for the node `name` of any host of the world.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn on(world: &'a World, host: &'a Netns, name: &'a str, components: Components) -> Self {
        let home = world.dir().join("home").join(name);
        for directory in ["run", "pods"] {
            fs::create_dir_all(home.join(directory)).expect("the world's directory is writable");
        }
        Self { world, components, host, name, home }
    }

    /// Directory of manifests of static pods.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.home.join("pods")
    }

    /// Where a node called "node" keeps its data.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.home.join(".local/share/rootless-launch/node")
    }

    /// The state directory of a node called "node".
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.home.join("run/rootless-launch/node")
    }

    /// Writes a manifest, whole at once, as kubelet watches.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_pod(&self, name: &str, manifest: &str) {
        // kubelet does not look at names that begin with a dot.
        let hidden = self.pods().join(format!(".{name}"));
        fs::write(&hidden, manifest).expect("the world's directory is writable");
        fs::rename(hidden, self.pods().join(format!("{name}.yaml"))).expect("it is there");
    }

    /// Takes a manifest away.
    ///
    /// # Panics
    /// When it is not there.
    pub fn remove_pod(&self, name: &str) {
        fs::remove_file(self.pods().join(format!("{name}.yaml"))).expect("it is there");
    }

    /// Starts `node` with the components' directories, then `args`.
    #[must_use]
    pub fn start(&self, args: &[&str]) -> Node<'_> {
        self.start_with(&self.components.programs(), args)
    }

    /// The same with another directory of programs before the usual one.
    #[must_use]
    pub fn start_with(&self, programs: &Path, args: &[&str]) -> Node<'_> {
        let archive = |name: &str| format!("--image-archive={}", self.components.image(name).display());
        let (pause, busybox) = (archive("pause"), archive("busybox"));
        let args: Vec<&str> =
            [&pause, &busybox].into_iter().map(String::as_str).chain(args.iter().copied()).collect();
        self.start_without_images(programs, &args)
    }

    /// The same without images.
    #[must_use]
    pub fn start_without_images(&self, programs: &Path, args: &[&str]) -> Node<'_> {
        let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let mut words = vec![
            "node".to_owned(),
            flag("bin-dir", programs),
            flag("bin-dir", &self.components.programs()),
            flag("cni-bin-dir", &self.components.cni_plugins()),
            flag("static-pods", &self.pods()),
            format!("--pause-image={PAUSE}"),
            format!("--node-name={}", self.name),
        ];
        words.extend(args.iter().map(ToString::to_string));
        Node::of(self, &words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The program under test, as the user of this home.
    ///
    /// # Panics
    /// When it is not built.
    #[must_use]
    pub fn command(&self, words: &[String]) -> Command {
        let program = locate::rootless_launch().expect("rootless-launch is built");
        let argv: Vec<String> =
            std::iter::once(program.display().to_string()).chain(words.iter().cloned()).collect();
        let mut command = self.host.command(&argv);
        command.env("HOME", &self.home).env("XDG_RUNTIME_DIR", self.home.join("run"));
        for variable in ["XDG_DATA_HOME", "XDG_STATE_HOME", "ROOTLESSKIT_STATE_DIR"] {
            command.env_remove(variable);
        }
        command
    }
}

impl Site<'_> {
    /// The last lines of every log, for a test that failed.
    fn show_logs(&self) {
        let directory = self.home.join(".local/state/rootless-launch/node/log");
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n");
            eprintln!("--- {}\n{last}", entry.path().display());
        }
    }
}

impl Drop for Site<'_> {
    /// Files of subordinate ids, and directories that nobody may read, are the world's root's to remove.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        let home = self.home.display().to_string();
        // Leaving it behind would be untidy, not wrong.
        let _ = self.world.host.program(&["rm", "-rf", &home]).status();
    }
}

/// A node, until it is dropped.
#[derive(Debug)]
pub struct Node<'a> {
    /// The launcher, until it has ended.
    process: Option<Process>,
    site: &'a Site<'a>,
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if let Some(process) = self.process.as_mut().filter(|_| std::thread::panicking()) {
            eprintln!("--- the launcher\n{}", process.said());
        }
    }
}

impl<'a> Node<'a> {
    /// With these words on the command line.
    #[must_use]
    pub fn of(site: &'a Site<'a>, words: &[&str]) -> Self {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        let process = Process::spawn(site.command(&words)).within(3 * DEADLINE);
        Self { site, process: Some(process) }
    }

    /// A client command for it.
    #[must_use]
    pub fn client(&self, args: &[&str]) -> Command {
        let (first, rest) = args.split_first().expect("a command has a name");
        let words = [*first, "--name=node"].into_iter().chain(rest.iter().copied());
        self.site.command(&words.map(str::to_owned).collect::<Vec<_>>())
    }

    /// Follows the log of a unit from its beginning.
    #[must_use]
    pub fn log(&self, unit: &str) -> Process {
        Process::spawn(self.client(&["logs", "--follow", unit]))
    }

    /// Runs a program of the components inside.
    #[track_caller]
    pub fn inside(&self, argv: &[&str]) -> Finished {
        let program = self.site.components.programs().join(argv[0]).display().to_string();
        let words = ["enter", "--", &program].into_iter().chain(argv[1..].iter().copied());
        run(self.client(&words.collect::<Vec<_>>()))
    }

    /// What crictl prints.
    #[track_caller]
    pub fn crictl(&self, args: &[&str]) -> String {
        let words = ["crictl"].into_iter().chain(args.iter().copied());
        self.inside(&words.collect::<Vec<_>>()).success().stdout
    }

    /// The id of the one running container of this name.
    ///
    /// # Panics
    /// When there is none, or several.
    #[track_caller]
    pub fn container(&self, name: &str) -> String {
        let ids = self.crictl(&["ps", "--quiet", "--name", &format!("^{name}$")]);
        let all: Vec<&str> = ids.lines().collect();
        assert_eq!(all.len(), 1, "{name}: {ids}");
        all.concat()
    }

    /// Processes that are ours, whether the launcher's or inside, with their resident memory in KiB.
    #[must_use]
    pub fn ours(&self) -> Vec<(String, u64)> {
        let program = fs::canonicalize(locate::rootless_launch().expect("it is built")).ok();
        let is_ours = |pid: &Pid| fs::read_link(format!("/proc/{pid}/exe")).ok() == program;
        let launcher = self.process.as_ref().expect("it has not ended").pid();
        descendants(launcher).into_iter().filter(is_ours).filter_map(resident).collect()
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn end(mut self) -> Finished {
        self.process.take().expect("it has not ended").finish()
    }

    /// Ends it as a user does, and waits.
    #[track_caller]
    pub fn stop(self) {
        let _ = run(self.client(&["stop"])).success();
        let _ = self.end();
    }

    /// Begins to end it as a user does.
    #[track_caller]
    #[must_use]
    pub fn stopping(&self) -> Process {
        Process::spawn(self.client(&["stop"]))
    }
}

fn resident(pid: Pid) -> Option<(String, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let size = value("VmRSS:")?.split(' ').next()?.parse().ok()?;
    Some((value("Name:")?.to_owned(), size))
}

fn descendants(pid: Pid) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|word| word.parse().ok()).map(Pid::from_raw);
    let mut all = vec![pid];
    children.for_each(|child| all.extend(descendants(child)));
    all
}

/// A pod called "last" that announces itself and does as `on_term` says (a shell's words; they may call `announce WORDS`) when it is asked to end.
/// It has `grace` seconds for that, and a directory of the host's at /out.
#[must_use]
pub fn reluctant(on_term: &str, grace: u32, announce: u16, out: &Path) -> String {
    let out = out.display();
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: last}}
spec:
  terminationGracePeriodSeconds: {grace}
  containers:
  - name: last
    image: {BUSYBOX}
    command:
    - sh
    - -c
    - |
      announce() {{ echo "$@" | nc {SERVICE4} {announce}; }}
      trap '{on_term}' TERM
      announce here is last
      while :; do sleep 1000 & wait; done
    volumeMounts: [{{name: out, mountPath: /out}}]
  volumes:
  - name: out
    hostPath: {{path: {out}, type: DirectoryOrCreate}}
"#
    )
}

/// Waits for a client that says something, and returns that: how pods tell the test that they are there.
///
/// # Panics
/// When nobody comes in time.
#[track_caller]
#[must_use]
pub fn announced(listener: &TcpListener, limit: Duration) -> String {
    let deadline = Instant::now() + limit;
    assert!(crate::process::readable_before(listener, deadline), "nothing was announced within {limit:?}");
    let (mut stream, _) = listener.accept().expect("somebody has come");
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it says something and closes");
    text.trim().to_owned()
}
