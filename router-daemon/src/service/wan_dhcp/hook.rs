//! What dhcpcd runs for each event: routerd under the name of the hook. It hands its environment to the routerd whose
//! folder it was called from, and ends.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::{HOOK, LONGEST, SOCKET};

/// Does the work of the hook, if that is the name we were called by.
pub fn called() -> Option<ExitCode> {
    let name = PathBuf::from(std::env::args_os().next()?);
    (name.file_name()? == HOOK).then(|| match hand_over(&name, std::env::vars_os()) {
        Ok(()) => ExitCode::SUCCESS,
        // Its standard error is dhcpcd's, and so in routerd's log.
        Err(error) => {
            drop(io::Write::write_all(&mut io::stderr(), format!("routerd does not hear of it: {error}\n").as_bytes()));
            ExitCode::FAILURE
        }
    })
}

fn hand_over(name: &Path, environment: impl Iterator<Item = (OsString, OsString)>) -> io::Result<()> {
    let message = message(environment);
    if message.len() > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the report is too long"));
    }
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.send_to(&message, name.with_file_name(SOCKET))?;
    Ok(())
}

/// `NAME=VALUE`, each with a zero byte behind it. What is not of dhcpcd's making stays here.
fn message(environment: impl Iterator<Item = (OsString, OsString)>) -> Vec<u8> {
    let ours = |name: &[u8]| {
        [&b"reason"[..], b"interface", b"protocol"].contains(&name)
            || [&b"new_"[..], b"nd"].iter().any(|prefix| name.starts_with(prefix))
    };
    let mut message = Vec::new();
    for (name, value) in environment.filter(|(name, _)| ours(name.as_bytes())) {
        message.extend_from_slice(name.as_bytes());
        message.push(b'=');
        message.extend_from_slice(value.as_bytes());
        message.push(0);
    }
    message
}

/// routerd reads at once, unless it has just ended.
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dhcpcd_says_is_handed_over_and_nothing_else() {
        let environment = [("PATH", "/bin"), ("reason", "BOUND"), ("new_ip_address", "192.0.2.7"), ("SECRET", "x")];
        let said = message(environment.into_iter().map(|(name, value)| (name.into(), value.into())));
        assert_eq!(said, b"reason=BOUND\0new_ip_address=192.0.2.7\0");
    }

    #[test]
    fn a_hook_speaks_to_the_routerd_of_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let routerd = UnixDatagram::bind(folder.path().join(SOCKET)).unwrap();
        let environment = || [("reason".into(), "NAK".into())].into_iter();
        hand_over(&folder.path().join(HOOK), environment()).unwrap();
        let mut buffer = [0; 64];
        let length = routerd.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"reason=NAK\0");
        drop(routerd);
        hand_over(&folder.path().join(HOOK), environment()).unwrap_err();
    }
}
