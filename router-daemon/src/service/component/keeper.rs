//! One component and its life: the task that makes it be as it is wanted, and goes on doing so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::children::Process;
use super::{Component, ComponentState, Reload, Supervisor, files};
use crate::happening::What;

/// Cancelling it at any time leaves a process that it, or the next start of routerd, finds again.
#[derive(Debug)]
pub(super) struct Keeper {
    name: String,
    supervisor: Supervisor,
    process: Option<Process>,
    /// What runs, or ran last, and was good.
    good: Option<Arc<Component>>,
    /// The numbers of its interfaces when it was last told of them.
    interfaces: BTreeMap<String, u32>,
    /// What ends its process.
    goodbye: Signal,
    pause: Duration,
    refused: Duration,
    /// It was started since the site file last changed it.
    begun: bool,
    routerd_ends: Arc<AtomicBool>,
}

/// Why it is not as it is wanted.
#[derive(Debug)]
enum Trouble {
    /// It cannot be started yet.
    Waits(String),
    /// It runs with what it ran with before.
    Refused(String),
    Down(String),
}

impl Keeper {
    pub(super) fn new(name: &str, supervisor: Supervisor, routerd_ends: Arc<AtomicBool>) -> Self {
        let (pause, refused) = (supervisor.timing.first, supervisor.timing.refused);
        Self {
            name: name.to_owned(),
            supervisor,
            process: None,
            good: None,
            interfaces: BTreeMap::new(),
            goodbye: Signal::SIGTERM,
            pause,
            refused,
            begun: false,
            routerd_ends,
        }
    }

    /// Until nobody wants it any more; then it has ended.
    pub(super) async fn run(mut self, mut wanted: watch::Receiver<Arc<Component>>) {
        'wanted: loop {
            let component = Arc::clone(&wanted.borrow_and_update());
            let made = tokio::select! {
                biased;
                news = news(&mut wanted, &component) => {
                    if !news { break 'wanted }
                    self.begin_anew();
                    continue 'wanted;
                }
                made = self.make(&component) => made,
            };
            // What is refused, or down, is tried again then.
            let again = match made {
                Ok(()) => {
                    self.refused = self.supervisor.timing.refused;
                    self.tell(ComponentState::Running, None);
                    None
                }
                Err(Trouble::Waits(why)) => {
                    self.supervisor.components.set(&self.name, ComponentState::Starting, Some(why));
                    Some(Instant::now() + self.supervisor.timing.first)
                }
                Err(Trouble::Refused(why)) => {
                    let pause = self.refused;
                    self.refused = (pause * 2).min(self.supervisor.timing.refused_most);
                    self.tell(ComponentState::Running, Some(format!("it runs with its previous files: {why}")));
                    Some(Instant::now() + pause)
                }
                Err(Trouble::Down(why)) => Some(self.fails(why, false)),
            };
            let begun = Instant::now();
            let mut silent = 0;
            let mut look = Instant::now() + self.supervisor.timing.look;
            let (mut again, refused) = (again, again.is_some());
            loop {
                tokio::select! {
                    news = news(&mut wanted, &component) => {
                        if !news { break 'wanted }
                        self.begin_anew();
                        continue 'wanted;
                    }
                    why = ended(&mut self.process) => {
                        self.process = None;
                        if begun.elapsed() >= self.supervisor.timing.calm {
                            self.pause = self.supervisor.timing.first;
                        }
                        again = Some(self.fails(why, true));
                    }
                    () = due(again) => continue 'wanted,
                    () = sleep_until(look), if self.process.is_some() => {
                        look = Instant::now() + self.supervisor.timing.look;
                        if self.numbers() != self.interfaces {
                            info!(component = %self.name, "an interface of it was made again");
                            continue 'wanted;
                        }
                        let Some(good) = self.good.clone() else { continue };
                        match self.ask(&good).await {
                            Ok(()) if silent > 0 => {
                                silent = 0;
                                if !refused {
                                    self.tell(ComponentState::Running, None);
                                }
                            }
                            Ok(()) => {}
                            Err(why) => {
                                silent += 1;
                                self.tell(ComponentState::Running, Some(why.clone()));
                                if silent == SILENT {
                                    self.stop().await;
                                    again = Some(self.fails(format!("{why}; it was ended"), true));
                                }
                            }
                        }
                    }
                }
            }
        }
        if self.routerd_ends.load(Ordering::Relaxed) {
            self.stop().await;
        } else {
            self.end(Signal::SIGTERM).await;
        }
        self.supervisor.components.forget(&self.name);
        info!(component = %self.name, "not to be run any more");
    }

    /// As it is wanted, or as it was.
    async fn make(&mut self, component: &Arc<Component>) -> Result<(), Trouble> {
        if self.process.as_ref().is_some_and(Process::is_ending) {
            self.stop().await;
        }
        if let Some(missing) = missing(component) {
            return Err(if self.process.is_some() { Trouble::Refused(missing) } else { Trouble::Waits(missing) });
        }
        if self.process.is_none() {
            self.supervisor.components.set(&self.name, ComponentState::Starting, None);
        }
        if self.good.is_none() {
            // Of the routerd before this one: good enough to go back to.
            let standing = files::standing(&component.files).filter(|_| !component.files.is_empty());
            self.good = standing.map(|files| Arc::new(Component { files, ..(**component).clone() }));
        }
        let why = match files::write(component).await {
            Ok(()) => match self.bring_up(component).await {
                Ok(()) => {
                    self.good = Some(Arc::clone(component));
                    return Ok(());
                }
                Err(why) => why,
            },
            // Nothing has changed.
            Err(why) if self.process.is_some() => return Err(Trouble::Refused(why)),
            Err(why) => why,
        };
        let before = self.good.clone().filter(|good| !good.is_like(component));
        let Some(before) = before else {
            self.stop().await;
            return Err(Trouble::Down(why));
        };
        warn!(component = %self.name, why, "what the site file wants of it is refused: its previous files are put back");
        let back = match files::put_back(&before.files) {
            Ok(()) => self.bring_up(&before).await,
            Err(error) => Err(error),
        };
        match back {
            Ok(()) => Err(Trouble::Refused(why)),
            Err(second) => {
                warn!(component = %self.name, why = second, "nor does it run with its previous files");
                self.stop().await;
                Err(Trouble::Down(why))
            }
        }
    }

    /// Starts or reloads what stands in its place, until it is verified.
    async fn bring_up(&mut self, component: &Component) -> Result<(), String> {
        let deadline = Instant::now() + self.supervisor.timing.patience;
        let starts = self.good.as_ref().is_none_or(|good| !good.starts_like(component));
        let made_again = self.numbers() != self.interfaces && !self.interfaces.is_empty();
        match (&self.process, component.reload) {
            (Some(process), Reload::Signal(signal)) if !starts && !made_again => process.reload(signal),
            (Some(_), Reload::Call) if !starts && !made_again => {
                match timeout(self.supervisor.timing.patience, component.control.reload()).await {
                    Ok(reloaded) => reloaded?,
                    Err(_) => return Err("it does not answer".to_owned()),
                }
            }
            (Some(_), Reload::Signal(_) | Reload::Call | Reload::Restart) => {
                self.stop().await;
                self.start(component)?;
            }
            (None, _) => self.start(component)?,
        }
        self.interfaces = numbers(component);
        let settled = Instant::now() + SETTLED.min(self.supervisor.timing.patience);
        loop {
            if let Some(why) = self.process.as_mut().and_then(Process::has_ended) {
                self.process = None;
                return Err(why);
            }
            let verified = self.ask(component).await;
            match verified {
                Ok(()) if Instant::now() >= settled => return Ok(()),
                Err(why) if Instant::now() >= deadline => return Err(why),
                Ok(()) | Err(_) => sleep(ASK_AGAIN).await,
            }
        }
    }

    fn start(&mut self, component: &Component) -> Result<(), String> {
        if self.begun {
            self.supervisor.components.restarted(&self.name);
        }
        self.begun = true;
        self.goodbye = component.goodbye;
        self.process = Some(Process::start(component, &self.supervisor.run)?);
        Ok(())
    }

    async fn ask(&self, component: &Component) -> Result<(), String> {
        match timeout(ANSWER, component.control.verify(&component.files)).await {
            Ok(verified) => verified,
            Err(_) => Err("it does not answer".to_owned()),
        }
    }

    async fn stop(&mut self) {
        self.end(self.goodbye).await;
    }

    async fn end(&mut self, goodbye: Signal) {
        if let Some(process) = &mut self.process {
            process.stop(goodbye, self.supervisor.timing.farewell).await;
        }
        self.process = None;
    }

    /// When to try again. At a start of routerd it may take a moment until the addresses are there that a component
    /// serves: that is nothing to tell of outside.
    fn fails(&mut self, why: String, ran: bool) -> Instant {
        let first = !ran && self.pause < self.supervisor.timing.first * SILENT;
        let pause = self.pause;
        self.pause = (pause * 2).min(self.supervisor.timing.most);
        warn!(component = %self.name, why, again_in = ?pause, "it does not run");
        if first {
            self.supervisor.components.set(&self.name, ComponentState::Starting, Some(why));
        } else {
            self.tell(ComponentState::Failed, Some(why));
        }
        Instant::now() + pause
    }

    fn tell(&self, state: ComponentState, why: Option<String>) {
        if self.supervisor.components.set(&self.name, state, why.clone()) {
            let what = What::Component { component: self.name.clone(), running: state == ComponentState::Running, why };
            self.supervisor.happenings.tell(what);
        }
    }

    /// What is wanted of it has changed: how it fared before says nothing.
    fn begin_anew(&mut self) {
        (self.pause, self.refused) = (self.supervisor.timing.first, self.supervisor.timing.refused);
        self.begun = false;
    }

    /// Of the interfaces that it was told of.
    fn numbers(&self) -> BTreeMap<String, u32> {
        self.good.as_deref().map(numbers).unwrap_or_default()
    }
}

/// The interfaces of it that are there.
fn numbers(component: &Component) -> BTreeMap<String, u32> {
    let number =
        |name: &config::units::IfName| Some((name.to_string(), nix::net::if_::if_nametoindex(name.as_str()).ok()?));
    component.interfaces.iter().filter_map(number).collect()
}

fn missing(component: &Component) -> Option<String> {
    let numbers = numbers(component);
    let missing: Vec<_> =
        component.interfaces.iter().map(ToString::to_string).filter(|name| !numbers.contains_key(name)).collect();
    (!missing.is_empty()).then(|| format!("it waits for the interfaces {}", missing.join(", ")))
}

/// Whether something else is wanted (`true`), or nothing (`false`).
async fn news(wanted: &mut watch::Receiver<Arc<Component>>, component: &Component) -> bool {
    while wanted.changed().await.is_ok() {
        if !wanted.borrow_and_update().is_like(component) {
            return true;
        }
    }
    false
}

/// Never, where there is none.
async fn ended(process: &mut Option<Process>) -> String {
    match process {
        Some(process) => process.ended().await,
        None => std::future::pending().await,
    }
}

async fn due(again: Option<Instant>) {
    match again {
        Some(again) => sleep_until(again).await,
        None => std::future::pending().await,
    }
}

/// So many looks without an answer, and it is ended.
const SILENT: u32 = 3;
/// What refuses its files may take a moment to end.
const SETTLED: Duration = Duration::from_millis(300);
const ASK_AGAIN: Duration = Duration::from_millis(100);
const ANSWER: Duration = Duration::from_secs(5);
