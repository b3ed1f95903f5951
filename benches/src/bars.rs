//! The bars: what was promised, what was measured.

use crate::measure::short;

/// How a comparison ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every bar that was measured is met.
    Met,
    /// One is not.
    Missed,
}

/// A list of bars. Those without a measured value (a row or a column was left out) are not judged.
#[derive(Debug, Default)]
pub struct Bars(Vec<Bar>);

#[derive(Debug)]
struct Bar {
    name: String,
    measured: f64,
    wanted: f64,
    side: Side,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    AtLeast,
    AtMost,
}

impl Bars {
    /// `measured` has to reach `wanted`.
    pub fn at_least(&mut self, name: &str, measured: Option<f64>, wanted: f64) {
        self.push(name, measured, wanted, Side::AtLeast);
    }

    /// `measured` must not exceed `wanted`.
    pub fn at_most(&mut self, name: &str, measured: Option<f64>, wanted: f64) {
        self.push(name, measured, wanted, Side::AtMost);
    }

    /// Prints all of them as a table.
    #[must_use]
    pub fn print(&self) -> Verdict {
        println!("| bar | measured | wanted | |\n|---|---|---|---|");
        let mut verdict = Verdict::Met;
        for bar in &self.0 {
            let Bar { name, measured, wanted, side } = bar;
            let sign = if *side == Side::AtLeast { ">=" } else { "<=" };
            let result = if bar.is_met() { "pass" } else { "FAIL" };
            if !bar.is_met() {
                verdict = Verdict::Missed;
            }
            println!("| {name} | {} | {sign} {wanted} | {result} |", short(*measured));
        }
        println!();
        verdict
    }

    fn push(&mut self, name: &str, measured: Option<f64>, wanted: f64, side: Side) {
        self.0.extend(measured.map(|measured| Bar { name: name.to_owned(), measured, wanted, side }));
    }
}

impl Bar {
    fn is_met(&self) -> bool {
        match self.side {
            Side::AtLeast => self.measured >= self.wanted,
            Side::AtMost => self.measured <= self.wanted,
        }
    }
}

/// `a / b`, where both were measured.
#[must_use]
pub fn ratio(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? / b?)
}

/// `a - b`, where both were measured.
#[must_use]
pub fn difference(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? - b?)
}
