//! The launcher process: starts the child and the engine, brings them together, and waits.
//!
//! It has one thread: parent-death signals are tied to the thread that forked.

use std::env;
use std::ffi::{CString, NulError, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use forwarder::spec::PortFile;
use log::{debug, info, warn};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid};

use crate::apply;
use crate::apply::cgroup::Cgroup;
use crate::apply::idmap::Mapping;
use crate::child::{self, Activation, ChildTask, Inherited};
use crate::cli::{DryRunArg, RunArgs, SdNotifyArg};
use crate::engine::{EngineFiles, Report};
use crate::engine_process::{EngineProcess, EngineStart, OnDeath};
use crate::error::{Ending, Failure, LaunchError, PortFileError, Step, UsageError, with_causes};
use crate::guard::Guard;
use crate::handshake::channel::Channel;
use crate::handshake::message::Message;
use crate::handshake::state::{Action, Link, ParentHandshake, Peer};
use crate::join::Target;
use crate::notify::{self, Notifier, State};
use crate::plan::Plan;
use crate::plan::cgroup::{CgroupMode, CgroupPlan};
use crate::plan::facts::HostFacts;
use crate::plan::namespaces::{Namespace, NamespacePlan};
use crate::plan::net::NetPlan;
use crate::plan::show::Shown;
use crate::plan::surroundings::Kind;
use crate::sandbox::Mode;
use crate::signals::{Received, Signals};
use crate::state_dir::{InstanceName, Place, StateDir};
use crate::supervisor::unit::NodePlan;
use crate::sweep::UserNamespace;
use crate::sys::clone::{self, ExitSignal, Fork};
use crate::sys::memory;
use crate::sys::pidfd;
use crate::sys::signal::{Disposition, inherited_sigpipe, set_disposition};
use crate::sys::wait::{self, AfterStop, Event};

/// Runs CMD and returns how it ended. On return everything that was started is dead.
///
/// # Errors
/// The launch failed, or the engine died before CMD.
pub fn run(args: &RunArgs) -> Result<Ending, LaunchError> {
    run_node(args, None)
}

/// The same, CMD being the supervisor of a node; what that does is for `--dry-run` to show.
///
/// # Errors
/// As [`run`].
pub fn run_node(args: &RunArgs, node: Option<&NodePlan>) -> Result<Ending, LaunchError> {
    let place = place(args);
    let facts = HostFacts { state_dir: place.path(), ..apply::facts::collect() };
    let mut plan = Plan::new(args, &policy_text(&args.policy)?, &port_files(&args.publish_file)?, &facts)?;
    plan.cgroup = cgroup(args, &plan)?;
    if let Some(format) = args.dry_run {
        return match show(&Shown::new(&plan, args, &facts.state_dir).with(node), format) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(prepare("standard output")(error).into())
            }
            // Or whoever read it has seen enough.
            _ => Ok(Ending::Exited(0)),
        };
    }
    plan.warnings.iter().for_each(|text| warn!("{text}"));
    if plan.surroundings.kind == Kind::Node {
        info!("the command gets the surroundings of a node (--surroundings=plain if that is not wanted)");
    }
    let cmd = args.cmd.iter().map(|word| CString::new(word.as_bytes()));
    let cmd: Vec<CString> = cmd.collect::<Result<_, _>>().map_err(prepare("the command's arguments"))?;
    let pcap = args.pcap.as_deref().map(open_capture).transpose()?;
    let sigchld = set_disposition(Signal::SIGCHLD, Disposition::Default);
    // From here on nothing that is made is left behind because of a signal.
    let signals = Signals::block().map_err(prepare("signals"))?;
    let state = state_dir(args, &plan, &place)?;
    if let Some(file) = &pcap {
        // Only now: an instance that lives there may be writing to that very file. A pipe has nothing to cut.
        let _ = file.set_len(0);
    }
    let (environment, activation) =
        environment(state.as_ref(), args.sdnotify).map_err(prepare("the environment"))?;
    let notifier = match args.sdnotify {
        SdNotifyArg::Launcher => Notifier::from_environment(),
        SdNotifyArg::Command => None,
    };
    plan.cgroup = apply::cgroup::enter(plan.cgroup)?;
    plan.cgroup.warning().iter().for_each(|text| warn!("{text}"));
    let api = match (&plan.net, &state) {
        (NetPlan::Engine(_), Some(state)) => Some(state.listen()?),
        _ => None,
    };
    let metrics = args.metrics.map(|address| {
        let listener = TcpListener::bind(address);
        listener.map_err(|source| UsageError::Metrics { address, source })
    });
    let metrics = metrics.transpose()?;

    // Orphans of CMD become ours, so that their end is seen here.
    prctl::set_child_subreaper(true).map_err(prepare("subreaper"))?;
    // Nobody is there yet to hand it on to.
    if let Some(signal) = signals.take_request_to_end().map_err(prepare("signalfd"))? {
        return Ok(Ending::Killed(signal));
    }

    let inherited = Inherited { mask: signals.inherited_mask(), sigpipe: inherited_sigpipe(), sigchld };
    let launch = Launch {
        plan: &plan,
        cmd: &cmd,
        environment: &environment,
        activation,
        inherited,
        report: report(args),
        sandbox: args.sandbox.into(),
        on_death: args.engine_restart.into(),
        state: state.as_ref(),
    };
    let mut processes = Processes::start(&launch, EngineFiles { pcap, api, metrics })?;
    processes.notifier = notifier;
    processes.supervise(&signals, &launch)
}

/// Opens the file of `--pcap`; what it holds is still there.
fn open_capture(path: &Path) -> Result<File, UsageError> {
    let opened = File::options().write(true).create(true).truncate(false).open(path);
    opened.map_err(|source| UsageError::PcapFile { path: path.display().to_string(), source })
}

fn show(plan: &Shown<'_>, format: DryRunArg) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match format {
        DryRunArg::Text => write!(stdout, "{plan}"),
        DryRunArg::Json => {
            serde_json::to_writer_pretty(&mut stdout, plan)?;
            writeln!(stdout)
        }
    }
}

/// What is to be started.
struct Launch<'a> {
    plan: &'a Plan,
    cmd: &'a [CString],
    environment: &'a [CString],
    activation: Activation,
    inherited: Inherited,
    report: Report,
    sandbox: Mode,
    on_death: OnDeath,
    state: Option<&'a StateDir>,
}

impl<'a> Launch<'a> {
    /// What every engine of this launch is started with; `None` without one.
    fn engine(&self, child: Pid) -> Option<EngineStart<'a>> {
        let NetPlan::Engine(net) = &self.plan.net else { return None };
        Some(EngineStart {
            net,
            forwards: &self.plan.forwards,
            sandbox: self.sandbox,
            state_dir: self.state.map(StateDir::path),
            child,
            report: self.report,
        })
    }
}

/// Only a command with a cgroup namespace can make use of cgroups.
fn cgroup(args: &RunArgs, plan: &Plan) -> Result<CgroupPlan, LaunchError> {
    let mode = args.cgroup.map_or(CgroupMode::Auto, CgroupMode::from);
    match plan.namespaces.contains(Namespace::Cgroup) {
        true => Ok(CgroupPlan::new(mode, &apply::cgroup::facts())?),
        false => Ok(CgroupPlan::Untouched),
    }
}

/// Where the state directory is to be. A node has a name, because its data outlive it.
fn place(args: &RunArgs) -> Place {
    match (&args.name, Kind::of(args)) {
        (None, Kind::Node) if args.state_dir.is_none() => Place::Named(InstanceName::node()),
        (name, _) => Place::new(args.state_dir.as_deref(), name.as_ref()),
    }
}

/// The state directory. The default one of a plain command is a convenience: without it there is no control, and CMD runs all
/// the same.
fn state_dir(args: &RunArgs, plan: &Plan, place: &Place) -> Result<Option<StateDir>, LaunchError> {
    let is_needed = plan.surroundings.kind == Kind::Node || plan.namespaces.detached_net.is_some();
    let is_convenience = args.state_dir.is_none() && args.name.is_none() && !is_needed;
    match StateDir::open(place) {
        Ok(mut state) => {
            if let Some(data) = &plan.surroundings.data {
                state.lock_data(data)?;
                apply::leftovers::mend(data);
            }
            if plan.namespaces.detached_net.is_some() {
                state.make_netns()?;
            }
            Ok(Some(state))
        }
        Err(error) if is_convenience => {
            info!("no control of this instance: {}", with_causes(&error));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// The caller's environment, with what is to be known of the state directory, and whether sockets were passed to us, which CMD gets.
fn environment(
    state: Option<&StateDir>,
    sdnotify: SdNotifyArg,
) -> Result<(Vec<CString>, Activation), NulError> {
    let ours = state.map(StateDir::environment).into_iter().flatten();
    let ours: Vec<(OsString, OsString)> = ours.map(|(name, value)| (name.into(), value)).collect();
    let is_for_us = env::var("LISTEN_PID").is_ok_and(|pid| pid.parse() == Ok(getpid().as_raw()));
    // Both name the process that the sockets are for.
    let is_left_out = |name: &OsString| {
        is_for_us && (name == "LISTEN_PID" || name == "LISTEN_PIDFDID")
            || sdnotify == SdNotifyArg::Launcher && name == notify::VARIABLE
    };
    let inherited =
        env::vars_os().filter(|(name, _)| ours.iter().all(|(other, _)| other != name) && !is_left_out(name));
    let line = |(name, value): &(OsString, OsString)| {
        CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
    };
    let lines = inherited.collect::<Vec<_>>().iter().chain(&ours).map(line).collect::<Result<_, _>>()?;
    Ok((lines, if is_for_us { Activation::ForCommand } else { Activation::None }))
}

/// Everything that runs because of this launch. Dropping it ends and reaps all of it.
struct Processes {
    /// CMD, or the init of its pid namespace.
    child: Option<Pid>,
    /// CMD, where there is an init, once it runs.
    command: Option<OwnedFd>,
    /// How CMD ended, where there is an init.
    ending: Option<Ending>,
    /// `None` if there is nothing to serve.
    engine: Option<EngineProcess>,
    /// `None` until there is somebody to guard.
    guard: Option<Guard>,
    namespace: Option<UserNamespace>,
    /// Closed when the child has executed CMD.
    to_child: Option<Channel>,
    /// There once somebody entered who is no descendant of ours.
    entered: Option<PathBuf>,
    /// `None` if nobody wants to know.
    notifier: Option<Notifier>,
}

impl Processes {
    /// Starts child and engine and maps the child's ids.
    fn start(launch: &Launch<'_>, files: EngineFiles) -> Result<Self, LaunchError> {
        let plan = launch.plan;
        let (to_child, childs_end) = Channel::pair().map_err(prepare("a socket"))?;
        let parent = getpid();
        let fork = clone::fork(namespaces(&plan.namespaces), ExitSignal::Child);
        let child = match fork.map_err(|error| Failure::new(Step::CloneNamespaces, "", error))? {
            Fork::Parent(child) => child,
            Fork::Child => {
                drop(to_child);
                let Launch { cmd, environment, activation, inherited, .. } = *launch;
                let channel = &childs_end;
                child::main(&ChildTask { plan, cmd, environment, activation, channel, parent, inherited })
            }
        };
        drop(childs_end);
        // From here on, whatever fails, both are ended.
        let mut processes = Processes {
            child: Some(child),
            command: None,
            ending: None,
            engine: None,
            guard: None,
            namespace: None,
            to_child: Some(to_child),
            entered: launch.state.map(StateDir::entered),
            notifier: None,
        };
        // The child's cgroup namespace has its root already.
        if let Some(cgroup) = Cgroup::of(&plan.cgroup) {
            cgroup.evacuate()?.iter().for_each(|text| warn!("{text}"));
        }
        let mapping = Mapping::start(&plan.ids, child);
        let namespace = UserNamespace::of(child).map_err(prepare("the child's user namespace"))?;
        processes.guard = Some(Guard::start(&namespace, launch.state)?);
        processes.namespace = Some(namespace);
        if let (Some(start), Some(namespace)) = (launch.engine(child), &processes.namespace) {
            let target = match plan.namespaces.detached_net {
                // It is not there yet.
                Some(_) => None,
                None => Some(Target::of_child(child, namespace).map_err(|error| {
                    // A child that is dead already has said why.
                    let failure = prepare("the child's network namespace")(error);
                    processes.childs_own_failure().unwrap_or(failure)
                })?),
            };
            let engine = EngineProcess::start(&start, target, files)?;
            engine.show_to(processes.guard.as_ref());
            processes.engine = Some(engine);
        }

        let last_gid =
            mapping.finish().map_err(|failure| processes.childs_own_failure().unwrap_or(failure))?;
        processes.guard.iter().try_for_each(Guard::wait_ready)?;
        // A child that failed meanwhile has left a message, which says more than a broken pipe.
        let _ = processes.tell_child(&Message::IdsMapped { last_gid });
        Ok(processes)
    }

    /// What the child said, if it failed: ids cannot be mapped for a child that is dead already.
    fn childs_own_failure(&self) -> Option<Failure> {
        let (channel, child) = (self.to_child.as_ref()?, self.child?);
        let _ = wait::kill(child, libc::SIGKILL);
        while let Ok(Some(received)) = channel.receive() {
            if let Message::Failed(failure) = received.message {
                return Some(failure);
            }
        }
        None
    }

    /// Brings child and engine together, then waits for CMD's end.
    fn supervise(&mut self, signals: &Signals, launch: &Launch<'_>) -> Result<Ending, LaunchError> {
        let mut handshake = ParentHandshake::new(link(launch.plan));
        loop {
            let ready = self.wait(signals)?;
            if ready.store {
                self.engine.iter_mut().for_each(EngineProcess::hear_store);
            }
            if ready.engine {
                self.handle_engine(&mut handshake, launch, signals)?;
            }
            self.restart_engine(&mut handshake, launch)?;
            if ready.guard {
                self.handle_guards_end()?;
            }
            if ready.agent {
                self.engine.iter_mut().for_each(EngineProcess::start_agent);
            }
            if ready.child {
                self.handle_child(&mut handshake, launch, signals)?;
            }
            // The start is over, or something that is seldom done.
            if handshake.is_running() && (ready.child || ready.agent || ready.store) {
                memory::release_code();
            }
            // What an init says may have stopped us, and signals that came then have been taken.
            if ready.signals || ready.child {
                self.forward(signals, Continue::PassOn)?;
                if let Some(ending) = self.handle_children(signals)? {
                    // What it said before it died says more.
                    while self.to_child.is_some() {
                        self.handle_child(&mut handshake, launch, signals)?;
                    }
                    if !handshake.is_running() {
                        return Err(LaunchError::ChildDied(ending));
                    }
                    return self.finish(self.ending.unwrap_or(ending));
                }
            }
        }
    }

    fn wait(&self, signals: &Signals) -> Result<Ready, LaunchError> {
        let engine = self.engine.as_ref();
        let sources = [
            Some(signals.as_fd()),
            engine.and_then(EngineProcess::channel),
            self.to_child.as_ref().map(AsFd::as_fd),
            self.guard.as_ref().map(AsFd::as_fd),
            engine.and_then(EngineProcess::wanted_agent),
            engine.and_then(EngineProcess::store),
        ];
        let timeout = engine.map_or(PollTimeout::NONE, EngineProcess::timeout);
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        loop {
            match poll(&mut fds, timeout) {
                Err(Errno::EINTR) => {}
                other => break other.map(drop).map_err(prepare("poll"))?,
            }
        }
        let mut results = fds.iter();
        let [signals, engine, child, guard, agent, store] =
            sources.map(|source| source.is_some() && results.next().and_then(PollFd::any).unwrap_or(false));
        Ok(Ready { signals, engine, child, guard, agent, store })
    }

    fn handle_engine(
        &mut self,
        handshake: &mut ParentHandshake,
        launch: &Launch<'_>,
        signals: &Signals,
    ) -> Result<(), LaunchError> {
        let Some(engine) = &mut self.engine else { return Ok(()) };
        match engine.receive().map_err(talk)? {
            Some(received) => self.perform(
                handshake.handle_message(Peer::Engine, received.message)?,
                None,
                Vec::new(),
                launch,
                signals,
            ),
            None if handshake.is_running() && launch.on_death == OnDeath::Restart => engine.handle_death(),
            None => Err(engine.end_of_launch()),
        }
    }

    /// Starts another engine in place of one that has died, when it is time.
    fn restart_engine(
        &mut self,
        handshake: &mut ParentHandshake,
        launch: &Launch<'_>,
    ) -> Result<(), LaunchError> {
        let (Some(engine), Some(child)) = (&mut self.engine, self.child) else { return Ok(()) };
        if let Some(start) = launch.engine(child)
            && engine.restart_if_due(&start, self.guard.as_ref())?
        {
            handshake.handle_engine_restart();
        }
        Ok(())
    }

    fn handle_guards_end(&mut self) -> Result<(), LaunchError> {
        let ending = self.guard.as_mut().and_then(|guard| guard.wait_end().transpose());
        match ending.transpose().map_err(prepare("waiting for the guard"))? {
            Some(ending) => Err(LaunchError::GuardDied(ending)),
            None => Ok(()),
        }
    }

    fn handle_child(
        &mut self,
        handshake: &mut ParentHandshake,
        launch: &Launch<'_>,
        signals: &Signals,
    ) -> Result<(), LaunchError> {
        let Some(channel) = &self.to_child else { return Ok(()) };
        match channel.receive().map_err(talk)? {
            Some(received) => {
                let action = handshake.handle_message(Peer::Child, received.message)?;
                self.perform(action, received.fd, received.more, launch, signals)
            }
            None => {
                handshake.handle_child_closed();
                self.to_child = None;
                Ok(())
            }
        }
    }

    fn perform(
        &mut self,
        action: Action,
        fd: Option<OwnedFd>,
        more: Vec<OwnedFd>,
        launch: &Launch<'_>,
        signals: &Signals,
    ) -> Result<(), LaunchError> {
        let engine = self.engine.as_mut();
        match action {
            Action::Wait => Ok(()),
            Action::TakeNamespace => {
                let failed = prepare("the network namespace");
                let (Some(net), Some(user)) = (fd, &self.namespace) else { return Ok(()) };
                let user = user.as_fd().try_clone_to_owned().map_err(&failed)?;
                if let Some(engine) = engine {
                    engine.prepare_agent(Target::of_files(user.into(), net.into())).map_err(failed)?;
                }
                Ok(())
            }
            Action::WatchCommand => {
                self.command = fd;
                Ok(())
            }
            Action::Stop { signal, count } => self.stop_until_resumed(signal, count, signals),
            Action::End(ending) => {
                self.ending = Some(ending);
                Ok(())
            }
            Action::PassTap => {
                if let Some(engine) = engine {
                    engine.serve(fd.into_iter().chain(more).collect());
                }
                Ok(())
            }
            Action::Welcome => {
                engine.iter().for_each(|engine| engine.tell(&Message::Running));
                Ok(())
            }
            Action::EngineFails(failure) => {
                if let Some(engine) = engine.filter(|_| launch.on_death == OnDeath::Restart) {
                    engine.handle_failure(failure);
                    return Ok(());
                }
                Err(failure.into())
            }
            Action::Execute => {
                engine.iter().for_each(|engine| engine.tell(&Message::Running));
                if let (Some(state), Some(child)) = (launch.state, self.child) {
                    state.publish(child)?;
                }
                let _ = self.tell_child(&Message::Execute);
                self.tell_manager(&State::Ready);
                Ok(())
            }
            Action::Fail(failure) => Err(failure.into()),
            Action::FailForPort(port, mut failure) => {
                failure.value = port.explain(failure.value);
                Err(failure.into())
            }
        }
    }

    fn tell_child(&self, message: &Message) -> io::Result<()> {
        self.to_child.as_ref().map_or(Ok(()), |channel| channel.send(message, None))
    }

    fn tell_manager(&self, state: &State) {
        self.notifier.iter().for_each(|notifier| notifier.tell(state));
    }

    /// Hands to CMD what was sent to the launcher alone. What the terminal sends goes to the whole process group,
    /// CMD included; what CMD itself sends it need not get back.
    fn forward(&self, signals: &Signals, on_continue: Continue) -> Result<(), LaunchError> {
        while let Some(Received { signal, sender, by_kernel }) =
            signals.next().map_err(prepare("signalfd"))?
        {
            let Some(child) = self.child else { continue };
            let is_ours = match signal {
                libc::SIGCHLD => true,
                libc::SIGCONT => on_continue == Continue::Swallow,
                _ => false,
            };
            if !is_ours && !by_kernel && sender != child && !self.is_from_inside(sender) {
                debug!("signal {signal} is passed on to the command");
                // Fails only for a process that is dead already. An init keeps for CMD what comes too early.
                let _ = match &self.command {
                    Some(command) => pidfd::send(command.as_fd(), signal),
                    None => wait::kill(child, signal),
                };
            }
        }
        Ok(())
    }

    /// Whether a process is in CMD's pid namespace. From there it reaches the launcher only by signalling the process group,
    /// of which CMD is.
    fn is_from_inside(&self, sender: Pid) -> bool {
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/pid")).ok();
        self.command.is_some()
            && namespace(&sender.to_string()).is_some_and(|theirs| Some(theirs) != namespace("self"))
    }

    /// CMD was stopped, for the `count`th time: stops the launcher likewise, so that the shell sees it, until it is continued.
    /// The init knows whether CMD still stands then.
    fn stop_until_resumed(&self, signal: i32, count: u32, signals: &Signals) -> Result<(), LaunchError> {
        // The terminal may have stopped us with CMD, and the shell have continued both, before this was read.
        if !self.command.as_ref().is_some_and(pidfd::is_stopped) {
            return Ok(());
        }
        Signals::stop_self(signal).map_err(prepare("stopping"))?;
        self.forward(signals, Continue::Swallow)?;
        // An init that is dead will be noticed by its end.
        let _ = self.tell_child(&Message::Resume { count });
        Ok(())
    }

    /// Looks at every child that changed; returns how CMD ended if it did.
    fn handle_children(&mut self, signals: &Signals) -> Result<Option<Ending>, LaunchError> {
        loop {
            match wait::next_change().map_err(prepare("waitpid"))? {
                Event::Ended(pid, ending) if Some(pid) == self.child => {
                    self.child = None;
                    return Ok(Some(ending));
                }
                Event::Stopped(pid, signal) if Some(pid) == self.child && self.command.is_none() => {
                    self.stop_with(pid, signal, signals)?;
                }
                Event::Ended(..) | Event::Stopped(..) | Event::Continued(_) => {}
                Event::Nothing | Event::NoChild => return Ok(None),
            }
        }
    }

    /// CMD was stopped: stops the launcher likewise, so that the shell sees it, until it is continued.
    ///
    /// A shell continues the whole process group, CMD included, and CMD may be stopped anew before the launcher
    /// has come to its feet. Only a CMD that is stopped since before gets a SIGCONT from here.
    fn stop_with(&self, child: Pid, mut signal: i32, signals: &Signals) -> Result<(), LaunchError> {
        loop {
            Signals::stop_self(signal).map_err(prepare("stopping"))?;
            self.forward(signals, Continue::Swallow)?;
            match wait::after_stop(child).map_err(prepare("waitid"))? {
                AfterStop::StoppedAgain(again) => signal = again,
                AfterStop::Continued => return Ok(()),
                AfterStop::StillStopped => {
                    // Fails only for a process that is dead already.
                    let _ = wait::kill(child, libc::SIGCONT);
                    return Ok(());
                }
            }
        }
    }

    /// CMD is dead: ends what it left, then the engine.
    fn finish(&mut self, ending: Ending) -> Result<Ending, LaunchError> {
        self.tell_manager(&State::Stopping);
        self.engine.iter_mut().for_each(EngineProcess::release);
        self.sweep();
        // If the engine died in this moment, CMD's own end counts.
        self.engine.iter().for_each(|engine| engine.tell(&Message::Stop));
        self.guard.iter().for_each(Guard::dismiss);
        self.engine.iter_mut().try_for_each(EngineProcess::finish)?;
        Ok(ending)
    }

    /// Kills and reaps what CMD left running.
    fn sweep(&self) {
        let is_entered = self.entered.as_ref().is_some_and(|mark| mark.exists());
        if matches!(reap(), Ok(Event::NoChild)) && !is_entered {
            return;
        }
        let Some(namespace) = &self.namespace else { return };
        let agent = self.engine.as_ref().and_then(EngineProcess::agent);
        match namespace.kill_all(agent) {
            Ok(0) => {}
            Ok(count) => debug!("{count} processes that the command left were killed"),
            Err(error) => warn!("cannot kill what the command left: {error}"),
        }
        let _ = reap();
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            // Fails only for a process that is dead already.
            let _ = wait::kill(child, libc::SIGKILL);
            let _ = wait::wait_end(child);
        }
        self.engine = None;
        if self.namespace.is_some() {
            self.sweep();
        }
    }
}

/// What a SIGCONT is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Continue {
    /// For CMD.
    PassOn,
    /// For the launcher, which was stopped.
    Swallow,
}

struct Ready {
    signals: bool,
    engine: bool,
    child: bool,
    guard: bool,
    agent: bool,
    store: bool,
}

/// Reaps what is dead; says whether anybody is left.
fn reap() -> io::Result<Event> {
    loop {
        match wait::next_change()? {
            Event::Ended(..) | Event::Stopped(..) | Event::Continued(_) => {}
            last => return Ok(last),
        }
    }
}

fn namespaces(plan: &NamespacePlan) -> CloneFlags {
    let flag = |namespace: &Namespace| match namespace {
        Namespace::User => CloneFlags::CLONE_NEWUSER,
        Namespace::Mount => CloneFlags::CLONE_NEWNS,
        Namespace::Net => CloneFlags::CLONE_NEWNET,
        Namespace::Pid => CloneFlags::CLONE_NEWPID,
        Namespace::Ipc => CloneFlags::CLONE_NEWIPC,
        Namespace::Uts => CloneFlags::CLONE_NEWUTS,
        Namespace::Cgroup => CloneFlags::CLONE_NEWCGROUP,
    };
    plan.new.iter().map(flag).collect()
}

fn link(plan: &Plan) -> Link {
    match plan.net {
        NetPlan::Engine(_) => Link::Tap,
        NetPlan::Loopback | NetPlan::Host => Link::None,
    }
}

fn report(args: &RunArgs) -> Report {
    if args.stats { Report::Statistics } else { Report::Quiet }
}

/// All rules, one per line; `@FILE` stands for the lines of a file.
fn policy_text(rules: &[String]) -> Result<String, UsageError> {
    let mut text = String::new();
    for rule in rules {
        match rule.strip_prefix('@') {
            None => text.push_str(rule),
            Some(path) => {
                let lines = fs::read_to_string(path);
                text.push_str(
                    &lines.map_err(|source| UsageError::PolicyFile { path: path.to_owned(), source })?,
                );
            }
        }
        text.push('\n');
    }
    Ok(text)
}

/// The contents of each file, which is JSON if it begins with a brace and TOML otherwise.
fn port_files(paths: &[PathBuf]) -> Result<Vec<PortFile>, UsageError> {
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).map_err(PortFileError::Read)?;
        if text.trim_start().starts_with('{') {
            return serde_json::from_str(&text).map_err(PortFileError::Json);
        }
        toml::from_str(&text).map_err(PortFileError::Toml)
    };
    let named = |path: &PathBuf| {
        read(path).map_err(|source| UsageError::PublishFile { path: path.display().to_string(), source })
    };
    paths.iter().map(named).collect()
}

fn prepare<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Failure {
    move |error| Failure::new(Step::Prepare, what, error)
}

fn talk(error: io::Error) -> Failure {
    Failure::new(Step::Talk, "", error)
}
