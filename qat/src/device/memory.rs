//! Memory that a device can reach, in slots. A slot belongs to one request from before it is submitted until it is
//! answered; it is wiped before anybody else has it.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use qat_sys::{CpaFlatBuffer, Library};
use zeroize::{Zeroize, Zeroizing};

/// All the slots there are. What is still in a device's hands when the pool goes is never freed.
#[derive(Debug)]
pub(crate) struct Pool {
    library: Arc<Library>,
    slabs: Vec<usize>,
    free: [Mutex<Vec<Slot>>; 2],
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
    /// None where the library gives no pinned memory.
    pub(crate) fn new(library: Arc<Library>, node: i32) -> Option<Self> {
        let mut pool = Self { library, slabs: Vec::new(), free: [Mutex::default(), Mutex::default()], slots: 0 };
        for (kind, (size, slots, slabs)) in KINDS.into_iter().enumerate() {
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
        let kind = usize::from(length > SMALL_TEXT);
        self.free[kind].lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    pub(crate) fn put_back(&self, mut slot: Slot) {
        slot.wipe();
        let kind = usize::from(slot.size > KINDS[0].0);
        self.free[kind].lock().unwrap_or_else(PoisonError::into_inner).push(slot);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let free: usize = self.free.iter().map(|free| free.lock().unwrap_or_else(PoisonError::into_inner).len()).sum();
        if free < self.slots {
            tracing::warn!(missing = self.slots - free, "pinned memory stays allocated: the device never gave it back");
            return;
        }
        let Ok(free) = self.library.usdm.qaeMemFreeNUMA.as_ref() else { return };
        for slab in &self.slabs {
            let mut at = *slab as *mut c_void;
            // SAFETY: it was allocated by the same library, and every slot of it is here, so nobody uses it.
            unsafe { free(&raw mut at) };
        }
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

/// Size of a slot, slots of a slab, slabs: for keys and for texts. No slab exceeds 512 KiB, which both origins' memory
/// drivers give from one huge page.
const KINDS: [(usize, usize, usize); 2] = [(8 * 1024, 64, 4), (24 * 1024, 16, 6)];
const SMALL_TEXT: usize = 2048;
/// The longest text that a slot has room for: a TLS record, with some to spare.
pub(crate) const LONGEST_TEXT: usize = 18 * 1024;
const ALIGNMENT: usize = 64;
