//! Page 8: what happened and why, the newest first.

use ratatui::text::Line;

use super::{Content, Row, fit, fold};
use crate::tui::look::{BAD, HEAD, PALE, PLAIN};
use crate::tui::snapshot::Snapshot;
use crate::tui::ui::Ui;

pub(super) fn content(snapshot: &Snapshot, ui: &Ui, width: usize) -> Content {
    let lines: Vec<_> = snapshot.journal.iter().rev().collect();
    let row = |line: &&String| {
        // The date of a line is in its details.
        let short = line.get(11..19).zip(line.split_once(' ')).map(|(time, (_, rest))| format!("  {time}  {rest}"));
        let text = fit(&short.unwrap_or_else(|| format!("  {line}")), width);
        let bad = ["-> down", "-> no-carrier", "-> degraded", "outage in"].iter().any(|word| line.contains(word));
        Row { lines: vec![Line::styled(text, if bad { BAD } else { PLAIN })], text: line.to_lowercase() }
    };
    let mut rows: Vec<_> = lines.iter().map(row).collect();
    let mut panel = Vec::new();
    if ui.details {
        let shown: Vec<_> = rows.iter().zip(&lines).filter(|(row, _)| super::matches(ui, row)).collect();
        if let Some((_, line)) = shown.get(ui.row().min(shown.len().saturating_sub(1))) {
            panel.extend(fold(line, 2, width, PLAIN));
        }
    }
    match &snapshot.journal_trouble {
        Some(why) => panel.push(Line::styled(fit(&format!("! {}", why.replace('\n', " ")), width), BAD)),
        None if rows.is_empty() => rows.push(Row::new(vec![Line::styled("  nothing is told yet", PALE)])),
        None => {}
    }
    Content { header: Line::styled("  TIME      WHAT (the newest first)", HEAD), rows, panel }
}
