//! What a card computes, by OpenSSL, on numbers with the most significant byte first; and deflate, by zlib-rs.
#![expect(clippy::many_single_char_names, reason = "the letters are those of the standards")]

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use openssl::bn::{BigNum, BigNumContext};
use openssl::derive::Deriver;
use openssl::ec::{EcGroup, EcPoint};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey};
use openssl::sign::Signer;
use openssl::symm::{Cipher, Crypter, Mode, decrypt_aead, encrypt_aead};

/// A value, or that there is none, such as a point that is not on its curve.
pub(crate) type Answer<T> = Result<Option<T>, ErrorStack>;

/// The private operation with the five numbers of the second representation.
pub(crate) fn rsa_crt(input: &[u8], [p, q, dp, dq, qinv]: [&[u8]; 5]) -> Answer<Vec<u8>> {
    let mut context = BigNumContext::new()?;
    let number = BigNum::from_slice;
    let (c, p, q, qinv) = (number(input)?, number(p)?, number(q)?, number(qinv)?);
    let (mut m1, mut m2, mut h, mut lift) = (BigNum::new()?, BigNum::new()?, BigNum::new()?, BigNum::new()?);
    m1.mod_exp(&c, &*number(dp)?, &p, &mut context)?;
    m2.mod_exp(&c, &*number(dq)?, &q, &mut context)?;
    let mut difference = BigNum::new()?;
    difference.mod_sub(&m1, &m2, &p, &mut context)?;
    h.mod_mul(&difference, &qinv, &p, &mut context)?;
    lift.checked_mul(&h, &q, &mut context)?;
    let mut m = BigNum::new()?;
    m.checked_add(&lift, &m2)?;
    Ok(Some(m.to_vec()))
}

pub(crate) fn mod_exp(base: &[u8], exponent: &[u8], modulus: &[u8]) -> Answer<Vec<u8>> {
    let mut result = BigNum::new()?;
    let (base, exponent, modulus) =
        (BigNum::from_slice(base)?, BigNum::from_slice(exponent)?, BigNum::from_slice(modulus)?);
    result.mod_exp(&base, &exponent, &modulus, &mut *BigNumContext::new()?)?;
    Ok(Some(result.to_vec()))
}

/// A curve by its prime.
fn curve(prime: &[u8]) -> Answer<EcGroup> {
    let mut context = BigNumContext::new()?;
    let wanted = BigNum::from_slice(prime)?;
    for nid in [Nid::X9_62_PRIME256V1, Nid::SECP384R1, Nid::SECP521R1] {
        let group = EcGroup::from_curve_name(nid)?;
        let (mut p, mut a, mut b) = (BigNum::new()?, BigNum::new()?, BigNum::new()?);
        group.components_gfp(&mut p, &mut a, &mut b, &mut context)?;
        if p == wanted {
            return Ok(Some(group));
        }
    }
    Ok(None)
}

/// `r` and `s` for a nonce that the caller chose, as the card has it.
pub(crate) fn ecdsa(prime: &[u8], nonce: &[u8], digest: &[u8], key: &[u8]) -> Answer<(Vec<u8>, Vec<u8>)> {
    let Some(group) = curve(prime)? else { return Ok(None) };
    let mut context = BigNumContext::new()?;
    let (mut n, mut x, mut y) = (BigNum::new()?, BigNum::new()?, BigNum::new()?);
    group.order(&mut n, &mut context)?;
    let nonce = BigNum::from_slice(nonce)?;
    let mut point = EcPoint::new(&group)?;
    point.mul_generator2(&group, &nonce, &mut context)?;
    point.affine_coordinates_gfp(&group, &mut x, &mut y, &mut context)?;
    let (mut r, mut product, mut sum, mut inverse, mut s) =
        (BigNum::new()?, BigNum::new()?, BigNum::new()?, BigNum::new()?, BigNum::new()?);
    r.nnmod(&x, &n, &mut context)?;
    product.mod_mul(&r, &*BigNum::from_slice(key)?, &n, &mut context)?;
    sum.mod_add(&product, &*BigNum::from_slice(digest)?, &n, &mut context)?;
    inverse.mod_inverse(&nonce, &n, &mut context)?;
    s.mod_mul(&inverse, &sum, &n, &mut context)?;
    if r.num_bits() == 0 || s.num_bits() == 0 {
        return Ok(None);
    }
    Ok(Some((r.to_vec(), s.to_vec())))
}

pub(crate) fn multiply(prime: &[u8], scalar: &[u8], x: &[u8], y: &[u8]) -> Answer<(Vec<u8>, Vec<u8>)> {
    let Some(group) = curve(prime)? else { return Ok(None) };
    let mut context = BigNumContext::new()?;
    let mut point = EcPoint::new(&group)?;
    let on_curve =
        point.set_affine_coordinates_gfp(&group, &*BigNum::from_slice(x)?, &*BigNum::from_slice(y)?, &mut context);
    if on_curve.is_err() {
        return Ok(None);
    }
    let mut result = EcPoint::new(&group)?;
    result.mul2(&group, &point, &*BigNum::from_slice(scalar)?, &mut context)?;
    if result.is_infinity(&group) {
        return Ok(None);
    }
    let (mut x, mut y) = (BigNum::new()?, BigNum::new()?);
    result.affine_coordinates_gfp(&group, &mut x, &mut y, &mut context)?;
    Ok(Some((x.to_vec(), y.to_vec())))
}

pub(crate) fn x25519(scalar: &[u8], x: &[u8]) -> Answer<Vec<u8>> {
    let turned = |bytes: &[u8]| bytes.iter().rev().copied().collect::<Vec<u8>>();
    let key = PKey::private_key_from_raw_bytes(&turned(scalar), Id::X25519)?;
    let peer = PKey::public_key_from_raw_bytes(&turned(x), Id::X25519)?;
    let mut deriver = Deriver::new(&key)?;
    deriver.set_peer(&peer)?;
    // Of a point of small order OpenSSL gives no secret; the ladder itself ends in zero.
    Ok(Some(deriver.derive_to_vec().map_or_else(|_refused| vec![0; 32], |secret| turned(&secret))))
}

#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) algorithm: Algorithm,
    pub(crate) key: Vec<u8>,
    pub(crate) encrypt: bool,
    /// Bytes of the tag or of the digest.
    pub(crate) tag: usize,
}

#[derive(Debug, Clone)]
pub(crate) enum Algorithm {
    Gcm { additional: usize },
    CbcHmacSha256 { key: Vec<u8> },
}

/// The text and, when encrypting, its tag; none for a tag that is wrong.
pub(crate) fn gcm(
    session: &Session,
    iv: &[u8],
    additional: &[u8],
    text: &[u8],
    tag: &[u8],
) -> Answer<(Vec<u8>, Vec<u8>)> {
    let cipher = if session.key.len() == 16 { Cipher::aes_128_gcm() } else { Cipher::aes_256_gcm() };
    if session.encrypt {
        let mut tag = vec![0; session.tag];
        let sealed = encrypt_aead(cipher, &session.key, Some(iv), additional, text, &mut tag)?;
        Ok(Some((sealed, tag)))
    } else {
        Ok(decrypt_aead(cipher, &session.key, Some(iv), additional, text, tag).ok().map(|text| (text, Vec::new())))
    }
}

pub(crate) fn cbc(session: &Session, iv: &[u8], text: &[u8]) -> Answer<Vec<u8>> {
    let cipher = if session.key.len() == 16 { Cipher::aes_128_cbc() } else { Cipher::aes_256_cbc() };
    let mode = if session.encrypt { Mode::Encrypt } else { Mode::Decrypt };
    let mut crypter = Crypter::new(cipher, mode, &session.key, Some(iv))?;
    crypter.pad(false);
    let mut result = vec![0; text.len() + 32];
    let mut length = crypter.update(text, &mut result)?;
    length += crypter.finalize(&mut result[length..])?;
    result.truncate(length);
    Ok(Some(result))
}

pub(crate) fn hmac_sha256(key: &[u8], text: &[u8]) -> Answer<Vec<u8>> {
    let key = PKey::hmac(key)?;
    let mut signer = Signer::new(MessageDigest::sha256(), &key)?;
    Ok(Some(signer.sign_oneshot_to_vec(text)?))
}

/// With the level of a card, not of a program that takes its time.
pub(crate) fn deflate(text: &[u8], last: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 * text.len() + 1024);
    let flush = if last { FlushCompress::Finish } else { FlushCompress::Full };
    let done = Compress::new(Compression::fast(), false).compress_vec(text, &mut out, flush);
    if done.is_ok() { out } else { Vec::new() }
}

pub(crate) fn inflate(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(MOST_LONGER);
    let ended = Decompress::new(false).decompress_vec(text, &mut out, FlushDecompress::Finish);
    matches!(ended, Ok(Status::StreamEnd)).then_some(out)
}

/// More than any caller has room for.
const MOST_LONGER: usize = 256 * 1024;
