//! No text makes `parse` panic, and whatever it says can be rendered.

use proptest::prelude::*;

const FILES: [&str; 2] = [include_str!("../examples/minimal.toml"), include_str!("../examples/spectrum-site.toml")];

/// Words that mean something somewhere, to put where they mean something else.
const WORDS: [&str; 24] = [
    "\"all\"",
    "\"\"",
    "[]",
    "{}",
    "-1",
    "99999999999999999999",
    "0x7fffffffffffffff",
    "nan",
    "1e400",
    "true",
    "\"10.0.0.1-0\"",
    "\"10.0.0.1-255.255.255.255\"",
    "\"::/0\"",
    "\"0.0.0.0/0\"",
    "\"255.255.255.255/32\"",
    "\"tcp/1-65535\"",
    "\"wan1 down => \"",
    "\"=> uses\"",
    "\"->\"",
    "\"é\u{202e}\"",
    "1979-05-27",
    "[[[]]]",
    "\"::1-ffff::\"",
    "\"0.0000001ms\"",
];

#[test]
fn strange_files_are_answered() {
    let deep = format!("a = {}{}", "[".repeat(50_000), "]".repeat(50_000));
    let dotted = format!("{} = 1", vec!["a"; 50_000].join("."));
    let wide = format!("[site]\nname = \"x\"\n[vlan.a]\nid = {}\n", "9".repeat(1 << 20));
    let garbage = "\u{1}\u{7f}\"[=".repeat(1 << 18);
    let lines = "[[cell]]\n".repeat(100_000);
    let long_line = format!("cell = [{}]", "{ from = 1 },".repeat(50_000));
    for text in [
        "",
        "\u{feff}",
        "\0",
        "\u{feff}[site]\nname = \"x\"\n",
        "\r\r\n",
        "=",
        "[[",
        "a.b = 1\na = 2",
        &deep,
        &dotted,
        &wide,
        &garbage,
        &lines,
        &long_line,
    ] {
        answered(text);
    }
    assert!(config::parse("x", "\u{feff}[site]\nname = \"x\"\n").is_ok(), "a byte order mark means nothing");
    assert!(config::parse("x", &"# \n".repeat(6 << 20)).is_err(), "there is a limit");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn a_value_in_the_wrong_place_is_answered(file in 0usize..2, swaps in prop::collection::vec((any::<prop::sample::Index>(), 0usize..24), 1..6)) {
        let mut lines: Vec<String> = FILES[file].lines().map(str::to_owned).collect();
        for (at, word) in swaps {
            let line = at.get(&lines).clone();
            if let Some((key, _)) = line.split_once('=') {
                lines[at.index(FILES[file].lines().count())] = format!("{key}= {}", WORDS[word]);
            }
        }
        answered(&lines.join("\n"));
    }

    #[test]
    fn bytes_changed_anywhere_are_answered(file in 0usize..2, edits in prop::collection::vec((any::<prop::sample::Index>(), any::<char>()), 1..8)) {
        let mut chars: Vec<char> = FILES[file].chars().collect();
        for (at, char) in edits {
            let index = at.index(chars.len());
            chars[index] = char;
        }
        answered(&chars.into_iter().collect::<String>());
    }

    #[test]
    fn lines_dropped_and_doubled_are_answered(file in 0usize..2, keep in prop::collection::vec(0u8..12, 700)) {
        let mut text = String::new();
        for (line, keep) in FILES[file].lines().zip(keep) {
            for _ in 0..match keep { 0 => 0, 1 => 2, _ => 1 } {
                text.push_str(line);
                text.push('\n');
            }
        }
        answered(&text);
    }

    #[test]
    fn any_text_is_answered(text in "\\PC*") {
        answered(&text);
    }
}

fn answered(text: &str) {
    match config::parse("x.toml", text) {
        Ok(parsed) => assert_eq!(parsed.warnings.is_empty(), parsed.warnings.to_string().is_empty()),
        Err(problems) => {
            assert!(!problems.to_string().is_empty());
            assert!(problems.iter().any(|problem| problem.severity == config::Severity::Error));
            assert!(
                problems.iter().all(|problem| problem.line >= 1 && problem.column >= 1 && !problem.labels.is_empty())
            );
        }
    }
}
