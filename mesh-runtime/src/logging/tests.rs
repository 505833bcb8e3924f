//! Tests of the log's filter grammar and line layouts.

use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn lines(format: LogFormat, log: impl FnOnce()) -> String {
    let captured = Captured::default();
    let writer = captured.clone();
    let layer = tracing_subscriber::fmt::layer()
        .event_format(Lines { format })
        .with_ansi(false)
        .with_writer(move || writer.clone());
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
    let bytes = captured.0.lock().clone();
    String::from_utf8(bytes).unwrap()
}

fn sample() {
    let address = "198.18.0.1:1";
    tracing::info!(target: "access", { src.addr = %address, src.workload = "client", bytes = 7 }, "connection\ncomplete");
}

#[test]
fn text_lines_have_tabs_quotes_for_strings_and_no_control_characters() {
    let line = lines(LogFormat::Text, sample);
    let columns: Vec<&str> = line.trim_end().split('\t').collect();
    let expected =
        ["info", "access", "connection\\ncomplete", "src.addr=198.18.0.1:1", "src.workload=\"client\"", "bytes=7"];
    assert_eq!(columns[1..], expected);
    assert_eq!(columns[0].len(), "2026-11-20T10:35:31.040477Z".len());
}

#[test]
fn json_lines_are_objects() {
    let line: Value = serde_json::from_str(&lines(LogFormat::Json, sample)).unwrap();
    assert_eq!(line["level"], "info");
    assert_eq!(line["scope"], "access");
    assert_eq!(line["src.workload"], "client");
    assert_eq!(line["bytes"], 7);
}

#[test]
fn hardening_b124_filters_are_levels_and_targets_or_refused() {
    for good in ["info", "WARN", "info,h2=off", "debug,mesh_agent::proxy=trace,access=info"] {
        assert!(good.parse::<Filter>().is_ok(), "{good}");
    }
    let long = "a=info,".repeat(200_000);
    for bad in
        ["", "trace,x=../../", "loud", "info,=debug", "x=", "x=loud", "3", "info,,", "[span]=info", long.as_str()]
    {
        assert!(bad.parse::<Filter>().is_err(), "{}", &bad[..bad.len().min(40)]);
    }
}

#[test]
fn the_level_changes_while_running() {
    let (targets, handle) = reload::Layer::new(Targets::from(&"warn".parse::<Filter>().unwrap()));
    let captured = Captured::default();
    let writer = captured.clone();
    let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).with_filter(targets);
    let current = Arc::new(Mutex::new("warn".parse().unwrap()));
    let control = LogControl { handle, current };
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        tracing::info!("first");
        control.set_level("info".parse().unwrap()).unwrap();
        tracing::info!("second");
    });
    let text = String::from_utf8(captured.0.lock().clone()).unwrap();
    assert!(!text.contains("first") && text.contains("second"), "{text}");
    assert_eq!(control.level().to_string(), "info");
}
