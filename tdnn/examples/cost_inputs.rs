//! Makes what `samples/bench/costs.sh` measures with, from the shipped recordings and model:
//! two recordings of 4 s, one of some hours, and random embeddings for a list of trials.
//!
//! `cargo run --release -p tdnn --example cost_inputs -- FOLDER HOURS [TRIALS]`, where `TRIALS` is
//! a list that exists; without it, one as long as the list VoxCeleb1-O is made as well.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Context;
use candle_core::Device;
use shared::data::TrialList;
use shared::limits::Limits;
use shared::media::audio::{self, Waveform};
use shared::rng::Stream;
use tdnn::embeddings::Format;
use tdnn::score::unit;
use tdnn::{ModelFile, Verifier};

const RATE_HZ: u32 = 16_000;
const SHORT_S: usize = 4;
/// Size of VoxCeleb1-O, cleaned.
const TRIALS: usize = 37_611;
const RECORDINGS: usize = 4_708;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, hours, list @ ..] = arguments.as_slice() else {
        anyhow::bail!("expected FOLDER HOURS [TRIALS]");
    };
    let (folder, hours): (&Path, f64) = (folder.as_ref(), hours.parse()?);
    fs::create_dir_all(folder)?;
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../samples");

    let read = |name: &str| -> anyhow::Result<Vec<f32>> {
        let waveform = audio::read(&samples.join("media").join(name), &Limits::default())?;
        Ok(waveform.mono().resampled(RATE_HZ)?.samples)
    };
    let write = |name: &str, samples: Vec<f32>| {
        audio::write_wav(&folder.join(name), &Waveform::from_mono(samples, RATE_HZ), true)
    };
    let (same, other) = (read("librivox/0870.flac")?, read("asterisk/allison-vm-options.flac")?);
    let short = SHORT_S * RATE_HZ as usize;
    write("a.wav", same.iter().copied().take(short).collect())?;
    write("b.wav", other.iter().copied().take(short).collect())?;
    let long = (3600.0 * hours * f64::from(RATE_HZ)) as usize;
    write("long.wav", same.into_iter().chain(other).cycle().take(long).collect())?;

    let limits = Limits::default();
    let list = match list {
        [] => {
            let path = folder.join("trials.txt");
            fs::write(&path, made_up_trials()?)?;
            TrialList::read(&path, &limits)?
        }
        [path, ..] => TrialList::read(Path::new(path), &limits)?,
    };
    let model = ModelFile::read(&samples.join("models/tdnn.safetensors"), &limits)
        .context("the model that is built into the tool")?;
    let mut embeddings = Verifier::new(&model, true, limits, &Device::Cpu)?.embeddings();
    for (place, name) in list.recordings.iter().enumerate() {
        let mut values = vec![0.0; embeddings.dimension()];
        Stream::new(0, "embedding", place as u64).fill_normal(&mut values);
        embeddings.insert(name, &unit(&values))?;
    }
    embeddings.write(&folder.join("embeddings.safetensors"), Format::Safetensors, true)?;
    println!(
        "{} trials between {} recordings with random embeddings",
        list.trials.len(),
        list.recordings.len()
    );
    Ok(())
}

/// As many trials between as many recordings as VoxCeleb1-O has, in its form.
fn made_up_trials() -> Result<String, std::fmt::Error> {
    let mut stream = Stream::new(0, "trials", 0);
    let name = |recording: usize| format!("id{:05}/{recording:011}/00001.wav", recording / 118);
    let mut text = String::new();
    for trial in 0..TRIALS {
        // Every recording comes at least once.
        let (a, b) = (trial % RECORDINGS, stream.below(RECORDINGS));
        writeln!(text, "{} {} {}", trial % 2, name(a), name(b))?;
    }
    Ok(text)
}
