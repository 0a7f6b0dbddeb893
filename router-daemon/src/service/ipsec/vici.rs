//! What is said to charon over VICI, and what it answers. A connection lives for one round of questions: whoever is at the
//! other end may end at any time.

use std::collections::BTreeMap;
use std::path::Path;

use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::ANSWER;

/// A section of a message.
pub(super) type Section = BTreeMap<String, Value>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Value {
    Text(String),
    List(Vec<String>),
    Section(Section),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<String>> for Value {
    fn from(list: Vec<String>) -> Self {
        Self::List(list)
    }
}

impl From<Section> for Value {
    fn from(section: Section) -> Self {
        Self::Section(section)
    }
}

/// `{ key = value … }`
pub(super) fn section<const N: usize>(entries: [(&str, Value); N]) -> Section {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// An association of keys with another site, as `list-sas` tells it. All values are texts there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct IkeSa {
    pub(super) uniqueid: String,
    pub(super) state: String,
    pub(super) local_host: String,
    pub(super) remote_host: String,
    pub(super) established: Option<String>,
    pub(super) child_sas: BTreeMap<String, ChildSa>,
}

/// The keys of its packets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct ChildSa {
    pub(super) uniqueid: String,
    pub(super) state: String,
    pub(super) encr_alg: String,
    pub(super) encr_keysize: Option<String>,
    pub(super) integ_alg: Option<String>,
    pub(super) esn: Option<String>,
    pub(super) bytes_in: Option<String>,
    pub(super) bytes_out: Option<String>,
    pub(super) packets_in: Option<String>,
    pub(super) packets_out: Option<String>,
    pub(super) rekey_time: Option<String>,
}

impl IkeSa {
    pub(super) fn is_established(&self) -> bool {
        self.state == "ESTABLISHED"
    }

    /// Its newest keys that carry packets.
    pub(super) fn installed(&self) -> Option<&ChildSa> {
        let carries = |child: &&ChildSa| matches!(child.state.as_str(), "INSTALLED" | "REKEYING" | "REKEYED");
        self.child_sas.values().filter(carries).max_by_key(|child| number(Some(&child.uniqueid)))
    }
}

pub(super) fn number(text: Option<&String>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Said {
    success: bool,
    errmsg: String,
}

impl Default for Said {
    fn default() -> Self {
        // What has nothing to say has succeeded.
        Self { success: true, errmsg: String::new() }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Names {
    conns: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Version {
    pub(super) version: String,
}

/// One who answers.
pub(super) struct Charon(rsvici::Client);

impl Charon {
    pub(super) async fn at(socket: &Path) -> Result<Self, String> {
        match rsvici::unix::connect(socket).await {
            Ok(client) => Ok(Self(client)),
            Err(error) => Err(format!("charon cannot be asked: {error}")),
        }
    }

    pub(super) async fn version(&mut self) -> Result<String, String> {
        let said: Version = self.ask("version", Section::new()).await?;
        Ok(said.version)
    }

    /// The connections it knows.
    pub(super) async fn connections(&mut self) -> Result<Vec<String>, String> {
        let said: Names = self.ask("get-conns", Section::new()).await?;
        Ok(said.conns)
    }

    pub(super) async fn associations(&mut self) -> Result<Vec<(String, IkeSa)>, String> {
        let told = self.0.stream_request::<Section, BTreeMap<String, IkeSa>>("list-sas", "list-sa", Section::new());
        let all = async {
            let mut told = std::pin::pin!(told);
            let mut all = Vec::new();
            while let Some(one) = told.next().await {
                all.extend(one.map_err(|error| format!("charon tells of its associations: {error}"))?);
            }
            Ok(all)
        };
        timeout(ANSWER, all).await.unwrap_or_else(|_| Err(SILENT.to_owned()))
    }

    /// Something that succeeds, or says why not.
    pub(super) async fn tell(&mut self, what: &str, message: Section) -> Result<(), String> {
        let said: Said = self.ask(what, message).await?;
        if said.success { Ok(()) } else { Err(format!("charon refuses `{what}`: {}", said.errmsg)) }
    }

    async fn ask<T: DeserializeOwned>(&mut self, what: &str, message: Section) -> Result<T, String> {
        match timeout(ANSWER, self.0.request(what, message)).await {
            Ok(Ok(said)) => Ok(said),
            Ok(Err(error)) => Err(format!("charon, asked for `{what}`: {error}")),
            Err(_) => Err(SILENT.to_owned()),
        }
    }
}

const SILENT: &str = "charon does not answer";
