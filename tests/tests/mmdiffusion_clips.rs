//! The generation tool on tiny models, as a user runs it: the clips that it makes.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use candle_core::{Device, Tensor};
use mmdiffusion::clip::{audio_tensor, video_tensor};
use mmdiffusion::{Clip, Rates};
use serde_json::Value;
use shared::limits::Limits;
use shared::media::audio::write_wav_f32;
use shared::media::image::Letterbox;
use shared::media::video::{Channel, ClipOptions, read_clip, read_comment, write_mp4};
use shared::media::{Frames, Waveform};
use tests::tiny;
use tests::tool::Workplace;

/// A folder with `model.safetensors` and `large.safetensors`, tiny models of both kinds.
fn workplace() -> Workplace {
    let place = Workplace::new("mmdiffusion");
    let networks =
        [("model.safetensors", tiny::coupled()), ("large.safetensors", tiny::super_resolution())];
    for (name, network) in networks {
        let tensors = tiny::tensors(&network);
        tiny::write(&place.path(name), network, &tensors);
    }
    place
}

/// `command` on the coupled model in two steps, with further arguments.
fn sample<'a>(command: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let always = [command, "--model", "model.safetensors", "--steps", "2", "--quiet"];
    [&always, more].concat()
}

fn clip(place: &Workplace, path: &str) -> Clip {
    Clip::read_tensors(&place.path(path), &Limits::default()).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference of two clips in picture or sound.
fn difference(a: &Clip, b: &Clip) -> f32 {
    let largest = |a: &Tensor, b: &Tensor| {
        assert_eq!(a.dims(), b.dims());
        let pairs = numbers(a).into_iter().zip(numbers(b));
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    largest(&a.video, &b.video).max(largest(&a.audio, &b.audio))
}

/// What ffprobe says of the streams of a file.
fn probe(path: &Path) -> BTreeMap<String, Value> {
    let fields = "stream=codec_type,codec_name,width,height,r_frame_rate,nb_frames,duration,\
                  sample_rate,channels,start_time";
    let arguments = ["-v", "error", "-show_entries", fields, "-of", "json"];
    let run = Command::new("ffprobe").args(arguments).arg(path).output().unwrap();
    let found: Value = serde_json::from_slice(&run.stdout).unwrap();
    let streams = found["streams"].as_array().unwrap().iter();
    streams.map(|s| (s["codec_type"].as_str().unwrap().to_owned(), s.clone())).collect()
}

/// Writes a video of 0.8 s with sound, 25 frames a second, of changing colours.
fn write_video(path: &Path) {
    let pixels = (0..20 * 30 * 40 * 3).map(|i| (i / 7 + i / 3600 * 11) as u8).collect();
    let tone = (0..12_800).map(|i| (0.4 * (f64::from(i) * 0.2).sin()) as f32);
    let sound = Waveform::from_mono(tone.collect(), 16_000);
    let frames = Frames::new(40, 30, pixels).unwrap();
    write_mp4(path, &frames, 25, Some(&sound), "", false).unwrap();
}

#[test]
fn clips_have_the_size_and_length_that_ffprobe_finds() {
    let place = workplace();
    let formats = "mp4,gif,wav,png,safetensors";
    let arguments =
        sample("generate", &["--num", "2", "--out", "out", "--formats", formats, "--json"]);
    let made = place.run(arguments).success().json();
    assert_eq!(made["clips"], serde_json::json!(["sample-00000", "sample-00001"]));
    let mut names: Vec<String> = std::fs::read_dir(place.path("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let clip_files = |number: &str| {
        ["gif", "mp4", "png", "safetensors", "wav"].map(|end| format!("sample-{number}.{end}"))
    };
    let expected = [&clip_files("00000")[..], &clip_files("00001"), &["settings.json".into()]];
    assert_eq!(names, expected.concat());

    let streams = probe(&place.path("out/sample-00001.mp4"));
    let (video, audio) = (&streams["video"], &streams["audio"]);
    for (stream, field, value) in [
        (video, "codec_name", "h264"),
        (video, "nb_frames", "4"),
        (video, "r_frame_rate", "10/1"),
        (video, "duration", "0.400000"),
        (video, "start_time", "0.000000"),
        (audio, "codec_name", "aac"),
        (audio, "sample_rate", "16000"),
        (audio, "duration", "0.400000"),
        (audio, "start_time", "0.000000"),
    ] {
        assert_eq!(stream[field], value, "{field}");
    }
    assert_eq!((video["width"].clone(), video["height"].clone()), (16.into(), 16.into()));
    assert_eq!(audio["channels"], 1);
    let gif = &probe(&place.path("out/sample-00001.gif"))["video"];
    assert_eq!((gif["width"].clone(), gif["r_frame_rate"].clone()), (16.into(), "10/1".into()));
    let wav = &probe(&place.path("out/sample-00001.wav"))["audio"];
    assert_eq!(
        (wav["sample_rate"].clone(), wav["duration"].clone()),
        ("16000".into(), "0.400000".into())
    );

    let tensors = clip(&place, "out/sample-00001.safetensors");
    assert_eq!((tensors.video.dims(), tensors.audio.dims()), (&[4, 3, 16, 16][..], &[1, 6400][..]));
    let origin = read_comment(&place.path("out/sample-00001.mp4")).unwrap().unwrap();
    let origin: Value = serde_json::from_str(&origin).unwrap();
    assert_eq!((origin["seed"].clone(), origin["sample"].clone()), (0.into(), 1.into()));
    assert_eq!(origin["model"].as_str().unwrap().len(), 64);
    assert_eq!(origin["sampler"]["steps"], 2);
}

#[test]
fn a_seed_gives_the_same_bytes_and_batch_and_threads_change_nothing_but_rounding() {
    let place = workplace();
    let run = |out: &str, more: &[&str]| {
        let arguments = sample("generate", &["--num", "3", "--seed", "5", "--out", out]);
        place.run(arguments.iter().chain(more)).success();
    };
    run("a", &["--threads", "2"]);
    run("b", &["--threads", "2"]);
    run("batch", &["--batch", "3", "--threads", "2"]);
    run("thread", &["--threads", "1"]);
    for number in 0..3 {
        let name = |out: &str, end: &str| format!("{out}/sample-0000{number}.{end}");
        for end in ["mp4", "safetensors"] {
            let bytes = |out: &str| std::fs::read(place.path(&name(out, end))).unwrap();
            assert!(bytes("a") == bytes("b"), "{number} {end}");
        }
        let first = clip(&place, &name("a", "safetensors"));
        for other in ["batch", "thread"] {
            let found = difference(&first, &clip(&place, &name(other, "safetensors")));
            assert!(found < 1e-4, "{other} {number}: {found}");
        }
        let others = (0..3).filter(|other| *other != number);
        for other in others {
            let other = clip(&place, &format!("a/sample-0000{other}.safetensors"));
            assert!(difference(&first, &other) > 0.1);
        }
    }
    // Other samplers, the number of steps being their own.
    for sampler in ["ddpm", "ddim", "dpm_solver++", "dpm_solver++_adaptive", "unipc", "heun"] {
        let steps = if sampler.ends_with("adaptive") { vec![] } else { vec!["--steps", "2"] };
        let model = ["generate", "--model", "model.safetensors", "--sampler", sampler, "--quiet"];
        let one = ["--out", sampler, "--num", "2"];
        let both = [&model[..], &one, &steps].concat();
        place.run(&both).success();
        let out = format!("{sampler} at once");
        place
            .run([&model[..], &["--out", &out, "--num", "2", "--batch", "2"], &steps].concat())
            .success();
        let name = |out: &str| format!("{out}/sample-00001.safetensors");
        let found = difference(&clip(&place, &name(sampler)), &clip(&place, &name(&out)));
        assert!(found < 1e-4, "{sampler}: {found}");
    }
}

#[test]
fn the_given_picture_or_sound_is_in_the_clip_exactly() {
    let place = workplace();
    let video = place.path("given.mp4");
    write_video(&video);
    // The picture as the library reads it.
    let options = ClipOptions {
        fps: 10,
        start_s: 0.2,
        duration_s: Some(0.4),
        letterbox: Some(Letterbox::new(16, 16)),
        rate_hz: 16_000,
        channel: Channel::Mix,
    };
    let given = read_clip(&video, &options, &Limits::default()).unwrap();
    let given_video = video_tensor(&given.frames.unwrap(), &Device::Cpu).unwrap();
    let wave = Waveform::from_mono((0..9000).map(|i| (i as f32 * 0.01).sin()).collect(), 16_000);
    write_wav_f32(&place.path("given.wav"), &wave, false).unwrap();
    let cut = Waveform::from_mono(wave.samples[1600..8000].to_vec(), 16_000);
    let given_audio = audio_tensor(&cut, &Device::Cpu).unwrap();

    for guidance in ["0", "3145728"] {
        for sampler in ["ddpm", "ddim", "dpm_solver++"] {
            let more = ["--guidance", guidance, "--sampler", sampler, "--num", "2", "--force"];
            let to_audio = [&["given.mp4", "--start", "0.2", "--out", "sound"], &more[..]].concat();
            place.run(sample("video2audio", &to_audio)).success();
            let clips = ["given-000", "given-001"]
                .map(|name| clip(&place, &format!("sound/{name}.safetensors")));
            for clip in &clips {
                assert_eq!(numbers(&clip.video), numbers(&given_video), "{sampler} {guidance}");
            }
            assert_ne!(numbers(&clips[0].audio), numbers(&clips[1].audio));

            let to_video =
                [&["given.wav", "--start", "0.1", "--out", "picture"], &more[..]].concat();
            place.run(sample("audio2video", &to_video)).success();
            let clip = clip(&place, "picture/given-001.safetensors");
            assert_eq!(numbers(&clip.audio), numbers(&given_audio), "{sampler} {guidance}");
        }
    }
    // A video's own sound serves, too; what is missing is silence.
    let late = ["given.mp4", "--start", "0.7", "--out", "late"];
    let run = place
        .run(["audio2video", "--model", "model.safetensors", "--steps", "2"].iter().chain(&late));
    assert!(run.success().stderr.contains("0.30 s of silence"));
    let clip = clip(&place, "late/given-000.safetensors");
    assert!(numbers(&clip.audio)[1700..].iter().all(|sample| *sample == 0.0));
}

#[test]
fn clips_are_continued_beyond_one_window() {
    let place = workplace();
    write_video(&place.path("given.mp4"));
    let more =
        ["given.mp4", "--given-frames", "3", "--frames", "11", "--overlap", "2", "--out", "long"];
    place.run(sample("continue", &more)).success();
    let long = clip(&place, "long/given-000.safetensors");
    assert_eq!((long.video.dims(), long.audio.dims()), (&[11, 3, 16, 16][..], &[1, 17_600][..]));
    let options = ClipOptions {
        fps: 10,
        start_s: 0.0,
        duration_s: Some(0.3),
        letterbox: Some(Letterbox::new(16, 16)),
        rate_hz: 16_000,
        channel: Channel::Mix,
    };
    let given = read_clip(&place.path("given.mp4"), &options, &Limits::default()).unwrap();
    let start = video_tensor(&given.frames.unwrap(), &Device::Cpu).unwrap();
    assert_eq!(numbers(&long.video)[..3 * 3 * 256], numbers(&start));
    assert_eq!(numbers(&long.audio)[..4800], given.sound.unwrap().samples);
    let video = &probe(&place.path("long/given-000.mp4"))["video"];
    assert_eq!(
        (video["nb_frames"].clone(), video["duration"].clone()),
        ("11".into(), "1.100000".into())
    );
    // Windows draw different noise.
    let frame = |index: usize| numbers(&long.video.get(index).unwrap());
    assert_ne!(frame(4), frame(6));
}

#[test]
fn clips_are_made_larger() {
    let place = workplace();
    place.run(sample("generate", &["--out", "small"])).success();
    let upscale = |input: &str, out: &str, more: &[&str]| {
        let always = ["upscale", input, "--model", "large.safetensors", "--out", out, "--quiet"];
        let steps = ["--sampler", "ddim", "--steps", "3"];
        place.run(always.iter().chain(&steps).chain(more)).success();
    };
    upscale("small/sample-00000.safetensors", "large", &[]);
    upscale("small/sample-00000.safetensors", "at once", &["--batch", "4"]);
    let (small, large) = (
        clip(&place, "small/sample-00000.safetensors"),
        clip(&place, "large/sample-00000.safetensors"),
    );
    assert_eq!(large.video.dims(), [4, 3, 32, 32]);
    assert_eq!(numbers(&large.audio), numbers(&small.audio));
    assert!(difference(&large, &clip(&place, "at once/sample-00000.safetensors")) < 1e-4);
    upscale("small/sample-00000.mp4", "of video", &[]);
    assert_eq!(clip(&place, "of video/sample-00000.safetensors").video.dims(), [4, 3, 32, 32]);
    assert_eq!(probe(&place.path("large/sample-00000.mp4"))["video"]["width"], 32);
}

#[test]
fn a_folder_becomes_one_page() {
    let place = workplace();
    place.run(sample("generate", &["--num", "2", "--out", "out"])).success();
    write_video(&place.path("out/<b>&amp;.mp4"));
    place.write("out/broken.mp4", "no video");
    let run = place.run(["gallery", "out", "--json"]).success();
    assert_eq!(run.json()["clips"], 3);
    assert!(run.stderr.contains("broken.mp4"));
    let page = std::fs::read_to_string(place.path("out/gallery.html")).unwrap();
    assert_eq!(page.matches("src=\"data:video/mp4;base64,").count(), 3);
    assert_eq!(page.matches("href=\"data:image/png;base64,").count(), 3);
    assert!(page.contains("&lt;b&gt;&amp;amp;.mp4") && page.contains("sampler"));
    assert!(!page.contains("<script") && !page.contains("src=\"http"));
    place.run(["gallery", "out"]).failure(2, &["gallery.html", "--force"]);
    let empty = place.path("nothing");
    std::fs::create_dir(&empty).unwrap();
    place.run(["gallery", "nothing"]).failure(2, &["nothing", "no clips"]);
}

#[test]
fn rates_and_shapes_of_tensors_are_kept() {
    let rates = Rates { fps: 10, rate_hz: 16_000 };
    let place = workplace();
    place.run(sample("generate", &["--out", "out", "--formats", "safetensors"])).success();
    assert_eq!(clip(&place, "out/sample-00000.safetensors").rates, rates);
}
