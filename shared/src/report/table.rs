//! Tables as aligned plain text.

use std::fmt;

use unicode_width::UnicodeWidthStr;

use super::format::one_line;

/// A table. Its `Display` is plain text with aligned columns, a line for each row; columns of
/// numbers are aligned to the right.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column titles.
    pub fn new<S: ToString>(header: impl IntoIterator<Item = S>) -> Self {
        Self { header: header.into_iter().map(|title| title.to_string()).collect(), rows: vec![] }
    }

    /// Adds a row. Missing cells are empty, surplus cells make the table wider.
    pub fn row<S: ToString>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(|cell| cell.to_string()).collect());
    }

    /// The column titles.
    pub(super) fn header(&self) -> &[String] {
        &self.header
    }

    /// The rows, each as wide as the table.
    pub(super) fn rows(&self) -> impl Iterator<Item = Vec<&str>> {
        let columns = self.columns();
        self.rows.iter().map(move |row| {
            (0..columns).map(|column| row.get(column).map_or("", String::as_str)).collect()
        })
    }

    fn columns(&self) -> usize {
        self.rows.iter().map(Vec::len).chain([self.header.len()]).max().unwrap_or(0)
    }

    /// For each column whether all of its cells that are not empty start like a number.
    pub(super) fn numeric_columns(&self) -> Vec<bool> {
        let numeric = |cell: &str| {
            cell.trim_start_matches(['-', '+', '~', '<', '>'])
                .starts_with(|c: char| c.is_ascii_digit())
                || matches!(cell, "-" | "NaN" | "inf")
        };
        (0..self.columns())
            .map(|column| {
                let cells: Vec<&str> = self
                    .rows
                    .iter()
                    .filter_map(|row| row.get(column).map(|cell| cell.trim()))
                    .filter(|cell| !cell.is_empty())
                    .collect();
                !cells.is_empty() && cells.into_iter().all(numeric)
            })
            .collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.columns();
        let numeric = self.numeric_columns();
        let padded = |cells: &[String]| -> Vec<String> {
            (0..columns).map(|column| one_line(cells.get(column).map_or("", |cell| cell))).collect()
        };
        let header = padded(&self.header);
        let rows: Vec<Vec<String>> = self.rows.iter().map(|row| padded(row)).collect();
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = rows.iter().chain([&header]).filter_map(|row| row.get(column));
                cells.map(|cell| cell.width()).max().unwrap_or(0)
            })
            .collect();
        let write_row = |f: &mut fmt::Formatter<'_>, row: &[String]| {
            let mut line = String::new();
            for ((cell, width), numeric) in row.iter().zip(&widths).zip(&numeric) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                let space = " ".repeat(width.saturating_sub(cell.width()));
                match numeric {
                    true => line += &(space + cell),
                    false => line += &(cell.clone() + &space),
                }
            }
            writeln!(f, "{}", line.trim_end())
        };
        if !self.header.is_empty() {
            write_row(f, &header)?;
            let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            write_row(f, &rules)?;
        }
        rows.iter().try_for_each(|row| write_row(f, row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn columns_are_aligned_numbers_to_the_right() {
        let mut table = Table::new(["set", "EER", "trials"]);
        table.row(["eval", "4.2 %", "37 611"]);
        table.row(["eval_arabic", "10.6 %"]);
        table.row(["ümlaut", "-", "9", "more"]);
        let expected = "\
set             EER  trials
-----------  ------  ------  ----
eval          4.2 %  37 611
eval_arabic  10.6 %
ümlaut            -       9  more
";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn wide_and_combining_characters_are_measured_as_shown() {
        let mut table = Table::new(["list", "EER"]);
        table.row(["日本語", "5.1"]);
        table.row(["e\u{301}te\u{301}", "0.6"]);
        table.row(["a\nb\u{1b}[1m", "13.9"]);
        let expected = "\
list      EER
-------  ----
日本語    5.1
e\u{301}te\u{301}       0.6
a b [1m  13.9
";
        assert_eq!(table.to_string(), expected);
    }

    proptest! {
        #[test]
        fn any_cell_keeps_to_its_line_and_column(cell in any::<String>()) {
            let mut table = Table::new(["a", "b"]);
            table.row([cell.as_str(), "1"]);
            let text = table.to_string();
            let lines: Vec<&str> = text.split_terminator('\n').collect();
            prop_assert_eq!(lines.len(), 3);
            prop_assert_eq!(lines[1].width(), lines[2].width(), "{}", text);
        }
    }

    #[test]
    fn a_table_without_header_has_rows_only() {
        let mut table = Table::new::<&str>([]);
        table.row(["a", "1"]);
        assert_eq!(table.to_string(), "a  1\n");
        assert_eq!(Table::default().to_string(), "");
    }
}
