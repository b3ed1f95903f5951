//! `check`: what this machine lacks. Everything is tried for real, in processes that are thrown away.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use clap::Parser;
use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::apply;
use crate::apply::idmap::Mapping;
use crate::cli::{CheckArgs, Cli};
use crate::egress;
use crate::error::{Ending, Failure, Step};
use crate::handshake::channel::Channel;
use crate::handshake::message::Message;
use crate::hint::{self, Hint, Machine};
use crate::plan::facts::HostFacts;
use crate::plan::idmap::{IdMapPlan, MapPlan, SingleReason};
use crate::plan::mounts::{MountPlan, MountStep};
use crate::plan::net::NetPlan;
use crate::sandbox::{Mode, Sandbox};
use crate::sys::clone::{self, ExitSignal, Fork, exit_now};
use crate::sys::wait;

/// How good or bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Works.
    Pass,
    /// Works with less.
    Warn,
    /// A launch fails.
    Fail,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was tried.
    pub name: &'static str,
    /// How it went.
    pub verdict: Verdict,
    /// In plain words.
    pub finding: String,
    /// The command for root that mends it; empty if there is none.
    pub fix: String,
}

impl Finding {
    fn pass(name: &'static str, finding: impl Into<String>) -> Self {
        Finding { name, verdict: Verdict::Pass, finding: finding.into(), fix: String::new() }
    }

    fn warn(name: &'static str, finding: impl Into<String>, fix: impl Into<String>) -> Self {
        Finding { name, verdict: Verdict::Warn, finding: finding.into(), fix: fix.into() }
    }

    fn fail(name: &'static str, failure: &Failure, machine: &Machine) -> Self {
        let hint =
            hint::for_failure(failure, machine).unwrap_or(Hint { cause: String::new(), fix: String::new() });
        let finding =
            if hint.cause.is_empty() { failure.to_string() } else { format!("{failure}: {}", hint.cause) };
        Finding { name, verdict: Verdict::Fail, finding, fix: hint.fix }
    }
}

/// Tries everything and prints the report; exit status 0 if a launch works, else 1.
pub fn run(args: &CheckArgs) -> ExitCode {
    let findings = findings(&apply::facts::collect(), &Machine::read());
    let text = if args.json { json(&findings) } else { plain(&findings) };
    // A reader that does not want the rest is no failure of the machine.
    let _ = std::io::stdout().write_all(text.as_bytes());
    match findings.iter().any(|finding| finding.verdict == Verdict::Fail) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

fn findings(facts: &HostFacts, machine: &Machine) -> Vec<Finding> {
    let mut findings = Vec::new();
    let namespaces = probe(facts, Probe::Namespaces);
    findings.push(match &namespaces {
        Ok(()) => Finding::pass("namespaces", "user, mount and network namespaces can be made"),
        Err(failure) => Finding::fail("namespaces", failure, machine),
    });
    if namespaces.is_ok() {
        findings.push(match probe(facts, Probe::Tap) {
            Ok(()) => Finding::pass("tap", "a TAP device can be made in a network namespace"),
            Err(failure) => Finding::fail("tap", &failure, machine),
        });
        findings.push(relay(probe(facts, Probe::Relay), machine));
        findings.push(match probe(facts, Probe::Mounts) {
            Ok(()) => Finding::pass("mounts", "files can be mounted in a mount namespace"),
            Err(failure) => Finding::fail("mounts", &failure, machine),
        });
        findings.push(subordinate_ids(facts));
    }
    findings.push(sandbox(machine));
    findings.push(resolv_conf(facts));
    findings.push(ping());
    findings.extend(overlap(facts));
    findings
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Namespaces,
    Tap,
    Relay,
    Mounts,
}

/// Does one thing in new namespaces, as a launch would.
fn probe(facts: &HostFacts, probe: Probe) -> Result<(), Failure> {
    let talk = |error| Failure::new(Step::Talk, "", error);
    let single = MapPlan::Single(SingleReason::NoRange);
    let ids = IdMapPlan { uid: facts.uid, gid: facts.gid, users: single.clone(), groups: single };
    let (ours, theirs) = Channel::pair().map_err(talk)?;
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    let fork = clone::fork(flags, ExitSignal::Child);
    let child = match fork.map_err(|error| Failure::new(Step::CloneNamespaces, "", error))? {
        Fork::Parent(child) => child,
        Fork::Child => {
            drop(ours);
            exit_now(probe_child(&theirs, probe))
        }
    };
    drop(theirs);
    let mapped = Mapping::start(&ids, child)
        .finish()
        .and_then(|last_gid| ours.send(&Message::IdsMapped { last_gid }, None).map_err(talk));
    // Without its ids the child has nothing to say; the end of the channel ends it.
    let said = mapped.and_then(|()| ours.receive().map_err(talk));
    drop(ours);
    wait::wait_end(child).map_err(talk)?;
    match said?.map(|received| received.message) {
        Some(Message::Failed(failure)) => Err(failure),
        Some(_) => Ok(()),
        None => Err(talk(std::io::ErrorKind::UnexpectedEof.into())),
    }
}

fn probe_child(channel: &Channel, probe: Probe) -> i32 {
    let Ok(Some(_)) = channel.receive() else { return 1 };
    let result = match probe {
        Probe::Namespaces => apply::net::loopback(),
        Probe::Tap => apply::net::open_tap().map(drop),
        Probe::Relay => apply::net::loopback().and_then(|()| egress::demand(forwarder::child::try_egress())),
        Probe::Mounts => {
            let steps = vec![MountStep::Cover { path: "/etc/hosts".into(), text: String::new() }];
            apply::mounts::apply(&MountPlan { steps }, None)
        }
    };
    let message = result.map_or_else(Message::Failed, |()| Message::NetworkReady);
    i32::from(channel.send(&message, None).is_err())
}

/// The relay for outbound connections: really prepared, with its rules (nf_tables: inet, chains of type route, meta, ct).
fn relay(prepared: Result<(), Failure>, machine: &Machine) -> Finding {
    const NAME: &str = "relay";
    let Err(failure) = prepared else {
        return Finding::pass(NAME, "outbound TCP connections are joined in the kernel");
    };
    let fix = hint::for_failure(&failure, machine).map(|hint| hint.fix).unwrap_or_default();
    Finding::warn(NAME, format!("{failure}; they go by the TAP, at a fraction of the speed"), fix)
}

/// Subordinate ids: really mapped by the helpers, not only listed.
fn subordinate_ids(facts: &HostFacts) -> Finding {
    const NAME: &str = "subordinate ids";
    const LESS: &str =
        "the child has one user id only; enough for most commands, not for those that change users";
    let user = facts.user.clone().unwrap_or_else(|| facts.uid.to_string());
    let plan = IdMapPlan::new(facts);
    match (&plan.users, &plan.groups) {
        (MapPlan::Direct(_), _) => return Finding::pass(NAME, "not needed by root"),
        (MapPlan::Single(SingleReason::NoHelper), _) => {
            let finding = format!("newuidmap and newgidmap are not installed: {LESS}");
            return Finding::warn(NAME, finding, "apt-get install uidmap");
        }
        (MapPlan::Single(SingleReason::NoRange), _) => {
            let fix = format!("usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}");
            return Finding::warn(
                NAME,
                format!("{user} has none in /etc/subuid and /etc/subgid: {LESS}"),
                fix,
            );
        }
        _ => {}
    }
    match map_for_real(&plan) {
        Ok(true) => Finding::pass(
            NAME,
            format!("{} user ids are mapped by newuidmap", u64::from(plan.users.last_id()) + 1),
        ),
        Ok(false) => {
            let (uidmap, gidmap) = (facts.newuidmap.as_deref(), facts.newgidmap.as_deref());
            let programs: Vec<String> =
                uidmap.into_iter().chain(gidmap).map(|path| path.display().to_string()).collect();
            let finding =
                format!("newuidmap or newgidmap is there but fails (run with -v to see why): {LESS}");
            match no_new_privileges() {
                true => Finding::warn(
                    NAME,
                    format!("{finding}; this session forbids setuid programs (NoNewPrivs)"),
                    "",
                ),
                false => Finding::warn(NAME, finding, format!("chmod u+s {}", programs.join(" "))),
            }
        }
        Err(failure) => Finding::warn(NAME, failure.to_string(), ""),
    }
}

/// Whether both helpers map what the plan says.
fn map_for_real(plan: &IdMapPlan) -> Result<bool, Failure> {
    let talk = |error| Failure::new(Step::Talk, "", error);
    let (ours, theirs) = Channel::pair().map_err(talk)?;
    let fork = clone::fork(CloneFlags::CLONE_NEWUSER, ExitSignal::Child);
    let child = match fork.map_err(|error| Failure::new(Step::CloneNamespaces, "", error))? {
        Fork::Parent(child) => child,
        Fork::Child => {
            drop(ours);
            let _ = theirs.receive();
            exit_now(0)
        }
    };
    let _ = Mapping::start(plan, child).finish();
    let lines =
        |file: &str| fs::read_to_string(format!("/proc/{child}/{file}")).unwrap_or_default().lines().count();
    let mapped = lines("uid_map") > 1 && lines("gid_map") > 1;
    drop((ours, theirs));
    wait::wait_end(child).map_err(talk)?;
    Ok(mapped)
}

/// The sandbox of the engine: really entered.
fn sandbox(machine: &Machine) -> Finding {
    const NAME: &str = "sandbox";
    let less = |finding: String| {
        let fix = machine.forbids_namespaces().map(|hint| hint.fix).unwrap_or_default();
        Finding::warn(NAME, finding, fix)
    };
    match enter_sandbox() {
        Ok((0, layers)) => Finding::pass(NAME, format!("the engine keeps sockets only: {layers}")),
        Ok((_, layers)) => less(format!("the engine keeps more than sockets: {layers}")),
        Err(error) => less(format!("it cannot be tried: {error}")),
    }
}

/// How many layers are missing, and which there are or are not.
fn enter_sandbox() -> io::Result<(i32, String)> {
    let (mut reader, mut writer) = io::pipe()?;
    let child = match clone::fork(CloneFlags::empty(), ExitSignal::Child)? {
        Fork::Parent(child) => child,
        Fork::Child => {
            let (missing, layers) = match Sandbox::new(Mode::Auto).enter() {
                Ok(confinement) => (confinement.missing.len(), confinement.to_string()),
                Err(error) => (1, error.to_string()),
            };
            let written = writer.write_all(layers.as_bytes());
            exit_now(if written.is_ok() { missing as i32 } else { -1 })
        }
    };
    drop(writer);
    let mut layers = String::new();
    let read = reader.read_to_string(&mut layers);
    match (wait::wait_end(child)?, read?) {
        (Ending::Exited(missing), 1..) => Ok((missing, layers)),
        (ending, _) => Err(io::Error::other(format!("the process {ending}"))),
    }
}

fn no_new_privileges() -> bool {
    nix::sys::prctl::get_no_new_privs().unwrap_or(false)
}

fn resolv_conf(facts: &HostFacts) -> Finding {
    const NAME: &str = "resolv.conf";
    if !fs::exists("/etc/resolv.conf").unwrap_or(false) {
        let finding = "/etc/resolv.conf is missing or a dangling link: the engine has no name server to ask (give one by --dns)";
        return Finding::warn(NAME, finding, "");
    }
    match facts.resolv_conf.lines().filter(|line| line.starts_with("nameserver")).count() {
        0 => Finding::warn(NAME, "/etc/resolv.conf names no server: give one by --dns", ""),
        count => Finding::pass(NAME, format!("{count} name servers")),
    }
}

/// The engine pings through ping sockets, which the host has to allow.
fn ping() -> Finding {
    const NAME: &str = "ping";
    match socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp) {
        Ok(_) => Finding::pass(NAME, "ping sockets are allowed"),
        Err(error) => Finding::warn(
            NAME,
            format!("ping to the outside does not work in the child: {}", std::io::Error::from(error)),
            "sysctl -w net.ipv4.ping_group_range='0 2147483647'",
        ),
    }
}

/// Overlap of the default networks with the host's.
fn overlap(facts: &HostFacts) -> Vec<Finding> {
    const NAME: &str = "addresses";
    let Ok(cli) = Cli::try_parse_from(["rootless-launch", "--", "true"]) else { return Vec::new() };
    let Ok(net) = NetPlan::new(&cli.run, "", facts) else { return Vec::new() };
    let overlaps = net.overlaps(facts);
    if overlaps.is_empty() {
        return vec![Finding::pass(NAME, "the default networks are free here")];
    }
    overlaps.into_iter().map(|text| Finding::warn(NAME, text, "")).collect()
}

fn plain(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { name, verdict, finding, fix } in findings {
        let _ = writeln!(text, "{}  {name}: {finding}", verdict.word());
        if !fix.is_empty() {
            let _ = writeln!(text, "      as root: {fix}");
        }
    }
    text
}

fn json(findings: &[Finding]) -> String {
    let objects = findings.iter().map(|Finding { name, verdict, finding, fix }| {
        format!(
            "  {{\"name\": {}, \"verdict\": {}, \"finding\": {}, \"fix\": {}}}",
            quote(name),
            quote(verdict.word()),
            quote(finding),
            quote(fix)
        )
    });
    format!("[\n{}\n]\n", objects.collect::<Vec<_>>().join(",\n"))
}

/// A JSON string, RFC 8259 section 7.
fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\0'..='\x1f' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(character));
            }
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_strings_are_escaped() {
        assert_eq!(quote("a\"b\\c\nd ä"), "\"a\\\"b\\\\c\\u000ad ä\"");
    }

    #[test]
    fn report_names_the_fix_under_its_finding() {
        let findings = [Finding::pass("a", "fine"), Finding::warn("b", "less", "do this")];
        assert_eq!(plain(&findings), "pass  a: fine\nwarn  b: less\n      as root: do this\n");
        assert_eq!(
            json(&findings[..1]),
            "[\n  {\"name\": \"a\", \"verdict\": \"pass\", \"finding\": \"fine\", \"fix\": \"\"}\n]\n"
        );
    }
}
