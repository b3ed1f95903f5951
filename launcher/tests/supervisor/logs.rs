//! What units write, and who reads it.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, Write};
use std::process::Command;

use launcher::client::http::{self, Request};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::{LAUNCHER, Node, PATIENCE, Scratch, daemon, has_namespaces, plan};

#[test]
fn the_last_lines_are_told_and_later_ones_to_whoever_follows() {
    let scratch = Scratch::new();
    mkfifo(&scratch.path("fifo"), Mode::S_IRWXU).unwrap();
    let script = "seq 1 50; printf 'no end'; touch $D/a.ready; while :; do cat $D/fifo; done";
    let node = Node::start(&scratch, vec![daemon(&scratch, "a", script)]);
    node.wait_ready();
    let (status, text) = node.ask("GET", "/v1/node/units/a/log?lines=3");
    assert_eq!((status, text.as_str()), (200, "48\n49\n50\n"));
    let target = "/v1/node/units/a/log?lines=1&follow=true";
    let followers = [(); 3].map(|()| http::send(node.control(), &Request::new("GET", target)).unwrap());
    let mut fifo = OpenOptions::new().write(true).open(scratch.path("fifo")).unwrap();
    fifo.write_all(b" any more\nlast\n").unwrap();
    // One goes away without a word.
    let [gone, followers @ ..] = followers;
    drop(gone);
    for (number, follower) in followers.into_iter().enumerate() {
        follower.body.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        let mut lines = follower.body.lines().map(Result::unwrap);
        assert_eq!([(); 3].map(|()| lines.next().unwrap()), ["50", "no end any more", "last"]);
        writeln!(fifo, "after that {number}").unwrap();
        assert!(lines.any(|line| line == format!("after that {number}")));
    }
    assert!(node.stop().0.success());
    assert!(scratch.read("log/a.log").contains("50\nno end any more\nlast\nafter that 0\nafter that 1\n"));
}

#[test]
fn followers_see_the_end() {
    let scratch = Scratch::new();
    let script =
        "trap 'echo good bye; exit 0' TERM; touch $D/a.ready; while :; do sleep 1000 & wait $!; done";
    let node = Node::start(&scratch, vec![daemon(&scratch, "a", script)]);
    node.wait_ready();
    let target = "/v1/node/units/a/log?lines=0&follow=true";
    let follower = http::send(node.control(), &Request::new("GET", target)).unwrap();
    assert!(node.stop().0.success());
    let lines: Vec<String> = follower.body.lines().map(Result::unwrap).collect();
    assert_eq!(lines[0], "good bye");
    assert!(lines[1].ends_with("exited with status 0"), "{lines:?}");
}

#[test]
fn files_are_bounded_and_a_reader_who_is_too_slow_loses_lines() {
    let scratch = Scratch::new();
    // 40 MB; the bounds are three times 8 MiB.
    let script = "touch $D/begun; seq 1 6000000; touch $D/a.ready; exec sleep 1000";
    let node = Node::start(&scratch, vec![daemon(&scratch, "a", script)]);
    node.wait_told("STATUS=0 of 1 units ready; not a");
    let target = "/v1/node/units/a/log?lines=0&follow=true";
    let follower = http::send(node.control(), &Request::new("GET", target)).unwrap();
    node.wait_ready();
    let sizes: Vec<u64> = ["a.log", "a.log.1", "a.log.2"]
        .map(|name| scratch.path("log").join(name).metadata().unwrap().len())
        .into();
    assert!(sizes.iter().all(|size| *size <= (8 << 20) + 100) && sizes[1] > 8_000_000, "{sizes:?}");
    let files = fs::read_dir(scratch.path("log")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(files.filter(|name| name != ".lock").count(), 3);
    let (_, last) = node.ask("GET", "/v1/node/units/a/log?lines=100000");
    assert_eq!(last.lines().count(), 1000, "as many as are in memory");
    assert!(last.ends_with("\n6000000\n"));
    // Nothing is lost between the files.
    let (first, second) = (scratch.read("log/a.log.1"), scratch.read("log/a.log"));
    let number = |line: Option<&str>| line.unwrap().parse::<u32>().unwrap();
    assert_eq!(number(first.lines().last()) + 1, number(second.lines().next()));
    let mut lines = follower.body.lines().map(Result::unwrap);
    assert!(
        lines.any(|line| line.starts_with("-- ") && line.ends_with(" lines came too fast to be shown --"))
    );
    assert!(lines.any(|line| line == "6000000"));
    assert!(node.stop().0.success());
}

#[test]
fn a_full_disk_costs_lines_of_the_file_and_nothing_else() {
    if !has_namespaces() {
        return;
    }
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("log")).unwrap();
    let script = "seq 1 100000; touch $D/a.ready; exec sleep 1000";
    let mut command = Command::new("unshare");
    let mount = format!("mount -t tmpfs -o size=64k log {} && exec \"$@\"", scratch.path("log").display());
    command.args(["-Urm", "sh", "-c", &mount, "sh", LAUNCHER]);
    let node = Node::start_plan(&scratch, &plan(&scratch, vec![daemon(&scratch, "a", script)]), command);
    node.wait_ready();
    assert_eq!(node.ask("GET", "/v1/node/units/a/log?lines=1").1, "100000\n");
    assert!(node.status().ready);
    let (ended, text) = node.stop();
    assert!(ended.success());
    assert_eq!(text.matches("No space left on device").count(), 1, "said once: {text}");
}
