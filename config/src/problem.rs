//! What is wrong with a site file, and the words an operator sees. `file`, `check` and `lint` report here; whoever
//! called `parse` prints it or turns it into JSON. Problems are kept in file order.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

/// Bytes of the site file.
pub type Span = Range<usize>;

/// Errors refuse the file; warnings come with the `Config`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One problem: what, where (the first label is the place, others are what it conflicts with) and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub severity: Severity,
    /// From 1, of the first label.
    pub line: usize,
    /// From 1, in characters, of the first label.
    pub column: usize,
    pub message: String,
    pub labels: Vec<Label>,
    pub help: Option<String>,
}

/// A place in the file and what is to be seen there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Label {
    pub line: usize,
    pub column: usize,
    pub text: String,
    #[serde(skip)]
    pub span: Span,
}

impl Problem {
    pub(crate) fn error(message: impl Into<String>) -> Self {
        Self::of(Severity::Error, message.into())
    }

    pub(crate) fn warning(message: impl Into<String>) -> Self {
        Self::of(Severity::Warning, message.into())
    }

    #[must_use]
    pub(crate) fn at(mut self, span: &Span, text: impl Into<String>) -> Self {
        self.labels.push(Label { line: 0, column: 0, text: text.into(), span: span.clone() });
        self
    }

    #[must_use]
    pub(crate) fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    fn of(severity: Severity, message: String) -> Self {
        Self { severity, line: 0, column: 0, message, labels: Vec::new(), help: None }
    }

    fn start(&self) -> usize {
        self.labels.first().map_or(0, |label| label.span.start)
    }
}

/// Every problem of one file, with the text it is shown in. `Display` renders all of them without colour.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Problems {
    /// The file's name, as the caller gave it.
    pub file: String,
    pub problems: Vec<Problem>,
    /// How many more there were beyond the limit that is shown.
    pub omitted: usize,
    #[serde(skip)]
    text: String,
}

impl Problems {
    pub(crate) fn new(file: &str, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|a, b| {
            let key = |problem: &Problem| (problem.severity == Severity::Warning, problem.start());
            key(a).cmp(&key(b)).then_with(|| a.message.cmp(&b.message))
        });
        // What is written once for all lines of the site is met once per line.
        problems.dedup();
        let omitted = problems.len().saturating_sub(MOST);
        problems.truncate(MOST);
        let lines = Lines::of(text);
        for problem in &mut problems {
            for label in &mut problem.labels {
                (label.line, label.column) = lines.position(label.span.start);
            }
            let first = problem.labels.first();
            (problem.line, problem.column) = first.map_or((1, 1), |label| (label.line, label.column));
        }
        Self { file: file.to_owned(), problems, omitted, text: text.to_owned() }
    }

    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    pub fn len(&self) -> usize {
        self.problems.len()
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.problems.iter()
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = Lines::of(&self.text);
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            render(f, &self.file, &lines, problem)?;
        }
        if self.omitted > 0 {
            writeln!(f, "\n… and {} more problems", self.omitted)?;
        }
        Ok(())
    }
}

/// ```text
/// error: VLAN id 10 is used twice
///   --> site.toml:18:13
///    |
/// 12 | id = 10
///    |      -- first used here
/// ...
/// 18 | id = 10
///    |      ^^ used again here
///    = help: each VLAN needs an id of its own
/// ```
fn render(f: &mut fmt::Formatter<'_>, file: &str, lines: &Lines<'_>, problem: &Problem) -> fmt::Result {
    writeln!(f, "{}: {}", problem.severity, problem.message)?;
    let last = problem.labels.iter().map(|label| label.line).max().unwrap_or(1);
    let gutter = last.to_string().len();
    writeln!(f, "{:gutter$}--> {file}:{}:{}", "", problem.line, problem.column)?;

    let mut labels: Vec<(usize, &Label)> = problem.labels.iter().enumerate().collect();
    labels.sort_by_key(|(_, label)| label.span.start);
    let mut shown = None;
    for (index, label) in labels {
        if shown != Some(label.line) {
            match shown {
                None => writeln!(f, "{:gutter$} |", "")?,
                Some(before) if before + 1 < label.line => writeln!(f, "...")?,
                Some(_) => {}
            }
        }
        let source = lines.line(label.line);
        let (from, window) = window(source, label.column - 1);
        if shown != Some(label.line) || from > 0 {
            writeln!(f, "{:>gutter$} | {window}", label.line)?;
        }
        shown = Some(label.line);
        let indent = label.column - 1 - from;
        let mark = if index == 0 { "^" } else { "-" };
        let room = window.chars().count().saturating_sub(indent).max(1);
        let mark = mark.repeat(lines.width(label).clamp(1, room));
        writeln!(f, "{:gutter$} | {:indent$}{mark} {}", "", "", label.text)?;
    }
    match &problem.help {
        Some(help) => writeln!(f, "{:gutter$} = help: {help}", ""),
        None => Ok(()),
    }
}

/// The part of a line that is shown, and how many characters before it are left out. Characters that a terminal
/// would obey or give no room are shown as one replacement character, so carets stay under what they mean.
fn window(line: &str, column: usize) -> (usize, String) {
    let from = if column < WIDTH - WIDTH / 4 { 0 } else { column - WIDTH / 4 };
    let shown = line.chars().skip(from).take(WIDTH).map(|c| match c {
        '\t' => ' ',
        c if c.is_control() || ('\u{200b}'..='\u{200f}').contains(&c) || ('\u{202a}'..='\u{202e}').contains(&c) => {
            char::REPLACEMENT_CHARACTER
        }
        c => c,
    });
    (from, shown.collect::<String>().trim_end().to_owned())
}

/// Where each line of a text begins.
pub(crate) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(crate) fn of(text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(breaks).collect() }
    }

    /// The line of a byte, from 1.
    pub(crate) fn number(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at).max(1)
    }

    /// Line and column, both from 1.
    fn position(&self, at: usize) -> (usize, usize) {
        let line = self.number(at);
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        (line, self.chars(start, at) + 1)
    }

    pub(crate) fn slice(&self, span: &Span) -> &'a str {
        self.text.get(span.clone()).unwrap_or("")
    }

    fn line(&self, line: usize) -> &'a str {
        let start = line.checked_sub(1).and_then(|index| self.starts.get(index)).copied().unwrap_or(0);
        let end = self.starts.get(line).map_or(self.text.len(), |next| next - 1);
        self.text.get(start..end).unwrap_or("").trim_end_matches('\r')
    }

    /// The characters of the label that lie on its first line.
    fn width(&self, label: &Label) -> usize {
        let end = self.starts.get(label.line).map_or(self.text.len(), |next| next - 1);
        self.chars(label.span.start, label.span.end.min(end))
    }

    fn chars(&self, from: usize, to: usize) -> usize {
        self.text.get(from..to.min(self.text.len())).map_or(0, |part| part.chars().count())
    }
}

/// More than anybody reads; bounds the work on a file that is garbage from end to end.
const MOST: usize = 200;
/// Characters of a source line that are shown.
const WIDTH: usize = 140;

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, problem: Problem) -> String {
        Problems::new("site.toml", text, vec![problem]).to_string()
    }

    #[test]
    fn a_conflict_shows_both_places_in_file_order() {
        let text = "id = 10\n\n\nid = 10\n";
        let problem =
            Problem::error("VLAN id 10 is used twice").at(&(15..17), "used again here").at(&(5..7), "first here");
        assert_eq!(
            shown(text, problem.help("choose another")),
            "error: VLAN id 10 is used twice\n --> site.toml:4:6\n  |\n1 | id = 10\n  |      -- first here\n...\n\
             4 | id = 10\n  |      ^^ used again here\n  = help: choose another\n"
        );
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let text = format!("{}oops{}", " ".repeat(100_000), "x".repeat(100_000));
        let out = shown(&text, Problem::error("no").at(&(100_000..100_004), "here"));
        assert!(out.lines().all(|line| line.chars().count() < 200), "{out}");
        assert!(out.contains("oops") && out.contains("^^^^ here"), "{out}");
    }

    #[test]
    fn control_characters_are_not_passed_on_to_the_terminal() {
        let out = shown("a = \u{1b}[31m\u{202e}é", Problem::error("no").at(&(4..5), "here"));
        assert!(!out.contains('\u{1b}') && !out.contains('\u{202e}'), "{out}");
    }

    #[test]
    fn a_span_beyond_the_text_does_no_harm() {
        let out = shown("", Problem::error("empty").at(&(10..20), "here"));
        assert!(out.contains("site.toml:1:1"), "{out}");
    }

    #[test]
    fn columns_count_characters() {
        let text = "é = ü";
        let problems = Problems::new("f", text, vec![Problem::error("no").at(&(5..7), "")]);
        assert_eq!((problems.problems[0].line, problems.problems[0].column), (1, 5));
    }
}
