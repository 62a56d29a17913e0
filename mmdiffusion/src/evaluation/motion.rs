//! When something moves, and when it changes its course.

use shared::media::image::Frames;

/// Difference from the background, of 255, at which a pixel belongs to what moves.
const MOVING: u8 = 24;
/// Bends below this share of the frame's side, and below this many times the clip's median, are none:
/// gravity bends every path a little.
const LEAST_BEND: f64 = 0.03;
const LEAST_BEND_OF_MEDIAN: f64 = 1.5;

/// Lightness of each frame's pixels, from 0 to 1 (Rec. 601).
pub fn lightness(frames: &Frames) -> Vec<Vec<f32>> {
    let light = |pixel: &[u8]| match *pixel {
        [red, green, blue] => {
            (0.299 * f32::from(red) + 0.587 * f32::from(green) + 0.114 * f32::from(blue)) / 255.0
        }
        _ => 0.0,
    };
    frames.iter().map(|frame| frame.chunks_exact(3).map(light).collect()).collect()
}

/// Times in seconds at which the motion energy, the mean absolute difference of the lightness of
/// frames i - 1 and i, has a local maximum: `i / fps`, between the two frames.
pub fn motion_peaks_s(frames: &Frames, fps: u32) -> Vec<f64> {
    let light = lightness(frames);
    let energies: Vec<f64> = light
        .windows(2)
        .map(|pair| match pair {
            [a, b] => a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).sum(),
            _ => 0.0,
        })
        .collect();
    // The first energy stands for frame 0, too, which has none.
    let energies: Vec<f64> = energies.first().copied().into_iter().chain(energies).collect();
    local_maxima(&energies).into_iter().map(|index| index as f64 / f64::from(fps.max(1))).collect()
}

/// Places that are above both of their neighbours.
fn local_maxima(values: &[f64]) -> Vec<usize> {
    let is_peak = |window: &[f64]| matches!(window, [a, b, c] if a < b && b > c);
    let peaks = values.windows(3).enumerate().filter(|(_, window)| is_peak(window));
    peaks.map(|(index, _)| index + 1).collect()
}

/// Times in seconds at which what moves changes its course, as where a ball hits something.
///
/// What moves are the pixels that differ from the median of all frames by more than 24 of 255 in a
/// colour; its path is that of their mean place. A bend is a local maximum of the path's second
/// difference `|p(i+1) - 2 p(i) + p(i-1)|` that is above 0.03 sides of the frame and 1.5 times its median
/// in the clip; its time is the middle of the time for which frame i stands.
pub fn bends_s(frames: &Frames, fps: u32) -> Vec<f64> {
    let path = path(frames);
    let bend = |window: &[Option<[f64; 2]>]| match window {
        [Some(a), Some(b), Some(c)] => {
            let [x, y] = [0, 1].map(|axis| {
                let at = |point: &[f64; 2]| point.get(axis).copied().unwrap_or_default();
                at(c) - 2.0 * at(b) + at(a)
            });
            x.hypot(y)
        }
        _ => 0.0,
    };
    let bends: Vec<f64> = path.windows(3).map(bend).collect();
    let mut sorted = bends.clone();
    sorted.sort_unstable_by(f64::total_cmp);
    let median = shared::measure::median(&sorted);
    let least = LEAST_BEND.max(LEAST_BEND_OF_MEDIAN * median);
    // Before and after the clip nothing bends.
    let extended = [&[0.0], &bends[..], &[0.0]].concat();
    let peaks = extended.windows(3).enumerate().filter(|(_, window)| {
        matches!(window, [before, here, after] if *here > least && here >= before && here > after)
    });
    // Bend i is that of frame i + 1.
    peaks.map(|(index, _)| (index as f64 + 1.5) / f64::from(fps.max(1))).collect()
}

/// The mean place of what moves in each frame, in sides of the frame; `None` where nothing is seen.
fn path(frames: &Frames) -> Vec<Option<[f64; 2]>> {
    let background = background(frames);
    let side = frames.width().max(frames.height()) as f64;
    let place = |frame: &[u8]| {
        let (mut count, mut x, mut y) = (0usize, 0.0, 0.0);
        let pixels = frame.chunks_exact(3).zip(background.chunks_exact(3));
        for (index, (pixel, behind)) in pixels.enumerate() {
            if pixel.iter().zip(behind).any(|(a, b)| a.abs_diff(*b) > MOVING) {
                count += 1;
                x += (index % frames.width()) as f64;
                y += (index / frames.width()) as f64;
            }
        }
        (count > 0).then(|| [x, y].map(|sum| sum / count as f64 / side))
    };
    frames.iter().map(place).collect()
}

/// The median of each byte over all frames.
fn background(frames: &Frames) -> Vec<u8> {
    let bytes = frames.pixels().len() / frames.count();
    let mut values = vec![0; frames.count()];
    let median = |place: usize| {
        let found = frames.pixels().iter().skip(place).step_by(bytes);
        values.iter_mut().zip(found).for_each(|(value, found)| *value = *found);
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    (0..bytes).map(median).collect()
}

#[cfg(test)]
mod tests {
    use super::super::clips::tests::made;
    use super::*;

    /// A white square of 4 x 4 pixels at these places before black.
    fn square(places: &[[usize; 2]]) -> Frames {
        let mut pixels = vec![0; places.len() * 32 * 32 * 3];
        for (frame, [x, y]) in pixels.chunks_exact_mut(32 * 32 * 3).zip(places) {
            for (row, column) in (0..4).flat_map(|row| (0..4).map(move |column| (row, column))) {
                let start = 3 * ((y + row) * 32 + x + column);
                frame[start..start + 3].fill(255);
            }
        }
        Frames::new(32, 32, pixels).unwrap()
    }

    #[test]
    fn a_path_bends_where_the_course_changes() {
        let down_and_up = [2, 6, 10, 14, 18, 22, 18, 14, 10, 6].map(|y| [10, y]);
        assert_eq!(bends_s(&square(&down_and_up), 10), [0.55]);
        let straight = [2, 5, 8, 11, 14, 17, 20].map(|y| [y, y]);
        assert!(bends_s(&square(&straight), 10).is_empty());
        assert!(bends_s(&square(&[[3, 3]; 5]), 10).is_empty());
        assert!(bends_s(&square(&[[3, 3]; 2]), 10).is_empty());
    }

    #[test]
    fn motion_peaks_where_most_pixels_change() {
        let places = [0, 0, 1, 1, 5, 5, 6, 6, 6].map(|x| [x, 3]);
        // Differences, the first twice: 0 0 1 0 4 0 1 0 0 columns.
        let peaks = motion_peaks_s(&square(&places), 10);
        assert_eq!(peaks, [0.2, 0.4, 0.6]);
        assert!(motion_peaks_s(&square(&[[0, 0]; 1]), 10).is_empty());
    }

    #[test]
    fn bends_of_made_clips_are_near_impacts() {
        let (mut near, mut all) = (0, 0);
        for number in 0..40 {
            let (clip, impacts) = made(number);
            for bend in bends_s(&clip.frames, 10) {
                all += 1;
                let is_near = impacts.iter().any(|impact| (impact.time_s - bend).abs() <= 0.1);
                near += usize::from(is_near);
            }
        }
        assert!(all > 60 && near * 10 > all * 8, "{near} of {all}");
    }
}
