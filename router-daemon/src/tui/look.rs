//! How things look: three styles, the glyphs of states, sparklines, and what is left of them on a terminal that has
//! no colours or no Unicode. Pages draw as if it had everything; [`Look::finish`] takes away what it has not, so no
//! page can forget to.

use std::collections::VecDeque;

use mwan::event::Health;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Nothing but ASCII reaches the terminal.
    pub ascii: bool,
    pub colour: Colour,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    None,
    /// The eight of every colour terminal: yellow stands for orange.
    Basic,
    /// 256.
    Full,
}

impl Look {
    /// What the environment says of the terminal; `ascii` asks for ASCII whatever it says.
    pub fn of(variable: impl Fn(&str) -> Option<String>, ascii: bool) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let term = set("TERM").unwrap_or_default();
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default().to_ascii_lowercase();
        let unicode = locale.contains("utf-8") || locale.contains("utf8");
        let dumb = term == "dumb" || term.is_empty();
        let full = term.contains("256color") || term.contains("direct") || set("COLORTERM").is_some();
        Self {
            ascii: ascii || dumb || !unicode,
            colour: match () {
                () if set("NO_COLOR").is_some() || dumb || term.starts_with("vt") => Colour::None,
                () if full => Colour::Full,
                () => Colour::Basic,
            },
        }
    }

    /// Takes away what the terminal has not.
    pub fn finish(self, area: Rect, buffer: &mut Buffer) {
        let area = area.intersection(buffer.area);
        for position in area.positions() {
            let cell = &mut buffer[position];
            if self.ascii && !cell.symbol().is_ascii() {
                let plain = cell.symbol().chars().next().map_or(' ', ascii);
                cell.set_char(plain);
            }
            match self.colour {
                Colour::Full => {}
                Colour::Basic => cell.fg = basic(cell.fg),
                Colour::None => cell.fg = Color::Reset,
            }
        }
    }
}

/// What is as it should be.
pub const GOOD: Style = Style::new().fg(BLUE);
/// What somebody should look at. Never alone: a word or a glyph says it too.
pub const BAD: Style = Style::new().fg(ORANGE).add_modifier(Modifier::BOLD);
/// Headings.
pub const HEAD: Style = Style::new().add_modifier(Modifier::BOLD);
/// What is there to be read second.
pub const PALE: Style = Style::new().add_modifier(Modifier::DIM);
pub const SELECTED: Style = Style::new().add_modifier(Modifier::REVERSED);
pub const PLAIN: Style = Style::new();

pub const BLUE: Color = Color::Indexed(39);
pub const ORANGE: Color = Color::Indexed(208);

pub fn of_health(state: Health) -> Style {
    match state {
        Health::Up => GOOD,
        Health::Unknown => PLAIN,
        Health::Degraded | Health::Held | Health::Down | Health::NoCarrier => BAD,
    }
}

/// One character for each of the last values, the newest at the right; a blank where nothing was measured.
/// `full` is the value of the highest character; `None` takes the highest there is.
pub fn spark(values: Option<&VecDeque<Option<f64>>>, width: usize, full: Option<f64>) -> String {
    let known = values.map_or(0, VecDeque::len);
    let shown = || values.into_iter().flatten().skip(known.saturating_sub(width)).copied();
    let full = full.unwrap_or_else(|| shown().flatten().fold(0.0, f64::max));
    let bar = |value: Option<f64>| match value {
        None => ' ',
        Some(value) if full > 0.0 => {
            let level = BARS.iter().zip(1_u8..).skip(1).filter(|(_, step)| value / full * 8.0 > f64::from(*step) - 1.0);
            level.last().map_or(BARS[0], |(bar, _)| *bar)
        }
        Some(_) => BARS[0],
    };
    let bars: String = shown().map(bar).collect();
    format!("{bars:>width$}")
}

fn basic(colour: Color) -> Color {
    if colour == BLUE {
        Color::LightBlue
    } else if colour == ORANGE {
        Color::Yellow
    } else {
        colour
    }
}

fn ascii(glyph: char) -> char {
    match glyph {
        '▁' | '─' => '_',
        '▂' | '·' => '.',
        '▃' | '—' | '–' => '-',
        '▄' => '=',
        '▅' => '+',
        '▆' | '●' => '*',
        '▇' => '#',
        '█' => '@',
        '◐' => '%',
        '◔' | '…' => '~',
        '✖' => 'X',
        '○' => 'o',
        '→' => '>',
        '×' => 'x',
        '↓' => 'v',
        '↑' => '^',
        _ => '?',
    }
}

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_tells_what_the_terminal_can() {
        for (variables, ascii, colour) in [
            (&[("TERM", "xterm-256color"), ("LANG", "en_US.UTF-8")][..], false, Colour::Full),
            (&[("TERM", "xterm"), ("LANG", "C"), ("LC_ALL", "C.utf8")], false, Colour::Basic),
            (&[("TERM", "linux"), ("LANG", "C.UTF-8")], false, Colour::Basic),
            (&[("TERM", "linux"), ("LANG", "C")], true, Colour::Basic),
            (&[("TERM", "linux"), ("LANG", "C.UTF-8"), ("LC_ALL", "C")], true, Colour::Basic),
            (&[("TERM", "vt220"), ("LANG", "C.UTF-8")], false, Colour::None),
            (&[("TERM", "dumb"), ("LANG", "C.UTF-8")], true, Colour::None),
            (&[("TERM", "xterm-256color"), ("LANG", "C.UTF-8"), ("NO_COLOR", "1")], false, Colour::None),
            (&[("TERM", "xterm-256color"), ("LANG", "C.UTF-8"), ("NO_COLOR", "")], false, Colour::Full),
            (&[], true, Colour::None),
        ] {
            let of =
                |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            assert_eq!(Look::of(of, false), Look { ascii, colour }, "{variables:?}");
            assert!(Look::of(of, true).ascii);
        }
    }

    #[test]
    fn a_sparkline_is_as_wide_as_asked_and_shows_the_newest() {
        let values = [Some(0.0), None, Some(1.0), Some(4.0), Some(8.0)].into_iter().collect();
        assert_eq!(spark(Some(&values), 6, None), " ▁ ▁▄█");
        assert_eq!(spark(Some(&values), 2, None), "▄█");
        assert_eq!(spark(Some(&values), 3, Some(80.0)), "▁▁▁");
        assert_eq!(spark(None, 3, None), "   ");
        assert_eq!(spark(Some(&values), 0, None), "");
    }

    #[test]
    fn a_little_loss_is_more_than_none() {
        let values = [Some(0.0), Some(0.13), Some(1.0)].into_iter().collect();
        assert_eq!(spark(Some(&values), 3, Some(1.0)), "▁▂█");
    }
}
