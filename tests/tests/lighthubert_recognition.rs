//! Recognition as a user runs it: training, transcribing, evaluating, and what goes wrong there.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use shared::media::audio::{Waveform, write_wav};
use tests::tool::{Workplace, media};
use tests::wave::{Header, Stored, wave};

/// Settings of a recogniser small enough to train in no time.
fn settings() -> Value {
    let layers = 2;
    json!({
        "network": {
            "encoder": {
                "extractor": {
                    "mode": "layer_norm",
                    "layers": [
                        {"channels": 32, "kernel": 400, "stride": 160},
                        {"channels": 32, "kernel": 3, "stride": 2},
                    ],
                    "bias": false,
                },
                "positional": {"kernel": 5, "groups": 4, "depth": 1},
                "activation": "gelu",
                "layer_norm_first": true,
                "sequence_multiple": 1,
                "heads": {"size": 8, "counts": vec![0; layers]},
                "normalise": true,
            },
            "subnet": {
                "embed_dim": 32,
                "layer_num": layers,
                "atten_dim": vec![64; layers],
                "ffn_embed": vec![64; layers],
                "heads_num": vec![1; layers],
            },
        },
        "filterbank": true,
        "steps": 6,
        "batch_s": 12.0,
        "longest_s": 12.0,
        "speeds": [0.9, 1.0],
        "join": 0.3,
        "augmentation": {"noise": 0.0},
        "frame_mask": {"probability": 0.2, "length": 3, "selection": "static", "min_spans": 0,
                       "no_overlap": false, "min_space": 1, "same_count": false, "dropout": 0.0},
        "dropout": {"features": 0.1, "hidden": 0.1, "activation": 0.1, "head": 0.1},
        "layer_drop": 0.2,
        "freeze": {"encoder_steps": 0, "extractor": false},
        "schedule": {"kind": "constant", "lr": 1e-3},
        "ema_rates": [0.5],
    })
}

fn write(place: &Workplace, name: &str, settings: &Value) {
    fs::write(place.path(name), settings.to_string()).unwrap();
}

fn workplace() -> Workplace {
    let place = Workplace::new("lighthubert");
    write(&place, "settings.json", &settings());
    place
}

fn finetune<'a>(data: &'a str, config: &'a str, out: &'a str) -> Vec<&'a str> {
    let fixed = ["--save-every", "1", "--evaluate-every", "3", "--threads", "1"];
    let given = ["finetune", "--data", data, "--validation", data, "--config", config];
    [&given[..], &["--out", out], &fixed].concat()
}

/// A recording, nan.wav, that holds values that are no numbers.
fn write_nan(place: &Workplace) {
    place.write("nan.wav", wave(&[f32::NAN; 16_000], 16_000, Stored::F32, Header::Plain, None));
}

fn bytes(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join(name)).unwrap()
}

#[test]
fn a_killed_run_goes_on_to_the_same_model() {
    let place = workplace();
    let data = media("recordings.tsv");
    let train = |out| finetune(&data, "settings.json", out);
    let run = place.run(train("whole")).success();
    assert!(run.stderr.contains("validation_wer"), "{}", run.stderr);
    for step in 1..4 {
        let mut child = place.command(train("parts")).spawn().unwrap();
        let log = place.path("parts/log.jsonl");
        let steps = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
        while steps() < step && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    place.run(train("parts")).success();
    for name in ["model.safetensors", "best-model.safetensors"] {
        let [parts, whole] = ["parts", "whole"].map(|it| bytes(&place.path(it), name));
        assert!(parts == whole, "{name}");
    }
    // Other settings, and other classes, are another run.
    let mut other = settings();
    other["join"] = json!(0.5);
    write(&place, "other.json", &other);
    place.run(finetune(&data, "other.json", "whole")).failure(2, &["other settings", "0.5"]);
    other["joins"] = json!(0.5);
    write(&place, "unknown.json", &other);
    place.run(finetune(&data, "unknown.json", "x")).failure(2, &["unknown.json", "joins"]);
}

#[test]
fn a_head_is_trained_on_an_encoder_that_stays_as_it_is() {
    let place = workplace();
    let data = media("recordings.tsv");
    place.run(finetune(&data, "settings.json", "first")).success();
    let mut head = settings();
    head.as_object_mut().unwrap().remove("network");
    head["filterbank"] = json!(false);
    head["freeze"]["encoder_steps"] = json!(1000);
    head["features"] = json!("mixture");
    head["head"] = json!({"kind": "recurrent", "projected": 8, "hidden": 8, "layers": 2});
    head["ema_rates"] = json!([]);
    write(&place, "head.json", &head);
    let init = ["--init", "first/model.safetensors"];
    let run = place.run([&finetune(&data, "head.json", "second")[..], &init].concat()).success();
    assert!(run.stderr.contains("missing"), "{}", run.stderr);
    let read = |folder: &str| {
        let path = place.path(folder).join("model.safetensors");
        let limits = shared::limits::Limits::default();
        shared::checkpoint::read(&path, &limits).unwrap().tensors
    };
    let (first, second) = (read("first"), read("second"));
    let mut compared = 0;
    for (name, tensor) in second.iter().filter(|(name, _)| name.starts_with("network.")) {
        let values = |it: &candle_core::Tensor| it.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values(tensor) == values(&first[name]), "{name}");
        compared += 1;
    }
    assert!(compared > 20);
    let info = place.run(["info", "second/model.safetensors"]).success();
    assert!(info.stdout.contains("2 bidirectional LSTMs of 8 on all layers"), "{}", info.stdout);
    // A network in the settings beside one that is given makes no sense.
    let both = [&finetune(&data, "settings.json", "x")[..], &init].concat();
    place.run(both).failure(2, &["--init"]);
    let mut none = settings();
    none.as_object_mut().unwrap().remove("network");
    none["filterbank"] = json!(false);
    write(&place, "none.json", &none);
    place.run(finetune(&data, "none.json", "x")).failure(2, &["--init"]);
}

#[test]
fn recordings_that_cannot_be_learned_from_are_named() {
    let place = workplace();
    let list = |rows: &[[&str; 2]]| {
        let rows: Vec<String> = rows.iter().map(|row| row.join("\t")).collect();
        fs::write(place.path("list.tsv"), format!("path\ttext\n{}\n", rows.join("\n"))).unwrap();
    };
    let good = media("librivox/0880.flac");
    write_nan(&place);
    fs::write(place.path("broken.wav"), "no sound").unwrap();
    let long = "A VERY LONG TEXT ".repeat(200);
    let nan = place.path("nan.wav").display().to_string();
    let broken = place.path("broken.wav").display().to_string();
    let longer = media("librivox/0870.flac");
    list(&[[&good, "HE WAS NOT"], [&broken, "A"], [&longer, &long], [&nan, "A"]]);
    let run = place.run(finetune("list.tsv", "settings.json", "run"));
    assert!(run.stderr.contains("broken.wav"), "{}", run.stderr);
    assert!(run.stderr.contains("too few for its text"), "{}", run.stderr);
    assert!(run.stderr.contains("nan.wav"), "{}", run.stderr);
    // Letters that a given vocabulary lacks.
    list(&[[&good, "HE WAS"], [&longer, "QUIZ"]]);
    let classes =
        json!({"characters": {"symbols": ["<b>", "|", "A", "E", "H", "S", "W"], "blank": 0}});
    fs::write(place.path("classes.json"), classes.to_string()).unwrap();
    let given = ["--vocabulary", "classes.json"];
    let run = place.run([&finetune("list.tsv", "settings.json", "given")[..], &given].concat());
    assert!(run.success().stderr.contains("`Q` of `QUIZ`"));
    fs::write(place.path("empty.tsv"), "path\ttext\n").unwrap();
    place.run(finetune("empty.tsv", "settings.json", "x")).failure(2, &["empty.tsv"]);
    fs::write(place.path("textless.tsv"), format!("path\n{good}\n")).unwrap();
    place.run(finetune("textless.tsv", "settings.json", "x")).failure(2, &["with a text"]);
}

#[test]
fn recordings_are_transcribed_in_all_forms() {
    let place = Workplace::new("lighthubert");
    let file = media("librivox/0880.flac");
    let text = place.run(["transcribe", &file]).success().stdout;
    assert!(text.split_whitespace().count() >= 4, "{text}");
    let json: Value = serde_json::from_str(
        &place.run(["transcribe", &file, "--format", "json"]).success().stdout,
    )
    .unwrap();
    assert_eq!(json["text"].as_str().unwrap(), text.trim());
    let words = json["words"].as_array().unwrap();
    let times: Vec<f64> = words
        .iter()
        .flat_map(|it| [it["start_s"].as_f64().unwrap(), it["end_s"].as_f64().unwrap()])
        .collect();
    assert!(times.windows(2).all(|pair| pair[0] <= pair[1]), "{times:?}");
    assert!(*times.last().unwrap() <= json["duration_s"].as_f64().unwrap() + 0.05);
    let list = media("recordings.tsv");
    let into = ["transcribe", &list, "--out", "texts", "--format", "text,json,srt,vtt"];
    place.run(into).success();
    let folder = place.path("texts");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    assert_eq!(read("librivox_0880.txt"), text);
    assert!(read("librivox_0880.srt").starts_with("1\n00:00:0"));
    assert!(read("librivox_0880.vtt").starts_with("WEBVTT\n\n00:00:0"));
    place.run(into).failure(2, &["librivox_0870.txt"]);
    fs::remove_file(folder.join("librivox_0880.vtt")).unwrap();
    place.run([&into[..], &["--resume"]].concat()).success();
    assert!(folder.join("librivox_0880.vtt").is_file());
    // Two halves are the whole, and greedy texts have the same recordings.
    let halves = ["0/2", "1/2"]
        .map(|shard| place.run(["transcribe", &list, "--shard", shard]).success().stdout);
    let whole = place.run(["transcribe", &list]).success().stdout;
    assert_eq!(halves.concat(), whole);
    let greedy = place.run(["transcribe", &list, "--greedy", "--threads", "1"]).success().stdout;
    let names = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&greedy), names(&whole));
    // Only words of a list.
    fs::write(place.path("words.txt"), "he\nHE\nWAS\nNOT\nAN\nMAN\n").unwrap();
    let closed = place.run(["transcribe", &file, "--lexicon", "words.txt"]).success().stdout;
    assert!(closed.split_whitespace().all(|it| ["HE", "WAS", "NOT", "AN", "MAN"].contains(&it)));
}

#[test]
fn recordings_that_cannot_be_heard_are_named_and_the_others_done() {
    let place = Workplace::new("lighthubert");
    let sound = |name: &str, samples: Vec<f32>, rate_hz: u32| {
        let waveform = Waveform { samples, rate_hz, channels: 1 };
        write_wav(&place.path(name), &waveform, false).unwrap();
    };
    sound("silent.wav", vec![0.0; 16_000], 16_000);
    sound("short.wav", vec![0.1; 100], 16_000);
    write_nan(&place);
    sound("slow.wav", (0..8000).map(|i| (0.3 * i as f32).sin()).collect(), 8000);
    fs::write(place.path("empty.wav"), "").unwrap();
    fs::write(place.path("text.wav"), "hello").unwrap();
    let whole = fs::read(media("librivox/0880.flac")).unwrap();
    fs::write(place.path("cut.flac"), &whole[..whole.len() / 2]).unwrap();
    let silent = place.run(["transcribe", "silent.wav"]).success();
    assert_eq!(silent.stdout.trim(), "");
    assert!(silent.stderr.contains("nothing to hear"), "{}", silent.stderr);
    let slow = place.run(["transcribe", "slow.wav"]).success();
    assert!(slow.stderr.contains("resampled from 8000"), "{}", slow.stderr);
    place.run(["transcribe", "short.wav"]).failure(2, &["short.wav", "100 samples"]);
    place.run(["transcribe", "nan.wav"]).failure(2, &["nan.wav"]);
    place.run(["transcribe", "empty.wav"]).failure(2, &["empty.wav"]);
    place.run(["transcribe", "text.wav"]).failure(2, &["text.wav"]);
    place.run(["transcribe", "missing.wav"]).failure(2, &["missing.wav"]);
    let good = media("librivox/0880.flac");
    let several = place.run(["transcribe", "nan.wav", &good, "short.wav"]);
    assert!(several.stdout.contains("0880"), "{}", several.stdout);
    several.failure(2, &["nan.wav", "short.wav", "2 of 3 recordings"]);
    let cut = place.run(["transcribe", "cut.flac"]);
    assert!(cut.stderr.contains("cut.flac"), "{}", cut.stderr);
    // A model that recognises nothing.
    let tdnn = tests::tool::root().join("samples/models/tdnn.safetensors").display().to_string();
    place.run(["transcribe", &good, "--model", &tdnn]).failure(2, &["tdnn.safetensors"]);
}

#[test]
fn recognisers_are_evaluated_by_group_and_decoder() {
    let place = Workplace::new("lighthubert");
    let list = media("recordings.tsv");
    let base = ["evaluate", "--data", &list, "--by", "speaker"];
    let run = place.run([&base[..], &["--json", "--out", "report"]].concat()).success();
    let rows: Vec<Value> =
        run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let greedy = rows.iter().filter(|row| row["decoder"] == "greedy").count();
    assert_eq!(2 * greedy, rows.len());
    assert!(greedy >= 2, "{}", run.stdout);
    for row in &rows {
        assert!(row["wer"]["value"].as_f64().unwrap() >= 0.0);
        assert!(row["real_time_factor"].as_f64().unwrap() > 0.0);
    }
    let report = place.path("report/librivox-reader-greedy");
    for name in ["report.html", "metrics.json", "alignment.txt"] {
        assert!(report.join(name).is_file(), "{name}");
    }
    place.run([&base[..], &["--out", "report"]].concat()).failure(2, &["report"]);
    // The texts are those of `transcribe`.
    let texts = place.run(["transcribe", &list, "--json"]).success().stdout;
    fs::write(place.path("found.jsonl"), texts).unwrap();
    // Those without a text are not evaluated.
    let transcribed = ["--where", "speaker=librivox_reader,cards_speaker", "--json"];
    let score = ["score", "--ref", &list, "--hyp", "found.jsonl", "--normaliser", "librispeech"];
    let score = [&score[..], &transcribed].concat();
    let scored: Value = serde_json::from_str(&place.run(score).success().stdout).unwrap();
    let all = place.run(["evaluate", "--data", &list, "--json"]).success().stdout;
    let all: Value = serde_json::from_str(all.lines().last().unwrap()).unwrap();
    assert_eq!(all["decoder"], "beam search");
    assert_eq!(all["wer"]["value"], scored["wer"]["value"]);
    // Settings that are found are those of the model from then on.
    let few = ["--where", "speaker=librivox_reader", "--tune", "--save", "tuned.safetensors"];
    let tuned = place.run([&["evaluate", "--data", &list, "--json"][..], &few].concat()).success();
    let best: Value = serde_json::from_str(&tuned.stdout).unwrap();
    let info = place.run(["info", "tuned.safetensors", "--json"]).success().stdout;
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["card"]["decoding"]["weight"], best["weight"]);
}
