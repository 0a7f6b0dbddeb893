//! The entry points, by the names and with the types of the real library.

use std::ffi::{c_char, c_int, c_void};

use qat_sys::{
    CPA_CY_EC_MONTEDWDS_CURVE25519_TYPE, CPA_CY_RSA_PRIVATE_KEY_REP_TYPE_2, CPA_CY_SYM_CIPHER_AES_CBC,
    CPA_CY_SYM_CIPHER_AES_GCM, CPA_CY_SYM_CIPHER_DIRECTION_ENCRYPT, CPA_CY_SYM_HASH_AES_GCM, CPA_CY_SYM_HASH_SHA256,
    CPA_FALSE, CPA_OPER_STATE_UP, CPA_STATUS_FAIL, CPA_STATUS_INVALID_PARAM, CPA_STATUS_RETRY, CPA_STATUS_SUCCESS,
    CPA_STATUS_UNSUPPORTED, CPA_TRUE, CpaBoolean, CpaBufferList, CpaCyCapabilitiesInfo,
    CpaCyEcMontEdwdsPointMultiplyOpData, CpaCyEcPointMultiplyCbFunc, CpaCyEcPointMultiplyOpData,
    CpaCyEcdsaSignRSCbFunc, CpaCyEcdsaSignRSOpData, CpaCyGenFlatBufCbFunc, CpaCyInstanceNotificationCbFunc,
    CpaCyLnModExpOpData, CpaCyRsaDecryptOpData, CpaCyRsaEncryptOpData, CpaCySymCbFunc, CpaCySymOpData,
    CpaCySymSessionCtx, CpaCySymSessionSetupData, CpaFlatBuffer, CpaInstanceHandle, CpaInstanceInfo2, CpaStatus,
    CpaVirtualToPhysical,
};

use crate::control::Count;
use crate::device::{self, Call, INSTANCES, Submission, Work};
use crate::maths::{Algorithm, Session};
use crate::memory::{Region, load, lock, regions};

/// Bytes of a session's context and of the metadata of a list, such as the real library asks for.
const CONTEXT: u32 = 576;
pub(crate) const META: u32 = 208;

/// As a library carries its version: the one whose structures these are.
#[used]
#[unsafe(no_mangle)]
static QAT_SIM_VERSION: [u8; 29] = *b"QAT_SOFTWARE_VERSION=24.02.0\0";

#[unsafe(no_mangle)]
extern "C" fn icp_sal_userIsQatAvailable() -> CpaBoolean {
    CPA_TRUE
}

#[unsafe(no_mangle)]
extern "C" fn icp_sal_userStart(_process: *const c_char) -> CpaStatus {
    device::get().start();
    CPA_STATUS_SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn icp_sal_userStartMultiProcess(_process: *const c_char, _limit: CpaBoolean) -> CpaStatus {
    device::get().start();
    CPA_STATUS_SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn icp_sal_userStop() -> CpaStatus {
    CPA_STATUS_SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn icp_sal_check_device(_package: u32) -> CpaStatus {
    CPA_STATUS_SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn icp_sal_reset_device(package: u32) -> CpaStatus {
    device::get().reset(package as usize);
    CPA_STATUS_SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn icp_sal_poll_device_events() -> CpaStatus {
    device::get().tell_events();
    CPA_STATUS_SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn icp_sal_CyPollInstance(handle: CpaInstanceHandle, quota: u32) -> CpaStatus {
    device::index(handle).map_or(CPA_STATUS_INVALID_PARAM, |index| device::get().poll(index, quota as usize))
}

#[unsafe(no_mangle)]
extern "C" fn icp_sal_CyGetFileDescriptor(_handle: CpaInstanceHandle, _fd: *mut c_int) -> CpaStatus {
    CPA_STATUS_UNSUPPORTED
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaCyGetNumInstances(number: *mut u16) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    unsafe { put(number, u16::try_from(INSTANCES).unwrap_or_default()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaCyGetInstances(number: u16, handles: *mut CpaInstanceHandle) -> CpaStatus {
    for index in 0..(number as usize).min(INSTANCES) {
        // SAFETY: the caller's array has as many as it says.
        let status = unsafe { put(handles.wrapping_add(index), device::handle(index)) };
        if status != CPA_STATUS_SUCCESS {
            return status;
        }
    }
    CPA_STATUS_SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaCyInstanceGetInfo2(handle: CpaInstanceHandle, info: *mut CpaInstanceInfo2) -> CpaStatus {
    let Some(index) = device::index(handle) else { return CPA_STATUS_INVALID_PARAM };
    // SAFETY: the caller's, as the API has it.
    unsafe { put(info, describe(&format!("simulator {index}"), index)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaCyQueryCapabilities(_handle: CpaInstanceHandle, info: *mut CpaCyCapabilitiesInfo) -> CpaStatus {
    // SAFETY: every field is a number.
    let mut filled: CpaCyCapabilitiesInfo = unsafe { std::mem::zeroed() };
    filled.symSupported = CPA_TRUE;
    filled.rsaSupported = CPA_TRUE;
    filled.ecSupported = CPA_TRUE;
    filled.ecdsaSupported = CPA_TRUE;
    filled.lnSupported = CPA_TRUE;
    filled.ecEdMontSupported = CPA_TRUE;
    // SAFETY: the caller's, as the API has it.
    unsafe { put(info, filled) }
}

#[unsafe(no_mangle)]
extern "C" fn cpaCyStartInstance(handle: CpaInstanceHandle) -> CpaStatus {
    device::index(handle).map_or(CPA_STATUS_INVALID_PARAM, |_| CPA_STATUS_SUCCESS)
}

#[unsafe(no_mangle)]
extern "C" fn cpaCyStopInstance(handle: CpaInstanceHandle) -> CpaStatus {
    device::index(handle).map_or(CPA_STATUS_INVALID_PARAM, |_| CPA_STATUS_SUCCESS)
}

#[unsafe(no_mangle)]
extern "C" fn cpaCySetAddressTranslation(_handle: CpaInstanceHandle, translate: CpaVirtualToPhysical) -> CpaStatus {
    if translate.is_some() { CPA_STATUS_SUCCESS } else { CPA_STATUS_INVALID_PARAM }
}

#[unsafe(no_mangle)]
extern "C" fn cpaCyInstanceSetNotificationCb(
    handle: CpaInstanceHandle,
    callback: CpaCyInstanceNotificationCbFunc,
    tag: *mut c_void,
) -> CpaStatus {
    let Some(index) = device::index(handle) else { return CPA_STATUS_INVALID_PARAM };
    device::get().notify(index, callback, tag as usize);
    CPA_STATUS_SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaCyBufferListGetMetaSize(_: CpaInstanceHandle, buffers: u32, size: *mut u32) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    unsafe { meta_size(buffers, size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaCyRsaDecrypt(
    handle: CpaInstanceHandle,
    callback: CpaCyGenFlatBufCbFunc,
    tag: *mut c_void,
    op: *const CpaCyRsaDecryptOpData,
    out: *mut CpaFlatBuffer,
) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    let Some(data) = (unsafe { load(op) }) else { return CPA_STATUS_INVALID_PARAM };
    // SAFETY: as above.
    let Some(key) = (unsafe { load(data.pRecipientPrivateKey) }) else { return CPA_STATUS_INVALID_PARAM };
    // SAFETY: as above.
    let Some(to) = (unsafe { load(out) }).map(Region::of) else { return CPA_STATUS_INVALID_PARAM };
    let input = Region::of(data.inputData);
    let (work, mut inputs) = if key.privateKeyRepType == CPA_CY_RSA_PRIVATE_KEY_REP_TYPE_2 {
        let key = key.privateKeyRep2;
        let numbers = [key.prime1P, key.prime2Q, key.exponent1Dp, key.exponent2Dq, key.coefficientQInv].map(Region::of);
        (Work::RsaCrt { input, key: numbers }, numbers.to_vec())
    } else {
        let key = key.privateKeyRep1;
        let (exponent, modulus) = (Region::of(key.privateExponentD), Region::of(key.modulusN));
        (Work::ModExp { base: input, exponent, modulus }, vec![exponent, modulus])
    };
    inputs.push(input);
    let structures = vec![whole(op), whole(data.pRecipientPrivateKey), whole(out)];
    let call = Call::Flat { callback, tag: tag as usize, op: op as usize, out: out as usize };
    submit(handle, Submission { call, work, inputs, outputs: vec![to], structures })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaCyRsaEncrypt(
    handle: CpaInstanceHandle,
    callback: CpaCyGenFlatBufCbFunc,
    tag: *mut c_void,
    op: *const CpaCyRsaEncryptOpData,
    out: *mut CpaFlatBuffer,
) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    let Some(data) = (unsafe { load(op) }) else { return CPA_STATUS_INVALID_PARAM };
    // SAFETY: as above.
    let Some(key) = (unsafe { load(data.pPublicKey) }) else { return CPA_STATUS_INVALID_PARAM };
    // SAFETY: as above.
    let Some(to) = (unsafe { load(out) }).map(Region::of) else { return CPA_STATUS_INVALID_PARAM };
    let [base, exponent, modulus] = [data.inputData, key.publicExponentE, key.modulusN].map(Region::of);
    let work = Work::ModExp { base, exponent, modulus };
    let structures = vec![whole(op), whole(data.pPublicKey), whole(out)];
    let call = Call::Flat { callback, tag: tag as usize, op: op as usize, out: out as usize };
    submit(handle, Submission { call, work, inputs: vec![base, exponent, modulus], outputs: vec![to], structures })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaCyLnModExp(
    handle: CpaInstanceHandle,
    callback: CpaCyGenFlatBufCbFunc,
    tag: *mut c_void,
    op: *const CpaCyLnModExpOpData,
    out: *mut CpaFlatBuffer,
) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    let Some(data) = (unsafe { load(op) }) else { return CPA_STATUS_INVALID_PARAM };
    // SAFETY: as above.
    let Some(to) = (unsafe { load(out) }).map(Region::of) else { return CPA_STATUS_INVALID_PARAM };
    let [base, exponent, modulus] = [data.base, data.exponent, data.modulus].map(Region::of);
    let work = Work::ModExp { base, exponent, modulus };
    let structures = vec![whole(op), whole(out)];
    let call = Call::Flat { callback, tag: tag as usize, op: op as usize, out: out as usize };
    submit(handle, Submission { call, work, inputs: vec![base, exponent, modulus], outputs: vec![to], structures })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaCyEcdsaSignRS(
    handle: CpaInstanceHandle,
    callback: CpaCyEcdsaSignRSCbFunc,
    tag: *mut c_void,
    op: *const CpaCyEcdsaSignRSOpData,
    _status: *mut CpaBoolean,
    r: *mut CpaFlatBuffer,
    s: *mut CpaFlatBuffer,
) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    let Some(data) = (unsafe { load(op) }) else { return CPA_STATUS_INVALID_PARAM };
    // SAFETY: as above.
    let (Some(to_r), Some(to_s)) = (unsafe { load(r) }, unsafe { load(s) }) else { return CPA_STATUS_INVALID_PARAM };
    let all = [data.xg, data.yg, data.n, data.q, data.a, data.b, data.k, data.m, data.d].map(Region::of);
    let [_, _, _, prime, _, _, nonce, digest, key] = all;
    let work = Work::Ecdsa { prime, nonce, digest, key };
    let outputs = vec![Region::of(to_r), Region::of(to_s)];
    let structures = vec![whole(op), whole(r), whole(s)];
    let call = Call::Sign { callback, tag: tag as usize, op: op as usize, r: r as usize, s: s as usize };
    submit(handle, Submission { call, work, inputs: all.to_vec(), outputs, structures })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaCyEcPointMultiply(
    handle: CpaInstanceHandle,
    callback: CpaCyEcPointMultiplyCbFunc,
    tag: *mut c_void,
    op: *const CpaCyEcPointMultiplyOpData,
    _status: *mut CpaBoolean,
    x: *mut CpaFlatBuffer,
    y: *mut CpaFlatBuffer,
) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    let Some(data) = (unsafe { load(op) }) else { return CPA_STATUS_INVALID_PARAM };
    // SAFETY: as above.
    let (Some(to_x), Some(to_y)) = (unsafe { load(x) }, unsafe { load(y) }) else { return CPA_STATUS_INVALID_PARAM };
    let all = [data.k, data.xg, data.yg, data.a, data.b, data.q].map(Region::of);
    let [scalar, from_x, from_y, _, _, prime] = all;
    let work = Work::Multiply { prime, scalar, x: from_x, y: from_y };
    let outputs = vec![Region::of(to_x), Region::of(to_y)];
    let structures = vec![whole(op), whole(x), whole(y)];
    let call = Call::Point { callback, tag: tag as usize, op: op as usize, x: x as usize, y: y as usize };
    submit(handle, Submission { call, work, inputs: all.to_vec(), outputs, structures })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaCyEcMontEdwdsPointMultiply(
    handle: CpaInstanceHandle,
    callback: CpaCyEcPointMultiplyCbFunc,
    tag: *mut c_void,
    op: *const CpaCyEcMontEdwdsPointMultiplyOpData,
    _status: *mut CpaBoolean,
    x: *mut CpaFlatBuffer,
    y: *mut CpaFlatBuffer,
) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    let Some(data) = (unsafe { load(op) }) else { return CPA_STATUS_INVALID_PARAM };
    // SAFETY: as above.
    let Some(to_x) = (unsafe { load(x) }) else { return CPA_STATUS_INVALID_PARAM };
    let sized = [data.k, data.x, to_x].iter().all(|buffer| buffer.dataLenInBytes == 32);
    if data.curveType != CPA_CY_EC_MONTEDWDS_CURVE25519_TYPE || data.generator != CPA_FALSE || !sized {
        return CPA_STATUS_INVALID_PARAM;
    }
    let [scalar, from] = [data.k, data.x].map(Region::of);
    let work = Work::X25519 { scalar, x: from };
    let structures = vec![whole(op), whole(x)];
    let call = Call::Point { callback, tag: tag as usize, op: op as usize, x: x as usize, y: y as usize };
    let outputs = vec![Region::of(to_x)];
    submit(handle, Submission { call, work, inputs: vec![scalar, from], outputs, structures })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaCySymSessionCtxGetSize(
    _handle: CpaInstanceHandle,
    _setup: *const CpaCySymSessionSetupData,
    size: *mut u32,
) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    unsafe { put(size, CONTEXT) }
}

/// The callback of a session goes with it, so it stands in the table as well.
static CALLBACKS: std::sync::Mutex<std::collections::BTreeMap<usize, CpaCySymCbFunc>> =
    std::sync::Mutex::new(std::collections::BTreeMap::new());

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaCySymInitSession(
    _handle: CpaInstanceHandle,
    callback: CpaCySymCbFunc,
    setup: *const CpaCySymSessionSetupData,
    context: CpaCySymSessionCtx,
) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    let Some(setup) = (unsafe { load(setup) }) else { return CPA_STATUS_INVALID_PARAM };
    let (cipher, hash) = (setup.cipherSetupData, setup.hashSetupData);
    // SAFETY: the key is as long as the setup says.
    let key = unsafe { Region::new(cipher.pCipherKey, cipher.cipherKeyLenInBytes as usize).read() };
    let auth = hash.authModeSetupData;
    let algorithm = match (cipher.cipherAlgorithm, hash.hashAlgorithm) {
        (CPA_CY_SYM_CIPHER_AES_GCM, CPA_CY_SYM_HASH_AES_GCM) => {
            Algorithm::Gcm { additional: auth.aadLenInBytes as usize }
        }
        (CPA_CY_SYM_CIPHER_AES_CBC, CPA_CY_SYM_HASH_SHA256) => {
            // SAFETY: as above.
            let key = unsafe { Region::new(auth.authKey, auth.authKeyLenInBytes as usize).read() };
            Algorithm::CbcHmacSha256 { key }
        }
        _ => return CPA_STATUS_UNSUPPORTED,
    };
    let encrypt = cipher.cipherDirection == CPA_CY_SYM_CIPHER_DIRECTION_ENCRYPT;
    let tag = hash.digestResultLenInBytes as usize;
    if !device::get().pinned.has(Region::new(context.cast::<u8>(), CONTEXT as usize)) {
        device::get().tally(Count::NotPinned);
    }
    lock(&device::get().sessions).insert(context as usize, Session { algorithm, key, encrypt, tag });
    lock(&CALLBACKS).insert(context as usize, callback);
    CPA_STATUS_SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cpaCySymRemoveSession(_handle: CpaInstanceHandle, context: CpaCySymSessionCtx) -> CpaStatus {
    if device::get().remove_session(context as usize) { CPA_STATUS_SUCCESS } else { CPA_STATUS_RETRY }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaCySymSessionInUse(context: CpaCySymSessionCtx, in_use: *mut CpaBoolean) -> CpaStatus {
    let answer = if device::get().session_in_use(context as usize) { CPA_TRUE } else { CPA_FALSE };
    // SAFETY: the caller's, as the API has it.
    unsafe { put(in_use, answer) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cpaCySymPerformOp(
    handle: CpaInstanceHandle,
    tag: *mut c_void,
    op: *const CpaCySymOpData,
    from: *const CpaBufferList,
    to: *mut CpaBufferList,
    _verified: *mut CpaBoolean,
) -> CpaStatus {
    // SAFETY: the caller's, as the API has it.
    let Some(data) = (unsafe { load(op) }) else { return CPA_STATUS_INVALID_PARAM };
    // SAFETY: as above.
    let (Some(source), Some(target)) = (unsafe { regions(from) }, unsafe { regions(to) }) else {
        return CPA_STATUS_INVALID_PARAM;
    };
    // SAFETY: as above.
    let meta = unsafe { load(from) }.map_or(std::ptr::null_mut(), |list| list.pPrivateMetaData);
    let ([source], [target]) = (&source[..], &target[..]) else { return CPA_STATUS_UNSUPPORTED };
    let session = data.sessionCtx as usize;
    let Some(keys) = lock(&device::get().sessions).get(&session).cloned() else { return CPA_STATUS_INVALID_PARAM };
    let Some(callback) = lock(&CALLBACKS).get(&session).copied() else { return CPA_STATUS_FAIL };
    let part = |whole: &Region, from: u32, len: u32| {
        let (from, len) = (from as usize, len as usize);
        (from + len <= whole.len).then_some(Region { at: whole.at + from, len })
    };
    let text = part(source, data.cryptoStartSrcOffsetInBytes, data.messageLenToCipherInBytes);
    let hashed = part(source, data.hashStartSrcOffsetInBytes, data.messageLenToHashInBytes);
    let written = part(target, data.cryptoStartSrcOffsetInBytes, data.messageLenToCipherInBytes);
    let (Some(text), Some(written)) = (text, written) else { return CPA_STATUS_INVALID_PARAM };
    let iv = Region::new(data.pIv, data.ivLenInBytes as usize);
    let digest = Region::new(data.pDigestResult, keys.tag);
    let mut inputs = vec![iv, text, Region::new(meta.cast::<u8>(), META as usize)];
    let (additional, hashed) = match &keys.algorithm {
        Algorithm::Gcm { additional } => {
            (Region::new(data.pAdditionalAuthData, additional.next_multiple_of(16)), Region { at: text.at, len: 0 })
        }
        Algorithm::CbcHmacSha256 { .. } => {
            // What is hashed starts no later than the text and ends with it.
            let Some(hashed) =
                hashed.filter(|hashed| hashed.at <= text.at && hashed.at + hashed.len == text.at + text.len)
            else {
                return CPA_STATUS_INVALID_PARAM;
            };
            (Region { at: text.at, len: 0 }, hashed)
        }
    };
    inputs.extend([additional, hashed]);
    let mut outputs = vec![written];
    let with = if keys.encrypt { &mut outputs } else { &mut inputs };
    with.push(digest);
    let structures = vec![whole(op), whole(from)];
    let work = Work::Symmetric { session, keys, iv, additional, text, hashed, tag: digest };
    let call = Call::Symmetric { callback, tag: tag as usize, op: op as usize, to: to as usize };
    submit(handle, Submission { call, work, inputs, outputs, structures })
}

#[unsafe(no_mangle)]
extern "C" fn qaeMemAllocNUMA(size: usize, _node: c_int, alignment: usize) -> *mut c_void {
    device::get().pinned.allocate(size, alignment).cast()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qaeMemFreeNUMA(at: *mut *mut c_void) {
    // SAFETY: the caller's, as the API has it.
    if let Some(memory) = unsafe { load(at.cast_const()) } {
        device::get().free(memory as usize, true);
        // SAFETY: it was read just so.
        unsafe { at.write(std::ptr::null_mut()) };
    }
}

/// Does not zero: what is in the memory is the caller's to answer for.
#[unsafe(no_mangle)]
unsafe extern "C" fn qaeMemFreeNonZeroNUMA(at: *mut *mut c_void) {
    // SAFETY: the caller's, as the API has it.
    if let Some(memory) = unsafe { load(at.cast_const()) } {
        device::get().free(memory as usize, false);
        // SAFETY: it was read just so.
        unsafe { at.write(std::ptr::null_mut()) };
    }
}

#[unsafe(no_mangle)]
extern "C" fn qaeVirtToPhysNUMA(at: *mut c_void) -> u64 {
    if device::get().pinned.has(Region::new(at.cast_const().cast::<u8>(), 1)) { at as u64 } else { 0 }
}

/// What an instance of that device tells of itself.
pub(crate) fn describe(instance: &str, package: usize) -> CpaInstanceInfo2 {
    // SAFETY: every field is a number or an array of numbers.
    let mut filled: CpaInstanceInfo2 = unsafe { std::mem::zeroed() };
    name(&mut filled.vendorName, "Quadway simulator");
    name(&mut filled.partName, "simulator");
    name(&mut filled.swVersion, "0.0 simulator");
    name(&mut filled.instName, instance);
    name(&mut filled.instID, &instance.replace(' ', "_"));
    filled.physInstId.packageId = u16::try_from(package).unwrap_or_default();
    filled.operState = CPA_OPER_STATE_UP;
    filled.requiresPhysicallyContiguousMemory = CPA_TRUE;
    filled.isPolled = CPA_TRUE;
    filled.isOffloaded = CPA_FALSE;
    filled
}

/// # Safety
/// `size` is the caller's, as the API has it.
pub(crate) unsafe fn meta_size(_buffers: u32, size: *mut u32) -> CpaStatus {
    // SAFETY: the caller answers for it.
    unsafe { put(size, META) }
}

pub(crate) fn submit(handle: CpaInstanceHandle, submission: Submission) -> CpaStatus {
    device::index(handle).map_or(CPA_STATUS_INVALID_PARAM, |index| device::get().submit(index, submission))
}

pub(crate) fn whole<T>(at: *const T) -> Region {
    Region::new(at, size_of::<T>())
}

fn name(field: &mut [u8], text: &str) {
    field[..text.len()].copy_from_slice(text.as_bytes());
}

/// # Safety
/// `at` is null or points to a `T` of the caller's.
pub(crate) unsafe fn put<T>(at: *mut T, value: T) -> CpaStatus {
    if at.is_null() {
        return CPA_STATUS_INVALID_PARAM;
    }
    // SAFETY: it is not null, so it points to a `T`.
    unsafe { at.write_unaligned(value) };
    CPA_STATUS_SUCCESS
}
