//! The speaker-verification tool on the recordings in `samples/media`, as a user runs it.
#![allow(clippy::unwrap_used)]

use std::fs;

use std::path::PathBuf;

use serde_json::Value;
use tests::tool::{Workplace, media, root};

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("{name} is no number in {value}"))
}

#[test]
fn verify_scores_and_decides() {
    let place = Workplace::new("tdnn");
    let (a, b) = (media("librivox/0870.flac"), media("librivox/0890.flac"));
    let other = media("asterisk/carlo-vm-options.flac");
    let same = place.run(["verify", &a, &b, "--json"]).success().json();
    let different = place.run(["verify", &a, &other, "--json"]).success().json();
    assert!(same["same_speaker"] == true && different["same_speaker"] == false);
    assert!(number(&same, "probability") > 0.9 && number(&different, "probability") < 0.1);
    assert!(same["speech_s"][0].as_f64() > Some(3.0), "{same}");
    let itself = place.run(["verify", &a, &a, "--json"]).success().json();
    assert!(number(&itself, "score") > number(&same, "score"), "{itself}");
    // The decision follows the threshold; only --check turns it into an exit code.
    let score = number(&same, "score");
    for (threshold, code) in [(score - 0.01, 0), (score + 0.01, 1)] {
        let threshold = threshold.to_string();
        let run = |check: &[&str]| {
            let arguments = ["verify", &a, &b, "--json", "--threshold", &threshold];
            place.run(arguments.iter().chain(check))
        };
        assert_eq!(run(&[]).success().json()["same_speaker"], code == 0);
        run(&["--check"]).failure(code, &[]);
    }
}

#[test]
fn speakers_are_enrolled_and_identified() {
    let place = Workplace::new("tdnn");
    for (name, file) in [
        ("Reader", "librivox/0870.flac"),
        ("Allison", "asterisk/allison-demo-congrats.flac"),
        ("Carlo", "asterisk/carlo-demo-congrats.flac"),
    ] {
        place.run(["enroll", name, &media(file)]).success();
    }
    let again = place.run(["enroll", "Reader", &media("librivox/0890.flac"), "--json"]).success();
    assert_eq!(
        (again.json()["recordings"].clone(), again.json()["speakers"].clone()),
        (2.into(), 3.into())
    );
    for (name, file) in [
        ("Reader", "librivox/0920.flac"),
        ("Allison", "asterisk/allison-vm-options.flac"),
        ("Carlo", "asterisk/carlo-vm-options.flac"),
    ] {
        let arguments = ["identify", &media(file), "--json"];
        assert_eq!(place.run(arguments).success().json()["speaker"], name);
    }
    let unknown = ["identify", &media("cards/001.flac"), "--json"];
    assert!(place.run(unknown).success().json()["speaker"].is_null());
    place.run(unknown.iter().chain(&["--check"])).failure(1, &[]);
    assert_eq!(place.files(), ["speakers.safetensors"]);
}

#[test]
fn lists_are_embedded_in_every_format_and_in_parts() {
    let place = Workplace::new("tdnn");
    let list = media("recordings.tsv");
    for out in ["all.safetensors", "all.npy", "all.ark"] {
        let run = place.run(["embed", &list, "--out", out, "--json"]).success();
        assert_eq!(run.json()["embeddings"], 14);
    }
    let names = std::fs::read_to_string(place.path("all.npy.names")).unwrap();
    assert_eq!(names.lines().count(), 14);
    let archive = std::fs::read_to_string(place.path("all.ark")).unwrap();
    assert!(archive.lines().all(|line| line.split_whitespace().count() == 384 + 3));
    for shard in ["0/3", "1/3", "2/3"] {
        let out = format!("part-{}.safetensors", &shard[..1]);
        place.run(["embed", &list, "--out", &out, "--shard", shard]).success();
    }
    let parts = ["part-0.safetensors", "part-1.safetensors", "part-2.safetensors"];
    place.run(["merge"].iter().chain(&parts).chain(&["--out", "merged.safetensors"])).success();
    let bytes = |name: &str| std::fs::read(place.path(name)).unwrap();
    assert!(bytes("merged.safetensors") == bytes("all.safetensors"));
    place.run(["embed", &list, "--out", "all.npy"]).failure(2, &["all.npy", "--force"]);
}

#[test]
fn trials_are_scored_in_parts_and_evaluated() {
    let place = Workplace::new("tdnn");
    let (trials, folder) = (media("trials.txt"), media(""));
    let score = |extra: &[&str]| {
        let arguments = ["score", "--trials", &trials, "--root", &folder];
        place.run(arguments.iter().chain(extra)).success()
    };
    score(&["--out", "whole.txt", "--embeddings", "cache.safetensors"]);
    for shard in ["0/2", "1/2"] {
        let out = format!("part-{}.txt", &shard[..1]);
        score(&["--out", &out, "--shard", shard, "--embeddings", "cache.safetensors"]);
    }
    place.run(["merge", "part-1.txt", "part-0.txt", "--out", "merged.txt"]).success();
    let text = |name: &str| std::fs::read_to_string(place.path(name)).unwrap();
    assert_eq!(text("whole.txt"), text("merged.txt"));
    assert_eq!(text("whole.txt").lines().count(), 1 + 91);

    let from_scores =
        ["evaluate", "--trials", &trials, "--scores", "whole.txt", "--out", "report", "--json"];
    let metrics = place.run(from_scores).success().json();
    assert_eq!((metrics["targets"].clone(), metrics["nontargets"].clone()), (22.into(), 69.into()));
    let rate = number(&metrics["equal_error_rate"], "value");
    assert!((0.0..0.5).contains(&rate), "{metrics}");
    for file in ["report/report.html", "report/det.svg", "report/metrics.json"] {
        assert!(text(file).len() > 500, "{file}");
    }
    let embedded = ["evaluate", "--trials", &trials, "--root", &folder, "--json"];
    let again = place.run(embedded).success().json();
    // Score files have six decimals.
    assert!((number(&again["equal_error_rate"], "value") - rate).abs() < 0.02);
}

#[test]
fn figures_stand_beside_those_of_others_with_intervals_over_speakers() {
    let place = Workplace::new("tdnn");
    let (trials, folder, list) = (media("trials.txt"), media(""), media("recordings.tsv"));
    let other = r#"[{"system": "Other", "equal_error_rate_percent": {"trials": 4.5, "else": 1}}]"#;
    place.write("others.json", other);
    let evaluate = ["evaluate", "--trials", &trials, "--root", &folder];
    let beside = ["--references", "others.json", "--speakers", &list];
    let both = evaluate.iter().chain(&beside);
    let text = place.run(both.clone()).success().stdout;
    assert!(text.contains("Other") && text.contains("4.50"), "{text}");
    let metrics = place.run(both.chain(&["--json"])).success().json();
    assert_eq!(metrics["resampled"], "speakers");
    assert_eq!(number(&metrics["references"], "Other"), 4.5);

    place.write("others.json", "[{}]");
    let unnamed = ["--references", "others.json"];
    place.run(evaluate.iter().chain(&unnamed)).failure(2, &["others.json", "system"]);
    place.write("few.tsv", "path\tspeaker\nlibrivox/0870.flac\treader\n");
    let unknown = ["--speakers", "few.tsv"];
    place.run(evaluate.iter().chain(&unknown)).failure(2, &["few.tsv", "no speaker", "0880"]);
}

#[test]
fn a_model_keeps_the_cohort_that_it_was_calibrated_with() {
    let place = Workplace::new("tdnn");
    let (trials, folder, list) = (media("trials.txt"), media(""), media("recordings.tsv"));
    let cohort = ["embed", &list, "--per-speaker", "--out", "cohort.safetensors", "--json"];
    assert_eq!(place.run(cohort).success().json()["embeddings"], 4);
    let readers = ["--where", "speaker=librivox_reader", "--out", "reader.npy", "--json"];
    let reader = place.run(["embed", &list].iter().chain(&readers)).success().json();
    assert_eq!(reader["embeddings"], 5);
    let one = ["embed", &media("librivox/0870.flac"), "--out", "one.npy", "--where", "speaker=x"];
    place.run(one).failure(2, &["--where", "list"]);
    let calibrate = ["calibrate", "--trials", &trials, "--root", &folder];
    let normalised = ["--cohort", "cohort.safetensors", "--top", "3", "--out", "model.safetensors"];
    place.run(calibrate.iter().chain(&normalised)).success();

    let (a, b) = (media("librivox/0870.flac"), media("asterisk/allison-vm-options.flac"));
    let score = |model: &[&str]| {
        let verify = ["verify", &a, &b, "--threshold", "0", "--json"];
        number(&place.run(verify.iter().chain(model)).success().json(), "score")
    };
    let expected = {
        let score = ["score", "--trials", "pair.txt", "--root", "/", "--out", "scores.txt"];
        place.write("pair.txt", format!("1 {a} {b}\n"));
        place.run(score.iter().chain(&normalised[..4])).success();
        let scores = std::fs::read_to_string(place.path("scores.txt")).unwrap();
        let line = scores.lines().find(|line| line.contains("allison")).unwrap().to_owned();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap()
    };
    let found = score(&["--model", "model.safetensors"]);
    assert!((found - expected).abs() < 1e-5, "{found} {expected}");
    // A cohort of other embeddings is no cohort.
    let mixed = ["--no-speech-detection", "--force"];
    place
        .run(calibrate.iter().chain(&normalised).chain(&mixed))
        .failure(2, &["cohort.safetensors", "speech"]);
}

#[test]
fn published_layouts_become_models() {
    let place = Workplace::new("tdnn");
    let folder = root().join("tests/golden/tdnn/ckpt");
    let file = |name: &str| folder.join(name).display().to_string();
    let (supernet, bn) = (file("tiny.torchparams"), file("tiny.3.24.32.16.24.5.3.3.1.40.bn.tar"));
    let convert = ["convert", "--supernet", &supernet, "--bn", &bn, "--out", "tiny.safetensors"];
    place.run(convert).success();
    let info = place.run(["info", "tiny.safetensors", "--json"]).success().json();
    assert_eq!(info["architectures"][0], "3.24.32.16.24.5.3.3.1.40");
    let (a, b) = (media("librivox/0870.flac"), media("librivox/0890.flac"));
    let verify = ["verify", &a, &b, "--model", "tiny.safetensors"];
    place.run(verify).failure(2, &["not calibrated"]);
    place.run(verify.iter().chain(&["--threshold", "0.5"])).success();
    place.run(convert).failure(2, &["tiny.safetensors", "--force"]);
    let report = place.run(convert.iter().chain(&["--force"])).success().stderr;
    assert!(report.contains("tensors loaded, 0 missing, 0 unexpected"), "{report}");
    place.run(["convert", &supernet, "--out", "plain.safetensors"]).success();
}

#[test]
fn several_models_become_one() {
    let place = Workplace::new("tdnn");
    let folder = root().join("tests/golden/tdnn/ckpt");
    let file = |name: &str| folder.join(name).display().to_string();
    let (supernet, bn) = (file("tiny.torchparams"), file("tiny.3.24.32.16.24.5.3.3.1.40.bn.tar"));
    place
        .run(["convert", "--supernet", &supernet, "--bn", &bn, "--out", "a.safetensors"])
        .success();
    let shipped = root().join("samples/models/tdnn.safetensors").display().to_string();
    let combine = ["combine", &shipped, "a.safetensors", "--out", "both.safetensors"];
    place.run(combine).success();
    place.run(combine).failure(2, &["both.safetensors", "--force"]);
    place.run(["combine", "a.safetensors", "--out", "one.safetensors"]).failure(2, &["2 values"]);

    let info = |model: &str| place.run(["info", model, "--json"]).success().json();
    let [a, shipped_info, both] = ["a.safetensors", &shipped, "both.safetensors"].map(info);
    for sum in ["parameters", "macs_3s", "embedding"] {
        let parts = a[sum].as_u64().unwrap() + shipped_info[sum].as_u64().unwrap();
        assert_eq!(both[sum].as_u64().unwrap(), parts, "{sum}");
    }
    // Each network's cosine counts alike.
    let recordings = [media("librivox/0870.flac"), media("librivox/0890.flac")];
    let cosines = |model: &str| {
        let embeddings = recordings.each_ref().map(|recording| {
            place
                .run(["embed", recording, "--model", model, "--out", "x.npy", "--force"])
                .success();
            let bytes = fs::read(place.path("x.npy")).unwrap();
            let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
            let values = bytes[10 + header..].as_chunks::<4>().0;
            values.iter().map(|value| f32::from_le_bytes(*value)).collect::<Vec<_>>()
        });
        let [a, b] = embeddings;
        a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>()
    };
    let networks = shipped_info["architectures"].as_array().unwrap().len() as f32;
    let mean = (networks * cosines(&shipped) + cosines("a.safetensors")) / (networks + 1.0);
    let found = cosines("both.safetensors");
    assert!((found - mean).abs() < 1e-5, "{found} {mean}");
}

#[test]
fn a_small_network_trains_the_same_each_time() {
    let place = Workplace::new("tdnn");
    let config = place.write(
        "config.json",
        r#"{"architecture": "2.16.16.16.3.3.3.24", "batch": 8, "speeds": [1.0],
            "stages": [{"steps": 6, "crop_s": 0.6, "margin": [0.0, 0.1],
                        "schedule": {"kind": "constant", "lr": 0.001}}]}"#,
    );
    let config = config.display().to_string();
    let list = media("recordings.tsv");
    let train = |out: &str, extra: &[&str]| {
        let arguments = ["train", "--data", &list, "--out", out, "--config", &config];
        place.run(arguments.iter().chain(&["--threads", "1", "--json"]).chain(extra))
    };
    let whole = train("whole", &["--save-every", "2"]).success().json();
    assert_eq!((whole["recordings"].clone(), whole["classes"].clone()), (14.into(), 4.into()));
    train("resumed", &["--save-every", "2"]).success();
    let model = |out: &str| std::fs::read(place.path(out).join("model.safetensors")).unwrap();
    assert!(model("whole") == model("resumed"), "the same seed gives another model");
    let log: PathBuf = place.path("whole").join("stage-0/log.jsonl");
    assert_eq!(std::fs::read_to_string(log).unwrap().lines().count(), 6);
    // A finished run has nothing left to do.
    train("whole", &[]).success();
    assert!(model("whole") == model("resumed"));
}

#[test]
fn the_doctor_finds_nothing_wrong() {
    let place = Workplace::new("tdnn");
    let report = place.run(["doctor", "--json"]).success().json();
    assert!(number(&report, "self_test") > 0.999);
}
