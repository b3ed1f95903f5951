//! Scripts, and a random walk, for the supervisor's decisions.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn unit(name: &str, after: &[&str], ready: Readiness, restart: Restart) -> Unit {
    Unit {
        name: name.into(),
        argv: vec!["true".into()],
        env: Vec::new(),
        after: after.iter().map(|&name| name.into()).collect(),
        ready,
        start_timeout: 10 * SECOND,
        stop_timeout: 5 * SECOND,
        restart,
    }
}

fn daemon(name: &str, after: &[&str]) -> Unit {
    unit(name, after, Readiness::Notify, Restart::Always)
}

fn socket() -> Readiness {
    Readiness::UnixSocket { path: "/run/x.sock".into() }
}

/// A supervisor at a point in time; spawning always works unless a test says otherwise.
struct Script {
    supervisor: Supervisor,
    now: Moment,
    pids: i32,
    /// Names of units that cannot be executed.
    broken: Vec<&'static str>,
}

impl Script {
    fn new(units: Vec<Unit>) -> Self {
        let supervisor = Supervisor::new(Units::new(units).unwrap(), Moment::ZERO);
        Script { supervisor, now: Moment::ZERO, pids: 100, broken: Vec::new() }
    }

    fn id(&self, name: &str) -> UnitId {
        self.supervisor.units().find(name).unwrap()
    }

    fn name(&self, unit: UnitId) -> String {
        self.supervisor.units().get(unit).unwrap().name.clone()
    }

    /// Everything that is to be done now, changes of states left out.
    fn actions(&mut self) -> Vec<String> {
        let mut done = Vec::new();
        while let Some(action) = self.supervisor.poll_action() {
            let text = match action {
                Action::Spawn { unit } => {
                    self.pids += 1;
                    let name = self.name(unit);
                    let answer = match self.broken.iter().any(|broken| *broken == name) {
                        false => Event::Started { unit, pid: self.pids },
                        true => Event::NotStarted { unit, why: "No such file".into() },
                    };
                    self.supervisor.handle_event(self.now, answer);
                    format!("spawn {name}")
                }
                Action::Signal { unit } => format!("term {}", self.name(unit)),
                Action::Kill { unit } => format!("kill {}", self.name(unit)),
                Action::Probe { unit, run } => format!("probe {} {run}", self.name(unit)),
                Action::Notify(Notice::Changed(_)) => continue,
                Action::Notify(notice) => format!("{notice:?}").to_lowercase(),
                Action::Exit(Outcome { failure: None, left }) => format!("exit, {} left", left.len()),
                Action::Exit(Outcome { failure: Some((unit, why)), .. }) => {
                    format!("exit: {} {why}", self.name(unit))
                }
            };
            done.push(text);
        }
        done
    }

    fn put(&mut self, event: Event) -> Vec<String> {
        self.supervisor.handle_event(self.now, event);
        self.actions()
    }

    fn ready(&mut self, name: &str) -> Vec<String> {
        let unit = self.id(name);
        self.put(Event::Notified { unit })
    }

    fn ends(&mut self, name: &str, ending: Ending) -> Vec<String> {
        let unit = self.id(name);
        self.put(Event::Ended { unit, ending })
    }

    fn crashes(&mut self, name: &str) -> Vec<String> {
        self.ends(name, Ending::Exited(1))
    }

    fn restart(&mut self, name: &str) -> Vec<String> {
        let unit = self.id(name);
        self.put(Event::Restart { unit })
    }

    fn sees(&mut self, name: &str, run: u32, observation: Observation) -> Vec<String> {
        let unit = self.id(name);
        self.put(Event::Observed { unit, run, observation })
    }

    fn stop(&mut self) -> Vec<String> {
        self.put(Event::Stop(Manner::Gentle))
    }

    fn pass(&mut self, time: Duration) -> Vec<String> {
        self.now += time;
        self.supervisor.handle_timeout(self.now);
        self.actions()
    }

    /// Waits for the next thing that time brings about; how long that was and what it is.
    fn next(&mut self) -> (Duration, Vec<String>) {
        let pause = self.supervisor.poll_timeout().unwrap() - self.now;
        (pause, self.pass(pause))
    }

    fn state(&self, name: &str) -> &'static str {
        self.supervisor.view(self.id(name)).unwrap().state.name()
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn units_start_when_what_they_come_after_is_ready() {
    let mut script = Script::new(vec![
        daemon("kubelet", &["containerd", "directories"]),
        daemon("containerd", &[]),
        unit("directories", &[], Readiness::Exited, Restart::Never),
    ]);
    assert_eq!(script.actions(), ["spawn containerd", "spawn directories"]);
    assert_eq!(script.ready("containerd"), NOTHING);
    assert_eq!(script.state("kubelet"), "waiting");
    assert_eq!(script.ends("directories", Ending::Exited(0)), ["spawn kubelet"]);
    assert!(!script.supervisor.is_ready());
    assert_eq!(script.ready("kubelet"), ["ready"]);
    assert!(script.supervisor.is_ready());
    assert_eq!(script.state("directories"), "done");
    assert_eq!(script.supervisor.poll_timeout(), None, "an idle node wakes nobody");
}

#[test]
fn a_unit_without_a_condition_is_ready_when_it_runs() {
    let mut script = Script::new(vec![
        unit("a", &[], Readiness::Started, Restart::Always),
        unit("b", &["a"], Readiness::Started, Restart::Always),
    ]);
    assert_eq!(script.actions(), ["spawn a", "spawn b", "ready"]);
}

#[test]
fn a_socket_is_looked_for_until_it_answers() {
    let mut script = Script::new(vec![unit("a", &[], socket(), Restart::Always)]);
    assert_eq!(script.actions(), ["spawn a"]);
    assert_eq!(script.ready("a"), NOTHING, "READY=1 is not what this one waits for");
    assert_eq!(script.next(), (Duration::from_millis(10), vec!["probe a 1".into()]));
    let absent = Observation::NotConnected { errno: libc::ENOENT };
    assert_eq!(script.sees("a", 1, absent), NOTHING);
    assert_eq!(script.next(), (Duration::from_millis(20), vec!["probe a 1".into()]));
    assert_eq!(script.sees("a", 1, Observation::Connected), ["ready"]);
}

#[test]
fn what_was_seen_of_an_earlier_start_does_not_count() {
    let mut script = Script::new(vec![unit("a", &[], socket(), Restart::Always)]);
    script.actions();
    assert_eq!(script.next().1, ["probe a 1"]);
    script.crashes("a");
    assert_eq!(script.next(), (FIRST_PAUSE, vec!["spawn a".into()]));
    assert_eq!(script.sees("a", 1, Observation::Connected), NOTHING);
    assert_eq!(script.state("a"), "starting");
}

#[test]
fn a_unit_that_is_never_ready_ends_all_and_is_named() {
    let mut script = Script::new(vec![daemon("b", &[]), unit("a", &["b"], socket(), Restart::Always)]);
    script.actions();
    assert_eq!(script.ready("b"), ["spawn a"]);
    let mut looks = 0;
    loop {
        let (_, actions) = script.next();
        match actions.first().unwrap().as_str() {
            "probe a 1" => looks += 1,
            other => break assert_eq!(other, "term a"),
        }
        script.sees("a", 1, Observation::NotConnected { errno: libc::ENOENT });
    }
    assert!((20..80).contains(&looks), "{looks}");
    assert_eq!(script.now, 10 * SECOND);
    assert_eq!(script.ends("a", Ending::Killed(15)), ["stopping", "term b"]);
    assert_eq!(
        script.ends("b", Ending::Exited(0)),
        ["exit: a was not ready within 10s (it is ready when /run/x.sock accepts connections); last seen: \
            /run/x.sock: No such file or directory (os error 2)"]
    );
}

#[test]
fn a_unit_that_crashes_at_start_is_given_some_attempts() {
    let mut script = Script::new(vec![daemon("a", &[])]);
    assert_eq!(script.actions(), ["spawn a"]);
    for pause in [250, 500, 1000, 2000] {
        assert_eq!(script.crashes("a"), NOTHING);
        assert_eq!(script.state("a"), "paused");
        assert_eq!(script.next(), (Duration::from_millis(pause), vec!["spawn a".into()]));
    }
    assert_eq!(script.crashes("a"), ["stopping", "exit: a exited with status 1"]);
    assert_eq!(script.state("a"), "failed");
}

#[test]
fn a_unit_that_cannot_be_executed_is_not_tried_again() {
    let mut script = Script::new(vec![daemon("b", &[]), daemon("a", &["b"])]);
    script.broken.push("a");
    script.actions();
    assert_eq!(script.ready("b"), ["spawn a", "stopping", "term b"]);
    assert_eq!(script.ends("b", Ending::Exited(0)), ["exit: a cannot be started: No such file"]);
}

#[test]
fn a_daemon_that_goes_into_the_background_is_told_so() {
    let mut script = Script::new(vec![unit("a", &[], socket(), Restart::Never)]);
    script.actions();
    let end = script.ends("a", Ending::Exited(0));
    assert!(end.last().unwrap().contains("stay in the foreground"), "{end:?}");
}

#[test]
fn a_one_shot_is_tried_again_if_it_may_be() {
    let mut script = Script::new(vec![
        unit("once", &[], Readiness::Exited, Restart::OnFailure),
        unit("a", &["once"], Readiness::Started, Restart::Always),
    ]);
    script.actions();
    assert_eq!(script.crashes("once"), NOTHING);
    assert_eq!(script.next().1, ["spawn once"]);
    assert_eq!(script.ends("once", Ending::Exited(0)), ["spawn a", "ready"]);
    let mut script = Script::new(vec![unit("once", &[], Readiness::Exited, Restart::Never)]);
    script.actions();
    assert_eq!(script.crashes("once"), ["stopping", "exit: once exited with status 1"]);
}

#[test]
fn pauses_double_up_to_a_bound_and_are_short_again_after_a_healthy_time() {
    let mut script = Script::new(vec![daemon("a", &[])]);
    script.actions();
    assert_eq!(script.ready("a"), ["ready"]);
    let mut pauses = Vec::new();
    for _ in 0..9 {
        assert_eq!(script.crashes("a"), NOTHING);
        let (pause, actions) = script.next();
        assert_eq!(actions, ["spawn a"]);
        pauses.push(pause.as_millis());
        assert_eq!(script.ready("a"), NOTHING, "told once");
    }
    assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
    script.pass(HEALTHY);
    script.crashes("a");
    assert_eq!(script.next().0, FIRST_PAUSE);
}

#[test]
fn a_unit_that_was_ready_once_is_tried_for_ever_even_if_it_hangs() {
    let mut script = Script::new(vec![daemon("a", &[])]);
    script.actions();
    script.ready("a");
    for _ in 0..20 {
        script.crashes("a");
        assert_eq!(script.next().1, ["spawn a"]);
        assert_eq!(script.next(), (10 * SECOND, vec!["term a".into()]));
        assert_eq!(script.next(), (5 * SECOND, vec!["kill a".into()]));
        assert_eq!(script.ends("a", Ending::Killed(9)), NOTHING);
        assert_eq!(script.state("a"), "paused");
        assert_eq!(script.next().1, ["spawn a"]);
    }
}

#[test]
fn what_comes_after_a_unit_is_left_running_when_that_ends() {
    let mut script = Script::new(vec![daemon("containerd", &[]), daemon("kubelet", &["containerd"])]);
    script.actions();
    script.ready("containerd");
    script.ready("kubelet");
    assert_eq!(script.crashes("containerd"), NOTHING);
    assert_eq!(script.state("kubelet"), "ready");
    assert!(!script.supervisor.is_ready());
    // One that ends meanwhile is not started without it.
    assert_eq!(script.crashes("kubelet"), NOTHING);
    assert_eq!(script.next().1, ["spawn containerd"]);
    assert_eq!(script.state("kubelet"), "waiting");
    assert_eq!(script.ready("containerd"), ["spawn kubelet"]);
}

#[test]
fn what_ended_well_or_may_not_be_restarted_stays_down() {
    let started = |name: &str, restart| unit(name, &[], Readiness::Started, restart);
    let mut script = Script::new(vec![
        started("good", Restart::OnFailure),
        started("bad", Restart::OnFailure),
        started("never", Restart::Never),
    ]);
    script.actions();
    assert_eq!(script.ends("good", Ending::Exited(0)), NOTHING);
    assert_eq!(script.ends("never", Ending::Killed(11)), NOTHING);
    assert_eq!((script.state("good"), script.state("never")), ("done", "failed"));
    let view = script.supervisor.view(script.id("never")).unwrap();
    assert_eq!(view.why, Some(&Why::Ended(Ending::Killed(11))));
    assert_eq!(script.crashes("bad"), NOTHING);
    assert_eq!(script.next().1, ["spawn bad"]);
    assert_eq!(script.restart("never"), ["spawn never"]);
    assert_eq!(script.restart("good"), ["spawn good"]);
}

#[test]
fn restarting_is_stopping_and_starting_without_a_pause() {
    let mut script = Script::new(vec![daemon("a", &[]), daemon("b", &["a"])]);
    script.actions();
    script.ready("a");
    script.ready("b");
    assert_eq!(script.restart("a"), ["term a"]);
    assert_eq!(script.restart("a"), NOTHING, "it is on its way");
    assert_eq!(script.ends("a", Ending::Exited(0)), ["spawn a"]);
    assert_eq!(script.state("b"), "ready");
    assert_eq!(script.supervisor.view(script.id("a")).unwrap().runs, 2);
    script.crashes("a");
    assert_eq!(script.restart("a"), ["spawn a"], "a pause is cut short");
    assert_eq!(script.restart("a"), ["term a"], "also one that starts");
    assert_eq!(script.next(), (5 * SECOND, vec!["kill a".into()]));
    assert_eq!(script.ends("a", Ending::Killed(9)), ["spawn a"]);
}

#[test]
fn stopping_goes_backwards() {
    let mut script = Script::new(vec![
        daemon("a", &[]),
        daemon("b", &["a"]),
        daemon("c", &["a"]),
        daemon("d", &["b"]),
        daemon("late", &["d", "c"]),
    ]);
    script.actions();
    for name in ["a", "b", "c", "d"] {
        script.ready(name);
    }
    assert_eq!(script.state("late"), "starting");
    assert_eq!(script.stop(), ["stopping", "term late"]);
    assert_eq!(script.stop(), NOTHING);
    assert_eq!(script.restart("a"), NOTHING, "too late for that");
    assert_eq!(script.ends("late", Ending::Killed(15)), ["term d", "term c"]);
    assert_eq!(script.ends("d", Ending::Exited(0)), ["term b"]);
    assert_eq!(script.ends("b", Ending::Exited(0)), NOTHING);
    assert_eq!(script.next(), (5 * SECOND, vec!["kill c".into()]));
    assert_eq!(script.ends("c", Ending::Killed(9)), ["term a"]);
    assert_eq!(script.ends("a", Ending::Exited(0)), ["exit, 0 left"]);
    assert_eq!(script.supervisor.poll_timeout(), None);
    assert_eq!(script.stop(), NOTHING);
}

#[test]
fn stopping_does_not_wait_for_what_does_not_run() {
    let mut script = Script::new(vec![
        daemon("a", &[]),
        daemon("paused", &["a"]),
        daemon("waiting", &["paused"]),
        unit("once", &[], Readiness::Exited, Restart::Never),
    ]);
    script.actions();
    script.ends("once", Ending::Exited(0));
    script.ready("a");
    script.crashes("paused");
    assert_eq!(script.stop(), ["stopping", "term a"]);
    assert_eq!(script.ends("a", Ending::Exited(0)), ["exit, 0 left"]);
}

#[test]
fn a_second_word_stops_all_at_once() {
    let mut script = Script::new(vec![daemon("a", &[]), daemon("b", &["a"])]);
    script.actions();
    script.ready("a");
    assert_eq!(script.stop(), ["stopping", "term b"]);
    assert_eq!(script.put(Event::Stop(Manner::AtOnce)), ["kill a", "kill b"]);
    assert_eq!(script.ends("a", Ending::Killed(9)), NOTHING);
    assert_eq!(script.next(), (GIVE_UP, vec!["exit, 1 left".into()]));
}

fn farewell(name: &str, after: &[&str]) -> Unit {
    unit(name, after, Readiness::AtStop, Restart::Never)
}

/// Three units that run, of which the second one is there for the stop.
fn with_farewell() -> Script {
    let mut script =
        Script::new(vec![daemon("runtime", &[]), farewell("pods", &["runtime"]), daemon("agent", &["pods"])]);
    assert_eq!(script.actions(), ["spawn runtime"]);
    assert_eq!(script.ready("runtime"), ["spawn agent"]);
    assert_eq!(script.ready("agent"), ["ready"]);
    assert_eq!(script.state("pods"), "ready");
    assert_eq!(script.restart("pods"), NOTHING);
    assert_eq!(script.state("pods"), "ready");
    script
}

#[test]
fn what_is_there_for_the_stop_is_run_when_its_turn_comes() {
    let mut script = with_farewell();
    assert_eq!(script.stop(), ["stopping", "term agent"]);
    assert_eq!(script.ends("agent", Ending::Killed(15)), ["spawn pods"]);
    assert_eq!(script.state("pods"), "stopping");
    assert_eq!(script.pass(SECOND), NOTHING);
    assert_eq!(script.ends("pods", Ending::Exited(0)), ["term runtime"]);
    assert_eq!(script.ends("runtime", Ending::Exited(0)), ["exit, 0 left"]);
}

#[test]
fn what_is_there_for_the_stop_has_its_time_and_no_more() {
    let mut script = with_farewell();
    script.stop();
    assert_eq!(script.ends("agent", Ending::Killed(15)), ["spawn pods"]);
    assert_eq!(script.pass(5 * SECOND), ["kill pods"]);
    assert_eq!(script.ends("pods", Ending::Killed(9)), ["term runtime"]);
}

#[test]
fn a_second_word_cuts_it_short() {
    let mut script = with_farewell();
    script.stop();
    script.ends("agent", Ending::Killed(15));
    assert_eq!(script.put(Event::Stop(Manner::Orderly)), ["kill pods"]);
    assert_eq!(script.ends("pods", Ending::Killed(9)), ["term runtime"]);
    // Before its turn.
    let mut script = with_farewell();
    script.stop();
    assert_eq!(script.put(Event::Stop(Manner::Orderly)), NOTHING);
    assert_eq!(script.ends("agent", Ending::Killed(15)), ["term runtime"]);
}

#[test]
fn one_that_cannot_be_executed_keeps_nobody_from_stopping() {
    let mut script = with_farewell();
    script.broken.push("pods");
    script.stop();
    assert_eq!(script.ends("agent", Ending::Killed(15)), ["spawn pods", "term runtime"]);
}

#[test]
fn a_start_that_is_not_wanted_any_more_is_taken_back() {
    let started = |name| unit(name, &[], Readiness::Started, Restart::Always);
    let mut script = Script::new(vec![started("a"), started("b"), started("c")]);
    script.broken.push("b");
    let end = ["spawn a", "spawn b", "stopping", "term a"];
    assert_eq!(script.actions(), end);
    assert_eq!((script.state("b"), script.state("c")), ("failed", "stopped"));
    assert_eq!(script.ends("a", Ending::Killed(15)), ["exit: b cannot be started: No such file"]);
}

/// What the walk does to a unit, or to all.
#[derive(Clone, Copy, Debug)]
enum Step {
    Pass(u16),
    Due,
    End(u8, bool),
    Notify(u8),
    Look(bool),
    Restart(u8),
    Stop(Manner),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u16..20_000).prop_map(Step::Pass),
        6 => Just(Step::Due),
        6 => (any::<u8>(), any::<bool>()).prop_map(|(unit, well)| Step::End(unit, well)),
        6 => any::<u8>().prop_map(Step::Notify),
        6 => any::<bool>().prop_map(Step::Look),
        2 => any::<u8>().prop_map(Step::Restart),
        1 => Just(Step::Stop(Manner::Gentle)),
        1 => Just(Step::Stop(Manner::Orderly)),
        1 => Just(Step::Stop(Manner::AtOnce)),
    ]
}

/// Units that come after some of those with lower numbers, whatever the bits say.
fn some_units() -> impl Strategy<Value = Vec<Unit>> {
    proptest::collection::vec((any::<u8>(), 0..5u8, 0..3u8), 1..7).prop_map(|units| {
        let made = units.iter().enumerate().map(|(place, &(after, ready, restart))| {
            let after: Vec<String> =
                (0..place).filter(|other| after >> other & 1 == 1).map(|other| format!("u{other}")).collect();
            let after: Vec<&str> = after.iter().map(String::as_str).collect();
            let ready = match ready {
                0 => Readiness::Started,
                1 => Readiness::Exited,
                2 => Readiness::Notify,
                3 => Readiness::AtStop,
                _ => socket(),
            };
            let restart = match restart {
                0 if ready != Readiness::Exited => Restart::Always,
                0 | 1 => Restart::OnFailure,
                _ => Restart::Never,
            };
            unit(&format!("u{place}"), &after, ready, restart)
        });
        made.collect()
    })
}

/// What the world looks like beside the supervisor; checks every action against it.
struct World {
    supervisor: Supervisor,
    now: Moment,
    running: BTreeMap<UnitId, i32>,
    looks: Vec<(UnitId, u32)>,
    pids: i32,
    /// Which starts fail, in turn.
    broken: Vec<bool>,
    is_stopping: bool,
    is_over: bool,
    told_ready: u32,
}

impl World {
    fn new(units: Vec<Unit>, broken: Vec<bool>) -> Self {
        let mut world = World {
            supervisor: Supervisor::new(Units::new(units).unwrap(), Moment::ZERO),
            now: Moment::ZERO,
            running: BTreeMap::new(),
            looks: Vec::new(),
            pids: 1,
            broken,
            is_stopping: false,
            is_over: false,
            told_ready: 0,
        };
        world.drain();
        world
    }

    fn state(&self, unit: UnitId) -> State {
        self.supervisor.view(unit).unwrap().state
    }

    fn is_for_stop(&self, unit: UnitId) -> bool {
        self.supervisor.units().get(unit).unwrap().ready == Readiness::AtStop
    }

    /// Whether it is dead, or given up.
    fn is_past(&self, unit: UnitId) -> bool {
        self.state(unit) == State::Stopped || !self.running.contains_key(&unit)
    }

    fn put(&mut self, event: Event) {
        self.supervisor.handle_event(self.now, event);
        self.drain();
    }

    fn drain(&mut self) {
        let mut count = 0;
        while let Some(action) = self.supervisor.poll_action() {
            count += 1;
            assert!(count < 1000, "no end of actions");
            assert!(!self.is_over, "{action:?} after the last one");
            match action {
                Action::Spawn { unit } => {
                    assert!(!self.running.contains_key(&unit), "two processes of one unit");
                    let is_for_stop = self.is_for_stop(unit);
                    assert_eq!(self.is_stopping, is_for_stop, "a start while all is stopped");
                    for before in self.supervisor.units().before(unit) {
                        assert!(!is_for_stop || self.is_past(*before), "started too early");
                    }
                    for after in self.supervisor.units().after(unit).iter().filter(|_| !is_for_stop) {
                        assert!(
                            matches!(self.state(*after), State::Ready | State::Done),
                            "started too early"
                        );
                    }
                    let answer = if self.broken.pop() == Some(true) {
                        Event::NotStarted { unit, why: "no such file".into() }
                    } else {
                        self.pids += 1;
                        self.running.insert(unit, self.pids);
                        Event::Started { unit, pid: self.pids }
                    };
                    self.supervisor.handle_event(self.now, answer);
                }
                Action::Signal { unit } => {
                    assert!(self.running.contains_key(&unit), "nobody to be signalled");
                    if self.is_stopping {
                        for before in self.supervisor.units().before(unit) {
                            assert!(self.is_past(*before), "stopped too early");
                        }
                    }
                }
                Action::Kill { unit } => assert!(self.running.contains_key(&unit), "nobody to be killed"),
                Action::Probe { unit, run } => self.looks.push((unit, run)),
                Action::Notify(Notice::Stopping) => self.is_stopping = true,
                Action::Notify(Notice::Ready) => self.told_ready += 1,
                Action::Notify(Notice::Changed(_)) => {}
                Action::Exit(Outcome { left, .. }) => {
                    self.is_over = true;
                    assert!(self.running.keys().eq(left.iter()), "somebody runs and is not told of");
                }
            }
        }
        assert!(self.told_ready <= 1);
        for unit in self.supervisor.units().ids() {
            let view = self.supervisor.view(unit).unwrap();
            assert_eq!(view.pid, self.running.get(&unit).copied());
            let has_process =
                matches!(view.state, State::Starting | State::Ready | State::Stopping | State::Killing);
            let is_given_up = self.is_stopping && view.state == State::Stopped;
            let is_kept = view.state == State::Ready && self.is_for_stop(unit);
            assert!(has_process == view.pid.is_some() || is_given_up || is_kept, "{view:?}");
        }
        // Whatever is due has been done: nobody spins.
        self.supervisor.handle_timeout(self.now);
        assert_eq!(self.supervisor.poll_action(), None);
        assert!(self.supervisor.poll_timeout().is_none_or(|due| due > self.now));
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.supervisor.handle_timeout(self.now);
        self.drain();
    }

    fn pick(&self, number: u8) -> UnitId {
        let ids: Vec<UnitId> = self.supervisor.units().ids().collect();
        ids[usize::from(number) % ids.len()]
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Pass(time) => self.pass(Duration::from_millis(time.into())),
            Step::Due => {
                if let Some(due) = self.supervisor.poll_timeout() {
                    self.pass(due - self.now);
                }
            }
            Step::End(unit, well) => {
                let unit = self.pick(unit);
                if self.running.remove(&unit).is_some() {
                    let ending = if well { Ending::Exited(0) } else { Ending::Killed(11) };
                    self.put(Event::Ended { unit, ending });
                }
            }
            Step::Notify(unit) => self.put(Event::Notified { unit: self.pick(unit) }),
            Step::Look(there) => {
                if let Some((unit, run)) = self.looks.pop() {
                    let observation =
                        if there { Observation::Connected } else { Observation::NotConnected { errno: 2 } };
                    self.put(Event::Observed { unit, run, observation });
                }
            }
            Step::Restart(unit) => self.put(Event::Restart { unit: self.pick(unit) }),
            Step::Stop(manner) => self.put(Event::Stop(manner)),
        }
    }

    /// Everything that runs obeys, or nothing does: it comes to its end either way.
    fn finish(&mut self, obedient: bool) {
        self.put(Event::Stop(Manner::Gentle));
        for _ in 0..100 {
            if self.is_over {
                return;
            }
            if obedient {
                let stopping = |unit: &UnitId| matches!(self.state(*unit), State::Stopping | State::Killing);
                let unit = self.running.keys().copied().find(stopping).expect("somebody is being stopped");
                self.running.remove(&unit);
                self.put(Event::Ended { unit, ending: Ending::Killed(15) });
            } else {
                let due = self.supervisor.poll_timeout().expect("time goes on");
                self.pass(due - self.now);
            }
        }
        panic!("it never ends");
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_rules_hold(
        units in some_units(),
        steps in proptest::collection::vec(step(), 0..120),
        broken in proptest::collection::vec(proptest::bool::weighted(0.1), 0..20),
        obedient in any::<bool>(),
    ) {
        let mut world = World::new(units, broken);
        prop_assume!(!world.is_over);
        for step in steps {
            world.step(step);
            if world.is_over {
                return Ok(());
            }
        }
        world.finish(obedient);
    }
}
