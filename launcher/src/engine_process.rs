//! The engine and its agent as the launcher holds them, and what outlives them.
//!
//! # Theory of operation
//! An engine that dies while CMD runs is started again, like the first: forked from the launcher, sandboxed, with an agent of its own.
//! CMD notices a pause. What makes that possible lies with the launcher, and a fork hands it on:
//!
//! | what | how it came here |
//! |---|---|
//! | the TAP | the child's message; the interface stays as it is, frames wait in its queue |
//! | sockets of the API, metrics, capture file | the launcher opened them |
//! | sockets of published ports, with their numbers | the engine hands over each ([`Store`]) |
//! | egress policy, DNS servers and names | the engine writes them down ([`Page`]) |
//!
//! Lost are connections, datagram bindings, leases, counters, captures by the API. [`Restarts`] says how often.
//!
//! At the end the launcher lets go of its copies first ([`release`](EngineProcess::release)): ports are free when the engine closes
//! them, and the last reference to the TAP, whose close is slow, is the engine's to dispose of.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use forwarder::driver::ChildLine;
use forwarder::manager::Limits;
use forwarder::store::Store;
use log::{debug, warn};
use nix::poll::PollTimeout;
use nix::sched::CloneFlags;
use nix::unistd::Pid;

use crate::agent::Agent;
use crate::engine::{self, EngineFiles, EngineTask, Report};
use crate::error::{Ending, Failure, LaunchError, Step};
use crate::guard::Guard;
use crate::handshake::channel::{Channel, Received};
use crate::handshake::message::Message;
use crate::join::Target;
use crate::plan::forwards::ForwardPlan;
use crate::plan::net::EnginePlan;
use crate::restart::{LIMIT, Restarts, Verdict};
use crate::sandbox::Mode;
use crate::settings::Page;
use crate::sys::clone::{self, ExitSignal, Fork};
use crate::sys::pidfd;
use crate::sys::wait;

/// What becomes of a launch whose engine has died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDeath {
    /// The engine is started again, unless it dies too often.
    Restart,
    /// The launch ends.
    End,
}

/// What every engine of a launch is started with.
#[derive(Clone, Copy, Debug)]
pub struct EngineStart<'a> {
    /// Its settings.
    pub net: &'a EnginePlan,
    /// What is published from the start.
    pub forwards: &'a ForwardPlan,
    /// What it gives up.
    pub sandbox: Mode,
    /// The state directory, for those who ask.
    pub state_dir: Option<&'a Path>,
    /// The process that becomes CMD.
    pub child: Pid,
    /// What to tell at the end.
    pub report: Report,
}

/// An engine process, or the place of one.
#[derive(Debug)]
pub struct EngineProcess {
    /// `None` when it is dead.
    process: Option<Pid>,
    channel: Option<Channel>,
    agent: AgentState,
    /// An agent that was killed and is not reaped yet.
    former_agent: Option<Pid>,
    /// The child's namespaces, once they are there.
    target: Option<Target>,
    /// Queues of the TAP.
    tap: Vec<OwnedFd>,
    store: Store,
    settings: Page,
    files: EngineFiles,
    restarts: Restarts,
    /// When the next one is to be started.
    due: Option<Instant>,
    /// Why the engine says it ends.
    words: Option<Failure>,
}

/// Where the forwarder's agent stands.
#[derive(Debug)]
enum AgentState {
    /// Nobody will ask for it.
    Absent,
    /// There is no network namespace yet; this is its end of the line.
    Awaited(OwnedFd),
    /// The engine will, once there is a port to publish.
    Prepared(Agent),
    /// It runs.
    Running(Pid),
}

impl EngineProcess {
    /// Starts the first engine, for a child in the namespaces of `target`; `None`: [`prepare_agent`](Self::prepare_agent) follows.
    ///
    /// # Errors
    /// memfd_create(2), socketpair(2), clone3(2).
    pub fn start(
        start: &EngineStart<'_>,
        target: Option<Target>,
        files: EngineFiles,
    ) -> Result<Self, Failure> {
        let settings = Page::create();
        let mut engine = EngineProcess {
            process: None,
            channel: None,
            agent: AgentState::Absent,
            former_agent: None,
            target,
            tap: Vec::new(),
            store: Store::new(Limits::default()),
            settings: settings.map_err(|error| Failure::new(Step::Prepare, "a file of memory", error))?,
            files,
            restarts: Restarts::default(),
            due: None,
            words: None,
        };
        engine.fork(start)?;
        Ok(engine)
    }

    /// Shows the engine to the guard.
    pub fn show_to(&self, guard: Option<&Guard>) {
        let (Some(process), Some(guard)) = (self.process, guard) else { return };
        // An engine or a guard that is dead already is noticed by its channel.
        if let Err(error) = pidfd::open(process).and_then(|engine| guard.show_engine(&engine)) {
            debug!("the guard does not know the engine: {error}");
        }
    }

    /// The engine's next message; `None` when it is dead.
    ///
    /// # Errors
    /// recvmsg(2), or not a message.
    pub fn receive(&self) -> io::Result<Option<Received>> {
        self.channel.as_ref().map_or(Ok(None), Channel::receive)
    }

    /// Tells the engine. One that is dead will be noticed by its channel.
    pub fn tell(&self, message: &Message) {
        if let Some(channel) = &self.channel {
            let _ = channel.send(message, None);
        }
    }

    /// Hands the TAP to the engine, and keeps it for the next.
    pub fn serve(&mut self, tap: Vec<OwnedFd>) {
        self.tap = tap;
        self.pass_tap();
    }

    /// Notes why the engine ends.
    pub fn handle_failure(&mut self, failure: Failure) {
        self.words = Some(failure);
    }

    /// Takes what the engine wants kept.
    pub fn hear_store(&mut self) {
        self.store.receive();
    }

    /// The child's namespaces are there.
    ///
    /// # Errors
    /// fcntl(2).
    pub fn prepare_agent(&mut self, target: Target) -> io::Result<()> {
        match std::mem::replace(&mut self.agent, AgentState::Absent) {
            AgentState::Awaited(line) => {
                self.agent = AgentState::Prepared(Agent::new(line, target.try_clone()?))
            }
            other => self.agent = other,
        }
        self.target = Some(target);
        Ok(())
    }

    /// Starts the agent if it is prepared; a line that is closed says that nobody wants it any more.
    pub fn start_agent(&mut self) {
        let agent = match std::mem::replace(&mut self.agent, AgentState::Absent) {
            AgentState::Prepared(agent) => agent,
            other => {
                self.agent = other;
                return;
            }
        };
        // Its table of nftables goes with it, and is in the way of the next one's.
        if let Some(former) = self.former_agent.take() {
            let _ = wait::wait_end(former);
        }
        match agent.start() {
            Ok(process) => self.agent = AgentState::Running(process),
            Err(error) => {
                warn!(
                    "published ports and outbound connections go by the TAP: their agent cannot be started: {error}"
                );
            }
        }
    }

    /// The engine's channel is closed before CMD ran, or it is not to be started again: why.
    ///
    /// # Errors
    /// Always.
    pub fn end_of_launch(&mut self) -> LaunchError {
        match (self.reap(), self.words.take()) {
            (Err(failure), _) | (Ok(_), Some(failure)) => failure.into(),
            (Ok(ending), None) => LaunchError::EngineDied(ending),
        }
    }

    /// The engine's channel is closed while CMD runs.
    ///
    /// # Errors
    /// It has died too often.
    pub fn handle_death(&mut self) -> Result<(), LaunchError> {
        let ending = self.reap()?;
        let words = self.words.take();
        // What it has handed over before it died counts.
        self.store.receive();
        self.end_agent();
        self.plan_restart(&format!("the engine process {ending}"), words).map_err(|words| {
            words.map_or(LaunchError::EngineKeepsDying { ending, times: LIMIT }, LaunchError::Failed)
        })
    }

    /// Starts the next engine if it is time. Says whether it did.
    ///
    /// # Errors
    /// It cannot be started, for the last time.
    pub fn restart_if_due(
        &mut self,
        start: &EngineStart<'_>,
        guard: Option<&Guard>,
    ) -> Result<bool, LaunchError> {
        if self.due.is_none_or(|due| Instant::now() < due) {
            return Ok(false);
        }
        self.due = None;
        if let Err(failure) = self.fork(start) {
            let last = |words: Option<Failure>| {
                words.map_or(LaunchError::EngineDied(Ending::Exited(1)), LaunchError::Failed)
            };
            return self.plan_restart("the engine process", Some(failure)).map_err(last).map(|()| false);
        }
        self.show_to(guard);
        self.pass_tap();
        Ok(true)
    }

    /// Lets go of what the engine has as well; nothing is started again.
    pub fn release(&mut self) {
        self.due = None;
        self.tap.clear();
        drop(self.store.bequeath());
        self.files = EngineFiles::default();
    }

    /// Waits until the engine has ended, which was told so.
    ///
    /// # Errors
    /// waitpid(2).
    pub fn finish(&mut self) -> Result<(), Failure> {
        if let Some(engine) = self.process {
            // Processes of the user's may have stopped it, CMD among them.
            let _ = wait::kill(engine, libc::SIGCONT);
            self.reap()?;
        }
        self.end_agent();
        Ok(())
    }

    /// Readable when the engine has something to say, or is dead.
    pub fn channel(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    /// Readable when the engine wants something kept.
    pub fn store(&self) -> Option<BorrowedFd<'_>> {
        self.store.line()
    }

    /// Readable when the agent is wanted.
    pub fn wanted_agent(&self) -> Option<BorrowedFd<'_>> {
        match &self.agent {
            AgentState::Prepared(agent) => Some(agent.as_fd()),
            AgentState::Absent | AgentState::Awaited(_) | AgentState::Running(_) => None,
        }
    }

    /// The agent, if it runs. It ends with the engine, which is to close the published ports first.
    pub fn agent(&self) -> Option<Pid> {
        match self.agent {
            AgentState::Running(process) => Some(process),
            AgentState::Absent | AgentState::Awaited(_) | AgentState::Prepared(_) => None,
        }
    }

    /// Until [`restart_if_due`](Self::restart_if_due) is to be called.
    pub fn timeout(&self) -> PollTimeout {
        let Some(due) = self.due else { return PollTimeout::NONE };
        // Rounded up, or it would be waited for in vain just before.
        let left = due.saturating_duration_since(Instant::now()).as_millis() + 1;
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    fn fork(&mut self, start: &EngineStart<'_>) -> Result<(), Failure> {
        let socket = |error: io::Error| Failure::new(Step::Prepare, "a socket", error);
        let (channel, engines_end) = Channel::pair().map_err(socket)?;
        let (line, agents_end) = ChildLine::pair().map_err(socket)?;
        let line = OwnedFd::from(line);
        let store_line = self.store.connect().map_err(socket)?;
        let target = self.target.as_ref().map(Target::try_clone).transpose().map_err(socket)?;
        let restarts = self.restarts.count();
        // The engine does not report by SIGCHLD: the end of its channel does, and waiting for CMD's orphans
        // never finds it.
        let fork = clone::fork(CloneFlags::empty(), ExitSignal::None);
        match fork.map_err(|error| Failure::new(Step::ForkEngine, "", error))? {
            Fork::Parent(engine) => self.process = Some(engine),
            Fork::Child => {
                let inheritance = self.store.bequeath();
                let task = EngineTask {
                    net: start.net,
                    sandbox: start.sandbox,
                    files: &self.files,
                    state_dir: start.state_dir,
                    child: start.child,
                    forwards: start.forwards,
                    agent: line.as_fd(),
                    settings: &self.settings,
                    restarts,
                    report: start.report,
                    channel: &engines_end,
                };
                engine::main(&task, store_line, inheritance)
            }
        }
        self.channel = Some(channel);
        self.agent = match target {
            Some(target) => AgentState::Prepared(Agent::new(agents_end, target)),
            None => AgentState::Awaited(agents_end),
        };
        Ok(())
    }

    fn pass_tap(&self) {
        if let Some(channel) = self.channel.as_ref().filter(|_| !self.tap.is_empty()) {
            let queues: Vec<_> = self.tap.iter().map(AsFd::as_fd).collect();
            // An engine that is dead will be noticed by its channel.
            let _ = channel.send_all(&Message::Serve, &queues);
        }
    }

    /// Says what has happened and that it is mended; gives the reason back if it is not.
    fn plan_restart(&mut self, what: &str, words: Option<Failure>) -> Result<(), Option<Failure>> {
        let Verdict::Restart { at } = self.restarts.handle_death(Instant::now()) else { return Err(words) };
        let words = words.map_or_else(String::new, |words| format!(" ({words})"));
        warn!("{what}{words}; another one takes its place, and connections that it carried are reset");
        self.due = Some(at);
        Ok(())
    }

    fn reap(&mut self) -> Result<Ending, Failure> {
        self.channel = None;
        let Some(engine) = self.process.take() else { return Ok(Ending::Exited(0)) };
        wait::wait_end(engine).map_err(|error| Failure::new(Step::Prepare, "waiting for the engine", error))
    }

    /// Ends the agent, when the engine has ended. It would end by itself, unless somebody has stopped it.
    ///
    /// Nobody waits until it has vanished: with it goes its table of nftables, for which the kernel takes some 10 ms (RCU). From
    /// here on it does nothing any more.
    fn end_agent(&mut self) {
        if let AgentState::Running(process) = std::mem::replace(&mut self.agent, AgentState::Absent) {
            // Fails only for a process that is dead already.
            let _ = wait::kill(process, libc::SIGKILL);
            // Of two the earlier one is gone by now: the later one was started after it.
            self.former_agent = Some(process);
        }
    }
}

/// Everything ends at once.
impl Drop for EngineProcess {
    fn drop(&mut self) {
        self.release();
        if let Some(engine) = self.process.take() {
            // Fails only for a process that is dead already.
            let _ = wait::kill(engine, libc::SIGKILL);
            let _ = wait::wait_end(engine);
        }
        self.end_agent();
    }
}
