//! Plots: lines, points, bars, histograms and bands over two axes.

use std::io::Write;
use std::path::Path;

use super::layout::Layout;
use super::scale::Axis;
use super::svg::Svg;
use crate::{Result, files};

/// A plot as a vector picture, readable on light and dark backgrounds and in print.
#[derive(Clone, Debug)]
pub struct Plot {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
    pub(super) guides: Vec<Vec<(f64, f64)>>,
    pub(super) verticals: Vec<(f64, String)>,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// What shares a name in the legend and a colour.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub name: String,
    pub shapes: Vec<Shape>,
}

#[derive(Clone, Debug)]
pub(super) enum Shape {
    Line(Vec<(f64, f64)>),
    Points(Vec<(f64, f64)>),
    Marks(Vec<(f64, f64)>),
    /// Heights over the middles of the categories.
    Bars(Vec<(f64, f64)>),
    /// From, to, height.
    Histogram(Vec<(f64, f64, f64)>),
    /// Place, low, high.
    Band(Vec<(f64, f64, f64)>),
}

impl Shape {
    pub fn xs(&self) -> Vec<f64> {
        match self {
            Self::Line(points)
            | Self::Points(points)
            | Self::Marks(points)
            | Self::Bars(points) => points.iter().map(|(x, _)| *x).collect(),
            Self::Histogram(bins) => bins.iter().flat_map(|(from, to, _)| [*from, *to]).collect(),
            Self::Band(band) => band.iter().map(|(x, ..)| *x).collect(),
        }
    }

    pub fn ys(&self) -> Vec<f64> {
        match self {
            Self::Line(points) | Self::Points(points) | Self::Marks(points) => {
                points.iter().map(|(_, y)| *y).collect()
            }
            Self::Bars(bars) => bars.iter().flat_map(|(_, height)| [0.0, *height]).collect(),
            Self::Histogram(bins) => bins.iter().flat_map(|(.., height)| [0.0, *height]).collect(),
            Self::Band(band) => band.iter().flat_map(|(_, low, high)| [*low, *high]).collect(),
        }
    }
}

impl Plot {
    /// An empty plot of 720 by 450 pixels.
    pub fn new(title: &str, x: Axis, y: Axis) -> Self {
        Self {
            title: title.to_string(),
            x,
            y,
            series: vec![],
            guides: vec![],
            verticals: vec![],
            width: 720.0,
            height: 450.0,
        }
    }

    /// The same plot in another size in pixels, from 240 by 160 to 4096 by 4096.
    pub fn size(self, width: u32, height: u32) -> Self {
        let (width, height) = (width.clamp(240, 4096), height.clamp(160, 4096));
        Self { width: width.into(), height: height.into(), ..self }
    }

    /// Adds a line through `points`, with a gap wherever one is not finite.
    pub fn line(self, name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        self.with(name, Shape::Line(points.into_iter().collect()))
    }

    /// Adds single points.
    pub fn points(self, name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        self.with(name, Shape::Points(points.into_iter().collect()))
    }

    /// Adds bars, one for each category of the horizontal axis; those of several series stand side
    /// by side.
    pub fn bars(self, name: &str, heights: impl IntoIterator<Item = f64>) -> Self {
        let bars = heights.into_iter().zip(0..).map(|(height, i)| (f64::from(i), height));
        self.with(name, Shape::Bars(bars.collect()))
    }

    /// Adds bins of `(from, to, height)`, through which those of other series can be seen.
    pub fn histogram(self, name: &str, bins: impl IntoIterator<Item = (f64, f64, f64)>) -> Self {
        self.with(name, Shape::Histogram(bins.into_iter().collect()))
    }

    /// Adds a shaded band of `(x, low, high)`, such as a confidence interval, to the series added
    /// last.
    pub fn band(self, band: impl IntoIterator<Item = (f64, f64, f64)>) -> Self {
        self.with_more(Shape::Band(band.into_iter().collect()))
    }

    /// Marks points of the series added last.
    pub fn marks(self, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        self.with_more(Shape::Marks(points.into_iter().collect()))
    }

    /// Adds a dashed line that is no data; it does not count for the ranges of the axes.
    pub fn guide(mut self, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        self.guides.push(points.into_iter().collect());
        self
    }

    /// Adds a dashed vertical line with a name at its top.
    pub fn vertical(mut self, x: f64, name: &str) -> Self {
        self.verticals.push((x, name.to_string()));
        self
    }

    fn with(mut self, name: &str, shape: Shape) -> Self {
        self.series.push(Series { name: name.to_string(), shapes: vec![shape] });
        self
    }

    fn with_more(mut self, shape: Shape) -> Self {
        match self.series.last_mut() {
            Some(series) => {
                series.shapes.push(shape);
                self
            }
            None => self.with("", shape),
        }
    }

    /// The plot as an SVG document.
    pub fn svg(&self) -> String {
        let mut svg = Svg::new(self.width, self.height, &self.title);
        Layout::new(self).draw(&mut svg);
        svg.finish()
    }

    /// Writes the plot as an SVG file.
    ///
    /// # Errors
    /// When the file exists and `force` is not given, or cannot be written.
    pub fn write(&self, path: &Path, force: bool) -> Result<()> {
        files::write_atomic(path, force, |file| file.write_all(self.svg().as_bytes()))
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
        for part in ["A &amp; B", ">time in s<", ">loss<", ">train<", ">dev<", "class=\"s0 curve\""]
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
