//! Where the parts of a plot go, and drawing them there.

use std::collections::BTreeSet;

use super::plot::{Plot, Series, Shape};
use super::scale::{Axis, Scale};
use super::svg::{COLOUR_COUNT, Svg, shortened, text_width};

/// Font sizes of the texts in [`Svg`]'s style.
const TEXT_SIZE: f64 = 13.0;
const TITLE_SIZE: f64 = 16.0;
const TICK_SIZE: f64 = 12.0;
/// Space at the edges of the picture.
const GAP: f64 = 14.0;
/// Heights of a row of the legend and of the row of a vertical line's name.
const LEGEND_ROW: f64 = 20.0;
const NOTE_ROW: f64 = 17.0;
/// Width of the legend's sample of a series.
const SAMPLE_WIDTH: f64 = 20.0;
/// Radii of single points and of marks.
const DOT: f64 = 2.5;
const MARK: f64 = 5.0;
/// The points of a line are drawn, too, where they are so few.
const FEW_POINTS: usize = 30;

/// A plot whose parts have their places.
pub(super) struct Layout<'a> {
    plot: &'a Plot,
    x: Scale,
    y: Scale,
    legend: Vec<LegendEntry<'a>>,
    /// The rectangle of the data.
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

/// A named series, and where its sample stands.
struct LegendEntry<'a> {
    series: &'a Series,
    colour: String,
    name: String,
    left: f64,
    middle: f64,
}

impl<'a> Layout<'a> {
    pub fn new(plot: &'a Plot) -> Self {
        let top_of_legend = GAP + if plot.title.is_empty() { 0.0 } else { TITLE_SIZE + 10.0 };
        let (legend, rows) = legend(plot, top_of_legend);
        let top_of_notes = top_of_legend + rows as f64 * LEGEND_ROW;
        let top = top_of_notes + plot.verticals.len() as f64 * NOTE_ROW + 6.0;
        let label_height = if plot.x.label.is_empty() { 0.0 } else { TEXT_SIZE + 8.0 };
        let bottom = GAP + label_height + TICK_SIZE + 6.0;
        let height = (plot.height - top - bottom).max(40.0);

        let shapes = || plot.series.iter().flat_map(|series| &series.shapes);
        let y = plot.y.fit(shapes().flat_map(Shape::ys), 0.04, (height / 36.0) as usize);
        let labels = y.ticks().map(|(_, label)| text_width(label, TICK_SIZE));
        let widest = labels.fold(0.0, f64::max).min(0.3 * plot.width);
        let label_height = if plot.y.label.is_empty() { 0.0 } else { TEXT_SIZE + 6.0 };
        let left = GAP + label_height + widest + 6.0;
        let dots = shapes().any(|shape| matches!(shape, Shape::Points(_)));
        let verticals = plot.verticals.iter().map(|(x, _)| *x);
        let xs: Vec<f64> = shapes().flat_map(Shape::xs).chain(verticals).collect();
        // Half of a tick's label may stand beyond the right edge.
        let mut width = plot.width - left - GAP;
        let x = fit_with_room(&plot.x, &xs, if dots { 0.03 } else { 0.0 }, width);
        let beyond = x
            .ticks()
            .map(|(share, label)| 0.5 * text_width(label, TICK_SIZE) - (1.0 - share) * width);
        width = (width - beyond.fold(0.0, f64::max)).max(40.0);
        Self { plot, x, y, legend, left, top, width, height }
    }

    fn right(&self) -> f64 {
        self.left + self.width
    }

    fn bottom(&self) -> f64 {
        self.top + self.height
    }

    fn across(&self, share: f64) -> f64 {
        self.left + share * self.width
    }

    fn up(&self, share: f64) -> f64 {
        self.bottom() - share * self.height
    }

    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (self.across(self.x.share(x)), self.up(self.y.share(y)))
    }

    /// The height of 0, or the bottom where that is nowhere.
    fn base(&self) -> f64 {
        let zero = self.y.share(0.0);
        if zero.is_finite() { self.up(zero) } else { self.bottom() }
    }

    pub fn draw(&self, svg: &mut Svg) {
        let title = shortened(&self.plot.title, TITLE_SIZE, self.plot.width - 2.0 * GAP);
        svg.text(GAP, GAP + TITLE_SIZE - 2.0, "start", "title", &title);
        self.legend.iter().for_each(|entry| entry.draw(svg));
        self.draw_axes(svg);
        svg.clipped(self.left, self.top, self.width, self.height, |svg| {
            self.for_each_shape(|shape, colour, bars| self.draw_area(svg, shape, colour, bars));
            for guide in &self.plot.guides {
                let places: Vec<_> = guide.iter().map(|point| self.place(*point)).collect();
                svg.line(&places, "guide");
            }
            self.for_each_shape(|shape, colour, _| self.draw_line(svg, shape, colour));
        });
        svg.rectangle((self.left, self.top), self.width, self.height, "frame");
        self.draw_verticals(svg);
        // Not cut off at the frame: half a dot would look like another thing.
        self.for_each_shape(|shape, colour, _| self.draw_dots(svg, shape, colour));
    }

    /// Calls `draw` with each shape, the class of its colour and the number of series with bars
    /// before.
    fn for_each_shape(&self, mut draw: impl FnMut(&Shape, &str, usize)) {
        let mut bars_before = 0;
        for (index, series) in self.plot.series.iter().enumerate() {
            for shape in &series.shapes {
                draw(shape, &colour(index), bars_before);
                bars_before += usize::from(matches!(shape, Shape::Bars(_)));
            }
        }
    }

    fn draw_axes(&self, svg: &mut Svg) {
        let mut free_from = 0.0;
        for (share, label) in self.x.ticks() {
            let place = self.across(share);
            if self.x.categories().is_none() {
                svg.line(&[(place, self.top), (place, self.bottom())], "grid");
            }
            // Labels that would run into each other or out of the picture are left out.
            let half_width = 0.5 * text_width(label, TICK_SIZE);
            if place - half_width > free_from {
                svg.text(place, self.bottom() + TICK_SIZE + 5.0, "middle", "faint", label);
                free_from = place + half_width + 6.0;
            }
        }
        let mut free_to = f64::INFINITY;
        for (share, label) in self.y.ticks() {
            let place = self.up(share);
            svg.line(&[(self.left, place), (self.right(), place)], "grid");
            if place + 0.5 * TICK_SIZE < free_to {
                let label = shortened(label, TICK_SIZE, 0.3 * self.plot.width);
                svg.text(self.left - 6.0, place + 0.35 * TICK_SIZE, "end", "faint", &label);
                free_to = place - 0.5 * TICK_SIZE - 2.0;
            }
        }
        let label = shortened(&self.plot.x.label, TEXT_SIZE, self.width);
        svg.text(self.across(0.5), self.plot.height - GAP, "middle", "label", &label);
        let label = shortened(&self.plot.y.label, TEXT_SIZE, self.height);
        svg.text_upwards(GAP + TEXT_SIZE - 3.0, self.up(0.5), "label", &label);
    }

    /// What lies below all lines.
    fn draw_area(&self, svg: &mut Svg, shape: &Shape, colour: &str, bars_before: usize) {
        match shape {
            Shape::Line(_) | Shape::Points(_) | Shape::Marks(_) => {}
            Shape::Bars(bars) => {
                let shapes = self.plot.series.iter().flat_map(|series| &series.shapes);
                let groups = shapes.filter(|shape| matches!(shape, Shape::Bars(_))).count();
                let slot = 0.8 * self.width / self.x.categories().unwrap_or(1).max(1) as f64;
                let width = slot / groups.max(1) as f64;
                let base = self.base();
                let places = bars.iter().map(|bar| self.place(*bar));
                for (middle, end) in
                    places.filter(|(middle, end)| middle.is_finite() && end.is_finite())
                {
                    let left = middle - 0.5 * slot + width * bars_before as f64;
                    let corner = (left, end.min(base));
                    let class = format!("{colour} bar");
                    svg.rectangle(corner, 0.92 * width, (base - end).abs(), &class);
                }
            }
            Shape::Histogram(bins) => {
                for outline in self.outlines(bins) {
                    svg.area(&outline, &format!("{colour} area"));
                }
            }
            Shape::Band(band) => {
                let edge = |edge: fn(&(f64, f64, f64)) -> (f64, f64)| {
                    thinned(band.iter().map(|part| self.place(edge(part))).collect())
                };
                let mut around = edge(|(x, low, _)| (*x, *low));
                around.extend(edge(|(x, _, high)| (*x, *high)).into_iter().rev());
                svg.area(&around, &format!("{colour} band"));
            }
        }
    }

    fn draw_line(&self, svg: &mut Svg, shape: &Shape, colour: &str) {
        let lines = match shape {
            Shape::Line(points) => vec![points.iter().map(|point| self.place(*point)).collect()],
            Shape::Histogram(bins) => self.outlines(bins),
            _ => vec![],
        };
        for line in lines {
            svg.line(&thinned(line), &format!("{colour} curve"));
        }
    }

    /// The upper outlines of bins, one for all that touch.
    fn outlines(&self, bins: &[(f64, f64, f64)]) -> Vec<Vec<(f64, f64)>> {
        let base = self.base();
        let runs = bins.chunk_by(|(_, to, _), (from, _, _)| to == from);
        let outline = |run: &[(f64, f64, f64)]| {
            let tops = run.iter().flat_map(|(from, to, height)| [(*from, *height), (*to, *height)]);
            let tops: Vec<(f64, f64)> = tops.map(|point| self.place(point)).collect();
            let first = tops.first().map(|(x, _)| (*x, base));
            let last = tops.last().map(|(x, _)| (*x, base));
            first.into_iter().chain(tops).chain(last).collect()
        };
        runs.map(outline).collect()
    }

    fn draw_dots(&self, svg: &mut Svg, shape: &Shape, colour: &str) {
        let (points, radius, class) = match shape {
            Shape::Points(points) => (points, DOT, "dot"),
            Shape::Line(points) if points.len() <= FEW_POINTS => (points, DOT, "dot"),
            Shape::Marks(points) => (points, MARK, "mark"),
            _ => return,
        };
        let is_inside = |(x, y): &&(f64, f64)| {
            let inside = -1e-9..=1.0 + 1e-9;
            inside.contains(&self.x.share(*x)) && inside.contains(&self.y.share(*y))
        };
        // Dots that would cover each other to half a pixel are drawn once.
        let mut drawn = BTreeSet::new();
        for (x, y) in points.iter().filter(is_inside).map(|point| self.place(*point)) {
            if drawn.insert(((2.0 * x) as i64, (2.0 * y) as i64)) {
                svg.disc((x, y), radius, &format!("{colour} {class}"));
            }
        }
    }

    fn draw_verticals(&self, svg: &mut Svg) {
        for (index, (value, name)) in self.plot.verticals.iter().enumerate() {
            let share = self.x.share(*value);
            if !(0.0..=1.0).contains(&share) {
                continue;
            }
            let x = self.across(share);
            // Each name has a row of its own above the frame, on the side with more room.
            let rows_below = (self.plot.verticals.len() - index) as f64;
            let top = self.top - 2.0 - rows_below * NOTE_ROW;
            svg.line(&[(x, top), (x, self.bottom())], "guide");
            let (anchor, x, room) = if share > 0.5 {
                ("end", x - 6.0, self.width * share)
            } else {
                ("start", x + 6.0, self.width * (1.0 - share))
            };
            let name = shortened(name, TICK_SIZE, room - 12.0);
            svg.text(x, top + TICK_SIZE, anchor, "note", &name);
        }
    }
}

/// The class of a series' colour; once all colours are taken, they come again with dashed lines.
fn colour(index: usize) -> String {
    let again = if index < COLOUR_COUNT { "" } else { " again" };
    format!("s{}{again}", index % COLOUR_COUNT)
}

/// The horizontal axis with as many ticks as have room for their labels.
fn fit_with_room(axis: &Axis, values: &[f64], margin: f64, width: f64) -> Scale {
    let mut spacing = 40.0;
    loop {
        let scale = axis.fit(values.iter().copied(), margin, (width / spacing) as usize);
        let ticks: Vec<(f64, &str)> = scale.ticks().collect();
        let has_room = ticks.windows(2).all(|pair| match pair {
            [(a, first), (b, second)] => {
                let labels = text_width(first, TICK_SIZE) + text_width(second, TICK_SIZE);
                width * (b - a) >= 0.5 * labels + 16.0
            }
            _ => true,
        });
        if has_room || spacing > 200.0 {
            return scale;
        }
        spacing *= 1.25;
    }
}

/// The named series in rows from `top` on, and the number of rows.
fn legend(plot: &Plot, top: f64) -> (Vec<LegendEntry<'_>>, usize) {
    let mut entries: Vec<LegendEntry<'_>> = vec![];
    let (mut left, mut row) = (GAP, 0);
    let named = plot.series.iter().enumerate().filter(|(_, series)| !series.name.is_empty());
    for (index, series) in named {
        let name = shortened(&series.name, TEXT_SIZE, plot.width - 2.0 * GAP - SAMPLE_WIDTH - 6.0);
        let width = SAMPLE_WIDTH + 6.0 + text_width(&name, TEXT_SIZE);
        if left > GAP && left + width > plot.width - GAP {
            (left, row) = (GAP, row + 1);
        }
        let middle = top + (row as f64 + 0.5) * LEGEND_ROW;
        entries.push(LegendEntry { series, colour: colour(index), name, left, middle });
        left += width + 18.0;
    }
    let rows = if entries.is_empty() { 0 } else { row + 1 };
    (entries, rows)
}

impl LegendEntry<'_> {
    fn draw(&self, svg: &mut Svg) {
        let (left, middle, colour) = (self.left, self.middle, &self.colour);
        let right = left + SAMPLE_WIDTH;
        let corner = (left, middle - 6.0);
        for shape in &self.series.shapes {
            let centre = (left + 0.5 * SAMPLE_WIDTH, middle);
            match shape {
                Shape::Line(_) => {
                    svg.line(&[(left, middle), (right, middle)], &format!("{colour} curve"));
                }
                Shape::Points(_) => svg.disc(centre, DOT, &format!("{colour} dot")),
                Shape::Marks(_) => svg.disc(centre, MARK, &format!("{colour} mark")),
                Shape::Bars(_) => {
                    svg.rectangle(corner, SAMPLE_WIDTH, 12.0, &format!("{colour} bar"));
                }
                Shape::Histogram(_) => {
                    svg.rectangle(corner, SAMPLE_WIDTH, 12.0, &format!("{colour} area"));
                    svg.rectangle(corner, SAMPLE_WIDTH, 12.0, &format!("{colour} curve"));
                }
                Shape::Band(_) => {
                    svg.rectangle(corner, SAMPLE_WIDTH, 12.0, &format!("{colour} band"));
                }
            }
        }
        svg.text(right + 6.0, middle + 0.35 * TEXT_SIZE, "start", "legend", &self.name);
    }
}

/// Of successive places in one column of pixels: the first, the highest, the lowest and the last,
/// in their order. The line through them looks the same (Jugel et al., "M4: a
/// visualization-oriented time series data aggregation", 2014). Places that are not finite stay:
/// they are gaps.
fn thinned(places: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let column = |(x, y): &(f64, f64)| if y.is_finite() { x.floor() } else { f64::NAN };
    let mut kept = vec![];
    for places in places.chunk_by(|a, b| column(a) == column(b)) {
        let by_height =
            |a: &(usize, &(f64, f64)), b: &(usize, &(f64, f64))| a.1.1.total_cmp(&b.1.1);
        let highest = places.iter().enumerate().min_by(by_height).map(|(index, _)| index);
        let lowest = places.iter().enumerate().max_by(by_height).map(|(index, _)| index);
        let ends = [Some(0), places.len().checked_sub(1)];
        let chosen: BTreeSet<usize> = ends.into_iter().chain([highest, lowest]).flatten().collect();
        kept.extend(chosen.into_iter().filter_map(|index| places.get(index)));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The texts of a picture with the rectangles that they take up at least: left, top, right,
    /// bottom.
    fn texts(svg: &str) -> Vec<(String, [f64; 4])> {
        let document = roxmltree::Document::parse(svg).unwrap();
        let texts = document
            .descendants()
            .filter(|node| node.tag_name().name() == "text" && !node.has_attribute("transform"));
        let rectangle = |node: roxmltree::Node| {
            let text = node.text().unwrap_or("").to_string();
            let number = |name| node.attribute(name).unwrap().parse::<f64>().unwrap();
            let (x, y) = (number("x"), number("y"));
            // Fonts are narrower than assumed for the layout, never wider.
            let size =
                if node.attribute("class") == Some("title") { TITLE_SIZE } else { TICK_SIZE };
            let width = text_width(&text, size) * 0.95;
            let left = match node.attribute("text-anchor") {
                Some("start") => x,
                Some("middle") => x - 0.5 * width,
                _ => x - width,
            };
            (text, [left, y - 0.7 * size, left + width, y])
        };
        texts.map(rectangle).collect()
    }

    /// Which texts leave the picture or touch each other.
    fn misplaced(plot: &Plot) -> Vec<String> {
        let texts = texts(&plot.svg());
        let mut wrong = vec![];
        for (index, (text, [left, top, right, bottom])) in texts.iter().enumerate() {
            if *left < 0.0 || *top < 0.0 || *right > plot.width || *bottom > plot.height {
                wrong.push(format!("{text:?} leaves the picture"));
            }
            for (other, [left_2, top_2, right_2, bottom_2]) in texts.iter().take(index) {
                if left < right_2 && left_2 < right && top < bottom_2 && top_2 < bottom {
                    wrong.push(format!("{text:?} touches {other:?}"));
                }
            }
        }
        wrong
    }

    fn axis() -> impl Strategy<Value = Axis> {
        let label =
            prop_oneof![Just(""), Just("step"), Just("a label longer than its axis may be")];
        (0..4, label).prop_map(|(kind, label)| match kind {
            0 => Axis::linear(label),
            1 => Axis::log(label),
            2 => Axis::probit(label),
            _ => Axis::categories(label, (0..20).map(|index| format!("category {index}"))),
        })
    }

    fn number() -> impl Strategy<Value = f64> {
        prop_oneof![0.0f64..1.0, -1e7f64..1e7, 0.0f64..1e-6, any::<f64>()]
    }

    proptest! {
        #[test]
        fn texts_keep_apart_and_inside(
            title in "[a-zA-Z ]{0,90}",
            names in prop::collection::vec("[a-zA-Z日本 ]{0,60}", 0..9),
            (x, y) in (axis(), axis()),
            points in prop::collection::vec((number(), number(), number()), 0..40),
            (width, height) in (300u32..1200, 320u32..900),
        ) {
            let pairs = || points.iter().map(|(x, y, _)| (*x, *y));
            let mut plot = Plot::new(&title, x, y)
                .size(width, height)
                .band(points.clone())
                .histogram("h", points.clone())
                .bars("", points.iter().map(|(x, ..)| *x))
                .points("p", pairs())
                .marks(pairs())
                .guide(pairs());
            for name in &names {
                plot = plot.line(name, pairs());
            }
            for (x, ..) in points.iter().take(2) {
                plot = plot.vertical(*x, &title);
            }
            let wrong = misplaced(&plot);
            prop_assert!(wrong.is_empty(), "{}", wrong.join("\n"));
            let svg = plot.svg();
            let document = roxmltree::Document::parse(&svg).unwrap();
            for node in document.descendants() {
                for attribute in node.attributes().filter(|found| found.name() != "aria-label") {
                    let value = attribute.value();
                    prop_assert!(!value.contains("NaN") && !value.contains("inf"), "{:?}", node);
                }
            }
        }
    }

    #[test]
    fn thinning_keeps_what_is_seen() {
        let places: Vec<(f64, f64)> =
            (0..10_000).map(|i| (f64::from(i) * 0.01, f64::from(i * 7919 % 1000))).collect();
        let kept = thinned(places.clone());
        assert!(kept.len() <= 400, "{}", kept.len());
        for column in 0..100 {
            let extent = |places: &[(f64, f64)]| {
                let ys =
                    || places.iter().filter(|(x, _)| x.floor() == f64::from(column)).map(|p| p.1);
                (ys().fold(f64::INFINITY, f64::min), ys().fold(f64::NEG_INFINITY, f64::max))
            };
            assert_eq!(extent(&kept), extent(&places));
        }
        assert_eq!((kept.first(), kept.last()), (places.first(), places.last()));
        assert!(kept.is_sorted_by(|a, b| a.0 <= b.0));
    }

    #[test]
    fn thinning_keeps_gaps() {
        let nan = f64::NAN;
        let kept = thinned(vec![(0.1, 1.0), (0.2, nan), (0.3, 5.0), (0.4, 2.0), (0.5, 3.0)]);
        assert_eq!(kept.len(), 5);
        assert!(kept[1].1.is_nan());
        assert!(thinned(vec![]).is_empty());
    }

    #[test]
    fn touching_bins_share_an_outline() {
        let plot = Plot::new("", Axis::linear(""), Axis::linear(""))
            .histogram("", [(0.0, 1.0, 2.0), (1.0, 2.0, 3.0), (5.0, 6.0, 1.0)]);
        let svg = plot.svg();
        assert_eq!(svg.matches("class=\"s0 curve\"").count(), 2);
        assert_eq!(svg.matches("class=\"s0 area\"").count(), 2);
    }
}
