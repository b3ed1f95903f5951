//! Bar charts as SVG: one panel per row of a table, one bar per engine, each panel in a scale of its own.
//!
//! Made for a page that is light or dark: the reader's preference chooses the colours. Every figure stands beside its bar, and all of them are in
//! the description for who does not see the picture.

use super::{Cell, Row, Table};
use crate::measure::short;
use std::fmt::{self, Write};

const WIDTH: f64 = 900.0;
const MARGIN: f64 = 16.0;
const PANELS: usize = 2;
const GAP: f64 = 24.0;
/// Room for the names of the columns, and for the figures behind the bars.
const NAMES: f64 = 196.0;
const FIGURES: f64 = 52.0;
const HEADING: f64 = 22.0;
const BAR: f64 = 12.0;
const LINE: f64 = 17.0;
const TITLE: f64 = 40.0;

const STYLE: &str = "\
.page{fill:#fff}text{font:12px system-ui,sans-serif;fill:#1f2328}.title{font-size:16px;font-weight:600}.row{font-weight:600}\
.name{text-anchor:end}.axis{stroke:#8c959f;stroke-width:1}.range{stroke:#1f2328;stroke-width:1.2;opacity:.65}\
.c0{fill:#9aa4af}.c1{fill:#c9770b}.c2{fill:#2a9174}.c3{fill:#8250df}.c4{fill:#0969da}.c5{fill:#b35986}\
@media(prefers-color-scheme:dark){.page{fill:#0d1117}text{fill:#e6edf3}.axis{stroke:#6e7681}.range{stroke:#e6edf3}\
.c0{fill:#6e7681}.c1{fill:#d29922}.c2{fill:#3fb68b}.c3{fill:#a371f7}.c4{fill:#4493f8}.c5{fill:#db84b1}}";

/// Engines with a colour of their own; the last colour is everybody else's.
const ENGINES: [&str; 5] = ["veth", "slirp4netns", "pasta", "rootlesskit", "rootless-launch"];

/// The chart of `table`, without rows that nobody has a figure in.
#[must_use]
pub fn svg(title: &str, table: &Table) -> String {
    let mut svg = String::new();
    draw(&mut svg, title, table).expect("a String takes everything");
    svg
}

fn draw(svg: &mut String, title: &str, table: &Table) -> fmt::Result {
    let panels = table.rows.iter().map(|row| (row, bars(table, row)));
    let panels = panels.filter(|(_, bars)| !bars.is_empty()).collect::<Vec<_>>();
    let height = |bars: &[(&String, Cell)]| HEADING + LINE * bars.len() as f64 + GAP;
    let lines = panels.chunks(PANELS);
    let total =
        lines.clone().map(|line| line.iter().map(|(_, bars)| height(bars)).fold(0.0, f64::max)).sum::<f64>();
    let (total, title) = (TITLE + total + MARGIN, escaped(title));
    writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" width="{WIDTH}" height="{total}" role="img" aria-labelledby="title desc">"#
    )?;
    writeln!(
        svg,
        "<title id=\"title\">{title}</title>\n<desc id=\"desc\">{}</desc>",
        escaped(&description(&panels))
    )?;
    writeln!(svg, "<style>{STYLE}</style>\n<rect class=\"page\" width=\"{WIDTH}\" height=\"{total}\"/>")?;
    writeln!(svg, r#"<text class="title" x="{MARGIN}" y="26">{title}</text>"#)?;
    let width = (WIDTH - 2.0 * MARGIN - GAP * (PANELS - 1) as f64) / PANELS as f64;
    let mut y = TITLE;
    for line in lines {
        for (index, (row, bars)) in line.iter().enumerate() {
            panel(svg, MARGIN + index as f64 * (width + GAP), y, width, row, bars)?;
        }
        y += line.iter().map(|(_, bars)| height(bars)).fold(0.0, f64::max);
    }
    writeln!(svg, "</svg>")
}

fn panel(svg: &mut String, x: f64, y: f64, width: f64, row: &Row, bars: &[(&String, Cell)]) -> fmt::Result {
    let (zero, room) = (x + NAMES, width - NAMES - FIGURES);
    let greatest = bars.iter().map(|(_, cell)| cell.greatest).fold(f64::MIN_POSITIVE, f64::max);
    let at = |value: f64| (value.max(0.0) / greatest * room * 10.0).round() / 10.0;
    writeln!(svg, r#"<text class="row" x="{x}" y="{}">{}</text>"#, y + 14.0, escaped(heading(&row.name)))?;
    for (index, (name, cell)) in bars.iter().enumerate() {
        let top = y + HEADING + LINE * index as f64;
        let (middle, foot) = (top + BAR / 2.0, top + BAR - 2.0);
        writeln!(svg, r#"<text class="name" x="{}" y="{foot}">{}</text>"#, zero - 6.0, escaped(name))?;
        writeln!(
            svg,
            r#"<rect class="c{}" x="{zero}" y="{top}" width="{}" height="{BAR}"/>"#,
            colour(name),
            at(cell.median)
        )?;
        let (least, most) = (zero + at(cell.least), zero + at(cell.greatest));
        if most - least > 1.0 {
            writeln!(svg, r#"<line class="range" x1="{least}" x2="{most}" y1="{middle}" y2="{middle}"/>"#)?;
        }
        writeln!(
            svg,
            r#"<text x="{}" y="{foot}">{}</text>"#,
            most.max(zero + at(cell.median)) + 5.0,
            short(cell.median)
        )?;
    }
    let bottom = y + HEADING + LINE * bars.len() as f64 - (LINE - BAR);
    writeln!(svg, r#"<line class="axis" x1="{zero}" x2="{zero}" y1="{}" y2="{bottom}"/>"#, y + HEADING)
}

fn bars<'t>(table: &'t Table, row: &Row) -> Vec<(&'t String, Cell)> {
    table.columns.iter().zip(&row.cells).filter_map(|(name, cell)| Some((name, (*cell)?))).collect()
}

/// The name without what is in brackets: that is in the table, not in the chart.
fn heading(name: &str) -> &str {
    name.split_once(" (").map_or(name, |(heading, _)| heading)
}

fn colour(column: &str) -> usize {
    let engine = column.split([' ', ',']).next().unwrap_or_default();
    ENGINES.iter().position(|known| *known == engine).unwrap_or(ENGINES.len())
}

fn description(panels: &[(&Row, Vec<(&String, Cell)>)]) -> String {
    let mut text = "Medians, with the range of all runs as a line.".to_owned();
    for (row, bars) in panels {
        let figures = bars.iter().map(|(name, cell)| format!("{name}: {}", short(cell.median)));
        let _ = write!(text, " {}: {}.", heading(&row.name), figures.collect::<Vec<_>>().join("; "));
    }
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let cell = |median| Some(Cell { median, least: median * 0.9, greatest: median * 1.1 });
        Table {
            columns: vec!["veth".to_owned(), "rootless-launch, TAP".to_owned()],
            rows: vec![
                Row { name: "TCP child->host, Gb/s (cpu)".to_owned(), cells: vec![cell(60.0), cell(30.0)] },
                Row { name: "never measured".to_owned(), cells: vec![None, None] },
            ],
        }
    }

    #[test]
    fn a_chart_has_a_bar_and_a_figure_per_cell_and_says_them_in_words() {
        let svg = svg("Way out", &table());
        assert_eq!(svg.matches("<rect class=\"c").count(), 2);
        assert!(svg.contains("<title id=\"title\">Way out</title>"));
        assert!(svg.contains("TCP child-&gt;host, Gb/s: veth: 60.0; rootless-launch, TAP: 30.0."));
        assert!(svg.contains("prefers-color-scheme:dark"));
        assert!(!svg.contains("never measured"));
    }

    #[test]
    fn an_engine_has_the_same_colour_on_all_its_paths() {
        assert_eq!(colour("rootless-launch, TAP"), colour("rootless-launch 1500"));
        assert_ne!(colour("pasta 1500"), colour("veth"));
        assert_eq!(colour("somebody else"), ENGINES.len());
    }
}
