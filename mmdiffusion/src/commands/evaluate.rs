//! `mmdiffusion evaluate`: how good generated clips are.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use mmdiffusion::evaluation::{
    self, ClipFeatures, Comparison, Evaluation, EvaluationForm, Extraction, Extractors, FeatureSet,
    KnownImpacts, Seen, Settings, clip_files,
};
use serde::Serialize;
use shared::Error;
use shared::cli::Common;
use shared::eval::Bootstrap;
use shared::files::write_atomic;
use shared::limits::Limits;

#[derive(Args)]
pub struct Options {
    /// Real clips: a folder, a table with a column `path`, or JSON lines
    #[arg(long, value_name = "LIST")]
    real: PathBuf,
    /// Generated clips
    #[arg(long, value_name = "LIST")]
    fake: PathBuf,
    /// Clips that the network was trained on, to see whether generated clips are copies of them
    #[arg(long, value_name = "LIST")]
    train: Option<PathBuf>,
    /// Weights of I3D for FVD and KVD: the published i3d_pretrained_400.pt
    #[arg(long, value_name = "FILE")]
    i3d: Option<PathBuf>,
    /// Weights of VGGish for FAD: the published vggish-10086976.pth
    #[arg(long, value_name = "FILE")]
    vggish: Option<PathBuf>,
    /// Folder for the report: report.html, its figures as SVG, metrics.json
    #[arg(long, short, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Folder in which what was measured of clips is kept, to be used again while they are the same
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// Frames of each clip that are used, from its beginning
    #[arg(long, value_name = "N", default_value_t = EvaluationForm::default().frames)]
    frames: usize,
    /// Frames a second to which clips are brought
    #[arg(long, value_name = "N", default_value_t = EvaluationForm::default().fps)]
    fps: u32,
    /// Width and height in pixels to which clips are brought
    #[arg(long, value_name = "PIXELS", default_value_t = EvaluationForm::default().side_pixels)]
    size: usize,
    /// Sampling rate in Hz to which clips are brought
    #[arg(long, value_name = "HZ", default_value_t = EvaluationForm::default().rate_hz)]
    rate: u32,
    /// Resampled sets behind the confidence intervals
    #[arg(long, value_name = "N", default_value_t = 200)]
    resamples: usize,
    /// Seed of the resampling, of shuffled sounds and of noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Overwrite the report
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Outcome<'a> {
    #[serde(flatten)]
    evaluation: &'a Evaluation,
    /// Files that could not be used, and why.
    left_out: &'a [String],
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let device = common.open()?;
    let limits = Limits::default();
    let form = EvaluationForm {
        frames: options.frames,
        fps: options.fps,
        side_pixels: options.size,
        rate_hz: options.rate,
    };
    form.check()?;
    let report = options.out.as_deref().map(|out| out.join("report.html"));
    if let Some(report) = report.filter(|report| report.exists() && !options.force) {
        return Err(Error::Exists { path: report }.into());
    }
    let extractors =
        Extractors::read(options.i3d.as_deref(), options.vggish.as_deref(), &limits, &device)?;
    let extraction = Extraction {
        form,
        extractors: &extractors,
        cache: options.cache.as_deref(),
        limits: &limits,
        quiet: common.quiet,
    };
    let read = |title: &str, list: &Path| extraction.features(title, &clip_files(list, &limits)?);
    let real = read("real clips", &options.real)?;
    let fake = read("generated clips", &options.fake)?;
    let training = options.train.as_deref().map(|list| read("training clips", list)).transpose()?;
    let sets = [Some(&real), Some(&fake), training.as_ref()];
    let left_out: Vec<String> = sets
        .into_iter()
        .flatten()
        .flat_map(|set| &set.left_out)
        .map(|error| format!("left out: {error}"))
        .collect();
    left_out.iter().for_each(|reason| common.note(reason));
    if real.clips.len() != fake.clips.len() {
        common.note(format!(
            "{} real and {} generated clips: distances depend on the numbers; compare results of \
             equal numbers only",
            real.clips.len(),
            fake.clips.len()
        ));
    }
    let (known_real, known_fake) = known(&real, &fake, &options.real, &form, &limits)?;
    let comparison = Comparison {
        real: Seen { clips: &real.clips, known_s: &known_real },
        fake: Seen { clips: &fake.clips, known_s: &known_fake },
        training: training.as_ref().map(|set| set.clips.as_slice()),
    };
    let resampling =
        Bootstrap { resamples: options.resamples, seed: options.seed, ..Bootstrap::default() };
    let evaluation = evaluation::evaluate(&comparison, &Settings { form, resampling })?;
    let outcome = Outcome { evaluation: &evaluation, left_out: &left_out };
    if let Some(out) = &options.out {
        write_report(out, &outcome, options)?;
        common.note(format!("report in {}", out.display()));
    }
    common.print(&outcome, text(&evaluation))
}

/// The impacts that are known of the real and of the generated clips.
type Known = Vec<Option<Vec<f64>>>;

fn known(
    real: &FeatureSet,
    fake: &FeatureSet,
    source: &Path,
    form: &EvaluationForm,
    limits: &Limits,
) -> shared::Result<(Known, Known)> {
    let mut impacts = KnownImpacts::default();
    let folder = if source.is_dir() { Some(source) } else { source.parent() };
    let mut of = |set: &FeatureSet| -> shared::Result<Known> {
        let times =
            |clip: &ClipFeatures| impacts.times_s(&clip.path, folder, form.duration_s(), limits);
        set.clips.iter().map(times).collect()
    };
    Ok((of(real)?, of(fake)?))
}

fn text(evaluation: &Evaluation) -> String {
    let definitions = evaluation::definitions(evaluation);
    let definitions = definitions.iter().map(|(name, text)| format!("\n{name}: {text}"));
    let table = evaluation::table(evaluation);
    format!("{table}{}", definitions.collect::<String>())
}

fn write_report(out: &Path, outcome: &Outcome, options: &Options) -> anyhow::Result<()> {
    fs::create_dir_all(out).map_err(Error::io(out))?;
    for (name, plot, _) in evaluation::plots(outcome.evaluation) {
        plot.write(&out.join(format!("{name}.svg")), options.force)?;
    }
    let json = serde_json::to_string_pretty(outcome)?;
    write_atomic(&out.join("metrics.json"), options.force, |file| file.write_all(json.as_bytes()))?;
    let Evaluation { real, fake, training, form, .. } = outcome.evaluation;
    let mut facts = vec![
        ("real", format!("{} ({real} clips)", options.real.display())),
        ("generated", format!("{} ({fake} clips)", options.fake.display())),
    ];
    if let (Some(count), Some(list)) = (training, &options.train) {
        facts.push(("trained on", format!("{} ({count} clips)", list.display())));
    }
    facts.push(("form", form.text()));
    facts.push(("seed", options.seed.to_string()));
    // The page comes last: where it is, all else is.
    let page = evaluation::page(outcome.evaluation, &facts, outcome.left_out);
    Ok(page.write(&out.join("report.html"), options.force)?)
}
