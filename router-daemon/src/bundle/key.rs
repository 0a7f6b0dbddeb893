//! The key a box signs its bundles with: Ed25519, made at first use, in a file of the state folder that only its owner
//! may read. It goes from there into `ring` and nowhere else, and into no bundle: a box that takes over another's
//! bundle has a key of its own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::libc;
use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;

/// Where it is.
#[derive(Debug, Clone)]
pub struct BoxKey {
    path: PathBuf,
    /// Two first uses at once make one key.
    making: Arc<Mutex<()>>,
}

impl BoxKey {
    /// Beside what else is kept in the state folder.
    pub fn of(state: &Path) -> Self {
        Self { path: state.join("box.key"), making: Arc::default() }
    }

    /// The key; made, where there is none. What is wrong with it is told with its remedy, and without a byte of it.
    pub fn open(&self) -> Result<Ed25519KeyPair, String> {
        let path = self.path.display();
        let _alone = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = match self.contents() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make().map_err(|error| {
                format!("the key of this box cannot be written to {path}: {error}\n  is there room?")
            })?,
            Err(error) => return Err(format!("the key of this box cannot be used: {path}: {error}")),
        };
        Ed25519KeyPair::from_pkcs8(&bytes).map_err(|_secret| {
            format!(
                "{path} holds no Ed25519 key\n  move it away and the next use makes another; bundles of before then need \
                 --trust"
            )
        })
    }

    fn contents(&self) -> io::Result<Vec<u8>> {
        // What is no file, such as a pipe nobody writes to, is not waited for.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&self.path)?;
        let facts = file.metadata()?;
        let mode = facts.mode() & 0o7777;
        if !facts.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        if mode & 0o077 != 0 {
            let path = self.path.display();
            let text = format!(
                "it is open to others (mode {mode:04o}), who may have copied it\n  `chmod 600 {path}`, or \
                                remove it: the next use makes another"
            );
            return Err(io::Error::other(text));
        }
        let mut bytes = Vec::new();
        file.take(LARGEST).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// There whole, for its owner alone, or not there. The folder is the daemon's: it is there.
    fn make(&self) -> io::Result<Vec<u8>> {
        let unmade = |_unspecified| io::Error::other("the system gives no random numbers");
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(unmade)?;
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let beside = self.path.with_added_extension("tmp");
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(document.as_ref())?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        File::open(folder)?.sync_all()?;
        Ok(document.as_ref().to_vec())
    }
}

const LARGEST: u64 = 4096;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::thread;

    use super::*;
    use crate::bundle::fingerprint;

    #[test]
    fn a_key_is_made_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        assert!(BoxKey::of(&state).open().unwrap_err().contains("box.key: No such file"));
        fs::create_dir(&state).unwrap();
        let key = BoxKey::of(&state);
        let prints: Vec<_> = thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(|| fingerprint(&key.open().unwrap()))).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(prints.iter().all(|print| *print == prints[0]), "{prints:?}");
        assert_eq!(fingerprint(&BoxKey::of(&state).open().unwrap()), prints[0], "a restart finds it");
        assert_eq!(fs::metadata(state.join("box.key")).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
        assert_ne!(fingerprint(&BoxKey::of(folder.path()).open().unwrap()), prints[0], "another box has another");
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_told_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let (key, path) = (BoxKey::of(folder.path()), folder.path().join("box.key"));
        key.open().unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let told = key.open().unwrap_err();
        assert!(told.contains("mode 0640") && told.contains("`chmod 600 /"), "{told}");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        key.open().unwrap();
        fs::write(&path, "secret").unwrap();
        let told = key.open().unwrap_err();
        assert!(told.contains("holds no Ed25519 key") && !told.contains("secret"), "{told}");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(key.open().unwrap_err().contains("it is no file"));
    }
}
