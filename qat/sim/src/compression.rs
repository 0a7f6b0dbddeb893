//! The entry points of compression, by the names and with the types of the real library.

use std::ffi::c_void;

use qat_sys::{
    CPA_DC_CRC32, CPA_DC_DEFLATE, CPA_DC_DIR_COMPRESS, CPA_DC_FLUSH_FINAL, CPA_DC_FLUSH_FULL, CPA_DC_STATELESS,
    CPA_STATUS_FAIL, CPA_STATUS_INVALID_PARAM, CPA_STATUS_SUCCESS, CPA_STATUS_UNSUPPORTED, CpaBufferList,
    CpaCyInstanceNotificationCbFunc, CpaDcCallbackFn, CpaDcFlush, CpaDcOpData, CpaDcRqResults, CpaDcSessionHandle,
    CpaDcSessionSetupData, CpaInstanceHandle, CpaInstanceInfo2, CpaStatus, CpaVirtualToPhysical,
};

use crate::control::Count;
use crate::cpa::{META, describe, meta_size, put, submit, whole};
use crate::device::{self, Call, INSTANCES, Stream, Submission, Work};
use crate::memory::{Region, load, lock, regions};

/// Bytes of a session, such as the real library asks for.
const SESSION: u32 = 1088;
const INTERMEDIATE: u16 = 2;

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaDcGetNumInstances(number: *mut u16) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    unsafe { put(number, u16::try_from(INSTANCES).unwrap_or_default()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaDcGetInstances(number: u16, handles: *mut CpaInstanceHandle) -> CpaStatus {
    for index in 0..(number as usize).min(INSTANCES) {
        // SAFETY: the caller's array has as many as it says.
        let status = unsafe { put(handles.wrapping_add(index), device::handle(INSTANCES + index)) };
        if status != CPA_STATUS_SUCCESS {
            return status;
        }
    }
    CPA_STATUS_SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaDcInstanceGetInfo2(handle: CpaInstanceHandle, info: *mut CpaInstanceInfo2) -> CpaStatus {
    let Some(index) = compresses(handle) else { return CPA_STATUS_INVALID_PARAM };
    // SAFETY: the caller's, as the API has it.
    unsafe { put(info, describe(&format!("simulator dc {}", index - INSTANCES), index - INSTANCES)) }
}

#[unsafe(no_mangle)]
extern "C" fn cpaDcSetAddressTranslation(_handle: CpaInstanceHandle, translate: CpaVirtualToPhysical) -> CpaStatus {
    if translate.is_some() { CPA_STATUS_SUCCESS } else { CPA_STATUS_INVALID_PARAM }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaDcGetNumIntermediateBuffers(_handle: CpaInstanceHandle, number: *mut u16) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    unsafe { put(number, INTERMEDIATE) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaDcBufferListGetMetaSize(_: CpaInstanceHandle, buffers: u32, size: *mut u32) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    unsafe { meta_size(buffers, size) }
}

/// Wants as many buffers as it said, all of them pinned, each with its metadata.
#[unsafe(no_mangle)]
unsafe extern "C" fn cpaDcStartInstance(
    handle: CpaInstanceHandle,
    number: u16,
    lists: *mut *mut CpaBufferList,
) -> CpaStatus {
    if compresses(handle).is_none() || number != INTERMEDIATE {
        return CPA_STATUS_INVALID_PARAM;
    }
    for index in 0..usize::from(number) {
        // SAFETY: the caller's array has as many as it says.
        let Some(list) = (unsafe { load(lists.wrapping_add(index).cast_const()) }) else {
            return CPA_STATUS_INVALID_PARAM;
        };
        // SAFETY: as above.
        let (Some(buffers), Some(data)) = (unsafe { regions(list) }, unsafe { load(list.cast_const()) }) else {
            return CPA_STATUS_INVALID_PARAM;
        };
        let metadata = Region::new(data.pPrivateMetaData.cast::<u8>(), META as usize);
        for region in buffers.into_iter().chain([metadata]) {
            if region.len == 0 || !device::get().pinned.has(region) {
                device::get().tally(Count::NotPinned);
            }
        }
    }
    CPA_STATUS_SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cpaDcStopInstance(handle: CpaInstanceHandle) -> CpaStatus {
    compresses(handle).map_or(CPA_STATUS_INVALID_PARAM, |_| CPA_STATUS_SUCCESS)
}

#[unsafe(no_mangle)]
extern "C" fn cpaDcInstanceSetNotificationCb(
    handle: CpaInstanceHandle,
    callback: CpaCyInstanceNotificationCbFunc,
    tag: *mut c_void,
) -> CpaStatus {
    let Some(index) = compresses(handle) else { return CPA_STATUS_INVALID_PARAM };
    device::get().notify(index, callback, tag as usize);
    CPA_STATUS_SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn icp_sal_DcPollInstance(handle: CpaInstanceHandle, quota: u32) -> CpaStatus {
    compresses(handle).map_or(CPA_STATUS_INVALID_PARAM, |index| device::get().poll(index, quota as usize))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaDcGetSessionSize(
    _handle: CpaInstanceHandle,
    _setup: *mut CpaDcSessionSetupData,
    session: *mut u32,
    context: *mut u32,
) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    let status = unsafe { put(context, 0) };
    // SAFETY: as above.
    if status == CPA_STATUS_SUCCESS { unsafe { put(session, SESSION) } } else { status }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaDcInitSession(
    _handle: CpaInstanceHandle,
    session: CpaDcSessionHandle,
    setup: *mut CpaDcSessionSetupData,
    _context: *mut CpaBufferList,
    callback: CpaDcCallbackFn,
) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    let Some(setup) = (unsafe { load(setup.cast_const()) }) else { return CPA_STATUS_INVALID_PARAM };
    if setup.compType != CPA_DC_DEFLATE || setup.sessState != CPA_DC_STATELESS || setup.checksum != CPA_DC_CRC32 {
        return CPA_STATUS_UNSUPPORTED;
    }
    if !device::get().pinned.has(Region::new(session.cast::<u8>(), SESSION as usize)) {
        device::get().tally(Count::NotPinned);
    }
    let stream = Stream { callback, compresses: setup.sessDirection == CPA_DC_DIR_COMPRESS };
    lock(&device::get().streams).insert(session as usize, stream);
    CPA_STATUS_SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cpaDcRemoveSession(_handle: CpaInstanceHandle, session: CpaDcSessionHandle) -> CpaStatus {
    if device::get().remove_session(session as usize) { CPA_STATUS_SUCCESS } else { qat_sys::CPA_STATUS_RETRY }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaDcCompressData2(
    handle: CpaInstanceHandle,
    session: CpaDcSessionHandle,
    from: *mut CpaBufferList,
    to: *mut CpaBufferList,
    op: *mut CpaDcOpData,
    results: *mut CpaDcRqResults,
    tag: *mut c_void,
) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    let Some(data) = (unsafe { load(op.cast_const()) }) else { return CPA_STATUS_INVALID_PARAM };
    let last = match data.flushFlag {
        CPA_DC_FLUSH_FINAL => true,
        CPA_DC_FLUSH_FULL => false,
        _ => return CPA_STATUS_UNSUPPORTED,
    };
    let work = |session, text| Work::Deflate { session, text, last };
    let structures = vec![whole(op.cast_const())];
    // SAFETY: the caller's, as the API has it.
    unsafe { stream(handle, (session, true), (from, to), results, tag, structures, work) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaDcDecompressData(
    handle: CpaInstanceHandle,
    session: CpaDcSessionHandle,
    from: *mut CpaBufferList,
    to: *mut CpaBufferList,
    results: *mut CpaDcRqResults,
    flush: CpaDcFlush,
    tag: *mut c_void,
) -> CpaStatus {
    if flush != CPA_DC_FLUSH_FINAL {
        return CPA_STATUS_UNSUPPORTED;
    }
    let work = |session, text| Work::Inflate { session, text };
    // SAFETY: the caller's, as the API has it.
    unsafe { stream(handle, (session, false), (from, to), results, tag, Vec::new(), work) }
}

/// # Safety
/// The pointers are the caller's, as the API has it.
unsafe fn stream(
    handle: CpaInstanceHandle,
    (session, compresses): (CpaDcSessionHandle, bool),
    (from, to): (*mut CpaBufferList, *mut CpaBufferList),
    results: *mut CpaDcRqResults,
    tag: *mut c_void,
    mut structures: Vec<Region>,
    work: impl FnOnce(usize, Region) -> Work,
) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    let (Some(source), Some(target)) = (unsafe { regions(from) }, unsafe { regions(to) }) else {
        return CPA_STATUS_INVALID_PARAM;
    };
    let ([source], [target]) = (&source[..], &target[..]) else { return CPA_STATUS_UNSUPPORTED };
    let mut inputs = vec![*source];
    for list in [from, to] {
        // SAFETY: as above.
        let meta = unsafe { load(list.cast_const()) }.map_or(std::ptr::null_mut(), |list| list.pPrivateMetaData);
        inputs.push(Region::new(meta.cast::<u8>(), META as usize));
        structures.push(whole(list.cast_const()));
    }
    let session = session as usize;
    let Some(stream) = lock(&device::get().streams).get(&session).copied() else { return CPA_STATUS_INVALID_PARAM };
    if stream.compresses != compresses || results.is_null() {
        return CPA_STATUS_FAIL;
    }
    let call = Call::Stream { callback: stream.callback, tag: tag as usize, results: results as usize };
    submit(handle, Submission { call, work: work(session, *source), inputs, outputs: vec![*target], structures })
}

fn compresses(handle: CpaInstanceHandle) -> Option<usize> {
    device::index(handle).filter(|index| *index >= INSTANCES)
}
