//! `status`, and what concerns the units of a node.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::args::{LogsArgs, Plain, RestartArgs};
use super::http::{self, HttpError, Request};
use super::show::{Show, Table, bytes};
use super::{ClientError, good, parse, print, print_json, select};
use crate::api::model::{Info, PortStatus, Statistics};
use crate::state_dir::Instance;
use crate::supervisor::control::{NodeStatus, UnitStatus, json};
use crate::supervisor::unit::PlannedProgram;

/// All that is to be known of an instance at one glance. What an instance does not have is absent.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    name: String,
    state_dir: String,
    /// Whether the command was started.
    ready: bool,
    #[serde(rename = "launcherPID", skip_serializing_if = "Option::is_none")]
    launcher: Option<i32>,
    #[serde(rename = "childPID", skip_serializing_if = "Option::is_none")]
    child: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<Info>,
    #[serde(skip_serializing_if = "Option::is_none")]
    statistics: Option<Statistics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<Vec<PortStatus>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<NodeStatus>,
}

/// Prints everything about an instance in short.
pub(super) fn status(plain: &Plain) -> Result<(), ClientError> {
    let instance = select(&plain.which)?;
    let Instance { name, path, launcher, child } = &instance;
    let status = Status {
        name: name.clone(),
        state_dir: path.display().to_string(),
        ready: child.is_some(),
        launcher: launcher.map(nix::unistd::Pid::as_raw),
        child: child.map(nix::unistd::Pid::as_raw),
        info: ask_engine(&instance, "/v1/info")?,
        statistics: ask_engine(&instance, "/v1/stats")?,
        ports: ask_engine(&instance, "/v1/ports")?,
        node: node(&instance)?,
    };
    if plain.json { print_json(&json(&status)) } else { print(&status.to_text()) }
}

/// Prints lines of a unit.
pub(super) fn logs(args: &LogsArgs) -> Result<(), ClientError> {
    let LogsArgs { unit, follow, lines, which } = args;
    let target = format!("/v1/node/units/{unit}/log?lines={lines}&follow={follow}");
    let mut response = ask_node(&select(which)?, &Request::new("GET", &target))?;
    if *follow {
        wait_for_ever(&response)?;
    }
    let mut out = io::stdout().lock();
    let mut bytes = [0; 16 << 10];
    loop {
        match response.body.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                let lines = bytes.get(..count).unwrap_or_default();
                out.write_all(lines).and_then(|()| out.flush()).map_err(ClientError::Output)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(HttpError::Receive(error).into()),
        }
    }
}

/// Starts a unit anew and waits for it.
pub(super) fn restart(args: &RestartArgs) -> Result<(), ClientError> {
    let RestartArgs { unit, plain } = args;
    let target = format!("/v1/node/units/{unit}/restart");
    let response = ask_node(&select(&plain.which)?, &Request::new("POST", &target))?;
    wait_for_ever(&response)?;
    let body = response.read()?;
    let status: UnitStatus = parse(&body)?;
    if !status.is_good() {
        let UnitStatus { name: unit, state, failure, log, .. } = status;
        let failure = failure.unwrap_or_else(|| "was stopped".to_owned());
        return Err(ClientError::UnitFailed { unit, state, failure, log });
    }
    if plain.json { print_json(&body) } else { print(&format!("{} is {}\n", status.name, status.state)) }
}

/// What the supervisor of a node says; nothing if the instance is no node.
pub(super) fn node(instance: &Instance) -> Result<Option<NodeStatus>, ClientError> {
    match ask_node(instance, &Request::new("GET", "/v1/node")) {
        Ok(response) => parse(&response.read()?).map(Some),
        Err(ClientError::NoNode(_)) => Ok(None),
        // It has just ended, or is about to begin.
        Err(ClientError::Http(HttpError::Connect { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Tells the supervisor of a node that is being stopped that nobody waits for pods.
pub(super) fn hurry(instance: &Instance) {
    // It has just ended, or goes on as it was.
    let _ = ask_node(instance, &Request::new("POST", "/v1/node/stop"));
}

fn ask_node(instance: &Instance, request: &Request<'_>) -> Result<http::Response, ClientError> {
    match http::send(&instance.node_socket(), request) {
        Err(HttpError::Connect { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err(ClientError::NoNode(instance.name.clone()))
        }
        other => good(other?),
    }
}

/// What the engine says; nothing if there is none, or before the instance is ready: it would not answer yet.
fn ask_engine<T: DeserializeOwned>(instance: &Instance, target: &str) -> Result<Option<T>, ClientError> {
    if instance.child.is_none() {
        return Ok(None);
    }
    match http::send(&instance.socket(), &Request::new("GET", target)) {
        Err(HttpError::Connect { .. }) => Ok(None),
        other => parse(&good(other?)?.read()?).map(Some),
    }
}

/// The next word may take its time: a unit that starts, or has nothing to say.
fn wait_for_ever(response: &http::Response) -> Result<(), ClientError> {
    let stream = response.body.get_ref();
    stream.set_read_timeout(None).map_err(|error| HttpError::Receive(error).into())
}

impl Show for Status {
    fn to_text(&self) -> String {
        let pid = |pid: Option<i32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let command =
            if self.ready { format!("command {}", pid(self.child)) } else { "not ready yet".to_owned() };
        let mut text =
            format!("{}  {}\nlauncher {}, {command}\n", self.name, self.state_dir, pid(self.launcher));
        if let Some(info) = &self.info {
            let network = info.network_driver.iter().flat_map(|network| {
                network.child_ip.iter().chain(&network.child_ipv6).map(ToString::to_string)
            });
            let addresses: Vec<String> = network.collect();
            text.push_str(&format!("version {}, addresses {}\n", info.version, addresses.join(", ")));
        }
        if let Some(statistics) = &self.statistics {
            let dropped: u64 = statistics.drops.iter().map(|drops| drops.count).sum();
            let relay = &statistics.relay;
            text.push_str(&format!(
                "{} flows, {} relayed connections; {} from child, {} to child; {dropped} frames dropped\n",
                statistics.flows,
                relay.connections,
                bytes(statistics.frames.bytes_from_child.saturating_add(relay.bytes_from_child)),
                bytes(statistics.frames.bytes_to_child.saturating_add(relay.bytes_to_child)),
            ));
        }
        if let Some(ports) = self.ports.as_ref().filter(|ports| !ports.is_empty()) {
            text.push_str(&format!("\n{}", ports.to_text()));
        }
        if let Some(node) = &self.node {
            text.push_str(&format!("\n{}", node.to_text()));
        }
        text
    }
}

impl Show for NodeStatus {
    fn to_text(&self) -> String {
        let state = match (self.stopping, self.ready) {
            (true, _) => "is being stopped",
            (false, true) => "is ready",
            (false, false) => "is not ready",
        };
        let mut table =
            Table::new(&["UNIT", "STATE", "SINCE", "PID", "RESTARTS", "LAST EXIT", "LOG"]).right([3, 4]);
        for unit in &self.units {
            let ending = unit.last_exit.as_ref().and_then(|exit| exit.ending());
            table.row([
                &unit.name,
                &unit.state,
                &unit.since,
                &unit.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                &unit.restarts.to_string(),
                &ending.map_or_else(|| "-".to_owned(), |ending| ending.to_string()),
                &unit.log,
            ]);
        }
        let mut text = format!("the node {state}\n{}", table.to_text());
        for unit in &self.units {
            let line = match (&unit.failure, unit.state.as_str(), &unit.says) {
                (Some(failure), ..) => failure.clone(),
                (None, "starting", Some(says)) => format!("starts; it says: {says}"),
                (None, "starting", None) => format!("starts; it is ready when {}", unit.ready_when),
                // One that has ended has nothing to add.
                (None, "ready", Some(says)) => format!("says: {says}"),
                _ => continue,
            };
            text.push_str(&format!("{} {line}\n", unit.name));
        }
        if !self.programs.is_empty() {
            let mut table = Table::new(&["PROGRAM", "VERSION", "FILE"]);
            for PlannedProgram { name, version, file } in &self.programs {
                table.row([name, version.as_deref().unwrap_or("-"), &file.display().to_string()]);
            }
            text.push_str(&format!("\n{}", table.to_text()));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::control::LastExit;

    #[test]
    fn units_are_a_table_and_what_is_wrong_is_said() {
        let unit = |name: &str, state: &str| UnitStatus {
            name: name.into(),
            state: state.into(),
            ready_when: "it says READY=1".into(),
            since: "2026-11-22T15:30:22Z".into(),
            for_seconds: 4,
            pid: Some(7),
            restarts: 0,
            last_exit: None,
            failure: None,
            says: None,
            log: format!("/log/{name}.log"),
        };
        let paused = UnitStatus {
            pid: None,
            restarts: 3,
            last_exit: Some(LastExit { status: None, signal: Some(9) }),
            failure: Some("was killed by SIGKILL".into()),
            ..unit("flanneld", "paused")
        };
        let cluster = UnitStatus { says: Some("nobody is there".into()), ..unit("cluster", "starting") };
        let talkative = UnitStatus { says: Some("all is well".into()), ..unit("other", "ready") };
        let node = NodeStatus {
            version: "0.1.0".into(),
            pid: 1,
            ready: false,
            stopping: false,
            stop_seconds: 30,
            units: vec![unit("containerd", "ready"), paused, unit("kubelet", "starting"), cluster, talkative],
            programs: vec![
                PlannedProgram {
                    name: "containerd".into(),
                    version: Some("2.3.4".into()),
                    file: "/usr/bin/containerd".into(),
                },
                PlannedProgram {
                    name: "CNI plugin bridge".into(),
                    version: None,
                    file: "/opt/cni/bin/bridge".into(),
                },
            ],
        };
        let expected = "\
the node is not ready
UNIT        STATE     SINCE                 PID  RESTARTS  LAST EXIT              LOG
containerd  ready     2026-11-22T15:30:22Z    7         0  -                      /log/containerd.log
flanneld    paused    2026-11-22T15:30:22Z    -         3  was killed by SIGKILL  /log/flanneld.log
kubelet     starting  2026-11-22T15:30:22Z    7         0  -                      /log/kubelet.log
cluster     starting  2026-11-22T15:30:22Z    7         0  -                      /log/cluster.log
other       ready     2026-11-22T15:30:22Z    7         0  -                      /log/other.log
flanneld was killed by SIGKILL
kubelet starts; it is ready when it says READY=1
cluster starts; it says: nobody is there
other says: all is well

PROGRAM            VERSION  FILE
containerd         2.3.4    /usr/bin/containerd
CNI plugin bridge  -        /opt/cni/bin/bridge
";
        assert_eq!(node.to_text(), expected);
    }
}
