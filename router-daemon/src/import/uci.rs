//! UCI, the format of OpenWrt's files: `config`, `option` and `list` lines in sections, with the quotes, escapes and
//! comments that libuci reads. Text in, sections out with the line of every word; or every place that is not UCI.
//! What the options mean is not known here.

use std::fmt;

use serde::Serialize;

/// A file, section by section, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// What the file is called in notes.
    pub name: String,
    pub sections: Vec<Section>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// `interface`, `rule`, …
    pub kind: String,
    /// `None` for an anonymous one.
    pub name: Option<String>,
    /// From 1.
    pub line: u32,
    pub options: Vec<Setting>,
}

/// An `option`, or all `list` lines of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub name: String,
    pub values: Vec<Value>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    pub text: String,
    pub line: u32,
}

/// A place that is not UCI, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    pub file: String,
    pub line: u32,
    pub message: String,
    pub help: String,
    /// The line as it stands, shortened, without what a terminal would obey.
    pub source: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, message, help, source } = self;
        let gutter = line.to_string().len();
        writeln!(f, "error: {message}")?;
        writeln!(f, "{:gutter$}--> {file}:{line}", "")?;
        writeln!(f, "{:gutter$} |\n{line} | {source}", "")?;
        writeln!(f, "{:gutter$} = help: {help}", "")
    }
}

/// Reads a file. Where it is not UCI, reading goes on at the next line, so that all faults are told at once.
pub fn parse(name: &str, text: &str) -> Result<File, Vec<Fault>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n");
    let mut reader = Reader { rest: &text, line: 1, broken: Vec::new() };
    let mut file = File { name: name.to_owned(), sections: Vec::new() };
    // Where options go: a section that is named twice is one section.
    let mut current: Option<usize> = None;
    while let Some(statement) = reader.statement() {
        if let Err((message, help)) = file.take(&statement, &mut current) {
            let line = statement.first().map_or(1, |word| word.line);
            reader.broken.push((line, message, help));
        }
        if reader.broken.len() >= MOST {
            break;
        }
    }
    if reader.broken.is_empty() {
        return Ok(file);
    }
    let lines: Vec<&str> = text.split('\n').collect();
    let mut faults: Vec<_> = reader
        .broken
        .into_iter()
        .map(|(line, message, help)| {
            let source = lines.get(usize::try_from(line).unwrap_or(0).saturating_sub(1)).copied().unwrap_or("");
            Fault { file: name.to_owned(), line, message, help, source: shown(source) }
        })
        .collect();
    faults.sort_by_key(|fault| fault.line);
    Err(faults)
}

/// Text from a file, fit for a terminal and for one line of a comment.
pub(super) fn shown(text: &str) -> String {
    let plain = |c: char| match c {
        '\t' | '\n' => ' ',
        c if c.is_control() || ('\u{200b}'..='\u{200f}').contains(&c) || ('\u{202a}'..='\u{202e}').contains(&c) => {
            char::REPLACEMENT_CHARACTER
        }
        c => c,
    };
    text.chars().take(WIDTH).map(plain).collect::<String>().trim_end().to_owned()
}

type Slip = (String, String);

impl File {
    fn take(&mut self, statement: &[Value], current: &mut Option<usize>) -> Result<(), Slip> {
        let [command, arguments @ ..] = statement else { return Ok(()) };
        let line = command.line;
        match (command.text.as_str(), arguments) {
            ("package" | "p", _) => Ok(()),
            ("config" | "c", []) => {
                slip("this section has no type", "write `config TYPE`, as in `config interface 'wan'`")
            }
            ("config" | "c", [kind]) => {
                *current = Some(self.sections.len());
                let kind = kind.text.clone();
                self.sections.push(Section { kind, name: None, line, options: Vec::new() });
                Ok(())
            }
            ("config" | "c", [kind, name]) => {
                let known = self.sections.iter().position(|section| {
                    section.kind == kind.text && section.name.as_deref() == Some(name.text.as_str())
                });
                if known.is_none() {
                    let name = (!name.text.is_empty()).then(|| name.text.clone());
                    self.sections.push(Section { kind: kind.text.clone(), name, line, options: Vec::new() });
                }
                *current = Some(known.unwrap_or(self.sections.len() - 1));
                named(&name.text, "section")
            }
            ("option" | "o" | "list" | "l", []) => slip("this option has no name", "write `option NAME 'VALUE'`"),
            ("option" | "o" | "list" | "l", [name, rest @ ..]) if rest.len() <= 1 => {
                named(&name.text, "option")?;
                let Some(section) = current.and_then(|at| self.sections.get_mut(at)) else {
                    return slip(
                        "this option belongs to no section",
                        "write the `config TYPE` line it belongs to above it",
                    );
                };
                let value = Value { text: rest.first().map(|value| value.text.clone()).unwrap_or_default(), line };
                section.put(&name.text, value, command.text.starts_with('l'));
                Ok(())
            }
            ("option" | "o" | "list" | "l" | "config" | "c", _) => {
                slip("there are too many words on this line", "put quotes around a value that holds blanks")
            }
            (word, _) => slip(
                &format!("`{}` is no command of UCI", shown(word)),
                "a line begins with `config`, `option` or `list`; a comment begins with #",
            ),
        }
    }
}

fn slip<T>(message: &str, help: &str) -> Result<T, Slip> {
    Err((message.to_owned(), help.to_owned()))
}

/// libuci takes letters, digits and the underscore in names of sections and options.
fn named(name: &str, what: &str) -> Result<(), Slip> {
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || *c == '_')) {
        None => Ok(()),
        Some(found) => slip(
            &format!("the name of this {what} holds {found:?}"),
            "use letters, digits and _; OpenWrt reads no other names",
        ),
    }
}

impl Section {
    fn put(&mut self, name: &str, value: Value, list: bool) {
        match self.options.iter_mut().find(|setting| setting.name == name) {
            None => self.options.push(Setting { name: name.to_owned(), values: vec![value] }),
            Some(setting) if list => setting.values.push(value),
            // The last word counts, as in libuci.
            Some(setting) => setting.values = vec![value],
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
    line: u32,
    broken: Vec<(u32, String, String)>,
}

impl Reader<'_> {
    /// The words up to the end of the line or a semicolon. `None` at the end of the file.
    fn statement(&mut self) -> Option<Vec<Value>> {
        let mut words = Vec::new();
        loop {
            match self.rest.chars().next() {
                None if words.is_empty() => return None,
                None => return Some(words),
                Some('\n' | ';') => {
                    self.step();
                    if !words.is_empty() {
                        return Some(words);
                    }
                }
                Some('#') => self.skip_line(),
                Some('\\') if self.rest.starts_with("\\\n") => {
                    self.step();
                    self.step();
                }
                Some(c) if blank(c) => {
                    self.step();
                }
                Some(_) => words.push(self.word()),
            }
        }
    }

    fn word(&mut self) -> Value {
        let line = self.line;
        let mut text = String::new();
        while let Some(c) = self.rest.chars().next() {
            match c {
                '\n' | ';' | '#' => break,
                c if blank(c) => break,
                '\'' | '"' => self.quoted(c, &mut text),
                '\\' => {
                    self.step();
                    match self.step() {
                        // A line that goes on, or the end of the file.
                        Some('\n') | None => {}
                        Some(c) => text.push(c),
                    }
                }
                c => {
                    text.push(c);
                    self.step();
                }
            }
        }
        Value { text, line }
    }

    /// From the quote to the one that closes it. A value may hold line ends; but where the next line begins with a
    /// command, the quote was forgotten, and taking the rest of the file for a value would hide every other fault.
    fn quoted(&mut self, quote: char, text: &mut String) {
        let line = self.line;
        self.step();
        loop {
            match self.rest.chars().next() {
                Some(c) if c == quote => {
                    self.step();
                    return;
                }
                Some('\\') if quote == '"' => {
                    self.step();
                    match self.step() {
                        Some('\n') | None => {}
                        Some(c) => text.push(c),
                    }
                }
                Some('\n') if !begins_with_a_command(&self.rest[1..]) => {
                    text.push('\n');
                    self.step();
                }
                Some('\n') | None => {
                    self.broken.push((
                        line,
                        format!("the quote {quote} that opens here is not closed"),
                        format!("write {quote} where the value ends"),
                    ));
                    return;
                }
                Some(c) => {
                    text.push(c);
                    self.step();
                }
            }
        }
    }

    fn step(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next()?;
        self.rest = chars.as_str();
        if c == '\n' {
            self.line = self.line.saturating_add(1);
        }
        Some(c)
    }

    fn skip_line(&mut self) {
        let end = self.rest.find('\n').unwrap_or(self.rest.len());
        self.rest = &self.rest[end..];
    }
}

fn blank(c: char) -> bool {
    c != '\n' && c.is_ascii_whitespace()
}

fn begins_with_a_command(rest: &str) -> bool {
    let line = rest.split('\n').next().unwrap_or("");
    let mut words = line.split_whitespace();
    matches!(words.next(), Some("config" | "option" | "list")) && words.next().is_some()
}

/// More than anybody reads; bounds the work on a file that is no UCI at all.
const MOST: usize = 50;
/// Characters of a source line that are shown.
const WIDTH: usize = 120;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sections as `kind/name`, options as `name=value|value`.
    fn read(text: &str) -> Vec<String> {
        let file = parse("test", text).unwrap_or_else(|faults| panic!("{faults:?}"));
        let mut out = Vec::new();
        for section in file.sections {
            out.push(format!("{}/{}", section.kind, section.name.unwrap_or_default()));
            for setting in section.options {
                let values: Vec<_> = setting.values.into_iter().map(|value| value.text).collect();
                out.push(format!("{}={}", setting.name, values.join("|")));
            }
        }
        out
    }

    #[test]
    fn words_are_read_as_libuci_reads_them() {
        let table: [(&str, &[&str]); 12] = [
            ("config a b\n\toption x 'y z'", &["a/b", "x=y z"]),
            ("config a\noption x y # gone\n#option z 1", &["a/", "x=y"]),
            ("config a\noption x y#gone", &["a/", "x=y"]),
            ("config a\noption x 'it'\\''s'", &["a/", "x=it's"]),
            ("config a\noption x \"say \\\"hi\\\" # \\\\\"", &["a/", "x=say \"hi\" # \\"]),
            ("config a\noption x two\\ words", &["a/", "x=two words"]),
            ("config a\noption x one\\\ntwo", &["a/", "x=onetwo"]),
            ("config a\nlist x 1\nlist x 2\noption y 1\noption y 2", &["a/", "x=1|2", "y=2"]),
            ("config a; option x 1; option y 2", &["a/", "x=1", "y=2"]),
            ("package p\nc a b\no x 1\nl y 2", &["a/b", "x=1", "y=2"]),
            ("config a b\r\n\toption x 'y'\r\n", &["a/b", "x=y"]),
            ("\u{feff}config a b\noption x ''\noption y\nconfig a b\noption z 1", &["a/b", "x=", "y=", "z=1"]),
        ];
        for (text, wanted) in table {
            assert_eq!(read(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn a_value_may_hold_line_ends() {
        let file = parse("test", "config a\noption x 'one\n two'\noption y 1").unwrap();
        let options = &file.sections[0].options;
        assert_eq!(options[0].values[0], Value { text: "one\n two".to_owned(), line: 2 });
        assert_eq!(options[1].values[0].line, 4);
    }

    #[test]
    fn every_fault_is_told_with_its_line() {
        let text = "option early 1\nconfig a b c\nconfig a\noption x 'open\noption y two words\nfrob\noption a-b 1\n";
        let faults = parse("network", text).unwrap_err();
        let told: Vec<_> = faults.iter().map(|fault| (fault.line, fault.message.as_str())).collect();
        assert_eq!(
            told,
            [
                (1, "this option belongs to no section"),
                (2, "there are too many words on this line"),
                (4, "the quote ' that opens here is not closed"),
                (5, "there are too many words on this line"),
                (6, "`frob` is no command of UCI"),
                (7, "the name of this option holds '-'"),
            ]
        );
        assert!(faults.iter().all(|fault| !fault.help.is_empty()));
        assert!(faults[2].to_string().contains("network:4\n"), "{}", faults[2]);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*|(config|option|list|'|\"|\\\\|#|;|[ \t\r\n]|[a-z_0-9é\0]){0,60}") {
            if let Err(faults) = parse("f", &text) {
                prop_assert!(!faults.is_empty());
                for fault in faults {
                    prop_assert!(fault.to_string().contains("help"));
                }
            }
        }

        /// What is written with quotes comes back as it was.
        #[test]
        fn a_quoted_value_comes_back(value in "[^'\r\n\u{feff}]*") {
            let file = parse("f", &format!("config a\noption x '{value}'\n")).unwrap();
            prop_assert_eq!(&file.sections[0].options[0].values[0].text, &value);
        }
    }
}
