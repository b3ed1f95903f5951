//! What the pure core is measured by: fixed pieces of work, the same for criterion's clock and for callgrind's count.
//!
//! Nothing in them depends on time, on chance or on the machine: addresses, seeds and sizes are constants, so that one run executes the
//! same instructions as the next.

mod flow_table;
mod forwarder;
mod player;
mod tcp_stream;
mod timer;
mod udp_small;
mod wire;

/// A piece of work with a name.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// `group/what`, without spaces.
    pub name: &'static str,
    /// What one run does, for rates.
    pub unit: Unit,
    prepare: fn() -> Run,
}

/// What is counted in a run.
#[derive(Debug, Clone, Copy)]
pub enum Unit {
    /// So many packets, look-ups or the like.
    Elements(u64),
    /// So many bytes of payload.
    Bytes(u64),
}

/// Does the work of a scenario, every time it is called.
pub type Run = Box<dyn FnMut()>;

impl Scenario {
    /// Builds what the work is done on; that is not part of what is measured.
    #[must_use]
    pub fn prepare(&self) -> Run {
        (self.prepare)()
    }

    /// What stands before the slash.
    #[must_use]
    pub fn group(&self) -> &'static str {
        self.name.split_once('/').map_or(self.name, |(group, _)| group)
    }

    const fn elements(name: &'static str, count: u64, prepare: fn() -> Run) -> Self {
        Self { name, unit: Unit::Elements(count), prepare }
    }

    const fn bytes(name: &'static str, count: u64, prepare: fn() -> Run) -> Self {
        Self { name, unit: Unit::Bytes(count), prepare }
    }
}

/// All of them, group by group.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    [wire::ALL, flow_table::ALL, tcp_stream::ALL, udp_small::ALL, timer::ALL, forwarder::ALL]
        .into_iter()
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_scenario_runs_again_and_again() {
        for scenario in all() {
            let mut run = scenario.prepare();
            run();
            run();
        }
    }

    #[test]
    fn names_are_unique_and_fit_a_table() {
        let names = all().map(|scenario| scenario.name).collect::<BTreeSet<_>>();
        assert_eq!(names.len(), all().count());
        assert!(names.iter().all(|name| name.contains('/') && !name.contains([' ', ','])));
    }
}
