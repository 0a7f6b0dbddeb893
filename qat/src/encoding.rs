//! What surrounds the private operation of RSA: EMSA-PKCS1-v1_5, EMSA-PSS and EME-OAEP of RFC 8017.
//!
//! The engine does these itself, because a device knows only the bare operation. PKCS#1 v1.5 decryption is not among them:
//! nothing of TLS 1.2 with ECDHE or TLS 1.3 needs it, and its padding oracle is not worth having.

use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use zeroize::Zeroizing;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    pub fn size(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    pub(crate) fn digest(self, message: &[u8]) -> Result<Vec<u8>, ErrorStack> {
        let algorithm = match self {
            Self::Sha256 => MessageDigest::sha256(),
            Self::Sha384 => MessageDigest::sha384(),
            Self::Sha512 => MessageDigest::sha512(),
        };
        Ok(openssl::hash::hash(algorithm, message)?.to_vec())
    }

    /// The DER of DigestInfo, up to the digest (RFC 8017, 9.2, note 1).
    fn digest_info(self) -> [u8; 19] {
        let (object, size) = match self {
            Self::Sha256 => (1, 0x20),
            Self::Sha384 => (2, 0x30),
            Self::Sha512 => (3, 0x40),
        };
        let mut info =
            [0x30, 0, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0, 0x05, 0x00, 0x04, 0];
        info[1] = 0x11 + size;
        info[14] = object;
        info[18] = size;
        info
    }
}

/// How a message is signed, by the names of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    RsaPkcs1(Hash),
    /// With a salt as long as the digest.
    RsaPss(Hash),
    /// The signature is in DER.
    Ecdsa(Hash),
}

pub(crate) fn pkcs1(hash: Hash, digest: &[u8], size: usize) -> Vec<u8> {
    let info = hash.digest_info();
    let mut encoded = vec![0xff; size];
    encoded[..2].copy_from_slice(&[0, 1]);
    let start = size - digest.len() - info.len();
    encoded[start - 1] = 0;
    encoded[start..start + info.len()].copy_from_slice(&info);
    encoded[start + info.len()..].copy_from_slice(digest);
    encoded
}

/// For a modulus of whole bytes, so that one bit of the first byte is cleared.
pub(crate) fn pss(hash: Hash, digest: &[u8], size: usize) -> Result<Vec<u8>, ErrorStack> {
    let mut salt = vec![0; hash.size()];
    openssl::rand::rand_bytes(&mut salt)?;
    let seed = hash.digest(&[&[0; 8], digest, &salt].concat())?;
    let mut block = vec![0; size - seed.len() - 1];
    let start = block.len() - salt.len();
    block[start - 1] = 1;
    block[start..].copy_from_slice(&salt);
    mask(hash, &seed, &mut block)?;
    block[0] &= 0x7f;
    block.extend_from_slice(&seed);
    block.push(0xbc);
    Ok(block)
}

/// The message, or nothing. Takes as long for one as for the other, since an answer by time is an oracle.
pub(crate) fn oaep(hash: Hash, encoded: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, ErrorStack> {
    let size = hash.size();
    if encoded.len() < 2 * size + 2 {
        return Ok(None);
    }
    let mut seed = Zeroizing::new(encoded[1..=size].to_vec());
    let mut block = Zeroizing::new(encoded[size + 1..].to_vec());
    mask(hash, &block, &mut seed)?;
    mask(hash, &seed, &mut block)?;
    let label = hash.digest(b"")?;
    let mut bad = encoded[0];
    for (ours, theirs) in label.iter().zip(block.iter()) {
        bad |= ours ^ theirs;
    }
    // All ones until the first byte that is not zero, which has to be a one.
    let (mut looking, mut start) = (0xff_u8, 0_usize);
    for (index, byte) in block.iter().enumerate().skip(size) {
        let zero = is_zero(*byte);
        let one = is_zero(byte ^ 1);
        bad |= looking & !zero & !one;
        start |= index & usize::from(looking & one).wrapping_mul(usize::MAX / 255);
        looking &= zero;
    }
    bad |= looking;
    Ok((std::hint::black_box(bad) == 0).then(|| Zeroizing::new(block[start + 1..].to_vec())))
}

/// All ones for zero, else zero, without a branch.
fn is_zero(byte: u8) -> u8 {
    let wide = std::hint::black_box(u16::from(byte));
    u8::try_from((wide.wrapping_sub(1) >> 8) & 0xff).unwrap_or_default()
}

/// XORs the output of MGF1 onto `target`.
fn mask(hash: Hash, seed: &[u8], target: &mut [u8]) -> Result<(), ErrorStack> {
    for (counter, chunk) in (0_u32..).zip(target.chunks_mut(hash.size())) {
        let stream = Zeroizing::new(hash.digest(&[seed, &counter.to_be_bytes()].concat())?);
        for (byte, mask) in chunk.iter_mut().zip(stream.iter()) {
            *byte ^= mask;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use openssl::encrypt::Encrypter;
    use openssl::pkey::PKey;
    use openssl::rsa::{Padding, Rsa};
    use openssl::sign::{RsaPssSaltlen, Verifier};

    use super::*;

    const HASHES: [(Hash, fn() -> MessageDigest); 3] = [
        (Hash::Sha256, MessageDigest::sha256),
        (Hash::Sha384, MessageDigest::sha384),
        (Hash::Sha512, MessageDigest::sha512),
    ];

    #[test]
    fn openssl_takes_both_encodings() {
        let rsa = Rsa::generate(2048).unwrap();
        let key = PKey::from_rsa(rsa.clone()).unwrap();
        for (hash, algorithm) in HASHES {
            let digest = hash.digest(b"a message").unwrap();
            let encodings =
                [(pkcs1(hash, &digest, 256), Padding::PKCS1), (pss(hash, &digest, 256).unwrap(), Padding::PKCS1_PSS)];
            for (encoded, padding) in encodings {
                let mut signature = vec![0; 256];
                rsa.private_encrypt(&encoded, &mut signature, Padding::NONE).unwrap();
                let mut verifier = Verifier::new(algorithm(), &key).unwrap();
                verifier.set_rsa_padding(padding).unwrap();
                if padding == Padding::PKCS1_PSS {
                    verifier.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH).unwrap();
                }
                assert!(verifier.verify_oneshot(&signature, b"a message").unwrap(), "{hash:?} {padding:?}");
            }
        }
    }

    #[test]
    fn what_openssl_pads_is_unpadded_and_nothing_else() {
        let rsa = Rsa::generate(2048).unwrap();
        let key = PKey::from_rsa(rsa.clone()).unwrap();
        for (hash, algorithm) in HASHES {
            for length in [0, 1, 48, 256 - 2 * hash.size() - 2] {
                let message = vec![0x5a; length];
                let mut encrypter = Encrypter::new(&key).unwrap();
                encrypter.set_rsa_padding(Padding::PKCS1_OAEP).unwrap();
                encrypter.set_rsa_oaep_md(algorithm()).unwrap();
                encrypter.set_rsa_mgf1_md(algorithm()).unwrap();
                let mut sealed = vec![0; encrypter.encrypt_len(&message).unwrap()];
                encrypter.encrypt(&message, &mut sealed).unwrap();
                let mut encoded = vec![0; 256];
                rsa.private_decrypt(&sealed, &mut encoded, Padding::NONE).unwrap();
                assert_eq!(**oaep(hash, &encoded).unwrap().as_ref().unwrap(), message, "{hash:?} {length}");
                for place in [0, 1, 40, 255] {
                    let mut changed = encoded.clone();
                    changed[place] ^= 1;
                    assert!(oaep(hash, &changed).unwrap().is_none_or(|text| *text != message), "{hash:?} {place}");
                }
            }
        }
        assert_eq!(oaep(Hash::Sha256, &[0; 66]).unwrap(), None);
        assert_eq!(oaep(Hash::Sha256, &[0; 5]).unwrap(), None);
    }
}
