//! Pinned memory, and stretches of the caller's memory that a request names.

use std::alloc::{Layout, alloc_zeroed};
use std::collections::BTreeMap;
use std::sync::Mutex;

use qat_sys::{CpaBufferList, CpaFlatBuffer};

/// A stretch of memory of the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) at: usize,
    pub(crate) len: usize,
}

impl Region {
    pub(crate) fn new<T>(at: *const T, len: usize) -> Self {
        Self { at: at as usize, len }
    }

    pub(crate) fn of(buffer: CpaFlatBuffer) -> Self {
        Self::new(buffer.pData, buffer.dataLenInBytes as usize)
    }

    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.at < other.at + other.len && other.at < self.at + self.len
    }

    /// # Safety
    /// The stretch is readable: memory that the caller gave, or pinned memory, which is never unmapped.
    pub(crate) unsafe fn read(self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        if self.len > 0 {
            // SAFETY: the caller answers for the stretch, and the vector is as long.
            unsafe { std::ptr::copy(self.at as *const u8, bytes.as_mut_ptr(), self.len) };
        }
        bytes
    }

    /// Right-aligned, as a number is in a buffer that is longer.
    ///
    /// # Safety
    /// As for [`Self::read`], and nobody else writes there.
    pub(crate) unsafe fn write(self, bytes: &[u8]) {
        let len = bytes.len().min(self.len);
        let to = (self.at + self.len - len) as *mut u8;
        // SAFETY: the caller answers for the stretch, of which these are the last `len` bytes.
        unsafe { std::ptr::copy(bytes[bytes.len() - len..].as_ptr(), to, len) };
    }
}

/// # Safety
/// `at` is null or points to a `T` of the caller's.
pub(crate) unsafe fn load<T: Copy>(at: *const T) -> Option<T> {
    if at.is_null() {
        return None;
    }
    // SAFETY: it is not null, so it points to a `T`.
    Some(unsafe { at.read_unaligned() })
}

/// The stretches of a list of buffers.
///
/// # Safety
/// As for [`load`], and so for the array it names.
pub(crate) unsafe fn regions(list: *const CpaBufferList) -> Option<Vec<Region>> {
    // SAFETY: the caller answers for the list.
    let list = unsafe { load(list) }?;
    (0..list.numBuffers as usize)
        .map(|index| {
            // SAFETY: the caller answers for the array, which has that many.
            unsafe { load(list.pBuffers.wrapping_add(index)) }.map(Region::of)
        })
        .collect()
}

/// All the pinned memory that was given out. What is freed is never unmapped, so that a device that still writes there
/// (which is what is to be found out) harms nothing.
#[derive(Debug, Default)]
pub(crate) struct Pinned {
    out: Mutex<BTreeMap<usize, usize>>,
    kept: Mutex<Vec<Region>>,
}

impl Pinned {
    pub(crate) fn allocate(&self, size: usize, alignment: usize) -> *mut u8 {
        let alignment = alignment.max(64);
        let kept = {
            let mut kept = lock(&self.kept);
            let index = kept.iter().position(|region| region.len == size && region.at.is_multiple_of(alignment));
            index.map(|index| kept.swap_remove(index).at as *mut u8)
        };
        let at = kept.unwrap_or_else(|| {
            let Some(layout) = Layout::from_size_align(size, alignment).ok().filter(|_| size > 0) else {
                return std::ptr::null_mut();
            };
            // SAFETY: the layout's size is not zero.
            unsafe { alloc_zeroed(layout) }
        });
        if !at.is_null() {
            lock(&self.out).insert(at as usize, size);
        }
        at
    }

    pub(crate) fn take_back(&self, at: usize) -> Option<Region> {
        lock(&self.out).remove(&at).map(|len| Region { at, len })
    }

    pub(crate) fn keep(&self, region: Region) {
        lock(&self.kept).push(region);
    }

    pub(crate) fn has(&self, region: Region) -> bool {
        let out = lock(&self.out);
        let below = out.range(..=region.at).next_back();
        below.is_some_and(|(at, len)| region.at + region.len <= at + len)
    }

    pub(crate) fn bytes(&self) -> usize {
        lock(&self.out).values().sum()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
