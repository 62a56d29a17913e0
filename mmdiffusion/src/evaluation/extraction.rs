//! What is measured of each clip, once, and kept if asked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use shared::checkpoint::safetensors;
use shared::limits::Limits;
use shared::media::Waveform;
use shared::report::Progress;
use shared::{Error, Result};

use super::clips::{EvaluationClip, EvaluationForm};
use super::extractors::{Extractors, VGGISH_RATE_HZ, hex};
use super::motion::{bends_s, motion_peaks_s};
use super::onsets::OnsetDetector;
use super::picture_embedding::PictureEmbedding;
use super::sound_embedding::SoundEmbedder;

/// Changes whenever something is measured in another way.
const VERSION: u32 = 1;
/// Metadata entries of a file of kept measurements.
const KEY: &str = "evaluation";
const EVENTS: &str = "events";

/// How clips are measured.
#[derive(Clone, Debug)]
pub struct Extraction<'a> {
    /// The form into which they are brought.
    pub form: EvaluationForm,
    /// Published networks to be used as well.
    pub extractors: &'a Extractors,
    /// Folder in which measurements are kept, to be used again for the same files.
    pub cache: Option<&'a Path>,
    /// Caps for the files.
    pub limits: &'a Limits,
    /// Show no progress.
    pub quiet: bool,
}

/// When something happens in a clip, in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Events {
    /// Sounds begin.
    pub onsets_s: Vec<f64>,
    /// The motion energy is highest.
    pub motion_peaks_s: Vec<f64>,
    /// What moves changes its course.
    pub bends_s: Vec<f64>,
}

/// What was measured of a clip.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClipFeatures {
    /// Its file.
    pub path: PathBuf,
    /// When something happens.
    pub events: Events,
    /// What it sounds like.
    pub sound: Vec<f32>,
    /// Its levels in bands over time.
    pub levels: Vec<f32>,
    /// What it looks like.
    pub picture: Vec<f32>,
    /// Its frames, very small.
    pub thumbnails: Vec<f32>,
    /// What I3D makes of its picture; empty without the network.
    pub i3d: Vec<f32>,
    /// What VGGish makes of its sound; empty without the network.
    pub vggish: Vec<f32>,
}

/// What was measured of a set of clips.
#[derive(Debug)]
pub struct FeatureSet {
    /// Of each clip that could be read.
    pub clips: Vec<ClipFeatures>,
    /// Why others are left out.
    pub left_out: Vec<Error>,
}

impl Extraction<'_> {
    /// What is measured of the clips in `files`, in their order; `title` is shown while it takes its
    /// time.
    ///
    /// # Errors
    /// As [`EvaluationForm::check`]; [`Error::Argument`] when fewer than two clips can be read, with
    /// the reason of the first that cannot; when the cache cannot be written.
    pub fn features(&self, title: &str, files: &[PathBuf]) -> Result<FeatureSet> {
        self.form.check()?;
        let kept = match self.cache {
            Some(folder) => {
                let key = self.key(files)?;
                let name = key.get(..32).unwrap_or(&key);
                Some((folder.join(format!("{name}.safetensors")), key))
            }
            None => None,
        };
        if let Some((path, key)) = &kept
            && path.is_file()
        {
            let clips = read(path, key, files, self.limits)?;
            return Ok(FeatureSet { clips, left_out: vec![] });
        }
        let set = self.measure(title, files)?;
        // With files left out the next run should say so again.
        if let (Some((path, key)), true) = (&kept, set.left_out.is_empty()) {
            write(path, key, &set.clips)?;
        }
        Ok(set)
    }

    fn measure(&self, title: &str, files: &[PathBuf]) -> Result<FeatureSet> {
        let progress = Progress::new(title, "clips", Some(files.len() as u64), self.quiet);
        let onsets = OnsetDetector::new(self.form.rate_hz)?;
        let sounds = SoundEmbedder::new(self.form.rate_hz)?;
        let measure = |path: &PathBuf| -> Result<ClipFeatures> {
            let clip = EvaluationClip::read(path, &self.form, self.limits);
            progress.inc(1);
            let clip = clip?;
            let sound = sounds.embed(&clip.samples)?;
            let picture = PictureEmbedding::of(&clip.frames)?;
            Ok(ClipFeatures {
                path: path.clone(),
                events: Events {
                    onsets_s: onsets.onsets_s(&clip.samples)?,
                    motion_peaks_s: motion_peaks_s(&clip.frames, self.form.fps),
                    bends_s: bends_s(&clip.frames, self.form.fps),
                },
                sound: sound.statistics,
                levels: sound.levels,
                picture: picture.statistics,
                thumbnails: picture.thumbnails,
                i3d: self.i3d(&clip)?,
                vggish: self.vggish(&clip)?,
            })
        };
        let measured: Vec<Result<ClipFeatures>> = files.par_iter().map(measure).collect();
        progress.finish();
        let (mut clips, mut left_out) = (vec![], vec![]);
        for result in measured {
            match result {
                Ok(clip) => clips.push(clip),
                Err(error) => left_out.push(error),
            }
        }
        if clips.len() < 2 {
            let first =
                left_out.first().map_or_else(String::new, |error| format!("; first: {error}"));
            return Err(Error::Argument(format!(
                "{title}: {} of {} files can be read, at least 2 clips are needed{first}",
                clips.len(),
                files.len()
            )));
        }
        Ok(FeatureSet { clips, left_out })
    }

    fn i3d(&self, clip: &EvaluationClip) -> Result<Vec<f32>> {
        let network = self.extractors.i3d.as_ref();
        network.map_or_else(|| Ok(vec![]), |network| network.features(&clip.frames))
    }

    fn vggish(&self, clip: &EvaluationClip) -> Result<Vec<f32>> {
        let Some(network) = &self.extractors.vggish else { return Ok(vec![]) };
        let sound = Waveform::from_mono(clip.samples.clone(), self.form.rate_hz);
        network.features(&sound.resampled(VGGISH_RATE_HZ)?.samples)
    }

    /// SHA-256, in hexadecimal, of all that the measurements depend on: the form and the files' bytes.
    fn key(&self, files: &[PathBuf]) -> Result<String> {
        let hashes: Vec<[u8; 32]> =
            files.par_iter().map(|path| hash_of(path)).collect::<Result<_>>()?;
        let mut hash = Sha256::new();
        let networks = &self.extractors.hashes;
        let settings = json!({"version": VERSION, "form": self.form, "networks": networks});
        hash.update(settings.to_string());
        hashes.iter().for_each(|file| hash.update(file));
        Ok(hex(&hash.finalize()))
    }
}

/// The hash of a file's bytes; of none where it cannot be read, which then is said when it is decoded.
fn hash_of(path: &Path) -> Result<[u8; 32]> {
    let mut hash = Sha256::new();
    if path.is_file() {
        let mut file = File::open(path).map_err(Error::io(path))?;
        io::copy(&mut file, &mut hash).map_err(Error::io(path))?;
    }
    Ok(hash.finalize().into())
}

/// The matrices that are kept: their names and each clip's row.
type Column = (&'static str, fn(&mut ClipFeatures) -> &mut Vec<f32>);
const COLUMNS: [Column; 6] = [
    ("sound", |clip| &mut clip.sound),
    ("levels", |clip| &mut clip.levels),
    ("picture", |clip| &mut clip.picture),
    ("thumbnails", |clip| &mut clip.thumbnails),
    ("i3d", |clip| &mut clip.i3d),
    ("vggish", |clip| &mut clip.vggish),
];

fn write(path: &Path, key: &str, clips: &[ClipFeatures]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    let mut clips = clips.to_vec();
    let mut tensors = BTreeMap::new();
    for (name, column) in COLUMNS {
        let rows: Vec<f32> = clips.iter_mut().flat_map(|clip| column(clip).clone()).collect();
        let shape = (clips.len(), rows.len() / clips.len().max(1));
        // Networks that were not used have no numbers.
        if !rows.is_empty() {
            tensors.insert(name.to_owned(), Tensor::from_vec(rows, shape, &Device::Cpu)?);
        }
    }
    let events: Vec<&Events> = clips.iter().map(|clip| &clip.events).collect();
    let metadata = BTreeMap::from([
        (KEY.to_owned(), key.to_owned()),
        (EVENTS.to_owned(), json!(events).to_string()),
    ]);
    safetensors::write(path, &tensors, &metadata, true)
}

fn read(path: &Path, key: &str, files: &[PathBuf], limits: &Limits) -> Result<Vec<ClipFeatures>> {
    let damaged = || {
        let reason = "is damaged or holds no measurements of these clips; remove it";
        Error::checkpoint(path, reason)
    };
    let file = safetensors::read(path, limits)?;
    if file.metadata.get(KEY).map(String::as_str) != Some(key) {
        return Err(damaged());
    }
    let events = file.metadata.get(EVENTS).ok_or_else(damaged)?;
    let events: Vec<Events> = serde_json::from_str(events).map_err(|_| damaged())?;
    if events.len() != files.len() {
        return Err(damaged());
    }
    let clip = |(path, events): (&PathBuf, Events)| ClipFeatures {
        path: path.clone(),
        events,
        ..ClipFeatures::default()
    };
    let mut clips: Vec<ClipFeatures> = files.iter().zip(events).map(clip).collect();
    for (name, column) in COLUMNS {
        let Some(rows) = file.tensors.get(name) else { continue };
        let rows = rows.to_vec2::<f32>().map_err(|_| damaged())?;
        if rows.len() != clips.len() {
            return Err(damaged());
        }
        clips.iter_mut().zip(rows).for_each(|(clip, row)| *column(clip) = row);
    }
    Ok(clips)
}

#[cfg(test)]
pub(super) mod tests {
    use shared::media::Waveform;
    use shared::media::video::write_mp4;

    use super::super::clips::tests::made;
    use super::*;

    /// Writes made clips and returns their files.
    pub fn write_made(folder: &Path, numbers: std::ops::Range<u64>) -> Vec<PathBuf> {
        let write = |number| {
            let (clip, _) = made(number);
            let path = folder.join(format!("{number:03}.mp4"));
            let sound = Waveform::from_mono(clip.samples, 16_000);
            write_mp4(&path, &clip.frames, 10, Some(&sound), "", false).unwrap();
            path
        };
        numbers.map(write).collect()
    }

    #[test]
    fn measurements_are_kept_for_the_same_files_and_form() {
        let folder = tempfile::tempdir().unwrap();
        let files = write_made(folder.path(), 0..3);
        let cache = folder.path().join("cache");
        let limits = Limits::default();
        let (form, none) = (EvaluationForm::default(), Extractors::default());
        let with = Extraction {
            form,
            extractors: &none,
            cache: Some(&cache),
            limits: &limits,
            quiet: true,
        };
        let kept = || cache.read_dir().unwrap().count();
        let first = with.features("test", &files).unwrap();
        assert_eq!(kept(), 1);
        let again = with.features("test", &files).unwrap();
        assert_eq!(first.clips, again.clips);
        // What was kept is really used.
        let (path, key) =
            (cache.read_dir().unwrap().next().unwrap().unwrap().path(), with.key(&files));
        let mut changed = first.clips.clone();
        changed[0].events.onsets_s = vec![0.123];
        write(&path, &key.unwrap(), &changed).unwrap();
        assert_eq!(with.features("test", &files).unwrap().clips, changed);
        // Another form, or another file of the same name, is measured anew.
        let form = EvaluationForm { side_pixels: 32, ..with.form };
        let other = Extraction { form, ..with.clone() };
        assert_ne!(
            other.features("test", &files).unwrap().clips[0].picture,
            first.clips[0].picture
        );
        assert_eq!(kept(), 2);
        std::fs::copy(&files[1], &files[0]).unwrap();
        assert_eq!(with.features("test", &files).unwrap().clips[0].sound, first.clips[1].sound);
        assert_eq!(kept(), 3);
        let without = Extraction { cache: None, ..with };
        assert_eq!(without.features("test", &files).unwrap().clips[1], first.clips[1]);
    }

    #[test]
    fn unreadable_files_are_listed_and_too_few_clips_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = write_made(folder.path(), 0..2);
        let broken = folder.path().join("broken.mp4");
        std::fs::write(&broken, b"no video").unwrap();
        files.push(broken);
        let limits = Limits::default();
        let (form, none) = (EvaluationForm::default(), Extractors::default());
        let extraction =
            Extraction { form, extractors: &none, cache: None, limits: &limits, quiet: true };
        let set = extraction.features("test", &files).unwrap();
        assert_eq!((set.clips.len(), set.left_out.len()), (2, 1));
        assert!(set.left_out[0].to_string().contains("broken.mp4"));
        let error = extraction.features("real", &files[1..]).unwrap_err().to_string();
        assert!(error.contains("1 of 2") && error.contains("broken.mp4"), "{error}");
    }
}
