//! Generated clips compared with real ones, and all figures that follow.

use serde::Serialize;
use shared::eval::{
    Bootstrap, Features, Interval, KernelDistance, frechet_distance, multiplicities,
};
use shared::measure::median;
use shared::rng::Stream;
use shared::{Error, Result};

use super::alignment::{Counts, TOLERANCE_S};
use super::clips::EvaluationForm;
use super::extraction::ClipFeatures;
use super::extractors::{I3d, Vggish};
use super::memorisation::{Nearest, nearest_pictures, nearest_sounds};
use super::picture_embedding::PictureEmbedding;
use super::sound_embedding::SoundEmbedder;
use super::synchrony::{Seen, Sound, Synchrony};

/// Share of real clips that are nearer to training clips than what counts as near.
const NEAR: f64 = 0.05;

/// A number of an evaluation.
#[derive(Clone, Debug, Serialize)]
pub struct Metric {
    /// What is measured.
    pub name: String,
    /// Of which clips, with which sound.
    pub of: String,
    /// The number.
    pub value: f64,
    /// Its bootstrap interval; `None` where clips are too few.
    pub interval: Option<Interval>,
    /// How it is computed, from how many clips.
    pub definition: String,
}

/// What is compared.
#[derive(Clone, Copy, Debug)]
pub struct Comparison<'a> {
    /// Real clips.
    pub real: Seen<'a>,
    /// Generated clips.
    pub fake: Seen<'a>,
    /// Clips that the network was trained on.
    pub training: Option<&'a [ClipFeatures]>,
}

/// How it is compared.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The form of the clips.
    pub form: EvaluationForm,
    /// How intervals are found. Its seed is also that of shuffled sounds and noise.
    pub resampling: Bootstrap,
}

/// Everything that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// The form of the clips.
    pub form: EvaluationForm,
    /// Real clips.
    pub real: usize,
    /// Generated clips.
    pub fake: usize,
    /// Training clips.
    pub training: Option<usize>,
    /// Times that sets were drawn anew for each interval.
    pub resamples: usize,
    /// All numbers.
    pub metrics: Vec<Metric>,
    /// Of the real and the generated clips, the seconds from each impact seen to the nearest sound.
    #[serde(skip)]
    pub delays_s: [Vec<f64>; 2],
    /// Of the real and the generated clips, the nearest training clips by picture and by sound.
    pub nearest: Option<NearestTraining>,
}

/// Nearest training clips.
#[derive(Clone, Debug, Serialize)]
pub struct NearestTraining {
    /// Of the real clips, by picture.
    pub real_pictures: Vec<Nearest>,
    /// Of the generated clips, by picture.
    pub fake_pictures: Vec<Nearest>,
    /// Of the real clips, by sound.
    pub real_sounds: Vec<Nearest>,
    /// Of the generated clips, by sound.
    pub fake_sounds: Vec<Nearest>,
}

/// Numbers that stand for a clip.
type Embedding = fn(&ClipFeatures) -> &Vec<f32>;

/// Compares clips.
///
/// # Errors
/// [`Error::Argument`] for fewer than two clips of a kind or settings that make no sense;
/// [`Error::NonFinite`] when measurements overflow.
pub fn evaluate(comparison: &Comparison, settings: &Settings) -> Result<Evaluation> {
    let mut metrics = vec![];
    let embeddings: [(&str, &str, Embedding); 4] = [
        ("sound", SoundEmbedder::DEFINITION, |clip| &clip.sound),
        ("picture", PictureEmbedding::DEFINITION, |clip| &clip.picture),
        ("I3D logits (FVD, KVD)", I3d::DEFINITION, |clip| &clip.i3d),
        ("VGGish features (FAD)", Vggish::DEFINITION, |clip| &clip.vggish),
    ];
    // Networks that were not used have no numbers.
    let is_used =
        |embedding: Embedding| comparison.real.clips.iter().all(|clip| !embedding(clip).is_empty());
    let embeddings = embeddings.into_iter().filter(|(.., embedding)| is_used(*embedding));
    for (what, definition, embedding) in embeddings {
        let of = |seen: &Seen| {
            let rows: Vec<&Vec<f32>> = seen.clips.iter().map(embedding).collect();
            Features::new(what, &rows)
        };
        let sets = [of(&comparison.real)?, of(&comparison.fake)?];
        let [real, _] = &sets;
        let extractor = format!("{} numbers a clip, {definition}", real.dimensions());
        metrics.extend(distances(what, &extractor, &sets, settings)?);
        metrics.extend(diversity(what, &extractor, &sets, settings)?);
    }
    for (set, seen) in [("real", &comparison.real), ("fake", &comparison.fake)] {
        metrics.extend(synchrony(set, seen, settings)?);
    }
    // Rows of one measure stand together, in the order in which measures came.
    let names: Vec<String> = metrics.iter().map(|metric: &Metric| metric.name.clone()).collect();
    metrics.sort_by_key(|metric| names.iter().position(|name| *name == metric.name));
    let nearest = comparison.training.map(|training| NearestTraining {
        real_pictures: nearest_pictures(comparison.real.clips, training),
        fake_pictures: nearest_pictures(comparison.fake.clips, training),
        real_sounds: nearest_sounds(comparison.real.clips, training),
        fake_sounds: nearest_sounds(comparison.fake.clips, training),
    });
    if let Some(nearest) = &nearest {
        metrics.extend(memorisation(nearest, settings)?);
    }
    Ok(Evaluation {
        form: settings.form,
        real: comparison.real.clips.len(),
        fake: comparison.fake.clips.len(),
        training: comparison.training.map(<[ClipFeatures]>::len),
        resamples: settings.resampling.resamples,
        metrics,
        delays_s: [delays_s(&comparison.real), delays_s(&comparison.fake)],
        nearest,
    })
}

/// What values a measure can have.
#[derive(Clone, Copy)]
enum Domain {
    Any,
    NotNegative,
    Share,
}

/// The interval of `value`, as far as it is in the measure's domain; `None` where no resampled value can
/// be computed.
fn interval<const N: usize>(
    settings: &Settings,
    domain: Domain,
    counts: [usize; N],
    value: f64,
    statistic: impl Fn([&[usize]; N]) -> Result<f64> + Sync,
) -> Result<Option<Interval>> {
    let (least, most) = match domain {
        Domain::Any => (f64::NEG_INFINITY, f64::INFINITY),
        Domain::NotNegative => (0.0, f64::INFINITY),
        Domain::Share => (0.0, 1.0),
    };
    match settings.resampling.interval_of_sets(counts, value, statistic) {
        Ok(Interval { low, high }) => {
            Ok(Some(Interval { low: low.max(least), high: high.min(most) }))
        }
        Err(Error::NonFinite { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Fréchet and kernel distance of generated from real clips, and for scale those of one half of the
/// real clips from the other.
fn distances(
    what: &str,
    extractor: &str,
    sets: &[Features; 2],
    settings: &Settings,
) -> Result<Vec<Metric>> {
    let form = settings.form.text();
    let [real, fake] = sets;
    let halves = halves(real, settings.resampling.seed);
    let halves = halves.as_ref().map(|[a, b]| ("half of real from half", "real", [a, b]));
    let mut metrics = vec![];
    for (of, kind, [a, b]) in
        [("fake from real", "generated", [real, fake])].into_iter().chain(halves)
    {
        let clips = format!("{} real and {} {kind} clips", a.count(), b.count());
        let sizes = [a.count(), b.count()];
        let value = frechet_distance(a, b)?;
        let drawn = |[x, y]: [&[usize]; 2]| frechet_distance(&a.selected(x), &b.selected(y));
        metrics.push(Metric {
            name: format!("Fréchet distance of {what}"),
            of: of.to_owned(),
            value,
            interval: interval(settings, Domain::NotNegative, sizes, value, drawn)?,
            definition: format!(
                "squared Fréchet distance between normal distributions with the sets' means and \
                 covariances (over n - 1), in f64, scale factor 1; {extractor}; {form}; {clips}. \
                 Fewer clips give larger distances: compare equal numbers only"
            ),
        });
        let kernels = KernelDistance::new(a, b)?;
        let value = kernels.value();
        let drawn = |[x, y]: [&[usize]; 2]| {
            Ok(kernels.weighted([&multiplicities(x, a.count()), &multiplicities(y, b.count())]))
        };
        metrics.push(Metric {
            name: format!("kernel distance of {what}"),
            of: of.to_owned(),
            value,
            interval: interval(settings, Domain::Any, sizes, value, drawn)?,
            definition: format!(
                "unbiased squared maximum mean discrepancy with the kernel (x.y / {} + 1)^3, of all \
                 clips at once, scale factor 1; {extractor}; {form}; {clips}",
                a.dimensions()
            ),
        });
    }
    Ok(metrics)
}

/// Two random halves of a set; `None` of fewer than four items.
fn halves(set: &Features, seed: u64) -> Option<[Features; 2]> {
    let mut places: Vec<usize> = (0..set.count()).collect();
    Stream::new(seed, "halves of the real clips", 0).shuffle(&mut places);
    let (first, second) = places.split_at(places.len() / 2);
    (first.len() > 1).then(|| [set.selected(first), set.selected(second)])
}

/// Mean distance of two clips of each set.
fn diversity(
    what: &str,
    extractor: &str,
    sets: &[Features; 2],
    settings: &Settings,
) -> Result<Vec<Metric>> {
    let mut metrics = vec![];
    for (of, set) in ["real", "fake"].into_iter().zip(sets) {
        let count = set.count();
        let distance = |a: &[f64], b: &[f64]| {
            a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
        };
        let distances: Vec<Vec<f64>> =
            set.rows().map(|a| set.rows().map(|b| distance(a, b)).collect()).collect();
        let mean = |weights: &[f64]| {
            let (mut sum, mut pairs) = (0.0, 0.0);
            for (i, (row, a)) in distances.iter().zip(weights).enumerate() {
                for (j, (distance, b)) in row.iter().zip(weights).enumerate() {
                    // A clip drawn twice is no pair of clips.
                    let weight = if i == j { 0.0 } else { a * b };
                    sum += weight * distance;
                    pairs += weight;
                }
            }
            sum / pairs
        };
        let value = mean(&vec![1.0; count]);
        let drawn = |[places]: [&[usize]; 1]| Ok(mean(&multiplicities(places, count)));
        metrics.push(Metric {
            name: format!("diversity of {what}"),
            of: of.to_owned(),
            value,
            interval: interval(settings, Domain::NotNegative, [count], value, drawn)?,
            definition: format!(
                "mean Euclidean distance of two different clips of the set; {extractor}; {}; {count} \
                 clips",
                settings.form.text()
            ),
        });
    }
    Ok(metrics)
}

/// How well sound and picture of a set go together.
fn synchrony(set: &str, seen: &Seen, settings: &Settings) -> Result<Vec<Metric>> {
    let (form, count) = (&settings.form, seen.clips.len());
    let text = form.text();
    let window_s = 1.0 / f64::from(form.fps.max(1));
    let onsets = "onsets: peaks of the energy flux in 128 mel bands, as librosa's onset_detect";
    let align = |seen: &str| {
        format!(
            "mean over clips of the share of peaks heard and seen among all peaks, one-to-one less \
             than {window_s:.3} s apart (Yariv et al. 2024); {onsets}; {seen}; {text}; {count} clips"
        )
    };
    let names = ["AV-Align", "AV-Align of bends", "impact F1"];
    let definitions = [
        align(
            "seen: local maxima of the motion energy, the mean absolute difference of successive \
             frames (the published metric takes the mean optical flow instead)",
        ),
        align(
            "seen: local maxima of the second difference of the mean place of what differs from the \
             median frame, where objects change their course",
        ),
        format!(
            "impacts heard and seen, one-to-one within {TOLERANCE_S} s, 2 matched / (heard + seen) \
             over all clips, simultaneous ones (50 ms) taken as one; {onsets}; seen: as the list of \
             the made clips says for {} clips, bends of the path of what moves for {}; {text}; \
             {count} clips",
            seen.known(),
            count - seen.known()
        ),
    ];
    let mut metrics = vec![];
    for sound in Sound::ALL {
        let scores = seen.synchrony(sound, form, settings.resampling.seed)?;
        let statistics: [fn(&[&Synchrony]) -> f64; 3] = [
            |scores| mean(scores.iter().map(|it| it.motion)),
            |scores| mean(scores.iter().map(|it| it.bends)),
            |scores| scores.iter().map(|it| it.impacts).sum::<Counts>().f1(),
        ];
        for ((name, definition), statistic) in names.iter().zip(&definitions).zip(statistics) {
            let value = statistic(&scores.iter().collect::<Vec<_>>());
            let drawn = |[places]: [&[usize]; 1]| {
                let scores: Vec<&Synchrony> =
                    places.iter().filter_map(|place| scores.get(*place)).collect();
                Ok(statistic(&scores))
            };
            metrics.push(Metric {
                name: (*name).to_owned(),
                of: sound.name(set),
                value,
                interval: interval(settings, Domain::Share, [count], value, drawn)?,
                definition: definition.clone(),
            });
        }
    }
    Ok(metrics)
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

/// Distances to training clips.
fn memorisation(nearest: &NearestTraining, settings: &Settings) -> Result<Vec<Metric>> {
    let kinds = [
        (
            "picture",
            "root mean square difference of all frames at 8 x 8 pixels, colours from 0 to 1, the \
             nearer of the other and its mirror image",
            [&nearest.real_pictures, &nearest.fake_pictures],
        ),
        (
            "sound",
            "root mean square difference of the levels in 32 mel bands every 40 ms, in dB",
            [&nearest.real_sounds, &nearest.fake_sounds],
        ),
    ];
    let mut metrics = vec![];
    for (what, definition, sets) in kinds {
        let [real, fake] = sets.map(|set| set.iter().map(|it| it.distance).collect::<Vec<f64>>());
        if real.is_empty() || fake.is_empty() {
            continue;
        }
        let text = settings.form.text();
        for (of, distances) in [("real", &real), ("fake", &fake)] {
            let middle = |distances: Vec<f64>| share_point(distances, 0.5);
            let value = middle(distances.clone());
            let drawn = |[places]: [&[usize]; 1]| {
                Ok(middle(places.iter().filter_map(|it| distances.get(*it).copied()).collect()))
            };
            metrics.push(Metric {
                name: format!("distance of {what} to the nearest training clip"),
                of: of.to_owned(),
                value,
                interval: interval(settings, Domain::NotNegative, [distances.len()], value, drawn)?,
                definition: format!("median over clips; {definition}; {text}"),
            });
        }
        let near = |real: Vec<f64>, fake: &mut dyn ExactSizeIterator<Item = f64>| {
            let least = share_point(real, NEAR);
            mean(fake.map(|distance| f64::from(u8::from(distance < least))))
        };
        let value = near(real.clone(), &mut fake.iter().copied());
        let drawn = |[a, b]: [&[usize]; 2]| {
            let chosen = a.iter().filter_map(|place| real.get(*place).copied()).collect();
            let mut fakes = b.iter().map(|place| fake.get(*place).copied().unwrap_or(f64::NAN));
            Ok(near(chosen, &mut fakes))
        };
        metrics.push(Metric {
            name: format!("clips whose {what} is near a training clip"),
            of: "fake".to_owned(),
            value,
            interval: interval(settings, Domain::Share, [real.len(), fake.len()], value, drawn)?,
            definition: format!(
                "share of generated clips nearer to a training clip than 95 % of the real ones are: \
                 0.05 if they are like real clips that were not trained on, 1 if all are copies; \
                 {definition}; {text}"
            ),
        });
    }
    Ok(metrics)
}

/// The value below which a share of `values` lies; the median for one half.
fn share_point(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    if share == 0.5 {
        return median(&values);
    }
    let place = (share * values.len() as f64) as usize;
    values.get(place).copied().unwrap_or(f64::NAN)
}

/// From each impact seen the seconds to the nearest onset.
fn delays_s(seen: &Seen) -> Vec<f64> {
    let of = |(number, clip): (usize, &ClipFeatures)| {
        let nearest = |impact: &f64| {
            let delays = clip.events.onsets_s.iter().map(|onset| onset - impact);
            delays.min_by(|a, b| a.abs().total_cmp(&b.abs()))
        };
        seen.impacts_s(number).iter().filter_map(nearest).collect::<Vec<f64>>()
    };
    seen.clips.iter().enumerate().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::super::extraction::{Extraction, tests::write_made};
    use super::super::extractors::Extractors;
    use super::*;
    use shared::limits::Limits;

    fn value(evaluation: &Evaluation, name: &str, of: &str) -> f64 {
        let found = evaluation.metrics.iter().find(|metric| metric.name == name && metric.of == of);
        let metric = found.unwrap_or_else(|| panic!("{name} of {of}"));
        if let Some(Interval { low, high }) = metric.interval {
            assert!(low <= metric.value && metric.value <= high, "{metric:?}");
        }
        metric.value
    }

    #[test]
    fn copies_of_training_clips_and_dull_sets_are_found_out() {
        let folder = tempfile::tempdir().unwrap();
        let files = write_made(folder.path(), 0..24);
        let limits = Limits::default();
        let (form, none) = (EvaluationForm::default(), Extractors::default());
        let extraction =
            Extraction { form, extractors: &none, cache: None, limits: &limits, quiet: true };
        let clips = extraction.features("test", &files).unwrap().clips;
        let (real, training) = clips.split_at(12);
        // Copies under another name.
        let copies: Vec<ClipFeatures> = training
            .iter()
            .map(|clip| ClipFeatures { path: clip.path.with_extension("copy"), ..clip.clone() })
            .collect();
        // One clip again and again.
        let same: Vec<ClipFeatures> = vec![real[0].clone(); 12];
        let unknown = vec![None; 12];
        let settings =
            Settings { form, resampling: Bootstrap { resamples: 20, ..Bootstrap::default() } };
        let run = |fake: &[ClipFeatures]| {
            let seen = |clips| Seen { clips, known_s: &unknown };
            let comparison =
                Comparison { real: seen(real), fake: seen(fake), training: Some(training) };
            evaluate(&comparison, &settings).unwrap()
        };
        let (copied, dull, honest) = (run(&copies), run(&same), run(real));
        for what in ["sound", "picture"] {
            let near = format!("clips whose {what} is near a training clip");
            assert_eq!(value(&copied, &near, "fake"), 1.0);
            assert!(value(&honest, &near, "fake") < 0.1);
            let diversity = format!("diversity of {what}");
            assert_eq!(value(&dull, &diversity, "fake"), 0.0);
            assert!(value(&dull, &diversity, "real") > 0.0);
            let frechet = format!("Fréchet distance of {what}");
            let of = "fake from real";
            assert!(value(&honest, &frechet, of) < 1e-9);
            assert!(value(&dull, &frechet, of) > value(&copied, &frechet, of));
            assert!(value(&copied, &frechet, of) > 0.0);
        }
        assert_eq!(copied.delays_s[0], honest.delays_s[1]);
        let text = serde_json::to_string(&copied).unwrap();
        assert!(
            text.contains("scale factor 1")
                && text.contains("12 real and 12 generated clips")
                && text.contains("6 real and 6 real clips")
        );
    }
}
