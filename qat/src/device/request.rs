//! One operation in the words of the CPA: what is laid out in a slot, the call, and what is read back.

use std::ffi::c_void;

use qat_sys::{
    CPA_CY_EC_FIELD_TYPE_PRIME, CPA_CY_EC_MONTEDWDS_CURVE25519_TYPE, CPA_CY_PRIORITY_NORMAL,
    CPA_CY_RSA_PRIVATE_KEY_REP_TYPE_2, CPA_CY_RSA_VERSION_TWO_PRIME, CPA_CY_SYM_ALG_CHAIN_ORDER_CIPHER_THEN_HASH,
    CPA_CY_SYM_ALG_CHAIN_ORDER_HASH_THEN_CIPHER, CPA_CY_SYM_CIPHER_AES_CBC, CPA_CY_SYM_CIPHER_AES_GCM,
    CPA_CY_SYM_CIPHER_DIRECTION_DECRYPT, CPA_CY_SYM_CIPHER_DIRECTION_ENCRYPT, CPA_CY_SYM_HASH_AES_GCM,
    CPA_CY_SYM_HASH_MODE_AUTH, CPA_CY_SYM_HASH_SHA256, CPA_CY_SYM_OP_ALGORITHM_CHAINING, CPA_CY_SYM_PACKET_TYPE_FULL,
    CPA_DC_ASB_UNCOMP_STATIC_DYNAMIC_WITH_STORED_HDRS, CPA_DC_CRC32, CPA_DC_DEFLATE, CPA_DC_DIR_COMPRESS,
    CPA_DC_DIR_DECOMPRESS, CPA_DC_FATALERR, CPA_DC_FLUSH_FINAL, CPA_DC_FLUSH_FULL, CPA_DC_HT_FULL_DYNAMIC,
    CPA_DC_INCOMPLETE_FILE_ERR, CPA_DC_INVALID_BLOCK_TYPE, CPA_DC_L4, CPA_DC_MIN_3_BYTE_MATCH, CPA_DC_OK,
    CPA_DC_OVERFLOW, CPA_DC_STATELESS, CPA_DC_WINSIZE_32K, CPA_FALSE, CPA_STATUS_FAIL, CPA_STATUS_RETRY,
    CPA_STATUS_SUCCESS, CPA_STATUS_UNSUPPORTED, CPA_TRUE, CpaBoolean, CpaBufferList,
    CpaCyEcMontEdwdsPointMultiplyOpData, CpaCyEcPointMultiplyOpData, CpaCyEcdsaSignRSOpData, CpaCyRsaDecryptOpData,
    CpaCyRsaPrivateKey, CpaCyRsaPrivateKeyRep1, CpaCyRsaPrivateKeyRep2, CpaCySymOp, CpaCySymOpData,
    CpaCySymSessionSetupData, CpaDcOpData, CpaDcRqResults, CpaDcSessionDir, CpaDcSessionSetupData, CpaFlatBuffer,
    CpaInstanceHandle, CpaStatus, Library,
};
use zeroize::Zeroizing;

use super::heard;
use super::memory::{LONGEST_BOTH, LONGEST_TEXT, Slot};
use crate::deflate;
use crate::job::{Answer, CipherWork, Direction, InflateWork, Operation, Output, Reason, Text, Work};
use crate::key::{Cipher, CipherKey, Domain};

/// What was laid out, and where the result will be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Request {
    Rsa {
        op: *mut CpaCyRsaDecryptOpData,
        out: *mut CpaFlatBuffer,
        result: CpaFlatBuffer,
    },
    Ecdsa {
        op: *mut CpaCyEcdsaSignRSOpData,
        r: *mut CpaFlatBuffer,
        s: *mut CpaFlatBuffer,
        result: [CpaFlatBuffer; 2],
    },
    Ecdh {
        op: *mut CpaCyEcPointMultiplyOpData,
        x: *mut CpaFlatBuffer,
        y: *mut CpaFlatBuffer,
        result: [CpaFlatBuffer; 2],
    },
    X25519 {
        op: *mut CpaCyEcMontEdwdsPointMultiplyOpData,
        x: *mut CpaFlatBuffer,
        y: *mut CpaFlatBuffer,
        result: CpaFlatBuffer,
    },
    Cipher {
        op: *mut CpaCySymOpData,
        list: *mut CpaBufferList,
        session: *mut c_void,
        text: CpaFlatBuffer,
        tag: Option<CpaFlatBuffer>,
    },
    Deflate {
        op: *mut CpaDcOpData,
        stream: Stream,
    },
    Inflate(Stream),
}

/// What making a text shorter and making it long again have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream {
    from: *mut CpaBufferList,
    to: *mut CpaBufferList,
    session: *mut c_void,
    results: *mut CpaDcRqResults,
    result: CpaFlatBuffer,
}

/// An instance does one or the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Crypto,
    Compression,
}

impl Service {
    pub(crate) fn of(operation: Operation) -> Self {
        match operation {
            Operation::RsaPrivate(_)
            | Operation::EcdsaSign(_)
            | Operation::Ecdh(_)
            | Operation::X25519
            | Operation::Cipher(..) => Self::Crypto,
            Operation::Deflate | Operation::Inflate => Self::Compression,
        }
    }
}

// SAFETY: the pointers are into the slot that goes with the request, which one thread at a time holds.
unsafe impl Send for Request {}

/// Whether the library has the functions for it, and the device by what is known of it.
pub(crate) fn has(library: &Library, operation: Operation) -> bool {
    let cpa = &library.cpa;
    match operation {
        // HW 1.7 has no more than 4096 bits.
        Operation::RsaPrivate(bits) => [2048, 3072, 4096].contains(&bits) && cpa.cpaCyRsaDecrypt.is_ok(),
        Operation::EcdsaSign(_) => cpa.cpaCyEcdsaSignRS.is_ok(),
        Operation::Ecdh(_) => cpa.cpaCyEcPointMultiply.is_ok(),
        Operation::X25519 => cpa.cpaCyEcMontEdwdsPointMultiply.is_ok(),
        Operation::Cipher(..) => {
            cpa.cpaCySymSessionCtxGetSize.is_ok()
                && cpa.cpaCySymInitSession.is_ok()
                && cpa.cpaCySymPerformOp.is_ok()
                && cpa.cpaCySymRemoveSession.is_ok()
                && cpa.cpaCyBufferListGetMetaSize.is_ok()
        }
        Operation::Deflate => has_compression(library) && cpa.cpaDcCompressData2.is_ok(),
        Operation::Inflate => has_compression(library) && cpa.cpaDcDecompressData.is_ok(),
    }
}

/// Whether its structures are known, and its sessions can be had.
pub(crate) fn has_compression(library: &Library) -> bool {
    let cpa = &library.cpa;
    library.abi().compression
        && cpa.cpaDcGetSessionSize.is_ok()
        && cpa.cpaDcInitSession.is_ok()
        && cpa.cpaDcRemoveSession.is_ok()
        && cpa.cpaDcBufferListGetMetaSize.is_ok()
}

/// Bytes of text that a slot has to have room for, beside keys and structures.
pub(crate) fn room(work: &Work) -> usize {
    match work {
        Work::RsaPrivate { .. }
        | Work::EcdsaSign { .. }
        | Work::Ecdh { .. }
        | Work::X25519 { .. }
        | Work::Cipher(_) => work.len(),
        Work::Deflate { text, .. } => text.len() + deflate::longest(text.len()),
        Work::Inflate(InflateWork { text, length, .. }) => text.len().saturating_add(*length),
    }
}

/// Whether the work is within what a slot and a device take.
pub(crate) fn fits(work: &Work) -> bool {
    match work {
        Work::RsaPrivate { .. } | Work::EcdsaSign { .. } | Work::Ecdh { .. } | Work::X25519 { .. } => true,
        Work::Cipher(CipherWork { text, additional, .. }) => {
            !text.is_empty() && text.len() + additional.len() <= LONGEST_TEXT && additional.len() <= LONGEST_ADDITIONAL
        }
        Work::Deflate { text, .. } => !text.is_empty() && room(work) <= LONGEST_BOTH,
        Work::Inflate(InflateWork { text, length, .. }) => {
            !text.is_empty() && *length > 0 && room(work) <= LONGEST_BOTH
        }
    }
}

impl Request {
    /// None where there is no room, or no session.
    pub(crate) fn lay_out(
        work: &Work,
        slot: &mut Slot,
        library: &Library,
        instance: CpaInstanceHandle,
    ) -> Option<Self> {
        match work {
            Work::RsaPrivate { key, input } => {
                let [p, q, dp, dq, qinv] = &key.crt;
                let private = CpaCyRsaPrivateKey {
                    version: CPA_CY_RSA_VERSION_TWO_PRIME,
                    privateKeyRepType: CPA_CY_RSA_PRIVATE_KEY_REP_TYPE_2,
                    privateKeyRep1: CpaCyRsaPrivateKeyRep1 { modulusN: NOTHING, privateExponentD: NOTHING },
                    privateKeyRep2: CpaCyRsaPrivateKeyRep2 {
                        prime1P: slot.put(p)?,
                        prime2Q: slot.put(q)?,
                        exponent1Dp: slot.put(dp)?,
                        exponent2Dq: slot.put(dq)?,
                        coefficientQInv: slot.put(qinv)?,
                    },
                };
                let data =
                    CpaCyRsaDecryptOpData { pRecipientPrivateKey: slot.place(private)?, inputData: slot.put(input)? };
                let result = slot.space(key.size())?;
                Some(Self::Rsa { op: slot.place(data)?, out: slot.place(result)?, result })
            }
            Work::EcdsaSign { key, digest, nonce } => {
                let curve = key.curve();
                let domain = curve.domain();
                let fresh = if nonce.is_none() { Some(curve.fresh_nonce().ok()?) } else { None };
                let nonce = nonce.as_ref().or(fresh.as_ref())?;
                let data = CpaCyEcdsaSignRSOpData {
                    xg: slot.put(&domain.x)?,
                    yg: slot.put(&domain.y)?,
                    n: slot.put(&domain.order)?,
                    q: slot.put(&domain.prime)?,
                    a: slot.put(&domain.a)?,
                    b: slot.put(&domain.b)?,
                    k: slot.put(nonce)?,
                    m: slot.put(digest)?,
                    d: slot.put(&key.scalar)?,
                    fieldType: CPA_CY_EC_FIELD_TYPE_PRIME,
                };
                let result = [slot.space(curve.size())?, slot.space(curve.size())?];
                Some(Self::Ecdsa {
                    op: slot.place(data)?,
                    r: slot.place(result[0])?,
                    s: slot.place(result[1])?,
                    result,
                })
            }
            Work::Ecdh { key, x, y } => {
                let curve = key.curve();
                let Domain { prime, a, b, .. } = curve.domain();
                let data = CpaCyEcPointMultiplyOpData {
                    k: slot.put(&key.scalar)?,
                    xg: slot.put(x)?,
                    yg: slot.put(y)?,
                    a: slot.put(a)?,
                    b: slot.put(b)?,
                    q: slot.put(prime)?,
                    h: NOTHING,
                    fieldType: CPA_CY_EC_FIELD_TYPE_PRIME,
                };
                let result = [slot.space(curve.size())?, slot.space(curve.size())?];
                Some(Self::Ecdh { op: slot.place(data)?, x: slot.place(result[0])?, y: slot.place(result[1])?, result })
            }
            Work::X25519 { key, peer } => {
                // RFC 7748 has the least significant byte first, the CPA the most significant; and the CPA does not say
                // that it prepares either number, so that is done here.
                let mut scalar = Zeroizing::new(*key.scalar);
                scalar[0] &= 0xf8;
                scalar[31] = (scalar[31] & 0x7f) | 0x40;
                let mut x = *peer;
                x[31] &= 0x7f;
                scalar.reverse();
                x.reverse();
                let data = CpaCyEcMontEdwdsPointMultiplyOpData {
                    curveType: CPA_CY_EC_MONTEDWDS_CURVE25519_TYPE,
                    generator: CPA_FALSE,
                    k: slot.put(&scalar[..])?,
                    x: slot.put(&x)?,
                    y: NOTHING,
                };
                let (result, unused) = (slot.space(32)?, slot.space(32)?);
                Some(Self::X25519 { op: slot.place(data)?, x: slot.place(result)?, y: slot.place(unused)?, result })
            }
            Work::Cipher(work) => {
                let (setup, op, list, text, tag) = match work.key.cipher {
                    Cipher::Aes128Gcm | Cipher::Aes256Gcm => gcm(slot, work)?,
                    Cipher::Aes128CbcHmacSha256 | Cipher::Aes256CbcHmacSha256 => cbc_hmac(slot, work)?,
                };
                let metadata = library.cpa.cpaCyBufferListGetMetaSize.as_ref().ok()?;
                // SAFETY: writes one number where it is told to.
                let list = with_metadata(slot, list, |size| unsafe { metadata(instance, list.numBuffers, size) })?;
                let session = open_session(slot, library, instance, setup)?;
                let op = CpaCySymOpData { sessionCtx: session, ..op };
                let tag = (work.direction == Direction::Seal).then_some(tag);
                let Some(op) = slot.place(op) else {
                    close_session(library, instance, session);
                    return None;
                };
                Some(Self::Cipher { op, list, session, text, tag })
            }
            Work::Deflate { text, last } => {
                let mut op = empty_compression();
                op.flushFlag = if *last { CPA_DC_FLUSH_FINAL } else { CPA_DC_FLUSH_FULL };
                op.compressAndVerify = CPA_TRUE;
                let op = slot.place(op)?;
                let stream =
                    stream(slot, library, instance, (text, deflate::longest(text.len())), CPA_DC_DIR_COMPRESS)?;
                Some(Self::Deflate { op, stream })
            }
            Work::Inflate(InflateWork { text, length, .. }) => {
                Some(Self::Inflate(stream(slot, library, instance, (text, *length), CPA_DC_DIR_DECOMPRESS)?))
            }
        }
    }

    /// Gives it to the device. With success, and only then, the slot is the device's.
    pub(crate) fn submit(&self, library: &Library, instance: CpaInstanceHandle, tag: *mut c_void) -> CpaStatus {
        let cpa = &library.cpa;
        let unused: *mut CpaBoolean = std::ptr::null_mut();
        match *self {
            Self::Rsa { op, out, .. } => cpa.cpaCyRsaDecrypt.as_ref().map_or(CPA_STATUS_UNSUPPORTED, |call| {
                // SAFETY: both structures and all they name are in the slot, which is kept until the callback.
                unsafe { call(instance, Some(answered_flat), tag, op, out) }
            }),
            Self::Ecdsa { op, r, s, .. } => cpa.cpaCyEcdsaSignRS.as_ref().map_or(CPA_STATUS_UNSUPPORTED, |call| {
                // SAFETY: as above; the status is written in synchronous mode alone.
                unsafe { call(instance, Some(answered_pair), tag, op, unused, r, s) }
            }),
            Self::Ecdh { op, x, y, .. } => cpa.cpaCyEcPointMultiply.as_ref().map_or(CPA_STATUS_UNSUPPORTED, |call| {
                // SAFETY: as above.
                unsafe { call(instance, Some(answered_pair), tag, op, unused, x, y) }
            }),
            Self::X25519 { op, x, y, .. } => {
                cpa.cpaCyEcMontEdwdsPointMultiply.as_ref().map_or(CPA_STATUS_UNSUPPORTED, |call| {
                    // SAFETY: as above.
                    unsafe { call(instance, Some(answered_pair), tag, op, unused, x, y) }
                })
            }
            Self::Cipher { op, list, .. } => cpa.cpaCySymPerformOp.as_ref().map_or(CPA_STATUS_UNSUPPORTED, |call| {
                // SAFETY: as above; the session is in the slot too.
                unsafe { call(instance, tag, op, list, list, unused) }
            }),
            Self::Deflate { op, stream: Stream { from, to, session, results, .. } } => {
                cpa.cpaDcCompressData2.as_ref().map_or(CPA_STATUS_UNSUPPORTED, |call| {
                    // SAFETY: as above.
                    unsafe { call(instance, session, from, to, op, results, tag) }
                })
            }
            Self::Inflate(Stream { from, to, session, results, .. }) => {
                cpa.cpaDcDecompressData.as_ref().map_or(CPA_STATUS_UNSUPPORTED, |call| {
                    // SAFETY: as above.
                    unsafe { call(instance, session, from, to, results, CPA_DC_FLUSH_FINAL, tag) }
                })
            }
        }
    }

    /// What the device says of it. Only for a request that it has answered.
    pub(crate) fn answer(&self, slot: &Slot, status: CpaStatus, valid: bool) -> Answer {
        let (status, valid) = match *self {
            Self::Rsa { .. } | Self::Ecdsa { .. } | Self::Ecdh { .. } | Self::X25519 { .. } | Self::Cipher { .. } => {
                (status, valid)
            }
            Self::Deflate { stream, .. } => (status, stream.results().status == CPA_DC_OK),
            // What is wrong with the text is nothing that the device did.
            Self::Inflate(stream) => match stream.results().status {
                CPA_DC_OK => (status, true),
                CPA_DC_OVERFLOW..=CPA_DC_INVALID_BLOCK_TYPE | CPA_DC_INCOMPLETE_FILE_ERR => (CPA_STATUS_SUCCESS, false),
                _ => (CPA_STATUS_FAIL, false),
            },
        };
        match (status, valid) {
            (CPA_STATUS_SUCCESS, true) => Answer::Done(self.output(slot)),
            (CPA_STATUS_SUCCESS, false) => Answer::Invalid,
            _ => Answer::Failed(Reason::Failed),
        }
    }

    /// What the device wrote.
    fn output(&self, slot: &Slot) -> Output {
        match *self {
            Self::Rsa { result, .. } => Output::Bytes(slot.read(result)),
            Self::Ecdsa { result: [r, s], .. } => {
                Output::Signature { r: slot.read(r).to_vec(), s: slot.read(s).to_vec() }
            }
            Self::Ecdh { result: [x, y], .. } => Output::Point { x: slot.read(x), y: slot.read(y) },
            Self::X25519 { result, .. } => {
                let mut secret = slot.read(result);
                secret.reverse();
                Output::Bytes(secret)
            }
            Self::Cipher { text, tag, .. } => {
                let tag = tag.map(|tag| slot.read(tag).to_vec()).unwrap_or_default();
                // A tag comes with what was sealed.
                let text = slot.read(text).to_vec();
                let text = if tag.is_empty() { Text::opened(text) } else { Text::sealed(text) };
                Output::Text { text, tag }
            }
            Self::Deflate { stream, .. } | Self::Inflate(stream) => {
                let produced = stream.results().produced.min(stream.result.dataLenInBytes);
                let text = slot.read(CpaFlatBuffer { dataLenInBytes: produced, ..stream.result });
                Output::Text { text: Text::sealed(text.to_vec()), tag: Vec::new() }
            }
        }
    }

    /// Whether the slot is free of the library after this: a session may be in use for a moment longer.
    pub(crate) fn close(&self, library: &Library, instance: CpaInstanceHandle) -> bool {
        match *self {
            Self::Rsa { .. } | Self::Ecdsa { .. } | Self::Ecdh { .. } | Self::X25519 { .. } => true,
            Self::Cipher { session, .. } => close_session(library, instance, session),
            Self::Deflate { stream, .. } | Self::Inflate(stream) => {
                let Ok(close) = library.cpa.cpaDcRemoveSession.as_ref() else { return false };
                // SAFETY: the session was opened in a slot that is still held.
                let_go(|| unsafe { close(instance, stream.session) })
            }
        }
    }
}

impl Stream {
    fn results(&self) -> CpaDcRqResults {
        // SAFETY: they are in the slot of the request, aligned, and the device has given it back.
        unsafe { self.results.read() }
    }
}

/// Of a text, and of the room for what becomes of it.
fn stream(
    slot: &mut Slot,
    library: &Library,
    instance: CpaInstanceHandle,
    (text, room): (&[u8], usize),
    direction: CpaDcSessionDir,
) -> Option<Stream> {
    let (from, result) = (slot.put(text)?, slot.space(room)?);
    let metadata = library.cpa.cpaDcBufferListGetMetaSize.as_ref().ok()?;
    let mut with_metadata = |buffer| {
        let list = list(slot, buffer)?;
        // SAFETY: writes one number where it is told to.
        with_metadata(slot, list, |size| unsafe { metadata(instance, list.numBuffers, size) })
    };
    let (from, to) = (with_metadata(from)?, with_metadata(result)?);
    // SAFETY: every field is a number, for which zero is a value.
    let mut results: CpaDcRqResults = unsafe { std::mem::zeroed() };
    // As long as nobody says otherwise. The CRC of nothing is zero.
    results.status = CPA_DC_FATALERR;
    let results = slot.place(results)?;
    let session = open_stream(slot, library, instance, direction)?;
    Some(Stream { from, to, session, results, result })
}

/// The last thing that is laid out.
fn open_stream(
    slot: &mut Slot,
    library: &Library,
    instance: CpaInstanceHandle,
    direction: CpaDcSessionDir,
) -> Option<*mut c_void> {
    // SAFETY: every field is a number, for which zero is a value.
    let mut setup: CpaDcSessionSetupData = unsafe { std::mem::zeroed() };
    setup.compLevel = CPA_DC_L4;
    setup.compType = CPA_DC_DEFLATE;
    setup.huffType = CPA_DC_HT_FULL_DYNAMIC;
    setup.autoSelectBestHuffmanTree = CPA_DC_ASB_UNCOMP_STATIC_DYNAMIC_WITH_STORED_HDRS;
    setup.sessDirection = direction;
    setup.sessState = CPA_DC_STATELESS;
    setup.windowSize = CPA_DC_WINSIZE_32K;
    setup.minMatch = CPA_DC_MIN_3_BYTE_MATCH;
    setup.checksum = CPA_DC_CRC32;
    let setup = slot.place(setup)?;
    let (mut size, mut context) = (0, 0);
    let get_size = library.cpa.cpaDcGetSessionSize.as_ref().ok()?;
    // SAFETY: reads the setup, which is in the slot, and writes two numbers where it is told to.
    let status = unsafe { get_size(instance, setup, &raw mut size, &raw mut context) };
    if status != CPA_STATUS_SUCCESS {
        return None;
    }
    let session = slot.space(size as usize)?.pData.cast::<c_void>();
    let open = library.cpa.cpaDcInitSession.as_ref().ok()?;
    // SAFETY: the session has the size that the library asked for, and is in the slot; one without state has no context.
    let status = unsafe { open(instance, session, setup, std::ptr::null_mut(), Some(answered_stream)) };
    (status == CPA_STATUS_SUCCESS).then_some(session)
}

fn empty_compression() -> CpaDcOpData {
    // SAFETY: every field is a number or a pointer, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

type LaidOut = (CpaCySymSessionSetupData, CpaCySymOpData, CpaBufferList, CpaFlatBuffer, CpaFlatBuffer);

fn gcm(slot: &mut Slot, work: &CipherWork) -> Option<LaidOut> {
    let CipherWork { key, direction, iv, additional, text, tag } = work;
    let mut setup = setup(slot, key, *direction)?;
    setup.cipherSetupData.cipherAlgorithm = CPA_CY_SYM_CIPHER_AES_GCM;
    setup.hashSetupData.hashAlgorithm = CPA_CY_SYM_HASH_AES_GCM;
    setup.hashSetupData.authModeSetupData.aadLenInBytes = u32::try_from(additional.len()).ok()?;
    let mut op = empty_operation();
    // Sixteen bytes are to be there, whatever the length.
    let mut whole_iv = [0; 16];
    whole_iv[..iv.len()].copy_from_slice(iv);
    op.pIv = slot.put(&whole_iv)?.pData;
    op.ivLenInBytes = u32::try_from(iv.len()).ok()?;
    // Whole blocks, and at least one.
    let mut padded = additional.clone();
    padded.resize(additional.len().max(1).next_multiple_of(16), 0);
    op.pAdditionalAuthData = slot.put(&padded)?.pData;
    let text = slot.put(text)?;
    op.messageLenToCipherInBytes = text.dataLenInBytes;
    let tag = put_tag(slot, tag)?;
    op.pDigestResult = tag.pData;
    Some((setup, op, list(slot, text)?, text, tag))
}

fn cbc_hmac(slot: &mut Slot, work: &CipherWork) -> Option<LaidOut> {
    let CipherWork { key, direction, iv, additional, text, tag } = work;
    let mut setup = setup(slot, key, *direction)?;
    setup.cipherSetupData.cipherAlgorithm = CPA_CY_SYM_CIPHER_AES_CBC;
    setup.hashSetupData.hashAlgorithm = CPA_CY_SYM_HASH_SHA256;
    let hash_key = slot.put(&key.hash_key)?;
    setup.hashSetupData.authModeSetupData.authKey = hash_key.pData;
    setup.hashSetupData.authModeSetupData.authKeyLenInBytes = hash_key.dataLenInBytes;
    let mut op = empty_operation();
    let own_iv = slot.put(iv)?;
    (op.pIv, op.ivLenInBytes) = (own_iv.pData, own_iv.dataLenInBytes);
    let whole = slot.put(&Zeroizing::new([additional.as_slice(), iv, text].concat()))?;
    let before = u32::try_from(additional.len() + iv.len()).ok()?;
    op.cryptoStartSrcOffsetInBytes = before;
    op.messageLenToCipherInBytes = u32::try_from(text.len()).ok()?;
    op.messageLenToHashInBytes = whole.dataLenInBytes;
    let tag = put_tag(slot, tag)?;
    op.pDigestResult = tag.pData;
    let text = CpaFlatBuffer {
        dataLenInBytes: op.messageLenToCipherInBytes,
        pData: whole.pData.wrapping_add(before as usize),
    };
    Some((setup, op, list(slot, whole)?, text, tag))
}

/// Where the tag will be, or the one to compare with.
fn put_tag(slot: &mut Slot, tag: &[u8]) -> Option<CpaFlatBuffer> {
    if tag.is_empty() { slot.space(Cipher::TAG) } else { slot.put(tag) }
}

fn list(slot: &mut Slot, buffer: CpaFlatBuffer) -> Option<CpaBufferList> {
    Some(CpaBufferList {
        numBuffers: 1,
        pBuffers: slot.place(buffer)?,
        pUserData: std::ptr::null_mut(),
        pPrivateMetaData: std::ptr::null_mut(),
    })
}

fn with_metadata(
    slot: &mut Slot,
    mut list: CpaBufferList,
    ask: impl FnOnce(*mut u32) -> CpaStatus,
) -> Option<*mut CpaBufferList> {
    let mut size = 0;
    if ask(&raw mut size) != CPA_STATUS_SUCCESS {
        return None;
    }
    if size > 0 {
        list.pPrivateMetaData = slot.space(size as usize)?.pData.cast();
    }
    slot.place(list)
}

fn setup(slot: &mut Slot, key: &CipherKey, direction: Direction) -> Option<CpaCySymSessionSetupData> {
    // SAFETY: every field is a number or a pointer, for which zero is a value.
    let mut setup: CpaCySymSessionSetupData = unsafe { std::mem::zeroed() };
    let cipher_key = slot.put(&key.key)?;
    setup.sessionPriority = CPA_CY_PRIORITY_NORMAL;
    setup.symOperation = CPA_CY_SYM_OP_ALGORITHM_CHAINING;
    setup.cipherSetupData.pCipherKey = cipher_key.pData;
    setup.cipherSetupData.cipherKeyLenInBytes = cipher_key.dataLenInBytes;
    setup.hashSetupData.hashMode = CPA_CY_SYM_HASH_MODE_AUTH;
    setup.hashSetupData.digestResultLenInBytes = u32::try_from(Cipher::TAG).ok()?;
    setup.digestIsAppended = CPA_FALSE;
    setup.partialsNotRequired = CPA_TRUE;
    match direction {
        Direction::Seal => {
            setup.cipherSetupData.cipherDirection = CPA_CY_SYM_CIPHER_DIRECTION_ENCRYPT;
            setup.algChainOrder = CPA_CY_SYM_ALG_CHAIN_ORDER_CIPHER_THEN_HASH;
        }
        Direction::Open => {
            setup.cipherSetupData.cipherDirection = CPA_CY_SYM_CIPHER_DIRECTION_DECRYPT;
            setup.algChainOrder = CPA_CY_SYM_ALG_CHAIN_ORDER_HASH_THEN_CIPHER;
            setup.verifyDigest = CPA_TRUE;
        }
    }
    Some(setup)
}

fn empty_operation() -> CpaCySymOpData {
    // SAFETY: every field is a number or a pointer, for which zero is a value.
    let mut op: CpaCySymOpData = unsafe { std::mem::zeroed() };
    op.packetType = CPA_CY_SYM_PACKET_TYPE_FULL;
    op
}

/// The last thing that is laid out but for the operation, so that there is little to undo.
fn open_session(
    slot: &mut Slot,
    library: &Library,
    instance: CpaInstanceHandle,
    setup: CpaCySymSessionSetupData,
) -> Option<*mut c_void> {
    let mut size = 0;
    let setup = slot.place(setup)?;
    let get_size = library.cpa.cpaCySymSessionCtxGetSize.as_ref().ok()?;
    // SAFETY: reads the setup, which is in the slot, and writes one number where it is told to.
    let status = unsafe { get_size(instance, setup, &raw mut size) };
    if status != CPA_STATUS_SUCCESS {
        return None;
    }
    let context = slot.space(size as usize)?.pData.cast::<c_void>();
    let open = library.cpa.cpaCySymInitSession.as_ref().ok()?;
    // SAFETY: the context has the size that the library asked for, and is in the slot.
    let status = unsafe { open(instance, Some(answered_cipher), setup, context) };
    (status == CPA_STATUS_SUCCESS).then_some(context)
}

fn close_session(library: &Library, instance: CpaInstanceHandle, session: *mut c_void) -> bool {
    let Ok(close) = library.cpa.cpaCySymRemoveSession.as_ref() else { return false };
    // SAFETY: the session was opened in a slot that is still held.
    let_go(|| unsafe { close(instance, session) })
}

/// The library counts a request as pending for a moment after its callback.
fn let_go(close: impl Fn() -> CpaStatus) -> bool {
    for _ in 0..100 {
        match close() {
            CPA_STATUS_RETRY => std::thread::yield_now(),
            status => return status == CPA_STATUS_SUCCESS,
        }
    }
    false
}

unsafe extern "C" fn answered_flat(tag: *mut c_void, status: CpaStatus, _op: *mut c_void, _out: *mut CpaFlatBuffer) {
    // SAFETY: the tag is the one that was submitted.
    unsafe { heard(tag, status, true) };
}

unsafe extern "C" fn answered_pair(
    tag: *mut c_void,
    status: CpaStatus,
    _op: *mut c_void,
    valid: CpaBoolean,
    _first: *mut CpaFlatBuffer,
    _second: *mut CpaFlatBuffer,
) {
    // SAFETY: the tag is the one that was submitted.
    unsafe { heard(tag, status, valid == CPA_TRUE) };
}

unsafe extern "C" fn answered_cipher(
    tag: *mut c_void,
    status: CpaStatus,
    _kind: CpaCySymOp,
    _op: *mut c_void,
    _to: *mut CpaBufferList,
    valid: CpaBoolean,
) {
    // SAFETY: the tag is the one that was submitted.
    unsafe { heard(tag, status, valid == CPA_TRUE) };
}

/// Its results tell the rest.
unsafe extern "C" fn answered_stream(tag: *mut c_void, status: CpaStatus) {
    // SAFETY: the tag is the one that was submitted.
    unsafe { heard(tag, status, true) };
}

const NOTHING: CpaFlatBuffer = CpaFlatBuffer { dataLenInBytes: 0, pData: std::ptr::null_mut() };
/// As the header of the CPA has it for GCM.
const LONGEST_ADDITIONAL: usize = 240;
