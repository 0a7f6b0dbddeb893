//! `libIPSec_MB`: AES-GCM, and AES-CBC with HMAC-SHA-256, the packets of a burst in the lanes of wide registers.
//!
//! All of the library's state is in a manager, which one thread uses at a time; there are as many as threads were at it
//! at once. A manager's memory is ours, and zeroed before it goes: lanes keep what they worked on. What becomes of a key
//! is made once and kept with it.
#![expect(unsafe_code, reason = "the calls into the library")]

use std::ffi::CStr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use openssl::memcmp;
use qat_sys::ipsec_mb::{
    IMB_ARCH, IMB_AUTH_AES_GMAC, IMB_AUTH_HMAC_SHA_256, IMB_CIPHER_CBC, IMB_CIPHER_GCM, IMB_DIR_DECRYPT,
    IMB_DIR_ENCRYPT, IMB_JOB, IMB_MGR, IMB_ORDER_CIPHER_HASH, IMB_ORDER_HASH_CIPHER, IMB_STATUS_COMPLETED,
    IpsecMb as Functions, gcm_key_data,
};
use qat_sys::{Multi as Opened, multi};

use super::Multi;
use crate::job::{Answer, CipherWork, Direction, Operation, Output, Reason, Text, Work};
use crate::key::{Cipher, CipherKey, Schedule};

#[derive(Debug)]
pub(super) struct IpsecMb {
    library: Arc<Opened<Functions>>,
    set: Set,
    idle: Mutex<Vec<Manager>>,
}

/// Which instructions: the library's own choice is not always the quickest. Where a CPU has SHA-NI but not all that its
/// code for AVX2 with SHA-NI wants, it hashes without; its code for SSE hashes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Auto,
    Sse,
}

#[derive(Debug)]
struct Manager {
    library: Arc<Opened<Functions>>,
    set: Set,
    /// What `state` points into. Never moves.
    _memory: Schedule,
    state: *mut IMB_MGR,
}

// SAFETY: the library ties nothing of a manager to a thread.
unsafe impl Send for Manager {}

/// The library, set up in each way that there is, and what is told of it.
pub(super) fn open(path: Option<&Path>) -> Result<(Vec<IpsecMb>, String), String> {
    let library = Arc::new(multi::ipsec_mb(path).map_err(|error| error.to_string())?);
    let one = |set| {
        let manager = Manager::new(&library, set).map_err(|why| format!("{}: {why}", library.path().display()))?;
        let told = manager.told();
        Ok::<_, String>((IpsecMb { library: Arc::clone(&library), set, idle: Mutex::new(vec![manager]) }, told))
    };
    let (auto, mut told) = one(Set::Auto)?;
    let mut all = vec![auto];
    if let Ok((sse, sse_told)) = one(Set::Sse)
        && sse_told != told
    {
        all.push(sse);
        told = format!("{told} and {sse_told}");
    }
    Ok((all, format!("{} {}: {told}", library.path().display(), version(&library))))
}

fn version(library: &Opened<Functions>) -> String {
    let Ok(version) = library.functions().imb_get_version_str.as_ref() else { return "of unknown version".to_owned() };
    // SAFETY: takes nothing.
    let text = unsafe { version() };
    if text.is_null() {
        return "of unknown version".to_owned();
    }
    // SAFETY: a constant of the library, which is never closed.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

impl Multi for IpsecMb {
    fn name(&self) -> &'static str {
        match self.set {
            Set::Auto => "ipsec-mb",
            Set::Sse => "ipsec-mb (SSE)",
        }
    }

    fn width(&self, operation: Operation) -> Option<usize> {
        matches!(operation, Operation::Cipher(..)).then_some(BURST)
    }

    /// Its lengths of CBC and HMAC are of sixteen bits, and it has no CBC of nothing.
    fn fits(&self, work: &Work) -> bool {
        match work {
            Work::Cipher(CipherWork { key, text, additional, iv, .. }) => match key.cipher {
                Cipher::Aes128Gcm | Cipher::Aes256Gcm => text.len() <= LONGEST_GCM,
                Cipher::Aes128CbcHmacSha256 | Cipher::Aes256CbcHmacSha256 => {
                    !text.is_empty() && additional.len() + iv.len() + text.len() <= LONGEST_CBC
                }
            },
            Work::RsaPrivate { .. }
            | Work::EcdsaSign { .. }
            | Work::Ecdh { .. }
            | Work::X25519 { .. }
            | Work::Deflate { .. }
            | Work::Inflate(_) => false,
        }
    }

    fn run(&self, _operation: Operation, works: &[&Work]) -> Vec<Answer> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let manager = match idle.map_or_else(|| Manager::new(&self.library, self.set), Ok) {
            Ok(manager) => manager,
            Err(why) => {
                tracing::warn!(%why, "no manager of ipsec-mb");
                return failed(works.len());
            }
        };
        let Some(answers) = manager.burst(works) else { return failed(works.len()) };
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(manager);
        answers
    }
}

fn failed(count: usize) -> Vec<Answer> {
    (0..count).map(|_| Answer::Failed(Reason::Refused)).collect()
}

/// One text, where the library finds and leaves it.
struct Packet<'a> {
    key: &'a CipherKey,
    schedule: &'a Schedule,
    direction: Direction,
    iv: &'a [u8],
    additional: &'a [u8],
    text: &'a [u8],
    wanted: &'a [u8],
    /// The output; for CBC the additional data and the IV come before it, since the digest is over all of it in a row.
    out: Text,
    before: usize,
    tag: [u8; Cipher::TAG],
    done: bool,
}

impl Manager {
    fn new(library: &Arc<Opened<Functions>>, set: Set) -> Result<Self, String> {
        let functions = library.functions();
        let lacking = |name: &str| format!("the library has no {name}");
        let size = functions.imb_get_mb_mgr_size.as_ref().map_err(|_missing| lacking("imb_get_mb_mgr_size"))?;
        let place =
            functions.imb_set_pointers_mb_mgr.as_ref().map_err(|_missing| lacking("imb_set_pointers_mb_mgr"))?;
        let auto = functions.init_mb_mgr_auto.as_ref().map_err(|_missing| lacking("init_mb_mgr_auto"))?;
        let sse = functions.init_mb_mgr_sse.as_ref().map_err(|_missing| lacking("init_mb_mgr_sse"))?;
        let error = functions.imb_get_errno.as_ref().map_err(|_missing| lacking("imb_get_errno"))?;
        // SAFETY: takes nothing.
        let mut memory = Schedule::zeroed(unsafe { size() });
        // SAFETY: the memory is as large as the library says, on the boundary it wants, and zeroed.
        let state = unsafe { place(memory.as_mut_ptr().cast(), 0, 1) };
        if state.is_null() {
            return Err("imb_set_pointers_mb_mgr gives nothing".to_owned());
        }
        let mut architecture: IMB_ARCH = 0;
        match set {
            // SAFETY: the manager was set up in memory that is ours alone.
            Set::Auto => unsafe { auto(state, &raw mut architecture) },
            // SAFETY: as above.
            Set::Sse => unsafe { sse(state) },
        }
        // SAFETY: as above.
        let status = unsafe { error(state) };
        if status != 0 {
            return Err(format!("its start fails with error {status}: the CPU lacks AES-NI, or the self-test failed"));
        }
        Ok(Self { library: Arc::clone(library), set, _memory: memory, state })
    }

    /// For which kind of CPU it is set up.
    fn told(&self) -> String {
        let (mut kind, mut told) = (std::ptr::null(), std::ptr::null());
        let Ok(name) = self.library.functions().imb_get_arch_type_string.as_ref() else { return "unknown".to_owned() };
        // SAFETY: the manager lives, and both pointers may be written.
        let status = unsafe { name(self.state, &raw mut kind, &raw mut told) };
        if status != 0 || kind.is_null() {
            return "unknown".to_owned();
        }
        // SAFETY: a constant of the library, which is never closed.
        unsafe { CStr::from_ptr(kind) }.to_string_lossy().into_owned()
    }

    /// None where the library refuses; it is not known in which state it is then.
    fn burst(&self, works: &[&Work]) -> Option<Vec<Answer>> {
        let mut packets = works.iter().map(|work| self.packet(work)).collect::<Option<Vec<_>>>()?;
        self.submit(&mut packets)?;
        Some(packets.into_iter().map(Packet::answer).collect())
    }

    fn packet<'a>(&self, work: &'a Work) -> Option<Packet<'a>> {
        let Work::Cipher(CipherWork { key, direction, iv, additional, text, tag }) = work else { return None };
        let kept = &key.schedules[self.set as usize];
        let schedule = if let Some(schedule) = kept.get() {
            schedule
        } else {
            let schedule = self.expand(key)?;
            // Another thread's, made of the same key, is as good.
            kept.get_or_init(|| schedule)
        };
        let (out, before) = match key.cipher {
            Cipher::Aes128Gcm | Cipher::Aes256Gcm => (vec![0; text.len()], 0),
            Cipher::Aes128CbcHmacSha256 | Cipher::Aes256CbcHmacSha256 => {
                ([additional.as_slice(), iv, text].concat(), additional.len() + iv.len())
            }
        };
        Some(Packet {
            key,
            schedule,
            direction: *direction,
            iv,
            additional,
            text,
            wanted: tag,
            // Plain, until it is known to be sealed.
            out: Text::opened(out),
            before,
            tag: [0; Cipher::TAG],
            done: false,
        })
    }

    /// The round keys, and what goes with them: powers of the hash key of GCM, or the first blocks of HMAC.
    fn expand(&self, key: &CipherKey) -> Option<Schedule> {
        // SAFETY: the manager lives, and nobody writes these fields after its start.
        let state = unsafe { &*self.state };
        let long = key.cipher.key_size() == 32;
        match key.cipher {
            Cipher::Aes128Gcm | Cipher::Aes256Gcm => {
                let mut schedule = Schedule::zeroed(size_of::<gcm_key_data>());
                let expand = if long { state.gcm256_pre } else { state.gcm128_pre }?;
                // SAFETY: the key is as long as its cipher has it, and the room is the library's structure, on its
                // boundary.
                unsafe { expand(key.key.as_ptr().cast(), schedule.as_mut_ptr().cast()) };
                Some(schedule)
            }
            Cipher::Aes128CbcHmacSha256 | Cipher::Aes256CbcHmacSha256 => {
                let mut schedule = Schedule::zeroed(CBC_SCHEDULE);
                let expand = if long { state.keyexp_256 } else { state.keyexp_128 }?;
                let blocks = self.library.functions().imb_hmac_ipad_opad.as_ref().ok()?;
                let base = schedule.as_mut_ptr();
                let [decrypt, inner, outer] = [DECRYPT, INNER, OUTER].map(|offset| base.wrapping_add(offset));
                // SAFETY: the key is as long as its cipher has it, and there is room for fifteen round keys of each direction.
                unsafe { expand(key.key.as_ptr().cast(), base.cast(), decrypt.cast()) };
                let (hash_key, length) = (key.hash_key.as_ptr(), key.hash_key.len());
                // SAFETY: the key's length is given, and there are 32 bytes for each of both states.
                unsafe {
                    blocks(self.state, IMB_AUTH_HMAC_SHA_256, hash_key.cast(), length, inner.cast(), outer.cast());
                }
                Some(schedule)
            }
        }
    }

    fn submit(&self, packets: &mut [Packet<'_>]) -> Option<()> {
        // SAFETY: the manager lives, and nobody writes these fields after its start.
        let state = unsafe { &*self.state };
        let (next, submit, flush) = (state.get_next_burst?, state.submit_burst?, state.flush_burst?);
        let count = u32::try_from(packets.len()).ok().filter(|_| packets.len() <= BURST)?;
        let mut jobs = [std::ptr::null_mut::<IMB_JOB>(); BURST];
        // SAFETY: the manager is used by this thread alone, and there is room for as many pointers.
        let free = unsafe { next(self.state, count, jobs.as_mut_ptr()) };
        if free != count {
            return None;
        }
        let set_session = self.library.functions().imb_set_session.as_ref().ok()?;
        let mut suite = None;
        for (index, (packet, job)) in packets.iter_mut().zip(jobs).enumerate() {
            // SAFETY: the library gave this job to be filled; it is of numbers and pointers, of which all may be zero.
            unsafe { job.write_bytes(0, 1) };
            // SAFETY: as above, and nobody else has it.
            let filled = unsafe { &mut *job };
            packet.fill(filled, index);
            // Which of its functions are to run; the same for all, since all are of one operation.
            if let Some((suite, session)) = suite {
                (filled.suite_id, filled.session_id) = (suite, session);
            } else {
                // SAFETY: the job is filled, and the manager lives.
                unsafe { set_session(self.state, filled) };
                suite = Some((filled.suite_id, filled.session_id));
            }
        }
        let mut done = 0;
        // SAFETY: the jobs are those that were given; all they point to lives until the end of this function, and lies
        // within what their lengths say.
        let mut completed = unsafe { submit(self.state, count, jobs.as_mut_ptr()) };
        loop {
            let finished = jobs.get(..usize::try_from(completed).ok()?)?;
            for job in finished {
                // SAFETY: a job that the library gave back stays as it is until the next is asked for.
                let job = unsafe { &**job };
                let packet = packets.get_mut(job.user_data as usize)?;
                packet.done = job.status == IMB_STATUS_COMPLETED;
            }
            done += completed;
            if done >= count {
                return Some(());
            }
            // SAFETY: as above.
            completed = unsafe { flush(self.state, count - done, jobs.as_mut_ptr()) };
            if completed == 0 {
                return None;
            }
        }
    }
}

impl Packet<'_> {
    /// What of a job is not zero.
    fn fill(&mut self, job: &mut IMB_JOB, index: usize) {
        let length = self.text.len() as u64;
        let base = self.schedule.as_ptr();
        job.key_len_in_bytes = self.key.cipher.key_size() as u64;
        job.iv = self.iv.as_ptr();
        job.iv_len_in_bytes = self.iv.len() as u64;
        job.auth_tag_output = self.tag.as_mut_ptr();
        job.auth_tag_output_len_in_bytes = self.tag.len() as u64;
        job.user_data = std::ptr::without_provenance_mut(index);
        (job.cipher_direction, job.chain_order) = match self.direction {
            Direction::Seal => (IMB_DIR_ENCRYPT, IMB_ORDER_CIPHER_HASH),
            Direction::Open => (IMB_DIR_DECRYPT, IMB_ORDER_HASH_CIPHER),
        };
        job.__bindgen_anon_4.msg_len_to_cipher_in_bytes = length;
        match self.key.cipher {
            Cipher::Aes128Gcm | Cipher::Aes256Gcm => {
                job.cipher_mode = IMB_CIPHER_GCM;
                job.hash_alg = IMB_AUTH_AES_GMAC;
                (job.enc_keys, job.dec_keys) = (base.cast(), base.cast());
                job.__bindgen_anon_1.src = self.text.as_ptr();
                job.__bindgen_anon_2.dst = self.out.as_mut_ptr();
                job.__bindgen_anon_5.msg_len_to_hash_in_bytes = length;
                job.u.GCM.aad = self.additional.as_ptr().cast();
                job.u.GCM.aad_len_in_bytes = self.additional.len() as u64;
            }
            Cipher::Aes128CbcHmacSha256 | Cipher::Aes256CbcHmacSha256 => {
                job.cipher_mode = IMB_CIPHER_CBC;
                job.hash_alg = IMB_AUTH_HMAC_SHA_256;
                job.enc_keys = base.cast();
                job.dec_keys = base.wrapping_add(DECRYPT).cast();
                job.u.HMAC._hashed_auth_key_xor_ipad = base.wrapping_add(INNER);
                job.u.HMAC._hashed_auth_key_xor_opad = base.wrapping_add(OUTER);
                let out = self.out.as_mut_ptr();
                job.__bindgen_anon_1.src = out;
                job.__bindgen_anon_2.dst = out.wrapping_add(self.before);
                job.__bindgen_anon_3.cipher_start_src_offset_in_bytes = self.before as u64;
                job.__bindgen_anon_5.msg_len_to_hash_in_bytes = self.out.len() as u64;
            }
        }
    }

    fn answer(mut self) -> Answer {
        if !self.done {
            return Answer::Failed(Reason::Refused);
        }
        if self.direction == Direction::Open
            && !(self.wanted.len() == self.tag.len() && memcmp::eq(self.wanted, &self.tag))
        {
            return Answer::Invalid;
        }
        self.out.drain(..self.before);
        let (text, tag) = match self.direction {
            Direction::Seal => (self.out.into_sealed(), self.tag.to_vec()),
            Direction::Open => (self.out, Vec::new()),
        };
        Answer::Done(Output::Text { text, tag })
    }
}

/// Packets that go together.
const BURST: usize = 32;
/// Two bytes less than the library's sixteen bits hold.
const LONGEST_CBC: usize = 65_533;
/// More than any packet or record has; what is longer takes long enough by itself.
const LONGEST_GCM: usize = 1 << 24;
/// Where in a schedule of CBC the round keys of decryption are, and HMAC's inner and outer state.
const DECRYPT: usize = 256;
const INNER: usize = 512;
const OUTER: usize = 576;
const CBC_SCHEDULE: usize = 640;
