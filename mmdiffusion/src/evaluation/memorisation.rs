//! How near clips are to those that a network was trained on.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use super::extraction::ClipFeatures;
use super::picture_embedding::THUMBNAIL_PIXELS;

/// Decibels of a bel.
const DB_A_BEL: f64 = 10.0;
/// Squares that are summed side by side, so that the processor can.
const LANES: usize = 16;

/// The training clip nearest to a clip.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Nearest {
    /// The clip.
    pub clip: PathBuf,
    /// The training clip.
    pub training: PathBuf,
    /// Their distance.
    pub distance: f64,
}

/// For each clip the training clip whose picture is nearest, other than the very same file: by the root
/// mean square difference of all frames at 8 x 8 pixels, colours from 0 to 1, of the nearer of the
/// other and its mirror image, since networks are trained on both. Empty when there is no other file.
pub fn nearest_pictures(clips: &[ClipFeatures], training: &[ClipFeatures]) -> Vec<Nearest> {
    let mirrored: Vec<Vec<f32>> = training.iter().map(|clip| mirrored(&clip.thumbnails)).collect();
    let straight = training.iter().map(|clip| (clip.path.as_path(), clip.thumbnails.as_slice()));
    let turned =
        training.iter().zip(&mirrored).map(|(clip, it)| (clip.path.as_path(), it.as_slice()));
    nearest(clips, &straight.chain(turned).collect::<Vec<_>>(), |clip| &clip.thumbnails, 1.0)
}

/// For each clip the training clip whose sound is nearest, other than the very same file: by the root
/// mean square difference of the levels in 32 mel bands every 40 ms, in dB. Empty when there is no
/// other file.
pub fn nearest_sounds(clips: &[ClipFeatures], training: &[ClipFeatures]) -> Vec<Nearest> {
    let training: Vec<(&Path, &[f32])> =
        training.iter().map(|clip| (clip.path.as_path(), clip.levels.as_slice())).collect();
    nearest(clips, &training, |clip| &clip.levels, DB_A_BEL)
}

fn nearest(
    clips: &[ClipFeatures],
    training: &[(&Path, &[f32])],
    numbers: impl Fn(&ClipFeatures) -> &[f32] + Sync,
    unit: f64,
) -> Vec<Nearest> {
    let of = |clip: &ClipFeatures| {
        let others = training.iter().filter(|(path, _)| *path != clip.path);
        let distances = others.map(|(path, other)| (path, difference(numbers(clip), other)));
        let (training, distance) = distances.min_by(|(_, a), (_, b)| a.total_cmp(b))?;
        let distance = unit * distance;
        Some(Nearest { clip: clip.path.clone(), training: training.to_path_buf(), distance })
    };
    clips.par_iter().filter_map(of).collect()
}

/// Root mean square difference.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0f32; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += (a - b) * (a - b);
        }
    }
    let sum: f64 = sums.iter().map(|sum| f64::from(*sum)).sum();
    (sum / a.len().max(1) as f64).sqrt()
}

/// Thumbnails with left and right exchanged.
fn mirrored(thumbnails: &[f32]) -> Vec<f32> {
    let rows = thumbnails.chunks_exact(3 * THUMBNAIL_PIXELS);
    rows.flat_map(|row| row.chunks_exact(3).rev().flatten().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip(name: &str, pixel: f32, level: f32) -> ClipFeatures {
        let mut thumbnails = vec![0.0; 2 * THUMBNAIL_PIXELS * THUMBNAIL_PIXELS * 3];
        // The left half is lit.
        for (index, colour) in thumbnails.chunks_exact_mut(3).enumerate() {
            if index % THUMBNAIL_PIXELS < THUMBNAIL_PIXELS / 2 {
                colour.fill(pixel);
            }
        }
        ClipFeatures {
            path: name.into(),
            levels: vec![level; 70],
            thumbnails,
            ..ClipFeatures::default()
        }
    }

    #[test]
    fn distances_are_in_units_that_people_know() {
        let (a, b) = ([clip("a", 0.2, 0.0)], [clip("b", 0.6, 1.0)]);
        assert!((nearest_sounds(&a, &b)[0].distance - 10.0).abs() < 1e-5);
        assert!((nearest_pictures(&a, &b)[0].distance - 0.4 * 0.5f64.sqrt()).abs() < 1e-6);
        let mut turned = clip("c", 0.2, 0.0);
        turned.thumbnails = mirrored(&turned.thumbnails);
        assert_ne!(turned.thumbnails, a[0].thumbnails);
        assert_eq!(nearest_pictures(&a, &[turned.clone()])[0].distance, 0.0);
        assert_eq!(nearest_pictures(&[turned], &a)[0].distance, 0.0);
    }

    #[test]
    fn the_nearest_is_another_file() {
        let training = [clip("a", 0.0, 0.0), clip("b", 0.5, 2.0), clip("c", 1.0, 5.0)];
        let clips = [clip("x", 0.9, 0.0), clip("b", 0.5, 2.0)];
        let found = nearest_sounds(&clips, &training);
        let names: Vec<&str> = found.iter().map(|it| it.training.to_str().unwrap()).collect();
        assert_eq!(names, ["a", "a"]);
        assert_eq!(nearest_pictures(&clips, &training)[0].training, PathBuf::from("c"));
        assert!(nearest_pictures(&clips, &[]).is_empty());
        assert!(nearest_pictures(&training[..1], &training[..1]).is_empty());
    }
}
