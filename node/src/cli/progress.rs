//! Progress on stderr, for a person, and only for what takes over a second.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::api::call::Step;

/// A progress bar that appears when it is worth it.
pub struct Bar {
    enabled: bool,
    since: Instant,
    bar: Option<ProgressBar>,
}

impl Bar {
    const APPEARS_AFTER: Duration = Duration::from_secs(1);

    /// A bar that is not seen yet; never on anything but a terminal.
    pub fn new(enabled: bool) -> Self {
        Self { enabled: enabled && std::io::stderr().is_terminal(), since: Instant::now(), bar: None }
    }

    /// Moves the bar.
    pub fn show(&mut self, step: &Step) {
        if !self.enabled || self.since.elapsed() < Self::APPEARS_AFTER {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| ProgressBar::new(0));
        if bar.message() != step.what {
            let template = match step.what.ends_with("blocks") {
                true => "{msg} {pos} of {len} {wide_bar} {per_sec} {eta}",
                false => "{msg} {bytes} of {total_bytes} {wide_bar} {bytes_per_sec} {eta}",
            };
            let style = ProgressStyle::with_template(template);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(step.what.clone());
        }
        bar.set_length(step.total.unwrap_or(step.done));
        bar.set_position(step.done);
    }

    /// Takes the bar off the screen.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
