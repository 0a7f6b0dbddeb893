//! What passes over the socket: one JSON object per line, in both directions. A request is
//! `{"v":1,"call":"status"}`; an answer `{"v":1,"ok":…}` or `{"v":1,"error":{"code":…,"message":…}}`. A stream is
//! several `ok` lines; one that has an end closes with `{"v":1,"end":true}`. Fields may be added within a version;
//! removing or changing one needs the next version.
//!
//! Decoding is pure and total: any bytes give a call or an error that can be sent back.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ask::{How, Refusal};
use crate::talkers::MOST_TOLD;

/// The one version there is.
pub const VERSION: u32 = 1;
/// The longest line either side takes, in bytes. A config text travels inside one.
pub const MAX_LINE: usize = 4 * 1024 * 1024;

/// What may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub enum Call {
    Status,
    Version,
    /// What would change if this text took effect.
    Plan {
        text: String,
    },
    Apply {
        text: String,
        #[serde(flatten)]
        how: How,
    },
    /// Keep the change that waits for it.
    Confirm,
    /// Back to a config of the history; without a number, take back the change that waits.
    Rollback {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        number: Option<u64>,
        #[serde(flatten)]
        how: How,
    },
    /// Every config that took effect, oldest first.
    History,
    /// The text of the config in force, or of one of the history.
    Config {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        number: Option<u64>,
    },
    /// The config in force and the history as a bundle that this box signs.
    Save,
    /// Make the config of a bundle take effect, as `apply` does. `bundle` is in base64; `trust` is the fingerprint of a
    /// key that may have signed it, besides this box's.
    Restore {
        bundle: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trust: Option<String>,
        #[serde(flatten)]
        how: How,
    },
    /// What differs between two of them; without `to`, between one and what is in force.
    Diff {
        from: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<u64>,
    },
    /// `service` is `tcp/443`, `udp/53`, `ping` or the number of an IP protocol.
    Explain {
        source: String,
        destination: String,
        service: String,
    },
    /// How a line stands, and on what evidence.
    ExplainWan {
        wan: String,
    },
    /// Recent denials, grouped; with `follow`, each denial from here on as it happens.
    Denied {
        #[serde(default)]
        follow: bool,
    },
    /// The live flows, by line and by who opened them: the largest groups, at most `most`.
    Flows {
        #[serde(default = "most_told")]
        most: usize,
    },
    /// What the journal's lines tell, probes left out unless `all`; with `follow`, those to come too.
    Journal {
        #[serde(default)]
        follow: bool,
        #[serde(default)]
        all: bool,
    },
    /// What happens from here on, without end.
    Events,
    Drain {
        wan: String,
    },
    Undrain {
        wan: String,
    },
    FailTest {
        wan: String,
        milliseconds: u64,
    },
    /// Leaves the work to the other router of the pair for so long; 0 takes that back.
    Handover {
        milliseconds: u64,
    },
    /// For so long let pass, log and count what no entry of this cell (`office->guests`) allows. A stream: when it ends,
    /// each flow as it is seen, and last what came of it. It goes on where the stream is closed.
    Audit {
        cell: String,
        milliseconds: u64,
        /// Also from a VLAN that may open nothing to any other.
        #[serde(default)]
        isolated: bool,
    },
    /// Follow real packets of a flow, of both directions, through the rules: until the time is over or so many have come.
    /// A stream: what is followed, each step of each packet, and last a report. It ends with its stream. Packets that
    /// the fast path forwards meet no rule: they are counted, unless its flows are taken out of it for the time.
    Trace {
        source: String,
        destination: String,
        /// As of `explain`; without one, whatever the two say to each other.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<String>,
        milliseconds: u64,
        packets: u32,
        #[serde(default)]
        through_rules: bool,
    },
    /// End the audit of a cell; what came of it, also where it has ended already.
    EndAudit {
        cell: String,
    },
}

/// What a client may do. Who has which role is told where it came in; see [`super::server`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Asks, and changes nothing.
    Reader,
    /// May do everything.
    Operator,
}

impl Role {
    /// Whether a client of this role may ask that; if not, the answer.
    pub fn admits(self, call: &Call) -> Result<(), Refusal> {
        let needed = call.needs();
        if self >= needed {
            return Ok(());
        }
        let word = call.word();
        let text = format!("`{word}` changes the router: it needs the role `{needed}`, and yours is `{self}`");
        Err(Refusal::new("permission", text))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reader => "reader",
            Self::Operator => "operator",
        })
    }
}

impl Call {
    /// The role that may ask it: whatever changes anything is for operators.
    pub fn needs(&self) -> Role {
        match self {
            Self::Status
            | Self::Version
            | Self::Plan { .. }
            | Self::History
            | Self::Config { .. }
            // What a reader could copy piece by piece; he chooses none of what is signed.
            | Self::Save
            | Self::Diff { .. }
            | Self::Explain { .. }
            | Self::ExplainWan { .. }
            | Self::Denied { .. }
            | Self::Flows { .. }
            | Self::Journal { .. }
            | Self::Events => Role::Reader,
            Self::Apply { .. }
            | Self::Restore { .. }
            | Self::Confirm
            | Self::Rollback { .. }
            | Self::Drain { .. }
            | Self::Undrain { .. }
            | Self::FailTest { .. }
            | Self::Handover { .. }
            | Self::Audit { .. }
            | Self::Trace { .. }
            | Self::EndAudit { .. } => Role::Operator,
        }
    }

    /// Whether the answer may have several lines.
    pub(super) fn streams(&self) -> bool {
        matches!(
            self,
            Self::Denied { follow: true }
                | Self::Journal { .. }
                | Self::Events
                | Self::Audit { .. }
                | Self::Trace { .. }
        )
    }

    /// Whether it waits for what is to come.
    pub(super) fn follows(&self) -> bool {
        matches!(
            self,
            Self::Denied { follow: true }
                | Self::Journal { follow: true, .. }
                | Self::Events
                | Self::Audit { .. }
                | Self::Trace { .. }
        )
    }

    /// The word in the `call` field.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Version => "version",
            Self::Plan { .. } => "plan",
            Self::Apply { .. } => "apply",
            Self::Confirm => "confirm",
            Self::Rollback { .. } => "rollback",
            Self::History => "history",
            Self::Config { .. } => "config",
            Self::Save => "save",
            Self::Restore { .. } => "restore",
            Self::Diff { .. } => "diff",
            Self::Explain { .. } => "explain",
            Self::ExplainWan { .. } => "explain-wan",
            Self::Denied { .. } => "denied",
            Self::Flows { .. } => "flows",
            Self::Journal { .. } => "journal",
            Self::Events => "events",
            Self::Drain { .. } => "drain",
            Self::Undrain { .. } => "undrain",
            Self::FailTest { .. } => "fail-test",
            Self::Handover { .. } => "handover",
            Self::Audit { .. } => "audit",
            Self::Trace { .. } => "trace",
            Self::EndAudit { .. } => "end-audit",
        }
    }
}

/// One line from the daemon.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Ok(Value),
    Error(Refusal),
    /// The stream is complete.
    End,
}

/// A request as a line, with its newline.
pub fn encode_call(call: &Call) -> String {
    line(&Request { v: VERSION, call })
}

/// An answer as a line, with its newline.
pub fn encode_answer(answer: &Answer) -> String {
    let mut reply = Reply { v: VERSION, ok: None, error: None, end: None };
    match answer {
        Answer::Ok(value) => reply.ok = Some(value.clone()),
        Answer::Error(refusal) => reply.error = Some(refusal.clone()),
        Answer::End => reply.end = Some(true),
    }
    line(&reply)
}

/// An answer that carries `value`.
pub fn ok(value: &impl Serialize) -> Answer {
    match serde_json::to_value(value) {
        Ok(value) => Answer::Ok(value),
        Err(error) => Answer::Error(Refusal::new("internal", format!("the answer cannot be written as JSON: {error}"))),
    }
}

/// A request line, with or without its newline.
pub fn decode_call(bytes: &[u8]) -> Result<Call, Refusal> {
    let value = decode_line(bytes)?;
    let call = value.get("call").and_then(Value::as_str).map(str::to_owned);
    serde_json::from_value(value).map_err(|error| match call {
        Some(call) => Refusal::new("malformed", format!("the call {call:?} is not one of version {VERSION}: {error}")),
        None => Refusal::new("malformed", "the request has no field \"call\""),
    })
}

/// An answer line, with or without its newline.
pub fn decode_answer(bytes: &[u8]) -> Result<Answer, Refusal> {
    let value = decode_line(bytes)?;
    let reply: Reply = serde_json::from_value(value)
        .map_err(|error| Refusal::new("malformed", format!("the daemon's answer cannot be read: {error}")))?;
    match reply {
        Reply { error: Some(error), .. } => Ok(Answer::Error(error)),
        Reply { ok: Some(ok), .. } => Ok(Answer::Ok(ok)),
        Reply { end: Some(true), .. } => Ok(Answer::End),
        Reply { .. } => Err(Refusal::new("malformed", "the daemon's answer has neither \"ok\" nor \"error\"")),
    }
}

fn decode_line(bytes: &[u8]) -> Result<Value, Refusal> {
    if bytes.len() > MAX_LINE {
        return Err(Refusal::new("too-large", format!("a line has at most {MAX_LINE} bytes")));
    }
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| Refusal::new("malformed", format!("not a JSON object: {error}")))?;
    match value.get("v").and_then(Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => Ok(value),
        Some(version) => {
            Err(Refusal::new("version", format!("version {version} is not spoken here; this side speaks {VERSION}")))
        }
        None => {
            Err(Refusal::new("version", format!("the line has no field \"v\"; this side speaks version {VERSION}")))
        }
    }
}

fn line(value: &impl Serialize) -> String {
    #[expect(clippy::expect_used, reason = "strings, numbers and JSON values under string keys always serialize")]
    let mut text = serde_json::to_string(value).expect("requests and replies are plain data");
    text.push('\n');
    text
}

fn most_told() -> usize {
    MOST_TOLD
}

#[derive(Serialize)]
struct Request<'a> {
    v: u32,
    #[serde(flatten)]
    call: &'a Call,
}

#[derive(Serialize, Deserialize)]
struct Reply {
    v: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ok: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Refusal>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<bool>,
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::session::Session;

    /// One of each, and what it looks like.
    pub(in crate::api) fn pinned() -> Vec<(Call, &'static str)> {
        vec![
            (Call::Status, r#"{"v":1,"call":"status"}"#),
            (Call::Version, r#"{"v":1,"call":"version"}"#),
            (Call::Plan { text: "a\nb".into() }, r#"{"v":1,"call":"plan","text":"a\nb"}"#),
            (Call::Apply { text: String::new(), how: How::default() }, r#"{"v":1,"call":"apply","text":""}"#),
            (
                Call::Apply {
                    text: "x".into(),
                    how: How {
                        message: Some("why".into()),
                        confirm_milliseconds: Some(120_000),
                        guard_milliseconds: Some(30_000),
                        force: true,
                        session: Session::of_ssh("10.0.10.7 50000 10.0.10.1 22"),
                    },
                },
                concat!(
                    r#"{"v":1,"call":"apply","text":"x","message":"why","confirm_milliseconds":120000,"#,
                    r#""guard_milliseconds":30000,"force":true,"session":{"source":"10.0.10.7","source_port":50000,"#,
                    r#""destination":"10.0.10.1","port":22}}"#
                ),
            ),
            (Call::Confirm, r#"{"v":1,"call":"confirm"}"#),
            (Call::Rollback { number: None, how: How::default() }, r#"{"v":1,"call":"rollback"}"#),
            (
                Call::Rollback { number: Some(7), how: How { confirm_milliseconds: Some(1000), ..How::default() } },
                r#"{"v":1,"call":"rollback","number":7,"confirm_milliseconds":1000}"#,
            ),
            (Call::History, r#"{"v":1,"call":"history"}"#),
            (Call::Config { number: None }, r#"{"v":1,"call":"config"}"#),
            (Call::Config { number: Some(7) }, r#"{"v":1,"call":"config","number":7}"#),
            (Call::Save, r#"{"v":1,"call":"save"}"#),
            (
                Call::Restore { bundle: "YQ==".into(), trust: None, how: How::default() },
                r#"{"v":1,"call":"restore","bundle":"YQ=="}"#,
            ),
            (
                Call::Restore {
                    bundle: "YQ==".into(),
                    trust: Some("ab".into()),
                    how: How { confirm_milliseconds: Some(1000), ..How::default() },
                },
                r#"{"v":1,"call":"restore","bundle":"YQ==","trust":"ab","confirm_milliseconds":1000}"#,
            ),
            (Call::Diff { from: 3, to: None }, r#"{"v":1,"call":"diff","from":3}"#),
            (Call::Diff { from: 3, to: Some(4) }, r#"{"v":1,"call":"diff","from":3,"to":4}"#),
            (
                Call::Explain { source: "app".into(), destination: "nas".into(), service: "tcp/22".into() },
                r#"{"v":1,"call":"explain","source":"app","destination":"nas","service":"tcp/22"}"#,
            ),
            (Call::ExplainWan { wan: "wan2".into() }, r#"{"v":1,"call":"explain-wan","wan":"wan2"}"#),
            (Call::Denied { follow: true }, r#"{"v":1,"call":"denied","follow":true}"#),
            (Call::Flows { most: 20 }, r#"{"v":1,"call":"flows","most":20}"#),
            (Call::Journal { follow: false, all: true }, r#"{"v":1,"call":"journal","follow":false,"all":true}"#),
            (Call::Events, r#"{"v":1,"call":"events"}"#),
            (Call::Drain { wan: "wan1".into() }, r#"{"v":1,"call":"drain","wan":"wan1"}"#),
            (Call::Undrain { wan: "wan1".into() }, r#"{"v":1,"call":"undrain","wan":"wan1"}"#),
            (
                Call::FailTest { wan: "wan1".into(), milliseconds: 1500 },
                r#"{"v":1,"call":"fail-test","wan":"wan1","milliseconds":1500}"#,
            ),
            (Call::Handover { milliseconds: 1500 }, r#"{"v":1,"call":"handover","milliseconds":1500}"#),
            (
                Call::Audit { cell: "dev->compute".into(), milliseconds: 1500, isolated: false },
                r#"{"v":1,"call":"audit","cell":"dev->compute","milliseconds":1500,"isolated":false}"#,
            ),
            (
                Call::Trace {
                    source: "app".into(),
                    destination: "nas".into(),
                    service: Some("tcp/22".into()),
                    milliseconds: 1500,
                    packets: 5,
                    through_rules: false,
                },
                concat!(
                    r#"{"v":1,"call":"trace","source":"app","destination":"nas","service":"tcp/22","#,
                    r#""milliseconds":1500,"packets":5,"through_rules":false}"#
                ),
            ),
            (Call::EndAudit { cell: "dev->compute".into() }, r#"{"v":1,"call":"end-audit","cell":"dev->compute"}"#),
        ]
    }

    #[test]
    fn the_lines_of_version_1_are_these() {
        for (call, text) in pinned() {
            assert_eq!(encode_call(&call), format!("{text}\n"));
            assert_eq!(decode_call(text.as_bytes()).unwrap(), call);
            assert!(text.contains(&format!("\"call\":\"{}\"", call.word())));
        }
    }

    #[test]
    fn a_reader_may_ask_exactly_what_changes_nothing() {
        let readable: BTreeSet<_> = [
            "status",
            "version",
            "plan",
            "history",
            "config",
            "save",
            "diff",
            "explain",
            "explain-wan",
            "denied",
            "flows",
            "journal",
            "events",
        ]
        .into();
        let calls: BTreeSet<_> = pinned().iter().map(|(call, _)| call.word()).collect();
        let schema = serde_json::to_value(schemars::schema_for!(Call)).unwrap();
        let known = schema["oneOf"].as_array().unwrap().iter().map(|one| one["properties"]["call"]["const"].as_str());
        assert_eq!(known.map(Option::unwrap).collect::<BTreeSet<_>>(), calls, "a call is missing in the table");
        for (call, _) in pinned() {
            let word = call.word();
            assert_eq!(Role::Operator.admits(&call), Ok(()));
            match Role::Reader.admits(&call) {
                Ok(()) => assert!(readable.contains(word), "{word}"),
                Err(refusal) => {
                    assert!(!readable.contains(word), "{word}");
                    assert_eq!(refusal.code, "permission");
                    let roles = "it needs the role `operator`, and yours is `reader`";
                    assert!(refusal.message.contains(roles), "{}", refusal.message);
                }
            }
        }
    }

    #[test]
    fn answers_come_back_as_they_went() {
        for answer in [Answer::Ok(json!({"a": [1, 2]})), Answer::Error(Refusal::new("busy", "later")), Answer::End] {
            assert_eq!(decode_answer(encode_answer(&answer).as_bytes()).unwrap(), answer);
        }
        assert_eq!(encode_answer(&Answer::End), "{\"v\":1,\"end\":true}\n");
        assert_eq!(
            encode_answer(&Answer::Error(Refusal::new("busy", "later"))),
            "{\"v\":1,\"error\":{\"code\":\"busy\",\"message\":\"later\"}}\n"
        );
    }

    /// Found by the fuzzer, which has it as a seed: a dependency of the tests brings what `serde_json` needs for it.
    #[test]
    fn a_number_comes_back_as_it_went() {
        let line = format!("{{\"v\":1,\"ok\":{{\"n\":551{}}}}}", "6".repeat(42));
        let answer = decode_answer(line.as_bytes()).unwrap();
        assert_eq!(decode_answer(encode_answer(&answer).as_bytes()).unwrap(), answer);
    }

    #[test]
    fn a_bad_line_is_answered_with_what_is_wrong_with_it() {
        for (line, code, part) in [
            ("", "malformed", "not a JSON object"),
            ("[1]", "version", "no field \"v\""),
            (r#"{"v":2,"call":"status"}"#, "version", "version 2 is not spoken"),
            (r#"{"v":1}"#, "malformed", "no field \"call\""),
            (r#"{"v":1,"call":"reboot"}"#, "malformed", "\"reboot\""),
            (r#"{"v":1,"call":"drain"}"#, "malformed", "wan"),
            (r#"{"v":1,"call":"drain","wan":7}"#, "malformed", "string"),
        ] {
            let refusal = decode_call(line.as_bytes()).unwrap_err();
            assert_eq!(refusal.code, code, "{line}");
            assert!(refusal.message.contains(part), "{line}: {}", refusal.message);
        }
    }

    #[test]
    fn fields_this_version_does_not_know_are_passed_over() {
        assert_eq!(decode_call(br#"{"v":1,"call":"status","colour":"red"}"#).unwrap(), Call::Status);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode_call(&bytes).is_err());
            prop_assert!(decode_answer(&bytes).is_err());
        }

        #[test]
        fn any_text_passes_unharmed(text: String) {
            let call = Call::Apply { text, how: How::default() };
            let line = encode_call(&call);
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert_eq!(decode_call(line.as_bytes()).unwrap(), call);
        }
    }
}
