//! Tables: what was measured, how it compares, and whether it is what was asked for.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use std::fmt::Write as _;

/// What the project asks of a figure of Dynarc's.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    None,
    /// At least this many times the best peer.
    TimesBest(f64),
    /// At most this share of the best peer.
    ShareOfBest(f64),
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Better {
    Higher,
    Lower,
    /// For information.
    Neither,
}

/// One figure of every column, with a sample a round.
#[derive(Serialize)]
pub struct Row {
    pub name: String,
    #[serde(skip)]
    better: Better,
    #[serde(skip)]
    goal: Goal,
    /// Samples of each column, in rounds.
    samples: Vec<Vec<f64>>,
}

/// The table of one experiment. The first column is Dynarc; the others are peers, then what the bare device does.
#[derive(Serialize)]
pub struct Report {
    pub title: String,
    /// What was done, for the reader of the figures.
    pub notes: Vec<String>,
    columns: Vec<String>,
    /// How many columns after the first are peers.
    peers: usize,
    rows: Vec<Row>,
}

impl Report {
    pub fn new(title: impl Into<String>, columns: &[&str], peers: usize) -> Report {
        let columns = columns.iter().map(|c| c.to_string()).collect();
        Report { title: title.into(), notes: Vec::new(), columns, peers, rows: Vec::new() }
    }
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
    /// Adds a sample of a column to a row, which is made if it is new.
    pub fn add(&mut self, column: &str, name: &str, better: Better, goal: Goal, sample: f64) {
        let Some(at) = self.columns.iter().position(|c| c == column) else { return };
        let columns = self.columns.len();
        let row = match self.rows.iter().position(|r| r.name == name) {
            Some(row) => &mut self.rows[row],
            None => {
                self.rows.push(Row { name: name.into(), better, goal, samples: vec![Vec::new(); columns] });
                self.rows.last_mut().expect("just pushed")
            }
        };
        row.samples[at].push(sample);
    }

    /// How many samples there are, for [`Report::cut`].
    pub fn size(&self) -> Vec<Vec<usize>> {
        self.rows.iter().map(|row| row.samples.iter().map(Vec::len).collect()).collect()
    }
    /// Takes back all samples since `size`.
    pub fn cut(&mut self, size: &[Vec<usize>]) {
        self.rows.truncate(size.len());
        for (row, lengths) in self.rows.iter_mut().zip(size) {
            row.samples.iter_mut().zip(lengths).for_each(|(samples, length)| samples.truncate(*length));
        }
    }

    fn best(&self, row: &Row) -> Option<f64> {
        let peers = row.samples[1..=self.peers].iter().filter_map(|s| median(s));
        match row.better {
            Better::Higher => peers.max_by(f64::total_cmp),
            Better::Lower => peers.min_by(f64::total_cmp),
            Better::Neither => None,
        }
    }

    fn cells(&self) -> Vec<Vec<String>> {
        let mut lines = vec![{
            let mut head = vec![String::new()];
            head.extend(self.columns.iter().cloned());
            head.extend(["of the best".into(), "asked".into()]);
            head
        }];
        for row in &self.rows {
            let mut line = vec![row.name.clone()];
            line.extend(row.samples.iter().map(|s| median(s).map_or("-".into(), figure)));
            let (own, best) = (median(&row.samples[0]), self.best(row));
            let ratio = own.zip(best).map(|(own, best)| own / best);
            line.push(ratio.map_or(String::new(), |r| format!("{r:.2} x")));
            line.push(asked(row.goal, own, ratio));
            lines.push(line);
        }
        lines
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_BORDERS_ONLY);
        let mut lines = self.cells().into_iter();
        table.set_header(lines.next().unwrap_or_default());
        lines.for_each(|line| {
            table.add_row(line);
        });
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        let mut out = format!("\n{}\n{table}\n", self.title);
        self.notes.iter().for_each(|note| writeln!(out, "  {note}").expect("a string takes all"));
        out
    }

    /// For a page.
    pub fn markdown(&self) -> String {
        let mut out = format!("### {}\n\n", self.title);
        for (at, line) in self.cells().iter().enumerate() {
            writeln!(out, "| {} |", line.join(" | ")).expect("a string takes all");
            if at == 0 {
                writeln!(out, "|---|{}", "---:|".repeat(line.len() - 1)).expect("a string takes all");
            }
        }
        out.push('\n');
        self.notes.iter().for_each(|note| writeln!(out, "- {note}").expect("a string takes all"));
        out
    }
}

pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n.is_multiple_of(2) => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        _ => Some(sorted[middle]),
    }
}

/// Three digits that matter, thousands apart.
fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 10_000.0 => {
            let whole = value.abs().round() as u64;
            let (millions, thousands, rest) = (whole / 1_000_000, whole / 1000 % 1000, whole % 1000);
            let sign = if value < 0.0 { "-" } else { "" };
            match millions {
                0 => format!("{sign}{thousands} {rest:03}"),
                _ => format!("{sign}{millions} {thousands:03} {rest:03}"),
            }
        }
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn asked(goal: Goal, own: Option<f64>, ratio: Option<f64>) -> String {
    let (text, met) = match goal {
        Goal::None => return String::new(),
        Goal::TimesBest(times) => (format!(">= {times} x"), ratio.map(|r| r >= times)),
        Goal::ShareOfBest(share) => (format!("<= {share} x"), ratio.map(|r| r <= share)),
        Goal::AtLeast(bound) => (format!(">= {bound}"), own.map(|o| o >= bound)),
        Goal::AtMost(bound) => (format!("<= {bound}"), own.map(|o| o <= bound)),
    };
    let verdict = match met {
        Some(true) => " met",
        Some(false) => " MISSED",
        None => "",
    };
    text + verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_figures() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(figure(1.234), "1.23");
        assert_eq!(figure(123.4), "123");
        assert_eq!(figure(60_123.0), "60 123");
        assert_eq!(figure(2_689_007.0), "2 689 007");
    }

    #[test]
    fn a_turn_is_taken_back() {
        let mut report = Report::new("t", &["Dynarc"], 0);
        report.add("Dynarc", "a", Better::Higher, Goal::None, 1.0);
        let size = report.size();
        report.add("Dynarc", "a", Better::Higher, Goal::None, 2.0);
        report.add("Dynarc", "b", Better::Higher, Goal::None, 3.0);
        report.cut(&size);
        assert_eq!(report.size(), size);
        assert_eq!(report.rows[0].samples, [[1.0]]);
    }

    #[test]
    fn the_best_peer_is_not_the_bare_device() {
        let mut report = Report::new("t", &["Dynarc", "A", "B", "device"], 2);
        for (column, sample) in [("Dynarc", 8.0), ("A", 2.0), ("B", 1.0), ("device", 100.0)] {
            report.add(column, "put/s", Better::Higher, Goal::TimesBest(4.0), sample);
        }
        assert_eq!(report.cells()[1], ["put/s", "8.00", "2.00", "1.00", "100", "4.00 x", ">= 4 x met"]);
    }
}
