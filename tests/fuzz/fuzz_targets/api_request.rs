//! Any bytes as a line of the API, from either side: reading reports, never panics. What is read is written back the
//! same, on one line; what changes anything is refused to a reader; a refusal can be sent, whatever it quotes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use router_daemon::api::protocol::{Answer, Role, decode_answer, decode_call, encode_answer, encode_call};

fuzz_target!(|bytes: &[u8]| {
    match decode_call(bytes) {
        Ok(call) => {
            let line = encode_call(&call);
            assert_eq!(line.find('\n'), Some(line.len() - 1));
            assert_eq!(decode_call(line.as_bytes()).as_ref(), Ok(&call));
            assert_eq!(Role::Operator.admits(&call), Ok(()));
            assert_eq!(Role::Reader.admits(&call).is_err(), CHANGES.contains(&call.word()));
        }
        Err(refusal) => answered(Answer::Error(refusal)),
    }
    match decode_answer(bytes) {
        Ok(answer) => answered(answer),
        Err(refusal) => answered(Answer::Error(refusal)),
    }
});

const CHANGES: [&str; 10] =
    ["apply", "restore", "confirm", "rollback", "drain", "undrain", "fail-test", "audit", "end-audit", "trace"];

fn answered(answer: Answer) {
    let line = encode_answer(&answer);
    assert_eq!(line.find('\n'), Some(line.len() - 1));
    assert_eq!(decode_answer(line.as_bytes()), Ok(answer));
}
