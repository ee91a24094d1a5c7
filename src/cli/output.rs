//! How answers look: tables that are plain text when nobody looks at them, numbers that people can read.

use super::Stop;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering},
};

/// Columns of a table that is not shown on a terminal.
const USUAL_WIDTH: usize = 80;

/// A table with right-aligned numbers; borders only on a terminal, where what is too wide is wrapped.
pub fn table<const N: usize>(titles: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    let arrangement =
        if io::stdout().is_terminal() { ContentArrangement::Dynamic } else { ContentArrangement::Disabled };
    laid_out(&titles, &rows, arrangement)
}

/// The same, as wide as the terminal, or 80 columns where there is none: columns of the titles in `spare` are left out,
/// in that order, until it fits.
pub fn fitting_table<const N: usize>(
    titles: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
    spare: &[&str],
) -> String {
    let width = Table::new().width().map_or(USUAL_WIDTH, usize::from);
    fitted(titles.to_vec(), rows.into_iter().map(Vec::from).collect(), spare, width)
}

fn fitted(mut titles: Vec<&str>, mut rows: Vec<Vec<String>>, spare: &[&str], width: usize) -> String {
    let mut spare = spare.iter();
    loop {
        let text = laid_out(&titles, &rows, ContentArrangement::Disabled);
        let fits = text.lines().all(|line| line.chars().count() <= width);
        let Some(left_out) = spare.next().filter(|_| !fits) else { return text };
        if let Some(index) = titles.iter().position(|title| title == left_out) {
            titles.remove(index);
            rows.iter_mut().for_each(|row| drop(row.remove(index)));
        }
    }
}

fn laid_out(titles: &[&str], rows: &[Vec<String>], arrangement: ContentArrangement) -> String {
    let mut table = Table::new();
    table.load_style(if io::stdout().is_terminal() { presets::UTF8_HORIZONTAL_ONLY } else { presets::NOTHING });
    table.set_content_arrangement(arrangement);
    table.set_header(titles);
    let mut numeric = vec![true; titles.len()];
    for row in rows {
        for (numeric, cell) in numeric.iter_mut().zip(row) {
            *numeric &= cell.starts_with(|c: char| c.is_ascii_digit() || c == '-') && !cell.contains(['.', ':'])
                || cell.ends_with('%')
                || cell == "?";
        }
        table.add_row(row);
    }
    for (column, numeric) in table.column_iter_mut().zip(numeric) {
        if numeric {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Whether anything has been printed to standard output.
static PRINTED: AtomicBool = AtomicBool::new(false);

/// Whether this command has printed anything to standard output.
pub fn has_printed() -> bool {
    PRINTED.load(Ordering::Relaxed)
}

/// Prints to standard output. A reader that has gone is no error.
pub fn print(bytes: impl AsRef<[u8]>) -> Result<(), Stop> {
    PRINTED.store(true, Ordering::Relaxed);
    let mut out = io::stdout().lock();
    written(out.write_all(bytes.as_ref()).and_then(|()| out.flush()))
}
/// What became of something that was written to standard output: a reader that has gone is no error.
pub fn written(result: io::Result<()>) -> Result<(), Stop> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Stop::failed(format!("standard output: {e}"))),
        _ => Ok(()),
    }
}

/// Writes a line to standard error. A line that nobody can read, for the reader has gone or the disk is full, is
/// dropped: it must not end a command with another exit code than the command's own.
pub fn tell(line: impl Display) {
    drop(writeln!(io::stderr().lock(), "{line}"));
}
/// Writes to standard error without an end of line, for what is written over in place; dropped like a line.
pub fn tell_in_place(text: impl Display) {
    let mut out = io::stderr().lock();
    drop(write!(out, "{text}").and_then(|()| out.flush()));
}

/// Prints a value as indented JSON.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), Stop> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Stop::failed(e.to_string()))?;
    print(text + "\n")
}

/// `1234567` -> `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index != 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1234567` -> `1.2 MB` (powers of 1000).
pub fn bytes(number: u64) -> String {
    let units = ["kB", "MB", "GB", "TB", "PB", "EB"];
    let mut scaled = number as f64;
    let mut unit = "B";
    for next in units {
        if scaled < 999.95 {
            break;
        }
        scaled /= 1000.0;
        unit = next;
    }
    if unit == "B" { format!("{number} B") } else { format!("{scaled:.1} {unit}") }
}

/// A key for people: printable bytes as they are, others escaped.
pub fn key(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([0, 999, 1000, 1234567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        let shown = [0, 999, 1000, 999_940, 999_960, 1_500_000, u64::MAX].map(bytes);
        assert_eq!(shown, ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "1.5 MB", "18.4 EB"]);
        assert_eq!([key(b"caf\xc3\xa9"), key(b"a\nb"), key(b"\xff")], ["café", "a\\nb", "\\xff"]);
    }
}
