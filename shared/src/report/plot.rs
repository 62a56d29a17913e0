//! Plots: lines, points and bars over two axes.

use std::path::Path;

use super::scale::{Axis, Scale};
use super::svg::{COLOUR_COUNT, Pixels, Svg};
use crate::{Result, files};

/// A plot as a vector picture, readable on light and dark backgrounds and in print.
#[derive(Clone, Debug)]
pub struct Plot {
    title: String,
    x: Axis,
    y: Axis,
    series: Vec<Series>,
}

#[derive(Clone, Debug)]
struct Series {
    name: String,
    shape: Shape,
    points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    Line,
    Points,
    Bars,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 450.0;
/// Height of one line of text, and the mean width of a character.
const LINE: f64 = 18.0;
const CHARACTER: f64 = 7.2;

/// The rectangle of the data.
struct Frame {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Frame {
    fn x(&self, share: f64) -> f64 {
        self.left + share * self.width
    }

    fn y(&self, share: f64) -> f64 {
        self.top + (1.0 - share) * self.height
    }
}

impl Plot {
    /// An empty plot.
    pub fn new(title: &str, x: Axis, y: Axis) -> Self {
        Self { title: title.to_string(), x, y, series: vec![] }
    }

    /// Adds a line through `points`, with a gap wherever one is not finite.
    pub fn line(self, name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        self.with(name, Shape::Line, points)
    }

    /// Adds single points.
    pub fn points(self, name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        self.with(name, Shape::Points, points)
    }

    /// Adds bars, one for each category of the horizontal axis; those of several series stand side
    /// by side.
    pub fn bars(self, name: &str, heights: impl IntoIterator<Item = f64>) -> Self {
        let points = heights.into_iter().zip(0..).map(|(height, i)| (f64::from(i), height));
        self.with(name, Shape::Bars, points)
    }

    fn with(
        mut self,
        name: &str,
        shape: Shape,
        points: impl IntoIterator<Item = (f64, f64)>,
    ) -> Self {
        let points = points.into_iter().collect();
        self.series.push(Series { name: name.to_string(), shape, points });
        self
    }

    /// The plot as an SVG document.
    pub fn svg(&self) -> String {
        let bars = self.series.iter().any(|series| series.shape == Shape::Bars);
        let values = |axis: fn(&(f64, f64)) -> f64| {
            self.series.iter().flat_map(move |series| series.points.iter().map(axis))
        };
        let x = self.x.fit(values(|point| point.0), false);
        let y = self.y.fit(values(|point| point.1), bars);
        let widest = y.ticks().map(|(_, label)| label.chars().count()).max().unwrap_or(0);
        let left = 2.0 * LINE + 10.0 + widest as f64 * CHARACTER;
        let top = if self.title.is_empty() { LINE } else { 2.5 * LINE };
        let frame =
            Frame { left, top, width: WIDTH - left - 20.0, height: HEIGHT - top - 3.2 * LINE };
        let mut svg = Svg::new(WIDTH, HEIGHT, &self.title);
        svg.text(WIDTH / 2.0, 1.5 * LINE, "middle", "title", &self.title);
        self.draw_axes(&mut svg, &frame, &x, &y);
        svg.clipped(frame.left, frame.top, frame.width, frame.height, |svg| {
            for (index, series) in self.series.iter().enumerate() {
                self.draw_series(svg, &frame, &x, &y, index, series);
            }
        });
        self.draw_legend(&mut svg, &frame, &x, &y);
        svg.finish()
    }

    /// Writes the plot as an SVG file.
    ///
    /// # Errors
    /// When the file exists and `force` is not given, or cannot be written.
    pub fn write(&self, path: &Path, force: bool) -> Result<()> {
        use std::io::Write;
        files::write_atomic(path, force, |file| file.write_all(self.svg().as_bytes()))
    }

    fn draw_axes(&self, svg: &mut Svg, frame: &Frame, x: &Scale, y: &Scale) {
        let (bottom, right) = (frame.y(0.0), frame.x(1.0));
        let mut free_from = f64::NEG_INFINITY;
        for (share, label) in x.ticks() {
            let place = frame.x(share);
            if x.categories().is_none() {
                svg.line(&[(place, frame.top), (place, bottom)], "grid");
            }
            // Labels that would run into each other are left out.
            let half_width = 0.5 * CHARACTER * label.chars().count() as f64;
            if place - half_width > free_from {
                svg.text(place, bottom + LINE, "middle", "faint", label);
                free_from = place + half_width + 0.5 * CHARACTER;
            }
        }
        for (share, label) in y.ticks() {
            let place = frame.y(share);
            svg.line(&[(frame.left, place), (right, place)], "grid");
            svg.text(frame.left - 8.0, place + 4.5, "end", "faint", label);
        }
        svg.element(
            "rect",
            &[
                ("x", &Pixels(frame.left)),
                ("y", &Pixels(frame.top)),
                ("width", &Pixels(frame.width)),
                ("height", &Pixels(frame.height)),
                ("class", &"frame"),
            ],
        );
        svg.text(frame.x(0.5), bottom + 2.4 * LINE, "middle", "label", &self.x.label);
        svg.text_upwards(LINE, frame.y(0.5), "label", &self.y.label);
    }

    fn draw_series(
        &self,
        svg: &mut Svg,
        frame: &Frame,
        x: &Scale,
        y: &Scale,
        index: usize,
        series: &Series,
    ) {
        let place = |(a, b): &(f64, f64)| (frame.x(x.share(*a)), frame.y(y.share(*b)));
        let class = class(series.shape, index);
        match series.shape {
            Shape::Line => {
                let points: Vec<(f64, f64)> = series.points.iter().map(place).collect();
                svg.line(&points, &class);
            }
            Shape::Points => {
                let places = series.points.iter().map(place);
                for (cx, cy) in places.filter(|(x, y)| x.is_finite() && y.is_finite()) {
                    let attributes: [(&str, &dyn std::fmt::Display); 4] =
                        [("cx", &Pixels(cx)), ("cy", &Pixels(cy)), ("r", &3.5), ("class", &class)];
                    svg.element("circle", &attributes);
                }
            }
            Shape::Bars => {
                let groups = self.series.iter().filter(|series| series.shape == Shape::Bars);
                let before = self.series.iter().take(index);
                let position = before.filter(|series| series.shape == Shape::Bars).count();
                let slot = 0.8 * frame.width / x.categories().unwrap_or(1).max(1) as f64;
                let width = slot / groups.count() as f64;
                let base = frame.y(y.share(0.0));
                for (middle, end) in series.points.iter().map(place).filter(|(_, y)| y.is_finite())
                {
                    let attributes: [(&str, &dyn std::fmt::Display); 5] = [
                        ("x", &Pixels(middle - 0.5 * slot + width * position as f64)),
                        ("y", &Pixels(end.min(base))),
                        ("width", &Pixels(0.92 * width)),
                        ("height", &Pixels((base - end).abs())),
                        ("class", &class),
                    ];
                    svg.element("rect", &attributes);
                }
            }
        }
    }

    /// Names of the series in the corner that has the fewest points; nothing for a single series
    /// without a name.
    fn draw_legend(&self, svg: &mut Svg, frame: &Frame, x: &Scale, y: &Scale) {
        let named: Vec<(usize, &Series)> =
            self.series.iter().enumerate().filter(|(_, series)| !series.name.is_empty()).collect();
        if named.is_empty() {
            return;
        }
        let longest =
            named.iter().map(|(_, series)| series.name.chars().count()).max().unwrap_or(0);
        let width = 52.0 + CHARACTER * longest as f64;
        let height = LINE * named.len() as f64 + 10.0;
        let inset = 10.0;
        let corners = [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)].map(|(right, up)| {
            let left = frame.left + inset + right * (frame.width - width - 2.0 * inset);
            let top = frame.top + inset + (1.0 - up) * (frame.height - height - 2.0 * inset);
            (left, top)
        });
        let covered = |(left, top): &(f64, f64)| {
            let shares = self.series.iter().flat_map(|series| &series.points);
            shares
                .map(|(a, b)| (frame.x(x.share(*a)) - left, frame.y(y.share(*b)) - top))
                .filter(|(dx, dy)| (0.0..width).contains(dx) && (0.0..height).contains(dy))
                .count()
        };
        let Some((left, top)) = corners.into_iter().min_by_key(|corner| covered(corner)) else {
            return;
        };
        svg.element(
            "rect",
            &[
                ("x", &Pixels(left)),
                ("y", &Pixels(top)),
                ("width", &Pixels(width)),
                ("height", &Pixels(height)),
                ("rx", &4),
                ("class", &"box"),
            ],
        );
        for (row, (index, series)) in named.into_iter().enumerate() {
            let middle = top + 5.0 + LINE * (row as f64 + 0.5);
            let class = class(series.shape, index);
            match series.shape {
                Shape::Line => svg.line(&[(left + 8.0, middle), (left + 30.0, middle)], &class),
                Shape::Points => svg.element(
                    "circle",
                    &[
                        ("cx", &Pixels(left + 19.0)),
                        ("cy", &Pixels(middle)),
                        ("r", &4),
                        ("class", &class),
                    ],
                ),
                Shape::Bars => svg.element(
                    "rect",
                    &[
                        ("x", &Pixels(left + 12.0)),
                        ("y", &Pixels(middle - 6.0)),
                        ("width", &14),
                        ("height", &12),
                        ("class", &class),
                    ],
                ),
            }
            svg.text(left + 36.0, middle + 4.5, "start", "legend", &series.name);
        }
    }
}

/// The classes of a series: its colour, its shape and, for lines beyond the first, a dash pattern,
/// so that they can be told apart without colour.
fn class(shape: Shape, index: usize) -> String {
    let colour = index % COLOUR_COUNT;
    match shape {
        Shape::Line => format!("s{colour} curve d{}", index % 3),
        Shape::Points => format!("s{colour} dot"),
        Shape::Bars => format!("s{colour} bar"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_shows_its_title_labels_and_series() {
        let svg = Plot::new("A & B", Axis::linear("time in s"), Axis::log("loss"))
            .line("train", [(0.0, 10.0), (1.0, 1.0)])
            .points("dev", [(0.5, 3.0), (0.7, -1.0)])
            .svg();
        for part in
            ["A &amp; B", ">time in s<", ">loss<", ">train<", ">dev<", "class=\"s0 curve d0\""]
        {
            assert!(svg.contains(part), "{part}");
        }
        // The point below zero has no place on a logarithmic axis; the legend has the other dot.
        assert_eq!(svg.matches("class=\"s1 dot\"").count(), 2);
        assert!(!svg.contains("NaN") && !svg.contains("inf\""));
    }

    #[test]
    fn bars_of_two_series_stand_side_by_side_on_zero() {
        let svg = Plot::new("", Axis::categories("set", ["a", "b"]), Axis::linear("EER"))
            .bars("one", [1.0, -1.0])
            .bars("two", [2.0, f64::NAN])
            .svg();
        // Three bars and two samples in the legend.
        assert_eq!(svg.matches(" bar\"").count(), 5);
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn an_empty_plot_is_a_frame() {
        let svg = Plot::new("empty", Axis::linear("x"), Axis::probit("y")).svg();
        assert!(svg.contains("class=\"frame\"") && svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn a_file_is_not_overwritten_unasked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        let plot = Plot::new("", Axis::linear("x"), Axis::linear("y")).line("", [(0.0, 0.0)]);
        plot.write(&path, false).unwrap();
        assert!(plot.write(&path, false).is_err());
        plot.write(&path, true).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), plot.svg());
    }
}
