//! One request, as it is printed.

pub(super) use seks_control_plane::admin::audit_view::RecordView;

use crate::{
    error::Result,
    output::{Output, View},
};

impl View for RecordView {
    const COLUMNS: &'static [&'static str] =
        &["time", "decision", "agent", "service", "method", "path", "status", "reason", "ms", "source", "node"];
    fn row(&self) -> Vec<String> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let status = match (self.complete, self.status) {
            (false, _) => "unknown".into(),
            (true, status) => status.map(|status| status.to_string()).unwrap_or_default(),
        };
        vec![
            self.time.clone(),
            self.decision.unwrap_or_default().into(),
            text(&self.agent),
            text(&self.service),
            self.method.clone(),
            self.path.clone(),
            status,
            match self.tripwire {
                Some(tripwire) => format!("{} (tripwire: {tripwire})", text(&self.reason)).trim_start().to_owned(),
                None => text(&self.reason),
            },
            format!("{:.1}", self.whole_us as f64 / 1000.0),
            text(&self.source),
            self.node.clone(),
        ]
    }
}

/// Prints requests as they come: a table without its frame, one JSON object a line, or one YAML
/// document each.
pub(super) struct LinePrinter {
    output: Output,
    stream: Option<crate::output::Stream>,
}

impl LinePrinter {
    pub(super) fn new(output: Output) -> Self {
        let stream = output.is_table().then(|| output.stream("requests"));
        Self { output, stream }
    }

    pub(super) fn print(&mut self, views: &[RecordView]) -> Result<()> {
        if let Some(stream) = &mut self.stream {
            return stream.page(views);
        }
        views.iter().try_for_each(|view| self.output.one_of_many(view))
    }
}
