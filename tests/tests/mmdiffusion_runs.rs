//! The generation tool as a user runs it: stopping, going on, sharing work, models, reports.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use shared::checkpoint::safetensors;
use shared::limits::Limits;
use shared::media::image::read_picture;
use tests::tiny;
use tests::tool::{Run, Workplace};

fn workplace() -> Workplace {
    let place = Workplace::new("mmdiffusion");
    let tensors = tiny::tensors(&tiny::coupled());
    tiny::write(&place.path("model.safetensors"), tiny::coupled(), &tensors);
    place
}

fn generate<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let always = ["generate", "--model", "model.safetensors", "--threads", "1", "--out", out];
    [&always, more].concat()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn same_files(place: &Workplace, a: &str, b: &str) {
    let (in_a, in_b) = (names(&place.path(a)), names(&place.path(b)));
    assert_eq!(in_a, in_b);
    for name in in_a {
        let bytes = |folder: &str| std::fs::read(place.path(folder).join(&name)).unwrap();
        assert!(bytes(a) == bytes(b), "{name}");
    }
}

#[test]
fn finished_clips_are_left_alone_and_shards_make_the_whole() {
    let place = workplace();
    let steps = ["--steps", "2", "--num", "3"];
    place.run(generate("whole", &steps)).success();
    place.run(generate("whole", &steps)).failure(2, &["already exists", "--resume"]);

    place.run(generate("parts", &[&steps[..], &["--shard", "0/2"]].concat())).success();
    assert_eq!(names(&place.path("parts")).len(), 3);
    // A clip of which a file is missing is made again.
    std::fs::remove_file(place.path("parts/sample-00000.mp4")).unwrap();
    let again = [&steps[..], &["--resume", "--json"]].concat();
    let made = place.run(generate("parts", &again)).success().json();
    assert_eq!(made["clips"].as_array().unwrap().len(), 3);
    same_files(&place, "whole", "parts");
    let made = place.run(generate("parts", &again)).success().json();
    assert_eq!((made["clips"].as_array().unwrap().len(), made["skipped"].clone()), (0, 3.into()));

    let other_seed = [&again[..], &["--seed", "1"]].concat();
    place.run(generate("parts", &other_seed)).failure(2, &["parts", "seed is 1, was 0"]);
    place.run(generate("parts", &[&other_seed[..], &["--force"]].concat())).success();
    // More clips of the same settings may be added.
    let more = ["--steps", "2", "--num", "4", "--resume"];
    place.run(generate("whole", &more)).success();
    assert!(place.path("whole/sample-00003.mp4").exists());
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_whole_clips_and_the_same_command_goes_on() {
    let place = workplace();
    let steps = ["--steps", "30", "--num", "4"];
    place.run(generate("whole", &steps)).success();
    let mut command = place.command(generate("out", &steps));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while !place.path("out/sample-00000.safetensors").exists() {
        assert!(started.elapsed() < Duration::from_secs(300), "no clip was made");
        std::thread::sleep(Duration::from_millis(5));
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    let run = Run::of(child.wait_with_output().unwrap());
    run.failure(130, &["interrupted", "clips are finished", "--resume"]);
    let left = names(&place.path("out"));
    assert!(left.len() < names(&place.path("whole")).len(), "{left:?}");
    assert!(left.iter().all(|name| !name.contains(".tmp")), "{left:?}");
    let resumed = [&steps[..], &["--resume"]].concat();
    place.run(generate("out", &resumed)).success();
    same_files(&place, "whole", "out");
}

#[test]
fn previews_and_progress_are_shown() {
    let place = workplace();
    let more =
        ["--steps", "4", "--preview", "2", "--num", "2", "--batch", "2", "--sampler", "ddim"];
    let run = place.run(generate("out", &more)).success();
    assert!(run.stderr.contains("8 steps") || run.stderr.contains("8 of 8"), "{}", run.stderr);
    assert_eq!(
        names(&place.path("out/previews")),
        [
            "sample-00000-step-0002.png",
            "sample-00000-step-0004.png",
            "sample-00001-step-0002.png",
            "sample-00001-step-0004.png"
        ]
    );
    let quiet = [&more[..], &["--quiet", "--force"]].concat();
    assert_eq!(place.run(generate("out", &quiet)).success().stderr, "");
    let limited = ["--steps", "2", "--batch", "100000", "--memory-limit", "0.1"];
    let run = place.run(generate("limited", &limited)).success();
    assert!(run.stderr.contains("--memory-limit leaves room for"), "{}", run.stderr);
    let narrow = ["--steps", "2", "--dtype", "bf16"];
    place.run(generate("narrow", &narrow)).success();
}

#[test]
fn the_shipped_model_makes_clips() {
    let place = workplace();
    let info = place.run(["info", "--json"]).success().json();
    assert_eq!(info["model"], "shipped model");
    let network = &info["card"]["network"]["settings"];
    let [frames, _, height, width] =
        [0, 1, 2, 3].map(|axis| network["video_size"][axis].as_u64().unwrap() as usize);
    let sampling = ["--sampler", "ddim", "--steps", "2", "--formats", "mp4,strip,safetensors"];
    place.run(["generate", "--out", "out"].iter().chain(&sampling)).success();
    let clip = safetensors::read(&place.path("out/sample-00000.safetensors"), &Limits::default());
    let clip = clip.unwrap();
    assert_eq!(clip.tensors["video"].dims(), [frames, 3, height, width]);
    let strip = read_picture(&place.path("out/sample-00000.strip.png"), &Limits::default());
    let strip = strip.unwrap();
    assert!(strip.width() >= frames * width && strip.height() > height);
    // The strip of a video is not shown beside it.
    let gallery = place.run(["gallery", "out", "--json"]).success();
    assert_eq!(gallery.json()["clips"], 1);
    let sound = ["video2audio", "out/sample-00000.mp4", "--out", "sounds"];
    place.run(sound.iter().chain(&sampling)).success();
}

#[test]
fn weights_as_published_become_models() {
    let place = workplace();
    let tensors = tiny::tensors(&tiny::coupled());
    safetensors::write(&place.path("weights.safetensors"), &tensors, &Default::default(), false)
        .unwrap();
    let flags = "--video_size 4,3,16,16 --audio_size 1,6400 --num_channels 32 --num_res_blocks 1 \
                 --num_head_channels 16 --channel_mult 1,1 --cross_attention_resolutions 2 \
                 --cross_attention_windows 2 --video_attention_resolutions 2";
    let convert = |flags| {
        place.run(["convert", "weights.safetensors", "--out", "made.safetensors", "--flags", flags])
    };
    convert("").failure(2, &["weights.safetensors", "expected"]);
    convert("--no_such_flag 3").failure(2, &["no_such_flag"]);
    convert(flags).success();
    convert(flags).failure(2, &["made.safetensors", "--force"]);
    let info = |model| place.run(["info", model, "--json"]).success().json();
    let (made, model) = (info("made.safetensors"), info("model.safetensors"));
    assert_eq!(made["card"]["tensors_sha256"], model["card"]["tensors_sha256"]);
    assert_eq!(made["parameters"], model["parameters"]);
    let text = place.run(["info", "made.safetensors"]).success().stdout;
    assert!(text.contains("4 frames of 16 x 16 pixels") && text.contains("weights.safetensors"));
}

#[test]
fn the_doctor_and_the_benchmark_report() {
    let place = workplace();
    let report = place.run(["doctor", "--model", "model.safetensors", "--json"]).success().json();
    assert!(report["h264"].is_string() && report["ffmpeg"].is_string(), "{report}");
    assert!(report["model"].as_str().unwrap().contains("coupled"));
    let bench = ["bench", "--model", "model.safetensors", "--runs", "1", "--batch", "1", "--json"];
    let found = place.run(bench.iter().chain(&["--dtype", "f32", "--dtype", "bf16"])).success();
    let lines = found.json_lines();
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|line| line["milliseconds"].as_f64() > Some(0.0)), "{lines:?}");
}
