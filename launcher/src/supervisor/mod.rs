//! Keeps the programs of a node running.
//!
//! # Theory of operation
//! [`mod@unit`] says what is to run, [`Supervisor`] decides (pure: facts go in, actions come out, `now` is given),
//! [`probe`] judges what was seen of a unit that starts. [`run`] is the impure rest: one thread around poll(2), with
//! [`spawn`] (processes), [`observe`] (looks), [`log`] (lines) and [`control`] (the socket for `status`, `logs`,
//! `restart` and `stop`).
//!
//! A unit is started when everything it comes after is ready, and stopped when everything that comes after it has
//! ended. One that is [there for the stop](unit::Readiness::AtStop) has its only process in between. A unit that ends by itself is started again after a pause that doubles each time and is short again once it
//! was ready for [`HEALTHY`]; those that come after it are left running.
//!
//! Until every unit has been ready once, failing is final: a unit that cannot be executed, that is not ready in time,
//! that may not be restarted, or that has failed [`ATTEMPTS`] times ends the whole, and is named. Later a failing unit
//! is tried for ever.

pub mod control;
pub mod error;
pub mod log;
pub mod observe;
mod prepare;
pub mod probe;
pub mod run;
pub mod serve;
pub mod spawn;
pub mod unit;

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use self::probe::{Observation, Probe, Verdict};
use self::unit::{Readiness, Restart, Unit, UnitId, Units};
use crate::error::Ending;

/// A point in time, counted from the start of the supervisor.
pub type Moment = Duration;

/// Before the first new start of a unit that failed; doubled each time.
pub const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause before a new start.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A unit that was ready for so long begins again with [`FIRST_PAUSE`] when it fails.
pub const HEALTHY: Duration = Duration::from_secs(60);
/// So often may a unit fail before all have been ready once.
pub const ATTEMPTS: u32 = 5;
/// A process that outlives SIGKILL for so long is left behind when all is stopped.
pub const GIVE_UP: Duration = Duration::from_secs(10);

/// A fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// [`Action::Spawn`] is done.
    Started {
        /// The unit.
        unit: UnitId,
        /// Its process.
        pid: i32,
    },
    /// [`Action::Spawn`] failed.
    NotStarted {
        /// The unit.
        unit: UnitId,
        /// Why, for people.
        why: String,
    },
    /// Its process is dead and reaped.
    Ended {
        /// The unit.
        unit: UnitId,
        /// How.
        ending: Ending,
    },
    /// It said `READY=1`.
    Notified {
        /// The unit.
        unit: UnitId,
    },
    /// [`Action::Probe`] is done.
    Observed {
        /// The unit.
        unit: UnitId,
        /// The start it was about.
        run: u32,
        /// What was seen.
        observation: Observation,
    },
    /// Somebody wants it stopped and started again.
    Restart {
        /// The unit.
        unit: UnitId,
    },
    /// Somebody wants everything stopped.
    Stop(Manner),
}

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Manner {
    /// Each after those that come after it, with time to end by itself; what is there for the stop is run.
    Gentle,
    /// The same, without what is there for the stop.
    Orderly,
    /// All at once, with SIGKILL.
    AtOnce,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start its process. Answered by [`Event::Started`] or [`Event::NotStarted`] before the next action is taken.
    Spawn {
        /// The unit.
        unit: UnitId,
    },
    /// Send SIGTERM to its process.
    Signal {
        /// The unit.
        unit: UnitId,
    },
    /// Send SIGKILL to its process.
    Kill {
        /// The unit.
        unit: UnitId,
    },
    /// Look whether it is ready. Answered by [`Event::Observed`].
    Probe {
        /// The unit.
        unit: UnitId,
        /// Which start of it is meant.
        run: u32,
    },
    /// Tell whoever is interested.
    Notify(Notice),
    /// It is over. The last action.
    Exit(Outcome),
}

/// What others may want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The state of a unit is another one.
    Changed(UnitId),
    /// Every unit is ready, for the first time.
    Ready,
    /// Everything is being stopped.
    Stopping,
}

/// How the whole ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The unit that made it fail; nothing if it was asked to stop.
    pub failure: Option<(UnitId, Why)>,
    /// Units whose processes outlived SIGKILL.
    pub left: Vec<UnitId>,
}

/// Why a unit failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// There was no process.
    NotStarted(String),
    /// Its process ended.
    Ended(Ending),
    /// It was not ready in time.
    NeverReady {
        /// The time it had.
        within: Duration,
        /// What it was waited for.
        until: Readiness,
        /// What the last look found.
        found: Option<String>,
    },
}

impl fmt::Display for Why {
    /// To follow the unit's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::NotStarted(why) => write!(f, "cannot be started: {why}"),
            Why::Ended(Ending::Exited(0)) => {
                f.write_str("exited with status 0 before it was ready; it has to stay in the foreground")
            }
            Why::Ended(ending) => write!(f, "{ending}"),
            Why::NeverReady { within, until, found } => {
                write!(f, "was not ready within {within:?} (it is ready when {until})")?;
                found.iter().try_for_each(|found| write!(f, "; last seen: {found}"))
            }
        }
    }
}

/// The state of a unit, as it is shown.
///
/// | state | leads in | leads out |
/// |---|---|---|
/// | waiting | the beginning; a pause that is over; a restart | all it comes after is ready or done → starting, or ready if it is there for the stop |
/// | starting | spawned | ready; ended well, one-shot → done; ended → paused or failed; too late → stopping |
/// | ready | what [`Readiness`] says | ended → paused, done or failed; restart, stop → stopping |
/// | done | ended with status 0, and not to be restarted for that | restart → waiting |
/// | paused | ended, to be started again | the pause is over, restart → waiting |
/// | stopping | SIGTERM was sent; started, if it is there for the stop | ended → waiting, paused, failed or stopped; too late → killing |
/// | killing | SIGKILL was sent | as stopping; at the end of all, after [`GIVE_UP`] → stopped |
/// | failed | ended, and not to be started again | restart → waiting |
/// | stopped | the end of all | |
///
/// When everything is stopped, the states without a process become stopped, except failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Something it comes after is not ready.
    Waiting,
    /// It runs, and is not ready.
    Starting,
    /// It runs and is ready.
    Ready,
    /// It has done what it is there for.
    Done,
    /// It failed and is started again later.
    Paused,
    /// It was asked to end.
    Stopping,
    /// It did not end when asked.
    Killing,
    /// It failed for good.
    Failed,
    /// It is not wanted any more.
    Stopped,
}

impl State {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Starting => "starting",
            State::Ready => "ready",
            State::Done => "done",
            State::Paused => "paused",
            State::Stopping => "stopping",
            State::Killing => "killing",
            State::Failed => "failed",
            State::Stopped => "stopped",
        }
    }
}

/// What is to be known of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View<'a> {
    /// Its state.
    pub state: State,
    /// Since when it is in this state.
    pub since: Moment,
    /// Its process.
    pub pid: Option<i32>,
    /// How often it was started so far.
    pub runs: u32,
    /// How its latest process ended.
    pub last_ending: Option<Ending>,
    /// Why it failed the last time; nothing once it is ready again.
    pub why: Option<&'a Why>,
}

/// Decides what runs when.
///
/// 1. Put in facts (`handle_event`, `handle_timeout`); time never goes back.
/// 2. Then drain `poll_action` until `None`; what an action says about its answer holds.
/// 3. Then read `poll_timeout`, and call `handle_timeout` when that moment has come.
#[derive(Debug)]
pub struct Supervisor {
    units: Units,
    cells: Vec<Cell>,
    actions: VecDeque<Action>,
    mode: Mode,
    /// Every unit has been ready, at one moment.
    was_ready: bool,
    failure: Option<(UnitId, Why)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Running,
    Stopping(Manner),
    Over,
}

#[derive(Debug)]
struct Cell {
    phase: Phase,
    since: Moment,
    pid: Option<i32>,
    runs: u32,
    failures: u32,
    /// Before the next start, if it fails.
    pause: Duration,
    last_ending: Option<Ending>,
    why: Option<Why>,
}

#[derive(Clone, Debug)]
enum Phase {
    Waiting,
    Starting { deadline: Moment, probe: Option<Probe>, found: Option<String> },
    Ready,
    Done,
    Paused { until: Moment },
    Stopping { deadline: Moment, then: Then },
    Killing { since: Moment, then: Then },
    Failed,
    Stopped,
}

/// What becomes of a unit that is being stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Then {
    StartAgain,
    Fail(Why),
    Rest,
}

impl Supervisor {
    /// Nothing runs; the first actions start what waits for nothing.
    pub fn new(units: Units, now: Moment) -> Self {
        let cell = |_| Cell {
            phase: Phase::Waiting,
            since: now,
            pid: None,
            runs: 0,
            failures: 0,
            pause: FIRST_PAUSE,
            last_ending: None,
            why: None,
        };
        let cells = (0..units.len()).map(cell).collect();
        let mut supervisor = Supervisor {
            units,
            cells,
            actions: VecDeque::new(),
            mode: Mode::Running,
            was_ready: false,
            failure: None,
        };
        supervisor.go_on(now);
        supervisor
    }

    /// Takes a fact.
    pub fn handle_event(&mut self, now: Moment, event: Event) {
        match event {
            Event::Started { unit, pid } => self.handle_started(now, unit, pid),
            Event::NotStarted { unit, why } => self.handle_not_started(now, unit, why),
            Event::Ended { unit, ending } => self.handle_ended(now, unit, ending),
            Event::Notified { unit } => {
                if self.is_starting(unit) && self.readiness(unit) == Some(&Readiness::Notify) {
                    self.become_ready(now, unit);
                }
            }
            Event::Observed { unit, run, observation } => {
                self.handle_observation(now, unit, run, &observation);
            }
            Event::Restart { unit } => self.handle_restart(now, unit),
            Event::Stop(manner) => self.stop(now, manner),
        }
        self.go_on(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment) {
        self.go_on(now);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Supervisor::handle_timeout`] is to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let is_running = self.mode == Mode::Running;
        let due = |cell: &Cell| match &cell.phase {
            Phase::Starting { deadline, probe, .. } if is_running => {
                let look = probe.as_ref().and_then(Probe::due);
                Some(look.map_or(*deadline, |look| look.min(*deadline)))
            }
            Phase::Paused { until } => Some(*until),
            Phase::Stopping { deadline, .. } => Some(*deadline),
            Phase::Killing { since, .. } if !is_running => Some(since.saturating_add(GIVE_UP)),
            _ => None,
        };
        match self.mode {
            Mode::Over => None,
            _ => self.cells.iter().filter_map(due).min(),
        }
    }

    /// The units.
    pub fn units(&self) -> &Units {
        &self.units
    }

    /// What is to be known of a unit.
    pub fn view(&self, unit: UnitId) -> Option<View<'_>> {
        let cell = self.cells.get(unit.index())?;
        let state = match &cell.phase {
            Phase::Waiting => State::Waiting,
            Phase::Starting { .. } => State::Starting,
            Phase::Ready => State::Ready,
            Phase::Done => State::Done,
            Phase::Paused { .. } => State::Paused,
            Phase::Stopping { .. } => State::Stopping,
            Phase::Killing { .. } => State::Killing,
            Phase::Failed => State::Failed,
            Phase::Stopped => State::Stopped,
        };
        let Cell { since, pid, runs, last_ending, ref why, .. } = *cell;
        Some(View { state, since, pid, runs, last_ending, why: why.as_ref() })
    }

    /// Whether all units are ready or done now.
    pub fn is_ready(&self) -> bool {
        self.mode == Mode::Running && self.cells.iter().all(Cell::is_satisfied)
    }

    /// Whether everything is being stopped, or is.
    pub fn is_stopping(&self) -> bool {
        self.mode != Mode::Running
    }

    fn handle_started(&mut self, now: Moment, unit: UnitId, pid: i32) {
        let Some(cell) = self.cells.get_mut(unit.index()) else { return };
        cell.pid = Some(pid);
        if self.is_starting(unit) && self.readiness(unit) == Some(&Readiness::Started) {
            self.become_ready(now, unit);
        }
    }

    fn handle_not_started(&mut self, now: Moment, unit: UnitId, why: String) {
        let is_for_stop = self.readiness(unit) == Some(&Readiness::AtStop);
        if is_for_stop || self.is_starting(unit) {
            self.fail(now, unit, Why::NotStarted(why));
        }
    }

    fn handle_ended(&mut self, now: Moment, unit: UnitId, ending: Ending) {
        let (Some(cell), Some(spec)) = (self.cells.get_mut(unit.index()), self.units.get(unit)) else {
            return;
        };
        cell.pid = None;
        cell.last_ending = Some(ending);
        let well = ending == Ending::Exited(0);
        match cell.phase.clone() {
            Phase::Starting { .. } if well && spec.ready == Readiness::Exited => {
                cell.why = None;
                self.enter(now, unit, Phase::Done);
            }
            Phase::Ready if well && spec.restart != Restart::Always => self.enter(now, unit, Phase::Done),
            Phase::Ready => {
                if now.saturating_sub(cell.since) >= HEALTHY {
                    (cell.pause, cell.failures) = (FIRST_PAUSE, 0);
                }
                self.fail(now, unit, Why::Ended(ending));
            }
            Phase::Starting { .. } => self.fail(now, unit, Why::Ended(ending)),
            Phase::Stopping { then, .. } | Phase::Killing { then, .. } => self.settle(now, unit, then),
            Phase::Waiting | Phase::Done | Phase::Paused { .. } | Phase::Failed | Phase::Stopped => {}
        }
    }

    fn handle_observation(&mut self, now: Moment, unit: UnitId, run: u32, seen: &Observation) {
        let (Some(cell), Some(spec)) = (self.cells.get_mut(unit.index()), self.units.get(unit)) else {
            return;
        };
        let Phase::Starting { probe: Some(probe), found, .. } = &mut cell.phase else { return };
        if cell.runs != run {
            return;
        }
        match probe::judge(&spec.ready, seen) {
            Verdict::Ready => self.become_ready(now, unit),
            Verdict::NotYet(why) => {
                *found = Some(why);
                probe.handle_not_yet(now);
            }
        }
    }

    fn handle_restart(&mut self, now: Moment, unit: UnitId) {
        let Some(cell) = self.cells.get_mut(unit.index()) else { return };
        if self.mode != Mode::Running {
            return;
        }
        (cell.pause, cell.failures) = (FIRST_PAUSE, 0);
        match &mut cell.phase {
            Phase::Starting { .. } | Phase::Ready => self.end(now, unit, Then::StartAgain),
            Phase::Stopping { then, .. } | Phase::Killing { then, .. } => *then = Then::StartAgain,
            Phase::Done | Phase::Paused { .. } | Phase::Failed => self.enter(now, unit, Phase::Waiting),
            Phase::Waiting | Phase::Stopped => {}
        }
    }

    fn stop(&mut self, now: Moment, manner: Manner) {
        match self.mode {
            Mode::Over => return,
            Mode::Running => self.actions.push_back(Action::Notify(Notice::Stopping)),
            Mode::Stopping(before) if before >= manner => return,
            Mode::Stopping(_) => {}
        }
        self.mode = Mode::Stopping(manner);
        for unit in self.ids() {
            let is_cut_short = match manner {
                Manner::Gentle => false,
                // One whose turn has not come is passed over when it does.
                Manner::Orderly => {
                    let cell = self.cells.get(unit.index());
                    let is_run = cell.is_some_and(|cell| matches!(cell.phase, Phase::Stopping { .. }));
                    is_run && self.readiness(unit) == Some(&Readiness::AtStop)
                }
                Manner::AtOnce => true,
            };
            if is_cut_short {
                self.kill(now, unit, Then::Rest);
            }
        }
    }

    /// What time and the states of others bring about.
    fn go_on(&mut self, now: Moment) {
        for unit in self.ids() {
            self.handle_time(now, unit);
        }
        match self.mode {
            Mode::Running => self.start_what_can(now),
            Mode::Stopping(_) => self.stop_what_can(now),
            Mode::Over => {}
        }
        // What has just failed may have ended it all.
        if let Mode::Stopping(_) = self.mode {
            self.stop_what_can(now);
        }
    }

    fn handle_time(&mut self, now: Moment, unit: UnitId) {
        let (Some(cell), Some(spec)) = (self.cells.get_mut(unit.index()), self.units.get(unit)) else {
            return;
        };
        let is_running = self.mode == Mode::Running;
        match &mut cell.phase {
            // Its turn to be stopped comes.
            Phase::Starting { .. } if !is_running => {}
            Phase::Starting { deadline, found, .. } if *deadline <= now => {
                let (within, until) = (spec.start_timeout, spec.ready.clone());
                let why = Why::NeverReady { within, until, found: found.take() };
                self.end(now, unit, Then::Fail(why));
            }
            Phase::Starting { probe, .. } => {
                let is_due = probe.as_mut().is_some_and(|probe| probe.poll(now));
                if is_due {
                    self.actions.push_back(Action::Probe { unit, run: cell.runs });
                }
            }
            Phase::Paused { until } if *until <= now => self.enter(now, unit, Phase::Waiting),
            Phase::Stopping { deadline, then } if *deadline <= now => {
                let then = then.clone();
                self.kill(now, unit, then);
            }
            Phase::Killing { since, .. } if !is_running && since.saturating_add(GIVE_UP) <= now => {
                self.enter(now, unit, Phase::Stopped);
            }
            _ => {}
        }
    }

    fn start_what_can(&mut self, now: Moment) {
        for unit in self.ids() {
            let is_waiting =
                self.cells.get(unit.index()).is_some_and(|cell| matches!(cell.phase, Phase::Waiting));
            if is_waiting && self.all(self.units.after(unit), Cell::is_satisfied) {
                self.start(now, unit);
            }
        }
        if !self.was_ready && self.is_ready() {
            self.was_ready = true;
            self.actions.push_back(Action::Notify(Notice::Ready));
        }
    }

    /// From the last to the first, so that whatever has nothing running above it is asked in one go.
    fn stop_what_can(&mut self, now: Moment) {
        for unit in self.ids().rev() {
            if self.all(self.units.before(unit), Cell::is_over) {
                self.end(now, unit, Then::Rest);
            }
        }
        if self.cells.iter().all(Cell::is_over) {
            self.mode = Mode::Over;
            let left = self.ids().filter(|unit| self.pid(*unit).is_some()).collect();
            self.actions.push_back(Action::Exit(Outcome { failure: self.failure.take(), left }));
        }
    }

    fn start(&mut self, now: Moment, unit: UnitId) {
        let (Some(cell), Some(spec)) = (self.cells.get_mut(unit.index()), self.units.get(unit)) else {
            return;
        };
        let probe = match spec.ready {
            Readiness::AtStop => return self.enter(now, unit, Phase::Ready),
            Readiness::Started | Readiness::Exited | Readiness::Notify => None,
            Readiness::UnixSocket { .. } | Readiness::Http { .. } | Readiness::File { .. } => {
                Some(Probe::new(now))
            }
        };
        cell.runs = cell.runs.saturating_add(1);
        let deadline = now.saturating_add(spec.start_timeout);
        self.enter(now, unit, Phase::Starting { deadline, probe, found: None });
        self.actions.push_back(Action::Spawn { unit });
    }

    fn become_ready(&mut self, now: Moment, unit: UnitId) {
        if let Some(cell) = self.cells.get_mut(unit.index()) {
            cell.why = None;
        }
        self.enter(now, unit, Phase::Ready);
    }

    /// A unit without a process any more has failed: again, or for good.
    fn fail(&mut self, now: Moment, unit: UnitId, why: Why) {
        let (Some(cell), Some(spec)) = (self.cells.get_mut(unit.index()), self.units.get(unit)) else {
            return;
        };
        cell.failures = cell.failures.saturating_add(1);
        cell.why = Some(why.clone());
        if self.mode != Mode::Running {
            return self.enter(now, unit, Phase::Failed);
        }
        let is_hopeless = !matches!(why, Why::Ended(_)) || cell.failures >= ATTEMPTS;
        let is_final = spec.restart == Restart::Never || (!self.was_ready && is_hopeless);
        if !is_final {
            let until = now.saturating_add(cell.pause);
            cell.pause = cell.pause.saturating_mul(2).min(LONGEST_PAUSE);
            return self.enter(now, unit, Phase::Paused { until });
        }
        self.enter(now, unit, Phase::Failed);
        if !self.was_ready {
            self.failure = Some((unit, why));
            self.stop(now, Manner::Gentle);
        }
    }

    /// What was to be stopped has no process any more.
    fn settle(&mut self, now: Moment, unit: UnitId, then: Then) {
        match then {
            Then::StartAgain => self.enter(now, unit, Phase::Waiting),
            Then::Fail(why) => self.fail(now, unit, why),
            Then::Rest => self.enter(now, unit, Phase::Stopped),
        }
    }

    /// Takes back the start of a unit that nobody has carried out yet; whether there was one.
    fn take_back_start(&mut self, unit: UnitId) -> bool {
        let before = self.actions.len();
        self.actions.retain(|action| *action != Action::Spawn { unit });
        self.actions.len() < before
    }

    /// Ends a unit by SIGTERM. One without a process rests at once, unless it is there for this.
    fn end(&mut self, now: Moment, unit: UnitId, next: Then) {
        if self.is_starting(unit) && self.take_back_start(unit) {
            return self.settle(now, unit, next);
        }
        let is_gentle = self.mode == Mode::Stopping(Manner::Gentle);
        let (Some(cell), Some(spec)) = (self.cells.get_mut(unit.index()), self.units.get(unit)) else {
            return;
        };
        match &mut cell.phase {
            Phase::Ready if spec.ready == Readiness::AtStop && !is_gentle => self.settle(now, unit, next),
            Phase::Ready if spec.ready == Readiness::AtStop => {
                cell.runs = cell.runs.saturating_add(1);
                let deadline = now.saturating_add(spec.stop_timeout);
                self.enter(now, unit, Phase::Stopping { deadline, then: next });
                self.actions.push_back(Action::Spawn { unit });
            }
            Phase::Starting { .. } | Phase::Ready => {
                let deadline = now.saturating_add(spec.stop_timeout);
                self.enter(now, unit, Phase::Stopping { deadline, then: next });
                self.actions.push_back(Action::Signal { unit });
            }
            Phase::Stopping { then, .. } | Phase::Killing { then, .. } => {
                // Why it failed is to be known even if all ends meanwhile.
                if !matches!(then, Then::Fail(_)) {
                    *then = next;
                }
            }
            Phase::Waiting | Phase::Paused { .. } | Phase::Done => self.enter(now, unit, Phase::Stopped),
            Phase::Failed | Phase::Stopped => {}
        }
    }

    fn kill(&mut self, now: Moment, unit: UnitId, then: Then) {
        if self.take_back_start(unit) {
            return self.settle(now, unit, then);
        }
        let Some(cell) = self.cells.get(unit.index()) else { return };
        match cell.phase {
            Phase::Ready if self.readiness(unit) == Some(&Readiness::AtStop) => self.settle(now, unit, then),
            Phase::Starting { .. } | Phase::Ready | Phase::Stopping { .. } => {
                self.enter(now, unit, Phase::Killing { since: now, then });
                self.actions.push_back(Action::Kill { unit });
            }
            _ => {}
        }
    }

    fn enter(&mut self, now: Moment, unit: UnitId, phase: Phase) {
        let Some(cell) = self.cells.get_mut(unit.index()) else { return };
        cell.phase = phase;
        cell.since = now;
        let notice = Action::Notify(Notice::Changed(unit));
        // Whoever is told looks for himself, and sees the latest.
        if !self.actions.contains(&notice) {
            self.actions.push_back(notice);
        }
    }

    fn is_starting(&self, unit: UnitId) -> bool {
        self.cells.get(unit.index()).is_some_and(|cell| matches!(cell.phase, Phase::Starting { .. }))
    }

    fn readiness(&self, unit: UnitId) -> Option<&Readiness> {
        self.units.get(unit).map(|unit: &Unit| &unit.ready)
    }

    fn pid(&self, unit: UnitId) -> Option<i32> {
        self.cells.get(unit.index()).and_then(|cell| cell.pid)
    }

    fn all(&self, units: &[UnitId], is: impl Fn(&Cell) -> bool) -> bool {
        units.iter().all(|unit| self.cells.get(unit.index()).is_none_or(&is))
    }

    fn ids(&self) -> impl DoubleEndedIterator<Item = UnitId> + use<> {
        self.units.ids()
    }
}

impl Cell {
    /// Whether what comes after it may start.
    fn is_satisfied(&self) -> bool {
        matches!(self.phase, Phase::Ready | Phase::Done)
    }

    /// Whether it keeps nobody from being stopped.
    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Stopped | Phase::Failed)
    }
}

#[cfg(test)]
mod tests;
