//! `status`, `logs`, `restart` and `stop` on instances that a launcher runs.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use launcher::supervisor::unit::NodePlan;

use crate::support::{LAUNCHER, Scratch, Watched, after, daemon, has_namespaces, plan, unit};

/// A launcher, in a state directory of its own.
struct Instance {
    launcher: Child,
    state: PathBuf,
}

impl Instance {
    fn start(scratch: &Scratch, cmd: &[&str], stdin: Stdio) -> Self {
        let state = scratch.path("state");
        let mut command = Command::new(LAUNCHER);
        command.args(["-v", "--net=none", "--state-dir"]).arg(&state).arg("--").args(cmd);
        let launcher = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Instance { launcher, state }
    }

    fn script(scratch: &Scratch, script: &str) -> Self {
        let mut instance = Instance::start(scratch, &["sh", "-c", script], Stdio::null());
        let mut line = String::new();
        BufReader::new(instance.launcher.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        instance
    }

    /// A node; waits until it says that every unit is ready.
    fn node(scratch: &Scratch, make: impl FnOnce(&mut NodePlan)) -> Self {
        let mut plan = plan(scratch, Vec::new());
        make(&mut plan);
        plan.control = scratch.path("state/node.sock");
        std::fs::write(scratch.path("plan.json"), serde_json::to_vec(&plan).unwrap()).unwrap();
        let stdin = File::open(scratch.path("plan.json")).unwrap().into();
        let mut instance =
            Instance::start(scratch, &[LAUNCHER, "node-supervisor", "--plan-fd=0", "-v"], stdin);
        let mut stderr = BufReader::new(instance.launcher.stderr.take().unwrap());
        let mut text = String::new();
        while !text.ends_with("every unit is ready\n") {
            assert_ne!(stderr.read_line(&mut text).unwrap(), 0, "{text}");
        }
        // It is read on, so that nobody writes into a closed pipe.
        std::thread::spawn(move || stderr.read_to_string(&mut text));
        instance
    }

    fn client(&self, command: &str, args: &[&str]) -> Output {
        Command::new(LAUNCHER).arg(command).arg("--state-dir").arg(&self.state).args(args).output().unwrap()
    }

    /// What a command that works prints.
    #[track_caller]
    fn works(&self, command: &str, args: &[&str]) -> String {
        let output = self.client(command, args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command that does not work says.
    #[track_caller]
    fn fails(&self, command: &str, args: &[&str], status: i32) -> String {
        let output = self.client(command, args);
        assert_eq!(output.status.code(), Some(status));
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.launcher.kill();
        let _ = self.launcher.wait();
    }
}

#[test]
fn a_node_is_shown_told_of_and_stopped() {
    if !has_namespaces() {
        return;
    }
    let scratch = Scratch::new();
    let mut instance = Instance::node(&scratch, |plan| {
        let script = "trap 'echo end >>$D/diary; exit 0' TERM; echo one; echo two; touch $D/a.ready; \
                      while :; do sleep 1000 & wait $!; done";
        plan.units = vec![daemon(&scratch, "a", script), after("a", unit(&scratch, "b", "exec sleep 1000"))];
    });
    let status = instance.works("status", &[]);
    assert!(status.contains("\nthe node is ready\nUNIT  STATE  SINCE "), "{status}");
    let json: serde_json::Value = serde_json::from_str(&instance.works("status", &["--json"])).unwrap();
    assert_eq!(json["launcherPID"], instance.launcher.id());
    assert_eq!(json["node"]["units"][1]["name"], "b");
    assert_eq!(json["node"]["ready"], true);
    assert!(json.get("info").is_none(), "there is no engine");
    assert_eq!(instance.works("logs", &["a", "-n2"]), "one\ntwo\n");
    assert_eq!(instance.works("restart", &["b"]), "b is ready\n");
    let failed = instance.fails("restart", &["c"], 1);
    assert!(failed.ends_with("there is no unit \"c\"; there are a, b\n"), "{failed}");
    instance.fails("logs", &["../a"], 2);

    let unit = Watched::new(json["node"]["units"][0]["pid"].as_i64().unwrap() as i32);
    assert_eq!(instance.works("stop", &[]), "");
    assert!(instance.launcher.wait().unwrap().success());
    assert!(!unit.is_alive());
    assert_eq!(scratch.read("diary"), "end\n", "it was asked");
    assert!(!instance.state.exists());
    let gone = instance.fails("status", &[], 2);
    assert!(gone.contains("no instance runs in"), "{gone}");
}

#[test]
fn a_restart_that_fails_says_why() {
    if !has_namespaces() {
        return;
    }
    let scratch = Scratch::new();
    let instance = Instance::node(&scratch, |plan| {
        let script = "[ -e $D/broken ] && exit 7; touch $D/a.ready; exec sleep 1000";
        plan.units = vec![daemon(&scratch, "a", script)];
    });
    std::fs::write(scratch.path("broken"), "").unwrap();
    std::fs::remove_file(scratch.path("a.ready")).unwrap();
    let failed = instance.fails("restart", &["a"], 1);
    assert!(failed.contains("unit a exited with status 7 (it is paused); its log is /"), "{failed}");
    let status = instance.works("status", &[]);
    assert!(
        status.contains("the node is not ready") && status.ends_with("\na exited with status 7\n"),
        "{status}"
    );
}

#[test]
fn any_instance_is_shown_and_stopped() {
    if !has_namespaces() {
        return;
    }
    let scratch = Scratch::new();
    let mut instance = Instance::script(&scratch, "trap 'exit 3' TERM; sleep 1000 & echo ready; wait");
    let status = instance.works("status", &[]);
    let expected = format!("launcher {}, command ", instance.launcher.id());
    assert!(
        status.starts_with("state  /") && status.contains(&expected) && !status.contains("UNIT"),
        "{status}"
    );
    let none = instance.fails("logs", &["a"], 1);
    assert!(none.ends_with("state is no node: it has no units\n"), "{none}");
    instance.works("stop", &[]);
    assert_eq!(instance.launcher.wait().unwrap().code(), Some(3));
}

#[test]
fn an_instance_that_will_not_end_is_killed() {
    if !has_namespaces() {
        return;
    }
    let scratch = Scratch::new();
    let mut instance = Instance::script(
        &scratch,
        "trap '' TERM; echo $$ >/proc/self/comm; echo ready; while :; do sleep 1000; done",
    );
    let output = instance.client("stop", &["--timeout=0"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.ends_with("warning: state did not end within 0 s: it is killed\n"), "{text}");
    assert_eq!(instance.launcher.wait().unwrap().signal(), Some(9));
    assert!(!instance.state.exists(), "the guard has tidied up");
}
