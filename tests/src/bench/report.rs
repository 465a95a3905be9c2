//! The table.

use std::fmt;

/// What a figure must keep.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// Only told.
    None,
    /// The value itself, at most.
    AtMost(f64),
    /// The value itself, at least.
    AtLeast(f64),
    /// Value over yardstick, at most.
    RatioAtMost(f64),
    /// Value over yardstick, at least.
    RatioAtLeast(f64),
    /// The same, where the machine itself is not that much faster than the yardstick: it is told, and another line says
    /// what share of the machine's own speed is reached.
    RatioBeyond(f64),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Bound::None => String::new(),
            Bound::AtMost(most) => format!("<= {most}"),
            Bound::AtLeast(least) => format!(">= {least}"),
            Bound::RatioAtMost(most) => format!("<= {most}x"),
            Bound::RatioAtLeast(least) | Bound::RatioBeyond(least) => format!(">= {least}x"),
        };
        f.pad(&text)
    }
}

/// One figure.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// What was measured.
    pub name: &'a str,
    /// The figure.
    pub value: f64,
    /// Unit of value and yardstick.
    pub unit: &'a str,
    /// The same of the yardstick, from this run, and its name.
    pub yardstick: Option<(f64, &'a str)>,
    /// What must hold.
    pub bound: Bound,
}

impl Line<'_> {
    fn ratio(&self) -> Option<f64> {
        self.yardstick.map(|(yardstick, _)| self.value / yardstick)
    }

    /// Whether the bound is kept; `None` where there is none. A ratio that is no number keeps nothing.
    fn keeps(&self) -> Option<bool> {
        let ratio = || self.ratio().unwrap_or(f64::NAN);
        match self.bound {
            Bound::None | Bound::RatioBeyond(_) => None,
            Bound::AtMost(most) => Some(self.value <= most),
            Bound::AtLeast(least) => Some(self.value >= least),
            Bound::RatioAtMost(most) => Some(ratio() <= most),
            Bound::RatioAtLeast(least) => Some(ratio() >= least),
        }
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yardstick = self.yardstick.map(|(value, name)| format!("{value:.2} {name}")).unwrap_or_default();
        let ratio = self.ratio().map(|ratio| format!("{ratio:.2}x")).unwrap_or_default();
        let verdict = match (self.keeps(), self.bound) {
            (None, Bound::RatioBeyond(_)) => "beyond the machine",
            (None, _) => "",
            (Some(true), _) => "ok",
            (Some(false), _) => "over",
        };
        let row = row(
            self.name,
            &format!("{:.2}", self.value),
            self.unit,
            &yardstick,
            &ratio,
            &self.bound,
            verdict,
        );
        f.write_str(&row)
    }
}

fn row(
    name: &str,
    value: &str,
    unit: &str,
    yardstick: &str,
    ratio: &str,
    bound: &dyn fmt::Display,
    verdict: &str,
) -> String {
    let row = format!("{name:<38} {value:>9} {unit:<10} {yardstick:>19} {ratio:>7} {bound:>8}  {verdict}");
    row.trim_end().to_owned()
}

/// Prints lines and counts those over their bounds.
#[derive(Debug)]
pub struct Report {
    over: usize,
}

impl Report {
    /// Prints the head.
    pub fn begin() -> Report {
        println!("{}", row("what", "value", "unit", "yardstick", "ratio", &"bound", ""));
        Report { over: 0 }
    }

    /// Prints a line.
    pub fn line(&mut self, line: Line<'_>) {
        println!("{line}");
        if line.keeps() == Some(false) {
            self.over += 1;
        }
    }

    /// How many lines missed their bounds.
    pub fn over(&self) -> usize {
        self.over
    }

    /// Prints the peak memory of a process in MB, with the bound of all processes.
    pub fn memory(&mut self, name: &str, bytes: u64) {
        self.memory_at_most(name, bytes, super::MEMORY_BOUND);
    }

    /// Prints the peak memory of a process in MB, with a bound in bytes.
    pub fn memory_at_most(&mut self, name: &str, bytes: u64, most: f64) {
        let most = most / 1e6;
        let value = bytes as f64 / 1e6;
        self.line(Line { name, value, unit: "MB", yardstick: None, bound: Bound::AtMost(most) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(value: f64, yardstick: f64, bound: Bound) -> Line<'static> {
        Line { name: "a", value, unit: "s", yardstick: Some((yardstick, "b")), bound }
    }

    #[test]
    fn bounds_hold_on_their_edge_and_break_beyond() {
        for (kept, bound) in [
            (true, Bound::AtMost(2.0)),
            (false, Bound::AtMost(1.9)),
            (true, Bound::AtLeast(2.0)),
            (false, Bound::AtLeast(2.1)),
            (true, Bound::RatioAtMost(4.0)),
            (false, Bound::RatioAtMost(3.9)),
            (true, Bound::RatioAtLeast(4.0)),
            (false, Bound::RatioAtLeast(4.1)),
        ] {
            assert_eq!(line(2.0, 0.5, bound).keeps(), Some(kept), "{bound}");
        }
        assert_eq!(line(2.0, 0.5, Bound::None).keeps(), None);
        let beyond = line(2.0, 0.5, Bound::RatioBeyond(9.0));
        assert_eq!(beyond.keeps(), None);
        assert!(beyond.to_string().ends_with(">= 9x  beyond the machine"), "{beyond}");
    }

    #[test]
    fn nothing_by_nothing_keeps_no_bound() {
        assert_eq!(line(0.0, 0.0, Bound::RatioAtMost(4.0)).keeps(), Some(false));
        assert_eq!(line(0.0, 0.0, Bound::RatioAtLeast(0.2)).keeps(), Some(false));
    }

    #[test]
    fn a_line_shows_value_yardstick_ratio_and_verdict() {
        let text = line(2.0, 0.5, Bound::RatioAtMost(3.0)).to_string();
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words, ["a", "2.00", "s", "0.50", "b", "4.00x", "<=", "3x", "over"]);
    }
}
