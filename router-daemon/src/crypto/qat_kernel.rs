//! The card as the kernel has it, for IPsec (the kernel's driver `qat_c62x`): its algorithms, the heartbeat of its devices,
//! and what can be done about them: how soon they are taken, and getting everybody off them before a reset.
//!
//! Intel's own driver, for user space, takes the place of the kernel's: with that there is nothing here, and the crate
//! `qat` has the card. Nothing here uses the card; the kernel does, and has nobody else to do what a card leaves undone.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use config::Config;
use config::model::KernelDevice;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::kernel::{aside, crypto};

/// The kernel's side of the card. Clones are of the same.
#[derive(Clone)]
pub struct QatKernel {
    /// `/`, but for tests.
    root: PathBuf,
    set: Arc<SetPriority>,
    /// Since a retreat: the config's wish waits.
    retreated: Arc<AtomicBool>,
}

/// Gives a driver its priority.
type SetPriority = dyn Fn(&str, u32) -> io::Result<()> + Send + Sync;

/// Gives every association of IPsec other keys.
pub type Rekey = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What is wrong with the card, and how its devices are. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Troubles(Arc<Mutex<(Vec<String>, Vec<KernelDeviceLine>)>>);

/// A device of the card that the kernel drives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelDeviceLine {
    pub name: String,
    /// Whether it answers; `None` where nobody knows.
    pub beats: Option<bool>,
    /// Heartbeats that it did not answer, since its driver was loaded.
    pub unanswered: Option<u64>,
}

/// What is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct KernelCrypto {
    /// All of the kernel's, the card's among them.
    #[serde(skip)]
    pub all: Vec<Algorithm>,
    /// Those that the card does.
    pub algorithms: Vec<Algorithm>,
    pub devices: Vec<Device>,
}

/// An entry of `/proc/crypto`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Algorithm {
    pub name: String,
    pub driver: String,
    /// Of those with one name, the highest is taken.
    pub priority: u32,
    /// Who holds it: associations of IPsec, sockets of `AF_ALG`, what is built on it and held.
    pub users: u32,
    /// The kernel's own test of it passed.
    pub tested: bool,
}

/// An endpoint of the card that the kernel drives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// As debugfs has it: `qat_c62x_0000:3d:00.0`.
    pub name: String,
    pub heartbeat: Heartbeat,
    /// How often it was asked, and how often it did not answer, since the driver was loaded.
    pub asked: Option<u64>,
    pub unanswered: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Heartbeat {
    Beats,
    Silent,
    /// Why nobody knows.
    Untold(String),
}

/// A heartbeat over time. Pure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pulse {
    missed: u32,
}

/// What a heartbeat changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Stopped,
    Back,
}

/// Why a driver is not taken as it should be.
#[derive(Debug, thiserror::Error)]
pub enum PriorityError {
    #[error("/proc/crypto cannot be read: {0}")]
    Unread(#[source] io::Error),
    #[error("{driver} cannot be given the priority {priority}: {source}")]
    Refused {
        driver: String,
        priority: u32,
        #[source]
        source: io::Error,
    },
    #[error("{driver} has the priority {found} after it was given {priority}: does another program set it too?")]
    Otherwise { driver: String, priority: u32, found: u32 },
}

/// Why the card must not be reset, nor its driver unbound: the packets of whoever is on it would be lost, or worse.
#[derive(Debug, thiserror::Error)]
pub enum RetreatError {
    #[error(transparent)]
    Priority(#[from] PriorityError),
    #[error("IPsec could not be given other keys: {0}")]
    Rekey(String),
    #[error("still in use {patience:?} after IPsec was given other keys: {}; take down what holds it", held.join(", "))]
    Held { held: Vec<String>, patience: Duration },
}

impl fmt::Debug for QatKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QatKernel").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Default for QatKernel {
    fn default() -> Self {
        Self::at(PathBuf::from("/"), crypto::set_priority)
    }
}

impl QatKernel {
    /// With the files below `root`, and somebody who gives a driver its priority.
    pub fn at(root: PathBuf, set: impl Fn(&str, u32) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { root, set: Arc::new(set), retreated: Arc::default() }
    }

    /// Asks each device for its heartbeat, which counts as a query there and changes nothing else. For a thread that may
    /// wait.
    pub fn look(&self) -> Result<KernelCrypto, PriorityError> {
        let all = self.algorithms()?;
        let algorithms = all.iter().filter(|algorithm| algorithm.on_the_card()).cloned().collect();
        Ok(KernelCrypto { all, algorithms, devices: self.devices() })
    }

    /// Gives the card's drivers the priority that makes the kernel take them, or not, and reads it back. What it changed.
    pub async fn prefer(&self, wanted: KernelDevice) -> Result<Vec<String>, PriorityError> {
        let own = self.clone();
        aside(move || Ok(own.prefer_now(wanted))).await.map_err(PriorityError::Unread)?
    }

    /// Gets the kernel off the card, so that it may be reset: what is looked up from here on is software's, `rekey` gives
    /// every association of IPsec new keys, and with them algorithms that are looked up anew, and then nobody may hold one
    /// of the card's. Only after `Ok` may it be reset or unbound. Also where it fails no association that is made
    /// meanwhile gets onto the card, until [`Self::come_back`].
    pub async fn retreat(
        &self,
        rekey: impl AsyncFnOnce() -> Result<(), String>,
        patience: Duration,
    ) -> Result<(), RetreatError> {
        self.retreated.store(true, Ordering::Release);
        self.prefer(KernelDevice::Avoid).await?;
        rekey().await.map_err(RetreatError::Rekey)?;
        let until = Instant::now() + patience;
        loop {
            let own = self.clone();
            let found = aside(move || Ok(own.algorithms())).await.map_err(PriorityError::Unread)??;
            let holds = |algorithm: &&Algorithm| algorithm.on_the_card() && algorithm.users > 0;
            let held: Vec<_> =
                found.iter().filter(holds).map(|one| format!("{} by {}", one.driver, one.users)).collect();
            if held.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(RetreatError::Held { held, patience });
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    /// The card is as new: what the config says counts again, as soon as it is next looked at.
    pub fn come_back(&self) {
        self.retreated.store(false, Ordering::Release);
    }

    fn prefer_now(&self, wanted: KernelDevice) -> Result<Vec<String>, PriorityError> {
        let priority = priority(wanted);
        let own = |one: &Algorithm| is_the_cards(&one.driver) && one.priority != priority;
        let changed: Vec<_> = self.algorithms()?.into_iter().filter(own).map(|one| one.driver).collect();
        for driver in &changed {
            let refused = |source| PriorityError::Refused { driver: driver.clone(), priority, source };
            (self.set)(driver, priority).map_err(refused)?;
        }
        let after = self.algorithms()?;
        match after.into_iter().find(own) {
            Some(Algorithm { driver, priority: found, .. }) => {
                Err(PriorityError::Otherwise { driver, priority, found })
            }
            None => Ok(changed),
        }
    }

    fn algorithms(&self) -> Result<Vec<Algorithm>, PriorityError> {
        let text = fs::read_to_string(self.root.join("proc/crypto")).map_err(PriorityError::Unread)?;
        Ok(Algorithm::parse(&text))
    }

    fn devices(&self) -> Vec<Device> {
        let debugfs = self.root.join("sys/kernel/debug");
        let Ok(folder) = fs::read_dir(&debugfs) else { return Vec::new() };
        let names = folder.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names.filter(|name| name.starts_with("qat_c62x")).collect();
        names.sort();
        names.into_iter().map(|name| Device::read(&debugfs.join(&name), name)).collect()
    }
}

impl Algorithm {
    /// What is malformed is left out.
    pub fn parse(text: &str) -> Vec<Self> {
        text.split("\n\n").filter_map(Self::parse_one).collect()
    }

    fn parse_one(text: &str) -> Option<Self> {
        let of: BTreeMap<_, _> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.trim(), value.trim()))
            .collect();
        let references: u32 = of.get("refcnt")?.parse().ok()?;
        Some(Self {
            name: (*of.get("name")?).to_owned(),
            driver: (*of.get("driver")?).to_owned(),
            priority: of.get("priority")?.parse().ok()?,
            // One is for being there.
            users: references.saturating_sub(1),
            tested: of.get("selftest") == Some(&"passed"),
        })
    }

    /// By the card itself, or by something of the kernel's that is built on it: `echainiv(qat_aes_cbc_hmac_sha256)`.
    pub fn on_the_card(&self) -> bool {
        self.driver.split(['(', ')', ',']).any(is_the_cards)
    }
}

fn is_the_cards(driver: &str) -> bool {
    driver.starts_with("qat_") || driver.starts_with("qat-")
}

impl Device {
    fn read(folder: &Path, name: String) -> Self {
        let read = |file: &str| fs::read_to_string(folder.join("heartbeat").join(file));
        let number = |file: &str| read(file).ok()?.trim().parse().ok();
        let heartbeat = match read("status") {
            Ok(text) if text.trim() == "0" => Heartbeat::Beats,
            Ok(text) if text.trim() == "-1" => Heartbeat::Silent,
            Ok(text) => Heartbeat::Untold(format!("its status is {:?}", text.trim())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Heartbeat::Untold("this kernel does not ask for it; 6.6 and later do".to_owned())
            }
            Err(error) => Heartbeat::Untold(error.to_string()),
        };
        Self { name, heartbeat, asked: number("queries_sent"), unanswered: number("queries_failed") }
    }
}

impl Troubles {
    pub fn told(&self) -> (Vec<String>, Vec<KernelDeviceLine>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self, told: Vec<String>, devices: Vec<KernelDeviceLine>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (told, devices);
    }
}

/// Has the kernel do as the config says, and listens to the card's heartbeats where there are any, until the config's
/// sender is gone. Where there is no card it looks once a minute. When one stops, everybody is got off the card, with
/// `rekey` for the associations of IPsec, until all answer again.
pub async fn run(kernel: QatKernel, config: watch::Receiver<Option<Arc<Config>>>, troubles: Troubles, rekey: Rekey) {
    follow(kernel, config, troubles, BETWEEN_BEATS, rekey).await;
}

async fn follow(
    kernel: QatKernel,
    mut config: watch::Receiver<Option<Arc<Config>>>,
    troubles: Troubles,
    between_beats: Duration,
    rekey: Rekey,
) {
    let mut pulses = BTreeMap::<String, Pulse>::new();
    let mut retreat = Retreat::default();
    loop {
        let wanted = config.borrow_and_update().as_ref().and_then(|config| config.crypto.kernel_device);
        let mut told = Vec::new();
        if let Some(wanted) = wanted
            && !kernel.retreated.load(Ordering::Acquire)
        {
            match kernel.prefer(wanted).await {
                Ok(changed) if changed.is_empty() => {}
                Ok(changed) => {
                    info!(drivers = %changed.join(", "), ?wanted, "the kernel's order of crypto is as the config has it");
                }
                Err(error) => told.push(format!("crypto: {error}")),
            }
        }
        let own = kernel.clone();
        let found = aside(move || Ok(own.look())).await;
        let found = found.ok().and_then(Result::ok).unwrap_or_default();
        if wanted == Some(KernelDevice::Prefer) && found.algorithms.is_empty() {
            told.push(
                "crypto: the config prefers a card in the kernel, which has none: `routerctl qat status`".to_owned(),
            );
        }
        pulses.retain(|name, _| found.devices.iter().any(|device| device.name == *name));
        for Device { name, heartbeat, .. } in &found.devices {
            let pulse = pulses.entry(name.clone()).or_default();
            match pulse.hear(heartbeat) {
                Some(Turn::Stopped) => warn!(device = %name, "a crypto device does not answer"),
                Some(Turn::Back) => info!(device = %name, "a crypto device answers again"),
                None => {}
            }
            if pulse.is_stopped() {
                told.push(format!("crypto: {name} does not answer: what IPsec gives it is lost"));
            }
        }
        let line = |Device { name, heartbeat, unanswered, .. }: &Device| {
            let beats = match heartbeat {
                Heartbeat::Beats => Some(true),
                Heartbeat::Silent => Some(false),
                Heartbeat::Untold(_) => None,
            };
            KernelDeviceLine { name: name.clone(), beats, unanswered: *unanswered }
        };
        let stopped = pulses.values().any(Pulse::is_stopped);
        told.extend(retreat.told.iter().filter(|_| stopped).cloned());
        troubles.tell(told, found.devices.iter().map(line).collect());
        let concerned = wanted == Some(KernelDevice::Prefer) || found.algorithms.iter().any(|one| one.users > 0);
        retreat.follow(&kernel, stopped, concerned, &rekey).await;
        let pause = if found.devices.is_empty() { BETWEEN_SEARCHES } else { between_beats };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = config.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// Whether everybody has been got off a card that does not answer.
#[derive(Debug, Default)]
struct Retreat {
    began: Option<Instant>,
    over: bool,
    /// What is in its way.
    told: Option<String>,
}

impl Retreat {
    async fn follow(&mut self, kernel: &QatKernel, stopped: bool, concerned: bool, rekey: &Rekey) {
        if !stopped {
            if self.began.is_some() {
                info!("the crypto devices answer: the config's order of crypto counts again");
                kernel.come_back();
                *self = Self::default();
            }
            return;
        }
        let waits = self.began.is_some_and(|at| at.elapsed() < BETWEEN_RETREATS);
        if self.over || waits || self.began.is_none() && !concerned {
            return;
        }
        self.began = Some(Instant::now());
        let rekey = Arc::clone(rekey);
        match kernel.retreat(async move || rekey().await, LET_GO).await {
            Ok(()) => {
                warn!("a crypto device does not answer: software does its work, and it may be reset");
                (self.over, self.told) = (true, None);
            }
            Err(error) => {
                warn!(%error, "a crypto device does not answer, and cannot be left");
                self.told = Some(format!("crypto: do not reset the card: {error}"));
            }
        }
    }
}

/// What the kernel builds on the CPU's ciphers gets ten times the cipher's priority and the hash's on top, some 4,000 to
/// 8,000 and known only once it is built; anything of its own has 100 or more.
fn priority(wanted: KernelDevice) -> u32 {
    match wanted {
        KernelDevice::Prefer => 10_000,
        KernelDevice::Avoid => 1,
    }
}

impl Pulse {
    /// One beat that is missed may be a card under load.
    pub fn hear(&mut self, heartbeat: &Heartbeat) -> Option<Turn> {
        match heartbeat {
            Heartbeat::Beats => (std::mem::take(&mut self.missed) >= MISSED).then_some(Turn::Back),
            Heartbeat::Silent => {
                self.missed = self.missed.saturating_add(1);
                (self.missed == MISSED).then_some(Turn::Stopped)
            }
            Heartbeat::Untold(_) => None,
        }
    }

    pub fn is_stopped(&self) -> bool {
        self.missed >= MISSED
    }
}

impl KernelCrypto {
    /// The driver that would be taken instead of this one, with its priority.
    fn before(&self, algorithm: &Algorithm) -> Option<&Algorithm> {
        let others = self.all.iter().filter(|other| other.name == algorithm.name && !other.on_the_card());
        others.max_by_key(|other| other.priority).filter(|other| other.priority > algorithm.priority)
    }
}

impl fmt::Display for KernelCrypto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.algorithms.is_empty() && self.devices.is_empty() {
            return writeln!(f, "in the kernel, for IPsec: nothing of a card");
        }
        writeln!(f, "in the kernel, for IPsec:")?;
        for algorithm in &self.algorithms {
            let Algorithm { name, driver, priority, users, tested } = algorithm;
            let untested = if *tested { "" } else { ", not tested" };
            write!(f, "  {driver}: {name}, priority {priority}, {users} users{untested}; ")?;
            match self.before(algorithm) {
                Some(other) => writeln!(f, "{} ({}) is taken before it", other.driver, other.priority)?,
                None => writeln!(f, "taken first")?,
            }
        }
        for Device { name, heartbeat, asked, unanswered } in &self.devices {
            write!(f, "  {name}: ")?;
            match heartbeat {
                Heartbeat::Beats => write!(f, "it answers")?,
                Heartbeat::Silent => write!(f, "IT DOES NOT ANSWER")?,
                Heartbeat::Untold(why) => write!(f, "heartbeat unknown: {why}")?,
            }
            match (asked, unanswered) {
                (Some(asked), Some(unanswered)) => {
                    writeln!(f, "; asked {asked} times, {unanswered} without an answer")?;
                }
                _ => writeln!(f)?,
            }
        }
        Ok(())
    }
}

/// Longer than the driver's own period, half a second.
const BETWEEN_BEATS: Duration = Duration::from_secs(1);
const BETWEEN_SEARCHES: Duration = Duration::from_mins(1);
/// For so long keys that were replaced may stay: charon keeps those of packets that are on their way for 5 s.
const LET_GO: Duration = Duration::from_secs(10);
/// Between two tries to get everybody off a card.
const BETWEEN_RETREATS: Duration = Duration::from_secs(30);
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
/// Heartbeats in a row.
const MISSED: u32 = 2;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tempfile::TempDir;

    use super::*;

    /// As a kernel with the card has it, shortened: what the card does itself, what is built on it, and the CPU's.
    const CRYPTO: &str = "\
name         : echainiv(authenc(hmac(sha256),cbc(aes)))
driver       : echainiv(qat_aes_cbc_hmac_sha256)
module       : echainiv
priority     : 4001
refcnt       : 3
selftest     : passed
internal     : no
type         : aead
async        : yes

name         : authenc(hmac(sha256),cbc(aes))
driver       : qat_aes_cbc_hmac_sha256
module       : intel_qat
priority     : 4001
refcnt       : 3
selftest     : passed
internal     : no
type         : aead

name         : authenc(hmac(sha256),cbc(aes))
driver       : authenc(hmac-sha256-lib,cbc-aes-aesni)
module       : authenc
priority     : 4300
refcnt       : 1
selftest     : passed
type         : aead

name         : rsa
driver       : qat-rsa
module       : intel_qat
priority     : 1000
refcnt       : 1
selftest     : unknown
type         : akcipher

name         : aes
driver       : aes-aqat_generic
priority     : 100
refcnt       : 9
selftest     : passed

name         : half
driver       : half
";

    struct Machine {
        root: TempDir,
        /// What was asked for, in order.
        asked: Arc<Mutex<Vec<(String, u32)>>>,
    }

    impl Machine {
        fn new() -> Self {
            let machine = Self { root: tempfile::tempdir().unwrap(), asked: Arc::default() };
            machine.write("proc/crypto", CRYPTO);
            machine
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            replace(&path, text).unwrap();
        }

        /// A kernel that does as it is told.
        fn kernel(&self) -> QatKernel {
            let (root, asked) = (self.root.path().to_owned(), Arc::clone(&self.asked));
            QatKernel::at(root.clone(), move |driver, priority| {
                asked.lock().unwrap().push((driver.to_owned(), priority));
                let path = root.join("proc/crypto");
                let before = fs::read_to_string(&path)?;
                let changed = before.split("\n\n").map(|entry| {
                    let line = |line: &str| match line.strip_prefix("priority") {
                        Some(_) if entry.contains(&format!(" {driver}\n")) => format!("priority     : {priority}\n"),
                        _ => format!("{line}\n"),
                    };
                    entry.lines().map(line).collect::<String>()
                });
                let text = changed.collect::<Vec<_>>().join("\n");
                replace(&path, &text)
            })
        }

        fn let_go(&self) {
            let text = fs::read_to_string(self.root.path().join("proc/crypto")).unwrap();
            self.write("proc/crypto", &text.replace("refcnt       : 3", "refcnt       : 1"));
        }
    }

    /// Nobody reads half of it.
    fn replace(path: &Path, text: &str) -> io::Result<()> {
        let whole = path.with_extension("whole");
        fs::write(&whole, text)?;
        fs::rename(whole, path)
    }

    #[test]
    fn the_cards_algorithms_are_told_from_others_with_who_is_taken_before_them() {
        let machine = Machine::new();
        let found = machine.kernel().look().unwrap();
        assert_eq!(found.all.len(), 5, "what is malformed is left out");
        let told: Vec<_> =
            found.algorithms.iter().map(|one| (one.driver.as_str(), one.priority, one.users, one.tested)).collect();
        assert_eq!(
            told,
            [
                ("echainiv(qat_aes_cbc_hmac_sha256)", 4001, 2, true),
                ("qat_aes_cbc_hmac_sha256", 4001, 2, true),
                ("qat-rsa", 1000, 0, false),
            ]
        );
        let text = found.to_string();
        assert!(
            text.contains(
                "  qat_aes_cbc_hmac_sha256: authenc(hmac(sha256),cbc(aes)), priority 4001, 2 users; \
                 authenc(hmac-sha256-lib,cbc-aes-aesni) (4300) is taken before it\n"
            ),
            "{text}"
        );
        assert!(text.contains("  qat-rsa: rsa, priority 1000, 0 users, not tested; taken first\n"), "{text}");
        machine.write("proc/crypto", "");
        assert_eq!(machine.kernel().look().unwrap().to_string(), "in the kernel, for IPsec: nothing of a card\n");
        fs::remove_file(machine.root.path().join("proc/crypto")).unwrap();
        assert!(machine.kernel().look().unwrap_err().to_string().starts_with("/proc/crypto cannot be read"));
    }

    #[test]
    fn each_device_tells_whether_it_answers_or_why_nobody_knows() {
        let machine = Machine::new();
        let beat = |device: &str, file: &str, text: &str| {
            machine.write(&format!("sys/kernel/debug/qat_c62x_0000:{device}:00.0/heartbeat/{file}"), text);
        };
        for (device, status) in [("3d", "0\n"), ("3f", "-1\n"), ("da", "maybe\n")] {
            beat(device, "status", status);
            beat(device, "queries_sent", "12\n");
            beat(device, "queries_failed", "3\n");
        }
        machine.write("sys/kernel/debug/qat_c62x_0000:b1:00.0/dev_cfg", "");
        machine.write("sys/kernel/debug/usb/devices", "");
        let found = machine.kernel().look().unwrap();
        let told: Vec<_> = found.devices.iter().map(|device| (&device.name[14..16], &device.heartbeat)).collect();
        let untold = |why: &str| Heartbeat::Untold(why.to_owned());
        assert_eq!(
            told,
            [
                ("3d", &Heartbeat::Beats),
                ("3f", &Heartbeat::Silent),
                ("b1", &untold("this kernel does not ask for it; 6.6 and later do")),
                ("da", &untold("its status is \"maybe\"")),
            ]
        );
        let text = found.to_string();
        assert!(text.contains("qat_c62x_0000:3d:00.0: it answers; asked 12 times, 3 without an answer\n"), "{text}");
        assert!(text.contains("qat_c62x_0000:3f:00.0: IT DOES NOT ANSWER; asked"), "{text}");
    }

    #[test]
    fn a_device_has_stopped_after_two_silent_heartbeats_and_is_back_after_one() {
        let mut pulse = Pulse::default();
        let untold = Heartbeat::Untold(String::new());
        for (heartbeat, turn) in [
            (&Heartbeat::Beats, None),
            (&Heartbeat::Silent, None),
            (&Heartbeat::Beats, None),
            (&Heartbeat::Silent, None),
            (&untold, None),
            (&Heartbeat::Silent, Some(Turn::Stopped)),
            (&Heartbeat::Silent, None),
            (&untold, None),
            (&Heartbeat::Beats, Some(Turn::Back)),
            (&Heartbeat::Beats, None),
        ] {
            assert_eq!(pulse.hear(heartbeat), turn, "{heartbeat:?} of {pulse:?}");
        }
    }

    #[tokio::test]
    async fn what_is_preferred_is_set_on_the_cards_own_drivers_once_and_read_back() {
        let machine = Machine::new();
        let kernel = machine.kernel();
        assert_eq!(kernel.prefer(KernelDevice::Prefer).await.unwrap(), ["qat_aes_cbc_hmac_sha256", "qat-rsa"]);
        assert_eq!(kernel.prefer(KernelDevice::Prefer).await.unwrap(), Vec::<String>::new());
        let found = kernel.look().unwrap();
        assert_eq!(found.before(&found.algorithms[1]), None);
        kernel.prefer(KernelDevice::Avoid).await.unwrap();
        let asked = machine.asked.lock().unwrap().clone();
        let all = |priority| ["qat_aes_cbc_hmac_sha256", "qat-rsa"].map(|driver| (driver.to_owned(), priority));
        assert_eq!(asked, [all(10_000), all(1)].concat());

        let deaf = QatKernel::at(machine.root.path().to_owned(), |_, _| Ok(()));
        let error = deaf.prefer(KernelDevice::Prefer).await.unwrap_err().to_string();
        assert!(error.starts_with("qat_aes_cbc_hmac_sha256 has the priority 1 after it was given 10000"), "{error}");
        let closed = QatKernel::at(machine.root.path().to_owned(), |_, _| Err(io::Error::other("modprobe it")));
        let error = closed.prefer(KernelDevice::Prefer).await.unwrap_err().to_string();
        assert_eq!(error, "qat_aes_cbc_hmac_sha256 cannot be given the priority 10000: modprobe it");
    }

    #[tokio::test]
    async fn a_card_may_be_reset_only_when_nobody_holds_it_any_more() {
        let machine = Machine::new();
        let kernel = machine.kernel();
        let brief = Duration::from_millis(1);
        let stays = kernel.retreat(async || Ok(()), brief).await.unwrap_err().to_string();
        assert!(
            stays.contains("echainiv(qat_aes_cbc_hmac_sha256) by 2, qat_aes_cbc_hmac_sha256 by 2; take down"),
            "{stays}"
        );
        assert_eq!(machine.asked.lock().unwrap().len(), 2, "nobody new gets onto it");
        let refused = kernel.retreat(async || Err("no peer answers".to_owned()), brief).await.unwrap_err();
        assert_eq!(refused.to_string(), "IPsec could not be given other keys: no peer answers");
        let rekey = async || {
            // Software's by then.
            assert!(kernel.look().unwrap().algorithms[1].priority == 1);
            machine.let_go();
            Ok(())
        };
        kernel.retreat(rekey, brief).await.unwrap();
    }

    #[tokio::test]
    async fn ipsec_is_rekeyed_on_software_when_a_device_stops_and_may_have_the_card_again_when_it_is_back() {
        let machine = Arc::new(Machine::new());
        let beat = |text: &str| machine.write("sys/kernel/debug/qat_c62x_0000:3d:00.0/heartbeat/status", text);
        beat("0\n");
        let config = Config {
            crypto: config::model::Crypto { kernel_device: Some(KernelDevice::Prefer) },
            ..crate::fixture::config()
        };
        let (sender, receiver) = watch::channel(Some(Arc::new(config)));
        let (kernel, troubles, rekeyed) = (machine.kernel(), Troubles::default(), Arc::<AtomicBool>::default());
        let rekey: Rekey = {
            let (machine, kernel, rekeyed) = (Arc::clone(&machine), kernel.clone(), Arc::clone(&rekeyed));
            Arc::new(move || {
                let priority = kernel.look().map(|found| found.algorithms[1].priority);
                assert_eq!(priority.unwrap(), 1, "keys that are made are software's");
                machine.let_go();
                rekeyed.store(true, Ordering::Release);
                Box::pin(async { Ok(()) })
            })
        };
        let brief = Duration::from_millis(5);
        let following = tokio::spawn(follow(kernel.clone(), receiver, troubles.clone(), brief, rekey));
        let until = async |what: &str, is: &dyn Fn() -> bool| {
            let began = Instant::now();
            while !is() {
                assert!(began.elapsed() < Duration::from_secs(20), "{what}: {:?}", troubles.told());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let priority = || kernel.look().map(|found| found.algorithms[1].priority).unwrap_or_default();
        until("it is preferred", &|| priority() == 10_000).await;
        assert!(!rekeyed.load(Ordering::Acquire), "it works");
        beat("-1\n");
        until("IPsec is re-keyed", &|| rekeyed.load(Ordering::Acquire)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(priority(), 1, "nobody new gets onto it");
        beat("0\n");
        until("it is preferred again", &|| priority() == 10_000).await;
        drop(sender);
        following.await.unwrap();
    }

    #[tokio::test]
    async fn the_config_is_followed_and_a_device_that_stops_is_told_of_until_it_is_back() {
        let machine = Machine::new();
        machine.let_go();
        let beat = |text: &str| machine.write("sys/kernel/debug/qat_c62x_0000:3d:00.0/heartbeat/status", text);
        beat("0\n");
        let with = |kernel_device| {
            Some(Arc::new(Config { crypto: config::model::Crypto { kernel_device }, ..crate::fixture::config() }))
        };
        let (sender, receiver) = watch::channel(with(None));
        let (kernel, troubles) = (machine.kernel(), Troubles::default());
        let following = tokio::spawn(follow(
            kernel.clone(),
            receiver,
            troubles.clone(),
            Duration::from_millis(5),
            Arc::new(|| Box::pin(async { Ok(()) })),
        ));
        let until = async |what: &str, is: &dyn Fn() -> bool| {
            let began = Instant::now();
            while !is() {
                assert!(began.elapsed() < Duration::from_secs(20), "{what}: {:?}", troubles.told());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let priority = || kernel.look().map(|found| found.algorithms[1].priority).unwrap_or_default();
        beat("-1\n");
        until("it has stopped", &|| troubles.told().0.iter().any(|told| told.contains("3d:00.0 does not answer")))
            .await;
        let device = || troubles.told().1.into_iter().find(|device| device.name.contains("3d:00.0")).unwrap();
        assert_eq!(device().beats, Some(false));
        assert_eq!(machine.asked.lock().unwrap().as_slice(), [], "nobody asked for an order");
        beat("0\n");
        until("it is back", &|| troubles.told().0.is_empty()).await;
        assert_eq!(device().beats, Some(true));
        sender.send_replace(with(Some(KernelDevice::Prefer)));
        until("it is preferred", &|| priority() == 10_000).await;

        kernel.retreat(async || Ok(()), Duration::ZERO).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(priority(), 1, "the config's wish waits");
        kernel.come_back();
        until("it is preferred again", &|| priority() == 10_000).await;
        machine.write("proc/crypto", "");
        until("it is missed", &|| troubles.told().0.iter().any(|told| told.contains("which has none"))).await;
        drop(sender);
        following.await.unwrap();
    }
}
