//! `libcrypto_mb`: RSA, ECDSA, ECDH and X25519, eight at a time, with the 52-bit multiplications of AVX-512.
//!
//! Eight lanes go into a call; lanes that nobody fills are null pointers, whose status nobody looks at. Everything but the
//! calls themselves ([`Calls`]) is tried by the tests with OpenSSL in their place.
#![expect(unsafe_code, reason = "the calls into the library")]

use std::fmt;
use std::path::Path;

use qat_sys::crypto_mb::{
    CryptoMb as Functions, MBX_ALGO, MBX_ALGO_EC_NIST_P256, MBX_ALGO_EC_NIST_P384, MBX_ALGO_RSA_2K, MBX_ALGO_RSA_3K,
    MBX_ALGO_RSA_4K, MBX_ALGO_X25519,
};
use qat_sys::{Multi as Opened, multi};
use zeroize::Zeroizing;

use super::Multi;
use crate::job::{Answer, Operation, Output, Reason, Work};
use crate::key::Curve;

#[derive(Debug)]
pub(super) struct CryptoMb {
    calls: Box<dyn Calls>,
}

/// What the library has, lane by lane: up to [`LANES`] of them.
trait Calls: Send + Sync + fmt::Debug {
    fn has(&self, operation: Operation) -> bool;
    fn rsa(&self, bits: u32, lanes: &mut [RsaLane<'_>]) -> Status;
    fn sign(&self, curve: Curve, lanes: &mut [SignLane]) -> Status;
    fn ecdh(&self, curve: Curve, lanes: &mut [EcdhLane]) -> Status;
    fn x25519(&self, lanes: &mut [X25519Lane<'_>]) -> Status;
}

/// Four bits of each lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Status(u32);

/// Numbers are words, the least first; texts are bytes as they are sent.
struct RsaLane<'a> {
    from: &'a [u8],
    to: Zeroizing<Vec<u8>>,
    /// p, q, dP, dQ, qInv.
    crt: [Words; 5],
}

struct SignLane {
    /// As long as the order.
    digest: Vec<u8>,
    nonce: Words,
    key: Words,
    r: Vec<u8>,
    s: Vec<u8>,
}

struct EcdhLane {
    key: Words,
    x: Words,
    y: Words,
    to: Zeroizing<Vec<u8>>,
}

struct X25519Lane<'a> {
    key: &'a [u8; 32],
    peer: &'a [u8; 32],
    to: Zeroizing<Vec<u8>>,
}

type Words = Zeroizing<Vec<u64>>;

/// The library, and what is told of it.
pub(super) fn open(path: Option<&Path>) -> Result<(CryptoMb, String), String> {
    let opened = multi::crypto_mb(path).map_err(|error| error.to_string())?;
    let library = Library::new(opened)?;
    let told = format!("{}, on this CPU: {}", library.opened.path().display(), library.told());
    Ok((CryptoMb { calls: Box::new(library) }, told))
}

impl Multi for CryptoMb {
    fn name(&self) -> &'static str {
        "crypto_mb"
    }

    fn width(&self, operation: Operation) -> Option<usize> {
        self.calls.has(operation).then_some(LANES)
    }

    fn fits(&self, work: &Work) -> bool {
        match work {
            Work::RsaPrivate { key, input } => input.len() == key.size(),
            Work::EcdsaSign { key, digest, .. } => digest.len() <= key.curve().size(),
            Work::Ecdh { .. } | Work::X25519 { .. } => true,
            Work::Cipher(_) | Work::Deflate { .. } | Work::Inflate(_) => false,
        }
    }

    fn run(&self, operation: Operation, works: &[&Work]) -> Vec<Answer> {
        match operation {
            Operation::RsaPrivate(bits) => self.rsa(bits, works),
            Operation::EcdsaSign(curve) => self.sign(curve, works),
            Operation::Ecdh(curve) => self.ecdh(curve, works),
            Operation::X25519 => self.x25519(works),
            Operation::Cipher(..) | Operation::Deflate | Operation::Inflate => Vec::new(),
        }
    }
}

impl CryptoMb {
    fn rsa(&self, bits: u32, works: &[&Work]) -> Vec<Answer> {
        let mut lanes: Vec<_> = works.iter().copied().filter_map(RsaLane::new).collect();
        let status = self.calls.rsa(bits, &mut lanes);
        let outputs = lanes.into_iter().map(|lane| Output::Bytes(lane.to));
        answers(works.len(), status, outputs)
    }

    fn sign(&self, curve: Curve, works: &[&Work]) -> Vec<Answer> {
        let mut lanes: Vec<_> = works.iter().filter_map(|work| SignLane::new(curve, work)).collect();
        let status = self.calls.sign(curve, &mut lanes);
        let outputs = lanes.into_iter().map(|lane| Output::Signature { r: lane.r, s: lane.s });
        answers(works.len(), status, outputs)
    }

    fn ecdh(&self, curve: Curve, works: &[&Work]) -> Vec<Answer> {
        let mut lanes: Vec<_> = works.iter().copied().filter_map(EcdhLane::new).collect();
        let status = self.calls.ecdh(curve, &mut lanes);
        let outputs = lanes.into_iter().map(|lane| Output::Bytes(lane.to));
        answers(works.len(), status, outputs)
    }

    fn x25519(&self, works: &[&Work]) -> Vec<Answer> {
        let mut lanes: Vec<_> = works.iter().copied().filter_map(X25519Lane::new).collect();
        let status = self.calls.x25519(&mut lanes);
        let outputs = lanes.into_iter().map(|lane| Output::Bytes(lane.to));
        answers(works.len(), status, outputs)
    }
}

impl<'a> RsaLane<'a> {
    fn new(work: &'a Work) -> Option<Self> {
        let Work::RsaPrivate { key, input } = work else { return None };
        let crt = key.crt.each_ref().map(|number| words(number));
        Some(Self { from: input, to: Zeroizing::new(vec![0; key.size()]), crt })
    }
}

impl<'a> X25519Lane<'a> {
    fn new(work: &'a Work) -> Option<Self> {
        let Work::X25519 { key, peer } = work else { return None };
        Some(Self { key: &key.scalar, peer, to: Zeroizing::new(vec![0; peer.len()]) })
    }
}

impl SignLane {
    fn new(curve: Curve, work: &Work) -> Option<Self> {
        let Work::EcdsaSign { key, digest, nonce } = work else { return None };
        let size = curve.size();
        let nonce = match nonce {
            Some(nonce) => words(nonce),
            None => words(&curve.fresh_nonce().ok()?),
        };
        // A digest that is shorter than the order is the number it is.
        let digest = [&vec![0; size.saturating_sub(digest.len())], digest.as_slice()].concat();
        Some(Self { digest, nonce, key: words(&key.scalar), r: vec![0; size], s: vec![0; size] })
    }
}

impl EcdhLane {
    fn new(work: &Work) -> Option<Self> {
        let Work::Ecdh { key, x, y } = work else { return None };
        let to = Zeroizing::new(vec![0; key.curve().size()]);
        Some(Self { key: words(&key.scalar), x: words(x), y: words(y), to })
    }
}

/// Where a lane is missing, the whole call is taken to have failed, since it is not known which one it is.
fn answers(wanted: usize, status: Status, outputs: impl ExactSizeIterator<Item = Output>) -> Vec<Answer> {
    if outputs.len() != wanted {
        return (0..wanted).map(|_| Answer::Failed(Reason::Failed)).collect();
    }
    let answer = |(lane, output)| match status.of(lane) {
        OK => Answer::Done(output),
        // A peer's point of small order gives no secret. That is the CPU's to say.
        LOW_ORDER => Answer::Invalid,
        _ => Answer::Failed(Reason::Refused),
    };
    outputs.enumerate().map(answer).collect()
}

impl Status {
    fn of(self, lane: usize) -> u32 {
        self.0 >> (4 * lane) & 0xf
    }
}

/// Big-endian bytes, whole words of them, the least word first.
fn words(bytes: &[u8]) -> Words {
    let word = |chunk: &[u8]| chunk.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    Zeroizing::new(bytes.rchunks(8).map(word).collect())
}

/// The real one.
#[derive(Debug)]
struct Library {
    opened: Opened<Functions>,
    operations: Vec<Operation>,
}

impl Library {
    fn new(opened: Opened<Functions>) -> Result<Self, String> {
        let functions = opened.functions();
        let lacking = |_| "the library has no mbx_get_algo_info: version 11 or later is needed".to_owned();
        let information = *functions.mbx_get_algo_info.as_ref().map_err(lacking)?;
        // SAFETY: takes a number, asks the CPU.
        let does = |algorithm: MBX_ALGO| unsafe { information(algorithm) } & EIGHT != 0;
        let has = |operation: &Operation| {
            let (algorithm, is_there) = match operation {
                Operation::RsaPrivate(bits) => {
                    let is_there = functions.mbx_rsa_private_crt_mb8.is_ok()
                        && functions.mbx_RSA_private_crt_Method.is_ok()
                        && functions.mbx_RSA_Method_BufSize.is_ok();
                    let algorithm = match bits {
                        2048 => MBX_ALGO_RSA_2K,
                        3072 => MBX_ALGO_RSA_3K,
                        _ => MBX_ALGO_RSA_4K,
                    };
                    (algorithm, is_there)
                }
                Operation::EcdsaSign(Curve::P256) => {
                    (MBX_ALGO_EC_NIST_P256, functions.mbx_nistp256_ecdsa_sign_mb8.is_ok())
                }
                Operation::EcdsaSign(Curve::P384) => {
                    (MBX_ALGO_EC_NIST_P384, functions.mbx_nistp384_ecdsa_sign_mb8.is_ok())
                }
                Operation::Ecdh(Curve::P256) => (MBX_ALGO_EC_NIST_P256, functions.mbx_nistp256_ecdh_mb8.is_ok()),
                Operation::Ecdh(Curve::P384) => (MBX_ALGO_EC_NIST_P384, functions.mbx_nistp384_ecdh_mb8.is_ok()),
                Operation::X25519 => (MBX_ALGO_X25519, functions.mbx_x25519_mb8.is_ok()),
                Operation::Cipher(..) | Operation::Deflate | Operation::Inflate => return false,
            };
            is_there && does(algorithm)
        };
        let operations: Vec<_> = OPERATIONS.into_iter().filter(has).collect();
        if operations.is_empty() {
            return Err(format!(
                "{} does nothing on this CPU, which {}; OpenSSL does it all",
                opened.path().display(),
                missing_flags()
            ));
        }
        Ok(Self { opened, operations })
    }

    fn told(&self) -> String {
        self.operations.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

fn missing_flags() -> String {
    let flags = [
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512ifma", is_x86_feature_detected!("avx512ifma")),
        ("avx512vbmi2", is_x86_feature_detected!("avx512vbmi2")),
        ("adx", is_x86_feature_detected!("adx")),
        ("bmi2", is_x86_feature_detected!("bmi2")),
    ];
    let missing: Vec<_> = flags.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect();
    if missing.is_empty() {
        "has all that is known to be needed".to_owned()
    } else {
        format!("lacks {}", missing.join(", "))
    }
}

impl Calls for Library {
    fn has(&self, operation: Operation) -> bool {
        self.operations.contains(&operation)
    }

    fn rsa(&self, bits: u32, lanes: &mut [RsaLane<'_>]) -> Status {
        let functions = self.opened.functions();
        let (Ok(call), Ok(method), Ok(size), Ok(bits)) = (
            functions.mbx_rsa_private_crt_mb8.as_ref(),
            functions.mbx_RSA_private_crt_Method.as_ref(),
            functions.mbx_RSA_Method_BufSize.as_ref(),
            i32::try_from(bits),
        ) else {
            return REFUSED;
        };
        // SAFETY: takes a number; null where there is none for it.
        let method = unsafe { method(bits) };
        if method.is_null() {
            return REFUSED;
        }
        // SAFETY: the method is one that the library gave.
        let size = unsafe { size(method) };
        let mut scratch = Zeroizing::new(vec![0; usize::try_from(size).unwrap_or_default()]);
        let from = pointers(lanes, |lane| lane.from);
        let number = |which: usize| pointers(lanes, |lane: &RsaLane<'_>| lane.crt[which].as_slice());
        let [p, q, dp, dq, iq] = [0, 1, 2, 3, 4].map(number);
        let to = targets(lanes, |lane| &mut lane.to);
        // SAFETY: each lane's texts are as long as the modulus, its numbers half as long, and the scratch as the method
        // has it; lanes that are null are left out.
        let status = unsafe {
            call(
                from.as_ptr(),
                to.as_ptr(),
                p.as_ptr(),
                q.as_ptr(),
                dp.as_ptr(),
                dq.as_ptr(),
                iq.as_ptr(),
                bits,
                method,
                scratch.as_mut_ptr(),
            )
        };
        Status(status)
    }

    fn sign(&self, curve: Curve, lanes: &mut [SignLane]) -> Status {
        let functions = self.opened.functions();
        let call = match curve {
            Curve::P256 => functions.mbx_nistp256_ecdsa_sign_mb8.as_ref(),
            Curve::P384 => functions.mbx_nistp384_ecdsa_sign_mb8.as_ref(),
        };
        let Ok(call) = call else { return REFUSED };
        let digest = pointers(lanes, |lane| &lane.digest);
        let nonce = pointers(lanes, |lane| &lane.nonce);
        let key = pointers(lanes, |lane| &lane.key);
        let (mut r, mut s) = (targets(lanes, |lane| &mut lane.r), targets(lanes, |lane| &mut lane.s));
        // SAFETY: each text and number of a lane is as long as the order; lanes that are null are left out, and the
        // scratch is one that the library does without.
        let status = unsafe {
            call(r.as_mut_ptr(), s.as_mut_ptr(), digest.as_ptr(), nonce.as_ptr(), key.as_ptr(), std::ptr::null_mut())
        };
        Status(status)
    }

    fn ecdh(&self, curve: Curve, lanes: &mut [EcdhLane]) -> Status {
        let functions = self.opened.functions();
        let call = match curve {
            Curve::P256 => functions.mbx_nistp256_ecdh_mb8.as_ref(),
            Curve::P384 => functions.mbx_nistp384_ecdh_mb8.as_ref(),
        };
        let Ok(call) = call else { return REFUSED };
        let key = pointers(lanes, |lane| &lane.key);
        let (x, y) = (pointers(lanes, |lane| &lane.x), pointers(lanes, |lane| &lane.y));
        let mut to = targets(lanes, |lane| &mut lane.to);
        // SAFETY: each text and number of a lane is as long as the prime; lanes that are null are left out. Without third
        // coordinates the points are affine, and the library does without the scratch.
        let status = unsafe {
            call(to.as_mut_ptr(), key.as_ptr(), x.as_ptr(), y.as_ptr(), std::ptr::null(), std::ptr::null_mut())
        };
        Status(status)
    }

    fn x25519(&self, lanes: &mut [X25519Lane<'_>]) -> Status {
        let Ok(call) = self.opened.functions().mbx_x25519_mb8.as_ref() else { return REFUSED };
        let key = pointers(lanes, |lane| lane.key.as_slice());
        let peer = pointers(lanes, |lane| lane.peer.as_slice());
        let to = targets(lanes, |lane| &mut lane.to);
        // SAFETY: all of them are 32 bytes long; lanes that are null are left out.
        Status(unsafe { call(to.as_ptr(), key.as_ptr(), peer.as_ptr()) })
    }
}

/// Where each lane's text or number is; null for lanes that nobody fills.
fn pointers<L, T>(lanes: &[L], of: impl Fn(&L) -> &[T]) -> [*const T; LANES] {
    std::array::from_fn(|lane| lanes.get(lane).map_or(std::ptr::null(), |lane| of(lane).as_ptr()))
}

fn targets<L>(lanes: &mut [L], of: impl Fn(&mut L) -> &mut Vec<u8>) -> [*mut u8; LANES] {
    let mut lanes = lanes.iter_mut();
    std::array::from_fn(|_| lanes.next().map_or(std::ptr::null_mut(), |lane| of(lane).as_mut_ptr()))
}

const LANES: usize = 8;
/// The bit of `mbx_get_algo_info` that stands for eight lanes.
const EIGHT: u64 = 8;
const OK: u32 = 0;
const LOW_ORDER: u32 = 4;
/// What a lane whose pointer is null has, in all of them.
const REFUSED: Status = Status(0x2222_2222);
const OPERATIONS: [Operation; 8] = [
    Operation::RsaPrivate(2048),
    Operation::RsaPrivate(3072),
    Operation::RsaPrivate(4096),
    Operation::EcdsaSign(Curve::P256),
    Operation::EcdsaSign(Curve::P384),
    Operation::Ecdh(Curve::P256),
    Operation::Ecdh(Curve::P384),
    Operation::X25519,
];

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use openssl::bn::{BigNum, BigNumContext, BigNumRef};
    use openssl::ec::EcPoint;

    use super::*;
    use crate::Error;
    use crate::job::Direction;
    use crate::key::{Cipher, X25519Private};
    use crate::{cpu, selftest};

    /// Does with OpenSSL what the library does with the same numbers, and has the faults it is told to have.
    #[derive(Debug, Default)]
    pub(in crate::batch) struct StandIn {
        pub(in crate::batch) faults: Faults,
        /// How many lanes each call had.
        pub(in crate::batch) calls: Mutex<Vec<usize>>,
    }

    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub(in crate::batch) enum Faults {
        #[default]
        None,
        /// The answer of this lane has a wrong bit.
        Wrong(usize),
        /// The status of this lane is not good.
        Refused(usize),
    }

    impl StandIn {
        pub(in crate::batch) fn library(faults: Faults) -> CryptoMb {
            CryptoMb { calls: Box::new(Self { faults, calls: Mutex::default() }) }
        }

        fn after(&self, count: usize, outputs: &mut [&mut Vec<u8>]) -> Status {
            assert!((1..=LANES).contains(&count), "{count} lanes");
            self.calls.lock().unwrap().push(count);
            let mut status = (count..LANES).map(|lane| 2 << (4 * lane)).sum();
            match self.faults {
                Faults::None => {}
                Faults::Wrong(lane) => {
                    if let Some(output) = outputs.get_mut(lane) {
                        output[5] ^= 4;
                    }
                }
                Faults::Refused(lane) => status |= 1 << (4 * lane),
            }
            Status(status)
        }
    }

    fn number(words: &[u64]) -> BigNum {
        let bytes: Vec<u8> = words.iter().rev().flat_map(|word| word.to_be_bytes()).collect();
        BigNum::from_slice(&bytes).unwrap()
    }

    fn put(to: &mut Vec<u8>, number: &BigNumRef) {
        *to = number.to_vec_padded(i32::try_from(to.len()).unwrap()).unwrap();
    }

    fn modulo(context: &mut BigNumContext, f: impl FnOnce(&mut BigNum, &mut BigNumContext)) -> BigNum {
        let mut result = BigNum::new().unwrap();
        f(&mut result, context);
        result
    }

    impl Calls for StandIn {
        fn has(&self, operation: Operation) -> bool {
            OPERATIONS.contains(&operation)
        }

        fn rsa(&self, bits: u32, lanes: &mut [RsaLane<'_>]) -> Status {
            let mut c = BigNumContext::new().unwrap();
            for lane in &mut *lanes {
                assert_eq!((lane.from.len(), lane.to.len()), (bits as usize / 8, bits as usize / 8));
                assert!(lane.crt.iter().all(|words| words.len() == bits as usize / 128));
                let from = BigNum::from_slice(lane.from).unwrap();
                let [p, q, dp, dq, iq] = lane.crt.each_ref().map(|words| number(words));
                let first = modulo(&mut c, |r, c| r.mod_exp(&from, &dp, &p, c).unwrap());
                let second = modulo(&mut c, |r, c| r.mod_exp(&from, &dq, &q, c).unwrap());
                let difference = modulo(&mut c, |r, c| r.mod_sub(&first, &second, &p, c).unwrap());
                let factor = modulo(&mut c, |r, c| r.mod_mul(&difference, &iq, &p, c).unwrap());
                put(&mut lane.to, &(&second + &(&factor * &q)));
            }
            let count = lanes.len();
            self.after(count, &mut lanes.iter_mut().map(|lane| &mut *lane.to).collect::<Vec<_>>())
        }

        fn sign(&self, curve: Curve, lanes: &mut [SignLane]) -> Status {
            let (group, size) = (curve.group(), curve.size());
            let mut context = BigNumContext::new().unwrap();
            let order = BigNum::from_slice(&curve.domain().order).unwrap();
            for lane in &mut *lanes {
                assert_eq!((lane.digest.len(), lane.nonce.len(), lane.key.len()), (size, size / 8, size / 8));
                let (nonce, key) = (number(&lane.nonce), number(&lane.key));
                assert!(nonce.num_bits() > 0 && nonce < order);
                let mut point = EcPoint::new(group).unwrap();
                point.mul_generator2(group, &nonce, &mut context).unwrap();
                let (mut x, mut y) = (BigNum::new().unwrap(), BigNum::new().unwrap());
                point.affine_coordinates_gfp(group, &mut x, &mut y, &mut context).unwrap();
                let r = modulo(&mut context, |number, context| number.nnmod(&x, &order, context).unwrap());
                let digest = BigNum::from_slice(&lane.digest).unwrap();
                let product =
                    modulo(&mut context, |number, context| number.mod_mul(&r, &key, &order, context).unwrap());
                let sum =
                    modulo(&mut context, |number, context| number.mod_add(&product, &digest, &order, context).unwrap());
                let inverse =
                    modulo(&mut context, |number, context| number.mod_inverse(&nonce, &order, context).unwrap());
                let s =
                    modulo(&mut context, |number, context| number.mod_mul(&sum, &inverse, &order, context).unwrap());
                put(&mut lane.r, &r);
                put(&mut lane.s, &s);
            }
            let count = lanes.len();
            self.after(count, &mut lanes.iter_mut().map(|lane| &mut lane.s).collect::<Vec<_>>())
        }

        fn ecdh(&self, curve: Curve, lanes: &mut [EcdhLane]) -> Status {
            let group = curve.group();
            let mut c = BigNumContext::new().unwrap();
            for lane in &mut *lanes {
                let mut peer = EcPoint::new(group).unwrap();
                peer.set_affine_coordinates_gfp(group, &number(&lane.x), &number(&lane.y), &mut c).unwrap();
                let mut shared = EcPoint::new(group).unwrap();
                shared.mul2(group, &peer, &number(&lane.key), &mut c).unwrap();
                let (mut x, mut y) = (BigNum::new().unwrap(), BigNum::new().unwrap());
                shared.affine_coordinates_gfp(group, &mut x, &mut y, &mut c).unwrap();
                put(&mut lane.to, &x);
            }
            let count = lanes.len();
            self.after(count, &mut lanes.iter_mut().map(|lane| &mut *lane.to).collect::<Vec<_>>())
        }

        fn x25519(&self, lanes: &mut [X25519Lane<'_>]) -> Status {
            let mut low = 0;
            for (index, lane) in lanes.iter_mut().enumerate() {
                let key = std::sync::Arc::new(X25519Private::new(*lane.key));
                match cpu::run(&Work::X25519 { key, peer: *lane.peer }) {
                    Ok(Output::Bytes(secret)) => lane.to = secret,
                    _ => low |= LOW_ORDER << (4 * index),
                }
            }
            let count = lanes.len();
            let status = self.after(count, &mut lanes.iter_mut().map(|lane| &mut *lane.to).collect::<Vec<_>>());
            Status(status.0 | low)
        }
    }

    #[test]
    fn every_known_answer_comes_out_of_every_lane() {
        let library = StandIn::library(Faults::None);
        let mut tried = 0;
        for test in selftest::tests().iter().filter(|test| library.width(test.operation).is_some()) {
            assert!(library.fits(&test.work), "{}", test.operation);
            for count in [1, 3, LANES] {
                let answers = library.run(test.operation, &vec![&test.work; count]);
                assert_eq!(answers.len(), count);
                for answer in answers {
                    let Answer::Done(output) = answer else { panic!("{}: {answer:?}", test.operation) };
                    assert!(output.agrees(&test.answer), "{}", test.operation);
                    assert!(cpu::right(&test.work, &output, crate::Checks::Every), "{}", test.operation);
                }
            }
            tried += 1;
        }
        assert_eq!(tried, OPERATIONS.len());
    }

    #[test]
    fn a_lane_that_is_refused_fails_by_itself() {
        let library = StandIn::library(Faults::Refused(2));
        for test in selftest::tests().iter().filter(|test| library.width(test.operation).is_some()) {
            let answers = library.run(test.operation, &[&test.work; 4]);
            for (lane, answer) in answers.into_iter().enumerate() {
                match answer {
                    Answer::Done(output) if lane != 2 => assert!(output.agrees(&test.answer)),
                    Answer::Failed(Reason::Refused) if lane == 2 => {}
                    Answer::Done(_) | Answer::Invalid | Answer::Failed(_) => panic!("{} lane {lane}", test.operation),
                }
            }
        }
    }

    #[test]
    fn a_point_of_small_order_is_the_cpus_to_refuse() {
        let library = StandIn::library(Faults::None);
        let key = std::sync::Arc::new(X25519Private::generate().unwrap());
        let work = Work::X25519 { key, peer: [0; 32] };
        assert!(matches!(library.run(Operation::X25519, &[&work])[..], [Answer::Invalid]));
        assert!(matches!(cpu::run(&work), Err(Error::Peer)));
    }

    #[test]
    fn a_signature_without_a_nonce_has_a_fresh_one_and_verifies() {
        let library = StandIn::library(Faults::None);
        for test in selftest::tests() {
            let Work::EcdsaSign { key, digest, .. } = &test.work else { continue };
            // Shorter than the order too: SHA-256 with P-384.
            for length in [digest.len(), 32] {
                let digest = digest[..length].to_vec();
                let work = Work::EcdsaSign { key: std::sync::Arc::clone(key), digest, nonce: None };
                let mut seen = std::collections::BTreeSet::new();
                for answer in library.run(test.operation, &[&work; LANES]) {
                    let Answer::Done(output) = answer else { panic!("{answer:?}") };
                    assert!(cpu::right(&work, &output, crate::Checks::Every));
                    let Output::Signature { r, .. } = output else { unreachable!() };
                    seen.insert(r);
                }
                assert_eq!(seen.len(), LANES, "no nonce is used twice");
            }
        }
    }

    #[test]
    fn numbers_are_words_with_the_least_first() {
        assert_eq!(
            *words(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]),
            [0x090a_0b0c_0d0e_0f10, 0x0102_0304_0506_0708]
        );
    }

    #[test]
    fn ciphers_are_not_its_own() {
        let library = StandIn::library(Faults::None);
        assert_eq!(library.width(Operation::Cipher(Cipher::Aes128Gcm, Direction::Seal)), None);
    }
}
