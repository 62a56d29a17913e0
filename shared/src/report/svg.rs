//! Scalable vector graphics as text.

use std::fmt::{Display, Write};

/// A picture being drawn; lengths are in pixels from the top left corner.
pub(super) struct Svg {
    body: String,
}

/// Colours of the series, one for light and one for dark backgrounds, told apart by people with
/// any colour vision.
const COLOURS: [(&str, &str); 6] = [
    ("#0b62a4", "#6cb4ee"),
    ("#c8442f", "#ff8a75"),
    ("#23875a", "#5fd39d"),
    ("#9a6700", "#e5b54a"),
    ("#7a4bb0", "#c4a1f0"),
    ("#4b5563", "#b4bcc8"),
];

/// Number of series colours; series beyond begin again.
pub(super) const COLOUR_COUNT: usize = COLOURS.len();

impl Svg {
    /// An empty picture with a background. `title` is read to people who cannot see it.
    pub fn new(width: f64, height: f64, title: &str) -> Self {
        let title = escape(title);
        let mut body = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{title}\" \
             class=\"plot\">\n<title>{title}</title>\n<style>\n{}</style>\n",
            style()
        );
        body.push_str("<rect class=\"back\" width=\"100%\" height=\"100%\"/>\n");
        Self { body }
    }

    /// An element without content.
    pub fn element(&mut self, name: &str, attributes: &[(&str, &dyn Display)]) {
        self.open(name, attributes, "/>\n");
    }

    /// A text whose `anchor` is `start`, `middle` or `end` at the point.
    pub fn text(&mut self, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
        let attributes: [(&str, &dyn Display); 4] =
            [("x", &Pixels(x)), ("y", &Pixels(y)), ("text-anchor", &anchor), ("class", &class)];
        self.open("text", &attributes, ">");
        self.body.push_str(&escape(text));
        self.body.push_str("</text>\n");
    }

    /// A text that reads upwards, centred on the point.
    pub fn text_upwards(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let transform = format!("translate({} {}) rotate(-90)", Pixels(x), Pixels(y));
        let attributes: [(&str, &dyn Display); 3] =
            [("transform", &transform), ("text-anchor", &"middle"), ("class", &class)];
        self.open("text", &attributes, ">");
        self.body.push_str(&escape(text));
        self.body.push_str("</text>\n");
    }

    /// Straight lines through points; a gap wherever one is not finite.
    pub fn line(&mut self, points: &[(f64, f64)], class: &str) {
        let mut path = String::new();
        let mut pen_down = false;
        for (x, y) in points {
            if x.is_finite() && y.is_finite() {
                let command = if pen_down { 'L' } else { 'M' };
                // Writing to a string cannot fail.
                let _ = write!(path, "{command}{} {}", Pixels(*x), Pixels(*y));
            }
            pen_down = x.is_finite() && y.is_finite();
        }
        if !path.is_empty() {
            self.element("path", &[("d", &path), ("class", &class)]);
        }
    }

    /// What is drawn inside `draw` is cut off outside the rectangle; its coordinates stay those of
    /// the whole picture.
    pub fn clipped(
        &mut self,
        left: f64,
        top: f64,
        width: f64,
        height: f64,
        draw: impl FnOnce(&mut Self),
    ) {
        let view = format!("{} {} {} {}", Pixels(left), Pixels(top), Pixels(width), Pixels(height));
        self.open(
            "svg",
            &[
                ("x", &Pixels(left)),
                ("y", &Pixels(top)),
                ("width", &Pixels(width)),
                ("height", &Pixels(height)),
                ("viewBox", &view),
            ],
            ">\n",
        );
        draw(self);
        self.body.push_str("</svg>\n");
    }

    /// The finished document.
    pub fn finish(mut self) -> String {
        self.body.push_str("</svg>\n");
        self.body
    }

    fn open(&mut self, name: &str, attributes: &[(&str, &dyn Display)], end: &str) {
        self.body.push('<');
        self.body.push_str(name);
        for (key, value) in attributes {
            // Writing to a string cannot fail.
            let _ = write!(self.body, " {key}=\"{}\"", escape(&value.to_string()));
        }
        self.body.push_str(end);
    }
}

/// A length with at most two decimals.
pub(super) struct Pixels(pub f64);

impl Display for Pixels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rounded = (self.0 * 100.0).round() / 100.0;
        // Adding 0 turns -0 into 0.
        write!(f, "{}", rounded + 0.0)
    }
}

/// The text with the characters escaped that mean something in XML and HTML, and those replaced
/// that must not occur there.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(character),
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

fn style() -> String {
    let rules = |back: &str, ink: &str, faint: &str, grid: &str, dark: bool| {
        let mut rules = format!(
            ".plot .back{{fill:{back}}}\n.plot text{{fill:{ink}}}\n.plot .faint{{fill:{faint}}}\n\
             .plot .frame{{stroke:{faint}}}\n.plot .grid{{stroke:{grid}}}\n\
             .plot .box{{fill:{back};stroke:{grid}}}\n"
        );
        for (index, (light_colour, dark_colour)) in COLOURS.iter().enumerate() {
            let colour = if dark { dark_colour } else { light_colour };
            rules += &format!(".plot .s{index}{{stroke:{colour};fill:{colour}}}\n");
        }
        rules
    };
    let light = rules("#ffffff", "#1f2933", "#52606d", "#e4e7eb", false);
    let dark = rules("#15191e", "#e6e9ec", "#a3adb8", "#2f3740", true);
    // The shapes come last: they overrule the fill of the series' class.
    format!(
        ".plot text{{font:13px system-ui,\"Segoe UI\",\"DejaVu Sans\",sans-serif;stroke:none}}\n\
         .plot .title{{font-size:16px;font-weight:600}}\n\
         {light}@media (prefers-color-scheme:dark){{\n{dark}}}\n\
         @media print{{\n{light}}}\n\
         .plot .frame{{fill:none;stroke-width:1}}\n.plot .grid{{fill:none;stroke-width:1}}\n\
         .plot .curve{{fill:none;stroke-width:2;stroke-linejoin:round}}\n\
         .plot .d1{{stroke-dasharray:7 3}}\n.plot .d2{{stroke-dasharray:2 3}}\n\
         .plot .dot{{stroke:none;fill-opacity:.8}}\n.plot .bar{{stroke:none}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_out() {
        assert_eq!(escape("<a href='x'>&\"\0"), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\u{fffd}");
        let mut svg = Svg::new(10.0, 10.0, "<\"evil\">");
        svg.text(1.0, 2.0, "\"><script>", "a", "</text><script>");
        assert!(!svg.finish().contains("<script"));
    }

    #[test]
    fn lines_break_at_points_that_are_not_finite() {
        let mut svg = Svg::new(10.0, 10.0, "");
        let nan = f64::NAN;
        svg.line(&[(0.0, 1.0), (1.0, 2.345), (nan, 0.0), (-0.001, 3.0), (5.0, 4.0)], "c");
        assert!(svg.finish().contains("d=\"M0 1L1 2.35M0 3L5 4\""));
        let mut empty = Svg::new(10.0, 10.0, "");
        empty.line(&[(nan, nan)], "c");
        assert!(!empty.finish().contains("<path"));
    }
}
