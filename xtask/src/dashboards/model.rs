//! A dashboard as we think of it, and as Grafana reads it (the JSON model of schema version 39, which Grafana 10 and later import). Used by `traffic` and
//! `components`.
use serde_json::{Value, json};

/// What Grafana calls the data source that the user chooses.
const SOURCE: &str = "${datasource}";
/// Columns of a dashboard.
const COLUMNS: u64 = 24;

/// One dashboard.
pub struct Dashboard {
    /// Of its file and its address, so links last.
    pub name: &'static str,
    pub title: &'static str,
    pub description: &'static str,
    /// What the reader chooses: the name of a variable, what it is called, and the query for its values.
    pub choices: Vec<(&'static str, &'static str, &'static str)>,
    pub rows: Vec<(&'static str, Vec<Panel>)>,
}

/// One panel.
pub struct Panel {
    title: String,
    description: &'static str,
    unit: &'static str,
    kind: Kind,
    queries: Vec<(String, &'static str)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// One number, a quarter of the width.
    Number,
    /// Lines over time, half of the width.
    Lines,
    /// One row for each value of a label, which is the first one; the whole width.
    Table(&'static str),
}

impl Panel {
    pub fn number(title: &str, unit: &'static str, query: impl Into<String>) -> Panel {
        Panel::new(title, unit, Kind::Number).with(query, "")
    }

    pub fn lines(title: &str, unit: &'static str) -> Panel {
        Panel::new(title, unit, Kind::Lines)
    }

    /// The queries that follow are columns, called as their legends.
    pub fn table(title: &str, label: &'static str) -> Panel {
        Panel::new(title, "short", Kind::Table(label))
    }

    fn new(title: &str, unit: &'static str, kind: Kind) -> Panel {
        Panel { title: title.to_owned(), description: "", unit, kind, queries: Vec::new() }
    }

    /// One query more; `legend` may have labels as `{{label}}`.
    pub fn with(mut self, query: impl Into<String>, legend: &'static str) -> Panel {
        self.queries.push((query.into(), legend));
        self
    }

    /// What the reader should know to read it.
    pub fn about(mut self, description: &'static str) -> Panel {
        self.description = description;
        self
    }

    /// What is asked.
    #[cfg(test)]
    pub fn queries(&self) -> impl Iterator<Item = &str> {
        self.queries.iter().map(|(query, _)| query.as_str())
    }

    fn size(&self) -> (u64, u64) {
        match self.kind {
            Kind::Number => (COLUMNS / 4, 4),
            Kind::Lines => (COLUMNS / 2, 8),
            Kind::Table(_) => (COLUMNS, 9),
        }
    }

    fn json(&self, id: usize, (x, y): (u64, u64)) -> Value {
        let (width, height) = self.size();
        let targets: Vec<Value> =
            self.queries.iter().enumerate().map(|(index, (query, legend))| self.target(index, query, legend)).collect();
        let mut panel = json!({
            "id": id,
            "title": self.title,
            "description": self.description,
            "datasource": source(),
            "gridPos": { "h": height, "w": width, "x": x, "y": y },
            "targets": targets,
            "fieldConfig": { "defaults": { "unit": self.unit, "min": 0 }, "overrides": [] },
        });
        let more = match self.kind {
            Kind::Number => json!({ "type": "stat", "options": { "reduceOptions": { "calcs": ["lastNotNull"] } } }),
            Kind::Lines => {
                json!({ "type": "timeseries", "options": { "tooltip": { "mode": "multi", "sort": "desc" } } })
            }
            Kind::Table(label) => self.columns(label),
        };
        if let (Value::Object(panel), Value::Object(more)) = (&mut panel, more) {
            panel.extend(more);
        }
        panel
    }

    fn target(&self, index: usize, query: &str, legend: &str) -> Value {
        let mut target = json!({ "refId": letter(index), "datasource": source(), "expr": query });
        let more = match self.kind {
            Kind::Table(_) => json!({ "instant": true, "range": false, "format": "table" }),
            Kind::Number => json!({ "instant": false, "range": true }),
            Kind::Lines => json!({ "instant": false, "range": true, "legendFormat": legend }),
        };
        if let (Value::Object(target), Value::Object(more)) = (&mut target, more) {
            target.extend(more);
        }
        target
    }

    /// The queries' answers side by side, each under its legend; the time of the answers says nothing.
    fn columns(&self, label: &str) -> Value {
        let names: serde_json::Map<String, Value> = self
            .queries
            .iter()
            .enumerate()
            .map(|(index, (_, legend))| (format!("Value #{}", letter(index)), json!(legend)))
            .collect();
        json!({
            "type": "table",
            "transformations": [
                { "id": "merge", "options": {} },
                { "id": "organize", "options": { "excludeByName": { "Time": true }, "indexByName": { label: 0 }, "renameByName": names } },
            ],
        })
    }
}

impl Dashboard {
    /// The file.
    pub fn json(&self) -> String {
        let mut panels = Vec::new();
        let mut y = 0;
        for (title, row) in &self.rows {
            let position = json!({ "h": 1, "w": COLUMNS, "x": 0, "y": y });
            panels.push(json!({ "id": panels.len() + 1, "type": "row", "title": title, "collapsed": false, "panels": [], "gridPos": position }));
            y += 1;
            let (mut x, mut tallest) = (0, 0);
            for panel in row {
                let (width, height) = panel.size();
                if x + width > COLUMNS {
                    (x, y, tallest) = (0, y + tallest, 0);
                }
                panels.push(panel.json(panels.len() + 1, (x, y)));
                x += width;
                tallest = tallest.max(height);
            }
            y += tallest;
        }
        let source =
            json!({ "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus" });
        let choices = self.choices.iter().map(|(name, label, query)| choice(name, label, query));
        let variables: Vec<Value> = std::iter::once(source).chain(choices).collect();
        let dashboard = json!({
            "uid": self.name,
            "title": self.title,
            "description": self.description,
            "tags": ["undermesh"],
            "schemaVersion": 39,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": { "from": "now-1h", "to": "now" },
            "links": [{ "type": "dashboards", "title": "Undermesh", "tags": ["undermesh"], "asDropdown": true, "keepTime": true }],
            "templating": { "list": variables },
            "panels": panels,
        });
        format!("{dashboard:#}\n")
    }
}

fn choice(name: &str, label: &str, query: &str) -> Value {
    json!({
        "name": name, "label": label, "type": "query", "datasource": source(), "refresh": 2, "sort": 1,
        "query": { "query": query, "refId": name }, "includeAll": true, "allValue": ".*", "multi": false,
        "current": { "text": "All", "value": "$__all" },
    })
}

fn source() -> Value {
    json!({ "type": "prometheus", "uid": SOURCE })
}

fn letter(index: usize) -> String {
    char::from(b'A' + (index % 26) as u8).to_string()
}
