//! A toy model, trained whole, interrupted, and killed.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::nn::Init;
use crate::rng::{Stream, StreamState};

/// Names the folder in a process that is to run the toy and be killed.
const CHILD: &str = "SHARED_TRAINER_TEST_FOLDER";

/// Fits a plane to noisy points. Every step draws from a stream of its own state and moves a
/// buffer; every second step reaches only one of two weights.
struct Toy {
    a: Tensor,
    b: Tensor,
    mean: Var,
    stream: Stream,
    fault: Option<Fault>,
    stop_after: Option<(u64, Interrupt)>,
    seen: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Nan,
    DetachedWeight,
    InfiniteGradient,
}

impl Toy {
    fn new(weights: &Weights) -> Self {
        let init = Init::Normal { std: 1.0 };
        Self {
            a: weights.parameter("a", 300, init).unwrap(),
            b: weights.parameter("b", (3, 100), init).unwrap(),
            mean: weights.buffer("mean", (), Init::Constant(0.0), None).unwrap(),
            stream: Stream::new(1, "toy", 0),
            fault: None,
            stop_after: None,
            seen: vec![],
        }
    }
}

impl Task for Toy {
    fn step(&mut self, step: u64, gradients: &mut Gradients) -> Result<StepOutcome> {
        self.seen.push(step);
        let mut draw = || {
            let values: Vec<f32> = (0..300).map(|_| self.stream.normal() as f32).collect();
            Tensor::from_vec(values, 300, &Device::Cpu)
        };
        let (x, noise) = (draw()?, draw()?);
        let mut sum = (&x * &self.a)?;
        if step.is_multiple_of(2) {
            let b = self.b.flatten_all()?;
            let b = if self.fault == Some(Fault::DetachedWeight) { b.detach() } else { b };
            sum = (sum + (noise * b)?)?;
        }
        let mut loss = (sum - 1.0)?.sqr()?.mean_all()?;
        match self.fault {
            Some(Fault::Nan) => loss = (loss * f64::NAN)?,
            // The root has an infinite slope at 0.
            Some(Fault::InfiniteGradient) => {
                loss = (loss + (&self.a - self.a.detach())?.sqr()?.sqrt()?.mean_all()?)?;
            }
            _ => {}
        }
        let value = f64::from(loss.to_scalar::<f32>()?);
        self.mean.set(&((self.mean.as_tensor() * 0.9)? + (loss.detach() * 0.1)?)?)?;
        // Two parts of one batch.
        gradients.add(&loss, 3.0)?;
        gradients.add(&self.a.sqr()?.mean_all()?, 1.0)?;
        gradients.average()?;
        if let Some((last, interrupt)) = &self.stop_after
            && step == *last
        {
            interrupt.request();
        }
        if std::env::var_os(CHILD).is_some() {
            // So long that the pipe is soon full: the process cannot run far ahead of its reader.
            println!("step {step:4096}");
        }
        Ok(StepOutcome {
            loss: value,
            metrics: vec![("mean".into(), 0.0)],
            ..StepOutcome::default()
        })
    }

    fn uses(&self, step: u64, parameter: &Parameter) -> bool {
        step.is_multiple_of(2) || parameter.name == "a"
    }

    fn evaluate(&mut self, _steps: u64, ema: &Ema) -> Result<Evaluation> {
        let norm = || Ok(f64::from(self.a.sqr()?.sum_all()?.to_scalar::<f32>()?));
        let (own, averaged) = (norm()?, ema.with_average(0, norm)?);
        let metrics = vec![("own".to_string(), own), ("averaged".to_string(), averaged)];
        Ok(Evaluation { score: Some(averaged), metrics })
    }

    fn state(&self) -> Value {
        json!(self.stream.state())
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        let state: StreamState = serde_json::from_value(state.clone())
            .map_err(|error| Error::Argument(error.to_string()))?;
        self.stream =
            Stream::from_state(&state).ok_or_else(|| Error::Argument("malformed stream".into()))?;
        Ok(())
    }
}

/// The weights in the latest checkpoint.
fn weights_of(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let states = StateFolder::open(folder, two()).unwrap();
    let state = states.resume(&Limits::default()).unwrap().unwrap();
    let weights = state
        .tensors
        .into_iter()
        .filter(|(name, _)| ["model.a", "model.b"].contains(&name.as_str()));
    weights.map(|(name, tensor)| (name, tensor.flatten_all().unwrap().to_vec1().unwrap())).collect()
}

fn config(steps: u64) -> TrainerConfig {
    serde_json::from_value(json!({
        "steps": steps,
        "rule": {"kind": "adam", "weight_decay": 1e-3},
        "schedule": {"kind": "cyclic", "base_lr": 1e-3, "peak_lr": 1e-1, "up_steps": 7},
        "unreached": "zero",
        "clip_norm": 0.5,
        "ema_rates": [0.9, 0.99],
        "evaluate_every": 10,
        "save_every": 4,
    }))
    .unwrap()
}

/// Trains in `folder`; the change comes before the first step.
fn train(folder: &Path, config: TrainerConfig, change: impl FnOnce(&mut Toy)) -> Result<Toy> {
    let weights = Weights::fresh(3, DType::F32, &Device::Cpu);
    let mut toy = Toy::new(&weights);
    change(&mut toy);
    let interrupt = match &toy.stop_after {
        Some((_, interrupt)) => interrupt.clone(),
        None if std::env::var_os(CHILD).is_some() => Interrupt::on_signals()?,
        None => Interrupt::default(),
    };
    let trainer = Trainer::open(folder, config, &weights, Group::decay_matrices_only, &mut toy)?;
    let mut trainer = trainer.with_interrupt(interrupt);
    trainer.run(&mut toy)?;
    Ok(toy)
}

/// The bytes of the last and of the best checkpoint, and the log without its times.
fn outcome(folder: &Path) -> (Vec<u8>, Vec<u8>, Vec<Value>) {
    let states = StateFolder::open(folder, NonZeroUsize::MIN).unwrap();
    let log = std::fs::read_to_string(folder.join("log.jsonl")).unwrap();
    let lines = log.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("time_s");
        line
    });
    let read = |path| std::fs::read(path).unwrap();
    (read(states.latest().unwrap().unwrap()), read(states.best_path()), lines.collect())
}

fn folders() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    (folder, whole, parts)
}

#[test]
fn an_interrupted_run_goes_on_exactly() {
    let (_folder, whole, parts) = folders();
    train(&whole, config(30), |_| {}).unwrap();
    for last in [0, 6, 7, 8, 19] {
        let stop = |toy: &mut Toy| toy.stop_after = Some((last, Interrupt::default()));
        let stopped = train(&parts, config(30), stop);
        assert!(matches!(stopped, Err(Error::Interrupted)), "{last}");
    }
    let toy = train(&parts, config(30), |_| {}).unwrap();
    assert_eq!(toy.seen, (20..30).collect::<Vec<_>>());
    assert_eq!(outcome(&whole), outcome(&parts));
    // Done: nothing is left to do.
    assert!(train(&parts, config(30), |_| {}).unwrap().seen.is_empty());
}

#[cfg(unix)]
#[test]
fn a_killed_or_terminated_run_goes_on_exactly() {
    const NAME: &str = "train::trainer::tests::a_killed_or_terminated_run_goes_on_exactly";
    let config = || TrainerConfig { save_every: 20, evaluate_every: 50, ..config(600) };
    if let Some(folder) = std::env::var_os(CHILD) {
        match train(Path::new(&folder), config(), |_| {}) {
            Ok(_) => return,
            Err(Error::Interrupted) => std::process::exit(17),
            Err(error) => panic!("{error}"),
        }
    }
    let (_folder, whole, parts) = folders();
    train(&whole, config(), |_| {}).unwrap();
    let mut ends = vec![];
    for (lines, signal) in
        [(3, "KILL"), (41, "KILL"), (7, "TERM"), (42, "KILL"), (9, "INT"), (43, "KILL")]
    {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, &parts)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map_while(|l| l.ok());
        output.by_ref().filter(|line| line.contains("step ")).take(lines).for_each(drop);
        // At whatever it is doing now.
        let kill = format!("kill -{signal} {}", child.id());
        Command::new("sh").args(["-c", &kill]).status().unwrap();
        output.for_each(drop);
        ends.push((signal, child.wait().unwrap().code()));
    }
    // Killed processes have no exit code; the others stopped in order.
    let orderly = ends.iter().filter(|(signal, _)| *signal != "KILL");
    assert!(orderly.clone().all(|(_, code)| *code == Some(17)), "{ends:?}");
    assert!(ends.contains(&("KILL", None)), "{ends:?}");
    train(&parts, config(), |_| {}).unwrap();
    assert_eq!(outcome(&whole), outcome(&parts));
}

#[test]
fn what_goes_wrong_is_named_and_leaves_the_last_checkpoint() {
    let (_folder, folder, _) = folders();
    train(&folder, config(8), |_| {}).unwrap();
    let faulty = |fault| train(&folder, config(20), |toy| toy.fault = Some(fault)).err().unwrap();
    assert_eq!(faulty(Fault::Nan).to_string(), "the loss of step 8 is not finite");
    for (fault, name) in [(Fault::DetachedWeight, "b"), (Fault::InfiniteGradient, "a")] {
        match faulty(fault) {
            Error::NoGradient { parameters } => assert_eq!(parameters, [name]),
            other => panic!("{other}"),
        }
    }
    assert_eq!(train(&folder, config(9), |_| {}).unwrap().seen, [8]);
}

#[test]
fn some_faulty_steps_in_a_row_are_tolerated() {
    let tolerant = |steps| TrainerConfig { tolerated: 3, ..config(steps) };
    for fault in [Fault::Nan, Fault::InfiniteGradient] {
        let (_folder, folder, _) = folders();
        train(&folder, tolerant(8), |_| {}).unwrap();
        let before = weights_of(&folder);
        // Two now, two after a pause: the fourth is one too many.
        train(&folder, tolerant(10), |toy| toy.fault = Some(fault)).unwrap();
        assert_eq!(weights_of(&folder), before);
        let error = train(&folder, tolerant(20), |toy| toy.fault = Some(fault)).err().unwrap();
        assert!(matches!(error, Error::NonFinite { .. } | Error::NoGradient { .. }), "{error}");
        // A good step in between makes the count begin again.
        train(&folder, tolerant(11), |_| {}).unwrap();
        assert_ne!(weights_of(&folder), before);
        train(&folder, tolerant(14), |toy| toy.fault = Some(fault)).unwrap();
    }
}

#[test]
fn a_folder_of_another_run_is_refused() {
    let (_folder, folder, _) = folders();
    train(&folder, config(4), |_| {}).unwrap();
    let mut other = config(8);
    other.ema_rates = vec![0.5];
    let error = train(&folder, other, |_| {}).err().unwrap().to_string();
    assert!(error.contains("other settings") && error.contains("0.99"), "{error}");
    let weights = Weights::fresh(3, DType::F32, &Device::Cpu);
    let mut toy = Toy::new(&weights);
    weights.parameter("c", 1, Init::Constant(0.0)).unwrap();
    let group = |_: &Parameter| Group::default();
    let error = Trainer::open(&folder, config(8), &weights, group, &mut toy).err().unwrap();
    assert!(error.to_string().contains("c is missing"), "{error}");
    let frozen = Weights::loaded(weights.state(), &folder, false, DType::F32, &Device::Cpu);
    let mut toy = Toy::new(&frozen);
    assert!(Trainer::open(&folder, config(8), &frozen, group, &mut toy).is_err());
}

#[test]
fn settings_outside_their_domain_and_unknown_settings_are_refused() {
    let valid = serde_json::to_value(config(4)).unwrap();
    assert!(config(4).validate().is_ok());
    for (name, value) in [
        ("steps", json!(0)),
        ("save_every", json!(0)),
        ("evaluate_every", json!(0)),
        ("log_every", json!(0)),
        ("clip_norm", json!(-1.0)),
        ("schedule", json!({"kind": "constant", "lr": -1.0})),
    ] {
        let mut settings = valid.clone();
        settings[name] = value;
        let settings: TrainerConfig = serde_json::from_value(settings).unwrap();
        assert!(settings.validate().is_err(), "{name}");
    }
    let mut unknown = valid;
    unknown["batch"] = json!(1);
    assert!(serde_json::from_value::<TrainerConfig>(unknown).is_err());
}
