//! Fitting a picture into another size with black bars.

use super::{CHANNELS, Picture};

/// Slope parameter of the cubic kernel (Keys, "Cubic convolution interpolation for digital image
/// processing", 1981), with and without smoothing: the values of PyTorch.
const SLOPE: f32 = -0.75;
const SLOPE_SMOOTHED: f32 = -0.5;

/// Fits pictures into a size, keeping their proportions: both sides are multiplied by the smaller of
/// the two ratios, the fraction dropped; what remains is black, half on each side, an odd pixel at
/// the bottom or right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Letterbox {
    /// Pixels in a row of the result.
    pub width: usize,
    /// Rows of the result.
    pub height: usize,
    /// Widen the kernel where the picture becomes smaller, so that fine detail does not turn into
    /// coarse patterns. Without, it reads 4 x 4 pixels whatever the sizes, as MM-Diffusion was
    /// trained.
    pub smoothed: bool,
}

impl Letterbox {
    /// A letterbox without smoothing.
    pub fn new(width: usize, height: usize) -> Self {
        Self { width, height, smoothed: false }
    }

    /// The fitted picture.
    pub fn fit(&self, picture: &Picture) -> Picture {
        let (width, height) = self.inner_size(picture.width, picture.height);
        let scaled = resized(picture, width, height, self.smoothed);
        if (width, height) == (self.width, self.height) {
            return scaled;
        }
        let mut boxed = Picture::black(self.width, self.height);
        boxed.place(&scaled, (self.width - width) / 2, (self.height - height) / 2);
        boxed
    }

    /// Width and height that a picture has inside, at least one pixel.
    fn inner_size(&self, width: usize, height: usize) -> (usize, usize) {
        let ratio = (self.height as f64 / height as f64).min(self.width as f64 / width as f64);
        let scaled = |size: usize, most: usize| ((size as f64 * ratio) as usize).clamp(1, most);
        (scaled(width, self.width.max(1)), scaled(height, self.height.max(1)))
    }
}

/// Cubic interpolation to another size, pixels taken as squares whose outer edges coincide, those at
/// the edges repeated outwards; rounded to bytes.
fn resized(picture: &Picture, width: usize, height: usize, smoothed: bool) -> Picture {
    if (width, height) == (picture.width, picture.height) {
        return picture.clone();
    }
    let source: Vec<f32> = picture.pixels.iter().map(|&byte| f32::from(byte)).collect();
    // Rows first: [H, W, 3] -> [height, W, 3] -> [height, width, 3].
    let rows = along(&source, 1, picture.height, height, picture.width * CHANNELS, smoothed);
    let both = along(&rows, height, picture.width, width, CHANNELS, smoothed);
    // The conversion to bytes saturates.
    let pixels = both.iter().map(|value| value.round_ties_even() as u8).collect();
    Picture { width, height, pixels }
}

/// Interpolates the middle axis of `[outer, from, inner]` to the size `to`.
fn along(
    source: &[f32],
    outer: usize,
    from: usize,
    to: usize,
    inner: usize,
    smoothed: bool,
) -> Vec<f32> {
    let weights: Vec<_> = (0..to).map(|place| taps(place, from, to, smoothed)).collect();
    let mut result = vec![0.0; outer * to * inner];
    let blocks = result.chunks_exact_mut((to * inner).max(1));
    for (block, source) in blocks.zip(source.chunks_exact((from * inner).max(1))) {
        for (line, taps) in block.chunks_exact_mut(inner).zip(&weights) {
            for (index, weight) in taps {
                let read = source.iter().skip(index * inner);
                line.iter_mut().zip(read).for_each(|(sum, value)| *sum += weight * value);
            }
        }
    }
    result
}

/// Which of `from` pixels make up pixel `place` of `to`, and with what weight.
fn taps(place: usize, from: usize, to: usize, smoothed: bool) -> Vec<(usize, f32)> {
    let scale = from as f32 / to as f32;
    let centre = scale * (place as f32 + 0.5) - 0.5;
    let (widened, slope) = if smoothed { (scale.max(1.0), SLOPE_SMOOTHED) } else { (1.0, SLOPE) };
    let reach = 2.0 * widened;
    let (first, last) = ((centre - reach).ceil() as i64, (centre + reach).floor() as i64);
    let inside = |index: i64| index.clamp(0, from as i64 - 1) as usize;
    let taps = (first..=last).map(|index| (index, cubic((index as f32 - centre) / widened, slope)));
    if !smoothed {
        return taps.map(|(index, weight)| (inside(index), weight)).collect();
    }
    // With smoothing, weights outside the picture go to those inside in proportion.
    let taps: Vec<_> = taps.filter(|(index, _)| (0..from as i64).contains(index)).collect();
    let sum: f32 = taps.iter().map(|(_, weight)| weight).sum();
    taps.into_iter().map(|(index, weight)| (inside(index), weight / sum)).collect()
}

/// The cubic convolution kernel.
fn cubic(distance: f32, slope: f32) -> f32 {
    let x = distance.abs();
    if x <= 1.0 {
        ((slope + 2.0) * x - (slope + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((x - 5.0) * x + 8.0) * x * slope - 4.0 * slope
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_definition() {
        for (from, to, inner) in [
            ((426, 240), (64, 64), (64, 36)),
            ((240, 426), (64, 64), (36, 64)),
            ((300, 240), (64, 64), (64, 51)),
            ((64, 64), (64, 64), (64, 64)),
            ((31, 17), (64, 64), (64, 35)),
            ((10_000, 1), (64, 64), (64, 1)),
        ] {
            let letterbox = Letterbox::new(to.0, to.1);
            assert_eq!(letterbox.inner_size(from.0, from.1), inner, "{from:?}");
        }
    }

    #[test]
    fn the_odd_pixel_is_at_the_bottom_and_right() {
        let white = |width, height| Picture::new(width, height, vec![255; 3 * width * height]);
        let rows = Letterbox::new(4, 5).fit(&white(2, 1).unwrap());
        let lit = |pixels: &[u8]| pixels.iter().step_by(3).map(|red| *red > 0).collect::<Vec<_>>();
        // 2 x 1 becomes 4 x 2, with one row above and two below.
        let row = |is_lit| [is_lit; 4];
        assert_eq!(
            lit(rows.pixels()),
            [row(false), row(true), row(true), row(false), row(false)].concat()
        );
        let columns = Letterbox::new(5, 4).fit(&white(1, 2).unwrap());
        assert_eq!(lit(columns.pixels()), [false, true, true, false, false].repeat(4));
    }

    /// Width, height, smoothing and what PyTorch makes of the picture in the test below.
    const CASES: [(usize, usize, bool, &[u8]); 8] = [
        (2, 2, false, &[187, 143, 237, 79]),
        (2, 2, true, &[115, 115, 172, 64]),
        (
            7,
            4,
            false,
            &[
                0, 178, 218, 14, 164, 184, 83, 0, 88, 203, 198, 96, 53, 78, 100, 140, 187, 184, 67,
                15, 38, 255, 255, 181, 0, 98, 97, 0,
            ],
        ),
        (
            7,
            4,
            true,
            &[
                0, 162, 216, 19, 165, 171, 85, 0, 94, 194, 185, 96, 63, 75, 103, 145, 183, 172, 69,
                28, 38, 255, 255, 190, 0, 100, 87, 0,
            ],
        ),
        (3, 3, false, &[93, 30, 134, 50, 250, 28, 255, 0, 52]),
        (5, 1, true, &[84, 210, 107, 101, 53]),
        (4, 2, false, &[21, 197, 127, 93, 206, 168, 80, 26]),
        (4, 2, true, &[42, 180, 119, 90, 185, 168, 79, 33]),
    ];

    #[test]
    fn resizing_agrees_with_pytorch() {
        // torch.nn.functional.interpolate(x, size, mode="bicubic", align_corners=False, antialias),
        // rounded and clamped, of the 3 x 5 picture below.
        let source = [0, 255, 30, 200, 90, 17, 140, 250, 3, 60, 255, 255, 0, 128, 7];
        let picture = Picture::new(5, 3, source.iter().flat_map(|&v| [v; 3]).collect()).unwrap();
        for (width, height, smoothed, expected) in CASES {
            let pixels = resized(&picture, width, height, smoothed).pixels;
            let reds: Vec<u8> = pixels.into_iter().step_by(3).collect();
            assert_eq!(reds, expected, "{width} x {height}, smoothed: {smoothed}");
        }
    }
}
