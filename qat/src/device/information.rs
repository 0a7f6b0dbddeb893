//! What an instance tells of itself, whichever version of the structure its library fills.

use std::mem::offset_of;

use qat_sys::{CPA_STATUS_SUCCESS, CpaInstanceHandle, CpaInstanceInfo2, CpaStatus};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Information {
    pub(crate) name: String,
    pub(crate) part: String,
    pub(crate) version: String,
    pub(crate) package: u16,
    pub(crate) node: u32,
}

/// The same for crypto and for compression.
type Get = unsafe extern "C" fn(CpaInstanceHandle, *mut CpaInstanceInfo2) -> CpaStatus;

impl Information {
    /// The node of its memory, as functions take it.
    pub(crate) fn numa(&self) -> i32 {
        i32::try_from(self.node).unwrap_or(0)
    }

    pub(crate) fn of(get: Option<&Get>, handle: CpaInstanceHandle) -> Self {
        let mut words = vec![u64::from_ne_bytes([UNTOUCHED; 8]); ROOM / 8];
        if let Some(get) = get {
            // SAFETY: there is more room than any version of the structure takes.
            let status = unsafe { get(handle, words.as_mut_ptr().cast()) };
            if status != CPA_STATUS_SUCCESS {
                tracing::debug!(status, "an instance tells nothing of itself");
            }
        }
        Self::parse(&words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>())
    }

    /// The out-of-tree library has a bitmap of fewer cores in the middle, so what comes after it is elsewhere. It leaves
    /// the end of the larger structure as it was.
    fn parse(bytes: &[u8]) -> Self {
        let text = |at: usize| {
            let field = &bytes[at..at + 64];
            let end = field.iter().position(|byte| *byte == 0 || *byte == UNTOUCHED).unwrap_or(field.len());
            String::from_utf8_lossy(&field[..end]).into_owned()
        };
        let package_at = offset_of!(CpaInstanceInfo2, physInstId);
        let larger = bytes[SMALLER..size_of::<CpaInstanceInfo2>()].iter().any(|byte| *byte != UNTOUCHED);
        let shift = if larger { 0 } else { size_of::<CpaInstanceInfo2>() - SMALLER };
        let node_at = offset_of!(CpaInstanceInfo2, nodeAffinity) - shift;
        let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        Self {
            name: text(offset_of!(CpaInstanceInfo2, instName)),
            part: text(offset_of!(CpaInstanceInfo2, partName)),
            version: text(offset_of!(CpaInstanceInfo2, swVersion)),
            package: u16::from_ne_bytes([bytes[package_at], bytes[package_at + 1]]),
            node: u32::from_ne_bytes(word(node_at)),
        }
    }
}

/// What the room is filled with, to see what was written.
const UNTOUCHED: u8 = 0xa5;
const ROOM: usize = 4096;
/// The size of the structure in the out-of-tree 4.5.
const SMALLER: usize = 452;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sizes_of_the_structure_are_understood() {
        for (size, node_at) in [(932, 912), (452, 432)] {
            let mut bytes = vec![UNTOUCHED; ROOM];
            bytes[..size].fill(0);
            bytes[68..72].copy_from_slice(b"c6xx");
            bytes[196..200].copy_from_slice(b"SSL0");
            bytes[388] = 7;
            bytes[node_at] = 1;
            let information = Information::parse(&bytes);
            assert_eq!((information.part.as_str(), information.name.as_str()), ("c6xx", "SSL0"), "{size}");
            assert_eq!((information.package, information.node), (7, 1), "{size}");
        }
        let silent = Information::parse(&[UNTOUCHED; ROOM]);
        assert_eq!(silent.name, "");
    }
}
