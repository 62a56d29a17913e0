//! The generation tool on bad input: what is wrong is said, and nothing half-written is left.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use shared::checkpoint::safetensors;
use shared::limits::Limits;
use shared::media::audio::write_wav;
use shared::media::video::write_mp4;
use shared::media::{Frames, Waveform};
use tests::tiny;
use tests::tool::{Run, Workplace};

/// A folder with tiny models of both kinds, a video with and one without sound, and a sound.
fn workplace() -> Workplace {
    let place = Workplace::new("mmdiffusion");
    let networks =
        [("model.safetensors", tiny::coupled()), ("large.safetensors", tiny::super_resolution())];
    for (name, network) in networks {
        let tensors = tiny::tensors(&network);
        tiny::write(&place.path(name), network, &tensors);
    }
    let frames = Frames::new(16, 16, (0..16 * 16 * 3 * 8).map(|i| i as u8).collect()).unwrap();
    let sound = Waveform::from_mono((0..12_800).map(|i| (i as f32 * 0.1).sin()).collect(), 16_000);
    write_mp4(&place.path("both.mp4"), &frames, 10, Some(&sound), "", false).unwrap();
    write_mp4(&place.path("silent.mp4"), &frames, 10, None, "", false).unwrap();
    write_wav(&place.path("sound.wav"), &sound, false).unwrap();
    place
}

const COUPLED: [&str; 6] = ["--model", "model.safetensors", "--out", "out", "--steps", "2"];

/// Files anywhere below a folder, temporary ones included, other than the settings.
fn files_below(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    let paths = entries.map(|entry| entry.unwrap().path());
    let files = paths.flat_map(|path| match path.is_dir() {
        true => files_below(&path),
        false => vec![path.display().to_string()],
    });
    files.filter(|file| !file.ends_with("settings.json")).collect()
}

/// Each case: arguments, and words of the message. All fail with exit code 2 and leave no file.
fn all_refused(place: &Workplace, cases: &[(Vec<&str>, &[&str])]) {
    for (arguments, words) in cases {
        let run = place.run(arguments);
        let shown = format!("{arguments:?}: {}", run.stderr);
        assert!(
            words.iter().all(|word| run.stderr.contains(word)),
            "{words:?} are not all in {shown}"
        );
        run.failure(2, &[]);
        let out = place.path("out");
        assert_eq!(files_below(&out), [""; 0], "{shown}");
        // The settings that are left there would refuse the next case.
        if out.is_dir() {
            std::fs::remove_dir_all(&out).unwrap();
        }
    }
}

fn with<'a>(command: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [command, &COUPLED, more].concat()
}

#[test]
fn enlarging_without_a_model_says_so() {
    let place = workplace();
    let words = ["no super-resolution network is built into", "--model", "convert", "train-sr"];
    all_refused(&place, &[(vec!["upscale", "both.mp4", "--out", "out"], &words)]);
}

#[test]
fn models_of_another_kind_or_shape_are_named() {
    let place = workplace();
    // A card that describes another network than the tensors are.
    let path = place.path("model.safetensors");
    let model = safetensors::read(&path, &Limits::default()).unwrap();
    let card = model.metadata["mmdiffusion"].replace("\"num_channels\":32", "\"num_channels\":64");
    assert_ne!(card, model.metadata["mmdiffusion"]);
    let metadata = BTreeMap::from([("mmdiffusion".to_owned(), card)]);
    safetensors::write(&place.path("other.safetensors"), &model.tensors, &metadata, false).unwrap();
    safetensors::write(&place.path("bare.safetensors"), &model.tensors, &BTreeMap::new(), false)
        .unwrap();
    let bytes = std::fs::read(&path).unwrap();
    place.write("cut.safetensors", &bytes[..bytes.len() / 2]);
    place.write("empty.safetensors", "");
    let mut damaged = bytes;
    *damaged.last_mut().unwrap() ^= 1;
    place.write("damaged.safetensors", damaged);
    let generate = |model| vec!["generate", "--out", "out", "--model", model];
    let upscale = |model| vec!["upscale", "both.mp4", "--out", "out", "--model", model];
    all_refused(
        &place,
        &[
            (
                generate("other.safetensors"),
                &["other.safetensors", "audio_out.0.GroupNorm.bias", "expected [64], found [32]"],
            ),
            (generate("bare.safetensors"), &["bare.safetensors", "convert"]),
            (generate("cut.safetensors"), &["cut.safetensors"]),
            (generate("empty.safetensors"), &["empty.safetensors", "empty"]),
            (generate("damaged.safetensors"), &["damaged.safetensors", "damaged"]),
            (generate("missing.safetensors"), &["missing.safetensors"]),
            (generate("both.mp4"), &["both.mp4"]),
            (generate("large.safetensors"), &["super-resolution network"]),
            (upscale("model.safetensors"), &["coupled network", "expected a super-resolution"]),
        ],
    );
}

#[test]
fn weights_that_make_no_numbers_stop_with_step_and_sampler() {
    let place = workplace();
    let mut tensors = tiny::tensors(&tiny::coupled());
    let (name, weight) =
        tensors.iter().find(|(name, _)| *name == "video_out.2.video_conv.weight").unwrap();
    let (name, huge) = (name.clone(), weight.affine(1e38, 1e38).unwrap());
    tensors.insert(name.clone(), huge);
    tiny::write(&place.path("huge.safetensors"), tiny::coupled(), &tensors);
    let run = |sampler| {
        let model = ["--model", "huge.safetensors", "--sampler", sampler, "--out", "out"];
        [&["generate", "--steps", "3"][..], &model].concat()
    };
    all_refused(
        &place,
        &[
            (run("ddim"), &["step", "of sampler ddim", "not finite"]),
            (run("dpm_solver"), &["step", "of sampler dpm_solver", "not finite"]),
        ],
    );
    let not_a_number = tensors[&name].affine(f64::NAN, 0.0).unwrap();
    tensors.insert(name.clone(), not_a_number);
    tiny::write(&place.path("nan.safetensors"), tiny::coupled(), &tensors);
    all_refused(
        &place,
        &[(
            vec!["generate", "--model", "nan.safetensors", "--out", "out"],
            &["nan.safetensors", &name],
        )],
    );
}

#[test]
fn sizes_that_no_clip_can_have_are_refused() {
    let place = workplace();
    let generate = |more: &[&'static str]| with(&["generate"], more);
    all_refused(
        &place,
        &[
            (generate(&["--frames", "0"]), &["0 frames"]),
            (generate(&["--size", "15x16"]), &["15 x 16", "multiple of 2"]),
            (generate(&["--size", "16"]), &["16"]),
            (generate(&["--samples", "6402"]), &["6402 samples", "multiple of 4"]),
            (generate(&["--samples", "0"]), &["0 samples"]),
            (generate(&["--samples", "4"]), &["4 samples", "4 frames"]),
            (generate(&["--samples", "3200"]), &["0.400 s", "0.200 s", "--formats"]),
            (generate(&["--formats", "avi"]), &["avi", "mp4"]),
            (generate(&["--num", "0"]), &["--num"]),
            (generate(&["--batch", "0"]), &["--batch"]),
            (generate(&["--preview", "0"]), &["--preview"]),
            (generate(&["--sampler", "euler"]), &["euler", "ddim"]),
            (generate(&["--shard", "3/3"]), &["3/3"]),
            (generate(&["--memory-limit", "0.000001"]), &["memory limit", "MiB"]),
            (generate(&["--memory-limit", "-1"]), &["-1"]),
            (generate(&["--threads", "0"]), &["--threads"]),
            (generate(&["--device", "gpu"]), &["gpu", "cpu"]),
            (
                vec!["generate", "--model", "model.safetensors", "--out", "out", "--steps", "0"],
                &["step"],
            ),
        ],
    );
    // Sizes that work upstream work here: sound that does not divide among the frames, and pictures
    // of other proportions.
    for (out, more) in [
        ("a", &["--samples", "6408", "--formats", "safetensors"][..]),
        ("b", &["--size", "20x18"]),
        ("c", &["--frames", "3"]),
        ("d", &["--samples", "5000", "--formats", "gif,wav,png"]),
    ] {
        let always = ["generate", "--model", "model.safetensors", "--steps", "2", "--out", out];
        place.run(always.iter().chain(more)).success();
    }
}

#[test]
fn files_that_lack_what_is_needed_are_named() {
    let place = workplace();
    let both = std::fs::read(place.path("both.mp4")).unwrap();
    place.write("cut.mp4", &both[..both.len() / 2]);
    place.write("empty.mp4", "");
    place.write("text.mp4", "no video at all, only some words\n".repeat(100));
    place.write("no clip.safetensors", std::fs::read(place.path("model.safetensors")).unwrap());
    let to_audio = |file: &'static str, more: &[&'static str]| with(&["video2audio", file], more);
    let to_video = |file: &'static str, more: &[&'static str]| with(&["audio2video", file], more);
    let go_on = |file: &'static str, more: &[&'static str]| with(&["continue", file], more);
    let upscale = |file| vec!["upscale", file, "--model", "large.safetensors", "--out", "out"];
    let adaptive = [
        "video2audio",
        "both.mp4",
        "--model",
        "model.safetensors",
        "--out",
        "out",
        "--guidance",
        "1",
        "--sampler",
        "dpm_solver++_adaptive",
    ];
    all_refused(
        &place,
        &[
            (to_audio("sound.wav", &[]), &["sound.wav", "no picture"]),
            (to_audio("cut.mp4", &[]), &["cut.mp4"]),
            (to_audio("empty.mp4", &[]), &["empty.mp4", "empty"]),
            (to_audio("text.mp4", &[]), &["text.mp4", "format"]),
            (to_audio("missing.mp4", &[]), &["missing.mp4"]),
            (to_audio(".", &[]), &["folder"]),
            (to_audio("both.mp4", &["--start", "7"]), &["both.mp4", "ends at 0.8"]),
            (to_audio("both.mp4", &["--start", "-1"]), &["-1"]),
            (to_audio("both.mp4", &["--guidance", "nan"]), &["guidance"]),
            (adaptive.to_vec(), &["adaptive", "guidance"]),
            (with(&["video2audio", "both.mp4", "./both.mp4"], &[]), &["both", "rename"]),
            (to_video("silent.mp4", &[]), &["silent.mp4", "no audio"]),
            (to_video("empty.mp4", &[]), &["empty.mp4", "empty"]),
            (to_video("sound.wav", &["--start", "9"]), &["sound.wav", "none after 9 s"]),
            (go_on("silent.mp4", &[]), &["silent.mp4", "no sound"]),
            (go_on("sound.wav", &[]), &["sound.wav", "no picture"]),
            (go_on("both.mp4", &["--frames", "2"]), &["cannot be continued to 2"]),
            (go_on("both.mp4", &["--overlap", "4"]), &["1 to 3", "not 4"]),
            (upscale("sound.wav"), &["sound.wav", "no picture"]),
            (upscale("cut.mp4"), &["cut.mp4"]),
            (upscale("no clip.safetensors"), &["no clip.safetensors", "holds no clip"]),
        ],
    );
}

#[test]
fn a_full_disk_and_closed_folders_leave_nothing_half_written() {
    let place = workplace();
    for out in ["/dev/full", "/dev/null", "model.safetensors", "/proc/out"] {
        let arguments = ["generate", "--model", "model.safetensors", "--steps", "2", "--out", out];
        place.run(arguments).failure(2, &[out]);
    }
    // A limit on the size of files stands for a full disk: writing fails in the midst of a file.
    let tool = place.command(["generate"]).get_program().to_owned();
    let limited = format!(
        "trap '' XFSZ; ulimit -f 8; exec {:?} generate --model model.safetensors --steps 2 --out out",
        tool
    );
    let output =
        Command::new("bash").args(["-c", &limited]).current_dir(place.path("")).output().unwrap();
    let run = Run::of(output).failure(2, &["sample-00000", "no clip is finished"]);
    let left = files_below(&place.path("out"));
    // The video is small enough and was written whole before; of the tensors there is nothing.
    assert!(left.iter().all(|file| file.ends_with("sample-00000.mp4")), "{left:?}\n{}", run.stderr);
    // With room again, the same command goes on.
    let arguments = ["generate", "--model", "model.safetensors", "--steps", "2", "--out", "out"];
    place.run(arguments.iter().chain(&["--resume"])).success();
}
