//! What a key does. The whole state of the screen beside its data is [`Ui`]; [`Ui::key`] changes it, and hands back
//! what has to be done elsewhere. Reading it tells all that keys can do.

use std::collections::BTreeMap;

use super::look::Look;
use super::pages;
use super::snapshot::Snapshot;
use crate::api::protocol::Call;
use crate::ask::How;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Char(char),
    Ctrl(char),
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Esc,
    Backspace,
    Tab,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Page {
    Wans,
    Matrix,
    Flows,
    Denied,
    Ports,
    Services,
    Crypto,
    Journal,
    Config,
}

impl Page {
    pub const ALL: [Self; 9] = [
        Self::Wans,
        Self::Matrix,
        Self::Flows,
        Self::Denied,
        Self::Ports,
        Self::Services,
        Self::Crypto,
        Self::Journal,
        Self::Config,
    ];

    pub fn digit(self) -> char {
        match self {
            Self::Wans => '1',
            Self::Matrix => '2',
            Self::Flows => '3',
            Self::Denied => '4',
            Self::Ports => '5',
            Self::Services => '6',
            Self::Crypto => '7',
            Self::Journal => '8',
            Self::Config => '9',
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Wans => "WANs",
            Self::Matrix => "matrix",
            Self::Flows => "flows",
            Self::Denied => "denied",
            Self::Ports => "ports",
            Self::Services => "services",
            Self::Crypto => "crypto",
            Self::Journal => "journal",
            Self::Config => "config",
        }
    }

    fn next(self) -> Self {
        let place = Self::ALL.iter().position(|page| *page == self).unwrap_or_default();
        Self::ALL[(place + 1) % Self::ALL.len()]
    }
}

/// What is to be done outside of the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Quit,
    /// An order the operator said yes to.
    Order(Call),
    /// Ask for the live flows again.
    Flows,
    /// Ask for the difference to the site file again.
    Plan,
}

/// An order that waits for `y`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub text: String,
    pub order: Call,
}

#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Ui {
    pub look: Look,
    pub page: Page,
    /// The selected row of each page.
    pub rows: BTreeMap<Page, usize>,
    /// The selected column of the matrix.
    pub column: usize,
    /// A cell of the matrix is open.
    pub open: bool,
    pub details: bool,
    pub help: bool,
    /// How far the help is scrolled.
    pub help_row: usize,
    /// Late packets among the denials.
    pub all: bool,
    /// Only rows with this text.
    pub filter: String,
    /// Keys go into the filter.
    pub editing: bool,
    pub asking: Option<Question>,
    /// The answer to the last order.
    pub told: Option<String>,
    /// What is shown stays.
    pub frozen: bool,
}

impl Ui {
    pub fn new(look: Look) -> Self {
        Self {
            look,
            page: Page::Wans,
            rows: BTreeMap::new(),
            column: 0,
            open: false,
            details: false,
            help: false,
            help_row: 0,
            all: false,
            filter: String::new(),
            editing: false,
            asking: None,
            told: None,
            frozen: false,
        }
    }

    /// The selected row of the page that is shown.
    pub fn row(&self) -> usize {
        self.rows.get(&self.page).copied().unwrap_or_default()
    }

    /// `snapshot` is what is on the screen.
    pub fn key(&mut self, key: Key, snapshot: &Snapshot) -> Option<Action> {
        if key == Key::Ctrl('c') {
            return Some(Action::Quit);
        }
        // A question is answered before anything else happens; only `y` is yes.
        if let Some(question) = self.asking.take() {
            if matches!(key, Key::Char('y' | 'Y')) {
                return Some(Action::Order(question.order));
            }
            self.told = Some("not done".to_owned());
            return None;
        }
        self.told = None;
        if key == Key::Ctrl('f') {
            self.frozen = !self.frozen;
            return None;
        }
        if self.editing {
            self.edit(key);
            return None;
        }
        if self.help {
            match key {
                Key::Char('q') => return Some(Action::Quit),
                Key::Esc | Key::Char('h' | '?') => self.help = false,
                Key::Char(digit) => return self.turn_to(digit),
                Key::Ctrl(_)
                | Key::Up
                | Key::Down
                | Key::Left
                | Key::Right
                | Key::PageUp
                | Key::PageDown
                | Key::Home
                | Key::End
                | Key::Enter
                | Key::Backspace
                | Key::Tab => self.help_row = moved(self.help_row, key, pages::help_rows()),
            }
            return None;
        }
        match key {
            Key::Char('q') => return Some(Action::Quit),
            Key::Char('h' | '?') => (self.help, self.help_row) = (true, 0),
            Key::Char('d') => self.details = !self.details,
            Key::Char('/') => self.editing = true,
            Key::Char('a') => self.all = !self.all,
            Key::Char('r') => return self.refresh(),
            Key::Char(order @ ('x' | 'u' | 't')) if self.page == Page::Wans => self.ask(order, snapshot),
            Key::Char(answer @ ('c' | 'b')) if self.page == Page::Config => self.ask_of_change(answer, snapshot),
            Key::Char(digit @ '0'..='9') => return self.turn_to(digit),
            Key::Tab => return self.turn_to(self.page.next().digit()),
            Key::Enter => self.open = self.page == Page::Matrix && pages::selected_pair(snapshot, self).is_some(),
            Key::Esc if self.open => self.open = false,
            Key::Esc if !self.filter.is_empty() => self.filter.clear(),
            Key::Esc => self.details = false,
            Key::Left if self.page == Page::Matrix => self.column = self.column.saturating_sub(1),
            Key::Right if self.page == Page::Matrix => {
                self.column = (self.column + 1).min(pages::columns(snapshot).saturating_sub(1));
            }
            Key::Char('j') => self.select(Key::Down, snapshot),
            Key::Char('k') => self.select(Key::Up, snapshot),
            Key::Up | Key::Down | Key::PageUp | Key::PageDown | Key::Home | Key::End => self.select(key, snapshot),
            Key::Left | Key::Right | Key::Backspace | Key::Char(_) | Key::Ctrl(_) => {}
        }
        None
    }

    fn select(&mut self, key: Key, snapshot: &Snapshot) {
        let count = pages::rows(snapshot, self);
        let row = moved(self.row(), key, count);
        self.rows.insert(self.page, row);
    }

    fn edit(&mut self, key: Key) {
        match key {
            Key::Enter => self.editing = false,
            Key::Esc => {
                self.editing = false;
                self.filter.clear();
            }
            Key::Backspace => drop(self.filter.pop()),
            Key::Char(typed) if self.filter.chars().count() < LONGEST_FILTER => self.filter.push(typed),
            Key::Char(_)
            | Key::Ctrl(_)
            | Key::Up
            | Key::Down
            | Key::Left
            | Key::Right
            | Key::PageUp
            | Key::PageDown
            | Key::Home
            | Key::End
            | Key::Tab => {}
        }
    }

    fn turn_to(&mut self, digit: char) -> Option<Action> {
        let page = Page::ALL.into_iter().find(|page| page.digit() == digit);
        let page = page?;
        if page != self.page {
            self.filter.clear();
        }
        (self.page, self.open, self.help) = (page, false, false);
        self.refresh()
    }

    /// What the page needs beside the status.
    fn refresh(&self) -> Option<Action> {
        match self.page {
            Page::Flows => Some(Action::Flows),
            Page::Config => Some(Action::Plan),
            Page::Wans | Page::Matrix | Page::Denied | Page::Ports | Page::Services | Page::Crypto | Page::Journal => {
                None
            }
        }
    }

    /// About the change that waits for its confirmation.
    fn ask_of_change(&mut self, answer: char, snapshot: &Snapshot) {
        let pending = snapshot.status.as_ref().and_then(|status| status.applies.pending.as_ref());
        let Some(pending) = pending else {
            self.told = Some("no change waits for its confirmation".to_owned());
            return;
        };
        let author = &pending.author;
        let (text, order) = match answer {
            'c' => (format!("Keep the change by {author}? y/n"), Call::Confirm),
            _ => (
                format!("Take back the change by {author}, at once? y/n"),
                Call::Rollback { number: None, how: How::default() },
            ),
        };
        self.asking = Some(Question { text, order });
    }

    fn ask(&mut self, order: char, snapshot: &Snapshot) {
        let Some(wan) = pages::selected_wan(snapshot, self) else { return };
        let name = wan.name.clone();
        let (text, order) = match order {
            'x' => (format!("Drain {name}: no further flows, existing ones stay? y/n"), Call::Drain { wan: name }),
            'u' => (format!("Use {name} again? y/n"), Call::Undrain { wan: name }),
            _ => (
                format!("Test failover: {name} counts as lost for 10 seconds, its flows move? y/n"),
                Call::FailTest { wan: name, milliseconds: FAIL_TEST },
            ),
        };
        self.asking = Some(Question { text, order });
    }
}

/// A selection among `count` rows after a key.
fn moved(row: usize, key: Key, count: usize) -> usize {
    let last = count.saturating_sub(1);
    match key {
        Key::Up => row.min(last).saturating_sub(1),
        Key::Down => row.saturating_add(1).min(last),
        Key::PageUp => row.min(last).saturating_sub(LEAP),
        Key::PageDown => row.saturating_add(LEAP).min(last),
        Key::Home => 0,
        Key::End => last,
        Key::Char(_) | Key::Ctrl(_) | Key::Left | Key::Right | Key::Enter | Key::Esc | Key::Backspace | Key::Tab => {
            row.min(last)
        }
    }
}

const LEAP: usize = 10;
const LONGEST_FILTER: usize = 60;
/// Milliseconds.
const FAIL_TEST: u64 = 10_000;
