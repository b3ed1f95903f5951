//! What concerns running instances: the command line's side of the control API.

pub mod args;
pub mod http;
mod node;
mod show;
mod stop;

use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use netstack::config::IpNet;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use thiserror::Error;

use self::args::{
    CaptureCommand, ClientCommand, DnsCommand, FlowArgs, OverlayCommand, Plain, PolicyCommand, PortCommand,
    PortName, Which,
};
use self::http::{HttpError, Request};
use self::show::Show;
use crate::api::model::{
    Capture, Dns, DnsChange, ErrorBody, FlowList, Info, Overlay, PeerList, Policy, PolicyAddition, PortEvent,
    PortSpec, PortStatus, Position, StaticName, Statistics,
};
use crate::enter::{self, EnterError};
use crate::error::with_causes;
use crate::state_dir::{Instance, Place, STATE_DIR_VARIABLE};

/// Why a command about an instance was not done.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nothing lives where it was looked for.
    #[error("no instance runs in {0:?}")]
    NotRunning(PathBuf),
    /// No instance was named, and none runs.
    #[error("no instance runs")]
    None,
    /// No instance was named, and several run.
    #[error("several instances run, choose one by --name: {}", .0.join(", "))]
    Several(Vec<String>),
    /// The server is not there, or does not answer.
    #[error("the instance does not answer")]
    Http(#[from] HttpError),
    /// It answers something else than it should.
    #[error("the instance's answer cannot be understood")]
    Answer(#[source] serde_json::Error),
    /// It will not do it.
    #[error("{message}")]
    Refused {
        /// Status of the answer.
        status: u16,
        /// Why.
        message: String,
    },
    /// No published port is like that.
    #[error("no port is published as {0}")]
    NoSuchPort(Box<PortSpec>),
    /// There can be one capture at a time.
    #[error("a capture runs already")]
    CaptureRuns,
    /// A file could not be read or made.
    #[error("{path:?}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It has no units.
    #[error("{0} is no node: it has no units")]
    NoNode(String),
    /// A unit is not ready after it was started again.
    #[error("unit {unit} {failure} (it is {state}); its log is {log}")]
    UnitFailed {
        /// The unit.
        unit: String,
        /// Its state, in one word.
        state: String,
        /// Why.
        failure: String,
        /// Its log file.
        log: String,
    },
    /// The launcher cannot be signalled or waited for.
    #[error("cannot stop process {pid}")]
    Stop {
        /// The launcher.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was killed, and something of it is there still.
    #[error("{0} was killed, and has not ended yet")]
    Lingers(String),
    /// Standard output is closed.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// The instance cannot be entered.
    #[error(transparent)]
    Enter(#[from] EnterError),
}

impl ClientError {
    fn exit_code(&self) -> u8 {
        match self {
            ClientError::NotRunning(_) | ClientError::None | ClientError::Several(_) => 2,
            ClientError::Enter(error) => error.exit_code(),
            _ => 1,
        }
    }
}

/// Does `command`, and says on stderr why it could not.
pub fn main(command: &ClientCommand) -> ExitCode {
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
        Err(ClientError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{}", with_causes(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: &ClientCommand) -> Result<(), ClientError> {
    match command {
        ClientCommand::Port(command) => ports(command),
        ClientCommand::Info(plain) => show::<Info>(plain, "/v1/info"),
        ClientCommand::Flows(args) => show::<FlowList>(&args.plain, &flows_target(args)),
        ClientCommand::Stats(plain) => show::<Statistics>(plain, "/v1/stats"),
        ClientCommand::Policy(command) => policy(command),
        ClientCommand::Overlay(command) => overlay(command),
        ClientCommand::Dns(command) => dns(command),
        ClientCommand::Capture(command) => capture(command),
        ClientCommand::Enter(args) => Err(enter::enter(&select(&args.which)?, &args.cmd).into()),
        ClientCommand::Status(plain) => node::status(plain),
        ClientCommand::Logs(args) => node::logs(args),
        ClientCommand::Restart(args) => node::restart(args),
        ClientCommand::Stop(args) => stop::stop(args),
        ClientCommand::Instances { json } => instances(*json),
    }
}

/// The instance that is meant.
///
/// # Errors
/// It does not run, or it is not clear which one is meant.
pub fn select(which: &Which) -> Result<Instance, ClientError> {
    let named = match which {
        Which { state_dir: None, name: None } => {
            std::env::var_os(STATE_DIR_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
        }
        Which { state_dir, name } => Some(Place::new(state_dir.as_deref(), name.as_ref()).path()),
    };
    if let Some(path) = named {
        return Instance::at(&path).ok_or(ClientError::NotRunning(path));
    }
    let mut all = Instance::all();
    match all.len() {
        0 => Err(ClientError::None),
        1 => Ok(all.remove(0)),
        _ => Err(ClientError::Several(all.into_iter().map(|instance| instance.name).collect())),
    }
}

/// A connection for each request to one instance, and how to print the answers.
struct Api<'a> {
    socket: PathBuf,
    plain: &'a Plain,
}

impl<'a> Api<'a> {
    fn new(plain: &'a Plain) -> Result<Self, ClientError> {
        Ok(Api { socket: select(&plain.which)?.socket(), plain })
    }

    /// The answer's body.
    fn ask(&self, request: &Request<'_>) -> Result<Vec<u8>, ClientError> {
        good(http::send(&self.socket, request)?)?.read().map_err(ClientError::from)
    }

    fn send(&self, method: &str, target: &str, body: &impl Serialize) -> Result<Vec<u8>, ClientError> {
        let body = serde_json::to_vec(body).map_err(ClientError::Answer)?;
        self.ask(&Request { body: &body, ..Request::new(method, target) })
    }

    /// Prints an answer as it is, or for people.
    fn print<T: DeserializeOwned + Show>(&self, body: &[u8]) -> Result<(), ClientError> {
        if self.plain.json {
            return print_json(body);
        }
        let value: T = parse(body)?;
        print(&value.to_text())
    }
}

/// An answer that is no refusal.
fn good(response: http::Response) -> Result<http::Response, ClientError> {
    let status = response.status;
    if (200..300).contains(&status) {
        return Ok(response);
    }
    let body = response.read()?;
    let message = match serde_json::from_slice::<ErrorBody>(&body) {
        // The engine is confined: we can see more of who that is.
        Ok(ErrorBody { message, in_use: Some(port) }) => port.explain(message),
        Ok(ErrorBody { message, in_use: None }) => message,
        Err(_) => format!("HTTP status {status}"),
    };
    Err(ClientError::Refused { status, message })
}

fn show<T: DeserializeOwned + Show>(plain: &Plain, target: &str) -> Result<(), ClientError> {
    let api = Api::new(plain)?;
    api.print::<T>(&api.ask(&Request::new("GET", target))?)
}

fn ports(command: &PortCommand) -> Result<(), ClientError> {
    match command {
        PortCommand::Add { specs, plain } => {
            let api = Api::new(plain)?;
            for spec in specs {
                let added = api.send("POST", "/v1/ports", spec)?;
                if plain.json {
                    print_json(&added)?;
                } else {
                    let PortStatus { id, spec, .. } = parse(&added)?;
                    print(&format!("{id}\t{spec}\n"))?;
                }
            }
            Ok(())
        }
        PortCommand::List(plain) => show::<Vec<PortStatus>>(plain, "/v1/ports"),
        PortCommand::Remove { ports, plain } => {
            let api = Api::new(plain)?;
            for port in ports {
                let id = id(&api, port)?;
                api.ask(&Request::new("DELETE", &format!("/v1/ports/{id}")))?;
                print(&if plain.json { format!("{{\"id\":{id}}}\n") } else { format!("{id}\n") })?;
            }
            Ok(())
        }
        PortCommand::Watch(plain) => watch(&Api::new(plain)?),
    }
}

fn id(api: &Api<'_>, port: &PortName) -> Result<u64, ClientError> {
    let spec = match port {
        PortName::Id(id) => return Ok(*id),
        PortName::Spec(spec) => spec,
    };
    let ports: Vec<PortStatus> = parse(&api.ask(&Request::new("GET", "/v1/ports"))?)?;
    let found = ports.iter().find(|port| port.spec == **spec);
    found.map(|port| port.id).ok_or_else(|| ClientError::NoSuchPort(spec.clone()))
}

fn watch(api: &Api<'_>) -> Result<(), ClientError> {
    let response = good(http::send(&api.socket, &Request::new("GET", "/v1/ports/watch"))?)?;
    for line in response.body.lines() {
        let line = line.map_err(HttpError::Receive)?;
        match line.as_str() {
            // It lives.
            "" => {}
            line if api.plain.json => print_json(line.as_bytes())?,
            line => {
                let event: PortEvent = parse(line.as_bytes())?;
                print(&event.to_text())?;
            }
        }
    }
    Ok(())
}

fn flows_target(args: &FlowArgs) -> String {
    let FlowArgs { protocol, child, remote, limit, plain: _ } = args;
    let mut target = format!("/v1/flows?limit={limit}");
    if let Some(protocol) = protocol {
        target.push_str(&format!("&protocol={}", protocol.name()));
    }
    for (key, endpoint) in [("child", child), ("remote", remote)] {
        if let Some(endpoint) = endpoint {
            let text = endpoint.to_string().replace('%', "%25").replace('[', "%5B").replace(']', "%5D");
            target.push_str(&format!("&{key}={text}"));
        }
    }
    target
}

fn policy(command: &PolicyCommand) -> Result<(), ClientError> {
    match command {
        PolicyCommand::Get(plain) => show::<Policy>(plain, "/v1/policy"),
        PolicyCommand::Set { file, plain } => {
            let text = read(file)?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            let policy = Policy { rules: lines.map(str::to_owned).collect(), hits: Vec::new() };
            let api = Api::new(plain)?;
            api.print::<Policy>(&api.send("PUT", "/v1/policy", &policy)?)
        }
        PolicyCommand::Add { rules, first, plain } => {
            let position = if *first { Position::First } else { Position::Last };
            let addition = PolicyAddition { rules: rules.clone(), position };
            let api = Api::new(plain)?;
            api.print::<Policy>(&api.send("POST", "/v1/policy", &addition)?)
        }
    }
}

fn overlay(command: &OverlayCommand) -> Result<(), ClientError> {
    let (method, peers, plain) = match command {
        OverlayCommand::List(plain) => return show::<Overlay>(plain, "/v1/overlay"),
        OverlayCommand::Add { peers, plain } => ("POST", peers, plain),
        OverlayCommand::Remove { peers, plain } => ("DELETE", peers, plain),
    };
    let api = Api::new(plain)?;
    let peers = PeerList { peers: peers.iter().map(IpNet::to_string).collect() };
    api.print::<Overlay>(&api.send(method, "/v1/overlay", &peers)?)
}

fn dns(command: &DnsCommand) -> Result<(), ClientError> {
    match command {
        DnsCommand::Get(plain) => show::<Dns>(plain, "/v1/dns"),
        DnsCommand::Set { server, host_servers, dns_name, no_names, plain } => {
            let names =
                dns_name.iter().map(|(name, address)| StaticName { name: name.clone(), address: *address });
            let change = DnsChange {
                servers: (*host_servers || !server.is_empty()).then(|| server.clone()),
                names: (*no_names || !dns_name.is_empty()).then(|| names.collect()),
            };
            let api = Api::new(plain)?;
            api.print::<Dns>(&api.send("PUT", "/v1/dns", &change)?)
        }
    }
}

fn capture(command: &CaptureCommand) -> Result<(), ClientError> {
    match command {
        CaptureCommand::Start { file: path, plain } => {
            let api = Api::new(plain)?;
            // Not the file of a capture that runs.
            if parse::<Capture>(&api.ask(&Request::new("GET", "/v1/capture"))?)?.running {
                return Err(ClientError::CaptureRuns);
            }
            let file =
                File::create(path).map_err(|source| ClientError::File { path: path.clone(), source })?;
            let file = Request { file: Some(file.as_fd()), ..Request::new("POST", "/v1/capture") };
            api.print::<Capture>(&api.ask(&file)?)
        }
        CaptureCommand::Stop(plain) => {
            let api = Api::new(plain)?;
            api.print::<Capture>(&api.ask(&Request::new("DELETE", "/v1/capture"))?)
        }
        CaptureCommand::Status(plain) => show::<Capture>(plain, "/v1/capture"),
    }
}

fn instances(json: bool) -> Result<(), ClientError> {
    let all = Instance::all();
    if !json {
        return print(&all.to_text());
    }
    let all: Vec<_> = all
        .iter()
        .map(|instance| {
            json!({
                "name": instance.name,
                "stateDir": instance.path,
                "launcherPID": instance.launcher.map(nix::unistd::Pid::as_raw),
                "childPID": instance.child.map(nix::unistd::Pid::as_raw),
            })
        })
        .collect();
    print_json(json!(all).to_string().as_bytes())
}

fn read(path: &Path) -> Result<String, ClientError> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(path)
    };
    text.map_err(|source| ClientError::File { path: path.to_owned(), source })
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(ClientError::Answer)
}

fn print(text: &str) -> Result<(), ClientError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(ClientError::Output)
}

fn print_json(body: &[u8]) -> Result<(), ClientError> {
    let mut line = body.to_vec();
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line).and_then(|()| out.flush()).map_err(ClientError::Output)
}
