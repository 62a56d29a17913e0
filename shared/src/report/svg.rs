//! Scalable vector graphics as text.

use std::fmt::{Display, Write};

use unicode_width::UnicodeWidthChar;

/// A picture being drawn; lengths are in pixels from the top left corner.
pub(super) struct Svg {
    body: String,
}

/// Colours of the series, one for light and one for dark backgrounds: those of Okabe and Ito ("Color
/// universal design", 2008), which people with any colour vision can tell apart, the dark ones
/// made lighter.
const COLOURS: [(&str, &str); 7] = [
    ("#0072b2", "#4da6e8"),
    ("#d55e00", "#ff8c42"),
    ("#009e73", "#2cc69a"),
    ("#cc79a7", "#e5a0c8"),
    ("#e69f00", "#f2c14e"),
    ("#56b4e9", "#9bd7ff"),
    ("#24292f", "#e6edf3"),
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
        let (x, y) = (Pixels(x), Pixels(y));
        self.text_element(
            &[("x", &x), ("y", &y), ("text-anchor", &anchor), ("class", &class)],
            text,
        );
    }

    /// A text that reads upwards, centred on the point.
    pub fn text_upwards(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let transform = format!("translate({} {}) rotate(-90)", Pixels(x), Pixels(y));
        self.text_element(
            &[("transform", &transform), ("text-anchor", &"middle"), ("class", &class)],
            text,
        );
    }

    fn text_element(&mut self, attributes: &[(&str, &dyn Display)], text: &str) {
        if !text.is_empty() {
            self.open("text", attributes, ">");
            self.body.push_str(&escape(text));
            self.body.push_str("</text>\n");
        }
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

    /// The area inside a line that returns to its first point. Points that are not finite are left
    /// out.
    pub fn area(&mut self, points: &[(f64, f64)], class: &str) {
        let finite = points.iter().filter(|(x, y)| x.is_finite() && y.is_finite());
        let corners: Vec<String> =
            finite.map(|(x, y)| format!("{},{}", Pixels(*x), Pixels(*y))).collect();
        if !corners.is_empty() {
            self.element("polygon", &[("points", &corners.join(" ")), ("class", &class)]);
        }
    }

    /// A rectangle.
    pub fn rectangle(&mut self, (left, top): (f64, f64), width: f64, height: f64, class: &str) {
        let [left, top, width, height] = [left, top, width, height].map(Pixels);
        self.element(
            "rect",
            &[("x", &left), ("y", &top), ("width", &width), ("height", &height), ("class", &class)],
        );
    }

    /// A disc.
    pub fn disc(&mut self, (x, y): (f64, f64), radius: f64, class: &str) {
        let (x, y) = (Pixels(x), Pixels(y));
        self.element("circle", &[("cx", &x), ("cy", &y), ("r", &radius), ("class", &class)]);
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
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// The width of a text in pixels in a font of this size, rather too wide than too narrow: the fonts
/// of the viewer are not known.
pub(super) fn text_width(text: &str, font_size: f64) -> f64 {
    let letters = text.chars().map(|c| match c {
        'i' | 'j' | 'l' | '.' | ',' | ':' | ';' | '|' | '!' | '\'' | ' ' => 0.34,
        'm' | 'w' | 'M' | 'W' | '%' | '@' => 0.95,
        c if c.is_ascii_uppercase() => 0.72,
        c => 0.62 * c.width().unwrap_or(1) as f64,
    });
    font_size * letters.sum::<f64>()
}

/// The text, cut with an ellipsis if it is wider than `width` pixels.
pub(super) fn shortened(text: &str, font_size: f64, width: f64) -> String {
    if text_width(text, font_size) <= width {
        return text.to_string();
    }
    let mut short = String::new();
    let mut used = text_width("…", font_size);
    for c in text.chars() {
        used += text_width(c.encode_utf8(&mut [0; 4]), font_size);
        if used > width {
            break;
        }
        short.push(c);
    }
    short.trim_end().to_string() + "…"
}

fn style() -> String {
    let rules = |back: &str, ink: &str, faint: &str, grid: &str, dark: bool| {
        let mut rules = format!(
            ".plot .back{{fill:{back}}}\n.plot text{{fill:{ink}}}\n.plot .faint{{fill:{faint}}}\n\
             .plot .frame,.plot .guide{{stroke:{faint}}}\n.plot .grid{{stroke:{grid}}}\n"
        );
        for (index, (light_colour, dark_colour)) in COLOURS.iter().enumerate() {
            let colour = if dark { dark_colour } else { light_colour };
            rules += &format!(".plot .s{index}{{stroke:{colour};fill:{colour}}}\n");
        }
        rules + &format!(".plot .mark,.plot .note{{stroke:{back}}}\n")
    };
    let light = rules("#ffffff", "#1f2933", "#52606d", "#e4e7eb", false);
    let dark = rules("#15191e", "#e6e9ec", "#a3adb8", "#2f3740", true);
    // The shapes come last: they overrule the fill of the series' class.
    format!(
        ".plot text{{font:13px system-ui,\"Segoe UI\",\"DejaVu Sans\",sans-serif}}\n\
         .plot .title{{font-size:16px;font-weight:600}}\n\
         .plot .faint,.plot .note{{font-size:12px}}\n\
         {light}@media (prefers-color-scheme:dark){{\n{dark}}}\n\
         @media print{{\n{light}}}\n\
         .plot .frame,.plot .grid{{fill:none;stroke-width:1}}\n\
         .plot .guide{{fill:none;stroke-dasharray:5 4}}\n\
         .plot .note{{stroke-width:4;stroke-linejoin:round;paint-order:stroke}}\n\
         .plot .curve{{fill:none;stroke-width:2;stroke-linejoin:round}}\n\
         .plot .again{{stroke-dasharray:7 4}}\n\
         .plot .band,.plot .area{{stroke:none;fill-opacity:.25}}\n\
         .plot .dot,.plot .bar{{stroke:none}}\n.plot .mark{{stroke-width:1.5}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_cannot_break_out() {
        assert_eq!(escape("<a href='x'>&\"\0"), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\u{fffd}");
        let mut svg = Svg::new(10.0, 10.0, "<\"evil\">");
        svg.text(1.0, 2.0, "\"><script>", "a", "</text><script>");
        assert!(!svg.finish().contains("<script"));
    }

    #[test]
    fn texts_are_cut_to_fit() {
        assert_eq!(shortened("short", 10.0, 100.0), "short");
        let cut = shortened("a text that is much too long", 10.0, 100.0);
        assert!(cut.ends_with('…') && text_width(&cut, 10.0) <= 100.0, "{cut}");
        assert_eq!(shortened("日本語日本語日本語", 10.0, 50.0), "日本語…");
        assert_eq!(shortened("x", 10.0, 0.0), "…");
    }

    proptest! {
        #[test]
        fn any_text_stays_text(text in any::<String>()) {
            let markup = format!("<a b=\"{0}\">{0}</a>", escape(&text));
            let document = roxmltree::Document::parse(&markup).unwrap();
            let node = document.root_element();
            prop_assert!(node.children().all(|child| child.is_text()));
            prop_assert_eq!(node.attributes().len(), 1);
            let forbidden = |c: char| matches!(c, '\u{fffe}' | '\u{ffff}') || c.is_control();
            let allowed = |c: char| matches!(c, '\n' | '\t') || !forbidden(c);
            let expected: String =
                text.chars().map(|c| if allowed(c) { c } else { '\u{fffd}' }).collect();
            prop_assert_eq!(node.text().unwrap_or(""), expected);
        }
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
