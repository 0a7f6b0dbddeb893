//! Bundles, as they come from anywhere. Three ways, by the first byte: any bytes as an archive; any contents in members
//! that belong there, rightly signed; a good bundle with bytes of it changed, which is refused whatever they are. What
//! is read holds what its manifest says.
#![no_main]

use std::sync::LazyLock;
use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use ring::signature::Ed25519KeyPair;
use router_daemon::bundle::{Contents, make, pack, read};

fuzz_target!(|bytes: &[u8]| {
    let Some((way, bytes)) = bytes.split_first() else { return };
    match way % 3 {
        0 => read_whole(bytes),
        1 => {
            // Parts of the bytes, each after its length.
            let mut parts = [&[][..]; 4];
            let mut rest = bytes;
            for part in &mut parts {
                let Some((length, after)) = rest.split_first_chunk() else { break };
                let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
                (*part, rest) = after.split_at(length);
            }
            let names = ["manifest.json", "config.toml", "history/1.json", "history/2.json"];
            read_whole(&pack(names.into_iter().zip(parts), &KEY));
        }
        _ => {
            let mut changed = GOOD.clone();
            for change in bytes.chunks_exact(3) {
                let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % changed.len();
                changed[at] = change[2];
            }
            assert_eq!(read(&changed).is_ok(), changed == *GOOD);
        }
    }
});

fn read_whole(bytes: &[u8]) {
    match read(bytes) {
        Err(unfit) => drop(unfit.to_string()),
        Ok(bundle) => {
            assert_eq!(bundle.manifest.members.len(), bundle.history.len() + 1);
            assert!(bundle.trusted(&bundle.fingerprint, None).is_ok());
            assert!(bundle.trusted("", Some("")).is_err());
        }
    }
}

static KEY: LazyLock<Ed25519KeyPair> = LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap());

static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let text = include_str!("../../../config/examples/minimal.toml");
    let config = config::parse("minimal.toml", text).unwrap().config;
    let now = SystemTime::UNIX_EPOCH;
    make(&Contents { text, config: &config, history: &[], host: "gate", now }, &KEY).unwrap().0
});
