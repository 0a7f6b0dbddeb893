//! Memory that a device can reach, in slots. A slot belongs to one request from before it is submitted until it is
//! answered; it is wiped before anybody else has it.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use qat_sys::{CpaBufferList, CpaFlatBuffer, Library};
use zeroize::{Zeroize, Zeroizing};

/// All the slots there are. What is still in a device's hands when the pool goes is never freed.
#[derive(Debug)]
pub(crate) struct Pool {
    library: Arc<Library>,
    slabs: Vec<usize>,
    free: [Mutex<Vec<Slot>>; 3],
    slots: usize,
}

/// A stretch of pinned memory that its holder alone uses, but for the device.
#[derive(Debug)]
pub(crate) struct Slot {
    at: usize,
    size: usize,
    used: usize,
    /// Which of the pool's it is.
    pub(crate) index: usize,
}

impl Pool {
    /// None where the library gives no pinned memory. The longest slots are for compression alone.
    pub(crate) fn new(library: Arc<Library>, node: i32, compresses: bool) -> Option<Self> {
        let mut pool = Self { library, slabs: Vec::new(), free: Default::default(), slots: 0 };
        let kinds = if compresses { &KINDS[..] } else { &KINDS[..2] };
        for (kind, (size, slots, slabs)) in kinds.iter().copied().enumerate() {
            for _ in 0..slabs {
                let allocate = *pool.library.usdm.qaeMemAllocNUMA.as_ref().ok()?;
                // SAFETY: takes numbers alone.
                let at = unsafe { allocate(size * slots, node, ALIGNMENT) } as usize;
                if at == 0 {
                    return None;
                }
                pool.slabs.push(at);
                let mut free = pool.free[kind].lock().unwrap_or_else(PoisonError::into_inner);
                for number in 0..slots {
                    let index = pool.slots + number;
                    free.push(Slot { at: at + number * size, size, used: size, index });
                }
                drop(free);
                pool.slots += slots;
            }
        }
        // Memory comes as it was left.
        for free in &pool.free {
            free.lock().unwrap_or_else(PoisonError::into_inner).iter_mut().for_each(Slot::wipe);
        }
        Some(pool)
    }

    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    /// A slot with room for a text of `length` beside keys and structures.
    pub(crate) fn take(&self, length: usize) -> Option<Slot> {
        let kind = [SMALL_TEXT, LONGEST_TEXT].into_iter().filter(|fits| length > *fits).count();
        self.free[kind].lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    pub(crate) fn put_back(&self, mut slot: Slot) {
        slot.wipe();
        let kind = KINDS.iter().filter(|(size, ..)| *size < slot.size).count();
        self.free[kind].lock().unwrap_or_else(PoisonError::into_inner).push(slot);
    }
}

/// What a device wants for itself, where it chooses codes by what is in a text. Pinned as long as the instance is started.
#[derive(Debug)]
pub(crate) struct Intermediate {
    library: Arc<Library>,
    slabs: Vec<usize>,
    pub(crate) lists: Vec<*mut CpaBufferList>,
}

// SAFETY: the pointers are into the slabs, which nobody but the device touches between the start and the end.
unsafe impl Send for Intermediate {}
// SAFETY: as above.
unsafe impl Sync for Intermediate {}

impl Intermediate {
    /// So many buffers, each with so many bytes of metadata.
    pub(crate) fn new(library: &Arc<Library>, node: i32, number: u16, metadata: u32) -> Option<Self> {
        let mut all = Self { library: Arc::clone(library), slabs: Vec::new(), lists: Vec::new() };
        let structures = 2 * size_of::<CpaBufferList>().next_multiple_of(ALIGNMENT);
        let size = INTERMEDIATE + structures + (metadata as usize).next_multiple_of(ALIGNMENT);
        let allocate = *library.usdm.qaeMemAllocNUMA.as_ref().ok()?;
        for _ in 0..number {
            // SAFETY: takes numbers alone.
            let at = unsafe { allocate(size, node, ALIGNMENT) } as usize;
            if at == 0 {
                return None;
            }
            all.slabs.push(at);
            let mut slot = Slot { at, size, used: size, index: 0 };
            slot.wipe();
            let buffer = slot.space(INTERMEDIATE)?;
            let list = CpaBufferList {
                numBuffers: 1,
                pBuffers: slot.place(buffer)?,
                pUserData: std::ptr::null_mut(),
                pPrivateMetaData: slot.space(metadata as usize)?.pData.cast(),
            };
            all.lists.push(slot.place(list)?);
        }
        Some(all)
    }
}

impl Drop for Intermediate {
    fn drop(&mut self) {
        release(&self.library, &self.slabs);
    }
}

/// Gives slabs back that the same library gave, and that nobody uses.
fn release(library: &Library, slabs: &[usize]) {
    let Ok(free) = library.usdm.qaeMemFreeNUMA.as_ref() else { return };
    for slab in slabs {
        let mut at = *slab as *mut c_void;
        // SAFETY: it was allocated by the same library, and whoever calls this has nobody else use it.
        unsafe { free(&raw mut at) };
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let free: usize = self.free.iter().map(|free| free.lock().unwrap_or_else(PoisonError::into_inner).len()).sum();
        if free < self.slots {
            tracing::warn!(missing = self.slots - free, "pinned memory stays allocated: the device never gave it back");
            return;
        }
        release(&self.library, &self.slabs);
    }
}

impl Slot {
    /// A copy of `bytes`, for the device to read.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Option<CpaFlatBuffer> {
        let buffer = self.space(bytes.len())?;
        // SAFETY: `space` gave so many bytes of this slot to nobody else.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.pData, bytes.len()) };
        Some(buffer)
    }

    /// Room for the device to write to.
    pub(crate) fn space(&mut self, length: usize) -> Option<CpaFlatBuffer> {
        let at = self.at + self.used;
        let used = (self.used + length).next_multiple_of(ALIGNMENT);
        if used > self.size {
            return None;
        }
        self.used = used;
        Some(CpaFlatBuffer { dataLenInBytes: u32::try_from(length).ok()?, pData: at as *mut u8 })
    }

    /// A structure, for as long as the request lives.
    pub(crate) fn place<T: Copy>(&mut self, value: T) -> Option<*mut T> {
        let at = self.space(size_of::<T>())?.pData.cast::<T>();
        // SAFETY: `space` gave so many bytes of this slot to nobody else, at an address aligned for anything.
        unsafe { at.write(value) };
        Some(at)
    }

    /// What the device wrote. Only for a request that it has answered.
    pub(crate) fn read(&self, buffer: CpaFlatBuffer) -> Zeroizing<Vec<u8>> {
        let length = buffer.dataLenInBytes as usize;
        let from = (buffer.pData as usize).saturating_sub(self.at);
        assert!(from + length <= self.size, "a buffer of a slot lies in it");
        let mut bytes = Zeroizing::new(vec![0; length]);
        // SAFETY: the stretch lies in this slot, as was asserted, and the device has given the slot back.
        unsafe { std::ptr::copy_nonoverlapping(buffer.pData, bytes.as_mut_ptr(), length) };
        bytes
    }

    fn wipe(&mut self) {
        // SAFETY: the slot's own memory, of which it is the only holder.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.at as *mut u8, self.used) };
        bytes.zeroize();
        self.used = 0;
    }
}

/// Size of a slot, slots of a slab, slabs: for keys, for texts, and for long texts with what becomes of them. No slab exceeds 512 KiB, which both origins' memory
/// drivers give from one huge page.
const KINDS: [(usize, usize, usize); 3] = [(8 * 1024, 64, 4), (24 * 1024, 16, 6), (160 * 1024, 3, 6)];
const SMALL_TEXT: usize = 2048;
/// The longest text that a slot has room for: a TLS record, with some to spare.
pub(crate) const LONGEST_TEXT: usize = 18 * 1024;
/// The longest text and the longest result together that there is room for.
pub(crate) const LONGEST_BOTH: usize = 152 * 1024;
/// Of an intermediate buffer: twice the longest text, as the programmer's guide has it.
const INTERMEDIATE: usize = 128 * 1024;
const ALIGNMENT: usize = 64;
