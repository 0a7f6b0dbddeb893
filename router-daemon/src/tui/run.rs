//! The thin rest of the screen: threads that ask and listen, a loop that draws.
//!
//! | thread | does |
//! |---|---|
//! | status | asks once a second, on one connection; a lost one is made again |
//! | denied, journal | follow their streams, the same |
//! | keys | waits for the terminal |
//! | signals | waits for SIGTERM and SIGHUP |
//! | one per question | an order, the flows, the plan: whoever is slow keeps nobody waiting |
//!
//! All of them send [`News`] to the loop over one bounded channel and own nothing else, so the process may end
//! whatever they are doing. However it ends, by key, signal or panic, the terminal is given back as it was.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::look::Look;
use super::snapshot::{Moment, Snapshot};
use super::ui::{Action, Key, Page, Ui};
use super::view;
use crate::api::client::{Client, ClientError};
use crate::api::journal::JournalLine;
use crate::api::protocol::Call;
use crate::difference::Difference;
use crate::event_log::{Denied, Group};
use crate::session::Session;
use crate::status::Status;
use crate::talkers::Talkers;

/// What `routerctl top` takes beside the socket.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Draw with ASCII alone. So it does where TERM is `dumb`, or the locale is not UTF-8.
    #[arg(long)]
    pub ascii: bool,
    /// The site file that the page `config` compares with what is in force.
    #[arg(long, value_name = "PATH", default_value = "/etc/quadway/site.toml")]
    pub file: PathBuf,
}

/// Why the screen ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    #[error("`routerctl top` draws on a terminal, and the output is none: `routerctl status` is for scripts")]
    NotATerminal,
    #[error("the terminal failed: {0}")]
    Terminal(#[from] io::Error),
    #[error("a part of `routerctl top` failed; that is a fault of ours")]
    Panicked,
}

/// Draws until `q`, a signal, or the end of the terminal.
pub fn run(socket: &Path, options: &Options) -> Result<(), TopError> {
    if !io::stdout().is_terminal() {
        return Err(TopError::NotATerminal);
    }
    let look = Look::of(|name| std::env::var(name).ok(), options.ascii);
    let (sender, news) = mpsc::sync_channel(BACKLOG);
    let source = Source { socket: socket.to_owned(), file: options.file.clone(), news: sender };
    // Before the terminal changes: what comes from here on is heeded.
    source.spawn(Source::signals)?;
    let mut terminal = ratatui::try_init()?;
    let _restore = Restore;
    for part in [Source::keys, Source::status, Source::denied, Source::journal] {
        source.spawn(part)?;
    }
    Screen::new(look, source).run(&mut terminal, &news)
}

/// Gives the terminal back. A panic has done so already, before its words were written.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What the loop is told.
#[derive(Debug)]
enum News {
    Key(Key),
    Resized,
    Status(Box<Status>),
    /// The status cannot be had.
    Lost(String),
    Groups(Vec<Group>),
    Denied(Box<Denied>),
    Missed(u64),
    /// The journal is told from its beginning.
    JournalBegins,
    Journal(String),
    JournalTrouble(String),
    Talkers(Result<Talkers, String>),
    Plan(Result<Difference, String>),
    /// What came of an order.
    Done(String),
    Stop,
    Panicked,
}

struct Screen {
    ui: Ui,
    live: Snapshot,
    /// What is shown while the screen is frozen.
    frozen: Option<Snapshot>,
    source: Source,
    began: Instant,
    asking_flows: bool,
    asked_flows: Instant,
    asking_plan: bool,
}

impl Screen {
    fn new(look: Look, source: Source) -> Self {
        let began = Instant::now();
        let now = Moment { wall: SystemTime::now(), at: Duration::ZERO };
        Self {
            ui: Ui::new(look),
            live: Snapshot::new(now),
            frozen: None,
            source,
            began,
            asking_flows: false,
            asked_flows: began,
            asking_plan: false,
        }
    }

    fn run(mut self, terminal: &mut DefaultTerminal, news: &Receiver<News>) -> Result<(), TopError> {
        let (mut drawn, mut dirty) = (None::<Instant>, true);
        loop {
            // A key shows at once; a flood of denials is drawn a few times a second.
            let due = drawn.is_none_or(|drawn| drawn.elapsed() >= PACE);
            if dirty && due {
                self.live.now = self.now();
                let shown = self.frozen.as_ref().unwrap_or(&self.live);
                terminal.draw(|frame| view(shown, &self.ui, frame.area(), frame.buffer_mut()))?;
                (drawn, dirty) = (Some(Instant::now()), false);
            }
            let wait = if dirty { PACE } else { SECOND };
            let first = match news.recv_timeout(wait) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => {
                    dirty = true;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return Err(TopError::Panicked),
            };
            for heard in std::iter::once(first).chain(news.try_iter().take(BACKLOG)) {
                match heard {
                    News::Stop => return Ok(()),
                    News::Panicked => return Err(TopError::Panicked),
                    News::Key(key) => {
                        let shown = self.frozen.as_ref().unwrap_or(&self.live);
                        match self.ui.key(key, shown) {
                            Some(Action::Quit) => return Ok(()),
                            Some(action) => self.act(action)?,
                            None => {}
                        }
                        if self.ui.frozen != self.frozen.is_some() {
                            self.frozen = self.ui.frozen.then(|| self.live.clone());
                        }
                        drawn = None;
                    }
                    News::Resized => drawn = None,
                    heard @ (News::Status(_)
                    | News::Lost(_)
                    | News::Groups(_)
                    | News::Denied(_)
                    | News::Missed(_)
                    | News::JournalBegins
                    | News::Journal(_)
                    | News::JournalTrouble(_)
                    | News::Talkers(_)
                    | News::Plan(_)
                    | News::Done(_)) => self.learn(heard)?,
                }
                dirty = true;
            }
        }
    }

    fn learn(&mut self, heard: News) -> Result<(), TopError> {
        match heard {
            News::Status(status) => {
                let now = self.now();
                self.live.take_status(*status, now);
                if self.ui.page == Page::Flows && !self.ui.frozen && self.asked_flows.elapsed() >= FLOWS_EVERY {
                    self.act(Action::Flows)?;
                }
            }
            News::Lost(why) => self.live.trouble = Some(why),
            News::Groups(groups) => self.live.take_groups(groups),
            News::Denied(denied) => self.live.take_denied(*denied),
            News::Missed(missed) => self.live.missed += missed,
            News::JournalBegins => {
                self.live.journal.clear();
                self.live.journal_trouble = None;
            }
            News::Journal(line) => self.live.take_journal(&line),
            News::JournalTrouble(why) => self.live.journal_trouble = Some(why),
            News::Talkers(talkers) => {
                self.asking_flows = false;
                self.live.talkers = Some(talkers);
            }
            News::Plan(plan) => {
                self.asking_plan = false;
                self.live.plan = Some(plan);
            }
            News::Done(told) => self.ui.told = Some(told),
            News::Key(_) | News::Resized | News::Stop | News::Panicked => {}
        }
        Ok(())
    }

    fn act(&mut self, action: Action) -> Result<(), TopError> {
        match action {
            Action::Quit => {}
            Action::Flows => {
                if !std::mem::replace(&mut self.asking_flows, true) {
                    self.asked_flows = Instant::now();
                    self.source.spawn(|source| {
                        let talkers = source.ask(&Call::Flows { most: TALKERS });
                        source.tell(News::Talkers(talkers.map_err(|error| error.to_string())));
                    })?;
                }
            }
            Action::Plan => {
                if !std::mem::replace(&mut self.asking_plan, true) {
                    self.source.spawn(|source| source.tell(News::Plan(source.plan())))?;
                }
            }
            Action::Order(mut order) => {
                if let Call::Rollback { how, .. } = &mut order {
                    let session = std::env::var("SSH_CONNECTION").ok();
                    how.session = session.and_then(|connection| Session::of_ssh(&connection));
                }
                self.ui.told = Some("asking routerd …".to_owned());
                self.source.spawn(move |source| {
                    let told = match source.ask::<Value>(&order) {
                        Ok(_) => format!("done: {}", order.word()),
                        Err(error) => format!("refused: {error}"),
                    };
                    source.tell(News::Done(told));
                })?;
            }
        }
        Ok(())
    }

    fn now(&self) -> Moment {
        Moment { wall: SystemTime::now(), at: self.began.elapsed() }
    }
}

/// Where news come from. Each thread has one.
#[derive(Debug, Clone)]
struct Source {
    socket: PathBuf,
    file: PathBuf,
    news: SyncSender<News>,
}

impl Source {
    /// A thread that nobody waits for. Where it fails the loop is told.
    fn spawn(&self, work: impl FnOnce(&Self) + Send + 'static) -> io::Result<()> {
        struct Watched(Source);
        impl Drop for Watched {
            fn drop(&mut self) {
                if thread::panicking() {
                    self.0.tell(News::Panicked);
                }
            }
        }
        let watched = Watched(self.clone());
        thread::Builder::new().spawn(move || work(&watched.0)).map(drop)
    }

    /// Where the loop has ended, so will this process.
    fn tell(&self, news: News) {
        drop(self.news.send(news));
    }

    fn ask<T: DeserializeOwned>(&self, call: &Call) -> Result<T, ClientError> {
        answer(Client::connect(&self.socket)?.ask(call)?)
    }

    fn signals(&self) {
        let caught = || -> io::Result<()> {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                let (mut terminate, mut hang_up) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = hang_up.recv() => {}
                }
                Ok(())
            })
        };
        // Without a handler a signal ends the process anyway.
        if caught().is_ok() {
            self.tell(News::Stop);
        }
    }

    fn keys(&self) {
        loop {
            match event::read() {
                Ok(Event::Key(pressed)) => {
                    if let Some(key) = key(pressed) {
                        self.tell(News::Key(key));
                    }
                }
                Ok(Event::Resize(..)) => self.tell(News::Resized),
                Ok(Event::FocusGained | Event::FocusLost | Event::Mouse(_) | Event::Paste(_)) => {}
                // Nobody is there any more.
                Err(_) => return self.tell(News::Stop),
            }
        }
    }

    fn status(&self) {
        let mut client = None;
        loop {
            let start = Instant::now();
            let asked = match client.take() {
                Some(client) => Ok(client),
                None => Client::connect(&self.socket),
            };
            let answered = asked.and_then(|mut client| {
                let status = answer(client.ask(&Call::Status)?)?;
                Ok((client, status))
            });
            match answered {
                Ok((kept, status)) => {
                    client = Some(kept);
                    self.tell(News::Status(status));
                }
                Err(error) => self.tell(News::Lost(error.to_string())),
            }
            thread::sleep(SECOND.saturating_sub(start.elapsed()));
        }
    }

    /// The recent denials first. What happens between the two questions is told by both, or by the stream alone.
    fn denied(&self) {
        loop {
            // A daemon that cannot be reached is told by `status`.
            drop(self.follow_denied());
            thread::sleep(AGAIN);
        }
    }

    fn follow_denied(&self) -> Result<(), ClientError> {
        let mut stream = Client::connect(&self.socket)?;
        stream.send(&Call::Denied { follow: true })?;
        let mut groups = self.ask::<Value>(&Call::Denied { follow: false })?;
        let groups: Vec<Group> = answer(groups["groups"].take())?;
        let newest = groups.iter().map(|group| group.last.time.clone()).max().unwrap_or_default();
        self.tell(News::Groups(groups));
        while let Some(heard) = stream.hear()? {
            if let Some(missed) = heard.get("missed").and_then(Value::as_u64) {
                self.tell(News::Missed(missed));
                continue;
            }
            let denied: Box<Denied> = answer(heard)?;
            if denied.time > newest {
                self.tell(News::Denied(denied));
            }
        }
        Ok(())
    }

    fn journal(&self) {
        loop {
            if let Err(ClientError::Refused(refusal)) = self.follow_journal() {
                self.tell(News::JournalTrouble(refusal.message));
            }
            thread::sleep(AGAIN);
        }
    }

    fn follow_journal(&self) -> Result<(), ClientError> {
        let mut stream = Client::connect(&self.socket)?;
        stream.send(&Call::Journal { follow: true, all: false })?;
        self.tell(News::JournalBegins);
        while let Some(heard) = stream.hear()? {
            let line: JournalLine = answer(heard)?;
            self.tell(News::Journal(line.to_string()));
        }
        Ok(())
    }

    fn plan(&self) -> Result<Difference, String> {
        let text = std::fs::read_to_string(&self.file)
            .map_err(|error| format!("cannot read {}: {error} (--file names another)", self.file.display()))?;
        self.ask(&Call::Plan { text }).map_err(|error| error.to_string())
    }
}

fn answer<T: DeserializeOwned>(value: Value) -> Result<T, ClientError> {
    T::deserialize(value).map_err(|error| {
        let message = format!("routerd answers what this routerctl cannot read: {error}");
        ClientError::Refused(crate::ask::Refusal::new("malformed", message))
    })
}

fn key(pressed: KeyEvent) -> Option<Key> {
    if pressed.kind == KeyEventKind::Release {
        return None;
    }
    let control = pressed.modifiers.contains(KeyModifiers::CONTROL);
    #[expect(clippy::wildcard_enum_match_arm, reason = "keyboards have more keys than matter here")]
    Some(match pressed.code {
        KeyCode::Char(typed) if control => Key::Ctrl(typed),
        KeyCode::Char(typed) => Key::Char(typed),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Left => Key::Left,
        KeyCode::Right => Key::Right,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Esc,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Tab => Key::Tab,
        _ => return None,
    })
}

const BACKLOG: usize = 256;
const SECOND: Duration = Duration::from_secs(1);
/// Between two drawings that no key asked for.
const PACE: Duration = Duration::from_millis(250);
/// Before a stream that ended is followed again.
const AGAIN: Duration = Duration::from_secs(2);
/// A walk through all flows may take a tenth of a second of the machine's time.
const FLOWS_EVERY: Duration = Duration::from_secs(5);
const TALKERS: usize = 200;
