//! Programs of others that the router runs: DHCP, router advertisements, time. One supervisor for all of them, on a
//! thread of its own. It follows the config in force; what it cannot make so it tells, and tries again.
//!
//! ```text
//!              ┌──────────────────────── again, after 0.2 s doubling to 30 s ───────────────────────┐
//!              ▼                                                                                    │
//!   files: render beside → validate → rename → start or reload → verify ──good──▶ running ──ends──▶ failed
//!              │ refused                                   │ refused                ▲
//!              └──────────────▶ the files it ran with before, reloaded and verified ┘ (with a `why`)
//! ```
//!
//! A component is a value ([`Component`]): whoever wants one says what it is made of, and its [`Control`] says whether it
//! does what its files say. A validator alone is not believed, because they lie. Nothing waits for a component: neither
//! the router nor another component. Each leads a process group. Those that a killed routerd leaves behind are ended by the
//! next start, before it starts any; a stop leaves none.

mod children;
mod files;
mod keeper;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use config::Config;
use config::units::IfName;
use futures_util::future::BoxFuture;
use nix::sys::signal::Signal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info};

use self::keeper::Keeper;
use crate::happening::Happenings;

/// A program to run, and what it needs.
#[derive(Debug, Clone)]
pub struct Component {
    /// Of its folders, its metrics and its line in `status`.
    pub name: String,
    /// The Debian package that has the program.
    pub package: &'static str,
    /// In `PATH`.
    pub program: String,
    pub arguments: Vec<String>,
    pub environment: BTreeMap<String, String>,
    /// Made before anything else.
    pub folders: Vec<Folder>,
    pub files: Vec<Rendered>,
    /// A program and its arguments that exits with 0 for files that are good. It is handed the path of a file that is not
    /// in its place yet wherever an argument is the path of one of `files`.
    pub validator: Option<Vec<String>>,
    /// Those it serves. It waits for them, and is told anew when one was taken away and made again.
    pub interfaces: Vec<IfName>,
    pub reload: Reload,
    /// What ends it when it is to be started again, now or by the next routerd. One that nobody wants any more gets SIGTERM.
    pub goodbye: Signal,
    pub control: Arc<dyn Control>,
}

impl Default for Component {
    fn default() -> Self {
        Self {
            name: String::new(),
            package: "",
            program: String::new(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            folders: Vec::new(),
            files: Vec::new(),
            validator: None,
            interfaces: Vec::new(),
            reload: Reload::Restart,
            goodbye: Signal::SIGTERM,
            control: Arc::new(Alive),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    pub path: PathBuf,
    pub mode: u32,
    /// Root where there is none.
    pub owner: Option<&'static str>,
}

impl Folder {
    pub fn new(path: impl Into<PathBuf>, mode: u32) -> Self {
        Self { path: path.into(), mode, owner: None }
    }

    #[must_use]
    pub fn of(self, owner: &'static str) -> Self {
        Self { owner: Some(owner), ..self }
    }
}

/// A file of a component, as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub path: PathBuf,
    pub text: String,
    pub mode: u32,
}

/// How a component takes files that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    Restart,
    Signal(Signal),
    /// [`Control::reload`].
    Call,
}

/// What is asked of a component that runs. Both may be cut short at any time.
pub trait Control: fmt::Debug + Send + Sync {
    /// Has it read its files again; only with [`Reload::Call`].
    fn reload(&self) -> BoxFuture<'_, Result<(), String>>;

    /// Whether it does what these files say. Asked until it is so, and again as long as it runs: whoever wants figures
    /// gathers them here.
    fn verify<'a>(&'a self, files: &'a [Rendered]) -> BoxFuture<'a, Result<(), String>>;
}

/// Of a program that cannot be asked: it does its work while it lives.
#[derive(Debug, Clone, Copy)]
pub struct Alive;

impl Control for Alive {
    fn reload(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn verify<'a>(&'a self, _files: &'a [Rendered]) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

impl Component {
    /// Whether a reload is enough to become the other.
    fn starts_like(&self, other: &Self) -> bool {
        let of = |component: &Self| {
            let Self { program, arguments, environment, folders, .. } = component.clone();
            (program, arguments, environment, folders)
        };
        of(self) == of(other)
    }

    fn is_like(&self, other: &Self) -> bool {
        self.starts_like(other) && self.files == other.files && self.interfaces == other.interfaces
    }
}

/// How the components stand. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Components(Arc<Mutex<BTreeMap<String, Entry>>>);

#[derive(Debug, Clone)]
struct Entry {
    state: ComponentState,
    since: Instant,
    restarts: u64,
    why: Option<String>,
    /// It was told outside that it fails.
    told: bool,
}

/// One component at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ComponentLine {
    pub name: String,
    pub state: ComponentState,
    pub since_seconds: f64,
    /// Starts that no config asked for.
    pub restarts: u64,
    /// Why it does not run, or not as the site file says; `None` where all is well.
    pub why: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ComponentState {
    Off,
    Starting,
    Running,
    Failed,
}

impl ComponentState {
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Failed => "failed",
        }
    }
}

impl ComponentLine {
    /// What an operator should know of it.
    pub(crate) fn trouble(&self) -> Option<String> {
        let Self { name, state, why, .. } = self;
        match (state, why) {
            (ComponentState::Failed, None) => Some(format!("{name} has failed")),
            (ComponentState::Failed, Some(why)) => Some(format!("{name} has failed: {why}")),
            (ComponentState::Running, Some(why)) => Some(format!("{name}: {why}")),
            (ComponentState::Starting, Some(why)) if self.since_seconds > PATIENT => Some(format!("{name}: {why}")),
            (ComponentState::Off | ComponentState::Starting | ComponentState::Running, _) => None,
        }
    }
}

impl Components {
    pub fn lines(&self) -> Vec<ComponentLine> {
        let line = |(name, entry): (&String, &Entry)| ComponentLine {
            name: name.clone(),
            state: entry.state,
            since_seconds: entry.since.elapsed().as_secs_f64(),
            restarts: entry.restarts,
            why: entry.why.clone(),
        };
        self.entries().iter().map(line).collect()
    }

    /// Whether that is news for those outside: it fails, or does not any more.
    fn set(&self, name: &str, state: ComponentState, why: Option<String>) -> bool {
        let mut entries = self.entries();
        let entry = entries.entry(name.to_owned()).or_insert_with(|| Entry {
            state: ComponentState::Off,
            since: Instant::now(),
            restarts: 0,
            why: None,
            told: false,
        });
        if entry.state != state {
            entry.state = state;
            entry.since = Instant::now();
        }
        entry.why = why;
        match state {
            ComponentState::Failed => !std::mem::replace(&mut entry.told, true),
            ComponentState::Running => std::mem::replace(&mut entry.told, false),
            ComponentState::Off | ComponentState::Starting => false,
        }
    }

    fn restarted(&self, name: &str) {
        if let Some(entry) = self.entries().get_mut(name) {
            entry.restarts += 1;
        }
    }

    fn forget(&self, name: &str) {
        self.entries().remove(name);
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the supervisor keeps what is its own.
#[derive(Debug, Clone)]
pub struct Supervisor {
    /// routerd's `--run`: the numbers of its processes stand there.
    pub run: PathBuf,
    pub components: Components,
    pub happenings: Happenings,
    pub timing: Timing,
}

/// How long it waits for what.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Before it starts again what ended; doubled each time …
    pub first: Duration,
    /// … up to this.
    pub most: Duration,
    /// What ran for this long begins with `first` again.
    pub calm: Duration,
    /// Until a start or a reload must have been verified.
    pub patience: Duration,
    /// Between two looks at one that runs.
    pub look: Duration,
    /// Between its SIGTERM and its SIGKILL.
    pub farewell: Duration,
    /// Until what was refused is tried again; doubled each time up to `refused_most`.
    pub refused: Duration,
    pub refused_most: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(200),
            most: Duration::from_secs(30),
            calm: Duration::from_mins(1),
            patience: Duration::from_secs(15),
            look: Duration::from_secs(10),
            farewell: Duration::from_secs(3),
            refused: Duration::from_secs(1),
            refused_most: Duration::from_mins(5),
        }
    }
}

/// Tells when the last component has ended.
#[derive(Debug)]
pub struct Ending(std::sync::mpsc::Receiver<()>);

impl Ending {
    /// Until no component is left, or has had its time.
    pub fn wait(self) {
        if self.0.recv_timeout(LAST) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            error!("a component did not end in time: the next start ends it");
        }
    }
}

impl Supervisor {
    /// Runs the components that `wanted` makes of the config in force, on a thread of its own, until the config's sender is
    /// gone.
    pub fn start(
        self,
        config: watch::Receiver<Option<Arc<Config>>>,
        wanted: impl Fn(&Config) -> Vec<Component> + Send + 'static,
    ) -> io::Result<Ending> {
        let (alive, ending) = std::sync::mpsc::channel::<()>();
        let supervise = move || {
            let _alive = alive;
            let follow = || -> io::Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(self.follow(config.clone(), &wanted))
            };
            // What runs then is found by the next round, as it would be by the next routerd.
            loop {
                match catch_unwind(AssertUnwindSafe(follow)) {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => error!(%error, "components cannot be run"),
                    Err(_panic) => error!("the supervisor of components panicked: it begins anew"),
                }
                thread::sleep(BEGIN_ANEW);
            }
        };
        thread::Builder::new().name("components".to_owned()).spawn(supervise)?;
        Ok(Ending(ending))
    }

    async fn follow(
        &self,
        mut config: watch::Receiver<Option<Arc<Config>>>,
        wanted: &impl Fn(&Config) -> Vec<Component>,
    ) -> io::Result<()> {
        children::end_orphans(&self.run, self.timing.farewell).await;
        let mut kept = Kept::default();
        config.mark_changed();
        loop {
            tokio::select! {
                changed = config.changed() => {
                    let Ok(()) = changed else { break };
                    let components = match config.borrow_and_update().as_deref() {
                        Some(config) => wanted(config),
                        None => Vec::new(),
                    };
                    self.keep(&mut kept, components);
                }
                Some(ended) = kept.tasks.join_next() => over(ended)?,
            }
        }
        // routerd ends, and another may begin.
        kept.routerd_ends.store(true, Ordering::Relaxed);
        self.keep(&mut kept, Vec::new());
        while let Some(ended) = kept.tasks.join_next().await {
            over(ended)?;
        }
        Ok(())
    }

    fn keep(&self, kept: &mut Kept, components: Vec<Component>) {
        let names: Vec<_> = components.iter().map(|component| component.name.clone()).collect();
        // Without a sender its keeper ends it.
        kept.wanted.retain(|name, _| names.contains(name));
        for component in components {
            if let Some(sender) = kept.wanted.get(&component.name) {
                sender.send_replace(Arc::new(component));
                continue;
            }
            let name = component.name.clone();
            info!(component = %name, "to be run");
            let (sender, receiver) = watch::channel(Arc::new(component));
            let before = kept.ending.remove(&name);
            let (done, ended) = watch::channel(());
            let keeper = Keeper::new(&name, self.clone(), Arc::clone(&kept.routerd_ends));
            let task = async move {
                if let Some(mut before) = before {
                    // Its sender says nothing and goes.
                    before.changed().await.ok();
                }
                keeper.run(receiver).await;
                drop(done);
            };
            kept.tasks.spawn(task);
            kept.ending.insert(name.clone(), ended);
            kept.wanted.insert(name, sender);
        }
    }
}

/// The tasks that are under way.
#[derive(Debug, Default)]
struct Kept {
    wanted: BTreeMap<String, watch::Sender<Arc<Component>>>,
    /// Of the last task of each name: changes when that is over.
    ending: BTreeMap<String, watch::Receiver<()>>,
    tasks: JoinSet<()>,
    routerd_ends: Arc<AtomicBool>,
}

/// A panic of a keeper is told by whoever started the supervisor.
fn over(ended: Result<(), tokio::task::JoinError>) -> io::Result<()> {
    ended.map_err(|error| io::Error::other(format!("a keeper ended: {error}")))
}

/// Seconds of a start that nobody need know of.
const PATIENT: f64 = 10.0;
const BEGIN_ANEW: Duration = Duration::from_secs(1);
/// `farewell`, and what is left to do after it.
const LAST: Duration = Duration::from_secs(8);

#[cfg(test)]
mod tests;
