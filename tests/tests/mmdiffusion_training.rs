//! Training as a user runs it: broken clips, kills, other settings, losses that are not numbers.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tests::tool::Workplace;

const COUPLED: [&str; 2] = ["train", "coupled.json"];
const LARGE: [&str; 2] = ["train-sr", "large.json"];

/// Clips to train on, one of them broken, and settings of tiny networks.
fn workplace() -> Workplace {
    let place = Workplace::new("mmdiffusion");
    let clips = ["make-demo-data", "--out", "clips", "--num", "5", "--size", "32", "--frames", "6"];
    place.run(clips).success();
    fs::write(place.path("clips/broken.mp4"), "no clip").unwrap();
    let optimisation = json!({
        "steps": 6,
        "batch": 2,
        "part": 1,
        "schedule": {"kind": "constant", "lr": 1e-3},
        "ema_rates": [0.9],
        "step_sampling": "loss_second_moment",
    });
    let network = json!({
        "num_channels": 32,
        "num_res_blocks": 1,
        "channel_mult": [1, 1],
        "dropout": 0.1,
        "use_checkpoint": true,
    });
    let with = |more: Value| {
        let mut network = network.clone();
        network.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        network
    };
    let coupled = json!({
        "network": with(json!({
            "video_size": [4, 3, 8, 8],
            "audio_size": [1, 1600],
            "num_head_channels": 16,
            "cross_attention_resolutions": [2],
            "cross_attention_windows": [2],
            "video_attention_resolutions": [2],
            "resblock_updown": true,
        })),
        "rate_hz": 4000,
        "optimisation": optimisation,
    });
    let large = json!({
        "network": with(json!({"large_size": 16, "small_size": 8, "attention_resolutions": [2]})),
        "optimisation": optimisation,
    });
    write(&place, COUPLED[1], &coupled);
    write(&place, LARGE[1], &large);
    place
}

fn write(place: &Workplace, name: &str, settings: &Value) {
    fs::write(place.path(name), settings.to_string()).unwrap();
}

fn train<'a>([command, config]: [&'a str; 2], out: &'a str) -> Vec<&'a str> {
    let fixed = ["--save-every", "1", "--evaluate-every", "3", "--previews", "2", "--threads", "1"];
    [&[command, "--data", "clips", "--config", config, "--out", out], &fixed[..]].concat()
}

fn model(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("model.safetensors")).unwrap()
}

#[test]
fn a_killed_run_goes_on_to_the_same_model() {
    for command in [COUPLED, LARGE] {
        let place = workplace();
        let run = place.run(train(command, "whole")).success();
        assert!(run.stderr.contains("broken.mp4"), "{}", run.stderr);
        // Killed in the middle of it, three times.
        for step in 1..4 {
            let mut child = place.command(train(command, "parts")).spawn().unwrap();
            let log = place.path("parts/log.jsonl");
            let steps = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
            while steps() < step && child.try_wait().unwrap().is_none() {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
        place.run(train(command, "parts")).success();
        assert!(model(&place.path("parts")) == model(&place.path("whole")), "{command:?}");
        for step in ["00000003", "00000006"] {
            assert!(place.path(&format!("whole/previews/step-{step}.png")).is_file());
        }
        // What came out can be used.
        place.run(["info", "whole/model.safetensors"]).success();
        // The index knows the broken one.
        let index = if command == COUPLED { "clips.json" } else { "pictures.json" };
        let index = fs::read_to_string(place.path("whole").join(index)).unwrap();
        assert!(index.contains("broken.mp4"), "{index}");
    }
}

#[test]
fn settings_that_changed_and_missing_data_are_refused() {
    let place = workplace();
    for command in [COUPLED, LARGE] {
        place.run(train(command, "run")).success();
        let text = fs::read_to_string(place.path(command[1])).unwrap();
        let mut settings: Value = serde_json::from_str(&text).unwrap();
        settings["mirror"] = json!(0.25);
        write(&place, "other.json", &settings);
        let other = train([command[0], "other.json"], "run");
        place.run(other).failure(2, &["other settings", "0.25"]);
        // It may be made longer.
        settings = serde_json::from_str(&text).unwrap();
        settings["optimisation"]["steps"] = json!(7);
        write(&place, "longer.json", &settings);
        place.run(train([command[0], "longer.json"], "run")).success();
        settings["optimisation"]["stepss"] = json!(7);
        write(&place, "unknown.json", &settings);
        place.run(train([command[0], "unknown.json"], "x")).failure(2, &["stepss"]);
        fs::remove_dir_all(place.path("run")).unwrap();
    }
    fs::create_dir(place.path("empty")).unwrap();
    place.run(["train", "--data", "empty", "--out", "x"]).failure(2, &["empty", "mp4"]);
    fs::write(place.path("empty/broken.mp4"), "no clip").unwrap();
    place.run(["train", "--data", "empty", "--out", "x"]).failure(2, &["none of 1 files"]);
}

#[test]
fn a_model_begins_with_another_one() {
    let place = workplace();
    place.run(train(COUPLED, "first")).success();
    let init = ["--init", "first/model.safetensors"];
    let run = place.run([&train(COUPLED, "second")[..], &init].concat()).success();
    assert!(run.stderr.contains("0 missing"), "{}", run.stderr);
    // A network with one more block lacks some tensors.
    let text = fs::read_to_string(place.path(COUPLED[1])).unwrap();
    let mut settings: Value = serde_json::from_str(&text).unwrap();
    settings["network"]["cross_attention_resolutions"] = json!([1, 2]);
    settings["network"]["cross_attention_windows"] = json!([1, 2]);
    write(&place, "wider.json", &settings);
    let wider = train(["train", "wider.json"], "third");
    place.run([&wider[..], &init].concat()).failure(2, &["missing"]);
}

#[test]
fn faulty_steps_are_skipped_and_ten_in_a_row_are_enough() {
    let place = workplace();
    let text = fs::read_to_string(place.path(COUPLED[1])).unwrap();
    let mut settings: Value = serde_json::from_str(&text).unwrap();
    // So large a step that nothing is a number any more.
    settings["optimisation"]["schedule"] = json!({"kind": "constant", "lr": 1e38});
    settings["optimisation"]["steps"] = json!(40);
    settings["optimisation"]["clip_norm"] = json!(null);
    write(&place, "wild.json", &settings);
    let run = place.run([
        "train",
        "--data",
        "clips",
        "--config",
        "wild.json",
        "--out",
        "run",
        "--previews",
        "0",
    ]);
    let skipped = run.stderr.matches("changes nothing").count();
    assert_eq!(skipped, 10, "{}", run.stderr);
    run.failure(2, &["step"]);
}
