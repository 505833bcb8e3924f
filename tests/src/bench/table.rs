//! The bench's table: one line per measurement, one column per path, with the ratio of ours to the peer's.

/// Everything measured on one path.
#[derive(Debug, Default)]
pub struct Column {
    /// Heading.
    pub name: String,
    /// What has no number.
    pub notes: Vec<String>,
    values: Vec<(String, f64)>,
}

impl Column {
    /// An empty column.
    pub fn new(name: &str) -> Column {
        Column { name: name.into(), ..Column::default() }
    }

    /// Adds a value.
    pub fn set(&mut self, line: &str, value: f64) {
        self.values.push((line.into(), value));
    }

    fn get(&self, line: &str) -> Option<f64> {
        self.values.iter().find(|(name, _)| name == line).map(|(_, value)| *value)
    }
}

/// Prints a Markdown table, so that it can go into a document as it is; `against`: with the ratio of the last two columns.
pub fn print(columns: &[Column], against: bool) {
    let ratio = against.then(|| (columns.len() - 2, columns.len() - 1, "Undermesh / ztunnels".to_owned()));
    println!("{}", render(columns, ratio.as_slice()));
}

/// The same, with the ratio of the first column to each of the others.
pub fn print_against(columns: &[Column]) {
    let ratios: Vec<_> =
        (1..columns.len()).map(|other| (0, other, format!("{} / {}", columns[0].name, columns[other].name))).collect();
    println!("{}", render(columns, &ratios));
}

/// `ratios`: of which column to which, and their headings.
fn render(columns: &[Column], ratios: &[(usize, usize, String)]) -> String {
    let mut lines: Vec<&str> = Vec::new();
    for (line, _) in columns.iter().flat_map(|c| &c.values) {
        if !lines.contains(&line.as_str()) {
            lines.push(line);
        }
    }
    let mut text = String::from("| |");
    for column in columns {
        text.push_str(&format!(" {} |", column.name));
    }
    for (.., heading) in ratios {
        text.push_str(&format!(" {heading} |"));
    }
    text.push_str(&format!("\n|---|{}", "---:|".repeat(columns.len() + ratios.len())));
    for line in lines {
        text.push_str(&format!("\n| {line} |"));
        for column in columns {
            text.push_str(&column.get(line).map_or(" |".into(), |v| format!(" {} |", number(v))));
        }
        for (ours, theirs, _) in ratios {
            let ratio = columns[*ours].get(line).zip(columns[*theirs].get(line)).map(|(ours, theirs)| ours / theirs);
            text.push_str(&ratio.map_or(" |".into(), |r| format!(" {r:.2}x |")));
        }
    }
    for column in columns {
        for note in &column.notes {
            text.push_str(&format!("\n\n{}: {note}.", column.name));
        }
    }
    text
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 100.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_column_per_path_and_a_ratio() {
        let mut columns: Vec<Column> = ["direct", "ours", "theirs"].map(Column::new).into();
        for (column, value) in columns.iter_mut().zip([10.0, 2000.0, 1000.0]) {
            column.set("conns", value);
        }
        columns[1].set("memory", 12.5);
        let text = render(&columns, &[(1, 2, "ours / theirs".to_owned())]);
        assert!(text.contains("| conns | 10.00 | 2000 | 1000 | 2.00x |"), "{text}");
        assert!(text.contains("| memory | | 12.50 | | |"), "{text}");
    }
}
