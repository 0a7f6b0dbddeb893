//! The screen: a title, the row of pages, what is wrong, a page, and at the bottom what keys do here. Each page gives
//! rows of text; scrolling, selecting and filtering are the same for all of them.

use std::time::{Duration, SystemTime};

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::KEYS;
use super::look::{BAD, GOOD, HEAD, PALE, PLAIN, SELECTED};
use super::snapshot::Snapshot;
use super::ui::{Page, Ui};
use crate::status::{WanLine, span};

mod config;
mod crypto;
mod denied;
mod flows;
mod journal;
mod matrix;
mod ports;
mod services;
mod wans;

pub(super) use self::matrix::{columns, selected_pair};

/// What a page shows.
#[derive(Debug, Default)]
struct Content {
    header: Line<'static>,
    rows: Vec<Row>,
    /// About the selected row; below the rest, as far as there is room.
    panel: Vec<Line<'static>>,
}

/// One thing that can be selected; it may take several lines.
#[derive(Debug)]
struct Row {
    lines: Vec<Line<'static>>,
    /// What the filter looks into, in lower case.
    text: String,
}

impl Row {
    fn new(lines: Vec<Line<'static>>) -> Self {
        let text = lines.iter().map(ToString::to_string).collect::<String>().to_lowercase();
        Self { lines, text }
    }
}

/// Draws everything. Any area does, however small.
pub fn view(snapshot: &Snapshot, ui: &Ui, area: Rect, buffer: &mut Buffer) {
    let area = area.intersection(buffer.area);
    let width = usize::from(area.width);
    let mut rest = area;
    title(snapshot, take(&mut rest, 1), buffer);
    put(&tabs(ui, width), take(&mut rest, 1), buffer);
    let footer = if rest.height > 1 {
        rest.height -= 1;
        Rect { y: rest.bottom(), height: 1, ..rest }
    } else {
        Rect { height: 0, ..rest }
    };
    let banners = banners(snapshot, ui, width);
    for line in banners.iter().take(usize::from(rest.height / 3)) {
        put(line, take(&mut rest, 1), buffer);
    }
    if ui.help {
        help(ui.help_row, rest, buffer);
    } else {
        let content = content(snapshot, ui, width);
        let row = ui.row().min(content.rows.len().saturating_sub(1));
        // The rows come first; the panel has what they leave, and a third at least.
        let needed = content.rows.iter().map(|row| row.lines.len()).sum::<usize>() + 1;
        let free = usize::from(rest.height).saturating_sub(needed).max(usize::from(rest.height) / 3);
        let panel = if content.panel.is_empty() { 0 } else { (content.panel.len() + 1).min(free) };
        let panel = u16::try_from(panel).unwrap_or_default();
        let height = rest.height.saturating_sub(panel);
        let list = take(&mut rest, height);
        draw(&content, row, list, buffer);
        put(&Line::styled("─".repeat(width), PALE), take(&mut rest, 1.min(panel)), buffer);
        for line in &content.panel {
            put(line, take(&mut rest, 1), buffer);
        }
    }
    put(&bottom(snapshot, ui), footer, buffer);
    ui.look.finish(area, buffer);
}

/// How many rows can be selected.
pub(super) fn rows(snapshot: &Snapshot, ui: &Ui) -> usize {
    content(snapshot, ui, USUAL_WIDTH).rows.len()
}

pub(super) fn help_rows() -> usize {
    KEYS.lines().count()
}

/// The line that is selected on its page.
pub(super) fn selected_wan<'s>(snapshot: &'s Snapshot, ui: &Ui) -> Option<&'s WanLine> {
    let lines = wans::shown(snapshot, ui, USUAL_WIDTH);
    let place = ui.row().min(lines.len().checked_sub(1)?);
    lines.into_iter().nth(place).map(|(wan, _)| wan)
}

fn content(snapshot: &Snapshot, ui: &Ui, width: usize) -> Content {
    let mut content = match ui.page {
        Page::Wans => wans::content(snapshot, ui, width),
        Page::Matrix => matrix::content(snapshot, ui, width),
        Page::Flows => flows::content(snapshot, width),
        Page::Denied => denied::content(snapshot, ui, width),
        Page::Ports => ports::content(snapshot, ui, width),
        Page::Services => services::content(snapshot, width),
        Page::Crypto => crypto::content(snapshot, ui, width),
        Page::Journal => journal::content(snapshot, ui, width),
        Page::Config => config::content(snapshot, width),
    };
    content.rows.retain(|row| matches(ui, row));
    content
}

/// Whether the filter lets a row through.
fn matches(ui: &Ui, row: &Row) -> bool {
    ui.filter.is_empty() || row.text.contains(&ui.filter.to_lowercase())
}

fn title(snapshot: &Snapshot, area: Rect, buffer: &mut Buffer) {
    let mut spans = vec![Span::styled(" quadway ", HEAD)];
    match &snapshot.status {
        None => spans.push(Span::raw("asking routerd …")),
        Some(status) => match &status.site {
            None => spans.push(Span::styled("no configuration is in force: everything is denied", BAD)),
            Some(site) => {
                let usable = status.wans.iter().filter(|wan| wan.families.iter().any(|line| line.usable)).count();
                let all = status.wans.len();
                let style = if usable == all { GOOD } else { BAD };
                spans.push(Span::raw(format!("{site}: ")));
                spans.push(Span::styled(format!("{usable} of {all} lines usable"), style));
            }
        },
    }
    put(&Line::from(spans), area, buffer);
    let clock = format!(" {} UTC ", clock(snapshot.now.wall));
    let width = u16::try_from(clock.len()).unwrap_or_default();
    if area.width > 3 * width {
        put(&Line::styled(clock, PALE), Rect { x: area.right() - width, width, ..area }, buffer);
    }
}

/// All of them on 80 columns: the space behind one is left out where two do not fit.
fn tabs(ui: &Ui, width: usize) -> Line<'static> {
    let wide: usize = Page::ALL.iter().map(|page| page.word().len() + 4).sum();
    let behind = if wide <= width { " " } else { "" };
    let mut spans = Vec::new();
    for page in Page::ALL {
        let style = if page == ui.page && !ui.help { SELECTED } else { PLAIN };
        spans.push(Span::styled(format!(" {} {}{behind}", page.digit(), page.word()), style));
    }
    spans.push(Span::styled(" h help ", if ui.help { SELECTED } else { PLAIN }));
    Line::from(spans)
}

/// What somebody should know whatever page is shown; the worst first.
fn banners(snapshot: &Snapshot, ui: &Ui, width: usize) -> Vec<Line<'static>> {
    let mut told = Vec::new();
    if let Some((since, why)) = snapshot.silence() {
        let since = span(since.as_secs_f64());
        told.push(format!("no connection to routerd for {since}, trying again: {}", why.replace('\n', " ")));
    }
    if ui.frozen {
        told.push(format!("frozen at {}: ctrl+f goes on", clock(snapshot.now.wall)));
    }
    if let Some(status) = &snapshot.status {
        if let Some(pending) = &status.applies.pending {
            told.push(format!("{pending} (page 9)"));
        }
        if !status.settled && status.site.is_some() {
            told.push("not every line has been judged since start".to_owned());
        }
        for family in &status.isp_outage {
            told.push(format!("ISP outage ({family}): most lines were lost together; flows are frozen, not killed"));
        }
        if let Some(why) = &status.applies.failing {
            told.push(format!("not as it should be: {}", why.replace('\n', " ")));
        }
        if let Some(why) = &status.counters_missing {
            told.push(format!("counters cannot be read: {why}"));
        }
        told.extend(status.applies.waiting.iter().map(|waiting| format!("waiting: {waiting}")));
        told.extend(status.foreign_marks.iter().cloned());
        if status.applies.unlike_file.is_some() {
            told.push("what is in force differs from the site file (page 9)".to_owned());
        }
    }
    told.into_iter().map(|text| Line::styled(fit(&format!(" ! {text}"), width), BAD)).collect()
}

fn bottom(snapshot: &Snapshot, ui: &Ui) -> Line<'static> {
    if let Some(question) = &ui.asking {
        return Line::styled(format!(" {}", question.text), BAD);
    }
    if ui.editing {
        return Line::from(vec![Span::styled(format!(" /{}", ui.filter), HEAD), Span::styled("_", SELECTED)]);
    }
    if let Some(told) = &ui.told {
        return Line::styled(format!(" {}", told.replace('\n', " ")), HEAD);
    }
    let pending = snapshot.status.as_ref().is_some_and(|status| status.applies.pending.is_some());
    let keys = match ui.page {
        _ if ui.help => "arrows scroll  esc back  q quit",
        Page::Wans => "x drain  u undrain  t test failover  d details  / filter  h help  q quit",
        Page::Matrix if ui.open => "esc back  h help  q quit",
        Page::Matrix => "arrows select  enter open  / filter  h help  q quit",
        Page::Config if pending => "c confirm  b roll back  r ask again  h help  q quit",
        Page::Flows | Page::Config => "r ask again  / filter  h help  q quit",
        Page::Denied => "d details  a all  / filter  ctrl+f freeze  h help  q quit",
        Page::Ports | Page::Crypto => "d details  / filter  h help  q quit",
        Page::Services => "/ filter  h help  q quit",
        Page::Journal => "d details  / filter  ctrl+f freeze  h help  q quit",
    };
    let mut spans = Vec::new();
    if !ui.filter.is_empty() && !ui.help {
        spans.push(Span::styled(format!(" /{} ({} rows)", ui.filter, rows(snapshot, ui)), HEAD));
    }
    spans.push(Span::styled(format!(" {keys}"), PALE));
    Line::from(spans)
}

fn help(first: usize, mut area: Rect, buffer: &mut Buffer) {
    let first = first.min(help_rows().saturating_sub(usize::from(area.height).max(1)));
    for line in KEYS.lines().skip(first) {
        let style = if line.ends_with(':') { HEAD } else { PLAIN };
        put(&Line::styled(format!(" {line}"), style), take(&mut area, 1), buffer);
    }
}

/// The header and as many rows as fit, the selected one among them.
fn draw(content: &Content, selected: usize, mut area: Rect, buffer: &mut Buffer) {
    put(&content.header, take(&mut area, 1), buffer);
    let height = |row: &Row| row.lines.len();
    let mut first = 0;
    while first < selected && content.rows[first..=selected].iter().map(height).sum::<usize>() > area.height.into() {
        first += 1;
    }
    for (place, row) in content.rows.iter().enumerate().skip(first) {
        for (nth, line) in row.lines.iter().enumerate() {
            let at = take(&mut area, 1);
            put(line, at, buffer);
            if place == selected && nth == 0 {
                put(&Line::styled(">", HEAD), at, buffer);
            }
        }
    }
}

/// The next lines of an area, as far as there are any.
fn take(area: &mut Rect, lines: u16) -> Rect {
    let height = lines.min(area.height);
    let taken = Rect { height, ..*area };
    area.y += height;
    area.height -= height;
    taken
}

/// One line, cut at the right end.
fn put(line: &Line<'_>, area: Rect, buffer: &mut Buffer) {
    if area.width > 0 && area.height > 0 {
        buffer.set_line(area.x, area.y, line, area.width);
    }
}

/// Exactly as wide as asked; what is cut ends with `…`.
fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return format!("{text:<width$}");
    }
    let cut: String = text.chars().take(width.saturating_sub(1)).collect();
    if width == 0 { cut } else { cut + "…" }
}

/// Text in lines of at most `width`, broken between words; what follows the first is set in by `indent`, and the first
/// as it was.
fn fold(text: &str, indent: usize, width: usize, style: Style) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = " ".repeat(paragraph.len() - paragraph.trim_start_matches(' ').len());
        for word in paragraph.split_whitespace() {
            if !line.trim().is_empty() && line.chars().count() + 1 + word.chars().count() > width {
                lines.push(Line::styled(std::mem::take(&mut line), style));
                line = " ".repeat(indent);
            } else if !line.trim().is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(Line::styled(line, style));
    }
    lines
}

fn clock(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.get(11..19).unwrap_or(&text).to_owned()
}

/// When something that lasts for so long began.
fn began(snapshot: &Snapshot, seconds: f64) -> String {
    let heard = snapshot.heard.unwrap_or(snapshot.now).wall;
    let ago = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    match heard.checked_sub(ago) {
        Some(began) if ago < A_DAY => clock(began),
        Some(began) => humantime::format_rfc3339_seconds(began).to_string().replace('T', " ").replace('Z', ""),
        None => "long ago".to_owned(),
    }
}

/// `0`, `.4`, `9.9`, `340`, `12k`, `.3M`, `34G`: three characters, more only beyond 999 G.
fn brief(number: f64) -> String {
    for (limit, unit, suffix) in
        [(999.5, 1.0, ""), (99_500.0, 1e3, "k"), (99_500_000.0, 1e6, "M"), (f64::INFINITY, 1e9, "G")]
    {
        if number < limit {
            let scaled = number / unit;
            return match () {
                () if scaled < 0.05 => format!("0{suffix}"),
                () if scaled < 0.95 => format!("{scaled:.1}{suffix}").replacen("0.", ".", 1),
                () if scaled < 9.95 && suffix.is_empty() => format!("{scaled:.1}").replace(".0", ""),
                () => format!("{scaled:.0}{suffix}"),
            };
        }
    }
    "?".to_owned()
}

/// `12.3 Mb/s`.
fn bits(rate: f64) -> String {
    for (limit, unit, suffix) in [(1e3, 1.0, "b/s"), (1e6, 1e3, "kb/s"), (1e9, 1e6, "Mb/s")] {
        if rate < limit {
            return format!("{:.*} {suffix}", usize::from(suffix != "b/s"), rate / unit);
        }
    }
    format!("{:.1} Gb/s", rate / 1e9)
}

/// `12.3 MB`.
fn bytes(count: u64) -> String {
    let count = super::snapshot::float(count);
    for (limit, unit, suffix) in [(1e3, 1.0, "B"), (1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (1e12, 1e9, "GB")] {
        if count < limit {
            return format!("{:.*} {suffix}", usize::from(suffix != "B"), count / unit);
        }
    }
    format!("{:.1} TB", count / 1e12)
}

fn plural(count: u64, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

/// What rows are made for where only their number matters.
const USUAL_WIDTH: usize = 80;
const A_DAY: Duration = Duration::from_hours(24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brief_numbers_have_three_characters() {
        for (number, told) in [
            (0.0, "0"),
            (0.04, "0"),
            (0.4, ".4"),
            (1.0, "1"),
            (9.9, "9.9"),
            (42.0, "42"),
            (999.0, "999"),
            (1000.0, "1k"),
            (99_000.0, "99k"),
            (340_000.0, ".3M"),
            (34e6, "34M"),
            (99.6e6, ".1G"),
            (2e9, "2G"),
        ] {
            assert_eq!(brief(number), told, "{number}");
        }
    }

    #[test]
    fn text_is_folded_between_words() {
        let told =
            |text, indent, width| fold(text, indent, width, PLAIN).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(told("one two three", 2, 7), ["one two", "  three"]);
        assert_eq!(told("unbreakable", 2, 3), ["unbreakable"]);
        assert_eq!(told("a\nb", 2, 9), ["a", "b"]);
    }

    #[test]
    fn a_cut_is_shown() {
        assert_eq!(fit("drain", 7), "drain  ");
        assert_eq!(fit("drain", 4), "dra…");
        assert_eq!(fit("drain", 0), "");
    }
}
