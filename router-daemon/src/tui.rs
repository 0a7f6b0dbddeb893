//! `routerctl top`: the router on one screen, for somebody at a serial console at three in the morning.
//!
//! The pages are pure: [`view()`] draws a [`Snapshot`] as an [`Ui`] wants it into a buffer, and [`Ui::key`] is all that
//! a key does. [`run()`] is the thin rest: it asks the daemon, reads keys, and draws when something has changed. It
//! never decides, and it changes nothing that was not asked for and answered with `y`.

pub mod look;
mod pages;
mod run;
pub mod snapshot;
#[cfg(test)]
mod tests;
pub mod ui;

pub use self::look::{Colour, Look};
pub use self::pages::view;
pub use self::run::{Options, TopError, run};
pub use self::snapshot::{Moment, Snapshot};
pub use self::ui::{Action, Key, Page, Ui};

/// What follows the options in `routerctl top --help`.
pub fn help() -> String {
    format!(
        "Examples:\n  routerctl top\n  TERM=vt100 routerctl top --ascii\n  routerctl top --file site.toml\n\n{KEYS}\n\n\
         NO_COLOR in the environment, set to anything, takes the colours away."
    )
}

/// What the help and the screen behind `h` both say.
pub const KEYS: &str = "\
Pages:
  1  WANs: state, round trip, loss, throughput, flows; why a line is what it is
  2  matrix: what passes between VLANs and what is denied, per second
  3  flows: by line, and who opened them
  4  denied: refused packets as they happen, equal ones together
  5  ports and VLANs: carrier, speed, errors, neighbours
  6  services: what runs beside the router, and whether it does what it is there for
  7  crypto: where TLS is ended, who signs, the device and what was measured
  8  journal: what happened and why, the newest first
  9  config: how the site file and what is in force differ

Keys:
  1-9             the page of this number; tab: the next one
  arrows, j k     select; page up, page down, home, end: further
  enter           open the selected cell of the matrix
  esc             back: closes, and ends a filter
  d               details of what is selected
  /               show only rows with this text; enter keeps it, esc ends it
  a               denied: packets of no known connection too
  r               flows, config: ask again
  ctrl+f          freeze the screen, and go on
  h, ?            this help
  q, ctrl+c       quit

On the WANs page, each asked again and done only with y:
  x               drain the selected line: no further flows, existing ones stay
  u               use it again
  t               test failover: the line counts as lost for 10 seconds

On the config page, where a change waits for its confirmation, the same:
  c               confirm it
  b               roll it back at once";
