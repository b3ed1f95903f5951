//! The timer wheel.

use super::{Run, Scenario};
use netstack::{
    time::{Duration, Instant},
    timer::TimerWheel,
};
use std::hint::black_box;

pub(super) const ALL: &[Scenario] = &[
    Scenario::elements("timer/reschedule-1k", TIMES, || reschedule(1000)),
    Scenario::elements("timer/reschedule-100k", TIMES, || reschedule(100_000)),
    Scenario::elements("timer/expire-1k", 1000, || expire(1000)),
    Scenario::elements("timer/expire-100k", 100_000, || expire(100_000)),
];

const TIMES: u64 = 10_000;

fn filled(timers: u32, now: Instant) -> TimerWheel {
    let mut wheel = TimerWheel::new();
    while wheel.expire(now).is_some() {}
    for key in 0..timers {
        wheel.schedule(key, now + spread(key));
    }
    wheel
}

/// From a millisecond to five minutes.
fn spread(key: u32) -> Duration {
    Duration::from_millis(1 + u64::from(key) * 7919 % 300_000)
}

/// What every packet does: its flow's timer moves away, and the next deadline is asked for.
fn reschedule(timers: u32) -> Run {
    let mut now = Instant::from_secs(1000);
    let mut wheel = filled(timers, now);
    let mut key = 0;
    Box::new(move || {
        for _ in 0..TIMES {
            now += Duration::from_micros(10);
            key = (key + 7919) % timers;
            wheel.schedule(key, now + Duration::from_secs(300));
            black_box(wheel.next_deadline());
        }
    })
}

/// All of them expire, in their time, and are set again.
fn expire(timers: u32) -> Run {
    let mut now = Instant::from_secs(1000);
    let mut wheel = filled(timers, now);
    Box::new(move || {
        let mut expired = 0;
        while let Some(deadline) = wheel.next_deadline() {
            now = deadline;
            while let Some(key) = wheel.expire(now) {
                expired += u32::from(black_box(key) < timers);
            }
        }
        assert_eq!(expired, timers);
        for key in 0..timers {
            wheel.schedule(key, now + spread(key));
        }
    })
}
