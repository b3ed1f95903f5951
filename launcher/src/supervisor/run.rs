//! `node-supervisor`: does what a [`NodePlan`] says, until it is told to stop.
//!
//! One thread around poll(2). Nothing wakes it while every unit is ready and nobody asks.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use log::{debug, error, info, warn};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::unistd::Pid;

use super::control::{self, Command, Content, Follow, NodeStatus, Refusal, UnitStatus};
use super::error::{SupervisorError, UnitFailure};
use super::log::{Bounds, Journal, Log};
use super::observe::{self, Look, Seen};
use super::prepare::{listen, lock, make_directory, write_file};
use super::serve::{Client, Waiting};
use super::spawn::{self, Lines, NotifySocket, Told};
use super::unit::{self, NodePlan, PlannedDirectory, PlannedProgram, Readiness, Unit, UnitId, Units};
use super::{Action, Event, GIVE_UP, Manner, Moment, Notice, Outcome, State, Supervisor};
use crate::error::{Ending, with_causes};
use crate::notify::{self, Notifier};
use crate::signals::{Received, Signals};
use crate::sys::{fd, memory, wait};

/// Larger plans are none.
const MAX_PLAN: u64 = 16 << 20;
/// As many last lines tell why a unit failed.
const STORY: usize = 20;
/// Connections at once; more are sent away.
const MAX_CLIENTS: usize = 32;
/// Bytes that one unit may write in one turn of the loop, so that none keeps the others waiting.
const MAX_OUTPUT: usize = 256 << 10;

/// Does the plan that a descriptor holds, and says on stderr why it could not. Exit status 0 if it was told to stop.
pub fn main(plan: RawFd) -> ExitCode {
    // Fails only for a name that holds a NUL.
    let _ = prctl::set_name(c"rl-supervisor");
    let ended = read_plan(plan).and_then(|plan| run(&plan));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!("{}", with_causes(&failure));
            ExitCode::FAILURE
        }
    }
}

fn read_plan(number: RawFd) -> Result<NodePlan, SupervisorError> {
    let read = || {
        let mut text = String::new();
        File::from(fd::take_inherited(number)?).take(MAX_PLAN).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|source| SupervisorError::ReadPlan { fd: number, source })?;
    serde_json::from_str(&text).map_err(SupervisorError::ParsePlan)
}

/// Does a plan until SIGTERM, SIGINT, SIGHUP or SIGQUIT, or somebody at the control socket, ends it. SIGINT or SIGQUIT
/// while it is being stopped kills the rest at once.
///
/// The calling process has one thread and no children that matter: all of them are reaped, and killed at the end.
///
/// # Errors
/// It could not begin, or a unit failed before all were ready.
pub fn run(plan: &NodePlan) -> Result<(), SupervisorError> {
    let units = Units::new(plan.units.clone())?;
    // Init of a PID namespace does not hear what is neither caught nor blocked.
    let signals = Signals::block().map_err(failed("signals"))?;
    let log_dir = PlannedDirectory { path: plan.log_dir.clone(), mode: 0o700 };
    make_directory(&log_dir)?;
    // Before anything is changed that another supervisor may use.
    let lock = lock(&plan.log_dir)?;
    plan.directories.iter().try_for_each(make_directory)?;
    plan.files.iter().try_for_each(write_file)?;
    let listener = listen(&plan.control)?;
    let ended = Runner::new(plan, units, signals, &listener).and_then(Runner::run);
    // The last one out; a new supervisor waits for the lock.
    let _ = fs::remove_file(&plan.control);
    drop(lock);
    ended
}

/// What belongs to one unit for as long as the supervisor lives.
struct Outlet {
    lines: Lines,
    log: Log,
    /// For those who say themselves when they are ready.
    notify: Option<NotifySocket>,
    /// What its latest process has said of itself.
    says: Option<String>,
}

/// The supervisor and all that its decisions are carried out with.
struct Runner<'a> {
    supervisor: Supervisor,
    outlets: Vec<Outlet>,
    looks: Vec<Look>,
    clients: Vec<Client>,
    listener: &'a UnixListener,
    signals: Signals,
    began: Instant,
    journal: Option<Journal>,
    programs: &'a [PlannedProgram],
    /// Whoever started us, if he wants to know.
    parent: Option<Notifier>,
    outcome: Option<Outcome>,
}

/// What can be ready.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Output(UnitId),
    Notify(UnitId),
    Look(usize),
    Client(usize),
}

impl<'a> Runner<'a> {
    fn new(
        plan: &'a NodePlan,
        units: Units,
        signals: Signals,
        listener: &'a UnixListener,
    ) -> Result<Self, SupervisorError> {
        prctl::set_child_subreaper(true).map_err(|errno| failed("subreaper")(errno.into()))?;
        let outlet = |unit: &Unit| {
            let notify = (unit.ready == Readiness::Notify).then(NotifySocket::new).transpose()?;
            let log = Log::new(&plan.log_dir, &unit.name, Bounds::default());
            Ok(Outlet { lines: Lines::new()?, log, notify, says: None })
        };
        let outlets = units.iter().map(|(_, unit)| outlet(unit)).collect::<io::Result<_>>();
        let instance = plan.control.parent().and_then(Path::file_name).unwrap_or_default();
        let journal = match plan.journal {
            unit::Journal::Off => None,
            unit::Journal::On => Journal::connect(&instance.to_string_lossy())
                .inspect_err(|error| info!("lines go to files only: no journal ({error})"))
                .ok(),
        };
        Ok(Runner {
            supervisor: Supervisor::new(units, Moment::ZERO),
            outlets: outlets.map_err(failed("pipes and sockets of units"))?,
            looks: Vec::new(),
            clients: Vec::new(),
            listener,
            signals,
            began: Instant::now(),
            journal,
            programs: &plan.programs,
            parent: Notifier::from_environment(),
            outcome: None,
        })
    }

    fn run(mut self) -> Result<(), SupervisorError> {
        let outcome = loop {
            self.perform_all();
            if let Some(outcome) = self.outcome.take() {
                break outcome;
            }
            self.serve_clients();
            for source in self.wait().map_err(failed("poll"))? {
                self.handle(source)?;
            }
            self.tidy();
            let now = self.now();
            self.supervisor.handle_timeout(now);
        };
        self.finish(outcome)
    }

    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    /// Gives the supervisor a fact, and does what it decides.
    fn put(&mut self, event: Event) {
        let now = self.now();
        self.supervisor.handle_event(now, event);
        self.perform_all();
    }

    fn name(&self, unit: UnitId) -> &str {
        self.supervisor.units().get(unit).map_or("", |unit| &unit.name)
    }

    /// Waits until something is ready, or due.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Signals];
        let mut fds = vec![readable(self.signals.as_fd())];
        for (unit, outlet) in self.supervisor.units().ids().zip(&self.outlets) {
            sources.push(Source::Output(unit));
            fds.push(readable(outlet.lines.reader().as_fd()));
            if let Some(notify) = &outlet.notify {
                sources.push(Source::Notify(unit));
                fds.push(readable(notify.as_fd()));
            }
        }
        // The last ones first: handling one may take it out.
        for (place, look) in self.looks.iter().enumerate().rev() {
            sources.push(Source::Look(place));
            fds.push(PollFd::new(look.as_fd(), look.interest()));
        }
        for (place, client) in self.clients.iter().enumerate().rev() {
            sources.push(Source::Client(place));
            fds.push(PollFd::new(client.as_fd(), client.interest()));
        }
        // After those who are leaving.
        sources.push(Source::Listener);
        fds.push(readable(self.listener.as_fd()));
        match poll(&mut fds, self.timeout()) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let ready = sources.into_iter().zip(&fds).filter(|(_, fd)| fd.any().unwrap_or(false));
        Ok(ready.map(|(source, _)| source).collect())
    }

    fn timeout(&self) -> PollTimeout {
        let looks = self.looks.iter().map(|look| look.deadline);
        let clients = self.clients.iter().filter_map(Client::deadline);
        let due = looks.chain(clients).chain(self.supervisor.poll_timeout()).min();
        let Some(due) = due else { return PollTimeout::NONE };
        // Not a moment early: that would be a turn for nothing.
        let left = due.saturating_sub(self.now()).saturating_add(Duration::from_micros(999));
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    fn handle(&mut self, source: Source) -> Result<(), SupervisorError> {
        match source {
            Source::Signals => self.handle_signals().map_err(failed("signalfd and waitid")),
            Source::Listener => {
                self.accept();
                Ok(())
            }
            Source::Output(unit) => self.read_output(unit).map_err(failed("output of a unit")),
            Source::Notify(unit) => self.hear(unit).map_err(failed("notify socket of a unit")),
            Source::Look(place) => {
                let seen = self.looks.get_mut(place).and_then(Look::go_on);
                if let Some(observation) = seen {
                    let Look { unit, run, .. } = self.looks.swap_remove(place);
                    self.put(Event::Observed { unit, run, observation });
                }
                Ok(())
            }
            Source::Client(place) => {
                self.handle_client(place);
                Ok(())
            }
        }
    }

    fn handle_signals(&mut self) -> io::Result<()> {
        while let Some(Received { signal, .. }) = self.signals.next()? {
            match signal {
                libc::SIGCHLD => {}
                // At the terminal, once more. Others may send theirs to a whole cgroup, so that the launcher's comes too.
                libc::SIGINT | libc::SIGQUIT if self.supervisor.is_stopping() => {
                    self.put(Event::Stop(Manner::AtOnce));
                }
                libc::SIGTERM | libc::SIGINT | libc::SIGHUP | libc::SIGQUIT => {
                    self.put(Event::Stop(Manner::Gentle));
                }
                other => debug!("signal {other} means nothing here"),
            }
        }
        // One SIGCHLD may stand for many.
        loop {
            let unit_of = |pid: Pid| {
                let is_its = |unit: &UnitId| {
                    self.supervisor.view(*unit).is_some_and(|view| view.pid == Some(pid.as_raw()))
                };
                self.supervisor.units().ids().find(is_its)
            };
            let Some((pid, ending)) = spawn::reap(|pid| unit_of(pid).is_some())? else { return Ok(()) };
            match unit_of(pid) {
                Some(unit) => self.handle_end(unit, pid, ending)?,
                None => debug!("an orphan, process {pid}, {ending}"),
            }
        }
    }

    fn handle_end(&mut self, unit: UnitId, pid: Pid, ending: Ending) -> io::Result<()> {
        // What it wrote and said comes before the news of its end.
        self.read_output(unit)?;
        self.hear(unit)?;
        self.remark(unit, &format!("process {pid} {ending}"));
        self.put(Event::Ended { unit, ending });
        Ok(())
    }

    /// Takes what a unit says of itself.
    fn hear(&mut self, unit: UnitId) -> io::Result<()> {
        let Some(outlet) = self.outlets.get_mut(unit.index()) else { return Ok(()) };
        let Some(notify) = &outlet.notify else { return Ok(()) };
        let Told { ready, status } = notify.receive()?;
        if let Some(status) = status {
            outlet.says = Some(status.clone());
            if !ready {
                warn!("unit {}: {status}", self.name(unit));
            }
        }
        if ready {
            self.put(Event::Notified { unit });
        }
        Ok(())
    }

    fn read_output(&mut self, unit: UnitId) -> io::Result<()> {
        let Some(outlet) = self.outlets.get_mut(unit.index()) else { return Ok(()) };
        let mut bytes = [0; 16 << 10];
        let mut total = 0;
        while total < MAX_OUTPUT {
            match outlet.lines.reader().read(&mut bytes) {
                Ok(count) => {
                    total += count;
                    outlet.log.handle_output(bytes.get(..count).unwrap_or_default(), self.journal.as_ref());
                    if count < bytes.len() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn remark(&mut self, unit: UnitId, text: &str) {
        if let Some(outlet) = self.outlets.get_mut(unit.index()) {
            outlet.log.remark(SystemTime::now(), text, self.journal.as_ref());
        }
    }

    fn perform_all(&mut self) {
        while let Some(action) = self.supervisor.poll_action() {
            if let Some(answer) = self.perform(action) {
                let now = self.now();
                self.supervisor.handle_event(now, answer);
            }
        }
    }

    /// Does one thing; returns the answer, if it has one at once.
    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Spawn { unit } => return self.spawn(unit),
            Action::Signal { unit } => {
                self.signal(unit, libc::SIGTERM);
                // A stopped process hears nothing.
                self.signal(unit, libc::SIGCONT);
            }
            Action::Kill { unit } => {
                self.remark(unit, "it did not end when asked; killed");
                self.signal(unit, libc::SIGKILL);
            }
            Action::Probe { unit, run } => return self.look(unit, run),
            Action::Notify(notice) => self.tell(notice),
            Action::Exit(outcome) => self.outcome = Some(outcome),
        }
        None
    }

    fn spawn(&mut self, unit: UnitId) -> Option<Event> {
        self.outlets.get_mut(unit.index())?.says = None;
        let (spec, outlet) = (self.supervisor.units().get(unit)?, self.outlets.get(unit.index())?);
        match spawn::spawn(spec, &outlet.lines, outlet.notify.as_ref()) {
            Ok(pid) => {
                self.remark(unit, &format!("process {pid} started"));
                Some(Event::Started { unit, pid: pid.as_raw() })
            }
            Err(error) => {
                let program = spec.argv.first().map_or("", String::as_str);
                let why = format!("{program}: {error}");
                self.remark(unit, &format!("not started: {why}"));
                Some(Event::NotStarted { unit, why })
            }
        }
    }

    fn signal(&self, unit: UnitId, signal: i32) {
        // Not reaped yet, so the number is its own.
        if let Some(pid) = self.supervisor.view(unit).and_then(|view| view.pid) {
            let _ = wait::kill(Pid::from_raw(pid), signal);
        }
    }

    fn look(&mut self, unit: UnitId, run: u32) -> Option<Event> {
        let spec = self.supervisor.units().get(unit)?;
        match observe::look(unit, run, &spec.ready, self.now()) {
            Seen::Now(observation) => Some(Event::Observed { unit, run, observation }),
            Seen::Later(look) => {
                self.looks.push(look);
                None
            }
        }
    }

    fn tell(&mut self, notice: Notice) {
        match notice {
            Notice::Changed(unit) => {
                let Some(view) = self.supervisor.view(unit) else { return };
                let (name, state) = (self.name(unit), view.state.name());
                let log = self.outlets.get(unit.index()).map(|outlet| outlet.log.path().display());
                match (view.state, view.why, log) {
                    // While all is being stopped, ends are no news.
                    (State::Paused | State::Failed, Some(why), Some(log))
                        if !self.supervisor.is_stopping() =>
                    {
                        let next = if view.state == State::Paused {
                            "it will be started again"
                        } else {
                            "it stays down"
                        };
                        warn!("unit {name} {why}; {next}; its log is {log}");
                    }
                    _ => info!("unit {name}: {state}"),
                }
                self.tell_progress();
            }
            Notice::Ready => {
                info!("every unit is ready");
                self.tell_parent(&notify::State::Ready);
                memory::release_code();
            }
            Notice::Stopping => self.tell_parent(&notify::State::Stopping),
        }
    }

    fn tell_parent(&self, state: &notify::State) {
        self.parent.iter().for_each(|parent| parent.tell(state));
    }

    fn tell_progress(&self) {
        let units = self.supervisor.units();
        let is_good = |unit: &UnitId| {
            self.supervisor.view(*unit).is_some_and(|view| matches!(view.state, State::Ready | State::Done))
        };
        let bad: Vec<&str> = units.ids().filter(|unit| !is_good(unit)).map(|unit| self.name(unit)).collect();
        let count = units.len();
        let text = match bad.as_slice() {
            [] => "every unit is ready".to_owned(),
            bad => format!("{} of {count} units ready; not {}", count - bad.len(), bad.join(", ")),
        };
        // The next one says it better.
        self.parent.iter().for_each(|parent| parent.mention(&notify::State::Status(text.clone())));
    }

    fn accept(&mut self) {
        self.serve_clients();
        // At most as many at once as there is room for: whoever has gone already makes room for the next ones.
        for _ in 0..MAX_CLIENTS.saturating_sub(self.clients.len()).max(1) {
            let Ok((stream, _)) = self.listener.accept() else { return };
            let Ok(mut client) = Client::new(stream, self.now()) else { continue };
            if self.clients.len() < MAX_CLIENTS {
                self.clients.push(client);
                continue;
            }
            let refusal = Refusal::new(503, format!("{MAX_CLIENTS} others are connected already"));
            client.answer(self.now(), &control::refuse(&refusal), Waiting::Taking);
            // As much as goes at once; nobody waits for this one.
            let _ = client.send(self.now());
        }
    }

    /// A client that is gone, or has said too much, is forgotten.
    fn handle_client(&mut self, place: usize) {
        let Some(client) = self.clients.get_mut(place) else { return };
        if !client.interest().contains(PollFlags::POLLIN) {
            return;
        }
        match client.receive() {
            Ok(None) => {}
            Ok(Some(request)) => {
                let (bytes, then) = match request.and_then(|command| self.answer(command)) {
                    Ok(answer) => answer,
                    Err(refusal) => (control::refuse(&refusal), Waiting::Taking),
                };
                let now = self.now();
                if let Some(client) = self.clients.get_mut(place) {
                    client.answer(now, &bytes, then);
                }
            }
            Err(error) => {
                debug!("a client of the control socket is gone: {error}");
                self.clients.swap_remove(place);
            }
        }
    }

    fn answer(&mut self, command: Command) -> Result<(Vec<u8>, Waiting), Refusal> {
        match command {
            Command::Status => {
                Ok((control::answer(200, Content::Json, &control::json(&self.status())), Waiting::Taking))
            }
            Command::Log { unit, lines, follow } => {
                let unit = self.find(&unit)?;
                let Some(outlet) = self.outlets.get(unit.index()) else { return Err(gone()) };
                let next = outlet.log.place_of_last(lines);
                let head = control::head(200, Content::Lines);
                match follow {
                    Follow::Yes => Ok((head, Waiting::Lines { unit, next })),
                    Follow::No => {
                        let mut bytes = head;
                        outlet.log.last(lines).for_each(|line| push_line(&mut bytes, line));
                        Ok((bytes, Waiting::Taking))
                    }
                }
            }
            Command::Restart { unit } => {
                let unit = self.find(&unit)?;
                if self.supervisor.is_stopping() {
                    return Err(Refusal::new(409, "everything is being stopped"));
                }
                let runs = self.supervisor.view(unit).map_or(0, |view| view.runs);
                self.put(Event::Restart { unit });
                Ok((control::head(200, Content::Json), Waiting::Restart { unit, runs }))
            }
            Command::Stop => {
                let is_second = self.supervisor.is_stopping();
                self.put(Event::Stop(if is_second { Manner::Orderly } else { Manner::Gentle }));
                Ok((control::answer(202, Content::Json, b"{}"), Waiting::Taking))
            }
        }
    }

    fn find(&self, name: &str) -> Result<UnitId, Refusal> {
        let units = self.supervisor.units();
        units.find(name).ok_or_else(|| {
            let names: Vec<&str> = units.iter().map(|(_, unit)| unit.name.as_str()).collect();
            Refusal::new(404, format!("there is no unit {name:?}; there are {}", names.join(", ")))
        })
    }

    /// Gives everybody what he waits for, as far as it is there and he takes it.
    fn serve_clients(&mut self) {
        let now = self.now();
        let mut clients = std::mem::take(&mut self.clients);
        clients.retain_mut(|client| {
            let served = self.serve(client, now);
            served.is_ok() && !client.is_over(now)
        });
        self.clients = clients;
    }

    fn serve(&self, client: &mut Client, now: Moment) -> io::Result<()> {
        client.send(now)?;
        match *client.waiting() {
            Waiting::Lines { unit, next } => {
                let Some(outlet) = self.outlets.get(unit.index()) else { return Ok(()) };
                let mut next = next;
                while client.has_room()
                    && let Some((number, line)) = outlet.log.line(next)
                {
                    let mut bytes = Vec::with_capacity(line.len() + 1);
                    if number > next {
                        let note = format!("-- {} lines came too fast to be shown --", number - next);
                        push_line(&mut bytes, note.as_bytes());
                    }
                    push_line(&mut bytes, line);
                    next = number + 1;
                    client.answer(now, &bytes, Waiting::Lines { unit, next });
                    // With nothing left to send, nobody would wake us for the rest.
                    if !client.has_room() || outlet.log.line(next).is_none() {
                        client.send(now)?;
                    }
                }
                Ok(())
            }
            Waiting::Restart { unit, runs } => {
                let Some(view) = self.supervisor.view(unit) else { return Ok(()) };
                let is_settled = match view.state {
                    State::Ready | State::Done | State::Paused => view.runs > runs,
                    // When all is stopped it will not be started again.
                    State::Failed => view.runs > runs || self.supervisor.is_stopping(),
                    State::Stopped => true,
                    _ => false,
                };
                if let Some(status) = is_settled.then(|| self.unit_status(unit)).flatten() {
                    client.answer(now, &control::json(&status), Waiting::Taking);
                }
                client.send(now)
            }
            Waiting::Request(_) | Waiting::Taking => Ok(()),
        }
    }

    /// Forgets what takes too long.
    fn tidy(&mut self) {
        let now = self.now();
        let is_late = |look: &Look| look.deadline <= now;
        while let Some(place) = self.looks.iter().position(is_late) {
            let Look { unit, run, .. } = self.looks.swap_remove(place);
            self.put(Event::Observed { unit, run, observation: super::probe::Observation::Silent });
        }
    }

    fn status(&self) -> NodeStatus {
        let units = self.supervisor.units();
        let longest: Duration = units.iter().map(|(_, unit)| unit.stop_timeout).sum();
        NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: Pid::this().as_raw(),
            ready: self.supervisor.is_ready(),
            stopping: self.supervisor.is_stopping(),
            stop_seconds: longest.saturating_add(GIVE_UP).as_secs(),
            units: units.ids().filter_map(|unit| self.unit_status(unit)).collect(),
            programs: self.programs.to_vec(),
        }
    }

    fn unit_status(&self, unit: UnitId) -> Option<UnitStatus> {
        let (spec, view) = (self.supervisor.units().get(unit)?, self.supervisor.view(unit)?);
        let age = self.now().saturating_sub(view.since);
        let outlet = self.outlets.get(unit.index())?;
        let log = outlet.log.path().display().to_string();
        let status = UnitStatus::new(spec, &view, SystemTime::now(), age, log);
        Some(UnitStatus { says: outlet.says.clone(), ..status })
    }

    /// Everything has ended: takes along what units left running, and the last words.
    fn finish(mut self, outcome: Outcome) -> Result<(), SupervisorError> {
        for unit in &outcome.left {
            warn!("unit {} does not die; it is left to the kernel", self.name(*unit));
        }
        // One that does not die would be waited for.
        if outcome.left.is_empty() {
            match spawn::kill_orphans() {
                Ok(0) => {}
                Ok(count) => debug!("{count} processes that units left were killed"),
                Err(error) => warn!("cannot kill what units left: {error}"),
            }
        }
        let units: Vec<UnitId> = self.supervisor.units().ids().collect();
        for unit in units {
            // What is lost here is said of a node that has ended.
            let _ = self.read_output(unit);
        }
        self.serve_clients();
        let Some((unit, why)) = outcome.failure else { return Ok(()) };
        let outlet = self.outlets.get(unit.index());
        let lines = outlet.into_iter().flat_map(|outlet| outlet.log.last(STORY));
        Err(SupervisorError::Failed(Box::new(UnitFailure {
            unit: self.name(unit).to_owned(),
            why,
            lines: lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect(),
            log: outlet.map(|outlet| outlet.log.path().to_owned()).unwrap_or_default(),
        })))
    }
}

fn failed(step: &'static str) -> impl FnOnce(io::Error) -> SupervisorError {
    move |source| SupervisorError::Loop { step, source }
}

fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

fn push_line(bytes: &mut Vec<u8>, line: &[u8]) {
    bytes.extend_from_slice(line);
    bytes.push(b'\n');
}

fn gone() -> Refusal {
    Refusal::new(404, "that unit is gone")
}
