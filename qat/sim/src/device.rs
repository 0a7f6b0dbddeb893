//! The rings, the thread behind each, and what goes wrong with them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use qat_sys::{
    CPA_DC_INVALID_CODE, CPA_DC_OK, CPA_FALSE, CPA_INSTANCE_EVENT_RESTARTED, CPA_INSTANCE_EVENT_RESTARTING,
    CPA_STATUS_FAIL, CPA_STATUS_RESTARTING, CPA_STATUS_RETRY, CPA_STATUS_SUCCESS, CPA_TRUE, CpaBufferList,
    CpaCyEcPointMultiplyCbFunc, CpaCyEcdsaSignRSCbFunc, CpaCyGenFlatBufCbFunc, CpaCyInstanceNotificationCbFunc,
    CpaCySymCbFunc, CpaDcCallbackFn, CpaDcRqResults, CpaFlatBuffer, CpaInstanceEvent, CpaStatus,
};

use crate::control::{Count, Fault};
use crate::maths::{self, Algorithm, Session};
use crate::memory::{Pinned, Region, load, lock};

/// Of either service. What has the same number is of one device, and is reset with it.
pub(crate) const INSTANCES: usize = 3;
pub(crate) const DEPTH: usize = 64;

pub(crate) fn get() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(Device::default)
}

#[derive(Debug, Default)]
pub(crate) struct Device {
    pub(crate) pinned: Pinned,
    pub(crate) sessions: Mutex<HashMap<usize, Session>>,
    /// Those of compression, with whom to tell.
    pub(crate) streams: Mutex<HashMap<usize, Stream>>,
    /// Those for crypto first, then those that compress.
    instances: [Instance; 2 * INSTANCES],
    /// What the device owns, by request.
    owned: Mutex<BTreeMap<u64, Owned>>,
    faults: [AtomicU64; 9],
    counts: [AtomicU64; 16],
    dice: AtomicU64,
    ids: AtomicU64,
    started: OnceLock<()>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream {
    pub(crate) callback: CpaDcCallbackFn,
    pub(crate) compresses: bool,
}

#[derive(Debug, Default)]
struct Instance {
    ring: Mutex<Ring>,
    work: Condvar,
}

#[derive(Debug, Default)]
struct Ring {
    waiting: VecDeque<Request>,
    /// Never to be answered, short of a reset.
    lost: Vec<Request>,
    done: VecDeque<Done>,
    in_flight: usize,
    /// Grows with each reset: what was begun before one fails.
    epoch: u64,
    restarting: Option<Instant>,
    /// When a restart that is none is said to be over.
    announced: Option<Instant>,
    events: VecDeque<CpaInstanceEvent>,
    notify: Option<(CpaCyInstanceNotificationCbFunc, usize)>,
}

#[derive(Debug)]
struct Owned {
    inputs: Vec<Region>,
    outputs: Vec<Region>,
    session: Option<usize>,
}

/// What an entry point hands in.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) call: Call,
    pub(crate) work: Work,
    pub(crate) inputs: Vec<Region>,
    pub(crate) outputs: Vec<Region>,
    /// Where no pinning is asked: structures of the API itself.
    pub(crate) structures: Vec<Region>,
}

#[derive(Debug)]
struct Request {
    id: u64,
    submission: Submission,
    /// Of its buffers, and of its structures.
    sums: (u64, u64),
    due: Instant,
    epoch: u64,
}

#[derive(Debug)]
struct Done {
    request: Request,
    status: CpaStatus,
    /// Whether there is a result: a point, a signature, a tag that is right.
    valid: bool,
    /// Bytes of the first output.
    produced: usize,
}

/// Whom to tell; pointers of the caller's, to be handed back.
#[derive(Debug)]
pub(crate) enum Call {
    Flat { callback: CpaCyGenFlatBufCbFunc, tag: usize, op: usize, out: usize },
    Sign { callback: CpaCyEcdsaSignRSCbFunc, tag: usize, op: usize, r: usize, s: usize },
    Point { callback: CpaCyEcPointMultiplyCbFunc, tag: usize, op: usize, x: usize, y: usize },
    Symmetric { callback: CpaCySymCbFunc, tag: usize, op: usize, to: usize },
    Stream { callback: CpaDcCallbackFn, tag: usize, results: usize },
}

#[derive(Debug)]
pub(crate) enum Work {
    RsaCrt {
        input: Region,
        key: [Region; 5],
    },
    ModExp {
        base: Region,
        exponent: Region,
        modulus: Region,
    },
    Ecdsa {
        prime: Region,
        nonce: Region,
        digest: Region,
        key: Region,
    },
    Multiply {
        prime: Region,
        scalar: Region,
        x: Region,
        y: Region,
    },
    X25519 {
        scalar: Region,
        x: Region,
    },
    Symmetric {
        session: usize,
        keys: Session,
        iv: Region,
        additional: Region,
        text: Region,
        hashed: Region,
        tag: Region,
    },
    Deflate {
        session: usize,
        text: Region,
        last: bool,
    },
    Inflate {
        session: usize,
        text: Region,
    },
}

impl Work {
    fn session(&self) -> Option<usize> {
        match *self {
            Self::Symmetric { session, .. } | Self::Deflate { session, .. } | Self::Inflate { session, .. } => {
                Some(session)
            }
            Self::RsaCrt { .. }
            | Self::ModExp { .. }
            | Self::Ecdsa { .. }
            | Self::Multiply { .. }
            | Self::X25519 { .. } => None,
        }
    }

    fn is_of_a_stream(&self) -> bool {
        matches!(self, Self::Deflate { .. } | Self::Inflate { .. })
    }
}

impl Device {
    /// One thread per instance, for as long as the process lives.
    pub(crate) fn start(&'static self) {
        self.started.get_or_init(|| {
            for index in 0..2 * INSTANCES {
                std::thread::spawn(move || self.serve(index));
            }
        });
    }

    pub(crate) fn set(&self, fault: u32, value: u64) {
        if let Some(place) = self.faults.get(fault as usize) {
            place.store(value, Ordering::Relaxed);
        }
        for instance in &self.instances {
            instance.work.notify_all();
        }
    }

    pub(crate) fn count(&self, count: u32) -> u64 {
        if count == Count::InFlight as u32 {
            return lock(&self.owned).len() as u64;
        }
        if count == Count::Pinned as u32 {
            return self.pinned.bytes() as u64;
        }
        if count == Count::Sessions as u32 {
            return (lock(&self.sessions).len() + lock(&self.streams).len()) as u64;
        }
        self.counts.get(count as usize).map_or(0, |n| n.load(Ordering::Relaxed))
    }

    fn fault(&self, fault: Fault) -> u64 {
        self.faults[fault as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn tally(&self, count: Count) {
        self.counts[count as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A number of splitmix64's.
    fn roll(&self) -> u64 {
        let mut z = self.dice.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn strikes(&self, fault: Fault) -> bool {
        self.roll() % 1000 < self.fault(fault)
    }

    fn ring(&self, index: usize) -> MutexGuard<'_, Ring> {
        lock(&self.instances[index].ring)
    }

    pub(crate) fn notify(&self, index: usize, callback: CpaCyInstanceNotificationCbFunc, tag: usize) {
        self.ring(index).notify = Some((callback, tag));
    }

    pub(crate) fn submit(&self, index: usize, submission: Submission) -> CpaStatus {
        let mut ring = self.ring(index);
        if ring.restarting.is_some() {
            return CPA_STATUS_RESTARTING;
        }
        if ring.in_flight >= DEPTH || self.strikes(Fault::Retry) {
            self.tally(Count::Retried);
            return CPA_STATUS_RETRY;
        }
        self.tally(Count::Requests);
        for region in submission.inputs.iter().chain(&submission.outputs) {
            if region.len > 0 && !self.pinned.has(*region) {
                self.tally(Count::NotPinned);
            }
        }
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        {
            let mut owned = lock(&self.owned);
            let clash = owned.values().any(|other| {
                let writes =
                    |ours: &[Region], theirs: &[Region]| ours.iter().any(|a| theirs.iter().any(|b| a.overlaps(*b)));
                writes(&submission.outputs, &other.outputs)
                    || writes(&submission.outputs, &other.inputs)
                    || writes(&submission.inputs, &other.outputs)
            });
            if clash {
                self.tally(Count::Shared);
            }
            let session = submission.work.session();
            let inputs = submission.inputs.iter().chain(&submission.structures).copied().collect();
            owned.insert(id, Owned { inputs, outputs: submission.outputs.clone(), session });
        }
        let jitter = self.fault(Fault::Jitter);
        let latency = self.fault(Fault::Latency) + if jitter > 0 { self.roll() % jitter } else { 0 };
        let due = Instant::now() + Duration::from_micros(latency);
        let sums = (sum(submission.buffers()), sum(&submission.structures));
        let request = Request { id, submission, sums, due, epoch: ring.epoch };
        ring.in_flight += 1;
        if self.strikes(Fault::Drop) {
            self.tally(Count::Dropped);
            ring.lost.push(request);
        } else {
            ring.waiting.push_back(request);
            self.instances[index].work.notify_all();
        }
        CPA_STATUS_SUCCESS
    }

    fn serve(&self, index: usize) {
        let instance = &self.instances[index];
        let mut ring = lock(&instance.ring);
        loop {
            let hung = self.fault(Fault::Hang) & (1 << (index % INSTANCES)) != 0;
            let now = Instant::now();
            let wait = match ring.waiting.front() {
                Some(request) if !hung && request.due <= now => Duration::ZERO,
                Some(request) if !hung => request.due - now,
                Some(_) | None => Duration::from_millis(50),
            };
            if !wait.is_zero() {
                ring = instance.work.wait_timeout(ring, wait).unwrap_or_else(std::sync::PoisonError::into_inner).0;
                continue;
            }
            let Some(request) = ring.waiting.pop_front() else { continue };
            drop(ring);
            let (status, valid, produced) = self.work(index, &request);
            ring = lock(&instance.ring);
            let status = if request.epoch == ring.epoch { status } else { CPA_STATUS_FAIL };
            ring.done.push_back(Done { request, status, valid, produced });
        }
    }

    fn work(&self, index: usize, request: &Request) -> (CpaStatus, bool, usize) {
        if sum(request.submission.buffers()) != request.sums.0 {
            self.tally(Count::Touched);
        }
        self.look_at_structures(request);
        if self.strikes(Fault::Fail) {
            self.tally(Count::Failed);
            return (CPA_STATUS_FAIL, false, 0);
        }
        let Ok(result) = compute(&request.submission.work) else { return (CPA_STATUS_FAIL, false, 0) };
        let outputs = &request.submission.outputs;
        let is_of_a_stream = request.submission.work.is_of_a_stream();
        let result = result.filter(|result| {
            let fits = || result.iter().zip(outputs).all(|(bytes, region)| bytes.len() <= region.len);
            !is_of_a_stream || fits()
        });
        let valid = result.is_some();
        let mut produced = 0;
        for (region, mut bytes) in outputs.iter().zip(result.into_iter().flatten()) {
            let mut region = *region;
            if is_of_a_stream {
                (region.len, produced) = (bytes.len(), bytes.len());
            }
            // The whole buffer is written: zeros before a number that is shorter.
            while bytes.len() < region.len {
                bytes.insert(0, 0);
            }
            // SAFETY: the region is the caller's until it is called back, and pinned memory is never unmapped.
            unsafe { region.write(&bytes) };
        }
        let is_x25519 = matches!(request.submission.work, Work::X25519 { .. });
        let wrong = is_x25519 && self.fault(Fault::WrongX25519) & (1 << index) != 0;
        let strikes = || wrong || self.strikes(Fault::Corrupt);
        let first =
            outputs.first().map(|region| if is_of_a_stream { Region { len: produced, ..*region } } else { *region });
        if let Some(region) = first.filter(|region| valid && region.len > 0 && strikes()) {
            self.tally(Count::Corrupted);
            // SAFETY: as above.
            let mut bytes = unsafe { region.read() };
            let place = usize::try_from(self.roll() >> 1).unwrap_or_default() % bytes.len();
            bytes[place] ^= 1 << (self.roll() % 8);
            // SAFETY: as above.
            unsafe { region.write(&bytes) };
        }
        (CPA_STATUS_SUCCESS, valid, produced)
    }

    /// Calls back for up to `quota` answers, all of them for zero.
    pub(crate) fn poll(&self, index: usize, quota: usize) -> CpaStatus {
        let mut answered = 0;
        while quota == 0 || answered < quota {
            let Some(done) = self.ring(index).done.pop_front() else { break };
            lock(&self.owned).remove(&done.request.id);
            self.ring(index).in_flight -= 1;
            self.tally(Count::Answers);
            answered += 1;
            call(&done);
        }
        if answered > 0 { CPA_STATUS_SUCCESS } else { CPA_STATUS_RETRY }
    }

    /// Everything in flight fails, and nothing is taken for a while.
    pub(crate) fn reset(&self, index: usize) {
        if index >= INSTANCES {
            return;
        }
        self.tally(Count::Resets);
        self.faults[Fault::Hang as usize].fetch_and(!(1 << index), Ordering::Relaxed);
        for index in [index, index + INSTANCES] {
            self.reset_ring(index);
        }
    }

    fn reset_ring(&self, index: usize) {
        let mut ring = self.ring(index);
        ring.epoch += 1;
        let lost = std::mem::take(&mut ring.lost);
        let waiting = std::mem::take(&mut ring.waiting);
        for request in lost.into_iter().chain(waiting) {
            ring.done.push_back(Done { request, status: CPA_STATUS_FAIL, valid: false, produced: 0 });
        }
        if ring.restarting.is_none() {
            ring.events.push_back(CPA_INSTANCE_EVENT_RESTARTING);
        }
        ring.restarting = Some(Instant::now() + Duration::from_millis(self.fault(Fault::Restart)));
    }

    /// Says that it restarts, and does not.
    pub(crate) fn announce(&self, index: usize) {
        if index >= INSTANCES {
            return;
        }
        for index in [index, index + INSTANCES] {
            let mut ring = self.ring(index);
            if ring.restarting.is_none() && ring.announced.is_none() {
                ring.events.push_back(CPA_INSTANCE_EVENT_RESTARTING);
                ring.announced = Some(Instant::now() + Duration::from_millis(self.fault(Fault::Restart)));
            }
        }
    }

    /// Tells the caller of resets, from its own thread.
    pub(crate) fn tell_events(&self) {
        for index in 0..2 * INSTANCES {
            loop {
                let (event, notify) = {
                    let mut ring = self.ring(index);
                    let until = ring.restarting.or(ring.announced);
                    if ring.events.is_empty() && until.is_some_and(|until| until <= Instant::now()) {
                        (ring.restarting, ring.announced) = (None, None);
                        ring.events.push_back(CPA_INSTANCE_EVENT_RESTARTED);
                    }
                    let Some(event) = ring.events.pop_front() else { break };
                    (event, ring.notify)
                };
                if let Some((Some(callback), tag)) = notify {
                    // SAFETY: the caller registered this function for this tag.
                    unsafe { callback(handle(index), tag as *mut c_void, event) };
                }
            }
        }
    }

    pub(crate) fn free(&self, at: usize, zeroed_by_library: bool) {
        let Some(region) = self.pinned.take_back(at) else {
            self.tally(Count::Freed);
            return;
        };
        let in_flight = lock(&self.owned).values().any(|owned| {
            owned.inputs.iter().chain(&owned.outputs).any(|other| other.len > 0 && other.overlaps(region))
        });
        if in_flight {
            // Kept as it is, for the device to write to.
            self.tally(Count::Freed);
            return;
        }
        // SAFETY: nobody uses memory that was freed, and it stays mapped.
        let bytes = unsafe { region.read() };
        if !zeroed_by_library && bytes.iter().any(|byte| *byte != 0) {
            self.tally(Count::NotZeroed);
        }
        // SAFETY: as above.
        unsafe { region.write(&vec![0; region.len]) };
        self.pinned.keep(region);
    }

    /// Whether it went: not under its requests.
    pub(crate) fn remove_session(&self, session: usize) -> bool {
        if self.session_in_use(session) {
            self.tally(Count::SessionInUse);
            return false;
        }
        lock(&self.sessions).remove(&session);
        lock(&self.streams).remove(&session);
        true
    }

    pub(crate) fn session_in_use(&self, session: usize) -> bool {
        lock(&self.owned).values().any(|owned| owned.session == Some(session))
    }
}

pub(crate) fn handle(index: usize) -> *mut c_void {
    (index + 1) as *mut c_void
}

pub(crate) fn index(handle: *mut c_void) -> Option<usize> {
    (handle as usize).checked_sub(1).filter(|index| *index < 2 * INSTANCES)
}

impl Submission {
    /// Outputs count too, until the device writes them.
    fn buffers(&self) -> impl Iterator<Item = &Region> {
        self.inputs.iter().chain(&self.outputs)
    }
}

impl Device {
    /// By itself, because structures of C have padding, of which valgrind says that nobody wrote it (`qat/valgrind.supp`).
    #[inline(never)]
    fn look_at_structures(&self, request: &Request) {
        if sum(&request.submission.structures) != request.sums.1 {
            self.tally(Count::Touched);
        }
    }
}

/// FNV over what a request names: what the device owns must not change.
fn sum<'a>(regions: impl IntoIterator<Item = &'a Region>) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    for region in regions {
        // SAFETY: the caller gave these stretches to the device, and pinned memory is never unmapped.
        for byte in unsafe { region.read() } {
            sum = (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    sum
}

fn compute(work: &Work) -> maths::Answer<Vec<Vec<u8>>> {
    // SAFETY: the regions are the caller's, given to the device, and pinned memory is never unmapped.
    let get = |region: &Region| unsafe { region.read() };
    let one = |result: Option<Vec<u8>>| result.map(|bytes| vec![bytes]);
    let two = |result: Option<(Vec<u8>, Vec<u8>)>| result.map(|(a, b)| vec![a, b]);
    Ok(match work {
        Work::RsaCrt { input, key } => {
            let key: Vec<_> = key.iter().map(get).collect();
            one(maths::rsa_crt(&get(input), [&key[0], &key[1], &key[2], &key[3], &key[4]])?)
        }
        Work::ModExp { base, exponent, modulus } => one(maths::mod_exp(&get(base), &get(exponent), &get(modulus))?),
        Work::Ecdsa { prime, nonce, digest, key } => {
            two(maths::ecdsa(&get(prime), &get(nonce), &get(digest), &get(key))?)
        }
        Work::Multiply { prime, scalar, x, y } => two(maths::multiply(&get(prime), &get(scalar), &get(x), &get(y))?),
        Work::X25519 { scalar, x } => one(maths::x25519(&get(scalar), &get(x))?),
        Work::Symmetric { session: _, keys, iv, additional, text, hashed, tag } => match &keys.algorithm {
            Algorithm::Gcm { additional: length } => {
                let additional = get(additional);
                two(maths::gcm(keys, &get(iv), &additional[..*length], &get(text), &get(tag))?)
            }
            Algorithm::CbcHmacSha256 { key } => {
                // What is hashed ends with the text that is ciphered, as it is in ESP and in encrypt-then-MAC.
                let before = get(&Region { at: hashed.at, len: text.at - hashed.at });
                let result = maths::cbc(keys, &get(iv), &get(text))?;
                let ciphered = if keys.encrypt { result.clone().unwrap_or_default() } else { get(text) };
                let mut digest = maths::hmac_sha256(key, &[before, ciphered].concat())?.unwrap_or_default();
                digest.truncate(keys.tag);
                if keys.encrypt {
                    result.map(|bytes| vec![bytes, digest])
                } else {
                    one(result.filter(|_| digest == get(tag)))
                }
            }
        },
        Work::Deflate { session: _, text, last } => one(Some(maths::deflate(&get(text), *last))),
        Work::Inflate { session: _, text } => one(maths::inflate(&get(text))),
    })
}

fn call(done: &Done) {
    let valid = if done.valid { CPA_TRUE } else { CPA_FALSE };
    let pointer = |address: usize| address as *mut c_void;
    let flat = |address: usize| address as *mut CpaFlatBuffer;
    match done.request.submission.call {
        Call::Flat { callback: Some(callback), tag, op, out } => {
            let status = if done.valid || done.status != CPA_STATUS_SUCCESS { done.status } else { CPA_STATUS_FAIL };
            // SAFETY: the caller gave the function and its arguments with the request.
            unsafe { callback(pointer(tag), status, pointer(op), flat(out)) };
        }
        Call::Sign { callback: Some(callback), tag, op, r, s } => {
            // SAFETY: as above.
            unsafe { callback(pointer(tag), done.status, pointer(op), valid, flat(r), flat(s)) };
        }
        Call::Point { callback: Some(callback), tag, op, x, y } => {
            // SAFETY: as above.
            unsafe { callback(pointer(tag), done.status, pointer(op), valid, flat(x), flat(y)) };
        }
        Call::Symmetric { callback: Some(callback), tag, op, to } => {
            let kind = qat_sys::CPA_CY_SYM_OP_ALGORITHM_CHAINING;
            // SAFETY: as above.
            unsafe { callback(pointer(tag), done.status, kind, pointer(op), to as *mut CpaBufferList, valid) };
        }
        Call::Stream { callback: Some(callback), tag, results } => {
            let at = results as *mut CpaDcRqResults;
            // SAFETY: the caller gave the structure with the request.
            if let Some(mut filled) = unsafe { load(at.cast_const()) } {
                // What a reset leaves undone says nothing of its results.
                if done.status == CPA_STATUS_SUCCESS {
                    filled.status = if done.valid { CPA_DC_OK } else { CPA_DC_INVALID_CODE };
                    filled.produced = u32::try_from(done.produced).unwrap_or(u32::MAX);
                }
                // SAFETY: as above.
                unsafe { at.write_unaligned(filled) };
            }
            let status = if done.valid { done.status } else { CPA_STATUS_FAIL };
            // SAFETY: the caller gave the function and its arguments with the request.
            unsafe { callback(pointer(tag), status) };
        }
        Call::Flat { callback: None, .. }
        | Call::Sign { callback: None, .. }
        | Call::Point { callback: None, .. }
        | Call::Symmetric { callback: None, .. }
        | Call::Stream { callback: None, .. } => {}
    }
}
