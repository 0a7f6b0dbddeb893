//! The protocol as a JSON Schema, made from its types: `routerctl api` prints it, `router-daemon/api.schema.json` is
//! the committed copy.

use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::protocol::{Call, VERSION};
use crate::ask::{ApplyReport, Refusal};
use crate::audits::AuditReport;
use crate::bundle::{RestoreReport, SaveReport};
use crate::difference::{Difference, TextDifference};
use crate::happening::Happening;
use crate::history::{ConfigText, Entry};
use crate::status::Status;
use crate::talkers::Talkers;
use crate::trace::TraceLine;

/// Requests, errors, and the answers that are more than a text or a line of a stream; of `events` and `trace` a line.
pub fn schema() -> Value {
    let mut types = SchemaSettings::draft2020_12().into_generator();
    let types = &mut types;
    let call = reference::<Call>(types);
    let error = reference::<Refusal>(types);
    let answers: Map<String, Value> = [
        ("status", reference::<Status>(types)),
        ("plan", reference::<Difference>(types)),
        ("apply", reference::<ApplyReport>(types)),
        ("rollback", reference::<ApplyReport>(types)),
        (
            "history",
            json!({"type": "object", "properties": {"entries": {"type": "array", "items": reference::<Entry>(types)}}}),
        ),
        ("config", reference::<ConfigText>(types)),
        ("save", reference::<SaveReport>(types)),
        ("restore", reference::<RestoreReport>(types)),
        ("diff", reference::<TextDifference>(types)),
        ("flows", reference::<Talkers>(types)),
        ("end-audit", reference::<AuditReport>(types)),
        ("events", reference::<Happening>(types)),
        ("trace", reference::<TraceLine>(types)),
    ]
    .into_iter()
    .map(|(call, answer)| (call.to_owned(), answer))
    .collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("Quadway API, version {VERSION}"),
        "description": "One JSON object per line over a unix socket, in both directions. Fields may be added within a \
                        version; removing or changing one needs the next version.",
        "request": {
            "allOf": [{"type": "object", "properties": {"v": {"const": VERSION}}, "required": ["v"]}, call],
        },
        "reply": {
            "type": "object",
            "properties": {
                "v": {"const": VERSION},
                "ok": {"description": "The answer; in a stream, one of several."},
                "error": error,
                "end": {"const": true, "description": "The stream is complete."},
            },
            "required": ["v"],
        },
        "answers": answers,
        "$defs": types.take_definitions(true),
    })
}

fn reference<T: schemars::JsonSchema>(types: &mut SchemaGenerator) -> Value {
    types.subschema_for::<T>().to_value()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{fixture, status};

    /// `api.schema.json` is written by this test where `QUADWAY_BLESS` is set.
    #[test]
    fn the_committed_schema_is_that_of_the_types() {
        let text = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("api.schema.json");
        if std::env::var_os("QUADWAY_BLESS").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            committed == text,
            "api.schema.json is not of these types: QUADWAY_BLESS=1 cargo test -p router-daemon"
        );
    }

    #[test]
    fn what_is_said_and_answered_fits_the_schema() {
        let schema = schema();
        let fits = |part: Value, instance: &Value| {
            let mut part = part;
            part["$defs"] = schema["$defs"].clone();
            let validator = jsonschema::draft202012::new(&part).unwrap();
            let errors: Vec<_> = validator.iter_errors(instance).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{errors:?}");
        };
        let status = status::of(&fixture::view(), &Ok(fixture::counters()));
        fits(schema["answers"]["status"].clone(), &serde_json::to_value(status).unwrap());
        for call in [
            json!({"v": 1, "call": "status"}),
            json!({"v": 1, "call": "apply", "text": "x", "message": "why"}),
            json!({"v": 1, "call": "explain", "source": "a", "destination": "b", "service": "ping"}),
            json!({"v": 1, "call": "fail-test", "wan": "wan1", "milliseconds": 5}),
            json!({"v": 1, "call": "save"}),
            json!({"v": 1, "call": "restore", "bundle": "YQ==", "trust": "ab", "message": "why"}),
        ] {
            fits(schema["request"].clone(), &call);
        }
        let validator = {
            let mut part = schema["request"].clone();
            part["$defs"] = schema["$defs"].clone();
            jsonschema::draft202012::new(&part).unwrap()
        };
        for call in [json!({"v": 2, "call": "status"}), json!({"v": 1, "call": "reboot"}), json!({"v": 1})] {
            assert!(!validator.is_valid(&call), "{call}");
        }
    }
}
