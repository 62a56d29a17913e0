//! Numbers that say what a clip looks like, without any learned network.

use shared::Result;
use shared::media::image::{Frames, Letterbox, Picture};

use super::motion::lightness;

/// How often the picture is halved, and looked at each time.
const SCALES: usize = 3;
/// Directions of edges, over half a turn.
const DIRECTIONS: usize = 8;
/// Differences of successive frames, of full scale, at which the bins of the motion histogram begin.
const MOTION_EDGES: [f32; 5] = [0.02, 0.05, 0.1, 0.2, 0.4];
/// Width and height of thumbnails in pixels.
pub const THUMBNAIL_PIXELS: usize = 8;

/// What a picture was measured to be.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureEmbedding {
    /// 48 numbers. At full, half and quarter size each: of edges in 8 directions the root of their mean
    /// strength; of 5 bins of the absolute difference of successive frames the root of the share of
    /// pixels; and the standard deviation over time of the mean difference. Then the mean and the
    /// standard deviation of red, green and blue. Lightness and colours are from 0 to 1.
    pub statistics: Vec<f32>,
    /// All frames at 8 x 8 pixels, `[F, 8, 8, 3]` from 0 to 1.
    pub thumbnails: Vec<f32>,
}

impl PictureEmbedding {
    /// What the embedding is, in words.
    pub const DEFINITION: &'static str = "gradient and motion histograms: at full, half and quarter \
        size the edges in 8 directions, the differences of successive frames in 5 bins and their \
        deviation over time; mean and deviation of the colours";

    /// The embedding of `frames`.
    ///
    /// # Errors
    /// None for frames of at least 16 pixels each way.
    pub fn of(frames: &Frames) -> Result<Self> {
        let mut statistics = vec![];
        let mut planes: Vec<Plane> = lightness(frames)
            .into_iter()
            .map(|values| Plane { width: frames.width(), values })
            .collect();
        for _ in 0..SCALES {
            statistics.extend(edges(&planes));
            statistics.extend(motion(&planes));
            planes = planes.iter().map(Plane::halved).collect();
        }
        statistics.extend(colours(frames));
        Ok(Self { statistics, thumbnails: thumbnails(frames)? })
    }
}

/// One frame's lightness, row by row.
struct Plane {
    width: usize,
    values: Vec<f32>,
}

impl Plane {
    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.width.max(1))
    }

    /// Means of 2 x 2 pixels; an odd row or column at the end is left out.
    fn halved(&self) -> Self {
        let rows: Vec<&[f32]> = self.rows().collect();
        let mean = |(above, below): (&[f32], &[f32])| {
            0.25 * (above.iter().sum::<f32>() + below.iter().sum::<f32>())
        };
        let halved = rows.chunks_exact(2).flat_map(|pair| match pair {
            [a, b] => a.chunks_exact(2).zip(b.chunks_exact(2)).map(mean).collect(),
            _ => vec![],
        });
        Self { width: self.width / 2, values: halved.collect() }
    }
}

/// Root of the mean strength of the edges in each direction.
fn edges(planes: &[Plane]) -> [f32; DIRECTIONS] {
    let (mut strengths, mut pixels) = ([0f64; DIRECTIONS], 0u64);
    for plane in planes {
        let rows: Vec<&[f32]> = plane.rows().collect();
        for window in rows.windows(3) {
            let [above, here, below] = window else { continue };
            let vertical = below.iter().zip(above.iter()).skip(1).map(|(b, a)| b - a);
            let horizontal = here.iter().skip(2).zip(here.iter()).map(|(b, a)| b - a);
            for (x, y) in horizontal.zip(vertical) {
                let half_turns = y.atan2(x) / std::f32::consts::PI;
                // An edge has no front: directions half a turn apart are one.
                let share = half_turns.rem_euclid(1.0) * DIRECTIONS as f32;
                let direction = (share.round() as usize) % DIRECTIONS;
                if let Some(strength) = strengths.get_mut(direction) {
                    *strength += f64::from(0.5 * x.hypot(y));
                }
                pixels += 1;
            }
        }
    }
    strengths.map(|strength| (strength / pixels.max(1) as f64).sqrt() as f32)
}

/// Roots of the shares of pixels that change so much, and the deviation over time of the mean change.
fn motion(planes: &[Plane]) -> [f32; MOTION_EDGES.len() + 1] {
    let (mut counts, mut pixels) = ([0u64; MOTION_EDGES.len()], 0u64);
    let mut means = vec![];
    for (before, after) in planes.iter().zip(planes.iter().skip(1)) {
        let mut sum = 0.0;
        for (a, b) in before.values.iter().zip(&after.values) {
            let change = (a - b).abs();
            sum += f64::from(change);
            let bin = MOTION_EDGES.iter().rposition(|edge| change >= *edge);
            if let Some(count) = bin.and_then(|bin| counts.get_mut(bin)) {
                *count += 1;
            }
        }
        pixels += after.values.len() as u64;
        means.push(sum / after.values.len().max(1) as f64);
    }
    let share = |count: u64| (count as f64 / pixels.max(1) as f64).sqrt() as f32;
    let mut result = [0.0; MOTION_EDGES.len() + 1];
    let (_, deviation) = moments(means.iter().copied());
    for (place, value) in result.iter_mut().zip(counts.map(share).into_iter().chain([deviation])) {
        *place = value;
    }
    result
}

/// Means and standard deviations of red, green and blue over all pixels.
fn colours(frames: &Frames) -> [f32; 6] {
    let of = |colour: usize| {
        let bytes = frames.pixels().iter().skip(colour).step_by(3);
        moments(bytes.map(|byte| f64::from(*byte) / 255.0))
    };
    let [(r, r_deviation), (g, g_deviation), (b, b_deviation)] = [of(0), of(1), of(2)];
    [r, g, b, r_deviation, g_deviation, b_deviation]
}

/// Mean and standard deviation; 0 of nothing.
fn moments(values: impl Iterator<Item = f64> + Clone) -> (f32, f32) {
    let count = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / count;
    let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    (mean as f32, variance.sqrt() as f32)
}

fn thumbnails(frames: &Frames) -> Result<Vec<f32>> {
    let letterbox = Letterbox { width: THUMBNAIL_PIXELS, height: THUMBNAIL_PIXELS, smoothed: true };
    let mut thumbnails = vec![];
    for frame in frames.iter() {
        let picture = Picture::new(frames.width(), frames.height(), frame.to_vec())?;
        let small = letterbox.fit(&picture);
        thumbnails.extend(small.pixels().iter().map(|byte| f32::from(*byte) / 255.0));
    }
    Ok(thumbnails)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of 32 x 32 pixels, grey as `value` of frame, row and column says.
    fn grey(count: usize, value: impl Fn(usize, usize, usize) -> u8) -> Frames {
        let place = |index: usize| (index / 1024, index / 32 % 32, index % 32);
        let pixels = (0..count * 1024).flat_map(|index| {
            let (frame, row, column) = place(index);
            [value(frame, row, column); 3]
        });
        Frames::new(32, 32, pixels.collect()).unwrap()
    }

    fn statistics(frames: &Frames) -> Vec<f32> {
        let embedding = PictureEmbedding::of(frames).unwrap();
        assert_eq!(embedding.statistics.len(), 48);
        assert_eq!(embedding.thumbnails.len(), frames.count() * 8 * 8 * 3);
        embedding.statistics
    }

    #[test]
    fn edges_have_their_direction() {
        // Brighter to the right, brighter downwards, and along the diagonal.
        let right = statistics(&grey(4, |_, _, column| 8 * column as u8));
        let down = statistics(&grey(4, |_, row, _| 255 - 8 * row as u8));
        let diagonal = statistics(&grey(4, |_, row, column| 4 * (row + column) as u8));
        for (found, direction) in [(right, 0), (down, 4), (diagonal, 2)] {
            for (index, strength) in found[..8].iter().enumerate() {
                assert_eq!(*strength > 0.1, index == direction, "{direction}: {found:?}");
            }
        }
        // 8 of 255 a pixel; at half size, twice that.
        let strength = statistics(&grey(4, |_, _, column| 8 * column as u8));
        assert!((strength[0] - (8f32 / 255.0).sqrt()).abs() < 1e-3);
        assert!((strength[14] - (16f32 / 255.0).sqrt()).abs() < 1e-3);
    }

    #[test]
    fn motion_is_what_changes_between_frames() {
        let still = statistics(&grey(5, |_, row, column| (row * column % 200) as u8));
        assert!(still[8..14].iter().all(|value| *value == 0.0));
        // Every pixel changes by 30 of 255, then by none, and so on.
        let flicker = statistics(&grey(5, |frame, _, _| if frame / 2 % 2 == 0 { 50 } else { 80 }));
        let expected = [0.0, 0.0, 0.5f32.sqrt(), 0.0, 0.0, 30.0 / 255.0 / 2.0];
        for (found, expected) in flicker[8..14].iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{flicker:?}");
        }
        // Mean 62 and deviation sqrt(0.24) * 30 of 255 of each colour.
        for colour in 0..3 {
            assert!((flicker[42 + colour] - 62.0 / 255.0).abs() < 1e-4);
            assert!((flicker[45 + colour] - 0.24f32.sqrt() * 30.0 / 255.0).abs() < 1e-4);
        }
    }
}
