//! Page 9: what is in force, whether it waits for its confirmation, and how the site file differs from it.

use ratatui::style::Style;
use ratatui::text::Line;

use super::{Content, Row, fold};
use crate::tui::look::{BAD, GOOD, HEAD, PALE, PLAIN};
use crate::tui::snapshot::Snapshot;

pub(super) fn content(snapshot: &Snapshot, width: usize) -> Content {
    let mut rows = Vec::new();
    let mut say = |text: &str, style: Style| {
        let lines = fold(text, 4, width.saturating_sub(2), style);
        rows.extend(lines.into_iter().map(|mut line| {
            line.spans.insert(0, "  ".into());
            Row::new(vec![line])
        }));
    };
    if let Some(status) = &snapshot.status {
        match (&status.site, &status.digest) {
            (Some(site), Some(digest)) => {
                let short = digest.get(..12).unwrap_or(digest);
                say(&format!("in force: {site}, config {short}, routerd {}", status.version), PLAIN);
            }
            (_, _) => say("no configuration is in force", BAD),
        }
        let applies = &status.applies;
        if applies.current {
            say("the kernel is as it should be", GOOD);
        } else {
            say("! the kernel is not yet as it should be", BAD);
        }
        say(
            &format!(
                "{} changes carried out, {} failed, {} of somebody else put right",
                applies.succeeded, applies.failed, applies.drift_repaired
            ),
            PLAIN,
        );
        if let Some(pending) = &applies.pending {
            say(&format!("! {pending} (here: c confirms, b rolls back)"), BAD);
        }
        if let Some(unlike) = &applies.unlike_file {
            say(&format!("! {unlike}"), BAD);
        }
    }
    say(" ", PLAIN);
    say("If the site file were applied:", HEAD);
    match &snapshot.plan {
        None => say("asking …", PALE),
        Some(Err(why)) => say(&format!("! {why}"), BAD),
        Some(Ok(difference)) => {
            // Each line keeps its own indent.
            for line in difference.to_string().lines() {
                let style = match line.chars().next() {
                    Some('+' | '-' | '~') => HEAD,
                    Some(_) | None => PLAIN,
                };
                rows.push(Row::new(vec![Line::styled(format!("  {line}"), style)]));
            }
        }
    }
    Content { header: Line::styled("  CONFIG", HEAD), rows, panel: Vec::new() }
}
