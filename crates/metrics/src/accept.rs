//! Which of the two text formats a client asks for (`Accept`, RFC 9110, section 12.5.1).

/// A text format of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The older text format of Prometheus, 0.0.4.
    Text,
}

impl Format {
    /// The format that `accept`, the header's value, prefers; OpenMetrics when it prefers none.
    pub fn preferred(accept: &str) -> Self {
        let (mut open_metrics, mut text) = (Weight::default(), Weight::default());
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let quality = parts
                .filter_map(|parameter| parameter.split_once('='))
                .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
                .map_or(1.0, |(_, value)| value.trim().parse().unwrap_or(0.0));
            match media.as_str() {
                "application/openmetrics-text" => open_metrics.set(3, quality),
                "application/*" => open_metrics.set(2, quality),
                "text/plain" => text.set(3, quality),
                "text/*" => text.set(2, quality),
                "*/*" => {
                    open_metrics.set(1, quality);
                    text.set(1, quality);
                }
                _ => {}
            }
        }
        if text.quality > open_metrics.quality { Self::Text } else { Self::OpenMetrics }
    }

    /// The media type of the response.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// A format's quality, by the most specific range that names it.
#[derive(Clone, Copy, Debug, Default)]
struct Weight {
    precision: u8,
    quality: f64,
}

impl Weight {
    fn set(&mut self, precision: u8, quality: f64) {
        if precision > self.precision {
            *self = Self { precision, quality };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_with_the_higher_quality_is_preferred() {
        for (accept, expected) in [
            ("", Format::OpenMetrics),
            ("*/*", Format::OpenMetrics),
            ("text/plain", Format::Text),
            ("Text/Plain; version=0.0.4", Format::Text),
            ("text/*", Format::Text),
            // Prometheus itself.
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            ("application/openmetrics-text;q=0.2, text/plain;q=0.7", Format::Text),
            ("application/openmetrics-text;q=x, text/plain;q=0.1", Format::Text),
            ("text/html, */*;q=0.8", Format::OpenMetrics),
            ("*/*, application/openmetrics-text;q=0", Format::Text),
        ] {
            assert_eq!(Format::preferred(accept), expected, "{accept}");
        }
    }
}
