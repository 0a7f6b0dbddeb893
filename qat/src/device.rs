//! The device in user space: instances of the CPA, each with its breaker, and the two threads that serve them.
//!
//! `qat-poll` collects answers: callbacks only note which request they are for, and after a poll the thread reads the
//! results, wipes the slots and answers the tickets. `qat-watch` hears of restarts, tests instances before they are used
//! and has those reset that keep what they were given. Both end when the [`QatUser`] is dropped; what the device never
//! answered stays allocated then.
#![expect(unsafe_code, reason = "the calls into the library of the driver")]

mod information;
mod memory;
mod request;

use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use qat_sys::{
    CPA_FALSE, CPA_INSTANCE_EVENT_FATAL_ERROR, CPA_INSTANCE_EVENT_RESTARTED, CPA_INSTANCE_EVENT_RESTARTING,
    CPA_STATUS_RESOURCE, CPA_STATUS_RESTARTING, CPA_STATUS_RETRY, CPA_STATUS_SUCCESS, CpaInstanceEvent,
    CpaInstanceHandle, CpaStatus, Library,
};

use self::information::Information;
use self::memory::{Intermediate, Pool, Slot};
use self::request::{Request, Service};
use crate::breaker::{Breaker, Fault, Patience, State};
use crate::discovery::Discovery;
use crate::job::{Answer, Backend, Operation, Place, Reason, Refusal, Reply, Verdict, Work, ticket};
use crate::selftest::{self, Test};

/// Which library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Installed {
    /// The one of the driver that is installed.
    System,
    /// The file at this path, for its memory too: the simulator.
    At(PathBuf),
}

/// How the device is looked after.
#[derive(Debug, Clone)]
pub(crate) struct Care {
    pub(crate) patience: Patience,
    /// How long a test's answer is waited for.
    pub(crate) test_deadline: Duration,
    /// An answer that is out for so long does not come.
    pub(crate) stuck: Duration,
    /// The least time between two resets of one device.
    pub(crate) between_resets: Duration,
    /// Operations that failed their test are tested again after this.
    pub(crate) retest: Duration,
    pub(crate) tick: Duration,
}

/// The device of a C62x in user space.
#[derive(Debug)]
pub struct QatUser {
    shared: Arc<Shared>,
    poller: Option<JoinHandle<()>>,
    watcher: Option<JoinHandle<()>>,
}

/// An instance, for people.
#[derive(Debug, Clone)]
pub struct InstanceStatus {
    pub name: String,
    pub part: String,
    pub version: String,
    /// Which device it is of: instances of two may have one name.
    pub package: u16,
    pub node: u32,
    pub state: State,
    pub in_flight: usize,
    /// Every operation that the library has, and whether its last test passed.
    pub tests: BTreeMap<Operation, bool>,
    pub answered: u64,
    /// Answers that came after their caller had gone.
    pub late: u64,
    pub retries: u64,
    pub restarts: u64,
    /// Resets that were asked for.
    pub resets: u64,
}

#[derive(Debug)]
struct Shared {
    library: Arc<Library>,
    pool: Pool,
    care: Care,
    instances: Vec<Instance>,
    /// By slot: what the device has.
    flights: Vec<Mutex<Option<Flight>>>,
    /// By slot: what goes to the device as the request's tag. Never moves.
    tags: Box<[Tag]>,
    heard: Arc<Mutex<Vec<Heard>>>,
    events: Arc<Mutex<Vec<(usize, CpaInstanceEvent)>>>,
    turn: AtomicUsize,
    stopping: AtomicBool,
    ended: AtomicBool,
    poller: Mutex<Option<std::thread::Thread>>,
    tests: Vec<Test>,
}

#[derive(Debug)]
struct Instance {
    handle: Handle,
    service: Service,
    /// What it was started with, and keeps until it is stopped.
    _intermediate: Option<Intermediate>,
    information: Information,
    breaker: Mutex<Breaker>,
    tested: Mutex<Tested>,
    in_flight: AtomicUsize,
    answered: AtomicU64,
    late: AtomicU64,
    retries: AtomicU64,
    restarts: AtomicU64,
    resets: AtomicU64,
    last_reset: Mutex<Option<Instant>>,
    /// What goes to the library as the tag of its notifications. Never moves.
    notified: Box<Notified>,
}

#[derive(Debug, Default)]
struct Tested {
    passed: BTreeMap<Operation, bool>,
    at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Handle(CpaInstanceHandle);

// SAFETY: a handle is a name to the library, whose functions are thread-safe by their documentation.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// One request in the device's hands.
#[derive(Debug)]
struct Flight {
    slot: Slot,
    request: Request,
    reply: Reply,
    instance: usize,
    began: Instant,
}

#[derive(Debug)]
struct Tag {
    index: usize,
    heard: Arc<Mutex<Vec<Heard>>>,
}

#[derive(Debug)]
struct Heard {
    index: usize,
    status: CpaStatus,
    valid: bool,
}

#[derive(Debug)]
struct Notified {
    instance: usize,
    events: Arc<Mutex<Vec<(usize, CpaInstanceEvent)>>>,
}

impl QatUser {
    /// Opens the library, starts it in the name of `process` (a section of the driver's configuration) and all of its
    /// instances. Tells `discovery` how far it came.
    pub(crate) fn start(installed: &Installed, process: &str, care: Care, discovery: &mut Discovery) -> Option<Self> {
        let opened = match installed {
            Installed::System => Library::open(),
            Installed::At(path) => Library::open_at(path, path),
        };
        let library = discovery.step("library", opened, |library| {
            let version = library.version().map_or("of unknown version".to_owned(), |version| version.to_string());
            format!("{} {version}", library.path().display())
        })?;
        let started = start(&library, process);
        discovery.step("start", started, |()| format!("as {process}"))?;
        let library = Arc::new(library);
        let names = |found: &Vec<Found>| {
            found.iter().map(|found| found.information.name.as_str()).collect::<Vec<_>>().join(", ")
        };
        let mut found = discovery.step("instances", instances(&library), names)?;
        let compressing = discovery.step("compression", compressing(&library), names).unwrap_or_default();
        let compresses = !compressing.is_empty();
        found.extend(compressing);
        let node = found.first().map_or(0, |found| found.information.numa());
        let pool = Pool::new(Arc::clone(&library), node, compresses).ok_or("the driver gives none");
        let pool = discovery.step("pinned memory", pool, |pool| format!("{} buffers", pool.slots()))?;
        Some(Self::serve(library, pool, care, found))
    }

    fn serve(library: Arc<Library>, pool: Pool, care: Care, found: Vec<Found>) -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let events = Arc::new(Mutex::new(Vec::new()));
        let instance = |(instance, Found { handle, service, information, intermediate }): (usize, Found)| Instance {
            handle,
            service,
            _intermediate: intermediate,
            information,
            breaker: Mutex::new(Breaker::new(care.patience)),
            tested: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            answered: AtomicU64::new(0),
            late: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            last_reset: Mutex::new(None),
            notified: Box::new(Notified { instance, events: Arc::clone(&events) }),
        };
        let instances: Vec<_> = found.into_iter().enumerate().map(instance).collect();
        let tests = selftest::tests().into_iter().filter(|test| request::has(&library, test.operation)).collect();
        let shared = Arc::new(Shared {
            flights: (0..pool.slots()).map(|_| Mutex::new(None)).collect(),
            tags: (0..pool.slots()).map(|index| Tag { index, heard: Arc::clone(&heard) }).collect(),
            library,
            pool,
            care,
            instances,
            heard,
            events,
            turn: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            poller: Mutex::new(None),
            tests,
        });
        for instance in &shared.instances {
            let cpa = &shared.library.cpa;
            let subscribe = match instance.service {
                Service::Crypto => cpa.cpaCyInstanceSetNotificationCb.as_ref(),
                Service::Compression => cpa.cpaDcInstanceSetNotificationCb.as_ref(),
            };
            if let Ok(subscribe) = subscribe {
                let tag = (&raw const *instance.notified).cast_mut().cast();
                // SAFETY: the tag lives as long as the instance is started.
                let status = unsafe { subscribe(instance.handle.0, Some(notified), tag) };
                if status != CPA_STATUS_SUCCESS {
                    tracing::warn!(instance = %instance.information.name, status, "restarts will not be told of");
                }
            }
        }
        let thread = |name: &str, run: fn(&Shared)| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&shared)).ok()
        };
        let (poller, watcher) = (thread("qat-poll", Shared::poll), thread("qat-watch", Shared::watch));
        Self { shared, poller, watcher }
    }

    /// Waits until every instance was tested once, or for `patience`.
    pub(crate) fn wait_for_tests(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let untested = |instance: &Instance| lock(&instance.tested).at.is_none();
        while self.shared.instances.iter().any(untested) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn status(&self) -> Vec<InstanceStatus> {
        let status = |instance: &Instance| InstanceStatus {
            name: instance.information.name.clone(),
            part: instance.information.part.clone(),
            version: instance.information.version.clone(),
            package: instance.information.package,
            node: instance.information.node,
            state: lock(&instance.breaker).state(),
            in_flight: instance.in_flight.load(Ordering::Relaxed),
            tests: lock(&instance.tested).passed.clone(),
            answered: instance.answered.load(Ordering::Relaxed),
            late: instance.late.load(Ordering::Relaxed),
            retries: instance.retries.load(Ordering::Relaxed),
            restarts: instance.restarts.load(Ordering::Relaxed),
            resets: instance.resets.load(Ordering::Relaxed),
        };
        self.shared.instances.iter().map(status).collect()
    }
}

impl Backend for QatUser {
    fn name(&self) -> &'static str {
        "qat"
    }

    fn takes(&self, operation: Operation) -> bool {
        request::has(&self.shared.library, operation) && !self.shared.places(Service::of(operation)).is_empty()
    }

    /// Instances take turns; one whose ring is full passes it to the next.
    fn submit(&self, work: &Arc<Work>, mut reply: Reply) -> Result<Place, Refusal> {
        let shared = &self.shared;
        let operation = work.operation();
        if shared.stopping.load(Ordering::Acquire) {
            return Err(Refusal { reason: Reason::Stopping, reply });
        }
        if !self.takes(operation) || !request::fits(work) {
            return Err(Refusal { reason: Reason::NotSupported, reply });
        }
        let mut reason = Reason::NoInstance;
        let first = shared.turn.fetch_add(1, Ordering::Relaxed);
        let places = shared.places(Service::of(operation));
        for turn in 0..places.len() {
            let place = places.start + first.wrapping_add(turn) % places.len();
            let instance = &shared.instances[place];
            if !lock(&instance.breaker).admits() {
                continue;
            }
            if lock(&instance.tested).passed.get(&operation) != Some(&true) {
                reason = reason.max(Reason::Untested);
                continue;
            }
            match shared.submit_to(place, work, reply) {
                Ok(()) => return Ok(Place(place)),
                Err(refusal) => {
                    reply = refusal.reply;
                    reason = refusal.reason;
                }
            }
            if reason == Reason::NoMemory {
                break;
            }
        }
        Err(Refusal { reason, reply })
    }

    fn judge(&self, place: Place, verdict: Verdict, now: Instant) {
        let Some(instance) = self.shared.instances.get(place.0) else { return };
        let fault = match verdict {
            Verdict::Right => return lock(&instance.breaker).succeeded(),
            Verdict::Late => Fault::Late,
            Verdict::Failed => Fault::Failed,
            Verdict::Wrong => Fault::Wrong,
        };
        let mut breaker = lock(&instance.breaker);
        let before = breaker.admits();
        breaker.failed(fault, now);
        if before && !breaker.admits() {
            tracing::warn!(instance = %instance.information.name, ?fault, "out of use until its tests pass");
        }
    }

    fn in_flight(&self) -> usize {
        self.shared.instances.iter().map(|instance| instance.in_flight.load(Ordering::Relaxed)).sum()
    }
}

impl Drop for QatUser {
    /// Takes nothing more, lets the device finish, and gives back what it gave back.
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::Release);
        // First the one that submits tests.
        join(self.watcher.take());
        let until = Instant::now() + GRACE;
        while self.in_flight() > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        shared.ended.store(true, Ordering::Release);
        shared.wake_poller();
        join(self.poller.take());
        for instance in &shared.instances {
            let stop = match instance.service {
                Service::Crypto => shared.library.cpa.cpaCyStopInstance.as_ref(),
                Service::Compression => shared.library.cpa.cpaDcStopInstance.as_ref(),
            };
            if let Ok(stop) = stop {
                // SAFETY: the instance was started, and nothing is submitted to it any more.
                let status = unsafe { stop(instance.handle.0) };
                if status != CPA_STATUS_SUCCESS {
                    tracing::warn!(instance = %instance.information.name, status, "the instance did not stop");
                }
            }
        }
        // Stopping may have called back once more.
        shared.finish();
        if let Ok(stop) = shared.library.cpa.icp_sal_userStop.as_ref() {
            // SAFETY: all instances were stopped.
            let status = unsafe { stop() };
            if status != CPA_STATUS_SUCCESS {
                tracing::warn!(status, "the library did not stop");
            }
        }
        if self.in_flight() > 0 {
            // The device may yet write there and call back: tags, slots and the rest stay for good.
            std::mem::forget(Arc::clone(shared));
        }
    }
}

impl Shared {
    /// Those for crypto come first.
    fn places(&self, service: Service) -> Range<usize> {
        let crypto = self.instances.partition_point(|instance| instance.service == Service::Crypto);
        match service {
            Service::Crypto => 0..crypto,
            Service::Compression => crypto..self.instances.len(),
        }
    }

    fn submit_to(&self, place: usize, work: &Work, reply: Reply) -> Result<(), Refusal> {
        let instance = &self.instances[place];
        let Some(mut slot) = self.pool.take(request::room(work)) else {
            return Err(Refusal { reason: Reason::NoMemory, reply });
        };
        let handle = instance.handle.0;
        let Some(request) = Request::lay_out(work, &mut slot, &self.library, handle) else {
            self.pool.put_back(slot);
            return Err(Refusal { reason: Reason::Refused, reply });
        };
        let index = slot.index;
        // Before it is submitted: the answer may be quicker than this thread.
        *lock(&self.flights[index]) = Some(Flight { slot, request, reply, instance: place, began: Instant::now() });
        instance.in_flight.fetch_add(1, Ordering::AcqRel);
        let status = request.submit(&self.library, handle, (&raw const self.tags[index]).cast_mut().cast());
        if status == CPA_STATUS_SUCCESS {
            self.wake_poller();
            return Ok(());
        }
        instance.in_flight.fetch_sub(1, Ordering::AcqRel);
        let Some(flight) = lock(&self.flights[index]).take() else {
            // Refused and yet answered; the answer stands.
            return Ok(());
        };
        let reason = match status {
            CPA_STATUS_RETRY | CPA_STATUS_RESOURCE => {
                instance.retries.fetch_add(1, Ordering::Relaxed);
                Reason::Busy
            }
            CPA_STATUS_RESTARTING => Reason::NoInstance,
            _ => Reason::Refused,
        };
        let Flight { slot, request, reply, .. } = flight;
        self.close(slot, request, handle);
        Err(Refusal { reason, reply })
    }

    /// The slot goes back, unless the library holds on to a session in it.
    fn close(&self, slot: Slot, request: Request, handle: CpaInstanceHandle) {
        if request.close(&self.library, handle) {
            self.pool.put_back(slot);
        } else {
            tracing::warn!("the library does not let go of a session; its buffer is lost");
        }
    }

    fn wake_poller(&self) {
        if let Some(thread) = lock(&self.poller).as_ref() {
            thread.unpark();
        }
    }

    fn poll(&self) {
        *lock(&self.poller) = Some(std::thread::current());
        let mut idle = 0_u32;
        while !self.ended.load(Ordering::Acquire) {
            let mut waiting = false;
            for instance in &self.instances {
                if instance.in_flight.load(Ordering::Acquire) > 0 {
                    waiting = true;
                    let poll = match instance.service {
                        Service::Crypto => self.library.cpa.icp_sal_CyPollInstance.as_ref(),
                        Service::Compression => self.library.cpa.icp_sal_DcPollInstance.as_ref(),
                    };
                    let Ok(poll) = poll else { continue };
                    // SAFETY: the instance was started; answers to everything that is there are wanted.
                    let status = unsafe { poll(instance.handle.0, 0) };
                    if status != CPA_STATUS_SUCCESS && status != CPA_STATUS_RETRY {
                        tracing::debug!(instance = %instance.information.name, status, "polling failed");
                    }
                }
            }
            let answered = self.finish();
            idle = if answered > 0 { 0 } else { idle.saturating_add(1) };
            if !waiting {
                std::thread::park_timeout(Duration::from_millis(100));
            } else if idle > EAGER {
                // What is in flight now may be in flight for ever.
                std::thread::park_timeout(if idle > PATIENT { Duration::from_millis(1) } else { BETWEEN_POLLS });
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Answers all tickets whose requests were heard of. How many those are.
    fn finish(&self) -> usize {
        let heard = std::mem::take(&mut *lock(&self.heard));
        let answered = heard.len();
        for Heard { index, status, valid } in heard {
            let Some(flight) = lock(&self.flights[index]).take() else {
                tracing::warn!("an answer to a request that is not in flight");
                continue;
            };
            let Flight { slot, request, reply, instance, .. } = flight;
            let instance = &self.instances[instance];
            let answer = request.answer(&slot, status, valid);
            self.close(slot, request, instance.handle.0);
            instance.in_flight.fetch_sub(1, Ordering::AcqRel);
            instance.answered.fetch_add(1, Ordering::Relaxed);
            if !reply.answer(answer) {
                instance.late.fetch_add(1, Ordering::Relaxed);
            }
        }
        answered
    }

    fn watch(&self) {
        while !self.stopping.load(Ordering::Acquire) {
            if let Ok(poll) = self.library.cpa.icp_sal_poll_device_events.as_ref() {
                // SAFETY: takes nothing; calls back from this thread.
                let status = unsafe { poll() };
                if status != CPA_STATUS_SUCCESS && status != CPA_STATUS_RETRY {
                    tracing::debug!(status, "the events of the device cannot be had");
                }
            }
            self.hear_events();
            for place in 0..self.instances.len() {
                self.test(place);
                self.free_stuck(place);
            }
            std::thread::sleep(self.care.tick);
        }
    }

    fn hear_events(&self) {
        let events = std::mem::take(&mut *lock(&self.events));
        for (place, event) in events {
            let instance = &self.instances[place];
            match event {
                CPA_INSTANCE_EVENT_RESTARTING | CPA_INSTANCE_EVENT_FATAL_ERROR => {
                    instance.restarts.fetch_add(1, Ordering::Relaxed);
                    lock(&instance.breaker).restarting(Instant::now());
                    tracing::warn!(instance = %instance.information.name, event, "restarting");
                }
                CPA_INSTANCE_EVENT_RESTARTED => {
                    lock(&instance.breaker).restarted();
                    tracing::info!(instance = %instance.information.name, "restarted; its tests come first");
                }
                _ => tracing::debug!(instance = %instance.information.name, event, "an unknown event"),
            }
        }
    }

    /// Tests an instance that is due: all of its operations, or those that failed the last time.
    fn test(&self, place: usize) {
        let instance = &self.instances[place];
        let now = Instant::now();
        let whole = lock(&instance.breaker).wants_test(now);
        let again = {
            let tested = lock(&instance.tested);
            tested.passed.values().any(|passed| !passed)
                && tested.at.is_some_and(|at| now.saturating_duration_since(at) >= self.care.retest)
        };
        if !whole && !again {
            return;
        }
        let known = lock(&instance.tested).passed.clone();
        let mut results = BTreeMap::new();
        for test in self.tests_of(instance) {
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            if !whole && known.get(&test.operation) == Some(&true) {
                continue;
            }
            let Some(passed) = self.test_one(place, test) else {
                // Silence: there is no use in waiting for the rest of them.
                results.clear();
                break;
            };
            let entry = results.entry(test.operation).or_insert(true);
            *entry &= passed;
        }
        let any = results.values().any(|passed| *passed);
        {
            let mut tested = lock(&instance.tested);
            if whole {
                tested.passed = self.tests_of(instance).map(|test| (test.operation, false)).collect();
            }
            tested.passed.extend(results);
        }
        if whole {
            // Unless it began to restart meanwhile.
            let mut breaker = lock(&instance.breaker);
            if breaker.wants_test(Instant::now()) {
                breaker.tested(any, Instant::now());
            }
            tracing::info!(instance = %instance.information.name, passed = any, "tested");
        }
        // Last: whoever waits for the test finds the breaker as the test left it.
        lock(&instance.tested).at = Some(Instant::now());
    }

    fn tests_of(&self, instance: &Instance) -> impl Iterator<Item = &Test> {
        let service = instance.service;
        self.tests.iter().filter(move |test| Service::of(test.operation) == service)
    }

    /// None where no answer came.
    fn test_one(&self, place: usize, test: &Test) -> Option<bool> {
        for _ in 0..TRIES {
            let (ticket, reply) = ticket();
            match self.submit_to(place, &test.work, reply) {
                Ok(()) => {
                    return match ticket.wait(self.care.test_deadline)? {
                        Answer::Done(output) => Some(test.passes(&output)),
                        Answer::Invalid | Answer::Failed(_) => Some(false),
                    };
                }
                Err(Refusal { reason: Reason::Busy, .. }) => std::thread::sleep(BETWEEN_POLLS),
                Err(Refusal { reason: Reason::Refused | Reason::NotSupported, .. }) => return Some(false),
                Err(_) => return None,
            }
        }
        Some(false)
    }

    /// Has the device reset where answers do not come: many of them, or any of an instance that is out of use. A reset
    /// is what gives the buffers back.
    fn free_stuck(&self, place: usize) {
        let instance = &self.instances[place];
        if instance.in_flight.load(Ordering::Relaxed) == 0 {
            return;
        }
        let now = Instant::now();
        let is_stuck = |flight: &Mutex<Option<Flight>>| {
            lock(flight).as_ref().is_some_and(|flight| {
                flight.instance == place && now.saturating_duration_since(flight.began) >= self.care.stuck
            })
        };
        let stuck = self.flights.iter().filter(|flight| is_stuck(flight)).count();
        let out_of_use = match lock(&instance.breaker).state() {
            State::Open { .. } => true,
            State::Untested | State::Closed { .. } | State::Away { .. } => false,
        };
        if stuck < MANY && !(out_of_use && stuck > 0) {
            return;
        }
        let mut last = lock(&instance.last_reset);
        if last.is_some_and(|last| now.saturating_duration_since(last) < self.care.between_resets) {
            return;
        }
        *last = Some(now);
        drop(last);
        let Ok(reset) = self.library.cpa.icp_sal_reset_device.as_ref() else { return };
        // SAFETY: takes a number. All of the device's instances fail what they have in flight.
        let status = unsafe { reset(u32::from(instance.information.package)) };
        instance.resets.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(instance = %instance.information.name, stuck, status, "reset: answers do not come");
    }
}

fn join(thread: Option<JoinHandle<()>>) {
    if thread.is_some_and(|thread| thread.join().is_err()) {
        tracing::error!("a thread of the device ended in a panic");
    }
}

/// Notes which request was answered; all else is done after the poll.
///
/// # Safety
/// `tag` is one that was given with a request.
unsafe fn heard(tag: *mut c_void, status: CpaStatus, valid: bool) {
    // SAFETY: tags live as long as anything may be in flight, and are never changed.
    let Some(tag) = (unsafe { tag.cast::<Tag>().as_ref() }) else { return };
    lock(&tag.heard).push(Heard { index: tag.index, status, valid });
}

unsafe extern "C" fn notified(_handle: CpaInstanceHandle, tag: *mut c_void, event: CpaInstanceEvent) {
    // SAFETY: the tag is the one that was subscribed with, and lives as long as the instance is started.
    let Some(tag) = (unsafe { tag.cast::<Notified>().as_ref() }) else { return };
    lock(&tag.events).push((tag.instance, event));
}

fn start(library: &Library, process: &str) -> Result<(), String> {
    if let Ok(available) = library.cpa.icp_sal_userIsQatAvailable.as_ref() {
        // SAFETY: takes nothing and may be called at any time.
        if unsafe { available() } == CPA_FALSE {
            return Err("no device: the library finds none that it drives (Debian's drives no C62x)".to_owned());
        }
    }
    let name = CString::new(process).map_err(|_nul| "the name of the process has a NUL in it".to_owned())?;
    let status = if let Ok(start) = library.cpa.icp_sal_userStart.as_ref() {
        // SAFETY: the name ends with NUL and outlives the call.
        unsafe { start(name.as_ptr()) }
    } else {
        return Err("the library has no icp_sal_userStart".to_owned());
    };
    if status != CPA_STATUS_SUCCESS {
        return Err(format!(
            "icp_sal_userStart answers {status}: is there a section {process} in the driver's configuration with a process to spare (NumProcesses), and its service running?"
        ));
    }
    Ok(())
}

/// An instance that was started.
#[derive(Debug)]
struct Found {
    handle: Handle,
    service: Service,
    information: Information,
    intermediate: Option<Intermediate>,
}

/// Finds and starts every instance for crypto; those that do not start are left out.
fn instances(library: &Library) -> Result<Vec<Found>, String> {
    let cpa = &library.cpa;
    let lacking = |name: &str| format!("the library has no {name}");
    let count = cpa.cpaCyGetNumInstances.as_ref().map_err(|_missing| lacking("cpaCyGetNumInstances"))?;
    let list = cpa.cpaCyGetInstances.as_ref().map_err(|_missing| lacking("cpaCyGetInstances"))?;
    let begin = cpa.cpaCyStartInstance.as_ref().map_err(|_missing| lacking("cpaCyStartInstance"))?;
    cpa.icp_sal_CyPollInstance.as_ref().map_err(|_missing| lacking("icp_sal_CyPollInstance"))?;
    let mut number = 0;
    // SAFETY: writes one number where it is told to.
    let status = unsafe { count(&raw mut number) };
    if status != CPA_STATUS_SUCCESS || number == 0 {
        return Err(format!(
            "no instance (cpaCyGetNumInstances answers {status}): the driver's configuration has none for this process"
        ));
    }
    let mut handles = vec![std::ptr::null_mut(); usize::from(number)];
    // SAFETY: the array has room for as many as are asked for.
    let status = unsafe { list(number, handles.as_mut_ptr()) };
    if status != CPA_STATUS_SUCCESS {
        return Err(format!("cpaCyGetInstances answers {status}"));
    }
    let mut started = Vec::new();
    let mut failed = Vec::new();
    for handle in handles {
        let information = Information::of(library.cpa.cpaCyInstanceGetInfo2.as_ref().ok(), handle);
        if let (Ok(set), Ok(translate)) =
            (cpa.cpaCySetAddressTranslation.as_ref(), library.usdm.qaeVirtToPhysNUMA.as_ref())
        {
            // SAFETY: the function is the memory driver's own, made for this.
            let status = unsafe { set(handle, Some(*translate)) };
            if status != CPA_STATUS_SUCCESS {
                failed.push(format!("{}: cpaCySetAddressTranslation answers {status}", information.name));
                continue;
            }
        }
        // SAFETY: the handle is one that the library gave.
        let status = unsafe { begin(handle) };
        if status == CPA_STATUS_SUCCESS {
            started.push(Found { handle: Handle(handle), service: Service::Crypto, information, intermediate: None });
        } else {
            failed.push(format!("{}: cpaCyStartInstance answers {status}", information.name));
        }
    }
    if started.is_empty() { Err(failed.join("; ")) } else { Ok(started) }
}

/// The same for those that compress, where the library is one whose structures are known.
fn compressing(library: &Arc<Library>) -> Result<Vec<Found>, String> {
    let cpa = &library.cpa;
    if !library.abi().compression {
        let version = library.version().map_or("unknown".to_owned(), |version| version.to_string());
        return Err(format!("of version {version} the structures are not known, so the CPU does that"));
    }
    let lacking = |name: &str| format!("the library has no {name}");
    let count = cpa.cpaDcGetNumInstances.as_ref().map_err(|_missing| lacking("cpaDcGetNumInstances"))?;
    let list = cpa.cpaDcGetInstances.as_ref().map_err(|_missing| lacking("cpaDcGetInstances"))?;
    cpa.icp_sal_DcPollInstance.as_ref().map_err(|_missing| lacking("icp_sal_DcPollInstance"))?;
    let mut number = 0;
    // SAFETY: writes one number where it is told to.
    let status = unsafe { count(&raw mut number) };
    if status != CPA_STATUS_SUCCESS || number == 0 {
        return Err(format!("no instance (cpaDcGetNumInstances answers {status})"));
    }
    let mut handles = vec![std::ptr::null_mut(); usize::from(number)];
    // SAFETY: the array has room for as many as are asked for.
    let status = unsafe { list(number, handles.as_mut_ptr()) };
    if status != CPA_STATUS_SUCCESS {
        return Err(format!("cpaDcGetInstances answers {status}"));
    }
    let started: Vec<_> = handles.into_iter().map(|handle| compressing_by(library, handle)).collect();
    if started.iter().all(Result::is_err) {
        return Err(started.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("; "));
    }
    Ok(started.into_iter().flatten().collect())
}

fn compressing_by(library: &Arc<Library>, handle: CpaInstanceHandle) -> Result<Found, String> {
    let cpa = &library.cpa;
    let information = Information::of(cpa.cpaDcInstanceGetInfo2.as_ref().ok(), handle);
    let failed = |what: &str, status: CpaStatus| format!("{}: {what} answers {status}", information.name);
    if let (Ok(set), Ok(translate)) = (cpa.cpaDcSetAddressTranslation.as_ref(), library.usdm.qaeVirtToPhysNUMA.as_ref())
    {
        // SAFETY: the function is the memory driver's own, made for this.
        let status = unsafe { set(handle, Some(*translate)) };
        if status != CPA_STATUS_SUCCESS {
            return Err(failed("cpaDcSetAddressTranslation", status));
        }
    }
    let (mut number, mut metadata) = (0, 0);
    if let Ok(ask) = cpa.cpaDcGetNumIntermediateBuffers.as_ref() {
        // SAFETY: writes one number where it is told to.
        let status = unsafe { ask(handle, &raw mut number) };
        if status != CPA_STATUS_SUCCESS {
            return Err(failed("cpaDcGetNumIntermediateBuffers", status));
        }
    }
    if let Ok(ask) = cpa.cpaDcBufferListGetMetaSize.as_ref() {
        // SAFETY: writes one number where it is told to.
        let status = unsafe { ask(handle, 1, &raw mut metadata) };
        if status != CPA_STATUS_SUCCESS {
            return Err(failed("cpaDcBufferListGetMetaSize", status));
        }
    }
    let mut intermediate = Intermediate::new(library, information.numa(), number, metadata)
        .ok_or_else(|| format!("{}: there is no pinned memory for its buffers", information.name))?;
    let Ok(begin) = cpa.cpaDcStartInstance.as_ref() else {
        return Err("the library has no cpaDcStartInstance".to_owned());
    };
    // SAFETY: the handle is one that the library gave; the lists live as long as the instance is started.
    let status = unsafe { begin(handle, number, intermediate.lists.as_mut_ptr()) };
    if status != CPA_STATUS_SUCCESS {
        return Err(failed("cpaDcStartInstance", status));
    }
    Ok(Found { handle: Handle(handle), service: Service::Compression, information, intermediate: Some(intermediate) })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a device may take to finish when the engine stops.
const GRACE: Duration = Duration::from_secs(1);
/// Polls without an answer, before the thread sleeps between them.
const EAGER: u32 = 16;
const BETWEEN_POLLS: Duration = Duration::from_micros(25);
/// Polls without an answer, before it sleeps for long: about a tenth of a second.
const PATIENT: u32 = 2_000;
/// Answers that do not come, for which an instance in use is reset.
const MANY: usize = 16;
/// How often a test is submitted to a ring that is full.
const TRIES: usize = 200;
