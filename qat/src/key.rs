//! Keys, taken apart once into the numbers a device wants. The numbers are zeroed when the last user is gone.

use std::fmt;
use std::sync::{Arc, LazyLock, OnceLock};

use openssl::bn::{BigNum, BigNumContext, BigNumRef};
use openssl::ec::{EcGroup, EcKey, EcPoint};
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Private, Public};
use openssl::rsa::Rsa;
use zeroize::{Zeroize, Zeroizing};

/// A key that signs: RSA of at least 2048 bits, P-256 or P-384. Cheap to clone.
#[derive(Debug, Clone)]
pub enum PrivateKey {
    Rsa(Arc<RsaPrivate>),
    Ec(Arc<EcPrivate>),
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("not a private key in PEM or DER without a passphrase")]
    Unreadable { source: ErrorStack },
    #[error("a key of type {0}: only RSA, P-256 and P-384 keys sign here")]
    Type(String),
    #[error("an RSA key of {0} bits: at least 2048 and at most 8192 are taken, by whole bytes")]
    Bits(u32),
    #[error("the RSA key lacks its primes")]
    NoPrimes,
    #[error("the numbers of the key do not belong together")]
    Inconsistent,
    #[error("OpenSSL refuses the numbers of the key")]
    OpenSsl(#[from] ErrorStack),
}

impl PrivateKey {
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        Self::from_openssl(&PKey::private_key_from_pem(pem).map_err(|source| KeyError::Unreadable { source })?)
    }

    /// PKCS#8, PKCS#1 or SEC1.
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        Self::from_openssl(&PKey::private_key_from_der(der).map_err(|source| KeyError::Unreadable { source })?)
    }

    fn from_openssl(key: &PKey<Private>) -> Result<Self, KeyError> {
        match key.id() {
            Id::RSA => Ok(Self::Rsa(Arc::new(RsaPrivate::new(key.rsa()?)?))),
            Id::EC => Ok(Self::Ec(Arc::new(EcPrivate::new(key.ec_key()?)?))),
            other => Err(KeyError::Type(format!("{other:?}"))),
        }
    }

    /// The public half, as SubjectPublicKeyInfo.
    pub fn public_der(&self) -> Result<Vec<u8>, KeyError> {
        Ok(match self {
            Self::Rsa(key) => PKey::from_rsa(key.public.clone())?.public_key_to_der()?,
            Self::Ec(key) => PKey::from_ec_key(key.public.clone())?.public_key_to_der()?,
        })
    }
}

/// Both forms of an RSA key: OpenSSL's, and the five numbers of the second representation.
pub struct RsaPrivate {
    pub(crate) rsa: Rsa<Private>,
    pub(crate) public: Rsa<Public>,
    bits: u32,
    /// p, q, dP, dQ, qInv; each half as long as the modulus.
    pub(crate) crt: [Zeroizing<Vec<u8>>; 5],
}

impl RsaPrivate {
    fn new(rsa: Rsa<Private>) -> Result<Self, KeyError> {
        let bits = u32::try_from(rsa.n().num_bits()).unwrap_or_default();
        if !(2048..=8192).contains(&bits) || !bits.is_multiple_of(8) {
            return Err(KeyError::Bits(bits));
        }
        if !rsa.check_key()? {
            return Err(KeyError::Inconsistent);
        }
        let half = i32::try_from(bits / 16).unwrap_or_default();
        let number = |number: Option<&BigNumRef>| {
            Ok::<_, KeyError>(Zeroizing::new(number.ok_or(KeyError::NoPrimes)?.to_vec_padded(half)?))
        };
        let crt = [number(rsa.p())?, number(rsa.q())?, number(rsa.dmp1())?, number(rsa.dmq1())?, number(rsa.iqmp())?];
        let public = Rsa::from_public_components(rsa.n().to_owned()?, rsa.e().to_owned()?)?;
        Ok(Self { rsa, public, bits, crt })
    }

    /// Somebody else's, which only checks.
    #[cfg(test)]
    pub(crate) fn checking(public: Rsa<Public>) -> Self {
        let any = PKey::private_key_from_der(include_bytes!("selftest/rsa2048.key")).unwrap();
        let bits = u32::try_from(public.n().num_bits()).unwrap();
        Self { public, bits, ..Self::new(any.rsa().unwrap()).unwrap() }
    }

    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Bytes of the modulus, of a signature and of a ciphertext.
    pub fn size(&self) -> usize {
        self.bits as usize / 8
    }
}

impl fmt::Debug for RsaPrivate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RSA-{}", self.bits)
    }
}

/// A key on one of the curves.
pub struct EcPrivate {
    pub(crate) key: EcKey<Private>,
    pub(crate) public: EcKey<Public>,
    curve: Curve,
    pub(crate) scalar: Zeroizing<Vec<u8>>,
}

impl EcPrivate {
    fn new(key: EcKey<Private>) -> Result<Self, KeyError> {
        let curve = match key.group().curve_name() {
            Some(Nid::X9_62_PRIME256V1) => Curve::P256,
            Some(Nid::SECP384R1) => Curve::P384,
            other => return Err(KeyError::Type(format!("EC on {other:?}"))),
        };
        key.check_key()?;
        let size = i32::try_from(curve.size()).unwrap_or_default();
        let scalar = Zeroizing::new(key.private_key().to_vec_padded(size)?);
        let public = EcKey::from_public_key(key.group(), key.public_key())?;
        Ok(Self { key, public, curve, scalar })
    }

    /// A fresh key, for one handshake.
    pub fn generate(curve: Curve) -> Result<Self, KeyError> {
        Self::new(EcKey::generate(curve.group())?)
    }

    pub(crate) fn from_scalar(curve: Curve, scalar: &[u8]) -> Result<Self, KeyError> {
        let scalar = BigNum::from_slice(scalar)?;
        let mut public = EcPoint::new(curve.group())?;
        public.mul_generator2(curve.group(), &scalar, &mut *BigNumContext::new()?)?;
        Self::new(EcKey::from_private_components(curve.group(), &scalar, &public)?)
    }

    /// Somebody else's, which only checks.
    #[cfg(test)]
    pub(crate) fn checking(curve: Curve, public: EcKey<Public>) -> Self {
        Self { public, ..Self::from_scalar(curve, &[1]).unwrap() }
    }

    pub fn curve(&self) -> Curve {
        self.curve
    }

    /// The public point, uncompressed.
    pub fn public_point(&self) -> Result<Vec<u8>, KeyError> {
        let form = openssl::ec::PointConversionForm::UNCOMPRESSED;
        Ok(self.public.public_key().to_bytes(self.curve.group(), form, &mut *BigNumContext::new()?)?)
    }
}

impl fmt::Debug for EcPrivate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.curve)
    }
}

/// A scalar of X25519.
pub struct X25519Private {
    pub(crate) scalar: Zeroizing<[u8; 32]>,
}

impl X25519Private {
    pub fn new(scalar: [u8; 32]) -> Self {
        Self { scalar: Zeroizing::new(scalar) }
    }

    pub fn generate() -> Result<Self, KeyError> {
        let mut key = Self::new([0; 32]);
        openssl::rand::rand_bytes(&mut key.scalar[..])?;
        Ok(key)
    }

    pub fn public(&self) -> Result<[u8; 32], KeyError> {
        let key = PKey::private_key_from_raw_bytes(&self.scalar[..], Id::X25519)?;
        let mut public = [0; 32];
        public.copy_from_slice(&key.raw_public_key()?);
        Ok(public)
    }
}

impl fmt::Debug for X25519Private {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("X25519")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Curve {
    P256,
    P384,
}

impl Curve {
    /// Bytes of a coordinate and of a scalar.
    pub fn size(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }

    /// Anything from 1 to the order less one, each as likely: what signs once and is as secret as the key.
    pub(crate) fn fresh_nonce(self) -> Result<Zeroizing<Vec<u8>>, ErrorStack> {
        let mut nonce = Zeroizing::new(vec![0; self.size()]);
        loop {
            openssl::rand::rand_priv_bytes(&mut nonce)?;
            // Both orders begin with 32 one bits, so that hardly any is drawn again.
            if nonce[..] < self.domain().order[..] && nonce.iter().any(|byte| *byte != 0) {
                return Ok(nonce);
            }
        }
    }

    pub(crate) fn group(self) -> &'static EcGroup {
        &self.domain().group
    }

    pub(crate) fn domain(self) -> &'static Domain {
        static P256: LazyLock<Domain> = LazyLock::new(|| Domain::named(Nid::X9_62_PRIME256V1, 32));
        static P384: LazyLock<Domain> = LazyLock::new(|| Domain::named(Nid::SECP384R1, 48));
        match self {
            Self::P256 => &P256,
            Self::P384 => &P384,
        }
    }
}

/// The numbers of a curve, each as long as a coordinate.
pub(crate) struct Domain {
    pub(crate) group: EcGroup,
    pub(crate) prime: Vec<u8>,
    pub(crate) a: Vec<u8>,
    pub(crate) b: Vec<u8>,
    pub(crate) order: Vec<u8>,
    pub(crate) x: Vec<u8>,
    pub(crate) y: Vec<u8>,
}

impl Domain {
    #[expect(clippy::expect_used, reason = "OpenSSL has both curves, and their numbers fit their size")]
    fn named(curve: Nid, size: i32) -> Self {
        Self::of(EcGroup::from_curve_name(curve).expect("OpenSSL has the curve"), size)
            .expect("the numbers of a known curve are there and fit")
    }

    fn of(group: EcGroup, size: i32) -> Result<Self, ErrorStack> {
        let mut context = BigNumContext::new()?;
        let (mut prime, mut a, mut b) = (BigNum::new()?, BigNum::new()?, BigNum::new()?);
        group.components_gfp(&mut prime, &mut a, &mut b, &mut context)?;
        let (mut order, mut x, mut y) = (BigNum::new()?, BigNum::new()?, BigNum::new()?);
        group.order(&mut order, &mut context)?;
        group.generator_opt().ok_or_else(ErrorStack::get)?.affine_coordinates_gfp(
            &group,
            &mut x,
            &mut y,
            &mut context,
        )?;
        let bytes = |number: &BigNum| number.to_vec_padded(size);
        Ok(Self {
            prime: bytes(&prime)?,
            a: bytes(&a)?,
            b: bytes(&b)?,
            order: bytes(&order)?,
            x: bytes(&x)?,
            y: bytes(&y)?,
            group,
        })
    }
}

/// What seals and opens texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cipher {
    Aes128Gcm,
    Aes256Gcm,
    /// Encrypt, then HMAC-SHA-256 over the additional data, the IV and the ciphertext; the digest cut to 16 bytes, as in ESP.
    Aes128CbcHmacSha256,
    Aes256CbcHmacSha256,
}

impl Cipher {
    pub fn key_size(self) -> usize {
        match self {
            Self::Aes128Gcm | Self::Aes128CbcHmacSha256 => 16,
            Self::Aes256Gcm | Self::Aes256CbcHmacSha256 => 32,
        }
    }

    /// Bytes of the second key, for the digest.
    pub fn hash_key_size(self) -> usize {
        match self {
            Self::Aes128Gcm | Self::Aes256Gcm => 0,
            Self::Aes128CbcHmacSha256 | Self::Aes256CbcHmacSha256 => 32,
        }
    }

    pub fn iv_size(self) -> usize {
        match self {
            Self::Aes128Gcm | Self::Aes256Gcm => 12,
            Self::Aes128CbcHmacSha256 | Self::Aes256CbcHmacSha256 => 16,
        }
    }

    /// Bytes of a tag, of every cipher.
    pub const TAG: usize = 16;
}

/// The keys of one direction of a connection.
pub struct CipherKey {
    pub(crate) cipher: Cipher,
    pub(crate) key: Zeroizing<Vec<u8>>,
    pub(crate) hash_key: Zeroizing<Vec<u8>>,
    /// What a library made of it at the first use, for each of the kinds of CPU that it was set up for.
    pub(crate) schedules: [OnceLock<Schedule>; 2],
}

/// Room on the boundary of a cache line for what a library makes of a key. Zeroed when it goes.
pub(crate) struct Schedule(Vec<CacheLine>);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

impl Schedule {
    /// Zeroes, at least so many.
    pub(crate) fn zeroed(size: usize) -> Self {
        Self(vec![CacheLine([0; 64]); size.div_ceil(64)])
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr().cast()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().cast()
    }
}

impl Drop for Schedule {
    fn drop(&mut self) {
        for line in &mut self.0 {
            line.0.zeroize();
        }
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", 64 * self.0.len())
    }
}

impl CipherKey {
    /// None for a key of another length than the cipher's.
    pub fn new(cipher: Cipher, key: &[u8], hash_key: &[u8]) -> Option<Self> {
        let fits = key.len() == cipher.key_size() && hash_key.len() == cipher.hash_key_size();
        fits.then(|| Self {
            cipher,
            key: Zeroizing::new(key.to_vec()),
            hash_key: Zeroizing::new(hash_key.to_vec()),
            schedules: Default::default(),
        })
    }

    pub fn cipher(&self) -> Cipher {
        self.cipher
    }
}

impl fmt::Debug for CipherKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.cipher)
    }
}
