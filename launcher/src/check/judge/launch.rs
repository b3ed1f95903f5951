//! What a launch needs.

use super::super::facts::{Facts, LaunchFacts, Outcome};
use super::super::finding::{Finding, Purpose, Remedy, State};
use super::text;
use crate::hint;
use crate::plan::facts::HostFacts;
use crate::plan::idmap::{IdMapPlan, MapPlan, SingleReason, free_ids};

/// Ids that the pods of a node need beside the caller's own: images have files of users up to nobody (65534).
const NODE_IDS: u32 = 65536;

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    const GROUP: Purpose = Purpose::Launch;
    let (launch, machine) = (&facts.launch, &facts.machine);
    let tried = |name, outcome: &Outcome, works: &str| match outcome {
        Ok(()) => Finding::good(GROUP, name, works),
        Err(failure) => Finding::failed(GROUP, name, failure, machine),
    };
    let works = "user, mount and network namespaces can be made";
    let mut findings = vec![tried("namespaces", &launch.namespaces, works)];
    if launch.namespaces.is_ok() {
        findings.push(tried("tap", &launch.tap, "a TAP device can be made in a network namespace"));
        findings.push(relay(facts));
        findings.push(tried("mounts", &launch.mounts, "files can be mounted in a mount namespace"));
        findings.push(subordinate_ids(&facts.host, launch));
    }
    if launch.no_new_privileges {
        let finding = "set: setuid programs such as newuidmap have no effect; start from a login without it (a unit's \
                       NoNewPrivileges=, a container's no-new-privileges, setpriv)";
        findings.push(Finding::stops(Purpose::Node, "no_new_privs", finding));
    }
    findings.push(sandbox(facts));
    findings.push(resolv_conf(facts));
    findings.push(match launch.ping {
        Ok(()) => Finding::good(GROUP, "ping", "ping sockets are allowed"),
        Err(errno) => {
            let finding = format!("ping to the outside does not work in the child: {}", text(errno));
            Finding::less(GROUP, "ping", finding)
                .mended_by([Remedy::sysctl("net.ipv4.ping_group_range", "0 2147483647")])
        }
    });
    match &launch.overlaps[..] {
        [] => findings.push(Finding::good(GROUP, "addresses", "the default networks are free here")),
        overlaps => findings.extend(overlaps.iter().map(|text| Finding::less(GROUP, "addresses", text))),
    }
    findings
}

fn relay(facts: &Facts) -> Finding {
    const NAME: &str = "relay";
    let Err(failure) = &facts.launch.relay else {
        return Finding::good(Purpose::Launch, NAME, "outbound TCP connections are joined in the kernel");
    };
    let fix = hint::for_failure(failure, &facts.machine).map(|hint| hint.fix).unwrap_or_default();
    Finding::less(Purpose::Launch, NAME, format!("{failure}; they go by the TAP, at a fraction of the speed"))
        .mended_by(Remedy::of_command(&fix))
}

fn sandbox(facts: &Facts) -> Finding {
    const NAME: &str = "sandbox";
    let less = |finding: String| {
        let fix = facts.machine.forbids_namespaces().map(|hint| hint.fix).unwrap_or_default();
        Finding::less(Purpose::Launch, NAME, finding).mended_by(Remedy::of_command(&fix))
    };
    match &facts.launch.sandbox {
        Ok((0, layers)) => {
            Finding::good(Purpose::Launch, NAME, format!("the engine keeps sockets only: {layers}"))
        }
        Ok((_, layers)) => less(format!("the engine keeps more than sockets: {layers}")),
        Err(error) => less(format!("it cannot be tried: {error}")),
    }
}

fn resolv_conf(facts: &Facts) -> Finding {
    const NAME: &str = "resolv.conf";
    if !facts.launch.resolv_conf {
        let finding = "/etc/resolv.conf is missing or a dangling link: the engine has no name server to ask (give one by --dns)";
        return Finding::less(Purpose::Launch, NAME, finding);
    }
    match facts.host.resolv_conf.lines().filter(|line| line.starts_with("nameserver")).count() {
        0 => Finding::less(Purpose::Launch, NAME, "/etc/resolv.conf names no server: give one by --dns"),
        1 => Finding::good(Purpose::Launch, NAME, "1 name server"),
        count => Finding::good(Purpose::Launch, NAME, format!("{count} name servers")),
    }
}

/// Subordinate ids: as they were mapped, not as they are listed.
fn subordinate_ids(host: &HostFacts, launch: &LaunchFacts) -> Finding {
    const NAME: &str = "subordinate ids";
    const LESS: &str =
        "the child has one user id only; enough for most commands, not for those that change users";
    let less = |finding: String| Finding {
        state: State::Stops(Purpose::Node),
        ..Finding::less(Purpose::Launch, NAME, finding)
    };
    let user = host.user.clone().unwrap_or_else(|| host.uid.to_string());
    let grant = || {
        let free = free_ids(NODE_IDS, [&host.subuid, &host.subgid])?;
        let range = format!("{}-{}", free.start, free.end - 1);
        Some(Remedy::Command(match host.user {
            Some(_) => format!("usermod --add-subuids {range} --add-subgids {range} {user}"),
            None => format!("echo {user}:{}:{NODE_IDS} | tee -a /etc/subuid /etc/subgid", free.start),
        }))
    };
    let plan = IdMapPlan::new(host);
    match &plan.users {
        MapPlan::Direct(_) => return Finding::good(Purpose::Launch, NAME, "not needed by root"),
        MapPlan::Single(SingleReason::NoHelper) => {
            return less(format!("newuidmap and newgidmap are not installed: {LESS}"))
                .mended_by([Remedy::Package("uidmap")]);
        }
        MapPlan::Single(SingleReason::NoRange) => {
            return less(format!("{user} has none in /etc/subuid and /etc/subgid: {LESS}"))
                .mended_by(grant());
        }
        MapPlan::Helper { .. } => {}
    }
    let mapped = match &launch.mapped {
        Some(Ok(mapped)) => *mapped,
        Some(Err(failure)) => return less(failure.to_string()),
        None => return less(format!("they could not be tried: {LESS}")),
    };
    if mapped.users <= 1 || mapped.groups <= 1 {
        let finding = format!("newuidmap or newgidmap is there but fails (run with -v to see why): {LESS}");
        if launch.no_new_privileges {
            return less(format!("{finding}; this session forbids setuid programs (NoNewPrivs)"));
        }
        if let Some(file) = launch.linked {
            let finding = format!("{finding}; {file} is a symbolic link, which they do not follow");
            let fix = format!("cp --remove-destination \"$(readlink -f {file})\" {file}");
            return less(finding).mended_by([Remedy::Command(fix)]);
        }
        let programs = host.newuidmap.iter().chain(&host.newgidmap);
        let programs: Vec<String> = programs.map(|path| path.display().to_string()).collect();
        return less(finding).mended_by([Remedy::Command(format!("chmod u+s {}", programs.join(" ")))]);
    }
    let count = mapped.users.min(mapped.groups) - 1;
    if count < u64::from(NODE_IDS) {
        let finding = format!(
            "only {count} beside the caller's own are mapped by newuidmap and newgidmap; a node wants {NODE_IDS}"
        );
        return less(finding).mended_by(grant());
    }
    Finding::good(Purpose::Launch, NAME, format!("{} user ids are mapped by newuidmap", mapped.users))
}
