//! What the comparisons print, read back: the tables of a report are the data of its charts.

pub mod chart;

/// A table of measurements, as [`Comparison::print`](crate::comparison::Comparison::print) writes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The engines.
    pub columns: Vec<String>,
    /// The figures, one row each.
    pub rows: Vec<Row>,
}

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The figure and its unit.
    pub name: String,
    /// One per column, where it was measured.
    pub cells: Vec<Option<Cell>>,
}

/// `median [least..greatest]`, and perhaps more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell {
    /// Median of all runs.
    pub median: f64,
    /// Least of all runs.
    pub least: f64,
    /// Greatest of all runs.
    pub greatest: f64,
}

/// The tables of measurements in `markdown`; other tables have a word in their first corner.
#[must_use]
pub fn tables(markdown: &str) -> Vec<Table> {
    let mut tables = Vec::new();
    let mut current: Option<Table> = None;
    for line in markdown.lines() {
        let words = words(line);
        match (&mut current, &words[..]) {
            (None, [first, columns @ ..]) if first.is_empty() && !columns.is_empty() => {
                current = Some(Table { columns: columns.to_vec(), rows: Vec::new() });
            }
            (Some(_), [first, ..]) if first.starts_with("---") => {}
            (Some(table), [name, cells @ ..]) => {
                table
                    .rows
                    .push(Row { name: name.clone(), cells: cells.iter().map(|text| cell(text)).collect() });
            }
            _ => tables.extend(current.take()),
        }
    }
    tables.extend(current);
    tables
}

/// The cells of a line, none of a line that belongs to no table.
fn words(line: &str) -> Vec<String> {
    let inner = line.trim().strip_prefix('|').and_then(|line| line.strip_suffix('|'));
    inner.map(|inner| inner.split('|').map(|word| word.trim().to_owned()).collect()).unwrap_or_default()
}

fn cell(text: &str) -> Option<Cell> {
    let (median, rest) = text.split_once(" [")?;
    let (range, _) = rest.split_once(']')?;
    let (least, greatest) = range.split_once("..")?;
    Some(Cell { median: number(median)?, least: number(least)?, greatest: number(greatest)? })
}

/// The reverse of [`short`](crate::measure::short).
fn number(text: &str) -> Option<f64> {
    match text.strip_suffix('k') {
        Some(thousands) => Some(thousands.parse::<f64>().ok()? * 1000.0),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
# A heading
| | veth | ours, TAP |
|---|---|---|
| TCP, Gb/s | 61.5 [61.3..63.3] | 31.0 [25.7..31.6] cpu 0.24 |
| RR, 1/s |  | 24.6k [22.1k..29.1k] |

failed: RR, veth

| bar | measured | wanted | |
|---|---|---|---|
| TCP | 2.00 | >= 1 | pass |
";

    #[test]
    fn the_table_of_measurements_is_read_and_the_bars_are_not() {
        let tables = tables(REPORT);
        let cell = |median, least, greatest| Some(Cell { median, least, greatest });
        let rows = vec![
            Row { name: "TCP, Gb/s".to_owned(), cells: vec![cell(61.5, 61.3, 63.3), cell(31.0, 25.7, 31.6)] },
            Row { name: "RR, 1/s".to_owned(), cells: vec![None, cell(24_600.0, 22_100.0, 29_100.0)] },
        ];
        assert_eq!(tables, [Table { columns: vec!["veth".to_owned(), "ours, TAP".to_owned()], rows }]);
    }
}
