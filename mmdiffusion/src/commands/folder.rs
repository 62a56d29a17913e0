//! The folder that a command fills with clips.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use mmdiffusion::clip::grid;
use mmdiffusion::{Clip, ClipFormat};
use serde_json::Value;
use shared::Error;
use shared::cli::Shard;
use shared::files::{read_text, write_atomic};
use shared::limits::Limits;
use shared::media::image::write_png;

/// File in the folder that says with which settings its clips were made.
const SETTINGS: &str = "settings.json";
/// Folder in it for pictures of unfinished clips.
const PREVIEWS: &str = "previews";

/// Where clips go, and what becomes of those that are there.
#[derive(Args, Debug)]
pub struct FolderOptions {
    /// Folder for the clips
    #[arg(long, short, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Kinds of files written for each clip: mp4, gif, wav, png (all frames in a grid), strip
    /// (all frames in a row above the spectrogram), safetensors (the exact numbers)
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "mp4,safetensors")]
    pub formats: Vec<ClipFormat>,
    /// Go on in a folder that has clips of the same settings; those that are finished are left
    /// alone
    #[arg(long)]
    pub resume: bool,
    /// Make only part i of n (from 0) of the clips, to share the work among machines [default: from
    /// the environment of torchrun, Slurm or Open MPI, else all]
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    /// Overwrite clips that are there
    #[arg(long)]
    pub force: bool,
}

impl FolderOptions {
    /// The part of the work that this process does.
    pub fn shard(&self) -> shared::Result<Shard> {
        self.shard.map_or_else(Shard::from_environment, Ok)
    }

    /// The folder, made if it is not there, for clips of these names and settings; and the places of
    /// the names whose clips are still to be made.
    ///
    /// # Errors
    /// When the folder has clips of other settings, or some of these and neither `--resume` nor
    /// `--force` is given.
    pub fn open(&self, names: &[String], settings: &Value) -> anyhow::Result<(Folder, Vec<usize>)> {
        let folder = Folder {
            path: self.out.clone(),
            formats: self.formats.clone(),
            settings: settings.clone(),
            force: self.force,
            resume: self.resume,
        };
        let has = |name: &String, format: &ClipFormat| format.path(&self.out, name).exists();
        let is_finished = |name: &String| self.formats.iter().all(|format| has(name, format));
        let open: Vec<usize> = names
            .iter()
            .enumerate()
            .filter(|(_, name)| !(self.resume && is_finished(name)))
            .map(|(place, _)| place)
            .collect();
        if !self.force && !self.resume {
            let taken = names
                .iter()
                .flat_map(|name| self.formats.iter().map(move |format| (name, format)))
                .find(|(name, format)| has(name, format));
            if let Some((name, format)) = taken {
                let path = format.path(&self.out, name);
                return Err(anyhow::Error::from(Error::Exists { path })
                    .context("--resume leaves finished clips alone"));
            }
        }
        if self.out.exists() && !self.out.is_dir() {
            let reason = io::Error::new(io::ErrorKind::NotADirectory, "is not a folder");
            return Err(Error::io(&self.out)(reason).into());
        }
        fs::create_dir_all(&self.out).map_err(Error::io(&self.out))?;
        folder.note_settings()?;
        Ok((folder, open))
    }
}

/// An open folder.
pub struct Folder {
    path: PathBuf,
    formats: Vec<ClipFormat>,
    settings: Value,
    force: bool,
    resume: bool,
}

impl Folder {
    /// Writes a finished clip, whose files tell how it came about: `facts` beside the settings. What
    /// an interrupted run left of it is replaced with `--resume`.
    pub fn write(&self, name: &str, clip: &Clip, facts: &[(&str, Value)]) -> shared::Result<()> {
        let mut origin = self.settings.clone();
        for (name, value) in facts {
            origin[*name] = value.clone();
        }
        let origin = origin.to_string();
        let replace = self.force || self.resume;
        clip.write(&self.path, name, &self.formats, &origin, replace)
    }

    /// Writes a picture of an unfinished clip.
    pub fn preview(&self, clip: &Clip, name: &str) -> shared::Result<()> {
        let folder = self.path.join(PREVIEWS);
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        write_png(&folder.join(format!("{name}.png")), &grid(&clip.frames()?), &[], true)
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the settings, or compares them with those that are there.
    fn note_settings(&self) -> anyhow::Result<()> {
        let path = self.path.join(SETTINGS);
        let text = serde_json::to_string_pretty(&self.settings)? + "\n";
        let written = write_atomic(&path, self.force, |file| file.write_all(text.as_bytes()));
        match written {
            // Written before, or just now by the process of another shard.
            Err(Error::Exists { .. }) => {}
            other => return Ok(other?),
        }
        let found = read_text(&path, &Limits::default())?;
        let found: Value =
            serde_json::from_str(&found).with_context(|| path.display().to_string())?;
        let entries = |value: &Value| value.as_object().cloned().unwrap_or_default();
        let (found, wanted) = (entries(&found), entries(&self.settings));
        let names = found.keys().chain(wanted.keys());
        let differing = names.filter(|name| found.get(*name) != wanted.get(*name));
        let text = |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
        let differing: Vec<String> = differing
            .map(|name| {
                format!("{name} is {}, was {}", text(wanted.get(name)), text(found.get(name)))
            })
            .collect();
        match differing.first() {
            None => Ok(()),
            Some(difference) => Err(Error::Argument(format!(
                "{}: the folder has clips of other settings ({difference}); choose another, or \
                 pass --force",
                self.path.display()
            ))
            .into()),
        }
    }
}
