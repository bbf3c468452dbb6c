//! Tables for people.

use std::fmt;

/// Cells under a header, each column as wide as it needs.
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty one.
    pub(crate) fn new(header: &[&'static str]) -> Self {
        Self {
            header: header.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; nothing in a cell is shown as `-`.
    pub(crate) fn row<const N: usize>(&mut self, cells: [&str; N]) {
        debug_assert_eq!(N, self.header.len(), "a cell under each header");
        let cells = cells.iter().map(|cell| match *cell {
            "" => "-".to_owned(),
            cell => plain(cell),
        });
        self.rows.push(cells.collect());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.header[column].len()]).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let header = self.header.iter().map(|cell| (*cell).to_owned()).collect();
        for row in std::iter::once(&header).chain(&self.rows) {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// On one line, and without what would make a terminal do something: much of it comes from VMs.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' => out.push(' '),
            letter if letter.is_control() => out.extend(letter.escape_default()),
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_is_a_dash() {
        let mut table = Table::new(&["NAME", "STATE", "REASON"]);
        table.row(["v-2-VM", "Running", ""]);
        table.row(["s-10-VM", "Starting", "waits\nfor \x1b[31mit's disk"]);
        assert_eq!(
            table.to_string(),
            "NAME     STATE     REASON\n\
             v-2-VM   Running   -\n\
             s-10-VM  Starting  waits for \\u{1b}[31mit's disk\n"
        );
    }
}
