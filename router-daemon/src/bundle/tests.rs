use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::ask::Author;
use crate::history::Entry;

const SITE: &str = include_str!("../../../config/examples/minimal.toml");

#[test]
fn what_was_saved_is_what_is_read() {
    let (bytes, manifest) = bundle();
    let read = read(&bytes).unwrap();
    assert_eq!((&read.manifest, read.text.as_str()), (&manifest, SITE));
    assert_eq!(read.history, [kept(3, "three"), kept(4, SITE)], "what waits is no part of it");
    assert_eq!((&read.fingerprint, &read.digest), (&fingerprint(&key(1)), &digest(&bytes)));
    assert_eq!(read.title(), format!("restored from bundle {} of gate, 2026-11-21T12:00:00Z", &digest(&bytes)[..12]));
    assert_eq!((manifest.site.as_str(), manifest.left_out), ("minimal", 0));
    assert_eq!(bundle().0, bytes, "the same again is the same");
    assert_eq!(read.trusted(&fingerprint(&key(1)), None), Ok(()));
    assert_eq!(read.trusted(&fingerprint(&key(2)), Some(&fingerprint(&key(1)).to_uppercase())), Ok(()));
    for named in [None, Some(""), Some("ab"), Some(fingerprint(&key(3)).as_str())] {
        let told = read.trusted(&fingerprint(&key(2)), named).unwrap_err().to_string();
        assert!(
            told.contains("the key of `gate`") && told.contains(&format!("--trust {}", read.fingerprint)),
            "{told}"
        );
    }
}

/// A bundle that an earlier version made; written by this test where `QUADWAY_BLESS` is set and there is none.
#[test]
fn a_bundle_of_format_1_is_read_for_ever() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bundle/format-1.tar");
    if std::env::var_os("QUADWAY_BLESS").is_some() && !file.exists() {
        std::fs::write(&file, bundle().0).unwrap();
    }
    let read = read(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!((read.manifest.host.as_str(), read.history.len()), ("gate", 2));
    assert_eq!(read.fingerprint, fingerprint(&key(1)));
}

#[test]
fn no_byte_can_be_changed_left_out_or_added() {
    let (bytes, _) = bundle();
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        assert!(read(&bytes).is_err(), "byte {at}");
    }
    for length in (0..bytes.len()).step_by(37).chain(bytes.len() - 2 * BLOCK..bytes.len()) {
        assert!(read(&bytes[..length]).is_err(), "the first {length} bytes");
    }
    for more in [&[0][..], &[0; BLOCK], &bytes] {
        assert!(read(&[&bytes, more].concat()).is_err());
    }
}

#[test]
fn a_tampered_member_is_refused_by_its_name() {
    let changed = |name: &str, contents: &[u8]| {
        let mut files = files_of(&bundle().0);
        files.insert(name.to_owned(), contents.to_vec());
        sealed(&files)
    };
    let without = |name: &str| {
        let mut files = files_of(&bundle().0);
        files.remove(name);
        sealed(&files)
    };
    let text = |kept: &Kept| serde_json::to_vec(kept).unwrap();
    let table = [
        (changed(CONFIG, b"[site]\n"), "config.toml: its SHA-256 is not the manifest's"),
        (changed("history/3.json", &text(&kept(3, "other"))), "history/3.json: its SHA-256 is not the manifest's"),
        (changed("history/5.json", &text(&kept(5, "more"))), "history/5.json: the manifest does not name it"),
        (without(CONFIG), "config.toml: is not there, and the manifest names it"),
        (without("history/4.json"), "history/4.json: is not there, and the manifest names it"),
        (without(MANIFEST), "manifest.json: is not there"),
        (changed(MANIFEST, b"{"), "manifest.json: "),
        (
            changed(MANIFEST, &[br#"{"format":1,"x":"#, &b"[".repeat(100_000)[..]].concat()),
            "manifest.json: EOF while parsing",
        ),
        (told(|manifest| manifest.format = 2), "manifest.json: its format is 2, and this routerd reads 1"),
        (told(|manifest| manifest.host = "\u{1b}[2J".to_owned()), "manifest.json: `host` is no name"),
        (told(|manifest| manifest.time = "yesterday".to_owned()), "manifest.json: `time`: "),
        (told(|manifest| manifest.config = digest("x")), "config.toml: the manifest gives its SHA-256 twice"),
        (entry_of(&Kept { text: "x".to_owned(), ..kept(7, "seven") }), "history/7.json: the SHA-256 in it is not"),
        (entry_of(&kept(8, "eight")), "history/7.json: the number in it is another"),
        (entry_of(&waits(kept(7, "seven"))), "history/7.json: it waits for a confirmation"),
    ];
    for (bytes, right) in table {
        let told = read(&bytes).unwrap_err().to_string();
        assert!(told.starts_with(right), "{told:?} is not {right:?}");
    }
}

#[test]
fn a_hostile_archive_is_refused_by_the_name_of_the_member() {
    let (bytes, _) = bundle();
    let beside = |name: &[u8], kind: EntryType, size: u64| {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o600);
        header.set_cksum();
        [header.as_bytes(), bytes.as_slice()].concat()
    };
    let file = EntryType::Regular;
    let long = [b'a'; 100];
    let many = (1..=u64::try_from(MOST_MEMBERS).unwrap() + 1).map(|number| (format!("{HISTORY}{number}.json"), vec![]));
    let twice = [(CONFIG, &b"a"[..]), (CONFIG, b"b")];
    let table = [
        (beside(b"../../etc/passwd", file, 0), "../../etc/passwd: it leads out of the bundle"),
        (beside(b"/etc/passwd", file, 0), "/etc/passwd: it leads out of the bundle"),
        (beside(b"history/../config.toml", file, 0), "history/../config.toml: it leads out of the bundle"),
        (beside(b"box.key", file, 0), "box.key: it does not belong into a bundle"),
        (beside(b"history/01.json", file, 0), "history/01.json: it does not belong"),
        (beside(b"history/+1.json", file, 0), "history/+1.json: it does not belong"),
        (beside(b"\x1b[2J\xff", file, 0), "\\u{1b}[2J\u{fffd}: it does not belong"),
        (beside(&long, file, 0), "aaaaaaaa"),
        (beside(b"config.toml", EntryType::Symlink, 0), "config.toml: it is a symbolic link"),
        (beside(b"config.toml", EntryType::Link, 0), "config.toml: it is a hard link"),
        (beside(b"history", EntryType::Directory, 0), "history: it is a folder"),
        (beside(b"config.toml", EntryType::Char, 0), "config.toml: it is a device"),
        (beside(b"config.toml", EntryType::Fifo, 0), "config.toml: it is a pipe"),
        (beside(b"config.toml", EntryType::GNUSparse, 0), "config.toml: it is a sparse file"),
        (beside(b"././@LongLink", EntryType::GNULongName, 1 << 40), "././@LongLink: it is something that stands for"),
        (beside(b"pax", EntryType::XHeader, 1 << 40), "pax: it is something that stands for"),
        (beside(b"config.toml", file, u64::MAX), "this is no bundle, or what is left of one: size overflow"),
        (beside(b"config.toml", file, 1 << 33), "config.toml: it says that it has 8589934592 bytes"),
        (beside(b"config.toml", file, 0), "config.toml: it is there twice"),
        (pack(twice, &key(1)), "config.toml: it is there twice"),
        (sealed(&many.collect()), "history/"),
        ([&sealed(&BTreeMap::new())[..2 * BLOCK], &bytes].concat(), "manifest.json: it follows the signature"),
        (vec![0; 2 * BLOCK], "signature.json: is not there"),
        (vec![], "signature.json: is not there"),
        (vec![7; 4 * BLOCK], "this is no bundle"),
        (vec![0; LARGEST + 1], "a bundle has at most 3000000 bytes, and this has 3000001"),
    ];
    for (bytes, right) in table {
        let told = read(&bytes).unwrap_err().to_string();
        assert!(told.starts_with(right), "{told:?} is not {right:?}");
    }
}

#[test]
fn another_signature_is_none_of_this_bundle() {
    let (bytes, _) = bundle();
    let signed = Members::of(&bytes).unwrap().signed;
    // Of other bytes by the same key.
    let other = sealed(&BTreeMap::from([(CONFIG.to_owned(), vec![])]));
    let tail = &other[Members::of(&other).unwrap().signed..];
    let told = read(&[&bytes[..signed], tail].concat()).unwrap_err().to_string();
    assert!(told.starts_with("signature.json: it is not the signature of this bundle"), "{told}");
    // By another key it is another's bundle, and whole.
    let files = files_of(&bytes);
    let forged = pack(files.iter().map(|(name, contents)| (name.as_str(), contents.as_slice())), &key(2));
    assert_eq!(read(&forged).unwrap().fingerprint, fingerprint(&key(2)));
}

#[test]
fn where_there_is_no_room_the_oldest_are_left_out_and_told() {
    let long = "#".repeat(700_000);
    let history: Vec<_> = (1..=6).map(|number| kept(number, &format!("{long}{number}"))).collect();
    let (bytes, manifest) = made(SITE, &history).unwrap();
    assert_eq!(manifest.left_out, 2);
    assert!(bytes.len() <= LARGEST);
    assert_eq!(read(&bytes).unwrap().history, history[2..]);
    assert!(matches!(made(&"#".repeat(LARGEST), &[]), Err(Unfit::TooLarge(_))));
    // And it fits into a line of the API with everything around it.
    assert!(BASE64_STANDARD.encode(vec![0; LARGEST]).len() + 100_000 < crate::api::protocol::MAX_LINE);
}

#[test]
fn the_files_that_a_config_names_are_listed_and_no_byte_of_them() {
    let text = format!(
        "{SITE}{}",
        r#"
[[syslog]]
server = "10.0.10.200:6514"
tls    = { ca = "/etc/quadway/ca.pem", certificate = "/etc/quadway/log.pem", key = "/etc/quadway/log.key" }

[[webhook]]
url    = "https://hooks.example.org/quadway"
secret = "/etc/quadway/webhook.secret"

[[hook]]
run    = "/etc/quadway/hooks/page"
events = ["outage"]

[[tls_offload]]
name        = "shop"
listen      = "10.0.10.1:443"
backends    = ["10.0.10.20:8080"]
client_ca   = "/etc/quadway/tls/clients.pem"
backend_tls = { ca = "/etc/quadway/tls/backends.pem", name = "shop.internal" }
[[tls_offload.certificate]]
certificate = "/etc/quadway/tls/shop.pem"
key         = "credential:shop.key"
ocsp        = "/etc/quadway/tls/shop.ocsp"
"#
    );
    let (_, manifest) = made(&text, &[]).unwrap();
    let named: Vec<_> = manifest.files.iter().map(String::as_str).collect();
    let right = [
        "ca.pem",
        "hooks/page",
        "log.key",
        "log.pem",
        "tls/backends.pem",
        "tls/clients.pem",
        "tls/shop.ocsp",
        "tls/shop.pem",
        "webhook.secret",
    ]
    .map(|name| format!("/etc/quadway/{name}"));
    assert_eq!(named, right);
    assert_eq!(missing(&["/".to_owned(), "/nonexistent".to_owned()].into()), ["/nonexistent"]);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>) {
        prop_assert!(read(&bytes).is_err());
    }

    #[test]
    fn no_members_make_it_panic(contents: Vec<u8>, name in prop::sample::select(vec![MANIFEST, CONFIG, "history/3.json"])) {
        let mut files = files_of(&bundle().0);
        files.insert(name.to_owned(), contents);
        prop_assert!(read(&sealed(&files)).is_err());
    }
}

fn bundle() -> (Vec<u8>, Manifest) {
    made(SITE, &[kept(3, "three"), kept(4, SITE), waits(kept(5, "five"))]).unwrap()
}

fn made(text: &str, history: &[Kept]) -> Result<(Vec<u8>, Manifest), Unfit> {
    let config = config::parse("site.toml", if text.len() > 100_000 { SITE } else { text }).unwrap().config;
    let now = SystemTime::UNIX_EPOCH + Duration::from_hours(498_684);
    make(&Contents { text, config: &config, history, host: "gate", now }, &key(1))
}

fn key(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn kept(number: u64, text: &str) -> Kept {
    let entry = Entry {
        number,
        time: "2026-11-20T12:00:00Z".to_owned(),
        author: Author { name: "alice".to_owned(), uid: Some(1000) },
        message: None,
        digest: digest(text),
        outcome: Outcome::Applied,
    };
    Kept { entry, text: text.to_owned() }
}

fn waits(mut kept: Kept) -> Kept {
    kept.entry.outcome = Outcome::Unconfirmed;
    kept
}

fn files_of(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let files = Members::of(bytes).unwrap().files;
    files.into_iter().map(|(name, contents)| (name, contents.to_vec())).collect()
}

fn sealed(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    pack(files.iter().map(|(name, contents)| (name.as_str(), contents.as_slice())), &key(1))
}

/// A manifest that says something else, signed.
fn told(change: impl FnOnce(&mut Manifest)) -> Vec<u8> {
    let (bytes, mut manifest) = bundle();
    change(&mut manifest);
    let mut files = files_of(&bytes);
    files.insert(MANIFEST.to_owned(), serde_json::to_vec(&manifest).unwrap());
    sealed(&files)
}

/// With this as number 7, in the manifest too, signed.
fn entry_of(kept: &Kept) -> Vec<u8> {
    let (bytes, mut manifest) = bundle();
    let mut files = files_of(&bytes);
    let contents = serde_json::to_vec(kept).unwrap();
    manifest.members.insert("history/7.json".to_owned(), digest(&contents));
    files.insert("history/7.json".to_owned(), contents);
    files.insert(MANIFEST.to_owned(), serde_json::to_vec(&manifest).unwrap());
    sealed(&files)
}
