//! The other end of the socket: what routerctl uses. Blocking, because a command has nothing else to do.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::protocol::{self, Answer, Call, MAX_LINE};
use crate::ask::Refusal;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "routerd is not running: there is no socket {path}\n  start it with `systemctl start routerd`, or name its socket with --socket"
    )]
    NotRunning { path: PathBuf },
    #[error("routerd is not running: nobody listens at {path}\n  start it with `systemctl start routerd`")]
    NobodyListens { path: PathBuf },
    #[error("{path} is not open to you: be root, or a member of the group `quadway` (or `quadway-read`, to read)")]
    NotAllowed { path: PathBuf },
    #[error("cannot speak with routerd at {path}: {source}\n  `systemctl status routerd` tells whether it runs")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "routerd closed the connection without an answer\n  it may be restarting: ask again, or look at `journalctl -u routerd`"
    )]
    Closed,
    #[error("{0}")]
    Refused(Refusal),
}

#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| {
            let path = path.to_owned();
            let kind = source.kind();
            if kind == io::ErrorKind::NotFound {
                ClientError::NotRunning { path }
            } else if kind == io::ErrorKind::ConnectionRefused {
                ClientError::NobodyListens { path }
            } else if kind == io::ErrorKind::PermissionDenied {
                ClientError::NotAllowed { path }
            } else {
                ClientError::Io { path, source }
            }
        })?;
        Ok(Self { path: path.to_owned(), stream: BufReader::new(stream) })
    }

    /// One question, one answer.
    pub fn ask(&mut self, call: &Call) -> Result<Value, ClientError> {
        self.send(call)?;
        self.hear()?.ok_or(ClientError::Closed)
    }

    /// After this, [`Client::hear`] gives the lines of the stream.
    pub fn send(&mut self, call: &Call) -> Result<(), ClientError> {
        match self.stream.get_mut().write_all(protocol::encode_call(call).as_bytes()) {
            Ok(()) => Ok(()),
            // The daemon refused and hung up; its reason can still be read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(source) => Err(self.io(source)),
        }
    }

    /// `None` when the stream is complete.
    pub fn hear(&mut self) -> Result<Option<Value>, ClientError> {
        let mut line = Vec::new();
        match (&mut self.stream).take(MAX_LINE as u64).read_until(b'\n', &mut line) {
            Ok(0) => Err(ClientError::Closed),
            Ok(_) => match protocol::decode_answer(&line).map_err(ClientError::Refused)? {
                Answer::Ok(value) => Ok(Some(value)),
                Answer::Error(refusal) => Err(ClientError::Refused(refusal)),
                Answer::End => Ok(None),
            },
            Err(source) => Err(self.io(source)),
        }
    }

    fn io(&self, source: io::Error) -> ClientError {
        ClientError::Io { path: self.path.clone(), source }
    }
}
