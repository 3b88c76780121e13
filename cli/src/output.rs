//! Output: a table for people, JSON, YAML and TOML for programs. Only this module writes to stdout
//! or stderr.

use std::{
    io::{self, IsTerminal as _, Write},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::{
    duration::unix_now,
    error::{CliError, Exit, Result, one_line, plain_io},
};

/// The reader of stdout has gone.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether nobody reads stdout any more (`| head`). A command that prints without end ends then.
#[must_use]
pub fn is_closed() -> bool {
    CLOSED.load(Relaxed)
}

/// The formats of `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people; may change.
    Table,
    /// For programs; stable: one object, or one array for a list.
    Json,
    /// The same objects as YAML.
    #[value(alias = "yml")]
    Yaml,
    /// One object as TOML, such as a service for `service apply`; not a list.
    Toml,
}

/// An object as it is printed.
pub trait View: Serialize {
    /// The columns of a list.
    const COLUMNS: &'static [&'static str];
    /// One cell for each column.
    fn row(&self) -> Vec<String>;
    /// The lines of `show`. By default the columns.
    fn detail(&self) -> Vec<(&'static str, String)> {
        Self::COLUMNS.iter().copied().zip(self.row()).collect()
    }
}

/// The output of a command, in the requested format.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    format: Format,
}

impl Output {
    /// An output of this format.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether a person reads the output.
    #[must_use]
    pub fn is_table(self) -> bool {
        self.format == Format::Table
    }

    /// Prints one object of several that come one after another: JSON in one line, or YAML as a
    /// document of its own.
    ///
    /// # Errors
    /// Those of [`data`](Self::data).
    pub fn one_of_many<T: Serialize>(self, value: &T) -> Result<()> {
        match self.format {
            Format::Json => {
                let line = serde_json::to_string(value).map_err(|e| CliError::new(Exit::Failed, "output", e))?;
                self.text(&line)
            }
            Format::Yaml => {
                self.text("---")?;
                self.data(value)
            }
            Format::Table | Format::Toml => self.data(value),
        }
    }

    /// Prints one object.
    ///
    /// # Errors
    /// When stdout can't be written.
    pub fn one<V: View>(self, view: &V) -> Result<()> {
        match self.format {
            Format::Table => {
                let rows = view.detail().into_iter().filter(|(_, v)| !v.is_empty());
                self.text(&table(&[], rows.map(|(k, v)| vec![k.to_owned(), v])))
            }
            _ => self.data(view),
        }
    }

    /// Prints a list. An empty table is a sentence on stderr, so that `seks … list | wc -l` prints
    /// 0.
    ///
    /// # Errors
    /// When stdout can't be written.
    pub fn list<V: View>(self, noun: &str, views: &[V]) -> Result<()> {
        match self.format {
            Format::Table if views.is_empty() => {
                notice(&format!("no {noun}"));
                Ok(())
            }
            Format::Table => self.text(&table(V::COLUMNS, views.iter().map(View::row))),
            _ => self.data(views),
        }
    }

    /// A list that is printed page by page.
    #[must_use]
    pub fn stream(self, noun: &str) -> Stream {
        Stream { output: self, noun: noun.into(), printed: 0 }
    }

    /// Prints any data as JSON, YAML or TOML. JSON when the format is a table, for which the caller
    /// prints its own text.
    ///
    /// # Errors
    /// When stdout can't be written.
    pub fn data<T: Serialize + ?Sized>(self, data: &T) -> Result<()> {
        let text = match self.format {
            Format::Yaml => serde_saphyr::to_string(&data).map_err(|e| CliError::new(Exit::Failed, "output", e))?,
            Format::Toml => toml::to_string(&data).map_err(|_| {
                CliError::usage("-o toml", "TOML holds one object without `null`: use json or yaml here")
            })?,
            _ => serde_json::to_string_pretty(data).map_err(|e| CliError::new(Exit::Failed, "output", e))?,
        };
        self.text(&text)
    }

    /// Prints text, with a line break at the end.
    ///
    /// # Errors
    /// When stdout cannot be written. A closed reader (`| head`) is no error.
    pub fn text(self, text: &str) -> Result<()> {
        self.raw(text)?;
        if text.ends_with('\n') { Ok(()) } else { self.raw("\n") }
    }

    /// Text as it is.
    pub(crate) fn raw(self, text: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        match written {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                CLOSED.store(true, Relaxed);
                Ok(())
            }
            Err(e) => Err(CliError::new(Exit::Failed, "standard output", plain_io(&e))),
            Ok(()) => Ok(()),
        }
    }
}

/// A list that is printed page by page. The result equals a list printed at once, except that the
/// widths of table columns depend on the page.
pub struct Stream {
    output: Output,
    noun: String,
    /// Objects printed so far.
    printed: usize,
}

impl Stream {
    /// Prints a page. It may be empty.
    ///
    /// # Errors
    /// When stdout can't be written.
    pub fn page<V: View>(&mut self, views: &[V]) -> Result<()> {
        if views.is_empty() {
            return Ok(());
        }
        let first = self.printed == 0;
        self.printed += views.len();
        match self.output.format {
            Format::Table => {
                let columns = if first { V::COLUMNS } else { &[] };
                self.output.text(&table(columns, views.iter().map(View::row)))
            }
            Format::Yaml | Format::Toml => self.output.data(views), // a list in TOML is refused there
            Format::Json => {
                let text = serde_json::to_string_pretty(views).map_err(|e| CliError::new(Exit::Failed, "output", e))?;
                // The brackets of the array are printed once, each on its own line.
                let items = text.trim_start_matches('[').trim_end_matches(']').trim_matches('\n');
                self.output.raw(&format!("{}{items}", if first { "[\n" } else { ",\n" }))
            }
        }
    }

    /// Ends the list. An empty table is a sentence on stderr, so that `seks … list | wc -l` says 0.
    ///
    /// # Errors
    /// When stdout can't be written.
    pub fn end(self) -> Result<()> {
        match (self.output.format, self.printed) {
            (Format::Table, 0) => {
                notice(&format!("no {}", self.noun));
                Ok(())
            }
            (Format::Json, 0) => self.output.text("[]"),
            (Format::Yaml | Format::Toml, 0) => self.output.data::<[(); 0]>(&[]),
            (Format::Json, _) => self.output.text("\n]"),
            (Format::Table | Format::Yaml | Format::Toml, _) => Ok(()),
        }
    }
}

/// Whether output may be coloured: on a terminal, unless `NO_COLOR` is set (no-color.org) or the
/// terminal has no colours.
#[must_use]
pub fn has_colours(is_terminal: bool) -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_terminal && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Prints a line to stderr. Errors are ignored.
pub fn notice(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", one_line(text));
}

/// Prints complete lines to stderr.
pub fn stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Rows with aligned columns. On a terminal they fit its width, and the header is bold.
pub(crate) fn table(columns: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let stdout = io::stdout();
    let is_terminal = stdout.is_terminal();
    let width = rustix::termios::tcgetwinsize(&stdout).ok().map(|size| size.ws_col).filter(|width| *width >= 40);
    let text = aligned(columns, rows, width.filter(|_| is_terminal));
    match text.split_once('\n') {
        Some((header, rest)) if has_colours(is_terminal) && !columns.is_empty() => {
            format!("\u{1b}[1m{header}\u{1b}[0m\n{rest}")
        }
        _ => text,
    }
}

fn aligned(columns: &[&str], rows: impl Iterator<Item = Vec<String>>, width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    if !columns.is_empty() {
        table.set_header(columns.iter().map(|c| c.to_uppercase().replace('_', " ")));
    }
    for row in rows {
        // Cells hold untrusted text, which must not control the terminal.
        table.add_row(row.iter().map(|c| c.lines().map(one_line).collect::<Vec<_>>().join("\n")));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Unix seconds as RFC 3339; 0 is "".
#[must_use]
pub fn rfc3339(unix_seconds: i64) -> String {
    let Ok(seconds @ 1..) = u64::try_from(unix_seconds) else { return String::new() };
    let at = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(seconds));
    at.map(|at| humantime::format_rfc3339_seconds(at).to_string()).unwrap_or_default()
}

/// Unix microseconds as RFC 3339.
#[must_use]
pub fn rfc3339_micros(unix_micros: u64) -> String {
    let at = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_micros(unix_micros));
    at.map(|at| humantime::format_rfc3339_micros(at).to_string()).unwrap_or_default()
}

/// How long ago a time in Unix seconds was, for people: "3h ago". 0 is "".
#[must_use]
pub fn since(unix_seconds: i64) -> String {
    if unix_seconds == 0 { String::new() } else { format!("{} ago", span(unix_now() - unix_seconds)) }
}

/// How long it is until a time in Unix seconds, for people: "in 3h", "expired". 0 is "never".
#[must_use]
pub fn until(unix_seconds: i64) -> String {
    match unix_seconds - unix_now() {
        _ if unix_seconds == 0 => "never".into(),
        left if left <= 0 => "expired".into(),
        left => format!("in {}", span(left)),
    }
}

/// A duration in its two largest units: "1d4h", "10m".
fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let units = [(86_400, 'd'), (3600, 'h'), (60, 'm'), (1, 's')];
    let (mut left, mut text) = (seconds, String::new());
    for (size, unit) in units {
        // Minutes do not matter beside days, nor seconds beside hours.
        if left >= size && seconds < size * 86_400 {
            text.push_str(&format!("{}{unit}", left / size));
            left %= size;
            if text.bytes().filter(u8::is_ascii_alphabetic).count() == 2 {
                break;
            }
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

/// [`rfc3339`] for JSON, where "never" is null.
#[must_use]
pub fn rfc3339_or_null(unix_seconds: i64) -> Option<String> {
    Some(rfc3339(unix_seconds)).filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_aligned_columns_and_no_trailing_blanks() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["long-name".to_owned(), String::new()]];
        assert_eq!(aligned(&["name", "x_y"], rows.into_iter(), None), "NAME       X Y\na          1\nlong-name");
    }

    #[test]
    fn a_table_fits_the_terminal() {
        let rows = [vec!["a".repeat(30), "word ".repeat(20)]];
        let text = aligned(&["name", "text"], rows.into_iter(), Some(60));
        assert!(text.lines().count() > 2 && text.lines().all(|line| line.chars().count() <= 60), "{text}");
    }

    #[test]
    fn a_cell_can_not_draw_on_the_terminal() {
        let text = aligned(&["a"], [vec!["x\u{1b}[31m\u{7}".to_owned()]].into_iter(), None);
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text:?}");
    }

    #[test]
    fn spans_have_two_units() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (600, "10m"), (3661, "1h1m"), (86_400, "1d"), (100_000, "1d3h"), (-5, "0s")]
        {
            assert_eq!(span(seconds), text);
        }
        assert_eq!((until(0), since(0), until(1)), ("never".into(), String::new(), "expired".into()));
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(rfc3339(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!((rfc3339(0), rfc3339(-1)), (String::new(), String::new()));
        assert_eq!(rfc3339_or_null(0), None);
    }
}
