//! A folder of clips as one page.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use shared::limits::Limits;
use shared::media::Waveform;
use shared::media::video::{Channel, ClipOptions, VideoClip, read_clip, read_comment};
use shared::report::{Page, SoundFigure};
use shared::{Error, Result};

use crate::clip::STRIP_EXTENSION;

/// Kinds of files that browsers play or show, with their media types.
const SHOWN: [(&str, &str); 5] = [
    ("mp4", "video/mp4"),
    ("webm", "video/webm"),
    ("mov", "video/mp4"),
    ("gif", "image/gif"),
    ("png", "image/png"),
];
/// Sampling rate at which sound is looked at.
const RATE_HZ: u32 = 16_000;

/// A page that shows all clips of a folder, and how many it shows.
pub struct Gallery {
    /// The page, which needs no other file.
    pub page: Page,
    /// Number of clips.
    pub clips: usize,
    /// What could not be shown, a sentence each.
    pub notes: Vec<String>,
}

impl Gallery {
    /// The page of the clips directly in `folder`, in the order of their names. Of a clip that is there
    /// as a video, the GIF and PNG files of the same name and its strip are left out.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be read; [`Error::Argument`] when it holds no clip.
    pub fn new(folder: &Path, limits: &Limits) -> Result<Self> {
        let paths = shown_files(folder)?;
        let mut gallery = Self {
            page: Page::new(&format!("Clips in {}", folder.display())),
            clips: 0,
            notes: vec![],
        };
        for (path, media_type) in paths {
            if let Err(error) = gallery.add(&path, media_type, limits) {
                gallery.notes.push(format!("left out: {error}"));
            }
        }
        match gallery.clips {
            0 => Err(Error::Argument(format!("{}: there are no clips here", folder.display()))),
            _ => Ok(gallery),
        }
    }

    fn add(&mut self, path: &Path, media_type: &str, limits: &Limits) -> Result<()> {
        let bytes = fs::read(path).map_err(Error::io(path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut facts = vec![];
        let mut figure = None;
        if media_type != "image/png" {
            let clip = read(path, limits)?;
            facts.push(("clip".to_owned(), describe(&clip)));
            if let Some(sound) = &clip.sound {
                figure = Some(SoundFigure::new(&format!("sound of {name}"), sound)?);
            }
            facts.extend(origin(&read_comment(path)?.unwrap_or_default()));
        }
        self.page.heading(&name);
        self.page.clip(&bytes, media_type, figure.as_ref());
        self.page.facts(facts.iter().map(|(name, value)| (name.as_str(), value.clone())));
        self.clips += 1;
        Ok(())
    }
}

/// The files in `folder` that can be shown, with their media types.
fn shown_files(folder: &Path) -> Result<Vec<(PathBuf, &'static str)>> {
    let mut files = vec![];
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if let Some((_, media_type)) = SHOWN.iter().find(|(shown, _)| *shown == extension) {
            files.push((path, *media_type));
        }
    }
    files.sort();
    let videos: Vec<PathBuf> = files
        .iter()
        .filter(|(_, media_type)| media_type.starts_with("video/"))
        .map(|(path, _)| path.with_extension(""))
        .collect();
    let of_clip = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match name.strip_suffix(STRIP_EXTENSION) {
            Some(stem) => path.with_file_name(stem.trim_end_matches('.')),
            None => path.with_extension(""),
        }
    };
    files.retain(|(path, media_type)| {
        media_type.starts_with("video/") || !videos.contains(&of_clip(path))
    });
    Ok(files)
}

fn read(path: &Path, limits: &Limits) -> Result<VideoClip> {
    let options = ClipOptions {
        fps: 10,
        start_s: 0.0,
        duration_s: None,
        letterbox: None,
        rate_hz: RATE_HZ,
        channel: Channel::Mix,
    };
    read_clip(path, &options, limits)
}

fn describe(clip: &VideoClip) -> String {
    let picture = clip.frames.as_ref().map(|frames| {
        let duration_s = frames.count() as f64 / f64::from(clip.fps);
        format!("{} x {} pixels, {duration_s:.1} s", frames.width(), frames.height())
    });
    let sound = clip.sound.as_ref().map(Waveform::duration_s);
    match (picture, sound) {
        (Some(picture), Some(_)) => format!("{picture}, with sound"),
        (Some(picture), None) => format!("{picture}, without sound"),
        (None, sound) => format!("{:.1} s of sound", sound.unwrap_or_default()),
    }
}

/// What a comment says, entry by entry where it is JSON.
fn origin(comment: &str) -> Vec<(String, String)> {
    match serde_json::from_str(comment) {
        Ok(Value::Object(entries)) => entries
            .into_iter()
            .map(|(name, value)| match value {
                Value::String(text) => (name, text),
                other => (name, other.to_string()),
            })
            .collect(),
        _ if comment.is_empty() => vec![],
        _ => vec![("comment".to_owned(), comment.to_owned())],
    }
}
