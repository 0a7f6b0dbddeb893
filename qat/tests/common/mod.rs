//! What the tests of the engine share: keys of every kind, operations that check themselves, and an engine in a hurry.
#![allow(clippy::print_stdout, reason = "a test that cannot run says why")]
#![allow(clippy::mod_module_files, reason = "a file beside the tests would be a test of its own")]
#![allow(dead_code, reason = "not every test uses all of it")]

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use openssl::derive::Deriver;
use openssl::encrypt::Encrypter;
use openssl::hash::MessageDigest;
use openssl::pkey::{Id, PKey, Private, Public};
use openssl::rsa::{Padding, Rsa};
use openssl::sign::{RsaPssSaltlen, Signer, Verifier};
use openssl::symm::{Cipher as Evp, encrypt, encrypt_aead};
use qat::{
    Checks, Cipher, CipherKey, Curve, EcPrivate, Engine, Hash, Installed, Multibuffer, Options, Patience, PrivateKey,
    Route, RsaPrivate, Scheme, X25519Private,
};
use qat_sim::Simulator;

/// How many times slower than a machine this one is: `QUADWAY_SLOWER`, for valgrind.
pub(crate) fn slower() -> u32 {
    std::env::var("QUADWAY_SLOWER").map_or(1, |text| text.parse().unwrap())
}

/// An engine that gives everything to the simulator, and whose pauses are short.
pub(crate) fn impatient(simulator: &Simulator) -> Options {
    let slower = slower();
    Options {
        installed: Some(Installed::At(simulator.path().to_owned())),
        route: Route::Device,
        checks: Checks::Every,
        least_deadline: Duration::from_millis(10) * slower,
        patience: Patience {
            strikes: 5,
            within: Duration::from_secs(1),
            pause: Duration::from_millis(5),
            longest: Duration::from_millis(40),
            restart: Duration::from_millis(500),
        },
        test_deadline: Duration::from_millis(500) * slower,
        stuck: Duration::from_millis(200) * slower,
        between_resets: Duration::from_millis(200),
        retest: Duration::from_millis(50),
        tick: Duration::from_millis(2),
        multibuffer: None,
        ..Options::default()
    }
}

/// Debian 13's multi-buffer libraries, as `make qat` unpacks them. None, said, where they are not.
pub(crate) fn multibuffer() -> Option<Multibuffer> {
    let folder =
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/qat/libraries/trixie/usr/lib/x86_64-linux-gnu"));
    let (crypto_mb, ipsec_mb) = (folder.join("libcrypto_mb.so.11"), folder.join("libIPSec_MB.so.2"));
    if !ipsec_mb.exists() {
        assert!(std::env::var_os("QUADWAY_MUST_RUN").is_none(), "{} is missing: run make qat", ipsec_mb.display());
        println!("skipped: {} is missing; make qat unpacks it", ipsec_mb.display());
        return None;
    }
    Some(Multibuffer::At { crypto_mb, ipsec_mb })
}

/// An engine that gives to them whatever they take.
pub(crate) fn batching() -> Option<Engine> {
    let multibuffer = Some(multibuffer()?);
    let patient = Duration::from_secs(2);
    let options = Options { installed: None, multibuffer, route: Route::Device, ..Options::default() };
    Some(Engine::start(Options { least_deadline: patient, ..options }))
}

/// Made shorter, and made long again; read by another reader too. How many operations that were.
pub(crate) fn gzip(engine: &Engine, length: usize) -> u64 {
    let words = ["denied ", "office ", "10.10.50.7 ", "tcp/443\n"];
    let text: Vec<u8> = (0..).flat_map(|n: usize| words[n * n % 11 % 4].bytes()).take(length).collect();
    let file = engine.gzip(&text).unwrap();
    let mut read = Vec::new();
    flate2::read::GzDecoder::new(&file[..]).read_to_end(&mut read).unwrap();
    assert!(read == text, "{length}");
    assert!(*engine.gunzip(&file, length).unwrap() == text, "{length}");
    u64::try_from(length.div_ceil(64 * 1024)).unwrap() + 1
}

pub(crate) struct Keys {
    pub(crate) rsa: Vec<(PrivateKey, PKey<Public>)>,
    pub(crate) ec: Vec<(PrivateKey, PKey<Public>)>,
    pub(crate) agreement: Vec<(Arc<EcPrivate>, PKey<Private>)>,
    pub(crate) x25519: Arc<X25519Private>,
    pub(crate) ciphers: Vec<Arc<CipherKey>>,
    key: Vec<u8>,
    hash_key: Vec<u8>,
}

impl Keys {
    /// The same ones for every test: the long ones take seconds to find.
    pub(crate) fn get() -> &'static Self {
        static KEYS: OnceLock<Keys> = OnceLock::new();
        KEYS.get_or_init(Self::generate)
    }

    fn generate() -> Self {
        let rsa = [2048, 3072, 4096].map(|bits| {
            let rsa = Rsa::generate(bits).unwrap();
            let public = PKey::public_key_from_der(&rsa.public_key_to_der().unwrap()).unwrap();
            (PrivateKey::from_pem(&rsa.private_key_to_pem().unwrap()).unwrap(), public)
        });
        let ec = [Curve::P256, Curve::P384].map(|curve| {
            let key = PrivateKey::Ec(Arc::new(EcPrivate::generate(curve).unwrap()));
            let public = PKey::public_key_from_der(&key.public_der().unwrap()).unwrap();
            (key, public)
        });
        let names = [openssl::nid::Nid::X9_62_PRIME256V1, openssl::nid::Nid::SECP384R1];
        let agreement = [Curve::P256, Curve::P384].into_iter().zip(names).map(|(curve, name)| {
            let group = openssl::ec::EcGroup::from_curve_name(name).unwrap();
            let peer = PKey::from_ec_key(openssl::ec::EcKey::generate(&group).unwrap()).unwrap();
            (Arc::new(EcPrivate::generate(curve).unwrap()), peer)
        });
        let (key, hash_key): (Vec<u8>, Vec<u8>) = ((1..=32).collect(), (65..=96).collect());
        let ciphers = [Cipher::Aes128Gcm, Cipher::Aes256Gcm, Cipher::Aes128CbcHmacSha256, Cipher::Aes256CbcHmacSha256]
            .map(|cipher| {
                Arc::new(
                    CipherKey::new(cipher, &key[..cipher.key_size()], &hash_key[..cipher.hash_key_size()]).unwrap(),
                )
            });
        Self {
            rsa: rsa.to_vec(),
            ec: ec.to_vec(),
            agreement: agreement.collect(),
            x25519: Arc::new(X25519Private::generate().unwrap()),
            ciphers: ciphers.to_vec(),
            key,
            hash_key,
        }
    }

    /// What number says, with its result checked. How many operations that were.
    pub(crate) fn check(&self, engine: &Engine, number: u64) -> u64 {
        let message = number.to_be_bytes();
        let number = usize::try_from(number).unwrap();
        let hash = [Hash::Sha256, Hash::Sha384, Hash::Sha512][number % 3];
        match number % 22 {
            20 => return gzip(engine, 1 + number.wrapping_mul(0x9e37) % 70_000),
            21 => return gzip(engine, 1 + number % 1_000),
            0..=5 => self.rsa(
                engine,
                usize::from(number % 40 == 1) + 2 * usize::from(number % 80 == 2),
                hash,
                number.is_multiple_of(2),
                &message,
            ),
            6..=9 => self.ecdsa(engine, number / 20 % 2, hash, &message),
            10..=11 => self.decrypt(engine, hash, &message),
            12..=13 => self.agree(engine, number % 2),
            14 => self.x25519(engine),
            kind => {
                self.cipher(engine, kind % 4, number.wrapping_mul(0x9e37) % 9_000, &message);
                return 2;
            }
        }
        1
    }

    pub(crate) fn rsa(&self, engine: &Engine, which: usize, hash: Hash, pss: bool, message: &[u8]) {
        let (key, public) = &self.rsa[which];
        let scheme = if pss { Scheme::RsaPss(hash) } else { Scheme::RsaPkcs1(hash) };
        let signature = engine.sign(key, scheme, message).unwrap();
        let mut verifier = Verifier::new(algorithm(hash), public).unwrap();
        if pss {
            verifier.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
            verifier.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH).unwrap();
        }
        assert!(verifier.verify_oneshot(&signature, message).unwrap(), "{key:?} {scheme:?}");
    }

    pub(crate) fn ecdsa(&self, engine: &Engine, which: usize, hash: Hash, message: &[u8]) {
        let (key, public) = &self.ec[which];
        let signature = engine.sign(key, Scheme::Ecdsa(hash), message).unwrap();
        let mut verifier = Verifier::new(algorithm(hash), public).unwrap();
        assert!(verifier.verify_oneshot(&signature, message).unwrap(), "{key:?} {hash:?}");
    }

    pub(crate) fn decrypt(&self, engine: &Engine, hash: Hash, message: &[u8]) {
        let (key, public) = &self.rsa[0];
        let PrivateKey::Rsa(key) = key else { unreachable!() };
        let key: &Arc<RsaPrivate> = key;
        let mut encrypter = Encrypter::new(public).unwrap();
        encrypter.set_rsa_padding(Padding::PKCS1_OAEP).unwrap();
        encrypter.set_rsa_oaep_md(algorithm(hash)).unwrap();
        encrypter.set_rsa_mgf1_md(algorithm(hash)).unwrap();
        let mut sealed = vec![0; encrypter.encrypt_len(message).unwrap()];
        encrypter.encrypt(message, &mut sealed).unwrap();
        assert_eq!(*engine.decrypt(key, hash, &sealed).unwrap(), message);
    }

    pub(crate) fn agree(&self, engine: &Engine, which: usize) {
        let (own, peer) = &self.agreement[which];
        let peer_key = peer.ec_key().unwrap();
        let form = openssl::ec::PointConversionForm::UNCOMPRESSED;
        let mut context = openssl::bn::BigNumContext::new().unwrap();
        let point = peer_key.public_key().to_bytes(peer_key.group(), form, &mut context).unwrap();
        let secret = engine.agree(own, &point).unwrap();
        let group = peer_key.group();
        let own_point = openssl::ec::EcPoint::from_bytes(group, &own.public_point().unwrap(), &mut context).unwrap();
        let own_public = openssl::ec::EcKey::from_public_key(group, &own_point).unwrap();
        let own_public = PKey::from_ec_key(own_public).unwrap();
        let mut deriver = Deriver::new(peer).unwrap();
        deriver.set_peer(&own_public).unwrap();
        assert_eq!(*secret, deriver.derive_to_vec().unwrap());
    }

    pub(crate) fn x25519(&self, engine: &Engine) {
        let peer = PKey::generate_x25519().unwrap();
        let secret = engine.x25519(&self.x25519, peer.raw_public_key().unwrap().try_into().unwrap()).unwrap();
        let own = PKey::public_key_from_raw_bytes(&self.x25519.public().unwrap(), Id::X25519).unwrap();
        let mut deriver = Deriver::new(&peer).unwrap();
        deriver.set_peer(&own).unwrap();
        assert_eq!(*secret, deriver.derive_to_vec().unwrap());
    }

    /// Seals, opens, and does not open what was changed.
    pub(crate) fn cipher(&self, engine: &Engine, which: usize, length: usize, additional: &[u8]) {
        let key = &self.ciphers[which];
        let cipher = key.cipher();
        let text: Vec<u8> = (0..length / 16 * 16 + 16).map(|index| u8::try_from(index % 251).unwrap()).collect();
        let iv = vec![0x42; cipher.iv_size()];
        let (sealed, tag) = engine.seal(key, &iv, additional, &text).unwrap();
        let (expected, expected_tag) = self.sealed(cipher, &iv, additional, &text);
        assert!(*sealed == expected && tag == expected_tag, "{cipher:?} {length}");
        assert_eq!(*engine.open(key, &iv, additional, &sealed, &tag).unwrap(), text);
        let mut changed = sealed.to_vec();
        changed[length % 16] ^= 1;
        assert!(matches!(engine.open(key, &iv, additional, &changed, &tag), Err(qat::Error::NotAuthentic)));
    }

    fn sealed(&self, cipher: Cipher, iv: &[u8], additional: &[u8], text: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let key = &self.key[..cipher.key_size()];
        let mut tag = vec![0; 16];
        match cipher {
            Cipher::Aes128Gcm => {
                (encrypt_aead(Evp::aes_128_gcm(), key, Some(iv), additional, text, &mut tag).unwrap(), tag)
            }
            Cipher::Aes256Gcm => {
                (encrypt_aead(Evp::aes_256_gcm(), key, Some(iv), additional, text, &mut tag).unwrap(), tag)
            }
            Cipher::Aes128CbcHmacSha256 | Cipher::Aes256CbcHmacSha256 => {
                let evp = if key.len() == 16 { Evp::aes_128_cbc() } else { Evp::aes_256_cbc() };
                let mut sealed = encrypt(evp, key, Some(iv), text).unwrap();
                // Without the block of padding that EVP adds.
                sealed.truncate(text.len());
                let hmac = PKey::hmac(&self.hash_key).unwrap();
                let mut signer = Signer::new(MessageDigest::sha256(), &hmac).unwrap();
                let tag = signer.sign_oneshot_to_vec(&[additional, iv, &sealed].concat()).unwrap()[..16].to_vec();
                (sealed, tag)
            }
        }
    }
}

fn algorithm(hash: Hash) -> MessageDigest {
    match hash {
        Hash::Sha256 => MessageDigest::sha256(),
        Hash::Sha384 => MessageDigest::sha384(),
        Hash::Sha512 => MessageDigest::sha512(),
    }
}
