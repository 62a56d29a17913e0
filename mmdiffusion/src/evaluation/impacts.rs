//! When things are known to hit something in a clip.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use shared::checkpoint::safetensors;
use shared::files::read_text;
use shared::limits::Limits;
use shared::media::video::read_comment;
use shared::{Error, Result};

/// The list in a folder of made clips that says what happens in each.
const SCENES: &str = "scenes.jsonl";

/// What is known of the impacts in clips, from the lists beside them.
#[derive(Debug, Default)]
pub struct KnownImpacts {
    folders: HashMap<PathBuf, Option<Scenes>>,
}

/// Times of the impacts in each file of a folder.
type Scenes = HashMap<String, Vec<f64>>;

#[derive(Deserialize)]
struct Scene {
    path: String,
    impacts: Vec<Impact>,
}

#[derive(Deserialize)]
struct Impact {
    time_s: f64,
}

impl KnownImpacts {
    /// The times in seconds of the impacts in the clip at `path`, ascending, before `duration_s`: from
    /// the list beside it; or, when it was generated for the picture of another clip, from the list
    /// beside that, which is looked for in `folder`, too. `None` when there is no such list.
    ///
    /// # Errors
    /// [`Error::Parse`] for a list that is there but cannot be understood.
    pub fn times_s(
        &mut self,
        path: &Path,
        folder: Option<&Path>,
        duration_s: f64,
        limits: &Limits,
    ) -> Result<Option<Vec<f64>>> {
        let mut times = self.listed(path, limits)?.map(|times| (times, 0.0));
        if let (None, Some(given)) = (&times, Given::of(path, limits)) {
            let beside = given.path.file_name().zip(folder);
            let places = [Some(given.path.clone()), beside.map(|(name, folder)| folder.join(name))];
            for place in places.into_iter().flatten() {
                if times.is_none() {
                    times = self.listed(&place, limits)?.map(|times| (times, given.start_s));
                }
            }
        }
        Ok(times.map(|(times, start_s)| {
            let moved = times.into_iter().map(|time| time - start_s);
            let mut inside: Vec<f64> =
                moved.filter(|time| (0.0..duration_s).contains(time)).collect();
            inside.sort_unstable_by(f64::total_cmp);
            inside
        }))
    }

    fn listed(&mut self, path: &Path, limits: &Limits) -> Result<Option<Vec<f64>>> {
        let Some((folder, name)) = path.parent().zip(path.file_name()) else { return Ok(None) };
        if !self.folders.contains_key(folder) {
            let list = folder.join(SCENES);
            let scenes = if list.is_file() { Some(read(&list, limits)?) } else { None };
            self.folders.insert(folder.to_path_buf(), scenes);
        }
        let scenes = self.folders.get(folder).and_then(Option::as_ref);
        Ok(scenes.and_then(|scenes| scenes.get(&*name.to_string_lossy()).cloned()))
    }
}

fn read(list: &Path, limits: &Limits) -> Result<Scenes> {
    let text = read_text(list, limits)?;
    let mut scenes = HashMap::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let scene: Scene = serde_json::from_str(line).map_err(|error| Error::Parse {
            path: list.to_path_buf(),
            line: index + 1,
            reason: format!("expected an object with `path` and `impacts`: {error}"),
        })?;
        let times = scene.impacts.into_iter().map(|impact| impact.time_s).collect();
        scenes.insert(scene.path, times);
    }
    Ok(scenes)
}

/// The clip whose picture a generated clip was made for.
struct Given {
    path: PathBuf,
    start_s: f64,
}

impl Given {
    /// As the file itself tells.
    fn of(path: &Path, limits: &Limits) -> Option<Self> {
        let origin = match path.extension().is_some_and(|extension| extension == "safetensors") {
            true => safetensors::read_metadata(path, limits).ok()?.remove("origin"),
            false => read_comment(path).ok()?,
        };
        let origin: Value = serde_json::from_str(&origin?).ok()?;
        if origin.get("command")?.as_str()? != "video2audio" {
            return None;
        }
        // A clip is called like the one that was given, with a number after it.
        let name = path.file_stem()?.to_string_lossy().into_owned();
        let given = origin.get("given")?.as_array()?.iter().filter_map(Value::as_str);
        let is_ours = |given: &&Path| {
            let stem = given.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let rest = name.strip_prefix(&stem).and_then(|rest| rest.strip_prefix('-'));
            rest.is_some_and(|number| number.chars().all(|digit| digit.is_ascii_digit()))
        };
        let path = given.map(Path::new).find(is_ours)?.to_path_buf();
        let start_s = origin.get("start_s").and_then(Value::as_f64).unwrap_or(0.0);
        Some(Self { path, start_s })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use candle_core::{DType, Device, Tensor};
    use serde_json::json;

    use super::*;

    #[test]
    fn impacts_are_those_of_the_list_or_of_the_given_clip() {
        let folder = tempfile::tempdir().unwrap();
        let (real, fake) = (folder.path().join("real"), folder.path().join("fake"));
        for folder in [&real, &fake] {
            fs::create_dir(folder).unwrap();
        }
        let line = |name: &str, times: &[f64]| {
            let impacts: Vec<Value> = times.iter().map(|time| json!({"time_s": time})).collect();
            json!({"path": name, "scene": {}, "impacts": impacts}).to_string()
        };
        let list = format!("{}\n\n{}\n", line("a.mp4", &[1.7, 0.5, 0.2]), line("b.mp4", &[]));
        fs::write(real.join(SCENES), list).unwrap();
        let write = |name: &str, origin: Value| {
            let metadata = BTreeMap::from([("origin".to_owned(), origin.to_string())]);
            let tensor = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
            let tensors = BTreeMap::from([("video".to_owned(), tensor)]);
            safetensors::write(&fake.join(name), &tensors, &metadata, false).unwrap();
        };
        let given = json!(["elsewhere/b.mp4", "elsewhere/a.mp4"]);
        write(
            "a-000.safetensors",
            json!({"command": "video2audio", "given": given, "start_s": 0.4}),
        );
        write("b-000.safetensors", json!({"command": "audio2video", "given": given}));
        write("c-000.safetensors", json!({"command": "video2audio", "given": given}));
        let mut known = KnownImpacts::default();
        let mut times =
            |path: PathBuf| known.times_s(&path, Some(&real), 1.6, &Limits::default()).unwrap();
        assert_eq!(times(real.join("a.mp4")), Some(vec![0.2, 0.5]));
        assert_eq!(times(real.join("b.mp4")), Some(vec![]));
        assert_eq!(times(real.join("c.mp4")), None);
        let moved = times(fake.join("a-000.safetensors")).unwrap();
        assert!(moved.iter().zip([0.1, 1.3]).all(|(a, b)| (a - b).abs() < 1e-12), "{moved:?}");
        assert_eq!(times(fake.join("b-000.safetensors")), None);
        assert_eq!(times(fake.join("c-000.safetensors")), None);
    }

    #[test]
    fn a_list_that_cannot_be_understood_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(SCENES), "\n{\"path\": 3}\n").unwrap();
        let path = folder.path().join("a.mp4");
        let error = KnownImpacts::default().times_s(&path, None, 1.6, &Limits::default());
        assert!(matches!(error, Err(Error::Parse { line: 2, .. })), "{error:?}");
    }
}
